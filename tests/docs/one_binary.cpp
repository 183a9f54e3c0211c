// SPDX-License-Identifier: MIT
#include <butterfly/backend/host.hpp>
#include <butterfly/butterfly.hpp>

#include <cstdio>

namespace bf = butterfly;

int main() {
    bf::heads_buffer<float> q({8, 1, 64}), k({2, 512, 64}), v({2, 512, 64}), out({8, 1, 64});
    bf::backend::host const cpu;                                               // the best this CPU runs
    bf::backend::host const modest{.at_most = bf::backend::isa_level::x86_v3}; // no AVX-512, no tiles
    bf::dense_sdpa(cpu, q.view(), k.view(), v.view(), out.view(), {.q_position = 511});
    std::printf("%s, at most %s\n", cpu.name().c_str(), modest.name().c_str());
    return cpu.available() && modest.level() <= cpu.level() ? 0 : 1;
}
