// SPDX-License-Identifier: MIT
#pragma once

// How a host stores rows in a cache, summarises blocks and packs them, with any codec and any host policy.
//
//   store       row -> f32 -> encode                      (bytes as they are where tensor and pool have one raw type)
//   summarise   decode -> fp32 sum in token order -> divide once -> encode
//   pack        decode -> less the mean, where there is one -> encode, row by row or a tile at a time
//
// An item of work is a run of 64 rows (or a tile that is larger), or a block of one head and side. One item owns each
// row, tile and sum, so bits depend neither on threads nor on how a sequence was cut into appends. Few rows make one
// item: a decode step starts no team.

#include <butterfly/backend/host/codec_ops.hpp>
#include <butterfly/backend/host/rows.hpp>
#include <butterfly/backend/host/workspace.hpp>
#include <butterfly/backend/policy.hpp>
#include <butterfly/cache/update.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <span>

namespace butterfly::backend {
namespace on_host {

/// Rows, or rows that enter summaries, that one item of work is worth.
inline constexpr index_t rows_per_item = 64;

/// Rows that the codec of a storage packs together.
[[nodiscard]] inline index_t tile_of(storage_ref const& s) noexcept {
    return s.pages ? 1 : index_t{1} << s.page_shift;
}

/// One thread's buffers: the rows of a tile and a sum.
struct cache_scratch {
    float* row; // [largest tile][widest row]
    float* sum; // [widest row]

    [[nodiscard]] static index_t widest(cache_update const& u) noexcept {
        index_t most = 1;
        for (storage_ref const& s : u.rows) most = std::max(most, s.shape.head_dim);
        return most;
    }
    [[nodiscard]] static index_t tile_values(cache_update const& u) noexcept {
        return std::max(tile_of(u.packed[0]), tile_of(u.packed[1])) * widest(u);
    }
    [[nodiscard]] static index_t bytes(cache_update const& u) noexcept {
        return scratch_bytes<float>(tile_values(u)) + scratch_bytes<float>(widest(u));
    }

