// SPDX-License-Identifier: MIT
#pragma once

// Rows for the tests of codecs, packed and unpacked again in memory that notices what is read or written beside it.

#include <butterfly/core/error.hpp>
#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/rotation.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"
#include "support/sweep.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <numbers>
#include <random>
#include <string>
#include <vector>

namespace test {

using butterfly::index_t;
using row_floats = std::vector<float>;
using row_bytes  = std::vector<std::byte>;

/// A seed of its own for each run.
[[nodiscard]] inline std::uint32_t another_seed() {
    return std::random_device{}() % 1000000;
}

/// Rows that a test of averages takes.
[[nodiscard]] inline int many_rows() {
    return short_sweep() ? 1000 : 4000;
}

/// A Gaussian draw, by Box and Muller.
[[nodiscard]] inline float gaussian(butterfly::testing::random& draws) {
    double const radius = std::sqrt(-2.0 * std::log(draws.uniform()));
    return static_cast<float>(radius * std::cos(2.0 * std::numbers::pi * draws.uniform()));
}

[[nodiscard]] inline row_floats gaussian_row(butterfly::testing::random& draws, index_t n) {
    row_floats x;
    for (index_t i = 0; i < n; ++i) x.push_back(gaussian(draws));
    return x;
}

/// Eight channels of every row eight times as large as the rest.
[[nodiscard]] inline row_floats with_large_channels(butterfly::testing::random& draws, index_t n) {
    row_floats x = gaussian_row(draws, n);
    for (std::size_t i = 0; i < 8; ++i) x[(i * 37 + 5) % x.size()] *= 8.0F;
    return x;
}

/// A row of -1 and a little: nothing of a Gaussian before it is rotated.
[[nodiscard]] inline row_floats around_one(butterfly::testing::random& draws, index_t n, float little) {
    row_floats x = gaussian_row(draws, n);
    for (float& v : x) v = -1.0F + little * v;
    return x;
}

/// A row of values of one size which the first pass of a rotation makes one value, and the second spreads again.
[[nodiscard]] inline row_floats
gathered_row(butterfly::testing::random& draws, butterfly::quant::rotation const& r, index_t n, float size) {
    index_t const m = butterfly::quant::rotation::order(n);
    row_floats x(static_cast<std::size_t>(n), 0.0F);
    x[static_cast<std::size_t>(draws.between(n - m, m - 1))] = 1.0F;
    r.inverse(x.data(), m);
    for (float& v : x) v = v == 0.0F ? v : std::copysign(size, v);
    return x;
}

/// What packed rows of many kinds are made of, by integers alone: the same on every machine.
enum class pattern : int {
    bell,       // sums of four bytes
    few_values, // -2, ..., 2
    two_values, // 1 and -1
    large_mean, // 1000 and a little
    heavy,      // cubes
    subnormal,  // of up to 8 bits
    any_size,   // 2^-126 to 2^115
};
inline constexpr pattern patterns[] = {pattern::bell,  pattern::few_values, pattern::two_values, pattern::large_mean,
                                       pattern::heavy, pattern::subnormal,  pattern::any_size};

/// n values of a pattern; all are exact in float.
[[nodiscard]] inline row_floats pattern_row(pattern p, std::uint64_t seed, index_t n) {
    row_floats x;
    for (index_t i = 0; i < n; ++i) {
        std::uint64_t const z = butterfly::detail::splitmix64(seed, static_cast<std::uint64_t>(i));
        auto const byte       = [&](int k) { return static_cast<int>(z >> (8 * k) & 255U); };
        int const bell        = byte(0) + byte(1) - byte(2) - byte(3);
        float const sign      = (byte(4) & 1) != 0 ? -1.0F : 1.0F;
        float value           = 0.0F;
        switch (p) {
        case pattern::bell:
            value = static_cast<float>(bell);
            break;
        case pattern::few_values:
            value = static_cast<float>(byte(0) % 5 - 2);
            break;
        case pattern::two_values:
            value = sign;
            break;
        case pattern::large_mean:
            value = static_cast<float>(256000 + bell) / 256.0F;
            break;
        case pattern::heavy:
            value = static_cast<float>(bell / 4 * (bell / 4) * (bell / 4));
            break;
        case pattern::subnormal:
            value = sign * static_cast<float>(byte(0)) * 0x1p-149F;
            break;
        case pattern::any_size:
            value = sign * std::ldexp(static_cast<float>(256 + byte(0)), byte(1) % 242 - 134);
            break;
        }
        x.push_back(value);
    }
    return x;
}

/// "3f80 0102": the bytes of a row, in groups of `group`.
[[nodiscard]] inline std::string hex(row_bytes const& row, std::size_t group = 1000) {
    char const digits[] = "0123456789abcdef";
    std::string text;
    for (std::size_t i = 0; i < row.size(); ++i) {
        if (i > 0 && i % group == 0) text += ' ';
        text += digits[std::to_integer<unsigned>(row[i]) >> 4];
        text += digits[std::to_integer<unsigned>(row[i]) & 15U];
    }
    return text;
}

/// FNV-1a of what is added, as text.
class fingerprint {
public:
    void add(std::uint64_t value, int bytes) {
        for (int i = 0; i < bytes; ++i) state_ = (state_ ^ (value >> (8 * i) & 255U)) * 0x100000001b3U;
    }
    void add(row_bytes const& row) {
        for (std::byte const b : row) add(std::to_integer<std::uint64_t>(b), 1);
    }
    void add(row_floats const& values) { // NaN of any kind are alike
        for (float const x : values) add(std::isnan(x) ? 0x7fc00000U : std::bit_cast<std::uint32_t>(x), 4);
    }
    [[nodiscard]] std::string text() const {
        row_bytes bytes;
        for (int i = 7; i >= 0; --i) bytes.push_back(static_cast<std::byte>(state_ >> (8 * i) & 255U));
        return hex(bytes);
    }

private:
    std::uint64_t state_ = 0xcbf29ce484222325U;
};

/// Memory for one row of a row codec, at an odd address, or one tile, at a multiple of its tokens; bytes of 0xc3 before
/// and, where asked for, behind it. Without those the last byte is the last of the heap block, so that a sanitizer
/// notices what reads past it.
template <class Codec>
class packed_memory {
public:
    static constexpr index_t tokens = butterfly::quant::tile_tokens_of<Codec>();

