// SPDX-License-Identifier: MIT
// The tools that hold everything else must themselves be able to fail.
#include <butterfly/backend/scalar.hpp>
#include <butterfly/testing/laws/structure.hpp>
#include <butterfly/testing/laws/values.hpp>

#include "support/catch.hpp"

namespace bf = butterfly;
namespace bt = butterfly::testing;

namespace {

constexpr float broken = std::numeric_limits<float>::quiet_NaN();
constexpr float inf    = std::numeric_limits<float>::infinity();

/// scalar with a mistake in its output.
struct wrong_by : bf::backend::scalar {
    float error = 0.0F;
};

void run(wrong_by const& policy, std::span<bf::problem const> problems) {
    run(static_cast<bf::backend::scalar const&>(policy), problems);
    for (bf::problem const& p : problems)
        if (p.out.type == bf::element_type::f32 && p.tokens() > 0)
            bf::host_pointer<float>(p.out.memory)[0] += policy.error;
}

} // namespace

TEST_CASE("a comparison names the worst element", "[testing]") {
    auto p            = bt::make_problem({.heads = 2, .tokens = 4, .head_dim = 8, .seed = 5});
    auto const wanted = bt::evaluate(p.q.view(), p.out.view(), {}, bt::detail::whole(p));
    bf::attend(bt::oracle{}, p.q.view(), p.out.view(), {}, bt::detail::whole(p));
    REQUIRE(bt::compare(p.out.view(), wanted).ok);
    REQUIRE(bt::compare(p.out.view(), wanted).ratio < 1.0);

    p.out.at(0, 3, 1) += 1e-3F;
    p.out.at(1, 2, 5) += 0.5F;
    bt::comparison const c = bt::compare(p.out.view(), wanted);
    REQUIRE_FALSE(c.ok);
    REQUIRE(c.head == 1);
    REQUIRE(c.token == 2);
    REQUIRE(c.channel == 5);
    REQUIRE(c.ratio > 1e4);
    REQUIRE(c.text().find("head 1 token 2 channel 5: got ") == 0);
    REQUIRE_FALSE(bt::compare(p.out.view().slice(0, 3), wanted).ok); // another shape
}

TEST_CASE("finite and not finite never agree", "[testing]") {
    auto const admits = [](double got, double wanted) {
        bt::comparison c;
        c.admit(0, 0, 0, got, wanted, 1.0);
        return c.ok;
    };
    REQUIRE(admits(1.0, 1.5));
    REQUIRE_FALSE(admits(1.0, 2.5));
    REQUIRE_FALSE(admits(broken, 1.0));
    REQUIRE_FALSE(admits(1.0, broken));
    REQUIRE_FALSE(admits(inf, 1.0));
    REQUIRE_FALSE(admits(-inf, inf));
    REQUIRE(admits(inf, inf));
    REQUIRE(admits(broken, broken));
    REQUIRE(admits(broken, inf)); // both are lost

    bt::comparison lse;
    lse.admit(0, 0, -1, -inf, -inf, 1.0);
    REQUIRE(lse.ok);
    lse.admit(0, 0, -1, broken, -inf, 1.0);
    REQUIRE_FALSE(lse.ok);
}

TEST_CASE("bits are compared as bits", "[testing]") {
    float const a[] = {0.0F, broken, 1.0F}, b[] = {-0.0F, broken, 1.0F};
    auto const view = [](float const* x) { return bf::heads_view<float const>(x, {1, 1, 3}); };
    REQUIRE(bt::compare_bits(view(a), view(a)).ok);
    bt::comparison const c = bt::compare_bits(view(a), view(b));
    REQUIRE_FALSE(c.ok);
    REQUIRE(c.channel == 0);
}

TEST_CASE("laws fail where a backend is wrong", "[testing]") {
    REQUIRE(bt::shared_heads_equal_repeated_heads(wrong_by{}, {}).ok);
    wrong_by policy;
    policy.error         = 1e-4F;
    bt::report const law = bt::shared_heads_equal_repeated_heads(policy, {});
    REQUIRE_FALSE(law.ok);
    REQUIRE(law.text.find("head 0 token 0 channel 0") != std::string::npos);
    REQUIRE_FALSE(bt::empty_rows_are_zero(policy, {}).ok);
    policy.error = broken;
    REQUIRE_FALSE(bt::sparse_has_a_dense_limit(policy, {}).ok);
    REQUIRE_FALSE(bt::hidden_slots_are_never_felt(policy, {}).ok);
}

TEST_CASE("the oracle declines what it has no definition of", "[testing]") {
    struct mine : bf::visible::interval {
        [[nodiscard]] bf::visibility_description describe() const noexcept { return {}; }
    };
    auto p = bt::make_problem({.tokens = 2, .head_dim = 2});
    REQUIRE_THROWS_AS(bf::attend(bt::oracle{}, p.q.view(), p.out.view(), {}, bf::pool(p.k.view(), p.v.view(), mine{})),
                      bf::backend_error);
}

