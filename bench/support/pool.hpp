// SPDX-License-Identifier: MIT
#pragma once

// A machine as an engine with threads of its own has it: a pool whose threads all make the same call, each doing its
// share (butterfly::share). Nobody is woken while calls follow each other: waiting threads spin for some microseconds.

#include "machine.hpp"

namespace bench {

/// The backend on a pool of `threads`, the caller's among them. Caches are filled by the caller alone. `executor` is
/// for what else the program does in threads.
[[nodiscard]] machine make_pooled_machine(backend_entry const& backend, int threads, bf::executor const& executor);

} // namespace bench