    packed_memory(Codec const& codec, index_t head_dim, std::byte fill, std::size_t behind)
        : size_(static_cast<std::size_t>(tokens * codec.row_bytes(head_dim))), behind_(behind),
          block_(static_cast<std::byte*>(::operator new(before + size_ + behind, alignment))) {
        std::fill_n(block_.get(), before + size_ + behind, canary);
        std::fill_n(data(), size_, fill);
    }

    [[nodiscard]] std::byte* data() const noexcept { return block_.get() + before; }
    [[nodiscard]] row_bytes bytes() const { return {data(), data() + size_}; }
    [[nodiscard]] bool canaries_live() const noexcept {
        auto const live = [](std::byte b) { return b == canary; };
        return std::all_of(block_.get(), data(), live) &&
               std::all_of(data() + size_, data() + size_ + static_cast<std::ptrdiff_t>(behind_), live);
    }

private:
    static constexpr std::size_t before         = tokens == 1 ? 17 : static_cast<std::size_t>(tokens);
    static constexpr std::align_val_t alignment = std::align_val_t{tokens == 1 ? 16 : static_cast<std::size_t>(tokens)};
    static constexpr std::byte canary           = std::byte{0xc3};
    struct deleter {
        void operator()(std::byte* p) const noexcept { ::operator delete(p, alignment); }
    };

