// SPDX-License-Identifier: MIT
#include "ladder_settings.hpp"

#include "ladder_qkv.hpp"
#include "machine.hpp"
#include "report.hpp"
#include "summary_mixes.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

namespace bench {
namespace {

constexpr char const* heads_note =
    "the number of query heads is assumed; layers, KV heads and head_dim are the model's";

/// Every fourth layer attends, the last one of four.
std::vector<index_t> every_fourth(index_t layers) {
    std::vector<index_t> numbers;
    for (index_t i = 0; i < layers; ++i) numbers.push_back(4 * i + 3);
    return numbers;
}

std::array<model_geometry, 2> const& models() {
    static std::array<model_geometry, 2> const known{model_geometry{.name     = "qwen3.5-0.8b",
                                                                    .heads    = 8,
                                                                    .kv_heads = 2,
                                                                    .head_dim = 256,
                                                                    .layers   = 6,
                                                                    .all      = 24,
                                                                    .numbers  = every_fourth(6),
                                                                    .note     = heads_note},
                                                     model_geometry{.name     = "qwen3.5-4b",
                                                                    .heads    = 16,
                                                                    .kv_heads = 4,
                                                                    .head_dim = 256,
                                                                    .layers   = 8,
                                                                    .all      = 32,
                                                                    .numbers  = every_fourth(8),
                                                                    .note     = heads_note}};
    return known;
}

void check_one_of(std::string const& value, std::vector<std::string> const& known, char const* option) {
    if (std::find(known.begin(), known.end(), value) == known.end())
        throw usage_error("{}: '{}' is none of {}", option, value, fmt::join(known, ", "));
}

std::vector<std::string> parse_systems(std::string const& text) {
    std::vector<std::string> const given = split_list(text);
    std::vector<std::string> const known(ladder_systems.begin(), ladder_systems.end());
    for (std::string const& s : given) check_one_of(s, known, "--systems");
    std::vector<std::string> ordered;
    for (std::string const& s : known)
        if (std::find(given.begin(), given.end(), s) != given.end()) ordered.push_back(s);
    return ordered;
}

std::vector<index_t> parse_contexts(std::string const& text) {
    std::vector<index_t> contexts;
    for (std::string const& s : split_list(text)) contexts.push_back(parse_size(s, "--contexts"));
    std::sort(contexts.begin(), contexts.end());
    contexts.erase(std::unique(contexts.begin(), contexts.end()), contexts.end());
    return contexts;
}

std::vector<index_t> parse_numbers(std::string const& text, index_t layers) {
    std::vector<index_t> numbers;
    for (std::string const& part : split_list(text)) {
        index_t n              = 0;
        char const* const last = part.data() + part.size();
        auto const [end, code] = std::from_chars(part.data(), last, n);
        if (code != std::errc{} || end != last || n < 0)
            throw usage_error("--layer-numbers: '{}' is no number of a layer", part);
        numbers.push_back(n);
    }
    if (static_cast<index_t>(numbers.size()) != layers)
        throw usage_error("--layer-numbers: {} given, {} layers", numbers.size(), layers);
    return numbers;
}

} // namespace

model_geometry find_model(std::string const& name) {
    for (model_geometry const& m : models())
        if (m.name == name) return m;
    throw usage_error("--model: '{}' is none of {}", name, model_names());
}

std::string model_names() {
    std::string names;
    for (model_geometry const& m : models()) names += (names.empty() ? "" : ", ") + m.name;
    return names;
}

bool ladder_settings::has(std::string_view system) const {
    return std::find(systems.begin(), systems.end(), system) != systems.end();
}

butterfly::cache_rules ladder_settings::rules() const {
    return preset == "published" ? butterfly::cache_rules::published : butterfly::cache_rules::gap_free;
}

butterfly::cache_config ladder_settings::cache(index_t max_tokens) const {
    return {.kv_heads     = model.kv_heads,
            .head_dim     = model.head_dim,
            .block_size   = block_size,
            .exact_window = exact_window,
            .exact_sinks  = exact_sinks,
            .max_tokens   = max_tokens,
            .max_append   = step,
            .rules        = rules()};
}

std::vector<std::string> ladder_settings::child_arguments(std::string const& system, index_t context) const {
    std::vector<std::string> words;
    auto const add = [&](char const* option, auto const& value) {
        words.emplace_back(option);
        words.push_back(fmt::format("{}", value));
    };
    add("--peak-of", system);
    add("--contexts", context);
    add("--backend", common.backend);
    add("--threads", common.threads);
    add("--heads", model.heads);
    add("--kv-heads", model.kv_heads);
    add("--head-dim", model.head_dim);
    add("--layers", model.layers);
    add("--layer-numbers", fmt::format("{}", fmt::join(model.numbers, ",")));
    add("--preset", preset);
    add("--partner", partner);
    add("--partners", partners);
    add("--block-size", block_size);
    add("--exact-window", exact_window);
    add("--exact-sinks", exact_sinks);
    add("--step", step);
    add("--decode", decode);
    add("--storage", name_of(storage));
    add("--summaries", summaries);
    add("--seed", seed);
    return words;
}

nlohmann::ordered_json ladder_settings::to_json() const {
    return {{"model", model.name},
            {"heads", model.heads},
            {"kv_heads", model.kv_heads},
            {"head_dim", model.head_dim},
            {"attention_layers", model.layers},
            {"layers", model.all},
            {"layer_numbers", model.numbers},
            {"note", model.note},
            {"contexts", contexts},
            {"systems", systems},
            {"preset", preset},
            {"partner", partner},
            {"partners", partners},
            {"block_size", block_size},
            {"exact_window", exact_window},
            {"exact_sinks", rules().sinks ? exact_sinks : 0},
            {"step", step},
            {"decode", decode},
            {"threads", common.threads},
            {"storage", name_of(storage)},
            {"summaries", summaries},
            {"dense", dense_full ? "full" : "sampled"},
            {"inputs", qkv.empty() ? "seeded pool of random rows" : qkv},
            {"seed", seed}};
}

ladder_command_line::ladder_command_line(CLI::App& app) {
    s_.common.add_to(app);
    auto const positive = CLI::Range(index_t{1}, index_t{1} << 24);
    app.add_option("--contexts", contexts_, "context lengths (default: 32k,64k,128k,256k)")
        ->check(not_empty())
        ->type_name("LIST");
    app.add_option("--model", model_, "geometry: " + model_names())->capture_default_str();
    app.add_option("--heads", heads_, "query heads, instead of the model's")->check(positive);
    app.add_option("--kv-heads", kv_heads_, "key/value heads, instead of the model's")->check(positive);
    app.add_option("--head-dim", head_dim_, "columns of a head, instead of the model's")->check(positive);
    app.add_option("--layers", layers_, "attention layers, instead of the model's")->check(positive);
    app.add_option("--systems", systems_, "of dense,window,block_sparse,compressed (default: all)")
        ->check(not_empty())
        ->type_name("LIST");
    app.add_option("--preset", s_.preset, "rules of compressed: gap_free or published")->capture_default_str();
    app.add_option("--partner", s_.partner,
                   "rule that routes blocks: causal_shift, xor, bit_reversal, benes, "
                   "fixed_stride, random or none")
        ->capture_default_str();
    app.add_option("--partners", s_.partners, "partners per layer (default: as few as use every stage)")
        ->check(CLI::Range(0, 62));
    app.add_option("--block-size", s_.block_size, "tokens of a block")->check(positive)->capture_default_str();
    app.add_option("--exact-window", s_.exact_window, "latest tokens that are exact")
        ->check(positive)
        ->capture_default_str();
    app.add_option("--exact-sinks", s_.exact_sinks, "first tokens that stay exact")
        ->check(CLI::Range(0, 1 << 20))
        ->capture_default_str();
    app.add_option("--step", s_.step, "tokens of a prefill chunk")->check(positive)->capture_default_str();
    app.add_option("--decode", s_.decode, "tokens decoded after the prefill")->check(positive)->capture_default_str();
    app.add_option("--storage", storage_, "elements of keys and values: f32, f16 or bf16")->capture_default_str();
    app.add_option("--summaries", s_.summaries, "how compressed keeps summaries: raw (as tokens), or a codec")
        ->check(CLI::IsMember(summary_codec_names()))
        ->capture_default_str();
    app.add_option("--dense", dense_, "prefill of dense: sampled, or full for every chunk of its layer")
        ->capture_default_str();
    app.add_option("--rounds", s_.rounds, "timed rounds, medians are shown (default: up to 7 within the budget)")
        ->check(CLI::Range(0, 100));
    app.add_option("--budget", s_.budget, "seconds that all rungs together aim at")
        ->check(number_between(0.0, 1e6))
        ->capture_default_str();
    app.add_option("--seed", s_.seed, "seed of the random rows")->capture_default_str();
    app.add_option("--qkv", s_.qkv, "real tensors: safetensors with layerL.q, layerL.k and layerL.v")
        ->type_name("FILE");
    app.add_option("--accounting", s_.accounting, "published: print the published byte table, time nothing");
    app.add_option("--peak-of", s_.peak_system)->group(""); // what a child process is asked
    app.add_option("--layer-numbers", numbers_)->group("");
}

void ladder_command_line::resolve_model(ladder_settings& s) const {
    s.model = find_model(model_);
    if (!s.qkv.empty()) {
        if (heads_ + kv_heads_ + head_dim_ + layers_ > 0)
            throw usage_error("--qkv brings its own geometry: leave out --heads, --kv-heads, --head-dim and --layers");
        s.model = read_qkv_geometry(s.qkv).model;
        return;
    }
    model_geometry const named = s.model;
    if (heads_ > 0) s.model.heads = heads_;
    if (kv_heads_ > 0) s.model.kv_heads = kv_heads_;
    if (head_dim_ > 0) s.model.head_dim = head_dim_;
    if (layers_ > 0) {
        s.model.layers  = layers_;
        s.model.numbers = every_fourth(layers_);
    }
    if (!numbers_.empty()) s.model.numbers = parse_numbers(numbers_, s.model.layers);
    bool const same = s.model.heads == named.heads && s.model.kv_heads == named.kv_heads &&
                      s.model.head_dim == named.head_dim && s.model.layers == named.layers;
    if (!same) {
        s.model.name = "custom";
        s.model.all  = 0;
        s.model.note.clear();
    }
    if (s.model.heads % s.model.kv_heads != 0)
        throw usage_error("--heads {} is no multiple of --kv-heads {}", s.model.heads, s.model.kv_heads);
}

ladder_settings ladder_command_line::finish() {
    ladder_settings s = s_;
    if (s.common.threads == 0) s.common.threads = default_threads();
    s.storage = parse_element_type(storage_, "--storage");
    s.systems = parse_systems(systems_.empty() ? "dense,window,block_sparse,compressed" : systems_);
    check_one_of(s.preset, {"gap_free", "published"}, "--preset");
    check_one_of(s.partner, {"causal_shift", "xor", "bit_reversal", "benes", "fixed_stride", "random", "none"},
                 "--partner");
    check_one_of(dense_, {"sampled", "full"}, "--dense");
    s.dense_full = dense_ == "full";
    if (!s.accounting.empty()) check_one_of(s.accounting, {"published"}, "--accounting");
    if (!s.peak_system.empty()) s.systems = parse_systems(s.peak_system);
    resolve_model(s);

    index_t const longest = s.qkv.empty() ? index_t{1} << 30 : read_qkv_geometry(s.qkv).tokens;
    if (!contexts_.empty()) {
        s.contexts = parse_contexts(contexts_);
    } else if (s.qkv.empty()) {
        s.contexts = {32 << 10, 64 << 10, 128 << 10, 256 << 10};
    } else {
        for (index_t n = longest; n >= 512 && s.contexts.size() < 4; n /= 2) s.contexts.insert(s.contexts.begin(), n);
        if (s.contexts.empty()) s.contexts = {longest};
    }
    if (s.contexts.back() > longest)
        throw usage_error("--contexts: {} is more than the {} tokens of {}", size_text(s.contexts.back()), longest,
                          s.qkv);
    if (s.partner == "none" && s.partners > 0)
        throw usage_error("--partners {}: --partner none has no partners", s.partners);
    // The default suits every context.
    if (s.exact_sinks > std::max(s.contexts.front(), ladder_settings().exact_sinks))
        throw usage_error("--exact-sinks {}: the shortest context has {} tokens", s.exact_sinks, s.contexts.front());
    check_writable(s.common.json);
    return s;
}

} // namespace bench
