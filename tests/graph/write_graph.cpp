// SPDX-License-Identifier: MIT
// Writes a small graph to the path given and prints its rows, neighbours then codes: the other half of numpy_load.py.
#include <butterfly/graph/io.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/cycle.hpp>
#include <butterfly/topology/window.hpp>

int main(int argc, char** argv) {
    namespace bf = butterfly;
    if (argc != 2) return 2;
    bf::graph const g = bf::topology::build({.heads = 2, .nodes = 9}, bf::topology::cycle{.seed = 7},
                                            bf::topology::window{.predecessors = 2});
    bf::save_npz(g.view(), argv[1]);
    for (bf::index_t head = 0; head < g.shape().heads; ++head)
        for (bf::index_t node = 0; node < g.shape().nodes; ++node) {
            for (std::int32_t const j : g.view().neighbors(head, node)) std::printf("%d ", static_cast<int>(j));
            for (std::uint8_t const t : g.view().types(head, node)) std::printf("%d ", static_cast<int>(t));
            std::printf("\n");
        }
}
