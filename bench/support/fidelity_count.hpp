// SPDX-License-Identifier: MIT
#pragma once

// How many edges a call has: a policy that walks what it is given and counts.

#include <butterfly/backend/host/rows.hpp>
#include <butterfly/backend/policy.hpp>
#include <butterfly/sdpa/attend.hpp>

#include <atomic>
#include <bit>

namespace bench {

/// Counts visible (query head, query token, key) triples. `out` of a call is not written.
struct edge_counter {
    butterfly::executor executor{};
    std::atomic<butterfly::index_t>* edges = nullptr;

    [[nodiscard]] static std::string name() { return "edge counter"; }
    [[nodiscard]] static bool available() noexcept { return true; }
};

template <butterfly::quant::decoder Codec>
[[nodiscard]] butterfly::bound_codec bind_codec(edge_counter const&, Codec const&) noexcept {
    return nullptr;
}
[[nodiscard]] inline butterfly::support supports(edge_counter const&, butterfly::problem const&) {
    return {};
}

/// Keys that one row sees.
[[nodiscard]] inline butterfly::index_t
visible_keys_of(butterfly::problem const& p, butterfly::index_t head, butterfly::index_t token) noexcept {
    butterfly::index_t count = 0;
    for (int i = 0; i < p.pool_count; ++i) {
        butterfly::pool_ref const& pool = p.pools[i];
        butterfly::row_tile const row{
            .first = token, .tokens = 1, .head = butterfly::backend::on_host::row_head(p, pool, head)};
        butterfly::tile_cursor cursor;
        butterfly::key_tile tile;
        while (pool.visibility.next(pool.visibility.state, p, i, row, {0, butterfly::no_alignment}, cursor, tile))
            count += tile.bits != nullptr ? std::popcount(tile.bits[0]) : tile.count;
    }
    return count;
}

inline void run(edge_counter const& policy, std::span<butterfly::problem const> problems) {
    for (butterfly::problem const& p : problems)
        policy.executor.each(p.heads() * p.tokens(), [&](butterfly::index_t row, int) noexcept {
            *policy.edges += visible_keys_of(p, row / p.tokens(), row % p.tokens());
        });
}

} // namespace bench
