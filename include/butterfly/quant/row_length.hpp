// SPDX-License-Identifier: MIT
#pragma once

// How long packed rows are.

#include <butterfly/core/error.hpp>
#include <butterfly/core/index.hpp>

#include <string>

namespace butterfly::quant {

/// Rows are of a multiple of this many values, up to longest_row: what is held of one stands on the stack.
inline constexpr index_t row_step = 16, longest_row = 1024;

namespace detail {

/// Throws shape_error where rows of head_dim values cannot be packed.
inline void require_row_step(char const* codec, index_t head_dim) {
    if (head_dim < row_step || head_dim % row_step != 0 || head_dim > longest_row)
        butterfly::detail::fail<shape_error>(std::string(codec) + ": head_dim " + std::to_string(head_dim) +
                                             " is not a multiple of " + std::to_string(row_step) + " up to " +
                                             std::to_string(longest_row));
}

} // namespace detail
} // namespace butterfly::quant
