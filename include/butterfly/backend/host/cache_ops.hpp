// SPDX-License-Identifier: MIT
#pragma once

// How a host stores rows in a cache and summarises blocks, with any codec and any host policy.
//
//   store       row -> f32 -> encode                      (bytes as they are where tensor and pool have one raw type)
//   summarise   decode -> fp32 sum in token order -> divide once -> encode
//
// An item of work is a run of 64 rows, or a block of one head and side. One item owns each row and each sum, so bits
// depend neither on threads nor on how a sequence was cut into appends. Few rows make one item: a decode step starts no
// team.

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

/// One thread's buffers: a row and a sum.
struct cache_scratch {
    float* row; // [widest row]
    float* sum; // [widest row]

    [[nodiscard]] static index_t widest(cache_update const& u) noexcept {
        index_t most = 1;
        for (storage_ref const& s : u.rows) most = std::max(most, s.shape.head_dim);
        return most;
    }
    [[nodiscard]] static index_t bytes(cache_update const& u) noexcept { return 2 * scratch_bytes<float>(widest(u)); }

    cache_scratch(cache_update const& u, std::byte* memory) noexcept {
        carver c(memory);
        row = c.take<float>(widest(u));
        sum = c.take<float>(widest(u));
    }
};

[[nodiscard]] constexpr bool same_bytes(element_type t, codec_id c) noexcept {
    return (t == element_type::f32 && c == codec_id::raw_f32) || (t == element_type::f16 && c == codec_id::raw_f16) ||
           (t == element_type::bf16 && c == codec_id::raw_bf16);
}

inline void encode_row(storage_ref const& s, float const* values, std::byte* row) noexcept {
    static_cast<codec_ops const*>(s.ops)->encode(s.codec_state, values, s.shape.head_dim, row);
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

    void summarise(block_range blocks) const noexcept {
        index_t const heads = u.rows[0].shape.heads;
        index_t const count = blocks.end - blocks.first;
        index_t const total = 2 * heads * count;
        if (count <= 0) return;
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
    team.summarise(u.before);
    team.store();
    team.summarise(u.after);
    if (threads.first()) commit();
    threads.wait();
}

/// Copies bytes.
template <host_policy Policy>
void copy_bytes(Policy const&, memory_ref from, memory_ref to, index_t bytes) noexcept {
    std::memcpy(host_pointer<std::byte>(to), host_pointer<std::byte const>(from), static_cast<std::size_t>(bytes));
}

} // namespace butterfly::backend
