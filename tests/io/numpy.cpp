// npy, npz and the zip below them: what formats.cpp does not say about writing, ranges and damaged archives.
#include <catch2/catch.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <psae/io/json.hpp>
#include <psae/io/numpy.hpp>

#include "../temporary_folder.hpp"

using namespace psae;

namespace {

const std::filesystem::path formats = std::filesystem::path(PSAE_GOLDEN_DIR) / "formats";

std::string slurp(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}
void spill(const std::filesystem::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

template <class T>
array array_of(element_type type, std::vector<T> values) {
    array a{type, {values.size()}, {}, {}};
    const auto* p = reinterpret_cast<const std::byte*>(values.data());
    a.data.assign(p, p + values.size() * sizeof(T));
    return a;
}

// Integers without a way through double, which cannot hold all of them.
void compare_integers(const rapidjson::Value& v, const array& a, std::size_t& at) {
    if (v.IsArray()) {
        for (const auto& e : v.GetArray()) compare_integers(e, a, at);
    } else if (v.IsBool()) {
        CHECK(values<bool>(a)[at++] == v.GetBool());
    } else if (a.type == element_type::u64) {
        CHECK(values<std::uint64_t>(a)[at++] == v.GetUint64());
    } else {
        CHECK(values<std::int64_t>(a)[at++] == v.GetInt64());
    }
}

}  // namespace

TEST_CASE("integer arrays are read exactly, from npy and from npz") {
    const auto expected = read_json(formats / "numpy.expected.json");
    std::size_t compared = 0;
    for (const auto& m : expected.GetObject()) {
        const auto* want = find_member(m.value, "values_c_order");
        if (want == nullptr) continue;
        const std::string name = m.name.GetString();
        INFO(name);
        const auto alone = read_npy(formats / "numpy" / (name + ".npy"));
        const auto packed = read_npz(formats / "numpy" / "compressed.npz", name);
        for (const array& a : {alone, packed}) {
            std::size_t at = 0;
            compare_integers(*want, a, at);
            CHECK(at == a.size());
        }
        ++compared;
    }
    CHECK(compared >= 10);
    CHECK(read_npy(formats / "numpy" / "strings.npy").strings ==
          std::vector<std::string>{"ab", "\xc3\xbc\xe2\x98\x83"});
}

TEST_CASE("arrays of every kind come back, stored and deflated") {
    const temporary_folder folder;
    for (const bool deflated : {false, true}) {
        const auto path = folder.path / (deflated ? "deflated.npz" : "stored.npz");
        std::vector<double> long_row(300000);  // several buffers of zlib
        for (std::size_t i = 0; i < long_row.size(); ++i) long_row[i] = std::sqrt(static_cast<double>(i));
        const double scalar = 2.5;
        const std::vector<float> x{1, 2, 3, 4, 5, 6};
        npz_writer out(path, deflated);
        out.add("none", std::vector<float>{});
        out.add("scalar", &scalar, {});
        out.add("empty", x.data(), {2, 0, 3});
        out.add("x", std::span<const float>(x), {3, 2});
        out.add("long", long_row);
        out.add("zeros", std::vector<std::int32_t>(100000));
        out.add("gr\xc3\xbc\xc3\x9f", std::vector<std::uint8_t>{7});
        out.add("no strings", std::vector<std::string>{});
        out.add("strings",
                std::vector<std::string>{"", std::string("a\0b", 3), "\xf0\x9f\x90\x9f", "bad \xff\xc0\xaf byte"});
        CHECK_THROWS_AS(out.add("x", x), error);                                  // the name is taken
        CHECK_THROWS_AS(out.add("y", std::span<const float>(x), {2, 2}), error);  // six elements, not four
        CHECK_THROWS_AS(out.add("y", x.data(), {std::size_t{1} << 62, 1u << 10}), error);
        CHECK_FALSE(std::filesystem::exists(path));  // not before close
        out.close();

        const auto back = read_npz(path);
        CHECK(back.size() == 9);
        CHECK(back.at("none").shape == std::vector<std::size_t>{0});
        CHECK(back.at("scalar").shape.empty());
        CHECK(values<double>(back.at("scalar")) == std::vector<double>{2.5});
        CHECK(back.at("empty").shape == std::vector<std::size_t>{2, 0, 3});
        CHECK(to_floats(back.at("x")) == x);
        CHECK(values<double>(back.at("long")) == long_row);
        CHECK(values<int>(back.at("zeros")) == std::vector<int>(100000));
        CHECK(values<int>(back.at("gr\xc3\xbc\xc3\x9f")) == std::vector<int>{7});
        CHECK(back.at("no strings").shape == std::vector<std::size_t>{0});
        const std::string unknown = "\xef\xbf\xbd";  // U+FFFD
        CHECK(back.at("strings").strings == std::vector<std::string>{"", std::string("a\0b", 3), "\xf0\x9f\x90\x9f",
                                                                     "bad " + unknown + unknown + unknown + " byte"});
        CHECK_THROWS_AS(values<float>(back.at("strings")), error);
    }
    CHECK(std::filesystem::file_size(folder.path / "deflated.npz") <
          std::filesystem::file_size(folder.path / "stored.npz"));
    { npz_writer dropped(folder.path / "dropped.npz"); }
    for (const auto& file : std::filesystem::directory_iterator(folder.path))  // no temporary file stays
        CHECK((file.path().filename() == "stored.npz" || file.path().filename() == "deflated.npz"));
}

TEST_CASE("numbers do not wrap around") {
    CHECK(values<std::uint8_t>(array_of<std::int64_t>(element_type::i64, {0, 255})) ==
          std::vector<std::uint8_t>{0, 255});
    CHECK_THROWS_AS(values<std::uint8_t>(array_of<std::int64_t>(element_type::i64, {256})), error);
    CHECK_THROWS_AS(values<std::uint32_t>(array_of<std::int8_t>(element_type::i8, {-1})), error);
    CHECK_THROWS_AS(values<std::int64_t>(array_of<std::uint64_t>(element_type::u64, {std::uint64_t{1} << 63})), error);
    CHECK(values<std::int64_t>(array_of<float>(element_type::f32, {-3, 0x1p62f})) ==
          std::vector<std::int64_t>{-3, std::int64_t{1} << 62});
    CHECK_THROWS_AS(values<std::int64_t>(array_of<float>(element_type::f32, {0x1p63f})), error);
    CHECK_THROWS_AS(values<std::uint64_t>(array_of<double>(element_type::f64, {-1})), error);
    CHECK_THROWS_AS(values<int>(array_of<float>(element_type::f32, {1.5f})), error);
    CHECK_THROWS_AS(values<int>(array_of<float>(element_type::f32, {std::numeric_limits<float>::quiet_NaN()})), error);
    CHECK(values<bool>(array_of<std::uint8_t>(element_type::u8, {0, 2})) == std::vector<bool>{false, true});
}

TEST_CASE("a CSR matrix has the arrays scipy.sparse.load_npz asks for") {
    const temporary_folder folder;
    const auto path = folder.path / "codes.npz";
    write_scipy_csr(path, {1, 2, 3}, {0, 2, 1}, {0, 2, 2, 3}, 3, 4);
    const auto back = read_npz(path);
    CHECK(back.at("format").strings == std::vector<std::string>{"csr"});
    CHECK(back.at("format").shape.empty());
    CHECK(back.at("shape").type == element_type::i64);
    CHECK(values<std::int64_t>(back.at("shape")) == std::vector<std::int64_t>{3, 4});
    CHECK(to_floats(back.at("data")) == std::vector<float>{1, 2, 3});
    CHECK(values<int>(back.at("indices")) == std::vector<int>{0, 2, 1});
    CHECK(back.at("indices").type == back.at("indptr").type);  // scipy wants one index type
    CHECK(values<int>(back.at("indptr")) == std::vector<int>{0, 2, 2, 3});
    CHECK_NOTHROW(write_scipy_csr(folder.path / "none.npz", {}, {}, {0}, 0, 4));
    CHECK(read_npz(folder.path / "none.npz").at("data").shape == std::vector<std::size_t>{0});
    CHECK_THROWS_AS(write_scipy_csr(path, {1}, {4}, {0, 1}, 1, 4), error);
    CHECK_THROWS_AS(write_scipy_csr(path, {1}, {0}, {0, 2}, 1, 4), error);
    CHECK_THROWS_AS(write_scipy_csr(path, {1}, {0}, {}, 0, 4), error);
    CHECK_THROWS_AS(write_scipy_csr(path, {1}, {}, {0, 1}, 1, 4), error);
    CHECK_THROWS_AS(write_scipy_csr(path, {1, 2}, {0, 1}, {0, 2, 1, 2}, 3, 4), error);
}

TEST_CASE("cuts and flipped bytes of an npz or npy lead to its arrays or an error") {
    const temporary_folder folder;
    const auto source = folder.path / "source.npz", damaged = folder.path / "damaged";
    for (const bool deflated : {false, true}) {
        npz_writer out(source, deflated);
        out.add("a", std::vector<float>{1, 2, 3, 4});
        out.add("b", std::vector<std::string>{"x", "yz"});
        out.close();
        const std::string whole = slurp(source);
        for (std::size_t n = 0; n < whole.size(); n += 7) {
            spill(damaged, whole.substr(0, n));
            CHECK_THROWS_AS(read_npz(damaged), error);
        }
        for (std::size_t i = 0; i < whole.size(); i += 3) {
            std::string bytes = whole;
            bytes[i] = static_cast<char>(bytes[i] ^ 0x81);
            spill(damaged, bytes);
            try {
                read_npz(damaged);
            } catch (const error&) {
            }
        }
    }
    const std::string npy = slurp(formats / "numpy" / "fortran_be_f8.npy");
    for (std::size_t i = 0; i < npy.size(); i += 3) {
        spill(damaged, npy.substr(0, i));
        CHECK_THROWS_AS(read_npy(damaged), error);
        std::string bytes = npy;
        bytes[i] = static_cast<char>(bytes[i] ^ 0x81);
        spill(damaged, bytes);
        try {
            read_npy(damaged);
        } catch (const error&) {
        }
    }
}

TEST_CASE("zip entries that share bytes are refused") {
    const temporary_folder folder;
    const auto path = folder.path / "shared.npz";
    npz_writer out(path);
    out.add("a", std::vector<float>{1, 2, 3});
    out.add("b", std::vector<float>{1, 2, 3});
    out.close();
    std::string bytes = slurp(path);
    const std::size_t second =
        bytes.rfind("b.npy");  // in the directory; its zip64 field ends with the offset of the entry
    for (std::size_t i = 0; i < 8; ++i) bytes[second + 5 + 4 + 16 + i] = 0;
    spill(path, bytes);
    try {
        read_npz(path);
        FAIL("read");
    } catch (const error& e) {
        CHECK(std::string(e.what()).find("overlap") != std::string::npos);
    }
}
