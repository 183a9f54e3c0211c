// SPDX-License-Identifier: MIT
#pragma once

// Keys and values of one sequence and one layer: the first tokens and the latest ones as they are, the rest as one
// summary per block.
//
//   append      [kv_heads, step, head_dim] joins the sequence; full blocks get their summary
//   attend      the latest queries over sinks, the summaries their block's row names, and the exact window, in one
//               softmax; prefill chunk and decode token are the same call and give the same bits
//
// Memory is (window + block) exact tokens and tokens / block_size summaries; a query reads at most window + block +
// sinks tokens and as many summaries as its row names. Rules, counters and memory: rules.hpp, counters.hpp, pools.hpp.

#include <butterfly/cache/counters.hpp>
#include <butterfly/cache/mix.hpp>
#include <butterfly/cache/part.hpp>
#include <butterfly/cache/planning.hpp>
#include <butterfly/cache/pooling.hpp>
#include <butterfly/cache/pools.hpp>
#include <butterfly/sdpa/attend.hpp>

namespace butterfly {

/// The pools of a cache as storages, for kernels, savers and tests. Slots of the tail are absolute positions.
struct cache_pools {
    storage_ref sink_k{}, sink_v{};       // slots [0, min(sinks, tokens))
    storage_ref tail_k{}, tail_v{};       // slots [tail_start, tokens)
    storage_ref summary_k{}, summary_v{}; // slots [0, summaries)
    memory_ref log_weights{};             // float [summaries]; null: zero
    memory_ref token_weights{};           // float, position p at p mod ring; null: one
};

/// A cache of one sequence and one layer. `Mix` says which codec keeps which pool, `Pooling` how a block becomes one
/// row. Counters live in the object; its bytes are touched through policies only. Not copyable: `copy` says what it
/// costs. Reading (attend) may run concurrently; append, shift, trim and clear are exclusive.
template <cache_mix Mix = raw_mix<float>, pooling Pooling = mean_pooling>
class compressed_kv_cache {
public:
    using config_type  = cache_config;
    using mix_type     = Mix;
    using pooling_type = Pooling;

    /// Whether append takes token weights.
    static constexpr bool takes_weights = Pooling::takes_weights;

    /// Whether every codec of the mix has a name, which a saved cache needs.
    static constexpr bool names_codecs = named_cache_mix<Mix>;

    /// Bytes the constructor from memory needs, whatever its alignment. Throws shape_error where sizes make no sense.
    [[nodiscard]] static index_t required_bytes(cache_config const& config, Mix const& mix = {}) {
        return allocated_bytes(config, mix) + detail::cache_alignment - 1;
    }

    /// A cache with memory of its own on the host, zero-filled. Throws shape_error, or backend_error without memory.
    explicit compressed_kv_cache(cache_config const& config, Mix const& mix = {}, Pooling const& pool = {})
        : compressed_kv_cache(config, mix, pool, layout(config, mix)) {
        memory_ = detail::cache_memory(layout_.bytes);
    }

    /// A cache in the caller's host memory, which must outlive it and need not be initialised. Throws shape_error, or
    /// capacity_error where it has fewer bytes than required_bytes.
    compressed_kv_cache(cache_config const& config,
                        std::span<std::byte> memory,
                        Mix const& mix      = {},
                        Pooling const& pool = {})
        : compressed_kv_cache(config, mix, pool, layout(config, mix)) {
        memory_ = detail::cache_memory(memory, layout_.bytes);
    }

    /// A cache in `bytes` bytes of a policy's memory, the base of which is aligned to 64 bytes. Throws as above.
    compressed_kv_cache(
        cache_config const& config, memory_ref memory, index_t bytes, Mix const& mix = {}, Pooling const& pool = {})
        : compressed_kv_cache(config, mix, pool, layout(config, mix)) {
        memory_ = detail::cache_memory(memory, bytes, layout_.bytes);
    }

