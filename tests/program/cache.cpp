// cache through the program, and what reads its stores: train, encode, info.
#include "program.hpp"

using namespace program;

namespace {

using arguments = std::vector<std::string>;

// Shards of three pictures.
arguments cache_arguments(const fs::path& out, const arguments& more = {}) {
    arguments a{"cache",
                "--model",
                golden / "pipeline" / "model",
                "--images",
                golden / "pipeline" / "images",
                "--max-tokens-per-shard",
                "60",
                "--threads",
                "1",
                "--out",
                out};
    a.insert(a.end(), more.begin(), more.end());
    return a;
}
arguments operator+(arguments a, const arguments& more) {
    a.insert(a.end(), more.begin(), more.end());
    return a;
}

// The files of a store without the options, which name the folder.
std::map<std::string, std::string> store_bytes(const fs::path& store) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(store))
        if (entry.path().filename() != "run_config.json") files[entry.path().filename()] = read_text(entry.path());
    return files;
}
fs::path shard_of(const fs::path& store, std::size_t number, const char* extension) {
    const auto digits = std::to_string(number);
    return store / ("acts" + std::string(6 - digits.size(), '0') + digits + extension);
}
std::size_t whole_shards(const fs::path& store) {
    std::size_t count = 0;
    while (fs::exists(shard_of(store, count, ".json"))) ++count;
    return count;
}
std::vector<float> raw_floats(const fs::path& store) {
    std::string bytes;
    for (std::size_t s = 0; fs::exists(shard_of(store, s, ".bin")); ++s) bytes += read_text(shard_of(store, s, ".bin"));
    std::vector<float> x(bytes.size() / 4);
    std::memcpy(x.data(), bytes.data(), x.size() * 4);
    return x;
}
std::string metrics_of(const fs::path& run) {
    std::string kept;
    std::ifstream in(run / "metrics.jsonl");
    for (std::string line; std::getline(in, line);) kept += line.substr(0, line.find(", \"tokens_per_s\"")) + "\n";
    return kept;
}

}  // namespace

TEST_CASE("cache writes the tokens that embed gives, at each type, and info checks them") {
    const temporary_folder work;
    run_well({"embed", "--model", golden / "pipeline" / "model", "--images", golden / "pipeline" / "images", "--out",
              work / "tokens.npz", "--threads", "1"});
    const auto tokens = psae::read_npz(work / "tokens.npz", "tokens");
    const auto expected = psae::to_floats(tokens);
    for (const std::string dtype : {"fp32", "fp16", "bf16"}) {
        INFO(dtype);
        const auto store = work / dtype;
        const auto r = run_well(cache_arguments(store, {"--dtype", dtype, "--json"})).json();
        CHECK(r["images"].GetUint64() == tokens.shape[0]);
        CHECK(r["skipped"].GetUint64() == 0);
        CHECK(r["shards"].GetUint64() == whole_shards(store));
        REQUIRE(whole_shards(store) >= 4);
        const auto i = run_well({"info", store, "--json"}).json();
        CHECK(std::string(i["kind"].GetString()) == "store");
        CHECK(i["images"].GetUint64() == tokens.shape[0]);
        CHECK(i["tokens"].GetUint64() == tokens.shape[1]);
        CHECK(i["width"].GetUint64() == tokens.shape[2]);
        CHECK(i["layer"].GetInt64() == r["layer"].GetInt64());
        CHECK(i["checksums"].GetBool());
        if (dtype == "fp32") {
            const auto x = raw_floats(store);
            REQUIRE(x.size() >= expected.size());
            CHECK(std::equal(expected.begin(), expected.end(), x.begin()));
            CHECK(std::all_of(x.begin() + std::ptrdiff_t(expected.size()), x.end(), [](float v) { return v == 0; }));
        } else {
            const std::size_t per = (tokens.shape[0] + whole_shards(store) - 1) / whole_shards(store);
            CHECK(fs::file_size(store / "acts000000.bin") == per * tokens.shape[1] * tokens.shape[2] * 2);
        }
    }
    // The list of pictures is one that --images takes, and gives the same store.
    const auto pictures = work / "a \"folder\", in fact";
    fs::copy(golden / "pipeline" / "images", pictures, fs::copy_options::recursive);
    auto again = cache_arguments(work / "first");
    again[4] = pictures;
    run_well(again);
    again[4] = work / "first" / "pictures.csv";
    again.back() = work / "second";
    run_well(again);
    const auto first = store_bytes(work / "first"), second = store_bytes(work / "second");
    CHECK(first.size() == second.size());
    for (const auto& [name, bytes] : first)
        if (name != "metadata.json") CHECK(bytes == second.at(name));  // which says where the pictures were
}

