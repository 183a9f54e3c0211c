// SPDX-License-Identifier: MIT
#pragma once

// The leaf of outliers (quant/outliers.hpp) over a codec whose rows are said by a format: decode alone. All rows by the
// base's own leaf, then the values that stand apart are written over what it made of them.

#include <butterfly/backend/simd/codec/packed_ops.hpp>
#include <butterfly/quant/outliers.hpp>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// decode: equals outliers::decode.
template <class Isa, quant::formatted Base, int Count>
void decode_outliers(
    void const* codec, std::byte const* const* rows, int count, index_t n, float* out, index_t stride) noexcept {
    auto const& c = *static_cast<quant::outliers<Base, Count> const*>(codec);
    packed_ops<Isa>(quant::format_of(c.base), bf16_unit::fma).base.decode(&c.base, rows, count, n, out, stride);
    for (int j = 0; j < count; ++j) c.restore(rows[j], n, out + j * stride);
}

template <class Isa, quant::formatted Base, int Count>
inline constexpr simd_codec_ops outlier_ops{{&decode_outliers<Isa, Base, Count>}, nullptr, nullptr};

template <class Isa, quant::formatted Base, int Count>
[[nodiscard]] simd_codec_ops const& simd_ops(Isa, quant::outliers<Base, Count> const&) noexcept {
    return outlier_ops<Isa, Base, Count>;
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
