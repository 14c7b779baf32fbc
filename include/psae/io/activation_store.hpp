#pragma once
// A store of activations: the tokens of one hidden state for a list of pictures, in shards on disk, to be written once
// and read often. The layout is that of saev (its shard protocol 2.1), which reads stores of float32:
//   acts000000.bin ..   [pictures_per_shard, 1, tokens, width], row-major, little-endian, without a header; the class
//                       token first. All of one size, behind the last picture are zeros.
//   metadata.json, shards.json   what the shards hold, in saev's words. Written last: a store without is not complete.
// and beside it, ours:
//   acts000000.json ..  written when a shard is whole: which pictures of the list it holds, and the CRC-32 of each of
//                       its blocks of about 1 MiB and of the whole file
//   store.json          what the store was made from
//
//   psae::activation_store_writer writer("store", layout, list.files.size(), identity);
//   while (writer.position() < list.files.size()) writer.add(tokens_of(writer.position()), name);
//   writer.finish();
//
//   psae::activation_store store("store");
//   psae::activation_store_source source(store, {.seed = 1});
//   psae::activation_stream stream(source, 4096, 4, true, 1);

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <zlib.h>

#include <psae/core/random.hpp>
#include <psae/io/atomic_file.hpp>
#include <psae/io/element_type.hpp>
#include <psae/io/json.hpp>
#include <psae/io/run_identity.hpp>
#include <psae/sae/activation_stream.hpp>

namespace psae {

struct store_layout {
    std::string model, dataset;  // where the model and the pictures were, for people
    long layer = 0;              // hidden state, an index into hidden_states
    bool class_token = true;
    std::size_t tokens = 0, width = 0;  // of a picture, the class token included
    element_type type = element_type::f32;
    std::size_t pictures_per_shard = 0;

