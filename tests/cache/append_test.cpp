// SPDX-License-Identifier: MIT

// What append promises: summaries that do not depend on chunking, refusals that change nothing, memory that stays in
// its bounds.

#include <butterfly/cache/attend.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/testing/problem.hpp>
#include <butterfly/topology/window.hpp>

#include "cache/backends.hpp"
#include "support/cache_model.hpp"
#include "support/catch.hpp"
#include "support/on_threads.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

namespace bf      = butterfly;
namespace testing = butterfly::testing;

namespace {

struct input {
    testing::tensor<float> k, v;
    input(bf::index_t heads, bf::index_t tokens, bf::index_t dim, bf::index_t value_dim)
        : k({heads, tokens, dim}, testing::layout::interleaved), v({heads, tokens, value_dim}) {
        testing::fill(k, testing::random(1, 1));
        testing::fill(v, testing::random(1, 2));
    }
};

bf::cache_config small(bf::index_t tokens = 300) {
    return {.kv_heads       = 2,
            .head_dim       = 5,
            .value_head_dim = 3,
            .block_size     = 8,
            .exact_window   = 6,
            .exact_sinks    = 3,
            .max_tokens     = tokens,
            .max_append     = 64};
}

/// A row of a storage as floats.
std::vector<float> row_of(bf::storage_ref const& s, bf::index_t head, bf::index_t slot) {
    std::vector<float> row(static_cast<std::size_t>(s.shape.head_dim));
    bf::backend::on_host::decode_row(s, head, slot, row.data());
    return row;
}

} // namespace

TEMPLATE_LIST_TEST_CASE("summaries are the means of their blocks, to the bit, for every cut",
                        "[append]",
                        cache_backends) {
    TestType const policy;
    input const in(2, 300, 5, 3);
    for (bf::index_t const step : {1, 3, 7, 8, 30, 64}) {
        bf::compressed_kv_cache<> cache(small());
        for (bf::index_t at = 0; at < 300; at += step) {
            bf::index_t const count = std::min(step, 300 - at);
            bf::append(policy, cache, in.k.view().slice(at, count), in.v.view().slice(at, count));
        }
        CAPTURE(step);
        auto const pools = cache.pools(policy);
        REQUIRE(cache.summaries() == 37);
        for (bf::index_t n = 0; n < 37; ++n) {
            bf::index_t const first = std::max<bf::index_t>(8 * n, 3); // sinks enter no summary
            bf::index_t const count = 8 * (n + 1) - first;
            REQUIRE(bf::host_pointer<float const>(pools.log_weights)[n] ==
                    static_cast<float>(std::log(static_cast<double>(count))));
            for (bf::index_t h = 0; h < 2; ++h) {
                auto const got_k = row_of(pools.summary_k, h, n);
                auto const got_v = row_of(pools.summary_v, h, n);
                for (bf::index_t d = 0; d < 5; ++d) {
                    float sum = 0.0F;
                    for (bf::index_t t = first; t < first + count; ++t) sum += in.k.at(h, t, d);
                    REQUIRE(got_k[static_cast<std::size_t>(d)] == sum / static_cast<float>(count));
                }
                for (bf::index_t d = 0; d < 3; ++d) {
                    float sum = 0.0F;
                    for (bf::index_t t = first; t < first + count; ++t) sum += in.v.at(h, t, d);
                    REQUIRE(got_v[static_cast<std::size_t>(d)] == sum / static_cast<float>(count));
                }
            }
        }
        for (bf::index_t t = 0; t < 3; ++t)
            for (bf::index_t d = 0; d < 5; ++d)
                REQUIRE(row_of(pools.sink_k, 1, t)[static_cast<std::size_t>(d)] == in.k.at(1, t, d));
        for (bf::index_t t = cache.tail_start(); t < 300; ++t)
            for (bf::index_t d = 0; d < 3; ++d)
                REQUIRE(row_of(pools.tail_v, 1, t)[static_cast<std::size_t>(d)] == in.v.at(1, t, d));
    }
}

