// SPDX-License-Identifier: MIT
#include "fidelity_systems.hpp"

#include <butterfly/cache/attend.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>

#include "summary_mixes.hpp"
#include "usage.hpp"

namespace bench {

std::string system_request::name() const {
    std::string text = system;
    for (std::string const& part : {preset, partner})
        if (!part.empty()) text.append(" ").append(part);
    if (exact_window > 0) text += fmt::format(" window={}", exact_window);
    if (summaries != "raw") text += fmt::format(" summaries={}", summaries);
    return text;
}

std::vector<std::string> const& partner_names() {
    static std::vector<std::string> const names = {"causal_shift", "xor",    "bit_reversal", "benes",
                                                   "fixed_stride", "random", "none"};
    return names;
}

namespace {

/// Stages of the layer by the preset's own schedule.
topology::stage_list scheduled(fidelity_settings const& s, system_request const& r, index_t blocks) {
    int const count = r.partner == "benes" ? topology::benes_phase_count(blocks) : topology::stage_count(blocks);
    topology::stage_list out;
    if (r.preset == "published") {
        for (int i = 0; i < std::max(1, s.partners); ++i) out.push_back(static_cast<int>((s.layer + i) % count));
        return out;
    }
    topology::stage_schedule const schedule(
        {.attention_layers = s.attention_layers, .blocks = blocks, .partners = s.partners});
    if (r.partner != "benes") return schedule[s.layer];
    int const p = schedule[s.layer].size();
    for (int i = 0; i < p; ++i) out.push_back(static_cast<int>((s.layer * p + i) % count));
    return out;
}

} // namespace

runtime_row
partner_row(fidelity_settings const& s, system_request const& r, index_t blocks, topology::stage_list& stages) {
    stages = {};
    for (int const stage : s.stages) stages.push_back(stage);
    if (stages.size() == 0) stages = scheduled(s, r, blocks);
    if (r.partner == "none") stages = {};

    bool const published = r.preset == "published";
    runtime_row row;
    if (published) row.push_back(topology::landmark{.stride = 1, .count = 1});
    row.push_back(topology::window{.predecessors = 1});
    if (r.partner == "causal_shift") row.push_back(topology::causal_shift{stages});
    if (r.partner == "xor") row.push_back(topology::xor_partner{stages});
    if (r.partner == "bit_reversal") row.push_back(topology::bit_reversal{stages});
    if (r.partner == "benes") row.push_back(topology::benes{stages});
    if (r.partner == "random") row.push_back(topology::random_predecessor{stages});
    if (r.partner == "fixed_stride")
        row.push_back(topology::fixed_stride{.stride = published ? 1 : s.stride, .count = stages.size()});
    return row;
}

namespace {

/// Runs one system: with the backend for its output and with the witness for what it saw.
template <bf::element T>
class runner {
public:
    runner(machine const& m,
           qkv const& in,
           std::vector<index_t> const& positions,
           fidelity_settings const& s,
           system_request const& r)
        : machine_(m), in_(in), positions_(positions), settings_(s), k_(narrow(in.k)), v_(narrow(in.v)),
          all_({in.q.shape().heads, in.q.shape().tokens, in.v.shape().head_dim}),
          result_{.request = r,
                  .run = {.seen = sightings(in.q.shape().heads, in.q.shape().tokens, in.v.shape().head_dim, positions)},
                  .exact_window = r.exact_window > 0 ? r.exact_window : s.exact_window} {
        result_.bytes_per_key = static_cast<double>(row_bytes());
    }

    [[nodiscard]] system_result run() {
        std::string const& system = result_.request.system;
        if (system == "dense") run_dense();
        if (system == "window") run_window();
        if (system == "block_sparse") run_block_sparse();
        if (system == "compressed")
            with_summaries<T>(result_.request.summaries, [&](auto const& mix) { run_compressed(mix); });
        keep_chosen();
        return std::move(result_);
    }

private:
    static bf::heads_buffer<T> narrow(bf::heads_buffer<float> const& from) {
        bf::heads_buffer<T> to(from.shape());
        for (std::size_t i = 0; i < to.values().size(); ++i) to.values()[i] = static_cast<T>(from.values()[i]);
        return to;
    }

    [[nodiscard]] index_t tokens() const { return in_.q.shape().tokens; }

    /// Bytes of one token in all kv heads.
    [[nodiscard]] index_t row_bytes() const {
        index_t const columns = in_.k.shape().head_dim + in_.v.shape().head_dim;
        return in_.k.shape().heads * columns * static_cast<index_t>(sizeof(T));
    }

    [[nodiscard]] witness watch(index_t summaries_skip = 0) {
        return {.executor           = machine_.executor,
                .book               = &result_.run.seen,
                .summaries_skip     = summaries_skip,
                .keep_token_weights = settings_.keep_token_weights};
    }

    /// Makes the same call with both policies.
    template <class Call>
    void both(index_t summaries_skip, Call const& call) {
        call(machine_);
        call(watch(summaries_skip));
    }

    void retain_tokens(index_t count) {
        result_.retained_after     = count * row_bytes();
        result_.retained_per_token = static_cast<double>(result_.retained_after) / static_cast<double>(tokens());
    }

    void run_dense() {
        both(0, [&](auto const& policy) { bf::dense_sdpa(policy, in_.q.view(), k_.view(), v_.view(), all_.view()); });
        retain_tokens(tokens());
    }