    compressed_kv_cache(compressed_kv_cache const&)                = delete;
    compressed_kv_cache& operator=(compressed_kv_cache const&)     = delete;
    compressed_kv_cache(compressed_kv_cache&&) noexcept            = default;
    compressed_kv_cache& operator=(compressed_kv_cache&&) noexcept = default;
    ~compressed_kv_cache()                                         = default;

    [[nodiscard]] cache_config const& config() const noexcept { return config_; }
    [[nodiscard]] cache_counters const& counters() const noexcept { return counters_; }
    [[nodiscard]] Mix const& mix() const noexcept { return mix_; }

    /// Tokens seen.
    [[nodiscard]] index_t tokens() const noexcept { return counters_.tokens(); }
    /// Blocks that have a summary.
    [[nodiscard]] index_t summaries() const noexcept { return counters_.summaries(); }
    /// Position of the first token that the tail keeps.
    [[nodiscard]] index_t tail_start() const noexcept { return counters_.tail_start(); }
    /// Blocks there will ever be, the last one perhaps partial: `nodes` of every row that routes on this cache.
    [[nodiscard]] index_t max_blocks() const noexcept {
        return detail::ceil_div(config_.max_tokens, config_.block_size);
    }

    /// Bytes needed to go on decoding: the valid slots of all pools, with their weights.
    [[nodiscard]] index_t retained_bytes() const noexcept { return retained_bytes(config_, counters_, mix_); }

    /// What a cache of this configuration would retain at these counters.
    [[nodiscard]] static index_t
    retained_bytes(cache_config const& c, cache_counters const& at, Mix const& mix = {}) noexcept {
        detail::cache_row_bytes const row = row_bytes(c, mix);
        index_t const sinks               = std::min(c.sinks(), at.tokens());
        index_t const rows = sinks * (row.sink_k + row.sink_v) + at.tail_tokens() * (row.tail_k + row.tail_v) +
                             at.summaries() * (row.summary_k + row.summary_v);
        index_t const weights = (has_log_weights(c) ? at.summaries() : 0) + // float each
                                (Pooling::takes_weights ? at.tail_tokens() : 0);
        return c.kv_heads * rows + weights * static_cast<index_t>(sizeof(float));
    }

    /// Bytes of memory a cache of this configuration stands in.
    [[nodiscard]] static index_t allocated_bytes(cache_config const& config, Mix const& mix = {}) {
        return layout(config, mix).bytes;
    }

    /// Bytes of memory the cache stands in.
    [[nodiscard]] index_t allocated_bytes() const noexcept { return layout_.bytes; }

    /// Forgets the tokens from `length` on. Throws shape_error where there are fewer, capacity_error where it lies
    /// before the floor: the length before the last append, less max_rollback.
    void trim(index_t length) {
        detail::check_trim(counters_, length);
        counters_.trim(length);
    }

    /// Forgets everything.
    void clear() noexcept { counters_.clear(); }

    /// A cache of its own with the same content: allocates and copies allocated_bytes().
    template <class Policy>
    [[nodiscard]] compressed_kv_cache copy(Policy const& policy) const {
        return copied(policy, compressed_kv_cache(config_, mix_, pooling_));
    }

    /// The same in the caller's memory; see the constructors.
    template <class Policy>
    [[nodiscard]] compressed_kv_cache copy(Policy const& policy, std::span<std::byte> memory) const {
        return copied(policy, compressed_kv_cache(config_, memory, mix_, pooling_));
    }

    /// The same in `bytes` bytes of the policy's memory; see the constructors.
    template <class Policy>
    [[nodiscard]] compressed_kv_cache copy(Policy const& policy, memory_ref memory, index_t bytes) const {
        return copied(policy, compressed_kv_cache(config_, memory, bytes, mix_, pooling_));
    }

