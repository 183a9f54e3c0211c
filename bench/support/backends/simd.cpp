// SPDX-License-Identifier: MIT
#include <butterfly/backend/simd.hpp>

#include "machine_of.hpp"

namespace backend = butterfly::backend;

static bench::backend_registration const joined{bench::entry_of<backend::simd<>>("simd", 10, [] {
    return bench::product_units{butterfly::isa::current::name(), backend::resolve(backend::simd<>{}.bf16)};
})};