TEMPLATE_LIST_TEST_CASE("a ring without slack loses no row before it is summarised", "[append]", cache_backends) {
    TestType const policy;
    input const in(1, 600, 2, 2);
    for (auto const& rules : {bf::cache_rules::gap_free, bf::cache_rules::published})
        for (bf::index_t const block_size : {16, 64})
            for (bf::index_t const window : {1, 5, 16})
                for (bf::index_t const rollback : {0, 70}) {
                    bf::index_t const step = 192 - window - block_size + 2 - rollback; // the ring has 192 rows
                    bf::cache_config const c{.kv_heads     = 1,
                                             .head_dim     = 2,
                                             .block_size   = block_size,
                                             .exact_window = window,
                                             .exact_sinks  = 0,
                                             .max_tokens   = 600,
                                             .max_append   = step,
                                             .max_rollback = rollback,
                                             .rules        = rules};
                    CAPTURE(block_size, window, rollback, rules.late);
                    bf::compressed_kv_cache<> cache(c);
                    auto const append = [&](bf::index_t count) {
                        count = std::min(count, 600 - cache.tokens());
                        bf::append(policy, cache, in.k.view().slice(cache.tokens(), count),
                                   in.v.view().slice(cache.tokens(), count));
                    };
                    while (cache.tokens() < block_size + window - 1) // the next append is the first to drop block 0
                        append(std::min(step, block_size + window - 1 - cache.tokens()));
                    while (cache.tokens() < 600) {
                        append(step);
                        append(1);
                    }
                    auto const pools = cache.pools(policy);
                    REQUIRE(pools.tail_k.ring == 192);
                    for (bf::index_t n = 0; n < cache.summaries(); ++n) {
                        float sum = 0.0F;
                        for (bf::index_t t = n * block_size; t < (n + 1) * block_size; ++t) sum += in.v.at(0, t, 1);
                        CAPTURE(n);
                        REQUIRE(row_of(pools.summary_v, 0, n)[1] == sum / static_cast<float>(block_size));
                    }
                }
}

TEMPLATE_LIST_TEST_CASE("a mean is taken of the rows as the tail keeps them", "[append]", cache_backends) {
    TestType const policy;
    input const in(1, 8, 4, 4);
    bf::cache_config c = small();
    c.kv_heads         = 1;
    c.head_dim         = 4;
    c.value_head_dim   = 0;
    c.exact_sinks      = 0;
    bf::compressed_kv_cache<bf::raw_mix<bf::bfloat16>> cache(c);
    bf::append(policy, cache, in.k.view(), in.v.view());
    auto const got = row_of(cache.pools(policy).summary_k, 0, 0);
    for (bf::index_t d = 0; d < 4; ++d) {
        float sum = 0.0F;
        for (bf::index_t t = 0; t < 8; ++t) sum += static_cast<float>(bf::bfloat16(in.k.at(0, t, d)));
        REQUIRE(got[static_cast<std::size_t>(d)] == static_cast<float>(bf::bfloat16(sum / 8.0F)));
    }
}

TEMPLATE_LIST_TEST_CASE("sinks stay exact beside a packed tail", "[append]", cache_backends) {
    TestType const policy;
    input const in(2, 40, 5, 3);
    bf::cache_config const c = small();
    bf::compressed_kv_cache<testing::packed_tail> cache(c);
    bf::append(policy, cache, in.k.view(), in.v.view());
    auto const p = cache.pools(policy);
    for (bf::index_t t = 0; t < 3; ++t) {
        REQUIRE(row_of(p.sink_k, 1, t)[4] == in.k.at(1, t, 4));
        REQUIRE(row_of(p.sink_v, 1, t)[2] == in.v.at(1, t, 2));
    }
    REQUIRE(row_of(p.tail_k, 1, 20)[4] != in.k.at(1, 20, 4));
    REQUIRE(std::abs(row_of(p.tail_k, 1, 20)[4] - in.k.at(1, 20, 4)) < 0.05F);
    bf::index_t const sinks = 3 * (5 * 4 + 3 * 4), tail = cache.counters().tail_tokens() * (4 + 5 + 4 + 3);
    REQUIRE(cache.retained_bytes() == 2 * (sinks + tail + 5 * (5 * 2 + 4 + 3)) + 4 * 5);
}