    std::size_t row_bytes() const { return width * size_of(type); }
    std::size_t picture_bytes() const { return tokens * row_bytes(); }
    // A block is what is read and checked at once: whole pictures, about 1 MiB.
    std::size_t pictures_per_block() const {
        return std::clamp<std::size_t>((std::size_t{1} << 20) / picture_bytes(), 1, pictures_per_shard);
    }
    std::size_t blocks_per_shard() const {
        return (pictures_per_shard + pictures_per_block() - 1) / pictures_per_block();
    }
    // Pictures of block b of a shard, those behind the last one of the store included.
    std::size_t pictures_of_block(std::size_t b) const {
        return std::min(pictures_per_block(), pictures_per_shard - b * pictures_per_block());
    }
};

// Which tokens of a picture are read.
enum class token_kind { all, cls, patches };

namespace detail {

inline const char* store_type_name(element_type t) {
    return t == element_type::f16 ? "float16" : t == element_type::bf16 ? "bfloat16" : "float32";
}
inline std::string shard_name(std::size_t shard, const char* extension) {
    char name[40];
    std::snprintf(name, sizeof name, "acts%06zu%s", shard, extension);
    return name;
}
inline std::string crc_text(unsigned long crc) {
    char text[16];
    std::snprintf(text, sizeof text, "%08lx", crc & 0xfffffffful);
    return text;
}
inline std::string list_text(const auto& numbers) {
    std::string text = "[";
    for (const auto n : numbers) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
    return text + "]";
}

// Reads bytes of a file. They are wanted whole.
inline void read_at(const std::filesystem::path& path, std::size_t at, std::span<std::byte> out) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) throw error("shard cannot be opened", path.string(), std::strerror(errno));
    std::size_t done = 0;
    ssize_t n = 1;
    while (done < out.size()) {
        n = ::pread(descriptor, out.data() + done, out.size() - done, static_cast<off_t>(at + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        done += static_cast<std::size_t>(n);
    }
    const int reason = errno;
    ::close(descriptor);
    if (n < 0) throw error("shard cannot be read", path.string(), std::strerror(reason));
    if (done < out.size())
        throw error("shard is truncated", path.string(), "it ends before byte " + std::to_string(at + out.size()));
}

inline unsigned long crc_of_bytes(std::span<const std::byte> bytes) {
    return crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
}

// What is known of a whole shard.
struct shard_record {
    std::size_t first = 0, next = 0;    // positions in the list: of the first picture asked for, behind the last
    std::size_t pictures = 0;           // those that are in it
    std::vector<std::size_t> skipped;   // positions of those that could not be read
    std::vector<std::uint32_t> blocks;  // CRC-32 of each

    unsigned long crc(const store_layout& layout) const {
        unsigned long whole = 0;
        for (std::size_t b = 0; b < blocks.size(); ++b)
            whole = crc32_combine(whole, blocks[b],
                                  static_cast<z_off_t>(layout.pictures_of_block(b) * layout.picture_bytes()));
        return whole;
    }
};

inline void write_shard_record(const std::filesystem::path& path, const shard_record& r, const store_layout& layout) {
    write_text(path, "{\n  \"n_examples\": " + std::to_string(r.pictures) +
                         ",\n  \"first\": " + std::to_string(r.first) + ",\n  \"next\": " + std::to_string(r.next) +
                         ",\n  \"skipped\": " + list_text(r.skipped) + ",\n  \"crc32\": \"" + crc_text(r.crc(layout)) +
                         "\",\n  \"block_crc32\": " + list_text(r.blocks) + "\n}\n");
}

inline shard_record read_shard_record(const std::filesystem::path& path, const store_layout& layout) {
    const std::string where = path.string();
    const auto json = read_json(path);
    shard_record r;
    r.pictures = json_size(json, "n_examples", where);
    r.first = json_size(json, "first", where);
    r.next = json_size(json, "next", where);
    const auto numbers = [&](const char* key, std::uint64_t limit, auto& to) {
        const auto* array = find_member(json, key);
        bool good = array != nullptr && array->IsArray();
        if (good)
            for (const auto& v : array->GetArray()) {
                good = good && v.IsUint64() && v.GetUint64() < limit;
                if (good) to.push_back(static_cast<typename std::decay_t<decltype(to)>::value_type>(v.GetUint64()));
            }
        if (!good) throw error("shard record is damaged", where + ", key " + key, "expected an array of integers");
    };
    numbers("skipped", r.next, r.skipped);
    numbers("block_crc32", std::uint64_t{1} << 32, r.blocks);
    if (r.pictures == 0 || r.pictures > layout.pictures_per_shard || r.next < r.first ||
        r.next - r.first != r.pictures + r.skipped.size() || r.blocks.size() != layout.blocks_per_shard() ||
        json_string(json, "crc32", "", where) != crc_text(r.crc(layout)))
        throw error("shard record is damaged", where, "its numbers do not fit together");
    return r;
}

// Reads every byte of a shard. psae::error if it is not what the record says.
inline void check_shard(const std::filesystem::path& path, const shard_record& r, const store_layout& layout) {
    std::vector<std::byte> bytes;
    for (std::size_t b = 0; b < r.blocks.size(); ++b) {
        bytes.resize(layout.pictures_of_block(b) * layout.picture_bytes());
        read_at(path, b * layout.pictures_per_block() * layout.picture_bytes(), bytes);
        if (crc_of_bytes(bytes) != r.blocks[b])
            throw error("shard is damaged", path.string() + ", block " + std::to_string(b), "its CRC-32 differs");
    }
    if (const auto size = std::filesystem::file_size(path); size != layout.pictures_per_shard * layout.picture_bytes())
        throw error("shard has another size", path.string(),
                    "expected " + std::to_string(layout.pictures_per_shard * layout.picture_bytes()) +
                        " bytes, found " + std::to_string(size));
}

}  // namespace detail

namespace detail {

// A folder that one process at a time writes.
class folder_lock {
public:
    explicit folder_lock(const std::filesystem::path& folder) {
        std::filesystem::create_directories(folder);
        descriptor_ = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (descriptor_ < 0) throw error("folder cannot be opened", folder.string(), std::strerror(errno));
        // (A file system that has no locks does not keep anybody from working.)
        if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            ::close(descriptor_);
            throw error("another process writes this store", folder.string(), "", "wait for it, or stop it");
        }
    }
    folder_lock(const folder_lock&) = delete;
    folder_lock& operator=(const folder_lock&) = delete;
    ~folder_lock() { ::close(descriptor_); }

private:
    int descriptor_ = -1;
};

}  // namespace detail

