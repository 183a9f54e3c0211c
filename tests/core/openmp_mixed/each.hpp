// SPDX-License-Identifier: MIT
#pragma once

#include <butterfly/core/executor.hpp>

#include <atomic>
#include <chrono>

/// Items 0 and 1 wait for each other, for so long at most: only two threads see both started.
struct wait_for_both {
    std::chrono::milliseconds at_most;
    std::atomic<int>* started;
    std::atomic<int>* alone;

    void operator()(butterfly::index_t, int) const noexcept {
        ++*started;
        auto const end = std::chrono::steady_clock::now() + at_most;
        while (*started < 2)
            if (std::chrono::steady_clock::now() > end) {
                ++*alone;
                return;
            }
    }
};

/// How many of two items ran alone.
inline int alone(butterfly::executor const& e, std::chrono::milliseconds at_most) {
    std::atomic<int> started{0}, result{0};
    e.each(2, wait_for_both{at_most, &started, &result});
    return result;
}

int alone_without_openmp();
