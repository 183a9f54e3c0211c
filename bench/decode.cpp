// SPDX-License-Identifier: MIT

// One decode step: a few query rows at the end of a long context, dense, over the compressed cache or over the
// mixed-precision one, beside what the machine allows.
//
// In turns, in one process and on the same threads: the call, and plain reads in several patterns: of the very keys and
// values (dense), of the cache (mixed), of as many bytes (compressed). The floor of a call is the larger of its bytes
// at the best of those reads and its flops at the best rate of the unit that multiplies them, both bests of the run;
// `of floor` is that floor over the call's median. Threads read and multiply for 200 us before they meet: a floor does
// not hold their waking. Rows of codes are multiplied by bytes, whose rate is not measured: their floor is their bytes.
// What fits in a cache is read from that cache by both. Flops are 4 * head_dim for each key that a query head sees.
// Which unit multiplies is asked of the backend: `class` is the kernel class that serves the call, and a call of many
// rows is the tile class's.

#include <butterfly/backend/simd/cpu.hpp>

#include "decode_step.hpp"
#include "limits_threads.hpp"
#include "product_unit.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "timing.hpp"
#include "usage.hpp"

#include <algorithm>
#include <map>

namespace bf = butterfly;
using bf::index_t;

namespace {

struct settings {
    bench::common_options common{};
    std::string n_kv                 = "1k,4k,128k";
    std::vector<index_t> dims        = {128};
    std::vector<index_t> rows        = {1};
    std::vector<std::string> systems = {"dense"};
    std::vector<std::string> storage = {"f32", "f16", "bf16"};
    std::vector<std::string> mixes   = {"k8v8", "k4v4", "k2v2"};
    std::vector<int> threads{};
    bench::crew executor = bench::crew::openmp;
    index_t heads        = 8;
    index_t kv_heads     = 2;
    double seconds       = 1.0;
};

std::vector<std::string> with_all(std::vector<std::string> names) {
    names.emplace_back("all");
    return names;
}

void add_options(CLI::App& app, settings& s) {
    auto const list = [&](char const* name, auto& values, char const* text) {
        return app.add_option(name, values, text)->delimiter(',')->capture_default_str();
    };
    app.add_option("--n-kv", s.n_kv, "keys of the context, a list: 4k,128k")->capture_default_str();
    list("--head-dim", s.dims, "columns of a head, a list")->check(CLI::Range(1, 1024));
    list("--rows", s.rows, "query tokens of a call, a list")->check(CLI::Range(1, 64));
    list("--system", s.systems, "what attends, a list")->check(CLI::IsMember({"dense", "compressed", "mixed"}));
    list("--storage", s.storage, "how keys and values are kept, a list (dense, compressed); all: every codec")
        ->check(CLI::IsMember(with_all(bench::decode_storages())));
    list("--mix", s.mixes, "what the mixed-precision cache keeps, a list (mixed); all: every mix")
        ->check(CLI::IsMember(with_all(bench::decode_mixes())));
    app.add_option("--heads", s.heads, "query heads")->check(CLI::Range(1, 256))->capture_default_str();
    app.add_option("--kv-heads", s.kv_heads, "key and value heads")->check(CLI::Range(1, 256))->capture_default_str();
    app.add_option("--seconds", s.seconds, "timed seconds of a line")
        ->check(bench::number_between(0.001, 1000))
        ->capture_default_str();
    s.common.backend = bench::default_backend();
    app.add_option("--backend", s.common.backend, "what executes the kernels: " + bench::backend_names())
        ->capture_default_str();
    app.add_option("--threads", s.threads, fmt::format("threads, a list (default: 1,{})", bench::default_threads()))
        ->delimiter(',')
        ->check(CLI::Range(1, 1024));
    bench::add_executor_option(app, s.executor);
    app.add_option("--json", s.common.json, "write every number to FILE as JSON, - for standard output")
        ->type_name("FILE");
}

/// Whether keys and values are numbers, not codes.
bool is_raw(std::string const& storage) {
    return storage == "f32" || storage == "f16" || storage == "bf16";
}

std::unique_ptr<bench::decode_step> make_step(std::string const& system,
                                              std::string const& storage,
                                              bench::decode_shape const& shape,
                                              bench::machine const& m) {
    return system == "dense"        ? bench::make_dense_step(storage, shape, m)
           : system == "compressed" ? bench::make_compressed_step(storage, shape, m)
                                    : bench::make_mixed_step(storage, shape, m);
}

/// Holds a small call to the definition, a summary among the keys of compressed; throws where it is wrong.
void check(
    std::string const& system, std::string const& storage, bench::machine const& m, index_t head_dim, index_t rows) {
    auto const step =
        make_step(system, storage, {.n_kv = 1000, .head_dim = head_dim, .rows = rows, .heads = 4, .kv_heads = 2}, m);
    step->attend();
    std::vector<float> const got(step->output().begin(), step->output().end());
    step->attend_exactly();
    double miss = 0, total = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
        double const want = step->output()[i], off = got[i] - want;
        miss += off * off;
        total += want * want;
    }
    double const tolerance = storage == "f32" ? 1e-5 : is_raw(storage) ? 1e-2 : 5e-2; // queries and weights in bytes
    if (double const e = std::sqrt(miss / total); !(e < tolerance))
        throw std::runtime_error(
            fmt::format("{} {} is wrong: relative error {:.1e} against the definition", system, storage, e));
}

