// SPDX-License-Identifier: MIT

// ggml's block formats against rows packed by its own Python package (gguf 0.19.0), whose codes are those of the
// reference in C compiled without contraction; and what is stated where that one defines nothing.

#include <butterfly/quant/ggml.hpp>

#include "quant/inputs.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace bf = butterfly;

namespace ggml_rows { // names of its own, for builds that compile several of these files as one

namespace {

using bytes     = std::vector<std::byte>;
using floats    = std::vector<float>;
using all_types = std::tuple<bf::quant::ggml_q8_0, bf::quant::ggml_q4_0, bf::quant::ggml_q4_1>;

/// Two blocks each, packed by gguf.
struct golden_row {
    std::string_view values;
    std::string_view q8_0, q4_0, q4_1;

    [[nodiscard]] std::string_view packed(std::string_view codec) const {
        return codec == "ggml_q8_0" ? q8_0 : codec == "ggml_q4_0" ? q4_0 : q4_1;
    }
};

constexpr golden_row golden[] = {
    {"spread",
     "e0238175531ac95fde4595cdecf4e5bd7d26b83194dd0f292c16eaa548d448a5e9157123"
     "2c290dd88a30b0247fb4ddede4c28841d45bbd124e727c6d4605ab46ba23729c",
     "d03330bf1d6a95beb69c7125d757d6247f9a62b3b525c77b3f150d16408dda49ca6c1fe4",
     "2234d0bf30af1d5984ada69c6125c657c6246f9aac3300bf5ada3885c0eaf2e9cf8325c6"
     "3694e01b"},
    {"halves",
     "082ce010406fa981083867a1d000305f99c8f8285791c0f0204f89b9e8184777b1e0082c"
     "10406fa9d8813867a1d000305f99c8f8285791c0f0204f89b9e8184777b1e010",
     "003c86b9ec1f4370a9dc1f4275a8dbfe3265003cb9ec1f4376a0dc1f4275a8dbfe326598",
     "223c00c876a9dc1f4270a8db0e326598cbfe3164223c00c8a9dc1f4275a0db0e326598cb"
     "fe316497"},
    {"ties",
     "003cfe010407fa7f010407fafd000306f9fcff0306f9fcff0205f8fbfe020508fbfe003c"
     "010407fafd7f0407fafd000306f9fcff0306f9fcff0205f8fbfe020508fbfe01",
     "f0cb88888888888088888888888888888888f0cb88888888888088888888888888888888",
     "7c4880c711111102001f111102001111112200107c4880c711110200111f110200111111"
     "22001011"},
    {"cusp",
     "4b49e8f0f87f081018e8f07700081018e8f0f800081018e8f0f800081018e8f0f8004b49"
     "08101881f0f800081018e8f0f800081018e8f0f800081018e8f0f800891018e8",
     "40d99a89897078a7979a89817878a7979a894059a9797a80879898a9797a87871898a979",
     "a656e0db2021324f53041520213e425304152021a65640e5fdaebfc0dbdcedfdaebfcadb"
     "1cedfdae"},
    {"offset",
     "50367e7f7f7f7f7f7f7f7e7f7f7f7f7f7f7f7f7f7e7f7f7f7f7f7f7e7f7f7f7e7f7f5036"
     "7f7f7f7f7e7f7f7f7f7f7f7f7f7f7e7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7e",
     "44c60000000000000000000000000000000044c600000000000000000000000000000000",
     "22243c5230af1d5984ada69c6125c657c6246f9aac233c525ada3885c0eaf2e9cf8325c6"
     "3694e01b"},
    {"tiny",
     "00008175531ac95fde4595cdecf4e5bd7d26b83194dd0f292c16eaa548d448a5e9150000"
     "2c290dd88a30b0247fb4ddede4c28841d45bbd124e727c6d4605ab46ba23729c",
     "040030bf1d6a95beb69c7125d757d6247f9a0480b525c77b3f150d16408dda49ca6c1fe4",
     "04001f8030af1d5984ada69c6125c657c6246f9a04001c805ada3885c0eaf2e9cf8325c6"
     "3694e01b"},
    {"huge",
     "e06b8175531ac95fde4595cdecf4e5bd7d26b83194dd0f292c16eaa548d448a5e915716b"
     "2c290dd88a30b0247fb4ddede4c28841d45bbd124e727c6d4605ab46ba23729c",
     "d07b30bf1d6a95beb69c7125d757d6247f9a62fbb525c77b3f150d16408dda49ca6c1fe4",
     "007c00fc30af1d5984ada69c6125c657c6246f9aac7b00fc5ada3885c0eaf2e9cf8325c6"
     "3694e01b"},
    {"zeros",
     "000000000000000000000000000000000000000000000000000000000000000000000000"
     "0000000000000000000000000000000000000000000000000000000000000000",
     "008088888888888888888888888888888888008088888888888888888888888888888888",
     "000000000000000000000000000000000000000000000000000000000000000000000000"
     "00000000"},
};

/// The values of a golden row: all exact in float.
floats values_of(std::string_view name) {
    auto const value = [&](int i) {
        auto const spread = static_cast<float>((i * i * 7919 + 13 * i) % 2003 - 1000) * 0x1p-9F; // +-2
        auto const halves = static_cast<float>((i * 37 + 11) % 31 - 15) * 0.5F;                  // +-7.5
        if (name == "spread") return spread;
        if (name == "halves") return i % 32 == 5 ? -8.0F : halves; // q4_0 has scale 1: ties
        if (name == "ties") return i % 32 == 5 ? 127.0F : halves;  // q8_0 has scale 1
        if (name == "offset") return spread * 0x1p-4F + 50.0F;     // far from zero
        if (name == "tiny") return spread * 0x1p-20F;              // scales are subnormal halves
        if (name == "huge") return spread * 0x1p18F;               // some are infinite
        if (name == "zeros") return 0.0F;
        if (i % 32 == 3) return i < 32 ? 1344.0F : -1344.0F; // "cusp": q4_0 takes another code where the product of
        if (i == 9 || i == 60) return i < 32 ? 1260.0F : -1260.0F; // these is not rounded before the sum
        return static_cast<float>(i % 7 - 3) * 84.0F;
    };
    floats x;
    for (int i = 0; i < 64; ++i) x.push_back(value(i));
    return x;
}

template <class Codec>
bytes encoded(floats const& x) {
    return test::pack(Codec{}, x, std::ssize(x));
}

template <class Codec>
floats decoded(bytes const& row, bf::index_t head_dim) {
    return test::unpack(Codec{}, row, head_dim);
}

template <class Codec>
floats round_trip(floats const& x) {
    return decoded<Codec>(encoded<Codec>(x), std::ssize(x));
}

/// How far a value may be from what it comes back as: half a step, the rounding of the halves, and for q4_0 a whole
/// step where the other sign is nearly as large.
float allowed(std::string_view name, float const* x, float value) {
    auto const [low, high] = std::minmax_element(x, x + 32);
    float const top        = std::max(std::abs(*low), std::abs(*high));
    if (name == "ggml_q8_0") return top / 127.0F * 0.5F + top * 0x1p-11F;
    if (name == "ggml_q4_1") return (*high - *low) / 15.0F * (0.5F + 15 * 0x1p-11F) + std::abs(*low) * 0x1p-11F;
    bool const opposite = std::abs(value) > top * 0.93F;
    return top / 8.0F * (opposite ? 1.0F : 0.5F) + top * 0x1p-11F;
}

} // namespace

TEMPLATE_LIST_TEST_CASE("ggml rows are packed as ggml packs them", "[quant]", all_types) {
    for (golden_row const& row : golden) {
        CAPTURE(TestType::name(), row.values);
        bytes const packed = encoded<TestType>(values_of(row.values));
        REQUIRE(TestType{}.row_bytes(64) * 2 == std::ssize(row.packed(TestType::name())));
        REQUIRE(test::hex(packed) == row.packed(TestType::name()));
    }
}

TEMPLATE_LIST_TEST_CASE("ggml rows come back as ggml reads them", "[quant]", all_types) {
    std::string_view const name = TestType::name();
    std::mt19937 random(1);
    for (int repeat = 0; repeat < 200; ++repeat) {
        bytes row(static_cast<std::size_t>(TestType{}.row_bytes(64)));
        for (std::byte& b : row) b = static_cast<std::byte>(random() & 0xffU);
        floats const out = decoded<TestType>(row, 64);

        bf::index_t const block_bytes = TestType{}.row_bytes(32), header = name == "ggml_q4_1" ? 4 : 2;
        for (bf::index_t i = 0; i < 64; ++i) {
            std::byte const* const block = row.data() + i / 32 * block_bytes;
            auto const half_at           = [&](int at) {
                bf::float16 h;
                h.bits = static_cast<std::uint16_t>(std::to_integer<unsigned>(block[at]) |
                                                    std::to_integer<unsigned>(block[at + 1]) << 8);
                return static_cast<double>(static_cast<float>(h));
            };
            bf::index_t const j = i % 32;
            int const byte      = std::to_integer<int>(block[header + (name == "ggml_q8_0" ? j : j % 16)]);
            int const code = name == "ggml_q8_0" ? (byte < 128 ? byte : byte - 256) : j < 16 ? byte % 16 : byte / 16;
            double const value =
                half_at(0) * (name == "ggml_q4_0" ? code - 8 : code) + (header == 4 ? half_at(2) : 0.0);
            CAPTURE(name, i);
            float const got = out[static_cast<std::size_t>(i)];
            REQUIRE((got == static_cast<float>(value) || (std::isnan(got) && std::isnan(value))));
        }
    }
}

TEST_CASE("a half times a code is exact in float", "[quant]") { // why contraction changes nothing
    int inexact = 0;
    for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
        bf::float16 d;
        d.bits = static_cast<std::uint16_t>(bits);
        if (!std::isfinite(static_cast<float>(d))) continue;
        for (int code = -128; code < 128; ++code)
            if (static_cast<double>(static_cast<float>(d) * static_cast<float>(code)) !=
                static_cast<double>(static_cast<float>(d)) * code)
                ++inexact;
    }
    REQUIRE(inexact == 0);
}

