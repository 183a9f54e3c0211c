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
    if (s.pages) {
        auto const* const pages = host_pointer<std::int32_t const>(s.pages);
        index_t const within    = slot & ((index_t{1} << s.page_shift) - 1);
        return base + pages[slot >> s.page_shift] * s.page_stride + within * s.slot_stride;
    }
    return base + (s.ring != 0 ? slot % s.ring : slot) * s.slot_stride;
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
