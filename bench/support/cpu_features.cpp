// SPDX-License-Identifier: MIT
#include "cpu_features.hpp"

#include <fstream>
#include <utility>

namespace bench {

std::string names_of(cpu_features const& cpu) {
    std::string text;
    for (auto const& [name, there] : {std::pair{"avx2", cpu.avx2},
                                      {"avx512", cpu.avx512},
                                      {"avx512_fp16", cpu.avx512_fp16},
                                      {"avx512_bf16", cpu.avx512_bf16},
                                      {"avx512_vnni", cpu.avx512_vnni},
                                      {"amx_bf16", cpu.amx_bf16},
                                      {"amx_int8", cpu.amx_int8}})
        if (there) text += (text.empty() ? "" : " ") + std::string(name);
    return text;
}

cache_sizes detect_cache_sizes() {
    cache_sizes sizes;
    // Not sysconf: inside a virtual machine it was seen to give the L3 of the whole socket.
    for (int index = 0; index < 8; ++index) {
        std::string const folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
        int level                = 0;
        std::string type;
        std::size_t kib = 0;
        std::ifstream(folder + "level") >> level;
        std::ifstream(folder + "type") >> type;
        std::ifstream(folder + "size") >> kib; // "48K"
        if (kib == 0 || type == "Instruction") continue;
        if (level == 1) sizes.l1 = kib << 10;
        if (level == 2) sizes.l2 = kib << 10;
        if (level == 3) sizes.l3 = kib << 10;
    }
    return sizes;
}

} // namespace bench
