// SPDX-License-Identifier: MIT
#include <butterfly/quant/trellis.hpp>

#include "quant/inputs.hpp"

#include <array>
#include <cstdlib>

namespace bf = butterfly;
namespace bq = butterfly::quant;

namespace {

template <int N>
using bits = std::integral_constant<int, N>;

/// Error of Gaussian rows of 128 at most.
template <int Bits>
constexpr double trellis_bound = Bits == 2   ? 0.0778
                                 : Bits == 3 ? 0.0206
                                             : 0.0058;

/// The window of value i by the definition: bits of the stream, taken round.
std::size_t plain_window(test::row_bytes const& row, bf::index_t n, int bits_of_value, bf::index_t i) {
    std::size_t window = 0;
    for (int j = 0; j < 6; ++j) {
        bf::index_t const bit = (i * bits_of_value + j) % (n * bits_of_value);
        auto const byte       = std::to_integer<std::size_t>(row[static_cast<std::size_t>(2 + bit / 8)]);
        window |= (byte >> (bit % 8) & 1U) << j;
    }
    return window;
}

template <int Bits>
test::row_floats decoded_in_basis(bq::trellis<Bits> const& codec, test::row_bytes const& row, bf::index_t n) {
    test::row_floats out(static_cast<std::size_t>(n));
    codec.decode_in_basis(row.data(), n, out.data());
    return out;
}

template <int Bits>
test::row_floats in_basis_of(bq::trellis<Bits> const& codec, test::row_floats x) {
    bq::rotation{codec.seed()}.forward(x.data(), std::ssize(x));
    return x;
}

/// What the levels of the best closed path explain of a row, <y, l>^2 / <l, l> by <y, y>, over many scales; every start
/// is tried. In double, slow on purpose.
template <int Bits, class Levels>
double explained_by_best_path(test::row_floats const& y, Levels const& level) {
    constexpr std::size_t windows = 64, ways = 1U << Bits, states = windows / ways;
    double square_of_levels = 0.0, best = 0.0;
    for (auto const l : level) square_of_levels += l * l / double{windows};
    double const usual = std::sqrt(test::dot(y, y) / static_cast<double>(y.size()) / square_of_levels);
    for (double ratio = 0.8; ratio < 1.45; ratio += 0.025)
        for (std::size_t start = 0; start < states; ++start) {
            std::vector<std::array<std::size_t, states>> before(y.size());
            std::array<double, states> cost;
            cost.fill(1e300);
            cost[start] = 0.0;
            for (std::size_t i = 0; i < y.size(); ++i) {
                std::array<double, states> next;
                next.fill(1e301);
                for (std::size_t w = 0; w < windows; ++w) {
                    double const c = cost[w % states] + std::pow(y[i] - ratio * usual * level[w], 2);
                    if (c < next[w / ways]) {
                        next[w / ways]      = c;
                        before[i][w / ways] = w;
                    }
                }
                cost = next;
            }
            double dot = 0.0, square = 0.0;
            std::size_t state = start;
            for (std::size_t i = y.size(); i-- > 0;) {
                std::size_t const w = before[i][state];
                dot += double{y[i]} * level[w];
                square += level[w] * level[w];
                state = w % states;
            }
            best = std::max(best, dot * dot / square);
        }
    return best / test::dot(y, y);
}

} // namespace

TEST_CASE("rows of trellis have the bytes of lloyd_max of as many bits", "[quant]") {
    REQUIRE(bq::trellis<2>().row_bytes(128) == 34);
    REQUIRE(bq::trellis<3>().row_bytes(128) == 50);
    REQUIRE(bq::trellis<4>().row_bytes(128) == 66);
    for (bf::index_t n = 16; n <= 1024; n += 16) {
        REQUIRE(bq::trellis<2>().row_bytes(n) == bq::lloyd_max<4>().row_bytes(n));
        REQUIRE(bq::trellis<3>().row_bytes(n) == bq::lloyd_max<8>().row_bytes(n));
        REQUIRE(bq::trellis<4>().row_bytes(n) == bq::lloyd_max<16>().row_bytes(n));
    }
    REQUIRE(bq::trellis<2>().name() == "trellis<2> seed 1");
    REQUIRE(bq::trellis<4>(9, bq::scale_rule::unbiased).name() == "trellis<4> seed 9 unbiased");
    REQUIRE(bq::trellis<3>(77).seed() == 77);
}

