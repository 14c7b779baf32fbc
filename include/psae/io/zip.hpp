#pragma once
// Zip archives as numpy and torch write them: stored and deflated entries, zip64, CRC checked; read from a file or from
// memory, and written one after the other.

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zlib.h>

#include <psae/io/atomic_file.hpp>
#include <psae/io/file_bytes.hpp>

namespace psae {

class zip_reader {
public:
    explicit zip_reader(const std::filesystem::path& path)
        : path_(path.string()), file_(path), bytes_(file_->data(), file_->size()) {
        read_directory();
    }
    // An archive in memory, which must stay; `where` names it in errors.
    zip_reader(std::span<const std::byte> archive, std::string where) : path_(std::move(where)), bytes_(archive) {
        read_directory();
    }

    std::vector<std::string> names() const {
        std::vector<std::string> all;
        for (const auto& [name, e] : entries_) all.push_back(name);
        return all;
    }
    const std::string& path() const { return path_; }

    bool contains(const std::string& name) const { return entries_.contains(name); }

    // The bytes of an entry. Memory grows with what really comes out of the stream, never with what a header claims.
    // check(first bytes, how many, size of the entry) is called before more than 64 KiB have been unpacked and may
    // throw.
    template <class Check>
    std::vector<std::byte> read(const std::string& name, const Check& check) const {
        std::vector<std::byte> unpacked;
        const auto bytes = view(name, unpacked, check);
        if (unpacked.empty()) unpacked.assign(bytes.begin(), bytes.end());
        return unpacked;
    }
    // The same without a copy where the entry is stored: its bytes in the archive, or else in `unpacked`.
    template <class Check>
    std::span<const std::byte> view(const std::string& name, std::vector<std::byte>& unpacked,
                                    const Check& check) const {
        const auto found = entries_.find(name);
        if (found == entries_.end()) throw error("zip entry is missing", where(name));
        const entry& e = found->second;
        if (e.local > bytes_.size() || bytes_.size() - e.local < 30 || u32(e.local) != 0x04034b50u)
            throw error("zip entry has no local header", where(name));
        const std::size_t start = e.local + 30 + u16(e.local + 26) + u16(e.local + 28);
        if (start > bytes_.size() || e.compressed > bytes_.size() - start)
            throw error("zip entry reaches beyond the file", where(name));
        std::span<const std::byte> out;
        unpacked.clear();
        if (e.method == 0) {
            if (e.size != e.compressed) throw error("stored zip entry has two sizes", where(name));
            check(bytes_.data() + start, e.size, e.size);
            out = bytes_.subspan(start, e.size);
        } else if (e.method == 8) {
            // Two bits of deflate give 258 bytes at most: a larger claim is a lie, and memory stays within 1032 times
            // the file.
            if (e.size / 1032 > e.compressed)
                throw error("zip entry claims more bytes than deflate can give", where(name),
                            std::to_string(e.size) + " bytes from " + std::to_string(e.compressed));
            inflate(start, e, unpacked, name, check);
            out = unpacked;
        } else {
            throw error("zip entry uses an unknown compression method", where(name), std::to_string(e.method));
        }
        if (out.size() != e.size) throw error("zip entry has another size than its directory says", where(name));
        const auto crc = crc32_z(0, reinterpret_cast<const Bytef*>(out.data()), out.size());
        if (static_cast<std::uint32_t>(crc) != e.crc)
            throw error("zip entry's checksum is wrong", where(name), "", "the file is damaged");
        return out;
    }

private:
    struct entry {
        std::uint16_t method;
        std::uint32_t crc;
        std::uint64_t compressed, size, local;
    };
    std::string where(const std::string& name) const { return path_ + ", entry " + name; }
    std::uint16_t u16(std::size_t at) const { return load<std::uint16_t>(at); }
    std::uint32_t u32(std::size_t at) const { return load<std::uint32_t>(at); }
    template <class T>
    T load(std::size_t at) const {
        if (at > bytes_.size() || bytes_.size() - at < sizeof(T))
            throw error("zip archive is truncated", path_ + ", byte " + std::to_string(at));
        T x;
        std::memcpy(&x, bytes_.data() + at, sizeof(T));
        return x;
    }

