// SPDX-License-Identifier: MIT
#pragma once

// The SIMD backend: packed, register-blocked kernels for what this translation unit's flags allow, from SSE2 to AVX-512
// and NEON. Include and compile; with no flags it is SSE2: correct, slow, and name() says so.
//
// Numeric policy: f32 accumulation whatever the storage; exp to 2e-7; within a kernel class (stream, tile) the bits do
// not depend on the executor, the number of threads, chunking or batch.

#include <butterfly/backend/host/cache_ops.hpp>
#include <butterfly/backend/host/merge_ops.hpp>
#include <butterfly/backend/host/workspace.hpp>
#include <butterfly/backend/policy.hpp>
#include <butterfly/backend/simd/stream_class.hpp>
#include <butterfly/backend/simd/tile_class.hpp>

#include <algorithm>
#include <array>
#include <span>

namespace butterfly::backend {

/// Kernels of one instruction set; the default is what the flags allow.
///
///   backend::simd<> const cpu{.executor = openmp{.threads = 8}};
template <class Isa = isa::current>
struct simd {
    static_assert(Isa::supported(), "this translation unit's flags do not allow this instruction set");

    butterfly::executor executor{};

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
        most             = std::max(most, cut_problem<Isa>(p).stream ? stream_scratch<Isa>::bytes(dk, dv)
                                                                     : tile_scratch<Isa>::bytes(dk, dv));
    }
    return most;
}

/// Most spans of one pool, from its shape alone.
[[nodiscard]] inline index_t most_spans(pool_ref const& pool) noexcept {
    index_t const slots = pool.keys.ring != 0 ? std::min(pool.slots, pool.keys.ring) : pool.slots;
    return detail::ceil_div(slots, span_slots) + 1;
}

/// Most spans of all pools.
[[nodiscard]] inline index_t most_spans(problem const& p) noexcept {
    index_t count = 0;
    for (int k = 0; k < p.pool_count; ++k) count += most_spans(p.pools[k]);
    return count;
}

/// Most items of a problem wherever its queries stand.
[[nodiscard]] inline index_t most_items(problem const& p, cut const& c) noexcept {
    if (c.per_block == 0) return c.items();
    return c.chunks * std::min(p.tokens(), (detail::ceil_div(p.tokens(), c.alignment) + 1) * c.per_block);
}

/// Whether the spans of a problem may be distributed: few items, long pools. Asked of shapes alone, since the workspace
/// depends on it; only where the work runs does, never a bit.
[[nodiscard]] inline bool may_split(problem const& p, cut const& c, int threads) noexcept {
    if (!c.stream || threads == 1 || c.items() == 0 || most_items(p, c) >= 4 * threads) return false;
    for (int k = 0; k < p.pool_count; ++k)
        if (most_spans(p.pools[k]) > 3) return true;
    return false;
}

/// Spans of all pools of an item.
template <class Isa>
[[nodiscard]] index_t span_count(problem const& p, item const& i) noexcept {
    index_t count = 0;
    for (int k = 0; k < p.pool_count; ++k) {
        key_span const s = stream_attention<Isa>::spans(p, k, i);
        count += s.end - s.first;
    }
    return count;
}

/// Whether distributing them is worth it: some pool shows more than two spans. A visibility whose extent is wider than
/// its pool is walked in one thread.
template <class Isa>
[[nodiscard]] bool split_spans(problem const& p, cut const& c, int threads) noexcept {
    if (!may_split(p, c, threads)) return false;
    bool worth = false;
    for (index_t index = 0; index < c.items(); ++index) {
        item const i = item_at(p, c, index);
        if (span_count<Isa>(p, i) > most_spans(p)) return false;
        for (int k = 0; k < p.pool_count; ++k) {
            key_span const s = stream_attention<Isa>::spans(p, k, i);
            worth |= s.end - s.first > 2;
        }
    }
    return worth;
}

/// Bytes for the partial results of a problem whose spans are distributed.
template <class Isa>
[[nodiscard]] index_t part_bytes(problem const& p, int threads) noexcept {
    cut const c = cut_problem<Isa>(p);
    if (!may_split(p, c, threads)) return 0;
    return most_items(p, c) * most_spans(p) * stream_part::bytes(stream_scratch<Isa>::padded(p.out.shape.head_dim));
}

/// One row tile and head chunk, whole.
template <class Isa>
void run_item(problem const& p, cut const& c, index_t index, std::byte* scratch) noexcept {
    item const i = item_at(p, c, index);
    if (c.stream)
        stream_attention<Isa>(p, i, scratch).run();
    else
        tile_attention<Isa>(p, i, scratch).run();
}

