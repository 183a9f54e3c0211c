// SPDX-License-Identifier: MIT
#pragma once

// Keys and values of one sequence and one layer: the first tokens and the latest ones as they are, those between
// packed.
//
//   append      [kv_heads, step, head_dim] joins the sequence; blocks that have left the exact window are packed
//   attend      the latest queries over sinks, packed tokens and the exact window, in one softmax: every token up to
//               the query, once
//
// With W = exact_window, bs = block_size, S = exact_sinks, t the position of a query and
// L(t) = bs * floor(max(0, t - W + 1) / bs):
//
//   sinks    [0, min(S, L(t)))       as appended, in the tail's codec
//   middle   [S, L(t))               packed, from the rows as the tail keeps them
//   tail     [L(t), t]               as appended, in the tail's codec: W to W + bs - 1 of them
//
// even where a token is kept both ways, so that what a query sees depends on its position alone, never on chunks.
// Counters are those of a compressed cache whose blocks are condensed late (counters.hpp), M blocks of codes in the
// place of M summaries; so a token is kept twice only while an earlier query may ask for it exactly.
//
// A mean of the first C tokens may be taken out of packed rows and is given back by whoever reads them. It is frozen
// when block 0 is packed. C <= W + bs - 1, so all C rows are in the tail then:
//
//   packed before rows are stored    c(F) >= 1, so P >= F >= W + bs - 1 >= C;  M was 0 and A <= bs * M, so A = 0
//   packed after                     c(P - 1) >= 1, so P >= W + bs > C;        M was 0 until then, so A = 0
//
// and a trim to P' < C, which spoils it, finds F <= P' < W + bs - 1, c(F) = 0, A <= bs * c(F) = 0: the tail still has
// every token, so all codes are forgotten and made again. A shift keeps what this is deduced from (counters.hpp), and
// the mean as long as there are codes. Without sinks it may leave A = 0 and fewer than C tokens, or no codes: codes are
// forgotten as by a trim, and a mean is frozen anew.

#include <butterfly/cache/counters.hpp>
#include <butterfly/cache/mixed_pools.hpp>
#include <butterfly/cache/part.hpp>
#include <butterfly/cache/planning.hpp>

namespace butterfly {

/// The pools of a mixed-precision cache as storages, for kernels, savers and tests. Slots are absolute positions.
struct mixed_pools {
    storage_ref sink_k{}, sink_v{};     // slots [0, min(sinks, tokens))
    storage_ref middle_k{}, middle_v{}; // slots [0, packed): those of sinks mean nothing
    storage_ref tail_k{}, tail_v{};     // slots [tail_start, tokens)
};

/// A cache of one sequence and one layer. `Mix` says which codec keeps which pool. Counters live in the object; its
/// bytes are touched through policies only. Not copyable: `copy` says what it costs. Reading (attend) may run
/// concurrently; append, shift, trim and clear are exclusive.
template <mixed_mix Mix>
class mixed_kv_cache {
public:
    using config_type = mixed_cache_config;
    using mix_type    = Mix;

    /// Whether append takes token weights.
    static constexpr bool takes_weights = false;

    /// Whether every codec of the mix has a name, which a saved cache needs.
    static constexpr bool names_codecs = named_mixed_mix<Mix>;

    /// What the base of a policy's memory must be aligned to.
    static constexpr index_t alignment = detail::alignment_of<Mix>();

    /// Bytes the constructor from memory needs, whatever its alignment. Throws shape_error where sizes make no sense.
    [[nodiscard]] static index_t required_bytes(mixed_cache_config const& config, Mix const& mix = {}) {
        return allocated_bytes(config, mix) + alignment - 1;
    }

    /// A cache with memory of its own on the host, zero-filled. Throws shape_error, or backend_error without memory.
    explicit mixed_kv_cache(mixed_cache_config const& config, Mix const& mix = {})
        : mixed_kv_cache(config, mix, detail::layout_of(config, mix)) {
        memory_ = detail::cache_memory(layout_.bytes, alignment);
    }

