// SPDX-License-Identifier: MIT
#include <butterfly/backend/simd.hpp>

#include "backend/check_laws.hpp"

namespace bf = butterfly;

// Calls of at most sixteen rows are the stream class.
TEST_CASE("simd keeps the laws", "[backend]") {
    INFO(bf::backend::simd<>::name());
    test::check_laws(bf::backend::simd<>{}, {.seed = 1, .stream_rows = 16});
}

TEST_CASE("simd keeps the laws for other inputs", "[backend]") {
    if (test::short_sweep()) return;
    test::check_laws(bf::backend::simd<>{}, {.seed = 77, .brief = true, .stream_rows = 16});
}
