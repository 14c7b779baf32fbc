// Files of torch.save and TorchScript, and pickles alone: what torch reads is read exactly, hostile files are refused.
#include <catch2/catch.hpp>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <psae/io/json.hpp>
#include <psae/io/numpy.hpp>
#include <psae/io/torch_file.hpp>

#include "../temporary_folder.hpp"

using namespace psae;

namespace {

const std::filesystem::path formats = std::filesystem::path(PSAE_GOLDEN_DIR) / "formats";

std::string slurp(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}
std::span<const std::byte> bytes_of(const std::string& s) {
    return {reinterpret_cast<const std::byte*>(s.data()), s.size()};
}

template <class F>
std::string message_of(F&& f) {
    try {
        f();
    } catch (const error& e) {
        return e.what();
    }
    return "";
}

// A pickle of these instructions.
std::string pickled(const std::string& instructions) { return std::string("\x80\4", 2) + instructions + "."; }
std::string refusal(const std::string& instructions) {
    const std::string bytes = pickled(instructions);
    return message_of([&] { pickle(bytes_of(bytes), "text"); });
}

// Exactly the array, NaN included.
void check_tensor(const torch_file& file, const std::string& name, const array& expected) {
    INFO(file.path() << " " << name);
    const torch_tensor& t = file.at(name);
    REQUIRE(t.shape == expected.shape);
    std::vector<std::byte> gathered;
    const std::byte* data = file.bytes(t, gathered).data();
    if (expected.type == element_type::i64) {
        CHECK(convert_elements<std::int64_t>(t.type, data, expected.size()) == values<std::int64_t>(expected));
        return;
    }
    const auto got = convert_elements<double>(t.type, data, expected.size()), want = values<double>(expected);
    for (std::size_t i = 0; i < got.size(); ++i)
        CHECK((got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]))));
}

// A value of a pickle as JSON has it.
void check_value(const pickle_value& v, const rapidjson::Value& want) {
    INFO(v.where());
    if (want.IsNull()) CHECK(v.is(pickle_kind::none));
    else if (want.IsBool()) CHECK(v.boolean() == want.GetBool());
    else if (want.IsInt64()) CHECK(v.integer() == want.GetInt64());
    else if (want.IsNumber()) CHECK(v.number() == want.GetDouble());
    else if (want.IsString()) CHECK(v.text() == want.GetString());
    else if (want.IsArray()) {
        REQUIRE(v.size() == want.Size());
        for (rapidjson::SizeType i = 0; i < want.Size(); ++i) check_value(v[i], want[i]);
    } else {
        REQUIRE(v.size() == want.MemberCount());
        for (const auto& m : want.GetObject()) check_value(v.at(m.name.GetString()), m.value);
    }
}

}  // namespace

TEST_CASE("every tensor torch saves is read exactly, from an archive and from the legacy form") {
    const auto expected = read_npz(formats / "torch_everything.expected.npz");
    for (const char* name : {"torch_everything.pt", "torch_everything_legacy.pt"}) {
        const torch_file file(formats / name);
        CHECK(file.form() ==
              (std::string(name).find("legacy") == std::string::npos ? torch_form::zip : torch_form::legacy));
        CHECK(file.entries().size() >= expected.size());  // some are in two places
        for (const auto& [key, a] : expected) check_tensor(file, "tensors." + key, a);
        const auto nested = file.root().at("nested");
        const auto json = read_json(formats / "expected.json");
        const auto& want = json["torch_everything"]["nested"];
        for (const char* key : {"list", "big", "negative", "unicode"}) check_value(nested.at(key), want[key]);
        CHECK(nested.at("bytes").text() == std::string_view("\0\xff", 2));
        CHECK(nested.key(nested.size() - 1).integer() == 7);
        CHECK(nested[nested.size() - 1].text() == "integer key");
        CHECK_FALSE(nested.find("7"));
    }
    const torch_file file(formats / "torch_everything.pt");
    CHECK(file.root().at("size").size() == 2);
    CHECK(file.root().at("dtype").text().starts_with("torch."));
    CHECK(file.root().at("device").text() == "cpu");
    const auto shared = file.read("shared_a", {6, 7});  // two views of one storage
    CHECK(file.at("shared_a").storage == file.at("shared_b").storage);
    for (const float v : file.read("shared_b", {6})) CHECK(std::count(shared.begin(), shared.end(), v) > 0);
    CHECK(file.at("parameter").shape == std::vector<std::size_t>{7});
    const torch_file single(formats / "torch_single_tensor.pt");
    check_tensor(single, "", expected.at("f32"));
    CHECK(single.read("", {6, 7}) == to_floats(expected.at("f32")));
}

