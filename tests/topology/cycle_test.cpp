// SPDX-License-Identifier: MIT
#include <butterfly/graph/validate.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/cycle.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/rewire.hpp>
#include <butterfly/topology/window.hpp>

#include "graph/golden.hpp"
#include "support/catch.hpp"

#include <algorithm>
#include <random>
#include <set>

namespace bf       = butterfly;
namespace topology = butterfly::topology;
using bf::index_t;
using permutation = std::vector<std::int32_t>;

namespace {

std::set<std::pair<int, int>> edges_of(permutation const& p) {
    std::set<std::pair<int, int>> out;
    for (std::size_t i = 0; i < p.size(); ++i) out.insert(std::minmax<int>(p[i], p[(i + 1) % p.size()]));
    return out;
}

bool is_permutation(permutation p, index_t nodes) {
    std::sort(p.begin(), p.end());
    for (std::size_t i = 0; i < p.size(); ++i)
        if (p[i] != static_cast<std::int32_t>(i)) return false;
    return static_cast<index_t>(p.size()) == nodes;
}

std::vector<permutation> split(permutation const& all, index_t nodes) {
    std::vector<permutation> out;
    for (std::size_t i = 0; i < all.size(); i += static_cast<std::size_t>(nodes))
        out.emplace_back(all.begin() + static_cast<std::ptrdiff_t>(i),
                         all.begin() + static_cast<std::ptrdiff_t>(i) + nodes);
    return out;
}

/// The published way to disjoint cycles: draw each until it shares no edge, give up after 100 draws.
std::vector<permutation> by_rejection(index_t nodes, index_t count, bf::mersenne_twister& draw) {
    std::vector<permutation> out;
    std::set<std::pair<int, int>> used;
    while (static_cast<index_t>(out.size()) < count) {
        bool found = false;
        for (int attempt = 0; attempt < 100 && !found; ++attempt) {
            permutation const p = topology::random_permutation(nodes, draw);
            auto const edges    = edges_of(p);
            if (std::any_of(edges.begin(), edges.end(), [&](auto const& e) { return used.count(e) != 0; })) continue;
            used.insert(edges.begin(), edges.end());
            out.push_back(p);
            found = true;
        }
        if (!found) return {};
    }
    return out;
}

} // namespace

TEST_CASE("the generator is the standard's MT19937", "[topology]") {
    for (std::uint32_t const seed : {0U, 1U, 42U, 5489U, 0xffffffffU}) {
        std::mt19937 standard(seed);
        bf::mersenne_twister ours(seed);
        for (int i = 0; i < 2000; ++i) REQUIRE(ours() == standard());
    }
    std::mt19937 standard; // the standard prescribes output 10000 of the default seed
    bf::mersenne_twister ours(5489);
    std::uint32_t last = 0;
    for (int i = 0; i < 10000; ++i) last = ours();
    REQUIRE(last == 4123659995U);
}

TEST_CASE("permutations equal the published draws", "[topology]") {
    int draws = 0;
    for (golden::json const& c : golden::cases("topology/cycles.json")) {
        if (c.at("kind") != "randperm_sequence") continue;
        bf::mersenne_twister random(static_cast<std::uint32_t>(c.at("seed").get<std::uint64_t>()));
        for (golden::json const& d : c.at("draws")) {
            REQUIRE(topology::random_permutation(d.at("n").get<index_t>(), random) == d.at("perm").get<permutation>());
            ++draws;
        }
    }
    REQUIRE(draws > 20);

    bf::mersenne_twister zero(0), forty_two(42);
    REQUIRE(topology::random_permutation(10, zero) == permutation{4, 1, 7, 5, 3, 9, 0, 8, 6, 2});
    REQUIRE(topology::random_permutation(8, forty_two) == permutation{6, 3, 0, 7, 2, 1, 4, 5});
    REQUIRE(topology::random_permutation(8, forty_two) == permutation{4, 1, 7, 6, 3, 2, 0, 5});
    REQUIRE(topology::cycle{.seed = 42}.permutations(8, 1) == permutation{3, 0, 5, 2, 1, 6, 7, 4});
}

