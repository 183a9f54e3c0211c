// SPDX-License-Identifier: MIT

// A cache whose memory hardly grows: the first 4 and the latest tokens as they are, the rest as one mean per block of
// 64. Prefill in chunks of 512, then one token at a time: the same two calls, and how the tokens were cut into calls
// does not change the output.

#include <butterfly/butterfly.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace bf = butterfly;

/// Smooth tensors: token t turns slowly, so blocks have means that mean something.
static void fill(bf::heads_buffer<float>& t, float phase) {
    auto const [heads, tokens, head_dim] = t.shape();
    for (bf::index_t i = 0; i < heads * tokens * head_dim; ++i) {
        auto const token = static_cast<float>(i / head_dim % tokens), d = static_cast<float>(i % head_dim);
        t.values()[static_cast<std::size_t>(i)] = std::sin(phase + 0.01F * token * (1.0F + d) + d);
    }
}

/// Appends and attends `tokens` tokens in steps of `step`, then one at a time.
static bf::heads_buffer<float> run(bf::index_t step, bool print) {
    constexpr bf::index_t tokens = 2048 + 16;
    bf::heads_buffer<float> q({4, tokens, 64}), k({2, tokens, 64}), v({2, tokens, 64}), out({4, tokens, 64});
    fill(q, 0.0F);
    fill(k, 0.5F);
    fill(v, 1.0F);

    bf::backend::simd<> const cpu{};
    bf::compressed_kv_cache<> cache{{.kv_heads     = 2,
                                     .head_dim     = 64,
                                     .block_size   = 64,
                                     .exact_window = 64,
                                     .exact_sinks  = 4,
                                     .max_tokens   = 4096,
                                     .max_append   = 1024}};
    // This layer's row: the blocks 1 and 8 before, by log-steps, and the block before.
    bf::topology::row const row(bf::topology::causal_shift{{0, 3}}, bf::topology::window{.predecessors = 1});

    for (bf::index_t at = 0; at < tokens;) {
        bf::index_t const n = at < 2048 ? std::min(step, 2048 - at) : 1;
        bf::append(cpu, cache, k.view().slice(at, n), v.view().slice(at, n));
        bf::attend(cpu, q.view().slice(at, n), cache, row, out.view().slice(at, n));
        at += n;
        if (print && (at % 512 == 0 || at == tokens))
            std::printf("%5d tokens: %3d summaries, exact from %4d on, %7.1f KB retained, %7.1f KB if dense\n",
                        static_cast<int>(at), static_cast<int>(cache.summaries()), static_cast<int>(cache.tail_start()),
                        static_cast<double>(cache.retained_bytes()) / 1000,
                        static_cast<double>(at * 2 * 2 * 64 * 4) / 1000);
    }
    return out;
}

int main() {
    auto const a = run(512, true), b = run(100, false);
    bool const same = std::equal(a.values().begin(), a.values().end(), b.values().begin());
    std::printf("chunks of 512 and of 100: outputs %s\n", same ? "equal, to the bit" : "differ");
    return same ? 0 : 1;
}
