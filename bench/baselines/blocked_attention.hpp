// SPDX-License-Identifier: MIT
#pragma once

// Dense causal attention as a careful user writes it over a matrix library: the peer our own dense kernel is held
// against.
//
//   for each query head, for each block of 128 of its rows, longest first:
//       for each block of keys up to the last that one of them sees:
//           S = Q_block K_block^T                                        one product
//           P = exp(scale * (S - row max so far)), zero above the diagonal, vectorised
//           O = O * exp(scale * (old max - new max)) + P V_block         one product
//       O / row sums
//
// Threads take (head, block) pairs; the library's products run on the thread that asks. All f32. Scores stand in memory
// of the caller, who keeps it between calls.

#include <butterfly/core/executor.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <limits>
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

inline constexpr index_t block_rows = 128;

/// Keys of a block. Up to here one product is fastest, though its scores leave L2 (Zen 5, 4096 tokens, d = 128, two
/// threads, oneDNN f32: 274, 267 and 307 GFLOP/s for 256, 512 and 1024 keys, 325 for all); beyond, blocks are (16384:
/// 255 for 1024, 210 for all; with 4096 the rate of 4096 tokens is kept).
inline constexpr index_t block_keys = 4096;

/// The online softmax of a block of rows.
struct row_states {
    float top[block_rows]; // largest score so far
    float sum[block_rows];

    explicit row_states(index_t rows) {
        std::fill_n(top, rows, -std::numeric_limits<float>::infinity());
        std::fill_n(sum, rows, 0.0F);
    }

    /// Scores of row i become weights: `visible` of them, zeros after these. `out` is brought to the new maximum.
    void
    push(index_t i, Eigen::Map<Eigen::ArrayXf> scores, index_t visible, float scale, Eigen::Map<Eigen::ArrayXf> out) {
        auto seen         = scores.head(visible);
        float const grown = std::max(top[i], visible > 0 ? seen.maxCoeff() : top[i]);
        if (grown > top[i] && sum[i] > 0.0F) {
            float const factor = std::exp((top[i] - grown) * scale);
            out *= factor;
            sum[i] *= factor;
        }
        top[i] = grown;
        seen   = ((seen - grown) * scale).exp();
        sum[i] += seen.sum();
        scores.tail(scores.size() - visible).setZero();
    }
};

/// Scratch of a call: the scores of a block for each thread.
[[nodiscard]] inline std::vector<float> make_scores(int threads) {
    return std::vector<float>(static_cast<std::size_t>(threads * block_rows * block_keys));
}

/// One block of rows of one head. `scores` holds block_rows x block_keys floats.
template <class Products>
void attend_block(dense_inputs const& p, Products const& products, index_t head, index_t first, float* scores) {
    index_t const rows   = std::min(block_rows, p.tokens - first);
    index_t const prefix = first + rows;
    index_t const kv     = head / (p.heads / p.kv_heads) * p.tokens * p.head_dim;
    index_t const at     = (head * p.tokens + first) * p.head_dim;
    auto const scale     = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.head_dim)));

    matrix_ref<float> const out{p.out + at, rows, p.head_dim};
    auto const out_row = [&](index_t i) { return Eigen::Map<Eigen::ArrayXf>(out.data + i * p.head_dim, p.head_dim); };
    std::fill_n(out.data, rows * p.head_dim, 0.0F);
    row_states states(rows);
    for (index_t key = 0; key < prefix; key += block_keys) {
        index_t const keys = std::min(block_keys, prefix - key), here = kv + key * p.head_dim;
        products.times_transposed(matrix_ref<float const>{p.q + at, rows, p.head_dim},
                                  matrix_ref<float const>{p.k + here, keys, p.head_dim},
                                  matrix_ref<float>{scores, rows, keys});
        for (index_t i = 0; i < rows; ++i)
            states.push(i, Eigen::Map<Eigen::ArrayXf>(scores + i * keys, keys),
                        std::clamp<index_t>(first + i + 1 - key, 0, keys), scale, out_row(i));
        products.add_times(matrix_ref<float const>{scores, rows, keys},
                           matrix_ref<float const>{p.v + here, keys, p.head_dim}, out);
    }
    for (index_t i = 0; i < rows; ++i) out_row(i) /= states.sum[i];
}

/// Products: times_transposed(a, b, out) is out = a b^T; add_times(a, b, out) is out += a b.
template <class Products>
void blocked_attention(dense_inputs const& p,
                       Products const& products,
                       std::span<float> scores, // make_scores
                       bf::executor const& threads) {
    index_t const blocks = (p.tokens + block_rows - 1) / block_rows;
    threads.each(blocks * p.heads, [&](index_t item, int thread) noexcept {
        attend_block(p, products, item % p.heads, (blocks - 1 - item / p.heads) * block_rows,
                     scores.data() + thread * block_rows * block_keys);
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