TEST_CASE("a compressed cache refuses rows that one of its codecs cannot pack", "[append]") {
    struct packed_summaries {
        bf::quant::raw<float> tail{};
        bf::quant::int8 summary_k{};
        bf::quant::lloyd_max<16> summary_v{};
    };
    bf::cache_config c = small();
    auto const refused = [&](std::string const& word) {
        try {
            bf::compressed_kv_cache<packed_summaries> const cache(c);
            FAIL("accepted: " << word);
        } catch (bf::shape_error const& e) {
            REQUIRE(std::string(e.what()).find(word) != std::string::npos);
        }
        REQUIRE_THROWS_AS(bf::compressed_kv_cache<packed_summaries>::required_bytes(c), bf::shape_error);
    };
    refused("int8: head_dim 5");
    c.head_dim = 16;
    refused("lloyd_max: head_dim 3");
    c.value_head_dim = 16;
    REQUIRE(bf::compressed_kv_cache<packed_summaries>(c).tokens() == 0);
}

TEMPLATE_LIST_TEST_CASE("every element type is stored in every raw pool", "[append]", cache_backends) {
    TestType const policy;
    auto const check = [&]<class From, class To>(From, To) {
        testing::tensor<From> k({1, 5, 7}, testing::layout::odd_stride);
        testing::fill(k, testing::random(4));
        bf::compressed_kv_cache<bf::raw_mix<To>> cache({.kv_heads = 1, .head_dim = 7, .max_tokens = 50});
        bf::append(policy, cache, k.view(), k.view());
        for (bf::index_t t = 0; t < 5; ++t)
            for (bf::index_t d = 0; d < 7; ++d) {
                float const wanted = static_cast<float>(To(static_cast<float>(k.at(0, t, d))));
                REQUIRE(row_of(cache.pools(policy).tail_k, 0, t)[static_cast<std::size_t>(d)] == wanted);
            }
    };
    auto const from_each = [&](auto to) {
        check(float{}, to);
        check(bf::float16{}, to);
        check(bf::bfloat16{}, to);
    };
    from_each(float{});
    from_each(bf::float16{});
    from_each(bf::bfloat16{});
}

TEMPLATE_LIST_TEST_CASE("a refused append changes neither counters nor memory", "[append]", cache_backends) {
    TestType const policy;
    input const in(2, 300, 5, 3);
    bf::cache_config const c = small(100);
    std::vector<std::byte> memory(static_cast<std::size_t>(bf::compressed_kv_cache<>::required_bytes(c)));
    bf::compressed_kv_cache<> cache(c, memory);
    bf::append(policy, cache, in.k.view().slice(0, 60), in.v.view().slice(0, 60));
    auto const bytes    = memory;
    auto const counters = cache.counters();

    bf::compressed_kv_cache<> roomy(small());
    REQUIRE_THROWS_AS(bf::append(policy, roomy, in.k.view().slice(0, 65), in.v.view().slice(0, 65)),
                      bf::capacity_error);
    REQUIRE(roomy.tokens() == 0);

    auto const k = in.k.view().slice(60, 20);
    auto const v = in.v.view().slice(60, 20);
    testing::tensor<float> three({3, 20, 5}), four({2, 20, 4}), one({2, 1, 3});
    REQUIRE_THROWS_AS(bf::append(policy, cache, in.k.view().slice(0, 65), in.v.view().slice(0, 65)),
                      bf::capacity_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, in.k.view().slice(0, 41), in.v.view().slice(0, 41)),
                      bf::capacity_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, three.view(), v), bf::shape_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, four.view(), v), bf::shape_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, k, four.view()), bf::shape_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, k, three.view()), bf::shape_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, k, one.view()), bf::shape_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, bf::heads_view<float const>(nullptr, {2, 20, 5}), v), bf::shape_error);
    float const weight = 1.0F;
    REQUIRE_THROWS_AS(bf::append(policy, cache, k, v, {.token_weights = bf::memory_ref(&weight)}), bf::shape_error);
    std::byte little[8];
    REQUIRE_THROWS_AS(bf::append(policy, cache, k, v, {.workspace = little}), bf::shape_error);
    bf::append(policy, cache, in.k.view().slice(0, 0), in.v.view().slice(0, 0)); // nothing is not an error
    REQUIRE(memory == bytes);
    REQUIRE(cache.counters() == counters);
    bf::append(policy, cache, in.k.view().slice(60, 40), in.v.view().slice(60, 40)); // exactly full
    REQUIRE(cache.tokens() == 100);
}

