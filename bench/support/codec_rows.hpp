// SPDX-License-Identifier: MIT
#pragma once

// Rows as a codec gives them back, and outputs of the caches that keep them packed, for the program codec_fidelity.

#include <butterfly/core/executor.hpp>

#include "fidelity_judge.hpp"
#include "quantizer_codecs.hpp"

#include <string>
#include <vector>

namespace bench {

/// Every row of `rows` [kv_heads, tokens, head_dim] packed and unpacked by the codec's own text. With `centre` > 0 the
/// mean of a head's first so many rows is taken out before and given back after, as a mixed-precision cache does.
/// Where tokens are no multiple of the codec's tile, the last ones stay as they are: no cache packs them yet.
[[nodiscard]] bf::heads_buffer<float> packed_and_unpacked(quantizer const& codec,
                                                          bf::heads_buffer<float> const& rows,
                                                          index_t centre,
                                                          bf::executor const& threads);

/// A codec of keys and one of values that are used together.
struct codec_pair {
    std::string name;         // "k4v4", "turbo_kv_4b+f16"
    std::string group;        // library, published, ggml, KIVI
    std::string keys, values; // names of quantizers
    bool centred = false;     // whether keys are less their mean
};

/// All pairs: the mixes of this library, pairs of the published engine, ggml's types, KIVI's format.
[[nodiscard]] std::vector<codec_pair> codec_pairs();

/// What a mixed-precision cache gives for the queries at `positions`: tokens appended in steps of 512, queries attended
/// step by step on the SIMD backend. Empty where `pair` is no mix of this library, or its rows do not fit.
[[nodiscard]] bf::heads_buffer<float> run_mixed_cache(std::string const& pair,
                                                      qkv const& in,
                                                      std::vector<index_t> const& positions,
                                                      bf::executor const& threads);

} // namespace bench
