// SPDX-License-Identifier: MIT
#pragma once

// Vectors of 64 bytes; see bytes.hpp.

#include <butterfly/backend/simd/load_integer.hpp>
#include <butterfly/quant/row_format.hpp>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// 64 bytes. Instructions of VNNI and VBMI, for CPUs that have them, are written as assembly, so that flags need not
/// allow them.
struct bytes_512 {
    using type                            = __m512i;
    static constexpr int size             = 64;
    static constexpr int vectors          = 1;   // of a chunk
    static constexpr int bias             = 128; // vpdpbusd multiplies unsigned by signed
    static constexpr int weight_top       = 255; // likewise
    static constexpr char const* dot_name = "int8 dot (vnni)";

    /// Levels as tables for look_up; those above 16 stand in the second.
    struct table {
        type low, high;
    };
    [[nodiscard]] static table table_of(quant::row_format const& f, int offset) noexcept {
        alignas(16) std::int8_t levels[32];
        for (std::size_t i = 0; i < 32; ++i) levels[i] = static_cast<std::int8_t>(f.levels[i] + offset);
        auto const* const at = reinterpret_cast<__m128i const*>(levels);
        return {_mm512_broadcast_i32x4(_mm_load_si128(at)), _mm512_broadcast_i32x4(_mm_load_si128(at + 1))};
    }

