// SPDX-License-Identifier: MIT
#include "floors.hpp"

#include <butterfly/backend/simd/cpu.hpp>

#include "timing.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bench {
namespace {

using butterfly::index_t;

/// Sums the first words of the lines [first, end): one load for each line would do, eight are what a kernel issues.
using words = std::uint64_t __attribute__((vector_size(32), aligned(8), may_alias));

constexpr std::size_t line = 64;

words sum_line(std::byte const* at) noexcept {
    auto const* const w = reinterpret_cast<words const*>(at);
    return w[0] + w[1];
}

std::size_t read_part(std::byte const* from, std::size_t bytes, read_pattern pattern) noexcept {
    words sum[4] = {};
    if (pattern == read_pattern::streams) {
        std::size_t const quarter = bytes / 4 / line * line;
        for (std::size_t i = 0; i < quarter; i += line)
            for (std::size_t s = 0; s < 4; ++s) sum[s] += sum_line(from + s * quarter + i);
        from += 4 * quarter;
        bytes -= 4 * quarter;
    }
    bool const ahead = pattern == read_pattern::prefetched;
    std::size_t i    = 0;
    for (; i + 4 * line <= bytes; i += 4 * line)
        for (std::size_t s = 0; s < 4; ++s) {
            if (ahead) __builtin_prefetch(from + i + s * line + 4096, 0, 3);
            sum[s] += sum_line(from + i + s * line);
        }
    for (; i + line <= bytes; i += line) sum[0] += sum_line(from + i);
    words const all = sum[0] + sum[1] + sum[2] + sum[3];
    return all[0] + all[1] + all[2] + all[3];
}

// Twelve chains hide the latency of an operation; `sink` keeps them.
constexpr int chains   = 12;
constexpr index_t turn = 4096; // operations of a chain between two looks at the clock

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) float dot_512() noexcept {
    __m512 sum[chains];
    for (auto& s : sum) s = _mm512_setzero_ps();
    auto a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_set1_epi16(0x3f00); // 1, 1/2
    __asm__("" : "+v"(a), "+v"(b));
    for (index_t i = 0; i < turn; ++i)
        for (auto& s : sum) s = _mm512_dpbf16_ps(s, a, b);
    for (auto& s : sum) sum[0] = _mm512_add_ps(sum[0], s);
    return _mm512_cvtss_f32(sum[0]);
}

__attribute__((target("avx512f"))) float fma_512() noexcept {
    __m512 sum[chains];
    for (auto& s : sum) s = _mm512_setzero_ps();
    __m512 a = _mm512_set1_ps(0.5F), b = _mm512_set1_ps(0.25F);
    __asm__("" : "+v"(a), "+v"(b));
    for (index_t i = 0; i < turn; ++i)
        for (auto& s : sum) s = _mm512_fmadd_ps(a, b, s);
    for (auto& s : sum) sum[0] = _mm512_add_ps(sum[0], s);
    return _mm512_cvtss_f32(sum[0]);
}

__attribute__((target("avx2,fma"))) float fma_256() noexcept {
    __m256 sum[chains];
    for (auto& s : sum) s = _mm256_setzero_ps();
    __m256 a = _mm256_set1_ps(0.5F), b = _mm256_set1_ps(0.25F);
    __asm__("" : "+x"(a), "+x"(b));
    for (index_t i = 0; i < turn; ++i)
        for (auto& s : sum) s = _mm256_fmadd_ps(a, b, s);
    for (auto& s : sum) sum[0] = _mm256_add_ps(sum[0], s);
    return _mm256_cvtss_f32(sum[0]);
}
#endif

/// 128 bits by the compiler, for everything else.
float fma_128() noexcept {
    using four = float __attribute__((vector_size(16)));
    four sum[chains]{};
    four a = {0.5F, 0.5F, 0.5F, 0.5F}, b = a;
    for (index_t i = 0; i < turn; ++i)
        for (auto& s : sum) {
            __asm__("" : "+m"(s));
            s += a * b;
        }
    for (auto& s : sum) sum[0] += s;
    return sum[0][0];
}

struct unit_code {
    float (*run)() noexcept = nullptr;
    double flops            = 0; // of one call
};

unit_code code_of(product_unit unit) noexcept {
    constexpr double calls = 2.0 * chains * static_cast<double>(turn);
#if defined(__x86_64__)
    auto const& cpu = butterfly::backend::cpu::found();
    if (unit == product_unit::dot) return cpu.avx512_bf16 ? unit_code{&dot_512, calls * 32} : unit_code{};
    if (cpu.avx512) return {&fma_512, calls * 16};
    if (cpu.avx2) return {&fma_256, calls * 8};
#endif
    return unit == product_unit::dot ? unit_code{} : unit_code{&fma_128, calls * 4};
}

} // namespace

char const* name_of(read_pattern p) noexcept {
    return p == read_pattern::stream ? "stream" : p == read_pattern::prefetched ? "prefetched" : "streams";
}

std::size_t read_all(butterfly::executor const& threads, std::span<std::byte const> memory, read_pattern pattern) {
    std::atomic<std::size_t> sum{0};
    std::size_t const parts = static_cast<std::size_t>(threads.threads());
    std::size_t const each  = memory.size() / parts / line * line;
    threads.each(static_cast<index_t>(parts), [&](index_t part, int) noexcept {
        auto const at   = static_cast<std::size_t>(part) * each;
        bool const last = static_cast<std::size_t>(part) + 1 == parts;
        sum += read_part(memory.data() + at, last ? memory.size() - at : each, pattern);
    });
    return sum;
}

double product_rate(butterfly::executor const& threads, product_unit unit, double seconds) {
    unit_code const code = code_of(unit);
    if (code.run == nullptr) return 0;
    double best = 0;
    std::atomic<float> sink{0};
    stopwatch const all;
    do {
        stopwatch const watch;
        threads.each(threads.threads(), [&](index_t, int) noexcept {
            for (int i = 0; i < 64; ++i) sink = code.run();
        });
        best = std::max(best, 64 * code.flops * threads.threads() / watch.seconds());
    } while (all.seconds() < seconds);
    return best;
}

} // namespace bench
