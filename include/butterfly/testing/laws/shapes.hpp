// SPDX-License-Identifier: MIT
#pragma once

// Laws about sizes: whatever the head_dim, the group, the length or the element types, a call is its definition.

#include <butterfly/sdpa/graph_rows.hpp>
#include <butterfly/testing/laws/law.hpp>

#include <array>

namespace butterfly::testing {

/// head_dims around every vector width, keys and values alike and different, and the largest in use, 576 and 512.
template <class Policy, element KV = float>
[[nodiscard]] report head_dims_match_definition(Policy const& policy, sweep const& s) {
    static constexpr index_t dims[] = {1, 3, 7, 8, 15, 16, 17, 33, 64, 80, 96, 112, 128, 192, 256};
    report r;
    random draws(s.seed, 101);
    for (index_t const dk : dims) {
        for (index_t const dv : {dk, draws.one_of(dims)}) {
            for (index_t const tokens : {index_t{1}, index_t{19}}) {
                index_t const kv_heads = draws.between(1, 2);
                auto p                 = make_problem<float, KV>({.heads      = kv_heads * draws.between(1, 3),
                                                                  .kv_heads   = kv_heads,
                                                                  .tokens     = tokens,
                                                                  .keys       = tokens + draws.between(0, 70),
                                                                  .head_dim   = dk,
                                                                  .value_dim  = dv,
                                                                  .seed       = draws.bits(),
                                                                  .queries_in = draws.one_of(layouts),
                                                                  .keys_in    = draws.one_of(layouts)});
                detail::expect_definition(r, detail::say("head_dim", dk, "value_dim", dv, "tokens", tokens), policy, s,
                                          p, detail::at_end(p), detail::whole(p));
            }
            if (s.brief) break;
        }
    }
    for (index_t const tokens : {1, 9}) {
        auto p = make_problem<float, KV>(
            {.heads = 3, .tokens = tokens, .keys = 70, .head_dim = 576, .value_dim = 512, .seed = draws.bits()});
        detail::expect_definition(r, detail::say("head_dim", 576, "value_dim", 512, "tokens", tokens), policy, s, p,
                                  detail::at_end(p), detail::whole(p));
    }
    return r;
}

/// Groups of query heads that share a key head.
template <class Policy, element KV = float>
[[nodiscard]] report groups_match_definition(Policy const& policy, sweep const& s) {
    report r;
    random draws(s.seed, 102);
    for (index_t const group : {1, 2, 3, 4, 5, 6, 7, 8, 16, 71}) {
        for (index_t const tokens : {1, 2, 3, 5, 20}) {
            if (s.brief && (tokens == 2 || tokens == 5)) continue;
            if (group == 71 && tokens == 20) continue;
            index_t const kv_heads = draws.between(1, group < 16 ? 2 : 1);
            auto p                 = make_problem<float, KV>({.heads    = group * kv_heads,
                                                              .kv_heads = kv_heads,
                                                              .tokens   = tokens,
                                                              .keys     = tokens + draws.between(0, 80),
                                                              .head_dim = draws.between(1, 40),
                                                              .seed     = draws.bits()});
            detail::expect_definition(r, detail::say("group", group, "tokens", tokens), policy, s, p, detail::at_end(p),
                                      detail::whole(p));
        }
    }
    return r;
}

/// Lengths around the sizes of tiles: prefill, the last tokens of a sequence, and keys that queries do not reach.
template <class Policy, element KV = float>
[[nodiscard]] report lengths_match_definition(Policy const& policy, sweep const& s) {
    report r;
    random draws(s.seed, 103);
    for (index_t const keys : {0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 130, 300}) {
        for (index_t const tokens : {index_t{1}, index_t{3}, index_t{18}, keys}) {
            if (s.brief && (tokens == 3 || (tokens == keys && keys > 130))) continue;
            problem_options const shape{.heads    = 2,
                                        .kv_heads = draws.between(1, 2),
                                        .tokens   = tokens,
                                        .keys     = keys,
                                        .head_dim = draws.between(1, 24),
                                        .seed     = draws.bits(),
                                        .no_keys  = true};
            auto p                 = make_problem<float, KV>(shape);
            std::string const what = detail::say("keys", keys, "tokens", tokens);
            attend_options o       = detail::at_end(p);
            detail::expect_definition(r, what, policy, s, p, o, detail::whole(p));
            o.q_position = 0;
            detail::expect_definition(r, what + " from the start", policy, s, p, o, detail::whole(p));
            o.causal = false;
            detail::expect_definition(r, what + " not causal", policy, s, p, o, detail::whole(p));
        }
    }
    return r;
}

/// Each kind of visibility with parameters at random.
template <class Policy, element KV = float>
[[nodiscard]] report visibilities_match_definition(Policy const& policy, sweep const& s) {
    report r;
    random draws(s.seed, 104);
    for (int i = 0; i < (s.brief ? 8 : 32); ++i) {
        index_t const kv_heads    = draws.between(1, 2);
        index_t const heads       = kv_heads * draws.between(1, 3);
        index_t const tokens      = draws.one_of({1, 4, 40, 90});
        index_t const keys        = tokens + draws.between(0, 150);
        index_t const bs          = draws.one_of({1, 5, 16, 64, 100});
        index_t const blocks      = butterfly::detail::ceil_div(keys, bs);
        index_t const row_heads[] = {1, kv_heads, heads};
        problem_options shape{.heads = heads, .kv_heads = kv_heads, .tokens = tokens, .keys = keys, .head_dim = 12};
        shape.seed = draws.bits();

        auto p           = make_problem<float, KV>(shape);
        attend_options o = detail::at_end(p);
        o.causal         = draws.below(4) != 0;
        o.edge_bias      = {0.5F, -0.25F, 1.5F, -2.0F};
        std::vector<std::int32_t> positions;
        for (index_t t = 0; t < tokens; ++t)
            positions.push_back(static_cast<std::int32_t>(draws.between(0, keys + 20)));
        if (draws.below(4) == 0) o.q_positions = positions.data();

        visible::interval const near{.window = draws.between(1, keys), .align = draws.one_of({1, 8, 48})};
        std::string what = detail::say("window", near.window, "align", near.align, "tokens", tokens, "keys", keys);
        detail::expect_definition(r, what, policy, s, p, o, detail::whole(p, near));

        visible::interval const before{
            .window = near.window, .align = near.align, .before = draws.between(1, 90), .after = draws.below(20)};
        what = detail::say("before", before.before, "after", before.after, "window", near.window, "tokens", tokens,
                           "keys", keys);
        detail::expect_definition(r, what, policy, s, p, o, detail::whole(p, before));

        detail::scattered_rule const rule;
        topology::topology_shape const nodes{.heads = draws.one_of(row_heads), .nodes = blocks};
        visible::routed_blocks const routed{topology::make_row_source(rule, nodes), bs};
        what = detail::say("routed blocks of", bs, "row heads", nodes.heads, "tokens", tokens, "keys", keys);
        detail::expect_definition(r, what, policy, s, p, o, detail::whole(p, routed));

        graph const g = detail::random_graph(draws, draws.one_of(row_heads), keys, draws.one_of({1, 7, 64, 90}));
        what          = detail::say("graph heads", g.shape().heads, "degree", g.shape().degree, "tokens", tokens);
        detail::expect_definition(r, what, policy, s, p, o, detail::whole(p, visible::graph_rows{g.view()}));

        // Slots are summaries of blocks: the queries stand far behind the last of them.
        shape.keys   = draws.between(1, 150);
        auto c       = make_problem<float, KV>(shape);
        o.q_position = draws.between(0, shape.keys * bs);
        for (std::int32_t& at : positions) at = static_cast<std::int32_t>(draws.between(0, shape.keys * bs));
        topology::topology_shape const summaries{.heads = nodes.heads, .nodes = shape.keys + 4 * tokens};
        visible::routed_summaries const compressed{.rows       = topology::make_row_source(rule, summaries),
                                                   .block_size = bs,
                                                   .window     = draws.between(1, 70),
                                                   .first_slot = draws.between(0, 2)};
        what = detail::say("summaries of", bs, "slots", shape.keys, "position", o.q_position, "tokens", tokens);
        detail::expect_definition(r, what, policy, s, c, o, detail::whole(c, compressed));
    }
    return r;
}

/// Contexts longer than any span a backend cuts keys into, for each kind of visibility, one pool and two.
template <class Policy, element KV = float>
[[nodiscard]] report long_contexts_match_definition(Policy const& policy, sweep const& s) {
    report r;
    index_t const keys = s.brief ? 4500 : 10000;
    random draws(s.seed, 106);
    for (index_t const tokens : {1, 2, s.brief ? 9 : 20}) {
        if (s.brief && tokens == 2) continue;
        auto p = make_problem<float, KV>(
            {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 8, .seed = draws.bits()});
        attend_options const o = detail::at_end(p);
        std::string const what = detail::say("tokens", tokens, "keys", keys);
        auto const far         = visible::exact_window(keys - 100);
        detail::expect_definition(r, "causal " + what, policy, s, p, o, detail::whole(p));
        detail::expect_definition(r, "window " + what, policy, s, p, o, detail::whole(p, far));
        detail::expect_definition(r, "two pools " + what, policy, s, p, o,
                                  detail::whole(p, visible::interval{.window = keys - 4100, .before = 4096}),
                                  detail::whole(p, far));

        detail::everything_rule const every;
        detail::scattered_rule const few;
        topology::topology_shape const blocks{.heads = 1, .nodes = butterfly::detail::ceil_div(keys, 100)};
        visible::routed_blocks const all{topology::make_row_source(every, blocks), 100};
        visible::routed_blocks const some{topology::make_row_source(few, blocks), 100};
        detail::expect_definition(r, "all blocks " + what, policy, s, p, o, detail::whole(p, all));
        detail::expect_definition(r, "few blocks " + what, policy, s, p, o, detail::whole(p, some));

        topology::topology_shape const pairs{.heads = 1, .nodes = keys + 1};
        visible::routed_summaries const summaries{
            .rows = topology::make_row_source(every, pairs), .block_size = 2, .window = 50};
        attend_options behind = o;
        behind.q_position     = 2 * keys;
        detail::expect_definition(r, "summaries " + what, policy, s, p, behind, detail::whole(p, summaries));
    }
    return r;
}

/// Inputs of each distribution: outliers, cancellation, few keys with all the weight.
template <class Policy, element KV = float>
[[nodiscard]] report distributions_match_definition(Policy const& policy, sweep const& s) {
    report r;
    for (distribution const values : {distribution::heavy_tailed, distribution::normal, distribution::uniform,
                                      distribution::positive, distribution::peaked})
        for (std::uint64_t i = 0; i < (s.brief ? 1U : 8U); ++i)
            for (index_t const tokens : {1, 33}) {
                auto p           = make_problem<float, KV>({.heads    = 2,
                                                            .kv_heads = 1,
                                                            .tokens   = tokens,
                                                            .keys     = 200,
                                                            .head_dim = 64,
                                                            .seed     = s.seed * 1000 + i,
                                                            .values   = values});
                attend_options o = detail::at_end(p);
                detail::expect_definition(r,
                                          detail::say("distribution", static_cast<index_t>(values), "tokens", tokens),
                                          policy, s, p, o, detail::whole(p));
                o.scale = 8.0F; // logits of several hundred
                detail::expect_definition(
                    r, detail::say("steep distribution", static_cast<index_t>(values), "tokens", tokens), policy, s, p,
                    o, detail::whole(p));
            }
    return r;
}

namespace detail {

template <element Q, element KV, element O, class Policy>
void expect_types(report& r, Policy const& policy, sweep const& s, random& draws) {
    for (index_t const tokens : {1, 35}) {
        auto p                 = make_problem<Q, KV, O>({.heads      = 4,
                                                         .kv_heads   = 2,
                                                         .tokens     = tokens,
                                                         .keys       = 90,
                                                         .head_dim   = draws.between(1, 70),
                                                         .value_dim  = draws.between(1, 70),
                                                         .seed       = draws.bits(),
                                                         .queries_in = draws.one_of(layouts),
                                                         .keys_in    = draws.one_of(layouts)});
        std::string const what = std::string("q ") + butterfly::name_of(element_type_of<Q>) + ", k and v " +
                                 butterfly::name_of(element_type_of<KV>) + ", out " +
                                 butterfly::name_of(element_type_of<O>) + ", " + say("tokens", tokens);
        // The definition of the same values in f32: two-byte storage is storage, no other call.
        tensor<float> const q  = widened(p.q);
        tensor<float> const k  = widened(p.k);
        tensor<float> const v  = widened(p.v);
        attend_options const o = at_end(p);
        attention wanted = evaluate(q.view(), p.out.view(), o, pool(k.view(), v.view(), visible::causal_prefix()));
        attention same   = evaluate(p.q.view(), p.out.view(), o, whole(p)); // knows what the call may round
        wanted.storage   = same.storage;
        std::swap(wanted.rounded, same.rounded);
        std::swap(wanted.rounded_lse, same.rounded_lse);
        expect(r, what, policy, s, wanted, p, o, whole(p));
    }
}

} // namespace detail

/// f32, f16 and bf16 for queries, for keys and values, and for the output, independently: the same as f32 of the
/// rounded values.
template <class Policy>
[[nodiscard]] report element_types_are_independent(Policy const& policy, sweep const& s) {
    report r;
    random draws(s.seed, 105);
    auto const outputs = [&]<class Q, class KV>(Q, KV) {
        detail::expect_types<Q, KV, float>(r, policy, s, draws);
        detail::expect_types<Q, KV, float16>(r, policy, s, draws);
        detail::expect_types<Q, KV, bfloat16>(r, policy, s, draws);
    };
    auto const keys = [&]<class Q>(Q q) {
        outputs(q, float{});
        outputs(q, float16{});
        outputs(q, bfloat16{});
    };
    keys(float{});
    keys(float16{});
    keys(bfloat16{});
    return r;
}

} // namespace butterfly::testing
