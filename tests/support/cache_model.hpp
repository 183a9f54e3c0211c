// SPDX-License-Identifier: MIT
#pragma once

// Programs of append, attend, trim, clear, copy and wrong calls, run on a compressed cache in the caller's memory and
// on a model that keeps every token. A program is a string of bytes, so that a test may draw it and a fuzzer grow it.
//
// The model knows nothing of rings, tails or counters. A query at t sees a past token j
//
//   exactly      if its block is not wholly before the window of t (or, without whole_blocks, j is in the window), or
//                j is a sink
//   in a summary if its block is wholly before the window and the row of t's block names it
//   not at all   otherwise

#include <butterfly/backend/host/cache_ops.hpp>
#include <butterfly/cache/attend.hpp>
#include <butterfly/testing/problem.hpp>
#include <butterfly/topology/causal_shift.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/window.hpp>

#include <cmath>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace butterfly::testing {

/// A codec the library does not know: one scale per row, a byte per value.
struct byte_codec {
    index_t row_bytes(index_t head_dim) const noexcept { return 4 + head_dim; }
    void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        float most = 0.0F;
        for (index_t d = 0; d < head_dim; ++d) most = std::max(most, std::fabs(values[d]));
        float const scale = most / 127.0F;
        std::memcpy(row, &scale, 4);
        for (index_t d = 0; d < head_dim; ++d)
            row[4 + d] =
                static_cast<std::byte>(scale > 0.0F ? static_cast<int>(std::lround(values[d] / scale)) + 128 : 128);
    }
    void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        float scale;
        std::memcpy(&scale, row, 4);
        for (index_t d = 0; d < head_dim; ++d)
            out[d] = scale * static_cast<float>(std::to_integer<int>(row[4 + d]) - 128);
    }
};

/// A different codec for every pool.
struct mixed_mix {
    quant::raw<bfloat16> tail_k{};
    quant::raw<float16> tail_v{};
    byte_codec summary_k{};
    quant::raw<bfloat16> summary_v{};
};

/// Which blocks a row names, said twice: as a rule of the library and as a predicate.
struct test_row {
    enum kind { all, shift_and_window, with_landmark, none } which = all;
    int stage                                                      = 0;

    [[nodiscard]] bool names(index_t block, index_t n) const noexcept {
        if (n < 0 || n >= block || which == none) return false;
        if (which == all || n == block - 1 || n == block - (index_t{1} << stage)) return true;
        return which == with_landmark && n == 0;
    }

    template <class F>
    void with_rule(index_t nodes, F const& f) const {
        topology::causal_shift const shift{{stage}};
        topology::window const before{.predecessors = 1};
        if (which == all) f(topology::window{.predecessors = nodes});
        if (which == none) f(topology::window{.predecessors = 0});
        if (which == shift_and_window) f(topology::row(shift, before));
        if (which == with_landmark) f(topology::row(topology::landmark{.stride = 1, .count = 1}, before, shift));
    }
};

/// Every token of a sequence and what it means to attend to it.
struct cache_model {
    cache_config config;
    std::vector<std::vector<float>> k{}, v{}; // [tokens][kv_heads * dim], as the tail keeps them
    std::vector<float> weights{};             // [tokens]
    bool weighted = false;
    index_t floor = 0;

    [[nodiscard]] index_t tokens() const { return static_cast<index_t>(k.size()); }

    /// One visible key: a token, or a block that stands for `weight` tokens.
    struct key {
        std::vector<float> k, v;
        double log_weight = 0.0;
    };

    /// A row of a token's [kv_heads * dim].
    static std::vector<float> part(std::vector<float> const& row, index_t head, index_t dim) {
        return {row.begin() + head * dim, row.begin() + (head + 1) * dim};
    }

    /// Through a codec and back.
    template <class Codec>
    static std::vector<float> kept(Codec const& codec, std::vector<float> row) {
        auto const dim = static_cast<index_t>(row.size());
        std::vector<std::byte> packed(static_cast<std::size_t>(codec.row_bytes(dim)));
        codec.encode(row.data(), dim, packed.data());
        codec.decode(packed.data(), dim, row.data());
        return row;
    }

