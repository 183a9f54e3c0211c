// SPDX-License-Identifier: MIT
#pragma once

// What a storage format is to the rest of the library, and the raw ones.
//
// A codec is a small value. It packs a row of `head_dim` floats into `row_bytes(head_dim)` bytes and back. Kernels read
// a codec's rows through its decode; a machine that reads them packed brings a leaf (backend/<machine>/codec/).

#include <butterfly/core/half.hpp>
#include <butterfly/core/index.hpp>

#include <concepts>
#include <cstddef>
#include <cstring>

namespace butterfly::quant {

/// A format that can be read.
///
///   row_bytes(head_dim)            bytes of one packed row
///   decode(row, head_dim, out)     the `head_dim` floats a packed row stands for
template <class C>
concept decoder = std::copyable<C> && requires(C const& c, std::byte const* row, index_t head_dim, float* out) {
    { c.row_bytes(head_dim) } -> std::same_as<index_t>;
    { c.decode(row, head_dim, out) }
    noexcept;
};

/// A format that can be read and written.
///
///   encode(values, head_dim, row)  packs `head_dim` floats
template <class C>
concept codec = decoder<C> && requires(C const& c, float const* values, index_t head_dim, std::byte* row) {
    { c.encode(values, head_dim, row) }
    noexcept;
};

/// Elements as they are: float, float16 or bfloat16. Writing rounds to nearest even.
template <element T>
struct raw {
    using value_type = T;

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return head_dim * static_cast<index_t>(sizeof(T));
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        for (index_t d = 0; d < head_dim; ++d) {
            T x;
            std::memcpy(&x, row + d * static_cast<index_t>(sizeof(T)), sizeof(T));
            out[d] = static_cast<float>(x);
        }
    }

    BUTTERFLY_HOST_DEVICE void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        for (index_t d = 0; d < head_dim; ++d) {
            T const x = static_cast<T>(values[d]);
            std::memcpy(row + d * static_cast<index_t>(sizeof(T)), &x, sizeof(T));
        }
    }

    [[nodiscard]] static constexpr char const* name() noexcept { return name_of(element_type_of<T>); }
};

static_assert(codec<raw<float>> && codec<raw<float16>> && codec<raw<bfloat16>>);

} // namespace butterfly::quant