TEST_CASE("tolerances are tight enough to notice one wrong weight", "[testing]") {
    // A key too many or too few among hundreds is a thousand times what is allowed.
    auto p =
        bt::make_problem({.tokens = 1, .keys = 300, .head_dim = 16, .seed = 8, .values = bt::distribution::uniform});
    auto const wanted    = bt::evaluate(p.q.view(), p.out.view(), bt::detail::at_end(p), bt::detail::whole(p));
    bf::attend_options o = bt::detail::at_end(p);
    bf::attend(bf::backend::scalar{}, p.q.view(), p.out.view(), o,
               bt::detail::whole(p, bf::visible::exact_window(299)));
    REQUIRE(bt::compare(p.out.view(), wanted).ratio > 100.0);
}

// What rounding queries may do is worked out from the data, so that it is a bound and yet close to what happens.
TEST_CASE("rounding queries to bf16 moves a row by no more than is said", "[testing]") {
    double closest = 0.0; // to the bound, over all rows
    for (auto const values : {bf::testing::distribution::heavy_tailed, bf::testing::distribution::normal,
                              bf::testing::distribution::peaked})
        for (float const scale : {0.125F, 2.0F})
            for (bool const sink : {false, true}) {
                auto p = bf::testing::make_problem<float, bf::bfloat16>(
                    {.heads = 2, .tokens = 20, .keys = 40, .head_dim = 32, .seed = 8, .values = values});
                std::vector<float> const sinks{1.0F, -2.0F};
                bf::attend_options o{.scale = scale, .q_position = 20};
                if (sink) o.sink_logits = sinks.data();
                bf::pool const keys(p.k.view(), p.v.view(), bf::visible::causal_prefix());
                bf::testing::attention const wanted = bf::testing::evaluate(p.q.view(), p.out.view(), o, keys);
                for (bf::index_t h = 0; h < 2; ++h)
                    for (bf::index_t t = 0; t < 20; ++t)
                        for (float& x : p.q.view().row(h, t)) x = bf::bfloat16(x);
                bf::testing::attention const moved = bf::testing::evaluate(p.q.view(), p.out.view(), o, keys);
                for (std::size_t i = 0; i < wanted.out.size(); ++i) {
                    double const by = std::abs(moved.out[i] - wanted.out[i]);
                    REQUIRE(by <= wanted.rounded[i] + 1e-14);
                    if (wanted.rounded[i] > 1e-6) closest = std::max(closest, by / wanted.rounded[i]);
                }
                for (std::size_t i = 0; i < wanted.lse.size(); ++i)
                    REQUIRE(std::abs(moved.lse[i] - wanted.lse[i]) <= wanted.rounded_lse[i] + 1e-14);
            }
    REQUIRE(closest > 0.1);

    auto const exact = bf::testing::make_problem({.heads = 1, .tokens = 3, .head_dim = 8});
    auto const none  = bf::testing::evaluate(exact.q.view(), exact.out.view(), {},
                                             bf::pool(exact.k.view(), exact.v.view(), bf::visible::causal_prefix()));
    for (double const x : none.rounded) REQUIRE(x == 0.0);
}

namespace {

/// How far a call that is wrong is from what is allowed, over the worst element.
template <bf::element KV>
double wrong_by_times(bf::index_t keys, bf::attend_options const& o, bf::index_t window) {
    auto p = bt::make_problem<bf::bfloat16, KV>(
        {.tokens = 1, .keys = keys, .head_dim = 64, .seed = 9, .values = bt::distribution::normal});
    auto const wanted      = bt::evaluate(p.q.view(), p.out.view(), bt::detail::at_end(p), bt::detail::whole(p));
    bf::attend_options own = bt::detail::at_end(p);
    own.scale *= o.scale;
    bf::attend(bf::backend::scalar{}, p.q.view(), p.out.view(), own,
               bt::detail::whole(p, bf::visible::exact_window(window)));
    return bt::compare(p.out.view(), wanted).ratio;
}

template <bf::element KV>
void expect_noticed() {
    for (bf::index_t const keys : {300, 4096}) {
        CAPTURE(bf::name_of(bf::element_type_of<KV>), keys);
        REQUIRE(wrong_by_times<KV>(keys, {.scale = 1.0F}, keys) < 1.0);
        REQUIRE(wrong_by_times<KV>(keys, {.scale = 1.0F}, keys - keys / 10) > 1.0); // the first tenth is missing
        REQUIRE(wrong_by_times<KV>(keys, {.scale = 1.1F}, keys) > 1.0);
        REQUIRE(wrong_by_times<KV>(keys, {.scale = 0.5F}, keys) > 1.0);
    }
}

} // namespace

TEST_CASE("a wrong kernel is noticed in every storage type, over few and many keys", "[testing]") {
    expect_noticed<float>();
    expect_noticed<bf::float16>();
    expect_noticed<bf::bfloat16>();
}