    std::size_t size_, behind_;
    std::unique_ptr<std::byte, deleter> block_;
};

/// The bytes of a row of head_dim values, or of a tile of rows. Nothing beside them is read or written.
template <class Codec>
[[nodiscard]] row_bytes
pack(Codec const& codec, row_floats const& x, index_t head_dim, std::byte fill = std::byte{0x5a}) {
    packed_memory<Codec> const memory(codec, head_dim, fill, 64);
    REQUIRE(std::ssize(x) == memory.tokens * head_dim);
    if constexpr (butterfly::quant::tile_codec<Codec>) {
        index_t const stride = head_dim + 3; // rows apart, NaN between them
        row_floats apart(static_cast<std::size_t>((memory.tokens - 1) * stride + head_dim),
                         std::numeric_limits<float>::quiet_NaN());
        for (index_t t = 0; t < memory.tokens; ++t)
            std::copy_n(x.begin() + t * head_dim, head_dim, apart.begin() + t * stride);
        codec.encode_tile(apart.data(), stride, head_dim, memory.data());
    } else {
        codec.encode(x.data(), head_dim, memory.data());
    }
    REQUIRE(memory.canaries_live());
    return memory.bytes();
}

/// The values that a packed row, or a tile of rows, stands for. Nothing past the bytes is read.
template <class Codec>
[[nodiscard]] row_floats unpack(Codec const& codec, row_bytes const& packed, index_t head_dim) {
    packed_memory<Codec> const memory(codec, head_dim, std::byte{0}, 0);
    REQUIRE(packed.size() == memory.bytes().size());
    std::copy(packed.begin(), packed.end(), memory.data());
    row_floats out, row(static_cast<std::size_t>(head_dim + 1), -77.0F);
    for (index_t t = 0; t < memory.tokens; ++t) {
        codec.decode(memory.data() + t, head_dim, row.data());
        REQUIRE(row.back() == -77.0F);
        out.insert(out.end(), row.begin(), row.end() - 1);
    }
    REQUIRE(memory.bytes() == packed);
    return out;
}

template <class Codec>
[[nodiscard]] row_floats round_trip(Codec const& codec, row_floats const& x, index_t head_dim) {
    return unpack(codec, pack(codec, x, head_dim), head_dim);
}

/// <a, b> in double.
[[nodiscard]] inline double dot(row_floats const& a, row_floats const& b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * double{b[i]};
    return sum;
}

/// The unbiased scale keeps <x, decoded> = <x, x>, whatever x: `make(seed)` is a codec of that rule.
template <class Make>
void check_unbiased(Make const& make, int rows, float little) {
    std::uint32_t const seed = another_seed();
    butterfly::testing::random draws(seed);
    for (index_t const n : {16, 80, 128, 576})
        for (int i = 0; i < rows; ++i) {
            auto const codec   = make(draws.bits());
            row_floats const x = i % 3 == 0   ? gaussian_row(draws, n)
                                 : i % 3 == 1 ? with_large_channels(draws, n)
                                              : around_one(draws, n, little);
            row_floats const y = round_trip(codec, x, n);
            CAPTURE(seed, n, i, codec.name());
            // A bfloat16 is within 2^-8 of what it rounds; whole numbers within 2^-13 of the largest coordinate.
            REQUIRE(std::abs(dot(x, y) / dot(x, x) - 1.0) <= 0x1p-8 + 0x1p-11);
        }
}

/// |y - x|^2 / |x|^2.
[[nodiscard]] inline double relative_error(row_floats const& x, row_floats const& y) {
    double error = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) error += std::pow(double{y[i]} - double{x[i]}, 2);
    return error / dot(x, x);
}

/// Mean of relative_error over rows that `draw()` gives.
template <class Codec, class Draw>
[[nodiscard]] double mean_error(Codec const& codec, index_t head_dim, int rows, Draw const& draw) {
    double sum = 0.0;
    row_bytes row(static_cast<std::size_t>(codec.row_bytes(head_dim)));
    row_floats decoded(static_cast<std::size_t>(head_dim));
    for (int i = 0; i < rows; ++i) {
        row_floats const x = draw();
        codec.encode(x.data(), head_dim, row.data());
        codec.decode(row.data(), head_dim, decoded.data());
        sum += relative_error(x, decoded);
    }
    return sum / rows;
}

/// Fingerprint of the bytes of rows of all patterns and several lengths, and of what they decode to: the same for every
/// compiler, under every flag.
template <class Codec>
[[nodiscard]] std::string bytes_and_values(Codec const& codec) {
    fingerprint found;
    index_t const tokens = butterfly::quant::tile_tokens_of<Codec>();
    for (index_t const head_dim : {16, 48, 128, 240})
        for (pattern const p : patterns)
            for (std::uint64_t seed = 0; seed < (tokens == 1 ? 100U : 1U); ++seed) {
                row_bytes const packed = pack(codec, pattern_row(p, seed, tokens * head_dim), head_dim);
                found.add(packed);
                found.add(unpack(codec, packed, head_dim));
            }
    return found.text();
}

/// The text of the shape_error that a codec refuses a head_dim with; nothing where it takes it.
template <class Codec>
[[nodiscard]] std::string refusal(index_t head_dim) {
    try {
        butterfly::quant::require_head_dim<Codec>(head_dim);
    } catch (butterfly::shape_error const& e) {
        return e.what();
    }
    return "";
}

} // namespace test
