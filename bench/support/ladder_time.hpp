// SPDX-License-Identifier: MIT
#pragma once

// Time of the systems of one rung, interleaved in one process.
//
//   prefill   compressed: every chunk of every layer, in the order of a model. The others: chunks at the middles of
//             equal parts of the context, each in one layer (dense always in the first; window and block_sparse in
//             turns, because rows differ by layer); seconds per token are fitted by a line over the position, summed
//             over all tokens and multiplied by the layers (ladder_fit.hpp). Causal dense attention costs
//             a + b * position, for which that is exact but for noise; the standard error of the sum is stated.
//   decode    every token goes through the keys and values of every layer: compressed over 128 consecutive tokens, one
//             period of its exact window, the others over `decode`. One token before them is not timed.
//
// Every append is part of the time. Chunks of the sampled systems are spread between slices of the compressed prefill.

#include "ladder_settings.hpp"
#include "machine.hpp"
#include "progress.hpp"
#include "report.hpp"

#include <map>

namespace bench {

struct ladder_times {
    double prefill_seconds = 0;
    bool sampled           = false;
    double prefill_error   = 0; // standard error of prefill_seconds over it, from the fit; 0 where nothing is sampled
    double decode_seconds  = 0; // per token
    double spread          = 0; // of the rounds: largest less smallest over the median, the worst of both phases
    std::string prefill_kernel, decode_kernel;
    json samples; // every raw number

    [[nodiscard]] json to_json() const;
};

/// Times by system. Runs rounds until `seconds` are spent (at most seven; at least one of the prefill
/// and three of decoding), or settings.rounds of them.
/// `bar` advances by `work` in all.
[[nodiscard]] std::map<std::string, ladder_times>
measure_times(ladder_settings const& s, index_t context, double seconds, progress& bar, double work);

} // namespace bench
