// SPDX-License-Identifier: MIT
#pragma once

// What a span of an item of the tile class leaves, and how two of them merge.

#include <butterfly/backend/host/workspace.hpp>
#include <butterfly/backend/simd/exp2.hpp>
#include <butterfly/backend/simd/tile_unit.hpp>
#include <butterfly/sdpa/softmax_state.hpp>

#include <algorithm>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Softmax states and unnormalised outputs of the rows of an item, in strips.
struct tile_part {
    float* base; // [rows]: weights are 2^(c (s - base))
    float* sum;  // [rows]
    float* out;  // [strips][columns][strip]
    bool* fresh; // [strips]: nothing was added yet, and `out` means nothing

    /// Rows of whole strips.
    [[nodiscard]] static index_t padded(tile_unit const& unit, index_t rows) noexcept {
        return detail::round_up(rows, unit.strip);
    }

    [[nodiscard]] static index_t bytes(tile_unit const& unit, index_t rows, index_t dv) noexcept {
        index_t const all = padded(unit, rows);
        return 2 * host::scratch_bytes<float>(all) + host::scratch_bytes<float>(all * column_rows(dv)) +
               host::scratch_bytes<bool>(all / unit.strip);
    }

    tile_part(tile_unit const& unit, index_t rows, index_t dv, std::byte* memory) noexcept {
        host::carver c(memory);
        index_t const all = padded(unit, rows);
        base              = c.take<float>(all);
        sum               = c.take<float>(all);
        out               = c.take<float>(all * column_rows(dv));
        fresh             = c.take<bool>(all / unit.strip);
    }

    void clear(tile_unit const& unit, index_t rows) const noexcept {
        index_t const all = padded(unit, rows);
        std::fill_n(base, all, minus_infinity);
        std::fill_n(sum, all, 0.0F);
        std::fill_n(fresh, all / unit.strip, true);
    }

    /// Outputs of strip s, zeros from now on where nothing was added.
    [[nodiscard]] float* settled_out(tile_unit const& unit, index_t s, index_t dv) const noexcept {
        index_t const size = unit.strip * column_rows(dv);
        float* const at    = out + s * size;
        if (fresh[s]) std::fill_n(at, size, 0.0F);
        fresh[s] = false;
        return at;
    }
};

/// total = total merged with part. What a row gets depends on its own part alone, and one that saw no key changes no
/// bit. `to_base_2`: from a difference of bases to one of exponents of 2.
template <class Isa>
void merge_parts(tile_unit const& unit,
                 int rows,
                 index_t dv,
                 tile_part const& total,
                 tile_part const& part,
                 float to_base_2) noexcept {
    using vector = f32<Isa>;
    for (int s = 0; s < rows; s += unit.strip) {
        if (part.fresh[s / unit.strip]) continue;
        float* const out            = total.settled_out(unit, s / unit.strip, dv);
        float const* const more_out = part.out + s * column_rows(dv);
        for (int r = s; r < std::min(s + unit.strip, rows); r += lanes<Isa>) {
            vector const a = load_as<Isa>(total.base + r), b = load_as<Isa>(part.base + r);
            vector const top  = xsimd::max(a, b);
            vector const from = xsimd::select(top == vector(minus_infinity), vector(0.0F), top); // both empty
            vector const old  = exp2<5>((a - from) * vector(to_base_2));
            vector const more = exp2<5>((b - from) * vector(to_base_2));
            auto const merge  = [&](float* to, float const* with) {
                vector const kept = load_as<Isa>(to) * old, added = load_as<Isa>(with);
                xsimd::select(added == vector(0.0F), kept, fma(added, more, kept)).store_unaligned(to); // -0 stays
            };
            top.store_unaligned(total.base + r);
            merge(total.sum + r, part.sum + r);
            for (index_t d = 0; d < dv; ++d) merge(out + d * unit.strip + r - s, more_out + d * unit.strip + r - s);
        }
    }
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
