// SPDX-License-Identifier: MIT
#pragma once

#include <thread>
#include <vector>

namespace butterfly::testing {

/// Calls f(i) for i in [0, threads), each on a thread of its own, and waits for them.
template <class F>
void on_threads(int threads, F const& f) {
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i) workers.emplace_back([&f, i] { f(i); });
    for (std::thread& w : workers) w.join();
}

} // namespace butterfly::testing
