// SPDX-License-Identifier: MIT

// Rows packed by channels of a tile of tokens in the SIMD kernels: scored and summed from their codes within what the
// kernels say they round (backend/simd/codec/affine_channels.hpp).

#include <butterfly/backend/simd.hpp>
#include <butterfly/core/memory.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/sdpa/attend.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"
#include "support/packed_rows.hpp"
#include "support/sweep.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <random>
#include <vector>

namespace bf      = butterfly;
namespace quant   = butterfly::quant;
namespace testing = butterfly::testing;
using bf::index_t;

namespace channel_attention { // names of its own, for builds that compile several of these files as one
namespace {

/// Rows of a tensor packed tile by tile.
template <int Bits, int Tokens>
class packed {
public:
    using codec = quant::affine_channels<Bits, Tokens>;

    explicit packed(testing::tensor<float> const& t) : shape_(t.shape()) {
        index_t const tiles = bf::detail::ceil_div(shape_.tokens, index_t{Tokens}), n = shape_.head_dim;
        head_bytes_ = tiles * tile_bytes();
        bytes_.resize(static_cast<std::size_t>(shape_.heads * head_bytes_ + Tokens));
        std::vector<float> rows(static_cast<std::size_t>(Tokens * n));
        for (index_t h = 0; h < shape_.heads; ++h)
            for (index_t tile = 0; tile < tiles; ++tile) {
                for (index_t j = 0; j < Tokens; ++j) {
                    auto const from = t.view().row(h, std::min(tile * Tokens + j, shape_.tokens - 1));
                    std::copy_n(from.data(), n, rows.data() + j * n);
                }
                codec{}.encode_tile(rows.data(), n, n, at(h, tile * Tokens));
            }
    }
    packed(packed const&) = delete;

    /// What names row j.
    [[nodiscard]] std::byte* at(index_t h, index_t j) {
        return base() + h * head_bytes_ + j / Tokens * tile_bytes() + j % Tokens;
    }
    [[nodiscard]] bf::packed_view<codec> view() { return {base(), codec{}, shape_}; }
    /// Scale and zero of a channel of the tile of row j.
    [[nodiscard]] quant::detail::group_scale channel(index_t h, index_t j, index_t d) {
        std::byte const* const pair = at(h, j / Tokens * Tokens) + 4 * d;
        return {quant::detail::load_half<bf::bfloat16>(pair), quant::detail::load_half<bf::float16>(pair + 2)};
    }

private:
    [[nodiscard]] index_t tile_bytes() const { return Tokens * codec{}.row_bytes(shape_.head_dim); }
    [[nodiscard]] std::byte* base() {
        auto const address = reinterpret_cast<std::uintptr_t>(bytes_.data());
        return bytes_.data() + (-address & (Tokens - 1));
    }

    bf::heads_shape shape_;
    index_t head_bytes_ = 0;
    std::vector<std::byte> bytes_;
};

/// Attention of row t of head h over keys [0, t + keys - tokens] with queries as the kernel rounds them: after they
/// have met the scales of a tile.
template <int Bits, int Tokens>
struct reference {
    std::vector<double> out;
    double lse;
    double spread;     // norm of what outputs are sums of
    double step = 0.0; // of a logit, where a channel is rounded the other way: half of a unit may be either

