// SPDX-License-Identifier: MIT

// Dense attention against every sparse form, in one process: rows of an explicit graph, blocks that a rule routes to, a
// window, a compressed cache.
//
// Before a form is timed it and dense attention run in turns on the same inputs: seven pairs, or as many as begin in
// ten seconds, three at least. x_dense_time is the ratio of their medians, dense over the form; x_dense_rate that of
// the edges per second, the form over dense: below 1, an edge costs more than it does in dense attention. Edges are
// counted by walking the very call that is timed, FLOPs are 4 * edges * head_dim, bytes are those of the keys and
// values that the edges name, once per group of heads. Queries and outputs are f32. Each form is held to the double
// oracle on a small problem first.

#include <butterfly/cache/attend.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/testing/problem.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/window.hpp>

#include "fidelity_count.hpp"
#include "machine.hpp"
#include "report.hpp"
#include "row_text.hpp"
#include "timing.hpp"
#include "usage.hpp"

#include <benchmark/benchmark.h>

#include <iostream>
#include <memory>
#include <optional>
#include <sstream>

namespace bf = butterfly;
using bf::index_t;

namespace {

struct options {
    bench::common_options common{};
    bench::crew executor  = bench::crew::openmp;
    std::string tokens    = "4096";
    std::string dims      = "64,128";
    std::string blocks    = "128";
    std::string densities = "0.25,0.05";
    std::string forms     = "dense,graph,blocks,window,compressed";
    std::string storage   = "f32";
    index_t heads         = 8;
    index_t kv_heads      = 2;
    double min_time       = 0.2;
};

struct shape {
    index_t heads, kv_heads, tokens, head_dim, block_size;
    double density; // share of the causal triangle
};

/// Inputs of one shape and what its form needs; `attend` makes the call with any policy. T: of keys and values.
template <class T>
class form {
public:
    form(std::string name, shape const& s, bench::machine const& m)
        : name_(std::move(name)), shape_(s), q_({s.heads, s.tokens, s.head_dim}), out_(q_.shape()),
          k_({s.kv_heads, s.tokens, s.head_dim}), v_(k_.shape()) {
        bf::testing::random draws(11);
        for (float& x : q_.values()) x = static_cast<float>(draws.normal());
        for (auto* const t : {&k_, &v_})
            for (T& x : t->values()) x = T(static_cast<float>(draws.normal()));
        if (name_ == "graph")
            graph_ = bf::topology::build({.heads = 1, .nodes = s.tokens},
                                         bf::topology::window{.predecessors = mean_keys() / 2},
                                         bf::topology::fixed_stride{stride(), s.tokens}, bf::topology::self{});
        if (name_ == "blocks") row_.push_back(bf::topology::fixed_stride{stride(), blocks()});
        if (name_ == "blocks") row_.push_back(bf::topology::self{});
        if (name_ == "compressed") fill_cache(m);
    }

    template <class Policy>
    void attend(Policy const& policy) {
        auto const q = std::as_const(q_).view();
        auto const k = std::as_const(k_).view(), v = std::as_const(v_).view();
        if (name_ == "dense") bf::dense_sdpa(policy, q, k, v, out_.view());
        if (name_ == "graph") bf::sparse_sdpa(policy, q, k, v, *graph_, out_.view());
        if (name_ == "blocks")
            bf::sparse_sdpa(policy, q, k, v, bf::block_routing<bench::runtime_row>{row_, shape_.block_size, blocks()},
                            out_.view());
        if (name_ == "window")
            bf::attend(policy, q, out_.view(), {}, bf::pool(k, v, bf::visible::exact_window(mean_keys())));
        if (name_ == "compressed") bf::attend(policy, q, *cache_, row_, out_.view());
    }

    [[nodiscard]] index_t count_edges(bf::executor const& threads) {
        std::atomic<index_t> edges = 0;
        attend(bench::edge_counter{threads, &edges});
        return edges;
    }

