// SPDX-License-Identifier: MIT
#pragma once

// From scores to weights of the tile class, a vector of rows at a time: weight = 2^(c (s - base)).

#include <butterfly/backend/simd/exp2.hpp>

#include <bit>
#include <cstdint>
#include <cstring>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Keys of a tile that a strip works on.
struct strip_keys {
    int first, end;  // between them is every key that some row sees
    bool all;        // every row sees all of them
    float to_base_2; // from a difference of scores to one of exponents of 2
};

// Below, `by` is the strip: as an argument it stays in a register, since stores may alias the unit's numbers.

/// Scores of keys that a row does not see become -inf; row r sees [begin[r], end[r]).
template <class Isa>
void hide_runs(float* scores, strip_keys const keys, int by, int rows, float const* begin, float const* end) noexcept {
    for (int r = 0; r < rows; r += lanes<Isa>) {
        f32<Isa> const first = load_as<Isa>(begin + r), last = load_as<Isa>(end + r);
        for (int j = keys.first; j < keys.end; ++j) {
            float* const at = scores + j * by + r;
            f32<Isa> const key(static_cast<float>(j));
            xsimd::select(key >= first && key < last, load_as<Isa>(at), f32<Isa>(minus_infinity)).store_unaligned(at);
        }
    }
}

/// Largest score of each lane, by four chains.
template <class Isa>
[[nodiscard]] f32<Isa> highest(float const* scores, strip_keys const keys, int by) noexcept {
    f32<Isa> top[4] = {f32<Isa>(minus_infinity), f32<Isa>(minus_infinity), f32<Isa>(minus_infinity),
                       f32<Isa>(minus_infinity)};
    int j           = keys.first;
    for (; j + 4 <= keys.end; j += 4)
        for (int i = 0; i < 4; ++i) top[i] = xsimd::max(top[i], load_as<Isa>(scores + (j + i) * by));
    for (; j < keys.end; ++j) top[0] = xsimd::max(top[0], load_as<Isa>(scores + j * by));
    return xsimd::max(xsimd::max(top[0], top[1]), xsimd::max(top[2], top[3]));
}

template <class Isa>
[[nodiscard]] f32<Isa> weigh(float* scores, strip_keys const keys, int by, f32<Isa> const& base) noexcept {
    f32<Isa> const to_base_2(keys.to_base_2);
    f32<Isa> added(0.0F);
    for (int j = keys.first; j < keys.end; ++j) {
        float* const at       = scores + j * by;
        f32<Isa> const weight = exp2<5>((load_as<Isa>(at) - base) * to_base_2);
        weight.store_unaligned(at);
        added = added + weight;
    }
    return added;
}

/// Weights of two keys to a word, in the place of the scores: pair j / 2 is written once keys j and j + 1 were
/// read. Zeros up to a multiple of `step` on both sides.
template <class Isa>
[[nodiscard]] f32<Isa>
weigh_pairs(float* scores, strip_keys const keys, int by, f32<Isa> const& base, int step) noexcept {
    auto* const words = reinterpret_cast<std::uint32_t*>(scores);
    f32<Isa> const to_base_2(keys.to_base_2), none(0.0F);
    f32<Isa> added    = none;
    auto const weight = [&](int j) { return exp2<3>((load_as<Isa>(scores + j * by) - base) * to_base_2); };
    auto const put    = [&](int j, f32<Isa> const& low, f32<Isa> const& high) {
        added = added + (low + high);
        bf16_pair(low, high).store_unaligned(words + j / 2 * by);
    };
    int j = keys.first;
    if (j % 2 != 0) {
        put(j - 1, none, weight(j));
        ++j;
    }
    for (; j + 2 <= keys.end; j += 2) {
        f32<Isa> const low = weight(j), high = weight(j + 1);
        put(j, low, high);
    }
    if (j < keys.end) put(j, weight(j), none);
    for (int k = keys.first / step * step; k + 1 < keys.first; k += 2) none.store_unaligned(scores + k / 2 * by);
    for (int k = (keys.end + 1) / 2 * 2; k % step != 0; k += 2) none.store_unaligned(scores + k / 2 * by);
    return added;
}

/// The weight of key j for row r of a strip, from what stands in the place of the scores.
[[nodiscard]] inline float weight_of(float const* scores, int j, int r, int by, int pairs) noexcept {
    if (pairs == 1) return scores[j * by + r];
    std::uint32_t word = 0;
    std::memcpy(&word, scores + j / 2 * by + r, sizeof word);
    return std::bit_cast<float>(j % 2 == 0 ? word << 16 : word & 0xffff0000U);
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
