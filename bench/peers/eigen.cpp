// SPDX-License-Identifier: MIT

// Eigen's products over 128-row blocks.

#include "blocked.hpp"

#include <fmt/format.h>

int main(int argc, char** argv) {
    peers::blocked subject(bench::eigen_attention,
                           fmt::format("{}.{}.{}", EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION));
    return peers::serve(argc, argv, "eigen", subject);
}
