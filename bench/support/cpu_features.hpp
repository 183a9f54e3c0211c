// SPDX-License-Identifier: MIT
#pragma once

// What this CPU has and this system lets a program use, asked of the machine and not of the compiler: cpuid, the
// registers the system saves (XCR0), and for tiles a permission that is asked for once per process.

#include <cstddef>
#include <string>

namespace bench {

struct cpu_features {
    bool avx2_fma    = false; // AVX2 and FMA
    bool avx512f     = false;
    bool avx512_fp16 = false;
    bool avx512_bf16 = false;
    bool avx512_vnni = false;
    bool amx_bf16    = false; // tiles with bf16 products
    bool amx_int8    = false;

    /// "avx2 avx512f ..."; "" where none of them is there.
    [[nodiscard]] std::string names() const;
};

/// All false on other architectures.
[[nodiscard]] cpu_features detect_cpu_features();

/// Bytes of a cache; the fallback where the system does not say.
struct cache_sizes {
    std::size_t l1 = std::size_t{32} << 10;
    std::size_t l2 = std::size_t{1} << 20;
    std::size_t l3 = std::size_t{32} << 20;
};

[[nodiscard]] cache_sizes detect_cache_sizes();

} // namespace bench
