#pragma once
// Python pickles, read as data: nothing that a file names is imported or called. A pickle becomes a tree of values;
// objects of unknown classes are bags of attributes, and a function that is not on a short list is refused by name.
//
//   const pickle file(bytes, "run.pkl");
//   const std::int64_t d_in = file.root().at("cfg").at("d_in").integer();
//
// Values lie in one table and refer to each other by number: a hostile pickle (deep, cyclic, shared) costs memory in
// proportion to its size, at most 4 million values, and no recursion.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include <psae/core/error.hpp>
#include <psae/core/utf8.hpp>

namespace psae {

// object: an instance of a class that is not known, with its attributes. name: a class or a constant such as
// torch.float32. big_integer: one beyond 64 bits. external: something of the file around the pickle, such as a tensor.
enum class pickle_kind {
    none,
    boolean,
    integer,
    big_integer,
    real,
    string,
    bytes,
    list,
    tuple,
    dict,
    object,
    name,
    external
};

inline const char* name_of(pickle_kind kind) {
    constexpr const char* names[] = {"None",
                                     "a truth value",
                                     "an integer",
                                     "an integer beyond 64 bits",
                                     "a real",
                                     "a string",
                                     "bytes",
                                     "a list",
                                     "a tuple",
                                     "a dict",
                                     "an object",
                                     "a name",
                                     "an external value"};
    return names[static_cast<std::size_t>(kind)];
}

class pickle;

// A value of a pickle; it must not outlive the pickle. Its errors name the file and the way to the value.
class pickle_value {
public:
    pickle_kind kind() const;
    bool is(pickle_kind k) const { return kind() == k; }

    // What a scalar holds; psae::error if it is something else. number: of an integer or a real.
    bool boolean() const;
    std::int64_t integer() const;
    double number() const;
    // Of a string (UTF-8), bytes, a big integer (in decimal), a name ("torch.float32"), or an object (its class).
    std::string_view text() const;
    // The number that the file around the pickle gave it.
    std::size_t external() const;

    // Elements of a list or tuple, entries of a dict or attributes of an object, in order.
    std::size_t size() const;
    pickle_value operator[](std::size_t i) const;
    // The key of entry i: a string or an integer.
    pickle_value key(std::size_t i) const;
    // The entry or attribute `key`; at throws psae::error if there is none.
    std::optional<pickle_value> find(std::string_view key) const;
    pickle_value at(std::string_view key) const;

    // Its number in the pickle: one that is in several places has the same.
    std::uint32_t id() const { return id_; }
    // The file and the way to it, for errors.
    const std::string& where() const { return where_; }

private:
    friend class pickle;
    pickle_value(const pickle& of, std::uint32_t id, std::string where) : of_(&of), id_(id), where_(std::move(where)) {}
    void require(bool holds, const char* expected) const;