// Writes a store, or goes on with one that is not complete: shards that are whole are checked and kept, a shard that was
// begun is made anew. One writer at a time.
class activation_store_writer {
public:
    // For a list of `pictures` pictures. `identity` names what decides the values; the layout is added to it. A store that
    // is there must have been made from the same. psae::error, naming the differences, where it was not; if the folder
    // holds another's store; if another process writes it. `checking`(shard, shards) is called before a shard is checked.
    activation_store_writer(
        std::filesystem::path directory, store_layout layout, std::size_t pictures, run_identity identity,
        const std::function<void(std::size_t, std::size_t)>& checking = [](std::size_t, std::size_t) {})
        : directory_(std::move(directory)), layout_(std::move(layout)), list_(pictures) {
        if (layout_.tokens == 0 || layout_.width == 0 || layout_.pictures_per_shard == 0 || list_ == 0 ||
            !checked_product({layout_.pictures_per_shard, layout_.tokens, layout_.width, size_of(layout_.type)}) ||
            (layout_.type != element_type::f32 && layout_.type != element_type::f16 &&
             layout_.type != element_type::bf16))
            throw error("layout of the store is not possible", directory_.string(),
                        "expected pictures, tokens and a width, and fp32, fp16 or bf16");
        identity["dtype"] = detail::store_type_name(layout_.type);
        identity["layer"] = std::to_string(layout_.layer);
        identity["shape of a picture"] = shape_text({layout_.tokens, layout_.width});
        identity["pictures per shard"] = std::to_string(layout_.pictures_per_shard);
        identity["pictures in the list"] = std::to_string(list_);
        lock_.emplace(directory_);
        if (claim(identity)) remove_partial_files();
        const std::size_t shards = (list_ + layout_.pictures_per_shard - 1) / layout_.pictures_per_shard;
        for (std::size_t s = 0; s < shards; ++s) {
            const auto record = path_of(s, ".json");
            if (!std::filesystem::exists(record)) continue;
            checking(s, shards);
            try {
                auto r = detail::read_shard_record(record, layout_);
                detail::check_shard(path_of(s, ".bin"), r, layout_);
                whole_.emplace(s, std::move(r));
            } catch (const error& e) {
                damage_.emplace_back(e);
            }
        }
        found_ = whole_.size();
        pass_whole_shards();
    }
    activation_store_writer(const activation_store_writer&) = delete;
    activation_store_writer& operator=(const activation_store_writer&) = delete;

    // The place in the list of the picture that is wanted next; the list's length when none is.
    std::size_t position() const { return position_; }
    std::size_t shards_found() const { return found_; }  // whole ones that were there
    std::size_t pictures_in_whole_shards() const { return pictures_; }
    const std::vector<std::size_t>& skipped() const { return skipped_; }
    const std::vector<error>& damage() const { return damage_; }  // of shards that are made anew
    // At most so many bytes are still to be written.
    std::uint64_t bytes_missing() const {
        std::size_t missing = list_ - position_;
        for (auto r = whole_.lower_bound(shard_); r != whole_.end(); ++r) missing -= r->second.pictures;
        return std::uint64_t{missing} * layout_.picture_bytes();
    }

    // The tokens [tokens, width] of the wanted picture, which `name` names in errors: psae::error if a value is not finite
    // or too large for the type. The picture is then still wanted.
    void add(const float* tokens, const std::string& name) {
        if (!file_) {
            std::filesystem::remove(directory_ / "metadata.json");  // complete the store is no longer
            file_.emplace(path_of(shard_, ".bin"));
        }
        const std::size_t at = bytes_.size();
        bytes_.resize(at + layout_.picture_bytes());
        const auto store = [&](auto convert, auto back) {
            for (std::size_t i = 0; i < layout_.tokens * layout_.width; ++i) {
                const auto stored = convert(tokens[i]);
                std::memcpy(bytes_.data() + at + i * sizeof stored, &stored, sizeof stored);
                if (std::isfinite(back(stored))) continue;
                bytes_.resize(at);
                refuse(name, i, tokens[i]);
            }
        };
        const auto same = [](float x) { return x; };
        if (layout_.type == element_type::f16)
            store([](float x) { return to_half(x); }, [](half x) { return widen(x); });
        else if (layout_.type == element_type::bf16)
            store([](float x) { return to_bf16(x); }, [](bf16 x) { return widen(x); });
        else store(same, same);
        ++position_;
        ++now_.pictures;
        if (now_.pictures % layout_.pictures_per_block() == 0 || now_.pictures == layout_.pictures_per_shard)
            end_block();
        if (now_.pictures == layout_.pictures_per_shard) end_shard();
    }
    // The wanted picture cannot be read and is left out.
    void skip() { now_.skipped.push_back(position_++); }