    template <class Mix>
    [[nodiscard]] std::vector<key> seen(Mix const& mix, test_row const& row, index_t t, index_t head) const {
        index_t const bs = config.block_size;
        index_t const lo = std::max<index_t>(0, t - config.exact_window + 1);
        std::vector<key> keys;
        for (index_t j = 0; j <= t; ++j) {
            bool const old   = (j / bs + 1) * bs <= lo; // its block is wholly before the window
            bool const exact = config.rules.whole_blocks ? !old : j >= lo;
            bool const sink  = j < config.sinks() && (config.rules.whole_blocks ? old : j < lo);
            if (exact || sink)
                keys.push_back({part(k[static_cast<std::size_t>(j)], head, config.head_dim),
                                part(v[static_cast<std::size_t>(j)], head, config.value_dim()), 0.0});
            else if (old && j % bs == bs - 1 && row.names(t / bs, j / bs))
                summarise(mix, j / bs, head, keys);
        }
        return keys;
    }

    template <class Mix>
    void summarise(Mix const& mix, index_t block, index_t head, std::vector<key>& keys) const {
        key mean{std::vector<float>(static_cast<std::size_t>(config.head_dim)),
                 std::vector<float>(static_cast<std::size_t>(config.value_dim())), 0.0};
        float total = 0.0F;
        for (index_t j = std::max(block * config.block_size, config.sinks()); j < (block + 1) * config.block_size;
             ++j) {
            auto const at = static_cast<std::size_t>(j);
            float const w = weighted ? weights[at] : 1.0F;
            total += w;
            auto const kj = part(k[at], head, config.head_dim);
            auto const vj = part(v[at], head, config.value_dim());
            for (std::size_t d = 0; d < kj.size(); ++d) mean.k[d] = std::fma(w, kj[d], mean.k[d]);
            for (std::size_t d = 0; d < vj.size(); ++d) mean.v[d] = std::fma(w, vj[d], mean.v[d]);
        }
        if (total == 0.0F) return;
        for (float& x : mean.k) x /= total;
        for (float& x : mean.v) x /= total;
        mean.k = kept(mix.summary_k, mean.k);
        mean.v = kept(mix.summary_v, mean.v);
        if (config.rules.counted || weighted) mean.log_weight = std::log(static_cast<double>(total));
        keys.push_back(mean);
    }

    /// softmax(scale <q, k> + log_weight) v in double.
    [[nodiscard]] static std::vector<double>
    attend(std::vector<float> const& q, std::vector<key> const& keys, double scale, std::size_t value_dim) {
        std::vector<double> logits, out(value_dim, 0.0);
        double most = -1e300, sum = 0.0;
        for (key const& one : keys) {
            double dot = 0.0;
            for (std::size_t d = 0; d < q.size(); ++d) dot += static_cast<double>(q[d]) * one.k[d];
            logits.push_back(scale * dot + one.log_weight);
            most = std::max(most, logits.back());
        }
        for (std::size_t i = 0; i < keys.size(); ++i) {
            double const w = std::exp(logits[i] - most);
            sum += w;
            for (std::size_t d = 0; d < value_dim; ++d) out[d] += w * keys[i].v[d];
        }
        for (double& x : out) x /= sum;
        return out;
    }
};

/// Bytes of a program; zeros after its end.
class program_reader {
public:
    explicit program_reader(std::span<std::uint8_t const> bytes) : bytes_(bytes) {}
    [[nodiscard]] bool done() const { return at_ >= bytes_.size(); }
    index_t below(index_t n) { return done() ? 0 : static_cast<index_t>(bytes_[at_++]) % n; }
    index_t between(index_t a, index_t b) { return a + below(b - a + 1); }

private:
    std::span<std::uint8_t const> bytes_;
    std::size_t at_ = 0;
};