TEMPLATE_LIST_TEST_CASE("ggml rows: lengths, canaries, errors", "[quant]", all_types) {
    TestType const codec;
    std::string_view const name = TestType::name();
    std::mt19937 random(2);
    std::lognormal_distribution<float> size(0.0F, 1.0F);
    for (bf::index_t const n : {32, 64, 96, 128, 160, 256}) {
        CAPTURE(name, n);
        floats x(static_cast<std::size_t>(n));
        for (float& v : x) v = (random() & 1U) != 0U ? size(random) : -size(random);

        bytes row(1 + static_cast<std::size_t>(codec.row_bytes(n)) + 8, std::byte{0xa5}); // at an odd address
        REQUIRE(codec.row_bytes(n) == n / 32 * (name == "ggml_q8_0" ? 34 : name == "ggml_q4_0" ? 18 : 20));
        codec.encode(x.data(), n, row.data() + 1);
        REQUIRE(row[0] == std::byte{0xa5});
        REQUIRE(std::all_of(row.end() - 8, row.end(), [](std::byte b) { return b == std::byte{0xa5}; }));

        floats out(x.size() + 8, 123.0F);
        codec.decode(row.data() + 1, n, out.data());
        REQUIRE(std::all_of(out.end() - 8, out.end(), [](float v) { return v == 123.0F; }));
        for (std::size_t i = 0; i < x.size(); ++i) {
            CAPTURE(i, x[i], out[i]);
            REQUIRE(std::abs(x[i] - out[i]) <= allowed(name, x.data() + i / 32 * 32, x[i]));
        }
    }
}

