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

namespace butterfly {

/// Counters of a compressed cache. A value: small, copyable, knows nothing of bytes.
class cache_counters {
public:
    cache_counters() noexcept = default;

    /// Throws shape_error where a size of the configuration makes no sense.
    explicit cache_counters(cache_config const& c)
        : block_size_(c.block_size), window_(c.exact_window), rollback_(c.max_rollback), late_(c.rules.late) {
        detail::check_config(c);
    }

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

} // namespace detail

} // namespace butterfly
