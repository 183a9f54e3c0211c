// SPDX-License-Identifier: MIT

// Is our dense kernel a fair baseline? Causal prefill with f32, f16 and bf16 keys and values against what a careful
// user writes over Eigen and OpenBLAS (baselines/blocked_attention.hpp), interleaved in one process, same inputs, same
// threads. GFLOP/s count visible edges: 4 * head_dim flops for each of heads * tokens * (tokens + 1) / 2.

#include <butterfly/backend/scalar.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#if __has_include(<butterfly/backend/simd.hpp>)
#include <butterfly/backend/simd.hpp>
#endif

#include "baselines/blocked_attention.hpp"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <optional>
#include <random>

namespace bf = butterfly;
using bf::index_t;

namespace {

struct settings {
    index_t tokens            = 4096;
    index_t heads             = 8;
    index_t kv_heads          = 2;
    std::vector<index_t> dims = {128, 256};
    std::vector<int> threads  = {1, 2};
    int rounds                = 3;
    std::string backend       = "simd";
    std::vector<std::string> systems{};
    std::string json{};

    /// Where tables go: standard output, unless the JSON takes it.
    [[nodiscard]] std::FILE* text() const { return json == "-" ? stderr : stdout; }
};

std::optional<settings> parse(int argc, char** argv, int& status) {
    settings s;
    CLI::App app("Dense causal prefill: our kernels against Eigen and OpenBLAS in 128-row blocks.", "dense_baselines");
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
    app.add_option("--backend", s.backend, "backend of our kernels")
        ->check(CLI::IsMember({"scalar", "simd"}))
        ->capture_default_str();
    app.add_option("--systems", s.systems, "columns to run: eigen, openblas, f32, f16, bf16 (default: all)")
        ->delimiter(',')
        ->check(CLI::IsMember({"eigen", "openblas", "f32", "f16", "bf16"}));
    app.add_option("--json", s.json, "also write the numbers as JSON to FILE, - for standard output");
    try {
        app.parse(argc, argv);
        if (s.heads % s.kv_heads != 0) throw CLI::ValidationError("--heads", "must be a multiple of --kv-heads");
    } catch (CLI::ParseError const& e) {
        status = app.exit(e, std::cout, std::cerr) == 0 ? 0 : 2;
        return std::nullopt;
    }
    return s;
}

/// One shape's inputs in every element type, and one output.
struct inputs {
    bf::heads_buffer<float> q, k, v, out;
    bf::heads_buffer<bf::float16> k16, v16;
    bf::heads_buffer<bf::bfloat16> kb, vb;

