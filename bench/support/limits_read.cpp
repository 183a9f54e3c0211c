// SPDX-License-Identifier: MIT
#include "limits_read.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bench {
namespace {

constexpr std::size_t step = 512;

/// What a pattern fetches before a step is read.
[[gnu::always_inline]] inline void prefetch(char const* from, read_pattern const& pattern) {
    auto const at = reinterpret_cast<std::uintptr_t>(from); // may lead past the buffer
    if (pattern.ahead > 0)
        for (std::size_t line = 0; line < step; line += 64)
            __builtin_prefetch(reinterpret_cast<char const*>(at + pattern.ahead + line), 0, 3);
    if (pattern.lead > 0 && at % 4096 < step)
        for (std::size_t line = 0; line < 192; line += 64)
            __builtin_prefetch(reinterpret_cast<char const*>(at + pattern.lead + line), 0, 3);
}

std::uint64_t read_build(char const* data, std::size_t bytes, read_pattern const& pattern) {
    using vector             = std::uint64_t __attribute__((vector_size(16)));
    std::size_t const length = bytes / static_cast<std::size_t>(pattern.streams);
    vector sums[4]           = {};
    for (std::size_t at = 0; at < length; at += step)
        for (int s = 0; s < pattern.streams; ++s) {
            char const* const from = data + static_cast<std::size_t>(s) * length + at;
            prefetch(from, pattern);
            auto const* const x = reinterpret_cast<vector const*>(from);
            for (std::size_t i = 0; i < step / 16; ++i) sums[i % 4] += x[i];
        }
    vector const all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return all[0] + all[1];
}

#if defined(__x86_64__)

[[gnu::target("avx2")]] std::uint64_t read_avx2(char const* data, std::size_t bytes, read_pattern const& pattern) {
    std::size_t const length = bytes / static_cast<std::size_t>(pattern.streams);
    __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (std::size_t at = 0; at < length; at += step)
        for (int s = 0; s < pattern.streams; ++s) {
            char const* const from = data + static_cast<std::size_t>(s) * length + at;
            prefetch(from, pattern);
            auto const* const x = reinterpret_cast<__m256i const*>(from);
            for (std::size_t i = 0; i < step / 32; ++i)
                sums[i % 4] = _mm256_add_epi64(sums[i % 4], _mm256_load_si256(x + i));
        }
    __m256i const all = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
    return static_cast<std::uint64_t>(_mm256_extract_epi64(all, 0) + _mm256_extract_epi64(all, 3));
}

[[gnu::target("avx512f")]] std::uint64_t read_avx512(char const* data, std::size_t bytes, read_pattern const& pattern) {
    std::size_t const length = bytes / static_cast<std::size_t>(pattern.streams);
    __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (std::size_t at = 0; at < length; at += step)
        for (int s = 0; s < pattern.streams; ++s) {
            char const* const from = data + static_cast<std::size_t>(s) * length + at;
            prefetch(from, pattern);
            for (std::size_t i = 0; i < step / 64; ++i)
                sums[i % 4] = _mm512_add_epi64(sums[i % 4], _mm512_load_si512(from + i * 64));
        }
    __m512i const all = _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3]));
    return static_cast<std::uint64_t>(_mm512_reduce_add_epi64(all));
}

#endif

} // namespace

std::vector<read_pattern> read_patterns() {
    return {{"one_stream", 1},
            {"one_stream_prefetched", 1, 4096},
            {"one_stream_page_heads", 1, 0, 32768},
            {"four_streams", 4},
            {"eight_streams", 8}};
}

read_function best_reader([[maybe_unused]] cpu_features const& cpu) {
#if defined(__x86_64__)
    if (cpu.avx512) return read_avx512;
    if (cpu.avx2) return read_avx2;
#endif
    return read_build;
}

} // namespace bench
