// SPDX-License-Identifier: MIT
#pragma once

// What this machine allows, measured beside the kernel: how fast memory is read and how fast products are summed.

#include <butterfly/core/executor.hpp>

#include <array>
#include <cstddef>
#include <span>

namespace bench {

/// Ways to read memory from end to end; which one is fastest differs from machine to machine.
enum class read_pattern {
    stream,     ///< one stream
    prefetched, ///< one stream, each line asked for 4 KiB ahead
    streams     ///< four streams at once
};

inline constexpr std::array read_patterns{read_pattern::stream, read_pattern::prefetched, read_pattern::streams};

[[nodiscard]] char const* name_of(read_pattern p) noexcept;

/// Reads every byte once, each thread its part. Returns something of what was read.
std::size_t read_all(butterfly::executor const& threads, std::span<std::byte const> memory, read_pattern pattern);

/// Operations that sum products in f32.
enum class product_unit {
    fma, ///< of floats, as wide as this CPU has them
    dot  ///< of pairs of bfloat16 (AVX512-BF16)
};

/// flop/s of all threads with operands in registers, a product and its sum counted as two: the best of what is measured
/// in about `seconds`. 0 where this CPU lacks the unit.
[[nodiscard]] double product_rate(butterfly::executor const& threads, product_unit unit, double seconds);

} // namespace bench
