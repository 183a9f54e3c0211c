// SPDX-License-Identifier: MIT
#pragma once

// What multiplies in the tile class. Both products of attention take one form, with query rows r in lanes:
//
//   C[i][r] = C[i][r] * factor[r] + sum_k A[i][k] B[k][r]
//
//   scores    C = S   [key][r]       A = K   [key][channel]      B = Q^T  [channel][r]
//   values    C = O^T [column][r]    A = V^T [column][key]       B = P^T  [key][r]
//
// so the softmax between them has no horizontal step, and a rescaled row is a lane. A unit is a table of functions for
// one kind of operand. Operands stand in 32-bit words along k: one f32, or two neighbouring bf16.

#include <butterfly/backend/simd/batch.hpp>
#include <butterfly/backend/simd/isa.hpp>
#include <butterfly/core/index.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <cstddef>
#include <cstdint>

namespace butterfly::backend::vec {

/// Rows that will be read or written soon. A unit fetches some of them into the second cache before each register
/// block: the block's products hide them, and those of all blocks at once would wait for memory.
struct fetch_queue {
    struct row {
        std::byte const* from;
        index_t skip; // bytes from there to the row, which may be beyond what is there
        index_t bytes;
    };
    row const* next = nullptr;
    row const* end  = nullptr;
    int at_once     = 0; // rows before a block

    [[gnu::always_inline]] void fetch_some() noexcept {
        for (int i = 0; i < at_once && next != end; ++i, ++next) fetch<2>(next->from, next->skip, next->bytes);
    }
    [[gnu::always_inline]] void fetch_rest() noexcept {
        for (; next != end; ++next) fetch<2>(next->from, next->skip, next->bytes);
    }
};

/// Functions and shapes of one unit. What is not packed in tiles has a stride, and is read in place where its rows are
/// of the unit's own kind. Ranges of keys are [first, end) within a tile of tile_slots.
struct tile_unit {
    char const* name;
    int strip;    // rows of B and C: a multiple of the lanes
    int high;     // keys or columns of a register block
    int rows;     // of an item, whole strips: they share packed keys and values
    int most;     // of an item whose keys are walked in spans, whole strips too: rows of few tokens share one pass
    int pairs;    // operands of a word: 1 f32, 2 bf16
    int key_step; // weights are zero up to a multiple of it on both sides of [first, end)

    /// Words from one packed key, and from one packed value or pair of values, to the next; null: packed in tiles.
    index_t (*key_stride)(index_t head_dim) noexcept;
    index_t (*value_stride)(index_t head_dim) noexcept;

    /// Around the products of a key tile, on their thread; null: nothing to do.
    void (*start)() noexcept;
    void (*stop)() noexcept;

    /// Raw bf16 rows to A of the scores and of the values; null: the codec decodes to f32, [key][operand_stride].
    void (*pack_keys)(std::byte const* const* rows, int first, int end, index_t head_dim, std::uint32_t* keys) noexcept;
    void (*pack_values)(
        std::byte const* const* rows, int first, int end, index_t head_dim, std::uint32_t* values) noexcept;

    /// scores[key][strip] for `rows` rows; what stands beyond them or outside [first, end) means nothing.
    void (*score)(std::uint32_t const* keys,
                  index_t key_stride,
                  int first,
                  int end,
                  index_t head_dim,
                  std::uint32_t const* queries,
                  int rows,
                  fetch_queue& ahead,
                  float* scores) noexcept;
    /// out[column][strip] = out * factor + sum over keys, or, where `fresh`, the sum alone. factor: [strip]; null: 1.
    void (*accumulate)(std::uint32_t const* values,
                       index_t value_stride,
                       int first,
                       int end,
                       index_t head_dim,
                       std::uint32_t const* weights,
                       int rows,
                       bool fresh,
                       fetch_queue& ahead,
                       float const* factor,
                       float* out) noexcept;
};

/// Operands are padded to this many channels or columns, with zeros.
inline constexpr index_t operand_step = 32;

/// Words from one row of f32 operands to the next: off the powers of two, whose rows would share sets of the cache.
[[nodiscard]] inline index_t operand_stride(index_t head_dim) noexcept {
    return butterfly::detail::round_up(head_dim, operand_step) + 16;
}

/// Words of a tile of keys or values, whatever the unit.
[[nodiscard]] inline index_t operand_words(index_t head_dim) noexcept {
    return tile_slots * operand_stride(head_dim);
}

/// Rows of C that `columns` value columns take.
[[nodiscard]] constexpr index_t column_rows(index_t columns) noexcept {
    return butterfly::detail::round_up(columns, operand_step);
}

} // namespace butterfly::backend::vec
