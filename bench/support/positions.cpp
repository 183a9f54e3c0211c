// SPDX-License-Identifier: MIT
#include "positions.hpp"

namespace bench {

index_t parse_count(std::string const& text, std::string_view option) {
    return text == "0" ? 0 : parse_size(text, option);
}

std::vector<index_t> parse_queries(std::string const& text, index_t tokens) {
    index_t first = 0, end = tokens, step = 1;
    if (text == "half") {
        first = tokens / 2;
    } else if (text != "all") {
        std::size_t const a = text.find(':'), b = text.find(':', a + 1);
        if (a == std::string::npos) throw usage_error("--queries: '{}' is none of all, half, FIRST:END:STEP", text);
        if (a > 0) first = parse_count(text.substr(0, a), "--queries");
        std::string const to = text.substr(a + 1, b == std::string::npos ? b : b - a - 1);
        if (!to.empty()) end = parse_count(to, "--queries");
        if (b != std::string::npos) step = parse_size(text.substr(b + 1), "--queries");
    }
    if (first >= end || end > tokens)
        throw usage_error("--queries {}: no positions, or some past the {} tokens", text, tokens);
    std::vector<index_t> out;
    for (index_t p = first; p < end; p += step) out.push_back(p);
    return out;
}

} // namespace bench
