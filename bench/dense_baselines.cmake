# SPDX-License-Identifier: MIT
include(support/backends.cmake)
target_link_libraries(dense_baselines PRIVATE butterfly_bench_backends)
# GCC 12's own AVX-512 headers trip this warning once Eigen is inlined.
target_compile_options(butterfly_bench_baselines PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
# Fails where a column is not dense attention.
add_test(NAME bench.dense_baselines.small
         COMMAND dense_baselines --tokens 300 --head-dim 40 --rounds 1 --threads 1)
set_tests_properties(bench.dense_baselines.small PROPERTIES LABELS bench TIMEOUT 300)
