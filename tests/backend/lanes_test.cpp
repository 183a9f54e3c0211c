// SPDX-License-Identifier: MIT
#include <butterfly/backend/simd/lanes.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace bf  = butterfly;
namespace vec = butterfly::backend::vec;
using bf::index_t;
using isa = bf::isa::current;

namespace rows_and_lanes { // names of its own, for builds that compile several of these files as one
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
    case 4:
        return -0.0F;
    case 5:
        return std::bit_cast<float>(0x7f800001U); // NaN that rounding would make infinite
    case 6:
        return std::bit_cast<float>(0x7fffffffU); // or zero
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

std::uint32_t fresh_seed() {
    return std::random_device{}() % 1000000;
}

/// A strided tensor whose last row ends its memory.
template <class T>
struct strided {
    bf::heads_shape shape;
    bf::heads_strides strides{.head = tokens * (shape.head_dim + 3) + 5, .token = shape.head_dim + 3};
    std::vector<T> values = std::vector<T>(
        static_cast<std::size_t>((heads - 1) * strides.head + (tokens - 1) * strides.token + shape.head_dim), T(0.25F));

    [[nodiscard]] bf::heads_view<T> view() { return {values.data(), shape, strides}; }
};

template <class T>
void check_loads() {
    std::uint32_t const seed = fresh_seed();
    bf::testing::random draws(seed);
    auto const rows = some_rows();
    for (index_t const columns : widths) {
        strided<T> memory{{heads, tokens, columns}};
        for (T& x : memory.values) x = T(anything(draws));
        auto const q = memory.view();
        for (int count = 1; count <= vec::rows_at_once; ++count)
            for (int const pairs : {1, 2}) {
                index_t const stride = 21, height = bf::detail::round_up(columns, vec::operand_step) / pairs;
                std::vector<std::byte> out(static_cast<std::size_t>(4 * height * stride), std::byte{7});
                std::vector<float> floats(static_cast<std::size_t>(count * columns));
                std::vector<std::uint32_t> words(static_cast<std::size_t>(count * (columns / 2 + 1)));
                vec::load_lanes<isa>(q.describe(), rows.data(), count, pairs, floats.data(), words.data(),
                                     reinterpret_cast<std::uint32_t*>(out.data()), stride);
                CAPTURE(seed, columns, count, pairs);
                auto const element = [&](int i, index_t d) {
                    auto const [h, t] = rows[static_cast<std::size_t>(i)];
                    return d < columns ? static_cast<float>(q.row(h, t)[static_cast<std::size_t>(d)]) : 0.0F;
                };
                bool right = true;
                for (index_t c = 0; c < height; ++c)
                    for (int i = 0; i < static_cast<int>(stride); ++i) {
                        std::uint32_t word = 0;
                        std::memcpy(&word, out.data() + 4 * (c * stride + i), sizeof word);
                        bool const untouched = word == 0x07070707U;
                        if (i >= count)
                            right &= untouched;
                        else if (c * pairs >= columns) // padding
                            right &= untouched || word == 0U;
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
    std::uint32_t const seed = fresh_seed();
    bf::testing::random draws(seed);
    auto const rows = some_rows();
    for (index_t const columns : widths) {
        index_t const stride = 21;
        std::vector<float> in(static_cast<std::size_t>(columns * stride));
        for (float& x : in) x = anything(draws);
        float factor[vec::rows_at_once];
        for (float& x : factor) x = static_cast<float>(draws.normal());
        for (int count = 1; count <= vec::rows_at_once; ++count) {
            strided<T> got{{heads, tokens, columns}}, wanted = got;
            auto const out = got.view(), to = wanted.view();
            std::vector<float> floats(static_cast<std::size_t>(count * columns));
            vec::store_lanes<isa>(out.describe(), rows.data(), count, in.data(), stride, factor, floats.data());
            for (int i = 0; i < count; ++i)
                for (index_t d = 0; d < columns; ++d) {
                    auto const [h, t] = rows[static_cast<std::size_t>(i)];
                    to.row(h, t)[static_cast<std::size_t>(d)] =
                        static_cast<T>((in[static_cast<std::size_t>(d * stride + i)] + 0.0F) * factor[i]);
                }
            CAPTURE(seed, columns, count);
            bool right = true;
            for (std::size_t i = 0; i < got.values.size(); ++i) right &= same(got.values[i], wanted.values[i]);
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

} // namespace rows_and_lanes
