# SPDX-License-Identifier: MIT
include(support/backends.cmake)
target_link_libraries(sparse_sdpa PRIVATE butterfly_bench_backends)
# Fails where a form is not what the oracle says.
add_test(NAME bench.sparse_sdpa.small COMMAND sparse_sdpa --tokens 256 --head-dim 32 --storage f32,bf16 --min-time 0.001
                                              --threads 1)
set_tests_properties(bench.sparse_sdpa.small PROPERTIES LABELS bench TIMEOUT 300)
add_bench_status_test(sparse_sdpa .no_tokens 2 "^sparse_sdpa: --tokens: the list is empty" --tokens ,)