TEMPLATE_LIST_TEST_CASE("a cache stays within the caller's memory, whatever its alignment",
                        "[append]",
                        cache_backends) {
    TestType const policy;
    input const in(2, 300, 5, 3);
    bf::cache_config const c   = small();
    auto const size            = static_cast<std::size_t>(bf::compressed_kv_cache<>::required_bytes(c));
    constexpr std::byte canary = std::byte{0x5A};
    std::vector<std::byte> wanted;
    for (std::size_t const skew : {0U, 1U, 7U, 63U}) {
        std::vector<std::byte> memory(size + 256, canary);
        bf::compressed_kv_cache<> cache(c, std::span(memory).subspan(64 + skew, size));
        for (bf::index_t at = 0; at < 300; at += 20)
            bf::append(policy, cache, in.k.view().slice(at, 20), in.v.view().slice(at, 20));
        for (std::size_t i = 0; i < 64 + skew; ++i) REQUIRE(memory[i] == canary);
        for (std::size_t i = 64 + skew + size; i < memory.size(); ++i) REQUIRE(memory[i] == canary);
        REQUIRE(cache.allocated_bytes(c) + 63 == static_cast<bf::index_t>(size));
        REQUIRE_THROWS_AS(bf::compressed_kv_cache<>(c, std::span(memory).subspan(64 + skew, 100)), bf::capacity_error);
    }
    std::vector<std::byte> memory(size + 64);
    REQUIRE_THROWS_AS(bf::compressed_kv_cache<>(c, bf::memory_ref(memory.data()), 10), bf::capacity_error);
}

TEMPLATE_LIST_TEST_CASE("the caller's workspace is enough and gives the same bytes", "[append]", cache_backends) {
    TestType const policy;
    input const in(2, 300, 5, 3);
    auto const size = static_cast<std::size_t>(bf::compressed_kv_cache<>::required_bytes(small()));
    std::vector<std::byte> one(size), two(size);
    bf::compressed_kv_cache<> a(small(), one), b(small(), two);
    std::vector<std::byte> scratch(static_cast<std::size_t>(bf::append_workspace_bytes(policy, b)));
    for (bf::index_t at = 0; at < 300; at += 50) {
        bf::append(policy, a, in.k.view().slice(at, 50), in.v.view().slice(at, 50));
        bf::append(policy, b, in.k.view().slice(at, 50), in.v.view().slice(at, 50), {.workspace = scratch});
    }
    auto const rows = a.pools(policy), others = b.pools(policy);
    for (bf::index_t n = 0; n < a.summaries(); ++n)
        for (bf::index_t h = 0; h < 2; ++h) REQUIRE(row_of(rows.summary_k, h, n) == row_of(others.summary_k, h, n));
}

