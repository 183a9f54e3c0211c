// SPDX-License-Identifier: MIT
#pragma once

// Memory as the operating system counts it, and a measurement in a process of its own.

#include <butterfly/core/index.hpp>

#include <optional>
#include <string>
#include <vector>

namespace bench {

using butterfly::index_t;

/// Bytes of anonymous memory this process keeps resident: heap and stacks, not its own text. Empty where the system
/// does not tell (Linux does: RssAnon).
[[nodiscard]] std::optional<index_t> resident_bytes();

/// Bytes that can be allocated without swapping (Linux: MemAvailable); empty where the system does not tell.
[[nodiscard]] std::optional<index_t> available_memory();

/// Bytes of memory of the machine; 0 where unknown.
[[nodiscard]] index_t total_memory();

/// Runs this program again with `arguments` and returns what it wrote to standard output. Throws runtime_error with the
/// last line of the child's own words where it fails.
[[nodiscard]] std::string run_self(std::vector<std::string> const& arguments);

} // namespace bench
