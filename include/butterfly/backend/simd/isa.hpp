// SPDX-License-Identifier: MIT
#pragma once

// Instruction sets as tags: what the kernels of one translation unit may use.
//
// A tag answers: name(), supported() (this translation unit's flags allow it), available() (this CPU has it), and how a
// register block is shaped. The shapes leave room for the operands: accumulators + one operand row + one broadcast.
//
//              lanes  registers  products: rows x values          stream: accumulators
//   baseline     4       16      2 vectors x 4 =  8 acc            8
//   neon         4       32      3 vectors x 8 = 24 acc           16
//   x86_v3       8       16      3 vectors x 4 = 12 acc            8
//   x86_v4      16       32      3 vectors x 8 = 24 acc           16

#include <butterfly/backend/simd/cpu.hpp>

#if defined(__CUDACC__)       // host code that nvcc reads on its way to the host compiler
#pragma nv_diag_suppress 1675 // it knows no #pragma GCC unroll
#endif

// GCC 12's AVX-512 header reads a variable it leaves undefined on purpose, and warns about itself wherever it is
// inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <xsimd/xsimd.hpp>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

// What is compiled differently by the flags below, tags and kernels, stands in an inline namespace named after them, so
// that machines that differ in them have kernels of different names in one program. That covers neither
//
//   - functions of std::, core/, sdpa/ and backend/host: they have one name in all objects, of whose copies a linker
//     keeps any one. Objects compiled for different machines belong in one program only once these copies are local to
//     each object, as butterfly_add_kernels makes them (cmake/butterflyKernels.cmake);
//   - flags between two names: AVX-512 F without BW, DQ or VL, AVX2 without FMA, AVX with or without FMA. They count as
//     the lower one, and objects that differ only so must not meet in a program.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) &&                 \
    defined(__FMA__) && defined(__F16C__)
#define BUTTERFLY_ISA_NAMESPACE flags_x86_v4
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define BUTTERFLY_ISA_NAMESPACE flags_x86_v3
#elif defined(__aarch64__)
#define BUTTERFLY_ISA_NAMESPACE flags_neon
#elif defined(__AVX__)
#define BUTTERFLY_ISA_NAMESPACE flags_baseline_avx
#else
#define BUTTERFLY_ISA_NAMESPACE flags_baseline
#endif

namespace butterfly::isa {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// What every machine of the architecture has: SSE2 on x86-64. Correct, and slow.
struct baseline {
#if defined(__aarch64__)
    using arch = xsimd::neon64;
#else
    using arch = xsimd::sse2;
#endif
    static constexpr int strip_vectors = 2, block_height = 4, stream_keys = 2;

    [[nodiscard]] static constexpr char const* name() noexcept {
        return "baseline";
    }
    [[nodiscard]] static constexpr bool supported() noexcept {
        return true;
    }
    [[nodiscard]] static bool available() noexcept {
        return true;
    }
};

#if defined(__aarch64__)
/// AArch64 with Advanced SIMD.
struct neon : baseline {
    static constexpr int strip_vectors = 3, block_height = 8, stream_keys = 4;

    [[nodiscard]] static constexpr char const* name() noexcept { return "neon"; }
};
using current = neon;
#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
/// AVX2, FMA and F16C: x86-64-v3.
struct x86_v3 {
    using arch                         = xsimd::avx2;
    static constexpr int strip_vectors = 3, block_height = 4, stream_keys = 2;

    [[nodiscard]] static constexpr char const* name() noexcept { return "x86_v3"; }
    [[nodiscard]] static constexpr bool supported() noexcept { return true; }
    [[nodiscard]] static bool available() noexcept { return backend::cpu::found().avx2; }
};
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__) &&                 \
    defined(__FMA__) && defined(__F16C__)
/// AVX-512 F, BW, DQ and VL: x86-64-v4.
struct x86_v4 {
    using arch                         = xsimd::avx512bw;
    static constexpr int strip_vectors = 3, block_height = 8, stream_keys = 4;

    [[nodiscard]] static constexpr char const* name() noexcept { return "x86_v4"; }
    [[nodiscard]] static constexpr bool supported() noexcept { return true; }
    [[nodiscard]] static bool available() noexcept { return backend::cpu::found().avx512; }
};
using current = x86_v4;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
using current = x86_v3;
#elif !defined(__aarch64__)
using current = baseline;
#endif

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::isa
