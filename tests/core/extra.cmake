# SPDX-License-Identifier: MIT
# Objects with and without OpenMP in one program, linked in both orders.
find_package(OpenMP QUIET COMPONENTS CXX)
if(BUTTERFLY_OPENMP AND TARGET OpenMP::OpenMP_CXX) # not under ThreadSanitizer, which does not know libgomp
  foreach(part with without)
    add_library(core_openmp_${part} OBJECT "${CMAKE_CURRENT_LIST_DIR}/openmp_mixed/${part}.cpp")
    target_include_directories(core_openmp_${part} PRIVATE "${PROJECT_SOURCE_DIR}/include")
    target_compile_features(core_openmp_${part} PRIVATE cxx_std_20)
    # Unoptimised, so that both objects bring a copy of each function.
    target_compile_options(core_openmp_${part} PRIVATE -O0)
    target_link_libraries(core_openmp_${part} PRIVATE butterfly_warnings)
  endforeach()
  target_link_libraries(core_openmp_with PRIVATE OpenMP::OpenMP_CXX)
  foreach(order "with;without" "without;with")
    string(REPLACE ";" "_" name "core_openmp_${order}_program")
    list(GET order 0 first)
    list(GET order 1 second)
    add_executable(${name} $<TARGET_OBJECTS:core_openmp_${first}> $<TARGET_OBJECTS:core_openmp_${second}>)
    set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX
                                             RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
    target_link_libraries(${name} PRIVATE OpenMP::OpenMP_CXX)
    add_test(NAME core.${name} COMMAND ${name})
    set_tests_properties(core.${name} PROPERTIES LABELS core)
  endforeach()
endif()
