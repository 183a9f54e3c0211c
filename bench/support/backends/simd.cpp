// SPDX-License-Identifier: MIT
#include <butterfly/backend/simd.hpp>

#include "machine_of.hpp"

static bench::backend_registration const joined{bench::entry_of<butterfly::backend::simd<>>("simd", 10)};
