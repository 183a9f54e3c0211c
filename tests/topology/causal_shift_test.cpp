// SPDX-License-Identifier: MIT
#include <butterfly/testing/published_rows.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/causal_shift.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/reach.hpp>
#include <butterfly/topology/window.hpp>

#include "support/catch.hpp"

#include <array>
#include <set>

namespace bf       = butterfly;
namespace topology = butterfly::topology;
using bf::index_t;

namespace {

std::vector<std::int32_t> row_of(bf::graph const& g, index_t node) {
    std::vector<std::int32_t> out;
    for (std::int32_t const j : g.view().neighbors(0, node))
        if (j >= 0) out.push_back(j);
    return out;
}

/// Forward by sets, the definition: what node i holds after a layer is what its row and itself held before.
template <class Rule>
std::vector<std::set<index_t>> reach_by_sets(std::vector<Rule> const& layers, index_t nodes) {
    std::vector<std::set<index_t>> held(static_cast<std::size_t>(nodes));
    for (index_t i = 0; i < nodes; ++i) held[static_cast<std::size_t>(i)] = {i};
    for (Rule const& layer : layers) {
        bf::graph const g = topology::build({.heads = 1, .nodes = nodes}, layer);
        auto const before = held;
        for (index_t i = 0; i < nodes; ++i)
            for (std::int32_t const j : row_of(g, i))
                if (j <= i)
                    held[static_cast<std::size_t>(i)].insert(before[static_cast<std::size_t>(j)].begin(),
                                                             before[static_cast<std::size_t>(j)].end());
    }
    return held;
}

using published_layer = topology::row<topology::causal_shift, topology::window, topology::landmark>;

/// Reach of the last block through `layers` attention layers of the published system: the layers 3, 7, 11, ...
index_t published_reach(index_t blocks, index_t layers) {
    std::vector<published_layer> stack;
    for (index_t i = 0; i < layers; ++i)
        stack.emplace_back(topology::causal_shift{{topology::published_stage(3 + 4 * i, blocks)}},
                           topology::window{.predecessors = 1}, topology::landmark{.stride = 1, .count = 1});
    return topology::reachable(std::span<published_layer const>(stack), {1, blocks}, {0, blocks - 1});
}

} // namespace

TEST_CASE("stages of a number of nodes", "[topology]") {
    std::vector<std::pair<index_t, int>> const widths{{1, 1}, {2, 1},  {3, 2},  {4, 2},  {5, 3},     {8, 3},
                                                      {9, 4}, {16, 4}, {17, 5}, {33, 6}, {2048, 11}, {2049, 12}};
    for (auto const& [nodes, w] : widths) REQUIRE(topology::stage_count(nodes) == w);
    std::vector<int> phases;
    for (index_t const nodes : {1, 2, 3, 5, 8, 9, 33}) phases.push_back(topology::benes_phase_count(nodes));
    REQUIRE(phases == std::vector<int>{1, 1, 2, 4, 4, 6, 10});
    std::vector<int> bits;
    for (int phase = 0; phase < 6; ++phase) bits.push_back(topology::benes_stage(phase, 16));
    REQUIRE(bits == std::vector<int>{0, 1, 2, 3, 2, 1});
}

TEST_CASE("the partner is the node 2^stage before, in list order, where there is one", "[topology]") {
    bf::graph const g = topology::build({.heads = 1, .nodes = 70}, topology::causal_shift{{3, 0, 5}});
    for (index_t node = 0; node < 70; ++node) {
        std::vector<std::int32_t> want;
        for (int const step : {8, 1, 32})
            if (node >= step) want.push_back(static_cast<std::int32_t>(node - step));
        REQUIRE(row_of(g, node) == want);
    }
    REQUIRE(g.view().types(0, 69)[0] == static_cast<int>(bf::edge_code::rewire));
    // A partner does not move when there are more nodes, and stages beyond the nodes name nothing.
    bf::graph const more = topology::build({.heads = 1, .nodes = 500}, topology::causal_shift{{3, 0, 5}});
    for (index_t node = 0; node < 70; ++node) REQUIRE(row_of(more, node) == row_of(g, node));
    REQUIRE(row_of(topology::build({.heads = 1, .nodes = 70}, topology::causal_shift{{61, 31, 6}}), 69) ==
            std::vector<std::int32_t>{5});
}

