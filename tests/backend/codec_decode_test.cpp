// SPDX-License-Identifier: MIT

// What the SIMD backends' leaves decode, to the bit: rows of any bytes, scales that are NaN or infinite and codes that
// no encoder writes among them, each row in memory of its own that ends where the row does.

#include <butterfly/backend/simd.hpp>
#include <butterfly/quant/affine.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/quant/ggml.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/quant/outliers.hpp>
#include <butterfly/quant/trellis.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"
#include "support/sweep.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace bf      = butterfly;
namespace quant   = butterfly::quant;
namespace testing = butterfly::testing;
using bf::index_t;

namespace codec_decode { // names of its own, for builds that compile several of these files as one
namespace {

/// Groups of any number of values, rotated and with zeros: a codec of a user's that has a format.
class grouped {
public:
    grouped(quant::packing codes, index_t group) {
        format_.codes   = codes;
        format_.group   = group;
        format_.zeros   = true;
        format_.rotated = true;
        format_.seed    = 9;
        for (std::size_t i = 0; i < format_.levels.size(); ++i)
            format_.levels[i] = static_cast<std::int8_t>(7 * static_cast<int>(i) - 100);
    }
    [[nodiscard]] quant::row_format const& format() const noexcept { return format_; }
    [[nodiscard]] std::string name() const { return "groups of " + std::to_string(format_.group); }
    [[nodiscard]] index_t row_bytes(index_t n) const noexcept { return format_.row_bytes(n); }
    void decode(std::byte const* row, index_t n, float* out) const noexcept {
        quant::detail::decode(format_, row, n, out);
    }

private:
    quant::row_format format_{};
};

/// Memory of a tile or a row at a multiple of `align`, and `skip` bytes further.
class block {
public:
    block(index_t bytes, index_t align, index_t skip, testing::random& draws)
        : align_(static_cast<std::align_val_t>(align)), skip_(skip),
          memory_(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes + skip), align_))) {
        std::generate(data(), data() + bytes, [&] { return static_cast<std::byte>(draws.below(256)); });
    }
    block(block const&) = delete;
    ~block() { ::operator delete(memory_, align_); }

    [[nodiscard]] std::byte* data() { return memory_ + skip_; }

private:
    std::align_val_t align_;
    index_t skip_;
    std::byte* memory_;
};

/// How a codec's scales and zeros are set: as drawn, or all of them ordinary, zero, minus zero or NaN.
enum class scales { any, ordinary, zero, minus_zero, nan };

[[nodiscard]] std::uint16_t scale_bits(scales s) {
    return s == scales::ordinary ? 0x3fa0 : s == scales::zero ? 0 : s == scales::minus_zero ? 0x8000 : 0x7fc0;
}

/// Puts scales (and zeros: 1.5 of float16) where they stand, `count` of them, `step` bytes apart.
void set_scales(std::byte* at, index_t count, index_t step, scales s) {
    std::uint16_t const scale = scale_bits(s), zero = 0x3e00;
    for (index_t i = 0; s != scales::any && i < count; ++i) {
        std::memcpy(at + i * step, &scale, 2);
        if (step == 4) std::memcpy(at + i * step + 2, &zero, 2);
    }
}

/// How many scales stand at a row's or tile's beginning, and how far apart.
template <class Codec>
[[nodiscard]] std::pair<index_t, index_t> scales_of(Codec const& codec, index_t n) {
    if constexpr (quant::tile_codec<Codec>)
        return {n, 4};
    else if constexpr (quant::formatted<Codec>)
        return {codec.format().groups(n), codec.format().zeros ? 4 : 2};
    else if constexpr (requires { Codec::block_size; }) // of ggml
        return {n / Codec::block_size, codec.row_bytes(Codec::block_size)};
    else if constexpr (requires { codec.base; })
        return scales_of(codec.base, n);
    else
        return {1, 2};
}

