// SPDX-License-Identifier: MIT
#include <butterfly/backend/host.hpp>

#include "machine_of.hpp"

namespace backend = butterfly::backend;

static bench::backend_registration const joined{bench::entry_of<backend::host>("host", 5, [] {
    backend::host const best;
    return bench::product_units{best.kernels()->name, best.bf16()};
})};
