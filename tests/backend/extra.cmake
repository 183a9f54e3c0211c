# SPDX-License-Identifier: MIT
# The laws take minutes unoptimised, which a sanitizer's build is.
target_compile_options(backend_tests PRIVATE $<$<CONFIG:Debug>:-O1>)
