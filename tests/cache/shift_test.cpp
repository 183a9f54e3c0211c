// SPDX-License-Identifier: MIT

// What a context shift promises: a cache that has dropped tokens is the cache of those that are left. Bit for bit where
// rows only move; with a rope, that of keys which got their new positions from the start, up to rounding.

#include <butterfly/cache/shift.hpp>

#include "cache/backends.hpp"
#include "support/cache_model.hpp"
#include "support/catch.hpp"
#include "support/mixed_model.hpp"
#include "support/on_threads.hpp"
#include "support/sweep.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>

namespace bf      = butterfly;
namespace testing = butterfly::testing;

namespace context_shift { // names of its own, for builds that compile several of these files as one
namespace {

using bf::index_t;
using floats = std::vector<float>;

/// Keys without a position and values of a sequence, and how the keys get theirs.
struct sequence {
    testing::tensor<float> k, v;
    std::vector<double> frequencies{};
    bf::rope_pairs pairs = bf::rope_pairs::halves;

    sequence(index_t heads, index_t tokens, index_t dim, index_t value_dim, std::uint64_t seed)
        : k({heads, tokens, dim}), v({heads, tokens, value_dim}) {
        testing::fill(k, testing::random(seed, 1), testing::distribution::normal);
        testing::fill(v, testing::random(seed, 2), testing::distribution::normal);
    }

    [[nodiscard]] bf::rope rope() const { return {.frequencies = frequencies, .pairs = pairs}; }

