# SPDX-License-Identifier: MIT
include(support/backends.cmake)
target_link_libraries(decode PRIVATE butterfly_bench_backends)
# Fails where a column is not attention.
add_test(NAME bench.decode.small COMMAND decode --n-kv 300 --head-dim 40 --rows 2 --system dense,compressed --seconds 0.01
                                         --threads 1)
set_tests_properties(bench.decode.small PROPERTIES LABELS bench TIMEOUT 300)
# Every codec and every mix, held to the definition.
add_test(NAME bench.decode.codecs COMMAND decode --n-kv 300 --head-dim 64 --system dense,mixed --storage all --mix all
                                          --seconds 0.001 --threads 1)
set_tests_properties(bench.decode.codecs PROPERTIES LABELS bench TIMEOUT 300)
add_bench_status_test(decode .in_place 2 "^decode: --storage trellis4: --system compressed takes rows" --system compressed
                      --storage trellis4 --n-kv 300 --head-dim 64 --threads 1)
add_bench_status_test(decode .bad_head_dim 2 "^decode: --head-dim 100: lloyd_max16: lloyd_max: head_dim 100 is not a multiple of 16"
                      --storage lloyd_max16 --head-dim 100)
add_bench_status_test(decode .group 2 "^decode: --heads 8 is not a multiple of --kv-heads 3" --kv-heads 3)
add_bench_status_test(decode .mix_of_no_system 2 "^decode: --mix is of --system mixed" --mix k8v4)
add_bench_status_test(decode .storage_of_no_system 2 "^decode: --storage is of --system dense and compressed" --system mixed
                      --storage int8)
add_bench_status_test(decode .many_rows 0 "\"class\": \"tile\"" --n-kv 64 --rows 9 --storage f32 --seconds 0.001 --threads 1
                      --json -)
add_bench_status_test(decode .unit 0 "\"class\": \"\".*\"unit\": \"fma_f32_build\"" --backend scalar --n-kv 64 --storage bf16
                      --seconds 0.001 --threads 1 --json -)
if(BUTTERFLY_OPENMP AND OpenMP_CXX_FOUND)
  add_bench_status_test(decode .share 0 "\"threads\": 3" --executor share --threads 3 --n-kv 300 --head-dim 40 --rows 1,9 --system
                        dense,compressed --storage f32 --seconds 0.01 --json -)
  set_tests_properties(bench.decode.share PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=passive)
  add_bench_status_test(decode .share_spins 2 "^decode: --executor share: set OMP_WAIT_POLICY=passive" --executor share --threads
                        1,2)
  set_tests_properties(bench.decode.share_spins PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=active)
endif()
add_bench_status_test(decode .executor 2 "--executor: .*openmp" --executor nobody)