TEST_CASE("a cache that was killed goes on to the same bytes as one that was not") {
    const temporary_folder work;
    // 231 pictures, 15 of which cannot be read, in 72 shards.
    arguments more{"--images", golden / "preprocess" / "refuse"};
    for (int i = 0; i < 8; ++i) more = more + arguments{"--images", golden / "pipeline" / "images"};
    run_well(cache_arguments(work / "whole", more));
    const auto whole = store_bytes(work / "whole");
    for (const int signal : {SIGKILL, SIGINT, SIGTERM})
        for (const std::size_t shards : {0, 9}) {
            const auto store = work / (std::to_string(signal) + " " + std::to_string(shards));
            const auto begun = [&] {
                return fs::exists(store / "store.json") && whole_shards(store) >= shards ? signal : 0;
            };
            result stopped;
            // On a busy machine the program may be done before this one looks: then it is tried again.
            for (int tries = 0; tries < 50; ++tries) {
                stopped = run(cache_arguments(store, more), {.signal_when = begun});
                if (stopped.code != 0) break;
                fs::remove_all(store);
            }
            CHECK(stopped.code == (signal == SIGKILL ? 128 + SIGKILL : 130));
            REQUIRE(!fs::exists(store / "metadata.json"));
            CHECK(refused({"info", store}).find("store is not complete") != std::string::npos);
            CHECK(refused({"train", "--activations", store, "--out", work / "run"}).find("run cache again") !=
                  std::string::npos);
            const auto found = whole_shards(store);
            CHECK(found >= shards);
            auto again = cache_arguments(store, more) + arguments{"--json"};
            if (signal == SIGINT) again.push_back("--resume");
            CHECK(run_well(again).json()["shards_found"].GetUint64() == found);
            CHECK(store_bytes(store) == whole);
        }
    // Once more: everything is found, nothing is written.
    CHECK(run_well(cache_arguments(work / "whole", more) + arguments{"--json"}).json()["shards_found"].GetUint64() ==
          whole_shards(work / "whole"));
    CHECK(store_bytes(work / "whole") == whole);
    // A damaged shard is named, made again, and then whole.
    auto bytes = read_text(work / "whole" / "acts000001.bin");
    bytes[40] ^= 4;
    std::ofstream(work / "whole" / "acts000001.bin", std::ios::binary) << bytes;
    CHECK(refused({"info", work / "whole"}).find("acts000001.bin, block 0") != std::string::npos);
    CHECK(run_well(cache_arguments(work / "whole", more)).err.find("made again: shard is damaged") !=
          std::string::npos);
    CHECK(store_bytes(work / "whole") == whole);
}

TEST_CASE("a damaged shard is made again without reading the pictures of whole ones") {
    const temporary_folder work;
    const arguments more{"--images", golden / "preprocess" / "refuse", "--images", golden / "pipeline" / "images"};
    run_well(cache_arguments(work / "store", more));
    const auto whole = store_bytes(work / "store");
    auto bytes = read_text(work / "store" / "acts000000.bin");
    bytes[40] ^= 4;
    std::ofstream(work / "store" / "acts000000.bin", std::ios::binary) << bytes;
    run_well(cache_arguments(work / "store", more + arguments{"--strict"}));  // those that cannot be read are in later ones
    CHECK(store_bytes(work / "store") == whole);
}