    const pickle* of_;
    std::uint32_t id_;
    std::string where_;
};

// What the file around a pickle adds to it. Values it is given end with the call.
class pickle_surroundings {
public:
    virtual ~pickle_surroundings() = default;
    // The external value, as a number, that a persistent id stands for.
    virtual std::size_t persistent(const pickle_value& id) {
        throw error("pickle refers to something outside of it", id.where());
    }
    // The result of a function, an external value or one of its arguments; nothing if the function is not known.
    using result = std::variant<std::size_t, pickle_value>;
    virtual std::optional<result> call(std::string_view, const pickle_value&) { return std::nullopt; }
};

class pickle {
    static constexpr std::size_t value_limit = 4'000'000, key_limit = 4096, integer_limit = 128;

public:
    // Reads the pickle that begins the bytes, which must stay; `where` names them in errors. Protocols 2 to 5.
    pickle(std::span<const std::byte> bytes, std::string where, pickle_surroundings& around)
        : bytes_(bytes), where_(std::move(where)) {
        read(around);
    }
    pickle(std::span<const std::byte> bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {
        pickle_surroundings none;
        read(none);
    }
    pickle(pickle&&) = default;  // a copy's texts would be another's
    pickle& operator=(pickle&&) = default;

    pickle_value root() const { return {*this, root_, where_}; }
    // Bytes of the pickle: what follows begins there.
    std::size_t bytes() const { return at_; }

private:
    friend class pickle_value;
    using id = std::uint32_t;
    static constexpr id no_id = ~id{0};

    struct node {
        pickle_kind kind;
        // boolean, integer; a real's bits; the number of an external value, of a list's or tuple's elements or of a
        // dict's or object's entries.
        std::int64_t number = 0;
        std::string_view text = {};  // in bytes_ or made_
    };
    struct entries {
        std::vector<id> keys, values;
    };

    [[noreturn]] void refuse(const std::string& what, const std::string& expected = "") const {
        throw error(what, where_ + ", byte " + std::to_string(opcode_), expected);
    }

    // Reading bytes.
    std::string_view take(std::uint64_t count) {
        if (count > bytes_.size() - at_)
            refuse("pickle is truncated",
                   "expected " + std::to_string(count) + " more bytes, found " + std::to_string(bytes_.size() - at_));
        const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + at_, count);
        at_ += count;
        return text;
    }
    template <class T>
    T take() {
        T x;
        std::memcpy(&x, take(sizeof(T)).data(), sizeof(T));
        return x;
    }
    template <class Length>
    std::string_view take_counted() {
        return take(take<Length>());
    }
    std::string_view take_line() {
        const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + at_, bytes_.size() - at_);
        const std::size_t end = rest.find('\n');
        if (end == rest.npos) refuse("pickle is truncated", "expected a line");
        at_ += end + 1;
        return rest.substr(0, end);
    }

