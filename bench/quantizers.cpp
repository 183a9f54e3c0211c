// SPDX-License-Identifier: MIT

// Every codec of keys and values beside the least that its bits allow: bytes, error of rows, error of scores, speed.
//
// Codecs of as many whole bits a value stand together, by bytes. nmse is |x - decoded|^2 / |x|^2 over all rows of a
// kind; dB is what it stands above D(R) = 2^-2R, R the bits that are really kept, scales and paddings included. Beside
// it stands what Lloyd-Max levels of the nearest whole bits would reach, did they need no scale. Scores are products of
// decoded keys with queries in f32, as the definition has them: what a kernel that multiplies codes adds is `error` of
// a step of attention.
//
// Speed is of one thread: encode by the codec's own text, decode by the leaf of the SIMD backend, 64 rows at a time
// into the same place. `attend` is one step of 4 query heads over all rows as keys and values of one head.

#include "fidelity_files.hpp"
#include "memory.hpp"
#include "progress.hpp"
#include "quantizer_measure.hpp"
#include "report.hpp"
#include "timing.hpp"
#include "usage.hpp"

#include <algorithm>
#include <cmath>

namespace bf    = butterfly;
namespace quant = butterfly::quant;
using bench::index_t;
using bench::json;

namespace {

struct settings {
    std::vector<std::string> codecs{};
    index_t head_dim   = 0; // 0: 128, or that of the file
    index_t vectors    = 20000;
    index_t layer      = 0;
    std::uint64_t seed = 1;
    double seconds     = 0.05;
    bool no_timing     = false;
    std::string qkv, json_path;
};

using quantizer_list = std::vector<std::unique_ptr<bench::quantizer const>>;

void add_options(CLI::App& app, settings& s, quantizer_list const& all) {
    std::vector<std::string> names;
    for (auto const& codec : all) names.push_back(codec->name());
    app.add_option("--codec", s.codecs, "a codec, again for each; default: all")
        ->check(CLI::IsMember(names))
        ->type_name("NAME");
    app.add_option("--head-dim", s.head_dim, "values of a row (default: 128, or as in the file)")
        ->check(CLI::Range(1, 1024));
    app.add_option("--vectors", s.vectors, "made-up rows of a kind, rounded up to a multiple of 128")
        ->check(CLI::Range(1, 100000000))
        ->capture_default_str();
    app.add_option("--seed", s.seed, "of made-up rows")->capture_default_str();
    auto* const file = app.add_option("--qkv", s.qkv, "also keys and values of this safetensors file: layerL.q, .k, .v")
                           ->type_name("FILE");
    app.add_option("--layer", s.layer, "which layer of the file")
        ->check(CLI::Range(0, 1 << 20))
        ->needs(file)
        ->capture_default_str();
    app.add_option("--seconds", s.seconds, "timed seconds of a figure")
        ->check(bench::number_between(1e-6, 100))
        ->capture_default_str();
    app.add_flag("--no-timing", s.no_timing, "leave speed out");
    app.add_option("--json", s.json_path, "write every number to FILE as JSON, - for standard output")
        ->type_name("FILE");
    std::string text = "Codecs:";
    for (std::string const& name : names) text += " " + name;
    app.footer(text);
}

/// The rows of a kind that were asked for; what is made up comes first.
std::vector<bench::row_set> read_rows(settings& s) {
    std::vector<bench::row_set> file;
    if (!s.qkv.empty()) {
        bench::qkv const layer = bench::load_qkv(s.qkv, s.layer);
        index_t const in_file  = layer.k.shape().head_dim;
        if (s.head_dim != 0 && s.head_dim != in_file)
            throw bench::usage_error("--head-dim {}: rows of {} have {}", s.head_dim, s.qkv, in_file);
        s.head_dim = in_file;
        file       = bench::rows_of_layer(layer, s.seed);
    }
    if (s.head_dim == 0) s.head_dim = 128;
    s.vectors = bf::detail::round_up(s.vectors, index_t{128});
    // Four kinds of rows, a query for each, and what they become.
    double const bytes = 10.0 * static_cast<double>(s.vectors * s.head_dim) * sizeof(float);
    if (auto const room = bench::available_memory(); room && bytes > static_cast<double>(*room))
        throw bench::usage_error("--vectors {}: about {} GB of memory are needed, {} GB are available", s.vectors,
                                 bench::three_digits(bytes / 1e9),
                                 bench::three_digits(static_cast<double>(*room) / 1e9));
    auto rows = bench::made_up_rows(s.vectors, s.head_dim, s.seed);
    std::ranges::move(file, std::back_inserter(rows));
    return rows;
}

/// Whole bits next to R, the fewer of two; 0 where Lloyd-Max quantizers of so many are not tabled.
int nearest_bits(double bits) {
    int const whole = static_cast<int>(std::ceil(bits - 0.5));
    return whole <= 8 ? std::max(whole, 1) : 0;
}

/// A line of the table.
struct line {
    bench::quantizer const* codec = nullptr;
    double bytes = 0, bits = 0; // of 128 values; of a value
    std::vector<bench::row_loss> losses{};
    bench::codec_speed speed{};

