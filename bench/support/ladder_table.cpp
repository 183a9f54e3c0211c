// SPDX-License-Identifier: MIT
#include "ladder_table.hpp"

#include "ladder_routing.hpp"

#include <algorithm>
#include <map>

namespace bench {
namespace {

/// The figures of one line of the table.
struct figures {
    double prefill, decode, both; // seconds: the prompt, settings.decode tokens, their sum
    double peak, retained, allocated;
    double rate, read; // decoded tokens per second, bytes read by one
};

figures figures_of(ladder_settings const& s, ladder_row const& r) {
    double const decode = r.times.decode_seconds * static_cast<double>(s.decode);
    return {.prefill   = r.times.prefill_seconds,
            .decode    = decode,
            .both      = r.times.prefill_seconds + decode,
            .peak      = static_cast<double>(r.memory.peak_bytes.value_or(0)),
            .retained  = static_cast<double>(r.memory.retained_bytes),
            .allocated = static_cast<double>(r.memory.allocated_bytes),
            .rate      = r.times.decode_seconds > 0 ? 1 / r.times.decode_seconds : 0.0,
            .read      = r.memory.token_bytes};
}

std::optional<figures> dense_of(ladder_settings const& s, ladder_result const& result) {
    for (ladder_row const& r : result.rows)
        if (r.system == "dense") return figures_of(s, r);
    return std::nullopt;
}

std::string ratio(double dense, double system) {
    return dense > 0 && system > 0 ? three_digits(dense / system) : "-";
}

std::string megabytes(double bytes) {
    return bytes > 0 ? three_digits(bytes / 1e6) : "-";
}

std::vector<std::string> cells(ladder_settings const& s, ladder_result const& result, ladder_row const& r) {
    figures const f = figures_of(s, r);
    figures const d = dense_of(s, result).value_or(figures{});
    return {&r == &result.rows.front() ? size_text(result.context) : "",
            r.system,
            (r.times.sampled ? "~" : "") + three_digits(f.prefill),
            ratio(d.prefill, f.prefill),
            three_digits(1e3 * f.decode),
            ratio(d.decode, f.decode),
            (r.times.sampled ? "~" : "") + three_digits(f.both),
            ratio(d.both, f.both),
            megabytes(f.peak),
            ratio(d.peak, f.peak),
            megabytes(f.retained),
            ratio(d.retained, f.retained),
            three_digits(f.rate),
            megabytes(f.read)};
}

std::string describe_rules(ladder_settings const& s) {
    if (s.preset == "published")
        return fmt::format("{} exact tokens, blocks of {}, block 0 as a summary", s.exact_window, s.block_size);
    return fmt::format("{} to {} exact tokens (mean {:.1f}), blocks of {}, {} sinks", s.exact_window,
                       s.exact_window + s.block_size - 1,
                       static_cast<double>(s.exact_window) + static_cast<double>(s.block_size - 1) / 2, s.block_size,
                       s.exact_sinks);
}

/// "causal_shift, stages by layer at 32k: 0,1 | 2,3 | ...".
std::string describe_partners(ladder_settings const& s, index_t context) {
    if (s.partner == "none") return "none: the block before alone";
    ladder_routing const routing(s, context);
    if (s.partner == "fixed_stride")
        return fmt::format("fixed_stride: every second block, {} of them", routing.partners(0, context).stages.size());
    std::string text = fmt::format("{}, {} by layer at {}: ", s.partner, s.partner == "random" ? "draws" : "stages",
                                   size_text(context));
    for (index_t layer = 0; layer < s.model.layers; ++layer) {
        auto const stages = routing.partners(layer, context).stages;
        text += layer == 0 ? "" : " | ";
        for (int i = 0; i < stages.size(); ++i) text += fmt::format("{}{}", i == 0 ? "" : ",", stages[i]);
    }
    return text;
}

json table_line(ladder_settings const& s, ladder_result const& result, ladder_row const& r) {
    figures const f = figures_of(s, r);
    json line{{"prefill_seconds", f.prefill},
              {"prefill_sampled", r.times.sampled},
              {"decode_seconds", f.decode},
              {"total_seconds", f.both},
              {"peak_bytes", f.peak > 0 ? json(f.peak) : json()},
              {"retained_bytes", f.retained},
              {"allocated_bytes", f.allocated},
              {"decode_tokens_per_second", f.rate},
              {"bytes_read_per_token", f.read}};
    if (std::optional<figures> const d = dense_of(s, result)) {
        auto const x = [](double dense, double system) { return system > 0 ? json(dense / system) : json(); };
        line["x"]    = {{"prefill", x(d->prefill, f.prefill)},
                        {"decode", x(d->decode, f.decode)},
                        {"total", x(d->both, f.both)},
                        {"peak", x(d->peak, f.peak)},
                        {"retained", x(d->retained, f.retained)},
                        {"allocated", x(d->allocated, f.allocated)},
                        {"read", x(d->read, f.read)}};
    }
    return line;
}

} // namespace

void print_heading(std::FILE* to, ladder_settings const& s, json const& run, std::string const& policy) {
    json const& machine = run.at("machine");
    fmt::print(to, "Attention alone: no projections, no other layers, no sampling of tokens.\n\n");
    fmt::print(to, "model       {}: {} query heads, {} KV heads, head_dim {}, {} attention layers{}\n", s.model.name,
               s.model.heads, s.model.kv_heads, s.model.head_dim, s.model.layers,
               s.model.all == 0 ? "" : fmt::format(" of {}", s.model.all));
    if (!s.model.note.empty()) fmt::print(to, "            {}\n", s.model.note);
    fmt::print(to, "inputs      {}; keys and values {}, queries and outputs f32, chunks of {}\n",
               s.qkv.empty() ? "seeded pool of random rows" : s.qkv, name_of(s.storage), s.step);
    if (s.has("compressed"))
        fmt::print(to, "compressed  {}: {}{}\n", s.preset, describe_rules(s),
                   s.summaries == "raw" ? "" : fmt::format(", summaries {}", s.summaries));
    if (s.has("window")) fmt::print(to, "window      {} exact tokens\n", s.exact_window);
    if (s.has("compressed") || s.has("block_sparse"))
        fmt::print(to, "partners    {}\n", describe_partners(s, s.contexts.back()));
    fmt::print(to, "backend     {}, {} thread{}\n", policy, s.common.threads, s.common.threads == 1 ? "" : "s");
    fmt::print(to, "machine     {}, {} cores, {:.0f} GB, {}\n\n", machine.at("cpu").get<std::string>(),
               machine.at("cores").get<int>(), machine.at("memory_bytes").get<double>() / 1e9,
               run.at("date").get<std::string>());
    std::fflush(to);
}

void print_ladder(std::FILE* to, ladder_settings const& s, std::vector<ladder_result> const& results) {
    text_table table({"context", "system", "prefill s", "x", fmt::format("decode {} ms", s.decode), "x", "both s", "x",
                      "peak MB", "x", "KV MB", "x", "tokens/s", "MB/token"},
                     2);
    std::map<std::string, double> errors; // the largest by system, of sampled ones
    double apart = 0;
    bool any     = false;
    for (ladder_result const& result : results) {
        if (!result.skipped.empty()) continue;
        if (any) table.gap();
        any = true;
        for (ladder_row const& r : result.rows) {
            table.add(cells(s, result, r));
            apart = std::max(apart, r.times.spread);
            if (r.times.sampled) errors[r.system] = std::max(errors[r.system], r.times.prefill_error);
        }
    }
    if (!any) return;
    table.print(to);
    fmt::print(to,
               "\nx is dense / system: above 1 is better. MB is 10^6 bytes. KV: needed to go on after the prefill.\n"
               "peak: resident memory of a process that holds this system alone. MB/token: keys and values that one\n"
               "decoded token reads. tokens/s: decoding, attention of all layers.\n");
    std::string stated;
    for (auto const& [system, error] : errors)
        stated += fmt::format("{}{} {:.1f} %", stated.empty() ? "" : ", ", system, 100 * error);
    if (!stated.empty())
        fmt::print(to, "~ summed from sampled chunks, one layer each; standard error at most: {}.\n", stated);
    if (apart > 0.25)
        fmt::print(to, "Rounds of one measurement differ by up to {:.0f} % of their median: the machine was busy.\n",
                   100 * apart);
    std::fflush(to);
}

json to_json(ladder_settings const& s, ladder_result const& result) {
    json j{{"context", result.context}};
    if (!result.skipped.empty()) {
        j["skipped"] = result.skipped;
        return j;
    }
    for (ladder_row const& r : result.rows) {
        j["systems"][r.system]           = table_line(s, result, r);
        j["systems"][r.system]["time"]   = r.times.to_json();
        j["systems"][r.system]["memory"] = to_json(r.memory);
    }
    return j;
}

} // namespace bench
