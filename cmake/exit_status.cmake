# SPDX-License-Identifier: MIT
# cmake -DPROGRAM=<path> -DARGUMENT=<list> -DSTATUS=<n> [-DEXPECT=<regex>] -P exit_status.cmake: fails unless the program
# exits with n, and its output matches the regex.
cmake_minimum_required(VERSION 3.24)

execute_process(COMMAND "${PROGRAM}" ${ARGUMENT} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT status EQUAL STATUS)
  message(FATAL_ERROR "${PROGRAM} ${ARGUMENT}: exit status ${status}, expected ${STATUS}\n${output}")
endif()
if(DEFINED EXPECT AND NOT output MATCHES "${EXPECT}")
  message(FATAL_ERROR "${PROGRAM} ${ARGUMENT}: no match of ${EXPECT} in\n${output}")
endif()
