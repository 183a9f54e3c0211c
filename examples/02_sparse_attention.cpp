// SPDX-License-Identifier: MIT

// Attention along a graph, in place of dense attention: the same call with one argument more. The graph lists, for each
// of 1024 tokens, the 32 before it, every 64th one, two neighbours on a random cycle and the token itself.

#include <butterfly/butterfly.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace bf = butterfly;

/// Numbers that look random.
static std::vector<float> numbers(bf::index_t count, unsigned seed) {
    std::vector<float> out;
    for (bf::index_t i = 0; i < count; ++i) {
        seed = seed * 1664525U + 1013904223U;
        out.push_back(static_cast<float>(seed >> 8) / static_cast<float>(1U << 23) - 1.0F);
    }
    return out;
}

int main() {
    bf::heads_shape const queries{.heads = 8, .tokens = 1024, .head_dim = 64};
    bf::heads_shape const keys{.heads = 2, .tokens = 1024, .head_dim = 64}; // four query heads share one
    auto const q_data = numbers(8 * 1024 * 64, 1), k_data = numbers(2 * 1024 * 64, 2),
               v_data = numbers(2 * 1024 * 64, 3);
    std::vector<float> sparse_data(q_data.size()), dense_data(q_data.size());

    // Views: no copies, and the tensors stay where they are.
    bf::heads_view<float const> const q{q_data.data(), queries}, k{k_data.data(), keys}, v{v_data.data(), keys};
    bf::heads_view<float> const sparse{sparse_data.data(), queries}, dense{dense_data.data(), queries};

    bf::graph const g = bf::topology::build({.heads = 8, .nodes = 1024},              //
                                            bf::topology::cycle{.seed = 7},           //
                                            bf::topology::window{.predecessors = 32}, //
                                            bf::topology::landmark{.stride = 64},     //
                                            bf::topology::self{});

    // The policy says what computes, and with whose threads. Causal is the default.
    bf::backend::simd<> const cpu{};
    bf::sparse_sdpa(cpu, q, k, v, g, sparse);
    bf::dense_sdpa(cpu, q, k, v, dense);

    // Token 20 is in everybody's window: there, sparse attention is dense attention.
    float worst = 0.0F;
    for (bf::index_t head = 0; head < 8; ++head)
        for (std::size_t d = 0; d < 64; ++d)
            worst = std::fmax(worst, std::fabs(sparse.row(head, 20)[d] - dense.row(head, 20)[d]));
    std::printf("%s: rows of at most %d keys instead of 1024\n", cpu.name().c_str(),
                static_cast<int>(g.shape().degree));
    std::printf("token 20, which sees all its past either way: largest difference %.1e\n", static_cast<double>(worst));
    std::printf("token 1000, head 0, first values: sparse %+.4f %+.4f, dense %+.4f %+.4f\n",
                static_cast<double>(sparse.row(0, 1000)[0]), static_cast<double>(sparse.row(0, 1000)[1]),
                static_cast<double>(dense.row(0, 1000)[0]), static_cast<double>(dense.row(0, 1000)[1]));
    return worst < 1e-5F ? 0 : 1;
}
