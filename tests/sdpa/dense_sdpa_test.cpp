// SPDX-License-Identifier: MIT
#include <butterfly/backend/scalar.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/testing/compare.hpp>

#include "support/catch.hpp"

namespace bf = butterfly;

namespace {

Eigen::MatrixXd matrix(bf::heads_view<float const> t, bf::index_t head) {
    Eigen::MatrixXd m(t.tokens(), t.head_dim());
    for (bf::index_t i = 0; i < t.tokens(); ++i)
        for (bf::index_t d = 0; d < t.head_dim(); ++d)
            m(i, d) = static_cast<double>(t.row(head, i)[static_cast<std::size_t>(d)]);
    return m;
}

} // namespace

TEST_CASE("dense attention by hand", "[sdpa]") {
    // Two keys with logits 0 and ln 3: weights 1/4 and 3/4.
    float const q[] = {1.0F}, k[] = {0.0F, std::log(3.0F)}, v[] = {4.0F, 8.0F};
    float out[1]{}, lse[1]{};
    bf::attend_options o;
    o.q_position = 1;
    o.lse        = lse;
    bf::dense_sdpa(bf::backend::scalar{}, bf::heads_view<float const>(q, {1, 1, 1}),
                   bf::heads_view<float const>(k, {1, 2, 1}), bf::heads_view<float const>(v, {1, 2, 1}),
                   bf::heads_view<float>(out, {1, 1, 1}), o);
    REQUIRE(std::abs(out[0] - 7.0F) < 1e-6F);
    REQUIRE(std::abs(lse[0] - std::log(4.0F)) < 1e-6F);
}

TEST_CASE("dense attention is masked attention in double", "[sdpa]") {
    for (bool const causal : {true, false}) {
        auto p =
            bf::testing::make_problem({.heads = 4, .kv_heads = 2, .tokens = 37, .keys = 50, .head_dim = 24, .seed = 3});
        bf::attend_options o;
        o.causal     = causal;
        o.q_position = 13;
        bf::dense_sdpa(bf::backend::scalar{}, p.q.view(), p.k.view(), p.v.view(), p.out.view(), o);
        Eigen::Array<bool, -1, -1> visible(37, 50);
        for (int i = 0; i < 37; ++i)
            for (int j = 0; j < 50; ++j) visible(i, j) = !causal || j <= i + 13;
        auto const general = bf::testing::evaluate(p.q.view(), p.out.view(), o,
                                                   bf::pool(p.k.view(), p.v.view(), bf::visible::causal_prefix()));
        for (bf::index_t h = 0; h < 4; ++h) {
            Eigen::MatrixXd const wanted = bf::testing::masked_attention(
                matrix(std::as_const(p.q).view(), h), matrix(std::as_const(p.k).view(), h / 2),
                matrix(std::as_const(p.v).view(), h / 2), visible, 1.0 / std::sqrt(24.0));
            for (bf::index_t t = 0; t < 37; ++t)
                for (bf::index_t d = 0; d < 24; ++d) {
                    // The two forms of the oracle agree to double, but for the scale, which the call holds in float.
                    REQUIRE(std::abs(general.out[general.at(h, t, d)] - wanted(t, d)) < 1e-6);
                    REQUIRE(std::abs(p.out.at(h, t, d) - wanted(t, d)) < 2e-5);
                }
        }
        REQUIRE(bf::testing::compare(p.out.view(), general).ok);
    }
}

TEST_CASE("masked attention leaves a row without keys at zero", "[testing]") {
    Eigen::MatrixXd const q = Eigen::MatrixXd::Ones(2, 3), k = Eigen::MatrixXd::Ones(4, 3),
                          v            = Eigen::MatrixXd::Ones(4, 5);
    Eigen::Array<bool, -1, -1> visible = Eigen::Array<bool, -1, -1>::Constant(2, 4, false);
    visible(1, 2)                      = true;
    Eigen::MatrixXd const out          = bf::testing::masked_attention(q, k, v, visible, 1.0);
    REQUIRE(out.row(0).isZero());
    REQUIRE(out.row(1).isOnes());
}

TEST_CASE("dense_sdpa names itself in messages", "[sdpa]") {
    float x[64]{};
    try {
        bf::dense_sdpa(bf::backend::scalar{}, bf::heads_view<float const>(x, {1, 1, 64}),
                       bf::heads_view<float const>(x, {1, 1, 32}), bf::heads_view<float const>(x, {1, 1, 32}),
                       bf::heads_view<float>(x, {1, 1, 64}));
        FAIL("accepted");
    } catch (bf::shape_error const& e) {
        REQUIRE(std::string(e.what()) == "dense_sdpa: k has head_dim 32, q has 64");
    }
}
