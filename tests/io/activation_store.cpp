// Stores of activations: what is written is read, at each type; stopped and gone on with; damaged; described wrongly; in
// which order rows come and how much of the store is held.
#include <catch2/catch.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include <malloc.h>
#include <psae/io/activation_store.hpp>

#include "../temporary_folder.hpp"

using namespace psae;

namespace {

namespace fs = std::filesystem;

std::string slurp(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}
void spill(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
void replace_in(const fs::path& path, const std::string& what, const std::string& by) {
    auto text = slurp(path);
    const auto at = text.find(what);
    REQUIRE(at != std::string::npos);
    spill(path, text.replace(at, what.size(), by));
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

// Every file of a folder.
std::map<std::string, std::string> contents(const fs::path& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(folder)) files[entry.path().filename()] = slurp(entry.path());
    return files;
}

store_layout layout_of(std::size_t tokens, std::size_t width, std::size_t per_shard,
                       element_type type = element_type::f32) {
    store_layout layout;
    layout.model = "a \"model\"";
    layout.dataset = "/pictures";
    layout.layer = 3;
    layout.tokens = tokens;
    layout.width = width;
    layout.type = type;
    layout.pictures_per_shard = per_shard;
    return layout;
}

// Values that all three types hold exactly: picture p, token t, column c.
float value(std::size_t p, std::size_t t, std::size_t c) { return float(p) + 0.125f * float(t) - (c % 2 ? 64.f : 0.f); }
std::vector<float> picture(const store_layout& layout, std::size_t p) {
    std::vector<float> x;
    for (std::size_t t = 0; t < layout.tokens; ++t)
        for (std::size_t c = 0; c < layout.width; ++c) x.push_back(value(p, t, c));
    return x;
}

// Gives the writer at most `most` pictures; those in `unreadable` cannot be read.
void give(activation_store_writer& writer, const store_layout& layout, std::size_t list,
          const std::set<std::size_t>& unreadable = {}, std::size_t most = ~std::size_t{0}) {
    for (; writer.position() < list && most > 0; --most) {
        if (unreadable.contains(writer.position())) writer.skip();
        else writer.add(picture(layout, writer.position()).data(), "p");
    }
}
void write_store(const fs::path& path, const store_layout& layout, std::size_t list,
                 const std::set<std::size_t>& unreadable = {}) {
    activation_store_writer writer(path, layout, list, {{"model", "m"}});
    give(writer, layout, list, unreadable);
    writer.finish();
}

std::vector<float> all_rows(const activation_store& store, store_reading how, std::uint64_t first = 0,
                            std::size_t count = 0) {
    activation_store_source source(store, std::move(how));
    if (count == 0) count = source.rows();
    std::vector<float> x(count * source.columns());
    source.read(first, count, x.data());
    return x;
}

}  // namespace

TEST_CASE("a store gives back what was written, at each type") {
    for (const auto type : {element_type::f32, element_type::f16, element_type::bf16}) {
        const temporary_folder work;
        // Integers and eighths up to 71 need 10 bits; bf16 has 8.
        const std::size_t list = type == element_type::bf16 ? 3 : 7;
        const auto layout = layout_of(type == element_type::bf16 ? 2 : 5, 6, 3, type);
        const auto exact = [&](float x) { return type == element_type::bf16 ? widen(to_bf16(x)) : x; };
        write_store(work / "store", layout, list);
        const activation_store store(work / "store");
        CHECK(store.pictures() == list);
        CHECK(store.shards() == (list + 2) / 3);
        CHECK(store.layout().model == layout.model);
        CHECK(store.layout().layer == 3);
        CHECK(store.layout().type == type);
        CHECK(store.has_checksums());
        for (std::size_t s = 0; s < store.shards(); ++s) store.check(s);
        const auto x = all_rows(store, {.sequential = true});
        REQUIRE(x.size() == list * layout.tokens * layout.width);
        for (std::size_t i = 0; i < x.size(); ++i) {
            const std::size_t c = i % layout.width, t = i / layout.width % layout.tokens;
            REQUIRE(x[i] == exact(value(i / layout.width / layout.tokens, t, c)));
        }
        // All shards have the full size; the CRC-32 in the record is that of the whole file.
        for (std::size_t s = 0; s < store.shards(); ++s) {
            const auto bytes = slurp(work / "store" / detail::shard_name(s, ".bin"));
            CHECK(bytes.size() == 3 * layout.picture_bytes());
            const auto crc = crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
            CHECK(slurp(work / "store" / detail::shard_name(s, ".json")).find(detail::crc_text(crc)) !=
                  std::string::npos);
        }
    }
}

TEST_CASE("the description of a store is the one that saev reads") {
    const temporary_folder work;
    write_store(work / "store", layout_of(5, 6, 3), 7);
    const auto m = read_json(work / "store" / "metadata.json");
    // saev makes a class of exactly these fields, so there may be no other.
    const std::set<std::string> fields{"family",    "ckpt",    "layers",     "content_tokens_per_example",
                                       "cls_token", "d_model", "n_examples", "max_tokens_per_shard",
                                       "data",      "dataset", "pixel_agg",  "dtype",
                                       "protocol"};
    std::set<std::string> found;
    for (const auto& member : m.GetObject()) found.insert(member.name.GetString());
    CHECK(found == fields);
    CHECK(std::string(m["dtype"].GetString()) == "float32");
    CHECK(m["layers"][0].GetInt() == 2);  // the block behind which hidden state 3 is
    CHECK(m["content_tokens_per_example"].GetUint64() == 4);
    CHECK(m["n_examples"].GetUint64() == 7);
    CHECK(m["max_tokens_per_shard"].GetUint64() == 15);
    const auto shards = read_json(work / "store" / "shards.json");
    REQUIRE(shards.Size() == 3);
    for (const auto& s : shards.GetArray()) CHECK(s.MemberCount() == 2);
    CHECK(std::string(shards[2]["name"].GetString()) == "acts000002.bin");
    CHECK(shards[2]["n_examples"].GetUint64() == 1);
}

TEST_CASE("a store of saev's is read, without checksums") {
    const temporary_folder work;
    write_store(work / "store", layout_of(5, 6, 3), 7);
    const auto x = all_rows(activation_store(work / "store"), {.seed = 5});
    for (const char* name : {"store.json", "acts000000.json", "acts000001.json", "acts000002.json"})
        fs::remove(work / "store" / name);
    const activation_store store(work / "store");
    CHECK(!store.has_checksums());
    CHECK(store.layout().layer == 3);
    CHECK(all_rows(store, {.seed = 5}) == x);
    replace_in(work / "store" / "metadata.json", "\"layers\": [\n    2\n  ]", "\"layers\": [-2]");
    CHECK(activation_store(work / "store").layout().layer == -2);
    replace_in(work / "store" / "metadata.json", "[-2]", "[1, 2]");
    CHECK(message_of([&] { activation_store(work / "store"); }).find("not of one layer") != std::string::npos);
}

TEST_CASE("pictures that cannot be read are left out, and a store without any is an error") {
    const temporary_folder work;
    const auto layout = layout_of(2, 3, 2);
    write_store(work / "store", layout, 9, {0, 3, 4, 8});
    const activation_store store(work / "store");
    REQUIRE(store.pictures() == 5);
    const auto x = all_rows(store, {.sequential = true});
    const std::vector<std::size_t> kept{1, 2, 5, 6, 7};
    for (std::size_t i = 0; i < kept.size(); ++i) CHECK(x[i * 6] == value(kept[i], 0, 0));
    activation_store_writer writer(work / "none", layout, 2, {});
    writer.skip();
    writer.skip();
    CHECK(message_of([&] { writer.finish(); }).find("no picture could be read") != std::string::npos);
    CHECK(!fs::exists(work / "none" / "metadata.json"));
}

TEST_CASE("a store that was stopped anywhere ends with the same bytes as one that was not") {
    const temporary_folder work;
    const auto layout = layout_of(3, 5, 4, element_type::f16);
    const std::set<std::size_t> unreadable{2, 8, 13};
    write_store(work / "whole", layout, 14, unreadable);
    const auto whole = contents(work / "whole");
    for (std::size_t stop = 0; stop <= 14; ++stop) {
        const auto path = work / ("stopped" + std::to_string(stop));
        {
            activation_store_writer writer(path, layout, 14, {{"model", "m"}});
            give(writer, layout, 14, unreadable, stop);
        }
        CHECK(message_of([&] { activation_store store(path); }).find("store is not complete") != std::string::npos);
        spill(path / "acts000001.bin.partial1.0", "what a killed writer leaves");
        {
            activation_store_writer writer(path, layout, 14, {{"model", "m"}});
            CHECK(writer.damage().empty());
            CHECK(writer.shards_found() == std::size_t{stop >= 10} + std::size_t{stop >= 5});
            give(writer, layout, 14, unreadable);
            writer.finish();
        }
        CHECK(contents(path) == whole);
    }
    // A shard that got its name but no record was not whole for sure.
    const auto path = work / "stopped0";
    for (const char* name : {"metadata.json", "shards.json", "acts000001.json"}) fs::remove(path / name);
    for (const bool first : {true, false}) {
        activation_store_writer writer(path, layout, 14, {{"model", "m"}});
        CHECK(writer.shards_found() == (first ? 2 : 3));
        CHECK(writer.position() == 5);
        give(writer, layout, 14, unreadable);
        writer.finish();
        CHECK(contents(path) == whole);
        // Nor was one that has room left and more pictures behind it.
        replace_in(path / "acts000001.json", "\"n_examples\": 4", "\"n_examples\": 3");
        replace_in(path / "acts000001.json", "\"skipped\": [8", "\"skipped\": [7, 8");
    }
}

TEST_CASE("a picture that becomes readable is taken in where the store had ended, and nowhere else") {
    const temporary_folder work;
    const auto layout = layout_of(2, 3, 4);
    for (const std::size_t list : {8, 9, 10}) {
        const auto path = work / std::to_string(list);
        write_store(path, layout, list, {2, list - 1});
        activation_store_writer writer(path, layout, list, {{"model", "m"}});
        give(writer, layout, list);
        writer.finish();
        // Nine pictures: the first shard holds 0, 1, 3, 4, the second 5 to 7 and knows that 8 cannot be read.
        // Ten: the second is full, so 9 was asked for again.
        const std::size_t taken = list == 10;
        CHECK(activation_store(path).pictures() == list - 2 + taken);
        CHECK(writer.skipped().size() == 2 - taken);
    }
}

TEST_CASE("damaged shards are found, and made again by the writer alone") {
    const temporary_folder work;
    const auto layout = layout_of(3, 5, 4);
    const auto damage = [&](auto&& how, const std::string& expected) {
        fs::remove_all(work / "store");
        write_store(work / "store", layout, 10);
        const auto whole = contents(work / "store");
        how(work / "store" / "acts000001.bin", work / "store" / "acts000001.json");
        const auto message = message_of([&] {
            const activation_store store(work / "store");
            for (std::size_t s = 0; s < store.shards(); ++s) store.check(s);
        });
        INFO(message);
        CHECK(message.find(expected) != std::string::npos);
        CHECK(message_of([&] { all_rows(activation_store(work / "store"), {}); }) != "");
        activation_store_writer writer(work / "store", layout, 10, {{"model", "m"}});
        CHECK(writer.position() == 4);
        CHECK(writer.bytes_missing() == 4 * layout.picture_bytes());
        std::size_t made = 0;
        for (; writer.position() < 10; ++made) writer.add(picture(layout, writer.position()).data(), "p");
        CHECK(made == 4);  // of the damaged shard
        CHECK(message_of([&] { activation_store(work / "store"); }).find("not complete") != std::string::npos);
        writer.finish();
        CHECK(contents(work / "store") == whole);
    };
    damage([](const auto& bin, const auto&) { replace_in(bin, slurp(bin).substr(100, 1), "\x55"); }, "CRC-32 differs");
    damage([](const auto& bin, const auto&) { fs::resize_file(bin, fs::file_size(bin) - 1); }, "another size");
    damage([](const auto& bin, const auto&) { fs::resize_file(bin, fs::file_size(bin) + 1); }, "another size");
    damage([](const auto& bin, const auto&) { spill(bin, ""); }, "another size");
    damage([](const auto& bin, const auto&) { fs::remove(bin); }, "shard cannot be opened");
    damage([](const auto&, const auto& json) { fs::remove(json); }, "cannot be opened");
    damage([](const auto&, const auto& json) { spill(json, "{\"n_examples\": 4"); }, "not valid JSON");
    damage([](const auto&, const auto& json) { spill(json, "[]"); }, "n_examples");
    damage([](const auto&, const auto& json) { replace_in(json, "\"next\": 8", "\"next\": 9"); }, "record is damaged");
    damage([](const auto&, const auto& json) { replace_in(json, "\"skipped\": []", "\"skipped\": [-1]"); },
           "record is damaged");
    damage([](const auto&, const auto& json) { replace_in(json, "\"crc32\": \"", "\"crc32\": \"0"); },
           "record is damaged");
}

TEST_CASE("a reader notices damage behind its back") {
    const temporary_folder work;
    write_store(work / "store", layout_of(3, 5, 4), 10);
    const activation_store store(work / "store");
    const auto bin = work / "store" / "acts000001.bin";
    const auto bytes = slurp(bin);
    auto other = bytes;
    other[17] ^= 1;
    spill(bin, other);
    CHECK(message_of([&] { all_rows(store, {}); }).find("CRC-32 differs") != std::string::npos);
    fs::resize_file(bin, 20);
    CHECK(message_of([&] { all_rows(store, {}); }).find("truncated") != std::string::npos);
    spill(bin, bytes);
    CHECK(message_of([&] { all_rows(store, {}); }).empty());
}

TEST_CASE("hostile descriptions are refused") {
    const temporary_folder work;
    const auto refused = [&](const char* file, const std::string& what, const std::string& by,
                             const std::string& expected) {
        fs::remove_all(work / "store");
        write_store(work / "store", layout_of(5, 6, 3), 7);
        replace_in(work / "store" / file, what, by);
        const auto message = message_of([&] { activation_store store(work / "store"); });
        INFO(by << ": " << message);
        CHECK(message.find(expected) != std::string::npos);
    };
    const std::string huge = "18446744073709551615";
    const char* m = "metadata.json";
    refused(m, "\"d_model\": 6", "\"d_model\": " + huge, "not possible");
    refused(m, "\"d_model\": 6", "\"d_model\": 0", "expected pictures");
    refused(m, "\"d_model\": 6", "\"d_model\": 4294967296", "shard has another size");
    refused(m, "\"d_model\": 6", "\"d_model\": -6", "not a non-negative integer");
    refused(m, "\"n_examples\": 7", "\"n_examples\": " + huge, "too many pictures");
    refused(m, "\"n_examples\": 7", "\"n_examples\": 10", "number of shards");
    refused(m, "\"n_examples\": 7", "\"n_examples\": 8", "number of pictures");
    refused(m, "\"content_tokens_per_example\": 4", "\"content_tokens_per_example\": " + huge, "expected pictures");
    refused(m, "\"content_tokens_per_example\": 4", "\"content_tokens_per_example\": 14", "number of shards");
    refused(m, "\"max_tokens_per_shard\": 15", "\"max_tokens_per_shard\": 4", "not possible");
    refused(m, "\"max_tokens_per_shard\": 15", "\"max_tokens_per_shard\": " + huge, "not possible");
    refused(m, "\"dtype\": \"float32\"", "\"dtype\": \"float64\"", "unknown type");
    refused(m, "\"dtype\": \"float32\"", "\"dtype\": \"float16\"", "another size");
    refused(m, "\"cls_token\": true", "\"cls_token\": 1", "not true or false");
    refused(m, "\"protocol\"", "\"d_model\": [", "not valid JSON");
    const char* s = "shards.json";
    refused(s, "acts000001.bin", "../store/acts000001.bin", "another name");
    refused(s, "acts000001.bin", "acts000000.bin", "another name");
    refused(s, "\"n_examples\": 1", "\"n_examples\": 3", "number of pictures");
    refused(s, "[", "[1, ", "number of shards");
    refused(s, "[", "{\"a\": [", "not valid JSON");
    refused(s, "{\"name\": \"acts000000.bin\", \"n_examples\": 3}", "3", "not an object");
    refused("acts000002.json", "\"n_examples\": 1", "\"n_examples\": 2", "do not fit together");
    CHECK(message_of([&] { activation_store store(work / "nowhere"); }).find("not a store") != std::string::npos);
}

TEST_CASE("a store is gone on with only for the same model, pictures and layout") {
    const temporary_folder work;
    const auto layout = layout_of(5, 6, 3);
    write_store(work / "store", layout, 7);
    const auto before = contents(work / "store");
    const auto refused = [&](store_layout other, std::size_t list, const run_identity& identity,
                             const std::string& expected) {
        const auto message = message_of([&] { activation_store_writer writer(work / "store", other, list, identity); });
        INFO(message);
        CHECK(message.find("store was made from something else") != std::string::npos);
        CHECK(message.find(expected) != std::string::npos);
    };
    refused(layout, 7, {{"model", "n"}}, "model n (store: m)");
    refused(layout, 7, {{"model", "m"}, {"alpha", "drop"}}, "alpha drop (store: none)");
    refused(layout, 8, {{"model", "m"}}, "pictures in the list 8 (store: 7)");
    auto other = layout;
    other.type = element_type::f16;
    refused(other, 7, {{"model", "m"}}, "dtype float16 (store: float32)");
    other = layout;
    other.layer = 4;
    refused(other, 7, {{"model", "m"}}, "layer 4 (store: 3)");
    other = layout;
    other.pictures_per_shard = 4;
    refused(other, 7, {{"model", "m"}}, "pictures per shard 4 (store: 3)");
    CHECK(contents(work / "store") == before);
    // A folder with files of this kind that are not ours is left alone, and so is one that somebody writes.
    fs::remove(work / "store" / "store.json");
    CHECK(message_of([&] {
              activation_store_writer writer(work / "store", layout, 7, {{"model", "m"}});
          }).find("another store") != std::string::npos);
    activation_store_writer writing(work / "busy", layout, 7, {});
    CHECK(message_of([&] {
              activation_store_writer writer(work / "busy", layout, 7, {});
          }).find("another process writes") != std::string::npos);
}

TEST_CASE("values that a store cannot hold are errors") {
    const temporary_folder work;
    const auto refused = [&](element_type type, float x) {
        const auto layout = layout_of(2, 3, 2, type);
        fs::remove_all(work / "store");
        activation_store_writer writer(work / "store", layout, 2, {});
        auto tokens = picture(layout, 0);
        tokens[4] = x;
        return message_of([&] { writer.add(tokens.data(), "a.png"); });
    };
    for (const auto type : {element_type::f32, element_type::f16, element_type::bf16})
        for (const float x : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()})
            CHECK(refused(type, x).find("not finite (a.png, token 1, column 1)") != std::string::npos);
    CHECK(refused(element_type::f16, -65519.f).empty());
    CHECK(refused(element_type::f16, 65520.f).find("too large") != std::string::npos);
    CHECK(refused(element_type::bf16, 3.39e38f).empty());
    CHECK(refused(element_type::bf16, std::numeric_limits<float>::max()).find("too large") != std::string::npos);
    CHECK(refused(element_type::f32, std::numeric_limits<float>::max()).empty());
}

