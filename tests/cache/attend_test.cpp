// SPDX-License-Identifier: MIT

// What attention over a cache promises: one answer per position however a sequence was cut, every token once, and what
// cannot be served refused.

#include <butterfly/cache/attend.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/topology/causal_shift.hpp>
#include <butterfly/topology/window.hpp>

#include "cache/backends.hpp"
#include "support/cache_model.hpp"
#include "support/catch.hpp"

#include <cmath>
#include <limits>

namespace bf      = butterfly;
namespace testing = butterfly::testing;

namespace {

bf::cache_config config(bf::index_t max_append) {
    return {.kv_heads       = 2,
            .head_dim       = 16,
            .value_head_dim = 12,
            .block_size     = 16,
            .exact_window   = 10,
            .exact_sinks    = 3,
            .max_tokens     = 400,
            .max_append     = max_append};
}

constexpr float scale = 0.25F;

/// Tensors of one sequence: four query heads on two kv heads.
struct sequence {
    testing::tensor<float> q, k, v, out;
    explicit sequence(bf::index_t tokens, std::uint64_t seed = 1)
        : q({4, tokens, 16}), k({2, tokens, 16}), v({2, tokens, 12}), out({4, tokens, 12}) {
        testing::fill(q, testing::random(seed, 1), testing::distribution::normal);
        testing::fill(k, testing::random(seed, 2), testing::distribution::normal);
        testing::fill(v, testing::random(seed, 3), testing::distribution::normal);
    }
};

auto routed() {
    return bf::topology::row(bf::topology::causal_shift{{1, 3}}, bf::topology::window{.predecessors = 1});
}

/// Appends and attends in the steps given, over and over; returns the output.
template <class Policy, class Cache>
void run(Policy const& policy, Cache& cache, sequence& s, std::vector<bf::index_t> const& steps) {
    bf::index_t const tokens = s.q.shape().tokens;
    for (std::size_t i = 0; cache.tokens() < tokens; ++i) {
        bf::index_t const at    = cache.tokens();
        bf::index_t const count = std::min(steps[i % steps.size()], tokens - at);
        bf::append(policy, cache, s.k.view().slice(at, count), s.v.view().slice(at, count));
        bf::attend(policy, s.q.view().slice(at, count), cache, routed(), s.out.view().slice(at, count),
                   {.scale = scale});
    }
}

/// Equal to the bit where the backend has one answer, else close.
template <class Policy>
void require_same(testing::tensor<float> const& a, testing::tensor<float> const& b) {
    auto const c =
        one_answer<Policy> ? testing::compare_bits(a.view(), b.view()) : testing::compare(a.view(), b.view(), 1e-5);
    INFO(c.text());
    REQUIRE(c.ok);
}

} // namespace

TEMPLATE_LIST_TEST_CASE("any cut of a sequence gives the same output", "[attend]", cache_backends) {
    TestType const policy;
    std::vector<std::vector<bf::index_t>> const cuts = {{1}, {2}, {15, 1}, {16}, {17}, {64, 3, 1}, {5, 90}, {130}};
    sequence wanted(333);
    bf::compressed_kv_cache<> whole(config(400));
    run(policy, whole, wanted, {333}); // prefill in one piece
    for (auto const& cut : cuts) {
        CAPTURE(cut);
        sequence s(333);
        bf::compressed_kv_cache<> cache(config(*std::max_element(cut.begin(), cut.end())));
        run(policy, cache, s, cut);
        require_same<TestType>(s.out, wanted.out);
    }
}

TEMPLATE_LIST_TEST_CASE("two-byte and foreign pools are as indifferent to cuts", "[attend]", cache_backends) {
    auto const policy = in_f32<TestType>();
    auto const check  = [&](auto mix) {
        sequence wanted(200), s(200);
        bf::compressed_kv_cache<decltype(mix)> whole(config(200)), cache(config(40));
        run(policy, whole, wanted, {200});
        run(policy, cache, s, {1, 40, 7});
        require_same<TestType>(s.out, wanted.out);
    };
    check(bf::raw_mix<bf::float16>{});
    check(bf::raw_mix<bf::bfloat16>{});
    check(testing::one_codec_each{});
}

