// SPDX-License-Identifier: MIT
#pragma once

// Seeded inputs for tests and benches: the same values on every platform, never zero, in storage that is as awkward as
// a caller's may be.
//
// The generator is SplitMix64 (Steele, Lea and Flood 2014) and the distributions need no libm function but sqrt, which
// IEEE 754 rounds exactly. Elements between rows hold NaN, so that a kernel which uses them is noticed, and a buffer
// ends with its last element, so that a sanitizer notices a read past it.

#include <butterfly/core/heads.hpp>
#include <butterfly/core/splitmix64.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace butterfly::testing {

/// SplitMix64, and draws that are the same everywhere.
class random {
public:
    /// `stream` keeps the tensors of one seed independent of each other's sizes.
    explicit constexpr random(std::uint64_t seed, std::uint64_t stream = 0) noexcept
        : state_(seed * 0x9e3779b97f4a7c15U + stream * 0xd1342543de82ef95U + 1U) {}

    constexpr std::uint64_t bits() noexcept {
        std::uint64_t const z = butterfly::detail::splitmix64(state_, 0);
        state_ += butterfly::detail::splitmix64_step;
        return z;
    }

    /// In (0, 1).
    constexpr double uniform() noexcept { return (static_cast<double>(bits() >> 11) + 0.5) * 0x1p-53; }

    /// In [0, n), n >= 1.
    constexpr index_t below(index_t n) noexcept { return static_cast<index_t>(bits() % static_cast<std::uint64_t>(n)); }

    /// In [first, last].
    constexpr index_t between(index_t first, index_t last) noexcept { return first + below(last - first + 1); }

    /// Sum of twelve uniforms: mean 0, variance 1, within [-6, 6].
    constexpr double normal() noexcept {
        double sum = -6.0;
        for (int i = 0; i < 12; ++i) sum += uniform();
        return sum;
    }

    /// normal / u^(1/4): P(|x| > t) falls as t^-4, so that a few outliers stand among many small values.
    double heavy_tailed() noexcept { return normal() / std::sqrt(std::sqrt(uniform())); }

    /// One of a list.
    template <class T, std::size_t N>
    constexpr T const& one_of(T const (&choices)[N]) noexcept {
        return choices[below(static_cast<index_t>(N))];
    }

private:
    std::uint64_t state_;
};

/// What tensors hold.
enum class distribution : std::uint8_t {
    heavy_tailed, ///< outliers of ten times the typical size and more
    normal,       ///< mean 0, variance 1
    uniform,      ///< (-1, 1)
    positive,     ///< (0, 1): nothing cancels
    peaked,       ///< normal, one token in sixteen eight times as large: few keys take all the weight
};

/// Where elements stand.
enum class layout : std::uint8_t {
    contiguous,  ///< [heads, tokens, head_dim]
    misaligned,  ///< contiguous, one element past an aligned address
    interleaved, ///< [tokens, heads, head_dim], as engines keep it
    odd_stride,  ///< contiguous heads of rows three elements apart, heads five more
};

inline constexpr layout layouts[] = {layout::contiguous, layout::misaligned, layout::interleaved, layout::odd_stride};

[[nodiscard]] constexpr char const* name_of(layout l) noexcept {
    return l == layout::contiguous    ? "contiguous"
           : l == layout::misaligned  ? "misaligned"
           : l == layout::interleaved ? "interleaved"
                                      : "odd stride";
}

namespace detail {

/// A NaN no computation makes: what stands where nothing may be read or written.
template <element T>
[[nodiscard]] T gap() noexcept {
    if constexpr (std::is_same_v<T, float>) {
        return std::bit_cast<float>(0x7fc0beefU);
    } else {
        return std::bit_cast<T>(std::uint16_t{element_type_of<T> == element_type::f16 ? 0x7ebeU : 0x7fbeU});
    }
}

template <class T>
[[nodiscard]] bool same_bits(T a, T b) noexcept {
    if constexpr (sizeof(T) == 4) {
        return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
    } else {
        return std::bit_cast<std::uint16_t>(a) == std::bit_cast<std::uint16_t>(b);
    }
}

} // namespace detail

/// An owning tensor [heads, tokens, head_dim] in one of the layouts; NaN everywhere until filled.
template <element T>
class tensor {
public:
    tensor() : tensor(heads_shape{}) {}

    explicit tensor(heads_shape shape, layout l = layout::contiguous) : shape_(shape) {
        static_cast<void>(butterfly::detail::checked_size(shape));
        index_t const row = shape.head_dim + (l == layout::odd_stride ? 3 : 0);
        strides_          = {.head = shape.tokens * row + (l == layout::odd_stride ? 5 : 0), .token = row};
        if (l == layout::interleaved) strides_ = {.head = shape.head_dim, .token = shape.heads * shape.head_dim};
        offset_            = l == layout::misaligned ? 1 : 0;
        index_t const last = std::max<index_t>(shape.heads - 1, 0) * strides_.head +
                             std::max<index_t>(shape.tokens - 1, 0) * strides_.token;
        values_.assign(static_cast<std::size_t>(offset_ + last + shape.head_dim), detail::gap<T>());
    }

