// SPDX-License-Identifier: MIT
#pragma once

// Bytes of the caches of a whole model, by what each cache says of itself: nothing is stored.
//
//   dense        layers * kv_heads * 2 * head_dim * element bytes * T
//   published    a row of keys of each head and one row of all values in the engine's formats, and a ring of the latest
//                keys in float32 (128, unless it is told otherwise); allocated: also keys of all tokens in float32,
//                which the engine has whatever the formats
//   library      what mixed_kv_cache and compressed_kv_cache retain and allocate while they decode at that length
//
// Published: quant.cpp (Apache-2.0, commit bd347db), and its table of memory at 32K for 28 layers, 8 heads of keys and
// values and head_dim 128. The table counts KiB per token times 32 000 over 10^6 and calls that GB.

#include <butterfly/cache/accounting.hpp>

#include "kv_mixes.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

namespace bench {

using bf::accounting::model;

/// The table of models. In a hybrid one (those of cache/accounting.hpp) every fourth layer attends; what the others
/// keep is left out.
[[nodiscard]] inline std::vector<model> const& cache_models() {
    static std::vector<model> const all{{"llama-3.2-3b", 28, 8, 128},
                                        {"llama-3.2-1b", 16, 8, 64},
                                        {"llama-3.1-8b", 32, 8, 128},
                                        {"hybrid-0.8b", bf::accounting::published_0_8b.attention_layers,
                                         bf::accounting::published_0_8b.kv_heads,
                                         bf::accounting::published_0_8b.head_dim},
                                        {"hybrid-4b", bf::accounting::published_4b.attention_layers,
                                         bf::accounting::published_4b.kv_heads, bf::accounting::published_4b.head_dim}};
    return all;
}

/// What one cache takes.
struct cache_line {
    std::string name;
    std::string group;            // dense, published, mixed, compressed
    std::string keys, values;     // formats of what a long context grows by
    double token    = 0;          // bytes of one more token of a long context
    double constant = 0;          // bytes that do not grow: windows, sinks, means
    std::vector<index_t> total{}; // bytes at each length
    std::vector<index_t> allocated{};
    std::string refusal{}; // why the model's rows do not fit; then nothing but names means anything
};

namespace detail {

/// Counters of a cache that took `tokens` tokens, the last block of them one at a time.
template <class Config>
[[nodiscard]] bf::cache_counters decoded_to(Config const& config, index_t tokens) {
    bf::cache_counters counters = [&] {
        if constexpr (std::is_same_v<Config, bf::mixed_cache_config>)
            return bf::cache_counters(bf::detail::counted_as(config));
        else
            return bf::cache_counters(config);
    }();
    index_t const decode = std::min(config.block_size, tokens);
    bf::accounting::for_each_append({.prompt = tokens - decode, .step = config.max_append, .decode = decode},
                                    [&](index_t step) { counters.append(step); });
    return counters;
}

/// Fills in what a cache of this library takes. config_of(tokens) is its configuration for so many.
template <class Cache, class ConfigOf>
void count_cache(cache_line& line,
                 model const& m,
                 std::vector<index_t> const& lengths,
                 typename Cache::mix_type const& mix,
                 ConfigOf const& config_of) try {
    auto const retained = [&](index_t tokens) {
        auto const config = config_of(tokens);
        return m.attention_layers * Cache::retained_bytes(config, decoded_to(config, tokens), mix);
    };
    for (index_t const tokens : lengths) {
        line.allocated.push_back(m.attention_layers * Cache::allocated_bytes(config_of(tokens), mix));
        line.total.push_back(retained(tokens));
    }
    index_t const block = config_of(1).block_size, far = 1024 * block;
    line.token    = static_cast<double>(retained(far + block) - retained(far)) / static_cast<double>(block);
    line.constant = static_cast<double>(retained(far)) - line.token * static_cast<double>(far);
} catch (bf::shape_error const& e) {
    line.refusal = e.what();
}

} // namespace detail

/// Exact keys and values of one type.
template <bf::element T>
[[nodiscard]] cache_line dense_line(model const& m, std::vector<index_t> const& lengths) {
    std::string const type = bf::name_of(bf::element_type_of<T>);
    cache_line line{"dense " + type, "dense", type, type};
    index_t const token = m.attention_layers * m.kv_heads * 2 * m.head_dim * static_cast<index_t>(sizeof(T));
    line.token          = static_cast<double>(token);
    for (index_t const tokens : lengths) line.total.push_back(token * tokens);
    line.allocated = line.total;
    return line;
}

/// Bytes of a token in formats of the published engine: keys by heads, values of all heads in one row.
template <class Keys, class Values>
[[nodiscard]] index_t published_token(model const& m, Keys const& keys, Values const& values) {
    return m.attention_layers * (m.kv_heads * keys.row_bytes(m.head_dim) + values.row_bytes(m.kv_heads * m.head_dim));
}

/// Bytes of `tokens` keys in float32.
[[nodiscard]] inline index_t published_window(model const& m, index_t tokens) {
    return m.attention_layers * m.kv_heads * m.head_dim * static_cast<index_t>(sizeof(float)) * tokens;
}

/// Every cache at every length. `window`: latest keys that the published engine keeps in float32.
[[nodiscard]] inline std::vector<cache_line>
cache_lines(model const& m, std::vector<index_t> const& lengths, index_t window) {
    std::vector<cache_line> lines{dense_line<float>(m, lengths), dense_line<bf::float16>(m, lengths)};
    for_each_published_pair([&](auto const& pair) {
        cache_line line{pair.name, "published", std::string(pair.keys.name()), std::string(pair.values.name())};
        index_t const token = published_token(m, pair.keys, pair.values), ring = published_window(m, window);
        line.token    = static_cast<double>(token);
        line.constant = static_cast<double>(ring);
        for (index_t const tokens : lengths) {
            line.total.push_back(token * tokens + ring);
            line.allocated.push_back(token * tokens + ring + published_window(m, tokens));
        }
        lines.push_back(std::move(line));
    });
    for_each_mixed_mix([&]<class Mix>(named_mix<Mix> const& is) {
        cache_line line{is.name, "mixed", std::string(is.mix.middle_k.name()), std::string(is.mix.middle_v.name())};
        detail::count_cache<bf::mixed_kv_cache<Mix>>(
            line, m, lengths, is.mix, [&](index_t tokens) { return is.sizes.of(m.kv_heads, m.head_dim, tokens); });
        lines.push_back(std::move(line));
    });
    for_each_summary_mix([&]<class Mix>(named_mix<Mix> const& is) {
        cache_line line{is.name, "compressed", std::string(is.mix.summary_k.name()),
                        std::string(is.mix.summary_v.name())};
        detail::count_cache<bf::compressed_kv_cache<Mix>>(line, m, lengths, is.mix, [&](index_t tokens) {
            return bf::cache_config{.kv_heads = m.kv_heads, .head_dim = m.head_dim, .max_tokens = tokens};
        });
        lines.push_back(std::move(line));
    });
    return lines;
}

/// A line of the published table: memory at 32K, of what its text and its command name.
struct published_claim {
    char const* text;
    index_t window;                   // latest keys in float32
    double claimed;                   // GB in its own units
    double computed;                  // the same of the formats that it names
    std::vector<std::string> pairs{}; // keys+values of any formats of the engine that give the claim

