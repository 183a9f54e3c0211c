// SPDX-License-Identifier: MIT
#pragma once

// The systems that the program fidelity compares, each run once by the backend and once by the witness.

#include "fidelity_judge.hpp"
#include "machine.hpp"
#include "row_text.hpp"

#include <string>
#include <vector>

namespace bench {

/// What all systems share.
struct fidelity_settings {
    index_t block_size       = 128;
    index_t exact_window     = 64;
    index_t exact_sinks      = 4;
    index_t max_tokens       = 0; // 0: the tokens there are
    index_t layer            = 0; // ordinal among the attention layers
    index_t attention_layers = 6;
    int partners             = 0; // per layer; 0: gap_free as few as use every stage, published one
    index_t stride           = 2; // of fixed_stride in gap_free, where window already has the block before
    std::vector<int> stages{};    // instead of the preset's
    std::vector<index_t> steps{}; // tokens of each append, the last one repeated
    bf::element_type storage = bf::element_type::f32;
    bool keep_token_weights  = false;
};

/// One line of the comparison. preset and partner are empty where a system has none.
struct system_request {
    std::string system;
    std::string preset{};
    std::string partner{};
    index_t exact_window  = 0;     // 0: the settings'
    std::string summaries = "raw"; // of compressed: a name of summary_codec_names

    /// "compressed gap_free causal_shift".
    [[nodiscard]] std::string name() const;
};

/// A run with what it costs.
struct system_result {
    system_request request;
    system_run run;
    index_t exact_window = 0;
    std::string stages{};          // those of the last call
    double retained_per_token = 0; // bytes, all heads: mean over the last block of a decode that ends here
    index_t retained_after    = 0; // bytes after the steps that were run
    double bytes_per_key      = 0; // of one query token: rows of k and v of every kv head
    double bytes_per_summary  = 0; // the same of summaries
};

/// Which names there are.
[[nodiscard]] std::vector<std::string> const& partner_names();

/// The partner rule of a layer when `blocks` blocks are there (published) or will ever be (gap_free), after the
/// settings. Throws usage_error for stages that do not fit.
[[nodiscard]] runtime_row
partner_row(fidelity_settings const& s, system_request const& r, index_t blocks, topology::stage_list& stages);

/// Runs one system over all tokens of `in` and keeps the chosen positions.
[[nodiscard]] system_result run_system(machine const& m,
                                       qkv const& in,
                                       std::vector<index_t> const& positions,
                                       fidelity_settings const& s,
                                       system_request const& r);

} // namespace bench
