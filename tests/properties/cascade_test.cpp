// SPDX-License-Identifier: MIT
// A law that crosses folders: attention over parts of the keys, merged in any order, is attention over all of them,
// whichever backend attends to which part.
#include <butterfly/backend/scalar.hpp>
#include <butterfly/backend/simd.hpp>
#include <butterfly/sdpa/merge.hpp>
#include <butterfly/testing/compare.hpp>

#include "support/catch.hpp"

#include <numeric>

namespace bf = butterfly;
namespace bt = butterfly::testing;

namespace {

struct part {
    bt::tensor<float> out;
    std::vector<float> lse;
    explicit part(bf::heads_shape s) : out(s), lse(static_cast<std::size_t>(s.heads * s.tokens)) {}
    [[nodiscard]] auto view() const { return bf::attention_part(out.view(), lse.data()); }
};

} // namespace

TEST_CASE("a cascade over parts of the keys is one attention", "[properties]") {
    bf::backend::scalar const scalar;
    bf::backend::simd<> const simd;
    for (bf::index_t const tokens : {1, 50}) {
        auto p =
            bt::make_problem({.heads = 6, .kv_heads = 2, .tokens = tokens, .keys = 300, .head_dim = 40, .seed = 21});
        bf::attend_options o;
        o.q_position = 300 - tokens;
        auto const wanted =
            bt::evaluate(p.q.view(), p.out.view(), o, bf::pool(p.k.view(), p.v.view(), bf::visible::causal_prefix()));
        std::vector<std::int32_t> positions(300);
        std::iota(positions.begin(), positions.end(), 0);
        bf::index_t const cuts[] = {0, 100, 260, 290, 300}; // the last parts are hidden from early queries
        std::vector<part> parts;
        for (int i = 0; i < 4; ++i) {
            part& piece              = parts.emplace_back(p.out.shape());
            bf::attend_options mine  = o;
            mine.lse                 = piece.lse.data();
            bf::index_t const length = cuts[i + 1] - cuts[i];
            bf::pool const keys(p.k.view().slice(cuts[i], length), p.v.view().slice(cuts[i], length),
                                bf::visible::causal_prefix(), {}, positions.data() + cuts[i]);
            if (i % 2 == 0)
                bf::attend(scalar, p.q.view(), piece.out.view(), mine, keys);
            else
                bf::attend(simd, p.q.view(), piece.out.view(), mine, keys);
        }
        for (int const first : {0, 2}) { // ((0 1) (2 3)), and rotated
            part left(p.out.shape()), right(p.out.shape()), all(p.out.shape());
            auto const at = [&](int i) { return parts[static_cast<std::size_t>((first + i) % 4)].view(); };
            bf::merge(scalar, at(0), at(1), left.out.view(), {.lse = left.lse.data()});
            bf::merge(simd, at(2), at(3), right.out.view(), {.lse = right.lse.data()});
            bf::merge(simd, left.view(), right.view(), all.out.view(), {.lse = all.lse.data()});
            bt::comparison const c = bt::compare(all.out.view(), wanted);
            INFO(c.text());
            REQUIRE(c.ok);
            REQUIRE(bt::compare_lse(all.lse, wanted, bf::element_type::f32).ok);
        }
    }
}
