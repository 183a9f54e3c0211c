// SPDX-License-Identifier: MIT

// One decode step: a few query rows at the end of a long context, beside what the machine allows.
//
// Keys and values stand in one block of memory. In turns, in one process and on the same threads: the call, and plain
// reads of that block in several patterns. The floor of a call is the larger of its bytes at the best of those reads
// and its flops at the measured rate of the unit that multiplies them; `roofline` is that floor over the time. A
// context that fits in a cache is read from that cache by both. GFLOP/s count visible edges: 4 * head_dim flops for
// each key that a query head sees.

#include <butterfly/backend/simd/bf16_unit.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/testing/problem.hpp>

#include "floors.hpp"
#include "machine.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "timing.hpp"
#include "usage.hpp"

#include <map>
#include <memory>

namespace bf = butterfly;
using bf::index_t;

namespace {

struct settings {
    bench::common_options common{};
    std::string n_kv                 = "1k,4k,128k";
    std::vector<index_t> dims        = {128};
    std::vector<index_t> rows        = {1};
    std::vector<std::string> storage = {"f32", "f16", "bf16"};
    std::vector<int> threads{};
    index_t heads    = 8;
    index_t kv_heads = 2;
    double seconds   = 1.0;
};

void add_options(CLI::App& app, settings& s) {
    auto const list = [&](char const* name, auto& values, char const* text) {
        return app.add_option(name, values, text)->delimiter(',')->capture_default_str();
    };
    app.add_option("--n-kv", s.n_kv, "keys of the context, a list: 4k,128k")->capture_default_str();
    list("--head-dim", s.dims, "columns of a head, a list")->check(CLI::Range(1, 1024));
    list("--rows", s.rows, "query tokens of a call, a list")->check(CLI::Range(1, 64));
    list("--storage", s.storage, "how keys and values are kept, a list")->check(CLI::IsMember({"f32", "f16", "bf16"}));
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
    app.add_option("--json", s.common.json, "write every number to FILE as JSON, - for standard output")
        ->type_name("FILE");
}

struct shape {
    index_t n_kv, head_dim, rows, heads, kv_heads;

    [[nodiscard]] double edges() const {
        double sum = 0;
        for (index_t r = 0; r < rows; ++r) sum += static_cast<double>(n_kv - r);
        return sum * static_cast<double>(heads);
    }
    [[nodiscard]] double flops() const { return 4 * edges() * static_cast<double>(head_dim); }
};

/// Keys and then values, of one storage type, in one block that begins at a line of the cache.
template <class T>
class context {
public:
    explicit context(shape const& s)
        : shape_(s), q_({s.heads, s.rows, s.head_dim}), out_(q_.shape()),
          memory_(static_cast<std::size_t>(2 * s.kv_heads * s.n_kv * s.head_dim) + line) {
        void* at         = memory_.data();
        std::size_t room = memory_.size() * sizeof(T);
        both_            = std::span(static_cast<T*>(std::align(64, room - 64, at, room)), memory_.size() - line);
        bf::testing::random draws(7);
        std::vector<T> some(9973); // a prime: rows differ, and filling is fast
        for (T& x : some) x = T(static_cast<float>(draws.normal()));
        for (std::size_t i = 0; i < both_.size(); ++i) both_[i] = some[i % some.size()];
        for (float& x : q_.values()) x = static_cast<float>(draws.normal());
    }

    void attend(bench::machine const& m) {
        bf::heads_shape const half{shape_.kv_heads, shape_.n_kv, shape_.head_dim};
        bf::heads_view<T const> const keys(both_.data(), half), values(both_.data() + both_.size() / 2, half);
        bf::dense_sdpa(m, std::as_const(q_).view(), keys, values, out_.view(),
                       {.q_position = shape_.n_kv - shape_.rows});
    }

    [[nodiscard]] std::span<std::byte const> bytes() { return std::as_bytes(both_); }

private:
    shape shape_;
    bf::heads_buffer<float> q_, out_;
    std::vector<T> memory_;
    std::span<T> both_{};