TEMPLATE_LIST_TEST_CASE("token weights weigh tokens in a summary", "[append]", cache_backends) {
    TestType const policy;
    using weighted = bf::compressed_kv_cache<bf::raw_mix<float>, bf::weighted_mean_pooling>;
    input const in(2, 48, 5, 3);
    std::vector<float> weights(48);
    for (std::size_t i = 0; i < 48; ++i) weights[i] = i / 8 == 2 ? 0.0F : static_cast<float>(i % 5) * 0.75F;
    for (bf::index_t const step : {1, 5, 48}) {
        weighted cache(small());
        for (bf::index_t at = 0; at < 48; at += step) {
            bf::index_t const count = std::min(step, 48 - at);
            bf::append(policy, cache, in.k.view().slice(at, count), in.v.view().slice(at, count),
                       {.token_weights = bf::memory_ref(weights.data() + at)});
        }
        auto const pools = cache.pools(policy);
        for (bf::index_t n = 0; n < 6; ++n) {
            float total = 0.0F;
            std::vector<float> sum(5);
            for (bf::index_t t = std::max<bf::index_t>(8 * n, 3); t < 8 * (n + 1); ++t) {
                float const w = weights[static_cast<std::size_t>(t)];
                total += w;
                for (bf::index_t d = 0; d < 5; ++d)
                    sum[static_cast<std::size_t>(d)] = std::fma(w, in.k.at(1, t, d), sum[static_cast<std::size_t>(d)]);
            }
            float const log_weight = bf::host_pointer<float const>(pools.log_weights)[n];
            if (n == 2) { // no weight at all: hidden, and finite
                REQUIRE(log_weight == -std::numeric_limits<float>::infinity());
                REQUIRE(row_of(pools.summary_k, 1, n) == std::vector<float>(5));
                continue;
            }
            REQUIRE(log_weight == static_cast<float>(std::log(static_cast<double>(total))));
            for (float& x : sum) x /= total;
            REQUIRE(row_of(pools.summary_k, 1, n) == sum);
        }
    }

    // Without weights, or with ones, it is the mean.
    weighted ones(small());
    bf::compressed_kv_cache<> mean(small());
    bf::append(policy, ones, in.k.view(), in.v.view());
    bf::append(policy, mean, in.k.view(), in.v.view());
    for (bf::index_t n = 0; n < 6; ++n) {
        REQUIRE(row_of(ones.pools(policy).summary_v, 1, n) == row_of(mean.pools(policy).summary_v, 1, n));
        REQUIRE(bf::host_pointer<float const>(ones.pools(policy).log_weights)[n] ==
                bf::host_pointer<float const>(mean.pools(policy).log_weights)[n]);
    }
    REQUIRE(ones.retained_bytes() == mean.retained_bytes() + 4 * 48);
}

namespace {

/// Undoes a rotation of the first two channels by `position` and redoes it at the block's first token: stands for a
/// pooling that knows the rotary embedding.
struct unrotated_mean {
    static constexpr bool takes_weights    = false;
    static constexpr bf::pooling_kind kind = bf::pooling_kind::custom;

    static void turn(float* x, double angle) noexcept {
        double const a = x[0] * std::cos(angle) - x[1] * std::sin(angle);
        double const b = x[0] * std::sin(angle) + x[1] * std::cos(angle);
        x[0]           = static_cast<float>(a);
        x[1]           = static_cast<float>(b);
    }
    void
    add(bf::kv_side side, float const* row, bf::index_t dim, bf::index_t position, float, float* sum) const noexcept {
        float pair[2] = {row[0], row[1]};
        if (side == bf::kv_side::keys) turn(pair, -static_cast<double>(position));
        sum[0] += pair[0];
        sum[1] += pair[1];
        for (bf::index_t d = 2; d < dim; ++d) sum[d] += row[d];
    }
    void finish(bf::kv_side side, bf::pooled_block const& block, bf::index_t dim, float* sum) const noexcept {
        for (bf::index_t d = 0; d < dim; ++d) sum[d] /= block.weight;
        if (side == bf::kv_side::keys) turn(sum, static_cast<double>(block.first));
    }
};

} // namespace

TEMPLATE_LIST_TEST_CASE("a token weight that makes no sense is refused by name", "[append]", cache_backends) {
    TestType const policy;
    bf::compressed_kv_cache<bf::raw_mix<float>, bf::weighted_mean_pooling> cache(small());
    input const in(2, 3, 5, 3);
    float const inf = std::numeric_limits<float>::infinity();
    for (float const bad : {-1.0F, inf, -inf, std::numeric_limits<float>::quiet_NaN(), 3e38F, 0x1.1p64F}) {
        std::vector<float> const weights{1.0F, 0.0F, bad};
        REQUIRE_THROWS_AS(
            bf::append(policy, cache, in.k.view(), in.v.view(), {.token_weights = bf::memory_ref(weights.data())}),
            bf::shape_error);
        REQUIRE(cache.tokens() == 0);
    }
}