    [[nodiscard]] std::span<float> output() { return out_.values(); }

private:
    [[nodiscard]] index_t blocks() const { return (shape_.tokens + shape_.block_size - 1) / shape_.block_size; }
    /// Keys a query sees at this density, on average.
    [[nodiscard]] index_t mean_keys() const {
        return std::max<index_t>(1, static_cast<index_t>(shape_.density * static_cast<double>(shape_.tokens) / 2));
    }
    [[nodiscard]] index_t stride() const {
        return std::max<index_t>(1, static_cast<index_t>((name_ == "graph" ? 2 : 1) / shape_.density));
    }

    /// A cache that holds all tokens: every stage's partner, the block before, 64 exact tokens and more.
    void fill_cache(bench::machine const& m) {
        bf::topology::stage_list stages;
        for (int i = 0; i < bf::topology::stage_count(blocks()); ++i) stages.push_back(i);
        row_.push_back(bf::topology::causal_shift{stages});
        row_.push_back(bf::topology::window{.predecessors = 1});
        cache_.emplace(bf::cache_config{.kv_heads   = shape_.kv_heads,
                                        .head_dim   = shape_.head_dim,
                                        .block_size = shape_.block_size,
                                        .max_tokens = shape_.tokens,
                                        .max_append = shape_.tokens});
        bf::append(m, *cache_, std::as_const(k_).view(), std::as_const(v_).view());
    }

    std::string name_;
    shape shape_;
    bf::heads_buffer<float> q_, out_;
    bf::heads_buffer<T> k_, v_;
    std::optional<bf::graph> graph_{};
    bench::runtime_row row_{};
    std::optional<bf::compressed_kv_cache<bf::raw_mix<T>>> cache_{};
};

/// The form on a small problem against the definition; throws where it is wrong.
template <class T>
void check(std::string const& name, bench::machine const& m) {
    form<T> small(name, {.heads = 4, .kv_heads = 2, .tokens = 200, .head_dim = 40, .block_size = 16, .density = 0.3},
                  m);
    small.attend(m);
    std::vector<float> const got(small.output().begin(), small.output().end());
    small.attend(bf::testing::oracle{});
    double miss = 0, total = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
        double const want = small.output()[i];
        miss += (got[i] - want) * (got[i] - want);
        total += want * want;
    }
    if (double const e = std::sqrt(miss / total); !(e < (std::is_same_v<T, float> ? 1e-5 : 1e-2)))
        throw std::runtime_error(fmt::format("{} {} is wrong: relative error {:.1e} against the definition", name,
                                             bf::name_of(bf::element_type_of<T>), e));
}

/// Seconds of a form and of dense attention, pair by pair.
struct pairs {
    std::vector<double> own, dense;

    /// How many times faster the form is.
    [[nodiscard]] double faster() const { return bench::median(dense) / bench::median(own); }
    /// Slowest less fastest of the ratios of pairs, over `faster`.
    [[nodiscard]] double spread() const {
        std::vector<double> ratios;
        for (std::size_t i = 0; i < own.size(); ++i) ratios.push_back(dense[i] / own[i]);
        return bench::spread(ratios);
    }
};

/// Seven pairs, or as many as begin within some seconds: three at least.
template <class Own, class Dense>
pairs time_pairs(Own const& own, Dense const& dense) {
    constexpr std::size_t most = 7, least = 3;
    constexpr double seconds = 10;
    pairs out;
    bench::stopwatch const all;
    while (out.own.size() < most && (out.own.size() < least || all.seconds() < seconds)) {
        bench::stopwatch const watch;
        own();
        double const between = watch.seconds();
        dense();
        out.own.push_back(between);
        out.dense.push_back(watch.seconds() - between);
    }
    return out;
}

