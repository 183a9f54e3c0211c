// SPDX-License-Identifier: MIT
#pragma once

// Tensors in a .safetensors file: read, checked, written. Needs nlohmann_json.
//
//   | header size: u64, little endian | header: JSON, padded with spaces | data |
//   header: {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {"k": "v"}}
//
// Offsets count from the start of the data; tensors follow each other without holes and reach its end. A file that is
// anything else is a format_error, and nothing of it is returned.
// Source: huggingface/safetensors, format description in its README.

#include <butterfly/core/file.hpp>
#include <butterfly/core/heads.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace butterfly::safetensors {

static_assert(std::endian::native == std::endian::little, "the data of a file is little endian");

/// Element types whose values can be read here. Tensors of the format's other types are listed, as `other`.
enum class dtype : std::uint8_t { f16, bf16, f32, i32, other };

/// Largest header that is read, in bytes: the limit of the reference implementation.
inline constexpr std::size_t max_header = 100'000'000;

using metadata_map = std::map<std::string, std::string>;

/// One tensor; its data stands in the memory that was parsed, at any alignment.
struct tensor {
    std::string name{};
    dtype type = dtype::other;
    std::vector<index_t> shape{};
    std::span<std::byte const> data{};
};

/// What a file holds, in the order of its data.
struct contents {
    std::vector<tensor> tensors{};
    metadata_map metadata{};

    /// Null where there is no such tensor.
    [[nodiscard]] tensor const* find(std::string const& name) const noexcept {
        for (tensor const& t : tensors)
            if (t.name == name) return &t;
        return nullptr;
    }

    /// Throws format_error where there is no such tensor.
    [[nodiscard]] tensor const& at(std::string const& name) const {
        tensor const* const found = find(name);
        if (found == nullptr) butterfly::detail::fail<format_error>("safetensors: no tensor " + name);
        return *found;
    }
};

namespace detail {

[[noreturn]] inline void bad(std::string const& what) {
    butterfly::detail::fail<format_error>("safetensors: " + what);
}

struct type_name {
    char const* name;
    dtype type;
    index_t bytes;
};

inline constexpr type_name type_names[] = {
    {"F16", dtype::f16, 2},    {"BF16", dtype::bf16, 2},     {"F32", dtype::f32, 4},       {"I32", dtype::i32, 4},
    {"F64", dtype::other, 8},  {"I64", dtype::other, 8},     {"U64", dtype::other, 8},     {"U32", dtype::other, 4},
    {"I16", dtype::other, 2},  {"U16", dtype::other, 2},     {"I8", dtype::other, 1},      {"U8", dtype::other, 1},
    {"BOOL", dtype::other, 1}, {"F8_E4M3", dtype::other, 1}, {"F8_E5M2", dtype::other, 1},
};

template <class T>
inline constexpr dtype dtype_of = dtype::other;
template <>
inline constexpr dtype dtype_of<float> = dtype::f32;
template <>
inline constexpr dtype dtype_of<float16> = dtype::f16;
template <>
inline constexpr dtype dtype_of<bfloat16> = dtype::bf16;
template <>
inline constexpr dtype dtype_of<std::int32_t> = dtype::i32;

/// The header as JSON; a name twice in one object is an error, which a JSON object cannot show afterwards.
[[nodiscard]] inline nlohmann::json parse_header(std::string_view text) {
    std::vector<std::set<std::string>> names;
    std::string twice;
    bool deep        = false;
    auto const watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
        using kind = nlohmann::json::parse_event_t;
        if (depth > 3) return !(deep = true); // the file, a tensor, its shape: nothing stands deeper
        if (event == kind::object_start) names.emplace_back();
        if (event == kind::object_end && !names.empty()) names.pop_back();
        if (event == kind::key && !names.empty() && !names.back().insert(value.get<std::string>()).second)
            twice = value.get<std::string>();
        return true;
    };
    nlohmann::json header = nlohmann::json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
    if (deep) bad("the header nests deeper than a tensor's shape");
    if (header.is_discarded() || !header.is_object()) bad("the header is no JSON object");
    if (!twice.empty()) bad("the header names " + twice + " twice");
    return header;
}

