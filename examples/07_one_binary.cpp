// SPDX-License-Identifier: MIT

// One binary for many CPUs. butterfly_add_kernels (CMake) links the kernels of several instruction sets, and
// backend::host takes the best of them that this CPU runs: one decode step over 2048 bf16 keys, at each level, beside
// the plain loops.

#include <butterfly/backend/host.hpp>
#include <butterfly/butterfly.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace bf = butterfly;
using bf::backend::isa_level;

/// Numbers that look random, in [-1, 1).
template <class T>
static void fill(bf::heads_buffer<T>& out, unsigned seed) {
    for (bf::index_t head = 0; head < out.shape().heads; ++head)
        for (bf::index_t token = 0; token < out.shape().tokens; ++token)
            for (T& x : out.view().row(head, token)) {
                seed = seed * 1664525U + 1013904223U;
                x    = static_cast<T>(static_cast<float>(seed >> 8) / static_cast<float>(1U << 23) - 1.0F);
            }
}

int main() {
    bf::heads_buffer<float> q({8, 1, 64}), wanted({8, 1, 64}), out({8, 1, 64});
    bf::heads_buffer<bf::bfloat16> k({2, 2048, 64}), v({2, 2048, 64});
    fill(q, 1), fill(k, 2), fill(v, 3);
    auto const keys = bf::pool(k.view(), v.view(), bf::visible::interval{});
    bf::attend_options const last{.q_position = 2047};

    bf::backend::host const best{};
    if (!best.available()) {
        std::puts("no kernels of this program run on this CPU: link those of baseline too");
        return 1;
    }
    auto const step = bf::make_problem(best, q.view(), out.view(), last, keys);
    std::printf("%s\n%s\n\n", best.name().c_str(), explain(best, step.problem()).c_str());

    bf::attend(bf::backend::scalar{}, q.view(), wanted.view(), last, keys);
    for (auto const level :
         {isa_level::baseline, isa_level::x86_v3, isa_level::x86_v4, isa_level::x86_zen4, isa_level::x86_amx}) {
        bf::backend::host const cpu{.at_most = level};
        if (!cpu.available() || cpu.level() != level) continue; // not this CPU's, or not linked
        bf::attend(cpu, q.view(), out.view(), last, keys);
        float worst = 0.0F;
        for (bf::index_t head = 0; head < 8; ++head)
            for (std::size_t d = 0; d < 64; ++d) {
                float const difference = std::fabs(out.view().row(head, 0)[d] - wanted.view().row(head, 0)[d]);
                // Units that multiply in bf16 round queries and weights. NaN is no number below 1e-3.
                if (!(difference < 1e-3F)) {
                    std::printf("%s: wrong by %.1e\n", cpu.name().c_str(), static_cast<double>(difference));
                    return 1;
                }
                worst = std::max(worst, difference);
            }
        std::printf("%-28s largest difference %.1e\n", cpu.name().c_str(), static_cast<double>(worst));
    }
}
