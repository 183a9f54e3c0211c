// SPDX-License-Identifier: MIT
#include <butterfly/backend/host.hpp>
#include <butterfly/butterfly.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace bf = butterfly;

/// The kernels that this CPU runs equal the plain loops.
int main() {
    bf::heads_shape const shape{.heads = 2, .tokens = 100, .head_dim = 24};
    bf::heads_buffer<float> q(shape), k(shape), v(shape), wanted(shape), out(shape);
    for (auto* const tensor : {&q, &k, &v})
        for (bf::index_t i = 0; i < 2 * 100; ++i)
            for (std::size_t d = 0; d < 24; ++d)
                tensor->view().row(i / 100, i % 100)[d] =
                    std::sin(static_cast<float>(i + 1) * static_cast<float>(d + 3) + (tensor == &k ? 0.5F : 1.0F));
    bf::backend::host const cpu;
    bf::dense_sdpa(bf::backend::scalar{}, q.view(), k.view(), v.view(), wanted.view());
    bf::dense_sdpa(cpu, q.view(), k.view(), v.view(), out.view());
    float worst = 0.0F;
    for (bf::index_t i = 0; i < 2 * 100; ++i)
        for (std::size_t d = 0; d < 24; ++d) {
            float const difference =
                std::fabs(out.view().row(i / 100, i % 100)[d] - wanted.view().row(i / 100, i % 100)[d]);
            if (!(difference < 1e-5F)) { // NaN is no number below
                std::printf("%s: wrong by %.1e\n", cpu.name().c_str(), static_cast<double>(difference));
                return 1;
            }
            worst = std::max(worst, difference);
        }
    std::printf("%s, largest difference %.1e\n", cpu.name().c_str(), static_cast<double>(worst));
}