/// A count or an offset: a JSON integer in [0, 2^53].
[[nodiscard]] inline index_t number(nlohmann::json const& value, std::string const& what) {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > (std::uint64_t{1} << 53))
        bad(what + " is no count: " + value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
    return static_cast<index_t>(value.get<std::uint64_t>());
}

/// Bytes of a shape, -1 where they overflow. An extent of 0 makes the others harmless, in whatever order.
[[nodiscard]] inline index_t bytes_of(index_t bytes, std::span<index_t const> shape) noexcept {
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
    for (index_t const extent : shape) bytes = butterfly::detail::try_multiply(bytes, extent);
    return bytes;
}

/// One entry of the header.
[[nodiscard]] inline tensor
parse_tensor(std::string name, nlohmann::json const& entry, std::span<std::byte const> data) {
    if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets"))
        bad(name + " lacks dtype, shape or data_offsets");
    if (!entry["dtype"].is_string() || !entry["shape"].is_array() || !entry["data_offsets"].is_array() ||
        entry["data_offsets"].size() != 2)
        bad(name + " has a dtype, shape or data_offsets of another kind");
    auto const written = entry["dtype"].get<std::string>();
    auto const* known  = std::find_if(std::begin(type_names), std::end(type_names),
                                      [&](type_name const& t) { return written == t.name; });
    if (known == std::end(type_names)) bad(name + " has the unknown dtype " + written);

    tensor t{.name = std::move(name), .type = known->type};
    for (auto const& extent : entry["shape"]) t.shape.push_back(number(extent, t.name + ": an extent"));
    index_t const bytes = bytes_of(known->bytes, t.shape);
    if (bytes < 0) bad(t.name + ": its shape overflows");
    index_t const begin = number(entry["data_offsets"][0], t.name + ": an offset");
    index_t const end   = number(entry["data_offsets"][1], t.name + ": an offset");
    if (begin > end || end > static_cast<index_t>(data.size()))
        bad(t.name + " stands at [" + std::to_string(begin) + ", " + std::to_string(end) + ") of " +
            std::to_string(data.size()) + " bytes");
    if (end - begin != bytes)
        bad(t.name + " has " + std::to_string(end - begin) + " bytes, its shape needs " + std::to_string(bytes));
    t.data = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(bytes));
    return t;
}

} // namespace detail

/// The tensors of a file in memory, which must outlive them. Throws format_error.
[[nodiscard]] inline contents parse(std::span<std::byte const> bytes) {
    using detail::bad;
    std::uint64_t length = 0;
    if (bytes.size() < sizeof length) bad("truncated before the size of the header");
    std::memcpy(&length, bytes.data(), sizeof length);
    if (length > max_header || length > bytes.size() - sizeof length)
        bad("a header of " + std::to_string(length) + " bytes in a file of " + std::to_string(bytes.size()));
    auto const size = static_cast<std::size_t>(length);
    auto const data = bytes.subspan(sizeof length + size);
    auto header     = detail::parse_header({reinterpret_cast<char const*>(bytes.data() + sizeof length), size});

    contents out;
    for (auto const& [name, entry] : header.items()) {
        if (name != "__metadata__") {
            out.tensors.push_back(detail::parse_tensor(name, entry, data));
            continue;
        }
        if (!entry.is_object()) bad("__metadata__ is no object");
        for (auto const& [key, value] : entry.items()) {
            if (!value.is_string()) bad("__metadata__ holds more than text");
            out.metadata.emplace(key, value.get<std::string>());
        }
    }

    // Ends grow with begins, and empty tensors stand before the one that begins where they do.
    std::stable_sort(out.tensors.begin(), out.tensors.end(), [](tensor const& a, tensor const& b) {
        return a.data.data() != b.data.data() ? a.data.data() < b.data.data() : a.data.size() < b.data.size();
    });
    std::byte const* at = data.data();
    for (tensor const& t : out.tensors) {
        if (t.data.data() != at) bad(t.name + " overlaps the tensor before it, or leaves a hole");
        at += t.data.size();
    }
    if (at != data.data() + data.size())
        bad(std::to_string(data.data() + data.size() - at) + " bytes of data belong to no tensor");
    return out;
}

/// The values of a tensor. Throws format_error where it holds another type.
template <class T>
    requires(detail::dtype_of<T> != dtype::other)
