// SPDX-License-Identifier: MIT
#pragma once

// Addresses and rows of host tensors: the one place where a problem's memory is dereferenced.

#include <butterfly/sdpa/problem.hpp>

#include <cstddef>
#include <cstdint>

namespace butterfly::backend::on_host {

/// The packed row of one slot; see storage_ref for the formula.
[[nodiscard]] inline std::byte* row_address(storage_ref const& s, index_t head, index_t slot) noexcept {
    auto* const base = host_pointer<std::byte>(s.data) + head * s.head_stride;
    if (s.ring != 0) slot %= s.ring;
    if (s.page_shift == 0 && !s.pages) return base + slot * s.slot_stride;
    auto const* const pages = host_pointer<std::int32_t const>(s.pages);
    index_t const page      = slot >> s.page_shift;
    index_t const within    = slot & ((index_t{1} << s.page_shift) - 1);
    return base + (pages != nullptr ? pages[page] : page) * s.page_stride + within * s.slot_stride;
}

/// Whether rows that follow one another do so in memory, slot_stride bytes apart.
[[nodiscard]] inline bool is_run(storage_ref const& s) noexcept {
    return !s.pages && s.page_shift == 0;
}

/// The mean of a head; null where there is none.
[[nodiscard]] inline float const* mean_of(storage_ref const& s, index_t head) noexcept {
    auto const* const mean = host_pointer<float const>(s.mean);
    return mean == nullptr ? nullptr : mean + head * s.shape.head_dim;
}

/// Reads a row of a tensor as floats.
inline void load_row(tensor_ref const& t, index_t head, index_t token, float* out) noexcept {
    index_t const at = head * t.strides.head + token * t.strides.token;
    auto const read  = [&](auto const* row) {
        for (index_t d = 0; d < t.shape.head_dim; ++d) out[d] = static_cast<float>(row[d]);
    };
    if (t.type == element_type::f32) read(host_pointer<float const>(t.memory) + at);
    if (t.type == element_type::f16) read(host_pointer<float16 const>(t.memory) + at);
    if (t.type == element_type::bf16) read(host_pointer<bfloat16 const>(t.memory) + at);
}

/// Writes factor * values to a row of a tensor, rounding to its type.
inline void store_row(tensor_ref const& t, index_t head, index_t token, float const* values, float factor) noexcept {
    index_t const at = head * t.strides.head + token * t.strides.token;
    auto const write = [&]<class T>(T* row) {
        for (index_t d = 0; d < t.shape.head_dim; ++d) row[d] = static_cast<T>(values[d] * factor);
    };
    if (t.type == element_type::f32) write(host_pointer<float>(t.memory) + at);
    if (t.type == element_type::f16) write(host_pointer<float16>(t.memory) + at);
    if (t.type == element_type::bf16) write(host_pointer<bfloat16>(t.memory) + at);
}

/// The head whose rows a pool's visibility is asked for, on behalf of a query head.
[[nodiscard]] inline index_t row_head(problem const& p, pool_ref const& pool, index_t head) noexcept {
    index_t const rows = pool.visibility.row_heads;
    return rows == 1 ? 0 : rows == p.heads() ? head : head / p.group();
}

} // namespace butterfly::backend::on_host
