// SPDX-License-Identifier: MIT

// What every codec owes: bytes, zeros, what is not finite, sizes of every order, a second round, head_dims it refuses.
// Where a codec says other than the rest, traits<Codec> says so.

#include <butterfly/quant/affine.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/quant/outliers.hpp>

#include "quant/inputs.hpp"

namespace bf = butterfly;
namespace bq = butterfly::quant;

namespace {

struct unbiased_lloyd_max : bq::lloyd_max<8> {
    unbiased_lloyd_max() : lloyd_max(3, bq::scale_rule::unbiased) {}
};

using all_codecs = std::tuple<bq::lloyd_max<4>,
                              bq::lloyd_max<6>,
                              bq::lloyd_max<8>,
                              bq::lloyd_max<16>,
                              bq::lloyd_max<32>,
                              unbiased_lloyd_max,
                              bq::affine<2, 32>,
                              bq::affine<3, 64>,
                              bq::affine<4, 128>,
                              bq::affine<8, 64>,
                              bq::int8,
                              bq::outliers<bq::affine<2, 64>, 4>,
                              bq::outliers<bq::int8, 3>,
                              bq::outliers<bq::lloyd_max<16>, 2>,
                              bq::affine_channels<2, 32>,
                              bq::affine_channels<3, 64>,
                              bq::affine_channels<4, 128>,
                              bq::affine_channels<8, 32>>;

/// Error of Gaussian rows at most; the part of it that a second round may add; whether a value at (token, channel) may
/// make another NaN; the scale of a value.
template <class Codec>
struct traits;

template <int Levels>
struct traits<bq::lloyd_max<Levels>> {
    static constexpr double error        = Levels == 4    ? 0.12
                                           : Levels == 6  ? 0.06
                                           : Levels == 8  ? 0.035
                                           : Levels == 16 ? 0.009
                                                          : 0.0024;
    static constexpr double second_round = 0.01;
    static constexpr bool rotated        = true;
    static constexpr int spared          = 0;
    static bool together(bf::index_t, bf::index_t) { return true; }
    static float scale(test::row_bytes const& row, bf::index_t) {
        return bq::detail::load_half<bf::bfloat16>(row.data());
    }
};
template <>
struct traits<unbiased_lloyd_max> : traits<bq::lloyd_max<8>> {};

template <int Bits, int Group>
struct traits<bq::affine<Bits, Group>> {
    static constexpr double error        = Bits == 2 ? 0.13 : Bits == 3 ? 0.036 : Bits == 4 ? 0.0095 : 4e-5;
    static constexpr double second_round = Bits == 8 ? 0.4 : 0.01;
    static constexpr bool rotated        = false;
    static constexpr int spared          = 0;
    static bool together(bf::index_t a, bf::index_t b) { return a / Group == b / Group; }
    static float scale(test::row_bytes const& row, bf::index_t d) {
        return bq::detail::load_half<bf::bfloat16>(row.data() + 4 * (d / Group));
    }
};

template <>
struct traits<bq::int8> {
    static constexpr double error        = 6e-5;
    static constexpr double second_round = 0.0;
    static constexpr bool rotated        = false;
    static constexpr int spared          = 0;
    static bool together(bf::index_t, bf::index_t) { return true; }
    static float scale(test::row_bytes const& row, bf::index_t) {
        return bq::detail::load_half<bf::bfloat16>(row.data());
    }
};

template <class Base, int Count>
struct traits<bq::outliers<Base, Count>> : traits<Base> {
    static constexpr double second_round = traits<Base>::second_round + 0.2; // Base has other values at their places
    static constexpr int spared          = Count;                            // of values that are not finite
};

template <int Bits, int Tokens>
struct traits<bq::affine_channels<Bits, Tokens>> : traits<bq::affine<Bits, 128>> {
    static bool together(bf::index_t a, bf::index_t b) { return a == b; }
    static float scale(test::row_bytes const& tile, bf::index_t d) {
        return bq::detail::load_half<bf::bfloat16>(tile.data() + 4 * d);
    }
};

template <class Codec>
constexpr bf::index_t tokens_of = bq::tile_tokens_of<Codec>();

template <class Codec>
test::row_floats gaussian_rows(bf::testing::random& draws, bf::index_t n) {
    return test::gaussian_row(draws, tokens_of<Codec> * n);
}

std::vector<bf::index_t> some_lengths() {
    return {16, 48, 80, 96, 112, 128, 192, 256, 320};
}

/// A decoder of one float: row j of a tile is 100 * tile + j.
struct numbered_rows {
    static constexpr bf::index_t tile_tokens = 8;
    [[nodiscard]] bf::index_t row_bytes(bf::index_t) const { return 1; }
    void decode(std::byte const* row, bf::index_t, float* out) const noexcept {
        bq::tile_row<tile_tokens> const at(row);
        *out = static_cast<float>(100 * std::to_integer<int>(*at.tile) + static_cast<int>(at.token));
    }
    void encode_tile(float const* values, bf::index_t, bf::index_t, std::byte* tile) const noexcept {
        *tile = static_cast<std::byte>(values[0]);
    }
};

struct read_only {
    [[nodiscard]] bf::index_t row_bytes(bf::index_t n) const { return n; }
    void decode(std::byte const*, bf::index_t, float*) const noexcept {}
};

} // namespace