    // The whole list was given: writes the last shard, and what says that the store is complete. psae::error if no picture
    // could be read.
    void finish() {
        if (position_ < list_) throw error("pictures are missing", directory_.string(), "the store is not complete");
        if (now_.pictures > 0) {
            end_block();
            end_shard();
        }
        skipped_.insert(skipped_.end(), now_.skipped.begin(), now_.skipped.end());  // behind the last shard
        now_ = {};
        if (shard_ == 0) throw error("no picture could be read", directory_.string(), "the store would be empty");
        for (const auto& [s, r] : whole_)  // of a list in which fewer pictures could not be read
            if (s >= shard_)
                for (const char* extension : {".json", ".bin"}) std::filesystem::remove(path_of(s, extension));
        std::string shards = "[";
        for (std::size_t s = 0; s < shard_; ++s)
            shards += std::string(s > 0 ? "," : "") + "\n  {\"name\": \"" + detail::shard_name(s, ".bin") +
                      "\", \"n_examples\": " + std::to_string(whole_.at(s).pictures) + "}";
        write_text(directory_ / "shards.json", shards + "\n]\n");
        rapidjson::Document m(rapidjson::kObjectType);
        auto& a = m.GetAllocator();
        const auto text = [&](const std::string& s) { return rapidjson::Value(s.c_str(), a); };
        m.AddMember("family", "clip", a);
        m.AddMember("ckpt", text(layout_.model), a);
        rapidjson::Value layers(rapidjson::kArrayType);
        layers.PushBack(std::int64_t{layout_.layer - 1}, a);  // saev counts blocks: hidden state 1 is behind block 0
        m.AddMember("layers", layers, a);
        m.AddMember("content_tokens_per_example", std::uint64_t{layout_.tokens - layout_.class_token}, a);
        m.AddMember("cls_token", layout_.class_token, a);
        m.AddMember("d_model", std::uint64_t{layout_.width}, a);
        m.AddMember("n_examples", std::uint64_t{pictures_}, a);
        m.AddMember("max_tokens_per_shard", std::uint64_t{layout_.pictures_per_shard * layout_.tokens}, a);
        m.AddMember("data", "", a);  // saev keeps a pickled object here; nothing that reads activations opens it
        m.AddMember("dataset", text(layout_.dataset), a);
        m.AddMember("pixel_agg", "majority", a);  // of label masks, which there are none of; saev wants a value
        m.AddMember("dtype", text(detail::store_type_name(layout_.type)), a);
        m.AddMember("protocol", "2.1", a);
        write_text(directory_ / "metadata.json", to_text(m));
    }

private:
    std::filesystem::path path_of(std::size_t shard, const char* extension) const {
        return directory_ / detail::shard_name(shard, extension);
    }
    [[noreturn]] void refuse(const std::string& name, std::size_t i, float x) const {
        throw error(
            std::isfinite(x) ? "activation is too large for the type of the store" : "activation is not finite",
            name + ", token " + std::to_string(i / layout_.width) + ", column " + std::to_string(i % layout_.width),
            "found " + std::to_string(x), std::isfinite(x) ? "store bf16 or fp32" : "");
    }
    // Of a writer that was killed.
    void remove_partial_files() const {
        for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
            const std::string name = entry.path().filename().string();
            const bool ours = name.starts_with("acts") || name.starts_with("metadata.json") ||
                              name.starts_with("shards.json") || name.starts_with("store.json");
            if (ours && name.find(".partial") != name.npos) std::filesystem::remove(entry.path());
        }
    }
    // Makes the folder a store of this identity, or finds that it is one: true.
    bool claim(const run_identity& identity) {
        const auto path = directory_ / "store.json";
        if (!std::filesystem::exists(path)) {
            for (const auto& name :
                 {std::string("metadata.json"), std::string("shards.json"), detail::shard_name(0, ".bin")})
                if (std::filesystem::exists(directory_ / name))
                    throw error("folder holds another store", directory_.string(),
                                "found " + name + " but no store.json", "choose another folder");
            rapidjson::Document json(rapidjson::kObjectType);
            auto& a = json.GetAllocator();
            for (const auto& [name, value] : identity)
                json.AddMember(rapidjson::Value(name.c_str(), a), rapidjson::Value(value.c_str(), a), a);
            write_text(path, to_text(json));
            return false;
        }
        const auto json = read_json(path);
        if (!json.IsObject()) throw error("not a description of a store", path.string(), detail::found_json(json));
        run_identity theirs;
        for (const auto& m : json.GetObject())
            theirs[m.name.GetString()] = json_string(json, m.name.GetString(), "", path.string());
        if (const auto differences = identity_differences(identity, theirs, "store"); !differences.empty())
            throw error("store was made from something else", directory_.string(), differences,
                        "choose another folder, or delete this one");
        return true;
    }
    void end_block() {
        if (bytes_.empty()) return;
        file_->write(bytes_.data(), bytes_.size());
        // The last block of the store is padded to its full size.
        bytes_.resize(layout_.pictures_of_block(now_.blocks.size()) * layout_.picture_bytes());
        now_.blocks.push_back(static_cast<std::uint32_t>(detail::crc_of_bytes(bytes_)));
        bytes_.clear();
    }
    void end_shard() {
        for (std::size_t b = now_.blocks.size(); b < layout_.blocks_per_shard(); ++b)
            now_.blocks.push_back(static_cast<std::uint32_t>(
                detail::crc_of_bytes(std::vector<std::byte>(layout_.pictures_of_block(b) * layout_.picture_bytes()))));
        file_->extend(layout_.pictures_per_shard * layout_.picture_bytes());
        std::filesystem::remove(path_of(shard_, ".json"));
        file_->commit();
        file_.reset();
        now_.next = position_;
        detail::write_shard_record(path_of(shard_, ".json"), now_, layout_);
        position_ = now_.first;
        whole_.insert_or_assign(shard_, std::move(now_));
        pass_whole_shards();
    }
    // Goes on behind the shards that are whole. (Only the last may hold fewer pictures than the others.)
    void pass_whole_shards() {
        for (auto r = whole_.find(shard_);
             r != whole_.end() && r->second.first == position_ &&
             (r->second.pictures == layout_.pictures_per_shard || r->second.next == list_);
             r = whole_.find(shard_)) {
            position_ = r->second.next;
            pictures_ += r->second.pictures;
            skipped_.insert(skipped_.end(), r->second.skipped.begin(), r->second.skipped.end());
            ++shard_;
        }
        now_ = {};
        now_.first = position_;
    }

    std::filesystem::path directory_;
    std::optional<detail::folder_lock> lock_;
    store_layout layout_;
    std::size_t list_, shard_ = 0, position_ = 0, pictures_ = 0, found_ = 0;
    std::vector<std::size_t> skipped_;
    std::vector<error> damage_;
    std::map<std::size_t, detail::shard_record> whole_;
    detail::shard_record now_;  // of the shard that is written
    std::optional<atomic_file> file_;
    std::vector<std::byte> bytes_;  // of the block that is written
};