TEST_CASE("a cache in bf16 is attended by the unit that was asked for", "[attend]") {
    using bf::backend::bf16_unit;
    constexpr bf::index_t length = 333;
    for (bf16_unit const unit : {bf16_unit::best, bf16_unit::emulated})
        for (bf::index_t const tokens : {bf::index_t{1}, length}) { // decode, prefill
            CAPTURE(name_of(unit), tokens);
            bf::backend::simd<> const policy{.bf16 = unit};
            bool const rounds = resolve(unit) != bf16_unit::fma;
            sequence s(length);
            bf::compressed_kv_cache<bf::raw_mix<bf::bfloat16>> cache(config(length));
            bf::append(policy, cache, s.k.view(), s.v.view());

            auto const row = routed();
            auto const q   = s.q.view().slice(length - tokens, tokens);
            auto const out = s.out.view().slice(length - tokens, tokens);
            std::vector<float> lse(static_cast<std::size_t>(4 * tokens));
            bf::attend_options const o{.scale = scale, .lse = bf::memory_ref(lse.data())};
            bf::cache_problem const bound   = bf::make_problem(testing::oracle{}, q, cache, row, out, o);
            testing::attention const wanted = testing::evaluate(bound.problem());
            bf::attend(policy, q, cache, row, out, o);

            testing::tolerance const f32     = testing::tolerance_of(bf::element_type::f32);
            testing::tolerance const allowed = rounds ? testing::tolerance_of_bf16_units() : f32;
            REQUIRE(testing::compare(out, wanted, allowed));
            REQUIRE(testing::compare_lse(lse, wanted, allowed));
            if (tokens > 1) REQUIRE(testing::compare(out, wanted, f32).ok == !rounds);
        }
}

TEMPLATE_LIST_TEST_CASE("with all blocks routed and equal keys every past token weighs the same",
                        "[attend]",
                        cache_backends) {
    TestType const policy;
    for (auto const window : {1, 7, 16, 40}) {
        sequence s(300);
        for (bf::index_t h = 0; h < 2; ++h)
            for (bf::index_t t = 0; t < 300; ++t)
                for (bf::index_t d = 0; d < 16; ++d) s.k.at(h, t, d) = 0.0F;
        bf::cache_config c = config(30);
        c.exact_window     = window;
        bf::compressed_kv_cache<> cache(c);
        bf::topology::window const all{.predecessors = cache.max_blocks()};
        for (bf::index_t at = 0; at < 300; at += 30) {
            bf::append(policy, cache, s.k.view().slice(at, 30), s.v.view().slice(at, 30));
            std::vector<float> lse(4 * 30);
            bf::attend(policy, s.q.view().slice(at, 30), cache, all, s.out.view().slice(at, 30),
                       {.scale = scale, .lse = bf::memory_ref(lse.data())});
            for (std::size_t i = 0; i < lse.size(); ++i) // as many keys as tokens
                REQUIRE(std::abs(std::exp(lse[i]) - static_cast<float>(at + 1 + static_cast<bf::index_t>(i % 30))) <
                        2e-3);
        }
        for (bf::index_t h = 0; h < 4; ++h)
            for (bf::index_t d = 0; d < 12; ++d) {
                double sum = 0.0;
                for (bf::index_t t = 0; t < 300; ++t) {
                    sum += s.v.at(h / 2, t, d);
                    REQUIRE(std::abs(s.out.at(h, t, d) - sum / static_cast<double>(t + 1)) < 1e-5);
                }
            }
    }
}

TEMPLATE_LIST_TEST_CASE("while everything is in the tail the cache is dense attention", "[attend]", cache_backends) {
    TestType const policy;
    sequence s(50), dense(50);
    bf::cache_config c = config(50);
    c.exact_window     = 50;
    bf::compressed_kv_cache<> cache(c);
    run(policy, cache, s, {20, 1, 9});
    bf::dense_sdpa(policy, s.q.view(), s.k.view(), s.v.view(), dense.out.view(), {.scale = scale});
    auto const same = testing::compare(s.out.view(), dense.out.view(), 1e-5);
    INFO(same.text());
    REQUIRE(same.ok);
}

