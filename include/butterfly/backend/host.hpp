// SPDX-License-Identifier: MIT
#pragma once

// The SIMD backend for one binary and many CPUs: the best kernels that are linked and that this CPU runs, chosen at run
// time. In CMake:
//
//   butterfly_add_kernels(engine)     links the kernels of every instruction set of the architecture
//
// The kernels and the laws are those of simd<Isa> of the level chosen, and so are the leaves of the library's codecs. A
// user's codec is read through its decode alone: a leaf of its own may have vectors wider than the kernels'. Not in the
// umbrella, because it needs what is linked.

#include <butterfly/backend/host/cache_ops.hpp>
#include <butterfly/backend/host/kernels.hpp>
#include <butterfly/backend/host/merge_ops.hpp>
#include <butterfly/backend/host/shift_ops.hpp>
#include <butterfly/backend/host/workspace.hpp>
#include <butterfly/backend/policy.hpp>
#include <butterfly/backend/simd/raw_codec.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/quant/ggml.hpp>
#include <butterfly/quant/outliers.hpp>
#include <butterfly/quant/trellis.hpp>

#include <array>
#include <span>
#include <string>
#include <type_traits>

namespace butterfly::backend {

/// Kernels of the highest linked level that this CPU has, not above `at_most`.
///
///   backend::host const cpu{.executor = openmp{.threads = 8}};
///   backend::host const modest{.at_most = isa_level::x86_v3};
struct host {
    butterfly::executor executor{};
    isa_level at_most = isa_level::highest;

    /// "host (x86_v4, bf16 dot)"; the unit is left out where bf16 is multiplied in f32.
    [[nodiscard]] std::string name() const {
        if (kernels() == nullptr) return "host (no kernels)";
        std::string const unit = bf16() == bf16_unit::fma ? "" : std::string(", bf16 ") + name_of(bf16());
        return std::string("host (") + kernels()->name + unit + ")";
    }

    /// False where no linked kernels run here: baseline was left out of ISAS.
    [[nodiscard]] bool available() const noexcept { return kernels() != nullptr; }

    /// The level chosen; baseline where no linked kernels run here (`available`).
    [[nodiscard]] isa_level level() const noexcept {
        if (bf16() == bf16_unit::tile) return isa_level::x86_amx;
        if (bf16() == bf16_unit::dot) return isa_level::x86_zen4;
        return kernels() != nullptr ? kernels()->level : isa_level::baseline;
    }

    /// What multiplies bf16 keys and values. Asks the system for tiles where the CPU has them.
    [[nodiscard]] bf16_unit bf16() const noexcept {
        return kernels() != nullptr ? bf16_unit_of(at_most) : bf16_unit::fma;
    }

