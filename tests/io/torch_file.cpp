// Files of torch.save and TorchScript, and pickles alone: what torch reads is read exactly, hostile files are refused.
#include <catch2/catch.hpp>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <unistd.h>

#include <psae/io/json.hpp>
#include <psae/io/numpy.hpp>
#include <psae/io/torch_file.hpp>

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
