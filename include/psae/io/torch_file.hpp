#pragma once
// Files of torch.save (a zip archive, or the form from before torch 1.6) and TorchScript archives, read without
// running what they hold: pickle.hpp reads their values, a few names rebuild tensors, every storage is checked before
// it is used.
//
//   const torch_file file("sae.pt");
//   const std::vector<float> W_enc = file.read("state_dict.W_enc", {768, 49152});
//   const std::int64_t layer = file.root().at("cfg").at("block_layer").integer();
//
//   write_torch("sae.pt", torch_value::dict{{"cfg", torch_value::dict{{"d_in", 768}}},
//                                           {"state_dict", torch_value::state_dict({to_write("b_dec", {768}, b_dec)})}});
//
// The storages are torch's: little-endian elements, of which a tensor is a view by offset, shape and strides.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include <psae/io/element_type.hpp>
#include <psae/io/file_bytes.hpp>
#include <psae/io/pickle.hpp>
#include <psae/io/zip.hpp>

namespace psae {

// A tensor of a torch file. Its name is the way to it from the root, keys, attributes and indices joined by dots
// ("state_dict.W_enc"); empty if it is the root itself. Offset and strides count elements of the storage.
struct torch_tensor {
    std::string name;
    element_type type;
    std::vector<std::size_t> shape, strides;
    std::size_t storage, offset;
};

namespace detail {

inline constexpr std::size_t torch_tensor_limit = 100'000;  // of a file

struct torch_storage_type {
    element_type type;
    const char* name;
};
inline constexpr torch_storage_type torch_storage_types[] = {
    {element_type::boolean, "torch.BoolStorage"}, {element_type::i8, "torch.CharStorage"},
    {element_type::u8, "torch.ByteStorage"},      {element_type::i16, "torch.ShortStorage"},
    {element_type::i32, "torch.IntStorage"},      {element_type::i64, "torch.LongStorage"},
    {element_type::f16, "torch.HalfStorage"},     {element_type::bf16, "torch.BFloat16Storage"},
    {element_type::f32, "torch.FloatStorage"},    {element_type::f64, "torch.DoubleStorage"}};

struct torch_storage {
    std::string key;
    element_type type;
    std::size_t count;                 // of elements
    std::span<const std::byte> bytes;  // in the file or in `unpacked`
    std::vector<std::byte> unpacked;
};

// Storages and tensors as a pickle names and rebuilds them. In an archive a storage is an entry, read at once.
class torch_surroundings final : public pickle_surroundings {
    static constexpr std::size_t rank_limit = 64, expanded_limit = std::size_t{1} << 24;
    static constexpr std::size_t first_storage = std::size_t{1} << 32;  // tensors have the numbers below

public:
    torch_surroundings(const zip_reader* archive, std::string prefix) : archive_(archive), prefix_(std::move(prefix)) {}

    std::vector<torch_storage> storages;
    std::vector<torch_tensor> tensors;

    // ("storage", type, key, device, number of elements), and None in files from before torch 1.6.
    std::size_t persistent(const pickle_value& id) override {
        if (!id.is(pickle_kind::tuple) || id.size() < 5 || id.size() > 6 || !id[0].is(pickle_kind::string) ||
            id[0].text() != "storage" || (id.size() == 6 && !id[5].is(pickle_kind::none)))
            throw error("persistent id is not that of a storage", id.where());
        const auto* known =
            std::find_if(std::begin(torch_storage_types), std::end(torch_storage_types),
                         [&](const auto& t) { return id[1].is(pickle_kind::name) && id[1].text() == t.name; });
        if (known == std::end(torch_storage_types))
            throw error("storage has an unknown element type", id.where(),
                        id[1].is(pickle_kind::name) ? std::string(id[1].text()) : "not a name");
        torch_storage s{std::string(id[2].text()), known->type, extent(id[4]), {}, {}};
        if (const auto found = by_key_.find(s.key); found != by_key_.end()) {
            const torch_storage& same = storages[found->second];
            if (same.type != s.type || same.count != s.count)
                throw error("storage is described in two ways", id.where() + ", storage " + s.key);
            return first_storage + found->second;
        }
        const auto bytes = checked_product({s.count}, size_of(s.type));
        if (!bytes) throw error("storage is too large", id.where() + ", storage " + s.key);
        if (archive_ != nullptr) {
            if (s.key.find('/') != s.key.npos)
                throw error("key of a storage is a path", id.where() + ", storage " + s.key);
            s.bytes = archive_->view(
                prefix_ + "data/" + s.key, s.unpacked, [&](const std::byte*, std::size_t, std::size_t size) {
                    if (size != *bytes)
                        throw error("storage has another size than the pickle says", id.where() + ", storage " + s.key,
                                    "expected " + std::to_string(*bytes) + " bytes, found " + std::to_string(size));
                });
        }
        by_key_.emplace(s.key, storages.size());
        storages.push_back(std::move(s));
        return first_storage + storages.size() - 1;
    }

