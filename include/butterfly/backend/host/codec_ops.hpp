// SPDX-License-Identifier: MIT
#pragma once

// What host kernels ask of a codec: rows in, floats out, and back.

#include <butterfly/core/index.hpp>
#include <butterfly/quant/codec.hpp>

#include <cstddef>

namespace butterfly::backend::on_host {

/// The functions of one codec, with its type erased. `codec` is storage_ref::codec_state.
struct codec_ops {
    /// Decodes `count` packed rows to out[j * stride + d].
    void (*decode)(void const* codec,
                   std::byte const* const* rows,
                   int count,
                   index_t head_dim,
                   float* out,
                   index_t stride) noexcept;
    /// Packs one row; null where the codec can only be read.
    void (*encode)(void const* codec, float const* values, index_t head_dim, std::byte* row) noexcept;
};

template <quant::decoder Codec>
void decode_rows(
    void const* codec, std::byte const* const* rows, int count, index_t head_dim, float* out, index_t stride) noexcept {
    for (int j = 0; j < count; ++j) static_cast<Codec const*>(codec)->decode(rows[j], head_dim, out + j * stride);
}

template <quant::decoder Codec>
constexpr auto encode_function() noexcept {
    using encode = void (*)(void const*, float const*, index_t, std::byte*) noexcept;
    if constexpr (quant::codec<Codec>)
        return encode{[](void const* codec, float const* values, index_t head_dim, std::byte* row) noexcept {
            static_cast<Codec const*>(codec)->encode(values, head_dim, row);
        }};
    else
        return encode{nullptr};
}

} // namespace butterfly::backend::on_host
