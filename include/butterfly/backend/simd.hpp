// SPDX-License-Identifier: MIT
#pragma once

// The SIMD backend: packed, register-blocked kernels for what this translation unit's flags allow, from SSE2 to AVX-512
// and NEON. Include and compile; with no flags it is SSE2: correct, slow, and name() says so.
//
// Numeric policy: f32 accumulation whatever the storage; exp to 2e-7, or to 1e-4 where weights are then rounded to bf16
// (bf16_unit.hpp); within a kernel class (stream, tile by spans, tile) the bits do not depend on the executor, the
// number of threads, chunking or batch.

#include <butterfly/backend/host/cache_ops.hpp>
#include <butterfly/backend/host/merge_ops.hpp>
#include <butterfly/backend/host/shift_ops.hpp>
#include <butterfly/backend/host/workspace.hpp>
#include <butterfly/backend/policy.hpp>
#include <butterfly/backend/simd/bf16_ops.hpp>
#include <butterfly/backend/simd/bf16_unit.hpp>
#include <butterfly/backend/simd/codec/affine_channels.hpp>
#include <butterfly/backend/simd/codec/ggml.hpp>
#include <butterfly/backend/simd/codec/outliers.hpp>
#include <butterfly/backend/simd/codec/packed_ops.hpp>
#include <butterfly/backend/simd/codec/trellis.hpp>
#include <butterfly/backend/simd/work_list.hpp>

#include <algorithm>
#include <concepts>
#include <span>
#include <string>
#include <vector>

namespace butterfly::backend {

/// Kernels of one instruction set; the default is what the flags allow.
///
///   backend::simd<> const cpu{.executor = openmp{.threads = 8}};
template <class Isa = isa::current>
struct simd {
    static_assert(Isa::supported(), "this translation unit's flags do not allow this instruction set");

    butterfly::executor executor{};
    bf16_unit bf16 = bf16_unit::best; // what multiplies bf16 keys and values; one this CPU lacks becomes fma

    /// "simd (x86_v4)".
    [[nodiscard]] static std::string name() { return std::string("simd (") + Isa::name() + ")"; }
    [[nodiscard]] static bool available() noexcept { return Isa::available(); }
};

static_assert(host_policy<simd<>>);

namespace vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Scratch of one thread, for any of the problems.
template <class Isa>
[[nodiscard]] index_t thread_bytes(std::span<problem const> problems) noexcept {
    index_t most = 0;
    for (problem const& p : problems) {
        index_t const dk = p.q.shape.head_dim;
        index_t const dv = p.out.shape.head_dim;
        cut const c      = cut_problem<Isa>(p);
        most             = std::max(most, stream_scratch<Isa>::bytes(c.streamed(), dk, dv));
        if (c.stream) continue;
        tile_unit const& unit = unit_of<Isa>(p);
        bool const masked     = static_cast<bool>(p.options.mask.data);
        bool const rounded    = has_rounded_rows(p, unit);
        most = std::max(most, tile_scratch::bytes(unit, {most_rows(p, c, unit), dk, dv, masked, c.spanned, rounded}));
    }
    return most;
}

/// How the stream class reads keys and values, each way once: "int8 dot (vnni), f32 of decoded rows".
[[nodiscard]] inline std::string reading_of(problem const& p) {
    std::vector<std::string> ways;
    auto const add = [&](storage_ref const& rows, auto leaf) {
        if (rows.ops == nullptr) return;
        simd_codec_ops const& ops = ops_of(rows);
        std::string const way     = ops.*leaf != nullptr ? ops.unit : "f32 of decoded rows";
        if (std::find(ways.begin(), ways.end(), way) == ways.end()) ways.push_back(way);
    };
    for (int k = 0; k < p.pool_count; ++k) {
        add(p.pools[k].keys, &simd_codec_ops::score);
        add(p.pools[k].values, &simd_codec_ops::accumulate);
    }
    std::string text;
    for (std::string const& way : ways) text += (text.empty() ? "" : ", ") + way;
    return text.empty() ? "no rows" : text;
}

/// The kernel class of a call and its block shapes.
template <class Isa>
[[nodiscard]] std::string plan_text(problem const& p, int threads) {
    cut const c      = cut_problem<Isa>(p, threads);
    std::string text = c.stream ? "stream class, " : c.spanned ? "tile class by spans, " : "tile class, ";
    text += std::to_string(c.item_tokens()) + " tokens x " + std::to_string(c.chunk) + " heads per item, ";
    if (c.stream) return text + reading_of(p) + ", in spans of " + std::to_string(span_slots) + " slots";
    tile_unit const& unit = unit_of<Isa>(p);
    text +=
        unit.name + (", strips of " + std::to_string(unit.strip)) + " rows x " + std::to_string(tile_slots) + " keys";
    if (c.spanned) text += ", in spans of " + std::to_string(span_slots) + " slots";
    for (int k = 0; k < p.pool_count; ++k)
        if (p.pools[k].visibility.shares != nullptr)
            return text + ", rows with few keys in common one by one in the stream class";
    return text;
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace vec

template <class Isa, quant::decoder Codec>
[[nodiscard]] bound_codec bind_codec([[maybe_unused]] simd<Isa> const& policy,
                                     [[maybe_unused]] Codec const& codec) noexcept {
    using vec::simd_ops;
    if constexpr (std::same_as<Codec, quant::raw<bfloat16>>)
        return {&vec::bf16_ops<Isa>(resolve(policy.bf16)), Isa::name()};
    else if constexpr (quant::formatted<Codec>)
        return {&vec::packed_ops<Isa>(quant::format_of(codec), resolve(policy.bf16)), Isa::name()};
    else
        return {&simd_ops(Isa{}, codec), Isa::name()};
}

template <class Isa>
[[nodiscard]] support supports(simd<Isa> const& policy, problem const& p) {
    if (!Isa::available()) return {false, policy.name() + ": this CPU lacks the instruction set"};
    std::string reason = on_host::decline(policy.executor, p, Isa::name());
    return {reason.empty(), reason};
}

/// Names the kernel class, its block shapes and the threads.
template <class Isa>
[[nodiscard]] std::string explain(simd<Isa> const& policy, problem const& p) {
    if (support const s = supports(policy, p); !s) return "declined: " + s.reason;
    return policy.name() + ": " + vec::plan_text<Isa>(p, policy.executor.threads()) + ", " + policy.executor.name();
}

/// Scratch bytes of a call with these problems; a span in options.workspace of problem 0 serves all of them.
template <class Isa>
[[nodiscard]] index_t workspace_bytes(simd<Isa> const& policy, std::span<problem const> problems) noexcept {
    int const threads = policy.executor.threads();
    return vec::thread_bytes<Isa>(problems) * threads + vec::parts_room<Isa>(threads, problems) +
           on_host::scratch_alignment;
}

template <class Isa>
void run(simd<Isa> const& policy, std::span<problem const> problems) {
    if (problems.empty()) return;
    int const threads  = policy.executor.threads();
    index_t const each = vec::thread_bytes<Isa>(problems);
    index_t const room = vec::parts_room<Isa>(threads, problems);
    on_host::workspace const scratch(policy.executor, problems[0].options.workspace, each * threads + room);
    vec::deal<Isa>(policy.executor, problems, scratch.data(), each, room);
}

} // namespace butterfly::backend