    /// The pools with a policy's functions for their codecs. Valid while the cache stays where it is.
    template <class Policy>
    [[nodiscard]] cache_pools pools(Policy const& policy) const {
        if (!memory_.at(0)) detail::fail<shape_error>("cache: it was moved from and has no memory");
        index_t const sinks = std::min(config_.sinks(), tokens());
        index_t const dk    = config_.head_dim;
        index_t const dv    = config_.value_dim();
        auto const& tail_k  = detail::tail_k_of(mix_);
        auto const& tail_v  = detail::tail_v_of(mix_);
        cache_pools p{
            .sink_k    = storage(policy, detail::sink_k_of(mix_), layout_.sink_k, config_.sinks(), sinks, dk),
            .sink_v    = storage(policy, detail::sink_v_of(mix_), layout_.sink_v, config_.sinks(), sinks, dv),
            .tail_k    = storage(policy, tail_k, layout_.tail_k, layout_.ring, tokens(), dk),
            .tail_v    = storage(policy, tail_v, layout_.tail_v, layout_.ring, tokens(), dv),
            .summary_k = storage(policy, mix_.summary_k, layout_.summary_k, layout_.summaries, summaries(), dk),
            .summary_v = storage(policy, mix_.summary_v, layout_.summary_v, layout_.summaries, summaries(), dv)};
        p.tail_k.ring = p.tail_v.ring = layout_.ring;
        if (has_log_weights(config_)) p.log_weights = memory_.at(layout_.log_weights);
        if (Pooling::takes_weights) p.token_weights = memory_.at(layout_.token_weights);
        return p;
    }

    /// Calls f(cache_part) for every part of the cache's memory, with the slots that mean something at these counters,
    /// which must be of such a cache and fit: all that is needed to go on decoding, retained_bytes() in sum.
    template <class F>
    void for_each_part(counter_values const& at, F const& f) const {
        if (!memory_.at(0)) detail::fail<shape_error>("cache: it was moved from and has no memory");
        index_t const dk = config_.head_dim, dv = config_.value_dim();
        auto const part = [&](cache_part const& like, char const* name, auto const& codec, index_t offset,
                              index_t dim) { f(detail::part_of(like, name, codec, memory_.at(offset), dim)); };
        detail::each_exact_part(mix_, config_, layout_, at, part);
        if (Pooling::takes_weights) { // of tokens, a value each
            cache_part const weights{.capacity = layout_.ring, .ring = true, .first = at.tail_start, .end = at.tokens};
            part(weights, "token_weights", detail::raw_codec<float>, layout_.token_weights, 1);
        }
        cache_part p{.heads = config_.kv_heads, .capacity = layout_.summaries, .end = at.summaries};
        part(p, "summary_k", mix_.summary_k, layout_.summary_k, dk);
        part(p, "summary_v", mix_.summary_v, layout_.summary_v, dv);
        p.heads = 1;
        if (has_log_weights(config_)) part(p, "log_weights", detail::raw_codec<float>, layout_.log_weights, 1);
    }

    /// Why counters that a loader has read contradict this cache's configuration; empty where they do not.
    [[nodiscard]] std::string defect(counter_values const& v) const { return cache_counters::defect(config_, v); }

    /// Why what counters without a defect count does not fit this cache; empty where it does.
    [[nodiscard]] std::string misfit(counter_values const& v) const {
        return detail::misfit(v, config_.max_tokens, layout_.ring);
    }

    /// Takes over the counters of content that a loader has put into the parts. Throws, with nothing changed,
    /// format_error or capacity_error where there is a defect or a misfit.
    void restore(counter_values const& v) {
        detail::check_restore("restore", *this, v);
        counters_ = cache_counters::restored(config_, v);
    }

    /// What an append of `k` and `v` does. Arguments are not checked: see butterfly::append.
    template <class Policy>
    [[nodiscard]] cache_update plan(Policy const& policy,
                                    tensor_ref const& k,              // [kv_heads, step, head_dim]
                                    tensor_ref const& v,              // [kv_heads, step, value head_dim]
                                    memory_ref token_weights) const { // float [step]; null: one each
        cache_pools const p = pools(policy);
        cache_update u      = update_of(p);
        detail::add_due_blocks(u, counters_, k.shape.tokens);
        detail::add_tokens(u, p, k, v, tokens(), config_.sinks());
        if (Pooling::takes_weights) {
            tensor_ref const weights{.memory = token_weights, .shape = {1, k.shape.tokens, 1}, .strides = {0, 1}};
            storage_ref to = storage(policy, detail::raw_codec<float>, layout_.token_weights, layout_.ring, 0, 1);
            to.ring        = layout_.ring;
            u.add({weights, to, tokens()});
        }
        return u;
    }

