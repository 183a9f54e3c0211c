// SPDX-License-Identifier: MIT
#pragma once

// An address in a policy's memory. Only `backend/` dereferences it.

#include <butterfly/core/index.hpp>

#include <cstddef>
#include <span>

namespace butterfly {

/// An address: what the policy calls memory, and a byte offset in it. For host and CUDA policies `base` is a pointer;
/// for Metal it is a buffer. Null where nothing is given.
struct memory_ref {
    void* base     = nullptr;
    index_t offset = 0; // bytes

    constexpr memory_ref() noexcept = default;
    constexpr memory_ref(std::nullptr_t) noexcept {}
    constexpr memory_ref(void* address, index_t byte_offset) noexcept : base(address), offset(byte_offset) {}
    /// A pointer is an address at offset zero. Whether it is written is the business of what holds the reference.
    template <class T>
    constexpr memory_ref(T* pointer) noexcept : base(const_cast<void*>(static_cast<void const*>(pointer))) {}
    template <class T, std::size_t N>
    constexpr memory_ref(std::span<T, N> values) noexcept : memory_ref(values.data()) {}

    [[nodiscard]] constexpr explicit operator bool() const noexcept { return base != nullptr; }
};

/// The host pointer an address stands for. Only host code with host memory may ask.
template <class T>
[[nodiscard]] inline T* host_pointer(memory_ref const& m) noexcept {
    return m.base == nullptr ? nullptr
                             : static_cast<T*>(static_cast<void*>(static_cast<std::byte*>(m.base) + m.offset));
}

} // namespace butterfly
