// safetensors and JSON: names, metadata and hostile configurations beyond what formats.cpp reads.
#include <catch2/catch.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

#include <psae/io/numpy.hpp>
#include <psae/io/safetensors.hpp>

#include "../temporary_folder.hpp"

using namespace psae;

namespace {

const std::filesystem::path formats = std::filesystem::path(PSAE_GOLDEN_DIR) / "formats";

void spill(const std::filesystem::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
std::string slurp(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}
std::string with_header(const std::string& header, std::size_t data_bytes) {
    const std::uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data_bytes, '\0');
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

}  // namespace

TEST_CASE("every tensor of the reference file is read exactly, and its metadata") {
    const safetensors_file file(formats / "everything.safetensors");
    const auto expected = read_npz(formats / "everything.safetensors.expected.npz");
    CHECK(file.entries().size() == expected.size());
    for (const auto& e : file.entries()) {
        INFO(e.name);
        std::string key = e.name;  // a name with a slash cannot be an entry of the npz
        std::replace(key.begin(), key.end(), '/', '|');
        REQUIRE(expected.contains(key));
        CHECK(e.shape == expected.at(key).shape);
        const std::size_t count = e.bytes / size_of(e.type);
        if (e.type == element_type::i64) {
            const auto got = convert_elements<std::int64_t>(e.type, file.data(e), count);
            CHECK(got == values<std::int64_t>(expected.at(key)));
        } else {
            const auto got = convert_elements<double>(e.type, file.data(e), count);
            const auto want = values<double>(expected.at(key));
            REQUIRE(got.size() == want.size());
            for (std::size_t i = 0; i < got.size(); ++i)
                CHECK((got[i] == want[i] || (got[i] != got[i] && want[i] != want[i])));
        }
    }
    CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"note", "na\xc3\xafve \"quoted\""}});
    const safetensors_file unaligned(formats / "unaligned_header.safetensors");
    CHECK(unaligned.read("a", {2}) == std::vector<float>{1.5f, -2});
}

TEST_CASE("tensors of every type are written and read back") {
    const temporary_folder folder;
    const auto path = folder.path / "all.safetensors";
    const bf16 b[2] = {to_bf16(1.5f), to_bf16(-0.25f)};
    const half h[2] = {to_half(0x1p-24f), to_half(65504.0f)};
    const double d = 1e-300;
    const std::int8_t i8[3] = {-128, 0, 127};
    const bool flags[2] = {true, false};
    const std::string odd = "a \"quoted\"/\xc3\xbc\n";
    write_safetensors(path,
                      {to_write("b", {2}, b), to_write("h", {1, 2}, h), to_write("d", {}, &d), to_write("i8", {3}, i8),
                       to_write("flags", {2}, flags), to_write(odd, {0, 5}, b),
                       to_write("none", {0}, static_cast<const float*>(nullptr))},
                      {{"k\n", "v\"\xe2\x98\x83"}});
    const safetensors_file file(path);
    CHECK(file.read("b", {2}) == std::vector<float>{1.5f, -0.25f});
    CHECK(file.read("h", {1, 2}) == std::vector<float>{0x1p-24f, 65504.0f});
    CHECK(file.read<double>("d", {}) == std::vector<double>{1e-300});
    CHECK(file.read<int>("i8", {3}) == std::vector<int>{-128, 0, 127});
    CHECK(file.read<bool>("flags", {2}) == std::vector<bool>{true, false});
    CHECK(file.at(odd).shape == std::vector<std::size_t>{0, 5});
    CHECK(file.read("none", {0}).empty());
    CHECK(file.metadata().at("k\n") == "v\"\xe2\x98\x83");
    CHECK(message_of([&] { file.read<std::uint8_t>("i8", {3}); }).find("tensor i8, element 0") != std::string::npos);

    CHECK_THROWS_AS(write_safetensors(path, {to_write("b", {2}, b), to_write("b", {2}, b)}), error);
    CHECK_THROWS_AS(write_safetensors(path, {to_write("__metadata__", {2}, b)}), error);
    CHECK_THROWS_AS(write_safetensors(path, {to_write("not utf-8 \xff", {2}, b)}), error);
    CHECK_THROWS_AS(write_safetensors(path, {to_write("b", {std::size_t{1} << 40, std::size_t{1} << 40}, b)}), error);
    CHECK(safetensors_file(path).contains("flags"));  // a failed write leaves what was there
    CHECK_THROWS_AS(write_safetensors(folder.path / "no folder" / "x.safetensors", {}), error);
    CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 1);  // no temporary file stays
}