[[nodiscard]] bool same(float a, float b) {
    return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) || (std::isnan(a) && std::isnan(b));
}

/// Decodes rows by the leaf of an instruction set, and each by the codec.
template <class Isa, class Codec>
void check(Codec const& codec, std::vector<std::byte const*> const& rows, index_t n, bool vectors) {
    auto const bound = bind_codec(bf::backend::simd<Isa>{}, codec);
    auto const* ops  = static_cast<bf::backend::on_host::codec_ops const*>(bound.ops);
    bool const own =
        ops->decode == &bf::backend::on_host::decode_rows<Codec> || ops->decode == &bf::backend::vec::decode_format;
    bool const by_vectors = vectors && !std::is_void_v<bf::backend::vec::byte_vectors<Isa>>;
    if constexpr (requires { codec.base; }) // outliers: by their base's leaf, whatever that is
        REQUIRE(own != vectors);
    else
        REQUIRE(own != by_vectors);
    index_t const stride = n + 3, count = static_cast<index_t>(rows.size());
    std::vector<float> got(static_cast<std::size_t>(count * stride), 77.0F), want(static_cast<std::size_t>(n));
    ops->decode(&codec, rows.data(), static_cast<int>(count), n, got.data(), stride);
    for (index_t j = 0; j < count; ++j) {
        codec.decode(rows[static_cast<std::size_t>(j)], n, want.data());
        for (index_t d = 0; d < stride; ++d) {
            float const g = got[static_cast<std::size_t>(j * stride + d)];
            if (same(g, d < n ? want[static_cast<std::size_t>(d)] : 77.0F)) continue;
            CAPTURE(j, d, g);
            FAIL("another value than the codec's own");
        }
    }
}

template <class Codec>
void check_all(Codec const& codec, std::vector<std::byte const*> const& rows, index_t n, bool vectors = true) {
    check<bf::isa::current>(codec, rows, n, vectors);
    check<bf::isa::baseline>(codec, rows, n, vectors);
#if defined(__AVX512F__)
    check<bf::isa::x86_v3>(codec, rows, n, vectors);
#endif
}

std::uint64_t fresh_seed() {
    static std::uint64_t const seed = std::random_device{}() % 1000000;
    return seed;
}

/// f(head_dim, scales, draws)
template <class F>
void for_each_case(F const& f) {
    for (index_t const n : {16, 48, 64, 80, 128, 160, 256, 1024}) {
        if (test::short_sweep() && n > 160) continue;
        for (scales const s : {scales::any, scales::ordinary, scales::zero, scales::minus_zero, scales::nan}) {
            CAPTURE(fresh_seed(), n, static_cast<int>(s));
            testing::random draws(fresh_seed(), static_cast<std::uint64_t>(8 * n + static_cast<int>(s)));
            f(n, s, draws);
        }
    }
}

template <class Codec>
void check_rows(Codec const& codec, bool vectors = true) {
    for_each_case([&](index_t n, scales s, testing::random& draws) {
        CAPTURE(codec.name());
        if constexpr (requires { Codec::block_size; })
            if (n % Codec::block_size != 0) return;
        for (index_t const count : {index_t{1}, index_t{7}, draws.between(1, 64)}) {
            std::vector<std::unique_ptr<block>> memory;
            std::vector<std::byte const*> rows;
            for (index_t j = 0; j < count; ++j) {
                memory.push_back(std::make_unique<block>(codec.row_bytes(n), 1, j % 5, draws));
                auto const [scale_count, step] = scales_of(codec, n);
                set_scales(memory.back()->data(), scale_count, step, j % 3 == 2 ? scales::ordinary : s);
                if constexpr (requires { codec.base; }) // most outliers stand in the row, the first one at its end
                    for (index_t at = codec.base.row_bytes(n), i = 0; j % 4 != 3 && at < codec.row_bytes(n);
                         at += 4, ++i) {
                        auto const index = static_cast<std::uint16_t>(n - 1 - 5 * i % n);
                        std::memcpy(memory.back()->data() + at, &index, sizeof index);
                    }
                rows.push_back(memory.back()->data());
            }
            check_all(codec, rows, n, vectors);
        }
    });
}

