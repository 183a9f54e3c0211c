// SPDX-License-Identifier: MIT
// libFuzzer harness: whatever the bytes, load_npz gives a valid graph or a format_error.
//
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude tests/fuzz/graph_npz_fuzz.cpp -o
//   graph_npz_fuzz
//   ./graph_npz_fuzz tests/fuzz/corpus/graph_npz
#include <butterfly/graph/io.hpp>

#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    try {
        butterfly::graph const g = butterfly::load_npz(std::as_bytes(std::span(data, size)));
        if (butterfly::find_defect(g.view())) std::abort();
    } catch (butterfly::format_error const&) {
    }
    return 0;
}
