// SPDX-License-Identifier: MIT
#include <butterfly/quant/row_format.hpp>

#include "quant/inputs.hpp"

#include <set>

namespace bf = butterfly;
namespace bq = butterfly::quant;

namespace {

using bq::packing;
constexpr packing packings[] = {packing::bits2, packing::bits3, packing::bits4,
                                packing::bits5, packing::bits8, packing::base6};

constexpr bf::index_t bits_of_code(packing p) {
    return p == packing::bits2 ? 2 : p == packing::bits3 ? 3 : p == packing::bits4 ? 4 : p == packing::bits5 ? 5 : 8;
}

constexpr bf::index_t codes_of(packing p) {
    return p == packing::base6 ? 6 : bf::index_t{1} << bits_of_code(p);
}

std::vector<bf::index_t> row_lengths() {
    std::vector<bf::index_t> all{1024};
    for (bf::index_t n = 16; n <= 320; n += 16) all.push_back(n);
    return all;
}

using codes = std::vector<std::uint8_t>;

/// The head comment's figure, chunk by chunk.
test::row_bytes figure(packing p, codes const& v) {
    std::vector<unsigned> row;
    auto const n = v.size();
    if (p == packing::base6) {
        std::size_t const m = (n + 2) / 3;
        for (std::size_t i = 0; i < m; ++i)
            row.push_back(v[i] + 6U * (i + m < n ? v[i + m] : 0U) + 36U * (i + 2 * m < n ? v[i + 2 * m] : 0U));
    }
    for (std::size_t first = 0, c = 0; first < n && p != packing::base6; first += c) {
        c             = n - first >= 64 ? 64 : n - first >= 32 ? 32 : 16;
        auto const at = [&](std::size_t i) { return static_cast<unsigned>(v[first + i]); };
        if (p == packing::bits8)
            for (std::size_t i = 0; i < c; ++i) row.push_back(at(i));
        if (p == packing::bits4 || p == packing::bits5)
            for (std::size_t i = 0; i < c / 2; ++i) row.push_back(at(i) % 16 + 16 * (at(i + c / 2) % 16));
        if (p == packing::bits2 || p == packing::bits3)
            for (std::size_t i = 0; i < c / 4; ++i)
                row.push_back(at(i) % 4 + 4 * (at(i + c / 4) % 4) + 16 * (at(i + c / 2) % 4) +
                              64 * (at(i + 3 * c / 4) % 4));
        if (p == packing::bits3 || p == packing::bits5)
            for (std::size_t i = 0; i < c / 8; ++i) {
                unsigned tops = 0;
                for (std::size_t b = 0; b < 8; ++b) tops += at(i + b * c / 8) / (p == packing::bits3 ? 4U : 16U) << b;
                row.push_back(tops);
            }
    }
    test::row_bytes bytes;
    for (unsigned const b : row) bytes.push_back(static_cast<std::byte>(b));
    return bytes;
}

test::row_bytes stored(packing p, codes const& v) {
    auto const n    = std::ssize(v);
    auto const size = static_cast<std::size_t>(bq::detail::code_bytes(p, n));
    test::row_bytes room(size + 64, std::byte{0xc3});
    bq::detail::store_codes(p, v.data(), n, room.data() + 31);
    for (std::size_t i = 0; i < room.size(); ++i)
        if (i < 31 || i >= 31 + size) REQUIRE(room[i] == std::byte{0xc3});
    return {room.begin() + 31, room.begin() + 31 + static_cast<std::ptrdiff_t>(size)};
}

} // namespace

TEST_CASE("codes come back from every packing, packed as the figure says", "[quant]") {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    for (packing const p : packings)
        for (bf::index_t const n : row_lengths())
            for (int kind = 0; kind < 4; ++kind) {
                CAPTURE(seed, static_cast<int>(p), n, kind);
                codes v;
                for (bf::index_t i = 0; i < n; ++i)
                    v.push_back(static_cast<std::uint8_t>(kind == 0   ? 0
                                                          : kind == 1 ? codes_of(p) - 1
                                                                      : draws.below(codes_of(p))));
                test::row_bytes const row = stored(p, v); // a block of its own size: nothing past it is read
                REQUIRE(row == figure(p, v));
                codes back;
                for (bf::index_t i = 0; i < n; ++i)
                    back.push_back(static_cast<std::uint8_t>(bq::detail::load_code(p, row.data(), n, i)));
                REQUIRE(back == v);
            }
}

