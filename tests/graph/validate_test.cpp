// SPDX-License-Identifier: MIT
#include <butterfly/graph/validate.hpp>

#include "graph/golden.hpp"
#include "support/catch.hpp"

#include <algorithm>
#include <limits>

namespace bf = butterfly;
using bf::edge_code;

namespace {

bf::validate_options const backbone{.hamiltonian_backbone = true};

void set(bf::graph& g, bf::index_t node, bf::index_t slot, int neighbor, int type) {
    auto const at     = static_cast<std::size_t>(g.view().row_begin(0, node) + slot);
    g.neigh_idx()[at] = neighbor;
    g.edge_type()[at] = static_cast<std::uint8_t>(type);
}

void require_defect(bf::graph_view g,
                    std::string const& part,
                    bf::index_t head,
                    bf::index_t node,
                    bf::index_t slot,
                    bf::validate_options const& o = {}) {
    auto const d = bf::find_defect(g, o);
    REQUIRE(d.has_value());
    CAPTURE(to_string(*d));
    REQUIRE(d->what.find(part) != std::string::npos);
    REQUIRE(d->head == head);
    REQUIRE(d->node == node);
    REQUIRE(d->slot == slot);
    REQUIRE_THROWS_AS(bf::require_valid(g, o), bf::graph_error);
}

} // namespace

TEST_CASE("published graphs are valid where the published check says so", "[graph]") {
    for (golden::json const& c : golden::cases("graph/abi.json")) {
        CAPTURE(c.at("name").get<std::string>());
        bf::graph const g = golden::to_graph(c);
        REQUIRE(bf::find_defect(g.view()).has_value() != c.at("validate_plain").contains("ok"));
        REQUIRE(bf::find_defect(g.view(), backbone).has_value() != c.at("validate_hamiltonian").contains("ok"));
    }
}

TEST_CASE("each defect of a row is found, with its place", "[graph]") {
    bf::graph g = golden::abi_graph("t8");
    REQUIRE_NOTHROW(bf::require_valid(g.view(), backbone));
    bf::index_t const node = GENERATE(0, 3, 7);
    bf::index_t const slot = GENERATE(0, 2);
    auto const type        = static_cast<int>(g.view().types(0, node)[static_cast<std::size_t>(slot)]);
    int const neighbor     = g.view().neighbors(0, node)[static_cast<std::size_t>(slot)];

    SECTION("neighbour past the end") {
        set(g, node, slot, 8, type);
        require_defect(g.view(), "neighbour 8 is outside [0, 8)", 0, node, slot);
    }
    SECTION("neighbour below the pad") {
        set(g, node, slot, -2, type);
        require_defect(g.view(), "neighbour -2 is outside", 0, node, slot);
    }
    SECTION("far outside") {
        set(g, node, slot, std::numeric_limits<std::int32_t>::min(), type);
        require_defect(g.view(), "is outside", 0, node, slot);
        set(g, node, slot, std::numeric_limits<std::int32_t>::max(), type);
        require_defect(g.view(), "is outside", 0, node, slot);
    }
    SECTION("unknown code") {
        int const code = GENERATE(5, 7, 255);
        set(g, node, slot, neighbor, code);
        require_defect(g.view(), "edge code " + std::to_string(code) + " is unknown", 0, node, slot);
    }
    SECTION("pad with a code") {
        set(g, node, slot, -1, type);
        require_defect(g.view(), "a pad has edge code", 0, node, slot);
    }
    SECTION("neighbour with the code of a pad") {
        set(g, node, slot, neighbor, 0);
        require_defect(g.view(), "has the edge code of a pad", 0, node, slot);
    }
    SECTION("neighbour twice") {
        set(g, node, slot, g.view().neighbors(0, node)[1], type);
        require_defect(g.view(), "stands twice in the row", 0, node, std::max<bf::index_t>(1, slot));
    }
}