/// One cache, its model and what has gone wrong.
template <class Policy, class Mix, class Pooling>
class cache_machine {
public:
    cache_machine(Policy const& policy, bool exact_bits, cache_config const& config, test_row row, index_t skew)
        : policy_(policy), exact_bits_(exact_bits), row_(row), model_{.config = config},
          memory_(static_cast<std::size_t>(cache::required_bytes(config) + 2 * margin + skew), canary),
          cache_(config, room(memory_, skew)), skew_(skew) {
        model_.weighted = Pooling::takes_weights;
    }

    /// Runs a program; empty, or the first thing that went wrong.
    std::string run(program_reader& in, int group) {
        group_ = group;
        while (!in.done() && wrong_.empty()) {
            switch (in.below(8)) {
            case 0:
            case 1:
            case 2:
                append(in.between(0, model_.config.max_append + 1), in.below(3));
                break;
            case 3:
                append(1, 0);
                break;
            case 4:
                attend_at(model_.tokens() - std::min(in.between(1, 9), model_.tokens()), model_.tokens());
                break;
            case 5:
                attend_at(in.below(model_.tokens() + 1), model_.tokens());
                break;
            case 6:
                trim(in.below(model_.tokens() + 2));
                break;
            default:
                rarely(in.below(6));
                break;
            }
            check_state();
        }
        attend_at(model_.tokens() - std::min<index_t>(model_.tokens(), 3), model_.tokens());
        return wrong_;
    }

private:
    using cache                       = compressed_kv_cache<Mix, Pooling>;
    static constexpr index_t margin   = 64;
    static constexpr std::byte canary = std::byte{0xC3};

    static std::span<std::byte> room(std::vector<std::byte>& memory, index_t skew) {
        return std::span(memory).subspan(static_cast<std::size_t>(margin + skew),
                                         memory.size() - static_cast<std::size_t>(2 * margin + skew));
    }

    void expect(bool ok, std::string const& what) {
        if (!ok && wrong_.empty())
            wrong_ = what + " (bs " + std::to_string(model_.config.block_size) + ", W " +
                     std::to_string(model_.config.exact_window) + ", S " + std::to_string(model_.config.sinks()) +
                     ", R " + std::to_string(model_.config.max_rollback) + ", P " + std::to_string(model_.tokens()) +
                     ", A " + std::to_string(cache_.tail_start()) + ", M " + std::to_string(cache_.summaries()) + ")";
    }

    void append(index_t step, index_t weights) {
        cache_config const& c = model_.config;
        bool const fits       = step <= c.max_append && model_.tokens() + step <= c.max_tokens;
        tensor<float> k({c.kv_heads, step, c.head_dim}, layouts[serial_ % 4]);
        tensor<float> v({c.kv_heads, step, c.value_dim()}, layouts[serial_ % 3]);
        fill(k, random(1, static_cast<std::uint64_t>(++serial_)), distribution::normal);
        fill(v, random(2, static_cast<std::uint64_t>(serial_)), distribution::normal);
        std::vector<float> w;
        for (index_t i = 0; i < step; ++i) w.push_back(weights == 0 ? 1.0F : static_cast<float>((i + serial_) % 3));
        append_options options;
        if (Pooling::takes_weights && weights != 0) options.token_weights = memory_ref(w.data());

        auto const before   = memory_;
        auto const counters = cache_.counters();
        try {
            butterfly::append(policy_, cache_, k.view(), v.view(), options);
            expect(fits, "an append of " + std::to_string(step) + " should not fit");
        } catch (capacity_error const&) {
            expect(!fits, "an append of " + std::to_string(step) + " should fit");
            expect(memory_ == before && cache_.counters() == counters, "a refused append changed the cache");
            return;
        }
        if (step > 0) model_.floor = std::max(model_.floor, model_.tokens() - c.max_rollback);
        for (index_t t = 0; t < step; ++t) {
            std::vector<float> kt, vt;
            for (index_t h = 0; h < c.kv_heads; ++h) {
                keep(detail_tail_k(), k, h, t, kt);
                keep(detail_tail_v(), v, h, t, vt);
            }
            model_.k.push_back(kt);
            model_.v.push_back(vt);
            model_.weights.push_back(Pooling::takes_weights ? w[static_cast<std::size_t>(t)] : 1.0F);
        }
    }