    /// 64 bytes as a table for look_up_64.
    struct wide_table {
        table lower, upper;
    };
    [[nodiscard]] static wide_table table_of_64(std::int8_t const* at) noexcept {
        auto const part = [&](int i) {
            return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<__m128i const*>(at) + i));
        };
        return {{part(0), part(1)}, {part(2), part(3)}};
    }

    [[nodiscard]] static bool has_dot() noexcept { return cpu::found().avx512_vnni; }
    [[nodiscard]] static type zero() noexcept { return _mm512_setzero_si512(); }
    [[nodiscard]] static type load(std::byte const* at) noexcept { return _mm512_loadu_si512(at); }
    /// The first `count` bytes; reads nothing past them.
    [[nodiscard]] static type load_part(std::byte const* at, index_t count) noexcept {
        if (count >= size) return load(at);
        return _mm512_maskz_loadu_epi8(static_cast<__mmask64>((std::uint64_t{1} << count) - 1U), at);
    }
    [[nodiscard]] static type load_few(std::byte const* at, index_t count) noexcept { return load_part(at, count); }

    /// Levels of a chunk of `count` values (64, 32 or 16), each plus `offset` as the table has it; what stands after
    /// them means nothing.
    template <quant::packing Codes>
    static void unpack(std::byte const* at, index_t count, table const& t, int offset, type* levels) noexcept {
        using quant::packing;
        if constexpr (Codes == packing::bits8) {
            auto const here =
                static_cast<__mmask64>(count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1U);
            levels[0] =
                _mm512_xor_si512(_mm512_maskz_loadu_epi8(here, at), _mm512_set1_epi8(static_cast<char>(offset)));
            return;
        }
        if constexpr (Codes == packing::bits4 || Codes == packing::bits5) {
            __m512i const codes = _mm512_and_si512(planes_of_4(at, count), _mm512_set1_epi8(15));
            levels[0]           = _mm512_shuffle_epi8(t.low, codes);
            if constexpr (Codes == packing::bits5)
                levels[0] = _mm512_mask_shuffle_epi8(levels[0], tops_at(at + count / 2, count), t.high, codes);
            return;
        }
        __m512i codes = _mm512_and_si512(planes_of_2(at, count), _mm512_set1_epi8(3));
        if constexpr (Codes == packing::bits3)
            codes = _mm512_mask_add_epi8(codes, tops_at(at + count / 4, count), codes, _mm512_set1_epi8(4));
        levels[0] = _mm512_shuffle_epi8(t.low, codes);
    }

    /// `a`: biased levels. `b`: signed bytes.
    [[nodiscard]] static type dot(type sum, type a, type b) noexcept {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }

    /// `weights`: bytes up to weight_top. `levels`: signed.
    [[nodiscard]] static type weigh(type sum, type weights, type levels) noexcept { return dot(sum, weights, levels); }
    [[nodiscard]] static type four_weights(std::uint32_t four) noexcept {
        return _mm512_set1_epi32(static_cast<int>(four));
    }

    static void interleave(type const* row, type* out) noexcept {
        constexpr __mmask64 all  = ~std::uint64_t{0};
        constexpr __mmask32 half = ~std::uint32_t{0};
        __m512i const ab_low     = _mm512_maskz_unpacklo_epi8(all, row[0], row[1]);
        __m512i const ab_top     = _mm512_maskz_unpackhi_epi8(all, row[0], row[1]);
        __m512i const cd_low     = _mm512_maskz_unpacklo_epi8(all, row[2], row[3]);
        __m512i const cd_top     = _mm512_maskz_unpackhi_epi8(all, row[2], row[3]);
        out[0]                   = _mm512_maskz_unpacklo_epi16(half, ab_low, cd_low);
        out[1]                   = _mm512_maskz_unpackhi_epi16(half, ab_low, cd_low);
        out[2]                   = _mm512_maskz_unpacklo_epi16(half, ab_top, cd_top);
        out[3]                   = _mm512_maskz_unpackhi_epi16(half, ab_top, cd_top);
    }

    /// The int32 lanes as floats.
    template <class Isa>
    [[nodiscard]] static f32<Isa> to_float(type sum) noexcept {
        return f32<Isa>(_mm512_cvtepi32_ps(sum));
    }
    /// Sixteen signed bytes as floats.
    template <class Isa>
    [[nodiscard]] static f32<Isa> widen(std::int8_t const* at) noexcept {
        return f32<Isa>(
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(at)))));
    }
    static void store(type const& x, void* at) noexcept { _mm512_storeu_si512(at, x); }
    /// Four neighbouring bytes of each 16 to the place where `interleave` puts them in the order of values.
    [[nodiscard]] static type spread(type x) noexcept {
        return _mm512_maskz_permutexvar_epi32(
            static_cast<__mmask16>(0xffff), _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
    }

    /// Rows that stand in lanes.
    static constexpr int keys = 16;
    /// out[w]: bytes 4w to 4w + 3 from `at` on of 16 rows.
    [[gnu::always_inline]] static void load_keys(std::byte const* const* rows, index_t at, type* out) noexcept {
        constexpr __mmask16 all = 0xffff;
        constexpr __mmask8 half = 0xff;
        __m512i x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) { // rows i, i + 4, i + 8, i + 12
            auto const part = [&](int k) {
                return _mm_loadu_si128(reinterpret_cast<__m128i const*>(rows[i + 4 * k] + at));
            };
            x[i] = _mm512_castsi128_si512(part(0));
            x[i] = _mm512_mask_broadcast_i32x4(x[i], 0x00f0, part(1));
            x[i] = _mm512_mask_broadcast_i32x4(x[i], 0x0f00, part(2));
            x[i] = _mm512_mask_broadcast_i32x4(x[i], 0xf000, part(3));
        }
        __m512i const a = _mm512_maskz_unpacklo_epi32(all, x[0], x[1]),
                      b = _mm512_maskz_unpackhi_epi32(all, x[0], x[1]);
        __m512i const c = _mm512_maskz_unpacklo_epi32(all, x[2], x[3]),
                      d = _mm512_maskz_unpackhi_epi32(all, x[2], x[3]);
        out[0]          = _mm512_maskz_unpacklo_epi64(half, a, c);
        out[1]          = _mm512_maskz_unpackhi_epi64(half, a, c);
        out[2]          = _mm512_maskz_unpacklo_epi64(half, b, d);
        out[3]          = _mm512_maskz_unpackhi_epi64(half, b, d);
    }
    /// Likewise of 8 bytes: two vectors.
    [[gnu::always_inline]] static void load_keys_of_8(std::byte const* const* rows, index_t at, type* out) noexcept {
        alignas(64) std::int64_t words[16];
        for (int i = 0; i < 16; ++i) words[i] = load_integer<std::int64_t>(rows[i] + at, 8);
        __m512i const a = _mm512_load_si512(words), b = _mm512_load_si512(words + 8);
        out[0] = _mm512_permutex2var_epi32(
            a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
        out[1] = _mm512_permutex2var_epi32(
            a, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b);
    }
    template <int Shift>
    [[nodiscard]] static type down(type x) noexcept {
        return _mm512_srli_epi32(x, Shift);
    }
    [[nodiscard]] static type both(type x, int mask) noexcept {
        return _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(mask)));
    }
    [[nodiscard]] static type look_up(table const& t, type codes) noexcept {
        return _mm512_shuffle_epi8(t.low, codes);
    }
    /// Codes of five bits: `codes` the lower four, `top` one where the highest is set.
    [[nodiscard]] static type look_up(table const& t, type codes, type top) noexcept {
        return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(t.low, codes), _mm512_test_epi8_mask(top, top), t.high,
                                        codes);
    }
    [[nodiscard]] static type look_up_64(wide_table const& t, type codes) noexcept {
        type const top = both(codes, 16);
        return _mm512_mask_mov_epi8(look_up(t.lower, codes, top), _mm512_test_epi8_mask(codes, _mm512_set1_epi8(32)),
                                    look_up(t.upper, codes, top));
    }
    [[nodiscard]] static bool has_windows() noexcept {
        return cpu::found().avx512_vbmi;
    }
    /// Where windows of a stream stand, and what they stand for.
    struct window_table {
        type words, shifts, levels;
    };
    template <int Bits>
    [[nodiscard]] static window_table window_table_of(std::int8_t const* levels) noexcept {
        alignas(64) std::uint8_t word[size], shift[size];
        for (int i = 0; i < size; ++i) {
            word[i]  = static_cast<std::uint8_t>(i / 8 * Bits + i % 8); // a byte of the stream
            shift[i] = static_cast<std::uint8_t>(i % 8 * Bits);
        }
        return {_mm512_load_si512(word), _mm512_load_si512(shift), _mm512_loadu_si512(levels)};
    }
    /// Levels of 64 windows of six bits, one every Bits bits: equals quant::detail::load_window and a look-up. `bytes`:
    /// what is left of the stream from `at` on; `first`: its first byte, which stands once more behind the last.
    template <int Bits>
    [[nodiscard]] static type
    look_up_windows(window_table const& t, std::byte const* at, index_t bytes, std::byte first) noexcept {
        type stream = load_part(at, bytes);
        if (bytes < size) stream = _mm512_mask_set1_epi8(stream, __mmask64{1} << bytes, static_cast<char>(first));
        __asm__("vpermb %1, %2, %0" : "=v"(stream) : "v"(stream), "v"(t.words));
        __asm__("vpmultishiftqb %1, %2, %0" : "=v"(stream) : "v"(stream), "v"(t.shifts));
        __asm__("vpermb %1, %2, %0" : "=v"(stream) : "v"(t.levels), "v"(stream)); // by the lowest six bits
        return stream;
    }
    /// The lower halves of products of 16-bit words with one number, and the upper ones. The number is hidden: GCC
    /// would rather shift and add, six instructions for one.
    template <class Words>
    [[nodiscard]] static Words products(Words const& a, int by) noexcept {
        return Words(_mm512_mullo_epi16(a.data, hidden_words(by)));
    }
    template <class Words>
    [[nodiscard]] static Words high_products(Words const& a, int by) noexcept {
        return Words(_mm512_mulhi_epu16(a.data, hidden_words(by)));
    }
    [[nodiscard]] static type with_top(type codes, type top) noexcept {
        return _mm512_or_si512(codes, _mm512_slli_epi32(top, 2));
    }
    [[nodiscard]] static type biased(type levels, int offset) noexcept {
        return _mm512_xor_si512(levels, _mm512_set1_epi8(static_cast<char>(offset)));
    }