TEST_CASE("cache refuses a store made from something else, and bad usage") {
    const temporary_folder work;
    const auto store = work / "store";
    run_well(cache_arguments(store));
    const auto before = store_bytes(store);
    const auto other = [&](const arguments& more) { return refused(cache_arguments(store, more)); };
    CHECK(other({"--layer", "1"}).find("layer 1 (store: ") != std::string::npos);
    CHECK(other({"--dtype", "fp16"}).find("dtype float16 (store: float32)") != std::string::npos);
    CHECK(other({"--alpha", "drop"}).find("alpha drop (store: white)") != std::string::npos);
    CHECK(other({"--limit", "5"}).find("list 5 pictures, names") != std::string::npos);
    fs::copy(golden / "pipeline" / "model", work / "model", fs::copy_options::recursive);
    auto moved = cache_arguments(store);
    moved[2] = work / "model";
    run_well(moved);  // a copy of the model is the same model
    auto preprocessing = read_text(work / "model" / "preprocessor_config.json");
    const auto mean = preprocessing.find("0.", preprocessing.find("image_mean"));
    REQUIRE(mean != std::string::npos);
    preprocessing[mean + 2] = preprocessing[mean + 2] == '9' ? '8' : '9';
    psae::write_text(work / "model" / "preprocessor_config.json", preprocessing);
    CHECK(refused(moved).find("preprocessing crc32") != std::string::npos);
    const auto after = store_bytes(store);
    for (const auto& [name, bytes] : before)
        if (name != "metadata.json") CHECK(after.at(name) == bytes);  // which says where the model was
    CHECK(refused(cache_arguments(work / "new", {"--resume"})).find("no store to go on with") != std::string::npos);
    CHECK(!fs::exists(work / "new"));
    CHECK(refused(cache_arguments(work / "new", {"--dtype", "fp64"}), 2).find("--dtype") != std::string::npos);
    CHECK(refused({"cache", "--model", golden / "pipeline" / "model", "--images", golden / "pipeline" / "images",
                   "--max-tokens-per-shard", "3", "--out", work / "new"})
              .find("a shard cannot hold a picture") != std::string::npos);
    CHECK(refused({"train", "--activations", work / "rows.npy", "--token-kind", "cls", "--out", work / "run"}, 2)
              .find("--token-kind") != std::string::npos);
}

TEST_CASE("training on a store is training on the same rows of an array") {
    const temporary_folder work;
    run_well({"embed", "--model", golden / "pipeline" / "model", "--images", golden / "pipeline" / "images", "--out",
              work / "tokens.npz", "--threads", "1"});
    run_well(cache_arguments(work / "store"));
    const auto train = [&](const fs::path& rows, const std::string& out, const arguments& more) {
        return arguments{"train", "--activations",  rows, "--out",   work / out, "--d-sae",
                         "96",    "--batch-tokens", "50", "--steps", "30",       "--warmup-steps",
                         "5",     "--threads",      "1"} +
               more;
    };
    const arguments sequential{"--order", "sequential", "--b-dec-init", "zero"};
    run_well(train(work / "tokens.npz", "array", sequential));
    run_well(train(work / "store", "store_run", sequential));
    CHECK(refused(train(work / "store", "other", {"--layer", "1"})).find("expected --layer 1, found hidden state") !=
          std::string::npos);
    CHECK(metrics_of(work / "array") == metrics_of(work / "store_run"));
    CHECK(read_text(work / "array" / "sae_weights.safetensors") ==
          read_text(work / "store_run" / "sae_weights.safetensors"));
    // The SAE knows the model and the layer of the store.
    const auto cfg = read_text(work / "store_run" / "cfg.json");
    CHECK(cfg.find((golden / "pipeline" / "model").string()) != std::string::npos);

    // Shuffled, with pictures held out: a killed run resumes to the same bytes; other rows are refused.
    const arguments shuffled{"--eval-every", "10", "--checkpoint-every", "10", "--token-kind", "patches"};
    run_well(train(work / "store", "whole", shuffled));
    const auto at_step = [&] {
        std::ifstream in(work / "killed" / "metrics.jsonl");
        return std::count(std::istreambuf_iterator<char>(in), {}, '\n') > 15 ? SIGKILL : 0;
    };
    auto longer = train(work / "store", "killed", shuffled);
    CHECK(run(longer, {.signal_when = at_step}).code == 128 + SIGKILL);
    run_well(longer + arguments{"--resume"});
    CHECK(metrics_of(work / "whole") == metrics_of(work / "killed"));
    CHECK(read_text(work / "whole" / "sae_weights.safetensors") ==
          read_text(work / "killed" / "sae_weights.safetensors"));
    longer.back() = "cls";
    CHECK(refused(longer + arguments{"--resume"}).find("token-kind cls (checkpoint: patches)") != std::string::npos);
    longer.back() = "patches";
    run_well(cache_arguments(work / "other", {"--limit", "20"}));
    longer[2] = work / "other";
    CHECK(refused(longer + arguments{"--resume"}).find("data ") != std::string::npos);

    // encode takes a store as well.
    const auto encode = [&](const fs::path& rows, const std::string& out) {
        run_well({"encode", "--sae", work / "store_run", "--activations", rows, "--out", work / out, "--threads", "1"});
    };
    encode(work / "tokens.npz", "a.npz");
    encode(work / "store", "b.npz");
    for (const char* array : {"data", "indices", "indptr"})
        CHECK(floats(work / "a.npz", array) == floats(work / "b.npz", array));
    CHECK(!floats(work / "a.npz", "data").empty());
}
