// SPDX-License-Identifier: MIT
#pragma once

// The codecs of kv_codecs.hpp with their types erased, for the program quantizers: one thread, the SIMD backend for
// what the build's flags allow.

#include <butterfly/core/index.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace bench {

namespace bf = butterfly;
using bf::index_t;

/// A codec for rows of one length.
class quantizer {
public:
    quantizer()                            = default;
    quantizer(quantizer const&)            = delete;
    quantizer& operator=(quantizer const&) = delete;
    virtual ~quantizer()                   = default;

    /// As command lines call it, and as the codec calls itself: "lloyd_max16", "lloyd_max<16> seed 1".
    [[nodiscard]] virtual std::string name() const        = 0;
    [[nodiscard]] virtual std::string description() const = 0;
    /// Whose format it is: raw, library, ggml or published.
    [[nodiscard]] virtual std::string origin() const = 0;
    /// Rows that are packed together.
    [[nodiscard]] virtual index_t tile_tokens() const = 0;
    /// What multiplies few queries with packed rows; "decoded" where rows are decoded first.
    [[nodiscard]] virtual std::string unit() const = 0;
    /// Why rows of head_dim values cannot be packed; empty where they can.
    [[nodiscard]] virtual std::string refusal(index_t head_dim) const   = 0;
    [[nodiscard]] virtual index_t row_bytes(index_t head_dim) const     = 0;
    [[nodiscard]] virtual double bits_per_value(index_t head_dim) const = 0;

    /// Packs tile_tokens() rows next to each other. Tiles stand at multiples of their tokens.
    virtual void encode(float const* rows, index_t head_dim, std::byte* to) const = 0;
    /// Unpacks by the backend's leaf; by the codec's own text.
    virtual void decode(std::span<std::byte const* const> rows, index_t head_dim, float* out) const = 0;
    virtual void decode_exactly(std::byte const* row, index_t head_dim, float* out) const           = 0;
    /// Scores of `q` [heads, head_dim] with packed rows by the backend's leaf; false where it has none. `scores` holds
    /// heads * rows.size() floats, tile by tile.
    virtual bool score(std::span<std::byte const* const> rows,
                       index_t head_dim,
                       std::span<float const> q,
                       std::span<float> scores) const = 0;
    /// One step of attention: `q` and `out` [heads, 1, head_dim] over packed keys and values, each [1, tokens,
    /// head_dim].
    virtual void attend(std::byte const* keys,
                        std::byte const* values,
                        index_t tokens,
                        index_t head_dim,
                        std::span<float const> q,
                        std::span<float> out) const = 0;
};

/// All of them, in the order of the list.
[[nodiscard]] std::vector<std::unique_ptr<quantizer const>> make_quantizers();

/// "simd (x86_v4)".
[[nodiscard]] std::string quantizer_backend();

/// Attention over rows as they are, for comparison: equal lengths, one thread.
void attend_floats(std::span<float const> keys,
                   std::span<float const> values,
                   index_t head_dim,
                   std::span<float const> q,
                   std::span<float> out);

} // namespace bench