// A complete store, of ours or of saev (of one layer, float32). Opening it checks the description against the sizes of
// the files; what is read is checked against its CRC-32, which saev's stores do not have.
class activation_store {
public:
    // psae::error if there is no store, it is not complete, or its files do not fit together.
    explicit activation_store(std::filesystem::path directory) : directory_(std::move(directory)) {
        const auto metadata = directory_ / "metadata.json";
        const std::string where = metadata.string();
        const bool ours = std::filesystem::exists(directory_ / "store.json");
        if (!std::filesystem::exists(metadata))
            throw error(ours ? "store is not complete" : "not a store of activations", directory_.string(),
                        "expected metadata.json", ours ? "run cache again to go on with it" : "");
        const auto json = read_json(metadata);
        layout_.model = json_string(json, "ckpt", "", where);
        layout_.dataset = json_string(json, "dataset", "", where);
        layout_.class_token = json_bool(json, "cls_token", true, where);
        layout_.width = json_size(json, "d_model", where);
        pictures_ = json_size(json, "n_examples", where);
        const std::size_t content = json_size(json, "content_tokens_per_example", where),
                          most = json_size(json, "max_tokens_per_shard", where);
        const auto* layers = find_member(json, "layers");
        if (layers == nullptr || !layers->IsArray() || layers->Size() != 1 || !(*layers)[0].IsInt() ||
            (*layers)[0].GetInt() < -1'000'000 || (*layers)[0].GetInt() > 1'000'000)
            throw error("store is not of one layer", where + ", key layers",
                        layers == nullptr ? "found none" : detail::found_json(*layers));
        // saev counts blocks, from the end where negative: its block -2 puts out hidden state -2.
        const int block = (*layers)[0].GetInt();
        layout_.layer = block < 0 && !ours ? block : block + 1;
        const std::string type = json_string(json, "dtype", "float32", where);
        layout_.type = type == "float16"    ? element_type::f16
                       : type == "bfloat16" ? element_type::bf16
                                            : element_type::f32;
        if (type != detail::store_type_name(layout_.type))
            throw error("store has an unknown type", where + ", key dtype",
                        "expected float32, float16 or bfloat16, found " + type);
        const auto impossible = [&](const std::string& what) {
            return error("store is described wrongly", where, what);
        };
        if (__builtin_add_overflow(content, std::size_t{layout_.class_token}, &layout_.tokens) || layout_.tokens == 0 ||
            layout_.width == 0 || pictures_ == 0)
            throw impossible("expected pictures, tokens and a width");
        layout_.pictures_per_shard = most / layout_.tokens;
        const auto bytes =
            checked_product({layout_.pictures_per_shard, layout_.tokens, layout_.width, size_of(layout_.type)});
        if (!bytes || *bytes == 0)
            throw impossible("a shard of max_tokens_per_shard " + std::to_string(most) + " tokens is not possible");
        if (pictures_ / layout_.pictures_per_shard >
            std::numeric_limits<std::uint32_t>::max() / layout_.blocks_per_shard())
            throw impossible("there are too many pictures");
        check_shards(*bytes);
        if (ours)
            for (std::size_t s = 0; s < shards(); ++s) {
                const auto path = directory_ / detail::shard_name(s, ".json");
                records_.push_back(detail::read_shard_record(path, layout_));
                if (records_.back().pictures != pictures_of_shard(s))
                    throw error("shard record is of another number of pictures", path.string(),
                                "expected " + std::to_string(pictures_of_shard(s)) + ", found " +
                                    std::to_string(records_.back().pictures));
            }
    }

