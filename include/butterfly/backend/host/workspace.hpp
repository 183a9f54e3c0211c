// SPDX-License-Identifier: MIT
#pragma once

// Scratch memory of one call: the caller's span, or one allocation at entry, before any kernel runs.

#include <butterfly/core/executor.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <string>
#include <string_view>

namespace butterfly::backend::on_host {

/// Alignment of everything carved from a workspace.
inline constexpr index_t scratch_alignment = 64;

/// Bytes of `count` values, rounded up so that the next array is aligned.
template <class T>
[[nodiscard]] constexpr index_t scratch_bytes(index_t count) noexcept {
    return detail::round_up(count * static_cast<index_t>(sizeof(T)), scratch_alignment);
}

/// Says so where a problem was bound for another policy, whose functions are of another kind; else empty. `owner`: what
/// bind_codec of the policy that asks names in bound_codec.
[[nodiscard]] inline std::string wrong_owner(problem const& p, std::string_view owner) {
    for (int i = 0; i < p.pool_count; ++i)
        for (storage_ref const* s : {&p.pools[i].keys, &p.pools[i].values})
            if (s->ops_owner != nullptr && s->ops_owner != owner)
                return "pool " + std::to_string(i) + " was bound for " + s->ops_owner + ", not for " +
                       std::string(owner);
    return {};
}

/// Why a call cannot run; empty where it can. Besides wrong_owner: a share whose barrier has no board cannot pass a
/// pointer on.
[[nodiscard]] inline std::string decline(executor const& e, problem const& p, std::string_view owner) {
    if (std::string reason = wrong_owner(p, owner); !reason.empty()) return reason;
    if (e.can_publish() || !p.options.workspace.empty()) return {};
    return e.name() + ": a share whose barrier has no board needs options.workspace";
}

/// Owns or borrows the scratch of a call, the same address on every participant.
class workspace {
public:
    /// Throws shape_error where the caller's span is smaller than `bytes`, backend_error where memory is out.
    workspace(executor const& e, std::span<std::byte> given, index_t bytes) : executor_(e) {
        if (!given.empty()) {
            auto const skip = static_cast<index_t>(-reinterpret_cast<std::uintptr_t>(given.data()) %
                                                   static_cast<std::uintptr_t>(scratch_alignment));
            if (static_cast<index_t>(given.size()) < bytes + skip)
                detail::fail<shape_error>("options.workspace has " + std::to_string(given.size()) +
                                          " bytes, the call needs " + std::to_string(bytes + scratch_alignment));
            data_ = given.data() + skip;
            return;
        }
        if (executor_.first()) owned_ = allocate(bytes);
        data_ = static_cast<std::byte*>(executor_.publish(owned_));
        if (data_ == nullptr)
            detail::fail<backend_error>("workspace: no memory for " + std::to_string(bytes) + " bytes");
    }

    workspace(workspace const&)            = delete;
    workspace& operator=(workspace const&) = delete;

    /// All participants are past their last item (executor::each returns after that), so the owner may free.
    ~workspace() {
        if (owned_ != nullptr) ::operator delete (owned_, std::align_val_t{scratch_alignment});
    }

    [[nodiscard]] std::byte* data() const noexcept { return data_; }

private:
    /// Null where memory is out, so that every participant learns of it.
    static void* allocate(index_t bytes) noexcept {
        return ::operator new (static_cast<std::size_t>(bytes > 0 ? bytes : 1), std::align_val_t{scratch_alignment},
                               std::nothrow);
    }

    executor executor_;
    void* owned_     = nullptr;
    std::byte* data_ = nullptr;
};

/// Carves aligned arrays from a piece of scratch; without one it counts their bytes.
class carver {
public:
    explicit carver(std::byte* data) noexcept : data_(data) {}

    template <class T>
    [[nodiscard]] T* take(index_t count) noexcept {
        auto* const array = data_ != nullptr ? reinterpret_cast<T*>(data_ + taken_) : nullptr;
        taken_ += scratch_bytes<T>(count);
        return array;
    }

    [[nodiscard]] index_t taken() const noexcept { return taken_; }

private:
    std::byte* data_;
    index_t taken_ = 0;
};

} // namespace butterfly::backend::on_host
