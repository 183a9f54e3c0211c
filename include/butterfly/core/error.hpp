// SPDX-License-Identifier: MIT
#pragma once

// What the library throws. Every throw goes through detail::fail; under -fno-exceptions that one function
// terminates. The library never prints, never aborts otherwise, and returns no error codes.

#include <butterfly/core/config.hpp>

#include <exception>
#include <stdexcept>
#include <string>

namespace butterfly {

/// Arguments whose shapes disagree, null data, or sizes that overflow. The text names both sides.
struct shape_error : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

/// Something does not fit: a full cache, an append larger than `max_append`, a row larger than its degree.
struct capacity_error : std::length_error {
    using std::length_error::length_error;
};

/// A graph from outside breaks an invariant of the ABI.
struct graph_error : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

/// A file from outside is truncated, of another version, or inconsistent. Nothing is half-loaded.
struct format_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// A device is absent, a driver call failed, or a policy declines a problem; the text says which and why.
struct backend_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

namespace detail {

template <class Error>
[[noreturn]] inline void fail(std::string const& what) {
#if BUTTERFLY_EXCEPTIONS
    throw Error(what);
#else
    static_cast<void>(what);
    std::terminate();
#endif
}

} // namespace detail
} // namespace butterfly
