// SPDX-License-Identifier: MIT
#pragma once

// Vectors of 32 bytes; see bytes.hpp.

#include <butterfly/backend/simd/load_integer.hpp>
#include <butterfly/quant/row_format.hpp>

#if defined(__AVX2__)

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// 32 bytes.
struct bytes_256 {
    using type                            = __m256i;
    static constexpr int size             = 32;
    static constexpr int vectors          = 2;
    static constexpr int bias             = 0;
    static constexpr int weight_top       = 127; // sums of two products are 16 bits
    static constexpr char const* dot_name = "int8 dot";

    struct table {
        type low, high;
    };
    [[nodiscard]] static table table_of(quant::row_format const& f, int) noexcept {
        auto const* const at = reinterpret_cast<__m128i const*>(f.levels.data());
        return {_mm256_broadcastsi128_si256(_mm_loadu_si128(at)), _mm256_broadcastsi128_si256(_mm_loadu_si128(at + 1))};
    }

    /// 64 bytes as a table for look_up_64.
    struct wide_table {
        table lower, upper;
    };
    [[nodiscard]] static wide_table table_of_64(std::int8_t const* at) noexcept {
        auto const part = [&](int i) {
            return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<__m128i const*>(at) + i));
        };
        return {{part(0), part(1)}, {part(2), part(3)}};
    }

    [[nodiscard]] static bool has_dot() noexcept { return true; }
    [[nodiscard]] static type zero() noexcept { return _mm256_setzero_si256(); }
    [[nodiscard]] static type load(std::byte const* at) noexcept {
        return _mm256_loadu_si256(reinterpret_cast<__m256i const*>(at));
    }
    [[nodiscard]] static type load_part(std::byte const* at, index_t count) noexcept {
        if (count >= size) return load(at);
        return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<__m128i const*>(at))); // chunks have 16 at least
    }
    [[nodiscard]] static type load_few(std::byte const* at, index_t count) noexcept {
        std::byte few[size] = {};
        std::memcpy(few, at, static_cast<std::size_t>(count));
        return load(few);
    }

    template <quant::packing Codes>
    static void unpack(std::byte const* at, index_t count, table const& t, int, type* levels) noexcept {
        using quant::packing;
        if constexpr (Codes == packing::bits8) {
            if (count == 64) {
                levels[0] = load(at);
                levels[1] = load(at + 32);
            } else {
                levels[0] = count == 32 ? load(at)
                                        : _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<__m128i const*>(at)));
                levels[1] = zero();
            }
            return;
        }
        type codes[2];
        if constexpr (Codes == packing::bits4 || Codes == packing::bits5) {
            planes_of_4(at, count, codes);
            for (int i = 0; i < 2; ++i) {
                codes[i]  = _mm256_and_si256(codes[i], _mm256_set1_epi8(15));
                levels[i] = _mm256_shuffle_epi8(t.low, codes[i]);
                if constexpr (Codes == packing::bits5)
                    levels[i] = _mm256_blendv_epi8(levels[i], _mm256_shuffle_epi8(t.high, codes[i]),
                                                   tops_at(at + count / 2, count, i));
            }
            return;
        }
        planes_of_2(at, count, codes);
        for (int i = 0; i < 2; ++i) {
            codes[i] = _mm256_and_si256(codes[i], _mm256_set1_epi8(3));
            if constexpr (Codes == packing::bits3)
                codes[i] =
                    _mm256_or_si256(codes[i], _mm256_and_si256(tops_at(at + count / 4, count, i), _mm256_set1_epi8(4)));
            levels[i] = _mm256_shuffle_epi8(t.low, codes[i]);
        }
    }

    /// Signs of the levels go to the query: unsigned by signed.
    [[nodiscard]] static type dot(type sum, type a, type b) noexcept {
        return weigh(sum, _mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
    }
    [[nodiscard]] static type weigh(type sum, type weights, type levels) noexcept {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, levels), _mm256_set1_epi16(1)));
    }
    [[nodiscard]] static type four_weights(std::uint32_t four) noexcept {
        return _mm256_set1_epi32(static_cast<int>(four));
    }

    static void interleave(type const* row, type* out) noexcept {
        __m256i const ab_low = _mm256_unpacklo_epi8(row[0], row[1]), ab_top = _mm256_unpackhi_epi8(row[0], row[1]);
        __m256i const cd_low = _mm256_unpacklo_epi8(row[2], row[3]), cd_top = _mm256_unpackhi_epi8(row[2], row[3]);
        out[0] = _mm256_unpacklo_epi16(ab_low, cd_low);
        out[1] = _mm256_unpackhi_epi16(ab_low, cd_low);
        out[2] = _mm256_unpacklo_epi16(ab_top, cd_top);
        out[3] = _mm256_unpackhi_epi16(ab_top, cd_top);
    }

    template <class Isa>
    [[nodiscard]] static f32<Isa> to_float(type sum) noexcept {
        return f32<Isa>(_mm256_cvtepi32_ps(sum));
    }
    template <class Isa>
    [[nodiscard]] static f32<Isa> widen(std::int8_t const* at) noexcept {
        return f32<Isa>(
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(at)))));
    }
    static void store(type const& x, void* at) noexcept { _mm256_storeu_si256(static_cast<__m256i*>(at), x); }
    [[nodiscard]] static type spread(type x) noexcept {
        return _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    }

    static constexpr int keys = 8;
    [[gnu::always_inline]] static void load_keys(std::byte const* const* rows, index_t at, type* out) noexcept {
        __m256i x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) // rows i, i + 4
            x[i] = _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<__m128i const*>(rows[i] + at))),
                _mm_loadu_si128(reinterpret_cast<__m128i const*>(rows[i + 4] + at)), 1);
        __m256i const a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpackhi_epi32(x[0], x[1]);
        __m256i const c = _mm256_unpacklo_epi32(x[2], x[3]), d = _mm256_unpackhi_epi32(x[2], x[3]);
        out[0] = _mm256_unpacklo_epi64(a, c);
        out[1] = _mm256_unpackhi_epi64(a, c);
        out[2] = _mm256_unpacklo_epi64(b, d);
        out[3] = _mm256_unpackhi_epi64(b, d);
    }
    [[gnu::always_inline]] static void load_keys_of_8(std::byte const* const* rows, index_t at, type* out) noexcept {
        alignas(32) std::int32_t words[2][8];
        for (int i = 0; i < 8; ++i)
            for (int w = 0; w < 2; ++w) words[w][i] = load_integer<std::int32_t>(rows[i] + at + 4 * w, 4);
        for (int w = 0; w < 2; ++w) out[w] = _mm256_load_si256(reinterpret_cast<__m256i const*>(words[w]));
    }
    template <int Shift>
    [[nodiscard]] static type down(type x) noexcept {
        return _mm256_srli_epi32(x, Shift);
    }
    [[nodiscard]] static type both(type x, int mask) noexcept {
        return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(mask)));
    }
    [[nodiscard]] static type look_up(table const& t, type codes) noexcept {
        return _mm256_shuffle_epi8(t.low, codes);
    }
    [[nodiscard]] static type look_up(table const& t, type codes, type top) noexcept {
        return _mm256_blendv_epi8(_mm256_shuffle_epi8(t.low, codes), _mm256_shuffle_epi8(t.high, codes),
                                  _mm256_slli_epi32(top, 7));
    }
    [[nodiscard]] static type look_up_64(wide_table const& t, type codes) noexcept {
        type const top = _mm256_srli_epi32(both(codes, 16), 4);
        return _mm256_blendv_epi8(look_up(t.lower, codes, top), look_up(t.upper, codes, top),
                                  _mm256_slli_epi32(codes, 2));
    }
    template <class Words>
    [[nodiscard]] static Words products(Words const& a, int by) noexcept {
        return Words(_mm256_mullo_epi16(a.data, hidden_words(by)));
    }
    template <class Words>
    [[nodiscard]] static Words high_products(Words const& a, int by) noexcept {
        return Words(_mm256_mulhi_epu16(a.data, hidden_words(by)));
    }
    [[nodiscard]] static type with_top(type codes, type top) noexcept {
        return _mm256_or_si256(codes, _mm256_slli_epi32(top, 2));
    }
    [[nodiscard]] static type biased(type levels, int) noexcept {
        return levels;
    }