    /// Channel d of a key that stands at `position`: the definition, in double.
    [[nodiscard]] float key(index_t head, index_t token, index_t d, index_t position) const {
        auto const count = static_cast<index_t>(frequencies.size());
        if (d >= 2 * count) return k.at(head, token, d);
        bool const halves  = pairs == bf::rope_pairs::halves;
        index_t const pair = halves ? d % count : d / 2;
        bool const second  = halves ? d >= count : d % 2 == 1;
        double const x     = k.at(head, token, halves ? pair : 2 * pair);
        double const y     = k.at(head, token, halves ? pair + count : 2 * pair + 1);
        double const angle = static_cast<double>(position) * frequencies[static_cast<std::size_t>(pair)];
        return static_cast<float>(second ? x * std::sin(angle) + y * std::cos(angle)
                                         : x * std::cos(angle) - y * std::sin(angle));
    }
};

/// Appends tokens from[position] of a sequence, at positions [cache.tokens(), end), in steps.
template <class Policy, class Cache>
void append_to(Policy const& policy,
               Cache& cache,
               sequence const& in,
               std::vector<index_t> const& from,
               index_t end,
               index_t step,
               bool weighted = false) {
    while (cache.tokens() < end) {
        index_t const first = cache.tokens();
        index_t const count = std::min(step, end - first);
        testing::tensor<float> k({in.k.shape().heads, count, in.k.shape().head_dim}),
            v({in.v.shape().heads, count, in.v.shape().head_dim});
        floats weights;
        for (index_t t = 0; t < count; ++t) {
            index_t const token = from[static_cast<std::size_t>(first + t)];
            weights.push_back(static_cast<float>(token % 4));
            for (index_t h = 0; h < k.shape().heads; ++h) {
                for (index_t d = 0; d < k.shape().head_dim; ++d) k.at(h, t, d) = in.key(h, token, d, first + t);
                for (index_t d = 0; d < v.shape().head_dim; ++d) v.at(h, t, d) = in.v.at(h, token, d);
            }
        }
        bf::append_options options;
        if (weighted) options.token_weights = bf::memory_ref(weights.data());
        bf::append(policy, cache, k.view(), v.view(), options);
    }
}

/// Tokens [0, count), and those without [first, first + dropped).
std::vector<index_t> tokens_up_to(index_t count) {
    std::vector<index_t> tokens;
    for (index_t t = 0; t < count; ++t) tokens.push_back(t);
    return tokens;
}
std::vector<index_t> without(std::vector<index_t> tokens, index_t first, index_t dropped) {
    tokens.erase(tokens.begin() + first, tokens.begin() + first + dropped);
    return tokens;
}

/// What a slot stands for.
floats row_of(bf::storage_ref const& s, index_t head, index_t slot) {
    floats row(static_cast<std::size_t>(s.shape.head_dim));
    bf::backend::on_host::decode_row(s, head, slot, row.data());
    return row;
}

/// Calls f(name, storage, first slot, last slot + 1) for the pools of a cache that hold rows of tokens or blocks.
template <class Mix, class P, class F>
void for_each_pool(bf::compressed_kv_cache<Mix, P> const& cache, F const& f) {
    auto const p = cache.pools(bf::backend::scalar{});
    f("sink_k", p.sink_k, index_t{0}, p.sink_k.shape.tokens);
    f("sink_v", p.sink_v, index_t{0}, p.sink_v.shape.tokens);
    f("blocks_k", p.summary_k, index_t{0}, cache.summaries());
    f("blocks_v", p.summary_v, index_t{0}, cache.summaries());
    f("tail_k", p.tail_k, cache.tail_start(), cache.tokens());
    f("tail_v", p.tail_v, cache.tail_start(), cache.tokens());
}
template <class Mix, class F>
void for_each_pool(bf::mixed_kv_cache<Mix> const& cache, F const& f) {
    auto const p        = cache.pools(bf::backend::scalar{});
    index_t const sinks = cache.config().exact_sinks; // whose codes mean nothing
    f("sink_k", p.sink_k, index_t{0}, p.sink_k.shape.tokens);
    f("sink_v", p.sink_v, index_t{0}, p.sink_v.shape.tokens);
    f("middle_k", p.middle_k, sinks, cache.packed());
    f("middle_v", p.middle_v, sinks, cache.packed());
    f("tail_k", p.tail_k, cache.tail_start(), cache.tokens());
    f("tail_v", p.tail_v, cache.tail_start(), cache.tokens());
}

/// What a cache stands for: sinks, the first `blocks` blocks that are condensed, and the tail from `tail_start` on.
template <class Cache>
std::vector<floats> rows_of(Cache const& cache, index_t tail_start, index_t blocks) {
    std::vector<floats> rows;
    for_each_pool(cache, [&](std::string const& name, bf::storage_ref const& s, index_t first, index_t end) {
        if (name.starts_with("tail")) first = std::max(first, tail_start);
        if (name.starts_with("blocks")) end = std::min(end, blocks);
        if (name.starts_with("middle")) end = std::min(end, blocks * cache.config().block_size);
        for (index_t h = 0; h < s.shape.heads; ++h)
            for (index_t i = first; i < end; ++i) rows.push_back(row_of(s, h, i));
    });
    if constexpr (requires { cache.mix().summary_k; }) {
        auto const p = cache.pools(bf::backend::scalar{});
        if (auto const* const w = bf::host_pointer<float const>(p.log_weights))
            rows.emplace_back(w, w + std::min(cache.summaries(), blocks));
        if (auto const* const w = bf::host_pointer<float const>(p.token_weights))
            for (index_t t = std::max(cache.tail_start(), tail_start); t < cache.tokens(); ++t)
                rows.push_back({w[t % p.tail_k.ring]});
    }
    return rows;
}

/// The largest difference of values, infinite where there are not as many; equal bits are no difference.
double difference(std::vector<floats> const& a, std::vector<floats> const& b) {
    double most = a.size() == b.size() ? 0.0 : std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        if (a[i].size() != b[i].size()) return std::numeric_limits<double>::infinity();
        for (std::size_t d = 0; d < a[i].size(); ++d)
            if (std::bit_cast<std::uint32_t>(a[i][d]) != std::bit_cast<std::uint32_t>(b[i][d]))
                most = std::max(most, std::abs(static_cast<double>(a[i][d]) - b[i][d]));
    }
    return most;
}

/// Outputs of queries that depend on their position alone, at positions [first, tokens), two heads a kv head.
template <class Policy, class Cache>
std::vector<floats> answers(Policy const& policy, Cache const& cache, index_t first) {
    auto const& c = cache.config();
    testing::tensor<float> q({2 * c.kv_heads, cache.tokens() - first, c.head_dim});
    testing::tensor<float> out({2 * c.kv_heads, cache.tokens() - first, c.value_dim()});
    for (index_t h = 0; h < q.shape().heads; ++h)
        for (index_t t = first; t < cache.tokens(); ++t) {
            testing::random draws(99, static_cast<std::uint64_t>(t * 16 + h));
            for (index_t d = 0; d < c.head_dim; ++d) q.at(h, t - first, d) = static_cast<float>(draws.normal());
        }
    bf::attend_options const options{.scale = 1.0F / std::sqrt(static_cast<float>(c.head_dim)), .q_position = first};
    if constexpr (requires { cache.mix().summary_k; }) {
        bf::topology::row const row{bf::topology::causal_shift{{1}}, bf::topology::window{.predecessors = 2},
                                    bf::topology::landmark{.stride = 1, .count = 1}};
        bf::attend(policy, q.view(), cache, row, out.view(), options);
    } else {
        bf::attend(policy, q.view(), cache, out.view(), options);
    }
    std::vector<floats> rows;
    for (index_t h = 0; h < out.shape().heads; ++h)
        for (index_t t = 0; t < out.shape().tokens; ++t)
            rows.emplace_back(&out.at(h, t, 0), &out.at(h, t, 0) + c.value_dim());
    return rows;
}

/// What two caches of the same tokens have in common: rows, and answers to every query that both serve.
template <class Policy, class Cache>
void require_same(Policy const& policy, Cache const& a, Cache const& b, double row_error, double answer_error) {
    REQUIRE(a.tokens() == b.tokens());
    a.counters().check_invariants();
    index_t const from   = std::max(a.tail_start(), b.tail_start());
    index_t const blocks = std::min(a.counters().summaries(), b.counters().summaries()); // trim leaves more
    REQUIRE(difference(rows_of(a, from, blocks), rows_of(b, from, blocks)) <= row_error);
    index_t const first = std::max(a.counters().first_query(), b.counters().first_query());
    if (first < a.tokens()) REQUIRE(difference(answers(policy, a, first), answers(policy, b, first)) <= answer_error);
}

/// Sizes of one test.
struct sizes {
    index_t kv_heads = 2, head_dim = 64, value_dim = 0;
    index_t block = 16, window = 20, sinks = 3, append = 50, rollback = 0, centre = 0;
};

template <class Cache>
typename Cache::config_type config_of(sizes const& s) {
    typename Cache::config_type c{.kv_heads       = s.kv_heads,
                                  .head_dim       = s.head_dim,
                                  .value_head_dim = s.value_dim,
                                  .block_size     = s.block,
                                  .exact_window   = s.window,
                                  .exact_sinks    = s.sinks};
    c.max_tokens   = 1000;
    c.max_append   = s.append;
    c.max_rollback = s.rollback;
    if constexpr (requires { c.centre_keys; }) c.centre_keys = c.centre_values = s.centre;
    return c;
}

/// A cache that is shifted, goes on, is shifted again, trimmed and goes on, and caches of the tokens that are left.
template <class Cache, class Policy>
void goes_on_as_the_cache_of_what_is_left(Policy const& policy,
                                          sizes const& s,
                                          sequence const& in,
                                          typename Cache::mix_type const& mix,
                                          bf::shift_options const& options,
                                          double row_error,
                                          double answer_error,
                                          std::uint64_t seed) {
    testing::random draws(seed, 7);
    auto const config   = config_of<Cache>(s);
    bool const weighted = Cache::takes_weights;
    Cache cache(config, mix);
    auto tokens         = tokens_up_to(in.k.shape().tokens);
    index_t const stays = bf::detail::round_up(s.sinks, s.block);
    append_to(policy, cache, in, tokens, draws.between(200, 420), draws.between(1, s.append), weighted);

    auto const check = [&] {
        Cache fresh(config, mix);
        append_to(policy, fresh, in, tokens, cache.tokens(), draws.between(1, s.append), weighted);
        require_same(policy, cache, fresh, row_error, answer_error);
    };
    auto const shift = [&] {
        index_t const most = bf::droppable(cache);
        index_t const n    = draws.below(3) == 0 ? most : draws.below(most / s.block + 1) * s.block;
        CAPTURE(cache.tokens(), cache.tail_start(), n);
        auto const before = cache.counters();
        bf::shift(policy, cache, n, options);
        REQUIRE(cache.tokens() == before.tokens() - n);
        REQUIRE(cache.tail_start() == before.tail_start() - n);
        REQUIRE(cache.counters().trim_floor() == before.trim_floor() - n);
        REQUIRE(cache.counters().summaries() == before.summaries() - n / s.block);
        tokens = without(tokens, stays, n);
        check();
    };
    CAPTURE(s.block, s.window, s.sinks, s.append, s.rollback, s.centre, s.head_dim, s.value_dim, seed);
    shift();
    append_to(policy, cache, in, tokens, cache.tokens() + draws.between(1, 130), draws.between(1, s.append), weighted);
    check();
    shift();
    cache.trim(draws.between(cache.counters().trim_floor(), cache.tokens()));
    check();
    append_to(policy, cache, in, tokens, cache.tokens() + draws.between(1, 130), draws.between(1, s.append), weighted);
    check();
}

/// Sizes and sequence drawn for a seed; tiles of `tile` tokens, head_dims that are multiples of 16.
sizes drawn_sizes(testing::random& draws, index_t tile) {
    sizes s;
    s.kv_heads             = draws.between(1, 3);
    index_t const dims[]   = {64, 80, 128};
    index_t const blocks[] = {1, 5, 8, 16, 48, 64};
    s.head_dim             = draws.one_of(dims);
    s.value_dim            = draws.one_of(dims) / 2 / 16 * 16;
    s.block                = tile > 1 ? tile * draws.between(1, 2) : draws.one_of(blocks);
    s.window               = draws.between(1, 40);
    s.sinks                = draws.below(3) == 0 ? 0 : draws.between(1, 70);
    s.append               = draws.between(1, 60);
    s.rollback             = draws.below(2) * draws.below(40);
    return s;
}

sequence drawn_sequence(testing::random& draws, sizes const& s, std::uint64_t seed) {
    sequence in(s.kv_heads, 800, s.head_dim, s.value_dim, seed);
    index_t const dims = draws.below(3) == 0 ? 2 * draws.between(1, s.head_dim / 2 - 1) : s.head_dim; // or a part of it
    in.frequencies     = bf::rope_frequencies(draws.below(2) == 0 ? 1e4 : 5e5, dims);
    in.pairs           = draws.below(2) == 0 ? bf::rope_pairs::halves : bf::rope_pairs::adjacent;
    return in;
}

std::uint64_t seeds() {
    return test::shortest_sweep() ? 2 : test::short_sweep() ? 4 : 12;
}

using raw_mixed = bf::packed_mix<bf::quant::raw<float>, bf::quant::raw<float>, bf::quant::raw<float>>;

} // namespace