template <int Bits, int Tokens>
void check_tiles() {
    quant::affine_channels<Bits, Tokens> const codec;
    for_each_case([&](index_t n, scales s, testing::random& draws) {
        CAPTURE(codec.name());
        std::vector<std::unique_ptr<block>> tiles;
        std::vector<std::byte const*> rows;
        for (int t = 0; t < 3; ++t) {
            tiles.push_back(std::make_unique<block>(Tokens * codec.row_bytes(n), Tokens, 0, draws));
            auto const [count, step] = scales_of(codec, n);
            set_scales(tiles.back()->data(), count, step, t == 1 ? scales::ordinary : s);
            for (int j = 0; j < Tokens; ++j) rows.push_back(tiles.back()->data() + j);
        }
        check_all(codec, rows, n);
        for (index_t const count : {1, 3, 33}) { // some, in any order, and again
            std::vector<std::byte const*> some;
            for (index_t i = 0; i < count; ++i)
                some.push_back(rows[static_cast<std::size_t>(draws.below(std::ssize(rows)))]);
            check_all(codec, some, n);
        }
    });
}

} // namespace

TEST_CASE("rows in groups are decoded to the bit", "[backend]") {
    check_rows(quant::affine<2, 32>{});
    check_rows(quant::affine<3, 32>{});
    check_rows(quant::affine<4, 32>{});
    check_rows(quant::affine<8, 32>{});
    check_rows(quant::affine<4, 64>{});
    check_rows(grouped(quant::packing::bits5, 16));
    check_rows(grouped(quant::packing::bits4, 48));
    check_rows(grouped(quant::packing::base6, 32));
    check_rows(grouped(quant::packing::bits4, 24), false);
}

TEST_CASE("rows of six levels are decoded to the bit", "[backend]") {
    check_rows(quant::lloyd_max<6>(5));
}

TEST_CASE("rows with outliers are decoded to the bit", "[backend]") {
    check_rows(quant::outliers<quant::affine<4, 64>, 4>{});
    check_rows(quant::outliers<quant::affine<2, 32>, 7>{});
    check_rows(quant::outliers<quant::lloyd_max<16>, 1>{quant::lloyd_max<16>(5)});
    check_rows(quant::outliers<quant::raw<float>, 4>{}, false);
}

TEST_CASE("rows of trellis codes are decoded to the bit", "[backend]") {
    check_rows(quant::trellis<2>(5));
    check_rows(quant::trellis<3>(5));
    check_rows(quant::trellis<4>(5));
}

TEST_CASE("blocks of ggml are decoded to the bit", "[backend]") {
    check_rows(quant::ggml_q8_0{});
    check_rows(quant::ggml_q4_0{});
    check_rows(quant::ggml_q4_1{});
}

TEST_CASE("rows of tiles are decoded to the bit", "[backend]") {
    check_tiles<2, 32>();
    check_tiles<3, 32>();
    check_tiles<4, 32>();
    check_tiles<2, 64>();
    check_tiles<3, 128>();
    check_tiles<4, 128>();
    check_tiles<8, 32>();
    check_tiles<8, 128>();
}

TEST_CASE("rows of a codec's own format are refused where kernels cannot hold them", "[backend]") {
    for (index_t const n : {16, 48, 1024}) REQUIRE_NOTHROW(quant::require_head_dim<grouped>(n));
    for (index_t const n : {0, 8, 24, 1040, 2048})
        REQUIRE_THROWS_WITH(quant::require_head_dim<grouped>(n), "rows of a row_format: head_dim " + std::to_string(n) +
                                                                     " is not a multiple of 16 up to 1024");
}

} // namespace codec_decode
