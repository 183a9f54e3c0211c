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
# Programs whose figures hang together.
if(BUTTERFLY_PYTHON AND BUTTERFLY_BUILD_BENCH)
  add_test(NAME bench.quantizers.figures COMMAND "${BUTTERFLY_PYTHON}" -W error "${CMAKE_CURRENT_LIST_DIR}/quantizers_test.py"
                                                 "$<TARGET_FILE:quantizers>")
  set_tests_properties(bench.quantizers.figures PROPERTIES LABELS bench TIMEOUT 300 ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
  add_test(NAME bench.codec_fidelity.figures
           COMMAND "${BUTTERFLY_PYTHON}" -W error "${CMAKE_CURRENT_LIST_DIR}/codec_fidelity_test.py"
                   "$<TARGET_FILE:codec_fidelity>" "${PROJECT_SOURCE_DIR}/tests/data/qkv_cut.safetensors")
  set_tests_properties(bench.codec_fidelity.figures PROPERTIES LABELS bench TIMEOUT 300 ENVIRONMENT
                                                               PYTHONDONTWRITEBYTECODE=1)
endif()
