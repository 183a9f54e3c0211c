# SPDX-License-Identifier: MIT
# cmake -DINCLUDE=<include/butterfly> -P layering_test.cmake: who may include whom.
#
#   core <- graph <- topology      core <- quant      core, graph, topology, backend/policy, quant/codec <- sdpa
#   sdpa, quant <- cache           core, graph, sdpa, quant, cache <- backend (all but policy)
#   testing and interop may include all; nobody includes the umbrella; no file outside backend/ names a backend
#   (the umbrella and testing/ aside).
#
# Two headers are interfaces, and are allowed by name where their folders are not: backend/policy says what a machine
# is, quant/codec what a codec is. Neither names one.
cmake_minimum_required(VERSION 3.24)

set(core core)
set(graph core graph)
set(topology core graph topology)
set(quant core quant)
set(sdpa core graph topology sdpa backend/policy quant/codec)
set(cache core graph topology sdpa quant cache backend/policy)
set(backend core graph sdpa quant cache backend)
set(testing core graph topology sdpa quant cache backend testing interop)
set(interop core graph topology sdpa quant cache backend testing interop)

get_filename_component(INCLUDE "${INCLUDE}" ABSOLUTE)
file(GLOB_RECURSE headers RELATIVE "${INCLUDE}" "${INCLUDE}/*")
list(LENGTH headers count)
if(count EQUAL 0)
  message(FATAL_ERROR "layering: no header under ${INCLUDE}")
endif()

set(defects "")
foreach(header IN LISTS headers)
  if(header STREQUAL "butterfly.hpp" OR header STREQUAL "version.hpp")
    continue()
  endif()
  string(REGEX REPLACE "/.*" "" folder "${header}")
  set(allowed "${${folder}}")
  if(header STREQUAL "backend/policy.hpp")
    set(allowed core)
  endif()
  if(NOT allowed)
    string(APPEND defects "  ${header}: a folder without a place in the layering\n")
    continue()
  endif()

  file(READ "${INCLUDE}/${header}" text)
  string(REPLACE ";" "," text "${text}")
  string(REGEX MATCHALL "#[ ]*include[ ]*[<\"]butterfly/[^>\"]+" includes "${text}")
  foreach(include IN LISTS includes)
    string(REGEX REPLACE ".*[<\"]butterfly/" "" included "${include}")
    string(REGEX REPLACE "/.*" "" from "${included}")
    string(REGEX REPLACE "\\.[a-z]+$" "" interface "${included}")
    if(included STREQUAL "butterfly.hpp")
      string(APPEND defects "  ${header}: includes the umbrella\n")
    elseif(NOT (included STREQUAL "version.hpp" OR from IN_LIST allowed OR interface IN_LIST allowed))
      string(APPEND defects "  ${header}: ${folder} must not include ${included}\n")
    endif()
  endforeach()

  # Comments may speak of a backend; code may not.
  if(NOT folder MATCHES "^(backend|testing|interop)$")
    string(REGEX REPLACE "//[^\n]*" "" code "${text}")
    string(REGEX MATCH "backend::(scalar|simd|host|cuda|metal)|isa::[a-z]" named "${code}")
    if(named)
      string(APPEND defects "  ${header}: names a backend (${named})\n")
    endif()
  endif()
endforeach()

if(defects)
  message(FATAL_ERROR "layering:\n${defects}")
endif()
message(STATUS "layering: ${count} headers")
