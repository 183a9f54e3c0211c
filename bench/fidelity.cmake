# SPDX-License-Identifier: MIT
include(support/backends.cmake)
target_link_libraries(fidelity PRIVATE butterfly_bench_backends)
# Fails where the backend's output is not attention over the keys that its call shows.
add_test(NAME bench.fidelity.real_cut
         COMMAND fidelity --qkv "${PROJECT_SOURCE_DIR}/tests/data/qkv_cut.safetensors" --layer 5 --block-size 16
                 --exact-window 16 --partner all --partners 2 --steps 24,3,3 --threads 1)
set_tests_properties(bench.fidelity.real_cut PROPERTIES LABELS bench TIMEOUT 300)

add_bench_status_test(fidelity .twice_is_once 0 "written: twice.safetensors" --tokens 64 --systems window,oracle,window
                      --best-keys 8,8 --out twice.safetensors)
# What the backend reads of packed summaries is what the walk decodes.
add_bench_status_test(fidelity .summaries 0 " raw +0.[0-9]+ .* lloyd_max4 +0.[0-9]+ " --tokens 512 --block-size 16
                      --exact-window 16 --systems compressed --preset gap_free --summaries raw,int8,lloyd_max16,lloyd_max4)
add_bench_status_test(fidelity .bad_out 2 "^fidelity: --out /nonexistent/x: " --out /nonexistent/x)
add_bench_status_test(fidelity .bad_sink 2 "^fidelity: --sink: 'nan' is no number" --sink nan)
add_bench_status_test(fidelity .not_finite 2 "layer0.k is nan at head 1, token 1, column 3" --qkv
                      "${PROJECT_SOURCE_DIR}/tests/bench/not_finite.safetensors")
add_bench_status_test(fidelity .misfit 2 "layer 0 has q .4, 2, 4., k .2, 3, 4., v .2, 3, 4., which do not fit each other" --qkv
                      "${PROJECT_SOURCE_DIR}/tests/bench/misfit.safetensors")