    static constexpr std::size_t line = 64 / sizeof(T);
};

/// Holds a small call to the definition; throws where it is wrong.
template <class T>
void check(bench::machine const& m, index_t head_dim, index_t rows, double tolerance) {
    auto p = bf::testing::make_problem<float, T>({.heads    = 4,
                                                  .kv_heads = 2,
                                                  .tokens   = rows,
                                                  .keys     = 300,
                                                  .head_dim = head_dim,
                                                  .values   = bf::testing::distribution::normal});
    bf::attend_options const o{.q_position = 300 - rows};
    bf::dense_sdpa(m, p.q.view(), p.k.view(), p.v.view(), p.out.view(), o);
    auto const got = p.out;
    bf::dense_sdpa(bf::testing::oracle{}, p.q.view(), p.k.view(), p.v.view(), p.out.view(), o);
    double miss = 0, total = 0;
    for (index_t h = 0; h < 4; ++h)
        for (index_t t = 0; t < rows; ++t)
            for (index_t d = 0; d < head_dim; ++d) {
                double const want = p.out.at(h, t, d), off = got.at(h, t, d) - want;
                miss += off * off;
                total += want * want;
            }
    if (double const e = std::sqrt(miss / total); !(e < tolerance))
        throw std::runtime_error(fmt::format("{} is wrong: relative error {:.1e} against the definition",
                                             bf::name_of(bf::element_type_of<T>), e));
}

/// Seconds of one call of f: a sample is as many calls as take 200 us.
template <class F>
double sample(F const& f, int& calls) {
    while (true) {
        bench::stopwatch const watch;
        for (int i = 0; i < calls; ++i) f();
        double const took = watch.seconds();
        if (took >= 2e-4) return took / calls;
        calls *= 2;
    }
}

struct line {
    std::vector<double> call{};
    std::map<bench::read_pattern, std::vector<double>> reads{};
    double bytes = 0, flop_rate = 0;
    char const* unit = "";

