# SPDX-License-Identifier: MIT
# What the targets need from the system. One text for the build tree and for the installed package: headers do not
# depend on the machine that installed them, so xsimd, OpenMP and Eigen are looked up where the program is built.
cmake_policy(VERSION 3.24) # a project that asks for an older CMake includes this too

option(BUTTERFLY_OPENMP "Link OpenMP where it is found" ON)

# A macro: find_package leaves its variables and imported targets to the caller.
macro(butterfly_find_dependencies)
  # xsimd declares SameMajorVersion, so asking for 8.1 would refuse 14: the version is compared by hand. A target that
  # is there already is the surrounding project's choice.
  if(NOT TARGET xsimd)
    find_package(xsimd QUIET)
    if(NOT xsimd_FOUND)
      set(butterfly_missing "butterfly needs xsimd >= 8.1 (libxsimd-dev on Debian and Ubuntu)")
    elseif(xsimd_VERSION VERSION_LESS 8.1)
      set(butterfly_missing "butterfly needs xsimd >= 8.1, found ${xsimd_VERSION}")
    endif()
  endif()
  if(BUTTERFLY_OPENMP)
    find_package(OpenMP QUIET COMPONENTS CXX)
  endif()
  find_package(Eigen3 3.3 QUIET NO_MODULE)
endmacro()

# butterfly_attach_dependencies(LIBRARY target TESTING target CUDA target)
macro(butterfly_attach_dependencies)
  cmake_parse_arguments(butterfly "" "LIBRARY;TESTING;CUDA" "" ${ARGN})
  butterfly_find_dependencies()
  if(DEFINED butterfly_missing)
    message(FATAL_ERROR "${butterfly_missing}")
  endif()

  # Include directories alone: Debian 12's target also asks to link xtl, which nothing here uses.
  get_target_property(butterfly_xsimd_headers xsimd INTERFACE_INCLUDE_DIRECTORIES)
  target_include_directories(${butterfly_LIBRARY} SYSTEM INTERFACE "$<BUILD_INTERFACE:${butterfly_xsimd_headers}>")
  if(BUTTERFLY_OPENMP AND TARGET OpenMP::OpenMP_CXX)
    target_link_libraries(${butterfly_LIBRARY} INTERFACE $<BUILD_INTERFACE:OpenMP::OpenMP_CXX>)
  endif()
  if(TARGET Eigen3::Eigen)
    target_link_libraries(${butterfly_TESTING} INTERFACE $<BUILD_INTERFACE:Eigen3::Eigen>)
  endif()

  target_compile_options(
    ${butterfly_CUDA} INTERFACE $<BUILD_INTERFACE:$<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:--expt-relaxed-constexpr>>)
  if("cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
    target_compile_features(${butterfly_CUDA} INTERFACE $<BUILD_INTERFACE:cuda_std_20>)
  else() # CMake 3.25 does not know that nvcc speaks C++20
    target_compile_options(${butterfly_CUDA} INTERFACE $<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>>)
  endif()
endmacro()