    const store_layout& layout() const { return layout_; }
    std::size_t pictures() const { return pictures_; }
    std::size_t columns() const { return layout_.width; }
    std::size_t shards() const { return (pictures_ + layout_.pictures_per_shard - 1) / layout_.pictures_per_shard; }
    std::size_t bytes() const { return shards() * layout_.pictures_per_shard * layout_.picture_bytes(); }
    bool has_checksums() const { return !records_.empty(); }

    // What tells the values of two stores apart, as far as there are checksums.
    std::string fingerprint() const {
        unsigned long crc = 0;
        for (const auto& r : records_)
            crc = crc32_z(crc, reinterpret_cast<const Bytef*>(r.blocks.data()), r.blocks.size() * sizeof r.blocks[0]);
        return std::to_string(pictures_) + " x " + shape_text({layout_.tokens, layout_.width}) + " " +
               detail::store_type_name(layout_.type) +
               (has_checksums() ? ", checksums crc32 " + detail::crc_text(crc) : "");
    }

    // First and last (excluded) token of a kind. psae::error if pictures have none.
    std::pair<std::size_t, std::size_t> tokens_of(token_kind kind) const {
        const std::size_t first = kind == token_kind::patches && layout_.class_token ? 1 : 0;
        const std::size_t last = kind == token_kind::cls ? std::size_t{layout_.class_token} : layout_.tokens;
        if (first == last)
            throw error("store has no tokens of this kind", directory_.string(),
                        kind == token_kind::cls ? "it was made without class tokens" : "it has class tokens only");
        return {first, last};
    }

    std::size_t blocks() const {
        const std::size_t last = pictures_of_shard(shards() - 1), c = layout_.pictures_per_block();
        return (shards() - 1) * layout_.blocks_per_shard() + (last + c - 1) / c;
    }
    struct picture_range {
        std::size_t first, last;  // last: excluded
    };
    picture_range pictures_of(std::size_t block) const {
        const std::size_t first = block / layout_.blocks_per_shard() * layout_.pictures_per_shard +
                                  block % layout_.blocks_per_shard() * layout_.pictures_per_block();
        return {first, std::min(pictures_, first + layout_.pictures_of_block(block % layout_.blocks_per_shard()))};
    }
    std::size_t block_of(std::size_t picture) const {
        return picture / layout_.pictures_per_shard * layout_.blocks_per_shard() +
               picture % layout_.pictures_per_shard / layout_.pictures_per_block();
    }
    // Has the system begin to read a block that will be wanted. What goes wrong shows when it is read.
    void expect_block(std::size_t block) const {
        const std::size_t within = block % layout_.blocks_per_shard();
        const auto path = directory_ / detail::shard_name(block / layout_.blocks_per_shard(), ".bin");
        const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (descriptor < 0) return;
        ::posix_fadvise(descriptor, static_cast<off_t>(within * layout_.pictures_per_block() * layout_.picture_bytes()),
                        static_cast<off_t>(layout_.pictures_of_block(within) * layout_.picture_bytes()),
                        POSIX_FADV_WILLNEED);
        ::close(descriptor);
    }
    // The pictures of a block as they are stored. psae::error if it is damaged.
    void read_block(std::size_t block, std::vector<std::byte>& bytes) const {
        const std::size_t shard = block / layout_.blocks_per_shard(), within = block % layout_.blocks_per_shard();
        const auto path = directory_ / detail::shard_name(shard, ".bin");
        bytes.resize(layout_.pictures_of_block(within) * layout_.picture_bytes());
        detail::read_at(path, within * layout_.pictures_per_block() * layout_.picture_bytes(), bytes);
        if (has_checksums() && detail::crc_of_bytes(bytes) != records_[shard].blocks[within])
            throw error("shard is damaged", path.string() + ", block " + std::to_string(within), "its CRC-32 differs",
                        "run cache again to make it anew");
    }
    // Widens a row of the store.
    void widen_row(const std::byte* row, float* out) const {
        const auto convert = [&](auto x) {
            for (std::size_t i = 0; i < layout_.width; ++i) {
                std::memcpy(&x, row + i * sizeof x, sizeof x);
                out[i] = widen(x);
            }
        };
        if (layout_.type == element_type::f16) convert(half{});
        else if (layout_.type == element_type::bf16) convert(bf16{});
        else std::memcpy(out, row, layout_.row_bytes());
    }
    // The tokens of a kind of some pictures, ascending: [pictures.size() * tokens of the kind, width].
    std::vector<float> read_pictures(std::span<const std::size_t> pictures, token_kind kind) const {
        const auto [first, last] = tokens_of(kind);
        std::vector<float> out(pictures.size() * (last - first) * layout_.width);
        std::vector<std::byte> bytes;
        float* to = out.data();
        for (std::size_t i = 0, held = blocks(); i < pictures.size(); ++i) {
            if (const std::size_t block = block_of(pictures[i]); block != held) read_block(held = block, bytes);
            const std::byte* picture = bytes.data() + (pictures[i] - pictures_of(held).first) * layout_.picture_bytes();
            for (std::size_t t = first; t < last; ++t, to += layout_.width)
                widen_row(picture + t * layout_.row_bytes(), to);
        }
        return out;
    }
    // Reads every byte of shard s. psae::error if it is damaged.
    void check(std::size_t s) const {
        const auto path = directory_ / detail::shard_name(s, ".bin");
        if (has_checksums()) detail::check_shard(path, records_[s], layout_);
    }

private:
    std::size_t pictures_of_shard(std::size_t s) const {
        return std::min(layout_.pictures_per_shard, pictures_ - s * layout_.pictures_per_shard);
    }
    // shards.json must name the shards there must be, and they must be of the size they must have.
    void check_shards(std::size_t bytes) const {
        const auto path = directory_ / "shards.json";
        const auto json = read_json(path);
        if (!json.IsArray() || json.Size() != shards())
            throw error("store has another number of shards", path.string(),
                        "expected " + std::to_string(shards()) + ", found " +
                            (json.IsArray() ? std::to_string(json.Size()) : std::string("no array")));
        for (std::size_t s = 0; s < shards(); ++s) {
            const auto& entry = json[static_cast<rapidjson::SizeType>(s)];
            const std::string where = path.string() + ", entry " + std::to_string(s),
                              name = detail::shard_name(s, ".bin");
            if (!entry.IsObject()) throw error("entry is not an object", where, detail::found_json(entry));
            if (const auto found = json_string(entry, "name", "", where); found != name)
                throw error("shard has another name", where, "expected " + name + ", found " + found);
            if (const auto n = json_size(entry, "n_examples", where); n != pictures_of_shard(s))
                throw error("shard has another number of pictures", where,
                            "expected " + std::to_string(pictures_of_shard(s)) + ", found " + std::to_string(n));
            std::error_code failure;
            const auto size = std::filesystem::file_size(directory_ / name, failure);
            if (failure) throw error("shard cannot be opened", (directory_ / name).string(), failure.message());
            if (size != bytes)
                throw error("shard has another size", (directory_ / name).string(),
                            "expected " + std::to_string(bytes) + " bytes, found " + std::to_string(size));
        }
    }