TEST_CASE("codecs of rows, of tiles, and decoders", "[quant]") {
    STATIC_REQUIRE(bq::row_codec<bq::raw<bf::float16>>);
    STATIC_REQUIRE(!bq::tile_codec<bq::raw<bf::float16>>);
    STATIC_REQUIRE(bq::tile_codec<numbered_rows>);
    STATIC_REQUIRE(bq::codec<numbered_rows>);
    STATIC_REQUIRE(!bq::row_codec<numbered_rows>);
    STATIC_REQUIRE(bq::decoder<read_only>);
    STATIC_REQUIRE(!bq::codec<read_only>);
    STATIC_REQUIRE(bq::tile_tokens_of<numbered_rows>() == 8);
    STATIC_REQUIRE(bq::tile_tokens_of<read_only>() == 1);
    STATIC_REQUIRE(bq::encoder_of<read_only>() == nullptr);
    REQUIRE(test::refusal<read_only>(7) == ""); // no rule: any length
    REQUIRE(test::refusal<bq::raw<float>>(7) == "");
}

TEMPLATE_LIST_TEST_CASE("a codec without its type encodes as with it", "[quant]", all_codecs) {
    bf::testing::random draws(9);
    TestType const codec;
    constexpr bf::index_t n = 48, stride = n + 5;
    constexpr bq::encoder encode = bq::encoder_of<TestType>();
    test::row_floats const x     = gaussian_rows<TestType>(draws, n);
    test::row_floats apart(static_cast<std::size_t>(tokens_of<TestType> * stride), -77.0F);
    for (bf::index_t t = 0; t < tokens_of<TestType>; ++t) std::copy_n(x.begin() + t * n, n, apart.begin() + t * stride);
    test::packed_memory<TestType> const memory(codec, n, std::byte{0}, 16);
    encode(&codec, apart.data(), stride, n, memory.data());
    REQUIRE(memory.canaries_live());
    REQUIRE(memory.bytes() == test::pack(codec, x, n));
}

TEST_CASE("an address names a tile and a row of it", "[quant]") {
    alignas(8) std::byte memory[24] = {};
    memory[0]                       = std::byte{1};
    memory[8]                       = std::byte{2};
    memory[16]                      = std::byte{3};
    for (int i = 0; i < 24; ++i) {
        float out = 0.0F;
        numbered_rows().decode(memory + i, 1, &out);
        REQUIRE(out == static_cast<float>(100 * (i / 8 + 1) + i % 8));
    }
}

TEST_CASE("raw rows are elements as they are", "[quant]") {
    test::row_floats const x{0.0F, -0.0F, 1.0F, -2.5F, 3e38F, 1e-40F, 65504.0F};
    REQUIRE(test::round_trip(bq::raw<float>(), x, 7) == x);
    REQUIRE(test::hex(test::pack(bq::raw<bf::bfloat16>(), {1.0F, -2.0F, 1.00390625F}, 3), 2) == "803f 00c0 803f");
    REQUIRE(test::hex(test::pack(bq::raw<bf::float16>(), {1.0F, -2.0F, 65504.0F}, 3), 2) == "003c 00c0 ff7b");
    REQUIRE(bq::raw<float>().row_bytes(7) == 28);
    REQUIRE(bq::raw<bf::float16>().row_bytes(7) == 14);
    REQUIRE(std::string(bq::raw<bf::bfloat16>::name()) == "bf16");
}

TEMPLATE_LIST_TEST_CASE("a codec writes all of its bytes, and what stood there is not felt", "[quant]", all_codecs) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    TestType const codec;
    for (bf::index_t const n : some_lengths()) {
        CAPTURE(seed, n);
        test::row_floats const x = gaussian_rows<TestType>(draws, n);
        test::row_bytes const a  = test::pack(codec, x, n, std::byte{0x00});
        REQUIRE(test::pack(codec, x, n, std::byte{0xff}) == a);
        REQUIRE(std::ssize(a) == tokens_of<TestType> * codec.row_bytes(n));
        test::row_floats const y = test::unpack(codec, a, n);
        REQUIRE(test::relative_error(x, y) <= 3.0 * traits<TestType>::error);
        REQUIRE(test::unpack(codec, a, n) == y);
    }
}

