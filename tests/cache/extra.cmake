# SPDX-License-Identifier: MIT
# The traces take minutes unoptimised, which a sanitizer's build is.
target_compile_options(cache_tests PRIVATE $<$<CONFIG:Debug>:-O1>)
