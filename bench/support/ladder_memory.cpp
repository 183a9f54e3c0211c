// SPDX-License-Identifier: MIT
#include "ladder_memory.hpp"

#include "ladder_systems.hpp"
#include "memory.hpp"

#include <algorithm>

namespace bench {
namespace {

/// Tokens whose reads are counted: what one period of a compressed cache is, or the decoded tokens.
index_t counted_tokens(ladder_settings const& s, std::string const& system) {
    return system == "compressed" ? std::max<index_t>(128, s.block_size) : s.decode;
}

} // namespace

ladder_memory measure_memory(ladder_settings const& s, std::string const& system, index_t context) {
    ladder_memory m{.base_bytes = resident_bytes().value_or(0), .counted_tokens = counted_tokens(s, system)};
    machine const backend = make_machine(s.common.backend, s.common.threads);
    auto const rung       = make_rung(s, context);
    auto const kv         = rung->make(system, context + std::max(s.room(), m.counted_tokens + 1));

    index_t last = 0;
    for (index_t at = 0; at < context; at += s.step) {
        last = std::min(s.step, context - at);
        for (index_t layer = 0; layer < s.model.layers; ++layer) kv->append(backend, layer, at, last);
    }
    m.retained_bytes  = kv->retained_bytes(context);
    m.allocated_bytes = kv->allocated_bytes();

    kv->attend(backend, 0, context - last, last);
    for (index_t layer = 0; layer < s.model.layers; ++layer) kv->append(backend, layer, context, 1);
    kv->attend(backend, 0, context, 1);
    m.peak_bytes = resident_bytes();

    index_t bytes         = 0;
    machine const counter = make_counter(bytes);
    for (index_t i = 1; i <= m.counted_tokens; ++i) {
        for (index_t layer = 0; layer < s.model.layers; ++layer) {
            kv->append(backend, layer, context + i, 1);
            kv->attend(counter, layer, context + i, 1);
        }
    }
    m.token_bytes = static_cast<double>(bytes) / static_cast<double>(m.counted_tokens);
    return m;
}

ladder_memory measure_memory_apart(ladder_settings const& s, std::string const& system, index_t context) {
    if (!resident_bytes()) return measure_memory(s, system, context);
    return memory_from_json(json::parse(run_self(s.child_arguments(system, context))));
}

json to_json(ladder_memory const& m) {
    return {{"peak_bytes", m.peak_bytes ? json(*m.peak_bytes) : json()},
            {"base_bytes", m.base_bytes},
            {"retained_bytes", m.retained_bytes},
            {"allocated_bytes", m.allocated_bytes},
            {"bytes_read_per_token", m.token_bytes},
            {"counted_tokens", m.counted_tokens}};
}

ladder_memory memory_from_json(json const& j) {
    ladder_memory m{.base_bytes      = j.at("base_bytes"),
                    .retained_bytes  = j.at("retained_bytes"),
                    .allocated_bytes = j.at("allocated_bytes"),
                    .token_bytes     = j.at("bytes_read_per_token"),
                    .counted_tokens  = j.at("counted_tokens")};
    if (!j.at("peak_bytes").is_null()) m.peak_bytes = j.at("peak_bytes").get<index_t>();
    return m;
}

double rung_bytes(ladder_settings const& s, index_t context) {
    auto const token    = static_cast<double>(s.token_bytes());
    auto const blocks   = static_cast<double>(context) / static_cast<double>(s.block_size);
    auto const slack    = static_cast<double>(s.step + s.exact_window + 2 * s.block_size + s.room());
    double const chunk  = 4.0 * static_cast<double>(s.step * s.model.heads * s.model.head_dim);
    bool const raw      = s.has("dense") || s.has("block_sparse");
    double const tokens = (raw ? static_cast<double>(context) + slack : 0.0) + blocks + 2 * slack;
    return token * tokens + 8 * chunk + 256e6; // inputs, output, scratch of the kernels, the program itself
}

} // namespace bench
