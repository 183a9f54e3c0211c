// SPDX-License-Identifier: MIT
// docs/adding-a-topology-rule.md
#include <butterfly/butterfly.hpp>
#include <butterfly/topology/reach.hpp>

namespace bf = butterfly;

namespace mine {

/// node - base^k for k = 0, 1, ..., nearest first; type rewire.
struct powers {
    bf::index_t base = 3;

    void check(bf::topology::topology_shape) const {
        if (base < 2) bf::detail::fail<bf::shape_error>("powers: base is " + std::to_string(base));
    }

    template <class Sink>
    constexpr void emit(bf::topology::topology_shape, bf::topology::node_ref at, Sink& sink) const noexcept {
        for (bf::index_t step = 1; step <= at.node && at.node - step >= sink.from(); step *= base)
            sink.add(at.node - step, bf::edge_code::rewire);
    }
};

static_assert(bf::topology::rule<powers>);

} // namespace mine

int main() {
    // Composed like any other rule: as a graph, as rows on the fly, as layers of a stack.
    bf::topology::topology_shape const shape{.heads = 1, .nodes = 100};
    bf::topology::row const rows{mine::powers{.base = 3}, bf::topology::self{}};
    bf::graph const g = bf::topology::build({.heads = 1, .nodes = 100}, rows);
    if (bf::find_defect(g.view())) return 1;

    std::vector<bf::topology::row<mine::powers, bf::topology::self>> const layers(8, rows);
    bf::index_t const reached = bf::topology::reachable(std::span(layers), shape, {.head = 0, .node = 99});
    if (reached != 100) return 1;

    // Block-sparse attention along it.
    bf::heads_buffer<float> q({4, 800, 32}), k({2, 800, 32}), v({2, 800, 32}), out({4, 800, 32});
    bf::sparse_sdpa(bf::backend::simd<>{}, q.view(), k.view(), v.view(), bf::block_routing{rows, 8, 100}, out.view());
    return 0;
}
