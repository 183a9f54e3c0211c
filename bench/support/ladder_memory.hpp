// SPDX-License-Identifier: MIT
#pragma once

// Memory of one system at one context, measured in a process that holds nothing else.

#include "ladder_settings.hpp"
#include "report.hpp"

#include <optional>

namespace bench {

struct ladder_memory {
    std::optional<index_t> peak_bytes{}; // resident, all buffers alive; empty where the system does not tell
    index_t base_bytes      = 0;         // resident before anything was allocated
    index_t retained_bytes  = 0;         // needed to go on after the prefill
    index_t allocated_bytes = 0;         // of all buffers of keys and values
    double token_bytes      = 0;         // read by one decoded token, all layers: keys, values, weights
    index_t counted_tokens  = 0;         // consecutive tokens `token_bytes` is the mean of
};

/// In this process: every layer's keys and values are allocated and written step by step, the last chunk and one token
/// attended in one layer; then the resident memory is read while all of it is alive.
[[nodiscard]] ladder_memory measure_memory(ladder_settings const& s, std::string const& system, index_t context);

/// The same in a child process (in this one where there can be none). Throws runtime_error where the child fails.
[[nodiscard]] ladder_memory measure_memory_apart(ladder_settings const& s, std::string const& system, index_t context);

[[nodiscard]] json to_json(ladder_memory const& m);
[[nodiscard]] ladder_memory memory_from_json(json const& j);

/// Bytes a rung needs at most, before anything of it is allocated.
[[nodiscard]] double rung_bytes(ladder_settings const& s, index_t context);

} // namespace bench
