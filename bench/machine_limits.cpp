// SPDX-License-Identifier: MIT

// What this machine can do at most: arithmetic of each unit, and read bandwidth of each level of memory by the way of
// reading. Goals are quoted against these figures, of the same session.
//
// A figure is the median of some repetitions of a few milliseconds each, all threads starting together, each on a core
// of its own where the system lets it, and the slowest counting; `best` is the fastest of them, `spread` the slowest
// less the fastest over the median. Read bandwidth of L1 and L2 is measured on half of the cache, of L3 on a quarter of
// it shared by the threads, of DRAM on four times L3 and 256 MiB at least. JSON: {"limits": [{kind, name, pattern,
// threads, unit, present, median, best, spread}, ...]}.

#include "limits_compute.hpp"
#include "limits_read.hpp"
#include "machine.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "timing.hpp"
#include "usage.hpp"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <functional>
#include <memory>
#include <set>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#endif

namespace {

struct settings {
    int threads     = bench::default_threads();
    int repetitions = 9;
    double seconds  = 0.005; // of a repetition, at least
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
std::vector<double> time_together(int threads, int repetitions, std::function<double(int)> const& work) {
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

/// Turns after which `work(turns)` has lasted this long.
std::int64_t turns_for(double seconds, std::function<double(std::int64_t)> const& work) {
    for (std::int64_t turns = 1;; turns *= 2) {
        bench::stopwatch const watch;
        sink = sink + work(turns);
        if (watch.seconds() >= seconds) return turns;
    }
}

std::vector<double> rates_of(std::vector<double> const& seconds, double work) {
    std::vector<double> rates;
    for (double const s : seconds) rates.push_back(work / s * 1e-9);
    return rates;
}

limit measure(settings const& s, bench::compute_unit const& unit, int threads) {
    limit out{"compute", unit.name, "", unit.unit, threads, unit.present};
    if (!unit.present) return out;
    std::int64_t const turns = turns_for(s.seconds, [&](std::int64_t n) { return double{unit.run(n)}; });
    auto const seconds       = time_together(threads, s.repetitions, [&](int) { return double{unit.run(turns)}; });
    out.rates                = rates_of(seconds, unit.work * static_cast<double>(turns) * threads);
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
    explicit buffer(std::size_t bytes) : words_(bytes / 8 + 8 + prefetched / 8) {
        std::uint64_t x = 0x9e3779b97f4a7c15U;
        for (std::uint64_t& word : words_) word = x = x * 6364136223846793005U + 1442695040888963407U;
    }
    [[nodiscard]] char const* data() const {
        auto const at = reinterpret_cast<std::uintptr_t>(words_.data());
        return reinterpret_cast<char const*>(words_.data()) + (64 - at % 64) % 64;
    }

private:
    static constexpr std::size_t prefetched = 8192; // prefetches past the end stay inside
    std::vector<std::uint64_t> words_;
};

limit measure(settings const& s,
              level const& l,
              bench::read_pattern const& pattern,
              bench::read_function read,
              std::vector<buffer> const& memory) {
    auto const threads = static_cast<int>(memory.size());
    auto const passes  = [&](char const* data, std::int64_t n) {
        std::uint64_t sum = 0;
        for (std::int64_t i = 0; i < n; ++i) sum += read(data, l.bytes, pattern);
        return static_cast<double>(sum % 1024);
    };
    std::int64_t const n = turns_for(s.seconds, [&](std::int64_t t) { return passes(memory[0].data(), t); });
    auto const seconds   = time_together(
          threads, s.repetitions, [&](int thread) { return passes(memory[static_cast<std::size_t>(thread)].data(), n); });
    limit out{"read", l.name, pattern.name, "GB/s", threads};
    out.rates = rates_of(seconds, static_cast<double>(l.bytes) * static_cast<double>(n) * threads);
    return out;
}

/// Each unit and each level, by one thread and by all.
std::vector<limit> measure_all(settings const& s, bench::cpu_features const& cpu) {
    auto const units    = bench::compute_units(cpu);
    auto const patterns = bench::read_patterns();
    auto const reader   = bench::best_reader(cpu);
    std::set<int> const counts{1, s.threads};
    bench::progress bar(static_cast<double>(counts.size() * (units.size() + 4 * patterns.size())));
    std::vector<limit> all;
    for (int const threads : counts) {
        for (bench::compute_unit const& unit : units) {
            bar.label(fmt::format("{}, {} threads", unit.name, threads));
            all.push_back(measure(s, unit, threads));
            bar.advance(1);
        }
        for (level const& l : levels(bench::detect_cache_sizes(), threads)) {
            std::vector<buffer> memory;
            for (int t = 0; t < threads; ++t) memory.emplace_back(l.bytes);
            for (bench::read_pattern const& pattern : patterns) {
                bar.label(fmt::format("{} {}, {} threads", l.name, pattern.name, threads));
                all.push_back(measure(s, l, pattern, reader, memory));
                bar.advance(1);
            }
        }
    }
    return all;
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
    std::FILE* const text         = bench::text_stream(s.json);
    bench::cpu_features const cpu = bench::detect_cpu_features();
    auto const caches             = bench::detect_cache_sizes();
    document["features"]          = cpu.names();
    document["caches"]            = {{"l1", caches.l1}, {"l2", caches.l2}, {"l3", caches.l3}};
    fmt::print(text, "{}: {}\n", document["machine"]["cpu"].get<std::string>(), cpu.names());
    auto const all = measure_all(s, cpu);
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
    app.add_option("--repetitions", s.repetitions, "of each measurement; medians are reported")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--seconds", s.seconds, "a repetition lasts at least")
        ->check(bench::number_between(1e-6, 10))
        ->capture_default_str();
    app.add_option("--json", s.json, "write every number to FILE as JSON, - for standard output")->type_name("FILE");
    return bench::run_program(app, argc, argv, [&] { run(s, bench::describe_run("machine_limits", argc, argv)); });
}
