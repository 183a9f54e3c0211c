// SPDX-License-Identifier: MIT
#pragma once

// Outputs of the published system (Butterfly, MIT, commit 51a3d97), read from tests/data.

#include <butterfly/graph/graph.hpp>

#include <nlohmann/json.hpp>

#include <fstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace golden {

using json = nlohmann::json;

/// The cases of a file under tests/data.
inline json cases(std::string const& name) {
    std::ifstream file(std::string(BUTTERFLY_TEST_DATA) + "/" + name);
    if (!file) throw std::runtime_error("no test data " + name);
    return json::parse(file).at("cases");
}

/// The graph of "neigh_idx" and "edge_type", [nodes][degree] or [heads][nodes][degree].
inline butterfly::graph to_graph(json const& c) {
    json const& n   = c.at("neigh_idx");
    bool const many = n.at(0).at(0).is_array();
    butterfly::graph_shape shape{.heads = 1, .nodes = 0, .degree = 0};
    shape.heads          = many ? static_cast<butterfly::index_t>(n.size()) : 1;
    json const& one_head = many ? n.at(0) : n;
    shape.nodes          = static_cast<butterfly::index_t>(one_head.size());
    shape.degree         = static_cast<butterfly::index_t>(one_head.at(0).size());
    std::vector<std::int32_t> neigh_idx;
    std::vector<std::uint8_t> edge_type;
    auto const walk = [](auto const& self, json const& part, auto& out) -> void {
        for (json const& x : part) {
            if (x.is_array())
                self(self, x, out);
            else
                out.push_back(x.get<typename std::decay_t<decltype(out)>::value_type>());
        }
    };
    walk(walk, n, neigh_idx);
    walk(walk, c.at("edge_type"), edge_type);
    return {shape, neigh_idx, edge_type};
}

/// The graph of a named case of graph/abi.json.
inline butterfly::graph abi_graph(std::string const& name) {
    for (json const& c : cases("graph/abi.json"))
        if (c.at("name") == name) return to_graph(c);
    throw std::runtime_error("no graph " + name);
}

} // namespace golden
