// SPDX-License-Identifier: MIT
#include <butterfly/quant/affine_channels.hpp>

#include "quant/inputs.hpp"

namespace bf = butterfly;
namespace bq = butterfly::quant;

namespace {

template <int Bits, int Tokens>
struct tile_of {
    static constexpr int bits = Bits, tokens = Tokens;
    static constexpr bq::packing packing = Bits == 2   ? bq::packing::bits2
                                           : Bits == 3 ? bq::packing::bits3
                                           : Bits == 4 ? bq::packing::bits4
                                                       : bq::packing::bits8;
    using codec                          = bq::affine_channels<Bits, Tokens>;
    using grid                           = bq::detail::grid_fit<Bits>;
};

using all_tiles = std::tuple<tile_of<2, 32>,
                             tile_of<2, 64>,
                             tile_of<2, 128>,
                             tile_of<3, 32>,
                             tile_of<3, 64>,
                             tile_of<3, 128>,
                             tile_of<4, 32>,
                             tile_of<4, 64>,
                             tile_of<4, 128>,
                             tile_of<8, 32>,
                             tile_of<8, 128>>;

/// Keys [tokens, head_dim] with a mean and a size of its own for each channel.
test::row_floats some_keys(bf::testing::random& draws, bf::index_t tokens, bf::index_t head_dim) {
    test::row_floats means, sizes, x;
    for (bf::index_t d = 0; d < head_dim; ++d) {
        means.push_back(4.0F * test::gaussian(draws));
        sizes.push_back(std::ldexp(1.0F, static_cast<int>(draws.between(-3, 3))));
    }
    for (bf::index_t i = 0; i < tokens * head_dim; ++i) {
        auto const d = static_cast<std::size_t>(i % head_dim);
        x.push_back(means[d] + sizes[d] * test::gaussian(draws));
    }
    return x;
}

test::row_floats column(test::row_floats const& x, bf::index_t head_dim, bf::index_t d) {
    test::row_floats values;
    for (bf::index_t i = d; i < std::ssize(x); i += head_dim) values.push_back(x[static_cast<std::size_t>(i)]);
    return values;
}

} // namespace

TEST_CASE("tiles of affine_channels have the bytes of their table", "[quant]") {
    REQUIRE(bq::affine_channels<2, 32>().row_bytes(128) == 48);
    REQUIRE(bq::affine_channels<2, 64>().row_bytes(128) == 40);
    REQUIRE(bq::affine_channels<2, 128>().row_bytes(128) == 36);
    REQUIRE(bq::affine_channels<3, 32>().row_bytes(128) == 64);
    REQUIRE(bq::affine_channels<3, 64>().row_bytes(128) == 56);
    REQUIRE(bq::affine_channels<3, 128>().row_bytes(128) == 52);
    REQUIRE(bq::affine_channels<4, 32>().row_bytes(128) == 80);
    REQUIRE(bq::affine_channels<4, 64>().row_bytes(128) == 72);
    REQUIRE(bq::affine_channels<4, 128>().row_bytes(128) == 68);
    REQUIRE(bq::affine_channels<8, 32>().row_bytes(128) == 144);
    REQUIRE(bq::affine_channels<8, 64>().row_bytes(128) == 136);
    REQUIRE(bq::affine_channels<8, 128>().row_bytes(128) == 132);
    REQUIRE(bq::affine_channels<2, 128>().row_bytes(16) == 5); // (64 + 128 * 4) / 128, rounded up
    REQUIRE(bq::affine_channels<3, 64>().name() == "affine_channels<3, 64>");
    STATIC_REQUIRE(bq::tile_tokens_of<bq::affine_channels<3, 64>>() == 64);
    STATIC_REQUIRE(!bq::row_codec<bq::affine_channels<3, 64>>);
}