/// Times one form, and dense attention in turns with it, which is kept in `beside`: a benchmark is run several times
/// until it knows how often.
template <class T>
void time_form(benchmark::State& state,
               std::string const& name,
               shape const& s,
               bench::machine const& m,
               std::optional<pairs>& beside) {
    form<T> sparse(name, s, m);
    sparse.attend(m); // warm
    if (name != "dense") {
        if (!beside) {
            form<T> dense("dense", s, m);
            dense.attend(m);
            beside = time_pairs([&] { sparse.attend(m); }, [&] { dense.attend(m); });
        }
        state.counters["x_dense_time"] = beside->faster();
        state.counters["pairs"]        = static_cast<double>(beside->own.size());
        state.counters["spread"]       = beside->spread();
    }
    for ([[maybe_unused]] auto _ : state) {
        bench::stopwatch const watch;
        sparse.attend(m);
        state.SetIterationTime(watch.seconds());
    }
    auto const edges          = static_cast<double>(sparse.count_edges(m.executor));
    auto const columns        = static_cast<double>(s.head_dim);
    double const triangle     = static_cast<double>(s.heads * s.tokens) * static_cast<double>(s.tokens + 1) / 2;
    using counter             = benchmark::Counter;
    state.counters["edges/s"] = counter(edges, counter::kIsIterationInvariantRate);
    state.counters["FLOP/s"]  = counter(4 * edges * columns, counter::kIsIterationInvariantRate);
    state.counters["bytes"]   = counter(edges / static_cast<double>(s.heads / s.kv_heads) * columns * 2 * sizeof(T));
    state.counters["density"] = edges / triangle;
    if (name != "dense") state.counters["x_dense_rate"] = state.counters["x_dense_time"] * edges / triangle;
}

template <class T>
void register_form(std::string const& name, shape const& s, bench::machine const& m, double min_time) {
    std::string text =
        fmt::format("{}/{}/tokens:{}/head_dim:{}", name, bf::name_of(bf::element_type_of<T>), s.tokens, s.head_dim);
    if (name == "blocks" || name == "compressed") text += fmt::format("/block:{}", s.block_size);
    if (name != "dense" && name != "compressed") text += fmt::format("/density:{}", s.density);
    benchmark::RegisterBenchmark(text.c_str(),
                                 [=, beside = std::make_shared<std::optional<pairs>>()](benchmark::State& state) {
                                     time_form<T>(state, name, s, m, *beside);
                                 })
        ->UseManualTime()
        ->MinTime(min_time)
        ->Unit(benchmark::kMillisecond);
}

std::vector<double> parse_densities(std::string const& text) {
    std::vector<double> out;
    for (std::string const& part : bench::split_list(text)) {
        char* end = nullptr;
        out.push_back(std::strtod(part.c_str(), &end));
        if (*end != '\0' || !(out.back() > 0 && out.back() <= 1))
            throw bench::usage_error("--density: '{}' is not in (0, 1]", part);
    }
    return out;
}

template <class T>
void register_all(options const& o, bench::machine const& m) {
    auto const sizes = [](std::string const& text, char const* option) {
        std::vector<index_t> out;
        for (std::string const& part : bench::split_list(text)) out.push_back(bench::parse_size(part, option));
        return out;
    };
    auto const densities = parse_densities(o.densities);
    for (std::string const& name : bench::split_list(o.forms)) {
        if (name != "dense" && name != "graph" && name != "blocks" && name != "window" && name != "compressed")
            throw bench::usage_error("--forms: '{}' is none of dense, graph, blocks, window, compressed", name);
        check<T>(name, m);
        bool const in_blocks = name == "blocks" || name == "compressed";
        bool const one       = name == "dense" || name == "compressed"; // their density is their own
        for (index_t const tokens : sizes(o.tokens, "--tokens"))
            for (index_t const head_dim : sizes(o.dims, "--head-dim"))
                for (index_t const block : sizes(in_blocks ? o.blocks : "1", "--block-size"))
                    for (double const density : one ? std::vector<double>{1.0} : densities)
                        register_form<T>(name, {o.heads, o.kv_heads, tokens, head_dim, block, density}, m, o.min_time);
    }
}