    void read_directory() {
        const std::size_t size = bytes_.size();
        if (size < 22) throw error("not a zip archive", path_, "the file has " + std::to_string(size) + " bytes");
        std::size_t end = size - 22;
        const std::size_t last = size > 22 + 65535 ? size - 22 - 65535 : 0;
        while (u32(end) != 0x06054b50u || end + 22 + u16(end + 20) != size) {
            if (end == last) throw error("not a zip archive", path_, "it has no end-of-directory record");
            --end;
        }
        std::uint64_t count = u16(end + 10), directory_bytes = u32(end + 12), at = u32(end + 16);
        if (u16(end + 4) != 0 || u16(end + 6) != 0 || u16(end + 8) != u16(end + 10))
            throw error("zip archive in several parts", path_);
        if (end >= 20 && u32(end - 20) == 0x07064b50u) {
            const std::uint64_t record = load<std::uint64_t>(end - 12);
            if (record > size || u32(record) != 0x06064b50u) throw error("zip64 record is missing", path_);
            count = load<std::uint64_t>(record + 32);
            directory_bytes = load<std::uint64_t>(record + 40);
            at = load<std::uint64_t>(record + 48);
        }
        if (at > end || directory_bytes > end - at) throw error("zip directory lies outside of the file", path_);
        const std::uint64_t directory_start = at, directory_end = at + directory_bytes;
        std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
        for (std::uint64_t i = 0; i < count; ++i) {
            if (at + 46 > directory_end || u32(at) != 0x02014b50u)
                throw error("zip directory is damaged", path_,
                            "entry " + std::to_string(i) + " of " + std::to_string(count));
            entry e{u16(at + 10), u32(at + 16), u32(at + 20), u32(at + 24), u32(at + 42)};
            const std::size_t name_bytes = u16(at + 28), extra_bytes = u16(at + 30), comment_bytes = u16(at + 32);
            if (at + 46 + name_bytes + extra_bytes + comment_bytes > directory_end)
                throw error("zip directory is damaged", path_);
            if (u16(at + 8) & 1) throw error("zip entry is encrypted", path_);
            const std::string name(reinterpret_cast<const char*>(bytes_.data()) + at + 46, name_bytes);
            read_zip64(at + 46 + name_bytes, extra_bytes, e);
            if (e.local > directory_start || directory_start - e.local < 30 ||
                e.compressed > directory_start - e.local - 30)
                throw error("zip entry reaches beyond the file", where(name));
            ranges.emplace_back(e.local, e.local + 30 + e.compressed);
            if (!entries_.emplace(name, e).second) throw error("zip entry appears twice", where(name));
            at += 46 + name_bytes + extra_bytes + comment_bytes;
        }
        if (at != directory_end) throw error("zip directory is damaged", path_, "bytes after its last entry");
        // Entries that share bytes would let a small file unpack to its size times their number.
        std::sort(ranges.begin(), ranges.end());
        for (std::size_t i = 1; i < ranges.size(); ++i)
            if (ranges[i].first < ranges[i - 1].second)
                throw error("zip entries overlap", path_, "at byte " + std::to_string(ranges[i].first));
    }
    void read_zip64(std::size_t at, std::size_t bytes, entry& e) const {
        const std::size_t end = at + bytes;
        while (at + 4 <= end) {
            const std::size_t field = u16(at), length = u16(at + 2);
            at += 4;
            if (length > end - at) throw error("zip extra field is damaged", path_);
            if (field == 1) {
                std::size_t p = at;
                for (std::uint64_t* v : {&e.size, &e.compressed, &e.local})
                    if (*v == 0xffffffffu) {
                        if (p + 8 > at + length) throw error("zip64 extra field is too short", path_);
                        *v = load<std::uint64_t>(p);
                        p += 8;
                    }
            }
            at += length;
        }
    }
    template <class Check>
    void inflate(std::size_t start, const entry& e, std::vector<std::byte>& out, const std::string& name,
                 const Check& check) const {
        struct inflater {  // ends the stream when check throws, too
            z_stream stream{};
            ~inflater() { inflateEnd(&stream); }
        } own;
        z_stream& stream = own.stream;
        if (inflateInit2(&stream, -15) != Z_OK) throw error("zlib cannot start", where(name));
        std::size_t given = 0;
        int status = Z_OK;
        unsigned char buffer[65536];
        while (status == Z_OK) {
            if (stream.avail_in == 0 && given < e.compressed) {
                const std::size_t n = std::min<std::size_t>(e.compressed - given, 1u << 30);
                stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(bytes_.data() + start + given));
                stream.avail_in = static_cast<uInt>(n);
                given += n;
            }
            stream.next_out = buffer;
            stream.avail_out = sizeof buffer;
            status = ::inflate(&stream, Z_NO_FLUSH);
            const std::size_t made = sizeof buffer - stream.avail_out;
            if (out.size() + made > e.size) break;  // more than the directory says: refused below by its size
            const auto* p = reinterpret_cast<const std::byte*>(buffer);
            if (out.empty()) check(p, made, e.size);
            out.insert(out.end(), p, p + made);
            if (status == Z_OK && made == 0 && stream.avail_in == 0 && given == e.compressed) break;
        }
        if (status != Z_STREAM_END) throw error("zip entry's compressed data are damaged", where(name));
    }

