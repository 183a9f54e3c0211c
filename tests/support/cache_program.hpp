// SPDX-License-Identifier: MIT
#pragma once

// Programs of append, attend, trim, shift, clear, copy, save with load, and wrong calls, run on a cache in the caller's
// memory and on a model that keeps every token. A program is a string of bytes, so that a test may draw it and a fuzzer
// grow it. A model knows nothing of rings, tails or counters; what it has of its own is which keys a query sees.

#include <butterfly/backend/host/cache_ops.hpp>
#include <butterfly/cache/append.hpp>
#include <butterfly/cache/save.hpp>
#include <butterfly/cache/shift.hpp>
#include <butterfly/testing/problem.hpp>

#include <cmath>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace butterfly::testing {

/// A codec the library does not know: one scale per row, a byte per value.
struct byte_codec {
    static char const* name() { return "bytes"; }
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

/// Every token of a sequence, and attention over keys that are given.
struct kept_tokens {
    std::vector<std::vector<float>> k{}, v{};           // [tokens][kv_heads * dim], as the tail keeps them
    std::vector<std::vector<float>> sink_k{}, sink_v{}; // as sinks are kept
    std::vector<float> weights{};                       // [tokens]
    index_t floor = 0;                                  // where trim may go

    [[nodiscard]] index_t tokens() const { return static_cast<index_t>(k.size()); }

    void forget(index_t length) {
        auto const size = static_cast<std::size_t>(length);
        for (auto* const rows : {&k, &v, &sink_k, &sink_v}) rows->resize(size);
        weights.resize(size);
    }

    /// Forgets `count` tokens from `first` on; those after them move up.
    void forget(index_t first, index_t count) {
        auto const erase = [&](auto& of) { of.erase(of.begin() + first, of.begin() + first + count); };
        for (auto* const rows : {&k, &v, &sink_k, &sink_v}) erase(*rows);
        erase(weights);
        floor -= count;
    }

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
///
/// A model is kept_tokens and
///
///   cache_type, config              of the caches it is a model of
///   sinks()                         first tokens that stay exact
///   attend(policy, q, cache, out, options)
///   seen(mix, t, head)              the keys of a query at position t
///   defect(cache)                   what is wrong with the cache's own numbers; empty: nothing
///   changed(length)                 forgets what it derived from tokens from `length` on
///   shifting(codes)                 tokens are about to move; whether blocks that are condensed will be left
template <class Policy, class Model>
class cache_machine {
public:
    using cache = typename Model::cache_type;

    /// `exact_bits`: a position has one answer. `close`: how far results may be from the model's.
    cache_machine(Policy const& policy, bool exact_bits, double close, Model const& model, index_t skew)
        : policy_(policy), exact_bits_(exact_bits), close_(close), model_(model),
          memory_(static_cast<std::size_t>(cache::required_bytes(model.config) + 2 * margin + skew), canary),
          cache_(model.config, room(memory_, skew)), skew_(skew) {}

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
                rarely(in.below(6), in);
                break;
            }
            check_state();
        }
        attend_at(model_.tokens() - std::min<index_t>(model_.tokens(), 3), model_.tokens());
        return wrong_;
    }