TEST_CASE("a list of stages is bounded", "[topology]") {
    topology::stage_list list{0, 61};
    REQUIRE(list.size() == 2);
    REQUIRE(list[1] == 61);
    REQUIRE(list == topology::stage_list{0, 61});
    REQUIRE_FALSE(list == topology::stage_list{0, 60});
    REQUIRE_FALSE(list == topology::stage_list{0});
    REQUIRE_THROWS_AS(list.push_back(62), bf::shape_error);
    REQUIRE_THROWS_AS(list.push_back(-1), bf::shape_error);
    while (list.size() < topology::stage_list::capacity) list.push_back(3);
    REQUIRE_THROWS_AS(list.push_back(3), bf::shape_error);
}

TEST_CASE("rows of the published stages at 256k: block 2047 of 2048", "[topology]") {
    std::vector<int> const partners{2039, 1919, 2046, 2031, 1791, 2045};
    for (std::size_t i = 0; i < partners.size(); ++i) {
        bf::graph const g =
            topology::build({.heads = 1, .nodes = 2048},
                            topology::causal_shift{{topology::published_stage(3 + 4 * static_cast<index_t>(i), 2048)}});
        REQUIRE(row_of(g, 2047) == std::vector<std::int32_t>{partners[i]});
    }
}

TEST_CASE("rows of block 13 of 16 under each exchange rule", "[topology]") {
    using rows = std::vector<std::vector<std::int32_t>>;
    std::vector<std::pair<std::string, rows>> const cases{
        {"xor", {{13, 12, 0}, {13, 12, 0}, {13, 12, 9, 0}, {13, 12, 5, 0}}},
        {"bit_reversal", {{13, 12, 5, 0}, {13, 12, 9, 0}, {13, 12, 0}, {13, 12, 0}}},
        {"causal_shift", {{13, 12, 0}, {13, 12, 11, 0}, {13, 12, 9, 0}, {13, 12, 5, 0}}}};
    for (auto const& [rule, want] : cases)
        for (std::size_t stage = 0; stage < want.size(); ++stage) {
            bf::graph const g =
                bf::testing::published_rows({.blocks = 16, .layer = static_cast<index_t>(stage), .rule = rule});
            REQUIRE(row_of(g, 13) == want[stage]);
        }
}

TEST_CASE("random predecessors equal the published hash", "[topology]") {
    std::vector<std::pair<index_t, std::vector<std::int32_t>>> const cases{
        {1, {0, 0, 0, 0, 0}}, {2, {0, 1, 0, 1, 0}},   {3, {2, 0, 0, 1, 2}},  {7, {5, 4, 3, 2, 1}},
        {8, {0, 1, 2, 3, 4}}, {15, {6, 4, 2, 0, 13}}, {16, {0, 1, 2, 3, 4}}, {31, {17, 23, 29, 4, 10}}};
    for (int k = 0; k < 5; ++k) {
        bf::graph const g = topology::build({.heads = 1, .nodes = 32}, topology::random_predecessor{{k}});
        for (auto const& [node, want] : cases)
            REQUIRE(row_of(g, node) == std::vector<std::int32_t>{want[static_cast<std::size_t>(k)]});
        REQUIRE(row_of(g, 0).empty());
    }
}

