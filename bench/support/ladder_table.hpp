// SPDX-License-Identifier: MIT
#pragma once

// The ladder as a table of text and as JSON.

#include "ladder_memory.hpp"
#include "ladder_time.hpp"

#include <optional>

namespace bench {

/// One system at one context.
struct ladder_row {
    std::string system;
    ladder_times times;
    ladder_memory memory;
};

/// One context: its rows, or why it was skipped.
struct ladder_result {
    index_t context = 0;
    std::string skipped{};
    std::vector<ladder_row> rows{};
};

/// What a reader must know before the table.
void print_heading(std::FILE* to, ladder_settings const& s, json const& run, std::string const& policy);

/// The table, and what its marks mean.
void print_ladder(std::FILE* to, ladder_settings const& s, std::vector<ladder_result> const& results);

/// Rungs with raw samples, and the table's own figures.
[[nodiscard]] json to_json(ladder_settings const& s, ladder_result const& result);

} // namespace bench