TEST_CASE("a PatchSAE checkpoint is read: its tensors, and its configuration without its class") {
    const auto expected = read_npz(formats / "patchsae.expected.npz");
    const auto json = read_json(formats / "expected.json");
    for (const char* name : {"patchsae.pt", "patchsae_config_dict.pt"}) {
        const torch_file file(formats / name);
        for (const char* w : {"W_enc", "b_enc", "W_dec", "b_dec"})
            CHECK(file.read(std::string("state_dict.") + w, expected.at(w).shape) == to_floats(expected.at(w)));
        const auto cfg = file.root().find("cfg") ? file.root().at("cfg") : file.root().at("config");
        check_value(cfg, json["patchsae"]);
        if (cfg.is(pickle_kind::object)) CHECK(cfg.text() == "src.sae_training.config.ViTSAERunnerConfig");
    }
    const torch_file halves(formats / "patchsae_fp16.pt");
    CHECK(halves.at("state_dict.W_enc").type == element_type::f16);
    const auto W = halves.read("state_dict.W_enc", {8, 24}), whole = to_floats(expected.at("W_enc"));
    for (std::size_t i = 0; i < W.size(); ++i) CHECK(W[i] == widen(to_half(whole[i])));
}

TEST_CASE("the parameters of a TorchScript archive are read") {
    const torch_file file(formats / "torchscript.pt");
    CHECK(file.form() == torch_form::torchscript);
    CHECK(file.root().text() == "__torch__.clip.model.Tiny");
    for (const auto& [name, a] : read_npz(formats / "torchscript.expected.npz")) check_tensor(file, name, a);
}

TEST_CASE("an archive may begin inside of a file or lie in memory") {
    const std::string whole = slurp(formats / "saev_schema2.pt");
    const std::size_t start = whole.find('\n') + 1;
    const torch_file in_file(formats / "saev_schema2.pt", start), in_memory(bytes_of(whole).subspan(start), "memory");
    REQUIRE(in_file.entries().size() >= 4);
    for (const auto& t : in_file.entries()) CHECK(in_file.read(t.name, t.shape) == in_memory.read(t.name, t.shape));
    CHECK_THROWS_AS(torch_file(formats / "saev_schema2.pt"), error);
    CHECK_THROWS_AS(torch_file(formats / "saev_schema2.pt", whole.size() + 1), error);
    torch_file moved(formats / "patchsae.pt");
    const torch_file other = std::move(moved);
    CHECK(other.root().at("cfg").at("d_in").integer() == 8);
    CHECK(other.contains("state_dict.W_dec"));
}

TEST_CASE("torch files that are not there, not of that shape or not finite are named") {
    const torch_file file(formats / "patchsae.pt"), results(formats / "reference_results" / "sae_mean_acts.pt");
    CHECK(message_of([&] { file.read("W_enc", {8, 24}); }).find("patchsae.pt, tensor W_enc") != std::string::npos);
    CHECK(message_of([&] {
              file.read("state_dict.W_enc", {24, 8});
          }).find("expected [24, 8], found [8, 24]") != std::string::npos);
    CHECK(message_of([&] { results.read("", results.at("").shape); }).find("not finite (") != std::string::npos);
    CHECK(message_of([&] { file.root().at("cfg").at("d_im"); }).find("patchsae.pt, data.pkl, cfg): expected d_im") !=
          std::string::npos);
    CHECK(message_of([&] {
              file.root().at("cfg").at("model_name").integer();
          }).find("expected an integer, found a string") != std::string::npos);
    CHECK_THROWS_AS(file.root().at("cfg")[1000], error);
    CHECK_THROWS_AS(file.root().at("cfg").at("d_in").size(), error);
}

