// SPDX-License-Identifier: MIT

// What this machine can do at most: arithmetic of each unit, and read bandwidth of each level of memory by the way of
// reading. Goals are quoted against these figures, of the same run.
//
// A figure is the median of repetitions of a few milliseconds each, all threads starting together, each on a core of
// its own where the system lets it, and the slowest counting. They are spread over the whole run, in rounds, so that a
// neighbour who is busy for a second does not decide one figure. `best` is the fastest of them, `spread` the slowest
// less the fastest over the median. Read bandwidth of L1 and L2 is measured on half of the cache, of L3 on a quarter of
// it shared by the threads, of DRAM on four times L3 and 256 MiB at least.

#include <butterfly/backend/simd/cpu.hpp>

#include "limits_compute.hpp"
#include "limits_read.hpp"
#include "limits_threads.hpp"
#include "machine.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "timing.hpp"
#include "usage.hpp"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#endif

namespace {

struct settings {
    int threads    = bench::default_threads();
    int rounds     = 5;
    double seconds = 0.005; // of a repetition, at least
    std::string json;
};

/// One line of the report; see the head of this file. Absent units have no numbers.
struct limit {
    std::string kind; // compute or read
    std::string name; // of the unit, or of the level
    std::string pattern{};
    std::string unit;
    int threads  = 1;
    bool present = true;
    std::vector<double> rates{};
};

constexpr int repetitions = 3; // of each round

/// Where sums go, so that no loop can be left out.
std::atomic<double> sink = 0;

/// Keeps this thread on one of the cores it may run on: two threads that share a core for some milliseconds, while the
/// scheduler finds out, would halve a figure.
void bind_to_core([[maybe_unused]] int thread) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    int const count = CPU_COUNT(&allowed);
    for (int core = 0, seen = 0; core < CPU_SETSIZE; ++core) {
        if (!CPU_ISSET(core, &allowed) || seen++ != thread % count) continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(core, &one);
        ::sched_setaffinity(0, sizeof one, &one);
    }
#endif
}

/// Seconds of each repetition of `work(thread)` by all threads together: from the first start to the last end.
std::vector<double> time_together(int threads, std::function<double(int)> const& work) {
    using clock = std::chrono::steady_clock;
    std::vector<std::vector<std::pair<clock::time_point, clock::time_point>>> marks(static_cast<std::size_t>(threads));
    std::barrier together(threads);
    auto const body = [&](int thread) {
        bind_to_core(thread);
        sink = sink + work(thread); // the first finds memory cold
        for (int r = 0; r < repetitions; ++r) {
            together.arrive_and_wait();
            auto const start = clock::now();
            double const sum = work(thread);
            marks[static_cast<std::size_t>(thread)].emplace_back(start, clock::now());
            sink = sink + sum;
        }
    };
    std::vector<std::thread> team;
    for (int t = 0; t < threads; ++t) team.emplace_back(body, t);
    for (std::thread& member : team) member.join();

    std::vector<double> seconds;
    for (int r = 0; r < repetitions; ++r) {
        auto start = marks[0][static_cast<std::size_t>(r)].first, end = marks[0][static_cast<std::size_t>(r)].second;
        for (auto const& of_thread : marks) {
            start = std::min(start, of_thread[static_cast<std::size_t>(r)].first);
            end   = std::max(end, of_thread[static_cast<std::size_t>(r)].second);
        }
        seconds.push_back(std::chrono::duration<double>(end - start).count());
    }
    return seconds;
}

/// A limit and how one thread takes part in measuring it.
struct job {
    limit result;
    double work = 0; // of all threads in one repetition
    std::function<double(int)> run{};
};

job make_job(settings const& s, bench::compute_unit const& unit, int threads) {
    job out{{"compute", unit.name, "", unit.unit, threads, unit.present}};
    if (!unit.present) return out;
    auto const run           = unit.run;
    std::int64_t const turns = bench::turns_for(s.seconds, [run](std::int64_t n) { return double{run(n)}; });
    out.work                 = unit.work * static_cast<double>(turns) * threads;
    out.run                  = [run, turns](int) { return double{run(turns)}; };
    return out;
}

/// Bytes of one thread that stand for a level of memory.
struct level {
    std::string name;
    std::size_t bytes;
};

std::vector<level> levels(bench::cache_sizes const& caches, int threads) {
    auto const share       = [threads](std::size_t bytes) { return bytes / static_cast<std::size_t>(threads); };
    std::size_t const dram = std::clamp<std::size_t>(4 * caches.l3, std::size_t{256} << 20, std::size_t{1} << 30);
    std::vector<level> all{{"l1", caches.l1 / 2},
                           {"l2", caches.l2 / 2},
                           {"l3", std::max(share(caches.l3 / 4), 2 * caches.l2)},
                           {"dram", share(dram)}};
    for (level& l : all) l.bytes = std::max<std::size_t>(l.bytes / 4096, 1) * 4096;
    return all;
}

/// Memory of one thread, filled with numbers that are not zero.
class buffer {
public:
    explicit buffer(std::size_t bytes) {
        std::vector<std::uint64_t> numbers(4096);
        std::uint64_t x = 0x9e3779b97f4a7c15U;
        for (std::uint64_t& n : numbers) n = x = x * 6364136223846793005U + 1442695040888963407U;
        std::size_t const size = bytes + alignment;
        bytes_                 = std::make_unique_for_overwrite<char[]>(size);
        for (std::size_t at = 0; at < size; at += numbers.size() * 8)
            std::memcpy(bytes_.get() + at, numbers.data(), std::min(size - at, numbers.size() * 8));
    }
    [[nodiscard]] char const* data() const {
        auto const at = reinterpret_cast<std::uintptr_t>(bytes_.get());
        return bytes_.get() + (alignment - at % alignment) % alignment;
    }

private:
    static constexpr std::size_t alignment = 64;
    std::unique_ptr<char[]> bytes_;
};