TEST_CASE("the same node in the same slot of neighbouring rows is no duplicate", "[graph]") {
    bf::graph g({.heads = 2, .nodes = 3, .degree = 1});
    for (std::size_t i = 0; i < 6; ++i) {
        g.neigh_idx()[i] = 1;
        g.edge_type()[i] = 2;
    }
    REQUIRE_FALSE(bf::find_defect(g.view()));
}

TEST_CASE("pads may stand anywhere", "[graph]") {
    bf::graph g({.heads = 1, .nodes = 4, .degree = 5});
    set(g, 3, 1, 2, 2);
    set(g, 3, 4, 0, 3);
    REQUIRE_FALSE(bf::find_defect(g.view()));
}

TEST_CASE("shape, data and expectations are looked at first", "[graph]") {
    bf::graph const g = golden::abi_graph("t8");
    require_defect(g.view(), "1 heads, expected 2", -1, -1, -1, {.heads = 2});
    require_defect(g.view(), "8 nodes, expected 9", -1, -1, -1, {.nodes = 9});
    REQUIRE_FALSE(bf::find_defect(g.view(), {.heads = 1, .nodes = 8}));

    bf::graph_view view = g.view();
    view.neigh_idx      = nullptr;
    require_defect(view, "neigh_idx is null", -1, -1, -1);
    view           = g.view();
    view.edge_type = nullptr;
    require_defect(view, "edge_type is null", -1, -1, -1);
    for (bf::graph_shape const s :
         {bf::graph_shape{0, 8, 7}, bf::graph_shape{1, 0, 7}, bf::graph_shape{1, 8, 0}, bf::graph_shape{-1, 8, 7}})
        require_defect({g.view().neigh_idx, g.view().edge_type, s}, "extent below 1", -1, -1, -1);
    require_defect({g.view().neigh_idx, g.view().edge_type, {bf::index_t{1} << 40, 8, bf::index_t{1} << 40}},
                   "overflows", -1, -1, -1);
    require_defect({g.view().neigh_idx, g.view().edge_type, {1, bf::index_t{1} << 31, 1}}, "too many nodes", -1, -1,
                   -1);
}

TEST_CASE("the backbone needs cycle edges at each node and a way to all of them", "[graph]") {
    bf::graph g = golden::abi_graph("t8");
    SECTION("one cycle edge of a node becomes a rewire edge") {
        set(g, 0, 0, g.view().neighbors(0, 0)[0], 4);
        REQUIRE_FALSE(bf::find_defect(g.view()));
        require_defect(g.view(), "1 cycle edges, needs 2", 0, 0, -1, backbone);
    }
    SECTION("two triangles") {
        bf::graph two({.heads = 1, .nodes = 6, .degree = 2});
        for (int node = 0; node < 6; ++node) {
            int const base = node / 3 * 3;
            set(two, node, 0, base + (node + 1) % 3, 1);
            set(two, node, 1, base + (node + 2) % 3, 1);
        }
        require_defect(two.view(), "to 3 of 6 nodes", 0, -1, -1, backbone);
        REQUIRE_FALSE(bf::find_defect(two.view()));
    }
    SECTION("two nodes need one edge each") {
        bf::graph pair({.heads = 1, .nodes = 2, .degree = 2});
        set(pair, 0, 0, 1, 1);
        require_defect(pair.view(), "0 cycle edges, needs 1", 0, 1, -1, backbone);
        set(pair, 1, 0, 0, 1);
        REQUIRE_FALSE(bf::find_defect(pair.view(), backbone));
    }
    SECTION("one node needs none") {
        bf::graph const one({.heads = 1, .nodes = 1, .degree = 1});
        REQUIRE_FALSE(bf::find_defect(one.view(), backbone));
    }
}

TEST_CASE("the text of a defect names the place", "[graph]") {
    REQUIRE(to_string(bf::graph_defect{"is odd", 1, 2, 3}) == "graph: head 1 node 2 slot 3: is odd");
    REQUIRE(to_string(bf::graph_defect{"neigh_idx is null"}) == "graph: neigh_idx is null");
}
