// SPDX-License-Identifier: MIT
#pragma once

// Rows of queries and outputs, a vector at a time: equal to load_row and store_row of host/rows.hpp, whose f16 takes an
// element a dozen instructions (a sixth of the time of 1024 tokens, head_dim 128).

#include <butterfly/backend/host/rows.hpp>
#include <butterfly/backend/simd/raw_codec.hpp>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Reads a row of a tensor as floats.
template <class Isa>
void load_row(tensor_ref const& t, index_t head, index_t token, float* out) noexcept {
    index_t const at = head * t.strides.head + token * t.strides.token;
    auto const read  = [&]<class T>(T const* row) {
        auto const* const bytes = reinterpret_cast<std::byte const*>(row);
        decode_raw<Isa, T>(nullptr, &bytes, 1, t.shape.head_dim, out, 0);
    };
    if (t.type == element_type::f32) read(host_pointer<float const>(t.memory) + at);
    if (t.type == element_type::f16) read(host_pointer<float16 const>(t.memory) + at);
    if (t.type == element_type::bf16) read(host_pointer<bfloat16 const>(t.memory) + at);
}

/// Stores one vector, rounded to the nearest, ties to even.
template <class Isa>
void store_as(f32<Isa> const& x, float16* p) noexcept {
    [[maybe_unused]] auto* const words = reinterpret_cast<void*>(p);
#if defined(__AVX512F__)
    if constexpr (lanes<Isa> == 16)
        return _mm256_storeu_si256(static_cast<__m256i*>(words), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
    if constexpr (lanes<Isa> == 8)
        return _mm_storeu_si128(static_cast<__m128i*>(words), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__aarch64__)
    if constexpr (lanes<Isa> == 4)
        return vst1_u16(static_cast<std::uint16_t*>(words), vreinterpret_u16_f16(vcvt_f16_f32(x)));
#endif
    alignas(64) float values[static_cast<std::size_t>(lanes<Isa>)];
    x.store_aligned(values);
    for (int i = 0; i < lanes<Isa>; ++i) p[i] = float16(values[i]);
}

/// Writes factor * values to a row of a tensor, rounding to its type.
template <class Isa>
void store_row(tensor_ref const& t, index_t head, index_t token, float const* values, float factor) noexcept {
    if (t.type != element_type::f16) return host::store_row(t, head, token, values, factor);
    float16* const row = host_pointer<float16>(t.memory) + head * t.strides.head + token * t.strides.token;
    index_t d          = 0;
    for (; d + lanes<Isa> <= t.shape.head_dim; d += lanes<Isa>)
        store_as<Isa>(load_as<Isa>(values + d) * f32<Isa>(factor), row + d);
    for (; d < t.shape.head_dim; ++d) row[d] = float16(values[d] * factor);
}

/// Whether all of a row of keys or values is finite.
template <class Isa, class T>
[[nodiscard]] bool is_finite_row(T const* row, index_t head_dim) noexcept {
    using vector = f32<Isa>;
    vector check(0.0F); // x * 0 is NaN where x is not finite
    index_t d = 0;
    for (; d + lanes<Isa> <= head_dim; d += lanes<Isa>) check = fma(load_as<Isa>(row + d), vector(0.0F), check);
    if (d < head_dim) check = fma(load_part<Isa>(row + d, head_dim - d), vector(0.0F), check);
    return xsimd::all(check == vector(0.0F));
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