TEST_CASE("a tile of affine_channels, packed by hand", "[quant]") {
    // Channel d of token t is 2^(d % 3) * ((t + d) % 4 - 2 + d): scales 1, 2, 4, zeros d.
    test::row_floats x;
    for (int t = 0; t < 32; ++t)
        for (int d = 0; d < 16; ++d) x.push_back(std::ldexp(static_cast<float>((t + d) % 4 - 2 + d), d % 3));
    test::row_bytes const tile = test::pack(bq::affine_channels<2, 32>(), x, 16);
    REQUIRE(tile.size() == 16 * 4 + 32 * 4);
    auto const part = [&](int first, int end) { return test::hex({tile.begin() + first, tile.begin() + end}, 4); };
    // 1: 0x3f80, 2: 0x4000, 4: 0x4080; as float16 0, 1, 2, 3: 0, 0x3c00, 0x4000, 0x4200; 15: 0x4b80.
    REQUIRE(part(0, 16) == "803f0000 0040003c 80400040 803f0042");
    REQUIRE(part(60, 64) == "803f804b");
    // Token 0: codes d % 4, four of each plane alike: 0x00, 0x55, 0xaa, 0xff; token t starts with code t % 4.
    REQUIRE(part(64, 84) == "0055aaff 55aaff00 aaff0055 ff0055aa 0055aaff");
    REQUIRE(test::unpack(bq::affine_channels<2, 32>(), tile, 16) == x);
}

TEMPLATE_LIST_TEST_CASE("channels of affine_channels are groups of affine along tokens", "[quant]", all_tiles) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    typename TestType::codec const codec;
    constexpr bf::index_t tokens = TestType::tokens;
    for (bf::index_t const n : {16, 48, 112, 128}) {
        CAPTURE(seed, n);
        test::row_floats const x   = some_keys(draws, tokens, n);
        test::row_bytes const tile = test::pack(codec, x, n);
        test::row_floats const y   = test::unpack(codec, tile, n);
        bf::index_t const codes    = bq::detail::code_bytes(TestType::packing, n);
        for (bf::index_t d = 0; d < n; ++d) {
            std::uint8_t code[tokens];
            auto const grid = TestType::grid::choose(column(x, n, d).data(), tokens, code);
            REQUIRE(bq::detail::load_half<bf::bfloat16>(tile.data() + 4 * d) == static_cast<float>(grid.scale));
            REQUIRE(bq::detail::load_half<bf::float16>(tile.data() + 4 * d + 2) == static_cast<float>(grid.zero));
            for (bf::index_t t = 0; t < tokens; ++t) {
                REQUIRE(bq::detail::load_code(TestType::packing, tile.data() + 4 * n + t * codes, n, d) ==
                        (TestType::bits == 8 ? code[t] ^ 0x80U : code[t]));
                float const level = static_cast<float>(int{code[t]} - (1 << (TestType::bits - 1)));
                REQUIRE(y[static_cast<std::size_t>(t * n + d)] == grid.scale * (level + grid.zero));
            }
        }
        // The rest is padding, and zero.
        for (auto i = static_cast<std::size_t>(4 * n + tokens * codes); i < tile.size(); ++i)
            REQUIRE(tile[i] == std::byte{0});
        REQUIRE(std::ssize(tile) - 4 * n - tokens * codes < tokens);
    }
}

TEMPLATE_LIST_TEST_CASE("affine_channels has the error of affine, whatever the means", "[quant]", all_tiles) {
    bf::testing::random draws(1);
    // At 8 bits the means are felt: the scale is at least 1/1024 of them.
    double const bounds[4][3] = {
        {0.0975, 0.1106, 0.1179}, {0.0239, 0.0297, 0.0337}, {0.0056, 0.0073, 0.0088}, {4.0e-5, 4.2e-5, 4.5e-5}};
    double const bound = bounds[TestType::bits == 8 ? 3 : TestType::bits - 2][TestType::tokens == 32   ? 0
                                                                              : TestType::tokens == 64 ? 1
                                                                                                       : 2];
    int const tiles    = test::many_rows() / 100;
    double sum         = 0.0;
    for (int i = 0; i < tiles; ++i) {
        test::row_floats const x = some_keys(draws, TestType::tokens, 64);
        test::row_floats const y = test::round_trip(typename TestType::codec(), x, 64);
        for (bf::index_t d = 0; d < 64; ++d) {
            test::row_floats const wanted = column(x, 64, d), got = column(y, 64, d);
            double mean = 0.0, variance = 0.0; // error is relative to the spread, not to the mean
            for (float const v : wanted) mean += v / static_cast<double>(wanted.size());
            for (float const v : wanted) variance += std::pow(v - mean, 2);
            sum += test::relative_error(wanted, got) * test::dot(wanted, wanted) / variance / 64 / tiles;
        }
    }
    CAPTURE(sum, bound);
    REQUIRE(sum <= 1.02 * bound); // the mean of a tile takes a share of the spread
    REQUIRE(sum >= 0.85 * bound);
}

