// SPDX-License-Identifier: MIT
#include <butterfly/backend/host/merge_ops.hpp>
#include <butterfly/backend/scalar.hpp>
#include <butterfly/sdpa/merge.hpp>
#include <butterfly/testing/compare.hpp>

#include "support/catch.hpp"
#include "support/npy.hpp"
#include "support/on_threads.hpp"

#include <thread>

namespace bf = butterfly;

namespace {

using bf::index_t;
using bf::testing::tensor;

constexpr float inf = std::numeric_limits<float>::infinity();
bf::backend::scalar const cpu;

/// An attention over some keys, with its lse.
struct part {
    tensor<float> out;
    std::vector<float> lse;

    explicit part(bf::heads_shape s) : out(s), lse(static_cast<std::size_t>(s.heads * s.tokens)) {}
    [[nodiscard]] auto view() const { return bf::attention_part(out.view(), lse.data()); }
};

constexpr bf::heads_shape extents{3, 5, 70};

/// Attention over the keys [first, end) of a problem.
part over(bf::testing::seeded_problem<> const& p, index_t first, index_t end) {
    part r(extents);
    bf::attend_options o;
    o.causal = false;
    o.lse    = r.lse.data();
    bf::attend(cpu, p.q.view(), r.out.view(), o,
               bf::pool(p.k.view().slice(first, end - first), p.v.view().slice(first, end - first),
                        bf::visible::causal_prefix()));
    return r;
}

part merged(part const& a, part const& b) {
    part r(extents);
    bf::merge(cpu, a.view(), b.view(), r.out.view(), {.lse = r.lse.data()});
    return r;
}

void require_same(part const& a, part const& b) {
    bf::testing::comparison const c = bf::testing::compare(a.out.view(), b.out.view(), 4e-6);
    INFO(c.text());
    REQUIRE(c.ok);
    for (std::size_t i = 0; i < a.lse.size(); ++i)
        REQUIRE((a.lse[i] == b.lse[i] || std::abs(a.lse[i] - b.lse[i]) <= 1e-5F * (1.0F + std::abs(b.lse[i]))));
}

auto const problem = bf::testing::make_problem(
    {.heads = 3, .tokens = 5, .keys = 60, .head_dim = 70, .seed = 9, .values = bf::testing::distribution::normal});

} // namespace

TEST_CASE("a merge is one softmax over the union", "[sdpa]") {
    part const whole = over(problem, 0, 60);
    for (index_t const cut : {1, 7, 30, 59}) {
        part const m = merged(over(problem, 0, cut), over(problem, cut, 60));
        require_same(m, whole);
        bf::attend_options o;
        o.causal = false;
        auto const wanted =
            bf::testing::evaluate(problem.q.view(), problem.out.view(), o,
                                  bf::pool(problem.k.view(), problem.v.view(), bf::visible::causal_prefix()));
        REQUIRE(bf::testing::compare(m.out.view(), wanted).ok);
        REQUIRE(bf::testing::compare_lse(m.lse, wanted, bf::element_type::f32).ok);
    }
}

TEST_CASE("a merge is associative and commutative", "[sdpa]") {
    part const a = over(problem, 0, 10), b = over(problem, 10, 31), c = over(problem, 31, 60);
    require_same(merged(merged(a, b), c), merged(a, merged(b, c)));
    require_same(merged(a, b), merged(b, a));
}

TEST_CASE("an empty part is neutral whatever it holds, and two are empty", "[sdpa]") {
    part const a = over(problem, 0, 10);
    part empty(extents); // NaN everywhere, as a buffer nobody wrote
    std::fill(empty.lse.begin(), empty.lse.end(), -inf);
    for (part const& m : {merged(a, empty), merged(empty, a)}) {
        REQUIRE(bf::testing::compare_bits(m.out.view(), a.out.view()).ok);
        REQUIRE(m.lse == a.lse);
    }
    part const none = merged(empty, empty);
    for (float const x : none.lse) REQUIRE(x == -inf);
    for (index_t h = 0; h < 3; ++h)
        for (index_t t = 0; t < 5; ++t)
            for (float const x : none.out.view().row(h, t)) REQUIRE(x == 0.0F);
}

TEST_CASE("parts with logits far apart do not overflow", "[sdpa]") {
    part a = over(problem, 0, 10), b = over(problem, 10, 60);
    std::fill(a.lse.begin(), a.lse.end(), 5000.0F);
    std::fill(b.lse.begin(), b.lse.end(), -5000.0F);
    part const m = merged(a, b);
    REQUIRE(bf::testing::compare_bits(m.out.view(), a.out.view()).ok);
    REQUIRE(m.lse == a.lse);
}

TEST_CASE("a part whose weight underflows is felt where it is not finite", "[sdpa]") {
    part far = over(problem, 0, 10), near = over(problem, 10, 60);
    for (float& l : far.lse) l = near.lse[0] - 1000.0F;
    far.out.at(1, 2, 3) = std::numeric_limits<float>::quiet_NaN();
    part const both     = merged(far, near);
    REQUIRE(std::isnan(both.out.at(1, 2, 3)));
    REQUIRE(both.out.at(1, 2, 4) == near.out.at(1, 2, 4));
}

