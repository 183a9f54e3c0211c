// SPDX-License-Identifier: MIT

// Runs a fuzz target once on nothing and once on every file of the folders named: what libFuzzer does with `-runs=0`.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size);

int main(int argc, char** argv) {
    std::vector<std::filesystem::path> files;
    for (int i = 1; i < argc; ++i) {
        if (!std::filesystem::is_directory(argv[i])) continue;
        for (auto const& entry : std::filesystem::directory_iterator(argv[i])) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());

    std::uint8_t const nothing = 0;
    LLVMFuzzerTestOneInput(&nothing, 0);
    for (auto const& file : files) {
        std::cout << file.filename().string() << std::endl; // before the run: a crash names its input
        std::ifstream stream(file, std::ios::binary);
        std::vector<char> const bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
        LLVMFuzzerTestOneInput(reinterpret_cast<std::uint8_t const*>(bytes.data()), bytes.size());
    }
    std::cout << files.size() << " inputs\n";
}