private:
    static constexpr float scale      = 0.5F;
    static constexpr index_t margin   = 64;
    static constexpr std::byte canary = std::byte{0xC3};

    static std::span<std::byte> room(std::vector<std::byte>& memory, index_t skew) {
        return std::span(memory).subspan(static_cast<std::size_t>(margin + skew),
                                         memory.size() - static_cast<std::size_t>(2 * margin + skew));
    }

    void expect(bool ok, std::string const& what) {
        if (!ok && wrong_.empty())
            wrong_ = what + " (bs " + std::to_string(model_.config.block_size) + ", W " +
                     std::to_string(model_.config.exact_window) + ", S " + std::to_string(model_.sinks()) + ", R " +
                     std::to_string(model_.config.max_rollback) + ", P " + std::to_string(model_.tokens()) + ", A " +
                     std::to_string(cache_.tail_start()) + ", M " + std::to_string(cache_.counters().summaries()) + ")";
    }

    void append(index_t step, index_t weights) {
        auto const& c   = model_.config;
        bool const fits = step <= c.max_append && model_.tokens() + step <= c.max_tokens;
        tensor<float> k({c.kv_heads, step, c.head_dim}, layouts[serial_ % 4]);
        tensor<float> v({c.kv_heads, step, c.value_dim()}, layouts[serial_ % 3]);
        fill(k, random(1, static_cast<std::uint64_t>(++serial_)), distribution::normal);
        fill(v, random(2, static_cast<std::uint64_t>(serial_)), distribution::normal);
        for (index_t h = 0; h < c.kv_heads; ++h)
            for (index_t t = 0; t < step; ++t) { // channels that are large in every token
                k.at(h, t, 0) += 3.0F;
                v.at(h, t, c.value_dim() - 1) -= 2.0F;
            }
        std::vector<float> w;
        for (index_t i = 0; i < step; ++i) w.push_back(weights == 0 ? 1.0F : static_cast<float>((i + serial_) % 3));
        append_options options;
        if (cache::takes_weights && weights != 0) options.token_weights = memory_ref(w.data());

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
            auto const& mix = cache_.mix();
            model_.k.push_back(keep(butterfly::detail::tail_k_of(mix), k, t));
            model_.v.push_back(keep(butterfly::detail::tail_v_of(mix), v, t));
            model_.sink_k.push_back(keep(butterfly::detail::sink_k_of(mix), k, t));
            model_.sink_v.push_back(keep(butterfly::detail::sink_v_of(mix), v, t));
            model_.weights.push_back(cache::takes_weights ? w[static_cast<std::size_t>(t)] : 1.0F);
        }
    }

    template <class Codec>
    static std::vector<float> keep(Codec const& codec, tensor<float>& from, index_t token) {
        std::vector<float> all;
        for (index_t h = 0; h < from.shape().heads; ++h) {
            std::vector<float> row;
            for (index_t d = 0; d < from.shape().head_dim; ++d) row.push_back(from.at(h, token, d));
            row = kept_tokens::kept(codec, row);
            all.insert(all.end(), row.begin(), row.end());
        }
        return all;
    }

    /// Queries are a function of head and position, so that a position asked twice must answer the same.
    void attend_at(index_t first, index_t end) {
        auto const& c = model_.config;
        if (first >= end) return;
        index_t const heads = c.kv_heads * group_;
        tensor<float> q({heads, end - first, c.head_dim}), out({heads, end - first, c.value_dim()});
        for (index_t t = first; t < end; ++t)
            for (index_t h = 0; h < heads; ++h) {
                random draws(3, static_cast<std::uint64_t>(t * heads + h));
                for (index_t d = 0; d < c.head_dim; ++d) q.at(h, t - first, d) = static_cast<float>(draws.normal());
            }
        try {
            model_.attend(policy_, q.view(), cache_, out.view(), {.scale = scale, .q_position = first});
        } catch (capacity_error const&) {
            expect(first < model_.floor, "a query at " + std::to_string(first) + " should be served");
            return;
        }
        for (index_t t = first; t < end; ++t)
            for (index_t h = 0; h < heads; ++h) check_row(q, out, t, t - first, h);
    }

    void check_row(tensor<float>& q, tensor<float>& out, index_t t, index_t token, index_t head) {
        auto const& c = model_.config;
        std::vector<float> query, got;
        for (index_t d = 0; d < c.head_dim; ++d) query.push_back(q.at(head, token, d));
        for (index_t d = 0; d < c.value_dim(); ++d) got.push_back(out.at(head, token, d));
        auto const keys   = model_.seen(cache_.mix(), t, head / group_);
        auto const wanted = kept_tokens::attend(query, keys, scale, got.size());
        for (std::size_t d = 0; d < got.size(); ++d)
            expect(std::abs(got[d] - wanted[d]) < close_, "head " + std::to_string(head) + " position " +
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
        model_.forget(length);
        model_.changed(length);
        answers_.erase(answers_.lower_bound({length, 0}), answers_.end());
    }

    void rarely(index_t what, program_reader& in) {
        if (what == 0) {
            cache_.clear();
            model_.forget(0);
            model_.changed(0);
            answers_.clear();
            model_.floor = 0;
        } else if (what < 4) { // goes on in a copy; the original's memory is spoilt
            std::vector<std::byte> other(memory_.size(), canary);
            auto copy = cache_.copy(policy_, room(other, skew_));
            std::fill(memory_.begin(), memory_.end(), canary);
            memory_.swap(other); // swapping vectors moves no bytes
            cache_ = std::move(copy);
        } else if (what == 4) { // goes on in a cache that was loaded
            auto const counters = cache_.counters();
            auto const file     = save(policy_, cache_);
            std::fill(memory_.begin(), memory_.end(), canary);
            cache_.clear();
            load(policy_, file, cache_);
            expect(cache_.counters() == counters, "a loaded cache has other counters");
            expect(save(policy_, cache_) == file, "a loaded cache is saved as another file");
        } else {
            shift(in.below(droppable(cache_) / model_.config.block_size + 2) * model_.config.block_size);
        }
    }

    void shift(index_t count) {
        index_t const stays = butterfly::detail::round_up(model_.sinks(), model_.config.block_size);
        bool const fits     = count == 0 || stays + count <= cache_.tail_start();
        auto const before   = memory_;
        auto const counters = cache_.counters();
        try {
            butterfly::shift(policy_, cache_, count);
            expect(fits, "a shift by " + std::to_string(count) + " should be refused");
        } catch (capacity_error const&) {
            expect(!fits, "a shift by " + std::to_string(count) + " should be served");
            expect(memory_ == before && cache_.counters() == counters, "a refused shift changed the cache");
            return;
        }
        if (count == 0) return;
        model_.shifting(cache_.counters().summaries() > 0);
        model_.forget(stays, count);
        answers_.clear(); // of other tokens
    }

    void check_state() {
        auto const& c             = model_.config;
        cache_counters const& at  = cache_.counters();
        index_t const late_blocks = std::max<index_t>(0, model_.tokens() - c.exact_window) / c.block_size;
        expect(at.tokens() == model_.tokens(), "tokens " + std::to_string(at.tokens()));
        expect(at.trim_floor() == model_.floor, "floor " + std::to_string(at.trim_floor()));
        expect(at.summaries() <= model_.tokens() / c.block_size && at.summaries() >= late_blocks, "summaries");
        expect(model_.defect(cache_).empty(), model_.defect(cache_));
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
    double close_;
    Model model_;
    std::vector<std::byte> memory_;
    cache cache_;
    index_t skew_;
    int group_      = 1;
    index_t serial_ = 0;
    std::map<std::pair<index_t, index_t>, std::vector<float>> answers_{};
    std::string wrong_{};
};

/// How close f32 kernels are to a model that sums in double.
inline constexpr double close_in_f32 = 1e-5;

} // namespace butterfly::testing