TEST_CASE("a NaN part makes its rows NaN and no other", "[sdpa]") {
    part a = over(problem, 0, 10), b = over(problem, 10, 60);
    part const clean = merged(a, b);
    a.lse[7]         = std::numeric_limits<float>::quiet_NaN(); // head 1, token 2
    for (part const& m : {merged(a, b), merged(b, a)})
        for (index_t h = 0; h < 3; ++h)
            for (index_t t = 0; t < 5; ++t) {
                float const x = m.out.at(h, t, 0);
                REQUIRE(std::isnan(x) == (h == 1 && t == 2));
                if (!(h == 1 && t == 2)) REQUIRE(std::abs(x - clean.out.at(h, t, 0)) < 1e-6F);
            }
}

TEST_CASE("a sink joins once, at the last merge", "[sdpa]") {
    std::vector<float> const sinks{0.5F, 4.0F, -30.0F};
    bf::attend_options o;
    o.causal      = false;
    o.sink_logits = sinks.data();
    auto const wanted =
        bf::testing::evaluate(problem.q.view(), problem.out.view(), o,
                              bf::pool(problem.k.view(), problem.v.view(), bf::visible::causal_prefix()));
    part const a = over(problem, 0, 25), b = over(problem, 25, 60);
    part m(extents);
    bf::merge(cpu, a.view(), b.view(), m.out.view(), {.lse = m.lse.data(), .sink_logits = sinks.data()});
    bf::testing::comparison const c = bf::testing::compare(m.out.view(), wanted);
    INFO(c.text());
    REQUIRE(c.ok);
    REQUIRE(bf::testing::compare_lse(m.lse, wanted, bf::element_type::f32).ok); // without the sink
}

TEST_CASE("a merge may write over its part, in any layout, type and on any thread", "[sdpa]") {
    part const a = over(problem, 0, 25), b = over(problem, 25, 60);
    part const wanted = merged(a, b);
    part in_place     = a;
    bf::merge(cpu, in_place.view(), b.view(), in_place.out.view(), {.lse = in_place.lse.data()});
    REQUIRE(bf::testing::compare_bits(in_place.out.view(), wanted.out.view()).ok);
    REQUIRE(in_place.lse == wanted.lse);

    tensor<bf::float16> half(extents, bf::testing::layout::interleaved);
    tensor<bf::bfloat16> out(extents, bf::testing::layout::odd_stride);
    for (index_t h = 0; h < 3; ++h)
        for (index_t t = 0; t < 5; ++t)
            for (index_t d = 0; d < 70; ++d) half.at(h, t, d) = bf::float16(b.out.at(h, t, d));
    bf::merge(cpu, a.view(), bf::attention_part(std::as_const(half).view(), b.lse.data()), out.view());
    REQUIRE(bf::testing::compare(out.view(), wanted.out.view(), 0.03).ok);
    REQUIRE(out.gaps_intact());

    part shared(extents);
    bf::meeting place;
    bf::testing::on_threads(3, [&](int i) {
        bf::backend::scalar const mine{.executor = bf::share{.thread = i, .threads = 3, .barrier = place}};
        bf::merge(mine, a.view(), b.view(), shared.out.view(), {.lse = shared.lse.data()});
    });
    REQUIRE(bf::testing::compare_bits(shared.out.view(), wanted.out.view()).ok);
    REQUIRE(shared.lse == wanted.lse);
}

TEST_CASE("merge refuses parts that disagree", "[sdpa]") {
    part const a(extents);
    part const other({3, 5, 64});
    tensor<float> out(extents);
    auto const message = [&](auto const& left, auto const& right) -> std::string {
        try {
            bf::merge(cpu, left, right, out.view());
        } catch (bf::shape_error const& e) {
            return e.what();
        }
        return "accepted";
    };
    REQUIRE(message(a.view(), other.view()) == "merge: b has head_dim 64, out has 70");
    REQUIRE(message(bf::attention_part(a.out.view(), nullptr), a.view()) ==
            "merge: the lse of a is null with shape [3, 5, 70]");
    REQUIRE(message(part({2, 5, 70}).view(), a.view()) == "merge: a has heads 2, out has 3");
    REQUIRE(message(a.view(), part({3, 4, 70}).view()) == "merge: b has tokens 4, out has 5");
    auto const over = bf::heads_view<float>::unchecked(out.view().data(), extents, {70, 70});
    REQUIRE_THROWS_AS(bf::merge(cpu, a.view(), a.view(), over), bf::shape_error);
}

TEST_CASE("streams of the published system merge to its outputs", "[sdpa]") {
    auto const stream = [](std::string const& name) {
        bf::heads_buffer<float> const o = bf::testing::read_npy("cache/streams/" + name + "_o.npy");
        auto const l                    = bf::testing::read_npy("cache/streams/" + name + "_l.npy");
        auto const m                    = bf::testing::read_npy("cache/streams/" + name + "_m.npy");
        std::vector<float> lse;
        for (std::size_t i = 0; i < l.values().size(); ++i)
            lse.push_back(l.values()[i] > 0.0F ? m.values()[i] + std::log(l.values()[i]) : -inf);
        return std::pair(o, lse);
    };
    auto const [swa, swa_lse] = stream("swa");
    for (char const* const name : {"routed", "dense"}) {
        auto const [o, lse] = stream(name);
        tensor<float> out(swa.shape());
        bf::merge(cpu, bf::attention_part(swa.view(), swa_lse.data()), bf::attention_part(o.view(), lse.data()),
                  out.view());
        auto const wanted = bf::testing::read_npy(std::string("cache/streams/merge_swa_") + name + ".npy");
        bf::testing::comparison const c = bf::testing::compare(out.view(), wanted.view(), 1e-5);
        INFO(name << ": " << c.text());
        REQUIRE(c.ok);
    }
}
