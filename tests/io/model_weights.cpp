// The weights of a directory: which file is taken, shards, and what an index may name.
#include <catch2/catch.hpp>

#include <filesystem>
#include <limits>

#include <psae/io/model_weights.hpp>

#include "../temporary_folder.hpp"

using namespace psae;

namespace {

template <class F>
std::string message_of(F&& f) {
    try {
        f();
    } catch (const error& e) {
        return e.what();
    }
    return "";
}

void write_one(const std::filesystem::path& path, const std::string& name, const std::vector<float>& values) {
    const std::vector<tensor_to_write> tensors{to_write(name, {values.size()}, values.data())};
    if (path.extension() == ".safetensors") write_safetensors(path, tensors);
    else write_torch(path, torch_value::state_dict(tensors));
}

}  // namespace

TEST_CASE("the first file that transformers would take is taken") {
    const temporary_folder folder;
    const auto value = [&] { return model_weights(folder.path).read("x", {1})[0]; };
    CHECK(message_of(value).find("no weights found") == 0);
    CHECK_THROWS_AS(model_weights(folder.path / "nothing here"), error);
    write_one(folder.path / "ViT.pt", "x", {5});
    CHECK(value() == 5);
    write_one(folder.path / "other.pt", "x", {6});
    CHECK_THROWS_AS(value(), error);  // which of the two?
    write_one(folder.path / "shard.bin", "x", {4});
    write_text(folder.path / "pytorch_model.bin.index.json", R"({"weight_map": {"x": "shard.bin"}})");
    CHECK(value() == 4);
    write_one(folder.path / "pytorch_model.bin", "x", {3});
    CHECK(value() == 3);
    CHECK(model_weights(folder.path).format() == std::string("torch"));
    write_one(folder.path / "shard.safetensors", "x", {2});
    write_text(folder.path / "model.safetensors.index.json", R"({"weight_map": {"x": "shard.safetensors"}})");
    CHECK(value() == 2);
    write_one(folder.path / "model.safetensors", "x", {1});
    CHECK(value() == 1);
    CHECK(model_weights(folder.path).format() == std::string("safetensors"));
}

TEST_CASE("shards are read through their index, and only inside the folder") {
    for (const std::string suffix : {".safetensors", ".bin"}) {
        const temporary_folder folder;
        write_one(folder.path / ("one" + suffix), "a", {1, 2});
        write_one(folder.path / ("two" + suffix), "b", {3});
        const auto index = folder.path / ((suffix == ".bin" ? "pytorch_model" : "model") + suffix + ".index.json");
        write_text(index, R"({"weight_map": {"a": "one)" + suffix + R"(", "b": "two)" + suffix + R"("}})");
        const model_weights weights(folder.path);
        CHECK(weights.read("a", {2}) == std::vector<float>{1, 2});
        CHECK(weights.read("b", {1}) == std::vector<float>{3});
        REQUIRE(weights.entries().size() == 2);
        CHECK(weights.entries()[1].shape == std::vector<std::size_t>{1});
        std::vector<std::byte> gathered;
        CHECK(convert_elements<float>(element_type::f32, weights.bytes("a", gathered).data(), 2) ==
              std::vector<float>{1, 2});
        CHECK_FALSE(weights.contains("c"));
        CHECK(message_of([&] { weights.read("c", {1}); }).find(", tensor c)") != std::string::npos);
        CHECK(message_of([&] {
                  weights.read("a", {3});
              }).find("one" + suffix + ", tensor a): expected [3], found [2]") != std::string::npos);
        for (std::string bad : std::vector<std::string>{
                 R"({"weight_map": {"a": "../one"}})", R"({"weight_map": {"a": ".."}})", R"({"weight_map": {"a": ""}})",
                 R"({"weight_map": {"a": 1}})", R"({"weight_map": []})", R"({"weight_map": {}})", "[]", "{}", "",
                 R"({"weight_map": {"a": "one", "a": "two"}})", R"({"weight_map": {"b": "one"}})",
                 R"({"weight_map": {"a": "three"}})",
                 R"({"weight_map": {"a": ")" + (folder.path / "one").string() + "\"}}"}) {
            for (const std::string name : {"one\"", "two\"", "three\""})
                if (const auto at = bad.find(name); at != bad.npos) bad.insert(at + name.size() - 1, suffix);
            INFO(bad);
            write_text(index, bad);
            CHECK_THROWS_AS(model_weights(folder.path), error);
        }
    }
}

TEST_CASE("a value of a torch file that is not finite is refused by name") {
    const temporary_folder folder;
    write_one(folder.path / "pytorch_model.bin", "x", {0, std::numeric_limits<float>::quiet_NaN()});
    CHECK(message_of([&] {
              model_weights(folder.path).read("x", {2});
          }).find("pytorch_model.bin, tensor x, element 1") != std::string::npos);
}
