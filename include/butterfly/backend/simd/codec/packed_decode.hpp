// SPDX-License-Identifier: MIT
#pragma once

// Packed rows (quant/row_format.hpp) to floats, by vectors of bytes: equal to quant::detail::decode to the bit.
//
//   levels of a row     chunk by chunk: shifts and a byte shuffle
//                       base 6: x / 216 as a fraction f = 304 x / 2^16; the next digit is what is whole of 6 f, as for
//                       any byte: 304 is just so much more than 2^16 / 216
//   out                 scale * (level + zero), group by group, rotated back where rows are
//
// Levels of a whole row stand in memory between the two, so that neither knows of the other: groups end within chunks,
// and the digits of base 6 in the middle of a vector. Groups are of a multiple of 16 values.

#include <butterfly/backend/simd/bytes.hpp>
#include <butterfly/backend/simd/codec/packed.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>

#if defined(__AVX2__) || defined(__aarch64__)

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {
namespace packed {

/// Whether rows are decoded here: values of a vector of floats are of one group.
[[nodiscard]] inline bool is_decoded(row_format const& f) noexcept {
    return f.group % quant::row_step == 0;
}

/// Levels of a row, and room for what vectors store behind them.
struct row_levels {
    alignas(64) std::int8_t at[quant::longest_row + chunk];
};

/// Levels of a chunk of `count` values; what stands after them, up to 64, means nothing.
template <class B, packing Codes>
[[gnu::always_inline]] inline void
unpack_chunk(std::byte const* codes, index_t count, typename B::table const& table, std::int8_t* to) noexcept {
    typename B::type levels[B::vectors];
    B::template unpack<Codes>(codes, count, table, 0, levels);
    for (int v = 0; v < B::vectors; ++v) B::store(levels[v], to + v * B::size);
}

/// The three digits of bytes in base 6, the lowest first.
template <class Isa, class B>
[[gnu::always_inline]] inline void take_digits(typename B::type bytes, typename B::type* digits) noexcept {
    using words = xsimd::batch<std::uint16_t, typename Isa::arch>;
    words const x(std::bit_cast<typename words::register_type>(bytes));
    words even = B::products(x & words(255), 304), odd = B::products(x >> 8, 304);
    for (int i = 2; i >= 0; --i) {
        words const both = B::high_products(even, 6) | (B::high_products(odd, 6) << 8);
        digits[i]        = std::bit_cast<typename B::type>(both.data);
        if (i > 0) {
            even = B::products(even, 6);
            odd  = B::products(odd, 6);
        }
    }
}

/// Levels of a row in base 6. From the last vector to the first: what one stores behind its digits is stored over.
template <class Isa, class B>
void unpack_base6(std::byte const* codes, index_t n, typename B::table const& table, std::int8_t* to) noexcept {
    index_t const bytes = bytes_of<packing::base6>(n), whole = bytes - bytes % B::size;
    for (index_t i = whole < bytes ? whole : whole - B::size; i >= 0; i -= B::size) {
        typename B::type digits[3];
        take_digits<Isa, B>(i < whole ? B::load(codes + i) : B::load_few(codes + i, bytes - i), digits);
        for (int d = 0; d < 3; ++d) B::store(B::look_up(table, digits[d]), to + d * bytes + i);
    }
}

/// Levels of a row.
template <class Isa, class B, packing Codes>
void unpack_row(std::byte const* codes, index_t n, typename B::table const& table, row_levels& to) noexcept {
    if constexpr (Codes == packing::base6)
        unpack_base6<Isa, B>(codes, n, table, to.at);
    else
        by_chunks(0, n, [&](index_t first, index_t count) {
            unpack_chunk<B, Codes>(codes + bytes_of<Codes>(first), count, table, to.at + first);
        });
}

/// out[i] = scale * (level[i] + zero) for i in [begin, end), whole vectors of floats.
template <class Isa, class B>
void scale_levels(
    std::int8_t const* levels, index_t begin, index_t end, quant::detail::group_scale s, float* out) noexcept {
    f32<Isa> const scale(s.scale), zero(s.zero);
    for (index_t i = begin; i < end; i += lanes<Isa>)
        (scale * (B::template widen<Isa>(levels + i) + zero)).store_unaligned(out + i);
}

/// decode: equals quant::detail::decode.
template <class Isa, class B, packing Codes>
void decode(
    void const* codec, std::byte const* const* rows, int count, index_t n, float* out, index_t stride) noexcept {
    row_format const& f = format_of(codec);
    auto const table    = B::table_of(f, 0);
    index_t const group = group_of(f, n);
    inverse_rotation const back(f.seed, f.rotated ? n : quant::row_step);
    row_levels levels;
    for (int j = 0; j < count; ++j) {
        float* const to = out + j * stride;
        unpack_row<Isa, B, Codes>(rows[j] + f.header_bytes(n), n, table, levels);
        for (index_t begin = 0, g = 0; begin < n; begin += group, ++g)
            scale_levels<Isa, B>(levels.at, begin, std::min(begin + group, n), quant::detail::load_group(f, rows[j], g),
                                 to);
        if (f.rotated) back.apply<Isa>(to);
    }
}

} // namespace packed
} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#endif
