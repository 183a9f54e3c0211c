// SPDX-License-Identifier: MIT
#pragma once

// Named arrays in one .npz file, as numpy.savez writes and numpy.load reads them: a zip archive whose members are
// stored, not compressed, each a .npy of version 1.0.
//
//   | local header | name | npy header | data | ... one per array ... | directory entry | name | ... | end record |
//
// Everything is little-endian. Reading trusts nothing: each length, offset, checksum and header is checked before use,
// memory is bounded by the size of the file, and any defect is a format_error with nothing half-loaded. Archives of 4
// GiB and more (zip64), compressed or encrypted members and other element types are refused by name.

#include <butterfly/core/crc32.hpp>
#include <butterfly/core/file.hpp>
#include <butterfly/core/index.hpp>

#include <bit>
#include <cerrno>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace butterfly::npz {

static_assert(std::endian::native == std::endian::little, "the file format is little-endian, and so is this reader");

/// Element types a file may hold.
enum class dtype : std::uint8_t { i4, u1, f4 };

template <class T>
concept storable = std::same_as<T, std::int32_t> || std::same_as<T, std::uint8_t> || std::same_as<T, float>;

template <storable T>
inline constexpr dtype dtype_of = std::same_as<T, std::int32_t>   ? dtype::i4
                                  : std::same_as<T, std::uint8_t> ? dtype::u1
                                                                  : dtype::f4;

[[nodiscard]] constexpr index_t size_of(dtype t) noexcept {
    return t == dtype::u1 ? 1 : 4;
}
[[nodiscard]] constexpr char const* descr_of(dtype t) noexcept {
    return t == dtype::i4 ? "<i4" : t == dtype::u1 ? "|u1" : "<f4";
}

/// An array to write; refers to data of the caller, C order.
struct member {
    std::string name; // without .npy
    dtype type = dtype::u1;
    std::vector<index_t> shape; // any rank
    std::span<std::byte const> data;
};

template <storable T>
[[nodiscard]] member make_member(std::string name, std::vector<index_t> shape, std::span<T const> data) {
    return {std::move(name), dtype_of<T>, std::move(shape), std::as_bytes(data)};
}

/// An array that was read.
struct array {
    std::string name;
    dtype type = dtype::u1;
    std::vector<index_t> shape{};
    std::vector<std::byte> data{}; // C order

    /// Copies the elements. Throws format_error where the file holds another type.
    template <storable T>
    [[nodiscard]] std::vector<T> values() const {
        if (type != dtype_of<T>)
            detail::fail<format_error>("npz: " + name + " has dtype " + descr_of(type) + ", expected " +
                                       descr_of(dtype_of<T>));
        std::vector<T> out(data.size() / sizeof(T));
        if (!out.empty()) std::memcpy(out.data(), data.data(), data.size());
        return out;
    }
};

using detail::crc32;

/// Parts of the format shared by both directions, and the checked reader.
namespace format {

inline constexpr std::uint32_t local_signature = 0x04034b50, entry_signature = 0x02014b50, end_signature = 0x06054b50;
inline constexpr std::size_t local_size = 30, entry_size = 46, end_size = 22; // bytes without names
inline constexpr std::uint64_t zip64 = 0xffffffff;                            // this and more: not in these fields
inline constexpr std::string_view magic{"\x93NUMPY\x01\x00", 8};

[[noreturn]] inline void bad(std::string const& what) {
    detail::fail<format_error>("npz: " + what);
}

template <std::unsigned_integral T>
void put(std::vector<std::byte>& out, T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<std::byte>(value >> (8 * i)));
}

inline void put(std::vector<std::byte>& out, std::string_view text) {
    for (char const c : text) out.push_back(static_cast<std::byte>(c));
}

/// Bytes of an array of this shape, or -1 where a dimension is negative or the size overflows.
[[nodiscard]] inline index_t size_of(dtype type, std::span<index_t const> shape) noexcept {
    index_t bytes = npz::size_of(type);
    for (index_t const d : shape) bytes = detail::try_multiply(bytes, d);
    return bytes;
}

