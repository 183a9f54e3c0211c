// SPDX-License-Identifier: MIT
#pragma once

// Feature switches: the few macros of the library.

#include <cassert>

#if __cplusplus < 202002L && (!defined(_MSVC_LANG) || _MSVC_LANG < 202002L)
#error "butterfly is written in C++20: compile with -std=c++20 or later"
#endif

/// Marks a function that a GPU runs as it stands. Empty for host compilers.
#if defined(__CUDACC__)
#define BUTTERFLY_HOST_DEVICE __host__ __device__
#else
#define BUTTERFLY_HOST_DEVICE
#endif

/// Checks an invariant of the library itself, never a caller's mistake. Active unless NDEBUG.
#define BUTTERFLY_ASSERT(condition) assert(condition)

/// Defined to 1 where exceptions are enabled; otherwise `detail::fail` terminates.
#if defined(__cpp_exceptions) || defined(__EXCEPTIONS)
#define BUTTERFLY_EXCEPTIONS 1
#else
#define BUTTERFLY_EXCEPTIONS 0
#endif
