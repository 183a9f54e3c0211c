// SPDX-License-Identifier: MIT

// A cache with a memory budget: the first and the latest tokens in bfloat16, older keys at 8 bits and values at 4.
// Beside it a cache with all of them in bfloat16: bytes, and what packing costs the output. Keys and values are N(0,
// 1), the worst of inputs: attention is broad, so the window covers little of it. docs/kv-quantization.md has real
// ones.
//
//   g++ -std=c++20 -O3 -march=native -fopenmp -I include examples/04_quantized_cache.cpp

#include <butterfly/butterfly.hpp>

#include <cmath>
#include <cstdio>
#include <random>

namespace bf = butterfly;

int main() {
    bf::backend::simd<> const cpu;
    constexpr bf::index_t tokens = 4096, heads = 8, kv_heads = 2, head_dim = 128;
    bf::mixed_cache_config const config{
        .kv_heads = kv_heads, .head_dim = head_dim, .exact_window = 128, .exact_sinks = 4, .max_tokens = tokens};

    using mix = bf::packed_mix<bf::quant::int8, bf::quant::lloyd_max<16>>;
    std::printf("%td tokens will stand in %td bytes\n", tokens, bf::mixed_kv_cache<mix>::allocated_bytes(config));
    bf::mixed_kv_cache<mix> cache(config);
    bf::mixed_kv_cache<bf::packed_mix<bf::quant::raw<bf::bfloat16>>> exact(config); // the same, packed into bfloat16

    std::mt19937 draws(1);
    std::normal_distribution<float> normal;
    auto const drawn = [&](bf::index_t h, bf::index_t n) {
        bf::heads_buffer<float> buffer({h, n, head_dim});
        for (float& x : buffer.values()) x = normal(draws);
        return buffer;
    };
    while (cache.tokens() < tokens) { // prefill by chunks, then one token at a time
        bf::index_t const n = cache.tokens() < 3584 ? 512 : 1;
        auto const k = drawn(kv_heads, n), v = drawn(kv_heads, n);
        bf::append(cpu, cache, k.view(), v.view());
        bf::append(cpu, exact, k.view(), v.view());
    }

    auto const q = drawn(heads, 1);
    bf::heads_buffer<float> got(q.shape()), wanted(q.shape());
    bf::attend(cpu, q.view(), cache, got.view());
    bf::attend(cpu, q.view(), exact, wanted.view());

    double off = 0, all = 0;
    for (std::size_t i = 0; i < got.values().size(); ++i) {
        double const x = wanted.values()[i];
        off += (got.values()[i] - x) * (got.values()[i] - x);
        all += x * x;
    }
    double const error = std::sqrt(off / all);
    std::printf("%td tokens, %td of them packed: %td bytes of them needed instead of %td, error of the output %.3f\n",
                cache.tokens(), cache.packed(), cache.retained_bytes(), exact.retained_bytes(), error);
    return error < 0.15 ? 0 : 1;
}
