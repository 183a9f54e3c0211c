// SPDX-License-Identifier: MIT
#pragma once

// Register-blocked products of the tile class. Lanes hold query rows.
//
//   scores    S[j][r] = sum_d K[j][d] Q[d][r]       K [keys][head_dim] decoded, Q packed [head_dim][strip], S
//   [keys][strip] values    O[r][c] += sum_j S[j][r] V[j][c]      V [keys][columns] decoded, O [rows][columns]
//
// A strip is score_vectors * lanes query rows (48 with AVX-512). Numeric policy: f32 throughout; each product is one
// chain of FMAs in ascending d, or in ascending key: how rows and keys are grouped into blocks never changes a bit.
//
// Why this shape: with lanes over query rows the softmax needs no horizontal reduction, Q is transposed once per item
// instead of K once per key tile, and K and V rows are used as they are decoded. Per d: score_vectors loads and
// score_keys broadcasts feed score_vectors * score_keys FMAs (11 loads for 24). Rejected: keys in lanes with K
// transposed into panels (one transpose per tile and a horizontal max and sum per row).

#include <butterfly/backend/simd/batch.hpp>

#include <utility>

#if defined(__CUDACC__) // host code that nvcc reads on its way to the host compiler
#pragma nv_diag_suppress 1675
#endif

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

namespace block {

/// S[Keys][Vectors * lanes] of one register block.
template <class Isa, int Keys, int Vectors>
inline void score_tile(float const* queries, // [head_dim][strip]
                       float const* keys,    // [Keys][key_stride]
                       index_t key_stride,
                       index_t head_dim,
                       float* scores) noexcept { // [Keys][strip]
    constexpr index_t strip = strip_rows<Isa>;
    f32<Isa> sum[Keys][Vectors];
    for (auto& row : sum)
        for (auto& s : row) s = f32<Isa>(0.0F);
    for (index_t d = 0; d < head_dim; ++d) {
        f32<Isa> query[Vectors];
        for (int c = 0; c < Vectors; ++c) query[c] = load_as<Isa>(queries + d * strip + c * lanes<Isa>);
#pragma GCC unroll 8
        for (int j = 0; j < Keys; ++j) {
            f32<Isa> const key(keys[j * key_stride + d]);
            for (int c = 0; c < Vectors; ++c) sum[j][c] = fma(key, query[c], sum[j][c]);
        }
    }
    for (int j = 0; j < Keys; ++j)
        for (int c = 0; c < Vectors; ++c) sum[j][c].store_unaligned(scores + j * strip + c * lanes<Isa>);
}

/// O[Rows][Vectors * lanes] += of one register block.
template <class Isa, int Rows, int Vectors>
inline void value_tile(float const* weights, // [count][strip]
                       float const* values,  // [count][stride]
                       int count,
                       float* out, // [Rows][stride]
                       index_t stride) noexcept {
    constexpr index_t strip = strip_rows<Isa>;
    f32<Isa> sum[Rows][Vectors];
    for (int r = 0; r < Rows; ++r)
        for (int c = 0; c < Vectors; ++c) sum[r][c] = load_as<Isa>(out + r * stride + c * lanes<Isa>);
    for (int j = 0; j < count; ++j) {
        f32<Isa> value[Vectors];
        for (int c = 0; c < Vectors; ++c) value[c] = load_as<Isa>(values + j * stride + c * lanes<Isa>);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            f32<Isa> const weight(weights[j * strip + r]);
            for (int c = 0; c < Vectors; ++c) sum[r][c] = fma(weight, value[c], sum[r][c]);
        }
    }
    for (int r = 0; r < Rows; ++r)
        for (int c = 0; c < Vectors; ++c) sum[r][c].store_unaligned(out + r * stride + c * lanes<Isa>);
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

/// Scores of the keys [first, end) of a tile against the first `rows` rows of a strip. Rows and keys are rounded up to
/// whole vectors and register blocks; what is computed beyond them means nothing.
template <class Isa>
void score_strip(float const* queries, // [head_dim][strip]
                 int rows,
                 float const* keys, // [tile_slots][key_stride]
                 index_t key_stride,
                 int first,
                 int end,
                 index_t head_dim,
                 float* scores) noexcept { // [tile_slots][strip]
    constexpr int block = Isa::score_keys;
    block::with_constant<Isa::score_vectors>((rows + lanes<Isa> - 1) / lanes<Isa>, [&](auto vectors) {
        for (int j = first - first % block; j < end; j += block)
            block::score_tile<Isa, block, decltype(vectors)::value>(queries, keys + j * key_stride, key_stride,
                                                                    head_dim, scores + j * strip_rows<Isa>);
    });
}

/// out += weights * values over the keys [first, end) for the first `rows` rows of a strip, rounded up to register
/// blocks.
template <class Isa>
void accumulate_strip(float const* weights, // [tile_slots][strip]
                      int rows,
                      float const* values, // [tile_slots][stride]
                      int first,
                      int end,
                      float* out,                // [strip][stride]
                      index_t stride) noexcept { // a multiple of lanes
    constexpr int strip = strip_rows<Isa>;
    constexpr int most  = Isa::value_vectors;
    static_assert(strip % Isa::value_rows == 0, "a strip is a whole number of register blocks");
    for (index_t c = 0; c < stride; c += most * lanes<Isa>) {
        int const left = static_cast<int>((stride - c) / lanes<Isa>);
        block::with_constant<most>(left < most ? left : most, [&](auto vectors) {
            for (int r = 0; r < rows; r += Isa::value_rows)
                block::value_tile<Isa, Isa::value_rows, decltype(vectors)::value>(
                    weights + first * strip + r, values + first * stride + c, end - first, out + r * stride + c,
                    stride);
        });
    }
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
