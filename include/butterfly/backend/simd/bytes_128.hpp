// SPDX-License-Identifier: MIT
#pragma once

// Vectors of 16 bytes of AArch64; see bytes.hpp.

#include <butterfly/backend/simd/load_integer.hpp>
#include <butterfly/quant/row_format.hpp>

#if defined(__aarch64__)

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// 16 bytes.
struct bytes_128 {
    using type                            = int8x16_t;
    static constexpr int size             = 16;
    static constexpr int vectors          = 4;
    static constexpr int bias             = 0;
    static constexpr int weight_top       = 127;
    static constexpr char const* dot_name = "int8 dot";

    struct table {
        int8x16x2_t levels;
    };
    [[nodiscard]] static table table_of(quant::row_format const& f, int) noexcept {
        return {{{vld1q_s8(f.levels.data()), vld1q_s8(f.levels.data() + 16)}}};
    }

    /// 64 bytes as a table for look_up_64.
    [[nodiscard]] static int8x16x4_t table_of_64(std::int8_t const* at) noexcept {
        return {{vld1q_s8(at), vld1q_s8(at + 16), vld1q_s8(at + 32), vld1q_s8(at + 48)}};
    }

    [[nodiscard]] static bool has_dot() noexcept { return true; }
    [[nodiscard]] static type zero() noexcept { return vdupq_n_s8(0); }
    [[nodiscard]] static type load(std::byte const* at) noexcept {
        return vld1q_s8(reinterpret_cast<std::int8_t const*>(at));
    }
    [[nodiscard]] static type load_part(std::byte const* at, index_t) noexcept { return load(at); }
    [[nodiscard]] static type load_few(std::byte const* at, index_t count) noexcept {
        std::byte few[size] = {};
        std::memcpy(few, at, static_cast<std::size_t>(count));
        return load(few);
    }

    template <quant::packing Codes>
    static void unpack(std::byte const* at, index_t count, table const& t, int, type* levels) noexcept {
        // Where a chunk ends early, its bytes are few: they are copied to where a whole one would stand.
        using quant::packing;
        alignas(16) std::uint8_t codes[64] = {};
        for (index_t i = 0; i < count && (Codes == packing::bits8 || count < 64); ++i)
            codes[i] = static_cast<std::uint8_t>(quant::detail::load_code(Codes, at, count, i));
        uint8x16_t v[4];
        for (int i = 0; i < 4; ++i) v[i] = vld1q_u8(codes + 16 * i);
        if constexpr (Codes == packing::bits8) {
            for (int i = 0; i < 4; ++i) levels[i] = vreinterpretq_s8_u8(v[i]);
            return;
        }
        auto const* const from = reinterpret_cast<std::uint8_t const*>(at);
        if (count == 64 && (Codes == packing::bits4 || Codes == packing::bits5)) {
            for (int i = 0; i < 2; ++i) {
                uint8x16_t const both = vld1q_u8(from + 16 * i);
                v[i]                  = vandq_u8(both, vdupq_n_u8(15));
                v[i + 2]              = vshrq_n_u8(both, 4);
            }
            if constexpr (Codes == packing::bits5)
                for (int i = 0; i < 4; ++i) v[i] = vorrq_u8(v[i], vandq_u8(tops_at(from + 32, i), vdupq_n_u8(16)));
        } else if (count == 64) {
            uint8x16_t const all = vld1q_u8(from);
            v[0]                 = vandq_u8(all, vdupq_n_u8(3));
            v[1]                 = vandq_u8(vshrq_n_u8(all, 2), vdupq_n_u8(3));
            v[2]                 = vandq_u8(vshrq_n_u8(all, 4), vdupq_n_u8(3));
            v[3]                 = vshrq_n_u8(all, 6);
            if constexpr (Codes == packing::bits3)
                for (int i = 0; i < 4; ++i) v[i] = vorrq_u8(v[i], vandq_u8(tops_at(from + 16, i), vdupq_n_u8(4)));
        }
        for (int i = 0; i < 4; ++i) levels[i] = vqtbl2q_s8(t.levels, v[i]);
    }

    [[nodiscard]] static type dot(type sum, type a, type b) noexcept {
        int16x8_t const low  = vmull_s8(vget_low_s8(a), vget_low_s8(b));
        int16x8_t const high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
        int32x4_t const four = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
        return vreinterpretq_s8_s32(vaddq_s32(vreinterpretq_s32_s8(sum), four));
    }
    [[nodiscard]] static type weigh(type sum, type weights, type levels) noexcept { return dot(sum, weights, levels); }
    [[nodiscard]] static type four_weights(std::uint32_t four) noexcept {
        return vreinterpretq_s8_u32(vdupq_n_u32(four));
    }

