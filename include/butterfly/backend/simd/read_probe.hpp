// SPDX-License-Identifier: MIT
#pragma once

// How far ahead of a page's turn its first lines are fetched, found by trying.
//
// Prefetchers of a CPU stop at pages of 4 KiB and start anew with a miss; which distance hides that, and whether it is
// worth the instructions, differs from machine to machine (docs/kernels.md has what it brought where). So the first long
// spans that a process decodes are timed, each distance in turn; the best median is kept from then on. Fetching changes
// no bit.

#include <butterfly/core/index.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Chooses among `leads` by time. Any thread may ask and tell at any time.
class read_probe {
public:
    /// Distances in bytes; 0: pages are not fetched.
    static constexpr std::array<index_t, 4> leads{32768, 0, 8192, 131072};

    /// Timed spans of each distance, and the bytes a span must read to be timed.
    static constexpr std::size_t turns   = 8;
    static constexpr index_t least_bytes = 1 << 20;

    /// What to do with a span.
    struct trial {
        index_t lead;
        int number; // of the distance that is tried; -1: none is, the span need not be timed
    };

    [[nodiscard]] trial next() noexcept {
        if (int const best = best_.load(std::memory_order_relaxed); best >= 0) return {lead(best), -1};
        auto const number = static_cast<int>(started_.fetch_add(1, std::memory_order_relaxed) % leads.size());
        return {lead(number), number};
    }

    /// The span of a trial read `bytes` bytes in `nanoseconds`. One that was too short says nothing.
    void tell(trial const& t, double bytes, double nanoseconds) noexcept {
        if (t.number < 0 || bytes < double{least_bytes}) return;
        auto const i     = static_cast<std::size_t>(t.number);
        unsigned const n = told_[i].fetch_add(1, std::memory_order_relaxed);
        if (n >= turns) return;
        times_[i][n].store(static_cast<float>(nanoseconds / bytes), std::memory_order_relaxed);
        if (all_.fetch_add(1, std::memory_order_acq_rel) == turns * leads.size() - 1) decide();
    }

private:
    [[nodiscard]] static index_t lead(int i) noexcept { return leads[static_cast<std::size_t>(i)]; }

    [[nodiscard]] float median(std::size_t i) const noexcept {
        std::array<float, turns> times;
        for (std::size_t t = 0; t < turns; ++t) times[t] = times_[i][t].load(std::memory_order_relaxed);
        std::ranges::nth_element(times, times.begin() + turns / 2);
        return times[turns / 2];
    }

    /// The best, or the first where none is better by a twentieth.
    void decide() noexcept {
        int best    = 0;
        float least = median(0) * 0.95F;
        for (std::size_t i = 1; i < leads.size(); ++i)
            if (float const time = median(i); time < least) {
                best  = static_cast<int>(i);
                least = time;
            }
        best_.store(best, std::memory_order_relaxed);
    }

    std::array<std::array<std::atomic<float>, turns>, leads.size()> times_{};
    std::array<std::atomic<unsigned>, leads.size()> told_{};
    std::atomic<unsigned> started_{0};
    std::atomic<std::size_t> all_{0};
    std::atomic<int> best_{-1};
};

/// What this process has found.
inline read_probe reads;

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