    [[nodiscard]] bool reproduced() const { return same_figure(claimed, computed); }
    /// Equal when written with two decimals.
    [[nodiscard]] static bool same_figure(double a, double b) { return std::round(100 * a) == std::round(100 * b); }
};

/// The published table beside what the formats come to. All formats of keys and of values are tried.
[[nodiscard]] inline std::vector<published_claim> published_claims() {
    namespace quant     = bf::quant;
    namespace published = bf::quant::published;
    model const m       = cache_models().front();
    quant::raw<float> const f32{};
    quant::raw<bf::float16> const f16{};
    auto const figure = [&](auto const& keys, auto const& values, index_t window) {
        auto const kib = [](index_t bytes) { return static_cast<double>(bytes) / 1024; };
        return (kib(published_token(m, keys, values)) * 32000 + kib(published_window(m, window))) * 1e-6;
    };
    double const two_bits = figure(published::uniform_2b{}, f16, 0);
    auto const with       = [&](double base, index_t window) {
        return base + static_cast<double>(published_window(m, window)) / 1024 * 1e-6;
    };
    double const four_bits = figure(published::turbo_kv_4b{}, f16, 0);
    std::vector<published_claim> claims{{"FP32", 0, 7.17, figure(f32, f32, 0)},
                                        {"turbo_kv_4b + k128", 128, 2.33, with(four_bits, 128)},
                                        {"turbo_kv_4b (flat)", 0, 2.30, four_bits},
                                        {"2-bit + k512", 512, 1.19, with(two_bits, 512)},
                                        {"2-bit + k256", 256, 1.16, with(two_bits, 256)},
                                        {"2-bit + k128", 128, 1.15, with(two_bits, 128)},
                                        {"2-bit (flat)", 0, 1.13, two_bits}};
    for (published_claim& claim : claims) {
        auto const with_keys = [&](auto const& keys) {
            auto const try_values = [&](auto const& values) {
                if (published_claim::same_figure(claim.claimed, figure(keys, values, claim.window)))
                    claim.pairs.push_back(std::string(keys.name()) + "+" + std::string(values.name()));
            };
            try_values(f32);
            try_values(f16);
            try_values(published::v_q4{});
            try_values(published::v_q2{});
        };
        with_keys(f32);
        for_each_kv_codec([&](auto const& is) {
            if (is.origin == codec_origin::published && !std::string(is.name).starts_with("v_")) with_keys(is.codec);
        });
    }
    return claims;
}

} // namespace bench