/// A buffer for each thread; the first holds what one thread alone reads.
std::vector<buffer> make_buffers(bench::cache_sizes const& caches, int threads) {
    auto const largest = [&](int n) {
        std::size_t bytes = 0;
        for (level const& l : levels(caches, n)) bytes = std::max(bytes, l.bytes);
        return bytes;
    };
    std::vector<buffer> all;
    for (int t = 0; t < threads; ++t) all.emplace_back(largest(t == 0 ? 1 : threads));
    return all;
}

job make_job(settings const& s,
             level const& l,
             bench::read_pattern const& pattern,
             bench::read_function read,
             std::vector<buffer> const& memory,
             int threads) {
    auto const passes = [l, pattern, read](char const* data, std::int64_t n) {
        std::uint64_t sum = 0;
        for (std::int64_t i = 0; i < n; ++i) sum += read(data, l.bytes, pattern);
        return static_cast<double>(sum % 1024);
    };
    std::int64_t const n = bench::turns_for(s.seconds, [&](std::int64_t t) { return passes(memory[0].data(), t); });
    job out{{"read", l.name, pattern.name, "GB/s", threads}};
    out.work = static_cast<double>(l.bytes) * static_cast<double>(n) * threads;
    out.run  = [passes, n, &memory](int thread) { return passes(memory[static_cast<std::size_t>(thread)].data(), n); };
    return out;
}

/// Each unit and each level, by one thread and by all. `memory` must outlive what is returned.
std::vector<job> make_jobs(settings const& s, bench::cpu_features const& cpu, std::vector<buffer> const& memory) {
    std::vector<job> all;
    for (int const threads : std::set<int>{1, s.threads}) {
        for (bench::compute_unit const& unit : bench::compute_units(cpu)) all.push_back(make_job(s, unit, threads));
        for (level const& l : levels(bench::detect_cache_sizes(), threads))
            for (bench::read_pattern const& pattern : bench::read_patterns())
                all.push_back(make_job(s, l, pattern, bench::best_reader(cpu), memory, threads));
    }
    return all;
}

std::vector<limit> measure(settings const& s, bench::cpu_features const& cpu) {
    auto const memory = make_buffers(bench::detect_cache_sizes(), s.threads);
    auto jobs         = make_jobs(s, cpu, memory);
    bench::progress bar(static_cast<double>(jobs.size()) * s.rounds);
    for (int round = 0; round < s.rounds; ++round)
        for (job& j : jobs) {
            bar.label(fmt::format("{} {}, {} threads", j.result.name, j.result.pattern, j.result.threads));
            if (j.result.present)
                for (double const seconds : time_together(j.result.threads, j.run))
                    j.result.rates.push_back(j.work / seconds * 1e-9);
            bar.advance(1);
        }
    std::vector<limit> results;
    for (job& j : jobs) results.push_back(std::move(j.result));
    return results;
}

bench::json to_json(limit const& l) {
    bench::json out{{"kind", l.kind},       {"name", l.name}, {"pattern", l.pattern},
                    {"threads", l.threads}, {"unit", l.unit}, {"present", l.present}};
    if (!l.present) return out;
    out["median"] = bench::median(l.rates);
    out["best"]   = *std::max_element(l.rates.begin(), l.rates.end());
    out["spread"] = bench::spread(l.rates);
    return out;
}

void print(std::vector<limit> const& all, std::FILE* text) {
    bench::text_table table({"limit", "threads", "median", "best", "spread", "unit"}, 1);
    int threads = 1;
    for (limit const& l : all) {
        if (l.threads != threads) table.gap();
        threads                = l.threads;
        std::string const name = l.pattern.empty() ? l.name : l.name + " " + l.pattern;
        if (!l.present) {
            table.add({name, fmt::to_string(threads), "absent"});
            continue;
        }
        table.add({name, fmt::to_string(threads), bench::three_digits(bench::median(l.rates)),
                   bench::three_digits(*std::max_element(l.rates.begin(), l.rates.end())),
                   fmt::format("{:.0f} %", 100 * bench::spread(l.rates)), l.unit});
    }
    table.print(text);
}

void run(settings const& s, bench::json document) {
    bench::check_writable(s.json);
    std::FILE* const text          = bench::text_stream(s.json);
    bench::cpu_features const& cpu = butterfly::backend::cpu::found();
    auto const caches              = bench::detect_cache_sizes();
    document["features"]           = bench::names_of(cpu);
    document["caches"]             = {{"l1", caches.l1}, {"l2", caches.l2}, {"l3", caches.l3}};
    fmt::print(text, "{}: {}\n", document["machine"]["cpu"].get<std::string>(), bench::names_of(cpu));
    auto const all = measure(s, cpu);
    for (limit const& l : all) document["limits"].push_back(to_json(l));
    print(all, text);
    bench::write_json(document, s.json);
}

} // namespace

int main(int argc, char** argv) {
    settings s;
    CLI::App app("Measured limits of this machine: arithmetic of each unit, read bandwidth of each level of memory.",
                 "machine_limits");
    app.add_option("--threads", s.threads, "threads, besides 1")->check(CLI::Range(1, 1024))->capture_default_str();
    app.add_option("--rounds", s.rounds, "over all limits, three repetitions each; medians are reported")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--seconds", s.seconds, "a repetition lasts at least")
        ->check(bench::number_between(1e-6, 10))
        ->capture_default_str();
    app.add_option("--json", s.json, "write every number to FILE as JSON, - for standard output")->type_name("FILE");
    return bench::run_program(app, argc, argv, [&] { run(s, bench::describe_run("machine_limits", argc, argv)); });
}