    std::filesystem::path directory_;
    store_layout layout_;
    std::size_t pictures_ = 0;
    std::vector<detail::shard_record> records_;
};

struct store_reading {
    std::uint64_t seed = 0;
    bool sequential =
        false;  // rows as they are stored, and again from the start; otherwise shuffled anew in each epoch
    token_kind kind = token_kind::all;
    std::vector<std::size_t> held_out{};                // pictures passed over, ascending
    std::size_t window_bytes = std::size_t{256} << 20;  // memory for rows that are mixed
};

// A source for activation_stream. An epoch draws a permutation of all blocks and cuts it into windows; the blocks of a
// window are read, in the order of the disk, and its rows come in a permutation of their own. So the disk is read in runs
// of 1 MiB, rows of one window come from all over the store, and memory holds one window (and 4 bytes for each block),
// however large the store is. The order depends on the seed and the position alone.
class activation_store_source {
public:
    // The store must outlive this. psae::error if there are no rows.
    activation_store_source(const activation_store& store, store_reading how)
        : store_(store), how_(std::move(how)), order_(store.blocks(), how_.seed) {
        std::tie(first_token_, last_token_) = store.tokens_of(how_.kind);
        rows_ = (store.pictures() - how_.held_out.size()) * (last_token_ - first_token_);
        if (rows_ == 0) throw error("there are no activations", "activation store", "every picture is held out");
        const std::size_t bytes = rows_ * store.layout().row_bytes();
        const std::size_t windows =
            std::min((bytes - 1) / std::max<std::size_t>(how_.window_bytes, 1) + 1, store.blocks());
        start_.resize(windows + 1);
    }

    std::size_t columns() const { return store_.columns(); }
    std::size_t rows() const { return rows_; }

    // Rows first .. first + count of the endless stream. out: [count, columns()].
    void read(std::uint64_t first, std::size_t count, float* out) {
        const std::size_t d = columns();
        for (std::size_t done = 0; done < count;) {
            const std::uint64_t position = first + done, epoch = position / rows_;
            const auto within = static_cast<std::size_t>(position % rows_);
            begin_epoch(epoch);
            const auto window =
                static_cast<std::size_t>(std::upper_bound(start_.begin(), start_.end(), within) - start_.begin()) - 1;
            load(epoch, window);
            const std::size_t n = std::min(start_[window + 1] - within, count - done);
            for (std::size_t i = 0; i < n; ++i)
                store_.widen_row(rows_held_.data() + mixed_[within - start_[window] + i] * store_.layout().row_bytes(),
                                 out + (done + i) * d);
            done += n;
        }
    }