    std::optional<result> call(std::string_view function, const pickle_value& arguments) override {
        const std::size_t n = arguments.size();
        // (storage, offset, shape, strides), and whether it wants a gradient, hooks, metadata.
        if ((function == "torch._utils._rebuild_tensor_v2" && (n == 6 || n == 7)) ||
            (function == "torch._utils._rebuild_tensor" && n == 4)) {
            add_tensor(arguments);
            return tensors.size() - 1;
        }
        // What is left of these is their first argument: a parameter's tensor, a device's name, the extents of a shape,
        // TorchScript's lists and values with a type.
        for (const auto& [name, kind] : std::initializer_list<std::pair<const char*, pickle_kind>>{
                 {"torch._utils._rebuild_parameter", pickle_kind::external},
                 {"torch.device", pickle_kind::string},
                 {"torch.Size", pickle_kind::tuple},
                 {"torch.jit._pickle.build_intlist", pickle_kind::list},
                 {"torch.jit._pickle.build_doublelist", pickle_kind::list},
                 {"torch.jit._pickle.build_boollist", pickle_kind::list},
                 {"torch.jit._pickle.build_tensorlist", pickle_kind::list}})
            if (function == name && n >= 1 && arguments[0].is(kind)) return arguments[0];
        if (function == "torch.jit._pickle.restore_type_tag" && n == 2) return arguments[0];
        return std::nullopt;
    }

private:
    static std::size_t extent(const pickle_value& v) {
        const std::int64_t n = v.integer();
        if (n < 0)
            throw error("offset, extent or stride of a tensor is negative", v.where(), "found " + std::to_string(n));
        return static_cast<std::size_t>(n);
    }
    static std::vector<std::size_t> extents(const pickle_value& v) {
        if (!v.is(pickle_kind::tuple) || v.size() > rank_limit)
            throw error("shape or strides of a tensor are not a tuple of at most " + std::to_string(rank_limit),
                        v.where());
        std::vector<std::size_t> all;
        for (std::size_t i = 0; i < v.size(); ++i) all.push_back(extent(v[i]));
        return all;
    }
    void add_tensor(const pickle_value& arguments) {
        const std::string& where = arguments.where();
        const std::size_t number = arguments[0].external();
        if (number < first_storage) throw error("tensor is rebuilt from something else than a storage", where);
        if (tensors.size() == torch_tensor_limit)
            throw error("too many tensors", where, "expected at most " + std::to_string(torch_tensor_limit));
        const torch_storage& s = storages[number - first_storage];
        torch_tensor t{
            {}, s.type, extents(arguments[2]), extents(arguments[3]), number - first_storage, extent(arguments[1])};
        if (t.shape.size() != t.strides.size())
            throw error("tensor has not as many strides as extents", where,
                        std::to_string(t.shape.size()) + " extents, " + std::to_string(t.strides.size()) + " strides");
        const auto count = checked_product(t.shape);
        std::size_t last = t.offset;
        bool fits = count.has_value();
        for (std::size_t axis = 0; fits && *count > 0 && axis < t.shape.size(); ++axis) {
            std::size_t step = 0;
            fits = !__builtin_mul_overflow(t.shape[axis] - 1, t.strides[axis], &step) &&
                   !__builtin_add_overflow(last, step, &last);
        }
        if (!fits || (*count > 0 && last >= s.count))
            throw error("tensor reaches beyond its storage", where,
                        "shape " + shape_text(t.shape) + ", strides " + shape_text(t.strides) + ", offset " +
                            std::to_string(t.offset) + " in " + std::to_string(s.count) + " elements");
        // Strides of 0 could make any number of elements of one.
        if (*count > std::max(s.count, expanded_limit))
            throw error("tensor repeats its storage too often", where,
                        "shape " + shape_text(t.shape) + " from " + std::to_string(s.count) + " elements");
        tensors.push_back(std::move(t));
    }

