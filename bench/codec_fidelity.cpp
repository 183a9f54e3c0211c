// SPDX-License-Identifier: MIT

// What packed keys and values cost attention, on real or made-up tensors: for every codec and for pairs of them, at
// their bytes, the divergence of the softmax, whether the heaviest key stays the same, and the error of the output.
//
// Judged are positions far beyond any window, so that nearly every key a query sees is packed. Rows are those that a
// codec's own text decodes (support/codec_judge.hpp); beside pairs that this library's cache can keep stands what the
// cache itself gives, sinks and window exact, in decode steps of its kernels.
//
// B/128 is bytes of 128 values. Published formats pack blocks of 128 and pay a whole one for a shorter row: that is
// counted in B/row, but not in B/128, in their favour.

#include <butterfly/core/executor.hpp>

#include "codec_judge.hpp"
#include "codec_rows.hpp"
#include "ladder_qkv.hpp"
#include "positions.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "synthetic_qkv.hpp"

#include <algorithm>
#include <filesystem>
#include <thread>

namespace bf = butterfly;
using bench::codec_verdict;
using bench::exact_rows;
using bench::index_t;
using bench::json;
using bench::usage_error;

namespace {

struct settings {
    std::vector<std::string> files{}, codecs{};
    std::string layers{}, queries{};
    index_t centre = 128;
    exact_rows exact{.window = 128, .block_size = 64, .sinks = 4};
    std::uint64_t seed = 1;
    int threads        = 0;
    std::string json_path;
};

using quantizer_list = std::vector<std::unique_ptr<bench::quantizer const>>;

void add_options(CLI::App& app, settings& s, quantizer_list const& all) {
    std::vector<std::string> names;
    for (auto const& codec : all) names.push_back(codec->name());
    app.add_option("--qkv", s.files, "a safetensors file with layerL.q, .k, .v, again for each (default: made up)")
        ->type_name("FILE");
    app.add_option("--layers", s.layers, "layers of the files, a list (default: all)");
    app.add_option("--queries", s.queries,
                   "positions to judge: all, half (the second), or FIRST:END:STEP (default: every 16th of the last "
                   "512, or of the last half)");
    app.add_option("--codec", s.codecs, "a codec, again for each; default: all")
        ->check(CLI::IsMember(names))
        ->type_name("NAME");
    app.add_option("--centre", s.centre, "tokens whose mean is taken out of packed rows")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    app.add_option("--exact-window", s.exact.window, "latest tokens that are exact in the columns 'window'")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    app.add_option("--exact-sinks", s.exact.sinks, "first tokens that are exact there")
        ->check(CLI::Range(0, 1 << 20))
        ->capture_default_str();
    app.add_option("--seed", s.seed, "of the made-up input")->capture_default_str();
    app.add_option("--threads", s.threads, "threads; 0: the machine's cores")
        ->check(CLI::Range(0, 4096))
        ->capture_default_str();
    app.add_option("--json", s.json_path, "write every number to FILE as JSON, - for standard output")
        ->type_name("FILE");
    std::string text = "Codecs:";
    for (std::string const& name : names) text += " " + name;
    app.footer(text);
}

/// A layer to judge.
struct layer_input {
    std::string name; // "layer 5"
    bench::qkv tensors{};
};

struct input {
    std::string from;
    std::vector<layer_input> layers{};
};

std::vector<input> read_inputs(settings const& s) {
    if (s.files.empty()) {
        if (!s.layers.empty())
            throw usage_error("--layers {}: there is no file to take them from; --qkv names one", s.layers);
        auto made = bench::make_synthetic_qkv({.tokens = 4096, .seed = s.seed});
        input one{fmt::format("made up, seed {}", s.seed)};
        one.layers.push_back({"made up", {std::move(made.q), std::move(made.k), std::move(made.v), "made up"}});
        std::vector<input> all;
        all.push_back(std::move(one));
        return all;
    }
    std::vector<index_t> wanted;
    for (std::string const& part : bench::split_list(s.layers)) wanted.push_back(bench::parse_count(part, "--layers"));
    std::vector<input> all;
    for (std::string const& path : s.files) {
        input one{std::filesystem::path(path).stem().string()};
        for (bench::qkv_layer& layer : bench::read_qkv(path))
            if (wanted.empty() || std::ranges::find(wanted, layer.number) != wanted.end())
                one.layers.push_back({fmt::format("layer {}", layer.number),
                                      {std::move(layer.q), std::move(layer.k), std::move(layer.v), path}});
        for (index_t const layer : wanted)
            if (std::ranges::find(one.layers, fmt::format("layer {}", layer), &layer_input::name) == one.layers.end())
                throw usage_error("--layers {}: {} has no layer {}", s.layers, path, layer);
        all.push_back(std::move(one));
    }
    return all;
}

std::vector<index_t> positions_of(settings const& s, index_t tokens) {
    if (!s.queries.empty()) return bench::parse_queries(s.queries, tokens);
    return bench::parse_queries(fmt::format("{}::16", std::max(tokens - 512, tokens / 2)), tokens);
}

json to_json(codec_verdict const& v) {
    return {{"kl", v.kl}, {"top1", v.top1}, {"error", v.error}};
}

/// Bytes of 128 values: see the top of this file.
double bytes_of_128(bench::quantizer const& codec, index_t head_dim) {
    if (codec.origin() == "published") return static_cast<double>(codec.row_bytes(128));
    return static_cast<double>(codec.row_bytes(head_dim)) * 128.0 / static_cast<double>(head_dim);
}

/// Everything about one layer. Rows of each codec are unpacked once for all questions.
class layer_report {
public:
    layer_report(settings const& s, layer_input const& in, bf::executor const& threads)
        : s_(s), in_(in), threads_(threads), judge_(in.tensors, positions_of(s, in.tensors.q.shape().tokens), threads) {
    }

