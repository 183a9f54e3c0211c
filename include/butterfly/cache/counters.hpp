// SPDX-License-Identifier: MIT
#pragma once

// How a compressed cache counts: four numbers and the arithmetic of append and trim, without any memory.
//
//   P  tokens seen                          bs divides A,   A <= bs * c(F),   A <= bs * M <= bs * floor(P / bs)
//   A  position where the tail starts       M >= c(P - 1),  P - A <= W + bs - 2 + R + max_append
//   M  summaries
//   F  earliest position trim may reach
//
// Tokens are dropped from the tail at the start of an append, never at its end, so the last append can always be undone
// and a query of the last append always finds its exact keys.
//
// A shift takes out n > 0 tokens that stand before A; bs divides n, n <= A. Then A > 0, so c(F) >= 1 and
// P >= F >= A + W - 1 >= n + W - 1. For such t, c(t - n) = c(t) - n / bs: less n (or n / bs) on both sides, all of the
// above stays true. Where t = P - 1 is less, c(t - n) = 0, and M - n / bs >= (A - n) / bs >= 0.

#include <butterfly/cache/rules.hpp>

#include <algorithm>
#include <string>

namespace butterfly {

/// The numbers of counters, as a saver writes and a loader reads them.
struct counter_values {
    index_t tokens     = 0; // P
    index_t tail_start = 0; // A
    index_t summaries  = 0; // M
    index_t trim_floor = 0; // F

    friend bool operator==(counter_values const&, counter_values const&) noexcept = default;
};

/// Counters of a compressed cache. A value: small, copyable, knows nothing of bytes.
class cache_counters {
public:
    cache_counters() noexcept = default;

    /// Throws shape_error where a size of the configuration makes no sense.
    explicit cache_counters(cache_config const& c)
        : block_size_(c.block_size), window_(c.exact_window), rollback_(c.max_rollback), late_(c.rules.late) {
        detail::check_config(c);
    }

    /// Counters that have come to these numbers. Throws format_error where those of no such cache can have.
    [[nodiscard]] static cache_counters restored(cache_config const& c, counter_values const& v) {
        if (std::string const why = defect(c, v); !why.empty()) detail::fail<format_error>("restore: " + why);
        cache_counters at(c);
        at.tokens_     = v.tokens;
        at.tail_start_ = v.tail_start;
        at.summaries_  = v.summaries;
        at.floor_      = v.trim_floor;
        at.check_invariants();
        return at;
    }

    /// Why the counters of no cache of this configuration can have come to these numbers; empty where some can. Room
    /// is not asked about. Throws shape_error where the configuration makes no sense.
    [[nodiscard]] static std::string defect(cache_config const& c, counter_values const& v) {
        auto const text = [](char const* name, index_t value) { return name + (" " + std::to_string(value)); };
        cache_counters at(c);
        index_t const bs = c.block_size;
        if (v.tokens < 0 || v.tokens > detail::largest_cache_size) return text("tokens", v.tokens);
        if (v.trim_floor < 0 || v.trim_floor > v.tokens)
            return text("trim_floor", v.trim_floor) + text(" is not in [0, tokens], with tokens", v.tokens);
        if (v.tail_start < 0 || v.tail_start % bs != 0)
            return text("tail_start", v.tail_start) + text(" is no multiple of block_size", bs);
        if (v.tail_start > bs * at.blocks_before_window(v.trim_floor))
            return text("tail_start", v.tail_start) + text(" leaves too little for trim_floor", v.trim_floor);
        if (v.summaries < v.tail_start / bs)
            return text("summaries", v.summaries) + text(" leave blocks out before tail_start", v.tail_start);
        index_t const most = v.tokens / bs;
        index_t const due  = c.rules.late ? at.blocks_before_window(v.tokens - 1) : most;
        if (v.summaries < due || v.summaries > most)
            return text("summaries", v.summaries) + text(" do not fit tokens", v.tokens);
        return {};
    }

    [[nodiscard]] counter_values values() const noexcept { return {tokens_, tail_start_, summaries_, floor_}; }

    [[nodiscard]] index_t tokens() const noexcept { return tokens_; }
    [[nodiscard]] index_t tail_start() const noexcept { return tail_start_; }
    [[nodiscard]] index_t tail_tokens() const noexcept { return tokens_ - tail_start_; }
    [[nodiscard]] index_t summaries() const noexcept { return summaries_; }

    /// The shortest length that trim accepts.
    [[nodiscard]] index_t trim_floor() const noexcept { return floor_; }

    /// c(t): blocks wholly before the exact window of a query at position t.
    [[nodiscard]] index_t blocks_before_window(index_t t) const noexcept {
        return t < window_ ? 0 : (t - window_ + 1) / block_size_;
    }