TEMPLATE_TEST_CASE("levels of trellis are odd and none is zero", "[quant]", bits<2>, bits<3>, bits<4>) {
    auto const levels = bq::trellis<TestType::value>().levels();
    for (std::size_t w = 0; w < levels.size(); ++w) {
        REQUIRE(levels[w] != 0);
        REQUIRE(levels[w] >= -127);
        REQUIRE(levels[w] == -levels[63 - w]);
    }
    REQUIRE(levels[0] > 0); // a row of zeros is of window 0, and not of -0
    constexpr std::size_t states = 64 >> TestType::value;
    for (std::size_t s = 0; s < states; ++s) { // what costs have room for: a level near zero from any state
        int least = 127;
        for (std::size_t w = s; w < levels.size(); w += states) least = std::min(least, std::abs(int{levels[w]}));
        REQUIRE(least <= 16);
    }
}

TEST_CASE("a bit of trellis stands in the windows of the values before it", "[quant]") {
    bq::trellis<2> const codec;
    for (bf::index_t const bit : {0, 7, 31}) { // of 32
        test::row_bytes row(6);
        bq::detail::store_half(bf::bfloat16(0.5F), row.data());
        row[static_cast<std::size_t>(2 + bit / 8)] = static_cast<std::byte>(1 << bit % 8);
        test::row_floats wanted(16, 0.5F * codec.levels()[0]);
        auto const own = static_cast<std::size_t>(bit / 2), low = static_cast<std::size_t>(bit % 2);
        wanted[own]             = 0.5F * codec.levels()[1U << low];
        wanted[(own + 15) % 16] = 0.5F * codec.levels()[4U << low];
        wanted[(own + 14) % 16] = 0.5F * codec.levels()[16U << low];
        REQUIRE(decoded_in_basis(codec, row, 16) == wanted);
    }
}

TEMPLATE_TEST_CASE("any bytes of trellis decode by the formula", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count      = TestType::value;
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    for (bf::index_t const n : {16, 48, 80, 128, 240, 1024})
        for (int i = 0; i < 20; ++i) {
            bq::trellis<count> const codec(draws.bits());
            test::row_bytes row(static_cast<std::size_t>(codec.row_bytes(n)));
            for (std::byte& b : row) b = static_cast<std::byte>(draws.bits() & 255U);
            float const scale =
                std::ldexp(static_cast<float>(1 + draws.below(255)), static_cast<int>(draws.below(60)) - 30);
            bq::detail::store_half(bf::bfloat16(scale), row.data());
            test::row_floats wanted;
            for (bf::index_t d = 0; d < n; ++d) {
                std::size_t const window = plain_window(row, n, count, d);
                REQUIRE(bq::detail::load_window<count>(row.data() + 2, n, d) == window);
                wanted.push_back(scale * static_cast<float>(codec.levels()[window]));
            }
            CAPTURE(seed, n, i, codec.name());
            REQUIRE(decoded_in_basis(codec, row, n) == wanted);
            bq::rotation{codec.seed()}.inverse(wanted.data(), n);
            REQUIRE(test::unpack(codec, row, n) == wanted);
        }
}

TEMPLATE_TEST_CASE(
    "windows of trellis that follow each other are packed as they are", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count = TestType::value;
    bf::testing::random draws(8);
    for (bf::index_t const n : {16, 48, 128, 1024}) {
        test::row_bytes const stream = [&] {
            test::row_bytes bytes(static_cast<std::size_t>(2 + n * count / 8));
            for (std::byte& b : bytes) b = static_cast<std::byte>(draws.bits() & 255U);
            return bytes;
        }();
        std::vector<std::uint8_t> windows;
        for (bf::index_t i = 0; i < n; ++i)
            windows.push_back(static_cast<std::uint8_t>(plain_window(stream, n, count, i)));
        test::row_bytes packed = stream;
        std::fill(packed.begin() + 2, packed.end(), std::byte{0xff});
        bq::detail::store_windows<count>(windows.data(), n, packed.data() + 2);
        REQUIRE(packed == stream);
    }
}

