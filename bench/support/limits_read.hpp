// SPDX-License-Identifier: MIT
#pragma once

// Loops that read memory and add up what they read: bandwidth by the way of reading.

#include "cpu_features.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace bench {

/// A way to read a buffer: so many streams, each its own part of it, 512 bytes of one after 512 bytes of another.
struct read_pattern {
    std::string name;
    int streams       = 1;
    std::size_t ahead = 0; // bytes that prefetcht0 runs ahead; 0: none
    std::size_t lead  = 0; // the first lines of each page are fetched so many bytes before their turn; 0: not
};

[[nodiscard]] std::vector<read_pattern> read_patterns();

using read_function = std::uint64_t (*)(char const* data, std::size_t bytes, read_pattern const& pattern);

/// The loop with the widest loads that this CPU has. `bytes` is a multiple of 4096, `data` of 64.
[[nodiscard]] read_function best_reader(cpu_features const& cpu);

} // namespace bench
