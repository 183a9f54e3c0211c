// SPDX-License-Identifier: MIT
#include "ladder_inputs.hpp"

#include <butterfly/testing/problem.hpp>

namespace bench {
namespace {

namespace bf = butterfly;

constexpr index_t pool_rows_beyond_step = 128;

template <bf::element T>
bf::heads_buffer<T> random_rows(bf::heads_shape shape, std::uint64_t seed, std::uint64_t stream) {
    bf::heads_buffer<T> rows(shape);
    bf::testing::random draw(seed, stream);
    for (T& x : rows.values()) x = static_cast<T>(static_cast<float>(draw.normal()));
    return rows;
}

template <bf::element T>
bf::heads_buffer<T> narrowed(bf::heads_buffer<float> const& from) {
    bf::heads_buffer<T> rows(from.shape());
    for (std::size_t i = 0; i < rows.values().size(); ++i) rows.values()[i] = static_cast<T>(from.values()[i]);
    return rows;
}

} // namespace

template <bf::element E>
ladder_inputs<E>::ladder_inputs(ladder_settings const& s) : real_(!s.qkv.empty()) {
    if (real_) {
        for (qkv_layer& layer : read_qkv(s.qkv))
            layers_.push_back({std::move(layer.q), narrowed<E>(layer.k), narrowed<E>(layer.v)});
        return;
    }
    index_t const n = s.step + pool_rows_beyond_step;
    bf::heads_shape const q{s.model.heads, n, s.model.head_dim}, kv{s.model.kv_heads, n, s.model.head_dim};
    layers_.push_back({random_rows<float>(q, s.seed, 0), random_rows<E>(kv, s.seed, 1), random_rows<E>(kv, s.seed, 2)});
}

template <bf::element E>
index_t ladder_inputs<E>::start(index_t layer, index_t position, index_t tokens) const {
    index_t const n = of(layer).k.shape().tokens;
    if (real_) return std::min(position % n, n - tokens); // past the end of a file, its rows come again
    auto const key = static_cast<std::uint64_t>(position) * 64U + static_cast<std::uint64_t>(layer);
    return bf::testing::random(key).below(n - tokens + 1);
}

template <bf::element E>
bf::heads_view<float const> ladder_inputs<E>::q(index_t layer, index_t position, index_t tokens) const {
    return of(layer).q.view().slice(start(layer, position, tokens), tokens);
}

template <bf::element E>
bf::heads_view<E const> ladder_inputs<E>::k(index_t layer, index_t position, index_t tokens) const {
    return of(layer).k.view().slice(start(layer, position, tokens), tokens);
}

template <bf::element E>
bf::heads_view<E const> ladder_inputs<E>::v(index_t layer, index_t position, index_t tokens) const {
    return of(layer).v.view().slice(start(layer, position, tokens), tokens);
}

template class ladder_inputs<float>;
template class ladder_inputs<bf::float16>;
template class ladder_inputs<bf::bfloat16>;

} // namespace bench
