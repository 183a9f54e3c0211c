// SPDX-License-Identifier: MIT

#include <butterfly/cache/compressed_kv_cache.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"
#include "support/npy.hpp"

#include <deque>

namespace bf = butterfly;

namespace {

bf::cache_config config(bf::index_t block_size, bf::index_t window, bf::cache_rules rules) {
    return {.kv_heads     = 1,
            .head_dim     = 4,
            .block_size   = block_size,
            .exact_window = window,
            .max_tokens   = 1 << 20,
            .max_append   = 512,
            .rules        = rules};
}

} // namespace

TEST_CASE("counters and bytes of the published rules are the published ones after every append") {
    int appends = 0;
    for (auto const& json : bf::testing::read_cases("cache/cache_traces.json")) {
        bf::cache_config c = config(json.at("bs"), json.at("W"), bf::cache_rules::published);
        c.kv_heads         = json.at("Hkv");
        c.head_dim         = json.at("d");
        bf::cache_counters counters(c);
        for (auto const& step : json.at("trace")) {
            if (step.contains("error")) break; // its buffers are smaller than ours
            counters.append(step.at("chunk"));
            CAPTURE(c.block_size, c.exact_window, counters.tokens());
            REQUIRE(counters.tokens() == step.at("offset"));
            REQUIRE(counters.tail_start() == step.at("tail_start"));
            REQUIRE(counters.tail_tokens() == step.at("tail_size"));
            REQUIRE(counters.summaries() == step.at("summary_count"));
            bf::index_t const bytes =
                json.at("elem_bytes") == 4
                    ? bf::compressed_kv_cache<>::retained_bytes(c, counters)
                    : bf::compressed_kv_cache<bf::raw_mix<bf::float16>>::retained_bytes(c, counters);
            REQUIRE(bytes == step.at("nbytes"));
            ++appends;
        }
    }
    REQUIRE(appends == 338);
}

TEST_CASE("with gap_free rules every full block has a summary at once") {
    bf::cache_counters counters(config(4, 4, bf::cache_rules::gap_free));
    struct state {
        bf::index_t tokens, tail_start, summaries;
    };
    state const wanted[] = {{3, 0, 0},  {6, 0, 1},   {9, 0, 2},   {12, 4, 3},
                            {15, 8, 3}, {18, 12, 4}, {21, 12, 5}, {24, 16, 6}};
    for (state const& w : wanted) {
        counters.append(3);
        REQUIRE(counters.tokens() == w.tokens);
        REQUIRE(counters.tail_start() == w.tail_start);
        REQUIRE(counters.summaries() == w.summaries);
    }
}

TEST_CASE("the last append can always be taken back, and max_rollback tokens more") {
    for (std::uint64_t seed = 0; seed < 500; ++seed) {
        bf::testing::random draws(0, seed);
        bf::cache_config c = config(draws.between(1, 9), draws.between(1, 30),
                                    draws.below(3) == 0 ? bf::cache_rules::published : bf::cache_rules::gap_free);
        c.max_rollback     = draws.below(2) * draws.below(40);
        c.max_append       = draws.between(1, 30);
        bf::cache_counters counters(c);
        CAPTURE(seed, c.block_size, c.exact_window, c.max_rollback);
        for (int i = 0; i < 40; ++i) {
            auto const reach = std::max(counters.trim_floor(), counters.tokens() - c.max_rollback);
            counters.append(draws.between(1, c.max_append));
            REQUIRE(counters.trim_floor() == reach);
            REQUIRE(counters.tail_tokens() <= c.exact_window + c.block_size - 2 + c.max_rollback + c.max_append);
            // Every position that trim can reach has its exact keys, and what is older is summarised.
            REQUIRE(counters.tail_start() <= c.block_size * counters.blocks_before_window(counters.trim_floor()));
            REQUIRE(counters.tail_start() <= c.block_size * counters.summaries());
            if (draws.below(3) == 0) {
                counters.trim(draws.between(counters.trim_floor(), counters.tokens()));
                counters.check_invariants();
            }
        }
    }
}

TEST_CASE("first_query is the first position whose exact keys are all in the tail") {
    bf::cache_counters counters(config(4, 6, bf::cache_rules::gap_free));
    for (int i = 0; i < 30; ++i) {
        counters.append(1 + i % 5);
        for (bf::index_t t = 0; t < counters.tokens(); ++t)
            REQUIRE((4 * counters.blocks_before_window(t) >= counters.tail_start()) == (t >= counters.first_query()));
    }
}

TEST_CASE("a configuration that makes no sense is refused by name") {
    auto const refused = [](auto const& change, std::string const& word) {
        bf::cache_config c = config(4, 4, bf::cache_rules::gap_free);
        change(c);
        try {
            bf::compressed_kv_cache<> const cache(c);
            FAIL("accepted: " << word);
        } catch (bf::shape_error const& e) {
            REQUIRE(std::string(e.what()).find(word) != std::string::npos);
        }
    };
    refused([](auto& c) { c.kv_heads = 0; }, "kv_heads is 0");
    refused([](auto& c) { c.head_dim = 0; }, "head_dim is 0");
    refused([](auto& c) { c.value_head_dim = -1; }, "value_head_dim is -1");
    refused([](auto& c) { c.block_size = 0; }, "block_size is 0");
    refused([](auto& c) { c.exact_window = 0; }, "exact_window is 0");
    refused([](auto& c) { c.exact_sinks = -1; }, "exact_sinks is -1");
    refused([](auto& c) { c.max_tokens = 0; }, "max_tokens is 0");
    refused([](auto& c) { c.max_append = 0; }, "max_append is 0");
    refused([](auto& c) { c.max_rollback = -3; }, "max_rollback is -3");
    refused([](auto& c) { c.max_tokens = bf::index_t{1} << 41; }, "2^40");
    refused([](auto& c) { c.max_tokens = bf::index_t{1} << 39; }, "int32");
    refused([](auto& c) { c.kv_heads = c.head_dim = bf::index_t{1} << 36; }, "overflow");
    refused(
        [](auto& c) {
            c.kv_heads = bf::index_t{1} << 30;
            c.head_dim = bf::index_t{1} << 23;
        },
        "overflow");
}