TEST_CASE("values that are not finite are refused by name") {
    const temporary_folder folder;
    const auto path = folder.path / "nan.safetensors";
    const double x[3] = {0, std::numeric_limits<double>::quiet_NaN(), 1e300};
    write_safetensors(path, {to_write("x", {2}, x), to_write("y", {1}, x + 2)});
    const safetensors_file file(path);
    CHECK(message_of([&] { file.read("x", {2}); }).find("tensor x, element 1") != std::string::npos);
    CHECK_THROWS_AS(file.read("y", {1}), error);  // infinite as float
    CHECK(file.read<double>("y", {1}) == std::vector<double>{1e300});
}

TEST_CASE("cuts and flipped bytes of a header lead to tensors or an error") {
    const temporary_folder folder;
    const auto damaged = folder.path / "damaged.safetensors";
    const std::string whole = slurp(formats / "everything.safetensors");
    for (std::size_t n = 0; n < whole.size(); n += n < 32 ? 1 : 29) {
        spill(damaged, whole.substr(0, n));
        CHECK_THROWS_AS(safetensors_file(damaged), error);
    }
    for (std::size_t i = 0; i < 1000; i += 3) {
        std::string bytes = whole;
        bytes[i] = static_cast<char>(bytes[i] ^ 0x12);
        spill(damaged, bytes);
        try {
            safetensors_file file(damaged);
        } catch (const error&) {
        }
    }
    const std::string tensor = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
    spill(damaged, with_header("{" + tensor + "}", 4));
    CHECK(safetensors_file(damaged).contains("a"));
    for (const std::string& rest :
         {std::string(R"(,"__metadata__":{"x":"1"},"__metadata__":{"y":"2"}})"),
          std::string(R"(,"__metadata__":{"x":"1","x":"2"}})"), std::string("}\0}", 3), std::string("} 1")}) {
        const std::string header = "{" + tensor + rest;
        INFO(header);
        spill(damaged, with_header(header, 4));
        CHECK_THROWS_AS(safetensors_file(damaged), error);
    }
}

TEST_CASE("hostile configurations are refused and the errors name file and key") {
    const auto folder = formats / "refuse" / "json";
    CHECK(message_of([&] { read_json(folder / "saelens_deep" / "cfg.json"); }).find("cfg.json") != std::string::npos);
    const auto path = folder / "wrong_types" / "cfg.json";
    const auto wrong = read_json(path);
    const std::string text = message_of([&] { json_size(wrong, "d_in", path.string()); });
    CHECK(text.find("cfg.json, key d_in") != std::string::npos);
    CHECK(text.find("\"four\"") != std::string::npos);
    CHECK(message_of([&] { json_size(wrong, "d_sae", path.string()); }).find("-8") != std::string::npos);
    CHECK(message_of([&] { json_size(wrong, "d_out", path.string()); }).find("missing") != std::string::npos);
    CHECK(json_size(wrong, "d_out", 7, path.string()) == 7);
    CHECK_THROWS_AS(
        parse_json("[" + std::string(json_depth_limit, '[') + std::string(json_depth_limit, ']') + "]", "text"), error);
    CHECK(parse_json(R"({"brackets in strings": "[[[[\"[[[["})", "text").IsObject());
    CHECK(parse_json(std::string(json_depth_limit, '[') + std::string(json_depth_limit, ']'), "text").IsArray());
    CHECK_THROWS_AS(parse_json(std::string_view("{}\0x", 4), "text"), error);
    CHECK_THROWS_AS(parse_json("", "text"), error);
    CHECK_THROWS_AS(require_unique_keys(parse_json(R"({"a": 1, "b": 2, "a": 3})", "text"), "text"), error);
    CHECK_FALSE(std::filesystem::exists("canary_executed"));
}
