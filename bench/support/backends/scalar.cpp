// SPDX-License-Identifier: MIT
#include <butterfly/backend/scalar.hpp>

#include "machine_of.hpp"

static bench::backend_registration const joined{bench::entry_of<butterfly::backend::scalar>("scalar", 0)};