TEST_CASE("hostile torch files and pickles are refused by name, quickly, and nothing is run") {
    const auto list = read_json(formats / "refuse.json");
    std::size_t refused = 0;
    for (const auto& f : list["files"].GetArray()) {
        const std::string name = f["file"].GetString();
        const bool is_pickle = name.starts_with("refuse/pickle/");
        if (!is_pickle && !name.starts_with("refuse/torch/")) continue;
        // These are good files that no loader of an SAE can use.
        const bool good = name.ends_with("/not_a_state_dict.pt") || name.ends_with("/missing_tensor.pt") ||
                          name.ends_with("/wrong_shapes.pt");
        INFO(name << ": " << f["why"].GetString());
        const auto before = std::chrono::steady_clock::now();
        const std::string text = message_of([&] {
            if (is_pickle) pickle(bytes_of(slurp(formats / name)), name);
            else torch_file file(formats / name);
        });
        CHECK(std::chrono::steady_clock::now() - before < std::chrono::seconds(2));
        CHECK_FALSE((text.empty() && f["must_refuse"].GetBool() && !good));
        if (!text.empty()) CHECK(text.find(name) != std::string::npos);
        refused += !text.empty();
    }
    CHECK(refused >= 85);
    CHECK_FALSE(std::filesystem::exists("canary_executed"));
    const auto refusal = [&](const char* file) {
        return message_of([&] { torch_file(formats / "refuse" / "torch" / file); });
    };
    CHECK(refusal("reduce_os_system.pt").find("os.system") != std::string::npos);
    CHECK(refusal("unknown_storage.pt").find("torch.EvilStorage") != std::string::npos);
    CHECK(refusal("stride_beyond_storage.pt").find("strides [100, 1]") != std::string::npos);
    CHECK(refusal("zip_bomb.pt").find("expected 16 bytes, found 67108864") != std::string::npos);
    CHECK(refusal("stride0_huge.pt").find("repeats its storage") != std::string::npos);
}

TEST_CASE("a value is written as torch.save does, and read back") {
    const temporary_folder folder;
    const auto path = folder.path / "sae.pt";
    const std::vector<float> W{1, -2, 0.5f, 4, 5, 6};
    const std::vector<std::int64_t> k{32};
    const bf16 b[2] = {to_bf16(1.5f), to_bf16(-0.25f)};
    const torch_value value = torch_value::dict{
        {"cfg", torch_value::dict{{"d_in", 3},
                                  {"large", std::int64_t{-1} << 40},
                                  {"lr", 4e-4},
                                  {"name", "na\xc3\xafve"},
                                  {"ghost", true},
                                  {"from", torch_value()},
                                  {"none", torch_value::dict{}}}},
        {"state_dict", torch_value::state_dict({to_write("W_enc", {2, 3}, W.data()), to_write("k", {}, k.data()),
                                                to_write("b", {2}, b), to_write("empty", {0, 3}, W.data())})}};
    for (const std::string head : {"", "{\"schema\": 2}\n"}) {
        write_torch(path, value, head);
        const torch_file file(path, head.size());
        const auto cfg = file.root().at("cfg");
        CHECK(cfg.at("d_in").integer() == 3);
        CHECK(cfg.at("large").integer() == std::int64_t{-1} << 40);
        CHECK(cfg.at("lr").number() == 4e-4);
        CHECK(cfg.at("name").text() == "na\xc3\xafve");
        CHECK(cfg.at("ghost").boolean());
        CHECK(cfg.at("from").is(pickle_kind::none));
        CHECK(cfg.at("none").size() == 0);
        CHECK(cfg.size() == 7);
        CHECK(file.read("state_dict.W_enc", {2, 3}) == W);
        CHECK(file.read<std::int64_t>("state_dict.k", {}) == k);
        CHECK(file.read("state_dict.b", {2}) == std::vector<float>{1.5f, -0.25f});
        CHECK(file.read("state_dict.empty", {0, 3}).empty());
    }
    const std::uint32_t none[1] = {};
    using dict = torch_value::dict;
    for (const torch_value& bad :
         {torch_value(dict{{"a", 1}, {"a", 2}}), torch_value("\xff"), torch_value(dict{{"\xff", 1}}),
          torch_value(to_write("u", {1}, none)), torch_value(to_write("big", {std::size_t{1} << 62}, W.data()))})
        CHECK_THROWS_AS(write_torch(path, bad), error);
    CHECK(torch_file(path, 14).contains("state_dict.k"));  // a failed write leaves what was there
    CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 1);
}

