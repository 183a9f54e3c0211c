// SPDX-License-Identifier: MIT
#pragma once

// Packed rows (quant/row_format.hpp) to floats, by vectors of bytes: equal to quant::detail::decode to the bit.
//
//   levels of a row     chunk by chunk: shifts and a byte shuffle
//                       base 6, digit by digit: d = x - 6 floor(x / 6), floor(x / 6) = 171 x >> 10 for any byte
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

/// The lowest digits of bytes in base 6, which are then divided by 6.
template <class Isa, class B>
[[nodiscard]] inline typename B::type take_digits(xsimd::batch<std::uint16_t, typename Isa::arch>& x) noexcept {
    using words      = xsimd::batch<std::uint16_t, typename Isa::arch>;
    words const even = ((x & words(255)) * words(171)) >> 10, odd = ((x >> 8) * words(171)) >> 10;
    words const quotient = even | (odd << 8), digits = x - quotient * words(6);
    x = quotient;
    return std::bit_cast<typename B::type>(digits.data);
}

/// Levels of a row in base 6. From the last vector to the first: what one stores behind its digits is stored over.
template <class Isa, class B>
void unpack_base6(std::byte const* codes, index_t n, typename B::table const& table, std::int8_t* to) noexcept {
    using words         = xsimd::batch<std::uint16_t, typename Isa::arch>;
    index_t const bytes = bytes_of<packing::base6>(n), whole = bytes - bytes % B::size;
    for (index_t i = whole < bytes ? whole : whole - B::size; i >= 0; i -= B::size) {
        auto const packed = i < whole ? B::load(codes + i) : B::load_few(codes + i, bytes - i);
        words x(std::bit_cast<typename words::register_type>(packed));
        for (int digit = 0; digit < 3; ++digit)
            B::store(B::look_up(table, take_digits<Isa, B>(x)), to + digit * bytes + i);
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