TEST_CASE("graphs per head equal the published ones", "[topology]") {
    int seen = 0;
    for (golden::json const& c : golden::cases("topology/cycles.json")) {
        if (c.at("kind") != "topology") continue;
        auto const& p       = c.at("params");
        auto const nodes    = c.at("T").get<index_t>();
        auto const heads    = p.at("n_heads").get<index_t>();
        auto const seed     = p.at("seed").get<std::uint64_t>();
        auto const cycles   = p.value("num_cycles", index_t{1});
        bool const disjoint = cycles > 1 && p.value("edge_disjoint", true);
        auto const stride   = p.at("landmark_stride");
        topology::window const window{.predecessors = p.at("window").get<index_t>()};
        topology::landmark const landmark{.stride = stride.is_null() ? 1 : stride.get<index_t>(),
                                          .count  = stride.is_null() ? 0 : topology::landmark::unlimited};
        topology::build_options const o{.heads = heads, .nodes = nodes};
        bf::graph const want = golden::to_graph(c);
        CAPTURE(heads, nodes, seed, cycles, disjoint);
        if (!disjoint) {
            REQUIRE(topology::build(o, topology::cycle{.seed = seed, .cycles = cycles}, window, landmark,
                                    topology::self{}) == want);
        }
        permutation all;
        for (index_t head = 0; head < heads; ++head) {
            bf::mersenne_twister random(static_cast<std::uint32_t>(seed + 7919 * static_cast<std::uint64_t>(head)));
            std::vector<permutation> own;
            if (disjoint)
                own = by_rejection(nodes, cycles, random);
            else
                own = split(topology::cycle{.seed = seed, .cycles = cycles}.permutations(nodes, head), nodes);
            for (permutation const& one : own) all.insert(all.end(), one.begin(), one.end());
        }
        REQUIRE(topology::build(o, topology::given_cycles{all, cycles}, window, landmark, topology::self{}) == want);
        REQUIRE_FALSE(bf::find_defect(want.view(), {.hamiltonian_backbone = true}));
        ++seen;
    }
    REQUIRE(seen == 3);
}

TEST_CASE("cycles over blocks equal the published ones", "[topology]") {
    for (golden::json const& c : golden::cases("topology/cycles.json")) {
        if (c.at("kind") != "block_cycles") continue;
        index_t const blocks = bf::detail::ceil_div(c.at("seq_len").get<index_t>(), c.at("block_size").get<index_t>());
        auto const head      = c.at("head_idx").get<std::uint64_t>();
        auto const want      = c.at("perms").get<std::vector<permutation>>();
        bf::mersenne_twister random(static_cast<std::uint32_t>(c.at("seed").get<std::uint64_t>() + 7919 * head));
        std::vector<permutation> got;
        if (blocks == 1)
            got.assign(want.size(), {0});
        else
            got = by_rejection(blocks, static_cast<index_t>(want.size()), random);
        REQUIRE(got == want);
    }
}

TEST_CASE("rejection finds what the published sampler found; ours never fails where a solution exists", "[topology]") {
    for (golden::json const& c : golden::cases("topology/cycles.json")) {
        if (c.at("kind") != "edge_disjoint") continue;
        auto const nodes = c.at("T").get<index_t>();
        auto const count = c.at("num_cycles").get<index_t>();
        bf::mersenne_twister random(static_cast<std::uint32_t>(c.at("seed").get<std::uint64_t>()));
        auto const found = by_rejection(nodes, count, random);
        REQUIRE(found.empty() == c.at("result").contains("error"));
        if (!found.empty()) REQUIRE(found == c.at("result").at("ok").get<std::vector<permutation>>());
        topology::cycle const ours{.cycles = count, .draw = topology::cycle_draw::disjoint};
        if (count <= topology::max_disjoint_cycles(nodes))
            REQUIRE_NOTHROW(ours.prepare({1, nodes}));
        else
            REQUIRE_THROWS_AS(ours.prepare({1, nodes}), bf::shape_error);
    }
}

TEST_CASE("Walecki cycles equal the published ones, and odd node counts have them too", "[topology]") {
    for (golden::json const& c : golden::cases("topology/cycles.json")) {
        if (c.at("kind") != "walecki") continue;
        auto const want = c.at("cycles").get<std::vector<permutation>>();
        for (std::size_t i = 0; i < want.size(); ++i)
            REQUIRE(topology::walecki_cycle(c.at("T").get<index_t>(), static_cast<index_t>(i)) == want[i]);
    }
    for (golden::json const& c : golden::cases("topology/cycles.json")) {
        if (c.at("kind") != "max_edge_disjoint_cycles") continue;
        for (auto const& [nodes, count] : c.at("values").items())
            if (std::stoi(nodes) >= 3) REQUIRE(topology::max_disjoint_cycles(std::stoi(nodes)) == count);
    }
}

