# SPDX-License-Identifier: MIT
# The table of backends: one file of support/backends/ per backend. A program that has --backend says, in its
# <name>.cmake, include(support/backends.cmake) and links butterfly_bench_backends. An object library, because nothing
# names the objects: they add themselves to the table when the program starts.
if(NOT TARGET butterfly_bench_backends)
  file(GLOB backend_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/backends/*.cpp")
  add_library(butterfly_bench_backends OBJECT ${backend_sources})
  target_link_libraries(butterfly_bench_backends PUBLIC butterfly_bench)
  butterfly_add_kernels(butterfly_bench_backends) # of the backend host
  set_target_properties(butterfly_bench_backends PROPERTIES UNITY_BUILD OFF) # all say `joined`
endif()
