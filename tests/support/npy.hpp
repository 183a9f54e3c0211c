// SPDX-License-Identifier: MIT
#pragma once

// Small float32 arrays and JSON from tests/data.

#include <butterfly/core/heads.hpp>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace butterfly::testing {

/// The bytes of a file under tests/data. Throws std::runtime_error where there is none.
inline std::string read_data(std::string const& name) {
    std::ifstream file(std::string(BUTTERFLY_TEST_DATA) + "/" + name, std::ios::binary);
    if (!file) throw std::runtime_error("no tests/data/" + name);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// The entries of {"cases": [...]}.
inline nlohmann::json read_cases(std::string const& name) {
    return nlohmann::json::parse(read_data(name)).at("cases");
}

/// A version 1 .npy of C-order float32 [1, heads, tokens, head_dim]. Throws std::runtime_error for anything else.
inline heads_buffer<float> read_npy(std::string const& name) {
    std::string const bytes = read_data(name);
    auto const wrong        = [&] { return std::runtime_error("not a float32 [1, h, t, d] array: " + name); };
    if (bytes.size() < 10 || bytes.compare(0, 8, "\x93NUMPY\x01\x00", 8) != 0) throw wrong();
    std::size_t const length = static_cast<std::uint8_t>(bytes[8]) + 256U * static_cast<std::uint8_t>(bytes[9]);
    std::string const header = bytes.substr(10, length);
    auto const at            = header.find("'shape': (");
    if (header.find("'<f4'") == std::string::npos || header.find("'fortran_order': False") == std::string::npos ||
        at == std::string::npos)
        throw wrong();
    long long one = 0, heads = 0, tokens = 0, dim = 0;
    if (std::sscanf(header.c_str() + at, "'shape': (%lld, %lld, %lld, %lld)", &one, &heads, &tokens, &dim) != 4 ||
        one != 1)
        throw wrong();
    heads_buffer<float> out({heads, tokens, dim});
    if (bytes.size() != 10 + length + out.values().size() * 4) throw wrong();
    std::memcpy(out.values().data(), bytes.data() + 10 + length, out.values().size() * 4);
    return out;
}

} // namespace butterfly::testing
