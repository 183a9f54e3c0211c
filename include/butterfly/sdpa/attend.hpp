// SPDX-License-Identifier: MIT
#pragma once

// The general form: attention of q over the union of what pools show, in one softmax, by a policy.
//
//   logit order    s = scale * <q, k>;  s = cap * tanh(s / cap);  s += log_weight + edge_bias + ALiBi;  mask
//   out            sum_j softmax(s)_j v_j over the visible keys of all pools; zero with lse = -inf where there are none
//
// This folder names no backend. What a policy brings is found by argument-dependent lookup:
//
//   bind_codec(policy, codec)                 its functions for a codec: a bound_codec (sdpa/problem.hpp)
//   supports(policy, problem)                 yes, or the reason as text
//   explain(policy, problem)                  the kernel it would choose
//   workspace_bytes(policy, problems)         scratch it needs
//   run(policy, problems)                     does it
//
// The first four need shapes, types and strides, never data.

#include <butterfly/sdpa/pool.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
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

/// What a message is about: "attend: pool 1 k". Text is made where something is wrong, not before.
struct subject {
    char const* who;       // the call
    char const* part = ""; // of the call, or of the pool
    int pool         = -1; // number of the pool, where there are several

    subject(char const* call, char const* of = "", int number = -1) noexcept : who(call), part(of), pool(number) {}

    [[nodiscard]] std::string text() const {
        std::string const numbered = pool < 0 ? "" : "pool " + std::to_string(pool) + " ";
        return numbered.empty() && *part == '\0' ? who : std::string(who) + ": " + numbered + part;
    }
};

/// Throws shape_error unless the farthest byte of a [heads, rows, .] storage fits index_t.
inline void check_reach(index_t heads, index_t head_stride, index_t rows, index_t row_stride, subject const& at) {
    index_t const a = heads > 0 ? try_multiply(heads - 1, magnitude(head_stride)) : 0;
    index_t const b = rows > 0 ? try_multiply(rows - 1, magnitude(row_stride)) : 0;
    if (a < 0 || b < 0 || a > no_alignment / 16 || b > no_alignment / 16 - a)
        fail<shape_error>(at.text() + ": strides overflow");
}

inline void check_tensor(tensor_ref const& t, subject const& at) {
    if (checked_size(t.shape) > 0 && !t.memory)
        fail<shape_error>(at.text() + " is null with shape " + to_text(t.shape));
    check_reach(t.shape.heads, t.strides.head, t.shape.tokens, t.strides.token, at);
}

/// Whether i * a + j * b is below `width` in size for some |i| < a_count, |j| < b_count, not both 0: whether rows of
/// that width, one every `a` and one every `b`, share elements. a, b >= 0.
[[nodiscard]] constexpr bool
rows_overlap(index_t a, index_t a_count, index_t b, index_t b_count, index_t width) noexcept {
    if (a < b) return rows_overlap(b, b_count, a, a_count, width); // then the loop ends at once where rows are nested
    if (b_count > 1 && b < width) return true;
    index_t const reach = (b_count - 1) * b + width; // of the rows of one i
    for (index_t i = 1; i < a_count && i * a < reach; ++i) {
        index_t const past = b > 0 ? i * a % b : 0; // beyond the last row that begins no later
        if (past < width || b - past < width) return true;
    }
    return false;
}

/// Throws shape_error where two rows of a tensor that will be written share elements.
inline void check_apart(tensor_ref const& t, subject const& at) {
    if (checked_size(t.shape) == 0) return;
    if (rows_overlap(magnitude(t.strides.head), t.shape.heads, magnitude(t.strides.token), t.shape.tokens,
                     t.shape.head_dim))
        fail<shape_error>(at.text() + " has overlapping rows: shape " + to_text(t.shape) + ", strides of head " +
                          std::to_string(t.strides.head) + " and token " + std::to_string(t.strides.token));
}