TEMPLATE_TEST_CASE("error of trellis on Gaussian rows", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count = TestType::value;
    bq::trellis<count> const codec;
    bq::lloyd_max<1 << count> const scalar;
    bf::testing::random draws(1);
    double of_scalar   = 0.0;
    int const rows     = test::many_rows();
    double const error = test::mean_error(codec, 128, rows, [&] {
        test::row_floats x = test::gaussian_row(draws, 128);
        of_scalar += test::relative_error(x, test::round_trip(scalar, x, 128)) / rows;
        return x;
    });
    double const gain  = 10 * std::log10(of_scalar / error);
    CAPTURE(count, error, of_scalar, gain);
    REQUIRE(error <= trellis_bound<count>);
    REQUIRE(error >= 0.95 * trellis_bound<count>); // less is an error of the test
    REQUIRE(gain >= (count == 4 ? 1.2 : 1.5));
}

TEMPLATE_TEST_CASE(
    "error of trellis is that of Gaussian rows whatever the rows", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count = TestType::value;
    bf::testing::random draws(2);
    int const rows = test::many_rows() / 10;
    for (bf::index_t const n : {48, 80, 128, 256, 576}) {
        double heavy = 0.0, means = 0.0, constants = 0.0;
        for (int i = 0; i < rows; ++i) {
            bq::trellis<count> const codec(draws.bits());
            test::row_floats const x = test::with_large_channels(draws, n), y = test::around_one(draws, n, 0.01F);
            test::row_floats const c(static_cast<std::size_t>(n), 3.25F);
            heavy += test::relative_error(x, test::round_trip(codec, x, n)) / rows;
            means += test::relative_error(y, test::round_trip(codec, y, n)) / rows;
            constants += test::relative_error(c, test::round_trip(codec, c, n)) / rows;
        }
        CAPTURE(n, count, heavy, means, constants);
        REQUIRE(heavy <= 1.1 * trellis_bound<count>);
        REQUIRE(means <= 1.1 * trellis_bound<count>);
        REQUIRE(constants <= 1.1 * trellis_bound<count>);
    }
}

TEMPLATE_TEST_CASE("trellis finds nearly the best closed path", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count = TestType::value;
    bf::testing::random draws(3);
    bq::trellis<count> const codec;
    int const rows = test::short_sweep() ? 8 : 30;
    double found = 0.0, best = 0.0;
    for (int i = 0; i < rows; ++i) {
        test::row_floats const x = test::gaussian_row(draws, 128);
        found += test::relative_error(x, test::round_trip(codec, x, 128)) / rows;
        best += (1.0 - explained_by_best_path<count>(in_basis_of(codec, x), codec.levels())) / rows;
    }
    CAPTURE(count, found, best);
    REQUIRE(found >= 0.98 * best); // between two of its scales
    REQUIRE(found <= 1.02 * best);
}

TEMPLATE_TEST_CASE("the gain of trellis is in the order of its levels", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count = TestType::value;
    bf::testing::random draws(9);
    bq::trellis<count> const codec;
    bq::lloyd_max<1 << count> const scalar;
    auto ascending = codec.levels();
    std::sort(ascending.begin(), ascending.end());
    int const rows = test::short_sweep() ? 6 : 20;
    double trained = 0.0, of_scalar = 0.0, sorted = 0.0, shuffled = 0.0;
    for (int i = 0; i < rows; ++i) {
        test::row_floats const x = test::gaussian_row(draws, 128), y = in_basis_of(codec, x);
        trained += test::relative_error(x, test::round_trip(codec, x, 128)) / rows;
        of_scalar += test::relative_error(x, test::round_trip(scalar, x, 128)) / rows;
        sorted += (1.0 - explained_by_best_path<count>(y, ascending)) / rows;
        auto order = codec.levels();
        for (std::size_t w = 63; w > 0; --w)
            std::swap(order[w], order[static_cast<std::size_t>(draws.below(static_cast<bf::index_t>(w + 1)))]);
        shuffled += (1.0 - explained_by_best_path<count>(y, order)) / rows;
    }
    CAPTURE(count, trained, of_scalar, sorted, shuffled);
    REQUIRE(of_scalar / trained >= 1.3);
    REQUIRE(sorted > of_scalar);
    REQUIRE(shuffled > std::sqrt(trained * of_scalar)); // more than half of the gain is lost
}

