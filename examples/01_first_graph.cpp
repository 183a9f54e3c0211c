// SPDX-License-Identifier: MIT

// A graph says which tokens a token attends to. Rules compose it; here the random cycle is given, so that the rows
// below are the ones to expect. Each row lists neighbours and why they are there:
// 1 cycle, 2 window (the token itself included), 3 landmark, 4 rewire.

#include <butterfly/butterfly.hpp>

#include <array>
#include <cstdio>

namespace bf = butterfly;

int main() {
    std::array<std::int32_t, 8> const cycle{3, 0, 6, 1, 7, 4, 2, 5}; // 3 - 0 - 6 - 1 - 7 - 4 - 2 - 5 - 3

    // In the order written; a node named twice keeps its first place and its strongest reason.
    bf::graph const g        = bf::topology::build({.heads = 1, .nodes = 8}, //
                                                   bf::topology::given_cycles{.permutations = cycle},
                                                   bf::topology::window{.predecessors = 2}, //
                                                   bf::topology::landmark{.stride = 3},     //
                                                   bf::topology::self{});
    bf::graph_view const abi = g.view();

    std::printf("token  neighbours            why\n");
    int edges = 0;
    for (bf::index_t token = 0; token < abi.nodes(); ++token) {
        std::printf("%5d ", static_cast<int>(token));
        for (std::int32_t const j : abi.neighbors(0, token)) {
            if (j == bf::no_neighbor) {
                std::printf("  .");
                continue;
            }
            std::printf("%3d", static_cast<int>(j));
            ++edges;
        }
        std::printf("   ");
        for (std::uint8_t const type : abi.types(0, token)) std::printf(" %d", static_cast<int>(type));
        std::printf("\n");
    }
    std::printf("%d edges in rows of %d\n", edges, static_cast<int>(abi.degree()));

    // Row order is a frozen interface: this is what the row of token 7 must be.
    std::array<std::int32_t, 7> const last_row{1, 4, 5, 6, 0, 3, 7};
    for (std::size_t i = 0; i < last_row.size(); ++i)
        if (abi.neighbors(0, 7)[i] != last_row[i]) return 1;
    return edges == 40 ? 0 : 1;
}