    /// The latest exact_window tokens and, once they have left it, the first exact_sinks.
    void run_window() {
        index_t const window = result_.exact_window;
        index_t const sinks  = settings_.exact_sinks;
        auto const k = k_.view(), v = v_.view();
        bf::pool const recent(k, v, bf::visible::exact_window(window));
        bf::pool const first(k, v, bf::visible::interval{.window = window, .before = sinks});
        both(0, [&](auto const& policy) {
            if (sinks > 0)
                bf::attend(policy, in_.q.view(), all_.view(), {}, first, recent);
            else
                bf::attend(policy, in_.q.view(), all_.view(), {}, recent);
        });
        retain_tokens(std::min(tokens(), window + sinks));
    }

    [[nodiscard]] runtime_row row_at(index_t tokens_there) {
        bool const published = result_.request.preset == "published";
        index_t const last   = published ? tokens_there : settings_.max_tokens;
        topology::stage_list stages;
        runtime_row row = partner_row(settings_, result_.request, blocks_of(last), stages);
        result_.stages.clear();
        for (int const stage : stages) result_.stages += fmt::format("{}{}", result_.stages.empty() ? "" : "+", stage);
        return row;
    }

    [[nodiscard]] index_t blocks_of(index_t count) const {
        return (count + settings_.block_size - 1) / settings_.block_size;
    }

    void run_block_sparse() {
        runtime_row row = row_at(tokens());
        row.push_back(topology::self{});
        // The blocks that hold the sinks, which a cache keeps apart; rows of `published` name theirs themselves.
        if (result_.request.preset != "published")
            row.push_back(topology::landmark{.stride = 1, .count = blocks_of(settings_.exact_sinks)});
        bf::block_routing<runtime_row> const routing{row, settings_.block_size, blocks_of(settings_.max_tokens)};
        both(0, [&](auto const& policy) {
            bf::sparse_sdpa(policy, in_.q.view(), k_.view(), v_.view(), routing, all_.view());
        });
        retain_tokens(tokens());
    }

    /// Appends and attends in steps, as prefill chunks and decode tokens arrive.
    template <bf::cache_mix Mix>
    void run_compressed(Mix const& mix) {
        std::vector<index_t> const& steps = settings_.steps;
        bf::cache_config const config{.kv_heads       = in_.k.shape().heads,
                                      .head_dim       = in_.k.shape().head_dim,
                                      .value_head_dim = in_.v.shape().head_dim,
                                      .block_size     = settings_.block_size,
                                      .exact_window   = result_.exact_window,
                                      .exact_sinks    = settings_.exact_sinks,
                                      .max_tokens     = settings_.max_tokens,
                                      .max_append     = *std::max_element(steps.begin(), steps.end()),
                                      .rules = result_.request.preset == "published" ? bf::cache_rules::published
                                                                                     : bf::cache_rules::gap_free};
        bf::compressed_kv_cache<Mix> cache(config, mix);
        result_.bytes_per_summary = static_cast<double>(
            config.kv_heads * (mix.summary_k.row_bytes(config.head_dim) + mix.summary_v.row_bytes(config.value_dim())));
        std::size_t next = 0;
        while (cache.tokens() < tokens()) {
            index_t const first = cache.tokens();
            index_t const step  = std::min(steps[next], tokens() - first);
            next                = std::min(next + 1, steps.size() - 1);
            bf::append(machine_, cache, k_.view().slice(first, step), v_.view().slice(first, step));
            runtime_row const row = row_at(cache.tokens());
            both(config.sinks(), [&](auto const& policy) {
                bf::attend(policy, in_.q.view().slice(first, step), cache, row, all_.view().slice(first, step));
            });
        }
        result_.retained_after     = cache.retained_bytes();
        result_.retained_per_token = decode_bytes(cache) / static_cast<double>(tokens());
    }

    /// Mean of what the cache retains over the last block of a decode that ends at this length.
    template <class Cache>
    [[nodiscard]] double decode_bytes(Cache const& cache) const {
        bf::cache_counters at(cache.config());
        double sum    = 0;
        index_t count = 0;
        while (at.tokens() < tokens()) {
            at.append(1);
            if (at.tokens() <= tokens() - settings_.block_size) continue;
            sum += static_cast<double>(Cache::retained_bytes(cache.config(), at, cache.mix()));
            ++count;
        }
        return sum / static_cast<double>(count);
    }

    void keep_chosen() {
        bf::heads_shape shape = all_.shape();
        shape.tokens          = static_cast<index_t>(positions_.size());
        result_.run.out       = bf::heads_buffer<float>(shape);
        for (index_t head = 0; head < shape.heads; ++head)
            for (index_t query = 0; query < shape.tokens; ++query)
                std::ranges::copy(all_.view().row(head, positions_[static_cast<std::size_t>(query)]),
                                  result_.run.out.view().row(head, query).begin());
    }

    machine const& machine_;
    qkv const& in_;
    std::vector<index_t> const& positions_;
    fidelity_settings const& settings_;
    bf::heads_buffer<T> k_, v_;
    bf::heads_buffer<float> all_;
    system_result result_;
};

} // namespace

system_result run_system(machine const& m,
                         qkv const& in,
                         std::vector<index_t> const& positions,
                         fidelity_settings const& s,
                         system_request const& r) {
    switch (s.storage) {
    case bf::element_type::f16:
        return runner<bf::float16>(m, in, positions, s, r).run();
    case bf::element_type::bf16:
        return runner<bf::bfloat16>(m, in, positions, s, r).run();
    case bf::element_type::f32:
        break;
    }
    return runner<float>(m, in, positions, s, r).run();
}

} // namespace bench