/// Seconds of one of f's calls: f(n) makes n, and a sample is as many as take 200 us.
template <class F>
double sample(F const& f, int& calls) {
    while (true) {
        bench::stopwatch const watch;
        f(calls);
        double const took = watch.seconds();
        if (took >= 2e-4) return took / calls;
        calls *= 2;
    }
}

/// One line of the table: what the call costs, and what was measured.
struct line {
    std::string system, kernel_class, unit{}, storage;
    bench::decode_shape shape{};
    int threads  = 1;
    double edges = 0, bytes = 0, bytes_read = 0, unit_rate = 0; // bytes of the call, and of a plain read: whole pages
    std::vector<double> call{};
    std::map<std::string, std::vector<double>> reads{}; // by pattern

    [[nodiscard]] double flops() const { return 4 * edges * static_cast<double>(shape.head_dim); }
    /// Keys that a row of a query head sees, the mean.
    [[nodiscard]] double keys() const { return edges / static_cast<double>(shape.heads * shape.rows); }
    /// Seconds of the bytes at the best read, of the flops at the unit's rate, and the larger of them.
    [[nodiscard]] double read() const {
        double best = std::numeric_limits<double>::infinity();
        for (auto const& [pattern, seconds] : reads) best = std::min(best, *std::ranges::min_element(seconds));
        return best * bytes / bytes_read;
    }
    [[nodiscard]] double multiply() const { return flops() / unit_rate; }
    [[nodiscard]] double floor() const { return std::max(read(), multiply()); }
};

/// A machine and the flop/s of its units, all by the same threads.
struct team {
    bench::machine machine;
    bench::product_units units;
    std::map<std::string, double> rates{};

    team(std::string const& backend, int threads, bench::crew who)
        : machine(bench::make_machine(backend, threads, who)), units(bench::units_of(backend)) {
        for (auto const storage : {bf::element_type::f32, bf::element_type::bf16})
            for (char const* const kernel_class : {"stream", "tile"})
                rates[bench::product_unit(units, storage, kernel_class)] = 0;
        for (bench::compute_unit const& unit : bench::compute_units(bf::backend::cpu::found()))
            if (auto const at = rates.find(unit.name); at != rates.end())
                at->second = bench::rate_of(machine.executor, unit, 0.2);
    }
};

