// SPDX-License-Identifier: MIT
#pragma once

// What a kernel is given: plain data, and nothing of who asked for it.
//
// A problem is one attention call of one sequence: q, out, options and pools. A pool is where keys live: two storages
// and a visibility. Visibilities are asked for key tiles; a kernel never knows which system it serves.

#include <butterfly/core/half.hpp>
#include <butterfly/core/heads.hpp>
#include <butterfly/core/index.hpp>
#include <butterfly/core/memory.hpp>
#include <butterfly/sdpa/options.hpp>

#include <cstdint>
#include <limits>

namespace butterfly {

/// Most keys of one key tile. Tiles are anchored at multiples of it (or at the start of a list), so that no boundary
/// depends on threads, chunks or batch.
inline constexpr int tile_slots = 64;

/// Most query tokens of one row tile.
inline constexpr int tile_tokens = 256;

/// Rows and words of 64 slots that a cursor has marks for.
inline constexpr int mark_rows = 64, mark_words = 16;

/// "No boundary": the row_alignment of a visibility whose rows need not share a routing block.
inline constexpr index_t no_alignment = std::numeric_limits<index_t>::max();

/// A half-open range of slots (or of offsets in a list row: what `key_tile` cursors count).
struct key_span {
    index_t first = 0;
    index_t end   = 0;
};

/// Which storage format, for those who must know it without its type.
/// packed: the codec begins with a quant::row_format that says all of its rows.
enum class codec_id : std::uint8_t { raw_f32, raw_f16, raw_bf16, packed, foreign };

/// How one side (keys or values) of a pool is kept. Slot s of head h stands at byte
///
///   data + h * head_stride + page(s) * page_stride + within(s) * slot_stride
///
/// with page(s) = pages[s >> page_shift], within(s) = s mod 2^page_shift where there is a page table, and page 0,
/// within(s) = s mod ring (ring = 0: s) where there is none. A codec that packs 2^page_shift tokens together has its
/// tiles in the place of pages, without a table: of t = s mod ring, page(s) = t >> page_shift, and slot_stride is 1,
/// since the address of row j of a tile is tile + j.
///
/// Where there is a `mean`, a row stands for what its codec decodes plus the mean of its head.
struct storage_ref {
    memory_ref data{};
    heads_shape shape{};     // kv heads, slots, head_dim; slots = index_t max where a ring has no end
    index_t head_stride = 0; // bytes
    index_t slot_stride = 0; // bytes
    index_t ring        = 0; // slots before the storage starts over; 0: never
    memory_ref pages{};      // int32 [ceil(slots / 2^page_shift)]; null: none
    int page_shift      = 0;
    index_t page_stride = 0; // bytes
    memory_ref mean{};       // float [kv heads, head_dim]; null: zero
    codec_id codec          = codec_id::foreign;
    void const* codec_state = nullptr; // the codec value, as its ops expect it
    void (*encode)(void const* codec, float const* values, index_t stride, index_t head_dim, std::byte* to) noexcept =
        nullptr;                     // the codec's own, on the host (quant::encoder_of); null: it can only be read
    void const* ops       = nullptr; // the policy's functions for this codec
    char const* ops_owner = nullptr; // whose they are; null: not told
};

/// What `bind_codec(policy, codec)` returns: the functions a policy calls for a codec, of a type that only the policy
/// knows, and a static text that names whose they are. A bare pointer will do; then nobody can tell a problem that was
/// bound with one policy and runs on another.
struct bound_codec {
    void const* ops   = nullptr;
    char const* owner = nullptr;

