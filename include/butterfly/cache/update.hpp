// SPDX-License-Identifier: MIT
#pragma once

// What a policy is given when a cache changes: plain data, and nothing of which cache it is. A policy brings four
// functions, found by argument-dependent lookup:
//
//   update_cache(policy, update, workspace, commit)   condense `before`, store, condense `after`, in this order; then
//                                                     calls commit() once, on one of the participants of the call
//   shift_cache(policy, shift, workspace, commit)     move, then turn what has moved; commit() as above
//   workspace_bytes(policy, update or shift)          scratch it needs
//   copy_bytes(policy, from, to, bytes)               copies memory of the policy
//
// To condense blocks is to summarise each to one slot of `summaries`, or to pack its tokens into `packed`:
//
//   mean     before block 0 is packed, mean(h) = (sum of tokens [0, centre) of `rows`) / centre is written to
//            packed.mean, where centre > 0: fp32 sums in token order, divided once; 0 where it is not finite
//   pack     encode(x - mean), the tokens of a tile together; in the place of tokens before `skip`, which are seen
//            elsewhere, the tile has the first token after them, or zeros where it has none
//
// To turn rows is decode(x) + mean -> rope.hpp -> less the mean -> encode, the tokens of a tile together; channels
// without a position are only decoded and encoded.

#include <butterfly/cache/pooling.hpp>
#include <butterfly/cache/rope.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <array>
#include <cstddef>

namespace butterfly {

/// Rows to be packed: token i of `from` goes to slot first_slot + i of `to`, for every head.
struct row_store {
    tensor_ref from{}; // [kv_heads, tokens, head_dim]; null memory: every element is one
    storage_ref to{};
    index_t first_slot = 0;
};

/// Blocks to be condensed: tokens [n * block_size, (n + 1) * block_size), those before `skip` left out, go to slot n of
/// summaries, or to slots of their own numbers, for n in [first, end).
struct block_range {
    index_t first = 0;
    index_t end   = 0;
};

/// One change of a cache.
struct cache_update {
    std::array<row_store, 5> stores{}; // with token_weights, the last one is theirs
    std::size_t store_count = 0;

    block_range before{};       // blocks to be condensed before rows are stored
    block_range after{};        // and after
    storage_ref rows[2]{};      // keys, values: slots are absolute positions
    storage_ref summaries[2]{}; // keys, values: slots are blocks; null: none are made
    storage_ref packed[2]{};    // keys, values: slots are absolute positions; null: none are packed
    index_t centre[2]{};        // keys, values: tokens of which packed.mean is the mean; 0: there is no mean
    index_t block_size = 1;     // of `packed`, a multiple of the tokens of a tile
    index_t skip       = 0;     // tokens that are not condensed
    memory_ref token_weights{}; // float [rows' ring]; null: one
    memory_ref log_weights{};   // float [blocks], written; null: not kept
    pooling_ref pool{};

    void add(row_store const& store) noexcept { stores[store_count++] = store; }
};

/// Rows that move: those of slots [first, end) come to stand in [first - by, end - by), for every head. All are whole
/// tiles. In a ring, rows may stand where others are to come.
struct slot_move {
    storage_ref rows{};
    index_t first = 0;
    index_t end   = 0;
    index_t by    = 0;
    bool turns    = false; // keys, which the rope turns when they have moved
};

/// Tokens taken out of a cache: what stands after them moves.
struct cache_shift {
    std::array<slot_move, 6> moves{};
    std::size_t move_count = 0;
    index_t positions      = 0; // by which keys are turned back
    butterfly::rope rope{};     // no frequencies: none is turned

    void add(slot_move const& move) noexcept { moves[move_count++] = move; }
};

} // namespace butterfly
