#pragma once
// safetensors: 8 bytes of header length, a JSON header, the tensors. The whole header is checked before anything is
// allocated: known types, shapes that match byte ranges, ranges that tile the data without hole or overlap.

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <psae/io/atomic_file.hpp>
#include <psae/io/element_type.hpp>
#include <psae/io/json.hpp>

namespace psae {

struct tensor_entry {
    std::string name;
    element_type type;
    std::vector<std::size_t> shape;
    std::size_t offset, bytes;  // in the file
};

namespace detail {

struct safetensors_type {
    element_type type;
    const char* name;
};
inline constexpr safetensors_type safetensors_types[] = {
    {element_type::boolean, "BOOL"}, {element_type::i8, "I8"},     {element_type::u8, "U8"},
    {element_type::i16, "I16"},      {element_type::u16, "U16"},   {element_type::i32, "I32"},
    {element_type::u32, "U32"},      {element_type::i64, "I64"},   {element_type::u64, "U64"},
    {element_type::f16, "F16"},      {element_type::bf16, "BF16"}, {element_type::f32, "F32"},
    {element_type::f64, "F64"}};

}  // namespace detail

class safetensors_file {
public:
    explicit safetensors_file(const std::filesystem::path& path) : path_(path.string()), bytes_(path) { parse(); }

    const std::vector<tensor_entry>& entries() const { return entries_; }
    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    const std::string& path() const { return path_; }
    const tensor_entry* find(std::string_view name) const {
        const auto i = index_.find(name);
        return i == index_.end() ? nullptr : &entries_[i->second];
    }
    bool contains(std::string_view name) const { return find(name) != nullptr; }
    const tensor_entry& at(std::string_view name) const {
        if (const auto* e = find(name)) return *e;
        throw error("tensor is missing", path_ + ", tensor " + std::string(name),
                    "the file holds " + std::to_string(entries_.size()) + " tensors");
    }
    const std::byte* data(const tensor_entry& e) const { return bytes_.data() + e.offset; }

    // The elements converted to T; the shape must be the given one. Floating-point values must be finite.
    template <class T = float>
    std::vector<T> read(std::string_view name, const std::vector<std::size_t>& shape) const {
        const tensor_entry& e = at(name);
        return read_elements<T>(e.type, data(e), e.shape, shape, path_ + ", tensor " + e.name);
    }

private:
    void parse() {
        const std::size_t size = bytes_.size();
        if (size < 8)
            throw error("file is too short for a safetensors header", path_,
                        "expected at least 8 bytes, found " + std::to_string(size));
        std::uint64_t length = 0;
        std::memcpy(&length, bytes_.data(), 8);
        if (length > size - 8)
            throw error("safetensors header is longer than the file", path_,
                        "header says " + std::to_string(length) + " bytes, " + std::to_string(size - 8) + " follow");
        if (length > 100'000'000)
            throw error("safetensors header is too large", path_,
                        "at most 100000000 bytes, found " + std::to_string(length));
        const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + 8, length);
        if (text.empty() || text[0] != '{') throw error("safetensors header does not start with '{'", path_);
        const auto header = parse_json(text, path_ + ", header");
        if (!header.IsObject()) throw error("safetensors header is not an object", path_);
        bool has_metadata = false;
        for (const auto& member : header.GetObject()) {
            const std::string name(member.name.GetString(), member.name.GetStringLength());
            if (name == "__metadata__") {
                if (std::exchange(has_metadata, true))
                    throw error("safetensors header names its metadata twice", path_);
                add_metadata(member.value);
            } else add_entry(name, member.value, size - 8 - length, 8 + length);
        }
        check_ranges(size, 8 + length);
        for (std::size_t i = 0; i < entries_.size(); ++i)
            if (!index_.emplace(entries_[i].name, i).second)
                throw error("tensor name appears twice", path_ + ", tensor " + entries_[i].name);
    }
    void add_metadata(const rapidjson::Value& value) {
        if (!value.IsObject()) throw error("safetensors metadata is not an object", path_);
        for (const auto& m : value.GetObject()) {
            if (!m.value.IsString())
                throw error("safetensors metadata holds something else than strings",
                            path_ + ", key " + m.name.GetString());
            if (!metadata_
                     .emplace(std::string(m.name.GetString(), m.name.GetStringLength()),
                              std::string(m.value.GetString(), m.value.GetStringLength()))
                     .second)
                throw error("safetensors metadata names a key twice", path_ + ", key " + m.name.GetString());
        }
    }
    void add_entry(const std::string& name, const rapidjson::Value& value, std::size_t data_bytes,
                   std::size_t data_start) {
        const std::string where = path_ + ", tensor " + name;
        if (!value.IsObject()) throw error("tensor is not described by an object", where);
        const auto *type = find_member(value, "dtype"), *shape = find_member(value, "shape"),
                   *range = find_member(value, "data_offsets");
        if (!type || !shape || !range || value.MemberCount() != 3)
            throw error("tensor description is not complete", where,
                        "expected dtype, shape and data_offsets and nothing else");
        tensor_entry e{name, {}, {}, 0, 0};
        const auto* known = std::find_if(
            std::begin(detail::safetensors_types), std::end(detail::safetensors_types),
            [&](const auto& t) { return type->IsString() && std::string_view(type->GetString()) == t.name; });
        if (known == std::end(detail::safetensors_types))
            throw error("tensor has an unknown element type", where,
                        type->IsString() ? type->GetString() : "not a string");
        e.type = known->type;
        if (!shape->IsArray() || shape->Size() > 64)
            throw error("tensor shape is not an array of at most 64 extents", where);
        for (const auto& extent : shape->GetArray()) {
            if (!extent.IsUint64()) throw error("tensor extent is not a non-negative integer", where);
            e.shape.push_back(extent.GetUint64());
        }
        if (!range->IsArray() || range->Size() != 2 || !(*range)[0].IsUint64() || !(*range)[1].IsUint64())
            throw error("data_offsets are not two non-negative integers", where);
        const std::uint64_t begin = (*range)[0].GetUint64(), end = (*range)[1].GetUint64();
        if (begin > end || end > data_bytes)
            throw error(
                "tensor lies outside of the file", where,
                "bytes " + std::to_string(begin) + " to " + std::to_string(end) + " of " + std::to_string(data_bytes));
        const auto bytes = checked_product(e.shape, size_of(e.type));
        if (!bytes || *bytes != end - begin)
            throw error("tensor's bytes do not match its shape", where,
                        "shape " + shape_text(e.shape) + ", " + std::to_string(end - begin) + " bytes");
        e.offset = data_start + begin;
        e.bytes = end - begin;
        entries_.push_back(std::move(e));
    }
    // The ranges must tile the data: no hole, no overlap, nothing behind.
    void check_ranges(std::size_t size, std::size_t data_start) const {
        std::vector<const tensor_entry*> order;
        for (const auto& e : entries_) order.push_back(&e);
        std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
            return a->offset < b->offset || (a->offset == b->offset && a->bytes < b->bytes);
        });
        std::size_t at = data_start;
        for (const auto* e : order) {
            if (e->offset != at)
                throw error(e->offset > at ? "hole between tensors" : "tensors overlap", path_ + ", tensor " + e->name);
            at += e->bytes;
        }
        if (at != size) throw error("bytes after the last tensor", path_, std::to_string(size - at) + " bytes");
    }

    std::string path_;
    file_bytes bytes_;
    std::vector<tensor_entry> entries_;
    std::map<std::string, std::string> metadata_;
    std::map<std::string, std::size_t, std::less<>> index_;
};

