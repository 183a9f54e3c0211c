// SPDX-License-Identifier: MIT
#pragma once

// Laws about options: each alone and all together are what the definition says, and the workspace is what was asked
// for.

#include <butterfly/testing/laws/law.hpp>

#include <numeric>

namespace butterfly::testing {
namespace detail {

/// The arrays options point to, for one shape, at random.
struct option_arrays {
    std::vector<float> sinks, slopes, mask_slopes, log_weights, mask;
    std::vector<float16> half_mask;
    std::vector<std::int32_t> positions;

    option_arrays(random draws, heads_shape q, index_t keys) {
        for (index_t h = 0; h < q.heads; ++h) {
            sinks.push_back(static_cast<float>(3.0 * draws.normal()));
            slopes.push_back(static_cast<float>(0.1 * draws.normal()));
            mask_slopes.push_back(static_cast<float>(draws.normal()));
        }
        for (index_t j = 0; j < keys; ++j) log_weights.push_back(static_cast<float>(draws.normal()));
        for (index_t t = 0; t < q.tokens; ++t)
            positions.push_back(static_cast<std::int32_t>(draws.between(-1, keys + 3)));
        // [heads, tokens, keys] with a gap after each row; a stripe is hidden for all, some keys for some.
        index_t const stripe = draws.below(keys + 1);
        for (index_t i = 0; i < q.heads * q.tokens; ++i)
            for (index_t j = 0; j < keys + 3; ++j) {
                bool const hidden = (j >= stripe && j < stripe + 70) || draws.below(5) == 0;
                mask.push_back(j >= keys ? gap<float>()
                               : hidden  ? -std::numeric_limits<float>::infinity()
                                         : static_cast<float>(float16(static_cast<float>(draws.normal()))));
            }
        for (float const x : mask) half_mask.push_back(float16(x));
    }

