// SPDX-License-Identifier: MIT
#pragma once

// Queries, keys and values by layer and position: rows of a real model, or of a small seeded pool.
//
// The pool has step + 128 rows per head of normal deviates; a chunk is a run of them that starts where a hash of layer
// and position says. Arithmetic takes as long on such rows as on real ones; they are never zero, because zeros and
// untouched pages would be cheaper to read.

#include "ladder_qkv.hpp"

namespace bench {

template <butterfly::element E>
class ladder_inputs {
public:
    explicit ladder_inputs(ladder_settings const& s);

    /// [heads, tokens, head_dim]
    [[nodiscard]] butterfly::heads_view<float const> q(index_t layer, index_t position, index_t tokens) const;
    /// [kv_heads, tokens, head_dim]
    [[nodiscard]] butterfly::heads_view<E const> k(index_t layer, index_t position, index_t tokens) const;
    [[nodiscard]] butterfly::heads_view<E const> v(index_t layer, index_t position, index_t tokens) const;

private:
    struct rows {
        butterfly::heads_buffer<float> q;
        butterfly::heads_buffer<E> k, v;
    };

    [[nodiscard]] rows const& of(index_t layer) const { return layers_[real_ ? static_cast<std::size_t>(layer) : 0]; }
    /// First row of a chunk.
    [[nodiscard]] index_t start(index_t layer, index_t position, index_t tokens) const;

    bool real_ = false;
    std::vector<rows> layers_; // of a file: all; of a pool: one
};

extern template class ladder_inputs<float>;
extern template class ladder_inputs<butterfly::float16>;
extern template class ladder_inputs<butterfly::bfloat16>;

} // namespace bench
