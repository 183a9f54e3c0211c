// SPDX-License-Identifier: MIT
#pragma once

// Dense causal attention as a careful user writes it over a matrix library: the peer our own dense kernel is held
// against.
//
//   for each query head, for each block of 128 of its rows, longest first:
//       S = Q_block K_prefix^T        one product; keys after the block are never touched
//       P = exp(scale * (S - row max)), zero above the diagonal, vectorised
//       O = P V_prefix / row sums     one product
//
// Threads take (head, block) pairs; the library's products run on the thread that asks. All f32. Scores stand in memory
// of the caller, who keeps it between calls.

#include <butterfly/core/executor.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace bench {

namespace bf = butterfly;
using bf::index_t;

/// Contiguous tensors: q, out [heads, tokens, head_dim]; k, v [kv_heads, tokens, head_dim].
struct dense_inputs {
    float const* q   = nullptr;
    float const* k   = nullptr;
    float const* v   = nullptr;
    float* out       = nullptr;
    index_t heads    = 0;
    index_t kv_heads = 0;
    index_t tokens   = 0;
    index_t head_dim = 0;
};

/// A row-major matrix somebody else owns.
template <class T>
struct matrix_ref {
    T* data      = nullptr;
    index_t rows = 0;
    index_t cols = 0;
};

/// exp(scale * (s - max)) over the first `visible` of a row, zero after them; returns the sum.
inline float exponentiate(float* row, index_t visible, index_t cols, float scale) {
    Eigen::Map<Eigen::ArrayXf> s(row, visible);
    float const top = s.maxCoeff();
    s               = ((s - top) * scale).exp();
    std::fill(row + visible, row + cols, 0.0F);
    return s.sum();
}

inline constexpr index_t block_rows = 128;

/// Scratch of a call: the scores of a block for each thread.
[[nodiscard]] inline std::vector<float> make_scores(index_t tokens, int threads) {
    return std::vector<float>(static_cast<std::size_t>(threads * block_rows * tokens));
}

/// One block of rows of one head. `scores` holds block_rows x tokens floats.
template <class Products>
void attend_block(dense_inputs const& p, Products const& products, index_t head, index_t first, float* scores) {
    index_t const rows   = std::min(block_rows, p.tokens - first);
    index_t const prefix = first + rows;
    index_t const kv     = head / (p.heads / p.kv_heads) * p.tokens * p.head_dim;
    index_t const at     = (head * p.tokens + first) * p.head_dim;
    auto const scale     = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.head_dim)));

    matrix_ref<float> const s{scores, rows, prefix};
    products.times_transposed(matrix_ref<float const>{p.q + at, rows, p.head_dim},
                              matrix_ref<float const>{p.k + kv, prefix, p.head_dim}, s);
    float sums[block_rows];
    for (index_t i = 0; i < rows; ++i) sums[i] = exponentiate(scores + i * prefix, first + i + 1, prefix, scale);
    matrix_ref<float> const out{p.out + at, rows, p.head_dim};
    products.times(matrix_ref<float const>{scores, rows, prefix}, matrix_ref<float const>{p.v + kv, prefix, p.head_dim},
                   out);
    for (index_t i = 0; i < rows; ++i) Eigen::Map<Eigen::ArrayXf>(out.data + i * p.head_dim, p.head_dim) /= sums[i];
}

/// Products: times_transposed(a, b, out) is out = a b^T; times(a, b, out) is out = a b.
template <class Products>
void blocked_attention(dense_inputs const& p,
                       Products const& products,
                       std::span<float> scores, // make_scores
                       bf::executor const& threads) {
    index_t const blocks = (p.tokens + block_rows - 1) / block_rows;
    threads.each(blocks * p.heads, [&](index_t item, int thread) noexcept {
        attend_block(p, products, item % p.heads, (blocks - 1 - item / p.heads) * block_rows,
                     scores.data() + thread * block_rows * p.tokens);
    });
}

void eigen_attention(dense_inputs const& p, std::span<float> scores, bf::executor const& threads);

/// False where this build has no OpenBLAS: then openblas_attention does nothing.
[[nodiscard]] bool has_openblas() noexcept;
/// The CPU whose kernels OpenBLAS chose: one older than this CPU may take its AVX2 ones. OPENBLAS_CORETYPE=SkylakeX
/// asks for AVX-512.
[[nodiscard]] char const* openblas_kernels() noexcept;
void openblas_attention(dense_inputs const& p, std::span<float> scores, bf::executor const& threads);

} // namespace bench
