// SPDX-License-Identifier: MIT

// What packing costs a prefill: the mixed-precision cache takes a prompt in steps, and every token that leaves the
// exact window is packed.
//
//   append    rows are stored, blocks that have left the window are packed: timed at every step
//   attend    the queries of a step over every token before them, timed at some steps. Time grows with the keys, so
//             that the sum over all steps is that of the straight line through those (least squares)
//
//   share = append / (append + attend)                  what packing takes at most
//
// of one layer, on the SIMD backend for the build's flags. Mixes take turns, round by round; figures are medians of the
// rounds, and of the share the least and the most besides.

#include <butterfly/backend/simd.hpp>
#include <butterfly/cache/mixed_attend.hpp>
#include <butterfly/testing/problem.hpp>

#include "kv_mixes.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "timing.hpp"
#include "usage.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <thread>

namespace bf = butterfly;
using bench::index_t;
using bench::json;

namespace {

struct settings {
    std::string tokens = "32k";
    std::vector<std::string> mixes{};
    index_t heads = 8, kv_heads = 2, head_dim = 256, step = 512, attended = 4;
    int threads = 0, rounds = 1;
    std::string json_path;
};

void add_options(CLI::App& app, settings& s) {
    std::vector<std::string> names;
    bench::for_each_mixed_mix([&](auto const& m) { names.emplace_back(m.name); });
    app.add_option("--tokens", s.tokens, "tokens of the prompt")->capture_default_str();
    app.add_option("--mix", s.mixes, "a mix, again for each; default: all")
        ->check(CLI::IsMember(names))
        ->type_name("NAME");
    auto const size = [&](char const* name, index_t& value, char const* text) {
        app.add_option(name, value, text)->check(CLI::Range(1, 65536))->capture_default_str();
    };
    size("--heads", s.heads, "query heads");
    size("--kv-heads", s.kv_heads, "heads of keys and values");
    size("--head-dim", s.head_dim, "columns of a head");
    size("--step", s.step, "tokens of one append");
    size("--attended", s.attended, "steps whose attention is timed, two at least");
    app.add_option("--rounds", s.rounds, "times that every mix is run")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--threads", s.threads, "threads; 0: the machine's cores")
        ->check(CLI::Range(0, 4096))
        ->capture_default_str();
    app.add_option("--json", s.json_path, "write every number to FILE as JSON, - for standard output")
        ->type_name("FILE");
}

/// Seconds of all steps.
struct times {
    double append = 0, attend = 0;
    [[nodiscard]] double share() const { return append / (append + attend); }
};

/// A part of every round's times.
template <class F>
std::vector<double> of_rounds(std::vector<times> const& rounds, F const& part) {
    std::vector<double> all;
    for (times const& t : rounds) all.push_back(std::invoke(part, t));
    return all;
}

/// Rows of a prompt that repeat: packing and attention take as long whatever the rows say.
struct prompt {
    bf::heads_buffer<float> q, k, v;

