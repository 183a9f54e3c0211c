// SPDX-License-Identifier: MIT

// A topology of your own is a struct with one function. It composes with the others, makes explicit graphs, and routes
// blocks on the fly; no header of the library changes.

#include <butterfly/butterfly.hpp>

#include <cstdio>
#include <vector>

namespace bf = butterfly;

/// The nodes 1, 2, 3, 5, 8, ... before a node: steps that grow, from the nearest on.
struct fibonacci {
    bf::index_t furthest = 1000;

    /// Optional: is asked once, before any row.
    void check(bf::topology::topology_shape) const {
        if (furthest < 1) throw bf::shape_error("fibonacci: furthest must be positive");
    }

    template <class Sink>
    void emit(bf::topology::topology_shape, bf::topology::node_ref at, Sink& sink) const noexcept {
        for (bf::index_t a = 1, b = 2; a <= furthest && a <= at.node; b += a, a = b - a)
            sink.add(at.node - a, bf::edge_code::rewire);
    }
};

static_assert(bf::topology::rule<fibonacci>);

int main() {
    // As an explicit graph, to look at.
    bf::graph const g = bf::topology::build({.heads = 1, .nodes = 30}, fibonacci{.furthest = 21}, bf::topology::self{});
    std::printf("token 29 sees");
    for (std::int32_t const j : g.view().neighbors(0, 29)) std::printf(" %d", static_cast<int>(j));
    std::printf("\n");

    // As blocks of 16 tokens, without any graph in memory.
    constexpr bf::index_t tokens = 512;
    bf::heads_shape const shape{.heads = 1, .tokens = tokens, .head_dim = 8};
    std::vector<float> const q(tokens * 8, 0.0F), k(tokens * 8, 1.0F); // equal scores: the output is the mean of v
    std::vector<float> v, out(tokens * 8);
    for (bf::index_t i = 0; i < tokens * 8; ++i) v.push_back(static_cast<float>(i / 8 / 16)); // the token's block

    bf::topology::row const row(fibonacci{}, bf::topology::self{});
    bf::sparse_sdpa(bf::backend::simd<>{}, bf::heads_view<float const>{q.data(), shape},
                    bf::heads_view<float const>{k.data(), shape}, bf::heads_view<float const>{v.data(), shape},
                    bf::block_routing{row, 16, tokens / 16}, bf::heads_view<float>{out.data(), shape});

    // The last token, of block 31, sees blocks 31, 30, 29, 28, 26, 23, 18 and 10: their mean is 24.375.
    float const seen = out[(tokens - 1) * 8];
    std::printf("token 511 sees blocks of mean number %.3f\n", static_cast<double>(seen));
    return seen > 24.374F && seen < 24.376F && g.view().neighbors(0, 29)[7] == 29 ? 0 : 1;
}
