# SPDX-License-Identifier: MIT
# The caches' kernels and the codecs' own text agree on real tensors: tests/bench/codec_fidelity_test.py.
add_bench_status_test(codec_fidelity .made_up 0 "lloyd_max16 +34 +68 .*k4v4 +lloyd_max16 +lloyd_max16 " --codec lloyd_max16
                      --queries 2000::64)
add_bench_status_test(codec_fidelity .bad_codec 2 "^codec_fidelity: --codec: abacus not in {f16," --codec abacus)
add_bench_status_test(codec_fidelity .bad_layers 2 "^codec_fidelity: --layers 3: .*qkv_cut.safetensors has no layer 3" --qkv
                      "${PROJECT_SOURCE_DIR}/tests/data/qkv_cut.safetensors" --layers 3)
add_bench_status_test(codec_fidelity .no_file 2 "^codec_fidelity: --layers 3: there is no file" --layers 3)
add_bench_status_test(codec_fidelity .bad_queries 2 "^codec_fidelity: --queries: 'last' is none of all, half, " --queries last)
add_bench_status_test(codec_fidelity .not_finite 2 "layer0.k is nan at head 1, token 1, column 3" --qkv
                      "${PROJECT_SOURCE_DIR}/tests/bench/not_finite.safetensors")