    const zip_reader* archive_;
    std::string prefix_;
    std::map<std::string, std::size_t, std::less<>> by_key_;
};

}  // namespace detail

enum class torch_form { zip, legacy, torchscript };

class torch_file {
    static constexpr std::size_t depth_limit = 100, name_limit = 4096, name_bytes_limit = 1 << 24;

public:
    // The archive begins at a byte of the file and reaches to its end. All of it is checked here; psae::error if it is
    // damaged, no torch file, or would have to be run.
    explicit torch_file(const std::filesystem::path& path, std::size_t offset = 0) : path_(path.string()), file_(path) {
        if (offset > file_->size())
            throw error("torch file is truncated", path_, "expected it at byte " + std::to_string(offset));
        read_all({file_->data() + offset, file_->size() - offset});
    }
    // An archive in memory, which must stay; `where` names it in errors.
    torch_file(std::span<const std::byte> archive, std::string where) : path_(std::move(where)) { read_all(archive); }

    // The whole of what was saved; for TorchScript, the module. Valid while the file stays where it is.
    pickle_value root() const { return pickle_->root(); }
    torch_form form() const { return form_; }
    const std::string& path() const { return path_; }

    // Every tensor below the root, in the file's order.
    const std::vector<torch_tensor>& entries() const { return entries_; }
    const torch_tensor* find(std::string_view name) const {
        const auto i = index_.find(name);
        return i == index_.end() ? nullptr : &entries_[i->second];
    }
    bool contains(std::string_view name) const { return find(name) != nullptr; }
    const torch_tensor& at(std::string_view name) const {
        if (const auto* t = find(name)) return *t;
        throw error("tensor is missing", where(name), "the file holds " + std::to_string(entries_.size()) + " tensors");
    }