/// Fills in what is measured.
void measure(line& l, bench::decode_step& step, bf::executor const& threads, double seconds) {
    auto const patterns = bench::read_patterns();
    auto const read     = bench::best_reader(bf::backend::cpu::found());
    auto const pages    = step.pages();
    l.bytes_read        = static_cast<double>(pages.size());
    int calls           = 1;
    std::map<std::string, int> turns;
    std::uint64_t sink = 0;
    auto const attend  = [&](int n) {
        for (int i = 0; i < n; ++i) step.attend();
    };
    sample(attend, calls); // warm
    bench::stopwatch const watch;
    do {
        l.call.push_back(sample(attend, calls));
        for (bench::read_pattern const& pattern : patterns)
            l.reads[pattern.name].push_back(
                sample([&](int n) { sink += bench::read_all(threads, pages, n, pattern, read); },
                       turns.try_emplace(pattern.name, 1).first->second));
    } while (watch.seconds() < seconds || l.call.size() < 5);
    if (sink == 1) fmt::print(stderr, "\n"); // what is read is used
}

line measure(settings const& s,
             bench::decode_shape const& of,
             std::string const& system,
             std::string const& storage,
             team const& t) {
    check(system, storage, t.machine, of.head_dim, of.rows);
    auto const step = make_step(system, storage, of, t.machine);
    line out{.system       = system,
             .kernel_class = bench::kernel_class_of(step->plan()),
             .storage      = storage,
             .shape        = of,
             .threads      = t.machine.executor.threads(),
             .edges        = static_cast<double>(step->edges()),
             .bytes        = static_cast<double>(step->bytes())};
    if (is_raw(storage)) {
        out.unit      = bench::product_unit(t.units, bench::parse_element_type(storage, "--storage"), out.kernel_class);
        out.unit_rate = t.rates.at(out.unit);
    } else { // products of bytes, or rows decoded: bytes alone are a floor
        out.unit      = "codes";
        out.unit_rate = std::numeric_limits<double>::infinity();
    }
    measure(out, *step, t.machine.executor, s.seconds);
    return out;
}

bench::json to_json(line const& l) {
    double const took = bench::median(l.call);
    bench::json out{{"n_kv", l.shape.n_kv},
                    {"head_dim", l.shape.head_dim},
                    {"rows", l.shape.rows},
                    {"system", l.system},
                    {"storage", l.storage},
                    {"threads", l.threads},
                    {"class", l.kernel_class},
                    {"visible_keys", l.keys()},
                    {"bytes", l.bytes},
                    {"bytes_read", l.bytes_read},
                    {"flops", l.flops()},
                    {"unit", l.unit},
                    {"unit_flops", std::isfinite(l.unit_rate) ? bench::json(l.unit_rate) : bench::json(nullptr)},
                    {"seconds", l.call},
                    {"floor_seconds", l.floor()},
                    {"of_read", l.read() / took},
                    {"of_flops", std::isfinite(l.unit_rate) ? bench::json(l.multiply() / took) : bench::json(nullptr)},
                    {"of_floor", l.floor() / took}};
    for (auto const& [pattern, seconds] : l.reads) out["read_seconds"][pattern] = seconds;
    return out;
}

void add_to(bench::text_table& table, line const& l) {
    double const took  = bench::median(l.call);
    auto const percent = [&](double seconds) { return fmt::format("{:.0f}%", seconds / took * 100); };
    table.add({fmt::format("{} {} {}", bench::size_text(l.shape.n_kv), l.shape.head_dim, l.shape.rows), l.system,
               l.storage, fmt::format("{}", l.threads), l.kernel_class.empty() ? "-" : l.kernel_class, l.unit,
               fmt::format("{:.0f}", l.keys()), bench::three_digits(took * 1e6),
               fmt::format("{:.0f}%", bench::spread(l.call) * 100), fmt::format("{:.1f}", l.bytes / took * 1e-9),
               fmt::format("{:.1f}", l.bytes / l.read() * 1e-9), fmt::format("{:.0f}", l.flops() / took * 1e-9),
               percent(l.read()), std::isfinite(l.unit_rate) ? percent(l.multiply()) : "-",
               bench::three_digits(l.floor() * 1e6), percent(l.floor())});
}

/// What is measured at every shape: systems, and how each keeps keys and values.
std::vector<std::pair<std::string, std::string>> kept_of(settings const& s) {
    auto const names = [](std::vector<std::string> const& asked, std::vector<std::string> const& all) {
        return std::ranges::find(asked, "all") != asked.end() ? all : asked;
    };
    std::vector<std::pair<std::string, std::string>> kept;
    for (std::string const& system : s.systems)
        for (std::string const& storage :
             system == "mixed" ? names(s.mixes, bench::decode_mixes()) : names(s.storage, bench::decode_storages()))
            kept.emplace_back(system, storage);
    return kept;
}

