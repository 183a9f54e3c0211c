// SPDX-License-Identifier: MIT
#pragma once

// Groups of values of one channel on an even grid: what affine.hpp does along head_dim, along tokens.
//
//   tile of `Tokens` rows   ->   | scale bf16, zero f16 | ... one pair a channel ... | codes of row 0 | row 1 | ...
//
//   x[t][d] ~ scale[d] * (level[t][d] + zero[d]),   level in [-2^(Bits-1), 2^(Bits-1)), packed as level + 2^(Bits-1)
//                                                      (8 bits: as it is, of two's complement)
//
//   bytes per 128 values        Tokens 32    64    128
//   Bits = 2                       48        40     36
//   Bits = 3                       64        56     52
//   Bits = 4                       80        72     68
//   Bits = 8                      144       136    132
//
// The zero of a channel takes out its mean and its scale its spread, which is what keys need where some channels are
// large in every token (KIVI, Liu et al. 2024: 2 bits, groups of 32, the latest 128 tokens exact). A tile is padded to
// a multiple of Tokens bytes. Error, zeros, constants and NaN as affine.hpp says, by channel of a tile. Seek: one row,
// which needs all pairs of its tile. head_dim: a multiple of 16, up to 1024.

#include <butterfly/quant/affine.hpp>

namespace butterfly::quant {

/// Tiles of tokens with one grid a channel.
template <int Bits, int Tokens>
class affine_channels {
    static_assert(Bits == 2 || Bits == 3 || Bits == 4 || Bits == 8, "affine_channels has 2, 3, 4 or 8 bits");
    static_assert(Tokens == 32 || Tokens == 64 || Tokens == 128, "affine_channels has tiles of 32, 64 or 128 tokens");

public:
    static constexpr index_t tile_tokens = Tokens;

    /// "affine_channels<2, 32>".
    [[nodiscard]] static std::string name() {
        return "affine_channels<" + std::to_string(Bits) + ", " + std::to_string(Tokens) + ">";
    }

    /// Throws shape_error unless head_dim is a multiple of 16, up to 1024.
    static void require(index_t head_dim) { detail::require_row_step("affine_channels", head_dim); }

    /// A row's part of its tile.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return butterfly::detail::ceil_div(4 * head_dim + Tokens * code_bytes(head_dim), Tokens);
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        tile_row<Tokens> const at(row);
        std::byte const* const codes = at.tile + 4 * head_dim + at.token * code_bytes(head_dim);
        for (index_t d = 0; d < head_dim; ++d) {
            float const scale = detail::load_half<bfloat16>(at.tile + 4 * d);
            float const zero  = detail::load_half<float16>(at.tile + 4 * d + 2);
            int const level   = level_of(detail::load_code(codes_of(), codes, head_dim, d));
            out[d]            = scale * (static_cast<float>(level) + zero);
        }
    }

    BUTTERFLY_HOST_DEVICE void
    encode_tile(float const* values, index_t stride, index_t head_dim, std::byte* tile) const noexcept {
        for (index_t i = 0; i < Tokens * row_bytes(head_dim); ++i) tile[i] = std::byte{0};
        std::byte* const codes = tile + 4 * head_dim;
        for (index_t d = 0; d < head_dim; ++d) {
            float channel[Tokens];
            std::uint8_t code[Tokens];
            for (index_t t = 0; t < Tokens; ++t) channel[t] = values[t * stride + d];
            detail::even_grid const s = detail::grid_fit<Bits>::choose(channel, Tokens, code);
            detail::store_half(s.scale, tile + 4 * d);
            detail::store_half(s.zero, tile + 4 * d + 2);
            for (index_t t = 0; t < Tokens; ++t)
                detail::add_code(codes_of(), Bits == 8 ? code[t] ^ 0x80U : code[t], head_dim, d,
                                 codes + t * code_bytes(head_dim));
        }
    }

private:
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static constexpr packing codes_of() noexcept {
        return Bits == 2 ? packing::bits2 : Bits == 3 ? packing::bits3 : Bits == 4 ? packing::bits4 : packing::bits8;
    }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static constexpr int level_of(unsigned code) noexcept {
        return Bits == 8 ? static_cast<std::int8_t>(code) : static_cast<int>(code) - detail::grid_fit<Bits>::lowest;
    }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static constexpr index_t code_bytes(index_t head_dim) noexcept {
        return detail::code_bytes(codes_of(), head_dim);
    }
};

static_assert(tile_codec<affine_channels<2, 32>>);

} // namespace butterfly::quant