    /// First position whose query still finds all its exact keys in the tail.
    [[nodiscard]] index_t first_query() const noexcept { return tail_start_ == 0 ? 0 : tail_start_ + window_ - 1; }

    /// What happens before the rows of an append are stored: the floor of trim rises, blocks that are about to leave
    /// the tail are summarised, and the tail drops them. Rows of the new tokens then fit.
    void make_room() noexcept {
        floor_             = std::max(floor_, tokens_ - rollback_);
        index_t const keep = blocks_before_window(floor_); // blocks before it may go
        summaries_         = std::max(summaries_, keep);
        tail_start_        = std::max(tail_start_, keep * block_size_);
    }

    /// What happens after: the tokens count, and full blocks (or, late, those before the window) have summaries.
    void add(index_t step) noexcept {
        tokens_ += step;
        index_t const due = late_ ? blocks_before_window(tokens_ - 1) : tokens_ / block_size_;
        summaries_        = std::max(summaries_, due);
        check_invariants();
    }

    /// make_room and add: the counters after an append of `step` > 0 tokens.
    void append(index_t step) noexcept {
        make_room();
        add(step);
    }

    /// Forgets the tokens from `length` on. Requires trim_floor() <= length <= tokens().
    void trim(index_t length) noexcept {
        tokens_    = length;
        summaries_ = std::min(summaries_, length / block_size_);
        check_invariants();
    }

    /// Forgets summaries that can be made again, whose blocks the tail still has. Requires that no query needs them:
    /// bs * c(P - 1) <= A.
    void forget_summaries() noexcept {
        summaries_ = tail_start_ / block_size_;
        check_invariants();
    }

    /// Takes out `count` tokens before the tail. Requires a multiple of the block size, at most tail_start().
    void shift(index_t count) noexcept {
        tokens_ -= count;
        tail_start_ -= count;
        floor_ -= count;
        summaries_ -= count / block_size_;
        check_invariants();
    }

    void clear() noexcept { tokens_ = tail_start_ = summaries_ = floor_ = 0; }

    /// Asserts what holds between calls.
    void check_invariants() const noexcept {
        BUTTERFLY_ASSERT(0 <= floor_ && floor_ <= tokens_);
        BUTTERFLY_ASSERT(tail_start_ % block_size_ == 0);
        BUTTERFLY_ASSERT(tail_start_ <= block_size_ * blocks_before_window(floor_));
        BUTTERFLY_ASSERT(tail_start_ <= block_size_ * summaries_);
        BUTTERFLY_ASSERT(summaries_ <= tokens_ / block_size_);
        BUTTERFLY_ASSERT(summaries_ >= blocks_before_window(tokens_ - 1));
    }

    friend bool operator==(cache_counters const&, cache_counters const&) noexcept = default;

private:
    index_t block_size_ = 1;
    index_t window_     = 1;
    index_t rollback_   = 0;
    bool late_          = false;
    index_t tokens_     = 0;
    index_t tail_start_ = 0;
    index_t summaries_  = 0;
    index_t floor_      = 0;
};

namespace detail {

/// Throws where a cache cannot forget the tokens from `length` on.
inline void check_trim(cache_counters const& at, index_t length) {
    if (length < 0 || length > at.tokens())
        fail<shape_error>("trim: length " + std::to_string(length) + ", the cache has tokens " +
                          std::to_string(at.tokens()));
    if (length < at.trim_floor())
        fail<capacity_error>("trim: length " + std::to_string(length) + ", the cache can go back to " +
                             std::to_string(at.trim_floor()));
}

/// Why a cache with this room cannot hold what counters say; empty where it can.
[[nodiscard]] inline std::string misfit(counter_values const& v, index_t max_tokens, index_t ring) {
    if (v.tokens > max_tokens) return std::to_string(v.tokens) + " tokens, max_tokens is " + std::to_string(max_tokens);
    if (v.tokens - v.tail_start > ring)
        return "a tail of " + std::to_string(v.tokens - v.tail_start) + " tokens, the cache has room for " +
               std::to_string(ring) + ": give it a larger max_append or max_rollback";
    return {};
}

/// Throws where counters of a loader are none of this cache's: format_error where they contradict its configuration,
/// capacity_error where what they count does not fit.
template <class Cache>
void check_restore(std::string const& who, Cache const& cache, counter_values const& v) {
    if (std::string const why = cache.defect(v); !why.empty()) fail<format_error>(who + ": " + why);
    if (std::string const why = cache.misfit(v); !why.empty()) fail<capacity_error>(who + ": " + why);
}

} // namespace detail

} // namespace butterfly