TEST_CASE("codes have bits of their own, and fill their bytes", "[quant]") {
    for (packing const p : packings) {
        if (p == packing::base6) continue;
        for (bf::index_t const n : row_lengths()) {
            CAPTURE(static_cast<int>(p), n);
            auto const [plane, top] = bq::detail::bits_of(p);
            REQUIRE(plane + top == bits_of_code(p));
            std::set<bf::index_t> taken;
            for (bf::index_t i = 0; i < n; ++i) {
                auto const at = bq::detail::place_of(p, n, i);
                REQUIRE(at.shift + plane <= 8);
                for (int b = 0; b < plane; ++b) taken.insert(8 * at.at + at.shift + b);
                if (top != 0) taken.insert(8 * at.top_at + at.top_shift);
            }
            REQUIRE(std::ssize(taken) == n * bits_of_code(p)); // no two share one
            REQUIRE(*taken.begin() == 0);
            REQUIRE(*taken.rbegin() + 1 == 8 * bq::detail::code_bytes(p, n)); // none is left over
        }
    }
}

TEST_CASE("a code of base 6 is one digit of its byte", "[quant]") {
    for (bf::index_t const n : row_lengths()) {
        REQUIRE(bq::detail::code_bytes(packing::base6, n) == (n + 2) / 3);
        codes v(static_cast<std::size_t>(n), 0);
        for (std::size_t i = 0; i < v.size(); ++i) {
            v[i]           = 5;
            auto const row = stored(packing::base6, v);
            v[i]           = 0;
            auto const m   = (v.size() + 2) / 3;
            for (std::size_t b = 0; b < row.size(); ++b)
                REQUIRE(std::to_integer<int>(row[b]) == (b != i % m ? 0 : i < m ? 5 : i < 2 * m ? 30 : 180));
        }
    }
}

TEST_CASE("bytes of a row of codes", "[quant]") {
    for (auto const& [p, bytes] :
         {std::pair{packing::bits2, 32}, std::pair{packing::bits3, 48}, std::pair{packing::bits4, 64},
          std::pair{packing::bits5, 80}, std::pair{packing::bits8, 128}, std::pair{packing::base6, 43}})
        REQUIRE(bq::detail::code_bytes(p, 128) == bytes);
    bq::row_format f;
    REQUIRE(f.row_bytes(128) == 130);
    f.group = 64;
    REQUIRE(f.row_bytes(128) == 132);
    REQUIRE(f.row_bytes(144) == 150); // the third group is short
    f.zeros = true;
    REQUIRE(f.header_bytes(144) == 12);
    f.codes = packing::bits3;
    REQUIRE(f.row_bytes(144) == 12 + 54);
}

