# SPDX-License-Identifier: MIT
# butterfly_add_kernels: the SIMD kernels of several instruction sets in one binary, for backend::host.
#
#   compile      include/butterfly/backend/host/kernels.cpp, once for each instruction set, with its flags
#   ld -r        dissolves the section groups, by which a linker takes inline functions of two objects for one
#   objcopy      makes every symbol local but the table, butterfly_kernels_<isa>
#
# So no function that was compiled for one instruction set can be linked to anything else, whatever the flags are.
cmake_policy(VERSION 3.24) # a project that asks for an older CMake includes this too

# butterfly_add_kernels(<target> [ISAS <isa>...])
#
# Links kernels to an executable or a library: on x86-64 baseline (SSE2), x86_v3 (AVX2, FMA) and x86_v4 (AVX-512), on
# AArch64 neon; ISAS names fewer. Without baseline a CPU may run none of them: backend::host says so. Each executable
# and each shared library whose code names backend::host needs a call. A static library that is installed exports
# <target>_kernels and butterfly_kernels_<isa> too.
#
# The kernels are optimised in every build type, because a vector library without inlining is a hundred times slower,
# and are compiled without link-time optimisation, which would see through the objects, and without sanitizers.
function(butterfly_add_kernels target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "ISAS")
  if(NOT TARGET "${target}")
    message(FATAL_ERROR "butterfly_add_kernels: no target ${target}")
  endif()
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "butterfly_add_kernels: unexpected arguments ${arg_UNPARSED_ARGUMENTS}")
  endif()
  butterfly_kernel_isas(known)
  if(NOT arg_ISAS)
    set(arg_ISAS ${known})
  endif()
  list(REMOVE_DUPLICATES arg_ISAS)

  set(declarations "")
  set(addresses "")
  set(libraries "")
  foreach(isa IN LISTS arg_ISAS)
    if(isa MATCHES "^x86_(zen4|amx)$")
      message(FATAL_ERROR "butterfly_add_kernels: ${isa} is no set of kernels of its own: its instructions are in the "
                          "others', and chosen at run time")
    elseif(NOT isa IN_LIST known)
      message(FATAL_ERROR "butterfly_add_kernels: no instruction set ${isa} for ${CMAKE_SYSTEM_PROCESSOR}; there are: "
                          "${known}")
    endif()
    if(NOT TARGET butterfly_kernels_${isa})
      butterfly_kernel_library(butterfly_kernels_${isa} ${isa} -O3 -w)
    endif()
    string(APPEND declarations "extern butterfly::backend::kernel_table const butterfly_kernels_${isa};\n")
    string(APPEND addresses "&butterfly_kernels_${isa}, ")
    list(APPEND libraries butterfly_kernels_${isa})
  endforeach()

  # The list of tables, which backend::host reads.
  set(source "${CMAKE_CURRENT_BINARY_DIR}/${target}_kernels.cpp")
  set(text "#include <butterfly/backend/host/kernels.hpp>\n\nextern \"C\" {\n${declarations}")
  string(APPEND text "butterfly::backend::kernel_table const* const butterfly_kernels[] = {${addresses}nullptr};\n}\n")
  file(CONFIGURE OUTPUT "${source}" CONTENT "${text}" @ONLY)
  add_library(${target}_kernels STATIC "${source}")
  set_target_properties(${target}_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(${target}_kernels PRIVATE butterfly::butterfly ${libraries})

  get_target_property(type ${target} TYPE)
  if(type STREQUAL "INTERFACE_LIBRARY")
    target_link_libraries(${target} INTERFACE ${target}_kernels)
  else()
    target_link_libraries(${target} PRIVATE ${target}_kernels)
  endif()
endfunction()

# The instruction sets of the target architecture that have kernels of their own.
function(butterfly_kernel_isas result)
  string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
  if(CMAKE_OSX_ARCHITECTURES)
    set(processor "${CMAKE_OSX_ARCHITECTURES}")
  endif()
  if(processor MATCHES "^(x86_64|amd64)$")
    set(${result} baseline x86_v3 x86_v4 PARENT_SCOPE)
  elseif(processor MATCHES "^(aarch64|arm64)$")
    set(${result} neon PARENT_SCOPE)
  else()
    message(FATAL_ERROR "butterfly_add_kernels: no kernels for ${processor}; x86-64 and AArch64 have them")
  endif()
endfunction()

# butterfly_kernel_library(<name> <isa> <compile option>...): a static library of one object with one symbol.
function(butterfly_kernel_library name isa)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang" OR WIN32)
    message(FATAL_ERROR "butterfly_add_kernels: needs GCC or Clang, and ELF or Mach-O objects")
  endif()
  butterfly_find_object_tools()

  # Behind the project's flags: -march alone leaves an -mavx2 of theirs standing. kernels.cpp refuses what is too much.
  set(flags_of_baseline -march=x86-64 -mno-sse3)
  set(flags_of_x86_v3 -march=x86-64-v3 -mno-avx512f)
  set(flags_of_x86_v4 -march=x86-64-v4)
  set(flags_of_neon "") # what the project's flags say, at least what every AArch64 has

  # Where the headers are: in the source tree or in the install tree.
  get_target_property(include butterfly::butterfly INTERFACE_INCLUDE_DIRECTORIES)
  list(GET include 0 include)
  string(REGEX REPLACE "^\\$<BUILD_INTERFACE:(.*)>$" "\\1" include "${include}")

  add_library(${name}_code OBJECT "${include}/butterfly/backend/host/kernels.cpp")
  target_link_libraries(${name}_code PRIVATE butterfly::butterfly)
  target_compile_definitions(${name}_code PRIVATE BUTTERFLY_KERNELS=${isa})
  # objcopy does not make GNU's unique symbols local.
  target_compile_options(${name}_code PRIVATE ${flags_of_${isa}} ${ARGN} -fno-lto -fno-sanitize=all
                                              $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)
  set_target_properties(
    ${name}_code
    PROPERTIES INTERPROCEDURAL_OPTIMIZATION OFF
               POSITION_INDEPENDENT_CODE ON
               UNITY_BUILD OFF
               EXCLUDE_FROM_ALL ON)

  set(object "${CMAKE_CURRENT_BINARY_DIR}/${name}.o")
  set(table butterfly_kernels_${isa})
  if(APPLE) # untried
    set(commands COMMAND "${BUTTERFLY_LD}" -r -exported_symbol _${table} $<TARGET_OBJECTS:${name}_code> -o "${object}")
  else()
    set(commands
        COMMAND "${BUTTERFLY_LD}" -r --force-group-allocation $<TARGET_OBJECTS:${name}_code> -o "${object}"
        COMMAND "${BUTTERFLY_OBJCOPY}" --keep-global-symbol=${table} "${object}")
  endif()
  add_custom_command(
    OUTPUT "${object}" ${commands}
    DEPENDS ${name}_code $<TARGET_OBJECTS:${name}_code>
    COMMENT "Keeping one symbol of ${name}"
    COMMAND_EXPAND_LISTS VERBATIM)
  add_library(${name} STATIC "${object}")
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
endfunction()

# Sets BUTTERFLY_LD and BUTTERFLY_OBJCOPY, in the cache.
function(butterfly_find_object_tools)
  if(BUTTERFLY_LD AND (BUTTERFLY_OBJCOPY OR APPLE))
    return()
  endif()
  if(NOT CMAKE_CROSSCOMPILING)
    find_program(ld_bfd NAMES ld.bfd NO_CACHE)
  endif()
  foreach(candidate IN ITEMS "${CMAKE_LINKER}" "${ld_bfd}")
    if(candidate AND NOT BUTTERFLY_LD)
      execute_process(COMMAND "${candidate}" --help OUTPUT_VARIABLE help ERROR_QUIET)
      if(APPLE OR help MATCHES "force-group-allocation")
        set(BUTTERFLY_LD "${candidate}" CACHE FILEPATH "Linker for butterfly_add_kernels")
      endif()
    endif()
  endforeach()
  if(NOT BUTTERFLY_LD)
    message(FATAL_ERROR "butterfly_add_kernels: needs a linker with -r --force-group-allocation (GNU ld 2.29 or newer) "
                        "and found '${CMAKE_LINKER}'; BUTTERFLY_LD may name one")
  endif()
  if(NOT BUTTERFLY_OBJCOPY AND CMAKE_OBJCOPY)
    set(BUTTERFLY_OBJCOPY "${CMAKE_OBJCOPY}" CACHE FILEPATH "objcopy for butterfly_add_kernels")
  endif()
  if(NOT BUTTERFLY_OBJCOPY AND NOT APPLE)
    message(FATAL_ERROR "butterfly_add_kernels: needs objcopy (GNU binutils or LLVM); BUTTERFLY_OBJCOPY may name one")
  endif()
  mark_as_advanced(BUTTERFLY_LD BUTTERFLY_OBJCOPY)
endfunction()
