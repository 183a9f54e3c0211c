# SPDX-License-Identifier: MIT
# The snippets of docs/ run, and the pages agree with them and with each other.
find_program(BUTTERFLY_PYTHON NAMES python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(NOT BUTTERFLY_PYTHON)
  find_program(BUTTERFLY_PYTHON NAMES python3)
endif()
if(BUTTERFLY_PYTHON)
  add_test(NAME docs.pages COMMAND "${BUTTERFLY_PYTHON}" "${CMAKE_CURRENT_LIST_DIR}/check.py")
  set_tests_properties(docs.pages PROPERTIES LABELS docs)
endif()

# Each snippet is a program.
if(BUTTERFLY_TEST_SNIPPETS AND NOT BUTTERFLY_TEST_FOLDERS)
  file(GLOB docs_programs RELATIVE "${CMAKE_CURRENT_LIST_DIR}" CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/*.cpp")
  foreach(source IN LISTS docs_programs)
    get_filename_component(name "${source}" NAME_WE)
    add_executable(docs_${name} "${CMAKE_CURRENT_LIST_DIR}/${source}")
    set_target_properties(docs_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
    target_link_libraries(docs_${name} PRIVATE butterfly::testing butterfly_warnings)
    target_compile_options(docs_${name} PRIVATE $<$<CONFIG:Debug>:-O1>) # they run laws and long contexts
    file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/${source}" uses_host REGEX "#include <butterfly/backend/host.hpp>" LIMIT_COUNT 1)
    if(uses_host)
      butterfly_add_kernels(docs_${name})
    endif()
    add_test(NAME docs.${name} COMMAND docs_${name})
    set_tests_properties(docs.${name} PROPERTIES LABELS docs)
  endforeach()
endif()