TEST_CASE("a picture that was refused leaves nothing in the store") {
    const temporary_folder work;
    const auto layout = layout_of(4, 3, 3);
    activation_store_writer writer(work / "store", layout, 3, {});
    const std::vector<float> bad(12, std::numeric_limits<float>::infinity());
    writer.add(picture(layout, 0).data(), "0");
    CHECK(message_of([&] { writer.add(bad.data(), "1"); }) != "");
    CHECK(writer.position() == 1);
    writer.skip();
    writer.add(picture(layout, 2).data(), "2");
    writer.finish();
    auto expected = picture(layout, 0);
    const auto last = picture(layout, 2);
    expected.insert(expected.end(), last.begin(), last.end());
    const activation_store store(work / "store");
    for (std::size_t s = 0; s < store.shards(); ++s) store.check(s);
    CHECK(all_rows(store, {.sequential = true}) == expected);
}

TEST_CASE("files of others stay in the folder of a store") {
    const temporary_folder work;
    fs::create_directories(work / "store");
    for (const char* name : {"notes.partial.txt", "acts_notes.partial1.0"}) spill(work / "store" / name, "mine");
    write_store(work / "store", layout_of(4, 3, 3), 5);  // there was no store yet
    CHECK(fs::exists(work / "store" / "acts_notes.partial1.0"));
    spill(work / "store" / "acts000000.bin.partial17.0", "of a writer that was killed");
    write_store(work / "store", layout_of(4, 3, 3), 5);
    CHECK(fs::exists(work / "store" / "notes.partial.txt"));
    CHECK(!fs::exists(work / "store" / "acts000000.bin.partial17.0"));
}

