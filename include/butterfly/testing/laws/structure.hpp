// SPDX-License-Identifier: MIT
#pragma once

// Laws about what attention is: what a row may depend on, and what it may be.

#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>
#include <butterfly/testing/laws/law.hpp>
#include <butterfly/topology/cycle.hpp>

namespace butterfly::testing {

/// Along a complete causal graph, or routed to every block, sparse attention is dense attention.
template <class Policy, element KV = float>
[[nodiscard]] report sparse_has_a_dense_limit(Policy const& policy, sweep const& s) {
    report r;
    for (index_t const tokens : {1, 16, 65, 130}) {
        auto p = make_problem<float, KV>({.heads = 4, .kv_heads = 2, .tokens = tokens, .head_dim = 20, .seed = s.seed});
        attend_options o;
        attention const dense = evaluate(p.q.view(), p.out.view(), o, detail::whole(p));

        graph g({.heads = 1, .nodes = tokens, .degree = tokens});
        for (index_t i = 0; i < tokens; ++i)
            for (index_t j = 0; j < tokens; ++j) { // complete: later nodes are hidden by causality alone
                g.neigh_idx()[static_cast<std::size_t>(i * tokens + j)] = static_cast<std::int32_t>(j);
                g.edge_type()[static_cast<std::size_t>(i * tokens + j)] = 1;
            }
        sparse_sdpa(policy, p.q.view(), p.k.view(), p.v.view(), g, p.out.view(), o);
        r.require(compare(p.out.view(), dense, detail::arithmetic(s, dense)), detail::say("graph of", tokens));

        detail::everything_rule const rule;
        for (index_t const block_size : {1, 16, 100}) {
            block_routing const routing{rule, block_size, butterfly::detail::ceil_div(tokens, block_size)};
            sparse_sdpa(policy, p.q.view(), p.k.view(), p.v.view(), routing, p.out.view(), o);
            r.require(compare(p.out.view(), dense, detail::arithmetic(s, dense)),
                      detail::say("blocks of", block_size, "tokens", tokens));
        }
        dense_sdpa(policy, p.q.view(), p.k.view(), p.v.view(), p.out.view(), o);
        r.require(compare(p.out.view(), dense, detail::arithmetic(s, dense)), detail::say("dense_sdpa of", tokens));
    }
    return r;
}

/// Changing keys, values and queries after token t leaves rows up to t bit-identical.
template <class Policy, element KV = float>
[[nodiscard]] report causality_is_exact(Policy const& policy, sweep const& s) {
    report r;
    for (index_t const tokens : {9, 80, 140}) {
        if (s.brief && tokens == 140) continue;
        auto p = make_problem<float, KV>({.heads = 2, .kv_heads = 1, .tokens = tokens, .head_dim = 24, .seed = s.seed});
        graph const g = detail::random_graph(random(s.seed, 201), 2, tokens, 20);
        detail::scattered_rule const rule;
        visible::routed_blocks const routed{
            topology::make_row_source(rule, {.heads = 1, .nodes = butterfly::detail::ceil_div(tokens, 16)}), 16};
        for (index_t const t : {index_t{0}, tokens / 2, tokens - 2}) {
            auto const changed = [&](char const* name, auto const& sees) {
                auto before = p;
                auto after  = p;
                fill(after.q, random(s.seed, 202), distribution::peaked, t + 1, tokens - t - 1);
                fill(after.k, random(s.seed, 203), distribution::peaked, t + 1, tokens - t - 1);
                fill(after.v, random(s.seed, 204), distribution::peaked, t + 1, tokens - t - 1);
                attend(policy, before.q.view(), before.out.view(), {}, detail::whole(before, sees));
                attend(policy, after.q.view(), after.out.view(), {}, detail::whole(after, sees));
                r.require(compare_bits(after.out.view().slice(0, t + 1), before.out.view().slice(0, t + 1)),
                          name + detail::say(" tokens", tokens, "t", t));
                r.require(!compare_bits(after.out.view(), before.out.view()).ok,
                          name + std::string(": later rows did not change"));
            };
            changed("causal", visible::causal_prefix());
            changed("window", visible::exact_window(33, 8));
            changed("routed", routed);
            changed("graph", visible::graph_rows{g.view()});
        }
    }
    return r;
}

/// The order of neighbours in a graph row changes rounding at most, and pads anywhere in it not a bit.
template <class Policy, element KV = float>
[[nodiscard]] report neighbour_order_and_pads_are_inert(Policy const& policy, sweep const& s) {
    report r;
    constexpr index_t nodes  = 70;
    constexpr index_t degree = 66;
    auto p = make_problem<float, KV>({.heads = 4, .kv_heads = 2, .tokens = nodes, .head_dim = 18, .seed = s.seed});
    attend_options o;
    o.edge_bias = {0.5F, -0.25F, 1.5F, -2.0F};
    random draws(s.seed, 205);
    for (index_t const heads : {1, 2, 4}) {
        graph const g  = detail::random_graph(draws, heads, nodes, degree);
        auto const run = [&](graph const& rows) {
            sparse_sdpa(policy, p.q.view(), p.k.view(), p.v.view(), rows, p.out.view(), o);
            return p.out;
        };
        attention const wanted = evaluate(p.q.view(), p.out.view(), o, detail::whole(p, visible::graph_rows{g.view()}));
        tensor<float> const plain = run(g);
        r.require(compare(plain.view(), wanted, detail::arithmetic(s, wanted)), detail::say("graph heads", heads));

        graph shuffled(g.view());
        for (index_t row = 0; row < heads * nodes; ++row)
            for (index_t i = degree - 1; i > 0; --i) {
                auto const a = static_cast<std::size_t>(row * degree + i);
                auto const b = static_cast<std::size_t>(row * degree + draws.below(i + 1));
                std::swap(shuffled.neigh_idx()[a], shuffled.neigh_idx()[b]);
                std::swap(shuffled.edge_type()[a], shuffled.edge_type()[b]);
            }
        tensor<float> const permuted = run(shuffled);
        r.require(compare(permuted.view(), wanted, detail::arithmetic(s, wanted)),
                  detail::say("permuted, heads", heads));

        // The shuffled rows again, with pads strewn between: wider rows, the same neighbours in the same order.
        graph padded({.heads = heads, .nodes = nodes, .degree = 2 * degree + 5});
        for (index_t row = 0; row < heads * nodes; ++row) {
            index_t at    = row * padded.shape().degree;
            index_t spare = degree + 5;
            for (index_t i = 0; i < degree; ++i) {
                for (; spare > 0 && draws.below(2) == 0; --spare) ++at;
                padded.neigh_idx()[static_cast<std::size_t>(at)] =
                    shuffled.neigh_idx()[static_cast<std::size_t>(row * degree + i)];
                padded.edge_type()[static_cast<std::size_t>(at)] =
                    shuffled.edge_type()[static_cast<std::size_t>(row * degree + i)];
                ++at;
            }
        }
        tensor<float> const with_pads = run(padded);
        r.require(compare_bits(with_pads.view(), permuted.view()), detail::say("padded, heads", heads));
    }
    return r;
}

/// Shared key heads are the same as key heads repeated for every query head.
template <class Policy, element KV = float>
[[nodiscard]] report shared_heads_equal_repeated_heads(Policy const& policy, sweep const& s) {
    report r;
    for (index_t const group : {2, 3, 8})
        for (index_t const tokens : {1, 4, 40}) {
            auto p        = make_problem<float, KV>({.heads    = 2 * group,
                                                     .kv_heads = 2,
                                                     .tokens   = tokens,
                                                     .keys     = 75,
                                                     .head_dim = 16,
                                                     .seed     = s.seed + static_cast<std::uint64_t>(group)});
            auto repeated = make_problem<float, KV>({.heads = 2 * group, .tokens = tokens, .keys = 75, .head_dim = 16});
            repeated.q    = p.q;
            for (index_t h = 0; h < 2 * group; ++h)
                for (index_t t = 0; t < 75; ++t)
                    for (index_t d = 0; d < 16; ++d) {
                        repeated.k.at(h, t, d) = p.k.at(h / group, t, d);
                        repeated.v.at(h, t, d) = p.v.at(h / group, t, d);
                    }
            attend_options const o = detail::at_end(p);
            attention const wanted = evaluate(repeated.q.view(), repeated.out.view(), o, detail::whole(repeated));
            std::string const what = detail::say("group", group, "tokens", tokens);
            detail::expect(r, what, policy, s, wanted, p, o, detail::whole(p));
            detail::expect(r, what + " repeated", policy, s, wanted, repeated, o, detail::whole(repeated));
        }
    return r;
}

/// A row that sees no key is exactly zero with lse = -inf, sink or not, whatever its neighbours see.
template <class Policy, element KV = float>
[[nodiscard]] report empty_rows_are_zero(Policy const& policy, sweep const& s) {
    report r;
    for (index_t const tokens : {1, 7, 40}) {
        auto p = make_problem<float, KV>(
            {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 90, .head_dim = 9, .seed = s.seed});
        graph g({.heads = 1, .nodes = 90, .degree = 3});
        for (index_t i = 0; i < 90; i += 2) {
            g.neigh_idx()[static_cast<std::size_t>(3 * i + 1)] = static_cast<std::int32_t>(i / 2);
            g.edge_type()[static_cast<std::size_t>(3 * i + 1)] = 2;
        }
        std::vector<float> const sinks{0.5F, -80.0F, 80.0F, 0.0F};
        std::vector<std::int32_t> positions(static_cast<std::size_t>(tokens));
        for (std::size_t i = 0; i < positions.size(); ++i)
            positions[i] = i % 3 == 0 ? -1 : static_cast<std::int32_t>(i);

        auto const check = [&](std::string const& name, attend_options o, auto const& all, auto const& is_empty) {
            attention const wanted = evaluate(p.q.view(), p.out.view(), o, all);
            detail::expect(r, name, policy, s, wanted, p, o, all);
            for (index_t h = 0; h < 4; ++h)
                for (index_t t = 0; t < tokens; ++t) {
                    r.require((wanted.keys[wanted.at(h, t)] == 0) == is_empty(t),
                              name + ": the case is not the one meant");
                    if (!is_empty(t)) continue;
                    r.require(p.lse[wanted.at(h, t)] == -std::numeric_limits<float>::infinity(),
                              name + ": lse is not -inf");
                    for (index_t d = 0; d < 9; ++d) r.require(p.out.at(h, t, d) == 0.0F, name + ": a row is not zero");
                }
        };
        for (bool const sink : {false, true}) {
            attend_options o;
            if (sink) o.sink_logits = sinks.data();
            std::string const with = (sink ? " and a sink, " : ", ") + detail::say("tokens", tokens);
            check("graph" + with, o, detail::whole(p, visible::graph_rows{g.view()}),
                  [](index_t t) { return t % 2 != 0; });
            check("before" + with, o, detail::whole(p, visible::interval{.window = 5, .before = 3}),
                  [](index_t t) { return t < 5; });
            o.q_positions = positions.data();
            check("position -1" + with, o, detail::whole(p), [](index_t t) { return t % 3 == 0; });
            o.q_positions = {};
            auto none     = make_problem<float, KV>({.heads = 4, .tokens = tokens, .head_dim = 9, .no_keys = true});
            check("no keys" + with, o, pool(none.k.view(), none.v.view(), visible::causal_prefix()),
                  [](index_t) { return true; });
        }
    }
    return r;
}

/// Without a sink each output lies between the smallest and the largest visible value of its channel.
template <class Policy, element KV = float>
[[nodiscard]] report outputs_are_convex(Policy const& policy, sweep const& s) {
    report r;
    for (index_t const tokens : {1, 50}) {
        auto p = make_problem<float, KV>({.heads = 2, .tokens = tokens, .keys = 100, .head_dim = 33, .seed = s.seed});
        attend_options const o = detail::at_end(p);
        attention const wanted = evaluate(p.q.view(), p.out.view(), o, detail::whole(p));
        attend(policy, p.q.view(), p.out.view(), o, detail::whole(p));
        for (index_t h = 0; h < 2; ++h)
            for (index_t t = 0; t < tokens; ++t)
                for (index_t d = 0; d < 33; ++d) {
                    float low  = p.v.at(h, 0, d);
                    float high = low;
                    for (index_t j = 0; j <= o.q_position + t; ++j) {
                        low  = std::min<float>(low, p.v.at(h, j, d));
                        high = std::max<float>(high, p.v.at(h, j, d));
                    }
                    double const slack =
                        1e-6 * std::max(std::abs(low), std::abs(high)) +
                        (s.widens ? detail::arithmetic(s, wanted).weights : 0x1p-7) * wanted.spread[wanted.at(h, t, d)];
                    r.require(p.out.at(h, t, d) >= low - slack && p.out.at(h, t, d) <= high + slack,
                              detail::say("head", h, "token", t, "channel", d));
                }
    }
    return r;
}

/// Queries before position 0 or past the last block of the rows see no routed key: there is no row to ask for.
template <class Policy, element KV = float>
[[nodiscard]] report queries_outside_the_rows_see_nothing(Policy const& policy, sweep const& s) {
    report r;
    constexpr index_t nodes = 3, block_size = 16;
    auto const rule = topology::prepare(topology::cycle{.seed = s.seed}, {.heads = 1, .nodes = nodes});
    auto const rows = topology::make_row_source(rule, {.heads = 1, .nodes = nodes});
    for (index_t const tokens : {1, 3, 150})
        for (index_t const first : {index_t{-20}, index_t{-3}, block_size * nodes - 2, index_t{5000}}) {
            auto p = make_problem<float, KV>(
                {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 70, .head_dim = 20, .seed = s.seed});
            std::vector<std::int32_t> positions;
            for (index_t t = 0; t < tokens; ++t) positions.push_back(static_cast<std::int32_t>(first + t));
            for (bool const causal : {true, false}) {
                attend_options o;
                o.causal               = causal;
                o.q_positions          = positions.data();
                std::string const what = detail::say("tokens", tokens, "from position", first);
                visible::routed_summaries const summaries{.rows = rows, .block_size = block_size, .window = 1};
                detail::expect_definition(r, what, policy, s, p, o,
                                          detail::whole(p, visible::routed_blocks{rows, block_size}));
                detail::expect_definition(r, what + " summaries", policy, s, p, o, detail::whole(p, summaries));
            }
        }
    return r;
}

} // namespace butterfly::testing