TEMPLATE_LIST_TEST_CASE("zeros are exact", "[quant]", all_codecs) {
    TestType const codec;
    for (bf::index_t const n : {16, 48, 128, 1024}) {
        auto const count          = static_cast<std::size_t>(tokens_of<TestType> * n);
        test::row_bytes const row = test::pack(codec, test::row_floats(count, 0.0F), n);
        for (float const v : test::unpack(codec, row, n)) {
            REQUIRE(v == 0.0F);
            REQUIRE((!std::signbit(v) || traits<TestType>::rotated)); // a rotation signs them
        }
        for (bf::index_t d = 0; d < n; ++d) REQUIRE(traits<TestType>::scale(row, d) == 0.0F);
        for (float const v : test::round_trip(codec, test::row_floats(count, -0.0F), n)) REQUIRE(v == 0.0F);
    }
}

TEMPLATE_LIST_TEST_CASE("constants of any size are kept", "[quant]", all_codecs) {
    TestType const codec;
    for (float const size : {1.0F, -3.7F, 1e30F, -1e30F, 1e-30F, 0x1.fffffep115F})
        for (bf::index_t const n : {16, 80, 128}) {
            CAPTURE(size, n);
            test::row_floats const x(static_cast<std::size_t>(tokens_of<TestType> * n), size);
            test::row_floats const y = test::round_trip(codec, x, n);
            // Not rotated, one value is one point of a grid: a bfloat16 is within 2^-8 of it.
            double const allowed = traits<TestType>::rotated ? 3.0 * traits<TestType>::error : 0x1p-16;
            REQUIRE(test::relative_error(x, y) <= allowed);
        }
}

TEMPLATE_LIST_TEST_CASE("a power of two more is one in the scale", "[quant]", all_codecs) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    TestType const codec;
    for (bf::index_t const n : {16, 80, 128}) {
        test::row_floats const x = gaussian_rows<TestType>(draws, n);
        test::row_floats const y = test::round_trip(codec, x, n);
        for (int const power : {-80, -60, -1, 1, 40, 100, 112}) {
            CAPTURE(seed, n, power);
            test::row_floats scaled = x, wanted = y;
            for (float& v : scaled) v = std::ldexp(v, power);
            for (float& v : wanted) v = std::ldexp(v, power);
            REQUIRE(test::round_trip(codec, scaled, n) == wanted);
        }
    }
}

TEMPLATE_LIST_TEST_CASE("rows of tiny values lose precision, and their scale is not zero", "[quant]", all_codecs) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    TestType const codec;
    for (float const size : {1e-36F, 1e-38F, 1e-40F, 1e-43F, 1e-45F}) {
        constexpr bf::index_t n = 128;
        test::row_floats x      = gaussian_rows<TestType>(draws, n);
        for (float& v : x) v = std::max(std::fabs(v), 1.0F) * std::copysign(size, v);
        test::row_bytes const row = test::pack(codec, x, n);
        for (bf::index_t d = 0; d < n; ++d) {
            CAPTURE(seed, size, d);
            REQUIRE(traits<TestType>::scale(row, d) >= 0x1p-133F);
        }
        // A scale of 2^-133 is a step of 1e-40, or of level 127 of that.
        for (float const v : test::unpack(codec, row, n)) REQUIRE(std::fabs(v) <= 8.0F * size + 12 * 127 * 0x1p-133F);
    }
    // One value that is not zero is enough.
    if constexpr (traits<TestType>::spared == 0)
        for (float const v : {1e-45F, -1e-45F, 1e-40F}) {
            test::row_floats x(static_cast<std::size_t>(tokens_of<TestType> * 16), 0.0F);
            x[5] = v;
            REQUIRE(traits<TestType>::scale(test::pack(codec, x, 16), 5) > 0.0F);
        }
}