// Writes tensors in the order given, the header padded to 8 bytes. The file appears whole or not at all.
inline void write_safetensors(const std::filesystem::path& path, const std::vector<tensor_to_write>& tensors,
                              const std::map<std::string, std::string>& metadata = {}) {
    rapidjson::StringBuffer buffer;
    rapidjson::Writer<rapidjson::StringBuffer> writer(buffer);
    writer.StartObject();
    if (!metadata.empty()) {
        writer.Key("__metadata__");
        writer.StartObject();
        for (const auto& [key, value] : metadata) {
            writer.Key(key.data(), static_cast<rapidjson::SizeType>(key.size()));
            writer.String(value.data(), static_cast<rapidjson::SizeType>(value.size()));
        }
        writer.EndObject();
    }
    std::size_t offset = 0;
    std::set<std::string> names{"__metadata__"};
    for (const auto& t : tensors) {
        const std::string where = path.string() + ", tensor " + t.name;
        if (!names.insert(t.name).second)
            throw error("tensor name is taken", where, "expected every name once, and not __metadata__");
        const auto bytes = checked_product(t.shape, size_of(t.type));
        if (!bytes || *bytes > ~std::size_t{0} - offset)
            throw error("tensor is too large", where, "shape " + shape_text(t.shape));
        writer.Key(t.name.data(), static_cast<rapidjson::SizeType>(t.name.size()));
        writer.StartObject();
        writer.Key("dtype");
        for (const auto& known : detail::safetensors_types)
            if (known.type == t.type) writer.String(known.name);
        writer.Key("shape");
        writer.StartArray();
        for (const std::size_t e : t.shape) writer.Uint64(e);
        writer.EndArray();
        writer.Key("data_offsets");
        writer.StartArray();
        writer.Uint64(offset);
        writer.Uint64(offset += *bytes);
        writer.EndArray();
        writer.EndObject();
    }
    writer.EndObject();
    std::string header(buffer.GetString(), buffer.GetSize());
    parse_json(header, path.string() + ", header");  // a name that is not UTF-8 would make a file nobody reads
    header.append((8 - header.size() % 8) % 8, ' ');
    const std::uint64_t length = header.size();
    atomic_file file(path);
    file.write(&length, 8);
    file.write(header);
    for (const auto& t : tensors) file.write(t.data, *checked_product(t.shape, size_of(t.type)));
    file.commit();
}

}  // namespace psae