TEST_CASE("a small file cannot take much memory for the names of its tensors") {
    const temporary_folder folder;
    const float x = 1;
    torch_value::dict many;
    for (std::size_t i = 0; i < 5000; ++i) many.emplace_back(std::to_string(i), to_write("", {1}, &x));
    write_torch(folder.path / "a.pt", torch_value::dict{{std::string(4000, 'n'), many}});
    CHECK_THROWS_WITH(torch_file(folder.path / "a.pt"), Catch::Contains("names of tensors are too long"));
    write_torch(folder.path / "b.pt", torch_value::dict{{std::string(3000, 'n'), many}});
    CHECK(torch_file(folder.path / "b.pt").contains(std::string(3000, 'n') + ".4999"));
}

TEST_CASE("deflated torch archives and those of another byte order are told apart") {
    const temporary_folder folder;
    const auto path = folder.path / "again.pt";
    const zip_reader golden(formats / "patchsae.pt");
    for (const char* order : {"little", "big"}) {
        zip_writer zip(path, true);
        for (const auto& name : golden.names()) {
            const auto bytes = golden.read(name, [](const std::byte*, std::size_t, std::size_t) {});
            if (name == "patchsae/byteorder") zip.add(name, order, nullptr, 0);
            else zip.add(name, "", bytes.data(), bytes.size());
        }
        zip.close();
        if (order == std::string("big")) CHECK_THROWS_AS(torch_file(path), error);
        else
            CHECK(torch_file(path).read("state_dict.W_enc", {8, 24}) ==
                  torch_file(formats / "patchsae.pt").read("state_dict.W_enc", {8, 24}));
    }
}

TEST_CASE("cuts and flipped bytes of a torch file lead to tensors or an error") {
    for (const char* name : {"torch_everything.pt", "torch_everything_legacy.pt", "torchscript.pt", "patchsae.pt"}) {
        const std::string whole = slurp(formats / name);
        const auto attempt = [&](const std::string& bytes) {
            const std::string text = message_of([&] {
                const torch_file file(bytes_of(bytes), name);
                for (const auto& t : file.entries())
                    message_of([&] { file.read<double>(t.name, t.shape); });  // NaN is an error of its own
            });
            return text;
        };
        for (std::size_t n = 0; n < whole.size(); n += n < 64 ? 1 : 37)
            CHECK_FALSE(attempt(whole.substr(0, n)).empty());
        for (std::size_t i = 0; i < whole.size(); i += 3)
            for (const int flip : {0x01, 0x12, 0x80, 0xff}) {
                std::string bytes = whole;
                bytes[i] = static_cast<char>(bytes[i] ^ flip);
                attempt(bytes);
            }
        // Bytes of the pickle alone, whose archive has no checksum for them.
        if (std::string(name).find("legacy") != std::string::npos) continue;
        const zip_reader zip(formats / name);
        for (const auto& entry : zip.names()) {
            if (!entry.ends_with("/data.pkl")) continue;
            const auto bytes = zip.read(entry, [](const std::byte*, std::size_t, std::size_t) {});
            for (std::size_t i = 0; i < bytes.size(); ++i)
                for (const int flip : {0x01, 0x04, 0x12, 0x80, 0xff}) {
                    auto damaged = bytes;
                    damaged[i] ^= static_cast<std::byte>(flip);
                    message_of([&] { pickle(damaged, "damaged"); });
                }
        }
    }
}

TEST_CASE("a storage of the legacy form that is longer or shorter than its pickle says is refused") {
    std::string bytes = slurp(formats / "torch_everything_legacy.pt");
    const std::size_t at = bytes.find(std::string("\x2a\0\0\0\0\0\0\0", 8));
    REQUIRE(at != std::string::npos);
    for (const char count : {41, 43}) {
        bytes[at] = count;
        CHECK(message_of([&] { torch_file(bytes_of(bytes), "legacy"); }).find("another size than the pickle says") !=
              std::string::npos);
    }
}