    /// Weights of the latest tokens.
    [[nodiscard]] json masses() const {
        json heads = json::array();
        for (index_t h = 0; h < in_.tensors.q.shape().heads; ++h)
            heads.push_back({{"last_128", judge_.mass_on_last(h, 128)},
                             {"last_512", judge_.mass_on_last(h, 512)},
                             {"last_2048", judge_.mass_on_last(h, 2048)}});
        return heads;
    }

    /// Keys packed and values exact, then the reverse; empty where rows do not fit the codec.
    [[nodiscard]] json codec(bench::quantizer const& codec) {
        index_t const dk = in_.tensors.k.shape().head_dim, dv = in_.tensors.v.shape().head_dim;
        json out{{"codec", codec.name()}, {"origin", codec.origin()}};
        if (std::string const why = codec.refusal(dk); why.empty()) {
            unpacked const rows = unpack(codec, in_.tensors.k);
            out["keys"]         = {{"row_bytes", codec.row_bytes(dk)},
                                   {"bytes_of_128", bytes_of_128(codec, dk)},
                                   {"plain", to_json(judge_.compare(&rows.plain, nullptr, {}))},
                                   {"centred", to_json(judge_.compare(&rows.centred, nullptr, {}))},
                                   {"plain_window", to_json(judge_.compare(&rows.plain, nullptr, s_.exact))},
                                   {"centred_window", to_json(judge_.compare(&rows.centred, nullptr, s_.exact))}};
        } else {
            out["refused"] = why;
        }
        if (codec.refusal(dv).empty()) {
            unpacked const rows = unpack(codec, in_.tensors.v);
            out["values"]       = {{"row_bytes", codec.row_bytes(dv)},
                                   {"bytes_of_128", bytes_of_128(codec, dv)},
                                   {"plain", judge_.compare(nullptr, &rows.plain, {}).error},
                                   {"centred", judge_.compare(nullptr, &rows.centred, {}).error},
                                   {"plain_window", judge_.compare(nullptr, &rows.plain, s_.exact).error},
                                   {"centred_window", judge_.compare(nullptr, &rows.centred, s_.exact).error}};
        }
        return out;
    }

