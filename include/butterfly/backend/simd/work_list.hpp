// SPDX-License-Identifier: MIT
#pragma once

// How the work of a call is dealt to threads.
//
// The items of all its problems are one list, so that many short sequences share the threads. A problem whose keys are
// walked in spans may be split: its spans stand in the list in the place of its items, each leaves a partial result,
// and a second list folds them in order. It is split where
//
//   - it has fewer than 4 items for each thread and may see more than two spans of a pool (may_split, from shapes: the
//     workspace holds the partial results, in the tile class 256 MiB at most), and some item does,
//   - its largest item is more than a quarter of a thread's part of the call.
//
// So one long sequence among short ones is split, and few equal ones; many equal ones are not: their items fill the
// threads without partial results. A problem with so large an item that sees fewer spans than its rows make items, as
// early in a cache that has room for many, is cut into these. All this decides where work runs, and no bit.

#include <butterfly/backend/simd/stream_class.hpp>
#include <butterfly/backend/simd/tile_class.hpp>
#include <butterfly/core/executor.hpp>

#include <algorithm>
#include <array>
#include <span>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Bytes of one partial result.
template <class Isa>
[[nodiscard]] index_t part_bytes(problem const& p, cut const& c) noexcept {
    int const rows = c.item_tokens() * c.chunk;
    return c.stream ? stream_attention<Isa>::part_bytes(p, rows) : tile_attention<Isa>::part_bytes(p, rows);
}

/// Bytes of the partial results of a problem.
template <class Isa>
[[nodiscard]] index_t parts_bytes(problem const& p, cut const& c) noexcept {
    return most_items(p, c) * most_spans(p) * part_bytes<Isa>(p, c);
}

/// Whether a problem may be split: few items, many spans. Asked of shapes alone, since the workspace depends on it.
[[nodiscard]] inline bool may_split(problem const& p, cut const& c, int threads) noexcept {
    return c.by_spans && threads > 1 && c.items() > 0 && most_items(p, c) < 4 * threads;
}

/// Bytes for the partial results of a call: room for any one problem, and for several of them up to 16 MiB.
template <class Isa>
[[nodiscard]] index_t parts_room(int threads, std::span<problem const> problems) noexcept {
    constexpr index_t several = 16 << 20;
    index_t most = 0, all = 0;
    for (problem const& p : problems) {
        cut const c = cut_problem<Isa>(p, threads);
        if (!may_split(p, c, threads)) continue;
        index_t const bytes = parts_bytes<Isa>(p, c);
        most                = std::max(most, bytes);
        all                 = std::min(all + std::min(bytes, several), several);
    }
    return std::max(most, all);
}

/// How much work a problem is, in rows times slots of what its visibilities span. A stream item counts as a full one,
/// because the bytes of keys and values bound it, whatever its rows. Coarse where a span says little: a graph's row is
/// one slot, routed blocks are all blocks up to the row's.
struct work_load {
    double heaviest = 0; // item
    double all      = 0; // items
    index_t widest  = 0; // spans of one item; 0: splitting is not worth it, or a visibility spans more than its pool
};

[[nodiscard]] inline work_load load_of(problem const& p, cut const& c) noexcept {
    work_load load;
    bool worth = false, fits = true;
    for (index_t index = 0; index < c.items(); ++index) {
        item const i  = item_at(p, c, index);
        double slots  = 0;
        index_t spans = 0;
        for (int k = 0; k < p.pool_count; ++k) {
            key_span const extent = extent_of(p, p.pools[k], k, i);
            key_span const s      = spans_of(extent);
            slots += static_cast<double>(
                std::clamp<index_t>(extent.end - extent.first, 0, most_spans(p, p.pools[k]) * span_slots));
            spans += s.end - s.first;
            worth |= s.end - s.first > 2;
        }
        fits &= spans <= most_spans(p);
        double const work = slots * (c.stream ? stream_rows : i.rows());
        load.heaviest     = std::max(load.heaviest, work);
        load.all += work;
        load.widest = std::max(load.widest, spans);
    }
    if (!fits || !worth) load.widest = 0;
    return load;
}

/// Problems whose work is dealt as one list; run() deals it.
template <class Isa>
class work_list {
public:
    /// `scratch`: `each` bytes for every thread. `parts`: `room` bytes for partial results.
    work_list(executor const& threads, std::byte* scratch, index_t each, std::byte* parts, index_t room) noexcept
        : threads_(threads), scratch_(scratch), each_(each), parts_(parts), room_(room) {}

    /// Adds a problem, split where `widest` is the number of spans of its widest item, whole where it is 0. Deals what
    /// is there before where there is no room.
    void add(problem const& p, cut const& c, index_t widest) noexcept {
        index_t const bytes = c.items() * widest * part_bytes<Isa>(p, c);
        if (count_ == entries_.size() || used_ + bytes > room_) run();
        work_ += c.items() * std::max<index_t>(widest, 1);
        folds_ += widest > 0 ? c.items() : 0;
        entries_[count_++] = {&p, c, widest, parts_ + used_, work_, folds_};
        used_ += bytes;
    }

