# SPDX-License-Identifier: MIT
# cmake -DLIBRARY=<archive> -DTABLE=<symbol> -DNM=<nm> -DREADELF=<readelf> -P one_symbol.cmake: fails unless the objects of
# the archive define that one global symbol, belong to no section group (a linker takes groups of one name for one) and
# run nothing when a program starts.
cmake_minimum_required(VERSION 3.24)

function(ask result)
  execute_process(COMMAND ${ARGN} "${LIBRARY}" OUTPUT_VARIABLE text RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${ARGN} ${LIBRARY}: status ${status}")
  endif()
  set(${result} "${text}" PARENT_SCOPE)
endfunction()

ask(defined "${NM}" --defined-only --extern-only)
string(REGEX MATCHALL "[0-9a-f]+ [A-Za-z] [^\n]+" symbols "${defined}")
if(NOT symbols MATCHES "^[0-9a-f]+ [DR] ${TABLE}$")
  string(REPLACE ";" "\n  " symbols "${symbols}")
  message(FATAL_ERROR "${LIBRARY}: ${TABLE} should be the one symbol defined, there are\n  ${symbols}")
endif()

ask(undefined "${NM}" --undefined-only)
if(undefined MATCHES " U [^\n]*butterfly[^\n]*")
  message(FATAL_ERROR "${LIBRARY}: takes from the program${CMAKE_MATCH_0}")
endif()

ask(groups "${READELF}" --section-groups --wide)
if(groups MATCHES "group section[^\n]*")
  message(FATAL_ERROR "${LIBRARY}: section groups are left: ${CMAKE_MATCH_0}")
endif()

ask(sections "${READELF}" --sections --wide)
if(sections MATCHES "\\.(init_array|ctors)")
  message(FATAL_ERROR "${LIBRARY}: runs code when a program starts, whatever the CPU: ${CMAKE_MATCH_0}")
endif()