    /// A change of the cache that changes nothing: what scratch memory is asked about.
    template <class Policy>
    [[nodiscard]] cache_update nothing_to_do(Policy const& policy) const {
        return update_of(pools(policy));
    }

    /// Counts `step` tokens that an update has stored.
    void commit(index_t step) noexcept { counters_.append(step); }

    /// Counts the `count` tokens that a shift has taken out.
    void commit_shift(index_t count) noexcept { counters_.shift(count); }

private:
    compressed_kv_cache(cache_config const& config, Mix const& mix, Pooling const& pool, detail::cache_layout const& at)
        : config_(config), mix_(mix), pooling_(pool), counters_(config), layout_(at) {}

    template <class Policy>
    [[nodiscard]] compressed_kv_cache copied(Policy const& policy, compressed_kv_cache other) const {
        if (!memory_.at(0)) detail::fail<shape_error>("cache: it was moved from and has no memory");
        copy_bytes(policy, memory_.at(0), other.memory_.at(0), layout_.bytes);
        other.counters_ = counters_;
        return other;
    }

    [[nodiscard]] cache_update update_of(cache_pools const& p) const {
        cache_update u{.rows = {p.tail_k, p.tail_v}, .summaries = {p.summary_k, p.summary_v}};
        u.block_size    = config_.block_size;
        u.skip          = config_.sinks();
        u.token_weights = p.token_weights;
        u.log_weights   = p.log_weights;
        u.pool          = erase(pooling_);
        return u;
    }

    [[nodiscard]] static bool has_log_weights(cache_config const& c) noexcept {
        return c.rules.counted || Pooling::takes_weights;
    }

    [[nodiscard]] static detail::cache_row_bytes row_bytes(cache_config const& c, Mix const& mix) noexcept {
        return {.sink_k    = detail::sink_k_of(mix).row_bytes(c.head_dim),
                .sink_v    = detail::sink_v_of(mix).row_bytes(c.value_dim()),
                .tail_k    = detail::tail_k_of(mix).row_bytes(c.head_dim),
                .tail_v    = detail::tail_v_of(mix).row_bytes(c.value_dim()),
                .summary_k = mix.summary_k.row_bytes(c.head_dim),
                .summary_v = mix.summary_v.row_bytes(c.value_dim())};
    }

    [[nodiscard]] static detail::cache_layout layout(cache_config const& c, Mix const& mix) {
        detail::check_config(c);
        detail::check_exact_dims(mix, c.head_dim, c.value_dim());
        detail::check_dim(mix.summary_k, c.head_dim);
        detail::check_dim(mix.summary_v, c.value_dim());
        return detail::layout_of(c, row_bytes(c, mix), has_log_weights(c), Pooling::takes_weights);
    }

    template <class Policy, class Codec>
    [[nodiscard]] storage_ref storage(
        Policy const& policy, Codec const& codec, index_t offset, index_t capacity, index_t slots, index_t dim) const {
        return detail::pool_storage(policy, codec, memory_.at(offset), {config_.kv_heads, slots, dim}, capacity);
    }

    cache_config config_;
    Mix mix_;
    Pooling pooling_;
    cache_counters counters_;
    detail::cache_layout layout_;
    detail::cache_memory memory_;
};

template <cache_mix Mix>
compressed_kv_cache(cache_config const&, Mix const&) -> compressed_kv_cache<Mix>;
template <cache_mix Mix, pooling Pooling>
compressed_kv_cache(cache_config const&, Mix const&, Pooling const&) -> compressed_kv_cache<Mix, Pooling>;

} // namespace butterfly
