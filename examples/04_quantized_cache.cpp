// SPDX-License-Identifier: MIT

// A cache with a memory budget: the first and the latest tokens in bfloat16, older keys at 8 bits and values at 4.
#include <butterfly/butterfly.hpp>

#include <cmath>
#include <cstdio>
#include <random>

namespace bf = butterfly;

int main() {
    bf::backend::simd<> const cpu;
    constexpr bf::index_t tokens = 4096, heads = 8, kv_heads = 2, head_dim = 128;

    bf::heads_buffer<float> q({heads, 1, head_dim}), k({kv_heads, 512, head_dim}), v({kv_heads, 512, head_dim});
    bf::heads_buffer<float> got(q.shape()), wanted(q.shape());
    std::mt19937 draws(1);
    std::normal_distribution<float> normal;
    auto const fill = [&](auto& buffer) {
        for (float& x : buffer.values()) x = normal(draws);
    };

    // Sizes are known before anything is allocated.
    using mix = bf::packed_mix<bf::quant::int8, bf::quant::lloyd_max<16>>;
    bf::mixed_cache_config const config{
        .kv_heads = kv_heads, .head_dim = head_dim, .exact_window = 128, .exact_sinks = 4, .max_tokens = tokens};
    bf::mixed_kv_cache<mix> cache(config);
    bf::mixed_kv_cache<bf::packed_mix<bf::quant::raw<bf::bfloat16>>> exact(config); // the same, packed into bfloat16

    for (bf::index_t at = 0; at < tokens; at += 512) {
        fill(k);
        fill(v);
        bf::append(cpu, cache, k.view(), v.view());
        bf::append(cpu, exact, k.view(), v.view());
    }
    fill(q);
    bf::attend(cpu, q.view(), cache, got.view());
    bf::attend(cpu, q.view(), exact, wanted.view());

    double off = 0, all = 0;
    for (std::size_t i = 0; i < got.values().size(); ++i) {
        double const x = wanted.values()[i];
        off += (got.values()[i] - x) * (got.values()[i] - x);
        all += x * x;
    }
    std::printf("%td tokens, %td of them packed: %td bytes instead of %td, error of the output %.3f\n", cache.tokens(),
                cache.packed(), cache.retained_bytes(), exact.retained_bytes(), std::sqrt(off / all));
    return std::sqrt(off / all) < 0.15 ? 0 : 1;
}
