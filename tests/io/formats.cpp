// npy, npz and safetensors against files of other tools; hostile files; round trips.
#include <catch2/catch.hpp>

#include <cstdlib>
#include <filesystem>

#include <psae/io/model_weights.hpp>
#include <psae/io/numpy.hpp>

#include "../temporary_folder.hpp"

using namespace psae;

namespace {

const std::filesystem::path formats = std::filesystem::path(PSAE_GOLDEN_DIR) / "formats";

// The expected values as doubles, whatever form they have in the JSON file.
void collect(const rapidjson::Value& v, std::vector<double>& out) {
    if (v.IsArray())
        for (const auto& e : v.GetArray()) collect(e, out);
    else if (v.IsBool()) out.push_back(v.GetBool());
    else if (v.IsString()) out.push_back(std::strtod(v.GetString(), nullptr));
    else out.push_back(v.IsUint64() ? double(v.GetUint64()) : v.IsInt64() ? double(v.GetInt64()) : v.GetDouble());
}

}  // namespace

TEST_CASE("npy files of numpy are read exactly") {
    const auto expected = read_json(formats / "numpy.expected.json");
    std::size_t compared = 0;
    for (const auto& m : expected.GetObject()) {
        const std::string name = m.name.GetString();
        const auto path = formats / "numpy" / (name + ".npy");
        if (!std::filesystem::exists(path)) continue;
        INFO(name);
        const std::string dtype = m.value["dtype"].GetString();
        if (dtype[1] == 'c') {  // complex numbers are refused
            CHECK_THROWS_AS(read_npy(path), error);
            continue;
        }
        const array a = read_npy(path);
        std::vector<double> want;
        std::vector<std::size_t> shape;
        for (const auto& e : m.value["shape"].GetArray()) shape.push_back(e.GetUint64());
        CHECK(a.shape == shape);
        if (dtype[1] == 'U') {
            CHECK(a.strings.size() == a.size());
            continue;
        }
        const auto* hex = find_member(m.value, "values_c_order_f64_hex");
        if (hex == nullptr && find_member(m.value, "values_c_order") == nullptr)
            continue;  // only its shape is recorded
        collect(hex != nullptr ? *hex : m.value["values_c_order"], want);
        CHECK(values<double>(a) == want);
        ++compared;
    }
    CHECK(compared > 15);
}

TEST_CASE("npz files are read, stored and compressed") {
    std::size_t compared = 0;
    for (const std::string& entry : zip_reader(formats / "numpy" / "stored.npz").names()) {
        const std::string name = entry.substr(0, entry.size() - 4);
        INFO(name);
        if (name[0] == 'c') {  // complex
            CHECK_THROWS_AS(read_npz(formats / "numpy" / "stored.npz", name), error);
            continue;
        }
        const auto stored = read_npz(formats / "numpy" / "stored.npz", name),
                   compressed = read_npz(formats / "numpy" / "compressed.npz", name);
        CHECK(stored.data == compressed.data);
        CHECK(stored.strings == compressed.strings);
        ++compared;
    }
    CHECK(compared > 5);
}

TEST_CASE("safetensors of every element type are read exactly") {
    const safetensors_file file(formats / "everything.safetensors");
    const auto expected = read_npz(formats / "everything.safetensors.expected.npz");
    std::size_t compared = 0;
    for (const auto& e : file.entries()) {
        INFO(e.name);
        if (!expected.contains(e.name)) continue;
        const auto got = convert_elements<double>(e.type, file.data(e), e.bytes / size_of(e.type));
        const auto want = values<double>(expected.at(e.name));
        REQUIRE(got.size() == want.size());
        for (std::size_t i = 0; i < got.size(); ++i)
            CHECK((got[i] == want[i] || (got[i] != got[i] && want[i] != want[i])));
        ++compared;
    }
    CHECK(compared > 8);
    CHECK(safetensors_file(formats / "unaligned_header.safetensors").entries().size() > 0);
    CHECK(safetensors_file(formats / "padded_header.safetensors").read("a", {2}) == std::vector<float>{1.5f, -2});
}

TEST_CASE("hostile files are refused with an error") {
    const auto list = read_json(formats / "refuse.json");
    std::size_t refused = 0;
    for (const auto& f : list["files"].GetArray()) {
        const std::string name = f["file"].GetString();
        const auto path = formats / name;
        const bool must = f["must_refuse"].GetBool();
        const auto attempt = [&](auto&& read) {
            INFO(name << ": " << f["why"].GetString());
            try {
                read();
                CHECK_FALSE(must);
            } catch (const error& e) {
                CHECK(std::string(e.what()).find(path.filename().stem().string().substr(0, 4)) != std::string::npos);
                ++refused;
            }
        };
        if (name.starts_with("refuse/safetensors/")) attempt([&] { safetensors_file file(path); });
        else if (name.starts_with("refuse/index/")) attempt([&] { model_weights files(path.parent_path()); });
        else if (name.ends_with(".npy")) attempt([&] { read_npy(path); });
        else if (name.ends_with(".npz")) attempt([&] { read_npz(path); });
        else if (name == "refuse/json/not_utf8/cfg.json" || name == "refuse/json/truncated/cfg.json")
            attempt([&] { read_json(path); });
    }
    CHECK(refused > 50);
}

TEST_CASE("what is written is read back") {
    const temporary_folder folder;
    const auto path = folder / "round.npz";
    const std::vector<float> x{1, 2.5f, -3, 4, 5, 6};
    {
        npz_writer out(path);
        out.add("x", x.data(), {2, 3});
        out.add("n", std::vector<std::int64_t>{-1, 7});
        out.add("files", std::vector<std::string>{"a.png", "b\xc3\xa9.jpg"});
        out.close();
    }
    const auto back = read_npz(path);
    CHECK(to_floats(back.at("x")) == x);
    CHECK(back.at("x").shape == std::vector<std::size_t>{2, 3});
    CHECK(values<std::int64_t>(back.at("n")) == std::vector<std::int64_t>{-1, 7});
    CHECK(back.at("files").strings == std::vector<std::string>{"a.png", "b\xc3\xa9.jpg"});

    const auto weights = folder / "round.safetensors";
    const std::vector<std::uint32_t> counts{3, 4, 5};
    write_safetensors(weights, {to_write("x", {3, 2}, x.data()), to_write("counts", {3}, counts.data())},
                      {{"made", "here"}});
    const safetensors_file file(weights);
    CHECK(file.read("x", {3, 2}) == x);
    CHECK(file.read<std::uint32_t>("counts", {3}) == counts);
    CHECK(file.metadata().at("made") == "here");
    CHECK_THROWS_AS(file.read("x", {2, 3}), error);
    CHECK_THROWS_AS(file.read("y", {1}), error);
}