TEMPLATE_LIST_TEST_CASE("ggml rows: values that are not finite, huge or tiny", "[quant]", all_types) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    floats const clean       = values_of("spread");
    floats const wanted      = round_trip<TestType>(clean);
    for (float const bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity})
        for (std::size_t const at : {std::size_t{0}, std::size_t{17}, std::size_t{31}, std::size_t{40}}) {
            CAPTURE(TestType::name(), bad, at);
            floats x         = clean;
            x[at]            = bad;
            floats const out = round_trip<TestType>(x);
            REQUIRE_FALSE(std::isfinite(out[at]));
            for (std::size_t i = 0; i < 64; ++i)
                if (i / 32 != at / 32)
                    REQUIRE(std::bit_cast<std::uint32_t>(out[i]) == std::bit_cast<std::uint32_t>(wanted[i]));
        }
    for (float const y : round_trip<TestType>(floats(64, std::numeric_limits<float>::quiet_NaN())))
        REQUIRE_FALSE(std::isfinite(y));

    floats huge = clean, tiny = clean;
    for (float& v : huge) v *= 1e30F;
    for (float& v : tiny) v *= 1e-37F; // 1 / d overflows
    for (float const y : round_trip<TestType>(huge)) REQUIRE_FALSE(std::isfinite(y));
    for (float const y : round_trip<TestType>(tiny)) REQUIRE(y == 0.0F);
    for (float const y : round_trip<TestType>(floats(64))) REQUIRE(y == 0.0F);
}

TEMPLATE_LIST_TEST_CASE("ggml rows: head_dim must be a multiple of 32", "[quant]", all_types) {
    TestType::require(32);
    TestType::require(256);
    for (bf::index_t const n : {-32, 0, 1, 31, 33, 80, 1056, 2048}) {
        std::string const text =
            std::string(TestType::name()) + ": head_dim " + std::to_string(n) + " is not a multiple of 32 up to 1024";
        REQUIRE_THROWS_AS(TestType::require(n), bf::shape_error);
        REQUIRE_THROWS_WITH(TestType::require(n), text);
    }
}

} // namespace ggml_rows
