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
#include <cmath>
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
        s.centre = draws.below(2) * draws.between(1, s.window + s.block - 1); // less a mean of keys that are gone
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
    for (std::uint64_t seed = 0; seed < seeds() / 2; ++seed) {
        auto const run = [&]<class Cache>(Cache const*, index_t tile) {
            testing::random draws(seed, 4);
            sizes s = drawn_sizes(draws, tile);
            sequence const in(s.kv_heads, 800, s.head_dim, s.value_dim, seed);
            goes_on_as_the_cache_of_what_is_left<Cache>(policy, s, in, {}, {}, 0.0, 0.0, seed);
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

TEMPLATE_LIST_TEST_CASE("a ring goes round by any number of tokens", "[shift]", cache_backends) {
    TestType const policy;
    using cache_type = bf::compressed_kv_cache<bf::raw_mix<float>, bf::weighted_mean_pooling>;
    testing::tensor<float> k({2, 300, 1}), v({2, 300, 3});
    floats weights;
    for (index_t t = 0; t < 300; ++t) {
        weights.push_back(static_cast<float>(t));
        for (index_t h = 0; h < 2; ++h) {
            k.at(h, t, 0) = static_cast<float>(1000 * h + t);
            for (index_t d = 0; d < 3; ++d) v.at(h, t, d) = static_cast<float>(2000 * d + 1000 * h + t);
        }
    }
    bool wrapped = false, longer = false, uneven = false;
    for (index_t const append : {1, 50, 120})
        for (index_t tokens = 100; tokens <= 300; tokens += 13) {
            bf::cache_config const c{.kv_heads       = 2,
                                     .head_dim       = 1,
                                     .value_head_dim = 3,
                                     .block_size     = 5,
                                     .exact_window   = 9,
                                     .exact_sinks    = 2,
                                     .max_tokens     = 300,
                                     .max_append     = append};
            cache_type whole(c);
            while (whole.tokens() < tokens) {
                index_t const at = whole.tokens(), count = std::min(append, tokens - at);
                bf::append(policy, whole, k.view().slice(at, count), v.view().slice(at, count),
                           {.token_weights = bf::memory_ref(weights.data() + at)});
            }
            for (index_t n = 0; n <= bf::droppable(whole); n += 5) {
                CAPTURE(append, tokens, n);
                auto cache = whole.copy(policy);
                bf::shift(policy, cache, n);
                auto const p       = cache.pools(policy);
                index_t const ring = p.tail_k.ring;
                wrapped |=
                    whole.tail_start() % ring > tokens % ring && cache.tail_start() % ring > cache.tokens() % ring;
                longer |= n > ring;
                uneven |= ring % std::max<index_t>(n, 1) != 0;
                bool good = true;
                for (index_t t = cache.tail_start(); t < cache.tokens(); ++t) {
                    auto const was = static_cast<float>(t + n);
                    good &= bf::host_pointer<float const>(p.token_weights)[t % ring] == was;
                    for (index_t h = 0; h < 2; ++h) {
                        good &= row_of(p.tail_k, h, t)[0] == static_cast<float>(1000 * h) + was;
                        for (index_t d = 0; d < 3; ++d)
                            good &= row_of(p.tail_v, h, t)[static_cast<std::size_t>(d)] ==
                                    static_cast<float>(2000 * d + 1000 * h) + was;
                    }
                }
                REQUIRE(good);
            }
        }
    REQUIRE((wrapped && longer && uneven));
}

TEMPLATE_LIST_TEST_CASE("queries see what they saw, less what is gone", "[shift]", cache_backends) {
    auto const policy = in_f32<TestType>();
    auto const run    = [&](auto const& mix, index_t block, index_t sinks) {
        using cache_type = bf::mixed_kv_cache<std::remove_cvref_t<decltype(mix)>>;
        CAPTURE(block, sinks);
        sizes const s{.head_dim = 80, .value_dim = 48, .block = block, .sinks = sinks, .centre = block + 7};
        sequence const in(2, 500, 80, 48, 5);
        cache_type cache(config_of<cache_type>(s), mix);
        append_to(policy, cache, in, tokens_up_to(500), 411, 37);
        auto const before         = cache.copy(policy);
        index_t const stays       = bf::detail::round_up(sinks, block);
        index_t const n           = bf::detail::round_down(150, block);
        auto const p              = before.pools(policy);
        bf::mixed_pools const now = [&] {
            bf::shift(policy, cache, n);
            return cache.pools(policy);
        }();
        for (index_t h = 0; h < 2; ++h)
            for (index_t t = sinks; t < cache.packed(); ++t) {
                index_t const was = t < stays ? t : t + n;
                REQUIRE(row_of(now.middle_k, h, t) == row_of(p.middle_k, h, was));
                REQUIRE(row_of(now.middle_v, h, t) == row_of(p.middle_v, h, was));
            }
        index_t const first = cache.counters().first_query();
        auto const got      = answers(policy, cache, first);
        index_t const rows  = cache.tokens() - first;
        for (index_t h = 0; h < 4; ++h)
            for (index_t t = first; t < cache.tokens(); ++t) {
                testing::random draws(99, static_cast<std::uint64_t>(t * 16 + h));
                floats q;
                for (index_t d = 0; d < 80; ++d) q.push_back(static_cast<float>(draws.normal()));
                index_t const exact = (t + n - s.window + 1) / block * block; // of a query that was n further on
                std::vector<testing::kept_tokens::key> keys;
                for (index_t j = 0; j <= t + n; ++j) {
                    if (j >= stays && j < stays + n) continue;
                    auto const& key_pool   = j >= exact ? p.tail_k : j < sinks ? p.sink_k : p.middle_k;
                    auto const& value_pool = j >= exact ? p.tail_v : j < sinks ? p.sink_v : p.middle_v;
                    keys.push_back({row_of(key_pool, h / 2, j), row_of(value_pool, h / 2, j), 0.0});
                }
                auto const wanted = testing::kept_tokens::attend(q, keys, 1.0 / std::sqrt(80.0), 48);
                auto const& row   = got[static_cast<std::size_t>(h * rows + t - first)];
                for (std::size_t d = 0; d < 48; ++d) REQUIRE(std::abs(row[d] - wanted[d]) < close_if_packed<TestType>);
            }
    };
    for (index_t const sinks : {0, 5, 40}) {
        run(bf::packed_mix<bf::quant::affine_channels<4, 32>, bf::quant::lloyd_max<16>>{}, 32, sinks);
        run(bf::packed_mix<bf::quant::int8, bf::quant::lloyd_max<6>, bf::quant::raw<bf::float16>>{}, 10, sinks);
    }
}

TEMPLATE_LIST_TEST_CASE("two shifts are one, and none is none", "[shift]", cache_backends) {
    TestType const policy;
    auto const run = [&]<class Cache>(Cache const*, index_t block, bool turned, double close) {
        for (index_t const sinks : {0, 3}) {
            sizes const s{.value_dim = 32, .block = block, .sinks = sinks, .centre = 9};
            sequence in(2, 500, 64, 32, 6);
            in.frequencies = bf::rope_frequencies(1e4, 48);
            bf::shift_options const options{.rope = turned ? in.rope() : bf::rope{}, .requantize = true};
            std::vector<std::byte> memory(static_cast<std::size_t>(Cache::required_bytes(config_of<Cache>(s))));
            Cache cache(config_of<Cache>(s), memory);
            append_to(policy, cache, in, tokens_up_to(500), 399, 41);
            auto const bytes    = memory;
            auto const counters = cache.counters();
            bf::shift(policy, cache, 0, {.rope = in.rope(), .requantize = true});
            REQUIRE((memory == bytes && cache.counters() == counters));
            auto once = cache.copy(policy), twice = cache.copy(policy);
            bf::shift(policy, once, 6 * block, options);
            bf::shift(policy, twice, 2 * block, options);
            bf::shift(policy, twice, 4 * block, options);
            REQUIRE(once.counters() == twice.counters());
            require_same(policy, once, twice, close, close);
        }
    };
    using channels = bf::packed_mix<bf::quant::affine_channels<4, 32>, bf::quant::lloyd_max<16>>;
    run(static_cast<bf::mixed_kv_cache<raw_mixed> const*>(nullptr), 16, false, 0.0);
    run(static_cast<bf::mixed_kv_cache<raw_mixed> const*>(nullptr), 16, true, 4e-6);
    run(static_cast<bf::mixed_kv_cache<channels> const*>(nullptr), 32, false, 0.0);
    run(static_cast<bf::compressed_kv_cache<testing::one_codec_each> const*>(nullptr), 48, false, 0.0);
    run(static_cast<bf::compressed_kv_cache<> const*>(nullptr), 48, true, 4e-6);
}

TEMPLATE_LIST_TEST_CASE("neither chunks before a shift nor after it decide a bit", "[shift]", cache_backends) {
    TestType const policy;
    auto const run = [&]<class Cache>(Cache const*, index_t block, index_t sinks, bool whole_tail) {
        CAPTURE(block, sinks, whole_tail);
        sizes const s{.head_dim = 64, .value_dim = 32, .block = block, .sinks = sinks, .append = 500, .centre = 15};
        sequence in(2, 500, 64, 32, 8);
        in.frequencies = bf::rope_frequencies(1e4, 64);
        in.pairs       = bf::rope_pairs::adjacent;
        bf::shift_options const options{.rope = in.rope(), .requantize = true};
        Cache a(config_of<Cache>(s)), b(config_of<Cache>(s));
        append_to(policy, a, in, tokens_up_to(500), 300, 23);
        append_to(policy, b, in, tokens_up_to(500), 299, 299);
        append_to(policy, b, in, tokens_up_to(500), 300, 1);
        index_t const most = std::min(bf::droppable(a), bf::droppable(b));
        index_t const n    = whole_tail ? most : bf::detail::round_down(most / 2, block);
        bf::shift(policy, a, n, options);
        bf::shift(policy, b, n, options);
        require_same(policy, a, b, 0.0, 0.0);
        auto const left = without(tokens_up_to(500), bf::detail::round_up(sinks, block), n);
        append_to(policy, a, in, left, 500 - n, 500);
        append_to(policy, b, in, left, 500 - n, 7);
        REQUIRE(a.counters().summaries() == b.counters().summaries());
        require_same(policy, a, b, 0.0, 0.0);
    };
    using channels = bf::packed_mix<bf::quant::affine_channels<4, 32>, bf::quant::lloyd_max<16>>;
    for (bool const whole_tail : {false, true})
        for (index_t const sinks : {0, 3}) {
            run(static_cast<bf::mixed_kv_cache<channels> const*>(nullptr), 64, sinks, whole_tail);
            run(static_cast<bf::mixed_kv_cache<testing::six_codecs> const*>(nullptr), 32, sinks, whole_tail);
            run(static_cast<bf::mixed_kv_cache<raw_mixed> const*>(nullptr), 8, sinks, whole_tail);
            run(static_cast<bf::compressed_kv_cache<testing::packed_tail> const*>(nullptr), 16, sinks, whole_tail);
        }
}

namespace {

/// How far keys [sinks' block, packed) of the middle are from where they belong, as a part of their energy.
template <class Cache>
double nmse_of_keys(Cache const& cache, sequence const& in, std::vector<index_t> const& tokens) {
    auto const p = cache.pools(bf::backend::scalar{});
    double error = 0.0, energy = 0.0;
    for (index_t h = 0; h < p.middle_k.shape.heads; ++h)
        for (index_t t = bf::detail::round_up(cache.config().exact_sinks, cache.config().block_size);
             t < cache.packed(); ++t) {
            auto const got = row_of(p.middle_k, h, t);
            for (index_t d = 0; d < p.middle_k.shape.head_dim; ++d) {
                double const wanted = in.key(h, tokens[static_cast<std::size_t>(t)], d, t);
                error += std::pow(got[static_cast<std::size_t>(d)] - wanted, 2);
                energy += wanted * wanted;
            }
        }
    return error / energy;
}

/// nmse of keys that were turned `shifts` times over that of keys which were packed once, at their last positions.
template <class Mix>
double growth(Mix const& mix, index_t shifts, index_t block, index_t centre) {
    bf::backend::scalar const policy;
    using cache_type = bf::mixed_kv_cache<Mix>;
    sizes const s{.kv_heads = 2, .head_dim = 64, .block = block, .append = 400, .centre = centre};
    sequence in(2, 400 + 32 * shifts, 64, 64, 9);
    in.frequencies = bf::rope_frequencies(1e4, 64);
    for (index_t h = 0; h < 2; ++h)
        for (index_t t = 0; t < in.k.shape().tokens; ++t) in.k.at(h, t, 63) += 3.0F; // turns slowly: has a mean
    auto tokens = tokens_up_to(400 + 32 * shifts);
    cache_type cache(config_of<cache_type>(s), mix), fresh(config_of<cache_type>(s), mix);
    append_to(policy, cache, in, tokens, in.k.shape().tokens, 400);
    append_to(policy, cache, in, tokens, in.k.shape().tokens, 1);
    for (index_t i = 0; i < shifts; ++i) {
        bf::shift(policy, cache, 32, {.rope = in.rope(), .requantize = true});
        tokens = without(tokens, 32, 32);
    }
    append_to(policy, fresh, in, tokens, 400, 400);
    return nmse_of_keys(cache, in, tokens) / nmse_of_keys(fresh, in, tokens);
}

} // namespace

TEST_CASE("packing once more adds the error of a codec once more", "[shift]") {
    auto const packed = [](auto const& mix) {
        for (index_t const centre : {0, 30}) {
            double const one = growth(mix, 1, 32, centre);
            CAPTURE(mix.middle_k.name(), centre, one);
            REQUIRE(one > 1.3);
            REQUIRE(one < 2.1);
        }
    };
    packed(bf::packed_mix<bf::quant::lloyd_max<16>>{});
    packed(bf::packed_mix<bf::quant::lloyd_max<6>>{});
    packed(bf::packed_mix<bf::quant::int8>{});
    packed(bf::packed_mix<bf::quant::affine<4, 64>>{});
    packed(bf::packed_mix<bf::quant::affine_channels<4, 32>, bf::quant::int8>{});
}

// Each shift rounds once more. Channels that turn slowly are rounded the same way every time, so that errors do not add
// up as those of strangers: ten shifts by 32 tokens leave 4.4 roundings (f16) and 5.0 (bf16), not the root of 11.
TEST_CASE("two-byte keys are rounded once more with every shift", "[shift]") {
    auto const rounded = [](auto element) {
        using raw        = bf::quant::raw<decltype(element)>;
        double const one = growth(bf::packed_mix<raw, raw, raw>{}, 1, 32, 0);
        double const ten = growth(bf::packed_mix<raw, raw, raw>{}, 10, 32, 0);
        CAPTURE(raw::name(), one, ten);
        REQUIRE(one > 1.8);
        REQUIRE(one < 2.2);
        REQUIRE(std::sqrt(ten) > 3.0);
        REQUIRE(std::sqrt(ten) < 5.5);
    };
    rounded(bf::float16{});
    rounded(bf::bfloat16{});
}

TEST_CASE("ten shifts turn f32 keys by their sum", "[shift]") {
    bf::backend::scalar const policy;
    using cache_type = bf::mixed_kv_cache<raw_mixed>;
    sequence in(1, 720, 64, 64, 10);
    in.frequencies = bf::rope_frequencies(1e4, 64);
    auto tokens    = tokens_up_to(720);
    cache_type cache(config_of<cache_type>({.kv_heads = 1, .head_dim = 64, .block = 32, .append = 720}));
    append_to(policy, cache, in, tokens, 719, 719);
    append_to(policy, cache, in, tokens, 720, 1);
    for (int i = 0; i < 10; ++i) {
        bf::shift(policy, cache, 32, {.rope = in.rope()});
        tokens = without(tokens, 32, 32);
    }
    REQUIRE(std::sqrt(nmse_of_keys(cache, in, tokens)) < 3e-7);
}

TEMPLATE_LIST_TEST_CASE("packed pools of every kind are turned where that is asked for", "[shift]", cache_backends) {
    auto const policy = in_f32<TestType>();
    auto const run    = [&]<class Cache>(Cache const*, double close) {
        sizes const s{.head_dim = 64, .value_dim = 32, .block = 32, .window = 24, .sinks = 3};
        sequence in(2, 500, 64, 32, 12);
        in.frequencies = bf::rope_frequencies(1e4, 40);
        Cache cache(config_of<Cache>(s)), fresh(config_of<Cache>(s)), moved(config_of<Cache>(s));
        append_to(policy, cache, in, tokens_up_to(500), 450, 43);
        append_to(policy, moved, in, tokens_up_to(500), 450, 43);
        append_to(policy, fresh, in, without(tokens_up_to(500), 32, 160), 290, 43);
        bf::shift(policy, cache, 160, {.rope = in.rope(), .requantize = true});
        bf::shift(policy, moved, 160);
        require_same(policy, cache, fresh, close, close);
        for_each_pool(cache, [&](std::string const& name, bf::storage_ref const& turned, index_t first, index_t end) {
            for_each_pool(moved, [&](std::string const& other, bf::storage_ref const& m, index_t, index_t) {
                if (name != other) return;
                for (index_t h = 0; h < 2; ++h)
                    for (index_t t = first; t < end; ++t) {
                        bool const stays = name.starts_with("blocks") ? t < 1 : t < 32;
                        bool const same  = row_of(turned, h, t) == row_of(m, h, t);
                        if (name.ends_with("_v") || stays) REQUIRE(same);
                        if (name.ends_with("_k") && !stays) REQUIRE(!same);
                    }
            });
        });
    };
    run(static_cast<bf::mixed_kv_cache<testing::six_codecs> const*>(nullptr), 0.06);
    run(static_cast<bf::mixed_kv_cache<bf::packed_mix<bf::quant::int8>> const*>(nullptr), 0.06);
    run(static_cast<bf::compressed_kv_cache<testing::one_codec_each> const*>(nullptr), 0.06);
    run(static_cast<bf::compressed_kv_cache<testing::packed_tail> const*>(nullptr), 0.06);
    run(static_cast<bf::mixed_kv_cache<bf::packed_mix<bf::quant::affine_channels<4, 32>>> const*>(nullptr), 0.7);
    run(static_cast<bf::mixed_kv_cache<bf::packed_mix<bf::quant::lloyd_max<16>>> const*>(nullptr), 1.5);
}

TEMPLATE_LIST_TEST_CASE("threads shift to the same bits", "[shift]", cache_backends) {
    auto const run = [&]<class Cache>(Cache const*) {
        sizes const s{.kv_heads = 3, .head_dim = 64, .value_dim = 32, .block = 32};
        sequence in(3, 500, 64, 32, 13);
        in.frequencies = bf::rope_frequencies(1e4, 64);
        bf::shift_options const options{.rope = in.rope(), .requantize = true};
        Cache cache(config_of<Cache>(s));
        append_to(TestType{}, cache, in, tokens_up_to(500), 470, 50);
        auto const before = cache.copy(TestType{});
        bf::shift(TestType{}, cache, 224, options);

        bf::meeting barrier;
        auto shared = before.copy(TestType{});
        testing::on_threads(3, [&](int thread) {
            bf::shift(TestType{.executor = bf::share{.thread = thread, .threads = 3, .barrier = barrier}}, shared, 224,
                      options);
        });
        require_same(TestType{}, shared, cache, 0.0, 0.0);

        auto const size = static_cast<std::size_t>(bf::shift_workspace_bytes(
            TestType{.executor = bf::share{.thread = 0, .threads = 3, .barrier = barrier}}, before));
        std::vector<std::byte> scratch(size + 64, std::byte{0x77});
        auto given = before.copy(TestType{});
        testing::on_threads(3, [&](int thread) {
            bf::barrier_ref without_board = barrier;
            without_board.board           = nullptr;
            TestType const policy{.executor = bf::share{.thread = thread, .threads = 3, .barrier = without_board}};
            bf::shift_options mine = options;
            mine.workspace         = std::span(scratch).first(size);
            bf::shift(policy, given, 224, mine);
        });
        require_same(TestType{}, given, cache, 0.0, 0.0);
        for (std::size_t i = size; i < scratch.size(); ++i) REQUIRE(scratch[i] == std::byte{0x77});
#if defined(_OPENMP)
        auto team = before.copy(TestType{});
        bf::shift(TestType{.executor = bf::openmp{.threads = 4}}, team, 224, options);
        require_same(TestType{}, team, cache, 0.0, 0.0);
#endif
    };
    using channels = bf::packed_mix<bf::quant::lloyd_max<16>, bf::quant::affine_channels<4, 32>>;
    run(static_cast<bf::mixed_kv_cache<channels> const*>(nullptr));
    run(static_cast<bf::mixed_kv_cache<testing::six_codecs> const*>(nullptr));
    run(static_cast<bf::compressed_kv_cache<testing::one_codec_each, bf::weighted_mean_pooling> const*>(nullptr));
}

TEMPLATE_LIST_TEST_CASE("a refused shift says why and changes nothing", "[shift]", cache_backends) {
    TestType const policy;
    auto const run = [&]<class Cache>(Cache const*, std::string const& packed_pool) {
        sizes const s{.head_dim = 64, .value_dim = 32, .block = 32, .sinks = 3, .rollback = 10};
        sequence in(2, 500, 64, 32, 14);
        in.frequencies = bf::rope_frequencies(1e4, 64);
        std::vector<std::byte> memory(static_cast<std::size_t>(Cache::required_bytes(config_of<Cache>(s))));
        Cache cache(config_of<Cache>(s), memory);
        append_to(policy, cache, in, tokens_up_to(500), 300, 50); // the last append started at 250, 240 may come back
        REQUIRE(cache.tail_start() == 192);                       // 32 * floor((240 - 19) / 32)
        REQUIRE(bf::droppable(cache) == 160);
        auto const bytes    = memory;
        auto const counters = cache.counters();

        auto const refused = [&]<class Error>(Error const*, auto const& by, index_t n, bf::shift_options const& options,
                                              std::string const& words) {
            try {
                bf::shift(by, cache, n, options);
                FAIL("accepted: " << words);
            } catch (Error const& e) {
                CAPTURE(e.what());
                REQUIRE(std::string(e.what()).find(words) != std::string::npos);
            }
            REQUIRE((memory == bytes && cache.counters() == counters));
        };
        constexpr bf::shape_error const* shape       = nullptr;
        constexpr bf::capacity_error const* capacity = nullptr;
        constexpr bf::backend_error const* backend   = nullptr;
        refused(shape, policy, 33, {},
                "shift: 33 tokens, must be 0 or more, and a multiple of block_size 32: 32 or 64");
        refused(shape, policy, -32, {}, "shift: -32 tokens");
        refused(capacity, policy, 192, {},
                "shift: 192 tokens, the cache can drop 160: those from position 32 to where its tail starts, 192");
        refused(capacity, policy, std::numeric_limits<index_t>::max(), {},
                "shift: 9223372036854775807 tokens, the cache");
        std::vector<double> frequencies(33, 0.5);
        refused(shape, policy, 32, {.rope = {.frequencies = frequencies}, .requantize = true},
                "shift: rope has 33 frequencies for 66 channels, keys have head_dim 64");
        frequencies.resize(32);
        frequencies[7] = std::numeric_limits<double>::quiet_NaN();
        refused(shape, policy, 32, {.rope = {.frequencies = frequencies}, .requantize = true},
                "shift: rope.frequencies[7] is not finite");
        frequencies[7] = 1e308;
        refused(shape, policy, 32, {.rope = {.frequencies = frequencies}, .requantize = true},
                "shift: rope.frequencies[7] is not finite, or not times 32 tokens");
        for (index_t const n : {0, 32})
            refused(shape, policy, n, {.rope = in.rope()}, "shift: rope cannot turn " + packed_pool);
        std::vector<std::byte> little(static_cast<std::size_t>(bf::shift_workspace_bytes(policy, cache)) - 64);
        refused(shape, policy, 32, {.workspace = std::span(little).subspan(1)}, "options.workspace has");
        bf::meeting barrier;
        bf::barrier_ref without_board = barrier;
        without_board.board           = nullptr;
        refused(backend, TestType{.executor = bf::share{.thread = 0, .threads = 2, .barrier = without_board}}, 32, {},
                "no board needs options.workspace");

        bf::shift(policy, cache, 160, {.rope = in.rope(), .requantize = true});
        REQUIRE(bf::droppable(cache) == 0);
        auto const taken = std::move(cache);
        REQUIRE(bf::droppable(taken) == 0);
        REQUIRE_THROWS_AS(bf::shift(policy, cache, 0), bf::shape_error);
    };
    run(static_cast<bf::mixed_kv_cache<bf::packed_mix<bf::quant::lloyd_max<16>>> const*>(nullptr),
        "middle_k, which is kept as lloyd_max<16> seed 1: ");
    run(static_cast<bf::mixed_kv_cache<bf::packed_mix<bf::quant::affine_channels<4, 32>>> const*>(nullptr),
        "middle_k, which is kept as affine_channels<4, 32>: ");
    run(static_cast<bf::compressed_kv_cache<testing::one_codec_each> const*>(nullptr),
        "summary_k, which is kept as bytes: ");
    run(static_cast<bf::compressed_kv_cache<testing::packed_tail> const*>(nullptr), "tail_k, which is kept as bytes: ");
}

TEST_CASE("sinks that have not all come, and caches that are too young, have nothing to drop", "[shift]") {
    bf::backend::scalar const policy;
    sequence const in(2, 500, 64, 64, 15);
    for (index_t const sinks : {0, 3, 200}) {
        bf::mixed_kv_cache<raw_mixed> cache(config_of<bf::mixed_kv_cache<raw_mixed>>({.sinks = sinks}));
        REQUIRE(bf::droppable(cache) == 0);
        append_to(policy, cache, in, tokens_up_to(500), 30, 10);
        REQUIRE(bf::droppable(cache) == 0);
        REQUIRE_THROWS_AS(bf::shift(policy, cache, 16), bf::capacity_error);
        append_to(policy, cache, in, tokens_up_to(500), 150, 10);
        REQUIRE(bf::droppable(cache) == (sinks == 0 ? 112 : sinks == 3 ? 96 : 0)); // the tail starts at 112
    }
}

TEST_CASE("frequencies are powers of a base, and what makes none is refused", "[shift]") {
    auto const f = bf::rope_frequencies(1e4, 8);
    REQUIRE(f.size() == 4);
    double const wanted[] = {1.0, 0.1, 0.01, 0.001};
    for (std::size_t i = 0; i < 4; ++i) REQUIRE(std::abs(f[i] / wanted[i] - 1.0) < 1e-15);
    for (index_t const dims : {-2, 0, 7}) REQUIRE_THROWS_AS(bf::rope_frequencies(1e4, dims), bf::shape_error);
    for (double const base : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::nan("")})
        REQUIRE_THROWS_AS(bf::rope_frequencies(base, 8), bf::shape_error);
}

TEST_CASE("pairs are turned back by their angles, and channels after them not at all", "[shift]") {
    constexpr int count = 3;
    float cosines[count], sines[count];
    for (int i = 0; i < count; ++i) {
        cosines[i] = static_cast<float>(std::cos(0.4 + i));
        sines[i]   = static_cast<float>(std::sin(0.4 + i));
    }
    for (auto const pairs : {bf::rope_pairs::halves, bf::rope_pairs::adjacent}) {
        float const before[8] = {1.0F, -2.0F, 3.0F, 0.5F, -0.25F, 4.0F, 7.0F, 9.0F};
        float after[8];
        std::copy_n(before, 8, after);
        bf::detail::turn_back(pairs, count, cosines, sines, after);
        for (int i = 0; i < count; ++i) {
            int const x = pairs == bf::rope_pairs::halves ? i : 2 * i;
            int const y = pairs == bf::rope_pairs::halves ? i + count : 2 * i + 1;
            CAPTURE(i, x, y);
            REQUIRE(std::abs(after[x] - (before[x] * std::cos(0.4 + i) + before[y] * std::sin(0.4 + i))) < 1e-6);
            REQUIRE(std::abs(after[y] - (before[y] * std::cos(0.4 + i) - before[x] * std::sin(0.4 + i))) < 1e-6);
        }
        REQUIRE((after[6] == before[6] && after[7] == before[7]));
    }
}

TEST_CASE("a key is turned to the same bits on every machine", "[shift]") {
    bf::backend::scalar const policy;
    auto const hash_of = [&]<class Mix>(Mix const& mix) {
        using cache_type = bf::mixed_kv_cache<Mix>;
        sequence in(2, 500, 64, 32, 16);
        cache_type cache(config_of<cache_type>({.head_dim = 64, .value_dim = 32, .block = 32, .centre = 20}), mix);
        append_to(policy, cache, in, tokens_up_to(500), 450, 50); // keys without positions: no libm has touched them
        std::vector<double> frequencies;
        for (int i = 0; i < 32; ++i) frequencies.push_back(1.0 / (1 + i * i));
        bf::shift(policy, cache, 320, {.rope = {.frequencies = frequencies}, .requantize = true});
        std::uint64_t hash = 0xcbf29ce484222325U; // FNV-1a
        for (auto const& row : rows_of(cache, 0, 1000))
            for (float const x : row) hash = (hash ^ std::bit_cast<std::uint32_t>(x)) * 0x100000001b3U;
        return hash;
    };
    CHECK(hash_of(raw_mixed{}) == 0x4f1b6c69f8ef7a7dU);
    CHECK(hash_of(bf::packed_mix<bf::quant::lloyd_max<16>>{}) == 0xa9056430a2d36255U);
    CHECK(hash_of(testing::six_codecs{}) == 0xd8d2b08d25380321U);
}
} // namespace context_shift
