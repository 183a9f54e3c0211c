// SPDX-License-Identifier: MIT
#pragma once

// Which codec serves which pool of a cache.
//
//   struct k8v4 {                       sinks and tail are kept by `tail`, or by `tail_k` and `tail_v`; sinks by `sink`
//       quant::raw<bfloat16> tail{};    or by `sink_k` and `sink_v`, where there are such
//       some_codec           summary_k{};
//       another_codec        summary_v{};
//   };
//
// A mixed-precision cache has `middle_k` and `middle_v` in the place of summaries.

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

/// Packed keys and values between sinks and tail, which are kept as they are: what a mixed-precision cache needs.
template <quant::codec K, quant::codec V = K, quant::row_codec Exact = quant::raw<bfloat16>>
struct packed_mix {
    Exact tail{};
    K middle_k{};
    V middle_v{};
};

template <quant::row_codec Exact, quant::codec K, quant::codec V>
packed_mix(Exact, K, V) -> packed_mix<K, V, Exact>;

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

template <class Mix>
[[nodiscard]] constexpr auto const& sink_k_of(Mix const& mix) noexcept {
    if constexpr (requires { mix.sink_k; })
        return mix.sink_k;
    else if constexpr (requires { mix.sink; })
        return mix.sink;
    else
        return tail_k_of(mix);
}

template <class Mix>
[[nodiscard]] constexpr auto const& sink_v_of(Mix const& mix) noexcept {
    if constexpr (requires { mix.sink_v; })
        return mix.sink_v;
    else if constexpr (requires { mix.sink; })
        return mix.sink;
    else
        return tail_v_of(mix);
}

template <class M>
concept names_tail = requires(M const& m) {
    m.tail;
}
|| requires(M const& m) {
    m.tail_k;
    m.tail_v;
};

/// A value that names the codecs of sinks and tail.
template <class M>
concept exact_mix = std::copyable<M> && names_tail<M> && requires(M const& m) {
    requires quant::row_codec<std::remove_cvref_t<decltype(tail_k_of(m))>>;
    requires quant::row_codec<std::remove_cvref_t<decltype(tail_v_of(m))>>;
    requires quant::row_codec<std::remove_cvref_t<decltype(sink_k_of(m))>>;
    requires quant::row_codec<std::remove_cvref_t<decltype(sink_v_of(m))>>;
};

/// A mix whose codecs of sinks and tail have names.
template <class M>
concept named_exact_mix = exact_mix<M> && requires(M const& m) {
    requires quant::named<std::remove_cvref_t<decltype(tail_k_of(m))>>;
    requires quant::named<std::remove_cvref_t<decltype(tail_v_of(m))>>;
    requires quant::named<std::remove_cvref_t<decltype(sink_k_of(m))>>;
    requires quant::named<std::remove_cvref_t<decltype(sink_v_of(m))>>;
};

/// Throws shape_error where a codec cannot pack rows of head_dim values.
template <quant::decoder Codec>
void check_dim(Codec const&, index_t head_dim) {
    quant::require_head_dim<Codec>(head_dim);
}

/// Throws shape_error where the codecs of sinks and tail cannot pack such rows.
template <exact_mix Mix>
void check_exact_dims(Mix const& mix, index_t key_dim, index_t value_dim) {
    check_dim(sink_k_of(mix), key_dim);
    check_dim(sink_v_of(mix), value_dim);
    check_dim(tail_k_of(mix), key_dim);
    check_dim(tail_v_of(mix), value_dim);
}

} // namespace detail

/// A value that names the codecs of a compressed cache.
template <class M>
concept cache_mix = detail::exact_mix<M> && requires(M const& m) {
    requires quant::row_codec<std::remove_cvref_t<decltype(m.summary_k)>>;
    requires quant::row_codec<std::remove_cvref_t<decltype(m.summary_v)>>;
};

/// One whose codecs all have names, as those of a cache that is saved must.
template <class M>
concept named_cache_mix = cache_mix<M> && detail::named_exact_mix<M> && requires(M const& m) {
    requires quant::named<std::remove_cvref_t<decltype(m.summary_k)>>;
    requires quant::named<std::remove_cvref_t<decltype(m.summary_v)>>;
};

/// A value that names the codecs of a mixed-precision cache. Those of the middle may pack tiles of tokens.
template <class M>
concept mixed_mix = detail::exact_mix<M> && requires(M const& m) {
    requires quant::codec<std::remove_cvref_t<decltype(m.middle_k)>>;
    requires quant::codec<std::remove_cvref_t<decltype(m.middle_v)>>;
};

/// One whose codecs all have names, as those of a cache that is saved must.
template <class M>
concept named_mixed_mix = mixed_mix<M> && detail::named_exact_mix<M> && requires(M const& m) {
    requires quant::named<std::remove_cvref_t<decltype(m.middle_k)>>;
    requires quant::named<std::remove_cvref_t<decltype(m.middle_v)>>;
};

} // namespace butterfly