TEST_CASE("disjoint sets are disjoint Hamiltonian cycles for every node count at the maximum", "[topology]") {
    for (index_t nodes = 3; nodes <= 40; ++nodes) {
        index_t const count = topology::max_disjoint_cycles(nodes);
        REQUIRE(count == (nodes - 1) / 2);
        topology::cycle const c{.seed = 9, .cycles = count, .draw = topology::cycle_draw::disjoint};
        for (index_t const head : {0, 1}) {
            auto const set = split(c.permutations(nodes, head), nodes);
            REQUIRE(static_cast<index_t>(set.size()) == count);
            std::set<std::pair<int, int>> used;
            for (permutation const& p : set) {
                REQUIRE(is_permutation(p, nodes));
                auto const edges = edges_of(p);
                used.insert(edges.begin(), edges.end());
            }
            REQUIRE(static_cast<index_t>(used.size()) == count * nodes);
        }
        REQUIRE(c.permutations(nodes, 0) == c.permutations(nodes, 0));
        if (nodes > 5) {
            REQUIRE(c.permutations(nodes, 0) != c.permutations(nodes, 1));
            auto const other = topology::cycle{.seed = 10, .cycles = count, .draw = topology::cycle_draw::disjoint};
            REQUIRE(c.permutations(nodes, 0) != other.permutations(nodes, 0));
        }
        auto const more = topology::cycle{.cycles = count + 1, .draw = topology::cycle_draw::disjoint};
        REQUIRE_THROWS_AS(more.prepare({1, nodes}), bf::shape_error);
        REQUIRE_THROWS_WITH(more.prepare({1, nodes}),
                            Catch::Matchers::Contains(std::to_string(count + 1) + " cycles") &&
                                Catch::Matchers::Contains("have " + std::to_string(count)));
    }
    REQUIRE_NOTHROW(topology::cycle{.draw = topology::cycle_draw::disjoint}.prepare({1, 1}));
    REQUIRE_NOTHROW(topology::cycle{.draw = topology::cycle_draw::disjoint}.prepare({1, 2}));
}

TEST_CASE("a regular partition visits the clusters in turn", "[topology]") {
    for (index_t nodes : {1, 2, 7, 16, 37, 64})
        for (index_t clusters : {1, 3, 8, 100}) {
            bf::mersenne_twister random(4);
            permutation const p = topology::regular_partition_cycle(nodes, clusters, random);
            REQUIRE(is_permutation(p, nodes));
            index_t const count   = std::min(clusters, nodes);
            auto const cluster_of = [&](index_t node) { // the first nodes % count clusters have one more
                index_t const size = nodes / count, more = nodes % count;
                return node < more * (size + 1) ? node / (size + 1) : more + (node - more * (size + 1)) / size;
            };
            for (index_t round = 0; round * count < nodes; ++round) {
                std::set<index_t> visited;
                index_t const end = std::min(nodes, (round + 1) * count);
                for (index_t i = round * count; i < end; ++i)
                    visited.insert(cluster_of(p[static_cast<std::size_t>(i)]));
                REQUIRE(static_cast<index_t>(visited.size()) == end - round * count);
            }
        }
    bf::mersenne_twister random(4);
    auto const p = topology::regular_partition_cycle(64, 8, random);
    REQUIRE_FALSE(std::is_sorted(p.begin(), p.begin() + 8)); // drawn, not in order
}

TEST_CASE("a cycle is one Hamiltonian cycle per head, with any draw", "[topology]") {
    auto const draw   = GENERATE(topology::cycle_draw::independent, topology::cycle_draw::disjoint,
                                 topology::cycle_draw::regular_partition);
    auto const cycles = GENERATE(1, 2);
    for (index_t nodes : {1, 2, 3, 5, 8, 33}) {
        if (draw == topology::cycle_draw::disjoint && cycles > topology::max_disjoint_cycles(nodes)) continue;
        topology::cycle const c{.seed = 13, .cycles = cycles, .draw = draw};
        bf::graph const g = topology::build({.heads = 3, .nodes = nodes}, c);
        REQUIRE_FALSE(bf::find_defect(g.view(), {.hamiltonian_backbone = true}));
        REQUIRE(topology::build({.heads = 3, .nodes = nodes}, c) == g); // same seed, same graph
        for (index_t head = 0; head < 3; ++head) {
            std::set<std::pair<int, int>> want, got;
            for (permutation const& p : split(c.permutations(nodes, head), nodes)) want.merge(edges_of(p));
            for (index_t node = 0; node < nodes; ++node) {
                auto const row = g.view().neighbors(head, node);
                REQUIRE(std::is_sorted(row.begin(), std::find(row.begin(), row.end(), -1)));
                for (std::int32_t const j : row)
                    if (j >= 0) got.insert(std::minmax<int>(j, static_cast<int>(node)));
            }
            REQUIRE(got == want);
        }
    }
}

