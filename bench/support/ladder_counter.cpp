// SPDX-License-Identifier: MIT

// A machine that counts what a call would read: it walks the tiles of the pools like a kernel and adds up the rows that
// the query sees. Exact for one query row per call; for more it counts each row's own reads.

#include "ladder_systems.hpp"

#include <bit>

namespace bench {
namespace {

/// Keys of one pool that the query token sees.
index_t visible_keys(bf::problem const& p, int pool, index_t head, index_t token) {
    bf::row_tile const row{.first = token, .tokens = 1, .head = head};
    bf::visibility_ref const& sees = p.pools[pool].visibility;
    bf::tile_cursor cursor;
    bf::key_tile tile;
    index_t count = 0;
    while (sees.next(sees.state, p, pool, row, {0, bf::no_alignment}, cursor, tile))
        count += tile.bits == nullptr ? tile.count : std::popcount(tile.bits[0]);
    return count;
}

class counter final : public machine_interface {
public:
    explicit counter(index_t& bytes) : bytes_(bytes) {}

    std::string name() const override { return "counter"; }
    bool available() const override { return true; }
    bf::bound_codec bind(std::type_index, void const* codec) const override { return codec; }
    bf::support supports(bf::problem const&) const override { return {}; }
    std::string explain(bf::problem const&) const override { return "counts"; }
    index_t workspace_bytes(std::span<bf::problem const>) const override { return 0; }
    index_t update_bytes(bf::cache_update const&) const override { return 0; }
    void update(bf::cache_update const&, std::span<std::byte>, std::function<void()> const&) const override {
        throw std::logic_error("counter: appends nothing");
    }

    void run(std::span<bf::problem const> problems) const override {
        for (bf::problem const& p : problems)
            for (index_t token = 0; token < p.tokens(); ++token)
                for (int i = 0; i < p.pool_count; ++i) bytes_ += p.kv_heads * row_bytes(p, i, token);
    }

private:
    /// Bytes of the rows of one head of keys; rows of all heads are alike here.
    static index_t row_bytes(bf::problem const& p, int i, index_t token) {
        bf::pool_ref const& pool = p.pools[i];
        index_t const weight     = pool.log_weights ? static_cast<index_t>(sizeof(float)) : 0;
        return visible_keys(p, i, 0, token) * (row_bytes(pool.keys) + row_bytes(pool.values) + weight);
    }
    /// Rows that are packed in tiles share the bytes of theirs.
    static index_t row_bytes(bf::storage_ref const& s) {
        return s.page_shift != 0 && !s.pages ? s.page_stride >> s.page_shift : s.slot_stride;
    }

    index_t& bytes_;
};

} // namespace

machine make_counter(index_t& bytes) {
    return machine(bf::serial{}, std::make_shared<counter const>(bytes));
}

} // namespace bench