/// Header of a .npy, padded so that data start at a multiple of 64.
[[nodiscard]] inline std::vector<std::byte> npy_header(member const& m) {
    std::string dict = std::string("{'descr': '") + descr_of(m.type) + "', 'fortran_order': False, 'shape': (";
    for (std::size_t i = 0; i < m.shape.size(); ++i)
        dict += std::to_string(m.shape[i]) + (i + 1 < m.shape.size() ? ", " : m.shape.size() == 1 ? "," : "");
    dict += "), }";
    std::size_t const total = (magic.size() + 2 + dict.size() + 1 + 63) / 64 * 64;
    dict.append(total - magic.size() - 2 - dict.size() - 1, ' ');
    dict += '\n';
    std::vector<std::byte> out;
    put(out, magic);
    put(out, static_cast<std::uint16_t>(dict.size()));
    put(out, dict);
    return out;
}

/// The bytes around the data of the caller.
struct layout {
    std::vector<std::vector<std::byte>> fronts; // before the data of each member
    std::vector<std::byte> directory;           // after the last
};

/// Lays out an archive. Throws shape_error where a member is not what it says or has a name no file can hold,
/// capacity_error where the file would reach 4 GiB.
[[nodiscard]] inline layout plan(std::span<member const> members) {
    layout out;
    std::vector<std::byte>& directory = out.directory;
    std::set<std::string_view> names;
    std::uint64_t offset = 0;
    for (std::size_t i = 0; i < members.size(); ++i) {
        member const& m = members[i];
        if (m.name.empty() || m.name.size() > 200 || !names.insert(m.name).second)
            detail::fail<shape_error>("npz: name '" + m.name + "' is empty, too long or used twice");
        if (m.shape.size() > 32 || size_of(m.type, m.shape) != static_cast<index_t>(m.data.size()))
            detail::fail<shape_error>("npz: " + m.name + " has " + std::to_string(m.data.size()) +
                                      " bytes, its shape needs " + std::to_string(size_of(m.type, m.shape)));
        auto const header        = npy_header(m);
        std::string const name   = m.name + ".npy";
        std::uint64_t const size = header.size() + m.data.size();
        if (offset + size + local_size + entry_size * members.size() + 1024 * members.size() >= zip64 ||
            members.size() >= 0xffff)
            detail::fail<capacity_error>("npz: " + m.name + " takes the file to 4 GiB or 65535 members");

        std::vector<std::byte> front, common;
        put(common, std::uint16_t{20}); // version needed
        put(common, std::uint16_t{0});  // flags
        put(common, std::uint16_t{0});  // stored
        put(common, std::uint16_t{0});  // time
        put(common, std::uint16_t{33}); // date: 1980-01-01, so that equal arrays make equal files
        put(common, crc32(m.data, crc32(header)));
        put(common, static_cast<std::uint32_t>(size));
        put(common, static_cast<std::uint32_t>(size));
        put(common, static_cast<std::uint16_t>(name.size()));
        put(common, std::uint16_t{0}); // extra
        put(front, local_signature);
        front.insert(front.end(), common.begin(), common.end());
        put(front, name);
        front.insert(front.end(), header.begin(), header.end());

        put(directory, entry_signature);
        put(directory, std::uint16_t{20}); // version made by
        directory.insert(directory.end(), common.begin(), common.end());
        directory.insert(directory.end(), 10, std::byte{0}); // comment, disk, attributes
        put(directory, static_cast<std::uint32_t>(offset));
        put(directory, name);

        offset += front.size() + m.data.size();
        out.fronts.push_back(std::move(front));
    }
    auto const size = static_cast<std::uint32_t>(directory.size());
    put(directory, end_signature);
    put(directory, std::uint32_t{0}); // disks
    put(directory, static_cast<std::uint16_t>(members.size()));
    put(directory, static_cast<std::uint16_t>(members.size()));
    put(directory, size);
    put(directory, static_cast<std::uint32_t>(offset));
    put(directory, std::uint16_t{0}); // comment
    return out;
}

/// Calls sink(bytes) for each piece of the file, in order.
template <class Sink>
void each_piece(layout const& l, std::span<member const> members, Sink&& sink) {
    for (std::size_t i = 0; i < members.size(); ++i) {
        sink(std::span<std::byte const>(l.fronts[i]));
        sink(members[i].data);
    }
    sink(std::span<std::byte const>(l.directory));
}

/// Bytes with checked access.
class reader {
public:
    explicit reader(std::span<std::byte const> bytes) noexcept : bytes_(bytes) {}

    [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }

