// SPDX-License-Identifier: MIT
#pragma once

// The SIMD kernels of one instruction set as a table of functions over plain data: what an object of kernels.cpp
// defines, and all that the rest of a program knows of it. Nothing here throws, and nothing but `explain` allocates:
// scratch memory is the caller's.

#include <butterfly/backend/host/isa_level.hpp>
#include <butterfly/core/executor.hpp>
#include <butterfly/quant/row_format.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <cstddef>
#include <span>

namespace butterfly::backend {

/// Scratch bytes of a call: `each` for every thread, then `room` for partial results.
struct kernel_scratch {
    index_t each = 0;
    index_t room = 0;
};

/// Kernels of one instruction set.
struct kernel_table {
    isa_level level;
    char const* name; // of the instruction set; what bind_codec calls the owner

    /// The functions of a raw codec, a vec::simd_codec_ops; null of a codec that is not raw.
    void const* (*raw_ops)(codec_id, bf16_unit) noexcept;
    /// Those of rows that are said by a format.
    void const* (*packed_ops)(quant::row_format const&, bf16_unit) noexcept;
    /// Those of trellis<bits>, of affine_channels<bits, tokens>, and of ggml's blocks: q8_0, q4_0, lifted q4_1.
    void const* (*trellis_ops)(int bits) noexcept;
    void const* (*affine_channels_ops)(int bits, index_t tokens) noexcept;
    void const* (*ggml_ops)(int bits, bool lifted) noexcept;

    kernel_scratch (*scratch)(int threads, std::span<problem const>) noexcept;

    /// Writes kernel class and block shapes to `text`, ended by a zero.
    void (*explain)(problem const&, int threads, std::span<char> text) noexcept;

    /// `memory`: aligned to on_host::scratch_alignment.
    void (*run)(executor const&, std::span<problem const>, std::byte* memory, kernel_scratch) noexcept;
};

} // namespace butterfly::backend

/// The tables of this program or shared library, ended by a null pointer: defined by butterfly_add_kernels (CMake).
/// Hidden, so that each library of a process keeps to its own.
extern "C" __attribute__((visibility("hidden"))) butterfly::backend::kernel_table const* const butterfly_kernels[];
