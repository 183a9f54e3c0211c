# SPDX-License-Identifier: MIT
# Kernels of vectors run ten times as long at -O1. Sanitizers' builds, slow to optimise, run few of these tests.
if(NOT CMAKE_CXX_FLAGS MATCHES "fsanitize")
  target_compile_options(backend_tests PRIVATE $<$<CONFIG:Debug>:-O2>)
endif()
butterfly_kernel_isas(isas)
if(BUTTERFLY_TEST_FOLDERS) # a part of the suite, under flags that do not reach the kernels of host
  list(GET isas 0 lowest)
  butterfly_add_kernels(backend_tests ISAS ${lowest})
  target_compile_definitions(backend_tests PRIVATE BUTTERFLY_TEST_LOWEST_LEVEL)
  return()
endif()
butterfly_add_kernels(backend_tests)

# Objects for several CPUs share nothing with each other or with the program, optimised or not.
foreach(isa IN LISTS isas)
  set(unoptimised butterfly_unoptimised_kernels_${isa})
  butterfly_kernel_library(${unoptimised} ${isa} -O0)
  target_link_libraries(${unoptimised}_code PRIVATE butterfly_warnings)
  if(CMAKE_READELF AND CMAKE_NM)
    foreach(library butterfly_kernels_${isa} ${unoptimised})
      add_test(NAME backend.one_symbol.${library}
               COMMAND "${CMAKE_COMMAND}" -DLIBRARY=$<TARGET_FILE:${library}> -DTABLE=butterfly_kernels_${isa}
                       -DNM=${CMAKE_NM} -DREADELF=${CMAKE_READELF} -P "${CMAKE_CURRENT_LIST_DIR}/one_symbol.cmake")
      set_tests_properties(backend.one_symbol.${library} PROPERTIES LABELS backend)
    endforeach()
  endif()
endforeach()

# A program that is linked with no kernels for its lowest level.
if("x86_v3" IN_LIST isas)
  add_executable(backend_no_baseline "${CMAKE_CURRENT_LIST_DIR}/no_baseline/main.cpp")
  target_link_libraries(backend_no_baseline PRIVATE butterfly butterfly_warnings)
  set_target_properties(backend_no_baseline PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  butterfly_add_kernels(backend_no_baseline ISAS x86_v3)
  add_test(NAME backend.no_baseline COMMAND backend_no_baseline)
  set_tests_properties(backend.no_baseline PROPERTIES LABELS backend)
endif()
