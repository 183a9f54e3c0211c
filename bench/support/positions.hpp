// SPDX-License-Identifier: MIT
#pragma once

// Positions of a text that a program judges, as command lines say them.

#include "usage.hpp"

#include <string>
#include <vector>

namespace bench {

/// A number that may be zero. Throws usage_error naming `option`.
[[nodiscard]] index_t parse_count(std::string const& text, std::string_view option);

/// all, half (the second), or FIRST:END:STEP, where parts may be left out; ascending. Throws usage_error naming
/// --queries where there are none, or some past the tokens.
[[nodiscard]] std::vector<index_t> parse_queries(std::string const& text, index_t tokens);

} // namespace bench
