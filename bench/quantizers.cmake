# SPDX-License-Identifier: MIT
# Fails where the backend decodes something else than a codec, or attends to something else than what it decodes.
add_test(NAME bench.quantizers.speed COMMAND quantizers --vectors 256 --seconds 1e-6)
# At head_dim 80 rows end in parts of what kernels work on at a time.
add_test(NAME bench.quantizers.head_dim_80 COMMAND quantizers --vectors 128 --head-dim 80 --seconds 1e-6)
set_tests_properties(bench.quantizers.speed bench.quantizers.head_dim_80 PROPERTIES LABELS bench TIMEOUT 300)

add_bench_status_test(quantizers .real_cut 0 "\"keys\": {[^}]*\"rows\": 448,.*\"values\": {[^}]*\"nmse\"" --qkv
                      "${PROJECT_SOURCE_DIR}/tests/data/qkv_cut.safetensors" --layer 5 --codec affine_channels2_32 --vectors 128
                      --no-timing --json -)
add_bench_status_test(quantizers .left_out 0 "left out: ggml_q4_0: ggml_q4_0: head_dim 48 is not a multiple of 32" --codec
                      ggml_q4_0 --codec lloyd_max16 --head-dim 48 --vectors 128 --no-timing)
add_bench_status_test(quantizers .none_left 2 "^quantizers: --codec: lloyd_max: head_dim 100 is not a multiple of 16" --codec
                      lloyd_max16 --head-dim 100)
add_bench_status_test(quantizers .bad_codec 2 "^quantizers: --codec: abacus not in {f16," --codec abacus)
add_bench_status_test(quantizers .bad_head_dim 2 "^quantizers: --head-dim 128: rows of .*qkv_cut.safetensors have 64" --qkv
                      "${PROJECT_SOURCE_DIR}/tests/data/qkv_cut.safetensors" --head-dim 128)
add_bench_status_test(quantizers .not_finite 2 "layer0.k is nan at head 1, token 1, column 3" --qkv
                      "${PROJECT_SOURCE_DIR}/tests/bench/not_finite.safetensors")
