# SPDX-License-Identifier: MIT
add_bench_status_test(mixed_prefill .small 0 "k4v4 +[0-9.]+ +[0-9.]+ +[0-9.]+ %" --tokens 1k --step 128 --head-dim 32 --heads 2
                      --kv-heads 1 --mix k4v4)
add_bench_status_test(mixed_prefill .short 2 "^mixed_prefill: --tokens 1k: 2 steps of 512, fewer than --attended 4" --tokens 1k)
add_bench_status_test(mixed_prefill .heads 2 "^mixed_prefill: --heads 3 is no multiple of --kv-heads 2" --heads 3)
add_bench_status_test(mixed_prefill .bad_head_dim 2 "^mixed_prefill: --head-dim 24: k4v4: lloyd_max: head_dim 24" --head-dim 24 --mix k4v4)