    [[nodiscard]] std::span<std::byte const> part(std::size_t at, std::size_t count) const {
        if (at > size() || count > size() - at)
            bad("truncated: " + std::to_string(count) + " bytes at " + std::to_string(at) + " of " +
                std::to_string(size()));
        return bytes_.subspan(at, count);
    }

    [[nodiscard]] std::string_view text(std::size_t at, std::size_t count) const {
        return {reinterpret_cast<char const*>(part(at, count).data()), count};
    }

    [[nodiscard]] std::uint16_t u16(std::size_t at) const { return static_cast<std::uint16_t>(number(at, 2)); }
    [[nodiscard]] std::uint32_t u32(std::size_t at) const { return number(at, 4); }

private:
    [[nodiscard]] std::uint32_t number(std::size_t at, std::size_t count) const {
        std::uint32_t value = 0;
        auto const b        = part(at, count);
        for (std::size_t i = 0; i < count; ++i) value |= static_cast<std::uint32_t>(b[i]) << (8 * i);
        return value;
    }

    std::span<std::byte const> bytes_;
};

/// The Python dict of a .npy header, as far as arrays need it: quoted strings, True, False, tuples of integers.
class dict_parser {
public:
    dict_parser(std::string_view text, std::string const& name) : text_(text), name_(name) {}

    /// Sets type and shape; each of the three keys must be there once.
    void parse(array& out) {
        bool descr = false, order = false, shape = false;
        expect('{');
        while (!accept('}')) {
            std::string_view const key = quoted();
            expect(':');
            if (key == "descr" && !std::exchange(descr, true)) {
                out.type = type(quoted());
            } else if (key == "fortran_order" && !std::exchange(order, true)) {
                if (!accept_word("False")) bad(name_ + " is in Fortran order or its header is malformed");
            } else if (key == "shape" && !std::exchange(shape, true)) {
                out.shape = tuple();
            } else {
                bad(name_ + " has an unknown or repeated header key");
            }
            if (!accept(',')) {
                expect('}');
                break;
            }
        }
        skip_blanks();
        if (!descr || !order || !shape || !text_.empty()) bad(name_ + " has an incomplete header");
    }

private:
    void skip_blanks() noexcept {
        while (!text_.empty() && (text_.front() == ' ' || text_.front() == '\n')) text_.remove_prefix(1);
    }
    [[nodiscard]] bool accept_word(std::string_view word) noexcept {
        skip_blanks();
        if (!text_.starts_with(word)) return false;
        text_.remove_prefix(word.size());
        return true;
    }
    [[nodiscard]] bool accept(char c) noexcept { return accept_word({&c, 1}); }
    void expect(char c) {
        if (!accept(c)) bad(name_ + " has a malformed header: no '" + c + "' where one belongs");
    }
    [[nodiscard]] std::string_view quoted() {
        expect('\'');
        std::size_t const end = text_.find('\'');
        if (end == std::string_view::npos) bad(name_ + " has an open string in its header");
        std::string_view const word = text_.substr(0, end);
        text_.remove_prefix(end + 1);
        return word;
    }
    [[nodiscard]] dtype type(std::string_view descr) const {
        for (dtype const t : {dtype::i4, dtype::u1, dtype::f4})
            if (descr == descr_of(t)) return t;
        bad(name_ + " has dtype " + std::string(descr.substr(0, 16)) + "; <i4, |u1 and <f4 are known");
    }
    [[nodiscard]] std::vector<index_t> tuple() {
        std::vector<index_t> dims;
        expect('(');
        while (!accept(')')) {
            skip_blanks();
            if (text_.empty() || text_.front() < '0' || text_.front() > '9' || dims.size() == 32)
                bad(name_ + " has a malformed shape");
            index_t value = 0;
            for (; !text_.empty() && text_.front() >= '0' && text_.front() <= '9'; text_.remove_prefix(1)) {
                value = detail::try_multiply(value, 10);
                if (value < 0 || value > std::numeric_limits<index_t>::max() - 9)
                    bad(name_ + " has a dimension that overflows");
                value += text_.front() - '0';
            }
            dims.push_back(value);
            if (!accept(',')) {
                expect(')');
                break;
            }
        }
        return dims;
    }

    std::string_view text_;
    std::string const& name_;
};

