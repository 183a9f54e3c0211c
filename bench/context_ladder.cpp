// SPDX-License-Identifier: MIT

// What attention costs as the context grows: time, memory and decode rate of dense, window, block-sparse and compressed
// attention over all attention layers of a model, at 32k to 256k tokens. See support/ladder_time.hpp and
// support/ladder_memory.hpp for how each figure is measured.

#include "ladder_accounting.hpp"
#include "ladder_routing.hpp"
#include "ladder_table.hpp"
#include "machine.hpp"
#include "memory.hpp"
#include "timing.hpp"

#include <numeric>

namespace {

using namespace bench;

/// Why a rung does not fit; empty where it does.
std::string why_skipped(ladder_settings const& s, index_t context) {
    std::optional<index_t> const available = available_memory();
    double const needed                    = rung_bytes(s, context);
    if (!available || needed <= 0.95 * static_cast<double>(*available)) return {};
    return fmt::format("needs {} GB of memory, {} GB are available", three_digits(needed / 1e9),
                       three_digits(static_cast<double>(*available) / 1e9));
}

ladder_result climb(ladder_settings const& s, index_t context, double seconds, progress& bar) {
    ladder_result result{.context = context, .skipped = why_skipped(s, context)};
    auto const work = static_cast<double>(context);
    if (!result.skipped.empty()) {
        bar.advance(work);
        return result;
    }
    stopwatch const watch;
    std::map<std::string, ladder_memory> memory;
    for (std::string const& system : s.systems) {
        bar.label(fmt::format("{}: memory of {}", size_text(context), system));
        memory[system] = measure_memory_apart(s, system, context);
        bar.advance(0.15 * work / static_cast<double>(s.systems.size()));
    }
    auto times = measure_times(s, context, seconds - watch.seconds(), bar, 0.85 * work);
    for (std::string const& system : s.systems)
        result.rows.push_back({system, std::move(times.at(system)), memory.at(system)});
    return result;
}

void climb_all(ladder_settings const& s, json run) {
    std::FILE* const text    = text_stream(s.common.json);
    std::string const policy = make_machine(s.common.backend, s.common.threads).name();
    for (index_t const context : s.contexts) ladder_routing(s, context); // throws where --partners are too many
    print_heading(text, s, run, policy);

    double const all = std::accumulate(s.contexts.begin(), s.contexts.end(), 0.0,
                                       [](double sum, index_t n) { return sum + static_cast<double>(n); });
    std::vector<ladder_result> results;
    {
        progress bar(all);
        for (index_t const context : s.contexts) {
            results.push_back(climb(s, context, s.budget * static_cast<double>(context) / all, bar));
            if (results.back().skipped.empty()) continue;
            bar.wipe();
            fmt::print(text, "{} skipped: {}\n", size_text(context), results.back().skipped);
        }
    }
    print_ladder(text, s, results);

    run["backend"]  = {{"name", s.common.backend}, {"policy", policy}, {"threads", s.common.threads}};
    run["settings"] = s.to_json();
    run["rungs"]    = json::array();
    for (ladder_result const& r : results) run["rungs"].push_back(to_json(s, r));
    write_json(run, s.common.json);
}

void run_ladder(ladder_settings const& s, json run) {
    if (!s.peak_system.empty()) {
        fmt::print("{}\n", to_json(measure_memory(s, s.peak_system, s.contexts.front())).dump());
    } else if (!s.accounting.empty()) {
        run["accounting"] = account_published(s, text_stream(s.common.json));
        write_json(run, s.common.json);
    } else {
        climb_all(s, std::move(run));
    }
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app("What attention costs as the context grows: time, memory and decode rate of dense, window, "
                 "block-sparse and compressed attention.",
                 "context_ladder");
    ladder_command_line command_line(app);
    return run_program(app, argc, argv,
                       [&] { run_ladder(command_line.finish(), describe_run("context_ladder", argc, argv)); });
}
