// SPDX-License-Identifier: MIT
#pragma once

#include <butterfly/quant/codec.hpp>

#include <cmath>

namespace mine {

/// One float of scale, the mean magnitude of the row, and a sign bit per value: 32 / head_dim + 1 bits per value.
struct signs {
    [[nodiscard]] butterfly::index_t row_bytes(butterfly::index_t head_dim) const noexcept {
        return 4 + (head_dim + 7) / 8;
    }

    void decode(std::byte const* row, butterfly::index_t head_dim, float* out) const noexcept {
        float scale;
        std::memcpy(&scale, row, 4);
        for (butterfly::index_t d = 0; d < head_dim; ++d)
            out[d] = (std::to_integer<unsigned>(row[4 + d / 8]) >> (d % 8) & 1U) != 0U ? -scale : scale;
    }

    void encode(float const* values, butterfly::index_t head_dim, std::byte* row) const noexcept {
        float sum = 0.0F;
        for (butterfly::index_t d = 0; d < head_dim; ++d) sum += std::abs(values[d]);
        float const scale = sum / static_cast<float>(head_dim);
        std::memcpy(row, &scale, 4);
        for (butterfly::index_t b = 4; b < row_bytes(head_dim); ++b) row[b] = std::byte{};
        for (butterfly::index_t d = 0; d < head_dim; ++d)
            if (std::signbit(values[d])) row[4 + d / 8] |= std::byte{1} << (d % 8);
    }
};

static_assert(butterfly::quant::codec<signs>);

} // namespace mine