TEMPLATE_LIST_TEST_CASE("an append that was taken back leaves no trace", "[attend]", cache_backends) {
    TestType const policy;
    sequence wanted(300), s(300), wrong(300, 2);
    bf::compressed_kv_cache<> plain(config(40)), cache(config(40));
    run(policy, plain, wanted, {40, 3});
    for (std::size_t i = 0; cache.tokens() < 300; ++i) {
        bf::index_t const at    = cache.tokens();
        bf::index_t const count = std::min<bf::index_t>(i % 2 == 0 ? 40 : 3, 300 - at);
        bf::index_t const tried = std::min<bf::index_t>(37, 300 - at);
        bf::append(policy, cache, wrong.k.view().slice(at, tried), wrong.v.view().slice(at, tried)); // speculation
        REQUIRE(cache.tokens() == at + tried);
        cache.trim(at + tried / 2);
        cache.trim(at);
        bf::append(policy, cache, s.k.view().slice(at, count), s.v.view().slice(at, count));
        bf::attend(policy, s.q.view().slice(at, count), cache, routed(), s.out.view().slice(at, count),
                   {.scale = scale});
    }
    require_same<TestType>(s.out, wanted.out);
    REQUIRE(cache.retained_bytes() == plain.retained_bytes());

    REQUIRE_THROWS_AS(cache.trim(301), bf::shape_error);
    REQUIRE_THROWS_AS(cache.trim(-1), bf::shape_error);
    REQUIRE_THROWS_AS(cache.trim(cache.counters().trim_floor() - 1), bf::capacity_error);
    cache.clear();
    REQUIRE(cache.tokens() == 0);
    REQUIRE(cache.retained_bytes() == 0);
    sequence again(300);
    run(policy, cache, again, {40, 3});
    require_same<TestType>(again.out, wanted.out);
}

TEMPLATE_LIST_TEST_CASE("a copy goes on by itself", "[attend]", cache_backends) {
    TestType const policy;
    sequence wanted(200), s(200), other(200, 3);
    bf::compressed_kv_cache<> plain(config(40)), cache(config(40));
    run(policy, plain, wanted, {25});
    bf::append(policy, cache, s.k.view().slice(0, 25), s.v.view().slice(0, 25));
    bf::attend(policy, s.q.view().slice(0, 25), cache, routed(), s.out.view().slice(0, 25), {.scale = scale});
    bf::compressed_kv_cache<> copy = cache.copy(policy);
    REQUIRE(copy.counters() == cache.counters());
    run(policy, cache, other, {25});
    run(policy, copy, s, {25});
    require_same<TestType>(s.out, wanted.out);

    std::vector<std::byte> room(static_cast<std::size_t>(cache.allocated_bytes()) + 64);
    auto const skip  = static_cast<bf::index_t>(-reinterpret_cast<std::uintptr_t>(room.data()) % std::uintptr_t{64});
    auto const there = cache.copy(policy, bf::memory_ref(room.data() + skip), cache.allocated_bytes());
    REQUIRE(there.counters() == cache.counters());
    REQUIRE(there.pools(policy).tail_k.data.base == room.data() + skip);
    REQUIRE_THROWS_AS(cache.copy(policy, bf::memory_ref(room.data() + skip), cache.allocated_bytes() - 1),
                      bf::capacity_error);

    bf::compressed_kv_cache<> moved = std::move(copy);
    REQUIRE(moved.tokens() == 200);
    sequence last(200);
    bf::attend(policy, last.q.view().slice(190, 10), moved, routed(), last.out.view().slice(190, 10), {.scale = scale});
    for (bf::index_t d = 0; d < 12; ++d) REQUIRE(std::abs(last.out.at(3, 199, d) - wanted.out.at(3, 199, d)) < 1e-5);
}

TEST_CASE("the oracle appends and attends as any policy", "[attend]") {
    sequence wanted(60), s(60);
    bf::compressed_kv_cache<> plain(config(40)), cache(config(40));
    run(bf::backend::scalar{}, plain, wanted, {25});
    run(bf::testing::oracle{}, cache, s, {25});
    for (bf::index_t t = 0; t < 60; ++t)
        for (bf::index_t d = 0; d < 12; ++d) REQUIRE(std::abs(s.out.at(3, t, d) - wanted.out.at(3, t, d)) < 1e-5);
}

TEMPLATE_LIST_TEST_CASE("a cache that was moved from says so", "[attend]", cache_backends) {
    TestType const policy;
    bf::compressed_kv_cache<> cache({.kv_heads = 1, .head_dim = 4, .max_tokens = 64});
    bf::heads_buffer<float> row({1, 1, 4});
    bf::append(policy, cache, row.view(), row.view());
    bf::compressed_kv_cache<> const now = std::move(cache);
    REQUIRE(now.tokens() == 1);
    REQUIRE_THROWS_AS(bf::append(policy, cache, row.view(), row.view()), bf::shape_error);
    REQUIRE_THROWS_AS(bf::attend(policy, row.view(), cache, routed(), row.view()), bf::shape_error);
    REQUIRE_THROWS_AS(cache.copy(policy), bf::shape_error);
    cache.clear();
    REQUIRE_THROWS_AS(bf::append(policy, cache, row.view(), row.view()), bf::shape_error);
}

