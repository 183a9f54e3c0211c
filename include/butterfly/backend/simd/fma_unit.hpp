// SPDX-License-Identifier: MIT
#pragma once

// The tile unit of every instruction set: f32 operands, fused multiply-add.
//
// Register block: block_height values of i times strip_vectors vectors of rows. Per k: strip_vectors loads of B and
// block_height broadcasts of A feed strip_vectors * block_height FMAs (11 loads for 24). The same block serves both
// products; A is read along k for scores and across k for values, so neither keys nor values are transposed.
//
// Numeric policy: each sum is one chain of FMAs in ascending k: how rows and keys are grouped never changes a bit.
// Rejected: keys in lanes, which transposes K once per tile and needs a horizontal maximum and sum per row; O as
// [row][column], which needs a second block shape and a pass over O for every new maximum.

#include <butterfly/backend/simd/batch.hpp>
#include <butterfly/backend/simd/tile_unit.hpp>

#include <utility>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

namespace block {

/// One register block of C: [Isa::block_height][Vectors * lanes]. A[i][k] stands at a[i * stride + k] where AlongK, at
/// a[k * stride + i] where not. C is read first, times factor where there is one, unless `fresh`.
template <class Isa, int Vectors, bool AlongK>
inline void multiply(float const* a,
                     index_t stride,
                     float const* b, // [count][strip]
                     index_t count,
                     bool fresh,
                     float const* factor,
                     float* c) noexcept { // [block_height][strip]
    constexpr index_t strip = strip_rows<Isa>;
    constexpr int height    = Isa::block_height;
    f32<Isa> sum[height][Vectors];
    for (int i = 0; i < height; ++i)
        for (int v = 0; v < Vectors; ++v)
            sum[i][v] = fresh ? f32<Isa>(0.0F) : load_as<Isa>(c + i * strip + v * lanes<Isa>);
    if (!fresh && factor != nullptr)
        for (int i = 0; i < height; ++i)
            for (int v = 0; v < Vectors; ++v) sum[i][v] = sum[i][v] * load_as<Isa>(factor + v * lanes<Isa>);
    for (index_t k = 0; k < count; ++k) {
        f32<Isa> row[Vectors];
        for (int v = 0; v < Vectors; ++v) row[v] = load_as<Isa>(b + k * strip + v * lanes<Isa>);
#pragma GCC unroll 8
        for (int i = 0; i < height; ++i) {
            f32<Isa> const one(AlongK ? a[i * stride + k] : a[k * stride + i]);
            for (int v = 0; v < Vectors; ++v) sum[i][v] = fma(one, row[v], sum[i][v]);
        }
    }
    for (int i = 0; i < height; ++i)
        for (int v = 0; v < Vectors; ++v) sum[i][v].store_unaligned(c + i * strip + v * lanes<Isa>);
}

/// Calls f(integral_constant<int, n>) for n in [1, Most].
template <int Most, class F>
inline void with_constant(int n, F const& f) noexcept {
    if constexpr (Most > 1) {
        if (n < Most) return with_constant<Most - 1>(n, f);
    }
    f(std::integral_constant<int, Most>{});
}

} // namespace block

/// score of tile_unit.
template <class Isa>
void fma_score(std::uint32_t const* keys,
               index_t key_stride,
               int first,
               int end,
               index_t head_dim,
               std::uint32_t const* queries,
               int rows,
               fetch_queue& ahead,
               float* scores) noexcept {
    auto const* const a = reinterpret_cast<float const*>(keys);
    auto const* const b = reinterpret_cast<float const*>(queries);
    block::with_constant<Isa::strip_vectors>((rows + lanes<Isa> - 1) / lanes<Isa>, [&](auto vectors) {
        for (int j = first - first % Isa::block_height; j < end; j += Isa::block_height) {
            ahead.fetch_some();
            block::multiply<Isa, decltype(vectors)::value, true>(a + j * key_stride, key_stride, b, head_dim, true,
                                                                 nullptr, scores + j * strip_rows<Isa>);
        }
    });
}

/// accumulate of tile_unit.
template <class Isa>
void fma_accumulate(std::uint32_t const* values,
                    index_t stride,
                    int first,
                    int end,
                    index_t head_dim,
                    std::uint32_t const* weights,
                    int rows,
                    bool fresh,
                    fetch_queue& ahead,
                    float const* factor,
                    float* out) noexcept {
    auto const* const a = reinterpret_cast<float const*>(values) + first * stride;
    auto const* const b = reinterpret_cast<float const*>(weights) + first * strip_rows<Isa>;
    block::with_constant<Isa::strip_vectors>((rows + lanes<Isa> - 1) / lanes<Isa>, [&](auto vectors) {
        for (index_t c = 0; c < head_dim; c += Isa::block_height) {
            ahead.fetch_some();
            block::multiply<Isa, decltype(vectors)::value, false>(a + c, stride, b, end - first, fresh, factor,
                                                                  out + c * strip_rows<Isa>);
        }
    });
}

template <class Isa>
inline constexpr tile_unit fma_unit{.name         = "f32",
                                    .strip        = strip_rows<Isa>,
                                    .high         = Isa::block_height,
                                    .rows         = 288,
                                    .most         = 1056,
                                    .pairs        = 1,
                                    .key_step     = 1,
                                    .key_stride   = &operand_stride,
                                    .value_stride = &operand_stride,
                                    .start        = nullptr,
                                    .stop         = nullptr,
                                    .pack_keys    = nullptr,
                                    .pack_values  = nullptr,
                                    .score        = &fma_score<Isa>,
                                    .accumulate   = &fma_accumulate<Isa>};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