inline void check_same(index_t a, index_t b, subject const& at, char const* other) {
    if (a != b) fail<shape_error>(at.text() + " " + std::to_string(a) + ", " + other + " " + std::to_string(b));
}

/// Throws shape_error where a number is smaller than it can be.
inline void check_least(index_t value, index_t least, subject const& at) {
    if (value < least)
        fail<shape_error>(at.text() + " " + std::to_string(value) + ", must be at least " + std::to_string(least));
}

inline void check_storage(storage_ref const& s, subject const& at) {
    if (s.shape.heads < 1 || s.shape.tokens < 0 || s.shape.head_dim < 1)
        fail<shape_error>(at.text() + " has shape " + to_text(s.shape));
    if (s.shape.tokens > 0 && !s.data) fail<shape_error>(at.text() + " is null with shape " + to_text(s.shape));
    if (s.ring != 0) return;
    static_cast<void>(checked_size(s.shape));
    if (!s.pages && s.page_shift == 0)
        return check_reach(s.shape.heads, s.head_stride, s.shape.tokens, s.slot_stride, at);
    if (!s.pages) return check_reach(s.shape.heads, s.head_stride, s.shape.tokens >> s.page_shift, s.page_stride, at);

    // A page table may name any page: each int32 times the stride must fit, next to what lies within a page.
    constexpr index_t last_page = std::numeric_limits<std::int32_t>::max();
    index_t const far           = try_multiply(last_page, magnitude(s.page_stride));
    if (far < 0 || far > no_alignment / 2) fail<shape_error>(at.text() + ": page strides overflow");
    check_reach(s.shape.heads, s.head_stride, std::min(s.shape.tokens, index_t{1} << s.page_shift), s.slot_stride, at);
}

/// Throws shape_error where a visibility cannot be walked over a pool.
inline void check_visibility(problem const& p, pool_ref const& pool, char const* who, int number) {
    visibility_ref const& v         = pool.visibility;
    visibility_description const& d = v.description;
    if (v.row_heads != 1 && v.row_heads != p.kv_heads && v.row_heads != p.heads())
        fail<shape_error>(subject(who, "topology has heads ", number).text() + std::to_string(v.row_heads) +
                          ", q has " + std::to_string(p.heads()) + " and k has " + std::to_string(p.kv_heads));
    check_least(d.window, 0, {who, "visibility has window", number});
    check_least(d.align, 1, {who, "visibility has align", number});
    check_least(d.before, 0, {who, "visibility has before", number});
    check_least(d.after, 0, {who, "visibility has after", number});
    check_least(d.block_size, 1, {who, "visibility has block_size", number});
    check_least(d.first_slot, 0, {who, "visibility has first_slot", number});
    check_least(v.row_alignment, 1, {who, "visibility has row_alignment", number});
    if (pool.key_positions && !v.takes_positions)
        fail<shape_error>(subject(who, "visibility goes by slots and takes no key_positions", number).text());
}

inline void check_mask(problem const& p, char const* who) {
    additive_mask const& mask = p.options.mask;
    if (!mask.data) return;
    if (p.pool_count != 1)
        fail<shape_error>(subject(who, "a mask needs exactly one pool, the call has ").text() +
                          std::to_string(p.pool_count));
    if (mask.heads != 1) check_same(mask.heads, p.heads(), {who, "mask has heads"}, "q has");
    if (mask.type == element_type::bf16) fail<shape_error>(subject(who, "a mask is f32 or f16, not bf16").text());
    check_reach(mask.heads, mask.head_stride, p.tokens(), mask.token_stride, {who, "mask"});
}

/// The mask with strides that are not zero by omission: a token_stride of 0 is one row for all tokens.
[[nodiscard]] inline additive_mask with_strides(additive_mask mask, index_t tokens, index_t keys) noexcept {
    index_t const row = mask.token_stride != 0 ? mask.token_stride : keys;
    index_t const all = try_multiply(mask.per_token ? tokens : 1, row);
    if (mask.head_stride == 0) mask.head_stride = all >= 0 ? all : no_alignment; // check_reach refuses it
    mask.token_stride = mask.per_token ? row : 0;
    return mask;
}

