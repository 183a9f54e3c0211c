// SPDX-License-Identifier: MIT
#pragma once

// What a storage format is to the rest of the library, and the raw ones.
//
// A codec is a small value. It packs a row of `head_dim` floats into `row_bytes(head_dim)` bytes and back. Kernels read
// a codec's rows through its decode; a machine that reads them packed brings a leaf (backend/<machine>/codec/).
//
// A tile codec packs `tile_tokens` rows together, into tile_tokens * row_bytes(head_dim) bytes: what they share stands
// there once. Its tiles stand at multiples of tile_tokens, so that the address tile + j names row j and its tile both.

#include <butterfly/core/half.hpp>
#include <butterfly/core/index.hpp>
#include <butterfly/quant/row_length.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

namespace butterfly::quant {

/// A format that can be read.
///
///   row_bytes(head_dim)            bytes of one packed row
///   decode(row, head_dim, out)     the `head_dim` floats a packed row stands for
template <class C>
concept decoder = std::copyable<C> && requires(C const& c, std::byte const* row, index_t head_dim, float* out) {
    { c.row_bytes(head_dim) } -> std::same_as<index_t>;
    { c.decode(row, head_dim, out) }
    noexcept;
};

/// A format that can be read and written, row by row.
///
///   encode(values, head_dim, row)  packs `head_dim` floats
template <class C>
concept row_codec = decoder<C> && requires(C const& c, float const* values, index_t head_dim, std::byte* row) {
    { c.encode(values, head_dim, row) }
    noexcept;
};

/// A format whose rows are read by themselves and written `tile_tokens` at a time, a power of two.
///
///   decode(tile + j, head_dim, out)                  row j
///   encode_tile(values, stride, head_dim, tile)      packs rows of `head_dim` floats, one every `stride` floats
template <class C>
concept tile_codec = decoder<C> && requires(C const& c, float const* values, index_t n, std::byte* tile) {
    { C::tile_tokens } -> std::convertible_to<index_t>;
    requires(C::tile_tokens > 1 && (C::tile_tokens & (C::tile_tokens - 1)) == 0);
    { c.encode_tile(values, n, n, tile) }
    noexcept;
};

/// A format that can be read and written.
template <class C>
concept codec = row_codec<C> || tile_codec<C>;

/// A codec that says which it is, with its parameters: two that read the same bytes differently differ in name.
template <class C>
concept named = requires(C const& c) {
    { c.name() } -> std::convertible_to<std::string>;
};

/// A codec whose rows are said by a quant::row_format (row_format.hpp), its first member: kernels that know the format
/// need not know the codec.
template <class C>
concept formatted = decoder<C> && std::is_standard_layout_v<C> && requires(C const& c) {
    { c.format() }
    noexcept;
};

/// The format of a codec, which kernels read at the codec's own address.
template <formatted C>
[[nodiscard]] auto const& format_of(C const& codec) noexcept {
    BUTTERFLY_ASSERT(static_cast<void const*>(&codec.format()) == &codec); // it is the first member
    return codec.format();
}

/// Rows that a codec packs together.
template <decoder C>
[[nodiscard]] constexpr index_t tile_tokens_of() noexcept {
    if constexpr (tile_codec<C>)
        return C::tile_tokens;
    else
        return 1;
}

/// A row by its tile and its number there, from the address that names both.
template <index_t TileTokens>
struct tile_row {
    std::byte const* tile;
    index_t token;

    BUTTERFLY_HOST_DEVICE explicit tile_row(std::byte const* row) noexcept
        : tile(row), token(static_cast<index_t>(reinterpret_cast<std::uintptr_t>(row) % TileTokens)) {
        tile -= token;
    }
};

/// A codec's encode with its type erased: packs a tile of rows, one every `stride` floats, or one row where there are
/// no tiles.
using encoder =
    void (*)(void const* codec, float const* values, index_t stride, index_t head_dim, std::byte* to) noexcept;

/// Null where the codec can only be read.
template <decoder C>
[[nodiscard]] constexpr encoder encoder_of() noexcept {
    if constexpr (tile_codec<C>)
        return [](void const* codec, float const* values, index_t stride, index_t head_dim, std::byte* tile) noexcept {
            static_cast<C const*>(codec)->encode_tile(values, stride, head_dim, tile);
        };
    else if constexpr (row_codec<C>)
        return [](void const* codec, float const* values, index_t, index_t head_dim, std::byte* row) noexcept {
            static_cast<C const*>(codec)->encode(values, head_dim, row);
        };
    else
        return nullptr;
}

/// Throws shape_error where a codec cannot pack rows of head_dim values, with its rule; codecs without one take any,
/// and those whose rows are said by a row_format what kernels hold of such rows.
template <decoder C>
void require_head_dim([[maybe_unused]] index_t head_dim) {
    if constexpr (requires { C::require(head_dim); }) C::require(head_dim);
    if constexpr (formatted<C>) detail::require_row_step("rows of a row_format", head_dim);
}

/// Elements as they are: float, float16 or bfloat16. Writing rounds to nearest even.
template <element T>
struct raw {
    using value_type = T;

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return head_dim * static_cast<index_t>(sizeof(T));
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        for (index_t d = 0; d < head_dim; ++d) {
            T x;
            std::memcpy(&x, row + d * static_cast<index_t>(sizeof(T)), sizeof(T));
            out[d] = static_cast<float>(x);
        }
    }

    BUTTERFLY_HOST_DEVICE void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        for (index_t d = 0; d < head_dim; ++d) {
            T const x = static_cast<T>(values[d]);
            std::memcpy(row + d * static_cast<index_t>(sizeof(T)), &x, sizeof(T));
        }
    }

    [[nodiscard]] static constexpr char const* name() noexcept { return name_of(element_type_of<T>); }
};

static_assert(row_codec<raw<float>> && row_codec<raw<float16>> && row_codec<raw<bfloat16>>);

} // namespace butterfly::quant
