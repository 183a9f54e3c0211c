// SPDX-License-Identifier: MIT

// Units that round queries and weights to bfloat16, where the rounding is known: queries that are bfloat16 already are
// not rounded, and what is left of the error is that of the weights.

#include <butterfly/backend/simd.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"
#include "support/sweep.hpp"

namespace bf = butterfly;

namespace {

using bf::backend::bf16_unit;

/// The row of the tolerance table for queries that are not rounded.
bf::testing::tolerance exact_queries() {
    bf::testing::tolerance t = bf::testing::tolerance_of_bf16_units();
    t.queries                = 0.0;
    return t;
}

} // namespace

TEST_CASE("a bf16 unit rounds queries and weights and nothing else", "[backend]") {
    for (bf16_unit const unit : {bf16_unit::dot, bf16_unit::tile, bf16_unit::emulated}) {
        if (!available(unit)) continue;
        bf::backend::simd<> const cpu{.bf16 = unit};
        for (bf::index_t const tokens : {1, 2, 3, 5, 40})
            for (bf::index_t const group : {1, 2, 3, 4, 7})
                for (bf::index_t const head_dim : {8, 33, 64, 130}) {
                    if (test::short_sweep() && (tokens == 2 || tokens == 5 || group % 2 == 0 || head_dim == 8))
                        continue;
                    CAPTURE(name_of(unit), tokens, group, head_dim);
                    auto p = bf::testing::make_problem<bf::bfloat16, bf::bfloat16>(
                        {.heads    = 2 * group,
                         .kv_heads = 2,
                         .tokens   = tokens,
                         .keys     = 300,
                         .head_dim = head_dim,
                         .seed     = static_cast<std::uint64_t>(tokens * 100 + group)});
                    bf::attend_options const o{.scale = 0.125F, .q_position = 300 - tokens};
                    auto const wanted = bf::testing::evaluate(
                        p.q.view(), p.out.view(), o, bf::pool(p.k.view(), p.v.view(), bf::visible::causal_prefix()));
                    bf::dense_sdpa(cpu, p.q.view(), p.k.view(), p.v.view(), p.out.view(), o);
                    REQUIRE(bf::testing::compare(p.out.view(), wanted, exact_queries()));
                }
    }
}

TEST_CASE("the unit that is asked for is the one that multiplies", "[backend]") {
    for (bf::index_t const tokens : {1, 40}) { // both kernel classes
        auto p = bf::testing::make_problem<float, bf::bfloat16>(
            {.heads = 4, .kv_heads = 1, .tokens = tokens, .keys = 500, .head_dim = 64});
        auto const sees = bf::visible::causal_prefix();
        bf::attend_options const o{.q_position = 500 - tokens};
        auto const wanted = bf::testing::evaluate(p.q.view(), p.out.view(), o, bf::pool(p.k.view(), p.v.view(), sees));
        for (bf16_unit const unit : {bf16_unit::fma, bf16_unit::dot, bf16_unit::tile, bf16_unit::emulated}) {
            if (!available(unit)) continue;
            CAPTURE(name_of(unit), tokens);
            bf::dense_sdpa(bf::backend::simd<>{.bf16 = unit}, p.q.view(), p.k.view(), p.v.view(), p.out.view(), o);
            REQUIRE(bf::testing::compare(p.out.view(), wanted, bf::testing::tolerance_of_bf16_units()));
            bool const rounds  = unit == bf16_unit::dot || (unit != bf16_unit::fma && tokens > 1);
            bool const widened = bf::testing::compare(p.out.view(), wanted, bf::element_type::f32).ok;
            REQUIRE(widened != rounds);
        }
    }
}

// Queries are packed for the codec of a pool's keys, and columns put in order for that of its values.
TEST_CASE("pools of several storages stand in one call", "[backend]") {
    for (bf16_unit const unit : {bf16_unit::fma, bf16_unit::dot, bf16_unit::tile, bf16_unit::emulated}) {
        if (!available(unit)) continue;
        for (bf::index_t const tokens : {1, 3, 40}) {
            CAPTURE(name_of(unit), tokens);
            bf::index_t const keys = 100;
            bf::testing::problem_options const shape{
                .heads = 6, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 40, .value_dim = 72};
            auto p = bf::testing::make_problem<float, bf::bfloat16>(shape);
            auto f = bf::testing::make_problem(shape);
            bf::attend_options const o{.scale = 0.125F, .q_position = 2 * keys};
            auto const sees = bf::visible::causal_prefix();
            bf::pool const a(p.k.view(), f.v.view(), sees);
            bf::pool const b(f.k.view(), p.v.view(), sees);
            bf::pool const c(p.k.view(), p.v.view(), sees);
            bf::pool const d(f.k.view(), f.v.view(), sees);
            auto const wanted = bf::testing::evaluate(p.q.view(), p.out.view(), o, c, d, a, b, c);
            bf::attend(bf::backend::simd<>{.bf16 = unit}, p.q.view(), p.out.view(), o, c, d, a, b, c);
            REQUIRE(bf::testing::compare(p.out.view(), wanted, bf::testing::tolerance_of_bf16_units()));
        }
    }
}
