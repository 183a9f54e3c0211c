// SPDX-License-Identifier: MIT
#pragma once

// What the laws share: how they are asked, what they answer, and one comparison against the definition.

#include <butterfly/graph/graph.hpp>
#include <butterfly/sdpa/attend.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/testing/problem.hpp>
#include <butterfly/topology/row.hpp>

#include <string>
#include <vector>

namespace butterfly::testing {

/// How a law is asked.
struct sweep {
    std::uint64_t seed  = 1;
    bool brief          = false; // a few sizes instead of all: emulators, sanitizers
    bool widens         = true;  // two-byte storage is widened exactly and summed in f32
    bool rounds         = false; // but beside keys and values in bf16, queries and weights are rounded to bf16
    index_t stream_rows = 0; // calls of at most this many rows (tokens x group) are a kernel class of their own; 0: no
    index_t stream_tokens = 0; // calls of at most this many tokens are of that class too, up to eight times the rows
};

/// What a law found. `text` describes the first case that failed.
struct report {
    bool ok      = true;
    int cases    = 0;
    double worst = 0.0; ///< largest error / allowed seen
    std::string text{};

    [[nodiscard]] explicit operator bool() const noexcept { return ok; }

    /// Admits one case.
    void require(bool holds, std::string const& what) {
        ++cases;
        if (holds || !ok) return;
        ok   = false;
        text = what;
    }

