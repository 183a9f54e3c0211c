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

TEST_CASE("a mask without strides is contiguous", "[sdpa]") {
    // Each row of the mask hides all keys but one, whose value is then the output.
    constexpr bf::index_t heads = 2, tokens = 3, keys = 4;
    constexpr float hidden = -std::numeric_limits<float>::infinity();
    std::vector<float> const q(heads * tokens, 1.0F), k(keys, 1.0F), v{10.0F, 11.0F, 12.0F, 13.0F};
    std::vector<float> mask(heads * tokens * keys, hidden), out(heads * tokens);
    auto const left = [](bf::index_t row) { return (row * 3 + 1) % keys; };
    for (bf::index_t row = 0; row < heads * tokens; ++row) mask[static_cast<std::size_t>(row * keys + left(row))] = 0;

    auto const answers = [&](bf::additive_mask const& given, auto const& row_of) {
        bf::attend_options o;
        o.causal = false;
        o.mask   = given;
        bf::dense_sdpa(bf::backend::scalar{}, bf::heads_view<float const>(q.data(), {heads, tokens, 1}),
                       bf::heads_view<float const>(k.data(), {1, keys, 1}),
                       bf::heads_view<float const>(v.data(), {1, keys, 1}),
                       bf::heads_view<float>(out.data(), {heads, tokens, 1}), o);
        for (bf::index_t h = 0; h < heads; ++h)
            for (bf::index_t t = 0; t < tokens; ++t) {
                CAPTURE(h, t);
                REQUIRE(out[static_cast<std::size_t>(h * tokens + t)] ==
                        v[static_cast<std::size_t>(left(row_of(h, t)))]);
            }
    };
    answers({.data = mask.data()}, [](bf::index_t, bf::index_t t) { return t; });
    answers({.data = mask.data(), .heads = heads}, [](bf::index_t h, bf::index_t t) { return h * tokens + t; });
    answers({.data = mask.data(), .per_token = false}, [](bf::index_t, bf::index_t) { return 0; });
    answers({.data = mask.data(), .heads = heads, .per_token = false}, [](bf::index_t h, bf::index_t) { return h; });
    answers({.data = mask.data(), .heads = heads, .head_stride = keys, .token_stride = 2 * keys},
            [](bf::index_t h, bf::index_t t) { return h + 2 * t; });
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
