// SPDX-License-Identifier: MIT
#include "limits_threads.hpp"

#include "timing.hpp"

#include <algorithm>
#include <atomic>

namespace bench {
namespace {

/// Where sums go, so that no loop can be left out.
std::atomic<double> sink = 0;

} // namespace

std::int64_t turns_for(double seconds, std::function<double(std::int64_t)> const& work) {
    for (std::int64_t turns = 1;; turns *= 2) {
        stopwatch const watch;
        sink = sink + work(turns);
        if (watch.seconds() >= seconds) return turns;
    }
}

double rate_of(butterfly::executor const& threads, compute_unit const& unit, double seconds) {
    if (!unit.present) return 0;
    std::int64_t const turns = turns_for(1e-3, [&](std::int64_t n) { return double{unit.run(n)}; });
    double best              = 0;
    stopwatch const all;
    do {
        stopwatch const watch;
        threads.each(threads.threads(), [&](butterfly::index_t, int) noexcept { sink = double{unit.run(turns)}; });
        best = std::max(best, unit.work * static_cast<double>(turns) * threads.threads() / watch.seconds());
    } while (all.seconds() < seconds);
    return best;
}

std::uint64_t read_all(butterfly::executor const& threads,
                       std::span<std::byte const> memory,
                       int passes,
                       read_pattern const& pattern,
                       read_function read) {
    std::atomic<std::uint64_t> sum{0};
    std::size_t const pages = memory.size() / page_bytes, parts = static_cast<std::size_t>(threads.threads());
    auto const first = [&](std::size_t part) { return pages * part / parts * page_bytes; };
    threads.each(threads.threads(), [&](butterfly::index_t part, int) noexcept {
        std::size_t const at = first(static_cast<std::size_t>(part)), end = first(static_cast<std::size_t>(part) + 1);
        for (int i = 0; i < passes; ++i)
            sum += read(reinterpret_cast<char const*>(memory.data()) + at, end - at, pattern);
    });
    return sum;
}

} // namespace bench
