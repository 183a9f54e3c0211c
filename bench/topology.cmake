# SPDX-License-Identifier: MIT
include(support/backends.cmake)
target_link_libraries(topology PRIVATE butterfly_bench_backends)

foreach(backend scalar simd)
  add_bench_status_test(topology .${backend} 0 "attention +[0-9.]+ ms by ${backend}.*, head_dim 40: [0-9.]+ M edges/s"
                        --backend ${backend} --nodes 256 --heads 2 --head-dim 40)
endforeach()
add_bench_status_test(topology .no_attention 0 "head_dim.: 0[^,]*$" --nodes 64 --head-dim 0 --json -)
add_bench_status_test(topology .no_backend 2 "^topology: --backend abacus: there is " --backend abacus)
