// SPDX-License-Identifier: MIT

// How much of dense attention does each system keep? Queries, keys and values of a real model (or made up), every
// system's output against dense attention in double, and where the dense softmax's mass went: to tokens the query saw
// by their own key, inside a visible summary, or not at all.
//
// What a query saw is not computed from the rules a second time: the same call that a backend gets is given to a policy
// that walks the visibilities (support/fidelity_walk.hpp), and its own output in double must agree with the backend's.

#include "fidelity_files.hpp"
#include "positions.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "summary_mixes.hpp"
#include "synthetic_qkv.hpp"
#include "usage.hpp"

#include <algorithm>
#include <optional>

namespace {

namespace bf = butterfly;
using bench::index_t;
using bench::usage_error;

struct options {
    bench::common_options common{};
    bench::fidelity_settings shared{};
    std::string qkv{};
    std::optional<index_t> layer{};
    bench::synthetic_options synthetic{};
    index_t tokens          = 0;
    std::string queries     = "half";
    std::string systems     = "dense,window,block_sparse,compressed,oracle";
    std::string presets     = "gap_free,published";
    std::string partners    = "causal_shift";
    std::string stages      = "";
    std::string steps       = "512";
    std::string best_keys   = "64,192";
    std::string storage     = "f32";
    std::string summaries   = "raw";
    std::string out         = "";
    std::string certificate = "";
    bool same_keys          = true;
};

void add_options(CLI::App& app, options& o) {
    o.common.add_to(app);
    app.add_option("--qkv", o.qkv, "safetensors file with tensors layerL.q, layerL.k, layerL.v (default: made up)")
        ->type_name("FILE");
    app.add_option("--layer", o.layer, "which layer of the file, and its ordinal for the stages (0; made up: 2)")
        ->check(CLI::Range(0, 4096));
    app.add_option("--attention-layers", o.shared.attention_layers, "attention layers of the model")
        ->check(CLI::Range(1, 4096))
        ->capture_default_str();
    app.add_option("--tokens", o.tokens, "only the first N tokens of the file; how many to make up (2048)")
        ->check(CLI::Range(1, 1 << 20));
    app.add_option("--seed", o.synthetic.seed, "of the made-up input")->capture_default_str();
    app.add_option("--sink", o.synthetic.sink, "of the made-up input: nats by which the first tokens stand out")
        ->check(bench::number_between(0.0, 64.0))
        ->capture_default_str();
    app.add_option("--queries", o.queries, "positions to judge: all, half (the second), or FIRST:END:STEP")
        ->capture_default_str();
    app.add_option("--systems", o.systems, "a list of dense, window, block_sparse, compressed, oracle")
        ->capture_default_str();
    app.add_option("--preset", o.presets, "a list of gap_free, published")->capture_default_str();
    app.add_option("--partner", o.partners,
                   fmt::format("a list of {}, or all", fmt::join(bench::partner_names(), ", ")))
        ->capture_default_str();
    app.add_option("--partners", o.shared.partners, "stages per layer; 0: the preset's choice")
        ->check(CLI::Range(0, 62))
        ->capture_default_str();
    app.add_option("--stages", o.stages, "the stages to use, a list, instead of the preset's");
    app.add_option("--stride", o.shared.stride, "of fixed_stride in gap_free")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    app.add_option("--block-size", o.shared.block_size, "tokens of a block")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    app.add_option("--exact-window", o.shared.exact_window, "latest tokens that are exact")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    app.add_option("--exact-sinks", o.shared.exact_sinks, "first tokens that stay exact, in gap_free")
        ->check(CLI::Range(0, 1 << 20))
        ->capture_default_str();
    app.add_option("--max-tokens", o.shared.max_tokens, "room of the cache, which fixes the stages; 0: the tokens")
        ->check(CLI::Range(0, 1 << 30));
    app.add_option("--steps", o.steps, "tokens of each append, a list; the last one repeats")->capture_default_str();
    app.add_option("--best-keys", o.best_keys, "keys of the system oracle, a list")->capture_default_str();
    app.add_option("--storage", o.storage, "how keys and values are kept: f32, f16 or bf16")->capture_default_str();
    app.add_option(
           "--summaries", o.summaries,
           fmt::format("how compressed keeps summaries, a list of {}", fmt::join(bench::summary_codec_names(), ", ")))
        ->capture_default_str();
    app.add_flag("!--no-same-keys", o.same_keys, "leave out the line in which gap_free reads as few keys as published");
    app.add_option("--out", o.out, "write the outputs as safetensors")->type_name("FILE");
    app.add_option("--certificate", o.certificate, "write which tokens each query of the one system saw, as .npz")
        ->type_name("FILE");
}

std::vector<index_t> parse_sizes(std::string const& text, std::string_view option) {
    std::vector<index_t> out;
    for (std::string const& part : bench::split_list(text)) out.push_back(bench::parse_size(part, option));
    if (out.empty()) throw usage_error("{}: the list is empty", option);
    return out;
}

std::vector<std::string>
parse_names(std::string const& text, std::string_view option, std::vector<std::string> const& known) {
    std::vector<std::string> out;
    for (std::string const& name : bench::split_list(text)) {
        if (std::find(known.begin(), known.end(), name) == known.end())
            throw usage_error("{}: '{}' is none of {}", option, name, fmt::join(known, ", "));
        if (std::find(out.begin(), out.end(), name) == out.end()) out.push_back(name); // twice is once
    }
    if (out.empty()) throw usage_error("{}: the list is empty", option);
    return out;
}

bf::heads_buffer<float> first_tokens(bf::heads_buffer<float> const& from, index_t tokens) {
    bf::heads_shape shape = from.shape();
    shape.tokens          = tokens;
    bf::heads_buffer<float> to(shape);
    for (index_t h = 0; h < shape.heads; ++h)
        for (index_t t = 0; t < tokens; ++t) std::ranges::copy(from.view().row(h, t), to.view().row(h, t).begin());
    return to;
}

bench::qkv read_input(options const& o) {
    if (o.qkv.empty()) {
        bench::synthetic_options made = o.synthetic;
        if (o.tokens > 0) made.tokens = o.tokens;
        auto parts = bench::make_synthetic_qkv(made);
        return {std::move(parts.q), std::move(parts.k), std::move(parts.v),
                fmt::format("made up, seed {}, sink {} nats", made.seed, made.sink)};
    }
    bench::qkv in = bench::load_qkv(o.qkv, o.shared.layer);
    if (o.tokens > in.q.shape().tokens)
        throw usage_error("--tokens {}: the file has {}", o.tokens, in.q.shape().tokens);
    if (o.tokens > 0)
        for (auto* const t : {&in.q, &in.k, &in.v}) *t = first_tokens(*t, o.tokens);
    return in;
}

/// gap_free attends (block_size - 1) / 2 more exact keys than its window on average, and the sinks; the window with
/// which it reads as few as `published` does.
index_t window_of_same_keys(bench::fidelity_settings const& s) {
    return std::max<index_t>(1, s.exact_window - s.block_size / 2 + 1 - s.exact_sinks);
}

/// Every line of the comparison, but for `oracle`.
std::vector<bench::system_request> requests(options const& o) {
    auto const systems =
        parse_names(o.systems, "--systems", {"dense", "window", "block_sparse", "compressed", "oracle"});
    auto const presets = parse_names(o.presets, "--preset", {"gap_free", "published"});
    auto const partners =
        o.partners == "all" ? bench::partner_names() : parse_names(o.partners, "--partner", bench::partner_names());
    auto const summaries = parse_names(o.summaries, "--summaries", bench::summary_codec_names());
    auto const both      = presets.size() == 2;
    std::vector<bench::system_request> out;
    for (std::string const& system : systems) {
        if (system == "oracle") continue;
        if (system == "dense" || system == "window") {
            out.push_back({.system = system});
            continue;
        }
        for (std::string const& preset : presets)
            for (std::string const& partner : partners) {
                if (system != "compressed") {
                    out.push_back({.system = system, .preset = preset, .partner = partner});
                    continue;
                }
                for (std::string const& codec : summaries)
                    out.push_back({.system = system, .preset = preset, .partner = partner, .summaries = codec});
                if (preset == "gap_free" && both && o.same_keys)
                    out.push_back({.system       = system,
                                   .preset       = preset,
                                   .partner      = partner,
                                   .exact_window = window_of_same_keys(o.shared)});
            }
    }
    return out;
}

/// What depends on the input and on the texts of options.
void complete(options& o, index_t tokens) {
    if (o.shared.max_tokens == 0) o.shared.max_tokens = tokens;
    if (o.shared.max_tokens < tokens)
        throw usage_error("--max-tokens {} is less than the {} tokens", o.shared.max_tokens, tokens);
    o.shared.steps   = parse_sizes(o.steps, "--steps");
    o.shared.storage = bench::parse_element_type(o.storage, "--storage");
    for (std::string const& part : bench::split_list(o.stages)) {
        index_t const stage = bench::parse_count(part, "--stages");
        if (stage > 61) throw usage_error("--stages: {} is outside [0, 62)", stage);
        o.shared.stages.push_back(static_cast<int>(stage));
    }
    o.shared.keep_token_weights = !o.certificate.empty();
}

std::vector<std::string> table_row(bench::verdict const& v) {
    auto const share = [](double x) { return fmt::format("{:.4f}", std::max(0.0, x)); };
    return {fmt::format("{:.4f}", v.relative_error),
            fmt::format("{:.5f}", v.cosine),
            share(v.exact),
            share(v.summary),
            share(v.unseen),
            fmt::format("{:.1f}", v.keys)};
}

bench::json to_json(bench::verdict const& v) {
    return {{"relative_error", v.relative_error},
            {"cosine", v.cosine},
            {"mean_row_cosine", v.row_cosine},
            {"relative_error_by_head", v.head_errors},
            {"mass_exact", v.exact},
            {"mass_summary", v.summary},
            {"mass_unseen", v.unseen},
            {"keys_per_query", v.keys},
            {"summaries_per_query", v.summaries},
            {"most_keys_of_a_query", v.most_keys}};
}

/// The comparison as a table and as JSON.
bench::json report(std::vector<bench::system_result> const& results,
                   bench::judgement const& judged,
                   std::vector<index_t> const& best_keys,
                   double bytes_per_token,
                   index_t group,
                   std::FILE* text) {
    bench::text_table table({"system", "preset", "partner", "stages", "window", "summaries", "error", "cosine", "exact",
                             "summary", "unseen", "keys/query", "KB read", "B/token"},
                            4);
    bench::json lines = bench::json::array();
    auto const add    = [&](std::vector<std::string> head, bench::verdict const& v, double read, double kept) {
        std::ranges::copy(table_row(v), std::back_inserter(head));
        head.push_back(fmt::format("{:.1f}", read / 1000));
        head.push_back(fmt::format("{:.1f}", kept));
        table.add(head);
        lines.back().update(to_json(v));
        lines.back()["bytes_read_per_query"]     = read;
        lines.back()["retained_bytes_per_token"] = kept;
    };
    for (std::size_t i = 0; i < results.size(); ++i) {
        bench::system_result const& r = results[i];
        bench::verdict const& v       = judged.systems[i];
        lines.push_back({{"system", r.request.system},
                         {"preset", r.request.preset},
                         {"partner", r.request.partner},
                         {"stages", r.stages},
                         {"exact_window", r.exact_window},
                         {"summaries", r.request.summaries},
                         {"retained_bytes_after_steps", r.retained_after},
                         {"walk_error", v.walk_error}});
        bool const windowed = r.request.system == "window" || r.request.system == "compressed";
        add({r.request.system, r.request.preset, r.request.partner, r.stages,
             windowed ? std::to_string(r.exact_window) : "",
             r.request.system == "compressed" ? r.request.summaries : ""},
            v, (v.keys - v.summaries) * r.bytes_per_key + v.summaries * r.bytes_per_summary, r.retained_per_token);
    }
    for (std::size_t i = 0; i < best_keys.size(); ++i) {
        lines.push_back({{"system", "oracle"}, {"best_keys", best_keys[i]}});
        // Each query head chooses for itself: its group shares no read.
        add({"oracle", fmt::format("best {}", best_keys[i]), "", "", "", ""}, judged.best[i],
            judged.best[i].keys * bytes_per_token * static_cast<double>(group), bytes_per_token);
    }
    table.print(text);
    return lines;
}

/// The backend and the walk must tell the same story, or nothing above means anything.
void check_walk(std::vector<bench::system_result> const& results, bench::judgement const& judged) {
    for (std::size_t i = 0; i < results.size(); ++i)
        if (double const e = judged.systems[i].walk_error; !(e < 0.01))
            throw std::runtime_error(fmt::format("{}: the backend's output is {:.1e} from attention over the keys its "
                                                 "call shows; one of the two is wrong",
                                                 results[i].request.name(), e));
}

void write_files(options const& o,
                 std::vector<index_t> const& positions,
                 std::vector<bench::system_result> const& results,
                 bench::judgement const& judged,
                 std::vector<index_t> const& best_keys) {
    if (!o.certificate.empty()) bench::write_certificate(o.certificate, positions, results[0].run.seen);
    if (o.out.empty()) return;
    std::vector<std::pair<std::string, bf::heads_buffer<float> const*>> outputs{{"truth", &judged.dense}};
    auto const named = [](std::string name) {
        std::ranges::replace(name, ' ', '.');
        return name;
    };
    for (auto const& r : results) outputs.emplace_back(named(r.request.name()), &r.run.out);
    for (std::size_t i = 0; i < best_keys.size(); ++i)
        outputs.emplace_back(fmt::format("oracle.best{}", best_keys[i]), &judged.chosen[i]);
    bench::write_outputs(o.out, positions, outputs);
}

void run(options o, bench::json document) {
    bench::check_writable(o.common.json);
    bench::check_writable(o.out, "--out");
    bench::check_writable(o.certificate, "--certificate");
    auto const asked  = requests(o);
    bool const oracle = o.systems.find("oracle") != std::string::npos;
    auto best         = oracle ? parse_sizes(o.best_keys, "--best-keys") : std::vector<index_t>{};
    std::sort(best.begin(), best.end());
    best.erase(std::unique(best.begin(), best.end()), best.end());
    if (!o.certificate.empty() && (asked.size() != 1 || oracle))
        throw usage_error("--certificate: choose one system, preset and partner, not {}",
                          asked.size() + (oracle ? 1 : 0));
    bench::machine const machine =
        bench::make_machine(o.common.backend, o.common.threads > 0 ? o.common.threads : bench::default_threads());
    o.shared.layer       = o.layer.value_or(o.qkv.empty() ? 2 : 0);
    bench::qkv const in  = read_input(o);
    auto const positions = bench::parse_queries(o.queries, in.q.shape().tokens);
    complete(o, in.q.shape().tokens);

    std::vector<bench::system_result> results;
    bench::judgement judged;
    {
        bench::progress bar(static_cast<double>(asked.size() + 1));
        for (bench::system_request const& r : asked) {
            bar.label(r.name());
            try {
                results.push_back(bench::run_system(machine, in, positions, o.shared, r));
            } catch (bf::shape_error const& e) { // sizes and stages are the user's
                throw usage_error("{}: {}", r.name(), e.what());
            }
            bar.advance(1);
        }
        bar.label("dense attention in double");
        std::vector<bench::system_run const*> runs;
        for (auto const& r : results) runs.push_back(&r.run);
        judged = bench::judge(in, positions, runs, best, machine.executor);
    }
    check_walk(results, judged);

    std::FILE* const text   = bench::text_stream(o.common.json);
    bf::heads_shape const q = in.q.shape();
    index_t const kv_heads  = in.k.shape().heads;
    double const token_bytes =
        static_cast<double>(kv_heads * (q.head_dim + in.v.shape().head_dim)) * bf::size_of(o.shared.storage);
    fmt::print(text, "{}: heads {}/{}, {} tokens, head_dim {}, {}; {} queries from {} to {}\n", in.from, q.heads,
               kv_heads, q.tokens, q.head_dim, o.storage, positions.size(), positions.front(), positions.back());
    fmt::print(text, "block_size {}, exact_window {}, exact_sinks {}; backend {}\n\n", o.shared.block_size,
               o.shared.exact_window, o.shared.exact_sinks, machine.name());
    document["input"]    = {{"from", in.from},
                            {"heads", q.heads},
                            {"kv_heads", kv_heads},
                            {"tokens", q.tokens},
                            {"head_dim", q.head_dim},
                            {"storage", o.storage},
                            {"queries", positions.size()},
                            {"first_query", positions.front()},
                            {"last_query", positions.back()}};
    document["settings"] = {{"block_size", o.shared.block_size},
                            {"exact_window", o.shared.exact_window},
                            {"exact_sinks", o.shared.exact_sinks},
                            {"max_tokens", o.shared.max_tokens},
                            {"layer", o.shared.layer},
                            {"attention_layers", o.shared.attention_layers},
                            {"steps", o.shared.steps},
                            {"backend", machine.name()}};
    document["systems"]  = report(results, judged, best, token_bytes, q.heads / kv_heads, text);
    fmt::print(text, "\nerror and cosine: output against dense attention in double. exact, summary, unseen: shares of "
                     "the dense softmax.\nKB read: per query token, all heads. B/token: retained while decoding at "
                     "this length. window: at least so many\nlatest tokens are exact. At one window gap_free keeps the "
                     "bytes of published and its sinks, and reads (block_size - 1) / 2\nmore keys on average; its line "
                     "with the smaller window reads as few.\n");
    bench::write_json(document, o.common.json);
    write_files(o, positions, results, judged, best);
    for (std::string const& path : {o.out, o.certificate})
        if (!path.empty()) fmt::print(text, "written: {}\n", path);
}

} // namespace

int main(int argc, char** argv) {
    options o;
    CLI::App app("How much of dense attention each system keeps, on real or made-up queries, keys and values.",
                 "fidelity");
    add_options(app, o);
    return bench::run_program(app, argc, argv, [&] { run(o, bench::describe_run("fidelity", argc, argv)); });
}