    cache_scratch(cache_update const& u, std::byte* memory) noexcept {
        carver c(memory);
        row = c.take<float>(tile_values(u));
        sum = c.take<float>(widest(u));
    }
};

[[nodiscard]] constexpr bool same_bytes(element_type t, codec_id c) noexcept {
    return (t == element_type::f32 && c == codec_id::raw_f32) || (t == element_type::f16 && c == codec_id::raw_f16) ||
           (t == element_type::bf16 && c == codec_id::raw_bf16);
}

inline void encode_row(storage_ref const& s, float const* values, std::byte* row) noexcept {
    s.encode(s.codec_state, values, s.shape.head_dim, s.shape.head_dim, row);
}

/// Packs one row.
inline void store_row(row_store const& job, index_t head, index_t token, cache_scratch const& at) noexcept {
    tensor_ref const& from = job.from;
    std::byte* const to    = row_address(job.to, head, job.first_slot + token);
    if (!from.memory) {
        std::fill_n(at.row, from.shape.head_dim, 1.0F);
    } else if (same_bytes(from.type, job.to.codec)) {
        index_t const size  = size_of(from.type);
        index_t const first = head * from.strides.head + token * from.strides.token;
        std::memcpy(to, host_pointer<std::byte const>(from.memory) + first * size,
                    static_cast<std::size_t>(from.shape.head_dim * size));
        return;
    } else {
        load_row(from, head, token, at.row);
    }
    encode_row(job.to, at.row, to);
}

/// Summarises one side of block `block` of one head; the keys of head 0 also write the block's log-weight.
inline void
summarise(cache_update const& u, kv_side side, index_t head, index_t block, cache_scratch const& at) noexcept {
    storage_ref const& rows   = u.rows[static_cast<int>(side)];
    storage_ref const& to     = u.summaries[static_cast<int>(side)];
    index_t const dim         = rows.shape.head_dim;
    index_t const end         = (block + 1) * u.block_size;
    index_t const first       = std::min(std::max(block * u.block_size, u.skip), end);
    auto const* const weights = host_pointer<float const>(u.token_weights);
    auto const* const ops     = static_cast<codec_ops const*>(rows.ops);
    float total               = 0.0F;

    std::fill_n(at.sum, dim, 0.0F);
    for (index_t position = first; position < end; ++position) {
        std::byte const* const row = row_address(rows, head, position);
        float const weight         = weights == nullptr ? 1.0F : weights[position % rows.ring];
        ops->decode(rows.codec_state, &row, 1, dim, at.row, dim);
        u.pool.add(u.pool.state, side, at.row, dim, position, weight, at.sum);
        total += weight;
    }
    if (total != 0.0F)
        u.pool.finish(u.pool.state, side, {.first = first, .count = end - first, .weight = total}, dim, at.sum);
    else
        std::fill_n(at.sum, dim, 0.0F);
    encode_row(to, at.sum, row_address(to, head, block));

    auto* const log_weights = host_pointer<float>(u.log_weights);
    if (log_weights == nullptr || side != kv_side::keys || head != 0) return;
    // In double: rounds to the same float with every libm.
    log_weights[block] = total == 0.0F ? -std::numeric_limits<float>::infinity()
                                       : static_cast<float>(std::log(static_cast<double>(total)));
}

/// Writes the mean of the first tokens of one head and side. A channel that has no finite mean gets zero, so that a NaN
/// stays in the rows that have it.
inline void centre(cache_update const& u, kv_side side, index_t head, cache_scratch const& at) noexcept {
    storage_ref const& rows = u.rows[static_cast<int>(side)];
    storage_ref const& to   = u.packed[static_cast<int>(side)];
    index_t const count     = u.centre[static_cast<int>(side)];
    index_t const dim       = rows.shape.head_dim;
    auto const* const ops   = static_cast<codec_ops const*>(rows.ops);
    std::fill_n(at.sum, dim, 0.0F);
    for (index_t position = 0; position < count; ++position) {
        std::byte const* const row = row_address(rows, head, position);
        ops->decode(rows.codec_state, &row, 1, dim, at.row, dim);
        for (index_t d = 0; d < dim; ++d) at.sum[d] += at.row[d];
    }
    auto* const mean = host_pointer<float>(to.mean) + head * dim;
    for (index_t d = 0; d < dim; ++d) {
        float const x = at.sum[d] / static_cast<float>(count);
        mean[d]       = std::isfinite(x) ? x : 0.0F;
    }
}

/// Packs tokens [first, end) of one head and side, which are whole tiles.
inline void
pack(cache_update const& u, kv_side side, index_t head, index_t first, index_t end, cache_scratch const& at) noexcept {
    storage_ref const& rows = u.rows[static_cast<int>(side)];
    storage_ref const& to   = u.packed[static_cast<int>(side)];
    index_t const dim       = rows.shape.head_dim;
    index_t const tile      = tile_of(to);
    auto const* const from  = static_cast<codec_ops const*>(rows.ops);
    float const* const mean = mean_of(to, head);
    for (; first < end; first += tile) {
        for (index_t j = 0; j < tile; ++j) {
            float* const x         = at.row + j * dim;
            index_t const position = std::max(first + j, u.skip); // what is seen elsewhere widens no grid
            if (position >= first + tile) {
                std::fill_n(x, dim, 0.0F);
                continue;
            }
            std::byte const* const row = row_address(rows, head, position);
            from->decode(rows.codec_state, &row, 1, dim, x, dim);
            for (index_t d = 0; mean != nullptr && d < dim; ++d) x[d] -= mean[d];
        }
        encode_row(to, at.row, row_address(to, head, first));
    }
}

/// Threads of one update and their buffers.
struct cache_team {
    executor const& threads;
    std::byte* scratch;
    cache_update const& u;

    [[nodiscard]] cache_scratch buffers(int thread) const noexcept {
        return {u, scratch + thread * cache_scratch::bytes(u)};
    }

    void store() const noexcept {
        std::array<index_t, std::tuple_size_v<decltype(u.stores)>> ends{}; // rows up to and with each store
        index_t total = 0;
        for (std::size_t i = 0; i < u.store_count; ++i) {
            heads_shape const& shape = u.stores[i].from.shape;
            ends[i]                  = total += shape.heads * shape.tokens;
        }
        threads.each(detail::ceil_div(total, rows_per_item), [&](index_t item, int thread) noexcept {
            cache_scratch const at = buffers(thread);
            index_t const end      = std::min((item + 1) * rows_per_item, total);
            std::size_t i          = 0;
            for (index_t r = item * rows_per_item; r < end; ++r) {
                while (r >= ends[i]) ++i;
                row_store const& job = u.stores[i];
                index_t const tokens = job.from.shape.tokens;
                index_t const within = r - (i == 0 ? 0 : ends[i - 1]);
                store_row(job, within / tokens, within % tokens, at);
            }
        });
    }