private:
    [[nodiscard]] static __m256i hidden_words(int x) noexcept {
        __m256i all = _mm256_set1_epi16(static_cast<short>(x));
        __asm__("" : "+x"(all));
        return all;
    }
    static void planes_of_4(std::byte const* at, index_t count, type* codes) noexcept {
        if (count == 64) {
            codes[0] = load(at);
            codes[1] = _mm256_srli_epi16(codes[0], 4);
            return;
        }
        __m256i const both = count == 32
                                 ? _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<__m128i const*>(at)))
                                 : _mm256_set1_epi64x(load_integer<std::int64_t>(at, 8));
        __m256i const by   = count == 32 ? _mm256_setr_epi64x(0, 0, 4, 4) : _mm256_setr_epi64x(0, 4, 0, 4);
        codes[0] = codes[1] = _mm256_srlv_epi64(both, by);
    }
    static void planes_of_2(std::byte const* at, index_t count, type* codes) noexcept {
        if (count == 64) {
            __m256i const all = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<__m128i const*>(at)));
            codes[0]          = _mm256_srlv_epi64(all, _mm256_setr_epi64x(0, 0, 2, 2));
            codes[1]          = _mm256_srlv_epi64(all, _mm256_setr_epi64x(4, 4, 6, 6));
        } else if (count == 32) {
            codes[0] = codes[1] = _mm256_srlv_epi64(_mm256_set1_epi64x(load_integer<std::int64_t>(at, 8)),
                                                    _mm256_setr_epi64x(0, 2, 4, 6));
        } else {
            codes[0] = codes[1] = _mm256_srlv_epi32(_mm256_set1_epi32(load_integer<std::int32_t>(at, 4)),
                                                    _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
        }
    }
    /// Bytes of ones where the highest bits of vector i of a chunk are set: planes of one bit, one after the other.
    [[nodiscard]] static __m256i tops_at(std::byte const* at, index_t count, int i) noexcept {
        __m256i shifted = zero();
        if (count == 64)
            shifted = _mm256_srlv_epi64(_mm256_set1_epi64x(load_integer<std::int64_t>(at, 8)),
                                        _mm256_add_epi64(_mm256_setr_epi64x(0, 1, 2, 3), _mm256_set1_epi64x(4 * i)));
        else if (count == 32)
            shifted = _mm256_srlv_epi32(_mm256_set1_epi32(load_integer<std::int32_t>(at, 4)),
                                        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        else { // two bytes: 16-bit lanes, shifted as pairs of 32
            auto const word                        = load_integer<std::uint16_t>(at, 2);
            alignas(32) std::uint16_t lanes_of[16] = {};
            for (int p = 0; p < 8; ++p) lanes_of[p] = static_cast<std::uint16_t>(word >> p);
            shifted = _mm256_load_si256(reinterpret_cast<__m256i const*>(lanes_of));
        }
        __m256i const one = _mm256_set1_epi8(1);
        return _mm256_cmpeq_epi8(_mm256_and_si256(shifted, one), one);
    }
};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#endif
