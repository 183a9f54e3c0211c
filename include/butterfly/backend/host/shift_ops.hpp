// SPDX-License-Identifier: MIT
#pragma once

// How a host takes tokens out of a cache, with any codec and any host policy.
//
//   move    bytes as they are, forward; the rows of a ring go round
//   turn    decode -> plus the mean, where there is one -> x' = x cos + y sin, y' = y cos - x sin (cache/rope.hpp) ->
//           less the mean -> encode, row by row or a tile at a time
//
// An item of work is all rows of a head that move, or a run of 64 rows to be turned (or a tile that is larger). Rows
// are turned where they have come to stand, each by itself or with its tile, so bits depend on no threads.
//
// In a ring of R rows position p goes from row p mod R to row (p - n) mod R: n mod R rows back, or R - n mod R further
// on. Moved one by one in either order, a row may come to stand where another has not gone yet. So the whole ring goes
// round by n mod R, with the rows of it that mean nothing.

#include <butterfly/backend/host/cache_ops.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

namespace butterfly::backend {
namespace on_host {

/// Scratch of a shift: what its threads share, and one buffer for each.
struct shift_scratch {
    float* cosines; // [pairs]
    float* sines;   // [pairs]
    std::byte* rows;
    index_t rows_bytes; // of one thread: float [largest tile][widest row]

    [[nodiscard]] static index_t widest(cache_shift const& s) noexcept {
        index_t most = 1;
        for (slot_move const& m : used(s)) most = std::max(most, m.turns ? m.rows.shape.head_dim : 1);
        return most;
    }
    [[nodiscard]] static index_t tile_bytes(cache_shift const& s) noexcept {
        index_t most = 1;
        for (slot_move const& m : used(s)) most = std::max(most, m.turns ? tile_of(m.rows) : 1);
        return scratch_bytes<float>(most * widest(s));
    }
    [[nodiscard]] static index_t bytes(cache_shift const& s, int threads) noexcept {
        return 2 * scratch_bytes<float>(widest(s) / 2) + threads * tile_bytes(s);
    }
    [[nodiscard]] static std::span<slot_move const> used(cache_shift const& s) noexcept {
        return {s.moves.data(), s.move_count};
    }

    shift_scratch(cache_shift const& s, std::byte* memory) noexcept {
        carver c(memory);
        cosines    = c.take<float>(widest(s) / 2);
        sines      = c.take<float>(widest(s) / 2);
        rows       = memory + c.taken();
        rows_bytes = tile_bytes(s);
    }

    [[nodiscard]] float* of(int thread) const noexcept { return reinterpret_cast<float*>(rows + thread * rows_bytes); }
};

/// Moves the rows of one head.
inline void move_rows(slot_move const& m, index_t head) noexcept {
    storage_ref const& s  = m.rows;
    std::byte* const from = row_address(s, head, s.ring == 0 ? m.first : m.by);
    std::byte* const to   = row_address(s, head, s.ring == 0 ? m.first - m.by : 0);
    if (s.ring != 0)
        std::rotate(to, from, to + s.ring * s.slot_stride);
    else
        std::memmove(to, from, static_cast<std::size_t>(row_address(s, head, m.end) - from));
}

/// Turns slots [first, end) of one head, which are whole tiles.
inline void turn_rows(cache_shift const& u,
                      storage_ref const& s,
                      index_t head,
                      index_t first,
                      index_t end,
                      float* rows,
                      shift_scratch const& at) noexcept {
    index_t const dim       = s.shape.head_dim;
    index_t const tile      = tile_of(s);
    auto const* const ops   = static_cast<codec_ops const*>(s.ops);
    float const* const mean = mean_of(s, head);
    index_t const turned    = mean == nullptr ? 0 : u.rope.dims(); // channels that need the mean
    for (; first < end; first += tile) {
        for (index_t j = 0; j < tile; ++j) {
            float* const x             = rows + j * dim;
            std::byte const* const row = row_address(s, head, first + j);
            ops->decode(s.codec_state, &row, 1, dim, x, dim);
            for (index_t d = 0; d < turned; ++d) x[d] += mean[d];
            detail::turn_back(u.rope.pairs, u.rope.dims() / 2, at.cosines, at.sines, x);
            for (index_t d = 0; d < turned; ++d) x[d] -= mean[d];
        }
        encode_row(s, rows, row_address(s, head, first));
    }
}

/// Threads of one shift and their buffers.
struct shift_team {
    executor const& threads;
    shift_scratch at;
    cache_shift const& u;

    void move() const noexcept {
        index_t const heads = u.moves[0].rows.shape.heads; // those of weights have one
        threads.each(heads * static_cast<index_t>(u.move_count), [&](index_t item, int) noexcept {
            slot_move const& m = u.moves[static_cast<std::size_t>(item / heads)];
            if (item % heads < m.rows.shape.heads) move_rows(m, item % heads);
        });
    }

    /// Cosines and sines of the angles that keys are turned back by.
    void table() const noexcept {
        threads.each(1, [&](index_t, int) noexcept {
            for (std::size_t i = 0; i < u.rope.frequencies.size(); ++i) {
                double const angle = static_cast<double>(u.positions) * u.rope.frequencies[i];
                at.cosines[i]      = static_cast<float>(std::cos(angle));
                at.sines[i]        = static_cast<float>(std::sin(angle));
            }
        });
    }

    void turn(slot_move const& m) const noexcept {
        index_t const heads = m.rows.shape.heads;
        index_t const first = m.first - m.by;
        index_t const end   = m.end - m.by;
        index_t const run   = std::max(rows_per_item, tile_of(m.rows));
        threads.each(heads * detail::ceil_div(end - first, run), [&](index_t item, int thread) noexcept {
            index_t const from = first + item / heads * run;
            turn_rows(u, m.rows, item % heads, from, std::min(from + run, end), at.of(thread), at);
        });
    }
};

} // namespace on_host

/// Scratch bytes of a shift.
template <host_policy Policy>
[[nodiscard]] index_t workspace_bytes(Policy const& policy, cache_shift const& u) noexcept {
    return on_host::shift_scratch::bytes(u, policy.executor.threads()) + on_host::scratch_alignment;
}

/// Does a shift. Throws, before anything is touched, where there is no scratch memory. The participants of a `share`
/// leave together, after one of them has called commit().
template <host_policy Policy, class Commit>
void shift_cache(Policy const& policy, cache_shift const& u, std::span<std::byte> workspace, Commit const& commit) {
    executor const& threads = policy.executor;
    if (workspace.empty() && !threads.can_publish())
        detail::fail<backend_error>(threads.name() + ": a share whose barrier has no board needs options.workspace");
    on_host::workspace const scratch(threads, workspace, workspace_bytes(policy, u) - on_host::scratch_alignment);
    on_host::shift_team const team{threads, on_host::shift_scratch(u, scratch.data()), u};
    team.move();
    if (!u.rope.frequencies.empty()) {
        team.table();
        for (slot_move const& m : on_host::shift_scratch::used(u))
            if (m.turns) team.turn(m);
    }
    if (threads.first()) commit();
    threads.wait();
}

} // namespace butterfly::backend