TEST_CASE("rows of 16 codes, packed by hand", "[quant]") {
    codes const v2{0, 1, 2, 3, 3, 2, 1, 0, 1, 1, 2, 2, 3, 0, 3, 0};
    // v[i] + 4 v[i + 4] + 16 v[i + 8] + 64 v[i + 12]
    REQUIRE(test::hex(stored(packing::bits2, v2)) == "dc19e623");

    codes const v3{0, 5, 2, 7, 3, 6, 1, 4, 1, 5, 6, 2, 7, 0, 3, 4};
    // The same of v % 4; then v / 4 of the even values, 0 0 0 0 0 1 1 0, and of the odd ones, 1 1 1 1 1 0 0 1.
    REQUIRE(test::hex(stored(packing::bits3, v3)) == "dc19e623609f");

    codes const v4{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    // v[i] + 16 v[i + 8]
    REQUIRE(test::hex(stored(packing::bits4, v4)) == "8091a2b3c4d5e6f7");

    codes const v5{0, 17, 2, 19, 4, 21, 6, 23, 8, 9, 26, 11, 12, 13, 14, 31};
    // The same of v % 16; then v / 16 of the even values, 0 0 0 0 0 1 0 0, and of the odd ones, 1 1 1 1 0 0 0 1.
    REQUIRE(test::hex(stored(packing::bits5, v5)) == "8091a2b3c4d5e6f7208f");

    codes const v8{0, 255, 1, 254, 127, 128, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    REQUIRE(test::hex(stored(packing::bits8, v8)) == "00ff01fe7f8002030405060708090a0b");

    codes const v6{0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0, 5, 5, 0, 1};
    // v[i] + 6 v[i + 6] + 36 v[i + 12]: 0+30+180, 1+24+180, 2+18+0, 3+12+36, 4+6, 5+0
    REQUIRE(test::hex(stored(packing::base6, v6)) == "d2cd14330a05");
}

TEST_CASE("chunks of 64, 32 and 16 codes, packed by hand", "[quant]") {
    // One code among zeros of a row of 112 = 64 + 32 + 16, and the bytes it changes.
    auto const alone = [](packing p, std::size_t i, std::uint8_t code) {
        codes v(112, 0);
        v[i]           = code;
        auto const row = stored(p, v);
        std::string text;
        for (std::size_t b = 0; b < row.size(); ++b)
            if (row[b] != std::byte{0})
                text += (text.empty() ? "" : ", ") + std::to_string(b) + ": " + test::hex({row[b]});
        return text;
    };
    REQUIRE(alone(packing::bits4, 0, 15) == "0: 0f");
    REQUIRE(alone(packing::bits4, 31, 15) == "31: 0f");
    REQUIRE(alone(packing::bits4, 32, 15) == "0: f0");
    REQUIRE(alone(packing::bits4, 63, 15) == "31: f0");
    REQUIRE(alone(packing::bits4, 64, 15) == "32: 0f"); // 32 bytes are of the first chunk
    REQUIRE(alone(packing::bits4, 80, 15) == "32: f0");
    REQUIRE(alone(packing::bits4, 95, 15) == "47: f0");
    REQUIRE(alone(packing::bits4, 96, 15) == "48: 0f");
    REQUIRE(alone(packing::bits4, 111, 15) == "55: f0");
    REQUIRE(alone(packing::bits2, 16, 3) == "0: 0c");
    REQUIRE(alone(packing::bits2, 63, 3) == "15: c0");
    REQUIRE(alone(packing::bits2, 72, 3) == "16: 0c");
    REQUIRE(alone(packing::bits2, 100, 3) == "24: 0c");
    REQUIRE(alone(packing::bits3, 0, 7) == "0: 03, 16: 01");
    REQUIRE(alone(packing::bits3, 1, 7) == "1: 03, 17: 01");
    REQUIRE(alone(packing::bits3, 8, 7) == "8: 03, 16: 02");
    REQUIRE(alone(packing::bits3, 63, 7) == "15: c0, 23: 80");
    REQUIRE(alone(packing::bits3, 64, 7) == "24: 03, 32: 01");
    REQUIRE(alone(packing::bits3, 68, 7) == "28: 03, 32: 02");
    REQUIRE(alone(packing::bits3, 98, 7) == "38: 03, 40: 02");
    REQUIRE(alone(packing::bits3, 96, 7) == "36: 03, 40: 01");
    REQUIRE(alone(packing::bits3, 111, 7) == "39: c0, 41: 80");
    REQUIRE(alone(packing::bits5, 8, 31) == "8: 0f, 32: 02");
    REQUIRE(alone(packing::bits5, 63, 31) == "31: f0, 39: 80");
    REQUIRE(alone(packing::bits5, 64, 31) == "40: 0f, 56: 01");
    REQUIRE(alone(packing::bits5, 96, 31) == "60: 0f, 68: 01");
    REQUIRE(alone(packing::bits8, 100, 255) == "100: ff");
    REQUIRE(alone(packing::base6, 37, 5) == "37: 05"); // 38 bytes
    REQUIRE(alone(packing::base6, 38, 5) == "0: 1e");
    REQUIRE(alone(packing::base6, 111, 5) == "35: b4");
}

TEST_CASE("a row of groups with zeros, decoded by hand", "[quant]") {
    bq::row_format f;
    f.codes  = packing::bits2;
    f.group  = 32;
    f.zeros  = true;
    f.levels = {0, 1, 2, 3};
    // Groups of 32 and 16: scale 0.5 zero -3, scale -2 zero 0.5; then chunks of 32 and 16 codes.
    std::uint8_t const bytes[] = {0x00, 0x3f, 0x00, 0xc2, 0x00, 0xc0, 0x00, 0x38, 0xe4, 0,
                                  0,    0,    0,    0,    0,    0x80, 0x1b, 0,    0,    0xc0};
    test::row_bytes row;
    for (std::uint8_t const b : bytes) row.push_back(static_cast<std::byte>(b));
    REQUIRE(std::ssize(row) == f.row_bytes(48));
    test::row_floats wanted(48, -1.5F), got(48);
    std::fill(wanted.begin() + 32, wanted.end(), -1.0F);
    wanted[8]  = -1.0F; // 0xe4: codes 0 1 2 3 of values 0, 8, 16, 24
    wanted[16] = -0.5F;
    wanted[24] = 0.0F;
    wanted[31] = -0.5F; // 0x80: code 2
    wanted[32] = -7.0F; // 0x1b: codes 3 2 1 0 of values 32, 36, 40, 44
    wanted[36] = -5.0F;
    wanted[40] = -3.0F;
    wanted[47] = -7.0F; // 0xc0: code 3
    bq::detail::decode(f, row.data(), 48, got.data());
    REQUIRE(got == wanted);
    REQUIRE(bq::detail::load_group(f, row.data(), 0).scale == 0.5F);
    REQUIRE(bq::detail::load_group(f, row.data(), 1).zero == 0.5F);
}

TEST_CASE("a row of one scale, rotated, decoded from the definition", "[quant]") {
    bq::row_format f;
    f.codes   = packing::base6;
    f.rotated = true;
    f.seed    = 5;
    f.levels  = {-127, -67, -21, 21, 67, 127};
    for (bf::index_t const n : {16, 48, 128}) {
        codes v;
        test::row_floats wanted;
        for (bf::index_t i = 0; i < n; ++i) {
            v.push_back(static_cast<std::uint8_t>(bf::detail::splitmix64(1, static_cast<std::uint64_t>(i)) % 6));
            wanted.push_back(0.25F * static_cast<float>(f.levels[v.back()]));
        }
        test::row_bytes row{std::byte{0x80}, std::byte{0x3e}}; // 0.25
        auto const packed = stored(f.codes, v);
        row.insert(row.end(), packed.begin(), packed.end());
        test::row_floats got(static_cast<std::size_t>(n));
        bq::detail::decode_in_basis(f, row.data(), n, got.data());
        REQUIRE(got == wanted);
        bq::rotation{5}.inverse(wanted.data(), n);
        bq::detail::decode(f, row.data(), n, got.data());
        REQUIRE(got == wanted);
    }
}

TEST_CASE("codes of eight bits are of two's complement", "[quant]") {
    bq::row_format const f;
    REQUIRE(bq::detail::level_of(f, 0) == 0.0F);
    REQUIRE(bq::detail::level_of(f, 127) == 127.0F);
    REQUIRE(bq::detail::level_of(f, 128) == -128.0F);
    REQUIRE(bq::detail::level_of(f, 255) == -1.0F);
}

TEST_CASE("a row that is no multiple of 16 is refused with its rule", "[quant]") {
    auto const refuse = [](bf::index_t head_dim) -> std::string {
        try {
            bq::detail::require_row_step("some_codec", head_dim);
        } catch (bf::shape_error const& e) {
            return e.what();
        }
        return "";
    };
    REQUIRE(refuse(16) == "");
    REQUIRE(refuse(1024) == "");
    for (bf::index_t const n : {-16, 0, 24, 1040, 4096})
        REQUIRE(refuse(n) == "some_codec: head_dim " + std::to_string(n) + " is not a multiple of 16 up to 1024");
}