    auto const& detail_tail_k() const { return butterfly::detail::tail_k_of(cache_.mix()); }
    auto const& detail_tail_v() const { return butterfly::detail::tail_v_of(cache_.mix()); }

    template <class Codec>
    static void keep(Codec const& codec, tensor<float>& from, index_t head, index_t token, std::vector<float>& to) {
        std::vector<float> row;
        for (index_t d = 0; d < from.shape().head_dim; ++d) row.push_back(from.at(head, token, d));
        row = cache_model::kept(codec, row);
        to.insert(to.end(), row.begin(), row.end());
    }

    /// Queries are a function of head and position, so that a position asked twice must answer the same.
    void attend_at(index_t first, index_t end) {
        cache_config const& c = model_.config;
        if (first >= end) return;
        index_t const heads = c.kv_heads * group_;
        tensor<float> q({heads, end - first, c.head_dim}), out({heads, end - first, c.value_dim()});
        for (index_t t = first; t < end; ++t)
            for (index_t h = 0; h < heads; ++h) {
                random draws(3, static_cast<std::uint64_t>(t * heads + h));
                for (index_t d = 0; d < c.head_dim; ++d) q.at(h, t - first, d) = static_cast<float>(draws.normal());
            }
        try {
            row_.with_rule(cache_.max_blocks(), [&](auto const& rule) {
                butterfly::attend(policy_, q.view(), cache_, rule, out.view(), {.scale = 0.5F, .q_position = first});
            });
        } catch (capacity_error const&) {
            expect(first < model_.floor, "a query at " + std::to_string(first) + " should be served");
            return;
        }
        for (index_t t = first; t < end; ++t)
            for (index_t h = 0; h < heads; ++h) check_row(q, out, t, t - first, h);
    }

    void check_row(tensor<float>& q, tensor<float>& out, index_t t, index_t token, index_t head) {
        cache_config const& c = model_.config;
        std::vector<float> query, got;
        for (index_t d = 0; d < c.head_dim; ++d) query.push_back(q.at(head, token, d));
        for (index_t d = 0; d < c.value_dim(); ++d) got.push_back(out.at(head, token, d));
        auto const keys   = model_.seen(cache_.mix(), row_, t, head / group_);
        auto const wanted = cache_model::attend(query, keys, 0.5, got.size());
        for (std::size_t d = 0; d < got.size(); ++d)
            expect(std::abs(got[d] - wanted[d]) < 1e-5, "head " + std::to_string(head) + " position " +
                                                            std::to_string(t) + " got " + std::to_string(got[d]) +
                                                            ", wanted " + std::to_string(wanted[d]));
        if (!exact_bits_) return;
        auto const [place, first_time] = answers_.try_emplace({t, head}, got);
        expect(first_time || place->second == got, "position " + std::to_string(t) + " answers other bits");
    }

    void trim(index_t length) {
        bool const fits     = length <= model_.tokens() && length >= model_.floor;
        auto const counters = cache_.counters();
        try {
            cache_.trim(length);
            expect(fits, "trim to " + std::to_string(length) + " should be refused");
        } catch (std::logic_error const&) {
            expect(!fits, "trim to " + std::to_string(length) + " should be served");
            expect(cache_.counters() == counters, "a refused trim changed the cache");
            return;
        }
        model_.k.resize(static_cast<std::size_t>(length));
        model_.v.resize(static_cast<std::size_t>(length));
        model_.weights.resize(static_cast<std::size_t>(length));
        answers_.erase(answers_.lower_bound({length, 0}), answers_.end());
    }

    void rarely(index_t what) {
        if (what == 0) {
            cache_.clear();
            model_.k.clear();
            model_.v.clear();
            model_.weights.clear();
            answers_.clear();
            model_.floor = 0;
        } else if (what < 4) { // goes on in a copy; the original's memory is spoilt
            std::vector<std::byte> other(memory_.size(), canary);
            auto copy = cache_.copy(policy_, room(other, skew_));
            std::fill(memory_.begin(), memory_.end(), canary);
            memory_.swap(other); // swapping vectors moves no bytes
            cache_ = std::move(copy);
        }
    }