    [[nodiscard]] heads_shape const& shape() const noexcept { return shape_; }
    [[nodiscard]] heads_view<T> view() & { return {values_.data() + offset_, shape_, strides_}; }
    [[nodiscard]] heads_view<T const> view() const& { return {values_.data() + offset_, shape_, strides_}; }
    heads_view<T> view() && = delete;

    /// Element (head, token, channel).
    [[nodiscard]] T& at(index_t head, index_t token, index_t channel) noexcept {
        return values_[static_cast<std::size_t>(offset_ + head * strides_.head + token * strides_.token + channel)];
    }
    [[nodiscard]] T const& at(index_t head, index_t token, index_t channel) const noexcept {
        return values_[static_cast<std::size_t>(offset_ + head * strides_.head + token * strides_.token + channel)];
    }

    /// True where nothing was written between the rows.
    [[nodiscard]] bool gaps_intact() const {
        std::vector<bool> inside(values_.size(), false);
        for (index_t h = 0; h < shape_.heads; ++h)
            for (index_t t = 0; t < shape_.tokens; ++t)
                for (index_t d = 0; d < shape_.head_dim; ++d)
                    inside[static_cast<std::size_t>(offset_ + h * strides_.head + t * strides_.token + d)] = true;
        for (std::size_t i = 0; i < values_.size(); ++i)
            if (!inside[i] && !detail::same_bits(values_[i], detail::gap<T>())) return false;
        return true;
    }

private:
    heads_shape shape_{};
    heads_strides strides_{};
    index_t offset_ = 0;
    std::vector<T> values_;
};

/// Overwrites the tokens [first, first + count) of every head. Values depend on the order of heads, tokens and
/// channels, never on the layout; none is zero.
template <element T>
void fill(tensor<T>& t, random draws, distribution kind, index_t first, index_t count) {
    for (index_t head = 0; head < t.shape().heads; ++head)
        for (index_t token = first; token < first + count; ++token) {
            double const size = kind == distribution::peaked && draws.below(16) == 0 ? 8.0 : 1.0;
            for (index_t d = 0; d < t.shape().head_dim; ++d) {
                double const x = kind == distribution::heavy_tailed ? draws.heavy_tailed()
                                 : kind == distribution::uniform    ? 2.0 * draws.uniform() - 1.0
                                 : kind == distribution::positive   ? draws.uniform()
                                                                    : size * draws.normal();
                T const value(static_cast<float>(x));
                t.at(head, token, d) = static_cast<float>(value) == 0.0F ? T(0.0625F) : value;
            }
        }
}

template <element T>
void fill(tensor<T>& t, random draws, distribution kind = distribution::heavy_tailed) {
    fill(t, draws, kind, 0, t.shape().tokens);
}

/// What make_problem makes. Zeros stand for the usual: kv_heads = heads, keys = tokens, value_dim = head_dim.
struct problem_options {
    index_t heads       = 1;
    index_t kv_heads    = 0;
    index_t tokens      = 1;
    index_t keys        = 0;
    index_t head_dim    = 64;
    index_t value_dim   = 0;
    std::uint64_t seed  = 1;
    distribution values = distribution::heavy_tailed;
    layout queries_in   = layout::contiguous; // of q and out
    layout keys_in      = layout::contiguous; // of k and v
    bool no_keys        = false;              // keys = 0 means none
};

/// Inputs of one attention call and a place for its output.
template <element Q = float, element KV = float, element O = float>
struct seeded_problem {
    tensor<Q> q;              // [heads, tokens, head_dim]
    tensor<KV> k;             // [kv_heads, keys, head_dim]
    tensor<KV> v;             // [kv_heads, keys, value_dim]
    tensor<O> out;            // [heads, tokens, value_dim], NaN until written
    std::vector<float> lse{}; // [heads, tokens], NaN until written
    float scale = 0.0F;       // 1 / sqrt(head_dim), for calls that must name it
};

template <element Q = float, element KV = float, element O = float>
[[nodiscard]] seeded_problem<Q, KV, O> make_problem(problem_options const& o) {
    index_t const kv_heads  = o.kv_heads > 0 ? o.kv_heads : o.heads;
    index_t const keys      = o.keys > 0 || o.no_keys ? o.keys : o.tokens;
    index_t const value_dim = o.value_dim > 0 ? o.value_dim : o.head_dim;
    seeded_problem<Q, KV, O> p{
        .q     = tensor<Q>({o.heads, o.tokens, o.head_dim}, o.queries_in),
        .k     = tensor<KV>({kv_heads, keys, o.head_dim}, o.keys_in),
        .v     = tensor<KV>({kv_heads, keys, value_dim}, o.keys_in),
        .out   = tensor<O>({o.heads, o.tokens, value_dim}, o.queries_in),
        .lse   = std::vector<float>(static_cast<std::size_t>(o.heads * o.tokens), detail::gap<float>()),
        .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(o.head_dim)))};
    fill(p.q, random(o.seed, 1), o.values);
    fill(p.k, random(o.seed, 2), o.values);
    fill(p.v, random(o.seed, 3), o.values);
    return p;
}

} // namespace butterfly::testing
