// SPDX-License-Identifier: MIT
#pragma once

// What context_ladder measures: the geometry of a model's attention layers, the systems, the contexts.

#include <butterfly/cache/rules.hpp>

#include "usage.hpp"

#include <nlohmann/json.hpp>

#include <array>
#include <string>
#include <vector>

namespace bench {

/// The attention layers of a model: `numbers` of all its layers. The others are linear.
struct model_geometry {
    std::string name;
    index_t heads    = 0;
    index_t kv_heads = 0;
    index_t head_dim = 0;
    index_t layers   = 0; // attention layers
    index_t all      = 0; // layers of the model; 0: unknown
    std::vector<index_t> numbers{};
    std::string note{};
};

/// The models that go by name. Throws usage_error for another.
[[nodiscard]] model_geometry find_model(std::string const& name);

/// "qwen3.5-0.8b, qwen3.5-4b".
[[nodiscard]] std::string model_names();

/// What is measured, in the order of the table; dense comes first because the others are held against it.
inline constexpr std::array<char const*, 4> ladder_systems{"dense", "window", "block_sparse", "compressed"};

struct ladder_settings {
    common_options common;
    model_geometry model;
    std::vector<index_t> contexts;
    std::vector<std::string> systems;
    std::string preset    = "gap_free";
    std::string partner   = "causal_shift";
    std::string summaries = "raw"; // of compressed: as tokens are, or a codec (summary_mixes.hpp)
    index_t partners      = 0;     // per layer; 0: as few as use every stage
    index_t block_size = 128, exact_window = 64, exact_sinks = 4;
    index_t step = 384, decode = 8;
    butterfly::element_type storage = butterfly::element_type::bf16;
    bool dense_full                 = false;
    int rounds                      = 0; // 0: as many as the budget has room for, seven at most
    double budget                   = 240;
    std::uint64_t seed              = 1;
    std::string qkv;
    std::string accounting;  // "published": the byte table and nothing else
    std::string peak_system; // a child process: the memory of this system, as JSON on standard output

    [[nodiscard]] bool has(std::string_view system) const;
    [[nodiscard]] butterfly::cache_rules rules() const;
    [[nodiscard]] butterfly::cache_config cache(index_t max_tokens) const;
    /// Tokens beyond the context that every buffer has room for.
    [[nodiscard]] index_t room() const { return std::max(decode, block_size) + 1; }
    /// Bytes of keys and values of one token, over all attention layers.
    [[nodiscard]] index_t token_bytes() const {
        return 2 * model.layers * model.kv_heads * model.head_dim * size_of(storage);
    }
    /// The arguments that make a child process measure `system` at `context`.
    [[nodiscard]] std::vector<std::string> child_arguments(std::string const& system, index_t context) const;
    [[nodiscard]] nlohmann::ordered_json to_json() const;
};

/// The command line of context_ladder: add_to, then parse, then finish.
class ladder_command_line {
public:
    explicit ladder_command_line(CLI::App& app);

    /// Checks what was given and resolves defaults. Throws usage_error.
    [[nodiscard]] ladder_settings finish();

private:
    void resolve_model(ladder_settings& s) const;

    ladder_settings s_;
    std::string contexts_, systems_, storage_ = "bf16", dense_ = "sampled", model_ = "qwen3.5-0.8b";
    std::string numbers_;
    index_t heads_ = 0, kv_heads_ = 0, head_dim_ = 0, layers_ = 0;
};

} // namespace bench