/// Google Benchmark's table, and its JSON when it is over.
class reporter : public benchmark::BenchmarkReporter {
public:
    explicit reporter(std::ostream& text) : table_(benchmark::ConsoleReporter::OO_None) {
        table_.SetOutputStream(&text);
        numbers_.SetOutputStream(&json_);
        for (benchmark::BenchmarkReporter* r : {static_cast<benchmark::BenchmarkReporter*>(&table_),
                                                static_cast<benchmark::BenchmarkReporter*>(&numbers_)})
            r->SetErrorStream(&std::cerr);
    }

    bool ReportContext(Context const& context) override {
        return table_.ReportContext(context) && numbers_.ReportContext(context);
    }
    void ReportRuns(std::vector<Run> const& runs) override {
        table_.ReportRuns(runs);
        numbers_.ReportRuns(runs);
    }
    void Finalize() override {
        table_.Finalize();
        numbers_.Finalize();
    }

    /// The numbers are to be shown around: they do not name the host.
    [[nodiscard]] bench::json numbers() const {
        auto all = bench::json::parse(json_.str());
        all["context"].erase("host_name");
        return all;
    }

private:
    benchmark::ConsoleReporter table_;
    benchmark::JSONReporter numbers_;
    std::stringstream json_;
};

void run(options const& o) {
    bench::check_writable(o.common.json);
    if (o.heads % o.kv_heads != 0)
        throw bench::usage_error("--heads {} is not a multiple of --kv-heads {}", o.heads, o.kv_heads);
    bench::machine const m = bench::make_machine(
        o.common.backend, o.common.threads > 0 ? o.common.threads : bench::default_threads(), o.executor);
    for (std::string const& storage : bench::split_list(o.storage)) {
        bf::element_type const type = bench::parse_element_type(storage, "--storage");
        if (type == bf::element_type::f32) register_all<float>(o, m);
        if (type == bf::element_type::f16) register_all<bf::float16>(o, m);
        if (type == bf::element_type::bf16) register_all<bf::bfloat16>(o, m);
    }

    char name[]      = "sparse_sdpa";
    char* argument[] = {name, nullptr};
    int count        = 1;
    benchmark::Initialize(&count, argument);
    benchmark::AddCustomContext("backend", m.name());
    benchmark::AddCustomContext("executor", (o.executor == bench::crew::share ? "pool, " : "") + m.executor.name());
    benchmark::AddCustomContext("heads", fmt::format("{}/{}", o.heads, o.kv_heads));
    reporter results(o.common.json == "-" ? std::cerr : std::cout);
    if (benchmark::RunSpecifiedBenchmarks(&results) == 0)
        throw std::runtime_error("Google Benchmark ran nothing; is BENCHMARK_FILTER set?");
    bench::write_json(results.numbers(), o.common.json);
    benchmark::Shutdown();
}

} // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app("Dense attention against every sparse form, interleaved in one process.", "sparse_sdpa");
    o.common.add_to(app);
    bench::add_executor_option(app, o.executor);
    app.add_option("--forms", o.forms, "a list of dense, graph, blocks, window, compressed")
        ->check(bench::not_empty())
        ->capture_default_str();
    app.add_option("--storage", o.storage, "how keys and values are kept, a list of f32, f16, bf16")
        ->check(bench::not_empty())
        ->capture_default_str();
    app.add_option("--tokens", o.tokens, "a list of sizes")->check(bench::not_empty())->capture_default_str();
    app.add_option("--head-dim", o.dims, "a list")->check(bench::not_empty())->capture_default_str();
    app.add_option("--block-size", o.blocks, "of blocks and compressed, a list")
        ->check(bench::not_empty())
        ->capture_default_str();
    app.add_option("--density", o.densities, "shares of the causal triangle, a list")
        ->check(bench::not_empty())
        ->capture_default_str();
    app.add_option("--heads", o.heads, "query heads")->check(CLI::Range(1, 256))->capture_default_str();
    app.add_option("--kv-heads", o.kv_heads, "key and value heads")->check(CLI::Range(1, 256))->capture_default_str();
    app.add_option("--min-time", o.min_time, "seconds each form is timed at least")
        ->check(bench::number_between(0.001, 1000.0))
        ->capture_default_str();
    return bench::run_program(app, argc, argv, [&] { run(o); });
}
