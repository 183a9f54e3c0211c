// SPDX-License-Identifier: MIT
#pragma once

// How one side of a pool is kept: raw views in place, paged views, packed rows of any codec.
//
// A storage answers two questions, found by argument-dependent lookup or as members:
//
//   describe_storage(s)   addresses, shape and strides as plain data
//   codec_of(s)           the codec of its rows, by reference; it must live as long as the storage

#include <butterfly/core/heads.hpp>
#include <butterfly/quant/codec.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <algorithm>
#include <concepts>
#include <type_traits>

namespace butterfly {

namespace detail {

template <element T>
inline constexpr quant::raw<T> raw_codec{};

template <class C>
inline constexpr codec_id id_of = quant::formatted<C> ? codec_id::packed : codec_id::foreign;
template <>
inline constexpr codec_id id_of<quant::raw<float>> = codec_id::raw_f32;
template <>
inline constexpr codec_id id_of<quant::raw<float16>> = codec_id::raw_f16;
template <>
inline constexpr codec_id id_of<quant::raw<bfloat16>> = codec_id::raw_bf16;

} // namespace detail

/// A view is a storage of raw elements. Throws shape_error where a stride overflows in bytes.
template <class T>
[[nodiscard]] storage_ref describe_storage(heads_view<T> const& view) {
    using value         = std::remove_const_t<T>;
    constexpr auto size = static_cast<index_t>(sizeof(value));
    return {.data        = view.memory(),
            .shape       = view.shape(),
            .head_stride = detail::scaled_stride(view.strides().head, size, "view: head stride"),
            .slot_stride = detail::scaled_stride(view.strides().token, size, "view: token stride"),
            .codec       = detail::id_of<quant::raw<value>>};
}

template <class T>
[[nodiscard]] auto const& codec_of(heads_view<T> const&) noexcept {
    return detail::raw_codec<std::remove_const_t<T>>;
}

/// Raw elements in pages: slot s stands in page pages[s / page_size], row s mod page_size of it.
///
///   data + page * strides.page + head * strides.head + row * strides.token       (elements)
template <class T>
    requires element<std::remove_const_t<T>>
struct paged_view {
    struct page_strides {
        index_t page  = 0;
        index_t head  = 0;
        index_t token = 0;
    };

    T* data = nullptr;
    memory_ref pages{};    // int32 [ceil(tokens / page_size)]
    index_t page_size = 1; // a power of two
    heads_shape shape{};   // kv heads, tokens, head_dim
    page_strides strides{};
};

/// Throws shape_error where page_size is no power of two, the page table is null, or a stride overflows in bytes.
template <class T>
[[nodiscard]] storage_ref describe_storage(paged_view<T> const& view) {
    int shift = 0;
    while (shift < 31 && (index_t{1} << shift) < view.page_size) ++shift;
    if (view.page_size < 1 || (index_t{1} << shift) != view.page_size)
        detail::fail<shape_error>("paged_view: page_size " + std::to_string(view.page_size) + " is not a power of two");
    if (!view.pages && view.shape.tokens > 0) detail::fail<shape_error>("paged_view: the page table is null");
    constexpr auto size = static_cast<index_t>(sizeof(T));
    return {.data        = memory_ref(view.data),
            .shape       = view.shape,
            .head_stride = detail::scaled_stride(view.strides.head, size, "paged_view: head stride"),
            .slot_stride = detail::scaled_stride(view.strides.token, size, "paged_view: token stride"),
            .pages       = view.pages,
            .page_shift  = shift,
            .page_stride = detail::scaled_stride(view.strides.page, size, "paged_view: page stride"),
            .codec       = detail::id_of<quant::raw<std::remove_const_t<T>>>};
}

template <class T>
[[nodiscard]] auto const& codec_of(paged_view<T> const&) noexcept {
    return detail::raw_codec<std::remove_const_t<T>>;
}

/// Rows packed by any codec, with byte strides. Zero strides mean contiguous [heads, tokens, row_bytes]; rows of a tile
/// codec are contiguous tiles always, and its memory is aligned to as many bytes as a tile has tokens.
template <quant::decoder Codec>
struct packed_view {
    std::byte const* data = nullptr;
    Codec codec{};
    heads_shape shape{};      // kv heads, tokens, head_dim
    index_t head_stride  = 0; // bytes
    index_t token_stride = 0; // bytes
    memory_ref mean{};        // float [kv heads, head_dim], added to what rows decode to; null: zero
};

template <quant::decoder Codec>
packed_view(std::byte const*, Codec, heads_shape) -> packed_view<Codec>;

namespace detail {

/// The strides of a storage whose codec packs tiles of tokens: tiles take the place of pages.
template <quant::decoder Codec>
void stride_by_tiles(storage_ref& s, Codec const& codec) {
    constexpr index_t tile = quant::tile_tokens_of<Codec>();
    if constexpr (tile > 1) {
        while (index_t{1} << s.page_shift < tile) ++s.page_shift;
        s.page_stride = scaled_stride(codec.row_bytes(s.shape.head_dim), tile, "tiles: row bytes");
        s.slot_stride = 1;
    }
}

/// Throws shape_error where tiles do not begin at multiples of their tokens.
inline void check_tiles(storage_ref const& s) {
    if (s.page_shift == 0 || s.pages) return;
    index_t const tile = index_t{1} << s.page_shift;
    if (reinterpret_cast<std::uintptr_t>(s.data.base) % static_cast<std::uintptr_t>(tile) != 0 ||
        s.data.offset % tile != 0 || s.head_stride % tile != 0 || s.page_stride % tile != 0)
        fail<shape_error>("packed_view: tiles of " + std::to_string(tile) + " tokens must begin at multiples of " +
                          std::to_string(tile) + " bytes");
}

} // namespace detail

/// Throws shape_error where the codec cannot pack rows of head_dim, a head has more bytes than can be counted, or tiles
/// are not aligned.
template <quant::decoder Codec>
[[nodiscard]] storage_ref describe_storage(packed_view<Codec> const& view) {
    constexpr index_t tile = quant::tile_tokens_of<Codec>();
    quant::require_head_dim<Codec>(view.shape.head_dim);
    index_t const row =
        tile == 1 && view.token_stride != 0 ? view.token_stride : view.codec.row_bytes(view.shape.head_dim);
    index_t const tokens = detail::round_up(std::max<index_t>(view.shape.tokens, 0), tile);
    storage_ref s{.data        = memory_ref(view.data),
                  .shape       = view.shape,
                  .head_stride = view.head_stride != 0 ? view.head_stride
                                                       : detail::scaled_stride(row, tokens, "packed_view: row bytes"),
                  .slot_stride = row,
                  .mean        = view.mean,
                  .codec       = detail::id_of<Codec>};
    detail::stride_by_tiles(s, view.codec);
    detail::check_tiles(s);
    return s;
}

template <quant::decoder Codec>
[[nodiscard]] Codec const& codec_of(packed_view<Codec> const& view) noexcept {
    return view.codec;
}

/// What can be the keys or the values of a pool.
template <class S>
concept kv_storage = requires(S const& s) {
    { describe_storage(s) } -> std::same_as<storage_ref>;
    {codec_of(s)};
    requires quant::decoder<std::remove_cvref_t<decltype(codec_of(s))>>;
};

} // namespace butterfly