namespace {

// Rows whose first number says which they are: [pictures, tokens, width], of blocks of a few pictures.
struct large_store {
    temporary_folder work;
    std::size_t tokens = 16, width = 4096, pictures;  // 256 KiB a picture, four to a block
    explicit large_store(std::size_t count) : pictures(count) {
        const auto layout = layout_of(tokens, width, 20);
        activation_store_writer writer(work / "store", layout, pictures, {});
        std::vector<float> x(tokens * width);
        while (writer.position() < pictures) {
            for (std::size_t t = 0; t < tokens; ++t) x[t * width] = float(writer.position() * tokens + t);
            writer.add(x.data(), "x");
        }
        writer.finish();
    }
    std::vector<std::size_t> order(store_reading how, std::uint64_t first, std::size_t count) const {
        const activation_store store(work / "store");
        activation_store_source source(store, std::move(how));
        std::vector<std::size_t> rows;
        std::vector<float> x(width);
        for (std::size_t i = 0; i < count; ++i) {
            source.read(first + i, 1, x.data());
            rows.push_back(std::size_t(x[0]));
        }
        return rows;
    }
};

}  // namespace

TEST_CASE("an epoch has every row once, in an order that depends on seed and position alone") {
    const large_store s(50);  // 13 blocks, the last shard half full
    const std::size_t rows = s.pictures * s.tokens;
    const auto two_epochs = [&](std::size_t window_bytes) {
        const auto two = s.order({.seed = 11, .window_bytes = window_bytes}, 0, 2 * rows);
        for (const auto epoch : {0, 1}) {
            std::vector<std::size_t> sorted(two.begin() + std::ptrdiff_t(epoch * rows),
                                            two.begin() + std::ptrdiff_t((epoch + 1) * rows));
            std::sort(sorted.begin(), sorted.end());
            for (std::size_t i = 0; i < rows; ++i) REQUIRE(sorted[i] == i);
        }
        std::size_t same = 0;
        for (std::size_t i = 0; i < rows; ++i) same += two[i] == two[rows + i];
        CHECK(same < 10);  // expected: 1
        return two;
    };
    two_epochs(std::size_t{256} << 20);  // one window holds all
    const store_reading how{.seed = 11, .window_bytes = std::size_t{3} << 20};
    const auto two = two_epochs(how.window_bytes);
    // From anywhere, also across windows and epochs, also after something else was read.
    for (const std::size_t first : {std::size_t{1}, std::size_t{383}, rows - 7, rows + 100})
        CHECK(s.order(how, first, 40) ==
              std::vector(two.begin() + std::ptrdiff_t(first), two.begin() + std::ptrdiff_t(first + 40)));
    const activation_store store(s.work / "store");
    activation_store_source source(store, how);
    std::vector<float> x(40 * s.width), y(40 * s.width);
    source.read(rows - 7, 40, x.data());
    source.read(3, 40, y.data());
    source.sample(30);
    source.read(rows - 7, 40, y.data());
    CHECK(x == y);
    CHECK(s.order({.seed = 12, .window_bytes = how.window_bytes}, 0, 40) != std::vector(two.begin(), two.begin() + 40));
    // Through the stream, which reads on a thread of its own: twice the same, and from the middle as well.
    const auto stream_of = [&](std::uint64_t first) {
        activation_store_source rows_again(store, how);
        activation_stream stream(rows_again, 32, 4, true, 7, first);
        std::vector<float> seen;
        for (std::uint64_t b = first; b < 30; ++b) {
            const auto batch = stream.next();
            for (std::size_t r = 0; r < 32; ++r) seen.push_back(batch.data[r * s.width]);
        }
        return seen;
    };
    const auto all = stream_of(0);
    CHECK(stream_of(0) == all);
    CHECK(stream_of(17) == std::vector(all.begin() + 17 * 32, all.end()));
}

