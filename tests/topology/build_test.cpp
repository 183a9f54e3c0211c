// SPDX-License-Identifier: MIT
#include <butterfly/graph/validate.hpp>
#include <butterfly/testing/published_rows.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/cycle.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/rewire.hpp>
#include <butterfly/topology/window.hpp>

#include "graph/golden.hpp"
#include "support/catch.hpp"

#include <set>

namespace bf       = butterfly;
namespace topology = butterfly::topology;
using bf::index_t;

namespace {

/// Compressed rows of the caller from lists per node; entries outside [0, nodes) are dropped, as the published builder
/// does.
struct edge_lists {
    explicit edge_lists(std::size_t nodes) : lists(nodes) {}

    [[nodiscard]] topology::rewire rule(bf::edge_code type) {
        offsets.assign(1, 0);
        neighbors.clear();
        for (auto const& list : lists) {
            for (index_t const j : list)
                if (j >= 0 && j < static_cast<index_t>(lists.size())) neighbors.push_back(static_cast<std::int32_t>(j));
            offsets.push_back(static_cast<index_t>(neighbors.size()));
        }
        return {offsets, neighbors, type};
    }

    std::vector<std::vector<index_t>> lists;
    std::vector<index_t> offsets;
    std::vector<std::int32_t> neighbors;
};

bf::graph build_published(golden::json const& c) {
    auto const nodes = c.at("T").get<std::size_t>();
    edge_lists cycles(nodes), rewired(nodes);
    cycles.lists = c.at("cycle_adj").get<std::vector<std::vector<index_t>>>();
    if (!c.at("rewire_adj").is_null())
        for (auto const& [node, list] : c.at("rewire_adj").items())
            rewired.lists[std::stoul(node)] = list.get<std::vector<index_t>>();
    auto const stride = c.at("landmark_stride");
    topology::landmark const landmark{.stride = stride.is_null() ? 1 : stride.get<index_t>(),
                                      .count  = stride.is_null() ? 0 : topology::landmark::unlimited};
    topology::window const window{.predecessors = c.at("window").get<index_t>()};
    bool const self = c.at("include_self").get<bool>();
    topology::build_options const o{.heads = 1, .nodes = static_cast<index_t>(nodes)};
    auto const cycle  = cycles.rule(bf::edge_code::cycle);
    auto const rewire = rewired.rule(bf::edge_code::rewire);
    return self ? topology::build(o, cycle, window, landmark, rewire, topology::self{})
                : topology::build(o, cycle, window, landmark, rewire);
}

/// The published cut: the first slots, self or not.
bf::graph cut(bf::graph_view g, index_t degree) {
    bf::graph out({.heads = g.heads(), .nodes = g.nodes(), .degree = std::max<index_t>(1, degree)});
    for (index_t row = 0; row < g.heads() * g.nodes(); ++row)
        for (index_t slot = 0; slot < degree; ++slot) {
            auto const to       = static_cast<std::size_t>(row * degree + slot);
            out.neigh_idx()[to] = g.neigh_idx[row * g.degree() + slot];
            out.edge_type()[to] = g.edge_type[row * g.degree() + slot];
        }
    return out;
}

} // namespace

TEST_CASE("composed rows equal the published graphs to the slot", "[topology]") {
    for (golden::json const& c : golden::cases("graph/abi.json")) {
        CAPTURE(c.at("name").get<std::string>());
        bf::graph const want = golden::to_graph(c);
        bf::graph const got  = build_published(c);
        if (c.at("max_degree").is_null()) {
            REQUIRE(got == want);
        } else {
            index_t const most = std::min<index_t>(c.at("max_degree").get<index_t>(), got.shape().degree);
            REQUIRE(cut(got.view(), most) == want);
        }
        if (c.at("perms").is_null() || !c.at("rewire_adj").is_null() || !c.at("max_degree").is_null()) continue;
        std::vector<std::int32_t> permutations;
        for (golden::json const& p : c.at("perms"))
            for (golden::json const& x : p) permutations.push_back(x.get<std::int32_t>());
        topology::given_cycles const cycles{permutations, static_cast<index_t>(c.at("perms").size())};
        auto const stride = c.at("landmark_stride");
        topology::landmark const landmark{.stride = stride.is_null() ? 1 : stride.get<index_t>(),
                                          .count  = stride.is_null() ? 0 : topology::landmark::unlimited};
        topology::window const window{.predecessors = c.at("window").get<index_t>()};
        topology::build_options const o{.heads = 1, .nodes = c.at("T").get<index_t>()};
        REQUIRE((c.at("include_self").get<bool>() ? topology::build(o, cycles, window, landmark, topology::self{})
                                                  : topology::build(o, cycles, window, landmark)) == want);
    }
}