    // The elements in row-major order: where they lie in the file if they lie so there, else in `gathered`.
    std::span<const std::byte> bytes(const torch_tensor& t, std::vector<std::byte>& gathered) const {
        const auto& s = storages_[t.storage];
        const std::size_t size = size_of(t.type), count = *checked_product(t.shape);
        if (count == 0) return {};
        bool in_order = true;
        for (std::size_t axis = t.shape.size(), stride = 1; axis-- > 0; stride *= t.shape[axis])
            in_order = in_order && (t.shape[axis] == 1 || t.strides[axis] == stride);
        if (in_order) return s.bytes.subspan(t.offset * size, count * size);
        gathered.resize(count * size);
        std::vector<std::size_t> at(t.shape.size());
        std::size_t from = t.offset;
        for (std::size_t i = 0; i < count; ++i) {
            std::memcpy(gathered.data() + i * size, s.bytes.data() + from * size, size);
            for (std::size_t axis = at.size(); axis-- > 0;) {
                from += t.strides[axis];
                if (++at[axis] < t.shape[axis]) break;
                from -= t.strides[axis] * t.shape[axis];
                at[axis] = 0;
            }
        }
        return gathered;
    }
    // The elements converted to T; the shape must be the given one. Floating-point values must be finite.
    template <class T = float>
    std::vector<T> read(std::string_view name, const std::vector<std::size_t>& shape) const {
        const torch_tensor& t = at(name);
        std::vector<std::byte> gathered;
        return read_elements<T>(t.type, bytes(t, gathered).data(), t.shape, shape, where(t.name));
    }

private:
    std::string where(std::string_view name) const {
        return name.empty() ? path_ : path_ + ", tensor " + std::string(name);
    }
    void read_all(std::span<const std::byte> bytes) {
        static constexpr char zip_start[] = {'P', 'K', 3, 4};
        if (bytes.size() >= 4 && std::memcmp(bytes.data(), zip_start, 4) == 0) read_zip(bytes);
        else if (!bytes.empty() && bytes[0] == std::byte{0x80}) read_legacy(bytes);
        else
            throw error("not a torch file", path_, "expected a zip archive or a pickle",
                        "a web page or a Git LFS pointer may stand in its place");
        std::unordered_set<std::uint32_t> seen;
        name_tensors(root(), "", 0, seen);
        for (std::size_t i = 0; i < entries_.size(); ++i)
            if (!index_.emplace(entries_[i].name, i).second)
                throw error("tensor name appears twice", where(entries_[i].name));
    }
    void read_zip(std::span<const std::byte> bytes) {
        const zip_reader zip(bytes, path_);
        std::string prefix;
        bool has_code = false;
        for (const auto& name : zip.names()) {
            const std::size_t slash = name.find('/');
            if (slash == name.npos) continue;
            if (std::string_view(name).substr(slash) == "/data.pkl") {
                if (!prefix.empty()) throw error("torch archive holds two pickles", path_, prefix + ", " + name);
                prefix = name.substr(0, slash + 1);
            }
            has_code = has_code || std::string_view(name).substr(slash).starts_with("/code/");
        }
        if (prefix.empty()) throw error("not a torch archive", path_, "expected an entry data.pkl");
        const auto all = [](const std::byte*, std::size_t, std::size_t) {};
        if (zip.contains(prefix + "byteorder")) {
            const auto order = zip.read(prefix + "byteorder", all);
            if (std::string_view(reinterpret_cast<const char*>(order.data()), order.size()) != "little")
                throw error("torch archive is not little-endian", path_);
        }
        form_ = has_code ? torch_form::torchscript : torch_form::zip;
        detail::torch_surroundings around(&zip, prefix);
        pickle_.emplace(zip.view(prefix + "data.pkl", unpacked_, all), path_ + ", data.pkl", around);
        keep(around);
    }
    // Pickles one after the other: a magic number, a version, the system, the value, the keys of its storages; then
    // those, each with its number of elements.
    void read_legacy(std::span<const std::byte> bytes) {
        form_ = torch_form::legacy;
        std::size_t at = 0;
        const auto next = [&](auto&... around) {
            pickle p(bytes.subspan(at), path_ + ", pickle at byte " + std::to_string(at), around...);
            at += p.bytes();
            return p;
        };
        // Looked for first, so that a plain pickle is not refused for what else it holds.
        static constexpr std::string_view magic = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
        const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                                     std::min<std::size_t>(bytes.size(), 32));
        if (start.find(magic) == start.npos || !next().root().is(pickle_kind::big_integer))
            throw error("not a torch file", path_, "expected the magic number of torch.save",
                        "a plain pickle is not supported");
        if (const pickle version = next(); version.root().integer() != 1001)
            throw error("torch file has another version", path_,
                        "expected 1001, found " + std::to_string(version.root().integer()));
        if (const pickle system = next(); !system.root().at("little_endian").boolean())
            throw error("torch file is not little-endian", path_);
        detail::torch_surroundings around(nullptr, "");
        pickle_.emplace(next(around));
        std::map<std::string, detail::torch_storage*, std::less<>> wanted;
        for (auto& s : around.storages) wanted.emplace(s.key, &s);
        const pickle keys = next();
        if (!keys.root().is(pickle_kind::list)) throw error("torch file has no list of storages", path_);
        for (std::size_t i = 0; i < keys.root().size(); ++i) {
            const std::string key(keys.root()[i].text());
            const std::string here = path_ + ", storage " + key;
            const auto found = wanted.find(key);
            if (found == wanted.end()) throw error("storage belongs to no tensor or appears twice", here);
            detail::torch_storage& s = *found->second;
            wanted.erase(found);
            std::int64_t count = -1;
            if (bytes.size() - at >= sizeof count) std::memcpy(&count, bytes.data() + at, sizeof count);
            const std::size_t size = s.count * size_of(s.type);
            if (count < 0 || static_cast<std::size_t>(count) != s.count || bytes.size() - at - sizeof count < size)
                throw error("storage has another size than the pickle says, or is cut", here,
                            "expected " + std::to_string(s.count) + " elements of " + std::to_string(size_of(s.type)) +
                                " bytes");
            s.bytes = bytes.subspan(at + sizeof count, size);
            at += sizeof count + size;
        }
        if (!wanted.empty()) throw error("storage is missing", path_ + ", storage " + wanted.begin()->first);
        keep(around);
    }
    void keep(detail::torch_surroundings& around) {
        storages_ = std::move(around.storages);
        tensors_ = std::move(around.tensors);
    }
    // Each container once, under its first name: a small pickle can hold one in very many places.
    void name_tensors(const pickle_value& v, const std::string& name, std::size_t depth,
                      std::unordered_set<std::uint32_t>& seen) {
        if (v.is(pickle_kind::external)) {
            if (v.external() >= tensors_.size()) return;  // a bare storage
            if (entries_.size() == detail::torch_tensor_limit)
                throw error("too many tensors", v.where(),
                            "expected at most " + std::to_string(detail::torch_tensor_limit));
            if ((name_bytes_ += name.size()) > name_bytes_limit)
                throw error("names of tensors are too long", v.where(),
                            "expected at most " + std::to_string(name_bytes_limit) + " bytes in all");
            entries_.push_back(tensors_[v.external()]);
            entries_.back().name = name;
            return;
        }
        const bool has_keys = v.is(pickle_kind::dict) || v.is(pickle_kind::object);
        if ((!has_keys && !v.is(pickle_kind::list) && !v.is(pickle_kind::tuple)) || !seen.insert(v.id()).second) return;
        if (depth == depth_limit || name.size() > name_limit)
            throw error("torch file is nested too deeply", path_ + ", " + name.substr(0, 80) + "...",
                        "expected at most " + std::to_string(depth_limit) + " levels and names of " +
                            std::to_string(name_limit) + " bytes");
        for (std::size_t i = 0; i < v.size(); ++i) {
            const std::string part = !has_keys || !v.key(i).is(pickle_kind::string)
                                         ? std::to_string(has_keys ? v.key(i).integer() : static_cast<std::int64_t>(i))
                                         : std::string(v.key(i).text());
            name_tensors(v[i], name.empty() ? part : name + "." + part, depth + 1, seen);
        }
    }