TEMPLATE_LIST_TEST_CASE("channels of affine_channels do not see each other", "[quant]", all_tiles) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    typename TestType::codec const codec;
    constexpr bf::index_t n    = 48;
    test::row_floats const x   = some_keys(draws, TestType::tokens, n);
    test::row_floats const was = test::round_trip(codec, x, n);
    for (float const mean : {1000.0F, 1e30F, -1e-30F}) {
        test::row_floats other = x;
        for (std::size_t i = 5; i < x.size(); i += n) other[i] = mean * (1.0F + 1e-4F * x[i] / 64.0F);
        test::row_floats const is = test::round_trip(codec, other, n);
        for (std::size_t i = 0; i < x.size(); ++i) {
            CAPTURE(seed, mean, i);
            if (i % n != 5)
                REQUIRE(is[i] == was[i]);
            else
                REQUIRE(std::fabs(is[i] - other[i]) <= 0x1p-10F * std::fabs(other[i]));
        }
    }
}

TEMPLATE_LIST_TEST_CASE("an address in a tile names the row", "[quant]", all_tiles) {
    typename TestType::codec const codec;
    constexpr bf::index_t n = 16, tokens = TestType::tokens;
    bf::testing::random draws(6);
    // Tiles one behind the other, at multiples of `tokens` and of no more.
    auto const bytes         = static_cast<std::size_t>(tokens * codec.row_bytes(n));
    test::row_floats const x = some_keys(draws, 3 * tokens, n);
    std::vector<std::byte> memory(3 * bytes + 2 * static_cast<std::size_t>(tokens));
    std::size_t skip = 0;
    while (reinterpret_cast<std::uintptr_t>(memory.data() + skip) % tokens != 0) ++skip;
    if (reinterpret_cast<std::uintptr_t>(memory.data() + skip) % (2 * tokens) == 0)
        skip += static_cast<std::size_t>(tokens);
    for (std::size_t i = 0; i < 3; ++i)
        codec.encode_tile(x.data() + static_cast<bf::index_t>(i) * tokens * n, n, n, memory.data() + skip + i * bytes);
    for (std::size_t i = 0; i < 3; ++i) {
        auto const first             = x.begin() + static_cast<bf::index_t>(i) * tokens * n;
        test::row_floats const alone = test::round_trip(codec, {first, first + tokens * n}, n);
        for (bf::index_t j = 0; j < tokens; ++j) {
            test::row_floats row(n);
            codec.decode(memory.data() + skip + i * bytes + static_cast<std::size_t>(j), n, row.data());
            REQUIRE(row == test::row_floats(alone.begin() + j * n, alone.begin() + (j + 1) * n));
        }
    }
}

TEST_CASE("affine_channels takes rows of multiples of 16", "[quant]") {
    using codec = bq::affine_channels<2, 32>;
    for (bf::index_t const n : {16, 112, 1024}) REQUIRE(test::refusal<codec>(n) == "");
    for (bf::index_t const n : {0, 8, 100, -64, 1040, 2048})
        REQUIRE(test::refusal<codec>(n) ==
                "affine_channels: head_dim " + std::to_string(n) + " is not a multiple of 16 up to 1024");
}

TEST_CASE("tiles of affine_channels have the same bytes everywhere", "[quant]") {
    using test::bytes_and_values;
    REQUIRE(bytes_and_values(bq::affine_channels<2, 32>()) == "f25d4a91fb707d8f");
    REQUIRE(bytes_and_values(bq::affine_channels<2, 128>()) == "7d70c3eab5727cb0");
    REQUIRE(bytes_and_values(bq::affine_channels<3, 64>()) == "7e66751525384902");
    REQUIRE(bytes_and_values(bq::affine_channels<4, 32>()) == "9f980ea8afdbd9cf");
}