TEMPLATE_LIST_TEST_CASE("with a rope a shifted cache is that of keys which got the new positions",
                        "[shift]",
                        cache_backends) {
    auto const policy = in_f32<TestType>();
    for (std::uint64_t seed = 0; seed < seeds(); ++seed) {
        testing::random draws(seed, 3);
        sizes s           = drawn_sizes(draws, 1);
        sequence const in = drawn_sequence(draws, s, seed);
        bf::shift_options const turned{.rope = in.rope()};
        goes_on_as_the_cache_of_what_is_left<bf::mixed_kv_cache<raw_mixed>>(policy, s, in, {}, turned, 4e-6, 4e-6,
                                                                            seed);
        goes_on_as_the_cache_of_what_is_left<bf::compressed_kv_cache<>>(policy, s, in, {}, turned, 4e-6, 4e-6, seed);
        goes_on_as_the_cache_of_what_is_left<bf::compressed_kv_cache<bf::raw_mix<float>, bf::weighted_mean_pooling>>(
            policy, s, in, {}, turned, 4e-6, 4e-6, seed);
    }
}

TEMPLATE_LIST_TEST_CASE("without one a shifted cache is to the bit that of the tokens left",
                        "[shift]",
                        cache_backends) {
    auto const policy = in_f32<TestType>();
    for (std::uint64_t seed = 0; seed < seeds(); ++seed) {
        auto const run = [&]<class Cache>(Cache const*, index_t tile) {
            testing::random draws(seed, 4);
            sizes s = drawn_sizes(draws, tile);
            sequence const in(s.kv_heads, 800, s.head_dim, s.value_dim, seed);
            // The chunks of the two differ, and so may the kernel class that answers; not what it is asked.
            double const close = one_answer<TestType> ? 0.0 : 4e-6;
            goes_on_as_the_cache_of_what_is_left<Cache>(policy, s, in, {}, {}, 0.0, close, seed);
        };
        using channels = bf::packed_mix<bf::quant::affine_channels<4, 32>, bf::quant::lloyd_max<16>>;
        run(static_cast<bf::mixed_kv_cache<raw_mixed> const*>(nullptr), 1);
        run(static_cast<bf::mixed_kv_cache<channels> const*>(nullptr), 32);
        run(static_cast<bf::mixed_kv_cache<testing::six_codecs> const*>(nullptr), 32);
        run(static_cast<bf::mixed_kv_cache<bf::packed_mix<bf::quant::int8>> const*>(nullptr), 1);
        run(static_cast<bf::compressed_kv_cache<> const*>(nullptr), 1);
        run(static_cast<bf::compressed_kv_cache<testing::one_codec_each> const*>(nullptr), 1);
        run(static_cast<bf::compressed_kv_cache<testing::packed_tail, bf::weighted_mean_pooling> const*>(nullptr), 1);
    }
}
} // namespace context_shift
