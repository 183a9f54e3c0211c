// SPDX-License-Identifier: MIT
// docs/cache.md, context shift
#include <butterfly/butterfly.hpp>

#include <vector>

namespace bf = butterfly;

int main() {
    bf::backend::simd<> const cpu;
    bf::heads_buffer<float> q({8, 512, 64}), k({2, 512, 64}), v({2, 512, 64}), out({8, 512, 64});
    bf::mixed_kv_cache<bf::packed_mix<bf::quant::lloyd_max<16>>> cache(
        {.kv_heads = 2, .head_dim = 64, .max_tokens = 1024, .max_append = 512});
    for (int i = 0; i < 2; ++i) bf::append(cpu, cache, k.view(), v.view());
    auto const token = [](auto& x) { return x.view().slice(0, 1); };

    std::vector<double> const frequencies = bf::rope_frequencies(10000.0, 64);
    bf::rope const positions{.frequencies = frequencies, .pairs = bf::rope_pairs::halves};

    if (cache.tokens() == 1024) // it is full
        bf::shift(cpu, cache, bf::droppable(cache) / 2 / 64 * 64, {.rope = positions, .requantize = true});
    bf::append(cpu, cache, token(k), token(v)); // its key stands at position cache.tokens()
    bf::attend(cpu, token(q), cache, token(out));

    return cache.tokens() == 1024 - 128 + 1 ? 0 : 1;
}
