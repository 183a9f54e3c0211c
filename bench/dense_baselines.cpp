// SPDX-License-Identifier: MIT

// Is our dense kernel a fair baseline? Causal prefill with f32, f16 and bf16 keys and values against what a careful
// user writes over Eigen and OpenBLAS (baselines/blocked_attention.hpp), interleaved in one process, same inputs, same
// threads. GFLOP/s count visible edges: 4 * head_dim flops for each of heads * tokens * (tokens + 1) / 2.

#include <butterfly/sdpa/dense_sdpa.hpp>

#include "baselines/blocked_attention.hpp"
#include "machine.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "timing.hpp"
#include "usage.hpp"

#include <cstdlib>
#include <functional>
#include <random>

namespace bf = butterfly;
using bf::index_t;

namespace {

struct settings {
    bench::common_options common{};
    index_t tokens                   = 4096;
    index_t heads                    = 8;
    index_t kv_heads                 = 2;
    std::vector<index_t> dims        = {128, 256};
    std::vector<int> threads         = {1, 2};
    int rounds                       = 3;
    std::vector<std::string> systems = {"eigen", "openblas", "f32", "f16", "bf16"};
};

void add_options(CLI::App& app, settings& s) {
    app.add_option("--tokens", s.tokens, "tokens of the sequence")
        ->check(CLI::Range(1, 1 << 17))
        ->capture_default_str();
    app.add_option("--heads", s.heads, "query heads")->check(CLI::Range(1, 256))->capture_default_str();
    app.add_option("--kv-heads", s.kv_heads, "key and value heads")->check(CLI::Range(1, 256))->capture_default_str();
    app.add_option("--head-dim", s.dims, "columns of a head, a list")
        ->delimiter(',')
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--threads", s.threads, "OpenMP threads, a list")
        ->delimiter(',')
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--rounds", s.rounds, "timed rounds; medians are reported")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--systems", s.systems, "what to time, a list")
        ->delimiter(',')
        ->check(CLI::IsMember({"eigen", "openblas", "f32", "f16", "bf16"}))
        ->capture_default_str();
    s.common.backend = bench::default_backend();
    app.add_option("--backend", s.common.backend, "what executes our kernels: " + bench::backend_names())
        ->capture_default_str();
    app.add_option("--json", s.common.json, "write every number to FILE as JSON, - for standard output")
        ->type_name("FILE");
}

/// One shape's inputs in every element type, and one output.
struct inputs {
    bf::heads_buffer<float> q, k, v, out;
    bf::heads_buffer<bf::float16> k16, v16;
    bf::heads_buffer<bf::bfloat16> kb, vb;
    std::vector<float> scores; // of the peers, for the most threads

    inputs(settings const& s, index_t head_dim)
        : q({s.heads, s.tokens, head_dim}), k({s.kv_heads, s.tokens, head_dim}), v(k.shape()), out(q.shape()),
          k16(k.shape()), v16(k.shape()), kb(k.shape()), vb(k.shape()),
          scores(bench::make_scores(*std::max_element(s.threads.begin(), s.threads.end()))) {
        std::mt19937 random(11);
        std::normal_distribution<float> normal;
        for (auto* const x : {&q, &k, &v})
            for (float& value : x->values()) value = normal(random);
        auto const convert = [](auto const& from, auto& to) {
            for (std::size_t i = 0; i < to.values().size(); ++i)
                to.values()[i] = std::remove_reference_t<decltype(to.values()[i])>(from.values()[i]);
        };
        convert(k, k16);
        convert(v, v16);
        convert(k, kb);
        convert(v, vb);
    }

    [[nodiscard]] bench::dense_inputs raw() {
        return {q.values().data(), k.values().data(), v.values().data(), out.values().data(),
                q.shape().heads,   k.shape().heads,   q.shape().tokens,  q.shape().head_dim};
    }
};

/// Relative L2 error over some rows against the definition in double, from f32 keys and values.
double error_of(inputs const& in) {
    auto const q = in.q.view(), k = in.k.view(), v = in.v.view(), out = in.out.view();
    double wrong = 0, total = 0;
    for (index_t i = 0; i < 32; ++i) {
        index_t const head = i % q.heads(), kv = head / (q.heads() / k.heads());
        index_t const token = (q.tokens() - 1) * i / 31;
        std::vector<double> scores, sum(static_cast<std::size_t>(q.head_dim()));
        for (index_t j = 0; j <= token; ++j) {
            double dot = 0;
            for (std::size_t d = 0; d < sum.size(); ++d)
                dot += static_cast<double>(q.row(head, token)[d]) * static_cast<double>(k.row(kv, j)[d]);
            scores.push_back(dot / std::sqrt(static_cast<double>(q.head_dim())));
        }
        double const top = *std::max_element(scores.begin(), scores.end());
        double weights   = 0;
        for (index_t j = 0; j <= token; ++j) {
            double const w = std::exp(scores[static_cast<std::size_t>(j)] - top);
            weights += w;
            for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += w * static_cast<double>(v.row(kv, j)[d]);
        }
        for (std::size_t d = 0; d < sum.size(); ++d) {
            double const exact = sum[d] / weights;
            double const miss  = static_cast<double>(out.row(head, token)[d]) - exact;
            wrong += miss * miss;
            total += exact * exact;
        }
    }
    return std::sqrt(wrong / total);
}

struct column {
    std::string name;
    std::function<void()> run;
    double tolerance = 1e-5; // relative L2 against the definition
    std::vector<double> seconds{};
    double error = 0;
};

