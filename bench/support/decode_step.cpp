// SPDX-License-Identifier: MIT
#include "decode_step.hpp"

#include <butterfly/cache/attend.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/testing/problem.hpp>

#include "fidelity_count.hpp"
#include "ladder_routing.hpp"
#include "ladder_systems.hpp"
#include "limits_threads.hpp"

#include <algorithm>

namespace bench {
namespace {

/// Memory of whole pages that begins at a line of the cache.
class page_memory {
public:
    explicit page_memory(index_t bytes)
        : size_(static_cast<std::size_t>(bf::detail::round_up(bytes, static_cast<index_t>(page_bytes)))),
          memory_(std::make_unique<std::byte[]>(size_ + line)) {}

    [[nodiscard]] std::span<std::byte> pages() const {
        auto const past = reinterpret_cast<std::uintptr_t>(memory_.get()) % line;
        return {memory_.get() + (line - past) % line, size_};
    }

private:
    static constexpr std::size_t line = 64;

    std::size_t size_;
    std::unique_ptr<std::byte[]> memory_;
};

/// N(0, 1), over and over: rows differ, because the period is a prime, and filling is fast.
template <class T>
void fill(std::span<T> to) {
    bf::testing::random draws(7);
    std::vector<T> some(9973);
    for (T& x : some) x = T(static_cast<float>(draws.normal()));
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = some[i % some.size()];
}

template <class T>
class dense_tokens {
public:
    dense_tokens(decode_shape const& s, machine const&)
        : half_{s.kv_heads, s.n_kv, s.head_dim}, memory_(bytes_of(2 * elements())) {
        fill(std::span(first(), static_cast<std::size_t>(2 * elements())));
    }

    /// f(problem) for queries that end with the context.
    template <class Policy, class F>
    void
    with_problem(Policy const& policy, bf::heads_view<float const> q, bf::heads_view<float> out, F const& f) const {
        bf::heads_view<T const> const keys(first(), half_), values(first() + elements(), half_);
        bf::pool const all(keys, values, bf::visible::causal_prefix());
        auto const bound = bf::make_problem(policy, q, out, {.q_position = half_.tokens - q.tokens()}, all);
        f(bound.problem());
    }
    [[nodiscard]] std::span<std::byte const> pages(index_t) { return memory_.pages(); }

private:
    [[nodiscard]] index_t elements() const { return half_.heads * half_.tokens * half_.head_dim; }
    [[nodiscard]] static index_t bytes_of(index_t n) { return n * static_cast<index_t>(sizeof(T)); }
    [[nodiscard]] T* first() const { return reinterpret_cast<T*>(memory_.pages().data()); }

    bf::heads_shape half_;
    page_memory memory_;
};

/// The ladder's settings for one layer of this shape.
ladder_settings settings_of(decode_shape const& s) {
    ladder_settings out;
    out.model          = find_model("qwen3.5-0.8b"); // for its layers: they go round the partners
    out.model.heads    = s.heads;
    out.model.kv_heads = s.kv_heads;
    out.model.head_dim = s.head_dim;
    return out;
}

template <class T>
class compressed_tokens {
public:
    compressed_tokens(decode_shape const& s, machine const& m)
        : settings_(settings_of(s)), cache_(settings_.cache(s.n_kv)),
          row_(ladder_routing(settings_, s.n_kv).over_summaries(0, s.n_kv)) {
        bf::heads_buffer<T> step({s.kv_heads, settings_.step, s.head_dim});
        fill(step.values());
        auto const append = [&](index_t tokens) {
            auto const next = std::as_const(step).view().slice(0, tokens);
            bf::append(m, cache_, next, next);
        };
        index_t const before = s.n_kv - s.rows;
        while (cache_.tokens() < before) append(std::min(settings_.step, before - cache_.tokens()));
        append(s.rows); // together: the tail then serves all of them
    }

    template <class Policy, class F>
    void
    with_problem(Policy const& policy, bf::heads_view<float const> q, bf::heads_view<float> out, F const& f) const {
        auto const bound = bf::make_problem(policy, q, cache_, row_, out);
        f(bound.problem());
    }
    [[nodiscard]] std::span<std::byte const> pages(index_t bytes) {
        if (read_.pages().empty()) {
            read_ = page_memory(bytes);
            fill(std::span(reinterpret_cast<float*>(read_.pages().data()), read_.pages().size() / sizeof(float)));
        }
        return read_.pages();
    }

private:
    ladder_settings settings_;
    bf::compressed_kv_cache<bf::raw_mix<T>> cache_;
    summary_row row_;
    page_memory read_{0};
};

template <class Tokens>
class step_of final : public decode_step {
public:
    step_of(decode_shape const& s, machine const& m)
        : machine_(m), tokens_(s, m), q_({s.heads, s.rows, s.head_dim}), out_(q_.shape()) {
        fill(q_.values());
        with_problem(machine_, s.rows, [&](bf::problem const& p) {
            scratch_.resize(static_cast<std::size_t>(workspace_bytes(machine_, std::span(&p, 1))));
        });
    }

    void attend() override {
        with_problem(machine_, rows(), [&](bf::problem p) {
            p.options.workspace = scratch_;
            bf::attend(machine_, std::span<bf::problem const>(&p, 1));
        });
    }
    void attend_exactly() override { attend_by(bf::testing::oracle{}, rows()); }
    std::span<float const> output() const override { return out_.values(); }

    std::string plan() override {
        std::string text;
        with_problem(machine_, rows(), [&](bf::problem const& p) { text = explain(machine_, p); });
        return text;
    }
    index_t edges() override {
        std::atomic<index_t> edges = 0;
        attend_by(edge_counter{{}, &edges}, rows());
        return edges;
    }
    index_t bytes() override {
        index_t bytes = 0;
        attend_by(make_counter(bytes), 1);
        return bytes;
    }
    std::span<std::byte const> pages() override { return tokens_.pages(bytes()); }

private:
    [[nodiscard]] index_t rows() const { return q_.shape().tokens; }

    /// f(problem) for the last `rows` query tokens.
    template <class Policy, class F>
    void with_problem(Policy const& policy, index_t rows, F const& f) {
        index_t const first = q_.shape().tokens - rows;
        tokens_.with_problem(policy, std::as_const(q_).view().slice(first, rows), out_.view().slice(first, rows), f);
    }
    template <class Policy>
    void attend_by(Policy const& policy, index_t rows) {
        with_problem(policy, rows,
                     [&](bf::problem const& p) { bf::attend(policy, std::span<bf::problem const>(&p, 1)); });
    }

    machine machine_;
    Tokens tokens_;
    bf::heads_buffer<float> q_, out_;
    std::vector<std::byte> scratch_{};
};

template <class T>
std::unique_ptr<decode_step> make(std::string const& system, decode_shape const& s, machine const& m) {
    if (system == "dense") return std::make_unique<step_of<dense_tokens<T>>>(s, m);
    return std::make_unique<step_of<compressed_tokens<T>>>(s, m);
}

} // namespace

std::unique_ptr<decode_step>
make_decode_step(std::string const& system, bf::element_type storage, decode_shape const& shape, machine const& m) {
    if (storage == bf::element_type::f32) return make<float>(system, shape, m);
    if (storage == bf::element_type::f16) return make<bf::float16>(system, shape, m);
    return make<bf::bfloat16>(system, shape, m);
}

} // namespace bench
