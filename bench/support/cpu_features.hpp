// SPDX-License-Identifier: MIT
#pragma once

// What this CPU has, in words, and the sizes of its caches.

#include <butterfly/backend/simd/cpu.hpp>

#include <cstddef>
#include <string>

namespace bench {

using cpu_features = butterfly::backend::cpu::features;

/// "avx2 avx512 ..."; "" where none of them is there.
[[nodiscard]] std::string names_of(cpu_features const& cpu);

/// Bytes of a cache; the fallback where the system does not say.
struct cache_sizes {
    std::size_t l1 = std::size_t{32} << 10;
    std::size_t l2 = std::size_t{1} << 20;
    std::size_t l3 = std::size_t{32} << 20;
};

[[nodiscard]] cache_sizes detect_cache_sizes();

} // namespace bench
