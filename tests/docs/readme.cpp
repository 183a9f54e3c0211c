// SPDX-License-Identifier: MIT
#include <butterfly/butterfly.hpp>

#include <cstdio>

namespace bf = butterfly;

int main() {
    bf::backend::simd<> const cpu; // what this file's flags allow
    bf::compressed_kv_cache<bf::raw_mix<bf::bfloat16>> cache({.kv_heads = 2, .head_dim = 64, .max_tokens = 32768});

    // One of six attention layers, and the blocks its queries are routed to: the one before, and log-step partners.
    bf::topology::stage_schedule const stages({.attention_layers = 6, .blocks = cache.max_blocks()});
    bf::topology::row const routed{bf::topology::causal_shift{stages[0]}, bf::topology::window{.predecessors = 1}};

    bf::heads_buffer<float> q({8, 512, 64}), k({2, 512, 64}), v({2, 512, 64}), out({8, 512, 64});
    while (cache.tokens() < 32768) { // a chunk of prefill here, a token of decode: the same two calls
        // ... the engine writes q, k and v of the next 512 tokens ...
        bf::append(cpu, cache, k.view(), v.view());
        bf::attend(cpu, q.view(), cache, routed, out.view());
    }
    std::printf("%td tokens in %td bytes\n", cache.tokens(), cache.retained_bytes());
}