    /// Summarises blocks, or packs them.
    void condense(block_range blocks) const noexcept {
        if (blocks.end <= blocks.first) return;
        if (u.summaries[0].data) summarise(blocks);
        if (!u.packed[0].data) return;
        if (blocks.first == 0) centre();
        pack(blocks);
    }

    void summarise(block_range blocks) const noexcept {
        index_t const heads    = u.rows[0].shape.heads;
        index_t const count    = blocks.end - blocks.first;
        index_t const total    = 2 * heads * count;
        index_t const per_item = std::max<index_t>(1, rows_per_item / u.block_size);
        threads.each(detail::ceil_div(total, per_item), [&](index_t item, int thread) noexcept {
            cache_scratch const at = buffers(thread);
            for (index_t i = item * per_item; i < std::min((item + 1) * per_item, total); ++i) {
                index_t const head = i / count % heads;
                auto const side    = i < heads * count ? kv_side::keys : kv_side::values;
                on_host::summarise(u, side, head, blocks.first + i % count, at);
            }
        });
    }

    void centre() const noexcept {
        index_t const heads = u.rows[0].shape.heads;
        if (u.centre[0] == 0 && u.centre[1] == 0) return;
        threads.each(2 * heads, [&](index_t item, int thread) noexcept {
            auto const side = item < heads ? kv_side::keys : kv_side::values;
            if (u.centre[static_cast<int>(side)] > 0) on_host::centre(u, side, item % heads, buffers(thread));
        });
    }

    void pack(block_range blocks) const noexcept {
        index_t const heads   = u.rows[0].shape.heads;
        index_t const first   = blocks.first * u.block_size;
        index_t const end     = blocks.end * u.block_size;
        auto const run        = [&](int side) { return std::max(rows_per_item, tile_of(u.packed[side])); };
        index_t const k_items = heads * detail::ceil_div(end - first, run(0));
        index_t const v_items = heads * detail::ceil_div(end - first, run(1));
        threads.each(k_items + v_items, [&](index_t item, int thread) noexcept {
            auto const side    = item < k_items ? kv_side::keys : kv_side::values;
            index_t const i    = item < k_items ? item : item - k_items;
            index_t const rows = run(static_cast<int>(side));
            index_t const from = first + i / heads * rows;
            on_host::pack(u, side, i % heads, from, std::min(from + rows, end), buffers(thread));
        });
    }
};

} // namespace on_host

/// Scratch bytes of an update.
template <host_policy Policy>
[[nodiscard]] index_t workspace_bytes(Policy const& policy, cache_update const& u) noexcept {
    return on_host::cache_scratch::bytes(u) * policy.executor.threads() + on_host::scratch_alignment;
}

namespace on_host {

/// Throws shape_error where a weight given for a token is not in [0, most_token_weight]. Weights are the last store.
inline void check_weights(cache_update const& u) {
    if (!u.token_weights || !u.stores[u.store_count - 1].from.memory) return;
    tensor_ref const& given = u.stores[u.store_count - 1].from;
    auto const* const w     = host_pointer<float const>(given.memory);
    for (index_t i = 0; i < given.shape.tokens; ++i)
        if (!(w[i] >= 0.0F && w[i] <= most_token_weight)) {
            char value[32];
            std::snprintf(value, sizeof value, "%g", static_cast<double>(w[i]));
            detail::fail<shape_error>("append: token_weights[" + std::to_string(i) + "] is " + value +
                                      ", must be in [0, 2^64]");
        }
}

} // namespace on_host

/// Does an update. Throws, before anything is touched, where there is no scratch memory or a weight makes no sense. The
/// participants of a `share` leave together, after one of them has called commit().
template <host_policy Policy, class Commit>
void update_cache(Policy const& policy, cache_update const& u, std::span<std::byte> workspace, Commit const& commit) {
    executor const& threads = policy.executor;
    on_host::check_weights(u);
    if (workspace.empty() && !threads.can_publish())
        detail::fail<backend_error>(threads.name() + ": a share whose barrier has no board needs options.workspace");
    on_host::workspace const scratch(threads, workspace, workspace_bytes(policy, u) - on_host::scratch_alignment);
    on_host::cache_team const team{threads, scratch.data(), u};
    team.condense(u.before);
    team.store();
    team.condense(u.after);
    if (threads.first()) commit();
    threads.wait();
}

/// Copies bytes.
template <host_policy Policy>
void copy_bytes(Policy const&, memory_ref from, memory_ref to, index_t bytes) noexcept {
    std::memcpy(host_pointer<std::byte>(to), host_pointer<std::byte const>(from), static_cast<std::size_t>(bytes));
}

} // namespace butterfly::backend
