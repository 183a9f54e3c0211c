# SPDX-License-Identifier: MIT
# The traces take minutes unoptimised. Under clang's address sanitizer a file of them takes minutes to optimise.
if(NOT CMAKE_CXX_FLAGS MATCHES "fsanitize=address")
  target_compile_options(cache_tests PRIVATE $<$<CONFIG:Debug>:-O1>)
endif()
