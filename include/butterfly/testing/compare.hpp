// SPDX-License-Identifier: MIT
#pragma once

// How far from the definition a result may be, and what to say where it is farther. Needs no test framework.
//
//   allowed = unit(arithmetic) * (base + root * sqrt(keys) + each * keys
//                                 + (logit + dims * sqrt(key_dim)) * logit_size) * spread
//           + weights * spread + queries * rounded + least * keys + half an ulp of the output
//
// spread = sum_j w_j |v_j| is what rounding errors of a weighted sum are relative to; logit_size is the largest
// scale * sum_d |q_d k_d| + |biases| of the row, what errors of a logit are relative to, and an error of a logit is a
// relative error of its weight. `rounded` is what queries that are rounded to bf16 may do (testing/oracle.hpp). A value
// that should not be finite must not be finite, and the other way round.

#include <butterfly/core/heads.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/testing/problem.hpp>

#include <cmath>
#include <cstdio>
#include <span>
#include <string>

namespace butterfly::testing {

/// One row of the tolerance table.
struct tolerance {
    double unit;          ///< half the distance of 1 to its successor in the type of the arithmetic
    double base;          ///< roundings whatever the length
    double root;          ///< times sqrt(keys)
    double each;          ///< times keys: a serial sum loses whatever is below its last digit
    double logit;         ///< times logit_size
    double dims;          ///< times sqrt(key_dim) * logit_size
    double weights = 0.0; ///< relative error of a softmax weight that is rounded, and of the sum of such weights
    double queries = 0.0; ///< 1 where queries are rounded to bf16
    double least   = 0.0; ///< times keys: what is lost where subnormals are zero
};

/// The tolerance table, by the type that sums are kept in. A backend that widens two-byte storage exactly and sums in
/// f32 is held to the row of f32.
[[nodiscard]] constexpr tolerance tolerance_of(element_type storage) noexcept {
    return storage == element_type::f32
               ? tolerance{.unit = 0x1p-24, .base = 8.0, .root = 2.0, .each = 0.125, .logit = 4.0, .dims = 1.0}
           : storage == element_type::f16
               ? tolerance{.unit = 0x1p-11, .base = 4.0, .root = 0.5, .each = 0.0, .logit = 2.0, .dims = 0.25}
               : tolerance{.unit = 0x1p-8, .base = 4.0, .root = 0.5, .each = 0.0, .logit = 2.0, .dims = 0.25};
}

/// The row of units that multiply pairs of bf16 and sum in f32 (AVX512-BF16, AMX), where keys or values are bf16: that
/// of f32, and queries and weights are rounded by 2^-8 of themselves.
[[nodiscard]] constexpr tolerance tolerance_of_bf16_units() noexcept {
    tolerance t = tolerance_of(element_type::f32);
    t.weights   = 0x1p-7; // of each weight 2^-8, and of their sum
    t.queries   = 1.0;
    t.least     = 0x1p-126;
    return t;
}

/// What rounding a value to an element type may cost.
[[nodiscard]] inline double rounding(element_type out, double value) noexcept {
    double const half_ulp = out == element_type::f32 ? 0x1p-24 : out == element_type::f16 ? 0x1p-11 : 0x1p-8;
    double const smallest = out == element_type::f16 ? 0x1p-25 : 0x1p-140; // half the distance of subnormals
    return half_ulp * std::abs(value) * 1.001 + smallest;
}

/// The outcome of a comparison: the element farthest from what is allowed, in numbers and as text.
struct comparison {
    bool ok         = true;
    double ratio    = 0.0; ///< error / allowed of the worst element; infinite where finite and not finite meet
    index_t head    = 0;
    index_t token   = 0;
    index_t channel = 0; ///< -1: the lse
    double got      = 0.0;
    double wanted   = 0.0;
    double allowed  = 0.0;

    [[nodiscard]] explicit operator bool() const noexcept { return ok; }

    /// "head 1 token 3 channel 7: got 0.5, wanted 0.25, allowed 1e-06 (2.5e+05 times)"
    [[nodiscard]] std::string text() const {
        char line[200];
        char where[32] = "lse";
        if (channel >= 0) std::snprintf(where, sizeof where, "channel %td", channel);
        std::snprintf(line, sizeof line, "head %td token %td %s: got %.9g, wanted %.9g, allowed %.3g (%.3g times)",
                      head, token, where, got, wanted, allowed, ratio);
        return line;
    }