TEMPLATE_TEST_CASE("trellis fits its scale by least squares", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count = TestType::value;
    bf::testing::random draws(4);
    for (int i = 0; i < 200; ++i) {
        bq::trellis<count> const codec(draws.bits());
        test::row_floats const x = test::gaussian_row(draws, 128), y = test::round_trip(codec, x, 128);
        CAPTURE(i);
        // A bfloat16 is within 2^-8 of what it rounds; whole numbers within 2^-13 of the largest coordinate.
        REQUIRE(std::abs(test::dot(x, y) / test::dot(y, y) - 1.0) <= 0x1p-8 + 0x1p-11);
    }
}

TEMPLATE_TEST_CASE("the unbiased scale of trellis keeps <x, decoded> = <x, x>", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count = TestType::value;
    test::check_unbiased([](std::uint64_t seed) { return bq::trellis<count>(seed, bq::scale_rule::unbiased); }, 60,
                         0.01F);
    // The windows are those of the other rule.
    bf::testing::random draws(6);
    test::row_floats const x = test::gaussian_row(draws, 128);
    test::row_bytes a        = test::pack(bq::trellis<count>(5), x, 128),
                    b        = test::pack(bq::trellis<count>(5, bq::scale_rule::unbiased), x, 128);
    REQUIRE(std::equal(a.begin() + 2, a.end(), b.begin() + 2));
    REQUIRE(bq::detail::load_half<bf::bfloat16>(a.data()) < bq::detail::load_half<bf::bfloat16>(b.data()));
}

TEMPLATE_TEST_CASE("rows that trellis stands for exactly keep their bytes", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count = TestType::value;
    bf::testing::random draws(10); // one row in 10000 finds another path, as the search is not exact
    for (bf::index_t const n : {64, 128, 256})
        for (int i = 0; i < 60; ++i) {
            bq::trellis<count> const codec(draws.bits());
            test::row_bytes const row = test::pack(codec, test::gaussian_row(draws, n), n);
            CAPTURE(n, i, codec.name());
            REQUIRE(test::pack(codec, test::unpack(codec, row, n), n) == row);
        }
}

TEMPLATE_TEST_CASE("zeros, sizes and what is not finite in trellis", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count = TestType::value;
    bq::trellis<count> const codec;
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    auto const scale_of = [](test::row_bytes const& row) { return bq::detail::load_half<bf::bfloat16>(row.data()); };
    for (bf::index_t const n : {16, 48, 128, 240, 576, 1024}) {
        CAPTURE(seed, count, n);
        for (float const zero : {0.0F, -0.0F}) {
            test::row_bytes const row = test::pack(codec, test::row_floats(static_cast<std::size_t>(n), zero), n);
            REQUIRE(std::all_of(row.begin(), row.end(), [](std::byte b) { return b == std::byte{0}; }));
            for (float const v : test::unpack(codec, row, n)) REQUIRE((v == 0.0F && !std::signbit(v)));
            for (float const v : decoded_in_basis(codec, row, n)) REQUIRE((v == 0.0F && !std::signbit(v)));
        }
        test::row_floats const x = test::gaussian_row(draws, n);
        test::row_floats const y = test::round_trip(codec, x, n);
        REQUIRE(test::relative_error(x, y) <= 3.0 * trellis_bound<count>);
        for (int const power : {-100, -60, 1, 100, 112}) { // to 1e-30 and 1e34
            test::row_floats scaled = x, wanted = y;
            for (float& v : scaled) v = std::ldexp(v, power);
            for (float& v : wanted) v = std::ldexp(v, power);
            REQUIRE(test::round_trip(codec, scaled, n) == wanted);
        }
        for (float const constant : {1.0F, -3.7F, 1e30F, -1e-30F, 0x1.fffffep115F}) {
            test::row_floats const c(static_cast<std::size_t>(n), constant);
            REQUIRE(test::relative_error(c, test::round_trip(codec, c, n)) <= 3.0 * trellis_bound<count>);
        }
        auto const gathered = test::gathered_row(draws, bq::rotation{codec.seed()}, n, 0x1.fffffep115F);
        for (float const v : test::round_trip(codec, gathered, n)) REQUIRE(std::isfinite(v));
        for (float const size : {1e-36F, 1e-38F, 1e-40F, 1e-43F, 1e-45F}) {
            test::row_floats tiny = x;
            for (float& v : tiny) v = std::max(std::fabs(v), 1.0F) * std::copysign(size, v);
            test::row_bytes const row = test::pack(codec, tiny, n);
            REQUIRE(scale_of(row) >= 0x1p-133F);
            for (float const v : test::unpack(codec, row, n))
                REQUIRE(std::fabs(v) <= 8.0F * size + std::sqrt(static_cast<float>(n)) * 127 * 0x1p-133F);
        }
        test::row_floats one(static_cast<std::size_t>(n), 0.0F);
        one[5] = -1e-45F;
        REQUIRE(scale_of(test::pack(codec, one, n)) > 0.0F);
        float const nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
        for (float const bad : {nan, -nan, infinity, -infinity, 0x1p116F, -3.4e38F}) {
            test::row_floats b                          = x;
            b[static_cast<std::size_t>(draws.below(n))] = bad;
            for (float const v : test::round_trip(codec, b, n)) REQUIRE(std::isnan(v));
        }
    }
}

