// SPDX-License-Identifier: MIT
// docs/cache.md
#include <butterfly/butterfly.hpp>
#include <butterfly/cache/accounting.hpp>

#include <cstdio>
#include <vector>

namespace bf = butterfly;

int main() {
    bf::backend::simd<> const cpu;
    bf::cache_config const config{.kv_heads     = 2,
                                  .head_dim     = 64,
                                  .block_size   = 128,
                                  .exact_window = 64,
                                  .exact_sinks  = 4,
                                  .max_tokens   = 4096,
                                  .max_append   = 512,
                                  .max_rollback = 8};

    // In the engine's own memory.
    using cache_type = bf::compressed_kv_cache<bf::raw_mix<bf::float16>>;
    std::vector<std::byte> memory(static_cast<std::size_t>(cache_type::required_bytes(config)));
    cache_type cache(config, std::span(memory));

    bf::topology::stage_schedule const stages({.attention_layers = 6, .blocks = cache.max_blocks()});
    bf::topology::row const routed{bf::topology::causal_shift{stages[2]}, bf::topology::window{.predecessors = 1}};

    bf::heads_buffer<float> q({8, 512, 64}), k({2, 512, 64}), v({2, 512, 64}), out({8, 512, 64});
    bf::append(cpu, cache, k.view(), v.view());           // prefill: 512 tokens
    bf::attend(cpu, q.view(), cache, routed, out.view()); // their 512 queries

    auto const token = [](auto& x) { return x.view().slice(0, 1); };
    bf::append(cpu, cache, token(k), token(v)); // decode: the same with one
    bf::attend(cpu, token(q), cache, routed, token(out));

    // A whole model, nothing stored: bytes after a prompt of 32k tokens.
    bf::accounting::report const bytes =
        bf::accounting::account({.attention_layers = 6, .kv_heads = 2, .head_dim = 256}, {}, {.prompt = 32768});
    if (bytes.retained >= bytes.dense || bytes.allocated < bytes.retained) return 1;

    cache.trim(512);                           // a draft token was wrong
    cache_type const branch = cache.copy(cpu); // a second answer to the same prompt

    bf::save(cpu, cache, "prompt.kv");                                   // a file, replaced as a whole or not at all
    bf::saved_cache const says = bf::describe_saved("prompt.kv");        // sizes, codecs, counters
    if (says.kind != bf::saved_kind::compressed) return 1;               // or of a mixed_kv_cache: says.mixed_config()
    bf::compressed_kv_cache<bf::raw_mix<bf::float16>> next(says.config); // the caller decides what is allocated
    bf::load(cpu, "prompt.kv", next);                                    // goes on where `cache` was
    std::remove("prompt.kv");
    if (next.tokens() != 512) return 1;

    std::vector<std::byte> message;
    bf::save(cpu, cache, [&](std::span<std::byte const> piece) { // to a socket, in pieces of up to 256 KiB
        message.insert(message.end(), piece.begin(), piece.end());
    });
    bf::load(cpu, message, next); // from memory of any alignment
    if (static_cast<bf::index_t>(message.size()) != bf::saved_bytes(cache)) return 1;

    return cache.tokens() == 512 && branch.summaries() == 4 && cache.allocated_bytes() >= cache.retained_bytes() ? 0
                                                                                                                 : 1;
}