TEST_CASE("rows of a window come from all over the store and are mixed") {
    const large_store s(100);  // 25 blocks; windows of 8 or 9
    const auto rows = s.order({.seed = 3, .window_bytes = std::size_t{9} << 20}, 0, 512);
    // Rows of 8 blocks drawn at random have mean 799.5 with a standard error of 164.
    double mean = 0, neighbours = 0;
    for (const std::size_t r : rows) mean += double(r) / 512;
    CHECK(mean == Approx(799.5).margin(4 * 164));
    for (std::size_t i = 1; i < rows.size(); ++i) neighbours += rows[i] / s.tokens == rows[i - 1] / s.tokens;
    CHECK(neighbours / 511 < 0.1);  // of one picture: 1 in 32 where 32 pictures are mixed, 0.94 where none are
    std::set<std::size_t> pictures, shards;
    for (const std::size_t r : rows) pictures.insert(r / s.tokens), shards.insert(r / s.tokens / 20);
    CHECK(pictures.size() >= 30);
    CHECK(shards.size() >= 3);
}

TEST_CASE("kinds of tokens and held-out pictures") {
    const large_store s(50);
    const activation_store store(s.work / "store");
    const auto numbers = [&](store_reading how) {
        activation_store_source source(store, how);
        const auto rows = s.order(how, 0, source.rows());
        return std::multiset<std::size_t>(rows.begin(), rows.end());
    };
    const std::vector<std::size_t> held_out{0, 7, 8, 9, 10, 11, 49};
    for (const auto kind : {token_kind::all, token_kind::cls, token_kind::patches})
        for (const bool sequential : {false, true}) {
            std::multiset<std::size_t> expected;
            std::vector<float> held;
            for (std::size_t p = 0; p < s.pictures; ++p)
                for (std::size_t t = 0; t < s.tokens; ++t) {
                    if (kind == token_kind::cls ? t > 0 : kind == token_kind::patches && t == 0) continue;
                    if (std::binary_search(held_out.begin(), held_out.end(), p))
                        held.push_back(float(p * s.tokens + t));
                    else expected.insert(p * s.tokens + t);
                }
            CHECK(numbers({1, sequential, kind, held_out, std::size_t{1} << 20}) == expected);
            const auto x = store.read_pictures(held_out, kind);
            REQUIRE(x.size() == held.size() * s.width);
            for (std::size_t i = 0; i < held.size(); ++i) CHECK(x[i * s.width] == held[i]);
        }
    activation_store_source source(store, {.kind = token_kind::cls});
    const auto sampled = source.sample(20);
    REQUIRE(sampled.size() == 20 * s.width);
    std::set<float> different;
    for (std::size_t i = 0; i < 20; ++i) different.insert(sampled[i * s.width]);
    CHECK(different.size() == 20);
    for (const float r : different) CHECK(std::fmod(r, 16.f) == 0);
}

#ifndef __SANITIZE_ADDRESS__  // which has a malloc of its own
TEST_CASE("what reading holds does not grow with the store") {
    const auto in_use = [] {
        const auto info = mallinfo2();
        return info.uordblks + info.hblkhd;
    };
    // The most memory in use while an epoch is read, for stores of one and of ten windows.
    const auto most_held = [&](std::size_t pictures) {
        const large_store s(pictures);
        const activation_store store(s.work / "store");
        std::vector<float> x(s.width);
        const std::size_t before = in_use();
        activation_store_source source(store, {.seed = 1, .window_bytes = std::size_t{4} << 20});
        std::size_t most = 0;
        for (std::size_t i = 0; i < source.rows(); i += 64) {
            source.read(i, 1, x.data());
            most = std::max(most, in_use() - before);
        }
        return most;
    };
    const std::size_t one = most_held(16), ten = most_held(160);
    CHECK(one > (std::size_t{4} << 20));
    CHECK(one < (std::size_t{6} << 20));
    CHECK(ten < one + (std::size_t{1} << 20));
}
#endif
