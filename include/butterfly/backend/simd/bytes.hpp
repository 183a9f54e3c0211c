// SPDX-License-Identifier: MIT
#pragma once

// Vectors of bytes for packed codes: unpacking, table look-ups, products of bytes. One struct for each kind of vector,
// all with the same functions but those said to be of one, so that the leaf of packed rows (codec/packed.hpp) is one
// text.
//
//   unpack        the codes of a chunk of up to 64 values, in the order of the values      (quant/row_format.hpp)
//                 looked up in a table: levels, signed bytes plus an offset
//   look_up_64    bytes of a table of 64 by codes below 64
//   look_up_windows   levels of the windows of a trellis, where has_windows; bytes_512 alone has the two
//   has_dot       whether this CPU has what `dot` and `weigh` take
//   products, high_products   the lower and the upper halves of products of 16-bit words with a number
//   load_part     the first bytes of a chunk that ends early: 16 at least
//   load_few      any number of bytes below a vector's; nothing past them is read
//   dot           int32 lanes += products of four neighbouring bytes, levels plus `bias` times query
//   load_keys     16 bytes of as many rows as there are int32 lanes, four of each row in one vector, rows in lanes
//   spread,       rows a, b, c, d -> a0 b0 c0 d0 a1 b1 ...
//   interleave
//   weigh         int32 lanes += products of four neighbouring bytes, weights in [0, weight_top] times levels

#include <butterfly/backend/simd/bytes_128.hpp>
#include <butterfly/backend/simd/bytes_256.hpp>
#include <butterfly/backend/simd/bytes_512.hpp>

#include <type_traits>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Vectors of bytes as wide as those of so many floats; void: there are none.
template <int Lanes>
struct bytes_beside {
    using type = void;
};
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
template <>
struct bytes_beside<16> {
    using type = bytes_512;
};
#endif
#if defined(__AVX2__)
template <>
struct bytes_beside<8> {
    using type = bytes_256;
};
#elif defined(__aarch64__)
template <>
struct bytes_beside<4> {
    using type = bytes_128;
};
#endif

/// The vectors of bytes of an instruction set, or void.
template <class Isa>
using byte_vectors = typename bytes_beside<lanes<Isa>>::type;

/// Whether an instruction set has products of bytes, and this CPU what they take.
template <class Isa>
[[nodiscard]] bool has_byte_products() noexcept {
    if constexpr (std::is_void_v<byte_vectors<Isa>>)
        return false;
    else
        return byte_vectors<Isa>::has_dot();
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