TEMPLATE_LIST_TEST_CASE("a NaN reaches exactly the rows that see it", "[attend]", cache_backends) {
    TestType const policy;
    constexpr bf::index_t at = 100;
    constexpr float nan      = std::numeric_limits<float>::quiet_NaN();
    for (bool const in_keys : {true, false}) {
        CAPTURE(in_keys);
        sequence clean(250), s(250);
        (in_keys ? s.k.at(1, at, 5) : s.v.at(1, at, 5)) = nan;
        bf::compressed_kv_cache<> a(config(31)), b(config(31));
        run(policy, a, clean, {31});
        run(policy, b, s, {31});
        bf::cache_config const c = config(31);
        for (bf::index_t t = 0; t < 250; ++t) {
            bf::index_t const first  = std::max<bf::index_t>(0, t - c.exact_window + 1) / 16 * 16;
            bf::index_t const block  = t / 16;
            bf::index_t const target = at / 16;
            bool const named         = target == block - 1 || target == block - 2 || target == block - 8;
            bool const sees          = t >= at && (at >= first || named);
            for (bf::index_t h = 0; h < 4; ++h)
                for (bf::index_t d = 0; d < 12; ++d) {
                    bool const hit = sees && h >= 2 && (in_keys || d == 5);
                    CAPTURE(t, h, d);
                    if (hit)
                        REQUIRE(std::isnan(s.out.at(h, t, d)));
                    else if (!sees || h < 2)
                        REQUIRE(std::abs(s.out.at(h, t, d) - clean.out.at(h, t, d)) <=
                                (one_answer<TestType> ? 0.0 : 1e-5));
                    else
                        REQUIRE(std::isfinite(s.out.at(h, t, d)));
                }
        }
    }
}

TEMPLATE_LIST_TEST_CASE("many sequences attend in one launch", "[attend]", cache_backends) {
    TestType const policy;
    auto const row                         = routed();
    std::vector<bf::index_t> const lengths = {1, 40, 333, 17, 200};
    std::vector<sequence> alone, together;
    std::vector<bf::compressed_kv_cache<>> caches;
    caches.reserve(lengths.size()); // problems keep addresses of caches
    std::vector<bf::cache_problem> bound;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
        alone.emplace_back(lengths[i], i);
        together.emplace_back(lengths[i], i);
        caches.emplace_back(config(400));
        bf::append(policy, caches[i], alone[i].k.view(), alone[i].v.view());
    }
    for (std::size_t i = 0; i < lengths.size(); ++i) {
        bf::attend(policy, alone[i].q.view(), caches[i], row, alone[i].out.view(), {.scale = scale});
        bound.push_back(
            bf::make_problem(policy, together[i].q.view(), caches[i], row, together[i].out.view(), {.scale = scale}));
    }
    std::vector<bf::problem> problems;
    for (auto const& b : bound) problems.push_back(b.problem());
    bf::cache_problem const copy = bound[2]; // sees through its own visibilities
    for (int i = 0; i < copy.problem().pool_count; ++i) {
        auto const* const state = static_cast<std::byte const*>(copy.problem().pools[i].visibility.state);
        auto const* const self  = static_cast<std::byte const*>(static_cast<void const*>(&copy));
        REQUIRE((state >= self && state < self + sizeof copy));
    }
    REQUIRE(supports(policy, problems[2]));
    REQUIRE_FALSE(explain(policy, problems[2]).empty());
    REQUIRE(workspace_bytes(policy, problems) > 0);
    bf::attend(policy, std::span<bf::problem const>(problems));
    for (std::size_t i = 0; i < lengths.size(); ++i) require_same<TestType>(together[i].out, alone[i].out);
}