TEST_CASE("any stage_count consecutive stages let every node reach every earlier one", "[topology]") {
    for (index_t nodes = 1; nodes <= 64; ++nodes) {
        int const w = topology::stage_count(nodes);
        for (int first = 0; first < w; ++first) {
            std::vector<topology::row<topology::self, topology::causal_shift>> layers;
            for (int i = 0; i < w; ++i)
                layers.emplace_back(topology::self{}, topology::causal_shift{{(first + i) % w}});
            CAPTURE(nodes, first);
            if (nodes % 7 == 1 || nodes == 64) { // the definition, where it is cheap enough
                auto const held = reach_by_sets(layers, nodes);
                for (index_t node = 0; node < nodes; ++node)
                    REQUIRE(static_cast<index_t>(held[static_cast<std::size_t>(node)].size()) == node + 1);
            }
            for (index_t node = 0; node < nodes; ++node)
                REQUIRE(
                    topology::reachable(std::span<topology::row<topology::self, topology::causal_shift> const>(layers),
                                        {1, nodes}, {0, node}) == node + 1);
        }
    }
}

TEST_CASE("one stage less does not reach everything", "[topology]") {
    std::vector<topology::causal_shift> const layers{{{0}}, {{1}}, {{2}}, {{3}}};
    REQUIRE(topology::reachable(std::span(layers), {1, 32}, {0, 31}) == 16);
}

TEST_CASE("reach equals the definition by sets for rules of every kind", "[topology]") {
    using layer = topology::row<topology::causal_shift, topology::window, topology::landmark>;
    std::vector<layer> layers;
    for (int const stage : {2, 0, 4})
        layers.emplace_back(topology::causal_shift{{stage, stage + 1}}, topology::window{.predecessors = stage},
                            topology::landmark{.stride = 7, .count = 2});
    auto const held = reach_by_sets(layers, 50);
    for (index_t node = 0; node < 50; ++node)
        REQUIRE(topology::reachable(std::span<layer const>(layers), {1, 50}, {0, node}) ==
                static_cast<index_t>(held[static_cast<std::size_t>(node)].size()));
    REQUIRE_THROWS_AS(topology::reachable(std::span<layer const>(layers), {1, 50}, {0, 50}), bf::shape_error);
    REQUIRE_THROWS_AS(topology::reachable(std::span<layer const>(layers), {1, 50}, {1, 0}), bf::shape_error);
    REQUIRE_THROWS_AS(topology::reachable(std::span<layer const>(layers), {1, 50}, {0, -1}), bf::shape_error);
    std::vector<topology::window> const bad{{.predecessors = -1}};
    REQUIRE_THROWS_AS(topology::reachable(std::span(bad), {1, 50}, {0, 1}), bf::shape_error);
}

TEST_CASE("published stages alias: what the last block of a stack reaches", "[topology]") {
    // blocks, reach through 6 layers, reach through 8
    std::vector<std::array<index_t, 3>> const table{{8, 8, 8},       {16, 14, 16},     {32, 32, 32},
                                                    {64, 45, 64},    {128, 65, 128},   {256, 41, 65},
                                                    {512, 133, 257}, {1024, 133, 271}, {2048, 97, 441}};
    for (auto const& [blocks, six, eight] : table) {
        CAPTURE(blocks);
        REQUIRE(published_reach(blocks, 6) == six);
        REQUIRE(published_reach(blocks, 8) == eight);
        // A schedule by ordinal is never worse with as many layers as stages, and reaches more with fewer.
        topology::stage_schedule const schedule({.attention_layers = 8, .blocks = blocks});
        index_t const ours =
            topology::reachable(schedule, {1, blocks}, {0, blocks - 1}, topology::window{.predecessors = 1});
        if (topology::stage_count(blocks) <= 8) REQUIRE(ours == blocks);
        REQUIRE(ours >= eight);
    }
}

