# SPDX-License-Identifier: MIT
include(support/backends.cmake)
target_link_libraries(dense_baselines PRIVATE butterfly_bench_backends)
# GCC 12's own AVX-512 headers trip this warning once Eigen is inlined.
target_compile_options(butterfly_bench_baselines PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
