// SPDX-License-Identifier: MIT
#include <butterfly/graph/graph.hpp>

#include "graph/golden.hpp"
#include "support/catch.hpp"

#include <array>
#include <limits>
#include <type_traits>

namespace bf = butterfly;

namespace {

template <class G>
concept has_view = requires(G&& g) {
    std::forward<G>(g).view();
};

} // namespace

TEST_CASE("only a graph with a name has a view", "[graph]") {
    STATIC_REQUIRE(has_view<bf::graph&>);
    STATIC_REQUIRE(has_view<bf::graph const&>);
    STATIC_REQUIRE_FALSE(has_view<bf::graph>);
    STATIC_REQUIRE_FALSE(has_view<bf::graph const>);
}

TEST_CASE("edge codes are frozen and precedence is cycle, rewire, landmark, window", "[graph]") {
    STATIC_REQUIRE(static_cast<int>(bf::edge_code::pad) == 0);
    STATIC_REQUIRE(static_cast<int>(bf::edge_code::cycle) == 1);
    STATIC_REQUIRE(static_cast<int>(bf::edge_code::window) == 2);
    STATIC_REQUIRE(static_cast<int>(bf::edge_code::landmark) == 3);
    STATIC_REQUIRE(static_cast<int>(bf::edge_code::rewire) == 4);
    STATIC_REQUIRE(precedence(bf::edge_code::cycle) > precedence(bf::edge_code::rewire));
    STATIC_REQUIRE(precedence(bf::edge_code::rewire) > precedence(bf::edge_code::landmark));
    STATIC_REQUIRE(precedence(bf::edge_code::landmark) > precedence(bf::edge_code::window));
    STATIC_REQUIRE(precedence(bf::edge_code::window) > precedence(bf::edge_code::pad));
    REQUIRE(std::string(name_of(bf::edge_code::rewire)) == "rewire");
}

TEST_CASE("rows of a view are where C order puts them", "[graph]") {
    bf::graph g({.heads = 2, .nodes = 3, .degree = 4});
    for (std::size_t i = 0; i < g.neigh_idx().size(); ++i) {
        REQUIRE(g.neigh_idx()[i] == bf::no_neighbor);
        REQUIRE(g.edge_type()[i] == 0);
        g.neigh_idx()[i] = static_cast<std::int32_t>(i);
        g.edge_type()[i] = static_cast<std::uint8_t>(100 + i);
    }
    bf::graph_view const view = g.view();
    REQUIRE(view.neighbors(1, 2).size() == 4);
    REQUIRE(view.neighbors(1, 2)[3] == 23);
    REQUIRE(view.neighbors(1, 0)[0] == 12);
    REQUIRE(view.types(0, 1)[2] == 106);
    REQUIRE(bf::graph(view) == g);
}

TEST_CASE("sizes are checked before anything is allocated", "[graph]") {
    constexpr auto big = std::numeric_limits<bf::index_t>::max();
    for (bf::graph_shape const s :
         {bf::graph_shape{0, 1, 1}, bf::graph_shape{1, 0, 1}, bf::graph_shape{1, 1, 0}, bf::graph_shape{-1, 1, 1},
          bf::graph_shape{big, 2, 1}, bf::graph_shape{1, bf::index_t{1} << 31, 1}, bf::graph_shape{1, 1, big},
          bf::graph_shape{1 << 30, 1 << 30, 8}}) {
        CAPTURE(to_string(s));
        REQUIRE_THROWS_AS(bf::checked_size(s), bf::shape_error);
        REQUIRE_THROWS_AS(bf::graph(s), bf::shape_error);
        REQUIRE_THROWS_AS(bf::graph(s, {}, {}), bf::shape_error);
    }
    REQUIRE(bf::checked_size({2, 3, 4}) == 24);
    REQUIRE_THROWS_AS(bf::graph({1, 2, 2}, std::vector<std::int32_t>(4), std::vector<std::uint8_t>(3)),
                      bf::shape_error);
    REQUIRE_THROWS_AS(bf::graph({1, 2, 2}, std::vector<std::int32_t>(3), std::vector<std::uint8_t>(4)),
                      bf::shape_error);
    REQUIRE_THROWS_AS(bf::graph(bf::graph_view{nullptr, nullptr, {1, 1, 1}}), bf::shape_error);
}

TEST_CASE("stacked heads equal the published stacks", "[graph]") {
    for (golden::json const& c : golden::cases("graph/abi_stack.json")) {
        CAPTURE(c.at("name").get<std::string>());
        std::vector<bf::graph> heads;
        for (golden::json const& h : c.at("heads")) heads.push_back(golden::to_graph(h));
        std::vector<bf::graph_view> views;
        for (bf::graph const& h : heads) views.push_back(h.view());
        REQUIRE(bf::stack(views) == golden::to_graph(c));
    }
}

TEST_CASE("stack takes parts of several heads, and refuses what does not match", "[graph]") {
    bf::graph a({.heads = 2, .nodes = 2, .degree = 1}), b({.heads = 1, .nodes = 2, .degree = 3});
    for (std::size_t i = 0; i < 4; ++i) a.neigh_idx()[i] = static_cast<std::int32_t>(i % 2);
    for (std::size_t i = 0; i < 6; ++i) b.neigh_idx()[i] = static_cast<std::int32_t>(10 + i);
    std::array const parts{b.view(), a.view()};
    bf::graph const both = bf::stack(parts);
    REQUIRE(both.shape() == bf::graph_shape{3, 2, 3});
    REQUIRE(both.view().neighbors(0, 1)[2] == 15);
    REQUIRE(both.view().neighbors(2, 1)[0] == 1);
    REQUIRE(both.view().neighbors(2, 1)[1] == bf::no_neighbor);

    bf::graph const other({.heads = 1, .nodes = 3, .degree = 1});
    std::array const unequal{a.view(), other.view()};
    REQUIRE_THROWS_AS(bf::stack(unequal), bf::shape_error);
    REQUIRE_THROWS_AS(bf::stack({}), bf::shape_error);
    std::array const null{bf::graph_view{nullptr, nullptr, {1, 2, 1}}};
    REQUIRE_THROWS_AS(bf::stack(null), bf::shape_error);
}
