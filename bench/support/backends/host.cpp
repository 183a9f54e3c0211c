// SPDX-License-Identifier: MIT
#include <butterfly/backend/host.hpp>

#include "machine_of.hpp"

static bench::backend_registration const joined{bench::entry_of<butterfly::backend::host>("host", 5)};