[[nodiscard]] std::vector<T> values(tensor const& t) {
    if (t.type != detail::dtype_of<T>) detail::bad(t.name + " holds another type than the one asked for");
    std::vector<T> out(t.data.size() / sizeof(T));
    if (!out.empty()) std::memcpy(static_cast<void*>(out.data()), t.data.data(), t.data.size());
    return out;
}

/// A tensor [heads, tokens, head_dim] or [1, heads, tokens, head_dim]. Throws format_error where it has another type,
/// number of dimensions or number of values, or where heads x tokens overflow.
template <element T>
[[nodiscard]] heads_buffer<T> heads(tensor const& t) {
    std::span<index_t const> shape = t.shape;
    if (shape.size() == 4 && shape[0] == 1) shape = shape.subspan(1);
    if (shape.size() != 3) detail::bad(t.name + " is no tensor of heads, tokens and head_dim");
    std::vector<T> const read = values<T>(t);
    using butterfly::detail::try_multiply;
    if (try_multiply(try_multiply(shape[0], shape[1]), shape[2]) != static_cast<index_t>(read.size()))
        detail::bad(t.name + " has " + std::to_string(read.size()) + " values, its shape needs others or overflows");
    heads_buffer<T> out({shape[0], shape[1], shape[2]});
    std::copy(read.begin(), read.end(), out.values().begin());
    return out;
}

/// A tensor to be written: refers to `data`.
template <class T>
    requires(detail::dtype_of<T> != dtype::other)
[[nodiscard]] tensor make_tensor(std::string name, std::vector<index_t> shape, std::span<T const> data) {
    return {
        .name = std::move(name), .type = detail::dtype_of<T>, .shape = std::move(shape), .data = std::as_bytes(data)};
}

/// A file in memory, tensors in the order given, data aligned to 8 bytes. Throws shape_error where data is not what its
/// shape needs, where a name is there twice, or where a type cannot be written.
[[nodiscard]] inline std::vector<std::byte> encode(std::span<tensor const> tensors, metadata_map const& metadata = {}) {
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    index_t offset = 0;
    for (tensor const& t : tensors) {
        auto const* known   = std::find_if(std::begin(detail::type_names), std::end(detail::type_names),
                                           [&](auto const& n) { return n.type == t.type; });
        index_t const bytes = detail::bytes_of(known->bytes, t.shape);
        if (header.contains(t.name)) butterfly::detail::fail<shape_error>("safetensors: " + t.name + " is there twice");
        if (t.type == dtype::other || t.name == "__metadata__" || bytes != static_cast<index_t>(t.data.size()))
            butterfly::detail::fail<shape_error>("safetensors: cannot write " + t.name + ": " +
                                                 std::to_string(t.data.size()) + " bytes for a shape of " +
                                                 std::to_string(bytes) + ", or a name or type that has no place");
        header[t.name] = {{"dtype", known->name}, {"shape", t.shape}, {"data_offsets", {offset, offset + bytes}}};
        offset += bytes;
    }
    std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    text.resize(static_cast<std::size_t>(butterfly::detail::round_up(static_cast<index_t>(text.size()), 8)), ' ');
    std::vector<std::byte> out(8);
    auto const length = static_cast<std::uint64_t>(text.size());
    std::memcpy(out.data(), &length, sizeof length);
    auto const body = std::as_bytes(std::span(text));
    out.insert(out.end(), body.begin(), body.end());
    for (tensor const& t : tensors) out.insert(out.end(), t.data.begin(), t.data.end());
    return out;
}

/// Writes a file, replacing `path` only once all of it is written (core/file.hpp). Throws format_error with the
/// system's words where that fails, else as encode does.
inline void save(std::string const& path, std::span<tensor const> tensors, metadata_map const& metadata = {}) {
    std::vector<std::byte> const bytes = encode(tensors, metadata);
    butterfly::detail::replacement_file file("safetensors", path);
    file.write(bytes);
    file.commit();
}

/// The bytes of a file, for `parse`. Throws format_error with the system's words.
[[nodiscard]] inline std::vector<std::byte> read_bytes(std::string const& path) {
    return butterfly::detail::read_file("safetensors", path);
}

} // namespace butterfly::safetensors
