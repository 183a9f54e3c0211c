# SPDX-License-Identifier: MIT
# cmake -DCOMPILER=<path> -DSOURCE=<file> -DINCLUDE=<directories> -P compile_twice.cmake
cmake_minimum_required(VERSION 3.24)

file(STRINGS "${SOURCE}" expected REGEX "^// expect: ")
list(LENGTH expected lines)
if(NOT lines EQUAL 1)
  message(FATAL_ERROR "${SOURCE}: wants one line `// expect: <regex>`")
endif()
string(REPLACE "// expect: " "" expected "${expected}")

set(command "${COMPILER}" -std=c++20 -fsyntax-only)
foreach(directory IN LISTS INCLUDE)
  if(directory AND NOT directory STREQUAL "/usr/include")
    list(APPEND command -I "${directory}")
  endif()
endforeach()

execute_process(COMMAND ${command} "${SOURCE}" RESULT_VARIABLE status ERROR_VARIABLE errors OUTPUT_QUIET)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${SOURCE}: the right version must compile\n${errors}")
endif()

execute_process(COMMAND ${command} -DBUTTERFLY_COMPILE_FAIL "${SOURCE}" RESULT_VARIABLE status ERROR_VARIABLE errors
                OUTPUT_QUIET)
if(status EQUAL 0)
  message(FATAL_ERROR "${SOURCE}: the wrong version compiled")
endif()
if(NOT errors MATCHES "${expected}")
  message(FATAL_ERROR "${SOURCE}: failed, but not with `${expected}`\n${errors}")
endif()