    [[nodiscard]] additive_mask all_heads(index_t tokens, index_t keys) const {
        additive_mask m;
        m.data         = mask.data();
        m.heads        = static_cast<index_t>(sinks.size());
        m.head_stride  = tokens * (keys + 3);
        m.token_stride = keys + 3;
        return m;
    }
};

} // namespace detail

/// Each option alone, for one query and for many.
template <class Policy, element KV = float>
[[nodiscard]] report options_match_definition(Policy const& policy, sweep const& s) {
    report r;
    random draws(s.seed, 501);
    for (index_t const tokens : {1, 3, 30})
        for (index_t const keys : {50, 170}) {
            auto p = make_problem<float, KV>(
                {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 21, .seed = draws.bits()});
            detail::option_arrays const arrays(draws, p.q.shape(), keys);
            attend_options const plain = detail::at_end(p);
            auto const with            = [&](char const* name, auto const& set, memory_ref weights = {}) {
                attend_options o = plain;
                set(o);
                detail::expect_definition(r, name + detail::say(": tokens", tokens, "keys", keys), policy, s, p, o,
                                                     pool(p.k.view(), p.v.view(), visible::causal_prefix(), weights));
            };
            with("nothing", [](attend_options&) {});
            with("default scale", [](attend_options& o) { o.scale = 0.0F; });
            with("scale", [](attend_options& o) { o.scale = 0.7F; });
            with("negative scale", [](attend_options& o) { o.scale = -0.3F; });
            with("not causal", [](attend_options& o) { o.causal = false; });
            with("soft_cap", [](attend_options& o) { o.soft_cap = 2.5F; });
            with("large soft_cap", [](attend_options& o) { o.soft_cap = 1e6F; }); // as good as none
            with("q_position", [](attend_options& o) { o.q_position = 7; });
            with("q_position past the keys", [&](attend_options& o) { o.q_position = keys + 100; });
            with("q_positions", [&](attend_options& o) { o.q_positions = arrays.positions.data(); });
            with("sink_logits", [&](attend_options& o) { o.sink_logits = arrays.sinks.data(); });
            with("alibi_slopes", [&](attend_options& o) { o.alibi_slopes = arrays.slopes.data(); });
            with(
                "log_weights", [](attend_options&) {}, arrays.log_weights.data());
            with("mask", [&](attend_options& o) { o.mask = arrays.all_heads(tokens, keys); });
            with("mask of one head", [&](attend_options& o) {
                o.mask       = arrays.all_heads(tokens, keys);
                o.mask.heads = 1;
            });
            with("mask with slopes", [&](attend_options& o) {
                o.mask        = arrays.all_heads(tokens, keys);
                o.mask.slopes = arrays.mask_slopes.data();
            });
            with("mask of f16 with slopes", [&](attend_options& o) {
                o.mask        = arrays.all_heads(tokens, keys);
                o.mask.data   = arrays.half_mask.data();
                o.mask.type   = element_type::f16;
                o.mask.slopes = arrays.mask_slopes.data();
            });
            with("mask of one row for all tokens", [&](attend_options& o) {
                o.mask           = arrays.all_heads(tokens, keys);
                o.mask.per_token = false;
                o.causal         = false;
            });
        }
    return r;
}

/// Everything at random at once, without and with the output of lse, in all layouts.
template <class Policy, element KV = float>
[[nodiscard]] report random_calls_match_definition(Policy const& policy, sweep const& s) {
    report r;
    random draws(s.seed, 502);
    for (int i = 0; i < (s.brief ? 30 : 150); ++i) {
        index_t const kv_heads = draws.between(1, 3);
        index_t const tokens   = draws.below(3) == 0 ? draws.between(1, 70) : draws.between(1, 4);
        index_t const keys     = draws.between(1, 200);
        auto p                 = make_problem<float, KV>({.heads      = kv_heads * draws.between(1, 5),
                                                          .kv_heads   = kv_heads,
                                                          .tokens     = tokens,
                                                          .keys       = keys,
                                                          .head_dim   = draws.between(1, 70),
                                                          .value_dim  = draws.between(1, 70),
                                                          .seed       = draws.bits(),
                                                          .queries_in = draws.one_of(layouts),
                                                          .keys_in    = draws.one_of(layouts)});
        detail::option_arrays const arrays(draws, p.q.shape(), keys);
        auto const coin = [&] { return draws.below(3) == 0; };
        attend_options o;
        o.scale      = static_cast<float>(draws.uniform());
        o.causal     = !coin();
        o.soft_cap   = coin() ? static_cast<float>(1.0 + 20.0 * draws.uniform()) : 0.0F;
        o.q_position = draws.between(0, keys + 5);
        if (coin()) o.q_positions = arrays.positions.data();
        if (coin()) o.sink_logits = arrays.sinks.data();
        if (coin()) o.alibi_slopes = arrays.slopes.data();
        if (coin()) o.mask = arrays.all_heads(tokens, keys);
        if (coin()) o.mask.slopes = arrays.mask_slopes.data();
        memory_ref const weights = coin() ? memory_ref(arrays.log_weights.data()) : memory_ref();
        visible::interval const sees{.window = coin() ? draws.between(1, keys) : 0, .align = draws.between(1, 70)};
        std::string const what = detail::say("case", i, "tokens", tokens, "keys", keys);
        detail::expect_definition(r, what, policy, s, p, o, pool(p.k.view(), p.v.view(), sees, weights));

        tensor<float> const with_lse = p.out;
        attend(policy, p.q.view(), p.out.view(), o, pool(p.k.view(), p.v.view(), sees, weights));
        r.require(compare_bits(p.out.view(), with_lse.view()), what + ": asking for lse changed the output");
    }
    return r;
}

/// A workspace of exactly workspace_bytes, at any alignment, serves; nothing past it is touched and no bit changes.
template <class Policy, element KV = float>
[[nodiscard]] report workspace_is_exact(Policy const& policy, sweep const& s) {
    report r;
    constexpr std::size_t guard = 256;
    for (index_t const tokens : {1, 40})
        for (std::size_t const skip : {0, 1, 8, 63}) {
            auto p = make_problem<float, KV>(
                {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 333, .head_dim = 40, .seed = s.seed});
            auto const all   = detail::whole(p);
            attend_options o = detail::at_end(p);
            attend(policy, p.q.view(), p.out.view(), o, all);
            tensor<float> const wanted = p.out;

            auto const bound               = butterfly::make_problem(policy, p.q.view(), p.out.view(), o, all);
            butterfly::problem const asked = bound.problem();
            auto const bytes =
                static_cast<std::size_t>(workspace_bytes(policy, std::span<butterfly::problem const>(&asked, 1)));
            std::vector<std::byte> memory(skip + bytes + guard, std::byte{0xa5});
            o.workspace = std::span(memory).subspan(skip, bytes);
            attend(policy, p.q.view(), p.out.view(), o, all);
            std::string const what = detail::say("tokens", tokens, "skip", static_cast<index_t>(skip));
            r.require(compare_bits(p.out.view(), wanted.view()), what);
            bool intact = true;
            for (std::size_t i = 0; i < skip; ++i) intact &= memory[i] == std::byte{0xa5};
            for (std::size_t i = skip + bytes; i < memory.size(); ++i) intact &= memory[i] == std::byte{0xa5};
            r.require(intact, what + ": the call wrote outside its workspace");
        }
    return r;
}

} // namespace butterfly::testing