    [[nodiscard]] double read() const {
        double best = std::numeric_limits<double>::infinity();
        for (auto const& [pattern, seconds] : reads) best = std::min(best, bench::median(seconds));
        return best;
    }
};

template <class T>
line measure(settings const& s,
             shape const& of,
             bench::machine const& m,
             std::map<bench::product_unit, double> const& rates) {
    check<T>(m, of.head_dim, of.rows, std::is_same_v<T, float> ? 1e-5 : 1e-2);
    context<T> in(of);
    line out;
    out.bytes         = static_cast<double>(in.bytes().size());
    bool const in_dot = std::is_same_v<T, bf::bfloat16> && s.common.backend == "simd" &&
                        bf::backend::resolve(bf::backend::bf16_unit::best) != bf::backend::bf16_unit::fma;
    auto const unit = in_dot ? bench::product_unit::dot : bench::product_unit::fma;
    out.unit        = in_dot ? "dot" : "fma";
    out.flop_rate   = rates.at(unit);

    int calls = 1;
    std::map<bench::read_pattern, int> turns;
    std::size_t sink = 0;
    sample([&] { in.attend(m); }, calls); // warm
    bench::stopwatch const watch;
    do {
        out.call.push_back(sample([&] { in.attend(m); }, calls));
        for (auto const pattern : bench::read_patterns)
            out.reads[pattern].push_back(sample([&] { sink += bench::read_all(m.executor, in.bytes(), pattern); },
                                                turns.try_emplace(pattern, 1).first->second));
    } while (watch.seconds() < s.seconds || out.call.size() < 5);
    if (sink == 1) fmt::print(stderr, "\n"); // what is read is used
    return out;
}

bench::json report(shape const& of, std::string const& storage, int threads, line const& l, bench::text_table& table) {
    double const took = bench::median(l.call), read = l.read(), flop = of.flops() / l.flop_rate;
    table.add({fmt::format("{} {} {}", bench::size_text(of.n_kv), of.head_dim, of.rows), storage,
               fmt::format("{}", threads), bench::three_digits(took * 1e3),
               fmt::format("{:.0f}%", bench::spread(l.call) * 100), fmt::format("{:.1f}", l.bytes / took * 1e-9),
               fmt::format("{:.1f}", l.bytes / read * 1e-9), fmt::format("{:.0f}", of.flops() / took * 1e-9),
               fmt::format("{:.0f}%", read / took * 100), fmt::format("{:.0f}%", flop / took * 100),
               fmt::format("{:.0f}%", std::max(read, flop) / took * 100)});
    bench::json out{{"n_kv", of.n_kv},
                    {"head_dim", of.head_dim},
                    {"rows", of.rows},
                    {"storage", storage},
                    {"threads", threads},
                    {"bytes", l.bytes},
                    {"flops", of.flops()},
                    {"unit", l.unit},
                    {"unit_flops", l.flop_rate},
                    {"seconds", l.call},
                    {"of_read", read / took},
                    {"of_flops", flop / took},
                    {"roofline", std::max(read, flop) / took}};
    for (auto const& [pattern, seconds] : l.reads) out["read_seconds"][bench::name_of(pattern)] = seconds;
    return out;
}

void run(settings s, bench::json document) {
    std::FILE* const text = bench::text_stream(s.common.json);
    bool const by_default = s.threads.empty();
    if (s.heads % s.kv_heads != 0)
        throw bench::usage_error("--heads {} is not a multiple of --kv-heads {}", s.heads, s.kv_heads);
    if (s.threads.empty()) s.threads = {1};
    if (int const most = bench::default_threads(); by_default && most > 1) s.threads.push_back(most);
    std::vector<index_t> contexts;
    for (std::string const& part : bench::split_list(s.n_kv)) contexts.push_back(bench::parse_size(part, "--n-kv"));
    if (contexts.empty()) throw bench::usage_error("--n-kv: the list is empty");
    bench::check_writable(s.common.json);
    document["backend"] = bench::make_machine(s.common.backend, 1).name();
    fmt::print(text, "Decode, heads {}/{}, backend {}\n", s.heads, s.kv_heads,
               bench::make_machine(s.common.backend, 1).name());

    bench::text_table table({"n_kv dim rows", "storage", "threads", "ms", "+-", "GB/s", "read GB/s", "GFLOP/s",
                             "of read", "of flops", "roofline"},
                            2);
    {
        bench::progress bar(
            static_cast<double>(s.threads.size() * contexts.size() * s.dims.size() * s.rows.size() * s.storage.size()));
        for (int const threads : s.threads) {
            auto const m = bench::make_machine(s.common.backend, threads);
            std::map<bench::product_unit, double> rates;
            for (auto const unit : {bench::product_unit::fma, bench::product_unit::dot})
                rates[unit] = bench::product_rate(m.executor, unit, 0.2);
            for (index_t const n_kv : contexts)
                for (index_t const head_dim : s.dims)
                    for (index_t const rows : s.rows) {
                        if (rows > n_kv) throw bench::usage_error("--rows {} is more than --n-kv {}", rows, n_kv);
                        shape const of{n_kv, head_dim, rows, s.heads, s.kv_heads};
                        for (std::string const& storage : s.storage) {
                            bar.label(fmt::format("{} keys, {}, {} threads", bench::size_text(n_kv), storage, threads));
                            line const l = storage == "f32"   ? measure<float>(s, of, m, rates)
                                           : storage == "f16" ? measure<bf::float16>(s, of, m, rates)
                                                              : measure<bf::bfloat16>(s, of, m, rates);
                            document["lines"].push_back(report(of, storage, threads, l, table));
                            bar.advance(1);
                        }
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
    CLI::App app("One decode step beside what the machine allows: plain reads of the same bytes, and the flops of the "
                 "unit that multiplies them.",
                 "decode");
    add_options(app, s);
    return bench::run_program(app, argc, argv, [&] { run(s, bench::describe_run("decode", argc, argv)); });
}
