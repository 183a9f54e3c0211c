// SPDX-License-Identifier: MIT
#pragma once

// What a compressed cache shows to whom, as a value, and the sizes of one cache.
//
// With t the position of a query, W = exact_window, bs = block_size, S = exact_sinks:
//
//   lo(t) = max(0, t - W + 1),   c(t) = floor(lo(t) / bs)
//
//                          gap_free                             published
//   exact keys of t        [bs * c(t), t]                       [lo(t), t]
//   summary n eligible     n < c(t), routed                     n < c(t), routed
//   weight of a summary    ln(tokens it stands for)             one key
//   first S tokens         exact, in no summary                 in the summary of block 0
//   summaries of P tokens  floor(P / bs)                        c(P - 1)
//
// gap_free shows every past token once, or in a block that is not routed. published is the rule of the published system
// (Butterfly, commit 51a3d97), which leaves out up to bs - 1 tokens before the window; see testing/published.hpp.

#include <butterfly/core/index.hpp>

#include <string>

namespace butterfly {

/// Which tokens a query sees exactly and what a summary weighs. Any combination is consistent: no token is seen twice.
struct cache_rules {
    bool whole_blocks = true;  // exact keys reach back to the start of the block in which the window starts
    bool counted      = true;  // a summary weighs as many keys as it stands for
    bool sinks        = true;  // the first exact_sinks tokens stay exact and enter no summary
    bool late         = false; // a block is summarised when it has left the window, not when it is full

    static cache_rules const gap_free;
    static cache_rules const published;

    friend constexpr bool operator==(cache_rules const&, cache_rules const&) noexcept = default;
};

inline constexpr cache_rules cache_rules::gap_free{};
inline constexpr cache_rules cache_rules::published{
    .whole_blocks = false, .counted = false, .sinks = false, .late = true};

/// Sizes of a compressed cache.
struct cache_config {
    index_t kv_heads       = 0;
    index_t head_dim       = 0;
    index_t value_head_dim = 0;   // 0: head_dim
    index_t block_size     = 128; // tokens of a summary
    index_t exact_window   = 64;  // at least this many latest tokens are exact, the query's own included
    index_t exact_sinks    = 4;   // first tokens that stay exact, where the rules keep sinks
    index_t max_tokens     = 0;
    index_t max_append     = 512; // tokens of one append
    index_t max_rollback   = 0;   // tokens that trim may take back beyond the last append
    cache_rules rules      = cache_rules::gap_free;

    [[nodiscard]] index_t value_dim() const noexcept { return value_head_dim == 0 ? head_dim : value_head_dim; }
    [[nodiscard]] index_t sinks() const noexcept { return rules.sinks ? exact_sinks : 0; }
};

namespace detail {

/// Sizes above this are refused, so that sums of a few of them never overflow.
inline constexpr index_t largest_cache_size = index_t{1} << 40;

inline void check_cache_size(index_t value, index_t least, char const* name) {
    if (value < least)
        fail<shape_error>(std::string("cache: ") + name + " is " + std::to_string(value) + ", must be at least " +
                          std::to_string(least));
    if (value > largest_cache_size)
        fail<shape_error>(std::string("cache: ") + name + " is " + std::to_string(value) + ", more than 2^40");
}

/// Throws shape_error naming the size that makes no sense.
inline void check_config(cache_config const& c) {
    check_cache_size(c.kv_heads, 1, "kv_heads");
    check_cache_size(c.head_dim, 1, "head_dim");
    check_cache_size(c.value_head_dim, 0, "value_head_dim");
    check_cache_size(c.block_size, 1, "block_size");
    check_cache_size(c.exact_window, 1, "exact_window");
    check_cache_size(c.exact_sinks, 0, "exact_sinks");
    check_cache_size(c.max_tokens, 1, "max_tokens");
    check_cache_size(c.max_append, 1, "max_append");
    check_cache_size(c.max_rollback, 0, "max_rollback");
    if (ceil_div(c.max_tokens, c.block_size) > std::numeric_limits<std::int32_t>::max())
        fail<shape_error>("cache: max_tokens " + std::to_string(c.max_tokens) + " in blocks of " +
                          std::to_string(c.block_size) + " are more blocks than an int32 counts");
}

} // namespace detail
} // namespace butterfly