    static void interleave(type const* row, type* out) noexcept {
        int8x16x2_t const ab = vzipq_s8(row[0], row[1]), cd = vzipq_s8(row[2], row[3]);
        for (int i = 0; i < 2; ++i) {
            int16x8x2_t const four = vzipq_s16(vreinterpretq_s16_s8(ab.val[i]), vreinterpretq_s16_s8(cd.val[i]));
            out[2 * i]             = vreinterpretq_s8_s16(four.val[0]);
            out[2 * i + 1]         = vreinterpretq_s8_s16(four.val[1]);
        }
    }

    template <class Isa>
    [[nodiscard]] static f32<Isa> to_float(type sum) noexcept {
        return f32<Isa>(vcvtq_f32_s32(vreinterpretq_s32_s8(sum)));
    }
    template <class Isa>
    [[nodiscard]] static f32<Isa> widen(std::int8_t const* at) noexcept {
        alignas(16) float four[4];
        for (int i = 0; i < 4; ++i) four[i] = at[i];
        return f32<Isa>(vld1q_f32(four));
    }
    static void store(type const& x, void* at) noexcept { vst1q_s8(static_cast<std::int8_t*>(at), x); }
    [[nodiscard]] static type spread(type x) noexcept { return x; }

    static constexpr int keys = 4;
    [[gnu::always_inline]] static void load_keys(std::byte const* const* rows, index_t at, type* out) noexcept {
        int32x4_t x[4];
        for (int i = 0; i < 4; ++i) x[i] = vreinterpretq_s32_s8(load(rows[i] + at));
        int32x4x2_t const a = vtrnq_s32(x[0], x[1]), b = vtrnq_s32(x[2], x[3]);
        for (int w = 0; w < 2; ++w) {
            out[w]     = vreinterpretq_s8_s32(vcombine_s32(vget_low_s32(a.val[w]), vget_low_s32(b.val[w])));
            out[w + 2] = vreinterpretq_s8_s32(vcombine_s32(vget_high_s32(a.val[w]), vget_high_s32(b.val[w])));
        }
    }
    [[gnu::always_inline]] static void load_keys_of_8(std::byte const* const* rows, index_t at, type* out) noexcept {
        alignas(16) std::int32_t words[2][4];
        for (int i = 0; i < 4; ++i)
            for (int w = 0; w < 2; ++w) words[w][i] = load_integer<std::int32_t>(rows[i] + at + 4 * w, 4);
        for (int w = 0; w < 2; ++w) out[w] = vreinterpretq_s8_s32(vld1q_s32(words[w]));
    }
    template <int Shift>
    [[nodiscard]] static type down(type x) noexcept {
        if constexpr (Shift == 0)
            return x;
        else
            return vreinterpretq_s8_u32(vshrq_n_u32(vreinterpretq_u32_s8(x), Shift));
    }
    [[nodiscard]] static type both(type x, int mask) noexcept {
        return vandq_s8(x, vdupq_n_s8(static_cast<std::int8_t>(mask)));
    }
    [[nodiscard]] static type look_up(table const& t, type codes) noexcept {
        return vqtbl2q_s8(t.levels, vreinterpretq_u8_s8(codes));
    }
    [[nodiscard]] static type look_up(table const& t, type codes, type top) noexcept {
        return look_up(t, vorrq_s8(codes, vshlq_n_s8(top, 4)));
    }
    [[nodiscard]] static type look_up_64(int8x16x4_t const& t, type codes) noexcept {
        return vqtbl4q_s8(t, vreinterpretq_u8_s8(codes));
    }
    template <class Words>
    [[nodiscard]] static Words products(Words const& a, int by) noexcept {
        return Words(vmulq_n_u16(a.data, static_cast<std::uint16_t>(by)));
    }
    template <class Words>
    [[nodiscard]] static Words high_products(Words const& a, int by) noexcept {
        uint16x8_t const all = vdupq_n_u16(static_cast<std::uint16_t>(by));
        uint32x4_t const low = vmull_u16(vget_low_u16(a.data), vget_low_u16(all));
        uint32x4_t const top = vmull_high_u16(a.data, all);
        return Words(vuzp2q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(top)));
    }
    [[nodiscard]] static type with_top(type codes, type top) noexcept { return vorrq_s8(codes, vshlq_n_s8(top, 2)); }
    [[nodiscard]] static type biased(type levels, int) noexcept { return levels; }

private:
    /// Bytes of ones where the highest bits of vector i of a whole chunk are set: planes of one bit.
    [[nodiscard]] static uint8x16_t tops_at(std::uint8_t const* at, int i) noexcept {
        uint8x8_t const all  = vld1_u8(at);
        std::uint8_t const a = static_cast<std::uint8_t>(1U << (2 * i)), b = static_cast<std::uint8_t>(2U << (2 * i));
        return vcombine_u8(vtst_u8(all, vdup_n_u8(a)), vtst_u8(all, vdup_n_u8(b)));
    }
};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#endif
