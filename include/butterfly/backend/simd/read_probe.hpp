// SPDX-License-Identifier: MIT
#pragma once

// How the stream class reads: found by trying, while it works.
//
// Rows that will be read next may be fetched, and the first lines of pages ahead of their turn, because prefetchers of
// a CPU stop at pages of 4 KiB and start anew with a miss. Rows of several parts of a tile may take turns, because some
// memories like many streams. Keys may be fetched in the order of memory while values are summed. From memory fetching
// is worth a factor of two; from a cache it only costs, up to half of the time, and what is in a cache nobody says: a
// context may be small and yet cold, because other layers were read since. So each thread times spans, keeps a mean for
// each pattern and size of context, reads by the best, and tries the others again now and then. Fetching changes no
// bit.

#include <butterfly/core/index.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <ctime>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// What is fetched while rows are worked on.
struct read_pattern {
    bool ahead;    // the rows that are read next
    index_t lead;  // the first lines of pages, so many bytes before their turn; 0: they are not
    int streams;   // parts of a tile whose rows take turns: a divisor of tile_slots
    bool in_order; // keys fetched while values are summed: as they stand in memory, not by blocks of columns

    /// The row of a whole tile whose turn is the k-th.
    [[nodiscard]] constexpr int turn(int k) const noexcept {
        return k % streams * (tile_slots / streams) + k / streams;
    }
};

/// A clock that only goes forward, of POSIX. (Including <chrono> would take every user a tenth of a second of
/// compiling, and more with newer compilers.)
[[nodiscard]] inline double nanoseconds() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e9 * static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec);
}

/// Chooses a pattern for each span. Of one thread.
class read_probe {
public:
    static constexpr std::array<read_pattern, 6> patterns{{{true, 32768, 1, true},
                                                           {false, 0, 1, true},
                                                           {true, 0, 1, true},
                                                           {true, 131072, 1, true},
                                                           {true, 32768, 1, false},
                                                           {true, 0, 8, false}}};

    /// What to do with a span.
    struct trial {
        int size;    // of the context, a power of two
        int pattern; // of `patterns`
        bool timed;  // tell how long it took

        [[nodiscard]] read_pattern how() const noexcept { return patterns[static_cast<std::size_t>(pattern)]; }
    };

    /// For a span of a call that reads so many bytes. The first spans of a size try each pattern `first_turns` times;
    /// then one of eight is timed, and one of sixteen tries another pattern, at irregular distances, so that no layer
    /// of a model is always the one.
    [[nodiscard]] trial next(index_t bytes) noexcept {
        int const width    = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(bytes)));
        int const size     = std::clamp(width - smallest, 0, sizes - 1);
        state& s           = states_[static_cast<std::size_t>(size)];
        unsigned const n   = s.turn++;
        unsigned const all = static_cast<unsigned>(patterns.size());
        if (n < first_turns * all) return {size, static_cast<int>(n % all), true};
        std::uint32_t const draw = static_cast<std::uint32_t>(n) * 0x9e3779b1U; // Fibonacci hashing
        bool const other         = draw >> 28 == 0;
        return {size, other ? static_cast<int>((draw >> 16) % all) : s.best, draw >> 28 < 2};
    }

    /// The span of a trial took so long for each of its bytes. A single one that met a busy machine moves a mean
    /// little.
    void tell(trial const& t, float per_byte) noexcept {
        state& s    = states_[static_cast<std::size_t>(t.size)];
        float& mean = s.time[static_cast<std::size_t>(t.pattern)];
        if (mean == 0.0F) mean = per_byte;
        mean += per_byte < mean ? (per_byte - mean) / 2 : (std::min(per_byte, 2.0F * mean) - mean) / 8;
        float least = s.time[static_cast<std::size_t>(s.best)] * 0.97F; // what is as good stays
        for (std::size_t i = 0; i < patterns.size(); ++i)
            if (s.time[i] != 0.0F && s.time[i] < least) {
                s.best = static_cast<int>(i);
                least  = s.time[i];
            }
    }

private:
    static constexpr int smallest = 16, sizes = 16; // from 64 KiB to 2 GiB
    static constexpr unsigned first_turns = 4;

    struct state {
        std::array<float, patterns.size()> time{};
        unsigned turn = 0;
        int best      = 0;
    };
    std::array<state, static_cast<std::size_t>(sizes)> states_{};
};

/// What this thread has found.
inline constinit thread_local read_probe reads;

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
