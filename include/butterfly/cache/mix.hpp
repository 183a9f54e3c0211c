// SPDX-License-Identifier: MIT
#pragma once

// Which codec serves which pool of a cache.
//
//   struct k8v4 {                       sinks and tail are kept by `tail`, or by `tail_k` and `tail_v`
//       quant::raw<bfloat16> tail{};
//       some_codec           summary_k{};
//       another_codec        summary_v{};
//   };

#include <butterfly/quant/codec.hpp>

#include <type_traits>

namespace butterfly {

/// Elements of one type in every pool.
template <element T = float>
struct raw_mix {
    quant::raw<T> tail{};
    quant::raw<T> summary_k{};
    quant::raw<T> summary_v{};
};

namespace detail {

template <class Mix>
[[nodiscard]] constexpr auto const& tail_k_of(Mix const& mix) noexcept {
    if constexpr (requires { mix.tail_k; })
        return mix.tail_k;
    else
        return mix.tail;
}

template <class Mix>
[[nodiscard]] constexpr auto const& tail_v_of(Mix const& mix) noexcept {
    if constexpr (requires { mix.tail_v; })
        return mix.tail_v;
    else
        return mix.tail;
}

} // namespace detail

/// A value that names the codecs of a compressed cache.
template <class M>
concept cache_mix = std::copyable<M> && requires(M const& m) {
    requires quant::codec<std::remove_cvref_t<decltype(detail::tail_k_of(m))>>;
    requires quant::codec<std::remove_cvref_t<decltype(detail::tail_v_of(m))>>;
    requires quant::codec<std::remove_cvref_t<decltype(m.summary_k)>>;
    requires quant::codec<std::remove_cvref_t<decltype(m.summary_v)>>;
};

} // namespace butterfly