    /// Admits one element.
    void admit(index_t h, index_t t, index_t d, double g, double w, double a) noexcept {
        double r         = 0.0;
        bool const lost  = std::isnan(g) && d >= 0; // NaN may stand for an infinity of the output
        bool const other = std::isinf(w) && g != w && !lost;
        if (std::isfinite(g) != std::isfinite(w) || other)
            r = std::numeric_limits<double>::infinity();
        else if (std::isfinite(w) && g != w)
            r = std::abs(g - w) / a;
        if (!(r <= 1.0)) ok = false;
        if (r >= ratio) {
            ratio   = r;
            head    = h;
            token   = t;
            channel = d;
            got     = g;
            wanted  = w;
            allowed = a;
        }
    }
};

/// What a row may be off by, relative to its spread.
[[nodiscard]] inline double allowed_error(attention const& wanted, tolerance const& t, index_t head, index_t token) {
    auto const row  = wanted.at(head, token);
    auto const keys = static_cast<double>(wanted.keys[row]);
    return t.weights +
           t.unit * (t.base + t.root * std::sqrt(keys) + t.each * keys +
                     (t.logit + t.dims * std::sqrt(static_cast<double>(wanted.key_dim))) * wanted.logit_size[row]);
}

/// Compares an output with the definition.
template <class T>
[[nodiscard]] comparison compare(heads_view<T> got, attention const& wanted, tolerance const& t) {
    comparison result;
    if (!(got.shape() == wanted.shape)) {
        result.ok    = false;
        result.ratio = std::numeric_limits<double>::infinity();
        return result;
    }
    constexpr element_type out = element_type_of<std::remove_const_t<T>>;
    for (index_t head = 0; head < got.heads(); ++head)
        for (index_t token = 0; token < got.tokens(); ++token) {
            double const relative = allowed_error(wanted, t, head, token);
            double const least    = t.least * static_cast<double>(wanted.keys[wanted.at(head, token)]);
            for (index_t d = 0; d < got.head_dim(); ++d) {
                auto const at = wanted.at(head, token, d);
                double const w =
                    static_cast<double>(out == element_type::f16 && std::abs(wanted.out[at]) > 65519.0
                                            ? std::copysign(std::numeric_limits<double>::infinity(), wanted.out[at])
                                            : wanted.out[at]);
                result.admit(head, token, d, static_cast<float>(got.row(head, token)[static_cast<std::size_t>(d)]), w,
                             relative * wanted.spread[at] + t.queries * wanted.rounded[at] + least + rounding(out, w));
            }
        }
    return result;
}

/// The same, held to the row of a type: f16 or bf16 for a kernel that sums in that type, f32 for one that widens
/// exactly.
template <class T>
[[nodiscard]] comparison compare(heads_view<T> got, attention const& wanted, element_type arithmetic) {
    return compare(got, wanted, tolerance_of(arithmetic));
}

/// Compares an output with the definition, held to what the kernels of this library keep: sums in f32, two-byte storage
/// widened exactly, but for bf16, which may be multiplied by units of its own.
template <class T>
[[nodiscard]] comparison compare(heads_view<T> got, attention const& wanted) {
    return compare(got, wanted,
                   wanted.storage == element_type::bf16 ? tolerance_of_bf16_units() : tolerance_of(element_type::f32));
}

/// Compares log-sum-exps [heads, tokens]; -inf must be -inf.
[[nodiscard]] inline comparison compare_lse(std::span<float const> got, attention const& wanted, tolerance const& t) {
    comparison result;
    for (index_t head = 0; head < wanted.shape.heads; ++head)
        for (index_t token = 0; token < wanted.shape.tokens; ++token) {
            auto const row = wanted.at(head, token);
            double const w = wanted.lse[row];
            double const g =
                row < got.size() ? static_cast<double>(got[row]) : std::numeric_limits<double>::quiet_NaN();
            result.admit(head, token, -1, g, w,
                         allowed_error(wanted, t, head, token) + t.queries * wanted.rounded_lse[row] +
                             rounding(element_type::f32, w));
        }
    return result;
}

[[nodiscard]] inline comparison
compare_lse(std::span<float const> got, attention const& wanted, element_type arithmetic) {
    return compare_lse(got, wanted, tolerance_of(arithmetic));
}

/// Compares two tensors of one shape, each element within `allowed`.
template <class A, class B>
[[nodiscard]] comparison compare(heads_view<A> got, heads_view<B> wanted, double allowed) {
    if (!(got.shape() == wanted.shape())) return {.ok = false, .ratio = std::numeric_limits<double>::infinity()};
    comparison result;
    for (index_t head = 0; head < got.heads(); ++head)
        for (index_t token = 0; token < got.tokens(); ++token)
            for (index_t d = 0; d < got.head_dim(); ++d) {
                auto const at = static_cast<std::size_t>(d);
                result.admit(head, token, d, static_cast<float>(got.row(head, token)[at]),
                             static_cast<float>(wanted.row(head, token)[at]), allowed);
            }
    return result;
}

/// Bitwise equality of two tensors of one type and shape; two NaN are equal. Reports the first difference.
template <class A, class B>
    requires std::is_same_v<std::remove_const_t<A>, std::remove_const_t<B>>
[[nodiscard]] comparison compare_bits(heads_view<A> got, heads_view<B> wanted) {
    if (!(got.shape() == wanted.shape())) return {.ok = false, .ratio = std::numeric_limits<double>::infinity()};
    comparison result;
    for (index_t head = 0; head < got.heads(); ++head)
        for (index_t token = 0; token < got.tokens(); ++token)
            for (index_t d = 0; d < got.head_dim(); ++d) {
                auto const g = got.row(head, token)[static_cast<std::size_t>(d)];
                auto const w = wanted.row(head, token)[static_cast<std::size_t>(d)];
                if (detail::same_bits(g, w) || (std::isnan(static_cast<float>(g)) && std::isnan(static_cast<float>(w))))
                    continue;
                return {.ok      = false,
                        .ratio   = std::numeric_limits<double>::infinity(),
                        .head    = head,
                        .token   = token,
                        .channel = d,
                        .got     = static_cast<float>(g),
                        .wanted  = static_cast<float>(w)};
            }
    return result;
}

} // namespace butterfly::testing