    /// A cache in the caller's host memory, which must outlive it and need not be initialised. Throws shape_error, or
    /// capacity_error where it has fewer bytes than required_bytes.
    mixed_kv_cache(mixed_cache_config const& config, std::span<std::byte> memory, Mix const& mix = {})
        : mixed_kv_cache(config, mix, detail::layout_of(config, mix)) {
        memory_ = detail::cache_memory(memory, layout_.bytes, alignment);
    }

    /// A cache in `bytes` bytes of a policy's memory, the base of which is a multiple of `alignment`. Throws as above.
    mixed_kv_cache(mixed_cache_config const& config, memory_ref memory, index_t bytes, Mix const& mix = {})
        : mixed_kv_cache(config, mix, detail::layout_of(config, mix)) {
        memory_ = detail::cache_memory(memory, bytes, layout_.bytes, alignment);
    }

    mixed_kv_cache(mixed_kv_cache const&)                = delete;
    mixed_kv_cache& operator=(mixed_kv_cache const&)     = delete;
    mixed_kv_cache(mixed_kv_cache&&) noexcept            = default;
    mixed_kv_cache& operator=(mixed_kv_cache&&) noexcept = default;
    ~mixed_kv_cache()                                    = default;

    [[nodiscard]] mixed_cache_config const& config() const noexcept { return config_; }
    [[nodiscard]] cache_counters const& counters() const noexcept { return counters_; }
    [[nodiscard]] Mix const& mix() const noexcept { return mix_; }

    /// Tokens seen.
    [[nodiscard]] index_t tokens() const noexcept { return counters_.tokens(); }
    /// Tokens [0, packed()) have codes.
    [[nodiscard]] index_t packed() const noexcept { return counters_.summaries() * config_.block_size; }
    /// Position of the first token that the tail keeps.
    [[nodiscard]] index_t tail_start() const noexcept { return counters_.tail_start(); }

    /// Bytes needed to go on decoding: the valid slots of all pools, with the means once they are frozen.
    [[nodiscard]] index_t retained_bytes() const noexcept { return retained_bytes(config_, counters_, mix_); }

    /// What a cache of this configuration would retain at these counters.
    [[nodiscard]] static index_t
    retained_bytes(mixed_cache_config const& c, cache_counters const& at, Mix const& mix = {}) noexcept {
        index_t const dk = c.head_dim, dv = c.value_dim();
        index_t const sinks  = std::min(c.exact_sinks, at.tokens());
        index_t const packed = at.summaries() * c.block_size;
        index_t const rows =
            sinks * (detail::sink_k_of(mix).row_bytes(dk) + detail::sink_v_of(mix).row_bytes(dv)) +
            at.tail_tokens() * (detail::tail_k_of(mix).row_bytes(dk) + detail::tail_v_of(mix).row_bytes(dv)) +
            packed * (mix.middle_k.row_bytes(dk) + mix.middle_v.row_bytes(dv));
        index_t const means = packed > 0 ? (c.centre_keys > 0 ? dk : 0) + (c.centre_values > 0 ? dv : 0) : 0;
        return c.kv_heads * (rows + means * static_cast<index_t>(sizeof(float)));
    }

    /// Bytes of memory a cache of this configuration stands in.
    [[nodiscard]] static index_t allocated_bytes(mixed_cache_config const& config, Mix const& mix = {}) {
        return detail::layout_of(config, mix).bytes;
    }

    /// Bytes of memory the cache stands in.
    [[nodiscard]] index_t allocated_bytes() const noexcept { return layout_.bytes; }

    /// Forgets the tokens from `length` on. Throws shape_error where there are fewer, capacity_error where it lies
    /// before the floor: the length before the last append, less max_rollback.
    void trim(index_t length) {
        detail::check_trim(counters_, length);
        counters_.trim(length);
        forget_means();
    }