    inputs(settings const& s, index_t head_dim)
        : q({s.heads, s.tokens, head_dim}), k({s.kv_heads, s.tokens, head_dim}), v(k.shape()), out(q.shape()),
          k16(k.shape()), v16(k.shape()), kb(k.shape()), vb(k.shape()) {
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

    [[nodiscard]] bf::bench::dense_inputs raw() {
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

    [[nodiscard]] double median() const {
        auto sorted = seconds;
        std::sort(sorted.begin(), sorted.end());
        return sorted[sorted.size() / 2];
    }
};

template <class Policy>
std::vector<column> columns(settings const& s, inputs& in, Policy const& policy) {
    auto const threads = policy.executor;
    std::vector<column> all;
    all.push_back({"eigen", [&in, threads] { bf::bench::eigen_attention(in.raw(), threads); }});
    if (bf::bench::has_openblas())
        all.push_back({"openblas", [&in, threads] { bf::bench::openblas_attention(in.raw(), threads); }});
    all.push_back(
        {"f32", [&in, policy] { bf::dense_sdpa(policy, in.q.view(), in.k.view(), in.v.view(), in.out.view()); }});
    all.push_back({"f16",
                   [&in, policy] { bf::dense_sdpa(policy, in.q.view(), in.k16.view(), in.v16.view(), in.out.view()); },
                   2e-3});
    all.push_back({"bf16",
                   [&in, policy] { bf::dense_sdpa(policy, in.q.view(), in.kb.view(), in.vb.view(), in.out.view()); },
                   2e-2});
    if (!s.systems.empty())
        std::erase_if(all, [&](column const& c) {
            return std::find(s.systems.begin(), s.systems.end(), c.name) == s.systems.end();
        });
    return all;
}

/// Runs every column once and holds it to the definition, then `rounds` times in turns.
void measure(std::vector<column>& all, inputs& in, int rounds, std::string const& what) {
    bool const terminal = isatty(STDERR_FILENO) != 0;
    for (int round = -1; round < rounds; ++round) {
        for (column& c : all) {
            if (terminal) fmt::print(stderr, "\r\033[K{}: round {} of {}, {}", what, round + 1, rounds, c.name);
            if (round < 0) std::fill(in.out.values().begin(), in.out.values().end(), 0.0F);
            auto const start = std::chrono::steady_clock::now();
            c.run();
            std::chrono::duration<double> const took = std::chrono::steady_clock::now() - start;
            if (round >= 0) {
                c.seconds.push_back(took.count());
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
    if (terminal) fmt::print(stderr, "\r\033[K");
}

/// Prints one shape and returns it for the JSON.
nlohmann::json report(settings const& s, index_t head_dim, int threads, std::vector<column> const& all) {
    double const edges =
        static_cast<double>(s.heads) * static_cast<double>(s.tokens) * static_cast<double>(s.tokens + 1) / 2;
    double const flops = 4 * edges * static_cast<double>(head_dim);
    nlohmann::json out{{"tokens", s.tokens},   {"heads", s.heads},   {"kv_heads", s.kv_heads},
                       {"head_dim", head_dim}, {"threads", threads}, {"flops", flops}};
    fmt::print(s.text(), "tokens {}  heads {}/{}  head_dim {}  threads {}\n", s.tokens, s.heads, s.kv_heads, head_dim,
               threads);
    fmt::print(s.text(), "  {:<18} {:>9} {:>9} {:>9} {:>10}  {}\n", "", "ms", "GFLOP/s", "x eigen", "x openblas",
               "error");
    auto const median = [&](char const* name) {
        for (column const& c : all)
            if (c.name == name) return c.median();
        return 0.0;
    };
    for (column const& c : all) {
        bool const ours = c.name != "eigen" && c.name != "openblas";
        auto const over = [&](char const* peer) {
            double const t = median(peer);
            return ours && t > 0 ? fmt::format("{:.2f}", t / c.median()) : std::string("-");
        };
        fmt::print(s.text(), "  {:<18} {:>9.2f} {:>9.1f} {:>9} {:>10}  {:.1e}\n",
                   ours ? fmt::format("butterfly {}", c.name) : fmt::format("{} f32", c.name), c.median() * 1e3,
                   flops / c.median() * 1e-9, over("eigen"), over("openblas"), c.error);
        out["systems"].push_back({{"name", c.name},
                                  {"seconds", c.seconds},
                                  {"gflops", flops / c.median() * 1e-9},
                                  {"relative_error", c.error}});
        for (char const* peer : {"eigen", "openblas"})
            if (ours && median(peer) > 0) out["systems"].back()[fmt::format("x_{}", peer)] = median(peer) / c.median();
    }
    return out;
}

/// Calls f with the backend of this name.
template <class F>
void with_backend(std::string const& name, int threads, F const& f) {
#if defined(_OPENMP)
    bf::executor const team = bf::openmp{.threads = threads};
#else
    if (threads > 1) throw std::runtime_error("this build has no OpenMP: --threads 1");
    bf::executor const team = bf::serial{};
#endif
#if __has_include(<butterfly/backend/simd.hpp>)
    if (name == "simd") return f(bf::backend::simd<>{.executor = team});
#endif
    if (name == "scalar") return f(bf::backend::scalar{.executor = team});
    throw std::runtime_error("no backend " + name);
}

int run(settings const& s) {
    if (!bf::bench::has_openblas()) fmt::print(s.text(), "This build has no OpenBLAS; that column is left out.\n");
    nlohmann::json shapes = nlohmann::json::array();
    std::string backend;
    for (index_t const head_dim : s.dims) {
        inputs in(s, head_dim);
        for (int const threads : s.threads) {
            with_backend(s.backend, threads, [&](auto const& policy) {
                if (backend.empty()) fmt::print(s.text(), "backend {}\n", policy.name());
                backend  = policy.name();
                auto all = columns(s, in, policy);
                measure(all, in, s.rounds, fmt::format("head_dim {}, {} threads", head_dim, threads));
                shapes.push_back(report(s, head_dim, threads, all));
            });
        }
    }
    if (s.json.empty()) return 0;
    nlohmann::json const document{{"program", "dense_baselines"}, {"backend", backend}, {"shapes", shapes}};
    if (s.json == "-") {
        std::cout << document.dump(2) << '\n';
    } else if (!(std::ofstream(s.json) << document.dump(2) << '\n')) {
        throw std::runtime_error("cannot write " + s.json);
    }
    return 0;
}

} // namespace

int main(int argc, char** argv) {
    int status = 0;
    try {
        auto const s = parse(argc, argv, status);
        return s ? run(*s) : status;
    } catch (std::exception const& e) {
        fmt::print(stderr, "dense_baselines: {}\n", e.what());
        return 2;
    }
}
