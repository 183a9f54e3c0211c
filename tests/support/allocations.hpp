// SPDX-License-Identifier: MIT
#pragma once

// Counts the allocations of a thread, and lets large ones fail. Replaces the global operator new: include it in one
// file of a program.

#include <cstddef>
#include <cstdlib>
#include <limits>
#include <new>

namespace butterfly::testing {

inline thread_local long allocations             = 0;
inline thread_local std::size_t allocation_limit = std::numeric_limits<std::size_t>::max(); // larger ones fail

/// Memory for operator new; null where it is past the limit or out.
inline void* counted_allocation(std::size_t size, std::size_t alignment) noexcept {
    ++allocations;
    if (size > allocation_limit) return nullptr;
    if (alignment <= alignof(std::max_align_t)) return std::malloc(size > 0 ? size : 1);
    return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

inline void* counted_or_throw(std::size_t size, std::size_t alignment) {
    void* const p = counted_allocation(size, alignment);
    if (p == nullptr) throw std::bad_alloc();
    return p;
}

} // namespace butterfly::testing

[[gnu::noinline]] void* operator new(std::size_t size) {
    return butterfly::testing::counted_or_throw(size, 1);
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t a) {
    return butterfly::testing::counted_or_throw(size, static_cast<std::size_t>(a));
}
[[gnu::noinline]] void* operator new(std::size_t size, std::nothrow_t const&) noexcept {
    return butterfly::testing::counted_allocation(size, 1);
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t a, std::nothrow_t const&) noexcept {
    return butterfly::testing::counted_allocation(size, static_cast<std::size_t>(a));
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
    std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept {
    std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept {
    std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
    std::free(p);
}
