# SPDX-License-Identifier: MIT
include(support/backends.cmake)
target_link_libraries(context_ladder PRIVATE butterfly_bench_backends)
