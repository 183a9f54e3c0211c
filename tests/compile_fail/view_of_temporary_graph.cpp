// SPDX-License-Identifier: MIT
// A view of a graph that is gone at the end of the line would point at freed memory.
// expect: (use of deleted function|call to deleted member function).*view
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/window.hpp>

namespace bf = butterfly;

bf::index_t degree() {
    bf::topology::window const rule{.predecessors = 2};
#ifdef BUTTERFLY_COMPILE_FAIL
    bf::graph_view const view = bf::topology::build({.heads = 1, .nodes = 4}, rule).view();
#else
    bf::graph const graph     = bf::topology::build({.heads = 1, .nodes = 4}, rule);
    bf::graph_view const view = graph.view();
#endif
    return view.degree();
}