/// Throws shape_error where the parts of a problem disagree, naming both sides. Allocates nothing where they agree.
inline void check_problem(problem const& p, char const* who) {
    check_tensor(p.q, {who, "q"});
    check_tensor(p.out, {who, "out"});
    check_apart(p.out, {who, "out"});
    if (p.q.shape.heads < 1 || p.q.shape.head_dim < 1)
        fail<shape_error>(subject(who, "q has shape ").text() + to_text(p.q.shape));
    if (p.pool_count < 1) fail<shape_error>(subject(who, "no pools").text());
    check_same(p.out.shape.heads, p.heads(), {who, "out has heads"}, "q has");
    check_same(p.out.shape.tokens, p.tokens(), {who, "out has tokens"}, "q has");
    for (int i = 0; i < p.pool_count; ++i) {
        pool_ref const& pool = p.pools[i];
        int const number     = p.pool_count == 1 ? -1 : i;
        check_storage(pool.keys, {who, "k", number});
        check_storage(pool.values, {who, "v", number});
        check_same(pool.keys.shape.head_dim, p.q.shape.head_dim, {who, "k has head_dim", number}, "q has");
        check_same(pool.values.shape.heads, pool.keys.shape.heads, {who, "v has heads", number}, "k has");
        check_same(pool.values.shape.tokens, pool.keys.shape.tokens, {who, "v has tokens", number}, "k has");
        check_same(pool.values.shape.head_dim, p.out.shape.head_dim, {who, "v has head_dim", number}, "out has");
        check_same(pool.keys.shape.heads, p.kv_heads, {who, "k has heads", number}, "the first pool has");
        check_visibility(p, pool, who, number);
    }
    if (p.heads() % p.kv_heads != 0)
        fail<shape_error>(subject(who, "q has heads ").text() + std::to_string(p.heads()) + ", not a multiple of k's " +
                          std::to_string(p.kv_heads));
    if (!(std::isfinite(p.options.scale) && std::isfinite(p.options.soft_cap)) || p.options.soft_cap < 0.0F)
        fail<shape_error>(subject(who, "scale and soft_cap must be finite, soft_cap not negative").text());
    if (p.options.q_position < 0 || p.options.q_position > no_alignment / 2 - p.tokens())
        fail<shape_error>(subject(who, "q_position ").text() + std::to_string(p.options.q_position) + " out of range");
    check_mask(p, who);
}

/// A storage with the policy's functions for its codec.
template <class Policy, kv_storage S>
[[nodiscard]] storage_ref bind_storage(Policy const& policy, S const& s) {
    bound_codec const bound = bind_codec(policy, codec_of(s));
    storage_ref r           = describe_storage(s);
    r.codec_state           = static_cast<void const*>(&codec_of(s));
    r.encode                = quant::encoder_of<std::remove_cvref_t<decltype(codec_of(s))>>();
    r.ops                   = bound.ops;
    r.ops_owner             = bound.owner;
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
        index_t const dk = pools[0].keys.shape.head_dim, dv = pools[0].values.shape.head_dim;
        if (dk != dv && q.shape.head_dim == dk && out.shape.head_dim == dv) // else check_problem names what differs
            fail<shape_error>(std::string(who) + ": head_dim " + std::to_string(dk) + " of keys and " +
                              std::to_string(dv) + " of values differ, so scale must be given");
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

/// Solves many problems, for example one per sequence, in one launch. The workspace of problem 0 serves all of them.
/// Throws backend_error where the policy declines one, with its reason.
template <class Policy>
void attend(Policy const& policy, std::span<problem const> problems) {
    for (problem p : problems) {
        p.options.workspace = problems[0].options.workspace;
        if (support const s = supports(policy, p); !s) detail::fail<backend_error>(s.reason);
    }
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