    void require(comparison const& c, std::string const& what) {
        worst = std::max(worst, c.ratio);
        require(c.ok, c.ok ? std::string() : what + ": " + c.text());
    }
};

/// One law for one type of policy.
template <class Policy>
struct law {
    char const* name;
    report (*check)(Policy const&, sweep const&);
};

namespace detail {

/// "heads 4 tokens 3", for messages.
template <class... Rest>
[[nodiscard]] std::string say(char const* name, index_t value, Rest... rest) {
    std::string text = std::string(name) + " " + std::to_string(value);
    if constexpr (sizeof...(rest) > 0) text += " " + say(rest...);
    return text;
}

[[nodiscard]] inline tolerance arithmetic(sweep const& s, attention const& wanted) noexcept {
    if (!s.widens) return tolerance_of(wanted.storage);
    return s.rounds && wanted.storage == element_type::bf16 ? tolerance_of_bf16_units()
                                                            : tolerance_of(element_type::f32);
}

/// Runs the call and holds output and lse to `wanted`.
template <class Policy, class Q, class KV, class O, class... Pools>
void expect(report& r,
            std::string const& what,
            Policy const& policy,
            sweep const& s,
            attention const& wanted,
            seeded_problem<Q, KV, O>& p,
            attend_options o,
            Pools const&... pools) {
    std::fill(p.lse.begin(), p.lse.end(), gap<float>());
    o.lse = p.lse.data();
    attend(policy, p.q.view(), p.out.view(), o, pools...);
    r.require(compare(p.out.view(), wanted, arithmetic(s, wanted)), what);
    r.require(compare_lse(p.lse, wanted, arithmetic(s, wanted)), what);
    r.require(p.out.gaps_intact(), what + ": the call wrote between rows of out");
}

/// Runs the call and holds it to its definition.
template <class Policy, class Q, class KV, class O, class... Pools>
void expect_definition(report& r,
                       std::string const& what,
                       Policy const& policy,
                       sweep const& s,
                       seeded_problem<Q, KV, O>& p,
                       attend_options const& o,
                       Pools const&... pools) {
    expect(r, what, policy, s, evaluate(p.q.view(), p.out.view(), o, pools...), p, o, pools...);
}

/// All keys of a seeded problem, causal.
template <class Q, class KV, class O, class Visibility = visible::interval>
[[nodiscard]] auto whole(seeded_problem<Q, KV, O> const& p, Visibility sees = {}) {
    return pool(p.k.view(), p.v.view(), sees);
}

/// Options that name the scale, so that value_dim is free, and put the last query at the last key.
template <class Q, class KV, class O>
[[nodiscard]] attend_options at_end(seeded_problem<Q, KV, O> const& p) {
    attend_options o;
    o.scale      = p.scale;
    o.q_position = std::max<index_t>(0, p.k.shape().tokens - p.q.shape().tokens);
    return o;
}

/// A copy of a policy with another executor.
template <class Policy>
[[nodiscard]] Policy with(Policy policy, executor e) {
    policy.executor = e;
    return policy;
}

/// The values of a tensor as they are after rounding to its type.
template <element T>
[[nodiscard]] tensor<float> widened(tensor<T> const& from) {
    tensor<float> to(from.shape());
    for (index_t h = 0; h < from.shape().heads; ++h)
        for (index_t t = 0; t < from.shape().tokens; ++t)
            for (index_t d = 0; d < from.shape().head_dim; ++d) to.at(h, t, d) = from.at(h, t, d);
    return to;
}

/// Compares two runs bit for bit, output and lse.
template <class O>
[[nodiscard]] comparison same_run(tensor<O> const& out,
                                  std::vector<float> const& lse,
                                  tensor<O> const& other_out,
                                  std::vector<float> const& other_lse) {
    comparison const c = compare_bits(out.view(), other_out.view());
    if (!c.ok) return c;
    auto const rows = [&](std::vector<float> const& x) {
        return heads_view<float const>(x.data(), {1, static_cast<index_t>(x.size()), 1});
    };
    comparison l = compare_bits(rows(lse), rows(other_lse));
    l.channel    = l.ok ? 0 : -1;
    return l;
}

/// Rows that rules would make, for laws about graphs and routing: `degree` random neighbours <= node, ascending, no
/// doubles, pads where there are fewer; types 1 to 4.
[[nodiscard]] inline graph random_graph(random draws, index_t heads, index_t nodes, index_t degree) {
    graph g({.heads = heads, .nodes = nodes, .degree = degree});
    for (index_t row = 0; row < heads * nodes; ++row) {
        index_t const node = row % nodes;
        std::vector<std::int32_t> chosen;
        for (index_t i = 0; i < degree; ++i) chosen.push_back(static_cast<std::int32_t>(draws.below(node + 1)));
        std::sort(chosen.begin(), chosen.end());
        chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
        for (std::size_t i = 0; i < chosen.size(); ++i) {
            g.neigh_idx()[static_cast<std::size_t>(row * degree) + i] = chosen[i];
            g.edge_type()[static_cast<std::size_t>(row * degree) + i] = static_cast<std::uint8_t>(1 + draws.below(4));
        }
    }
    return g;
}

/// Rows that share most of their nodes: the `degree` latest ones, the latest first, and pads before them.
[[nodiscard]] inline graph near_graph(index_t heads, index_t nodes, index_t degree) {
    graph g({.heads = heads, .nodes = nodes, .degree = degree + 1});
    for (index_t row = 0; row < heads * nodes; ++row)
        for (index_t i = 0; i < degree && i <= row % nodes; ++i) {
            auto const at     = static_cast<std::size_t>(row * (degree + 1) + i + 1);
            g.neigh_idx()[at] = static_cast<std::int32_t>(row % nodes - i);
            g.edge_type()[at] = static_cast<std::uint8_t>(1 + i % 4);
        }
    return g;
}

/// A rule with rows of their own per head: the node itself, the one before, and two that only this rule would name.
struct scattered_rule {
    template <class Sink>
    void emit(topology::topology_shape, topology::node_ref at, Sink& sink) const noexcept {
        sink.add(at.node, edge_code::window);
        sink.add(at.node / 2 + at.head, edge_code::rewire);
        if (at.node % 3 != 1) sink.add(at.node - 1, edge_code::window);
        sink.add(at.node / 3, edge_code::landmark);
    }
};

/// Every block there is, the latest first.
struct everything_rule {
    template <class Sink>
    void emit(topology::topology_shape shape, topology::node_ref, Sink& sink) const noexcept {
        for (index_t j = std::min(shape.nodes, sink.limit()) - 1; j >= sink.from(); --j) sink.add(j, edge_code::rewire);
    }
};

} // namespace detail
} // namespace butterfly::testing
