// SPDX-License-Identifier: MIT
#pragma once

// Dense attention in double, the truth of the program fidelity, and how far a result is from it.

#include <butterfly/core/executor.hpp>

#include "fidelity_walk.hpp"

#include <functional>
#include <string>
#include <vector>

namespace bench {

/// Queries, keys and values of one layer as read or made, in f32.
struct qkv {
    bf::heads_buffer<float> q{}; // [heads, tokens, head_dim]
    bf::heads_buffer<float> k{}; // [kv_heads, tokens, head_dim]
    bf::heads_buffer<float> v{}; // [kv_heads, tokens, value_dim]
    std::string from{};          // what it is, in words
};

/// What one system gave for the chosen queries.
struct system_run {
    bf::heads_buffer<float> out{}; // [heads, queries, value_dim]
    sightings seen;
};

/// How far an output is from dense attention, and what of the dense softmax was in sight. The shares are means over
/// rows of the dense weights of tokens seen by their own key, inside a visible summary, and not seen; they add up to 1.
struct verdict {
    double relative_error = 0; // |out - dense| / |dense|, L2 over all rows
    double cosine         = 0; // <out, dense> / (|out| |dense|), over all rows
    double row_cosine     = 0; // mean of the rows' own cosines
    double walk_error     = 0; // relative error of the output against attention in double over what the walk saw
    double exact          = 0;
    double summary        = 0;
    double unseen         = 0;
    double keys           = 0; // mean keys read by a query
    double summaries      = 0; // of them, summaries
    index_t most_keys     = 0;
    std::vector<double> head_errors{}; // [heads]
};

/// The truth, and the best that a selection of n keys can do.
struct judgement {
    std::vector<verdict> systems{};                // as given
    std::vector<verdict> best{};                   // as many as best_keys
    bf::heads_buffer<float> dense{};               // [heads, queries, value_dim]
    std::vector<bf::heads_buffer<float>> chosen{}; // outputs of `best`
};

/// Judges every run against dense causal attention of `in` at the ascending `positions`, scale 1 / sqrt(head_dim).
[[nodiscard]] judgement judge(qkv const& in,
                              std::vector<index_t> const& positions,
                              std::vector<system_run const*> const& runs,
                              std::vector<index_t> const& best_keys,
                              bf::executor const& threads);

} // namespace bench
