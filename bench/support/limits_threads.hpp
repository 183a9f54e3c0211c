// SPDX-License-Identifier: MIT
#pragma once

// The loops of limits_compute.hpp and limits_read.hpp for so long, and by all threads of an executor.

#include <butterfly/core/executor.hpp>

#include "limits_compute.hpp"
#include "limits_read.hpp"

#include <cstddef>
#include <functional>
#include <span>

namespace bench {

/// Turns after which `work(turns)` has lasted so many seconds. What `work` returns counts as used.
[[nodiscard]] std::int64_t turns_for(double seconds, std::function<double(std::int64_t)> const& work);

/// Operations per second of all threads, 0 where this CPU lacks the unit: the best of what is measured in about
/// `seconds`.
[[nodiscard]] double rate_of(butterfly::executor const& threads, compute_unit const& unit, double seconds);

/// Memory that read_all reads is a multiple of this.
inline constexpr std::size_t page_bytes = 4096;

/// Reads every byte `passes` times, each thread pages of its own and without waiting for others in between. Returns
/// something of what was read. `memory` begins at a multiple of 64.
std::uint64_t read_all(butterfly::executor const& threads,
                       std::span<std::byte const> memory,
                       int passes,
                       read_pattern const& pattern,
                       read_function read);

} // namespace bench
