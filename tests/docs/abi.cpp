// SPDX-License-Identifier: MIT
// docs/abi.md
#include <butterfly/butterfly.hpp>
#include <butterfly/graph/io.hpp>

#include <algorithm>
#include <cstdio>

namespace bf = butterfly;

int main() {
    std::int32_t const order[] = {3, 0, 6, 1, 7, 4, 2, 5};
    bf::graph const g          = bf::topology::build({.heads = 1, .nodes = 8}, bf::topology::given_cycles{order},
                                                     bf::topology::window{.predecessors = 2},
                                                     bf::topology::landmark{.stride = 3}, bf::topology::self{});
    bf::graph_view const abi   = g.view();

    std::int32_t const neighbors[8][7] = {{3, 6, 0, -1, -1, -1, -1}, {6, 7, 0, 1, -1, -1, -1}, {4, 5, 0, 1, 2, -1, -1},
                                          {0, 5, 1, 2, 3, -1, -1},   {2, 7, 3, 0, 4, -1, -1},  {2, 3, 4, 0, 5, -1, -1},
                                          {0, 1, 4, 5, 3, 6, -1},    {1, 4, 5, 6, 0, 3, 7}};
    std::uint8_t const types[8][7]     = {{1, 1, 2, 0, 0, 0, 0}, {1, 1, 3, 2, 0, 0, 0}, {1, 1, 3, 2, 2, 0, 0},
                                          {1, 1, 2, 2, 2, 0, 0}, {1, 1, 3, 3, 2, 0, 0}, {1, 1, 2, 3, 2, 0, 0},
                                          {1, 1, 2, 2, 3, 2, 0}, {1, 1, 2, 3, 3, 3, 2}};
    for (bf::index_t node = 0; node < 8; ++node)
        if (!std::ranges::equal(abi.neighbors(0, node), neighbors[node]) ||
            !std::ranges::equal(abi.types(0, node), types[node]))
            return 1;

    bf::save_npz(abi, "graph.npz");
    bf::graph const loaded = bf::load_npz("graph.npz");
    std::remove("graph.npz");
    return loaded == g && !bf::find_defect(loaded.view(), {.heads = 1, .hamiltonian_backbone = true}) ? 0 : 1;
}