TEST_CASE("cycles of the caller are checked", "[topology]") {
    topology::topology_shape const shape{.heads = 2, .nodes = 4};
    permutation const one{3, 0, 2, 1}, two{3, 0, 2, 1, 0, 1, 2, 3};
    bf::graph const shared = topology::build({.heads = 2, .nodes = 4}, topology::given_cycles{one});
    REQUIRE(shared.view().neighbors(0, 3)[0] == 0);
    REQUIRE(shared.view().neighbors(0, 3)[1] == 1);
    REQUIRE(shared.view().neighbors(1, 3)[0] == 0);
    bf::graph const own = topology::build({.heads = 2, .nodes = 4}, topology::given_cycles{two});
    REQUIRE(own.view().neighbors(1, 3)[1] == 2);

    auto const refused = [&](permutation const& p, index_t cycles) {
        REQUIRE_THROWS_AS((topology::given_cycles{p, cycles}.prepare(shape)), bf::shape_error);
    };
    refused({3, 0, 2, 2}, 1);
    refused({3, 0, 2, 4}, 1);
    refused({3, 0, 2, -1}, 1);
    refused({3, 0, 2}, 1);
    refused({}, 1);
    refused(one, 2);
    refused(one, 0);
    // Prepared for one shape, asked for another.
    auto const ready = topology::given_cycles{two}.prepare(shape);
    REQUIRE_NOTHROW(topology::make_row_source(ready, shape));
    REQUIRE_THROWS_AS(topology::make_row_source(ready, {2, 5}), bf::shape_error);
    REQUIRE_THROWS_AS(topology::make_row_source(ready, {3, 4}), bf::shape_error);
    REQUIRE_THROWS_AS(topology::make_row_source(ready, {1, 4}), bf::shape_error);
}

TEST_CASE("older block rows of the published system: self, cycle and logarithmic landmarks", "[topology]") {
    for (golden::json const& c : golden::cases("topology/block_hamiltonian.json")) {
        index_t const blocks = bf::detail::ceil_div(c.at("T").get<index_t>(), c.at("bs").get<index_t>());
        auto const cycles    = c.at("num_cycles").get<index_t>();
        auto const groups    = c.at("groups").get<std::size_t>();
        auto const kv_heads  = c.at("Hkv").get<index_t>();
        auto const marks     = c.at("landmark_blocks").get<permutation>();
        permutation all, neighbors;
        std::vector<index_t> offsets{0};
        for (index_t block = 0; block < blocks; ++block) {
            neighbors.insert(neighbors.end(), marks.begin(), marks.end());
            offsets.push_back(static_cast<index_t>(neighbors.size()));
        }
        for (index_t head = 0; head < kv_heads; ++head) {
            bf::mersenne_twister random(static_cast<std::uint32_t>(c.at("seed").get<std::uint64_t>() +
                                                                   7919 * static_cast<std::uint64_t>(head)));
            for (permutation const& p : by_rejection(blocks, cycles, random)) all.insert(all.end(), p.begin(), p.end());
        }
        bf::graph const g =
            topology::build({.heads = kv_heads, .nodes = blocks}, topology::self{}, topology::given_cycles{all, cycles},
                            topology::rewire{offsets, neighbors, bf::edge_code::landmark});
        auto const want = c.at("block_neighbors").get<std::vector<std::vector<permutation>>>();
        for (std::size_t head = 0; head < want.size(); ++head)
            for (std::size_t block = 0; block < want[head].size(); ++block) {
                auto const row = g.view().neighbors(static_cast<index_t>(head / groups), static_cast<index_t>(block));
                REQUIRE(std::multiset<int>(row.begin(), row.end()) ==
                        std::multiset<int>(want[head][block].begin(), want[head][block].end()));
            }
    }
}
