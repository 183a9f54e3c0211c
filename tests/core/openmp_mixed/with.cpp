// SPDX-License-Identifier: MIT
// Compiled with OpenMP: a team must be one, whichever object the linker takes executor::each from.
#include "each.hpp"

#include <cstdio>

int main() {
    int const team   = alone(butterfly::openmp{.threads = 2}, std::chrono::seconds(5));
    int const serial = alone_without_openmp();
    std::printf("items alone: %d of a team, %d serial\n", team, serial);
    return team == 0 && serial == 1 ? 0 : 1;
}
