// SPDX-License-Identifier: MIT
#pragma once

// Integers from bytes at any address.

#include <butterfly/backend/simd/batch.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Integer of `size` bytes at an address, the lowest first.
template <class T>
[[nodiscard]] inline T load_integer(std::byte const* at, index_t size) noexcept {
    T x = 0;
    std::memcpy(&x, at, static_cast<std::size_t>(size));
    return x;
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