TEST_CASE("a schedule uses every stage, one per layer where there are layers enough", "[topology]") {
    for (index_t const blocks : {1, 2, 3, 16, 100, 2048})
        for (index_t layers = 1; layers <= 24; ++layers) {
            topology::stage_schedule const s({.attention_layers = layers, .blocks = blocks});
            int const w = topology::stage_count(blocks);
            REQUIRE(s.layers() == layers);
            REQUIRE(s.stages() == w);
            std::set<int> used;
            for (index_t i = 0; i < layers; ++i) {
                if (layers >= w) REQUIRE(s[i].size() == 1);
                REQUIRE(s[i].size() == bf::detail::ceil_div(w, layers));
                for (int const k : s[i]) used.insert(k);
                REQUIRE(s[i] == s[i + layers]);
            }
            REQUIRE(static_cast<int>(used.size()) == w);
            REQUIRE(*used.rbegin() == w - 1);
            if (layers >= w) // any w consecutive layers, the wrap included, use every stage when stages divide layers
                for (index_t first = 0; first + w <= layers; ++first) {
                    std::set<int> run;
                    for (index_t i = first; i < first + w; ++i) run.insert(s[i][0]);
                    REQUIRE(static_cast<int>(run.size()) == w);
                }
        }
    topology::stage_schedule const all({.attention_layers = 3, .blocks = 32, .partners = 5});
    for (index_t i = 0; i < 3; ++i) REQUIRE(all[i].size() == 5);
    REQUIRE(all[1] == topology::stage_list{0, 1, 2, 3, 4});
    topology::stage_schedule const two({.attention_layers = 4, .blocks = 32, .partners = 2});
    REQUIRE(two[0] == topology::stage_list{0, 1});
    REQUIRE(two[2] == topology::stage_list{4, 0});

    REQUIRE_THROWS_AS(topology::stage_schedule({.attention_layers = 0, .blocks = 8}), bf::shape_error);
    REQUIRE_THROWS_AS(topology::stage_schedule({.attention_layers = 1, .blocks = 0}), bf::shape_error);
    REQUIRE_THROWS_AS(topology::stage_schedule({.attention_layers = 1, .blocks = 8, .partners = 4}), bf::shape_error);
    REQUIRE_THROWS_AS(topology::stage_schedule({.attention_layers = 1, .blocks = 8, .partners = -1}), bf::shape_error);
}

TEST_CASE("exchange rules name only earlier partners at their distance", "[topology]") {
    for (index_t const nodes : {1, 2, 5, 16, 33}) {
        int const w = topology::stage_count(nodes);
        for (int stage = 0; stage < w; ++stage) {
            bf::graph const x = topology::build({.heads = 1, .nodes = nodes}, topology::xor_partner{{stage}});
            bf::graph const r = topology::build({.heads = 1, .nodes = nodes}, topology::bit_reversal{{w - 1 - stage}});
            REQUIRE(x == r);
            for (index_t node = 0; node < nodes; ++node) {
                auto const row = row_of(x, node);
                REQUIRE(row.size() == ((node >> stage & 1) != 0 ? 1U : 0U));
                if (!row.empty()) REQUIRE(row[0] == node - (index_t{1} << stage));
            }
        }
    }
    bf::graph const g = topology::build({.heads = 1, .nodes = 12}, topology::fixed_stride{.stride = 4, .count = 3});
    REQUIRE(row_of(g, 11) == std::vector<std::int32_t>{7, 3});
    REQUIRE(row_of(g, 4) == std::vector<std::int32_t>{0});
    REQUIRE(row_of(g, 3).empty());
}

TEST_CASE("the front door of a routed layer", "[topology]") {
    index_t const ordinal = 2;
    auto const schedule   = topology::stage_schedule({.attention_layers = 6, .blocks = 2048});
    auto const row    = topology::row(topology::causal_shift{schedule[ordinal]}, topology::window{.predecessors = 1});
    auto const source = topology::make_row_source(row, {.heads = 2, .nodes = 2048});
    std::int32_t out[8];
    REQUIRE(schedule[ordinal] == topology::stage_list{4, 5});
    REQUIRE(source({.head = 1, .node = 100}, 0, 100, out, 8) == 3);
    REQUIRE(out[0] == 68);
    REQUIRE(out[1] == 84);
    REQUIRE(out[2] == 99);
    REQUIRE(source({.head = 1, .node = 100}, 0, 99, out, 8) == 2); // a block not yet complete is below no limit
}