[[nodiscard]] inline array parse_npy(std::string name, std::span<std::byte const> bytes) {
    reader const in(bytes);
    if (in.text(0, magic.size()) != magic) bad(name + " is no .npy of version 1.0");
    std::size_t const length = in.u16(magic.size());
    std::size_t const begin  = magic.size() + 2 + length;
    array out{.name = std::move(name)};
    dict_parser(in.text(magic.size() + 2, length), out.name).parse(out);
    auto const data = in.part(begin, in.size() - begin);
    if (size_of(out.type, out.shape) != static_cast<index_t>(data.size()))
        bad(out.name + " has " + std::to_string(data.size()) + " bytes of data, its shape needs " +
            std::to_string(size_of(out.type, out.shape)) + " (-1: too many to count)");
    out.data.assign(data.begin(), data.end());
    return out;
}

/// Where the end record is: its comment must run to the end of the file.
[[nodiscard]] inline std::size_t find_end(reader const& in) {
    for (std::size_t comment = 0; comment <= 0xffff && comment + end_size <= in.size(); ++comment) {
        std::size_t const at = in.size() - end_size - comment;
        if (in.u32(at) == end_signature && in.u16(at + 20) == comment) return at;
    }
    bad("no end record: not a zip archive, or truncated");
}

} // namespace format

/// All arrays of an archive in memory. Members that are no .npy are checked and left out. Throws format_error.
[[nodiscard]] inline std::vector<array> decode(std::span<std::byte const> bytes) {
    using format::bad;
    format::reader const in(bytes);
    std::size_t const end       = format::find_end(in);
    std::size_t const count     = in.u16(end + 10);
    std::size_t const directory = in.u32(end + 16);
    if (in.u32(end + 4) != 0 || in.u16(end + 8) != count) bad("an archive of several disks");
    if (directory + std::size_t{in.u32(end + 12)} != end) bad("the directory does not end at the end record");

    std::vector<array> out;
    std::set<std::string> names;
    std::size_t entry = directory, free = 0; // members stand in order and never overlap
    for (std::size_t i = 0; i < count; ++i) {
        if (in.u32(entry) != format::entry_signature) bad("entry " + std::to_string(i) + " is no directory entry");
        std::size_t const name_size = in.u16(entry + 28), size = in.u32(entry + 24), local = in.u32(entry + 42);
        std::string name(in.text(entry + format::entry_size, name_size));
        if ((in.u16(entry + 8) & 1U) != 0) bad(name + " is encrypted");
        if (in.u16(entry + 10) != 0) bad(name + " is compressed; save it uncompressed");
        if (size == format::zip64 || local == format::zip64) bad(name + " uses zip64");
        if (in.u32(entry + 20) != size) bad(name + " is stored with two sizes");

        if (local < free || in.u32(local) != format::local_signature) bad(name + " has no local header");
        if (in.text(local + format::local_size, in.u16(local + 26)) != name) bad(name + " has another name locally");
        std::size_t const data = local + format::local_size + name_size + in.u16(local + 28);
        auto const content     = in.part(data, size);
        free                   = data + size;
        if (free > directory) bad(name + " reaches into the directory");
        if (crc32(content) != in.u32(entry + 16)) bad(name + " has a bad checksum");
        entry += format::entry_size + name_size + in.u16(entry + 30) + in.u16(entry + 32);

        if (!name.ends_with(".npy")) continue;
        name.resize(name.size() - 4);
        if (!names.insert(name).second) bad(name + " is there twice");
        out.push_back(format::parse_npy(std::move(name), content));
    }
    if (entry != end) bad("the directory has another size than its entries");
    return out;
}

/// The archive in memory; equal arrays make equal bytes. Throws shape_error or capacity_error as format::plan does.
[[nodiscard]] inline std::vector<std::byte> encode(std::span<member const> members) {
    std::vector<std::byte> out;
    format::each_piece(format::plan(members), members,
                       [&](std::span<std::byte const> piece) { out.insert(out.end(), piece.begin(), piece.end()); });
    return out;
}

/// Writes an archive, replacing `path` only once all of it is written (core/file.hpp). Throws format_error with the
/// system's words where that fails, else as encode does.
inline void write(std::string const& path, std::span<member const> members) {
    format::layout const plan = format::plan(members);
    detail::replacement_file file("npz", path);
    format::each_piece(plan, members, [&](std::span<std::byte const> piece) { file.write(piece); });
    file.commit();
}

/// All arrays of a file. Throws format_error.
[[nodiscard]] inline std::vector<array> read(std::string const& path) {
    return decode(detail::read_file("npz", path));
}

} // namespace butterfly::npz