    /// Deals the list and empties it.
    void run() noexcept {
        if (work_ > 0)
            threads_.each(work_, [&](index_t work, int thread) noexcept {
                auto const [e, index] = find(work, &entry::end);
                std::byte* const mine = scratch_ + thread * each_;
                if (e->widest == 0)
                    run_item(*e, index, index + threads_.after(work) - work, mine);
                else
                    run_span(*e, index % e->c.items(), index / e->c.items(), mine);
            });
        if (folds_ > 0)
            threads_.each(folds_, [&](index_t work, int thread) noexcept {
                auto const [e, index] = find(work, &entry::folds);
                fold(*e, index, scratch_ + thread * each_);
            });
        count_ = 0;
        work_ = folds_ = used_ = 0;
    }

private:
    struct entry {
        problem const* p;
        cut c;
        index_t widest;   // spans of the widest item; 0: not split
        std::byte* parts; // [items][widest]
        index_t end;      // work up to and with this problem
        index_t folds;    // items of split problems up to and with this one
    };

    struct place {
        entry const* e;
        index_t index; // of the work of that problem
    };

    /// Whose work number `work` is, counted by `end`.
    [[nodiscard]] place find(index_t work, index_t entry::*end) const noexcept {
        auto const first = entries_.begin(), last = first + static_cast<std::ptrdiff_t>(count_);
        auto const at = std::ranges::upper_bound(first, last, work, {}, end);
        return {&*at, work - (at == first ? 0 : at[-1].*end)};
    }

    [[nodiscard]] static std::byte* part(entry const& e, index_t index, index_t span) noexcept {
        return e.parts + (index * e.widest + span) * part_bytes<Isa>(*e.p, e.c);
    }

    /// Calls f with the attention of an item.
    template <class F>
    static void with_attention(entry const& e, item const& i, std::byte* scratch, F const& f) noexcept {
        if (e.c.stream) {
            stream_attention<Isa> attention(*e.p, i, scratch);
            f(attention);
        } else {
            tile_attention<Isa> attention(*e.p, e.c, i, scratch);
            f(attention);
        }
    }

    /// `next`: the item that this thread probably does next.
    static void run_item(entry const& e, index_t index, index_t next, std::byte* scratch) noexcept {
        item const i = item_at(*e.p, e.c, index);
        if (e.c.stream) return stream_attention<Isa>(*e.p, i, scratch).run();
        if (!rows_share(*e.p, i)) return run_apart(*e.p, i, scratch);
        tile_attention<Isa>(*e.p, e.c, i, scratch).run(next < e.c.items() ? item_at(*e.p, e.c, next) : item{});
    }

    /// An item of the tile class token by token.
    static void run_apart(problem const& p, item const& i, std::byte* scratch) noexcept {
        for (int t = 0; t < i.tokens; ++t)
            for (int h = 0; h < i.heads; h += stream_rows) {
                item const row{i.first + t, 1, i.head + h, std::min(stream_rows, i.heads - h), i.kv_head};
                stream_attention<Isa>(p, row, scratch).run();
            }
    }

    /// Span `slot` of all pools of an item; nothing where it has fewer.
    static void run_span(entry const& e, index_t index, index_t slot, std::byte* scratch) noexcept {
        item const i = item_at(*e.p, e.c, index);
        index_t span = slot;
        for (int k = 0; k < e.p->pool_count; ++k) {
            key_span const s = spans_of(*e.p, k, i);
            if (span < s.end - s.first)
                return with_attention(e, i, scratch, [&](auto& attention) noexcept {
                    attention.run_span(k, s.first + span, part(e, index, slot));
                });
            span -= s.end - s.first;
        }
    }

    static void fold(entry const& e, index_t index, std::byte* scratch) noexcept {
        item const i  = item_at(*e.p, e.c, index);
        index_t spans = 0;
        for (int k = 0; k < e.p->pool_count; ++k) spans += spans_of(*e.p, k, i).end - spans_of(*e.p, k, i).first;
        with_attention(e, i, scratch, [&](auto& attention) noexcept {
            attention.clear_total();
            for (index_t n = 0; n < spans; ++n) attention.fold(part(e, index, n));
            attention.finish();
        });
    }

    executor const& threads_;
    std::byte* scratch_;
    index_t each_;
    std::byte* parts_;
    index_t room_;
    std::array<entry, 64> entries_;
    std::size_t count_ = 0;
    index_t work_ = 0, folds_ = 0, used_ = 0;
};

/// Deals a call. `scratch`: `each` bytes for every thread, then `room` bytes for partial results.
template <class Isa>
void deal(executor const& threads,
          std::span<problem const> problems,
          std::byte* scratch,
          index_t each,
          index_t room) noexcept {
    int const count      = threads.threads();
    auto const splitting = [&](problem const& p) { return may_split(p, cut_problem<Isa>(p, count), count); };
    double all           = 0; // work of the call; only where it matters, since every item is asked for it
    if (std::ranges::any_of(problems, splitting))
        for (problem const& p : problems) all += load_of(p, cut_problem<Isa>(p, count)).all;

    work_list<Isa> list(threads, scratch, each, scratch + each * count, room);
    for (problem const& p : problems) {
        work_load load;
        cut const c = cut_problem<Isa>(p, count);
        if (may_split(p, c, count)) load = load_of(p, c);
        if (load.heaviest <= all / (4 * count)) {
            list.add(p, c, 0);
            continue;
        }
        cut const rows = cut_problem<Isa>(p, count, false);
        if (c.items() * load.widest >= std::min<index_t>(rows.items(), 4 * count))
            list.add(p, c, load.widest);
        else
            list.add(p, rows, 0);
    }
    list.run();
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