    /// Forgets everything.
    void clear() noexcept { counters_.clear(); }

    /// A cache of its own with the same content: allocates and copies allocated_bytes().
    template <class Policy>
    [[nodiscard]] mixed_kv_cache copy(Policy const& policy) const {
        return copied(policy, mixed_kv_cache(config_, mix_));
    }

    /// The same in the caller's memory; see the constructors.
    template <class Policy>
    [[nodiscard]] mixed_kv_cache copy(Policy const& policy, std::span<std::byte> memory) const {
        return copied(policy, mixed_kv_cache(config_, memory, mix_));
    }

    /// The same in `bytes` bytes of the policy's memory; see the constructors.
    template <class Policy>
    [[nodiscard]] mixed_kv_cache copy(Policy const& policy, memory_ref memory, index_t bytes) const {
        return copied(policy, mixed_kv_cache(config_, memory, bytes, mix_));
    }

    /// The pools with a policy's functions for their codecs. Valid while the cache stays where it is.
    template <class Policy>
    [[nodiscard]] mixed_pools pools(Policy const& policy) const {
        if (!memory_.at(0)) detail::fail<shape_error>("cache: it was moved from and has no memory");
        index_t const most  = config_.exact_sinks;
        index_t const sinks = std::min(most, tokens());
        index_t const dk = config_.head_dim, dv = config_.value_dim();
        mixed_pools p{.sink_k   = storage(policy, detail::sink_k_of(mix_), layout_.sink_k, most, sinks, dk),
                      .sink_v   = storage(policy, detail::sink_v_of(mix_), layout_.sink_v, most, sinks, dv),
                      .middle_k = storage(policy, mix_.middle_k, layout_.middle_k, layout_.middle, packed(), dk),
                      .middle_v = storage(policy, mix_.middle_v, layout_.middle_v, layout_.middle, packed(), dv),
                      .tail_k   = storage(policy, detail::tail_k_of(mix_), layout_.tail_k, layout_.ring, tokens(), dk),
                      .tail_v   = storage(policy, detail::tail_v_of(mix_), layout_.tail_v, layout_.ring, tokens(), dv)};
        p.tail_k.ring = p.tail_v.ring = layout_.ring;
        if (config_.centre_keys > 0) p.middle_k.mean = memory_.at(layout_.mean_k);
        if (config_.centre_values > 0) p.middle_v.mean = memory_.at(layout_.mean_v);
        return p;
    }

    /// Calls f(cache_part) for every part of the cache's memory, with the slots that mean something at these counters,
    /// which must be of such a cache and fit: all that is needed to go on decoding, retained_bytes() in sum.
    template <class F>
    void for_each_part(counter_values const& at, F const& f) const {
        if (!memory_.at(0)) detail::fail<shape_error>("cache: it was moved from and has no memory");
        index_t const dk = config_.head_dim, dv = config_.value_dim();
        index_t const packed = at.summaries * config_.block_size;
        auto const part      = [&](cache_part const& like, char const* name, auto const& codec, index_t offset,
                              index_t dim) { f(detail::part_of(like, name, codec, memory_.at(offset), dim)); };
        detail::each_exact_part(mix_, config_, layout_, at, part);
        cache_part p{.heads = config_.kv_heads, .capacity = layout_.middle, .end = packed};
        part(p, "middle_k", mix_.middle_k, layout_.middle_k, dk);
        part(p, "middle_v", mix_.middle_v, layout_.middle_v, dv);
        p = {.heads = config_.kv_heads, .capacity = 1, .end = packed > 0 ? 1 : 0}; // a mean is a row
        if (config_.centre_keys > 0) part(p, "mean_k", detail::raw_codec<float>, layout_.mean_k, dk);
        if (config_.centre_values > 0) part(p, "mean_v", detail::raw_codec<float>, layout_.mean_v, dv);
    }

