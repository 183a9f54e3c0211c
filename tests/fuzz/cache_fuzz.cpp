// SPDX-License-Identifier: MIT

// Programs on a compressed cache against a model that keeps every token; see support/cache_model.hpp.

#include <butterfly/backend/scalar.hpp>

#include "support/cache_model.hpp"

#include <cstdio>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    if (size > 200) return 0;
    std::string const wrong = butterfly::testing::run_cache_program(butterfly::backend::scalar{}, true, {data, size});
    if (wrong.empty()) return 0;
    std::fprintf(stderr, "%s\n", wrong.c_str());
    std::abort();
}