TEMPLATE_LIST_TEST_CASE("what cannot be coded is NaN wherever its scale is felt, and nowhere else",
                        "[quant]",
                        all_codecs) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    TestType const codec;
    float const infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    for (bf::index_t const n : {48, 128, 144})
        for (float const bad : {nan, -nan, std::numeric_limits<float>::signaling_NaN(), infinity, -infinity, 0x1p116F,
                                -0x1p116F, 3.4e38F}) {
            test::row_floats x  = gaussian_rows<TestType>(draws, n);
            bf::index_t const t = draws.below(tokens_of<TestType>), d = draws.below(n);
            constexpr int spared = traits<TestType>::spared;
            std::vector<bf::index_t> held; // channels that outliers keep alone
            if constexpr (spared > 0)
                for (int i = 0; i < spared; ++i) held.push_back((d + 1 + 7 * i) % n);
            for (bf::index_t const channel : held) x[static_cast<std::size_t>(t * n + channel)] = nan;
            x[static_cast<std::size_t>(t * n + d)] = bad;
            // The outliers are the first of the largest: those that are not finite, by place.
            std::vector<bf::index_t> unfit = held;
            unfit.push_back(d);
            if constexpr (spared > 0) {
                std::sort(unfit.begin(), unfit.end());
                if (std::isfinite(bad)) std::erase(unfit, d), unfit.push_back(d);
                held.assign(unfit.begin(), unfit.begin() + spared);
                unfit.erase(unfit.begin(), unfit.begin() + spared);
            }
            test::row_floats const y = test::round_trip(codec, x, n);
            auto const right         = [&](bf::index_t i) {
                float const v = y[static_cast<std::size_t>(i)];
                if (std::find(held.begin(), held.end(), i % n) == held.end())
                    return std::isnan(v) ? traits<TestType>::together(unfit.front(), i % n)
                                                 : std::isfinite(v) && !traits<TestType>::together(unfit.front(), i % n);
                return i % n == d && !std::isnan(bad) ? v == static_cast<float>(bf::bfloat16(bad)) : std::isnan(v);
            };
            bf::index_t wrong = 0;
            while (wrong < std::ssize(y) && right(wrong)) ++wrong;
            CAPTURE(seed, n, bad, t, d);
            REQUIRE(wrong == std::ssize(y));
        }
}

TEMPLATE_LIST_TEST_CASE("the largest values that can be coded are finite", "[quant]", all_codecs) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    TestType const codec;
    for (bf::index_t const n : {16, 128, 240}) {
        test::row_floats x = gaussian_rows<TestType>(draws, n);
        float top          = 0.0F;
        for (float const v : x) top = std::max(top, std::fabs(v));
        for (float& v : x) v = v / top * 0x1.fffffep115F;
        test::row_floats const y = test::round_trip(codec, x, n);
        CAPTURE(seed, n);
        for (float const v : y) REQUIRE(std::isfinite(v));
        REQUIRE(test::relative_error(x, y) <= 3.0 * traits<TestType>::error);
    }
    if constexpr (requires { codec.format(); })
        for (bf::index_t const n : {48, 336, 528, 576, 1008, 1024}) {
            if (!codec.format().rotated) break;
            CAPTURE(seed, n);
            auto const x = test::gathered_row(draws, bq::rotation{codec.format().seed}, n, 0x1.fffffep115F);
            for (float const v : test::round_trip(codec, x, n)) REQUIRE(std::isfinite(v));
        }
}

TEMPLATE_LIST_TEST_CASE("means that are large against the spread are kept", "[quant]", all_codecs) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    TestType const codec;
    for (bf::index_t const n : {16, 80, 128}) {
        test::row_floats x = gaussian_rows<TestType>(draws, n);
        for (float& v : x) v = 1000.0F + 0.1F * v;
        CAPTURE(seed, n);
        REQUIRE(test::relative_error(x, test::round_trip(codec, x, n)) <=
                (traits<TestType>::rotated ? 3.0 * traits<TestType>::error : 0x1p-16));
    }
}

TEMPLATE_LIST_TEST_CASE("a second round adds a small part of the error of the first", "[quant]", all_codecs) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    TestType const codec;
    double first = 0.0, second = 0.0, third = 0.0;
    int const rounds = tokens_of<TestType> == 1 ? 200 : 4;
    for (int i = 0; i < rounds; ++i) {
        test::row_floats const x = gaussian_rows<TestType>(draws, 128);
        test::row_floats const y = test::round_trip(codec, x, 128), z = test::round_trip(codec, y, 128);
        first += test::relative_error(x, y);
        second += test::relative_error(y, z);
        third += test::relative_error(z, test::round_trip(codec, z, 128));
    }
    CAPTURE(seed, first, second, third);
    REQUIRE(second <= traits<TestType>::second_round * first);
    REQUIRE(third <= traits<TestType>::second_round * first);
}

TEMPLATE_LIST_TEST_CASE("a head_dim that is refused is named, with its codec and its rule", "[quant]", all_codecs) {
    for (bf::index_t const n : some_lengths()) REQUIRE(test::refusal<TestType>(n) == "");
    REQUIRE(test::refusal<TestType>(1024) == "");
    for (bf::index_t const n : {-16, 0, 1, 8, 17, 100}) {
        std::string const text = test::refusal<TestType>(n), name(TestType().name());
        CAPTURE(n, text);
        REQUIRE(text.find(name.substr(0, name.find_first_of("< "))) == 0);
        REQUIRE(text.find("head_dim " + std::to_string(n) + " is not a multiple of 16") != std::string::npos);
    }
    for (bf::index_t const n : {1040, 2048})
        REQUIRE(test::refusal<TestType>(n).find("head_dim " + std::to_string(n) +
                                                " is not a multiple of 16 up to 1024") != std::string::npos);
}
