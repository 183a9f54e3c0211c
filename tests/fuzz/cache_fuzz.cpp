// SPDX-License-Identifier: MIT

// Programs on a compressed cache against a model that keeps every token; see support/cache_model.hpp. The top bit of
// the first byte, which the program does not use, chooses the backend.

#include <butterfly/backend/scalar.hpp>
#include <butterfly/backend/simd.hpp>

#include "support/cache_model.hpp"

#include <cstdio>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    namespace backend = butterfly::backend;
    using butterfly::testing::run_cache_program;
    if (size > 200) return 0;
    backend::simd<> const f32{.bf16 = backend::bf16_unit::fma}; // the model holds it close
    bool const fast = size > 0 && data[0] >= 128;
    std::string const wrong =
        fast ? run_cache_program(f32, false, {data, size}) : run_cache_program(backend::scalar{}, true, {data, size});
    if (wrong.empty()) return 0;
    std::fprintf(stderr, "%s: %s\n", fast ? "simd" : "scalar", wrong.c_str());
    std::abort();
}