    template <class P>
    reference(P const& p, packed<Bits, Tokens>& k, packed<Bits, Tokens>& v, index_t h, index_t t, bool rounded) {
        index_t const n = p.q.shape().head_dim, kv = h / (p.q.shape().heads / p.k.shape().heads);
        index_t const seen = p.k.shape().tokens - p.q.shape().tokens + t + 1;
        std::vector<double> logits;
        std::vector<float> row(static_cast<std::size_t>(n));
        for (index_t j = 0; j < seen; ++j) {
            double largest = 0.0, logit = 0.0;
            for (index_t d = 0; d < n; ++d)
                largest = std::max(largest, std::abs(double{p.q.at(h, t, d)} * double{k.channel(kv, j, d).scale}));
            double const coarse = largest / 127.0;
            double const moved  = double{p.scale} * coarse * std::sqrt(static_cast<double>(n)) * std::exp2(Bits);
            double const unit   = Bits == 8 || moved > 0.25 ? largest / 16256.0 : coarse;
            step                = std::max(step, double{p.scale} * unit * std::exp2(Bits - 1));
            typename packed<Bits, Tokens>::codec{}.decode(k.at(kv, j), n, row.data());
            for (index_t d = 0; d < n; ++d) {
                auto const c         = k.channel(kv, j, d);
                double const scaled  = double{p.q.at(h, t, d)} * double{c.scale};
                double const whole   = rounded && unit > 0.0 ? unit * std::round(scaled / unit) : scaled;
                double const decoded = double{row[static_cast<std::size_t>(d)]};
                double const level   = c.scale > 0.0F ? std::round(decoded / double{c.scale} - double{c.zero}) : 0.0;
                logit += whole * level + scaled * double{c.zero};
            }
            logits.push_back(double{p.scale} * logit);
        }
        double const most = *std::max_element(logits.begin(), logits.end());
        double sum        = 0.0;
        for (double& x : logits) sum += x = std::exp(x - most);
        lse = most + std::log(sum);
        out.assign(static_cast<std::size_t>(n), 0.0);
        std::vector<double> squares(static_cast<std::size_t>(n));
        for (index_t j = 0; j < seen; ++j) {
            typename packed<Bits, Tokens>::codec{}.decode(v.at(kv, j), n, row.data());
            double const weight = logits[static_cast<std::size_t>(j)] / sum;
            for (std::size_t d = 0; d < row.size(); ++d) {
                out[d] += weight * double{row[d]};
                squares[d] += weight * double{row[d]} * double{row[d]};
            }
        }
        spread = 0.0;
        for (double const x : squares) spread += x;
        spread = std::sqrt(spread);
    }
};

std::uint64_t fresh_seed() {
    static std::uint64_t const seed = std::random_device{}() % 1000000;
    return seed;
}

template <int Bits, int Tokens>
void check(index_t n) {
    testing::random draws(fresh_seed(), static_cast<std::uint64_t>(1000 * n + 10 * Bits + Tokens));
    for (index_t const group : {1, 3, 4, 7}) {
        index_t const tokens = draws.one_of({1, 2}), keys = draws.between(tokens, 200);
        float const large = draws.one_of({0.0F, 3.0F, 100.0F}); // in every third channel
        float const wide  = draws.one_of({1.0F, 50.0F});        // the spread of one
        CAPTURE(fresh_seed(), Bits, Tokens, n, group, tokens, keys, large, wide);
        auto p = testing::make_problem(
            {.heads = 2 * group, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = n, .seed = draws.bits()});
        for (index_t i = 0; i < 2 * keys; ++i)
            for (index_t d = 0; d < n; ++d)
                p.k.at(i / keys, i % keys, d) =
                    p.k.at(i / keys, i % keys, d) * (d == 5 ? wide : 1.0F) + (d % 3 == 0 ? large : 0.0F);
        packed<Bits, Tokens> k(p.k), v(p.v);
        bf::attend_options o{.scale = p.scale, .q_position = keys - tokens};
        o.lse = p.lse.data();
        bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), o,
                   bf::pool(k.view(), v.view(), bf::visible::causal_prefix()));
        bool const codes   = test::from_codes(quant::affine_channels<Bits, Tokens>{});
        double const allow = !codes ? 1e-5 + 1e-6 * double{large} : Bits == 8 ? 4e-4 : 8.0 / test::weight_top;
        for (index_t h = 0; h < 2 * group; ++h)
            for (index_t t = 0; t < tokens; ++t) {
                reference<Bits, Tokens> const want(p, k, v, h, t, codes);
                double off = 0.0;
                for (index_t d = 0; d < n; ++d)
                    off += std::pow(double{p.out.at(h, t, d)} - want.out[static_cast<std::size_t>(d)], 2.0);
                CAPTURE(h, t, want.spread);
                REQUIRE(std::sqrt(off) <= allow * want.spread);
                double const lse      = double{p.lse[static_cast<std::size_t>(h * tokens + t)]};
                double const of_large = 2e-6 * double{large} * static_cast<double>(n);
                REQUIRE(std::abs(lse - want.lse) <=
                        1e-4 + 1e-5 * std::abs(want.lse) + of_large + (codes ? want.step : 0.0));
            }
    }
}

} // namespace

TEST_CASE("rows packed by channels are attended as what they decode to, queries and weights rounded", "[backend]") {
    for (index_t const n : {16, 48, 64, 80, 128, 256, 1024}) {
        if (test::short_sweep() && n != 80 && n != 128) continue;
        check<2, 32>(n);
        check<3, 32>(n);
        check<4, 32>(n);
        check<8, 32>(n);
        check<2, 64>(n);
        check<4, 128>(n);
    }
}

