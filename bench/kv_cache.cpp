// SPDX-License-Identifier: MIT

// Bytes of the key-value caches of a model at some lengths: exact ones, those of the published engine's formats, this
// library's mixed-precision and compressed ones. Nothing is stored: every cache is asked what it would take.
//
// A cache costs KiB for each token of a long context, and something that does not grow: exact windows, sinks, means.
// Totals are what it takes to go on decoding at a length; what stands allocated then is one more column.

#include "kv_cache_bytes.hpp"
#include "report.hpp"
#include "usage.hpp"

#include <algorithm>
#include <optional>

namespace bf = butterfly;
using bench::index_t;
using bench::json;
using bench::model;

namespace {

constexpr double kib = 1024.0, mib = 1024.0 * kib, gib = 1024.0 * mib;

struct settings {
    std::string contexts = "32k,128k,1m";
    std::vector<std::string> models{};
    model own{};
    index_t window = 128;
    std::string json_path;
};

void add_options(CLI::App& app, settings& s) {
    std::vector<std::string> names;
    for (model const& m : bench::cache_models()) names.push_back(m.name);
    app.add_option("--contexts", s.contexts, "lengths, a list: 32k,1m")
        ->check(bench::not_empty())
        ->capture_default_str();
    app.add_option("--model", s.models, "a model, again for each; default: all")
        ->check(CLI::IsMember(names))
        ->type_name("NAME");
    auto const size = [&](char const* name, index_t& value, char const* text) {
        return app.add_option(name, value, text)->check(CLI::Range(1, 65536));
    };
    auto* const layers = size("--layers", s.own.attention_layers, "attention layers of a model of your own");
    auto* const heads  = size("--kv-heads", s.own.kv_heads, "its heads of keys and values");
    auto* const dim    = size("--head-dim", s.own.head_dim, "and columns of a head");
    layers->needs(heads)->needs(dim);
    heads->needs(layers);
    dim->needs(layers);
    app.add_option("--published-window", s.window, "latest keys that the published engine keeps in float32")
        ->check(CLI::Range(0, 1 << 20))
        ->capture_default_str();
    app.add_option("--json", s.json_path, "write every number to FILE as JSON, - for standard output")
        ->type_name("FILE");
    std::string text = "Models:";
    for (model const& m : bench::cache_models())
        text += fmt::format("\n  {:<15} {} layers x {} heads x {}", m.name, m.attention_layers, m.kv_heads, m.head_dim);
    app.footer(text);
}

std::vector<model> models_of(settings const& s) {
    std::vector<model> chosen;
    for (model const& m : bench::cache_models())
        if (std::ranges::find(s.models, m.name) != s.models.end()) chosen.push_back(m);
    if (s.own.attention_layers > 0) {
        if (s.own.attention_layers * s.own.kv_heads * s.own.head_dim > 1 << 28)
            throw bench::usage_error(
                "--layers {} --kv-heads {} --head-dim {}: more than 2^28 values in the keys of a token",
                s.own.attention_layers, s.own.kv_heads, s.own.head_dim);
        chosen.push_back(s.own);
        chosen.back().name = "own";
    }
    return chosen.empty() ? bench::cache_models() : chosen;
}

double ratio(std::vector<bench::cache_line> const& lines, std::size_t of, bench::cache_line const& l, std::size_t at) {
    return static_cast<double>(lines[of].total[at]) / static_cast<double>(l.total[at]);
}

/// KiB of a token: two decimals, which is what rows of whole bytes need, and three digits of less than one.
std::string token_text(double bytes) {
    return bytes < kib ? bench::three_digits(bytes / kib) : fmt::format("{:.2f}", bytes / kib);
}

/// Bytes that do not grow, in a unit that fits.
std::string constant_text(double bytes) {
    if (bytes == 0) return "-";
    return bytes < mib ? bench::three_digits(bytes / kib) + " KiB" : bench::three_digits(bytes / mib) + " MiB";
}

json report(model const& m, settings const& s, std::vector<index_t> const& lengths, std::FILE* text) {
    auto const lines = bench::cache_lines(m, lengths, s.window); // those of f32 and f16 come first
    fmt::print(text, "{}: {} layers, {} heads of keys and values, head_dim {}\n\n", m.name, m.attention_layers,
               m.kv_heads, m.head_dim);
    std::vector<std::string> header{"cache", "KiB/token", "constant"};
    for (index_t const tokens : lengths) header.push_back(bench::size_text(tokens) + " GiB");
    std::string const last = bench::size_text(lengths.back());
    header.insert(header.end(), {"x f16", "x f32", "allocated GiB"});
    bench::text_table table(header);

    json out{{"name", m.name},
             {"layers", m.attention_layers},
             {"kv_heads", m.kv_heads},
             {"head_dim", m.head_dim},
             {"caches", json::array()}};
    std::vector<std::string> refused;
    for (std::size_t i = 0; i < lines.size(); ++i) {
        bench::cache_line const& l = lines[i];
        json& to                   = out["caches"].emplace_back(
                              json{{"name", l.name}, {"group", l.group}, {"keys", l.keys}, {"values", l.values}});
        if (!l.refusal.empty()) {
            to["refused"] = l.refusal;
            refused.push_back(fmt::format("left out: {}: {}", l.name, l.refusal));
            continue;
        }
        if (i > 0 && lines[i - 1].group != l.group) table.gap();
        to["bytes_per_token"] = l.token;
        to["constant_bytes"]  = l.constant;
        std::vector<std::string> row{l.name, token_text(l.token), constant_text(l.constant)};
        for (std::size_t at = 0; at < lengths.size(); ++at) {
            row.push_back(bench::three_digits(static_cast<double>(l.total[at]) / gib));
            to["lengths"].push_back({{"tokens", lengths[at]},
                                     {"bytes", l.total[at]},
                                     {"allocated_bytes", l.allocated[at]},
                                     {"x_f16", ratio(lines, 1, l, at)},
                                     {"x_f32", ratio(lines, 0, l, at)}});
        }
        std::size_t const end = lengths.size() - 1;
        row.push_back(fmt::format("{:.2f}", ratio(lines, 1, l, end)));
        row.push_back(fmt::format("{:.2f}", ratio(lines, 0, l, end)));
        row.push_back(bench::three_digits(static_cast<double>(l.allocated[end]) / gib));
        table.add(std::move(row));
    }
    table.print(text);
    for (std::string const& why : refused) fmt::print(text, "{}\n", why);
    fmt::print(text, "\n");
    return out;
}

json report_published(std::FILE* text) {
    fmt::print(text, "The published table of memory at 32K ({}), in its units: KiB per token x 32 000 / 10^6\n\n",
               bench::cache_models().front().name);
    bench::text_table table({"its line", "claimed", "computed", "reproduced", "keys+values that give the claim"}, 1);
    json out = json::array();
    for (bench::published_claim const& c : bench::published_claims()) {
        std::string pairs;
        for (std::string const& pair : c.pairs) pairs += (pairs.empty() ? "" : ", ") + pair;
        table.add({c.text, fmt::format("{:.2f}", c.claimed), fmt::format("{:.3f}", c.computed),
                   c.reproduced() ? "yes" : "no", pairs.empty() ? "none" : pairs});
        out.push_back({{"line", c.text},
                       {"window", c.window},
                       {"claimed", c.claimed},
                       {"computed", c.computed},
                       {"reproduced", c.reproduced()},
                       {"pairs", c.pairs}});
    }
    table.print(text);
    fmt::print(text,
               "\ncomputed: f32+f32, turbo_kv_4b+f16, uniform_2b+f16, which is what its commands store, and the window "
               "of keys in\nfloat32. All its formats were tried for the last column.\n");
    return out;
}

void run(settings const& s, json document) {
    bench::check_writable(s.json_path);
    std::FILE* const text = bench::text_stream(s.json_path);
    std::vector<index_t> lengths;
    for (std::string const& part : bench::split_list(s.contexts))
        lengths.push_back(bench::parse_size(part, "--contexts"));
    auto const models            = models_of(s);
    document["contexts"]         = lengths;
    document["published_window"] = s.window;
    bool published               = false;
    for (model const& m : models) {
        document["models"].push_back(report(m, s, lengths, text));
        published = published || std::string(m.name) == bench::cache_models().front().name;
    }
    if (published) document["published_table"] = report_published(text);
    fmt::print(text,
               "{}KiB/token: of a long context. constant: windows, sinks and means, which do not grow. GiB: to go on "
               "decoding at that\nlength; x f16, x f32, allocated: at {}. Keys of the published engine: a window of {} "
               "in float32 besides; allocated, those of\nall tokens. Mixed: window {}, sinks {}, in bf16.\n",
               published ? "\n" : "", bench::size_text(lengths.back()), s.window, bench::mix_sizes{}.exact_window,
               bench::mix_sizes{}.exact_sinks);
    bench::write_json(document, s.json_path);
}

} // namespace

int main(int argc, char** argv) {
    settings s;
    CLI::App app("Bytes of the key-value caches of a model at some lengths: exact, published, mixed-precision, "
                 "compressed.",
                 "kv_cache");
    add_options(app, s);
    return bench::run_program(app, argc, argv, [&] { run(s, bench::describe_run("kv_cache", argc, argv)); });
}
