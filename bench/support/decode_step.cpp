// SPDX-License-Identifier: MIT
#include "decode_step.hpp"

#include <butterfly/cache/attend.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/testing/problem.hpp>

#include "codecs.hpp"
#include "fidelity_count.hpp"
#include "ladder_routing.hpp"
#include "ladder_systems.hpp"
#include "limits_threads.hpp"
#include "usage.hpp"

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

template <bf::quant::row_codec Codec>
class dense_tokens {
public:
    dense_tokens(decode_shape const& s, machine const&)
        : half_{s.kv_heads, s.n_kv, s.head_dim}, memory_(2 * half_bytes()) {
        if constexpr (requires { typename Codec::value_type; })
            fill(std::span(reinterpret_cast<typename Codec::value_type*>(first()), elements()));
        else
            pack();
    }

    /// f(problem) for queries that end with the context.
    template <class Policy, class F>
    void
    with_problem(Policy const& policy, bf::heads_view<float const> q, bf::heads_view<float> out, F const& f) const {
        bf::packed_view<Codec> const keys{first(), codec_, half_}, values{first() + half_bytes(), codec_, half_};
        bf::pool const all(keys, values, bf::visible::causal_prefix());
        auto const bound = bf::make_problem(policy, q, out, {.q_position = half_.tokens - q.tokens()}, all);
        f(bound.problem());
    }
    [[nodiscard]] std::span<std::byte const> pages(index_t) { return memory_.pages(); }

private:
    [[nodiscard]] index_t half_bytes() const { return half_.heads * half_.tokens * codec_.row_bytes(half_.head_dim); }
    [[nodiscard]] std::size_t elements() const {
        return static_cast<std::size_t>(2 * half_.heads * half_.tokens * half_.head_dim);
    }
    [[nodiscard]] std::byte* first() const { return memory_.pages().data(); }

    /// Rows of N(0, 1), over and over as `fill` does it: a prime number of them.
    void pack() {
        constexpr index_t period = 499;
        index_t const row = codec_.row_bytes(half_.head_dim), rows = 2 * half_.heads * half_.tokens;
        bf::testing::random draws(7);
        std::vector<float> values(static_cast<std::size_t>(half_.head_dim));
        for (index_t r = 0; r < rows; ++r) {
            std::byte* const to = first() + r * row;
            if (r >= period) {
                std::copy_n(to - period * row, row, to);
                continue;
            }
            for (float& x : values) x = static_cast<float>(draws.normal());
            codec_.encode(values.data(), half_.head_dim, to);
        }
    }

    Codec codec_{};
    bf::heads_shape half_;
    page_memory memory_;
};

/// Every pool of a cache by one codec.
template <class Codec>
struct one_mix {
    Codec tail{}, summary_k{}, summary_v{};
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

template <bf::quant::row_codec Codec>
class compressed_tokens {
public:
    compressed_tokens(decode_shape const& s, machine const& m)
        : settings_(settings_of(s)), cache_(settings_.cache(s.n_kv)),
          row_(ladder_routing(settings_, s.n_kv).over_summaries(0, s.n_kv)) {
        bf::heads_buffer<bf::bfloat16> step({s.kv_heads, settings_.step, s.head_dim});
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
    bf::compressed_kv_cache<one_mix<Codec>> cache_;
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

template <class Codec>
std::unique_ptr<decode_step> make(std::string const& system, decode_shape const& s, machine const& m) {
    bf::quant::require_head_dim<Codec>(s.head_dim);
    if (system == "dense") return std::make_unique<step_of<dense_tokens<Codec>>>(s, m);
    return std::make_unique<step_of<compressed_tokens<Codec>>>(s, m);
}

/// f(codec) for every codec that backends are asked for.
template <class F, class... Codecs>
void for_each(codec_list<Codecs...>, F const& f) {
    (f(Codecs{}), ...);
}

} // namespace

std::vector<std::string> decode_storages() {
    std::vector<std::string> names;
    for_each(known_codecs{}, [&](auto const& codec) { names.push_back(short_name(codec)); });
    return names;
}

std::unique_ptr<decode_step>
make_decode_step(std::string const& system, std::string const& storage, decode_shape const& shape, machine const& m) {
    std::unique_ptr<decode_step> made;
    for_each(known_codecs{}, [&]<class Codec>(Codec const& codec) {
        if (short_name(codec) == storage) made = make<Codec>(system, shape, m);
    });
    if (made == nullptr) throw usage_error("--storage {}: no such storage", storage);
    return made;
}

} // namespace bench