TEST_CASE("channels of unequal spread are attended as what they decode to", "[backend]") {
    testing::random draws(fresh_seed(), 3);
    for (int repeat = 0; repeat < 8; ++repeat) {
        index_t const n = draws.one_of({64, 80}), keys = draws.between(70, 300);
        CAPTURE(fresh_seed(), repeat, n, keys);
        auto p = testing::make_problem(
            {.heads = 6, .kv_heads = 2, .tokens = 1, .keys = keys, .head_dim = n, .seed = draws.bits()});
        for (index_t i = 0; i < 2 * keys; ++i)
            for (index_t d = 3; d < n; d += 32) p.k.at(i / keys, i % keys, d) *= 50.0F;
        packed<4, 32> k(p.k);
        packed<8, 32> v(p.v);
        testing::tensor<float> keys_of(p.k.shape()), values_of(p.v.shape());
        for (index_t h = 0; h < 2; ++h)
            for (index_t j = 0; j < keys; ++j) {
                quant::affine_channels<4, 32>{}.decode(k.at(h, j), n, &keys_of.at(h, j, 0));
                quant::affine_channels<8, 32>{}.decode(v.at(h, j), n, &values_of.at(h, j, 0));
            }
        // Windows and masks: the rows that are seen of a tile begin anywhere, and are as many as they are.
        bf::attend_options o{.scale = 0.5F * p.scale, .q_position = keys - 1};
        std::vector<float> mask(static_cast<std::size_t>(keys));
        for (float& m : mask) m = draws.below(4) == 0 ? 0.0F : -std::numeric_limits<float>::infinity();
        mask.back() = 0.0F;
        if (draws.below(2) == 0) o.mask.data = mask.data();
        bf::visible::interval const sees =
            draws.below(2) == 0 ? bf::visible::causal_prefix() : bf::visible::exact_window(draws.between(1, keys));
        bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), o, bf::pool(k.view(), v.view(), sees));
        auto const want =
            testing::evaluate(p.q.view(), p.out.view(), o, bf::pool(keys_of.view(), values_of.view(), sees));
        for (index_t h = 0; h < 6; ++h) {
            double off = 0.0, spread = 0.0;
            for (index_t d = 0; d < n; ++d) {
                std::size_t const at = want.at(h, 0, d);
                off += std::pow(double{p.out.at(h, 0, d)} - want.out[at], 2.0);
                spread += want.spread[at] * want.spread[at];
            }
            REQUIRE(std::sqrt(off) <= 3e-2 * std::sqrt(spread));
        }
    }
}

TEST_CASE("a channel that is not finite reaches who sees its tile", "[backend]") {
    for (bool const in_keys : {true, false}) {
        auto p = testing::make_problem({.heads = 4, .kv_heads = 2, .tokens = 2, .keys = 65, .head_dim = 64, .seed = 8});
        (in_keys ? p.k : p.v).at(0, 64, 5) = std::numeric_limits<float>::quiet_NaN(); // the first token does not see it
        packed<2, 32> k(p.k), v(p.v);
        bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), {.q_position = 63},
                   bf::pool(k.view(), v.view(), bf::visible::causal_prefix()));
        for (index_t h = 0; h < 4; ++h)
            for (index_t t = 0; t < 2; ++t)
                for (index_t d = 0; d < 64; ++d) {
                    CAPTURE(in_keys, h, t, d);
                    REQUIRE(std::isnan(p.out.at(h, t, d)) == (h < 2 && t == 1 && (in_keys || d == 5)));
                }
    }
}

TEST_CASE("a query that is not finite reaches its own row of packed channels", "[backend]") {
    for (float const bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        auto p = testing::make_problem({.heads = 4, .kv_heads = 2, .tokens = 1, .keys = 65, .head_dim = 64, .seed = 9});
        p.q.at(1, 0, 3) = bad;
        packed<4, 32> k(p.k), v(p.v);
        bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), {.q_position = 64},
                   bf::pool(k.view(), v.view(), bf::visible::causal_prefix()));
        for (index_t h = 0; h < 4; ++h)
            for (index_t d = 0; d < 64; ++d) REQUIRE(std::isfinite(p.out.at(h, 0, d)) == (h != 1));
    }
}

template <int Bits>
void check_invariance(index_t n) {
    CAPTURE(fresh_seed(), Bits, n);
    auto p = testing::make_problem(
        {.heads = 6, .kv_heads = 2, .tokens = 5, .keys = 9000, .head_dim = n, .seed = fresh_seed()});
    packed<Bits, 32> k(p.k), v(p.v);
    bf::pool const all(k.view(), v.view(), bf::visible::causal_prefix());
    test::require_same_bits(p, all);
}

TEST_CASE("neither tokens beside a row nor threads change a bit of packed channels", "[backend]") {
    check_invariance<2>(32);
    check_invariance<8>(80);
}

} // namespace channel_attention
