// SPDX-License-Identifier: MIT
#pragma once

// The published byte table, from the library's own counting: nothing is timed.

#include "ladder_settings.hpp"
#include "report.hpp"

namespace bench {

/// Prints the bytes of both models at the contexts of `s` and returns them. The compressed column comes from a cache
/// with the published rules that is appended to in steps; the stock column is a buffer that grows in steps of 256.
json account_published(ladder_settings const& s, std::FILE* to);

} // namespace bench
