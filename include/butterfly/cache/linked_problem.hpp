// SPDX-License-Identifier: MIT
#pragma once

// An attention problem with the visibilities its pools see through.

#include <butterfly/sdpa/attend.hpp>
#include <butterfly/sdpa/visibility.hpp>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

namespace butterfly {

/// The attention problem of a cache with what its pools point to. Copyable; `problem()` is valid while it lives.
template <visibility... V>
class linked_problem {
public:
    static constexpr std::size_t most_pools = sizeof...(V);

    /// Pool i sees through sees[i]; the first `without` of them are left out. Throws shape_error where
    /// the parts disagree.
    linked_problem(tensor_ref const& q,
                   tensor_ref const& out,
                   attend_options const& options,
                   std::array<pool_ref, most_pools> const& pools,
                   std::tuple<V...> const& sees,
                   std::size_t without)
        : sees_(sees), pools_(pools), without_(without) {
        link();
        problem_ = checked<most_pools>(q, out, options);
    }

    linked_problem(linked_problem const& other) noexcept { *this = other; }
    linked_problem& operator=(linked_problem const& other) noexcept {
        problem_ = other.problem_;
        sees_    = other.sees_;
        pools_   = other.pools_;
        without_ = other.without_;
        link();
        return *this;
    }
    ~linked_problem() = default;

    [[nodiscard]] butterfly::problem problem() const& noexcept {
        butterfly::problem p = problem_;
        p.pools              = pools_.data() + without_;
        p.pool_count         = static_cast<int>(most_pools - without_);
        return p;
    }
    butterfly::problem problem() && = delete;

private:
    /// The problem of the last pools, which go with this object.
    template <std::size_t Count>
    butterfly::problem checked(tensor_ref const& q, tensor_ref const& out, attend_options const& options) const {
        if constexpr (Count > 1) {
            if (Count > most_pools - without_) return checked<Count - 1>(q, out, options);
        }
        std::array<pool_ref, Count> last;
        std::copy(pools_.end() - static_cast<std::ptrdiff_t>(Count), pools_.end(), last.begin());
        auto const bound = detail::assemble(q, out, options, last, "attend");
        return bound.problem();
    }

    /// The pools see through this object's visibilities.
    void link() noexcept {
        std::size_t i = 0;
        std::apply([&](V const&... sees) { ((pools_[i++].visibility = erase(sees)), ...); }, sees_);
    }

    butterfly::problem problem_{};
    std::tuple<V...> sees_{};
    std::array<pool_ref, most_pools> pools_{};
    std::size_t without_ = 0;
};

namespace detail {

[[nodiscard]] inline pool_ref
pool_of(storage_ref const& k, storage_ref const& v, memory_ref log_weights = {}) noexcept {
    return {.keys = k, .values = v, .slots = k.shape.tokens, .log_weights = log_weights};
}

} // namespace detail
} // namespace butterfly
