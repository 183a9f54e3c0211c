// SPDX-License-Identifier: MIT
#include <butterfly/butterfly.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace bf = butterfly;

/// The second token may route to the first: equal keys, so it sees the mean of both values.
int main() {
    std::vector<float> const q(8, 1.0F), k(8, 1.0F), v{1, 1, 1, 1, 3, 3, 3, 3};
    std::vector<float> out(8);
    bf::heads_shape const shape{.heads = 1, .tokens = 2, .head_dim = 4};
    bf::graph const g =
        bf::topology::build({.heads = 1, .nodes = 2}, bf::topology::window{.predecessors = 1}, bf::topology::self{});

    bf::sparse_sdpa(bf::backend::scalar{}, bf::heads_view<float const>{q.data(), shape},
                    bf::heads_view<float const>{k.data(), shape}, bf::heads_view<float const>{v.data(), shape}, g,
                    bf::heads_view<float>{out.data(), shape});

    std::printf("butterfly %d.%d.%d: %g %g\n", BUTTERFLY_VERSION_MAJOR, BUTTERFLY_VERSION_MINOR,
                BUTTERFLY_VERSION_PATCH, static_cast<double>(out[0]), static_cast<double>(out[4]));
    return std::fabs(out[0] - 1.0F) < 1e-6F && std::fabs(out[4] - 2.0F) < 1e-6F ? 0 : 1;
}
