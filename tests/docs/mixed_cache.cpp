// SPDX-License-Identifier: MIT
// docs/cache.md, the mixed-precision cache
#include <butterfly/butterfly.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>

#include <vector>

namespace bf = butterfly;

int main() {
    bf::backend::simd<> const cpu;
    bf::heads_buffer<float> q({8, 512, 64}), k({2, 512, 64}), v({2, 512, 64}), out({8, 512, 64});

    using mix = bf::packed_mix<bf::quant::int8, bf::quant::lloyd_max<16>>; // 8 and 4 bits, the rest in bf16
    bf::mixed_kv_cache<mix> cache({.kv_heads     = 2,
                                   .head_dim     = 64,
                                   .block_size   = 64,
                                   .exact_window = 128,
                                   .exact_sinks  = 4,
                                   .max_tokens   = 4096,
                                   .max_append   = 512});
    bf::append(cpu, cache, k.view(), v.view());
    bf::attend(cpu, q.view(), cache, out.view()); // every token up to each query; there is no row

    auto const token = [](auto& x) { return x.view().slice(0, 1); };
    bf::append(cpu, cache, token(k), token(v)); // the tail lets go of what only the queries before it needed
    bf::attend(cpu, token(q), cache, token(out));

    struct float_tail {
        bf::quant::raw<float> tail{};
        bf::quant::lloyd_max<16> middle_k{};
        bf::quant::lloyd_max<8> middle_v{};
    };
    bf::mixed_kv_cache<float_tail> const centred(
        {.kv_heads = 2, .head_dim = 64, .centre_keys = 128, .max_tokens = 4096});

    return cache.packed() == 384 && centred.packed() == 0 && cache.retained_bytes() < 2 * 513 * 2 * 64 * 2 ? 0 : 1;
}
