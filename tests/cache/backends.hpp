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

/// How far a backend may be from attention over what packed rows decode to, with keys and values of about 1: kernels
/// may round queries and weights to the precision of the codes they multiply.
template <class Policy>
inline constexpr double close_if_packed = one_answer<Policy> ? 1e-5 : 0.06;

/// A policy that multiplies in f32 whatever the storage, so that its results can be held close.
template <class Policy>
[[nodiscard]] Policy in_f32() {
    Policy policy;
    if constexpr (requires { policy.bf16; }) policy.bf16 = butterfly::backend::bf16_unit::fma;
    return policy;
}

using cache_backends = std::tuple<butterfly::backend::scalar, butterfly::backend::simd<>>;
