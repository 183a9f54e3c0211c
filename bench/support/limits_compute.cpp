// SPDX-License-Identifier: MIT
#include "limits_compute.hpp"

#include "limits_tiles.hpp"

#include <array>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bench {
namespace {

// Independent sums: latency times issue width of the CPUs met is 12 at most, and as many again hide what the loop costs
// where there are 32 registers.
constexpr int chains = 12, wide_chains = 24;
// sum = sum * decay + input stays near input / (1 - decay); a chain starts at its number.
constexpr float decay = 0.75F, input = 0.375F;

// The widest vectors that this file is compiled for.
#if defined(__AVX512F__)
constexpr int lanes_of_build = 16, chains_of_build = wide_chains;
#elif defined(__AVX__)
constexpr int lanes_of_build = 8, chains_of_build = chains;
#elif defined(__aarch64__)
constexpr int lanes_of_build = 4, chains_of_build = wide_chains;
#else
constexpr int lanes_of_build = 4, chains_of_build = chains;
#endif

float fma_build(std::int64_t turns) {
    using vector = float __attribute__((vector_size(lanes_of_build * sizeof(float))));
    std::array<vector, chains_of_build> sums;
#pragma GCC unroll 24
    for (int i = 0; i < chains_of_build; ++i) sums[i] = vector{} + static_cast<float>(i);
    for (std::int64_t t = 0; t < turns; ++t)
#pragma GCC unroll 24
        for (vector& sum : sums) sum = sum * decay + input;
    float all = 0;
    for (vector const& sum : sums) all += sum[0];
    return all;
}

#if defined(__x86_64__)

[[gnu::target("avx2,fma")]] float fma_avx2(std::int64_t turns) {
    __m256 const a = _mm256_set1_ps(decay), b = _mm256_set1_ps(input);
    __m256 sums[chains];
    for (int i = 0; i < chains; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
    for (std::int64_t t = 0; t < turns; ++t)
        for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, a, b);
    float all = 0;
    for (__m256 const& sum : sums) all += _mm256_cvtss_f32(sum);
    return all;
}

[[gnu::target("avx512f")]] float fma_avx512(std::int64_t turns) {
    __m512 const a = _mm512_set1_ps(decay), b = _mm512_set1_ps(input);
    __m512 sums[wide_chains];
#pragma GCC unroll 24
    for (int i = 0; i < wide_chains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
    for (std::int64_t t = 0; t < turns; ++t)
#pragma GCC unroll 24
        for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, a, b);
    float all = 0;
    for (__m512 const& sum : sums) all += _mm512_cvtss_f32(sum);
    return all;
}

[[gnu::target("avx512f,avx512fp16,avx512bw,avx512vl")]] float fma_fp16_avx512(std::int64_t turns) {
    __m512i const a = _mm512_set1_epi16(0x3a00), b = _mm512_set1_epi16(0x3600); // 0.75, 0.375
    __m512i sums[wide_chains];
#pragma GCC unroll 24
    for (__m512i& sum : sums) sum = b;
    for (std::int64_t t = 0; t < turns; ++t)
#pragma GCC unroll 24
        for (__m512i& sum : sums) // a GCC 12 intrinsic needs _Float16, which C++ has only with SSE2 flags
            asm("vfmadd213ph %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    float all = 0;
    for (__m512i const& sum : sums) all += static_cast<float>(_mm_cvtsi128_si32(_mm512_castsi512_si128(sum)) & 0x3ff);
    return all;
}

[[gnu::target("avx512f,avx512bf16")]] float dot_bf16_avx512(std::int64_t turns) {
    __m512 sums[wide_chains];
    __m512i const a = _mm512_set1_epi32(0x3f003e80), b = _mm512_set1_epi32(static_cast<int>(0xbe803f00U)); // +-1/8
#pragma GCC unroll 24
    for (int i = 0; i < wide_chains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
    for (std::int64_t t = 0; t < turns; ++t)
#pragma GCC unroll 24
        for (__m512& sum : sums)
            sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh const&>(a), reinterpret_cast<__m512bh const&>(b));
    float all = 0;
    for (__m512 const& sum : sums) all += _mm512_cvtss_f32(sum);
    return all;
}

[[gnu::target("avx512f,avx512vnni")]] float dot_int8_avx512(std::int64_t turns) {
    __m512i sums[wide_chains];
    __m512i const a = _mm512_set1_epi32(0x05030201), b = _mm512_set1_epi32(0x01fe0103); // wraps around, as integers may
#pragma GCC unroll 24
    for (int i = 0; i < wide_chains; ++i) sums[i] = _mm512_set1_epi32(i);
    for (std::int64_t t = 0; t < turns; ++t)
#pragma GCC unroll 24
        for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
    float all = 0;
    for (__m512i const& sum : sums) all += static_cast<float>(_mm_cvtsi128_si32(_mm512_castsi512_si128(sum)));
    return all;
}

// 2^x for x <= 0 as softmax asks for it, full float accuracy: x = n + f with |f| <= 1/2, a polynomial of degree 5 in f.
constexpr float exp2_terms[] = {1.33335581e-3F, 9.61812911e-3F, 5.55041087e-2F, 2.40226507e-1F, 6.93147181e-1F};
constexpr int exp2_elements  = 1024;

std::array<float, exp2_elements> const& exponents() {
    static std::array<float, exp2_elements> const values = [] {
        std::array<float, exp2_elements> x{};
        for (int i = 0; i < exp2_elements; ++i) x[i] = -20.0F * static_cast<float>(i * 389 % 1021) / 1021.0F;
        return x;
    }();
    return values;
}

[[gnu::target("avx2,fma")]] float exp2_avx2(std::int64_t turns) {
    float const* const from = exponents().data();
    __m256 sums[4]          = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (std::int64_t t = 0; t < turns; ++t)
        for (int i = 0; i < exp2_elements; i += 32)
            for (int s = 0; s < 4; ++s) {
                __m256 const x = _mm256_loadu_ps(from + i + s * 8);
                __m256 const n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
                __m256 const f = _mm256_sub_ps(x, n);
                __m256 y       = _mm256_set1_ps(exp2_terms[0]);
                for (int k = 1; k < 5; ++k) y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(exp2_terms[k]));
                y                = _mm256_fmadd_ps(y, f, _mm256_set1_ps(1.0F));
                __m256i const up = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
                sums[s] = _mm256_add_ps(sums[s], _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), up)));
            }
    return _mm256_cvtss_f32(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
}