    /// Keys and values packed. The published engine keeps a window of keys alone, to the token, and no sinks.
    [[nodiscard]] json
    pair(bench::codec_pair const& p, bench::quantizer const& keys, bench::quantizer const& values) const {
        index_t const dk = in_.tensors.k.shape().head_dim, dv = in_.tensors.v.shape().head_dim;
        json out{{"pair", p.name}, {"group", p.group}, {"keys", p.keys}, {"values", p.values}, {"centred", p.centred}};
        for (std::string const& why : {keys.refusal(dk), values.refusal(dv)})
            if (!why.empty()) {
                out["refused"] = why;
                return out;
            }
        auto const k     = bench::packed_and_unpacked(keys, in_.tensors.k, p.centred ? s_.centre : 0, threads_);
        auto const v     = bench::packed_and_unpacked(values, in_.tensors.v, 0, threads_);
        exact_rows exact = s_.exact;
        if (p.group == "published") exact = {.window = s_.exact.window, .block_size = 1, .sinks = 0, .values = false};
        out["row_bytes"]    = keys.row_bytes(dk) + values.row_bytes(dv);
        out["bytes_of_128"] = bytes_of_128(keys, dk) + bytes_of_128(values, dv);
        out["flat"]         = to_json(judge_.compare(&k, &v, {}));
        out["window"]       = to_json(judge_.compare(&k, &v, exact));
        auto const of_cache = bench::run_mixed_cache(p.name, in_.tensors, judge_.positions(), threads_);
        if (of_cache.shape().heads > 0) out["cache_error"] = judge_.error_of(of_cache);
        return out;
    }

    [[nodiscard]] std::vector<index_t> const& positions() const noexcept { return judge_.positions(); }

private:
    struct unpacked {
        bf::heads_buffer<float> plain{}, centred{};
    };

    [[nodiscard]] unpacked unpack(bench::quantizer const& codec, bf::heads_buffer<float> const& rows) const {
        return {bench::packed_and_unpacked(codec, rows, 0, threads_),
                bench::packed_and_unpacked(codec, rows, s_.centre, threads_)};
    }

