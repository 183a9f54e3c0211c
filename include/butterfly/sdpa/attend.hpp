// SPDX-License-Identifier: MIT
#pragma once

// The general form: attention of q over the union of what pools show, in one softmax, by a policy.
//
//   logit order    s = scale * <q, k>;  s = cap * tanh(s / cap);  s += log_weight + edge_bias + ALiBi;  mask
//   out            sum_j softmax(s)_j v_j over the visible keys of all pools; zero with lse = -inf where there are none
//
// This folder names no backend. What a policy brings is found by argument-dependent lookup:
//
//   bind_codec(policy, codec)                 its functions for a codec, as an opaque pointer
//   supports(policy, problem)                 yes, or the reason as text
//   explain(policy, problem)                  the kernel it would choose
//   workspace_bytes(policy, problems)         scratch it needs
//   run(policy, problems)                     does it
//
// The first four need shapes, types and strides, never data.

#include <butterfly/sdpa/pool.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <utility>

namespace butterfly {

/// A view with shape, strides, element type and address. heads_view is the pointer one.
template <class T>
concept tensor_view = requires(T const& t) {
    { t.describe() } -> std::same_as<tensor_ref>;
};

/// A problem with the pools it points to: copyable, `problem()` is valid while it lives.
template <std::size_t N>
class bound_problem {
public:
    bound_problem(butterfly::problem const& p, std::array<pool_ref, N> const& pools) noexcept
        : problem_(p), pools_(pools) {}

    [[nodiscard]] butterfly::problem problem() const& noexcept {
        butterfly::problem p = problem_;
        p.pools              = pools_.data();
        p.pool_count         = static_cast<int>(N);
        return p;
    }
    butterfly::problem problem() && = delete;

private:
    butterfly::problem problem_;
    std::array<pool_ref, N> pools_;
};

namespace detail {

/// Throws shape_error unless the farthest byte of a [heads, rows, .] storage fits index_t.
inline void check_reach(index_t heads, index_t head_stride, index_t rows, index_t row_stride, std::string const& who) {
    index_t const a = heads > 0 ? try_multiply(heads - 1, head_stride < 0 ? -head_stride : head_stride) : 0;
    index_t const b = rows > 0 ? try_multiply(rows - 1, row_stride < 0 ? -row_stride : row_stride) : 0;
    if (a < 0 || b < 0 || a > no_alignment / 16 - b) fail<shape_error>(who + ": strides overflow");
}

inline void check_tensor(tensor_ref const& t, std::string const& who) {
    if (checked_size(t.shape) > 0 && !t.memory) fail<shape_error>(who + " is null with shape " + to_text(t.shape));
    check_reach(t.shape.heads, t.strides.head, t.shape.tokens, t.strides.token, who);
}

inline void check_same(index_t a, index_t b, std::string const& what, std::string const& other) {
    if (a != b) fail<shape_error>(what + " " + std::to_string(a) + ", " + other + " " + std::to_string(b));
}

inline void check_storage(storage_ref const& s, std::string const& who) {
    if (s.shape.heads < 1 || s.shape.tokens < 0 || s.shape.head_dim < 1)
        fail<shape_error>(who + " has shape " + to_text(s.shape));
    if (s.shape.tokens > 0 && !s.data) fail<shape_error>(who + " is null with shape " + to_text(s.shape));
    if (s.ring == 0) {
        static_cast<void>(checked_size(s.shape));
        check_reach(s.shape.heads, s.head_stride, s.shape.tokens, s.slot_stride, who);
    }
}

inline void check_mask(problem const& p, std::string const& who) {
    additive_mask const& mask = p.options.mask;
    if (!mask.data) return;
    if (p.pool_count != 1)
        fail<shape_error>(who + ": a mask needs exactly one pool, the call has " + std::to_string(p.pool_count));
    if (mask.heads != 1 && mask.heads != p.heads())
        fail<shape_error>(who + ": mask has heads " + std::to_string(mask.heads) + ", q has " +
                          std::to_string(p.heads()));
    if (mask.type == element_type::bf16) fail<shape_error>(who + ": a mask is f32 or f16, not bf16");
    check_reach(mask.heads, mask.head_stride, p.tokens(), mask.token_stride, who + ": mask");
}

/// The mask with strides that are not zero by omission: a token_stride of 0 is one row for all tokens.
[[nodiscard]] inline additive_mask with_strides(additive_mask mask, index_t tokens, index_t keys) noexcept {
    index_t const row = mask.token_stride != 0 ? mask.token_stride : keys;
    index_t const all = try_multiply(mask.per_token ? tokens : 1, row);
    if (mask.head_stride == 0) mask.head_stride = all >= 0 ? all : no_alignment; // check_reach refuses it
    mask.token_stride = mask.per_token ? row : 0;
    return mask;
}

/// Throws shape_error where the parts of a problem disagree, naming both sides.
inline void check_problem(problem const& p, std::string const& who) {
    check_tensor(p.q, who + ": q");
    check_tensor(p.out, who + ": out");
    if (p.q.shape.heads < 1 || p.q.shape.head_dim < 1) fail<shape_error>(who + ": q has shape " + to_text(p.q.shape));
    if (p.pool_count < 1) fail<shape_error>(who + ": no pools");
    check_same(p.out.shape.heads, p.heads(), who + ": out has heads", "q has");
    check_same(p.out.shape.tokens, p.tokens(), who + ": out has tokens", "q has");
    for (int i = 0; i < p.pool_count; ++i) {
        pool_ref const& pool   = p.pools[i];
        std::string const name = who + ": " + (p.pool_count == 1 ? "" : "pool " + std::to_string(i) + " ");
        check_storage(pool.keys, name + "k");
        check_storage(pool.values, name + "v");
        check_same(pool.keys.shape.head_dim, p.q.shape.head_dim, name + "k has head_dim", "q has");
        check_same(pool.values.shape.heads, pool.keys.shape.heads, name + "v has heads", "k has");
        check_same(pool.values.shape.tokens, pool.keys.shape.tokens, name + "v has tokens", "k has");
        check_same(pool.values.shape.head_dim, p.out.shape.head_dim, name + "v has head_dim", "out has");
        check_same(pool.keys.shape.heads, p.kv_heads, name + "k has heads", "the first pool has");
        index_t const rows = pool.visibility.row_heads;
        if (rows != 1 && rows != p.kv_heads && rows != p.heads())
            fail<shape_error>(name + "topology has heads " + std::to_string(rows) + ", q has " +
                              std::to_string(p.heads()) + " and k has " + std::to_string(p.kv_heads));
    }
    if (p.heads() % p.kv_heads != 0)
        fail<shape_error>(who + ": q has heads " + std::to_string(p.heads()) + ", not a multiple of k's " +
                          std::to_string(p.kv_heads));
    if (!(std::isfinite(p.options.scale) && std::isfinite(p.options.soft_cap)) || p.options.soft_cap < 0.0F)
        fail<shape_error>(who + ": scale and soft_cap must be finite, soft_cap not negative");
    if (p.options.q_position < 0 || p.options.q_position > no_alignment / 2 - p.tokens())
        fail<shape_error>(who + ": q_position " + std::to_string(p.options.q_position) + " out of range");
    check_mask(p, who);
}

/// A storage with the policy's functions for its codec.
template <class Policy, kv_storage S>
[[nodiscard]] storage_ref bind_storage(Policy const& policy, S const& s) {
    storage_ref r = describe_storage(s);
    r.codec_state = static_cast<void const*>(&codec_of(s));
    r.ops         = bind_codec(policy, codec_of(s));
    return r;
}

template <class Policy, class K, class V, class Visibility>
[[nodiscard]] pool_ref bind_pool(Policy const& policy, pool<K, V, Visibility> const& p) {
    pool_ref r{.keys          = bind_storage(policy, p.keys),
               .values        = bind_storage(policy, p.values),
               .visibility    = erase(p.sees),
               .slots         = 0,
               .log_weights   = p.log_weights,
               .key_positions = p.key_positions};
    r.slots = r.keys.shape.tokens;
    return r;
}

/// Assembles and checks a problem from bound pools. `who` names the call in messages.
template <std::size_t N>
[[nodiscard]] bound_problem<N> assemble(tensor_ref const& q,
                                        tensor_ref const& out,
                                        attend_options const& options,
                                        std::array<pool_ref, N> const& pools,
                                        char const* who) {
    problem p{.q = q, .out = out, .kv_heads = pools[0].keys.shape.heads, .options = options};
    if (options.scale == 0.0F) {
        if (q.shape.head_dim != out.shape.head_dim)
            fail<shape_error>(std::string(who) + ": head_dim " + std::to_string(q.shape.head_dim) + " of keys and " +
                              std::to_string(out.shape.head_dim) + " of values differ, so scale must be given");
        if (q.shape.head_dim > 0)
            p.options.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(q.shape.head_dim)));
    }
    if (options.q_position == -1) p.options.q_position = 0; // not given
    if (options.mask.data) p.options.mask = with_strides(options.mask, q.shape.tokens, pools[0].slots);
    bound_problem<N> bound(p, pools);
    check_problem(bound.problem(), who);
    return bound;
}

} // namespace detail