    [[nodiscard]] double above_bound(bench::row_loss const& l) const {
        return quant::decibels(l.nmse / quant::rate_distortion(bits));
    }
};

std::string number(double x) {
    return std::isfinite(x) ? fmt::format("{:.3g}", x) : "-";
}

std::vector<std::string> header_of(settings const& s) {
    std::vector<std::string> header{"codec", "B/128", "bits", "nmse", "dB", "Lloyd-Max", "large", "around 1", "tails"};
    if (!s.qkv.empty()) header.insert(header.end(), {"keys", "values"});
    header.insert(header.end(), {"slope", "rms"});
    if (!s.qkv.empty()) header.insert(header.end(), {"k slope", "k rms"});
    if (!s.no_timing) header.insert(header.end(), {"encode", "decode", "score", "attend", "Mkeys/s", "error", "unit"});
    return header;
}

void add_to(bench::text_table& table, settings const& s, line const& l) {
    bench::row_loss const& gauss = l.losses[0];
    int const whole              = nearest_bits(l.bits);
    std::vector<std::string> row{l.codec->name(),
                                 fmt::format("{:.4g}", l.bytes),
                                 fmt::format("{:.4g}", l.bits),
                                 number(gauss.nmse),
                                 fmt::format("{:.2f}", l.above_bound(gauss)),
                                 whole == 0 ? "-" : number(quant::lloyd_max_distortion(whole))};
    for (std::size_t i = 1; i < l.losses.size(); ++i)
        row.push_back(l.losses[i].rows == 0 ? "-" : number(l.losses[i].nmse));
    auto const scores = [&](bench::row_loss const& of) {
        row.push_back(of.rows == 0 ? "-" : fmt::format("{:.4f}", of.slope));
        row.push_back(of.rows == 0 ? "-" : fmt::format("{:.4f}", of.rms));
    };
    scores(gauss);
    if (!s.qkv.empty()) scores(l.losses[4]);
    if (!s.no_timing) {
        double const step = bench::median(l.speed.attend);
        row.push_back(bench::three_digits(bench::median(l.speed.encode) * 1e-9));
        row.push_back(bench::three_digits(bench::median(l.speed.decode) * 1e-9));
        row.push_back(l.speed.score.empty() ? "-" : bench::three_digits(bench::median(l.speed.score) * 1e-9));
        row.push_back(bench::three_digits(static_cast<double>(l.speed.read) / step * 1e-9));
        row.push_back(bench::three_digits(static_cast<double>(l.speed.tokens) / step * 1e-6));
        row.push_back(fmt::format("{:.4f}", l.speed.attend_error));
        row.push_back(l.codec->unit());
    }
    table.add(std::move(row));
}

json to_json(line const& l, settings const& s, std::vector<bench::row_set> const& rows) {
    int const whole = nearest_bits(l.bits);
    json out{{"name", l.codec->name()},
             {"codec", l.codec->description()},
             {"origin", l.codec->origin()},
             {"tile_tokens", l.codec->tile_tokens()},
             {"unit", l.codec->unit()},
             {"row_bytes", l.codec->row_bytes(s.head_dim)},
             {"bytes_per_128", l.bytes},
             {"bits", l.bits},
             {"rate_distortion", quant::rate_distortion(l.bits)}};
    if (whole > 0) out["lloyd_max"] = {{"bits", whole}, {"nmse", quant::lloyd_max_distortion(whole)}};
    for (std::size_t i = 0; i < rows.size(); ++i) {
        bench::row_loss const& loss = l.losses[i];
        json& to                    = out["rows"][rows[i].name];
        to["rows"]                  = loss.rows;
        if (loss.rows == 0) continue;
        to["nmse"]                     = loss.nmse;
        to["db_above_rate_distortion"] = l.above_bound(loss);
        if (rows[i].queries.empty()) continue;
        to["score_slope"] = loss.slope;
        to["score_rms"]   = loss.rms;
    }
    if (s.no_timing) return out;
    auto const& scored = l.speed.score;
    double const step  = bench::median(l.speed.attend);
    out["speed"]       = {{"encode_bytes_per_second", bench::median(l.speed.encode)},
                          {"encode_spread", bench::spread(l.speed.encode)},
                          {"decode_bytes_per_second", bench::median(l.speed.decode)},
                          {"decode_spread", bench::spread(l.speed.decode)},
                          {"score_bytes_per_second", scored.empty() ? json(nullptr) : json(bench::median(scored))},
                          {"attend_seconds", step},
                          {"attend_spread", bench::spread(l.speed.attend)},
                          {"attend_keys", l.speed.tokens},
                          {"attend_bytes", l.speed.read},
                          {"attend_bytes_per_second", static_cast<double>(l.speed.read) / step},
                          {"attend_keys_per_second", static_cast<double>(l.speed.tokens) / step},
                          {"attend_error", l.speed.attend_error}};
    return out;
}

line measure(bench::quantizer const& codec, settings const& s, std::vector<bench::row_set> const& rows) {
    line out{.codec = &codec,
             .bytes = static_cast<double>(codec.row_bytes(s.head_dim)) * 128 / static_cast<double>(s.head_dim),
             .bits  = codec.bits_per_value(s.head_dim)};
    for (bench::row_set const& in : rows) out.losses.push_back(bench::measure_loss(codec, in));
    if (!s.no_timing) out.speed = bench::measure_speed(codec, rows[0], s.seconds);
    return out;
}

void explain(std::FILE* text, settings const& s) {
    fmt::print(text,
               "\nnmse, dB above D(R), Lloyd-Max of the nearest whole bits: of rows of N(0, 1). large: eight channels "
               "times 8.\naround 1: 1 + 0.1 N(0, 1), rows of nearly one direction. tails: Student's t, four degrees "
               "of freedom. slope: of\nscores with decoded keys over true ones; rms: their error in units of |q| |k| "
               "/ sqrt(head_dim).\n");
    if (!s.qkv.empty())
        fmt::print(text, "keys, values, k slope, k rms: of {}, layer {}, whole tiles of tokens.\n", s.qkv, s.layer);
    if (!s.no_timing)
        fmt::print(
            text,
            "encode, decode: GB/s of f32 values, one thread. score: of {0} query heads with packed keys, GB/s of "
            "those; - where\nrows are decoded first. attend: a step of {0} query heads over {1} keys and "
            "values of one head;\nGB/s of packed bytes, keys per second, and how far its output is from that "
            "over decoded rows.\n",
            bench::quantizer_heads, s.vectors);
}

void run(settings s, quantizer_list const& all, json document) {
    bench::check_writable(s.json_path);
    auto const rows = read_rows(s);
    std::vector<bench::quantizer const*> chosen;
    for (auto const& codec : all) {
        if (!s.codecs.empty() && std::ranges::find(s.codecs, codec->name()) == s.codecs.end()) continue;
        if (std::string const why = codec->refusal(s.head_dim); why.empty())
            chosen.push_back(codec.get());
        else
            document["left_out"].push_back({{"name", codec->name()}, {"reason", why}});
    }
    if (chosen.empty()) throw bench::usage_error("--codec: {}", document["left_out"][0]["reason"].get<std::string>());

    std::vector<line> lines;
    {
        bench::progress bar(static_cast<double>(chosen.size()));
        for (bench::quantizer const* const codec : chosen) {
            bar.label(codec->name());
            lines.push_back(measure(*codec, s, rows));
            bar.advance(1);
        }
    }
    std::ranges::stable_sort(lines, {}, &line::bytes);

    std::FILE* const text = bench::text_stream(s.json_path);
    fmt::print(text, "Rows of {} values, {} of each kind, seed {}; backend {}\n\n", s.head_dim, s.vectors, s.seed,
               bench::quantizer_backend());
    document["backend"]  = bench::quantizer_backend();
    document["head_dim"] = s.head_dim;
    document["vectors"]  = s.vectors;
    document["seed"]     = s.seed;
    if (!s.qkv.empty()) document["qkv"] = {{"file", s.qkv}, {"layer", s.layer}};
    document["codecs"] = json::array();
    bench::text_table table(header_of(s));
    for (std::size_t i = 0; i < lines.size(); ++i) {
        if (i > 0 && nearest_bits(lines[i - 1].bits) != nearest_bits(lines[i].bits)) table.gap();
        add_to(table, s, lines[i]);
        document["codecs"].push_back(to_json(lines[i], s, rows));
    }
    if (!lines.empty()) table.print(text);
    if (document.contains("left_out")) fmt::print(text, "\n");
    for (auto const& out : document.value("left_out", json::array()))
        fmt::print(text, "left out: {}: {}\n", out["name"].get<std::string>(), out["reason"].get<std::string>());
    if (!lines.empty()) explain(text, s);
    bench::write_json(document, s.json_path);
}

} // namespace

int main(int argc, char** argv) {
    settings s;
    auto const all = bench::make_quantizers();
    CLI::App app("Every codec of keys and values beside the least that its bits allow: bytes, error, scores, speed.",
                 "quantizers");
    add_options(app, s, all);
    return bench::run_program(app, argc, argv, [&] { run(s, all, bench::describe_run("quantizers", argc, argv)); });
}
