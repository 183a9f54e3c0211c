# SPDX-License-Identifier: MIT
include(support/backends.cmake)
target_link_libraries(sparse_sdpa PRIVATE butterfly_bench_backends)