    // The stack.
    void push(id v) { stack_.push_back(v); }
    id push(node n) {
        if (nodes_.size() >= value_limit)
            refuse("pickle holds too many values", "expected at most " + std::to_string(value_limit));
        nodes_.push_back(n);
        push(static_cast<id>(nodes_.size() - 1));
        return stack_.back();
    }
    id top() const {
        if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) refuse("pickle takes a value that is not there");
        return stack_.back();
    }
    id pop() {
        const id v = top();
        stack_.pop_back();
        return v;
    }
    // What was pushed since the last mark.
    std::vector<id> pop_marked() {
        if (marks_.empty()) refuse("pickle takes values up to a mark that is not there");
        const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
        std::vector<id> values(first, stack_.end());
        stack_.erase(first, stack_.end());
        marks_.pop_back();
        return values;
    }

    void push_text(pickle_kind kind, std::string_view text) {
        if (kind == pickle_kind::string && !is_utf8(text)) refuse("string of a pickle is not UTF-8");
        push({kind, 0, text});
    }
    void push_made(pickle_kind kind, std::string text) {
        // A short pickle could make a long text over and over. (A byte of an integer is 2.4 decimal digits.)
        made_bytes_ += text.size();
        if (made_bytes_ > 4 * bytes_.size()) refuse("pickle makes too much of its bytes");
        push({kind, 0, made_.emplace_back(std::move(text))});
    }
    void push_sequence(pickle_kind kind, std::vector<id> values) {
        push({kind, static_cast<std::int64_t>(sequences_.size())});
        sequences_.push_back(std::move(values));
    }
    void push_tuple(std::size_t count) {
        std::vector<id> values(count);
        for (std::size_t i = count; i-- > 0;) values[i] = pop();
        push_sequence(pickle_kind::tuple, std::move(values));
    }
    void push_dict() {
        push({pickle_kind::dict, static_cast<std::int64_t>(dicts_.size())});
        dicts_.emplace_back();
    }
    void push_name(std::string_view module, std::string_view name) {
        push_made(pickle_kind::name, std::string(module) + "." + std::string(name));
    }
    // Little-endian, two's complement.
    void push_long(std::string_view digits) {
        if (digits.size() > integer_limit)
            refuse("integer of a pickle is too large", "expected at most " + std::to_string(integer_limit) + " bytes");
        const bool negative = !digits.empty() && (static_cast<unsigned char>(digits.back()) & 0x80) != 0;
        if (digits.size() <= 8) {
            std::uint64_t v = negative ? ~std::uint64_t{0} : 0;
            if constexpr (std::endian::native == std::endian::little) std::memcpy(&v, digits.data(), digits.size());
            push({pickle_kind::integer, static_cast<std::int64_t>(v)});
            return;
        }
        // The magnitude, divided by ten again and again.
        std::vector<unsigned char> magnitude(digits.begin(), digits.end());
        for (unsigned carry = 1; auto& d : magnitude)
            if (negative) {
                carry += static_cast<unsigned char>(~d);
                d = static_cast<unsigned char>(carry);
                carry >>= 8;
            }
        std::string decimal;
        while (!magnitude.empty()) {
            unsigned rest = 0;
            for (std::size_t i = magnitude.size(); i-- > 0;) {
                rest = rest << 8 | magnitude[i];
                magnitude[i] = static_cast<unsigned char>(rest / 10);
                rest %= 10;
            }
            decimal.insert(decimal.begin(), static_cast<char>('0' + rest));
            while (!magnitude.empty() && magnitude.back() == 0) magnitude.pop_back();
        }
        if (negative) decimal.insert(decimal.begin(), '-');
        push_made(pickle_kind::big_integer, std::move(decimal));
    }

    void set_entry(id dict, id key, id value) {
        const node& d = nodes_[dict];
        if (d.kind != pickle_kind::dict) refuse("pickle adds an entry to something else than a dict", found(dict));
        const node& k = nodes_[key];
        const bool is_text = k.kind == pickle_kind::string;
        if (!is_text && k.kind != pickle_kind::integer)
            refuse("key of a dict is neither a string nor an integer", found(key));
        if (k.text.size() > key_limit)
            refuse("key of a dict is too long",
                   "expected at most " + std::to_string(key_limit) + " bytes, found " + std::to_string(k.text.size()));
        entries& all = dicts_[static_cast<std::size_t>(d.number)];
        const auto [place, is_new] = index_.try_emplace({d.number, is_text, k.number, k.text}, all.keys.size());
        if (is_new) {
            all.keys.push_back(key);
            all.values.push_back(value);
        } else {
            all.values[place->second] = value;
        }
    }
    void set_marked_entries() {
        const auto values = pop_marked();
        if (values.size() % 2 != 0) refuse("pickle adds a key without a value to a dict");
        const id dict = top();
        for (std::size_t i = 0; i < values.size(); i += 2) set_entry(dict, values[i], values[i + 1]);
    }
    void append(std::span<const id> values) {
        const node& list = nodes_[top()];
        if (list.kind != pickle_kind::list) refuse("pickle appends to something else than a list", found(top()));
        auto& all = sequences_[static_cast<std::size_t>(list.number)];
        all.insert(all.end(), values.begin(), values.end());
    }
    std::string found(id v) const { return std::string("found ") + name_of(nodes_[v].kind); }

    void memoize(std::size_t place, id v) {
        // Every place takes two bytes of the pickle: a larger one is a lie.
        if (place >= bytes_.size()) refuse("pickle's memo has no such place", std::to_string(place));
        if (place >= memo_.size()) memo_.resize(place + 1, no_id);
        memo_[place] = v;
    }
    void recall(std::size_t place) {
        if (place >= memo_.size() || memo_[place] == no_id)
            refuse("pickle's memo has no such place", std::to_string(place));
        push(memo_[place]);
    }

    // The key before the value that is being made: what the value will most likely be called.
    std::string where_now() const {
        for (std::size_t i = stack_.size(); i-- > 0 && i + 16 > stack_.size();)
            if (nodes_[stack_[i]].kind == pickle_kind::string)
                return where_ + ", " + std::string(nodes_[stack_[i]].text.substr(0, 200));
        return where_;
    }
    // An object of any class is no more than its attributes, but a class that wants arguments is not known.
    void make_object() {
        const id arguments = pop(), type = pop();
        if (nodes_[type].kind != pickle_kind::name) refuse("pickle makes an object of something else than a class");
        if (nodes_[arguments].kind != pickle_kind::tuple ||
            !sequences_[static_cast<std::size_t>(nodes_[arguments].number)].empty())
            refuse("pickle makes an object with arguments, which only running it could do",
                   std::string(nodes_[type].text));
        push({pickle_kind::object, static_cast<std::int64_t>(dicts_.size()), nodes_[type].text});
        dicts_.emplace_back();
    }
    // The entries of the state become the object's attributes: shared, since a copy for each of many objects would cost
    // more than the pickle. What Python hangs on an OrderedDict (a state_dict's _metadata) is left out.
    void build() {
        const id state = pop(), of = top();
        if (nodes_[state].kind != pickle_kind::dict)
            refuse("state of an object is not a dict",
                   std::string(nodes_[of].text) + " with " + name_of(nodes_[state].kind));
        if (nodes_[of].kind == pickle_kind::object) nodes_[of].number = nodes_[state].number;
        else if (nodes_[of].kind != pickle_kind::dict) refuse("pickle sets the state of no object", found(of));
    }
    void call(pickle_surroundings& around) {
        const id arguments = pop(), function = pop();
        const std::string_view name = nodes_[function].text;
        if (nodes_[function].kind != pickle_kind::name || nodes_[arguments].kind != pickle_kind::tuple)
            refuse("pickle calls something that is not a function", found(function));
        const auto& given = sequences_[static_cast<std::size_t>(nodes_[arguments].number)];
        const auto is_string = [&](std::size_t i) { return nodes_[given[i]].kind == pickle_kind::string; };
        if (name == "collections.OrderedDict" && given.empty()) return push_dict();
        if ((name == "builtins.bytes" || name == "__builtin__.bytes") && given.empty())
            return push_text(pickle_kind::bytes, {});
        // How protocol 2 writes bytes: each as the character of its number.
        if (name == "_codecs.encode" && given.size() == 2 && is_string(0) && is_string(1) &&
            nodes_[given[1]].text == "latin1") {
            std::string bytes;
            for (std::string_view rest = nodes_[given[0]].text; !rest.empty();) {
                char32_t code = 0;
                rest.remove_prefix(utf8_character(rest, code));
                if (code > 0xff) refuse("bytes of a pickle are no bytes");
                bytes += static_cast<char>(code);
            }
            return push_made(pickle_kind::bytes, std::move(bytes));
        }
        const auto made = around.call(name, {*this, arguments, where_now()});
        if (!made) refuse("pickle calls a function that is not allowed", std::string(name));
        if (const auto* number = std::get_if<std::size_t>(&*made)) push_external(*number);
        else push(std::get<pickle_value>(*made).id_);
    }
    void push_external(std::size_t number) { push({pickle_kind::external, static_cast<std::int64_t>(number)}); }

    void read(pickle_surroundings& around) {
        if (bytes_.empty() || bytes_[0] != std::byte{0x80}) throw error("not a pickle", where_);
        while (step(around)) {
        }
        memo_ = {};
        stack_ = {};
    }
    // One instruction; false after the last.
    bool step(pickle_surroundings& around) {
        using kind = pickle_kind;
        opcode_ = at_;
        const auto code = take<unsigned char>();
        switch (code) {
            case 0x80:  // PROTO
                if (const auto version = take<unsigned char>(); version < 2 || version > 5)
                    refuse("pickle has another protocol", "expected 2 to 5, found " + std::to_string(version));
                break;
            case 0x95:  // FRAME
                if (const auto length = take<std::uint64_t>(); length > bytes_.size() - at_)
                    refuse("pickle is truncated", "a frame of " + std::to_string(length) + " bytes");
                break;
            case 'N':
                push({kind::none});
                break;
            case 0x88:  // NEWTRUE
            case 0x89:  // NEWFALSE
                push({kind::boolean, code == 0x88});
                break;
            case 'K':
                push({kind::integer, take<std::uint8_t>()});
                break;
            case 'M':
                push({kind::integer, take<std::uint16_t>()});
                break;
            case 'J':
                push({kind::integer, take<std::int32_t>()});
                break;
            case 0x8a:  // LONG1
                push_long(take_counted<std::uint8_t>());
                break;
            case 0x8b:  // LONG4
                push_long(take_counted<std::uint32_t>());
                break;
            case 'G':  // big-endian
                push({kind::real, static_cast<std::int64_t>(__builtin_bswap64(take<std::uint64_t>()))});
                break;
            case 0x8c:  // SHORT_BINUNICODE
                push_text(kind::string, take_counted<std::uint8_t>());
                break;
            case 'X':
                push_text(kind::string, take_counted<std::uint32_t>());
                break;
            case 0x8d:  // BINUNICODE8
                push_text(kind::string, take_counted<std::uint64_t>());
                break;
            case 'C':
                push_text(kind::bytes, take_counted<std::uint8_t>());
                break;
            case 'B':
                push_text(kind::bytes, take_counted<std::uint32_t>());
                break;
            case 0x8e:  // BINBYTES8
            case 0x96:  // BYTEARRAY8
                push_text(kind::bytes, take_counted<std::uint64_t>());
                break;
            case ']':
                push_sequence(kind::list, {});
                break;
            case 'a': {
                const id value = pop();
                append({&value, 1});
                break;
            }
            case 'e':
                append(pop_marked());
                break;
            case '(':
                marks_.push_back(stack_.size());
                break;
            case ')':
                push_tuple(0);
                break;
            case 0x85:  // TUPLE1
            case 0x86:  // TUPLE2
            case 0x87:  // TUPLE3
                push_tuple(code - 0x84u);
                break;
            case 't':
                push_sequence(kind::tuple, pop_marked());
                break;
            case '}':
                push_dict();
                break;
            case 's': {
                const id value = pop(), key = pop();
                set_entry(top(), key, value);
                break;
            }
            case 'u':
                set_marked_entries();
                break;
            case 'q':
                memoize(take<std::uint8_t>(), top());
                break;
            case 'r':
                memoize(take<std::uint32_t>(), top());
                break;
            case 0x94:  // MEMOIZE
                memoize(memo_.size(), top());
                break;
            case 'h':
                recall(take<std::uint8_t>());
                break;
            case 'j':
                recall(take<std::uint32_t>());
                break;
            case 'c': {
                const auto module = take_line();
                push_name(module, take_line());
                break;
            }
            case 0x93: {  // STACK_GLOBAL
                const id name = pop(), module = pop();
                if (nodes_[name].kind != kind::string || nodes_[module].kind != kind::string)
                    refuse("name in a pickle is not a string", found(name));
                push_name(nodes_[module].text, nodes_[name].text);
                break;
            }
            case 'Q': {
                const id value = pop();
                push_external(around.persistent({*this, value, where_now()}));
                break;
            }
            case 'R':
                call(around);
                break;
            case 0x81:  // NEWOBJ
                make_object();
                break;
            case 'b':
                build();
                break;
            case '.':
                root_ = pop();
                if (!stack_.empty() || !marks_.empty()) refuse("pickle ends with more than one value");
                return false;
            default:
                refuse("instruction of a pickle is not known or not allowed", "code " + std::to_string(code));
        }
        return true;
    }

    std::span<const std::byte> bytes_;
    std::string where_;
    std::size_t at_ = 0, opcode_ = 0, made_bytes_ = 0;
    std::vector<node> nodes_;
    std::vector<std::vector<id>> sequences_;
    std::vector<entries> dicts_;
    // The place of a key in its dict, by the dict, whether the key is a string, the integer and the string. Ordered:
    // keys cannot be made to collide.
    std::map<std::tuple<std::int64_t, bool, std::int64_t, std::string_view>, std::size_t> index_;
    std::deque<std::string> made_;
    std::vector<id> stack_, memo_;
    std::vector<std::size_t> marks_;
    id root_ = no_id;
};