    settings const& s_;
    layer_input const& in_;
    bf::executor threads_;
    bench::codec_judge judge_;
};

std::string number(double x) {
    return x == 0 ? "0" : fmt::format("{:.2g}", x);
}

std::string bytes_text(double x) {
    return fmt::format("{:.4g}", x);
}

/// The lines of all layers that say something, by bytes: their numbers in the first layer.
std::vector<std::size_t> by_bytes(json const& lines, char const* side) {
    std::vector<std::size_t> order;
    auto const part = [&](std::size_t i) -> json const& { return side != nullptr ? lines[i][side] : lines[i]; };
    for (std::size_t i = 0; i < lines.size(); ++i)
        if (side != nullptr ? lines[i].contains(side) : lines[i].contains("row_bytes")) order.push_back(i);
    std::ranges::stable_sort(order, {}, [&](std::size_t i) { return part(i)["bytes_of_128"].get<double>(); });
    return order;
}

void print_masses(json const& input, std::FILE* text) {
    bench::text_table table({"softmax on the latest", "128", "512", "2048", "(least and most of a head)"});
    for (json const& layer : input["layers"]) {
        std::vector<std::string> row{layer["layer"]}, ranges;
        for (auto const* const key : {"last_128", "last_512", "last_2048"}) {
            double sum = 0, least = 1, most = 0;
            for (json const& head : layer["mass"]) {
                double const x = head[key];
                sum += x, least = std::min(least, x), most = std::max(most, x);
            }
            row.push_back(fmt::format("{:.3f}", sum / static_cast<double>(layer["mass"].size())));
            ranges.push_back(fmt::format("{:.2f}-{:.2f}", least, most));
        }
        row.push_back(fmt::format("{}", fmt::join(ranges, "  ")));
        table.add(row);
    }
    table.print(text);
}

void print_keys(json const& input, std::FILE* text) {
    json const& layers = input["layers"];
    std::vector<std::string> header{"keys packed", "B/row", "B/128"};
    for (json const& layer : layers)
        header.insert(header.end(), {fmt::format("{}: KL", layer["layer"].get<std::string>()), "top-1", "centred"});
    bench::text_table table(header);
    for (std::size_t const i : by_bytes(layers[0]["codecs"], "keys")) {
        json const& first = layers[0]["codecs"][i];
        std::vector<std::string> row{first["codec"], std::to_string(first["keys"]["row_bytes"].get<index_t>()),
                                     bytes_text(first["keys"]["bytes_of_128"])};
        for (json const& layer : layers) {
            json const& keys = layer["codecs"][i]["keys"];
            row.push_back(number(keys["plain"]["kl"]));
            row.push_back(fmt::format("{:.3f}", keys["plain"]["top1"].get<double>()));
            row.push_back(number(keys["centred"]["kl"]));
        }
        table.add(row);
    }
    table.print(text);
}

void print_values(json const& input, std::FILE* text) {
    json const& layers = input["layers"];
    std::vector<std::string> header{"values packed", "B/row", "B/128"};
    for (json const& layer : layers)
        header.insert(header.end(), {fmt::format("{}: error", layer["layer"].get<std::string>()), "centred"});
    bench::text_table table(header);
    for (std::size_t const i : by_bytes(layers[0]["codecs"], "values")) {
        json const& first = layers[0]["codecs"][i];
        std::vector<std::string> row{first["codec"], std::to_string(first["values"]["row_bytes"].get<index_t>()),
                                     bytes_text(first["values"]["bytes_of_128"])};
        for (json const& layer : layers) {
            row.push_back(number(layer["codecs"][i]["values"]["plain"]));
            row.push_back(number(layer["codecs"][i]["values"]["centred"]));
        }
        table.add(row);
    }
    table.print(text);
}

void print_pairs(json const& input, std::FILE* text) {
    json const& layers = input["layers"];
    std::vector<std::string> header{"keys and values", "keys", "values", "B/row", "B/256"};
    for (json const& layer : layers)
        header.insert(header.end(),
                      {fmt::format("{}: KL", layer["layer"].get<std::string>()), "error", "window", "cache"});
    bench::text_table table(header, 3);
    for (std::size_t const i : by_bytes(layers[0]["pairs"], nullptr)) {
        json const& first = layers[0]["pairs"][i];
        std::vector<std::string> row{first["pair"], first["keys"], first["values"],
                                     std::to_string(first["row_bytes"].get<index_t>()),
                                     bytes_text(first["bytes_of_128"])};
        for (json const& layer : layers) {
            json const& p = layer["pairs"][i];
            row.push_back(number(p["flat"]["kl"]));
            row.push_back(number(p["flat"]["error"]));
            row.push_back(number(p["window"]["error"]));
            row.push_back(p.contains("cache_error") ? number(p["cache_error"]) : "");
        }
        table.add(row);
    }
    table.print(text);
}

json shares_of(exact_rows const& exact, std::vector<index_t> const& positions, index_t tokens) {
    double judged = 0;
    for (index_t const t : positions) judged += static_cast<double>(exact.count(t)) / static_cast<double>(t + 1);
    return {{"judged", judged / static_cast<double>(positions.size())},
            {"all", bench::mean_exact_share(exact, tokens)}};
}

/// What a test that judges all positions of a text is told about a window of keys, and what one that judges the last
/// is: the texts are those on which windows were published, and a long one.
json print_window_shares(std::FILE* text) {
    json shares = json::array();
    bench::text_table table({"exact keys, %", "of 957", "last", "of 3970", "last", "of 32768", "last"});
    for (index_t const window : {128, 256, 512}) {
        std::vector<std::string> row{fmt::format("window {}", window)};
        for (index_t const tokens : {957, 3970, 32768}) {
            exact_rows const exact{.window = window, .block_size = 1};
            double const mean = bench::mean_exact_share(exact, tokens);
            double const last = static_cast<double>(exact.count(tokens - 1)) / static_cast<double>(tokens);
            shares.push_back({{"window", window}, {"tokens", tokens}, {"mean", mean}, {"last", last}});
            row.push_back(fmt::format("{:.1f}", 100 * mean));
            row.push_back(fmt::format("{:.1f}", 100 * last));
        }
        table.add(row);
    }
    table.print(text);
    return shares;
}

void run(settings const& s, quantizer_list const& all, json document) {
    bench::check_writable(s.json_path);
    auto const inputs = read_inputs(s);
    std::vector<bench::quantizer const*> chosen;
    for (auto const& codec : all)
        if (s.codecs.empty() || std::ranges::find(s.codecs, codec->name()) != s.codecs.end())
            chosen.push_back(codec.get());
    auto const named = [&](std::string const& name) {
        auto const at = std::ranges::find(chosen, name, [](bench::quantizer const* c) { return c->name(); });
        return at == chosen.end() ? nullptr : *at;
    };
    std::vector<bench::codec_pair> pairs;
    for (bench::codec_pair const& p : bench::codec_pairs())
        if (named(p.keys) != nullptr && named(p.values) != nullptr) pairs.push_back(p);
    int const cores = s.threads > 0 ? s.threads : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    bf::executor const threads = bf::openmp{cores};

    std::size_t layers = 0;
    for (input const& in : inputs) layers += in.layers.size();
    document["settings"] = {{"centre", s.centre},
                            {"exact_window", s.exact.window},
                            {"exact_sinks", s.exact.sinks},
                            {"block_size", s.exact.block_size},
                            {"backend", bench::quantizer_backend()}};
    document["inputs"]   = json::array();
    {
        bench::progress bar(static_cast<double>(layers * (chosen.size() + pairs.size())));
        for (input const& in : inputs) {
            json of_input{{"from", in.from}, {"layers", json::array()}};
            for (layer_input const& layer : in.layers) {
                bf::heads_shape const q = layer.tensors.q.shape(), k = layer.tensors.k.shape();
                layer_report report(s, layer, threads);
                json of_layer{{"layer", layer.name},
                              {"heads", q.heads},
                              {"kv_heads", k.heads},
                              {"tokens", q.tokens},
                              {"head_dim", q.head_dim},
                              {"queries", report.positions().size()},
                              {"first_query", report.positions().front()},
                              {"last_query", report.positions().back()},
                              {"exact_share", shares_of(s.exact, report.positions(), q.tokens)},
                              {"mass", report.masses()},
                              {"codecs", json::array()},
                              {"pairs", json::array()}};
                for (auto const* const codec : chosen) {
                    bar.label(fmt::format("{}, {}: {}", in.from, layer.name, codec->name()));
                    of_layer["codecs"].push_back(report.codec(*codec));
                    bar.advance(1);
                }
                for (bench::codec_pair const& p : pairs) {
                    bar.label(fmt::format("{}, {}: {}", in.from, layer.name, p.name));
                    of_layer["pairs"].push_back(report.pair(p, *named(p.keys), *named(p.values)));
                    bar.advance(1);
                }
                of_input["layers"].push_back(std::move(of_layer));
            }
            document["inputs"].push_back(std::move(of_input));
        }
    }

    std::FILE* const text = bench::text_stream(s.json_path);
    for (json const& in : document["inputs"]) {
        json const& first = in["layers"][0];
        fmt::print(text, "{}: heads {}/{}, {} tokens, head_dim {}; {} queries of each head from {} to {}\n",
                   in["from"].get<std::string>(), first["heads"].get<index_t>(), first["kv_heads"].get<index_t>(),
                   first["tokens"].get<index_t>(), first["head_dim"].get<index_t>(), first["queries"].get<index_t>(),
                   first["first_query"].get<index_t>(), first["last_query"].get<index_t>());
        fmt::print(text,
                   "window {} and {} sinks: {:.1f} % of the keys that these queries see are exact, {:.1f} % over "
                   "all positions of the text\n\n",
                   s.exact.window, s.exact.sinks, 100 * first["exact_share"]["judged"].get<double>(),
                   100 * first["exact_share"]["all"].get<double>());
        print_masses(in, text);
        fmt::print(text, "\n");
        print_keys(in, text);
        fmt::print(text, "\n");
        print_values(in, text);
        fmt::print(text, "\n");
        if (!first["pairs"].empty()) print_pairs(in, text);
        for (json const& codec : first["codecs"])
            if (codec.contains("refused"))
                fmt::print(text, "left out: {}: {}\n", codec["codec"].get<std::string>(),
                           codec["refused"].get<std::string>());
        fmt::print(text, "\n");
    }
    document["window_shares"] = print_window_shares(text);
    fmt::print(
        text,
        "\nKL: of the softmax with exact keys from that with packed ones, nats, mean over queries and heads. "
        "top-1: share of\nqueries whose heaviest key stays. error: of the output, L2 over all "
        "queries. centred: rows less the mean of\nthe first {}. window: latest {} and first {} tokens exact "
        "(published: latest keys alone). cache: of\nmixed_kv_cache by the kernels of {}, window 128, "
        "4 sinks, centred by 128 tokens where it is. B/128: bytes of 128\nvalues, of published formats those of a "
        "full block.\n",
        s.centre, s.exact.window, s.exact.sinks, bench::quantizer_backend());
    bench::write_json(document, s.json_path);
}

} // namespace

int main(int argc, char** argv) {
    settings s;
    quantizer_list const all = bench::make_quantizers();
    CLI::App app("What packed keys and values cost attention, for every codec and for pairs of them.",
                 "codec_fidelity");
    add_options(app, s, all);
    return bench::run_program(app, argc, argv, [&] { run(s, all, bench::describe_run("codec_fidelity", argc, argv)); });
}
