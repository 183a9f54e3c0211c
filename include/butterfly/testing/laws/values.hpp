// SPDX-License-Identifier: MIT
#pragma once

// Laws about values that are not finite: they reach exactly the rows that see them.

#include <butterfly/sdpa/graph_rows.hpp>
#include <butterfly/testing/laws/law.hpp>

namespace butterfly::testing {

/// A NaN or an infinity in a key, a value or a query reaches the rows that see it and no other.
template <class Policy, element KV = float>
[[nodiscard]] report non_finite_values_reach_who_sees_them(Policy const& policy, sweep const& s) {
    report r;
    constexpr float inf = std::numeric_limits<float>::infinity();
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    for (index_t const tokens : {1, 3, 80}) {
        index_t const keys = tokens + 20;
        graph const g      = detail::random_graph(random(s.seed, 601), 1, keys, 12);
        detail::scattered_rule const rule;
        visible::routed_blocks const routed{
            topology::make_row_source(rule, {.heads = 1, .nodes = butterfly::detail::ceil_div(keys, 8)}), 8};
        for (index_t const at : {index_t{0}, index_t{13}, keys / 2, keys - 1}) {
            if (s.brief && at != 13 && at != keys - 1) continue;
            for (float const bad : {nan, inf, -inf})
                for (int where = 0; where < 3; ++where) {
                    auto p = make_problem<float, KV>(
                        {.heads    = 4,
                         .kv_heads = 2,
                         .tokens   = tokens,
                         .keys     = keys,
                         .head_dim = at == 13 ? 64 : 17, // rows that kernels may read where they are, and others
                         .seed     = s.seed});
                    if (where == 0) p.k.at(1, at, 3) = KV(bad);
                    if (where == 1) p.v.at(1, at, 16) = KV(bad);
                    if (where == 2) p.q.at(3, at % tokens, 5) = bad;
                    std::string const what =
                        detail::say("tokens", tokens, "at", at, "where", where) + " " + std::to_string(bad);
                    attend_options o = detail::at_end(p);
                    detail::expect_definition(r, "causal " + what, policy, s, p, o, detail::whole(p));
                    detail::expect_definition(r, "window " + what, policy, s, p, o,
                                              detail::whole(p, visible::exact_window(9)));
                    if (s.brief && where == 2) continue;
                    detail::expect_definition(r, "routed " + what, policy, s, p, o, detail::whole(p, routed));
                    detail::expect_definition(r, "graph " + what, policy, s, p, o,
                                              detail::whole(p, visible::graph_rows{g.view()}));
                }
        }
    }
    return r;
}

/// What stands in hidden slots is never felt: after the query, before the window, masked, weightless, of other heads.
template <class Policy, element KV = float>
[[nodiscard]] report hidden_slots_are_never_felt(Policy const& policy, sweep const& s) {
    report r;
    constexpr float inf    = std::numeric_limits<float>::infinity();
    constexpr float nan    = std::numeric_limits<float>::quiet_NaN();
    constexpr index_t keys = 150;
    for (index_t const tokens : {1, 3, 40})
        for (float const bad : {nan, inf, -inf}) {
            auto const clean = make_problem<float, KV>(
                {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 11, .seed = s.seed});
            // Makes the slots for which `hidden` holds bad, and expects what the clean ones give.
            auto const check = [&](char const* name, attend_options const& o, visible::interval sees,
                                   auto const& hidden, memory_ref weights = {}) {
                auto p = clean;
                for (index_t h = 0; h < 2; ++h)
                    for (index_t j = 0; j < keys; ++j)
                        for (index_t d = 0; d < 11; ++d)
                            if (hidden(j)) p.k.at(h, j, d) = p.v.at(h, j, d) = KV(bad);
                attention const wanted =
                    evaluate(clean.q.view(), clean.out.view(), o, pool(clean.k.view(), clean.v.view(), sees, weights));
                detail::expect(r, name + detail::say(" tokens", tokens) + " " + std::to_string(bad), policy, s, wanted,
                               p, o, pool(p.k.view(), p.v.view(), sees, weights));
            };
            attend_options o;
            o.scale      = clean.scale;
            o.q_position = 70;
            check("future", o, {}, [&](index_t j) { return j >= 70 + tokens; });
            check("past the window", o, visible::exact_window(20), [](index_t j) { return j < 70 - 19; });
            check("outside the first", o, {.window = 9, .before = 5}, [](index_t j) { return j >= 5; });

            std::vector<float> mask(static_cast<std::size_t>(keys));
            for (index_t j = 0; j < keys; ++j)
                mask[static_cast<std::size_t>(j)] = j % 3 == 0 || (j > 60 && j < 140) ? -inf : 0.5F;
            auto const masked = [](index_t j) { return j % 3 == 0 || (j > 60 && j < 140); };
            check("weightless", o, {}, masked, mask.data());
            o.mask.data      = mask.data();
            o.mask.per_token = false;
            check("masked", o, {}, masked);
            o.soft_cap = 3.0F;
            check("masked under a cap", o, {}, masked);
        }
    return r;
}

} // namespace butterfly::testing