TEMPLATE_LIST_TEST_CASE("the largest token weights are a mean all the same", "[append]", cache_backends) {
    TestType const policy;
    bf::compressed_kv_cache<bf::raw_mix<float>, bf::weighted_mean_pooling> cache(small());
    bf::heads_buffer<float> k({2, 48, 5}), v({2, 48, 3});
    for (auto* const rows : {&k, &v})
        for (float& x : rows->values()) x = 3.0F;
    std::vector<float> const weights(48, bf::most_token_weight);
    bf::append(policy, cache, k.view(), v.view(), {.token_weights = bf::memory_ref(weights.data())});
    auto const pools = cache.pools(policy);
    REQUIRE(row_of(pools.summary_k, 1, 4) == std::vector<float>(5, 3.0F));
    REQUIRE(bf::host_pointer<float const>(pools.log_weights)[4] == static_cast<float>(std::log(std::ldexp(8.0, 64))));
}

TEMPLATE_LIST_TEST_CASE("a pooling of the caller's is told absolute positions", "[append]", cache_backends) {
    TestType const policy;
    testing::tensor<float> k({2, 40, 5}), v({2, 40, 3});
    testing::fill(v, testing::random(9));
    for (bf::index_t h = 0; h < 2; ++h)
        for (bf::index_t t = 0; t < 40; ++t) { // one key, rotated to each position
            float row[5] = {1.0F, 2.0F, 3.0F, 4.0F, 5.0F};
            unrotated_mean::turn(row, static_cast<double>(t));
            for (bf::index_t d = 0; d < 5; ++d) k.at(h, t, d) = row[d];
        }
    bf::compressed_kv_cache<bf::raw_mix<float>, unrotated_mean> cache(small());
    bf::append(policy, cache, k.view(), v.view());
    for (bf::index_t n = 0; n < 5; ++n) {
        auto const got          = row_of(cache.pools(policy).summary_k, 1, n);
        bf::index_t const first = std::max<bf::index_t>(8 * n, 3);
        for (bf::index_t d = 0; d < 5; ++d)
            REQUIRE(std::abs(got[static_cast<std::size_t>(d)] - k.at(1, first, d)) < 1e-5);
    }
}

TEMPLATE_LIST_TEST_CASE("threads store and summarise the same bytes", "[append]", cache_backends) {
    input const in(2, 300, 5, 3);
    bf::compressed_kv_cache<> wanted(small());
    for (bf::index_t at = 0; at < 300; at += 60)
        bf::append(TestType{}, wanted, in.k.view().slice(at, 60), in.v.view().slice(at, 60));
    auto const check = [&](bf::compressed_kv_cache<> const& cache) {
        REQUIRE(cache.counters() == wanted.counters());
        auto const a = cache.pools(TestType{}), b = wanted.pools(TestType{});
        for (bf::index_t h = 0; h < 2; ++h) {
            for (bf::index_t n = 0; n < cache.summaries(); ++n) {
                REQUIRE(row_of(a.summary_k, h, n) == row_of(b.summary_k, h, n));
                REQUIRE(row_of(a.summary_v, h, n) == row_of(b.summary_v, h, n));
            }
            for (bf::index_t t = cache.tail_start(); t < 300; ++t)
                REQUIRE(row_of(a.tail_k, h, t) == row_of(b.tail_k, h, t));
        }
    };
#if defined(_OPENMP)
    bf::compressed_kv_cache<> team(small());
    for (bf::index_t at = 0; at < 300; at += 60)
        bf::append(TestType{.executor = bf::openmp{.threads = 3}}, team, in.k.view().slice(at, 60),
                   in.v.view().slice(at, 60));
    check(team);
#endif
    bf::compressed_kv_cache<> shared(small());
    bf::meeting barrier;
    auto const work = [&](int thread) {
        TestType const policy{.executor = bf::share{.thread = thread, .threads = 3, .barrier = barrier}};
        for (bf::index_t at = 0; at < 300; at += 60)
            bf::append(policy, shared, in.k.view().slice(at, 60), in.v.view().slice(at, 60));
    };
    bf::testing::on_threads(3, work);
    check(shared);
}
