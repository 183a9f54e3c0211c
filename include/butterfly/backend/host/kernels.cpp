// SPDX-License-Identifier: MIT

// The SIMD kernels of one instruction set, as an object with one global symbol: butterfly_kernels_<isa>, a
// kernel_table. butterfly_add_kernels (cmake/butterflyKernels.cmake) compiles this once for each instruction set with
// its flags and -DBUTTERFLY_KERNELS=<isa>, a tag of backend/simd/isa.hpp and a name of isa_level.
//
// Templates and inline functions of std::, core/ and sdpa/ are compiled here with those flags too, as weak symbols. A
// linker keeps one copy of each, and a copy that uses AVX-512 must not serve the rest of the program: so after
// compiling, every symbol but the table is made local. An object that has not been through that must not be linked.

#include <butterfly/backend/host/kernels.hpp>
#include <butterfly/backend/simd.hpp>

#include <string>

namespace butterfly::backend {
namespace {

using kernel_isa = isa::BUTTERFLY_KERNELS;

#if defined(__AVX512F__)
constexpr isa_level compiled_for = isa_level::x86_v4;
#elif defined(__AVX__)
constexpr isa_level compiled_for = isa_level::x86_v3;
#else
constexpr isa_level compiled_for = isa_level::baseline;
#endif
static_assert(compiled_for <= isa_level::BUTTERFLY_KERNELS, "these flags allow more than the instruction set has");

/// The functions of the table.
struct entries {
    static void const* raw_ops(codec_id codec, bf16_unit unit) noexcept {
        simd<kernel_isa> const policy{.bf16 = unit};
        switch (codec) {
        case codec_id::raw_f32:
            return bind_codec(policy, quant::raw<float>{}).ops;
        case codec_id::raw_f16:
            return bind_codec(policy, quant::raw<float16>{}).ops;
        case codec_id::raw_bf16:
            return bind_codec(policy, quant::raw<bfloat16>{}).ops;
        case codec_id::packed:
        case codec_id::foreign:
            break;
        }
        return nullptr;
    }

    static void const* packed_ops(quant::row_format const& f, bf16_unit unit) noexcept {
        return &vec::packed_ops<kernel_isa>(f, resolve(unit));
    }

    template <quant::decoder Codec>
    static void const* leaf_of(Codec const& codec) noexcept {
        return bind_codec(simd<kernel_isa>{}, codec).ops;
    }

    static void const* trellis_ops(int bits) noexcept {
        return bits == 2   ? leaf_of(quant::trellis<2>())
               : bits == 3 ? leaf_of(quant::trellis<3>())
                           : leaf_of(quant::trellis<4>());
    }

    template <int Tokens>
    static void const* affine_channels_of(int bits) noexcept {
        return bits == 2   ? leaf_of(quant::affine_channels<2, Tokens>())
               : bits == 3 ? leaf_of(quant::affine_channels<3, Tokens>())
               : bits == 4 ? leaf_of(quant::affine_channels<4, Tokens>())
                           : leaf_of(quant::affine_channels<8, Tokens>());
    }

    static void const* affine_channels_ops(int bits, index_t tokens) noexcept {
        return tokens == 32   ? affine_channels_of<32>(bits)
               : tokens == 64 ? affine_channels_of<64>(bits)
                              : affine_channels_of<128>(bits);
    }

    static void const* ggml_ops(int bits, bool lifted) noexcept {
        return bits == 8 ? leaf_of(quant::ggml_q8_0())
               : lifted  ? leaf_of(quant::ggml_q4_1())
                         : leaf_of(quant::ggml_q4_0());
    }

    static kernel_scratch scratch(int threads, std::span<problem const> problems) noexcept {
        return {vec::thread_bytes<kernel_isa>(problems), vec::parts_room<kernel_isa>(threads, problems)};
    }

    static void explain(problem const& p, int threads, std::span<char> text) noexcept {
        if (text.empty()) return;
        std::string const plan                        = vec::plan_text<kernel_isa>(p, threads);
        text[plan.copy(text.data(), text.size() - 1)] = '\0';
    }

    static void
    run(executor const& threads, std::span<problem const> problems, std::byte* memory, kernel_scratch bytes) noexcept {
        vec::deal<kernel_isa>(threads, problems, memory, bytes.each, bytes.room);
    }
};

} // namespace
} // namespace butterfly::backend

#define BUTTERFLY_PASTE(a, b) a##b
#define BUTTERFLY_TABLE_OF(isa) BUTTERFLY_PASTE(butterfly_kernels_, isa)

extern "C" {
extern __attribute__((visibility("hidden")))
butterfly::backend::kernel_table const BUTTERFLY_TABLE_OF(BUTTERFLY_KERNELS);

// A constant: no code of this object runs before the table is chosen.
constinit butterfly::backend::kernel_table const BUTTERFLY_TABLE_OF(BUTTERFLY_KERNELS){
    butterfly::backend::isa_level::BUTTERFLY_KERNELS,
    butterfly::isa::BUTTERFLY_KERNELS::name(),
    &butterfly::backend::entries::raw_ops,
    &butterfly::backend::entries::packed_ops,
    &butterfly::backend::entries::trellis_ops,
    &butterfly::backend::entries::affine_channels_ops,
    &butterfly::backend::entries::ggml_ops,
    &butterfly::backend::entries::scratch,
    &butterfly::backend::entries::explain,
    &butterfly::backend::entries::run};
}
