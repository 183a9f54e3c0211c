// SPDX-License-Identifier: MIT
#pragma once

// Vectors of bytes for packed codes: unpacking, table look-ups, products of bytes. One struct for each kind of vector,
// all with the same functions, so that the leaf of packed rows (codec/packed.hpp) is one text.
//
//   unpack        the codes of a chunk of up to 64 values, in the order of the values      (quant/row_format.hpp)
//                 looked up in a table: levels, signed bytes plus an offset
//   dot           int32 lanes += products of four neighbouring bytes, levels plus `bias` times query
//   load_keys     16 bytes of as many rows as there are int32 lanes, four of each row in one vector, rows in lanes
//   spread,       rows a, b, c, d -> a0 b0 c0 d0 a1 b1 ...
//   interleave
//   weigh         int32 lanes += products of four neighbouring bytes, weights in [0, weight_top] times levels

#include <butterfly/backend/simd/bytes_128.hpp>
#include <butterfly/backend/simd/bytes_256.hpp>
#include <butterfly/backend/simd/bytes_512.hpp>