TEMPLATE_LIST_TEST_CASE("earlier positions are served as far as the tail reaches", "[attend]", cache_backends) {
    TestType const policy;
    sequence wanted(300), s(300);
    bf::compressed_kv_cache<> cache(config(50));
    run(policy, cache, wanted, {50});
    bf::index_t const first = cache.counters().first_query();
    REQUIRE(first == 240 + 9); // the tail starts at 240, W = 10: the append of 250..299 still finds its keys
    auto const at = [&](bf::index_t position, bf::index_t count) {
        bf::attend(policy, s.q.view().slice(position, count), cache, routed(), s.out.view().slice(position, count),
                   {.scale = scale, .q_position = position});
    };
    for (bf::index_t t = first; t < 300; ++t) at(t, 1);
    for (bf::index_t t = first; t < 300; ++t)
        for (bf::index_t d = 0; d < 12; ++d) {
            bool const same = s.out.at(2, t, d) == wanted.out.at(2, t, d) ||
                              (!one_answer<TestType> && std::abs(s.out.at(2, t, d) - wanted.out.at(2, t, d)) < 1e-5);
            if (t >= 250) REQUIRE(same);
        }
    REQUIRE_THROWS_AS(at(first - 1, 1), bf::capacity_error);
    REQUIRE_THROWS_AS(at(0, 1), bf::capacity_error); // position 0, not the latest token
}

TEMPLATE_LIST_TEST_CASE("position 0 is given, no position means the latest tokens", "[attend]", cache_backends) {
    TestType const policy;
    sequence s(40);
    bf::compressed_kv_cache<> cache(config(100));
    bf::append(policy, cache, s.k.view().slice(0, 40), s.v.view().slice(0, 40));
    testing::tensor<float> first({4, 1, 12}), latest({4, 1, 12}), at_39({4, 1, 12});
    auto const row = s.q.view().slice(39, 1);
    bf::attend(policy, row, cache, routed(), first.view(), {.scale = scale, .q_position = 0});
    bf::attend(policy, row, cache, routed(), latest.view(), {.scale = scale});
    bf::attend(policy, row, cache, routed(), at_39.view(), {.scale = scale, .q_position = 39});
    for (bf::index_t h = 0; h < 4; ++h)
        for (bf::index_t d = 0; d < 12; ++d) {
            REQUIRE(first.at(h, 0, d) == s.v.at(h / 2, 0, d)); // sees token 0 alone
            REQUIRE(latest.at(h, 0, d) == at_39.at(h, 0, d));
        }
}

TEMPLATE_LIST_TEST_CASE("what cannot be attended is refused by name", "[attend]", cache_backends) {
    TestType const policy;
    sequence s(100);
    bf::compressed_kv_cache<> cache(config(100));
    bf::append(policy, cache, s.k.view(), s.v.view());
    auto const refused = [&](auto const& q, auto const& out, bf::attend_options options, std::string const& word) {
        try {
            bf::attend(policy, q, cache, routed(), out, options);
            FAIL("accepted: " << word);
        } catch (bf::shape_error const& e) {
            CAPTURE(e.what());
            REQUIRE(std::string(e.what()).find(word) != std::string::npos);
        }
    };
    std::int32_t const position = 3;
    testing::tensor<float> long_q({4, 101, 16}), long_out({4, 101, 12}), narrow({4, 100, 8}), three({3, 100, 16}),
        three_out({3, 100, 12});
    refused(s.q.view(), s.out.view(), {}, "scale must be given");
    refused(long_q.view(), long_out.view(), {.scale = scale}, "q has tokens 101");
    refused(s.q.view(), s.out.view(), {.scale = scale, .q_position = 1}, "the cache has tokens 100");
    refused(s.q.view(), s.out.view(), {.scale = scale, .q_position = -2}, "position -2");
    refused(s.q.view(), s.out.view(), {.scale = scale, .causal = false}, "causal");
    refused(s.q.view(), s.out.view(), {.scale = scale, .q_positions = bf::memory_ref(&position)}, "q_positions");
    float const slopes[4] = {};
    refused(s.q.view(), s.out.view(), {.scale = scale, .alibi_slopes = bf::memory_ref(slopes)}, "alibi_slopes");
    refused(s.q.view(), s.out.view(), {.scale = scale, .mask = {.data = bf::memory_ref(slopes)}}, "mask");
    refused(narrow.view(), s.out.view(), {.scale = scale}, "head_dim 16, q has 8");
    refused(s.q.view(), narrow.view(), {.scale = scale}, "head_dim 12, out has 8");
    refused(three.view(), three_out.view(), {.scale = scale}, "heads 3, not a multiple");
    REQUIRE_THROWS_AS(
        bf::attend(policy, s.q.view(), cache, bf::topology::window{.predecessors = -1}, s.out.view(), {.scale = scale}),
        bf::shape_error);
    bf::attend(policy, s.q.view().slice(0, 0), cache, routed(), s.out.view().slice(0, 0), {.scale = scale});
}