    /// The kernels chosen; null where none run here.
    [[nodiscard]] kernel_table const* kernels() const noexcept {
        kernel_table const* best = nullptr;
        for (kernel_table const* const* at = butterfly_kernels; *at != nullptr; ++at) {
            isa_level const level = (*at)->level;
            if (level > at_most || !backend::available(level)) continue;
            if (best == nullptr || level > best->level) best = *at;
        }
        return best;
    }
};

static_assert(host_policy<host>);

/// A codec of the user's: its decode and encode, compiled here.
template <quant::decoder Codec>
[[nodiscard]] bound_codec bind_codec(host const& policy, Codec const&) noexcept {
    kernel_table const* const k = policy.kernels();
    return {&vec::foreign_ops<isa::current, Codec>, k != nullptr ? k->name : "host"};
}

/// A raw codec: the kernels' own functions.
template <class T>
[[nodiscard]] bound_codec bind_codec(host const& policy, quant::raw<T> const&) noexcept {
    constexpr codec_id id       = std::is_same_v<T, float>     ? codec_id::raw_f32
                                  : std::is_same_v<T, float16> ? codec_id::raw_f16
                                                               : codec_id::raw_bf16;
    kernel_table const* const k = policy.kernels();
    if (k == nullptr) return {&vec::foreign_ops<isa::current, quant::raw<T>>, "host"};
    return {k->raw_ops(id, id == codec_id::raw_bf16 ? policy.bf16() : bf16_unit::fma), k->name};
}

/// A codec whose rows are said by a format: the kernels' own functions.
template <quant::formatted Codec>
[[nodiscard]] bound_codec bind_codec(host const& policy, Codec const& codec) noexcept {
    kernel_table const* const k = policy.kernels();
    if (k == nullptr) return {&vec::foreign_ops<isa::current, Codec>, "host"};
    return {k->packed_ops(quant::format_of(codec), policy.bf16()), k->name};
}

/// Codecs that have a leaf of their own: likewise.
template <int Bits>
[[nodiscard]] bound_codec bind_codec(host const& policy, quant::trellis<Bits> const&) noexcept {
    kernel_table const* const k = policy.kernels();
    if (k == nullptr) return {&vec::foreign_ops<isa::current, quant::trellis<Bits>>, "host"};
    return {k->trellis_ops(Bits), k->name};
}
template <int Bits, int Tokens>
[[nodiscard]] bound_codec bind_codec(host const& policy, quant::affine_channels<Bits, Tokens> const&) noexcept {
    kernel_table const* const k = policy.kernels();
    if (k == nullptr) return {&vec::foreign_ops<isa::current, quant::affine_channels<Bits, Tokens>>, "host"};
    return {k->affine_channels_ops(Bits, Tokens), k->name};
}
template <quant::decoder Codec>
    requires std::same_as<Codec, quant::ggml_q8_0> || std::same_as<Codec, quant::ggml_q4_0> ||
        std::same_as<Codec, quant::ggml_q4_1>
[[nodiscard]] bound_codec bind_codec(host const& policy, Codec const&) noexcept {
    kernel_table const* const k = policy.kernels();
    if (k == nullptr) return {&vec::foreign_ops<isa::current, Codec>, "host"};
    constexpr int bits = std::same_as<Codec, quant::ggml_q8_0> ? 8 : 4;
    return {k->ggml_ops(bits, std::same_as<Codec, quant::ggml_q4_1>), k->name};
}

/// Outliers over rows that are said by a format: those rows by the functions of the kernels linked as number Linked.
template <quant::formatted Base, int Count, std::size_t Linked>
void decode_outliers(
    void const* codec, std::byte const* const* rows, int count, index_t n, float* out, index_t stride) noexcept {
    auto const& c           = *static_cast<quant::outliers<Base, Count> const*>(codec);
    auto const* const inner = butterfly_kernels[Linked]->packed_ops(quant::format_of(c.base), bf16_unit::fma);
    static_cast<on_host::codec_ops const*>(inner)->decode(&c.base, rows, count, n, out, stride);
    for (int j = 0; j < count; ++j) c.restore(rows[j], n, out + j * stride);
}
template <quant::formatted Base, int Count>
[[nodiscard]] bound_codec bind_codec(host const& policy, quant::outliers<Base, Count> const&) noexcept {
    static constexpr auto ops = []<std::size_t... I>(std::index_sequence<I...>) {
        return std::array{vec::simd_codec_ops{{&decode_outliers<Base, Count, I>}, nullptr, nullptr}...};
    }
    (std::make_index_sequence<4>{}); // more than any architecture has kernels of
    kernel_table const* const k = policy.kernels();
    std::size_t linked          = 0;
    while (linked < ops.size() && butterfly_kernels[linked] != k) ++linked;
    if (k == nullptr || linked == ops.size())
        return {&vec::foreign_ops<isa::current, quant::outliers<Base, Count>>, k != nullptr ? k->name : "host"};
    return {&ops[linked], k->name};
}

[[nodiscard]] inline support supports(host const& policy, problem const& p) {
    kernel_table const* const k = policy.kernels();
    if (k == nullptr) return {false, "host: no linked kernels run on this CPU, or none up to at_most"};
    std::string reason = on_host::decline(policy.executor, p, k->name);
    return {reason.empty(), reason};
}

/// Names the kernels chosen, their class, its block shapes and the threads.
[[nodiscard]] inline std::string explain(host const& policy, problem const& p) {
    if (support const s = supports(policy, p); !s) return "declined: " + s.reason;
    std::array<char, 256> plan;
    policy.kernels()->explain(p, policy.executor.threads(), plan);
    return policy.name() + ": " + plan.data() + ", " + policy.executor.name();
}

/// Scratch bytes of a call with these problems; a span in options.workspace of problem 0 serves all of them.
[[nodiscard]] inline index_t workspace_bytes(host const& policy, std::span<problem const> problems) noexcept {
    kernel_table const* const k = policy.kernels();
    if (k == nullptr) return 0;
    int const threads          = policy.executor.threads();
    kernel_scratch const bytes = k->scratch(threads, problems);
    return bytes.each * threads + bytes.room + on_host::scratch_alignment;
}

inline void run(host const& policy, std::span<problem const> problems) {
    if (problems.empty()) return;
    kernel_table const* const k = policy.kernels();
    if (k == nullptr) detail::fail<backend_error>(supports(policy, problems[0]).reason);
    int const threads          = policy.executor.threads();
    kernel_scratch const bytes = k->scratch(threads, problems);
    on_host::workspace const memory(policy.executor, problems[0].options.workspace, bytes.each * threads + bytes.room);
    k->run(policy.executor, problems, memory.data(), bytes);
}

} // namespace butterfly::backend
