// SPDX-License-Identifier: MIT

// What attention over a mixed-precision cache promises: every token up to the query once, one answer per position
// however a sequence was cut, and what cannot be served refused.

#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/oracle.hpp>

#include "cache/backends.hpp"
#include "support/catch.hpp"
#include "support/mixed_model.hpp"
#include "support/on_threads.hpp"
#include "support/sweep.hpp"

#include <cmath>
#include <limits>
#include <string>

namespace bf      = butterfly;
namespace testing = butterfly::testing;

namespace mixed_attend { // names of its own, for builds that compile several of these files as one
namespace {

constexpr float scale = 0.18F;

using exact_mix    = bf::packed_mix<bf::quant::raw<float>, bf::quant::raw<float>, bf::quant::raw<float>>;
using row_mix      = bf::packed_mix<bf::quant::int8, bf::quant::lloyd_max<16>, bf::quant::raw<float>>;
using channels_mix = bf::packed_mix<bf::quant::affine_channels<4, 32>, bf::quant::affine<4, 64>>;

bf::mixed_cache_config config(bf::index_t max_append = 400, bf::index_t block_size = 32) {
    return {.kv_heads       = 2,
            .head_dim       = 32,
            .value_head_dim = 16,
            .block_size     = block_size,
            .exact_window   = 20,
            .exact_sinks    = 3,
            .centre_keys    = 50,
            .max_tokens     = 400,
            .max_append     = max_append};
}

/// Tensors of one sequence: four query heads on two kv heads. One channel of the keys is large in every token.
struct sequence {
    testing::tensor<float> q, k, v, out;
    explicit sequence(bf::index_t tokens, std::uint64_t seed = 1)
        : q({4, tokens, 32}), k({2, tokens, 32}), v({2, tokens, 16}), out({4, tokens, 16}) {
        testing::fill(q, testing::random(seed, 1), testing::distribution::normal);
        testing::fill(k, testing::random(seed, 2), testing::distribution::normal);
        testing::fill(v, testing::random(seed, 3), testing::distribution::normal);
        for (bf::index_t h = 0; h < 2; ++h)
            for (bf::index_t t = 0; t < tokens; ++t) k.at(h, t, 7) += 3.0F;
    }
};

template <class F>
void for_each_mix(F const& f) {
    f(exact_mix{});
    f(row_mix{});
    f(channels_mix{});
    f(bf::packed_mix<bf::quant::lloyd_max<6>, bf::quant::lloyd_max<32>, bf::quant::raw<bf::float16>>{});
    f(bf::packed_mix<testing::byte_codec, bf::quant::affine<8, 64>>{});
    f(testing::six_codecs{});
}

template <class Policy, class Cache>
void append_only(Policy const& policy, Cache& cache, sequence& s, bf::index_t count) {
    bf::append(policy, cache, s.k.view().slice(cache.tokens(), count), s.v.view().slice(cache.tokens(), count));
}

/// Appends and attends in the steps given, over and over, up to `end` tokens.
template <class Policy, class Cache>
void run(Policy const& policy,
         Cache& cache,
         sequence& s,
         std::vector<bf::index_t> const& steps,
         bf::index_t end             = 1 << 20,
         bf::attend_options const& o = {.scale = scale}) {
    end = std::min(end, s.q.shape().tokens);
    for (std::size_t i = 0; cache.tokens() < end; ++i) {
        bf::index_t const at    = cache.tokens();
        bf::index_t const count = std::min(steps[i % steps.size()], end - at);
        append_only(policy, cache, s, count);
        bf::attend(policy, s.q.view().slice(at, count), cache, s.out.view().slice(at, count), o);
    }
}

/// Equal to the bit where the backend has one answer, else close.
template <class Policy>
void require_same(testing::tensor<float> const& a, testing::tensor<float> const& b) {
    auto const c = one_answer<Policy> ? testing::compare_bits(a.view(), b.view())
                                      : testing::compare(a.view(), b.view(), close_if_packed<Policy>);
    INFO(c.text());
    REQUIRE(c.ok);
}

} // namespace

TEMPLATE_LIST_TEST_CASE("any cut of a sequence gives the same output of a mixed cache", "[mixed]", cache_backends) {
    auto const policy = in_f32<TestType>();
    for_each_mix([&](auto const& mix) {
        for (bf::index_t const block_size : {32, 64, 128}) {
            if (test::short_sweep() && block_size > 32) continue;
            sequence wanted(333);
            bf::mixed_kv_cache whole(config(400, block_size), mix);
            run(policy, whole, wanted, {333}); // prefill in one piece
            std::vector<std::vector<bf::index_t>> cuts = {{15, 1}, {64, 3, 1}, {1}, {32}, {33}, {5, 90}, {130}};
            if (test::short_sweep()) cuts.resize(2);
            for (auto const& cut : cuts) {
                CAPTURE(block_size, cut);
                sequence s(333);
                bf::mixed_kv_cache cache(config(*std::max_element(cut.begin(), cut.end()), block_size), mix);
                run(policy, cache, s, cut);
                require_same<TestType>(s.out, wanted.out);
            }
        }
    });
}

TEMPLATE_LIST_TEST_CASE("every token up to the query is seen once", "[mixed]", cache_backends) {
    TestType const policy;
    for (bf::index_t const window : {1, 20, 32, 33, 90, 500})
        for (bf::index_t const sinks : {0, 3, 32, 100, 500}) {
            if (test::short_sweep() && ((window != 33 && window != 90) || (sinks != 3 && sinks != 32))) continue;
            CAPTURE(window, sinks);
            bf::mixed_cache_config c = config(30);
            c.exact_window           = window;
            c.exact_sinks            = sinks;
            c.centre_keys            = 1;
            c.centre_values          = 1;
            sequence s(300);
            for (bf::index_t h = 0; h < 2; ++h)
                for (bf::index_t t = 0; t < 300; ++t)
                    for (bf::index_t d = 0; d < 32; ++d) s.k.at(h, t, d) = 0.0F;
            bf::mixed_kv_cache<exact_mix> cache(c);
            for (bf::index_t at = 0; at < 300; at += 30) {
                append_only(policy, cache, s, 30);
                auto const q   = s.q.view().slice(at, 30);
                auto const out = s.out.view().slice(at, 30);
                std::vector<float> lse(4 * 30);
                bf::attend_options const o{.scale = scale, .lse = bf::memory_ref(lse.data())};
                bf::attend(policy, q, cache, out, o);
                bf::mixed_cache_problem const bound = bf::make_problem(testing::oracle{}, q, cache, out, o);
                auto const defined                  = testing::evaluate(bound.problem());
                for (std::size_t i = 0; i < lse.size(); ++i) { // as many keys as tokens
                    REQUIRE(defined.keys[i] == at + 1 + static_cast<bf::index_t>(i % 30));
                    REQUIRE(std::abs(std::exp(lse[i]) - static_cast<float>(defined.keys[i])) < 2e-3);
                }
            }
            REQUIRE(cache.packed() == std::max<bf::index_t>(0, 300 - window) / 32 * 32);
            for (bf::index_t h = 0; h < 4; ++h)
                for (bf::index_t d = 0; d < 16; ++d) {
                    double sum = 0.0;
                    for (bf::index_t t = 0; t < 300; ++t) {
                        sum += s.v.at(h / 2, t, d);
                        REQUIRE(std::abs(s.out.at(h, t, d) - sum / static_cast<double>(t + 1)) < 1e-5);
                    }
                }
        }
}

TEMPLATE_LIST_TEST_CASE("a cache is attended as its pools define", "[mixed]", cache_backends) {
    auto const policy = in_f32<TestType>();
    for_each_mix([&](auto const& mix) {
        bf::mixed_cache_config c = config();
        c.centre_values          = 33;
        bf::mixed_kv_cache cache(c, mix);
        sequence s(333);
        append_only(policy, cache, s, 333);
        std::vector<float> lse(4 * 333), slopes{0.01F, 0.02F, 0.0F, 0.005F}, sinks{0.5F, 1.0F, -1.0F, 0.0F};
        bf::attend_options const plain{.scale = scale, .lse = bf::memory_ref(lse.data())};
        bf::attend_options all = plain;
        all.soft_cap           = 4.0F;
        all.alibi_slopes       = bf::memory_ref(slopes.data()); // slots are positions
        all.sink_logits        = bf::memory_ref(sinks.data());
        std::vector<bf::attend_options> asked{all};
        if (!test::short_sweep()) asked.push_back(plain);
        for (bf::attend_options const& o : asked) {
            auto const bound  = bf::make_problem(testing::oracle{}, s.q.view(), cache, s.out.view(), o);
            auto const wanted = testing::evaluate(bound.problem());
            bf::attend(policy, s.q.view(), cache, s.out.view(), o);
            if (one_answer<TestType>) {
                REQUIRE(testing::compare(s.out.view(), wanted, bf::element_type::f32));
                REQUIRE(testing::compare_lse(lse, wanted, bf::element_type::f32));
            }
            testing::tensor<float> defined({4, 333, 16});
            for (bf::index_t h = 0; h < 4; ++h)
                for (bf::index_t t = 0; t < 333; ++t)
                    for (bf::index_t d = 0; d < 16; ++d)
                        defined.at(h, t, d) = static_cast<float>(wanted.out[wanted.at(h, t, d)]);
            auto const close = testing::compare(s.out.view(), defined.view(), close_if_packed<TestType>);
            INFO(close.text());
            REQUIRE(close.ok);
            for (std::size_t i = 0; i < lse.size(); ++i)
                REQUIRE(std::abs(lse[i] - wanted.lse[i]) <= close_if_packed<TestType>);
        }
    });
}

TEMPLATE_LIST_TEST_CASE("while nothing is packed the cache is dense attention", "[mixed]", cache_backends) {
    TestType const policy;
    sequence s(83), dense(83);
    bf::mixed_cache_config c = config();
    c.exact_window           = 52; // block 0 would be packed with token 84
    bf::mixed_kv_cache<row_mix> cache(c);
    run(policy, cache, s, {20, 1, 9});
    REQUIRE(cache.packed() == 0);
    bf::dense_sdpa(policy, s.q.view(), s.k.view(), s.v.view(), dense.out.view(), {.scale = scale});
    auto const same = testing::compare(s.out.view(), dense.out.view(), 1e-5);
    INFO(same.text());
    REQUIRE(same.ok);
}

TEMPLATE_LIST_TEST_CASE("codes of eight bits are close to dense attention", "[mixed]", cache_backends) {
    TestType const policy;
    sequence s(400), dense(400);
    bf::mixed_kv_cache<bf::packed_mix<bf::quant::int8, bf::quant::affine<8, 64>>> cache(config(50));
    run(policy, cache, s, {50});
    bf::dense_sdpa(policy, s.q.view(), s.k.view(), s.v.view(), dense.out.view(), {.scale = scale});
    double off = 0.0, all = 0.0;
    for (bf::index_t h = 0; h < 4; ++h)
        for (bf::index_t t = 0; t < 400; ++t)
            for (bf::index_t d = 0; d < 16; ++d) {
                off += std::pow(s.out.at(h, t, d) - dense.out.at(h, t, d), 2);
                all += std::pow(dense.out.at(h, t, d), 2);
            }
    REQUIRE(std::sqrt(off / all) < 0.02);
}

TEMPLATE_LIST_TEST_CASE("an append that was taken back leaves no trace in a mixed cache", "[mixed]", cache_backends) {
    auto const policy = in_f32<TestType>();
    for_each_mix([&](auto const& mix) {
        sequence wanted(300), s(300), wrong(300, 2);
        bf::mixed_kv_cache plain(config(40), mix), cache(config(40), mix);
        run(policy, plain, wanted, {40, 3});
        for (std::size_t i = 0; cache.tokens() < 300; ++i) {
            bf::index_t const at    = cache.tokens();
            bf::index_t const count = std::min<bf::index_t>(i % 2 == 0 ? 40 : 3, 300 - at);
            append_only(policy, cache, wrong, std::min<bf::index_t>(37, 300 - at)); // speculation
            cache.trim(at + std::min<bf::index_t>(37, 300 - at) / 2);
            cache.trim(at);
            append_only(policy, cache, s, count);
            bf::attend(policy, s.q.view().slice(at, count), cache, s.out.view().slice(at, count), {.scale = scale});
        }
        require_same<TestType>(s.out, wanted.out);
        REQUIRE(cache.retained_bytes() == plain.retained_bytes());
        REQUIRE_THROWS_AS(cache.trim(301), bf::shape_error);
        REQUIRE_THROWS_AS(cache.trim(-1), bf::shape_error);
        REQUIRE_THROWS_AS(cache.trim(cache.counters().trim_floor() - 1), bf::capacity_error);
        cache.clear();
        REQUIRE(cache.tokens() == 0);
        sequence again(300);
        run(policy, cache, again, {40, 3});
        require_same<TestType>(again.out, wanted.out);
    });
}

TEMPLATE_LIST_TEST_CASE("what is appended after a trim below the tokens of the mean is as in a new cache",
                        "[mixed]",
                        cache_backends) {
    auto const policy = in_f32<TestType>();
    for_each_mix([&](auto const& mix) {
        for (bf::index_t const length : {0, 10, 32, 49, 50, 51}) {
            CAPTURE(length);
            bf::mixed_cache_config c = config();
            c.centre_values          = 30;
            c.max_rollback           = 60;
            sequence first(300, 1), wanted(300, 2), s(300, 2);
            bf::mixed_kv_cache cache(c, mix), fresh(c, mix);
            append_only(policy, cache, first, 100);
            REQUIRE(cache.packed() == 64);
            cache.trim(length);
            if (length > 0) append_only(policy, fresh, first, length);
            run(policy, cache, s, {70, 1});
            run(policy, fresh, wanted, {11});
            require_same<TestType>(s.out, wanted.out);
        }
    });
}

TEMPLATE_LIST_TEST_CASE("a copy of a mixed cache goes on by itself", "[mixed]", cache_backends) {
    auto const policy = in_f32<TestType>();
    using cache_type  = bf::mixed_kv_cache<channels_mix>;
    sequence wanted(200), s(200), other(200, 3);
    cache_type plain(config(100)), cache(config(100));
    run(policy, plain, wanted, {25});
    run(policy, cache, s, {25}, 100);
    cache_type copy = cache.copy(policy);
    REQUIRE(copy.counters() == cache.counters());
    run(policy, cache, other, {25});
    run(policy, copy, s, {25});
    require_same<TestType>(s.out, wanted.out);

    std::vector<std::byte> room(static_cast<std::size_t>(cache.required_bytes(cache.config())));
    auto const skip  = static_cast<bf::index_t>(-reinterpret_cast<std::uintptr_t>(room.data()) % std::uintptr_t{64});
    auto const there = cache.copy(policy, bf::memory_ref(room.data() + skip), cache.allocated_bytes());
    REQUIRE(there.counters() == cache.counters());
    REQUIRE(there.pools(policy).tail_k.data.base == room.data() + skip);
    REQUIRE_THROWS_AS(cache.copy(policy, bf::memory_ref(room.data() + skip), cache.allocated_bytes() - 1),
                      bf::capacity_error);
    REQUIRE(cache.copy(policy, room).counters() == cache.counters());

    cache_type const moved = std::move(copy);
    sequence last(200);
    bf::attend(policy, last.q.view().slice(190, 10), moved, last.out.view().slice(190, 10), {.scale = scale});
    for (bf::index_t d = 0; d < 16; ++d)
        REQUIRE(std::abs(last.out.at(3, 199, d) - wanted.out.at(3, 199, d)) <= close_if_packed<TestType>);
    bf::heads_buffer<float> k({2, 1, 32}), v({2, 1, 16}), q({4, 1, 32}), out({4, 1, 16});
    REQUIRE_THROWS_AS(bf::append(policy, copy, k.view(), v.view()), bf::shape_error);
    REQUIRE_THROWS_AS(bf::attend(policy, q.view(), copy, out.view(), {.scale = scale}), bf::shape_error);
    REQUIRE_THROWS_AS(copy.copy(policy), bf::shape_error);
    copy.clear();
    REQUIRE_THROWS_AS(bf::append(policy, copy, k.view(), v.view()), bf::shape_error);
}

TEST_CASE("the oracle appends and attends a mixed-precision cache as any policy", "[mixed]") {
    sequence wanted(160), s(160);
    bf::mixed_kv_cache<channels_mix> plain(config()), cache(config());
    run(bf::backend::scalar{}, plain, wanted, {25});
    run(testing::oracle{}, cache, s, {25});
    auto const close = testing::compare(s.out.view(), wanted.out.view(), 1e-5);
    INFO(close.text());
    REQUIRE(close.ok);
}

TEMPLATE_LIST_TEST_CASE("a NaN reaches exactly the rows that see it, though it is in the mean",
                        "[mixed]",
                        cache_backends) {
    TestType const policy;
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    for (bf::index_t const at : {1, 40, 100}) // a sink, a token of the mean, another
        for (bool const in_keys : {true, false}) {
            CAPTURE(at, in_keys);
            bf::mixed_cache_config c = config(31);
            c.centre_values          = 45;
            sequence clean(250), s(250);
            (in_keys ? s.k.at(1, at, 5) : s.v.at(1, at, 5)) = nan;
            bf::mixed_kv_cache<row_mix> a(c), b(c);
            run(policy, a, clean, {31});
            run(policy, b, s, {31});
            for (bf::index_t t = 0; t < 250; ++t)
                for (bf::index_t h = 0; h < 4; ++h)
                    for (bf::index_t d = 0; d < 16; ++d) {
                        CAPTURE(t, h, d);
                        if (h >= 2 && t >= at && (in_keys || d == 5))
                            REQUIRE(std::isnan(s.out.at(h, t, d)));
                        else if (t < at || h < 2)
                            REQUIRE(std::abs(s.out.at(h, t, d) - clean.out.at(h, t, d)) <=
                                    (one_answer<TestType> ? 0.0 : close_if_packed<TestType>));
                    }
        }
}

TEMPLATE_LIST_TEST_CASE("many mixed-precision caches attend in one launch", "[mixed]", cache_backends) {
    auto const policy                      = in_f32<TestType>();
    std::vector<bf::index_t> const lengths = {1, 40, 333, 17, 200};
    std::vector<sequence> alone, together;
    std::vector<bf::mixed_kv_cache<row_mix>> caches;
    caches.reserve(lengths.size()); // problems keep addresses of caches
    std::vector<bf::mixed_cache_problem> bound;
    for (std::size_t i = 0; i < lengths.size(); ++i) {
        alone.emplace_back(lengths[i], i);
        together.emplace_back(lengths[i], i);
        caches.emplace_back(config());
        append_only(policy, caches[i], alone[i], lengths[i]);
    }
    for (std::size_t i = 0; i < lengths.size(); ++i) {
        bf::attend(policy, alone[i].q.view(), caches[i], alone[i].out.view(), {.scale = scale});
        bound.push_back(
            bf::make_problem(policy, together[i].q.view(), caches[i], together[i].out.view(), {.scale = scale}));
    }
    std::vector<bf::problem> problems;
    for (auto const& b : bound) problems.push_back(b.problem());
    REQUIRE(problems[0].pool_count == 1); // nothing is packed
    REQUIRE(problems[2].pool_count == 3);
    bf::mixed_cache_problem const copy = bound[2]; // sees through its own visibilities
    for (int i = 0; i < copy.problem().pool_count; ++i) {
        auto const* const state = static_cast<std::byte const*>(copy.problem().pools[i].visibility.state);
        auto const* const self  = static_cast<std::byte const*>(static_cast<void const*>(&copy));
        REQUIRE((state >= self && state < self + sizeof copy));
    }
    REQUIRE(supports(policy, problems[2]));
    REQUIRE_FALSE(explain(policy, problems[2]).empty());
    bf::attend(policy, std::span<bf::problem const>(problems));
    for (std::size_t i = 0; i < lengths.size(); ++i) require_same<TestType>(together[i].out, alone[i].out);

    bf::mixed_cache_config none = config();
    none.exact_sinks            = 0;
    bf::mixed_kv_cache<row_mix> sinkless(none);
    append_only(policy, sinkless, alone[2], 333);
    auto const two = bf::make_problem(policy, alone[2].q.view(), sinkless, alone[2].out.view(), {.scale = scale});
    REQUIRE(two.problem().pool_count == 2);
}

TEMPLATE_LIST_TEST_CASE("readers do not disturb one another", "[mixed]", cache_backends) {
    TestType const policy;
    bf::mixed_kv_cache<channels_mix> cache(config());
    sequence wanted(200);
    append_only(policy, cache, wanted, 200);
    bf::attend(policy, wanted.q.view(), cache, wanted.out.view(), {.scale = scale});
    std::vector<sequence> readers(3, sequence(200));
    testing::on_threads(3, [&](int thread) {
        sequence& s = readers[static_cast<std::size_t>(thread)];
        bf::attend(policy, s.q.view(), cache, s.out.view(), {.scale = scale});
    });
    for (auto const& s : readers) REQUIRE(testing::compare_bits(s.out.view(), wanted.out.view()).ok);
}

TEMPLATE_LIST_TEST_CASE("earlier positions are served exactly as far as the tail reaches", "[mixed]", cache_backends) {
    auto const policy = in_f32<TestType>();
    sequence wanted(300), s(300);
    bf::mixed_kv_cache<channels_mix> cache(config(50));
    run(policy, cache, wanted, {50});
    REQUIRE(cache.tail_start() == 224); // 250 - 19 = 231
    REQUIRE(cache.packed() == 256);     // 224 to 255 stand there both ways
    bf::index_t const first = cache.counters().first_query();
    REQUIRE(first == 224 + 19);
    auto const at = [&](bf::index_t position, bf::index_t count) {
        bf::attend(policy, s.q.view().slice(position, count), cache, s.out.view().slice(position, count),
                   {.scale = scale, .q_position = position});
    };
    for (bf::index_t t = first; t < 300; ++t) {
        at(t, 1);
        for (bf::index_t d = 0; d < 16; ++d)
            REQUIRE(std::abs(s.out.at(2, t, d) - wanted.out.at(2, t, d)) <=
                    (one_answer<TestType> ? 0.0 : close_if_packed<TestType>));
    }
    REQUIRE_THROWS_AS(at(first - 1, 1), bf::capacity_error);
    REQUIRE_THROWS_AS(at(0, 1), bf::capacity_error); // position 0, not the latest token
}

TEMPLATE_LIST_TEST_CASE("what a mixed-precision cache cannot answer is refused by name", "[mixed]", cache_backends) {
    TestType const policy;
    sequence s(100);
    bf::mixed_kv_cache<row_mix> cache(config());
    append_only(policy, cache, s, 40); // nothing is packed: refusals do not depend on it
    for (bf::index_t const tokens : {40, 100}) {
        if (tokens > 40) append_only(policy, cache, s, 60);
        auto const q       = s.q.view().slice(0, tokens);
        auto const out     = s.out.view().slice(0, tokens);
        auto const refused = [&](auto const& queries, auto const& into, bf::attend_options const& options,
                                 std::string const& word) {
            try {
                bf::attend(policy, queries, cache, into, options);
                FAIL("accepted: " << word);
            } catch (bf::shape_error const& e) {
                CAPTURE(e.what());
                REQUIRE(std::string(e.what()).find(word) != std::string::npos);
            }
        };
        std::int32_t const position = 3;
        float const values[1]       = {};
        testing::tensor<float> long_q({4, 101, 32}), long_out({4, 101, 16}), narrow({4, tokens, 8}),
            three({3, tokens, 32}), three_out({3, tokens, 16});
        refused(q, out, {}, "scale must be given");
        refused(long_q.view(), long_out.view(), {.scale = scale}, "q has tokens 101");
        refused(q, out, {.scale = scale, .q_position = 1}, "the cache has tokens");
        refused(q, out, {.scale = scale, .q_position = -2}, "position -2");
        refused(q, out, {.scale = scale, .causal = false}, "causal");
        refused(q, out, {.scale = scale, .q_positions = bf::memory_ref(&position)}, "q_positions");
        refused(q, out, {.scale = scale, .mask = {.data = bf::memory_ref(values)}}, "mask");
        refused(narrow.view(), out, {.scale = scale}, "head_dim 32, q has 8");
        refused(q, narrow.view(), {.scale = scale}, "head_dim 16, out has 8");
        refused(three.view(), three_out.view(), {.scale = scale}, "heads 3, not a multiple");
        bf::attend(policy, s.q.view().slice(0, 0), cache, s.out.view().slice(0, 0), {.scale = scale});
    }
}

} // namespace mixed_attend