    /// Why counters that a loader has read contradict this cache's configuration; empty where they do not.
    [[nodiscard]] std::string defect(counter_values const& v) const {
        std::string const why = cache_counters::defect(detail::counted_as(config_), v);
        index_t const centre  = std::max(config_.centre_keys, config_.centre_values);
        if (!why.empty() || v.summaries == 0 || v.tokens >= centre) return why;
        return "blocks are packed less the mean of " + std::to_string(centre) + " tokens, there are " +
               std::to_string(v.tokens);
    }

    /// Why what counters without a defect count does not fit this cache; empty where it does.
    [[nodiscard]] std::string misfit(counter_values const& v) const {
        std::string const why = detail::misfit(v, config_.max_tokens, layout_.ring);
        index_t const packed  = v.summaries * config_.block_size;
        if (!why.empty() || packed <= layout_.middle) return why;
        return std::to_string(packed) + " packed tokens, the cache has room for " + std::to_string(layout_.middle);
    }

    /// Takes over the counters of content that a loader has put into the parts. Throws, with nothing changed,
    /// format_error or capacity_error where there is a defect or a misfit.
    void restore(counter_values const& v) {
        detail::check_restore("restore", *this, v);
        counters_ = cache_counters::restored(detail::counted_as(config_), v);
    }

    /// What an append of `k` and `v` does. Arguments are not checked: see butterfly::append.
    template <class Policy>
    [[nodiscard]] cache_update plan(Policy const& policy,
                                    tensor_ref const& k,     // [kv_heads, step, head_dim]
                                    tensor_ref const& v,     // [kv_heads, step, value head_dim]
                                    memory_ref = {}) const { // token weights, which it does not take
        mixed_pools const p = pools(policy);
        cache_update u      = update_of(p);
        detail::add_due_blocks(u, counters_, k.shape.tokens);
        detail::add_tokens(u, p, k, v, tokens(), config_.exact_sinks);
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
    void commit_shift(index_t count) noexcept {
        counters_.shift(count);
        forget_means();
    }

private:
    mixed_kv_cache(mixed_cache_config const& config, Mix const& mix, detail::mixed_layout const& at)
        : config_(config), mix_(mix), counters_(detail::counted_as(config)), layout_(at) {}

    /// Forgets means of more tokens than are left, and codes less those, which the tail still has all rows of.
    void forget_means() noexcept {
        if (tokens() < std::max(config_.centre_keys, config_.centre_values)) counters_.forget_summaries();
    }

    template <class Policy>
    [[nodiscard]] mixed_kv_cache copied(Policy const& policy, mixed_kv_cache other) const {
        if (!memory_.at(0)) detail::fail<shape_error>("cache: it was moved from and has no memory");
        copy_bytes(policy, memory_.at(0), other.memory_.at(0), layout_.bytes);
        other.counters_ = counters_;
        return other;
    }

    template <class Policy, class Codec>
    [[nodiscard]] storage_ref storage(
        Policy const& policy, Codec const& codec, index_t offset, index_t capacity, index_t slots, index_t dim) const {
        return detail::pool_storage(policy, codec, memory_.at(offset), {config_.kv_heads, slots, dim}, capacity);
    }

    [[nodiscard]] cache_update update_of(mixed_pools const& p) const noexcept {
        cache_update u{.rows = {p.tail_k, p.tail_v}};
        u.packed[0]  = p.middle_k;
        u.packed[1]  = p.middle_v;
        u.centre[0]  = config_.centre_keys;
        u.centre[1]  = config_.centre_values;
        u.block_size = config_.block_size;
        u.skip       = config_.exact_sinks;
        return u;
    }

    mixed_cache_config config_;
    Mix mix_;
    cache_counters counters_;
    detail::mixed_layout layout_;
    detail::cache_memory memory_;
};

template <mixed_mix Mix>
mixed_kv_cache(mixed_cache_config const&, Mix const&) -> mixed_kv_cache<Mix>;

} // namespace butterfly