    void check_state() {
        cache_config const& c     = model_.config;
        cache_counters const& at  = cache_.counters();
        index_t const late_blocks = std::max<index_t>(0, model_.tokens() - c.exact_window) / c.block_size;
        expect(at.tokens() == model_.tokens(), "tokens " + std::to_string(at.tokens()));
        expect(at.trim_floor() == model_.floor, "floor " + std::to_string(at.trim_floor()));
        expect(at.summaries() <= model_.tokens() / c.block_size && at.summaries() >= late_blocks, "summaries");
        if (!c.rules.late) expect(at.summaries() == model_.tokens() / c.block_size, "a full block has no summary");
        expect(at.tail_tokens() <= c.exact_window + c.block_size - 2 + c.max_rollback + c.max_append, "tail too long");
        expect(at.tail_start() % c.block_size == 0, "the tail starts within a block");
        expect(cache_.retained_bytes() <= cache_.allocated_bytes(), "retains more than it has");
        at.check_invariants();
        for (index_t i = 0; i < margin + skew_; ++i)
            expect(memory_[static_cast<std::size_t>(i)] == canary, "wrote before its memory");
        for (index_t i = 1; i <= margin; ++i)
            expect(memory_[memory_.size() - static_cast<std::size_t>(i)] == canary, "wrote past its memory");
    }

    Policy const& policy_;
    bool exact_bits_;
    test_row row_;
    cache_model model_;
    std::vector<std::byte> memory_;
    cache cache_;
    index_t skew_;
    int group_      = 1;
    index_t serial_ = 0;
    std::map<std::pair<index_t, index_t>, std::vector<float>> answers_{};
    std::string wrong_{};
};

/// Runs one program. `exact_bits`: the policy has one kernel class, so that a position has one answer. Returns what
/// went wrong, or nothing.
template <class Policy>
std::string run_cache_program(Policy const& policy, bool exact_bits, std::span<std::uint8_t const> bytes) {
    program_reader in(bytes);
    cache_config c;
    index_t const mix     = in.below(4);
    index_t const sizes[] = {1, 2, 3, 4, 5, 8, 16, 64};
    c.block_size          = sizes[in.below(8)];
    c.exact_window        = in.between(1, 20);
    c.exact_sinks         = in.below(10);
    c.max_append          = in.between(1, 40);
    c.max_tokens          = in.between(1, 256);
    c.max_rollback        = std::max<index_t>(0, in.between(-10, 20));
    c.kv_heads            = in.between(1, 2);
    c.head_dim            = in.between(1, 3);
    c.value_head_dim      = in.below(3);
    if (in.below(2) == 0) { // the largest append for the same ring: no slack hides a lost row
        index_t const most = c.exact_window + c.block_size - 2 + c.max_rollback + c.max_append;
        c.max_append += butterfly::detail::round_up(most, tile_slots) - most;
    }
    index_t const rules = in.below(20); // mostly the presets
    c.rules =
        rules < 14 ? cache_rules::gap_free
        : rules < 17
            ? cache_rules::published
            : cache_rules{.whole_blocks = rules == 17, .counted = rules == 18, .sinks = true, .late = rules != 19};
    test_row const row{static_cast<test_row::kind>(in.below(4)), static_cast<int>(in.below(4))};
    int const group    = static_cast<int>(in.between(1, 2));
    index_t const skew = in.below(9);

    auto const run = [&]<class M, class P>(M const&, P const&) {
        return cache_machine<Policy, M, P>(policy, exact_bits, c, row, skew).run(in, group);
    };
    if (mix == 0) return run(mixed_mix{}, mean_pooling{});
    if (mix == 1) return run(raw_mix<float>{}, weighted_mean_pooling{});
    return run(raw_mix<float>{}, mean_pooling{});
}

} // namespace butterfly::testing
