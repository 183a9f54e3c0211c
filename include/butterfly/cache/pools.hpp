// SPDX-License-Identifier: MIT
#pragma once

// Where the pools of a compressed cache stand in one piece of memory.
//
//   | sinks k | sinks v | tail k | tail v | summaries k | summaries v | log-weights | token weights |
//
//   sinks        [kv_heads, sinks]        of the tail's codecs, unless the mix has others
//   tail         [kv_heads, ring]         position p stands in row p mod ring
//   summaries    [kv_heads, summaries]    one per block
//   log-weights  float [summaries]        where the rules count
//   token weights float [ring]            where the pooling takes them
//
// Every part starts at a multiple of 64 bytes. The ring holds W + bs - 2 + max_rollback + max_append tokens, rounded up
// so that no key tile (and, where block and tile sizes divide one another, no block) wraps.

#include <butterfly/cache/rules.hpp>
#include <butterfly/core/memory.hpp>
#include <butterfly/sdpa/storage.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <utility>

namespace butterfly::detail {

/// Least alignment of every part of a cache's memory.
inline constexpr index_t cache_alignment = 64;

/// Bytes of one row of each pool.
struct cache_row_bytes {
    index_t sink_k = 0, sink_v = 0, tail_k = 0, tail_v = 0, summary_k = 0, summary_v = 0;
};

/// Offsets in bytes of the parts of a cache, and how many slots they have.
struct cache_layout {
    index_t ring      = 0;
    index_t summaries = 0;
    index_t sink_k = 0, sink_v = 0, tail_k = 0, tail_v = 0, summary_k = 0, summary_v = 0;
    index_t log_weights = 0, token_weights = 0;
    index_t bytes = 0;
};

/// Tokens the tail has room for.
[[nodiscard]] inline index_t ring_of(cache_config const& c) noexcept {
    index_t const most = std::min(c.exact_window + c.block_size - 2 + c.max_rollback + c.max_append, c.max_tokens);
    return round_up(std::max<index_t>(most, 1), c.block_size % tile_slots == 0 ? c.block_size : tile_slots);
}

/// Places parts one after the other.
class cache_parts {
public:
    explicit cache_parts(index_t alignment = cache_alignment) noexcept : alignment_(alignment) {}

    /// Offset of [heads, slots] rows of `bytes` bytes. Throws shape_error where the memory overflows index_t.
    [[nodiscard]] index_t place(index_t heads, index_t slots, index_t bytes) {
        index_t const at   = bytes_;
        index_t const size = checked_multiply(checked_multiply(heads, slots, "cache: rows"), bytes, "cache: bytes");
        if (size > no_alignment / 16 - at)
            fail<shape_error>("cache: " + std::to_string(at) + " + " + std::to_string(size) + " bytes overflow");
        bytes_ += round_up(size, alignment_);
        return at;
    }

