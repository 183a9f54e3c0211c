// SPDX-License-Identifier: MIT
#include <butterfly/backend/simd/lanes.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace bf  = butterfly;
namespace vec = butterfly::backend::vec;
using bf::index_t;
using isa = bf::isa::current;

namespace {

constexpr index_t heads = 3, tokens = 7;

/// Rows of a tensor in no order, none twice.
std::array<vec::row_place, vec::rows_at_once> some_rows() {
    std::array<vec::row_place, vec::rows_at_once> rows;
    for (int i = 0; i < vec::rows_at_once; ++i)
        rows[static_cast<std::size_t>(i)] = {i * 5 % 21 / tokens, i * 5 % tokens};
    return rows;
}

/// A value that may be anything a float may be.
float anything(bf::testing::random& draws) {
    auto const normal = static_cast<float>(draws.normal());
    switch (static_cast<int>(std::abs(normal) * 1000) % 12) {
    case 0:
        return std::numeric_limits<float>::quiet_NaN();
    case 1:
        return std::numeric_limits<float>::infinity();
    case 2:
        return -normal * 1e-39F; // subnormal
    case 3:
        return normal * 0x1p127F;
    default:
        return normal;
    }
}

template <class T>
bool same(T a, T b) {
    if (std::isnan(static_cast<float>(a))) return std::isnan(static_cast<float>(b));
    return std::memcmp(&a, &b, sizeof a) == 0;
}

constexpr std::array<index_t, 9> widths{1, 2, 15, 16, 31, 48, 80, 129, 576};

template <class T>
void check_loads() {
    bf::testing::random draws(17);
    auto const rows = some_rows();
    for (index_t const columns : widths) {
        std::vector<T> values(static_cast<std::size_t>(heads * tokens * columns)); // the last row ends the memory
        for (T& x : values) x = T(anything(draws));
        bf::heads_view<T> const q(values.data(), {heads, tokens, columns});
        for (int count = 1; count <= vec::rows_at_once; ++count)
            for (int const pairs : {1, 2}) {
                index_t const stride = 21, height = bf::detail::round_up(columns, vec::operand_step) / pairs;
                std::vector<std::uint32_t> out(static_cast<std::size_t>(height * stride), 7U);
                std::vector<float> floats(static_cast<std::size_t>(count * columns));
                std::vector<std::uint32_t> words(static_cast<std::size_t>(count * (columns / 2 + 1)));
                vec::load_lanes<isa>(q.describe(), rows.data(), count, pairs, floats.data(), words.data(), out.data(),
                                     stride);
                CAPTURE(columns, count, pairs);
                auto const element = [&](int i, index_t d) {
                    auto const [h, t] = rows[static_cast<std::size_t>(i)];
                    return d < columns ? static_cast<float>(q.row(h, t)[static_cast<std::size_t>(d)]) : 0.0F;
                };
                bool right = true;
                for (index_t c = 0; c * pairs < columns; ++c)
                    for (int i = 0; i < static_cast<int>(stride); ++i) {
                        std::uint32_t const word = out[static_cast<std::size_t>(c * stride + i)];
                        if (i >= count)
                            right &= word == 7U;
                        else if (pairs == 1)
                            right &= same(std::bit_cast<float>(word), element(i, c));
                        else
                            for (int half = 0; half < 2; ++half)
                                right &=
                                    same(bf::detail::from_bfloat16_bits(static_cast<std::uint16_t>(word >> 16 * half)),
                                         static_cast<float>(bf::bfloat16(element(i, 2 * c + half))));
                    }
                REQUIRE(right);
            }
    }
}

template <class T>
void check_stores() {
    bf::testing::random draws(19);
    auto const rows = some_rows();
    for (index_t const columns : widths) {
        index_t const stride = 21;
        std::vector<float> in(static_cast<std::size_t>(columns * stride));
        for (float& x : in) x = anything(draws);
        float factor[vec::rows_at_once];
        for (float& x : factor) x = static_cast<float>(draws.normal());
        for (int count = 1; count <= vec::rows_at_once; ++count) {
            std::vector<T> got(static_cast<std::size_t>(heads * tokens * columns), T(0.25F)), wanted = got;
            bf::heads_view<T> const out(got.data(), {heads, tokens, columns});
            bf::heads_view<T> const to(wanted.data(), out.shape());
            std::vector<float> floats(static_cast<std::size_t>(count * columns));
            vec::store_lanes<isa>(out.describe(), rows.data(), count, in.data(), stride, factor, floats.data());
            for (int i = 0; i < count; ++i)
                for (index_t d = 0; d < columns; ++d) {
                    auto const [h, t] = rows[static_cast<std::size_t>(i)];
                    to.row(h, t)[static_cast<std::size_t>(d)] =
                        static_cast<T>(in[static_cast<std::size_t>(d * stride + i)] * factor[i]);
                }
            CAPTURE(columns, count);
            bool right = true;
            for (std::size_t i = 0; i < got.size(); ++i) right &= same(got[i], wanted[i]);
            REQUIRE(right);
        }
    }
}

} // namespace

TEST_CASE("rows go into lanes as they are, or as pairs of bf16", "[backend]") {
    check_loads<float>();
    check_loads<bf::float16>();
    check_loads<bf::bfloat16>();
}

TEST_CASE("lanes go into rows, scaled and rounded to their type", "[backend]") {
    check_stores<float>();
    check_stores<bf::float16>();
    check_stores<bf::bfloat16>();
}