/// The problem a call of `attend` with these arguments solves: what supports, explain and workspace_bytes are asked
/// about. Holds addresses of the pools' visibilities and codecs, so the pools must outlive it. Throws shape_error.
template <class Policy, tensor_view Q, tensor_view O, class... K, class... V, class... Visibility>
[[nodiscard]] auto make_problem(Policy const& policy,
                                Q const& q,                    // [heads, tokens, head_dim]
                                O const& out,                  // [heads, tokens, value head_dim]
                                attend_options const& options, //
                                pool<K, V, Visibility> const&... pools) {
    static_assert(sizeof...(pools) > 0, "attend needs at least one pool");
    return detail::assemble(q.describe(), out.describe(), options,
                            std::array<pool_ref, sizeof...(pools)>{detail::bind_pool(policy, pools)...}, "attend");
}

/// Solves many problems, for example one per sequence, in one launch. Throws backend_error where the policy declines
/// one, with its reason.
template <class Policy>
void attend(Policy const& policy, std::span<problem const> problems) {
    for (problem const& p : problems)
        if (support const s = supports(policy, p); !s) detail::fail<backend_error>(s.reason);
    run(policy, problems);
}

/// Attention of q over pools; see the top of this file. Throws shape_error, or backend_error where the policy declines.
template <class Policy, tensor_view Q, tensor_view O, class... K, class... V, class... Visibility>
void attend(Policy const& policy,
            Q const& q,                    // [heads, tokens, head_dim]
            O const& out,                  // [heads, tokens, value head_dim], written
            attend_options const& options, //
            pool<K, V, Visibility> const&... pools) {
    auto const bound = make_problem(policy, q, out, options, pools...);
    problem const p  = bound.problem();
    attend(policy, std::span<problem const>(&p, 1));
}

} // namespace butterfly