    /// Bytes of all parts.
    [[nodiscard]] index_t bytes() const noexcept { return bytes_; }

private:
    index_t alignment_;
    index_t bytes_ = 0;
};

/// Throws shape_error where a size makes no sense or the memory overflows index_t.
[[nodiscard]] inline cache_layout
layout_of(cache_config const& c, cache_row_bytes const& row, bool log_weights, bool token_weights) {
    check_config(c);
    cache_layout at{.ring = ring_of(c), .summaries = c.max_tokens / c.block_size};
    cache_parts parts;
    at.sink_k        = parts.place(c.kv_heads, c.sinks(), row.sink_k);
    at.sink_v        = parts.place(c.kv_heads, c.sinks(), row.sink_v);
    at.tail_k        = parts.place(c.kv_heads, at.ring, row.tail_k);
    at.tail_v        = parts.place(c.kv_heads, at.ring, row.tail_v);
    at.summary_k     = parts.place(c.kv_heads, at.summaries, row.summary_k);
    at.summary_v     = parts.place(c.kv_heads, at.summaries, row.summary_v);
    at.log_weights   = parts.place(1, log_weights ? at.summaries : 0, sizeof(float));
    at.token_weights = parts.place(1, token_weights ? at.ring : 0, sizeof(float));
    at.bytes         = parts.bytes();
    return at;
}

/// Slots of a pool that has room for `capacity` of them, with a policy's functions for their codec.
template <class Policy, quant::decoder Codec>
[[nodiscard]] storage_ref pool_storage(Policy const& policy,
                                       Codec const& codec,
                                       memory_ref data,
                                       heads_shape shape, // kv heads, slots, head_dim
                                       index_t capacity) {
    index_t const row       = codec.row_bytes(shape.head_dim);
    bound_codec const bound = bind_codec(policy, codec);
    storage_ref s{.data        = data,
                  .shape       = shape,
                  .head_stride = capacity * row,
                  .slot_stride = row,
                  .codec       = id_of<Codec>,
                  .codec_state = static_cast<void const*>(&codec),
                  .encode      = quant::encoder_of<Codec>(),
                  .ops         = bound.ops,
                  .ops_owner   = bound.owner};
    stride_by_tiles(s, codec);
    return s;
}

/// Memory of a cache: its own, zero-filled, or the caller's, which is left as it is.
class cache_memory {
public:
    cache_memory() noexcept = default;

    /// Owns `bytes` bytes. Throws backend_error where memory is out.
    explicit cache_memory(index_t bytes, index_t alignment = cache_alignment) {
        auto const size = static_cast<std::size_t>(std::max<index_t>(bytes, 1));
        std::align_val_t const align{static_cast<std::size_t>(alignment)};
        owned_ = {static_cast<std::byte*>(::operator new(size, align, std::nothrow)), release{align}};
        if (!owned_) fail<backend_error>("cache: no memory for " + std::to_string(bytes) + " bytes");
        std::fill_n(owned_.get(), size, std::byte{0});
        at_ = memory_ref(owned_.get());
    }

    /// Borrows memory whose base is aligned. Throws capacity_error where `bytes` do not fit.
    cache_memory(memory_ref given, index_t has, index_t bytes, index_t alignment = cache_alignment) : at_(given) {
        at_.offset = round_up(given.offset, alignment);
        check(at_.offset - given.offset, has, bytes, alignment);
    }

    /// Borrows host memory of any alignment. Throws capacity_error where `bytes` do not fit.
    cache_memory(std::span<std::byte> given, index_t bytes, index_t alignment = cache_alignment) : at_(given.data()) {
        at_.offset = static_cast<index_t>(-reinterpret_cast<std::uintptr_t>(given.data()) %
                                          static_cast<std::uintptr_t>(alignment));
        check(at_.offset, static_cast<index_t>(given.size()), bytes, alignment);
    }

    cache_memory(cache_memory&& other) noexcept
        : owned_(std::move(other.owned_)), at_(std::exchange(other.at_, memory_ref{})) {}
    cache_memory& operator=(cache_memory&& other) noexcept {
        owned_ = std::move(other.owned_);
        at_    = std::exchange(other.at_, memory_ref{});
        return *this;
    }
    ~cache_memory() = default;

    /// The address `bytes` after the start.
    [[nodiscard]] memory_ref at(index_t bytes) const noexcept {
        return at_ ? memory_ref(at_.base, at_.offset + bytes) : memory_ref{};
    }

private:
    static void check(index_t skip, index_t has, index_t bytes, index_t alignment) {
        if (has < bytes + skip)
            fail<capacity_error>("cache: the memory given has " + std::to_string(has) + " bytes, the cache needs " +
                                 std::to_string(bytes) + " from a multiple of " + std::to_string(alignment));
    }

    struct release {
        std::align_val_t alignment;
        void operator()(std::byte* p) const noexcept { ::operator delete(p, alignment); }
    };
    std::unique_ptr<std::byte, release> owned_;
    memory_ref at_{};
};

} // namespace butterfly::detail