[[gnu::target("avx512f")]] float exp2_avx512(std::int64_t turns) {
    float const* const from = exponents().data();
    __m512 sums[4]          = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (std::int64_t t = 0; t < turns; ++t)
        for (int i = 0; i < exp2_elements; i += 64)
            for (int s = 0; s < 4; ++s) {
                __m512 const x = _mm512_loadu_ps(from + i + s * 16);
                __m512 const n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
                __m512 const f = _mm512_sub_ps(x, n);
                __m512 y       = _mm512_set1_ps(exp2_terms[0]);
                for (int k = 1; k < 5; ++k) y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(exp2_terms[k]));
                y       = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0F));
                sums[s] = _mm512_add_ps(sums[s], _mm512_scalef_ps(y, n));
            }
    return _mm512_cvtss_f32(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

#endif

} // namespace

std::vector<compute_unit> compute_units([[maybe_unused]] cpu_features const& cpu) {
    std::vector<compute_unit> all{
        {"fma_f32_build", "GFLOP/s", true, 2.0 * chains_of_build * lanes_of_build, fma_build}};
#if defined(__x86_64__)
    all.push_back({"fma_f32_avx2", "GFLOP/s", cpu.avx2, 2.0 * chains * 8, fma_avx2});
    all.push_back({"fma_f32_avx512", "GFLOP/s", cpu.avx512, 2.0 * wide_chains * 16, fma_avx512});
    all.push_back({"fma_f16_avx512", "GFLOP/s", cpu.avx512_fp16, 2.0 * wide_chains * 32, fma_fp16_avx512});
    all.push_back({"dot_bf16_avx512", "GFLOP/s", cpu.avx512_bf16, 2.0 * wide_chains * 32, dot_bf16_avx512});
    all.push_back({"dot_int8_avx512", "GOP/s", cpu.avx512_vnni, 2.0 * wide_chains * 64, dot_int8_avx512});
    all.push_back({"exp2_f32_avx2", "G elements/s", cpu.avx2, exp2_elements, exp2_avx2});
    all.push_back({"exp2_f32_avx512", "G elements/s", cpu.avx512, exp2_elements, exp2_avx512});
    for (compute_unit& unit : tile_units(cpu)) all.push_back(std::move(unit));
#endif
    return all;
}

} // namespace bench