private:
    [[nodiscard]] static __m512i hidden_words(int x) noexcept {
        __m512i all = _mm512_set1_epi16(static_cast<short>(x));
        __asm__("" : "+v"(all));
        return all;
    }

    /// Planes of four bits shifted down, one after the other.
    [[nodiscard]] static __m512i planes_of_4(std::byte const* at, index_t count) noexcept {
        if (count == 64) {
            __m512i const both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(at)));
            return _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4));
        }
        if (count == 32) {
            __m512i const both = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<__m128i const*>(at)));
            return _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
        }
        __m512i const both = _mm512_set1_epi64(load_integer<std::int64_t>(at, 8));
        return _mm512_srlv_epi64(both, _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4));
    }

    [[nodiscard]] static __m512i planes_of_2(std::byte const* at, index_t count) noexcept {
        if (count == 64) {
            __m512i const all = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<__m128i const*>(at)));
            return _mm512_srlv_epi64(all, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6));
        }
        if (count == 32) {
            __m512i const all = _mm512_set1_epi64(load_integer<std::int64_t>(at, 8));
            return _mm512_srlv_epi64(all, _mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6));
        }
        __m512i const all = _mm512_set1_epi32(load_integer<std::int32_t>(at, 4));
        return _mm512_srlv_epi32(all, _mm512_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6, 0, 2, 4, 6));
    }

    /// Bytes of ones where the highest bits are set: planes of one bit, one after the other.
    [[nodiscard]] static __mmask64 tops_at(std::byte const* at, index_t count) noexcept {
        __m512i shifted = _mm512_setzero_si512();
        if (count == 64)
            shifted = _mm512_srlv_epi64(_mm512_set1_epi64(load_integer<std::int64_t>(at, 8)),
                                        _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
        else if (count == 32)
            shifted = _mm512_srlv_epi32(_mm512_set1_epi32(load_integer<std::int32_t>(at, 4)),
                                        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0));
        else
            shifted = _mm512_srlv_epi16(_mm512_set1_epi16(load_integer<std::int16_t>(at, 2)),
                                        _mm512_broadcast_i32x4(_mm_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7)));
        return _mm512_test_epi8_mask(shifted, _mm512_set1_epi8(1));
    }
};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#endif