/// Throws usage_error where rows cannot be kept so, by trying it with a few.
void check_kept(std::vector<std::pair<std::string, std::string>> const& kept, settings const& s) {
    bench::machine const m = bench::make_machine(s.common.backend, 1);
    for (index_t const head_dim : s.dims)
        for (auto const& [system, storage] : kept) {
            bench::decode_shape const few{.n_kv = 64, .head_dim = head_dim, .rows = 1, .heads = 1, .kv_heads = 1};
            try {
                make_step(system, storage, few, m);
            } catch (bf::shape_error const& e) {
                throw bench::usage_error("--head-dim {}: {}: {}", head_dim, storage, e.what());
            }
        }
}

/// The shapes of the options, in the order of the table.
std::vector<bench::decode_shape> shapes_of(settings const& s) {
    if (s.heads % s.kv_heads != 0)
        throw bench::usage_error("--heads {} is not a multiple of --kv-heads {}", s.heads, s.kv_heads);
    std::vector<bench::decode_shape> all;
    for (std::string const& part : bench::split_list(s.n_kv))
        for (index_t const head_dim : s.dims)
            for (index_t const rows : s.rows) {
                index_t const n_kv = bench::parse_size(part, "--n-kv");
                if (rows > n_kv) throw bench::usage_error("--rows {} is more than --n-kv {}", rows, n_kv);
                all.push_back({n_kv, head_dim, rows, s.heads, s.kv_heads});
            }
    if (all.empty()) throw bench::usage_error("--n-kv: the list is empty");
    return all;
}

void run(settings s, bench::json document) {
    std::FILE* const text = bench::text_stream(s.common.json);
    if (s.threads.empty())
        s.threads = bench::default_threads() > 1 ? std::vector{1, bench::default_threads()} : std::vector{1};
    for (int const threads : s.threads) bench::check_crew(s.executor, threads);
    auto const shapes = shapes_of(s);
    auto const kept   = kept_of(s);
    check_kept(kept, s);
    bench::check_writable(s.common.json);
    std::string const name = bench::make_machine(s.common.backend, 1).name();
    document["backend"]    = name;
    fmt::print(text, "Decode, heads {}/{}, backend {}\n", s.heads, s.kv_heads, name);

    bench::text_table table({"n_kv dim rows", "system", "storage", "threads", "class", "unit", "keys", "us", "+-",
                             "GB/s", "read GB/s", "GFLOP/s", "of read", "of flops", "floor us", "of floor"},
                            6);
    {
        bench::progress bar(static_cast<double>(s.threads.size() * shapes.size() * kept.size()));
        for (int const threads : s.threads) {
            team const t(s.common.backend, threads, s.executor);
            for (bench::decode_shape const& of : shapes)
                for (auto const& [system, storage] : kept) {
                    bar.label(fmt::format("{} of {} keys, {}, {} threads", system, bench::size_text(of.n_kv), storage,
                                          threads));
                    line const l = measure(s, of, system, storage, t);
                    document["lines"].push_back(to_json(l));
                    add_to(table, l);
                    bar.advance(1);
                }
            table.gap();
        }
    }
    table.print(text);
    bench::write_json(document, s.common.json);
}

} // namespace

int main(int argc, char** argv) {
    settings s;
    CLI::App app("One decode step beside what the machine allows: plain reads of as many bytes, and the flops of the "
                 "unit that multiplies them.",
                 "decode");
    add_options(app, s);
    return bench::run_program(app, argc, argv, [&] {
        auto const attends = [&](char const* system) { return std::ranges::count(s.systems, system) > 0; };
        if (app.count("--mix") > 0 && !attends("mixed")) throw bench::usage_error("--mix is of --system mixed");
        if (app.count("--storage") > 0 && !attends("dense") && !attends("compressed"))
            throw bench::usage_error("--storage is of --system dense and compressed");
        run(s, bench::describe_run("decode", argc, argv));
    });
}