    explicit prompt(settings const& s)
        : q({s.heads, s.step, s.head_dim}), k({s.kv_heads, s.step, s.head_dim}), v({s.kv_heads, s.step, s.head_dim}) {
        bf::testing::random draws(1);
        for (auto* const part : {&q, &k, &v})
            for (float& x : part->values()) x = static_cast<float>(draws.normal());
    }
};

/// Sum over steps 0 .. steps - 1 of the line through what was timed at some of them.
double sum_of_line(std::vector<std::pair<double, double>> const& timed, double steps) {
    double x = 0, y = 0, xx = 0, xy = 0;
    auto const n = static_cast<double>(timed.size());
    for (auto const& [step, seconds] : timed) x += step, y += seconds, xx += step * step, xy += step * seconds;
    double const slope = (n * xy - x * y) / (n * xx - x * x), base = (y - slope * x) / n;
    return steps * base + slope * steps * (steps - 1) / 2;
}

/// Throws usage_error where a mix cannot keep rows of head_dim values.
template <class Named>
void check_kept(Named const& m, settings const& s) {
    try {
        bf::mixed_kv_cache const few(m.sizes.of(1, s.head_dim, s.step), m.mix);
    } catch (bf::shape_error const& e) {
        throw bench::usage_error("--head-dim {}: {}: {}", s.head_dim, m.name, e.what());
    }
}

template <class Mix>
times run_mix(Mix const& mix,
              bench::mix_sizes const& sizes,
              settings const& s,
              index_t tokens,
              prompt const& in,
              bf::executor const& threads,
              bench::progress& bar) {
    bf::backend::simd<> const policy{.executor = threads};
    bf::mixed_cache_config config = sizes.of(s.kv_heads, s.head_dim, tokens);
    config.max_append             = s.step;
    bf::mixed_kv_cache<Mix> cache(config, mix);
    bf::heads_buffer<float> out(in.q.shape());
    std::vector<std::byte> scratch(static_cast<std::size_t>(bf::append_workspace_bytes(policy, cache)));
    index_t const steps = tokens / s.step, every = std::max<index_t>(1, steps / s.attended);
    times t;
    std::vector<std::pair<double, double>> timed;
    for (index_t i = 0; i < steps; ++i) {
        bench::stopwatch const appending;
        bf::append(policy, cache, in.k.view(), in.v.view(), {.workspace = scratch});
        t.append += appending.seconds();
        if ((steps - 1 - i) % every == 0) { // the last step and others evenly before it
            bench::stopwatch const attending;
            bf::attend(policy, in.q.view(), cache, out.view());
            timed.emplace_back(static_cast<double>(i), attending.seconds());
        }
        bar.advance(1);
    }
    t.attend = sum_of_line(timed, static_cast<double>(steps));
    return t;
}

void run(settings const& s, json document) {
    bench::check_writable(s.json_path);
    index_t const tokens = bench::parse_size(s.tokens, "--tokens");
    if (s.heads % s.kv_heads != 0)
        throw bench::usage_error("--heads {} is no multiple of --kv-heads {}", s.heads, s.kv_heads);
    if (s.attended < 2) throw bench::usage_error("--attended {}: a line needs two", s.attended);
    if (tokens / s.step < s.attended)
        throw bench::usage_error("--tokens {}: {} steps of {}, fewer than --attended {}", s.tokens, tokens / s.step,
                                 s.step, s.attended);
    int const cores = s.threads > 0 ? s.threads : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    bf::executor const threads = bf::openmp{cores};
    prompt const in(s);
    std::size_t count = 0;
    auto const asked  = [&](char const* name) {
        return s.mixes.empty() || std::ranges::find(s.mixes, name) != s.mixes.end();
    };
    bench::for_each_mixed_mix([&](auto const& m) {
        if (!asked(m.name)) return;
        ++count;
        check_kept(m, s);
    });

    index_t const steps   = tokens / s.step;
    std::FILE* const text = bench::text_stream(s.json_path);
    fmt::print(
        text,
        "One layer, {} tokens in steps of {}: heads {}/{}, head_dim {}; {}, {} threads. Seconds of all steps.\n\n",
        steps * s.step, s.step, s.heads, s.kv_heads, s.head_dim, bf::backend::simd<>::name(), cores);
    std::map<std::string, std::vector<times>> found;
    {
        bench::progress bar(static_cast<double>(s.rounds * steps) * static_cast<double>(count));
        for (int round = 0; round < s.rounds; ++round)
            bench::for_each_mixed_mix([&](auto const& m) {
                if (!asked(m.name)) return;
                bar.label(m.name);
                found[m.name].push_back(run_mix(m.mix, m.sizes, s, tokens, in, threads, bar));
            });
    }
    bench::text_table table({"mix", "append", "attend", "share", "least", "most"});
    document["tokens"] = steps * s.step;
    document["step"]   = s.step;
    document["mixes"]  = json::array();
    bench::for_each_mixed_mix([&](auto const& m) {
        if (!asked(m.name)) return;
        auto const append = of_rounds(found[m.name], &times::append), attend = of_rounds(found[m.name], &times::attend);
        auto const share       = of_rounds(found[m.name], &times::share);
        auto const [low, high] = std::ranges::minmax(share);
        auto const percent     = [](double x) { return fmt::format("{:.2f} %", 100 * x); };
        table.add({m.name, bench::three_digits(bench::median(append)), bench::three_digits(bench::median(attend)),
                   percent(bench::median(share)), percent(low), percent(high)});
        document["mixes"].push_back(
            {{"name", m.name}, {"append_seconds", append}, {"attend_seconds", attend}, {"share", share}});
    });
    table.print(text);
    fmt::print(text, "\nattend: from {} steps, by the line through them. share: append / (append + attend).\n",
               bf::detail::ceil_div(steps, steps / s.attended));
    bench::write_json(document, s.json_path);
}

} // namespace

int main(int argc, char** argv) {
    settings s;
    CLI::App app("What packing keys and values costs the prefill of a mixed-precision cache.", "mixed_prefill");
    add_options(app, s);
    return bench::run_program(app, argc, argv, [&] { run(s, bench::describe_run("mixed_prefill", argc, argv)); });
}
