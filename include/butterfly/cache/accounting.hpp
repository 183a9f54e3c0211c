// SPDX-License-Identifier: MIT
#pragma once

// Bytes of the key-value caches of a whole model at any length, by driving the counters of a cache: nothing is stored.
//
//   dense     layers * 2 * kv_heads * head_dim * element bytes * T
//   stepped   the same with the capacity of a buffer that grows in steps of 256, as the published tables count it
//   retained  layers * what a compressed cache needs to go on decoding
//   constant  state of the layers that do not attend: the published tables add it to both sides
//
// Source: the byte tables of the published system (Butterfly, commit 51a3d97), reproduced by
// tests/cache/accounting_test.cpp.

#include <butterfly/cache/compressed_kv_cache.hpp>

namespace butterfly::accounting {

/// What a model keeps per sequence.
struct model {
    char const* name         = "";
    index_t attention_layers = 0;
    index_t kv_heads         = 0;
    index_t head_dim         = 0;
    index_t constant_bytes   = 0; // state of all other layers together, whatever the length
};

/// The two models of the published tables: 24 and 32 layers, every fourth of which attends, the others with a
/// convolution state and a recurrent state of 2-byte elements.
inline constexpr model published_0_8b{.name             = "0.8B",
                                      .attention_layers = 6,
                                      .kv_heads         = 2,
                                      .head_dim         = 256,
                                      .constant_bytes   = 18 * (3 * 6144 * 2 + 16 * 128 * 128 * 2)};
inline constexpr model published_4b{.name             = "4B",
                                    .attention_layers = 8,
                                    .kv_heads         = 4,
                                    .head_dim         = 256,
                                    .constant_bytes   = 24 * (3 * 8192 * 2 + 32 * 128 * 128 * 2)};

/// How a sequence arrives: appends of `step` tokens up to `prompt` (the last one takes what is left), then `decode`
/// tokens one at a time.
struct schedule {
    index_t prompt = 0;
    index_t step   = 384;
    index_t decode = 0;
};

/// Calls f(tokens) for every append of a schedule, in order.
template <class F>
void for_each_append(schedule const& s, F const& f) {
    if (s.prompt < 0 || s.step < 1 || s.decode < 0)
        detail::fail<shape_error>("accounting: prompt " + std::to_string(s.prompt) + ", step " +
                                  std::to_string(s.step) + ", decode " + std::to_string(s.decode));
    for (index_t at = 0; at < s.prompt; at += s.step) f(std::min(s.step, s.prompt - at));
    for (index_t i = 0; i < s.decode; ++i) f(index_t{1});
}

/// Tokens of a buffer that grows in steps of 256: it is cut to what it holds, unless that is a multiple of 256, and
/// then extended by enough whole steps for the append.
[[nodiscard]] inline index_t stepped_capacity(schedule const& s) {
    constexpr index_t grain = 256;
    index_t held = 0, capacity = 0;
    for_each_append(s, [&](index_t step) {
        if (held + step > capacity) capacity = (held % grain != 0 ? held : capacity) + detail::round_up(step, grain);
        held += step;
    });
    return capacity;
}

/// Bytes of one model at the end of a schedule. All but `constant` are sums over its attention layers.
struct report {
    cache_counters counters{}; // of each layer
    index_t dense     = 0;     // exact keys and values of all tokens
    index_t stepped   = 0;     // what a buffer growing in steps of 256 allocates for them
    index_t retained  = 0;     // what the compressed cache needs
    index_t allocated = 0;     // what it stands in
    index_t constant  = 0;     // of all other layers

    /// The columns of the published tables.
    [[nodiscard]] index_t published_stock() const noexcept { return stepped + constant; }
    [[nodiscard]] index_t published_compressed() const noexcept { return retained + constant; }
};

/// Bytes at the end of a schedule. `config` gives window, block size, sinks and rules; heads and dimensions come from
/// the model, max_tokens and max_append from the schedule where they are 0 or too small. `Exact` is the element of the
/// dense cache. Throws shape_error where sizes make no sense.
template <cache_mix Mix = raw_mix<bfloat16>, element Exact = bfloat16>
[[nodiscard]] report account(model const& m, cache_config config, schedule const& s, Mix const& mix = {}) {
    config.kv_heads   = m.kv_heads;
    config.head_dim   = m.head_dim;
    config.max_append = std::max(config.max_append, s.step);
    config.max_tokens = std::max<index_t>({config.max_tokens, s.prompt + s.decode, 1});

    report r{.counters = cache_counters(config), .constant = m.constant_bytes};
    for_each_append(s, [&](index_t step) { r.counters.append(step); });
    index_t const token = m.attention_layers * 2 * m.kv_heads * m.head_dim * static_cast<index_t>(sizeof(Exact));
    r.dense             = token * r.counters.tokens();
    r.stepped           = token * stepped_capacity(s);
    r.retained          = m.attention_layers * compressed_kv_cache<Mix>::retained_bytes(config, r.counters, mix);
    r.allocated         = m.attention_layers * compressed_kv_cache<Mix>::allocated_bytes(config, mix);
    return r;
}

} // namespace butterfly::accounting