    bound_codec(void const* functions, char const* whose = nullptr) noexcept : ops(functions), owner(whose) {}
};

struct problem;

/// Query rows that are worked on together: `tokens` consecutive query tokens of one head row.
struct row_tile {
    index_t first = 0;     // first query token of the call
    int tokens    = 0;     // <= tile_tokens
    index_t head  = 0;     // which head's rows a visibility with rows per head is asked for
    bool together = false; // a tile that many rows see is wanted, rather than one that all keys of are seen
};

/// Where a walk over key tiles stands, with its scratch memory. Start it with `next = span.first`.
struct tile_cursor {
    index_t next = 0;                           // first slot (or list offset) not delivered yet
    std::int32_t slots[tile_slots];             // slots of a list tile
    std::uint64_t bits[tile_tokens];            // visibility of a partial tile
    float bias[tile_slots];                     // per-key bias of a tile
    std::int32_t list[tile_slots];              // nodes read ahead from a row
    int list_count = 0;                         // nodes in `list`
    int list_index = 0;                         // the one being read
    bool list_done = false;                     // the row has no more nodes
    int pass       = 0;                         // of a walk that goes over the slots more than once
    index_t marked = 0, marked_end = 0;         // slots that there are marks of
    index_t marked_next = 0;                    // the first of the next ones
    std::uint64_t marks[mark_rows][mark_words]; // which rows see which of them
    std::uint64_t any[mark_words];              // which of them some row sees
};

/// Keys that are worked on together: a run of slots or a list of them, and which rows see which. Where in its tile a
/// key stands never depends on the rows that ask: runs start at multiples of tile_slots (from the pool's or the routed
/// block's start), lists and what rows have in common are cut from their start.
struct key_tile {
    index_t first             = 0;       // a run: slots [first, first + count)
    int count                 = 0;       // <= tile_slots
    std::int32_t const* slots = nullptr; // a list of `count` slots instead of a run; null: a run
    std::uint64_t const* bits = nullptr; // [tokens]: bit j set where the token sees key j; null: all see all
    float const* bias         = nullptr; // [count], added to the logits of all rows; null: none
    index_t after             = -1; // a run: slot where the next tile probably begins, to be fetched; `first`: none
                                    // does; -1: not told, taken for first + count

    [[nodiscard]] index_t slot(int j) const noexcept { return slots != nullptr ? slots[j] : first + j; }
};

/// The kinds of visibility a device can run without calling back.
enum class visibility_kind : std::uint8_t { interval, routed_blocks, routed_summaries, graph, custom };

/// A visibility as plain data. Which fields mean something depends on `kind`; see sdpa/visibility.hpp.
struct visibility_description {
    visibility_kind kind = visibility_kind::custom;
    index_t window       = 0; // interval, routed_summaries: exact_window; 0: no lower bound
    index_t align        = 1; // interval: the lower bound is rounded down to a multiple of it
    index_t before       = 0; // interval: > 0 shows [after, min(before, lower bound)), not [lower bound, position]
    index_t after        = 0; // interval: see before
    index_t block_size   = 1; // routed: tokens of a node
    index_t first_slot   = 0; // routed_summaries: slots before it are hidden
    void const* rows     = nullptr; // routed: topology::row_source; graph: graph_view
};

/// A visibility with its type erased. `state` must outlive the call.
struct visibility_ref {
    void const* state                                                                             = nullptr;
    bool (*next)(void const* state,
                 problem const&,
                 index_t pool,
                 row_tile const&,
                 key_span,
                 tile_cursor&,
                 key_tile&) noexcept                                                              = nullptr;
    key_span (*extent)(void const* state, problem const&, index_t pool, row_tile const&) noexcept = nullptr;
    bool (*shares)(void const* state, problem const&, index_t pool, row_tile const&) noexcept     = nullptr; // or: yes
    index_t row_alignment                                                                         = no_alignment;
    index_t row_heads                                                                             = 1;
    bool takes_positions = false; // honours key_positions of its pool
    visibility_description description{};
};

/// Where keys live, and which of them a query sees.
struct pool_ref {
    storage_ref keys{};
    storage_ref values{};
    visibility_ref visibility{};
    index_t slots = 0;          // slots [0, slots) exist
    memory_ref log_weights{};   // float [slots], added to the logits; null: zero
    memory_ref key_positions{}; // int32 [slots], -1: empty slot; null: slot = position
};

/// One attention call: out = softmax over the union of what the pools show.
struct problem {
    tensor_ref q{};           // [heads, tokens, key head_dim]
    tensor_ref out{};         // [heads, tokens, value head_dim]
    index_t kv_heads = 0;     // query head h reads kv head h / (heads / kv_heads)
    attend_options options{}; // scale resolved
    pool_ref const* pools = nullptr;
    int pool_count        = 0;

    [[nodiscard]] index_t heads() const noexcept { return q.shape.heads; }
    [[nodiscard]] index_t tokens() const noexcept { return q.shape.tokens; }
    [[nodiscard]] index_t group() const noexcept { return q.shape.heads / kv_heads; }
};

/// Whether a policy runs a problem; `reason` says why not.
struct support {
    bool yes = true;
    std::string reason{};
    [[nodiscard]] explicit operator bool() const noexcept { return yes; }
};

} // namespace butterfly