/// One piece of work per span of an item; then the items fold their parts in order.
template <class Isa>
void run_spans(executor const& threads,
               problem const& p,
               cut const& c,
               std::byte* scratch,
               index_t each,
               std::byte* parts) noexcept {
    index_t const stride = stream_scratch<Isa>::padded(p.out.shape.head_dim);
    index_t const most   = most_spans(p);
    auto const part      = [&](index_t index, index_t span) {
        return stream_part(stride, parts + (index * most + span) * stream_part::bytes(stride));
    };
    threads.each(c.items() * most, [&](index_t work, int thread) noexcept {
        item const i       = item_at(p, c, work % c.items());
        index_t span       = work / c.items();
        index_t const slot = span;
        for (int k = 0; k < p.pool_count; ++k) {
            key_span const s = stream_attention<Isa>::spans(p, k, i);
            if (span < s.end - s.first)
                return stream_attention<Isa>(p, i, scratch + thread * each)
                    .run_span(k, s.first + span, part(work % c.items(), slot));
            span -= s.end - s.first;
        }
    });
    threads.each(c.items(), [&](index_t index, int thread) noexcept {
        item const i = item_at(p, c, index);
        stream_attention<Isa> attention(p, i, scratch + thread * each);
        attention.clear_total();
        index_t const count = span_count<Isa>(p, i);
        for (index_t s = 0; s < count; ++s) attention.fold(part(index, s));
        attention.finish();
    });
}

/// Problems whose items are dealt as one list at most, so that their cuts stand on the stack.
inline constexpr std::size_t most_together = 64;

/// Up to most_together problems: many short sequences share the threads, and a long one with few items has its spans
/// distributed after that.
template <class Isa>
void run_together(executor const& threads,
                  std::span<problem const> problems,
                  std::byte* scratch,
                  index_t each) noexcept {
    std::array<cut, most_together> cuts;
    std::array<bool, most_together> split;
    std::array<index_t, most_together> ends; // items up to and with each problem, those of split ones left out
    index_t items = 0;
    for (std::size_t i = 0; i < problems.size(); ++i) {
        cuts[i]  = cut_problem<Isa>(problems[i]);
        split[i] = split_spans<Isa>(problems[i], cuts[i], threads.threads());
        ends[i]  = items += split[i] ? 0 : cuts[i].items();
    }
    if (items > 0)
        threads.each(items, [&](index_t work, int thread) noexcept {
            index_t const* const end = std::upper_bound(ends.data(), ends.data() + problems.size(), work);
            auto const i             = static_cast<std::size_t>(end - ends.data());
            run_item<Isa>(problems[i], cuts[i], work - (i == 0 ? 0 : ends[i - 1]), scratch + thread * each);
        });
    for (std::size_t i = 0; i < problems.size(); ++i)
        if (split[i]) run_spans<Isa>(threads, problems[i], cuts[i], scratch, each, scratch + each * threads.threads());
}

template <class Isa>
[[nodiscard]] index_t workspace_bytes_of(int threads, std::span<problem const> problems) noexcept {
    index_t parts = 0;
    for (problem const& p : problems) parts = std::max(parts, part_bytes<Isa>(p, threads));
    return thread_bytes<Isa>(problems) * threads + parts;
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace vec

template <class Isa, quant::decoder Codec>
[[nodiscard]] bound_codec bind_codec(simd<Isa> const&, Codec const& codec) noexcept {
    using vec::simd_ops;
    return {&simd_ops(Isa{}, codec), Isa::name()};
}

template <class Isa>
[[nodiscard]] support supports(simd<Isa> const& policy, problem const& p) {
    if (!Isa::available()) return {false, policy.name() + ": this CPU lacks the instruction set"};
    std::string reason = host::decline(policy.executor, p, Isa::name());
    return {reason.empty(), reason};
}

/// Names the kernel class, its block shapes and the threads.
template <class Isa>
[[nodiscard]] std::string explain(simd<Isa> const& policy, problem const& p) {
    if (support const s = supports(policy, p); !s) return "declined: " + s.reason;
    vec::cut const c = vec::cut_problem<Isa>(p);
    std::string text = policy.name() + (c.stream ? ": stream class, " : ": tile class, ");
    text += std::to_string(c.tokens) + " tokens x " + std::to_string(c.chunk) + " heads per item, ";
    if (c.stream)
        text += "keys and values read in place in spans of " + std::to_string(vec::span_slots) + " slots, ";
    else
        text +=
            "strips of " + std::to_string(vec::strip_rows<Isa>) + " rows x " + std::to_string(tile_slots) + " keys, ";
    return text + policy.executor.name();
}

/// Scratch bytes of a call with these problems; a span in options.workspace of problem 0 serves all of them.
template <class Isa>
[[nodiscard]] index_t workspace_bytes(simd<Isa> const& policy, std::span<problem const> problems) noexcept {
    return vec::workspace_bytes_of<Isa>(policy.executor.threads(), problems) + host::scratch_alignment;
}

template <class Isa>
void run(simd<Isa> const& policy, std::span<problem const> problems) {
    if (problems.empty()) return;
    int const threads   = policy.executor.threads();
    index_t const each  = vec::thread_bytes<Isa>(problems);
    index_t const bytes = vec::workspace_bytes_of<Isa>(threads, problems);
    host::workspace const scratch(policy.executor, problems[0].options.workspace, bytes);
    while (!problems.empty()) {
        auto const some = problems.first(std::min(problems.size(), vec::most_together));
        vec::run_together<Isa>(policy.executor, some, scratch.data(), each);
        problems = problems.subspan(some.size());
    }
}

} // namespace butterfly::backend
