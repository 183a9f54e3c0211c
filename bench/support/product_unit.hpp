// SPDX-License-Identifier: MIT
#pragma once

// Which unit multiplies in a call, by its name in limits_compute.hpp.
//
//   keys and values      bf16 unit of the backend      stream class           tile class
//   f32, f16             any                           fma_f32_*              fma_f32_*
//   bf16                 fma                           fma_f32_*              fma_f32_*
//   bf16                 dot                           dot_bf16_avx512        dot_bf16_avx512
//   bf16                 tile                          fma_f32_*              amx_bf16_registers
//
// As backend/simd/bf16_ops.hpp has it. fma_f32_* is that of the kernels' instruction set.

#include "limits_compute.hpp"
#include "machine.hpp"

namespace bench {

/// The class that `explain` of a backend names: "stream" or "tile"; empty where it has no classes.
[[nodiscard]] std::string kernel_class_of(std::string const& plan);

[[nodiscard]] std::string
product_unit(product_units const& units, bf::element_type storage, std::string const& kernel_class);

} // namespace bench