    std::string path_;
    std::optional<file_bytes> file_;
    torch_form form_ = torch_form::zip;
    std::vector<std::byte> unpacked_;  // the pickle, where it is deflated
    std::optional<pickle> pickle_;
    std::vector<detail::torch_storage> storages_;
    std::vector<torch_tensor> tensors_, entries_;
    std::size_t name_bytes_ = 0;  // of entries_, of which many may share a long beginning
    std::map<std::string, std::size_t, std::less<>> index_;
};

// A value to be written: None, a truth value, a number, a string, a tensor or a dict of values.
class torch_value {
public:
    using dict = std::vector<std::pair<std::string, torch_value>>;
    // A constant of torch by its name, such as float32.
    struct constant {
        const char* name;
    };

    torch_value() = default;  // None
    torch_value(const char* text) : value_(std::string(text)) {}
    torch_value(std::string text) : value_(std::move(text)) {}
    torch_value(tensor_to_write t) : value_(std::move(t)) {}
    torch_value(dict entries) : value_(std::move(entries)) {}
    torch_value(constant c) : value_(c) {}
    template <class T>
    requires std::is_arithmetic_v<T> torch_value(T x) {
        if constexpr (std::is_same_v<T, bool>) value_ = x;
        else if constexpr (std::is_floating_point_v<T>) value_ = static_cast<double>(x);
        else value_ = static_cast<std::int64_t>(x);
    }
    // A state dict: tensors under their names.
    static torch_value state_dict(const std::vector<tensor_to_write>& tensors) {
        dict entries;
        for (const auto& t : tensors) entries.emplace_back(t.name, t);
        return entries;
    }

    const auto& get() const { return value_; }

private:
    std::variant<std::monostate, bool, std::int64_t, double, std::string, tensor_to_write, dict, constant> value_;
};

namespace detail {

// Protocol 2, as torch.save writes it; the tensors are collected in the order of their storages.
class torch_pickler {
public:
    explicit torch_pickler(std::string where) : where_(std::move(where)) {}

    std::string text = std::string("\x80\2", 2);
    std::vector<tensor_to_write> tensors;

