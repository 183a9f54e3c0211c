# SPDX-License-Identifier: MIT
# bench/peers is driven by Python; what of it measures nothing is tested here.
find_program(BUTTERFLY_PYTHON NAMES python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(NOT BUTTERFLY_PYTHON)
  find_program(BUTTERFLY_PYTHON NAMES python3)
endif()
if(BUTTERFLY_PYTHON)
  add_test(NAME bench.peers.driver COMMAND "${BUTTERFLY_PYTHON}" -W error "${CMAKE_CURRENT_LIST_DIR}/peers_test.py")
  set_tests_properties(bench.peers.driver PROPERTIES LABELS bench TIMEOUT 60 ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
endif()
