// SPDX-License-Identifier: MIT
#pragma once

// Rows for the program quantizers, what a codec makes of them, and how fast.
//
//   gaussian          N(0, 1): what the bounds are for
//   large_channels    the same, eight channels times 8
//   around_one        1 + 0.1 N(0, 1): rows that nearly are one and the same direction
//   heavy_tails       Student's t with four degrees of freedom, over its deviation
//   keys, values      of a layer of a file; keys with queries of the heads that read them, at later tokens

#include <butterfly/quant/distortion.hpp>

#include "fidelity_judge.hpp"
#include "quantizer_codecs.hpp"

#include <optional>
#include <string>
#include <vector>

namespace bench {

/// Rows and, unless they are values, a query for each.
struct row_set {
    std::string name;
    index_t heads = 1, tokens = 0, head_dim = 0;
    std::vector<float> rows;      // [heads, tokens, head_dim]
    std::vector<float> queries{}; // the same
};

/// Rows that are made up.
[[nodiscard]] std::vector<row_set> made_up_rows(index_t vectors, index_t head_dim, std::uint64_t seed);

/// Keys and values of a layer.
[[nodiscard]] std::vector<row_set> rows_of_layer(qkv const& layer, std::uint64_t seed);

/// What a codec makes of rows.
struct row_loss {
    index_t rows = 0; // whole tiles of every head; where that is 0, nothing below means anything
    double nmse  = 0;
    double slope = 0, rms = 0; // of scores; NaN for values
};
[[nodiscard]] row_loss measure_loss(quantizer const& codec, row_set const& in);

/// How fast a codec is, one thread: medians, and what they were taken from.
struct codec_speed {
    std::vector<double> encode, decode; // bytes of floats per second
    std::vector<double> attend;         // seconds of one step
    index_t tokens = 0;                 // keys of that step
    index_t read   = 0;                 // bytes of its keys and values
    std::vector<double> score{};        // packed bytes of keys per second; empty where rows are decoded first
    double attend_error = 0;            // of its output, relative to that over the decoded rows in f32
};

/// Query heads of the step of attention.
inline constexpr index_t quantizer_heads = 4;

/// About `seconds` for each of four figures. Throws runtime_error where the backend's functions are wrong: they do not
/// decode what the codec decodes, or attend to something else.
[[nodiscard]] codec_speed measure_speed(quantizer const& codec, row_set const& in, double seconds);

} // namespace bench