TEMPLATE_TEST_CASE("trellis packs any row there is", "[quant]", bits<2>, bits<3>, bits<4>) {
    constexpr int count      = TestType::value;
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    for (bf::index_t const n : {16, 48, 128, 1024})
        for (bq::scale_rule const rule : {bq::scale_rule::least_squares, bq::scale_rule::unbiased})
            for (int i = 0; i < 12; ++i) {
                // One coordinate, of the rotated row: nothing a walk of this kind is made for, and the largest there
                // is.
                bq::trellis<count> const codec(draws.bits(), rule);
                test::row_floats x(static_cast<std::size_t>(n), 0.0F);
                for (int k = 0; k <= i % 3; ++k)
                    x[static_cast<std::size_t>(draws.below(n))] =
                        std::ldexp(draws.uniform() < 0.5 ? -1.0F : 1.0F, i < 6 ? 115 : -20);
                bq::rotation{codec.seed()}.inverse(x.data(), n);
                CAPTURE(seed, n, i, codec.name());
                test::row_floats const y = test::round_trip(codec, x, n);
                for (float const v : y) REQUIRE(std::isfinite(v));
                REQUIRE(test::dot(x, y) > 0.0);
            }
}

TEST_CASE("trellis takes rows of up to 1024 values", "[quant]") {
    REQUIRE(test::refusal<bq::trellis<3>>(1024) == "");
    REQUIRE(test::refusal<bq::trellis<3>>(16) == "");
    for (bf::index_t const n : {0, -16, 8, 100, 1040, 2048})
        REQUIRE(test::refusal<bq::trellis<3>>(n) ==
                "trellis: head_dim " + std::to_string(n) + " is not a multiple of 16 up to 1024");
}

TEST_CASE("rows of trellis have the same bytes everywhere", "[quant]") {
    using test::bytes_and_values;
    auto const row = [](auto const& codec) {
        return test::hex(test::pack(codec, test::pattern_row(test::pattern::bell, 4, 48), 48));
    };
    REQUIRE(row(bq::trellis<2>()) == "6940c7be8cdf655009d394f83989");
    REQUIRE(row(bq::trellis<3>()) == "5b40d57eef9bf7bab92a5b5d0a2fcb3296111624");
    REQUIRE(row(bq::trellis<4>()) == "63402b199deb1a391f341466fc870ea3b96fde55561833023ff7");
    REQUIRE(row(bq::trellis<4>(1, bq::scale_rule::unbiased)) == "64402b199deb1a391f341466fc870ea3b96fde55561833023ff7");
    REQUIRE(bytes_and_values(bq::trellis<2>()) == "e6de165aa45463c8");
    REQUIRE(bytes_and_values(bq::trellis<3>()) == "5a6b2b9e91e76e33");
    REQUIRE(bytes_and_values(bq::trellis<4>()) == "356afcf7a5d5e285");
    REQUIRE(bytes_and_values(bq::trellis<2>(3, bq::scale_rule::unbiased)) == "fd1fe928ae0b122c");
}
