# SPDX-License-Identifier: MIT
# numpy.load opens what save_npz writes.
add_executable(graph_write_graph "${CMAKE_CURRENT_LIST_DIR}/write_graph.cpp")
target_link_libraries(graph_write_graph PRIVATE butterfly butterfly_warnings)
set_target_properties(graph_write_graph PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
find_program(BUTTERFLY_PYTHON NAMES python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(NOT BUTTERFLY_PYTHON)
  find_program(BUTTERFLY_PYTHON NAMES python3)
endif()
if(BUTTERFLY_PYTHON)
  add_test(NAME graph_numpy_load COMMAND "${BUTTERFLY_PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/numpy_load.py"
                                         $<TARGET_FILE:graph_write_graph>)
  set_tests_properties(graph_numpy_load PROPERTIES LABELS graph SKIP_RETURN_CODE 77)
endif()
