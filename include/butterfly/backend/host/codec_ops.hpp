// SPDX-License-Identifier: MIT
#pragma once

// What host kernels ask of a codec: rows in, floats out.

#include <butterfly/backend/host/rows.hpp>
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
};

template <quant::decoder Codec>
void decode_rows(
    void const* codec, std::byte const* const* rows, int count, index_t head_dim, float* out, index_t stride) noexcept {
    for (int j = 0; j < count; ++j) static_cast<Codec const*>(codec)->decode(rows[j], head_dim, out + j * stride);
}

/// What `count` rows of a head stand for: decoded, its mean added.
inline void load_rows(
    storage_ref const& s, index_t head, std::byte const* const* rows, int count, float* out, index_t stride) noexcept {
    index_t const dim = s.shape.head_dim;
    static_cast<codec_ops const*>(s.ops)->decode(s.codec_state, rows, count, dim, out, stride);
    float const* const mean = mean_of(s, head);
    for (int j = 0; mean != nullptr && j < count; ++j)
        for (index_t d = 0; d < dim; ++d) out[j * stride + d] += mean[d];
}

} // namespace butterfly::backend::on_host