TEST_CASE("values of a pickle, and what it may not do") {
    const auto root_of = [](const std::string& instructions, const auto& check) {
        const std::string bytes = pickled(instructions);
        const pickle p(bytes_of(bytes), "text");
        CHECK(p.bytes() == bytes.size());
        check(p.root());
    };
    root_of("\x8a\x09" + std::string(8, '\0') + "\x80",
            [](const auto& v) { CHECK(v.text() == "-2361183241434822606848"); });
    root_of("\x8a\x09" + std::string(8, '\0') + "\x01",
            [](const auto& v) { CHECK(v.text() == "18446744073709551616"); });
    root_of(std::string("\x8a\0", 2), [](const auto& v) { CHECK(v.integer() == 0); });
    root_of("\x8a\x01\xff", [](const auto& v) { CHECK(v.integer() == -1); });
    root_of("}K\1K\2sK\1K\3s", [](const auto& v) {  // a key twice: the later value
        REQUIRE(v.size() == 1);
        CHECK(v[0].integer() == 3);
        CHECK_FALSE(v.find(""));
    });
    root_of(std::string("}\x8c\0K\2sK\0K\3s", 11), [](const auto& v) { CHECK(v.size() == 2); });  // "" and 0
    root_of("c__builtin__\nbytes\n)R", [](const auto& v) { CHECK(v.text().empty()); });
    root_of("ca\nb\n)\x81}\x8c\1xK\7sb", [](const auto& v) {
        CHECK(v.text() == "a.b");
        CHECK(v.at("x").integer() == 7);
    });
    root_of("cos\nsystem\n", [](const auto& v) { CHECK(v.is(pickle_kind::name)); });  // a name is only a name

    CHECK(refusal("ca\nb\n)R").find("not allowed (text, byte 8): a.b") != std::string::npos);
    CHECK(refusal("K\1K\2") != "");                                                  // two values
    CHECK(refusal("(K\1") != "");                                                    // an open mark
    CHECK(refusal("]K\1(at").find("value that is not there") != std::string::npos);  // it lies before a mark
    CHECK(refusal("K\1(b") != "");
    CHECK(refusal("}}b") == "");  // an OrderedDict's state
    CHECK(refusal("]}b") != "");
    CHECK(refusal("]K\1b") != "");
    CHECK(refusal("K\1K\2a") != "");  // appends to a number
    CHECK(refusal("](K\1u") != "");
    CHECK(refusal("}(K\1u") != "");  // a key without a value
    CHECK(refusal("K\1Q").find("outside of it") != std::string::npos);
    CHECK(refusal("}\x8d" + std::string("\x88\x13\0\0\0\0\0\0", 8) + std::string(5000, 'k') + "Ns").find("too long") !=
          std::string::npos);
    CHECK_THROWS_AS(pickle({}, "empty"), error);
}

TEST_CASE("a small pickle makes no large memory and no long time") {
    const auto before = std::chrono::steady_clock::now();
    std::string many(5'000'000, '}');  // more values than any file has
    CHECK(refusal(many).find("too many values") != std::string::npos);
    // One long string, turned into bytes again and again.
    std::string repeated = "]" + std::string("X\x40\x42\x0f\0", 5) + std::string(1'000'000, 'a') + "q\1a";
    for (int i = 0; i < 100'000; ++i) repeated += "c_codecs\nencode\nh\1\x8c\6latin1\x86Ra";
    CHECK(refusal(repeated).find("too much") != std::string::npos);
    // One large dict as the state of very many objects, one long tuple as the arguments of very many calls.
    std::string states = "]q\4ca\nb\nq\3" + std::string("}q\5(");
    for (int i = 0; i < 60'000; ++i)
        states += std::string("M") + static_cast<char>(i & 255) + static_cast<char>(i >> 8) + "N";
    states +=
        "u\x86"
        "a";
    for (int i = 0; i < 60'000; ++i) states += "h\3)\x81h\5ba";
    CHECK(refusal(states) == "");
    CHECK(std::chrono::steady_clock::now() - before < std::chrono::seconds(20));
}
