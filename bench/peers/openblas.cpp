// SPDX-License-Identifier: MIT

// OpenBLAS's sgemm over 128-row blocks.

#include "blocked.hpp"

#include <openblas_config.h>

extern "C" char* openblas_get_corename(void); // cblas.h is not needed for the rest of it

int main(int argc, char** argv) {
    std::string const text = OPENBLAS_VERSION;
    std::size_t const from = text.find_first_of("0123456789");
    peers::blocked subject(bench::openblas_attention,
                           text.substr(from, text.find_last_not_of(' ') + 1 - from) + " " + openblas_get_corename());
    return peers::serve(argc, argv, "openblas", subject);
}
