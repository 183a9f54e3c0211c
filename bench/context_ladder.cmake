# SPDX-License-Identifier: MIT
include(support/backends.cmake)
target_link_libraries(context_ladder PRIVATE butterfly_bench_backends)

# The published byte table, to the byte, and a rung small enough for every machine.
add_test(NAME bench.context_ladder.accounting COMMAND context_ladder --accounting published)
set_tests_properties(
  bench.context_ladder.accounting
  PROPERTIES LABELS bench TIMEOUT 300 PASS_REGULAR_EXPRESSION
             "32k +414326784 +16379904 .*64k +816979968 +21098496 .*128k +1622286336 +25817088 .*256k +3232899072 +39972864 .*1/108 .*32k +1104281600 +43089920 .*64k +2178023424 +55672832 .*128k +4325507072 +68255744 "
)
foreach(backend scalar simd)
  add_test(NAME bench.context_ladder.${backend}
           COMMAND context_ladder --backend ${backend} --contexts 512,1k --heads 2 --kv-heads 1 --head-dim 32 --layers 2
                   --rounds 1 --json -)
  set_tests_properties(bench.context_ladder.${backend} PROPERTIES LABELS bench TIMEOUT 300)
endforeach()

add_bench_status_test(context_ladder .summaries 0 "sinks, summaries lloyd_max16" --summaries lloyd_max16 --systems compressed
                      --contexts 1k --heads 2 --kv-heads 1 --head-dim 32 --layers 2 --rounds 1)
add_bench_status_test(context_ladder .bad_summaries 2 "^context_ladder: --summaries: abacus not in {raw," --summaries abacus)

add_bench_status_test(context_ladder .bad_budget 2 "^context_ladder: --budget: 'nan' is no number" --budget nan)
add_bench_status_test(context_ladder .no_contexts 2 "^context_ladder: --contexts: the list is empty" --contexts ,)
add_bench_status_test(context_ladder .bad_numbers 2 "^context_ladder: --layer-numbers: 'x'" --layer-numbers x)
add_bench_status_test(context_ladder .bad_partners 2 "^context_ladder: --partners 62: " --partners 62 --contexts 1k)
add_bench_status_test(context_ladder .bad_partners_of_dense 2 "^context_ladder: --partners 5: 4 blocks have only 2 stages"
                      --systems dense --partners 5 --contexts 512)
add_bench_status_test(context_ladder .no_partners 2 "^context_ladder: --partners 3: " --partner none --partners 3)
add_bench_status_test(context_ladder .bad_sinks 2 "^context_ladder: --exact-sinks 1048576: " --contexts 4k --exact-sinks
                      1048576)
add_bench_status_test(context_ladder .not_finite 2 "layer0.k is nan at head 1, token 1, column 3" --qkv
                      "${PROJECT_SOURCE_DIR}/tests/bench/not_finite.safetensors")
add_bench_status_test(context_ladder .misfit 2 "layer 0 has q .4, 2, 4., k .2, 3, 4., v .2, 3, 4., which do not fit each other"
                      --qkv "${PROJECT_SOURCE_DIR}/tests/bench/misfit.safetensors")
