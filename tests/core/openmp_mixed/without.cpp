// SPDX-License-Identifier: MIT
// Compiled without OpenMP.
#include "each.hpp"

int alone_without_openmp() {
    return alone(butterfly::serial{}, std::chrono::milliseconds(50));
}
