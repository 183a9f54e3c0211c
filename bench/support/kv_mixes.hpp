// SPDX-License-Identifier: MIT
#pragma once

// Mixes of codecs by name, for all programs: those of mixed_kv_cache and of compressed_kv_cache, and the pairs that the
// published engine can store.
//
//   k8v4            int8 keys, values of 4 bits; sinks and window in bf16
//   k4v4_centred    keys less the mean of the first 128
//   k2v2_channels   keys by channels of 32 tokens, values by groups of 32: the format of KIVI (Liu et al. 2024)
//   summaries4      summaries of 4 bits, window and sinks in bf16

#include <butterfly/cache/compressed_kv_cache.hpp>
#include <butterfly/cache/mixed_kv_cache.hpp>

#include "kv_codecs.hpp"
#include "summary_mixes.hpp"

namespace bench {

using bf::index_t;

/// What a mix of mixed_kv_cache comes with: sizes that are not of the model.
struct mix_sizes {
    index_t block_size   = 64;
    index_t exact_window = 128;
    index_t exact_sinks  = 4;
    index_t centre_keys  = 0; // packed keys are less the mean of so many first ones

    /// With the sizes of a model, for contexts of max_tokens tokens.
    [[nodiscard]] bf::mixed_cache_config of(index_t kv_heads, index_t head_dim, index_t max_tokens) const noexcept {
        return {.kv_heads     = kv_heads,
                .head_dim     = head_dim,
                .block_size   = block_size,
                .exact_window = exact_window,
                .exact_sinks  = exact_sinks,
                .centre_keys  = centre_keys,
                .max_tokens   = max_tokens};
    }
};

/// A mix as command lines call it.
template <class Mix>
struct named_mix {
    char const* name;
    Mix mix{};
    mix_sizes sizes{};
};

template <class Mix>
named_mix(char const*, Mix, mix_sizes) -> named_mix<Mix>;
template <class Mix>
named_mix(char const*, Mix) -> named_mix<Mix>;

/// Calls f(named_mix) for every mix of mixed_kv_cache, by bits.
template <class F>
void for_each_mixed_mix(F const& f) {
    namespace quant = bf::quant;
    mix_sizes const plain{}, centred{.centre_keys = 128};
    f(named_mix{"k8v8", bf::packed_mix<quant::int8>{}, plain});
    f(named_mix{"k8v4", bf::packed_mix<quant::int8, quant::lloyd_max<16>>{}, plain});
    f(named_mix{"k8v3", bf::packed_mix<quant::int8, quant::lloyd_max<8>>{}, plain});
    f(named_mix{"k4v4", bf::packed_mix<quant::lloyd_max<16>>{}, plain});
    f(named_mix{"k4v4_centred", bf::packed_mix<quant::lloyd_max<16>>{}, centred});
    f(named_mix{"k4v2", bf::packed_mix<quant::lloyd_max<16>, quant::lloyd_max<4>>{}, plain});
    f(named_mix{"k3v3", bf::packed_mix<quant::lloyd_max<8>>{}, plain});
    f(named_mix{"k2v2", bf::packed_mix<quant::lloyd_max<4>>{}, plain});
    f(named_mix{"k4v4_trellis", bf::packed_mix<quant::trellis<4>>{}, plain});
    f(named_mix{"k3v3_trellis", bf::packed_mix<quant::trellis<3>>{}, plain});
    f(named_mix{"k2v2_trellis", bf::packed_mix<quant::trellis<2>>{}, plain});
    f(named_mix{"k2v2_channels", bf::packed_mix<quant::affine_channels<2, 32>, quant::affine<2, 32>>{}, plain});
}

/// Calls f(named_mix) for every mix of compressed_kv_cache.
template <class F>
void for_each_summary_mix(F const& f) {
    namespace quant = bf::quant;
    f(named_mix{"summaries", bf::raw_mix<bf::bfloat16>{}});
    f(named_mix{"summaries4", summary_mix<quant::lloyd_max<16>>{}});
}

/// Keys of one format and values of another, as the published engine stores them (quant.cpp, Apache-2.0, commit
/// bd347db).
template <bf::quant::codec Keys, bf::quant::codec Values>
struct published_pair {
    char const* name;
    Keys keys{};
    Values values{};
};

template <bf::quant::codec Keys, bf::quant::codec Values>
published_pair(char const*, Keys, Values) -> published_pair<Keys, Values>;

/// Calls f(published_pair) for the pairs it can be asked for; dominated formats of keys are left out.
template <class F>
void for_each_published_pair(F const& f) {
    namespace quant     = bf::quant;
    namespace published = bf::quant::published;
    quant::raw<bf::float16> const f16{};
    published::v_q4 const q4{};
    published::v_q2 const q2{};
    f(published_pair{"turbo_kv_5b+f16", published::turbo_kv_5b{}, f16});
    f(published_pair{"turbo_kv_4b+f16", published::turbo_kv_4b{}, f16});
    f(published_pair{"uniform_4b+f16", published::uniform_4b{}, f16});
    f(published_pair{"turbo_kv_3b+f16", published::turbo_kv_3b{}, f16});
    f(published_pair{"uniform_2b+f16", published::uniform_2b{}, f16});
    f(published_pair{"turbo_kv_5b+v_q4", published::turbo_kv_5b{}, q4});
    f(published_pair{"turbo_kv_4b+v_q4", published::turbo_kv_4b{}, q4});
    f(published_pair{"uniform_4b+v_q4", published::uniform_4b{}, q4});
    f(published_pair{"turbo_kv_3b+v_q4", published::turbo_kv_3b{}, q4});
    f(published_pair{"uniform_2b+v_q4", published::uniform_2b{}, q4});
    f(published_pair{"turbo_kv_4b+v_q2", published::turbo_kv_4b{}, q2});
    f(published_pair{"uniform_2b+v_q2", published::uniform_2b{}, q2});
}

} // namespace bench
