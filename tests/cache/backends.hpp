// SPDX-License-Identifier: MIT
#pragma once

// The backends every test of this folder runs on.

#include <butterfly/backend/scalar.hpp>
#include <butterfly/backend/simd.hpp>

#include <tuple>
#include <type_traits>

/// Whether a position has one answer, bit for bit, however the call was cut: backends with one kernel class.
template <class Policy>
inline constexpr bool one_answer = std::is_same_v<Policy, butterfly::backend::scalar>;

/// A policy that multiplies in f32 whatever the storage, so that its results can be held close.
template <class Policy>
[[nodiscard]] Policy in_f32() {
    Policy policy;
    if constexpr (requires { policy.bf16; }) policy.bf16 = butterfly::backend::bf16_unit::fma;
    return policy;
}

using cache_backends = std::tuple<butterfly::backend::scalar, butterfly::backend::simd<>>;