TEST_CASE("block rows equal the published ones to the slot", "[topology]") {
    std::size_t rows = 0;
    for (golden::json const& c : golden::cases("topology/block_rows.json")) {
        auto const rule = c.at("rule").get<std::string>();
        bf::testing::published_rows_options const o{.blocks   = c.at("N").get<index_t>(),
                                                    .layer    = c.at("layer").get<index_t>(),
                                                    .rule     = rule,
                                                    .local    = c.at("L").get<index_t>(),
                                                    .sinks    = c.at("S").get<index_t>(),
                                                    .partners = c.at("p").get<index_t>()};
        CAPTURE(o.blocks, o.layer, rule, o.local, o.sinks, o.partners);
        REQUIRE(topology::stage_count(o.blocks) == c.at("width"));
        REQUIRE((rule == "benes" ? topology::benes_phase_count(o.blocks) : topology::stage_count(o.blocks)) ==
                c.at("stage_count"));
        std::vector<int> bits;
        for (int const k : bf::testing::published_stages(o))
            bits.push_back(rule == "benes" ? topology::benes_stage(k, o.blocks) : k);
        REQUIRE(bits == c.at("partner_bits").get<std::vector<int>>());

        bf::graph const g = bf::testing::published_rows(o);
        REQUIRE_FALSE(bf::find_defect(g.view()));
        for (index_t block = 0; block < o.blocks; ++block, ++rows) {
            auto const want = c.at("rows").at(static_cast<std::size_t>(block)).get<std::vector<std::int32_t>>();
            std::vector<std::int32_t> got;
            std::vector<int> types;
            for (std::size_t slot = 0; slot < static_cast<std::size_t>(g.shape().degree); ++slot) {
                if (g.view().neighbors(0, block)[slot] < 0) continue;
                got.push_back(g.view().neighbors(0, block)[slot]);
                types.push_back(g.view().types(0, block)[slot]);
            }
            CAPTURE(block);
            REQUIRE(got == want);
            if (c.contains("edge_type"))
                REQUIRE(types == c.at("edge_type").at(static_cast<std::size_t>(block)).get<std::vector<int>>());
        }
    }
    REQUIRE(rows > 1000);
}

TEST_CASE("padded layouts equal the published ones", "[topology]") {
    for (golden::json const& c : golden::cases("topology/layouts.json")) {
        auto const rule   = c.at("rule").get<std::string>();
        bf::graph const g = bf::testing::published_rows({.blocks   = c.at("N").get<index_t>(),
                                                         .layer    = c.at("layer").get<index_t>(),
                                                         .rule     = rule,
                                                         .local    = c.at("L").get<index_t>(),
                                                         .sinks    = c.at("S").get<index_t>(),
                                                         .partners = c.at("p").get<index_t>()});
        auto const want   = c.at("block_neighbors").get<std::vector<std::vector<std::int32_t>>>();
        REQUIRE(want.size() == static_cast<std::size_t>(g.shape().nodes));
        for (std::size_t block = 0; block < want.size(); ++block) {
            auto const row = g.view().neighbors(0, static_cast<index_t>(block));
            REQUIRE(std::vector<std::int32_t>(row.begin(), row.end()) == want[block]);
        }
    }
}

TEST_CASE("without the published habits the same rows are a plain composition", "[topology]") {
    // One local block and no sink at or after the block: self, window, partner, landmark say the same.
    for (golden::json const& c : golden::cases("topology/block_rows.json")) {
        if (c.at("L") != 1 || c.at("S") != 1 || c.at("p") != 1 || c.at("rule") != "causal_shift") continue;
        bf::graph const g = topology::build(
            {.heads = 1, .nodes = c.at("N").get<index_t>()}, topology::self{}, topology::window{.predecessors = 1},
            topology::causal_shift{{c.at("stage").get<int>()}}, topology::landmark{.stride = 1, .count = 1});
        for (index_t block = 0; block < g.shape().nodes; ++block) {
            auto const want = c.at("rows").at(static_cast<std::size_t>(block)).get<std::vector<std::int32_t>>();
            auto const row  = g.view().neighbors(0, block);
            REQUIRE(std::equal(want.begin(), want.end(), row.begin()));
        }
    }
}

TEST_CASE("refusals of the published block rows", "[topology]") {
    bf::testing::published_rows_options o{.blocks = 8};
    REQUIRE_NOTHROW(bf::testing::published_rows(o));
    auto const refused = [](bf::testing::published_rows_options const& bad) {
        REQUIRE_THROWS_AS(bf::testing::published_rows(bad), bf::shape_error);
    };
    refused({.blocks = 0});
    refused({.blocks = 8, .local = -1});
    refused({.blocks = 8, .sinks = -1});
    refused({.blocks = 8, .partners = -1});
    refused({.blocks = 8, .rule = "nope"});
    refused({.blocks = 8, .rule = ""});
}
