// SPDX-License-Identifier: MIT
#pragma once

// Two attentions of the same queries over different keys become one over the union: cascades, shared prefixes, context
// parallelism.
//
//   w_a = exp(lse_a), w_b = exp(lse_b)      out = (w_a a + w_b b) / (w_a + w_b)      lse = ln(w_a + w_b)
//
// computed from the larger lse downwards, so that nothing overflows. Commutative and associative up to rounding; a part
// with lse = -inf is empty and changes nothing, whatever its output holds; two empty parts are empty: zero, lse = -inf.

#include <butterfly/sdpa/attend.hpp>

namespace butterfly {

/// The output of an attention call and its `lse`. Parts are made without sink_logits: a sink joins once, at the last
/// merge.
template <tensor_view T>
struct attention_part {
    T out;            // [heads, tokens, head_dim]
    memory_ref lse{}; // float [heads, tokens]

    attention_part(T view, memory_ref log_sum) : out(std::move(view)), lse(log_sum) {}
};

struct merge_options {
    memory_ref lse{};         // float [heads, tokens], written: lse of the union; null: not wanted
    memory_ref sink_logits{}; // float [heads], one more key of value zero; `lse` excludes it; null: none
};

/// What a policy's `run(policy, merge_problem)` is given: plain data.
struct merge_problem {
    tensor_ref a{};
    tensor_ref b{};
    tensor_ref out{};
    memory_ref a_lse{};
    memory_ref b_lse{};
    merge_options options{};
};

namespace detail {

/// Throws shape_error where the parts of a merge disagree, naming both sides.
inline void check_merge(merge_problem const& m) {
    auto const check = [&](tensor_ref const& part, memory_ref const& lse, char const* name) {
        check_tensor(part, {"merge", name});
        if (part.shape != m.out.shape) {
            std::string const who = std::string("merge: ") + name;
            check_same(part.shape.heads, m.out.shape.heads, (who + " has heads").c_str(), "out has");
            check_same(part.shape.tokens, m.out.shape.tokens, (who + " has tokens").c_str(), "out has");
            check_same(part.shape.head_dim, m.out.shape.head_dim, (who + " has head_dim").c_str(), "out has");
        }
        if (!lse && part.shape.heads * part.shape.tokens > 0)
            fail<shape_error>(std::string("merge: the lse of ") + name + " is null with shape " + to_text(part.shape));
    };
    check_tensor(m.out, "merge: out");
    check_apart(m.out, "merge: out");
    check(m.a, m.a_lse, "a");
    check(m.b, m.b_lse, "b");
}

} // namespace detail

/// Writes the attention over the keys of both parts to `out`, which may be the tensor of a part. Types are independent.
/// Throws shape_error.
template <class Policy, tensor_view A, tensor_view B, tensor_view O>
void merge(Policy const& policy,
           attention_part<A> const& a, // [heads, tokens, head_dim]
           attention_part<B> const& b, // [heads, tokens, head_dim]
           O const& out,               // [heads, tokens, head_dim], written
           merge_options const& options = {}) {
    merge_problem const m{a.out.describe(), b.out.describe(), out.describe(), a.lse, b.lse, options};
    detail::check_merge(m);
    run(policy, m);
}

} // namespace butterfly
