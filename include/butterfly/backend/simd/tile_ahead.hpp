// SPDX-License-Identifier: MIT
#pragma once

// What an item of the tile class reads or writes next: rows of queries and outputs, and the rows of the key tile after
// the one it works on. The register blocks of its products fetch them (fetch_queue, tile_unit.hpp).

#include <butterfly/backend/simd/item.hpp>
#include <butterfly/backend/simd/lanes.hpp>
#include <butterfly/backend/simd/tile_unit.hpp>
#include <butterfly/backend/simd/tile_weights.hpp>

#include <algorithm>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Where rows [first, first + count) of an item stand in a tensor.
inline void place_rows(item const& i, int first, int count, row_place* places) noexcept {
    if (count <= 0) return;
    int head = first % i.heads, token = first / i.heads;
    for (int n = 0; n < count; ++n) {
        places[n] = {i.head + head, i.first + token};
        if (++head == i.heads) {
            head = 0;
            ++token;
        }
    }
}

[[nodiscard]] inline std::byte const* row_address(tensor_ref const& t, row_place const& at) noexcept {
    index_t const element = at.head * t.strides.head + at.token * t.strides.token;
    return host_pointer<std::byte const>(t.memory) + element * size_of(t.type);
}

/// Fetches rows_at_once rows of a tensor into the first cache, from the item's row `first` on. Inlined, as vec::fetch.
[[gnu::always_inline]] inline void fetch_rows(tensor_ref const& t, item const& i, int first) noexcept {
    int const count = std::min(rows_at_once, i.rows() - first);
    row_place places[rows_at_once];
    place_rows(i, first, count, places);
    for (int n = 0; n < count; ++n) fetch(row_address(t, places[n]), 0, t.shape.head_dim * size_of(t.type));
}

/// What is fetched next, strip by strip. A queue holds until the next one is asked for.
class tile_ahead {
public:
    /// `spanned`: queries and outputs are not fetched, since they are read and written once in many spans.
    tile_ahead(problem const& p, item const& i, tile_unit const& unit, bool spanned) noexcept
        : p_(p), i_(i), unit_(unit), spanned_(spanned) {}

    /// The item whose queries this thread will probably read next.
    void expect(item const& next) noexcept { next_ = next; }

    /// A key tile, and where its keys and values stand. All must live until the tile is done.
    void begin(pool_ref const& pool,
               key_tile const& tile,
               std::byte const* const* keys,
               std::byte const* const* values) noexcept {
        pool_   = &pool;
        tile_   = &tile;
        keys_   = keys;
        values_ = values;
        run_    = 0;
    }

    /// For the products of strip s, which sees these keys: its part of the next run, then some rows of this item's
    /// outputs, then of the next item's queries.
    [[nodiscard]] fetch_queue of_strip(int s, int strips, strip_keys const& seen) noexcept {
        fetch_queue::row* to = list_run(tile_->count * (s + 1) / strips, list_);
        if (!spanned_) {
            int const own   = std::clamp(i_.rows() - done_, 0, most);
            int const other = std::min(most - own, i_.rows() + next_.rows() - done_ - own);
            to              = list_rows(p_.out, i_, done_, own, to);
            to              = list_rows(p_.q, next_, done_ + own - i_.rows(), other, to);
            done_ += own + other;
        }
        index_t const high = unit_.high;
        index_t const blocks =
            detail::ceil_div(seen.end - seen.first, high) + detail::ceil_div(p_.out.shape.head_dim, high);
        return {list_, to, static_cast<int>(detail::ceil_div(to - list_, blocks))};
    }

    /// What is left of the next run by strips that did not see the tile.
    [[nodiscard]] fetch_queue rest() noexcept { return {list_, list_run(tile_->count, list_)}; }

private:
    /// Rows of outputs and queries for one strip: an item that sees three tiles fetches all of its own and of the next
    /// one.
    static constexpr int most = 36;

    /// Rows of the next run that were not listed yet, up to the one in the place of the tile's row `end`.
    fetch_queue::row* list_run(int end, fetch_queue::row* to) noexcept {
        storage_ref const& k = pool_->keys;
        storage_ref const& v = pool_->values;
        if (tile_->slots != nullptr || k.pages || v.pages || tile_->after == tile_->first) return to;
        index_t const skip      = tile_->after < 0 ? tile_->count : tile_->after - tile_->first;
        index_t const key_bytes = row_bytes(k, p_.q.shape.head_dim), value_bytes = row_bytes(v, p_.out.shape.head_dim);
        for (; run_ < end; ++run_) {
            *to++ = {keys_[run_], skip * k.slot_stride, key_bytes};
            *to++ = {values_[run_], skip * v.slot_stride, value_bytes};
        }
        return to;
    }

    static fetch_queue::row*
    list_rows(tensor_ref const& t, item const& i, int first, int count, fetch_queue::row* to) noexcept {
        row_place places[most];
        place_rows(i, first, count, places);
        for (int n = 0; n < count; ++n) *to++ = {row_address(t, places[n]), 0, t.shape.head_dim * size_of(t.type)};
        return to;
    }

    problem const& p_;
    item const& i_;
    tile_unit const& unit_;
    bool const spanned_;
    item next_{};
    pool_ref const* pool_           = nullptr;
    key_tile const* tile_           = nullptr;
    std::byte const* const* keys_   = nullptr;
    std::byte const* const* values_ = nullptr;
    int run_                        = 0; // rows of the next run that were listed
    int done_                       = 0; // rows of outputs and of the next queries that were
    fetch_queue::row list_[2 * tile_slots + most];
};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
