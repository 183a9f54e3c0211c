// SPDX-License-Identifier: MIT
#pragma once

// Where the pools of a compressed cache stand in one piece of memory.
//
//   | sinks k | sinks v | tail k | tail v | summaries k | summaries v | log-weights | token weights |
//
//   sinks        [kv_heads, sinks]        rows of the tail's codecs
//   tail         [kv_heads, ring]         position p stands in row p mod ring
//   summaries    [kv_heads, summaries]    one per block
//   log-weights  float [summaries]        where the rules count
//   token weights float [ring]            where the pooling takes them
//
// Every part starts at a multiple of 64 bytes. The ring holds W + bs - 2 + max_rollback + max_append tokens, rounded up
// so that no key tile (and, where block and tile sizes divide one another, no block) wraps.

#include <butterfly/cache/rules.hpp>
#include <butterfly/core/memory.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <utility>

namespace butterfly::detail {

/// Alignment of every part of a cache's memory.
inline constexpr index_t cache_alignment = 64;

/// Bytes of one row of each pool.
struct cache_row_bytes {
    index_t tail_k = 0, tail_v = 0, summary_k = 0, summary_v = 0;
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

/// Throws shape_error where a size makes no sense or the memory overflows index_t.
[[nodiscard]] inline cache_layout
layout_of(cache_config const& c, cache_row_bytes const& row, bool log_weights, bool token_weights) {
    check_config(c);
    cache_layout at{.ring = ring_of(c), .summaries = c.max_tokens / c.block_size};
    auto const place = [&](index_t& part, index_t heads, index_t slots, index_t bytes) {
        part               = at.bytes;
        index_t const size = checked_multiply(checked_multiply(heads, slots, "cache: rows"), bytes, "cache: bytes");
        if (size > no_alignment / 16 - at.bytes)
            fail<shape_error>("cache: " + std::to_string(at.bytes) + " + " + std::to_string(size) + " bytes overflow");
        at.bytes += round_up(size, cache_alignment);
    };
    place(at.sink_k, c.kv_heads, c.sinks(), row.tail_k);
    place(at.sink_v, c.kv_heads, c.sinks(), row.tail_v);
    place(at.tail_k, c.kv_heads, at.ring, row.tail_k);
    place(at.tail_v, c.kv_heads, at.ring, row.tail_v);
    place(at.summary_k, c.kv_heads, at.summaries, row.summary_k);
    place(at.summary_v, c.kv_heads, at.summaries, row.summary_v);
    place(at.log_weights, 1, log_weights ? at.summaries : 0, sizeof(float));
    place(at.token_weights, 1, token_weights ? at.ring : 0, sizeof(float));
    return at;
}

/// Memory of a cache: its own, zero-filled, or the caller's, which is left as it is.
class cache_memory {
public:
    cache_memory() noexcept = default;

    /// Owns `bytes` bytes. Throws backend_error where memory is out.
    explicit cache_memory(index_t bytes) {
        auto const size = static_cast<std::size_t>(std::max<index_t>(bytes, 1));
        owned_.reset(static_cast<std::byte*>(::operator new (size, std::align_val_t{cache_alignment}, std::nothrow)));
        if (!owned_) fail<backend_error>("cache: no memory for " + std::to_string(bytes) + " bytes");
        std::fill_n(owned_.get(), size, std::byte{0});
        at_ = memory_ref(owned_.get());
    }

    /// Borrows memory whose base is aligned as cache_alignment asks. Throws capacity_error where `bytes` do not fit.
    cache_memory(memory_ref given, index_t has, index_t bytes) : at_(given) {
        at_.offset = round_up(given.offset, cache_alignment);
        check(at_.offset - given.offset, has, bytes);
    }

    /// Borrows host memory of any alignment. Throws capacity_error where `bytes` do not fit.
    cache_memory(std::span<std::byte> given, index_t bytes) : at_(given.data()) {
        at_.offset = static_cast<index_t>(-reinterpret_cast<std::uintptr_t>(given.data()) %
                                          static_cast<std::uintptr_t>(cache_alignment));
        check(at_.offset, static_cast<index_t>(given.size()), bytes);
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
    static void check(index_t skip, index_t has, index_t bytes) {
        if (has < bytes + skip)
            fail<capacity_error>("cache: the memory given has " + std::to_string(has) + " bytes, the cache needs " +
                                 std::to_string(bytes) + " from a multiple of " + std::to_string(cache_alignment));
    }

    struct release {
        void operator()(std::byte* p) const noexcept { ::operator delete (p, std::align_val_t{cache_alignment}); }
    };
    std::unique_ptr<std::byte, release> owned_;
    memory_ref at_{};
};

} // namespace butterfly::detail
