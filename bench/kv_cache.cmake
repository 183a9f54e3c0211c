# SPDX-License-Identifier: MIT
# The published arithmetic, and what of the published table comes out.
add_bench_status_test(kv_cache .published 0 "turbo_kv_4b.f16 +71.75 .*uniform_2b.f16 +66.50 .*2-bit . k512 +1.19 +2.185 +no +none"
                      --model llama-3.2-3b)
add_bench_status_test(kv_cache .own 0 "own: 2 layers, 3 heads of keys and values, head_dim 40.*left out: k4v4: lloyd_max: head_dim 40"
                      --layers 2 --kv-heads 3 --head-dim 40 --contexts 1000)
add_bench_status_test(kv_cache .json 0 "\"bytes\": 2407530496,[ \n]*\"allocated_bytes\": " --model llama-3.2-3b --contexts 32k
                      --published-window 0 --json -)
add_bench_status_test(kv_cache .half_a_model 2 "^kv_cache: --layers requires --" --layers 2)
add_bench_status_test(kv_cache .bad_contexts 2 "^kv_cache: --contexts: '7x' is no size" --contexts 7x)
