// SPDX-License-Identifier: MIT
#pragma once

// What tests of packed rows in the SIMD kernels share.

#include <butterfly/backend/simd.hpp>
#include <butterfly/sdpa/attend.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"

namespace test {

/// The largest weight in one byte.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
inline constexpr double weight_top = 255.0;
#else
inline constexpr double weight_top = 127.0;
#endif

/// Whether the stream class works on codes here.
template <class Codec>
bool from_codes(Codec const& codec) {
    auto const bound = bind_codec(butterfly::backend::simd<>{}, codec);
    return static_cast<butterfly::backend::vec::simd_codec_ops const*>(bound.ops)->score != nullptr;
}

/// Requires the bits of p's tokens to be the same together and one by one, and with threads.
template <class Problem, class Pool>
void require_same_bits(Problem& p, Pool const& pool) {
    butterfly::index_t const tokens = p.q.shape().tokens, first = p.k.shape().tokens - tokens;
    butterfly::attend(butterfly::backend::simd<>{}, p.q.view(), p.out.view(), {.q_position = first}, pool);
    butterfly::testing::tensor<float> other(p.out.shape());
#if defined(_OPENMP)
    butterfly::backend::simd<> const policy{.executor = butterfly::openmp{.threads = 3}};
#else
    butterfly::backend::simd<> const policy;
#endif
    for (butterfly::index_t t = 0; t < tokens; ++t)
        butterfly::attend(policy, p.q.view().slice(t, 1), other.view().slice(t, 1), {.q_position = first + t}, pool);
    auto const c = butterfly::testing::compare_bits(p.out.view(), other.view());
    INFO(c.text());
    REQUIRE(c.ok);
}

} // namespace test
