# SPDX-License-Identifier: MIT
include(support/backends.cmake)
target_link_libraries(fidelity PRIVATE butterfly_bench_backends)