inline pickle_kind pickle_value::kind() const { return of_->nodes_[id_].kind; }
inline void pickle_value::require(bool holds, const char* expected) const {
    if (!holds)
        throw error("value of a pickle is of another kind", where_,
                    std::string("expected ") + expected + ", found " + name_of(kind()));
}
inline bool pickle_value::boolean() const {
    require(is(pickle_kind::boolean), "a truth value");
    return of_->nodes_[id_].number != 0;
}
inline std::int64_t pickle_value::integer() const {
    require(is(pickle_kind::integer), "an integer");
    return of_->nodes_[id_].number;
}
inline double pickle_value::number() const {
    require(is(pickle_kind::integer) || is(pickle_kind::real), "a number");
    const std::int64_t n = of_->nodes_[id_].number;
    return is(pickle_kind::integer) ? static_cast<double>(n) : std::bit_cast<double>(n);
}
inline std::string_view pickle_value::text() const {
    const auto k = kind();
    require(k == pickle_kind::string || k == pickle_kind::bytes || k == pickle_kind::big_integer ||
                k == pickle_kind::name || k == pickle_kind::object,
            "a string");
    return of_->nodes_[id_].text;
}
inline std::size_t pickle_value::external() const {
    require(is(pickle_kind::external), "an external value");
    return static_cast<std::size_t>(of_->nodes_[id_].number);
}
inline std::size_t pickle_value::size() const {
    const auto& n = of_->nodes_[id_];
    if (is(pickle_kind::list) || is(pickle_kind::tuple))
        return of_->sequences_[static_cast<std::size_t>(n.number)].size();
    require(is(pickle_kind::dict) || is(pickle_kind::object), "a list, tuple, dict or object");
    return of_->dicts_[static_cast<std::size_t>(n.number)].keys.size();
}
inline pickle_value pickle_value::operator[](std::size_t i) const {
    const auto& n = of_->nodes_[id_];
    if (i >= size())
        throw error("list of a pickle is too short", where_,
                    "expected more than " + std::to_string(i) + " values, found " + std::to_string(size()));
    const std::string here = where_ + (id_ == of_->root_ ? ", " : ".");
    if (is(pickle_kind::list) || is(pickle_kind::tuple))
        return {*of_, of_->sequences_[static_cast<std::size_t>(n.number)][i], here + std::to_string(i)};
    const auto& all = of_->dicts_[static_cast<std::size_t>(n.number)];
    const auto& k = of_->nodes_[all.keys[i]];
    return {*of_, all.values[i],
            here + (k.kind == pickle_kind::string ? std::string(k.text) : std::to_string(k.number))};
}
inline pickle_value pickle_value::key(std::size_t i) const {
    require(is(pickle_kind::dict) || is(pickle_kind::object), "a dict or object");
    return {*of_, of_->dicts_[static_cast<std::size_t>(of_->nodes_[id_].number)].keys.at(i), where_};
}
inline std::optional<pickle_value> pickle_value::find(std::string_view key) const {
    require(is(pickle_kind::dict) || is(pickle_kind::object), "a dict or object");
    const auto place = of_->index_.find({of_->nodes_[id_].number, true, 0, key});
    if (place == of_->index_.end()) return std::nullopt;
    return (*this)[place->second];
}
inline pickle_value pickle_value::at(std::string_view key) const {
    if (auto v = find(key)) return *std::move(v);
    throw error("entry is missing in a pickle", where_, "expected " + std::string(key));
}

}  // namespace psae