    void add(const torch_value& v, const std::string& name) {
        std::visit([&](const auto& x) { add_one(x, name); }, v.get());
    }

private:
    template <class T>
    void put(T x) {
        text.append(reinterpret_cast<const char*>(&x), sizeof x);
    }
    void add_one(std::monostate, const std::string&) { text += 'N'; }
    void add_one(bool x, const std::string&) { text += x ? '\x88' : '\x89'; }
    void add_one(std::int64_t x, const std::string&) { add_integer(x); }
    void add_one(double x, const std::string&) {
        text += 'G';  // big-endian
        put(__builtin_bswap64(std::bit_cast<std::uint64_t>(x)));
    }
    void add_one(const std::string& x, const std::string& name) {
        if (!is_utf8(x) || x.size() > 0xffffffffu)
            throw error("string is not UTF-8, or too long", where_ + ", " + name);
        text += 'X';
        put(static_cast<std::uint32_t>(x.size()));
        text += x;
    }
    void add_one(torch_value::constant c, const std::string&) { text += std::string("ctorch\n") + c.name + "\n"; }
    void add_one(const torch_value::dict& entries, const std::string& name) {
        text += "}(";
        std::unordered_set<std::string_view> keys;
        for (const auto& [key, value] : entries) {
            const std::string inner = name.empty() ? key : name + "." + key;
            if (!keys.insert(key).second) throw error("tensor name is taken", where_ + ", " + inner);
            add_one(key, inner);
            add(value, inner);
        }
        text += 'u';
    }
    void add_one(const tensor_to_write& t, const std::string& name) {
        const auto* known = std::find_if(std::begin(torch_storage_types), std::end(torch_storage_types),
                                         [&](const auto& s) { return s.type == t.type; });
        const std::string where = where_ + ", tensor " + name;
        if (known == std::end(torch_storage_types)) throw error("torch has no storage of this element type", where);
        const auto count = checked_product(t.shape);
        if (!count || !checked_product({*count}, size_of(t.type)))
            throw error("tensor is too large", where, "shape " + shape_text(t.shape));
        std::vector<std::size_t> strides(t.shape.size(), 1);
        for (std::size_t axis = t.shape.size(); axis-- > 1;)
            strides[axis - 1] = strides[axis] * std::max<std::size_t>(t.shape[axis], 1);
        text += "ctorch._utils\n_rebuild_tensor_v2\n((";
        add_one(std::string("storage"), name);
        text += "ctorch\n" + std::string(known->name).substr(6) + "\n";
        add_one(std::to_string(tensors.size()), name);
        add_one(std::string("cpu"), name);
        add_integer(static_cast<std::int64_t>(*count));
        text += "tQK";
        text += '\0';
        for (const auto& extents : {t.shape, strides}) {
            text += '(';
            for (const std::size_t e : extents) add_integer(static_cast<std::int64_t>(e));
            text += 't';
        }
        text +=
            "\x89"
            "ccollections\nOrderedDict\n)RtR";
        tensors.push_back(t);
    }
    void add_integer(std::int64_t x) {
        if (std::in_range<std::int32_t>(x)) {
            text += 'J';
            put(static_cast<std::int32_t>(x));
        } else {
            text += "\x8a\x08";
            put(x);
        }
    }

    std::string where_;
};

}  // namespace detail

// Writes a value as torch.save does; torch.load(path, weights_only=True) reads it. head: bytes of the file before the
// archive. The file appears whole or not at all. psae::error if a key appears twice or a text is not UTF-8.
inline void write_torch(const std::filesystem::path& path, const torch_value& value, const std::string& head = {}) {
    detail::torch_pickler pickler(path.string());
    pickler.add(value, "");
    zip_writer zip(path, false, head);
    zip.add("archive/data.pkl", pickler.text + ".", nullptr, 0);
    zip.add("archive/byteorder", "little", nullptr, 0);
    for (std::size_t i = 0; i < pickler.tensors.size(); ++i) {
        const tensor_to_write& t = pickler.tensors[i];
        zip.add("archive/data/" + std::to_string(i), "", t.data, *checked_product(t.shape, size_of(t.type)));
    }
    zip.add("archive/version", "3\n", nullptr, 0);
    zip.close();
}

}  // namespace psae