    // Up to `count` rows drawn at random, from at least 128 blocks if there are as many. Returns [n, columns()].
    std::vector<float> sample(std::size_t count) {
        const std::size_t blocks = store_.blocks(), d = columns();
        const std::size_t share = (count + std::min<std::size_t>(blocks, 128) - 1) / std::min<std::size_t>(blocks, 128);
        epoch_order order(blocks, ~how_.seed);
        random_stream random(~how_.seed);
        std::vector<float> sampled;
        for (std::size_t b = 0; b < blocks && sampled.size() < count * d; ++b) {
            rows_held_.clear();
            take(order.at(b));
            mix(random);
            for (std::size_t i = 0; i < std::min(share, mixed_.size()) && sampled.size() < count * d; ++i) {
                sampled.resize(sampled.size() + d);
                store_.widen_row(rows_held_.data() + mixed_[i] * store_.layout().row_bytes(),
                                 sampled.data() + sampled.size() - d);
            }
        }
        held_ = {none, 0};
        return sampled;
    }

private:
    static constexpr std::uint64_t none = ~std::uint64_t{0};

    std::size_t block_at(std::uint64_t epoch, std::size_t i) {
        return how_.sequential ? i : order_.at(epoch * store_.blocks() + i);
    }
    std::size_t first_block(std::size_t window) const { return window * store_.blocks() / (start_.size() - 1); }

    // Where the windows of an epoch start.
    void begin_epoch(std::uint64_t epoch) {
        if (epoch == epoch_) return;
        std::size_t row = 0;
        for (std::size_t window = 0, b = 0; window + 1 < start_.size(); ++window) {
            start_[window] = row;
            for (; b < first_block(window + 1); ++b) {
                const auto [first, last] = store_.pictures_of(block_at(epoch, b));
                const auto held = std::lower_bound(how_.held_out.begin(), how_.held_out.end(), last) -
                                  std::lower_bound(how_.held_out.begin(), how_.held_out.end(), first);
                row += (last - first - static_cast<std::size_t>(held)) * (last_token_ - first_token_);
            }
        }
        start_.back() = row;
        epoch_ = epoch;
    }
    void load(std::uint64_t epoch, std::size_t window) {
        if (held_ == std::pair{epoch, window}) return;
        held_ = {none, 0};
        std::vector<std::size_t> blocks;
        for (std::size_t b = first_block(window); b < first_block(window + 1); ++b)
            blocks.push_back(block_at(epoch, b));
        std::sort(blocks.begin(), blocks.end());
        rows_held_.clear();
        rows_held_.reserve((start_[window + 1] - start_[window]) * store_.layout().row_bytes());
        constexpr std::size_t ahead = 16;  // blocks that the system reads while one is checked and copied
        for (std::size_t i = 0; i < blocks.size() + ahead; ++i) {
            if (i < blocks.size()) store_.expect_block(blocks[i]);
            if (i >= ahead) take(blocks[i - ahead]);
        }
        // A permutation of n takes at most 2 n random numbers: those at its rows' positions in the endless stream.
        random_stream random(how_.seed ^ 0x3C6EF372FE94F82Bu, 2 * (epoch * rows_ + start_[window]));
        mix(random);
        held_ = {epoch, window};
    }
    // Reads a block and keeps the rows that are wanted.
    void take(std::size_t block) {
        store_.read_block(block, block_bytes_);
        const auto [first, last] = store_.pictures_of(block);
        const std::size_t row = store_.layout().row_bytes();
        for (std::size_t p = first; p < last; ++p) {
            if (std::binary_search(how_.held_out.begin(), how_.held_out.end(), p)) continue;
            const std::byte* picture = block_bytes_.data() + (p - first) * store_.layout().picture_bytes();
            rows_held_.insert(rows_held_.end(), picture + first_token_ * row, picture + last_token_ * row);
        }
    }
    void mix(random_stream& random) {
        mixed_.resize(rows_held_.size() / store_.layout().row_bytes());
        std::iota(mixed_.begin(), mixed_.end(), std::uint32_t{0});
        if (!how_.sequential) shuffle(mixed_, random);
    }

    const activation_store& store_;
    store_reading how_;
    epoch_order order_;
    std::size_t first_token_ = 0, last_token_ = 0, rows_ = 0;
    std::vector<std::size_t> start_;  // first row of each window of the epoch, and the end
    std::uint64_t epoch_ = none;
    std::pair<std::uint64_t, std::size_t> held_{none, 0};  // epoch and window
    std::vector<std::byte> rows_held_, block_bytes_;       // rows of the window as they are stored
    std::vector<std::uint32_t> mixed_;                     // their order
};

}  // namespace psae
