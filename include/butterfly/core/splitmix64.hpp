// SPDX-License-Identifier: MIT
#pragma once

// Random bits that are the same on every machine (Steele, Lea, Flood 2014).

#include <butterfly/core/config.hpp>

#include <cstdint>

namespace butterfly::detail {

/// What the state of splitmix64 grows by.
inline constexpr std::uint64_t splitmix64_step = 0x9e3779b97f4a7c15U;

/// The n-th output of splitmix64 with this seed, n = 0, 1, ...
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr std::uint64_t splitmix64(std::uint64_t seed, std::uint64_t n) noexcept {
    std::uint64_t z = seed + (n + 1) * splitmix64_step;
    z               = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z               = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

} // namespace butterfly::detail