    std::string path_;
    std::optional<file_bytes> file_;
    std::span<const std::byte> bytes_;
    std::map<std::string, entry> entries_;
};

// Writes entries one after the other, stored or deflated, always with zip64 sizes. The file appears on close().
class zip_writer {
public:
    // head: bytes of the file before the archive, which counts its own from there.
    explicit zip_writer(const std::filesystem::path& path, bool deflated = false, const std::string& head = {})
        : file_(path), path_(path.string()), deflated_(deflated), start_(head.size()) {
        file_.write(head);
    }

    // An entry that holds `head` and then `bytes` bytes at `data`.
    void add(const std::string& name, const std::string& head, const void* data, std::size_t bytes) {
        if (name.size() > 65535)
            throw error("zip entry name is too long", path_ + ", entry " + name.substr(0, 80) + "...");
        if (!names_.insert(name).second) throw error("zip entry is written twice", path_ + ", entry " + name);
        auto crc = crc32_z(0, reinterpret_cast<const Bytef*>(head.data()), head.size());
        if (bytes > 0)
            crc = crc32_z(crc, static_cast<const Bytef*>(data), bytes);  // (for a null pointer zlib restarts at 0)
        const std::uint64_t size = head.size() + bytes, local = file_.position() - start_;
        std::string h;
        put<std::uint32_t>(h, 0x04034b50u);
        put<std::uint16_t>(h, 45);
        put_common(h, static_cast<std::uint32_t>(crc), name, 20);
        h += name;
        put_extra(h, size, size, nullptr);
        file_.write(h);
        std::uint64_t compressed = size;
        if (deflated_) {
            compressed = deflate(head, data, bytes);
            file_.overwrite(start_ + local + 30 + name.size() + 12, &compressed, 8);  // known only now
        } else {
            file_.write(head);
            if (bytes > 0) file_.write(data, bytes);
        }
        std::string& d = directory_;
        put<std::uint32_t>(d, 0x02014b50u);
        put<std::uint16_t>(d, 45);
        put<std::uint16_t>(d, 45);
        put_common(d, static_cast<std::uint32_t>(crc), name, 28);
        put<std::uint16_t>(d, 0);
        put<std::uint16_t>(d, 0);
        put<std::uint16_t>(d, 0);
        put<std::uint32_t>(d, 0);
        put<std::uint32_t>(d, 0xffffffffu);
        d += name;
        put_extra(d, size, compressed, &local);
        ++count_;
    }
    void close() {
        const std::uint64_t at = file_.position() - start_, bytes = directory_.size();
        std::string tail = directory_;
        put<std::uint32_t>(tail, 0x06064b50u);
        put<std::uint64_t>(tail, 44);
        put<std::uint16_t>(tail, 45);
        put<std::uint16_t>(tail, 45);
        put<std::uint32_t>(tail, 0);
        put<std::uint32_t>(tail, 0);
        for (const std::uint64_t v : {count_, count_, bytes, at}) put<std::uint64_t>(tail, v);
        put<std::uint32_t>(tail, 0x07064b50u);
        put<std::uint32_t>(tail, 0);
        put<std::uint64_t>(tail, at + bytes);
        put<std::uint32_t>(tail, 1);
        put<std::uint32_t>(tail, 0x06054b50u);
        put<std::uint32_t>(tail, 0);
        put<std::uint16_t>(tail, 0xffff);
        put<std::uint16_t>(tail, 0xffff);
        put<std::uint32_t>(tail, 0xffffffffu);
        put<std::uint32_t>(tail, 0xffffffffu);
        put<std::uint16_t>(tail, 0);
        file_.write(tail);
        file_.commit();
    }

private:
    template <class T, class V>
    static void put(std::string& s, V value) {
        const T v = static_cast<T>(value);
        s.append(reinterpret_cast<const char*>(&v), sizeof v);
    }
    void put_common(std::string& s, std::uint32_t crc, const std::string& name, std::uint16_t extra) const {
        const bool ascii =
            std::all_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 128; });
        put<std::uint16_t>(s, ascii ? 0 : 0x800);  // 0x800: the name is UTF-8
        put<std::uint16_t>(s, deflated_ ? 8 : 0);
        put<std::uint32_t>(s, 0x00210000u);  // 1980-01-01, so that the same content gives the same bytes
        put<std::uint32_t>(s, crc);
        put<std::uint32_t>(s, 0xffffffffu);  // both sizes are in the zip64 field
        put<std::uint32_t>(s, 0xffffffffu);
        put<std::uint16_t>(s, name.size());
        put<std::uint16_t>(s, extra);
    }
    static void put_extra(std::string& s, std::uint64_t size, std::uint64_t compressed, const std::uint64_t* local) {
        put<std::uint16_t>(s, 1);
        put<std::uint16_t>(s, local == nullptr ? 16 : 24);
        put<std::uint64_t>(s, size);
        put<std::uint64_t>(s, compressed);
        if (local != nullptr) put<std::uint64_t>(s, *local);
    }
    // Streams head and data through deflate into the file; the number of bytes written.
    std::uint64_t deflate(const std::string& head, const void* data, std::size_t bytes) {
        struct deflater {
            z_stream stream{};
            ~deflater() { deflateEnd(&stream); }
        } own;
        z_stream& stream = own.stream;
        if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) != Z_OK)
            throw error("zlib cannot start", path_);
        const std::size_t before = file_.position();
        unsigned char buffer[65536];
        const auto feed = [&](const void* from, std::size_t count, int flush) {
            auto* p = static_cast<Bytef*>(const_cast<void*>(from));
            do {
                const std::size_t n = std::min<std::size_t>(count, 1u << 30);
                stream.next_in = p;
                stream.avail_in = static_cast<uInt>(n);
                if (n > 0) p += n;
                count -= n;
                do {
                    stream.next_out = buffer;
                    stream.avail_out = sizeof buffer;
                    if (::deflate(&stream, count == 0 ? flush : Z_NO_FLUSH) == Z_STREAM_ERROR)
                        throw error("zlib cannot compress", path_);
                    file_.write(buffer, sizeof buffer - stream.avail_out);
                } while (stream.avail_out == 0);
            } while (count > 0);
        };
        feed(head.data(), head.size(), bytes > 0 ? Z_NO_FLUSH : Z_FINISH);
        if (bytes > 0) feed(data, bytes, Z_FINISH);
        return file_.position() - before;
    }

    atomic_file file_;
    std::string path_;
    bool deflated_;
    std::set<std::string> names_;
    std::string directory_;
    std::uint64_t start_, count_ = 0;
};

}  // namespace psae
