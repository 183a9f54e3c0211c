// SPDX-License-Identifier: MIT
#pragma once

// quant::rotation::inverse for many rows, a vector at a time: equal to it to the bit, since its sums and products are
// the same ones. Steps between values that stand in one vector swap its lanes.

#include <butterfly/backend/simd/batch.hpp>
#include <butterfly/quant/rotation.hpp>
#include <butterfly/quant/row_format.hpp>

#include <algorithm>
#include <array>
#include <cstdint>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Lane i of the result is lane i xor Step of x.
template <class Isa, int Step>
[[nodiscard]] inline f32<Isa> swap_lanes(f32<Isa> const& x) noexcept {
#if defined(__AVX512F__)
    if constexpr (lanes<Isa> == 16) {
        constexpr __mmask16 all = 0xffff;
        if constexpr (Step == 8) return f32<Isa>(_mm512_maskz_shuffle_f32x4(all, x, x, 0x4e));
        if constexpr (Step == 4) return f32<Isa>(_mm512_maskz_shuffle_f32x4(all, x, x, 0xb1));
        return f32<Isa>(_mm512_maskz_permute_ps(all, x, Step == 2 ? 0x4e : 0xb1));
    }
#endif
#if defined(__AVX__)
    if constexpr (lanes<Isa> == 8) {
        if constexpr (Step == 4) return f32<Isa>(_mm256_permute2f128_ps(x, x, 1));
        return f32<Isa>(_mm256_permute_ps(x, Step == 2 ? 0x4e : 0xb1));
    }
#endif
    alignas(64) float in[static_cast<std::size_t>(lanes<Isa>)], out[static_cast<std::size_t>(lanes<Isa>)];
    x.store_aligned(in);
    for (int i = 0; i < lanes<Isa>; ++i) out[i] = in[i ^ Step];
    return f32<Isa>::load_aligned(out);
}

/// -1 in lanes whose number has the bit Step, 1 in the others.
template <class Isa, int Step>
[[nodiscard]] inline f32<Isa> lane_signs() noexcept {
    alignas(64) static constexpr auto signs = [] {
        std::array<float, static_cast<std::size_t>(lanes<Isa>)> sign{};
        for (std::size_t i = 0; i < sign.size(); ++i) sign[i] = (i & Step) != 0 ? -1.0F : 1.0F;
        return sign;
    }();
    return f32<Isa>::load_aligned(signs.data());
}

/// One step of the transform within a vector: a + b in the lower lanes, a - b in the upper ones. Products with a sign
/// are exact.
template <class Isa, int Step>
[[nodiscard]] inline f32<Isa> butterfly_step(f32<Isa> const& x) noexcept {
    return fma(x, lane_signs<Isa, Step>(), swap_lanes<Isa, Step>(x));
}

/// x = H x * factor over m values, a power of two of at least a vector.
template <class Isa>
void transform(float* x, float const* factor, index_t m) noexcept {
    using vector = f32<Isa>;
    index_t half = m / 2;
    for (; half >= 2 * lanes<Isa>; half /= 4) // two steps at a time, half as often through memory
        for (index_t first = 0; first < m; first += 2 * half)
            for (index_t i = first; i < first + half / 2; i += lanes<Isa>) {
                vector const a = load_as<Isa>(x + i), b = load_as<Isa>(x + i + half / 2);
                vector const c = load_as<Isa>(x + i + half), d = load_as<Isa>(x + i + half + half / 2);
                vector const ac = a + c, bd = b + d, a_c = a - c, b_d = b - d;
                (ac + bd).store_unaligned(x + i);
                (ac - bd).store_unaligned(x + i + half / 2);
                (a_c + b_d).store_unaligned(x + i + half);
                (a_c - b_d).store_unaligned(x + i + half + half / 2);
            }
    if (half >= lanes<Isa>)
        for (index_t first = 0; first < m; first += 2 * half)
            for (index_t i = first; i < first + half; i += lanes<Isa>) {
                vector const a = load_as<Isa>(x + i), b = load_as<Isa>(x + i + half);
                (a + b).store_unaligned(x + i);
                (a - b).store_unaligned(x + i + half);
            }
    for (index_t i = 0; i < m; i += lanes<Isa>) {
        vector v = load_as<Isa>(x + i);
        if constexpr (lanes < Isa >> 8) v = butterfly_step<Isa, 8>(v);
        if constexpr (lanes < Isa >> 4) v = butterfly_step<Isa, 4>(v);
        v = butterfly_step<Isa, 2>(v);
        v = butterfly_step<Isa, 1>(v);
        (v * load_as<Isa>(factor + i)).store_unaligned(x + i);
    }
}

/// What the inverse of a rotation multiplies its two transforms by.
class inverse_rotation {
public:
    inverse_rotation(std::uint64_t seed, index_t n) noexcept : n_(n), m_(quant::rotation::order(n)) {
        quant::rotation const r{seed};
        float const unit = quant::rotation::unit_of(m_);
        for (int pass = 0; pass < (m_ == n_ ? 1 : 2); ++pass)
            for (index_t first = 0; first < m_; first += 64) {
                std::uint64_t const minus = r.signs(pass, first);
                for (index_t i = 0; i < std::min<index_t>(64, m_ - first); ++i)
                    factor_[pass][first + i] = (minus >> i & 1U) != 0U ? -unit : unit;
            }
    }

    template <class Isa>
    void apply(float* x) const noexcept {
        if (m_ != n_) transform<Isa>(x + (n_ - m_), factor_[1], m_);
        transform<Isa>(x, factor_[0], m_);
    }

private:
    index_t n_, m_;
    alignas(64) float factor_[2][quant::longest_row];
};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