std::vector<column> columns(settings const& s, inputs& in, bench::machine const& policy) {
    auto const threads = policy.executor;
    std::vector<column> all;
    all.push_back({"eigen", [&in, threads] { bench::eigen_attention(in.raw(), in.scores, threads); }});
    if (bench::has_openblas())
        all.push_back({"openblas", [&in, threads] { bench::openblas_attention(in.raw(), in.scores, threads); }});
    all.push_back(
        {"f32", [&in, policy] { bf::dense_sdpa(policy, in.q.view(), in.k.view(), in.v.view(), in.out.view()); }});
    all.push_back({"f16",
                   [&in, policy] { bf::dense_sdpa(policy, in.q.view(), in.k16.view(), in.v16.view(), in.out.view()); },
                   2e-3});
    all.push_back({"bf16",
                   [&in, policy] { bf::dense_sdpa(policy, in.q.view(), in.kb.view(), in.vb.view(), in.out.view()); },
                   2e-2});
    std::erase_if(
        all, [&](column const& c) { return std::find(s.systems.begin(), s.systems.end(), c.name) == s.systems.end(); });
    return all;
}

/// Runs every column once and holds it to the definition, then `rounds` times in turns.
void measure(std::vector<column>& all, inputs& in, int rounds, std::string const& what) {
    bench::progress bar(static_cast<double>(all.size()) * (rounds + 1));
    for (int round = -1; round < rounds; ++round) {
        for (column& c : all) {
            bar.label(fmt::format("{}, {}", what, c.name));
            if (round < 0) std::fill(in.out.values().begin(), in.out.values().end(), 0.0F);
            bench::stopwatch const watch;
            c.run();
            double const took = watch.seconds();
            bar.advance(1);
            if (round >= 0) {
                c.seconds.push_back(took);
                continue;
            }
            c.error = error_of(in);
            if (!(c.error <= c.tolerance))
                throw std::runtime_error(
                    fmt::format("{} is wrong: relative error {:.1e} against the definition, {:.0e} "
                                "allowed",
                                c.name, c.error, c.tolerance));
        }
    }
}

/// Adds one shape to the table and returns it for the JSON.
bench::json
report(settings const& s, index_t head_dim, int threads, std::vector<column> const& all, bench::text_table& table) {
    double const edges =
        static_cast<double>(s.heads) * static_cast<double>(s.tokens) * static_cast<double>(s.tokens + 1) / 2;
    double const flops = 4 * edges * static_cast<double>(head_dim);
    bench::json out{{"tokens", s.tokens},   {"heads", s.heads},   {"kv_heads", s.kv_heads},
                    {"head_dim", head_dim}, {"threads", threads}, {"flops", flops}};
    auto const median_of = [&](char const* name) {
        for (column const& c : all)
            if (c.name == name) return bench::median(c.seconds);
        return 0.0;
    };
    for (column const& c : all) {
        bool const ours = c.name != "eigen" && c.name != "openblas";
        bench::json line{{"name", c.name},
                         {"seconds", c.seconds},
                         {"gflops", flops / bench::median(c.seconds) * 1e-9},
                         {"relative_error", c.error}};
        std::vector<std::string> row{fmt::format("{} {}", head_dim, threads),
                                     ours ? "butterfly " + c.name : c.name + " f32",
                                     fmt::format("{:.2f}", bench::median(c.seconds) * 1e3),
                                     fmt::format("{:.1f}", flops / bench::median(c.seconds) * 1e-9)};
        for (char const* peer : {"eigen", "openblas"}) {
            bool const there = ours && median_of(peer) > 0;
            row.push_back(there ? fmt::format("{:.2f}", median_of(peer) / bench::median(c.seconds)) : "-");
            if (there) line[fmt::format("x_{}", peer)] = median_of(peer) / bench::median(c.seconds);
        }
        row.push_back(fmt::format("{:.1e}", c.error));
        table.add(row);
        out["systems"].push_back(line);
    }
    table.gap();
    return out;
}

void run(settings const& s, bench::json document) {
    std::FILE* const text = bench::text_stream(s.common.json);
    if (s.heads % s.kv_heads != 0)
        throw bench::usage_error("--heads {} is not a multiple of --kv-heads {}", s.heads, s.kv_heads);
    bench::check_writable(s.common.json);
    std::string const name = bench::make_machine(s.common.backend, 1).name();
    fmt::print(text, "Causal prefill, {} tokens, heads {}/{}, backend {}\n", s.tokens, s.heads, s.kv_heads, name);
    if (bench::has_openblas())
        fmt::print(text, "OpenBLAS runs its {} kernels, {}.\n", bench::openblas_kernels(),
                   std::getenv("OPENBLAS_CORETYPE") != nullptr ? "as OPENBLAS_CORETYPE says"
                                                               : "its own choice: OPENBLAS_CORETYPE asks for others");
    else
        fmt::print(text, "This build has no OpenBLAS; that peer is left out.\n");
    document["backend"] = name;
    bench::text_table table({"dim threads", "system", "ms", "GFLOP/s", "x eigen", "x openblas", "error"}, 2);
    for (index_t const head_dim : s.dims) {
        inputs in(s, head_dim);
        for (int const threads : s.threads) {
            auto all = columns(s, in, bench::make_machine(s.common.backend, threads));
            measure(all, in, s.rounds, fmt::format("head_dim {}, {} threads", head_dim, threads));
            document["shapes"].push_back(report(s, head_dim, threads, all, table));
        }
    }
    table.print(text);
    bench::write_json(document, s.common.json);
}

} // namespace

int main(int argc, char** argv) {
    settings s;
    CLI::App app("Dense causal prefill: our kernels against Eigen and OpenBLAS in 128-row blocks.", "dense_baselines");
    add_options(app, s);
    return bench::run_program(app, argc, argv, [&] { run(s, bench::describe_run("dense_baselines", argc, argv)); });
}
