// SPDX-License-Identifier: MIT
#pragma once

// Laws about where keys and values stand: strides, pages, rings, positions, codecs and several pools show the same keys
// as one contiguous tensor, and what stands in slots nobody may see is never felt.

#include <butterfly/testing/laws/law.hpp>

#include <cstring>
#include <numeric>

namespace butterfly::testing {

/// A codec that can only be read: a byte per value, in sixteenths.
struct read_only_codec {
    [[nodiscard]] constexpr index_t row_bytes(index_t head_dim) const noexcept { return head_dim; }
    void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        for (index_t d = 0; d < head_dim; ++d) out[d] = static_cast<float>(static_cast<std::int8_t>(row[d])) * 0.0625F;
    }
};

static_assert(quant::decoder<read_only_codec> && !quant::codec<read_only_codec>);

namespace detail {

/// Rows of a tensor, rounded in place to what read_only_codec holds, and their bytes: `gap` bytes of something else
/// between rows, twice as many more between heads.
struct packed_rows {
    std::vector<std::byte> bytes;
    heads_shape shape;
    index_t gap = 0;

    explicit packed_rows(tensor<float>& t, index_t between = 0) : shape(t.shape()), gap(between) {
        for (index_t h = 0; h < shape.heads; ++h) {
            for (index_t j = 0; j < shape.tokens; ++j) {
                for (index_t d = 0; d < shape.head_dim; ++d) {
                    float const code = std::clamp(std::nearbyint(t.at(h, j, d) * 16.0F), -127.0F, 127.0F);
                    t.at(h, j, d)    = code * 0.0625F;
                    bytes.push_back(static_cast<std::byte>(static_cast<std::int8_t>(code)));
                }
                bytes.resize(bytes.size() + static_cast<std::size_t>(gap), std::byte{0x80});
            }
            bytes.resize(bytes.size() + static_cast<std::size_t>(2 * gap), std::byte{0x80});
        }
    }

    [[nodiscard]] packed_view<read_only_codec> view() const {
        packed_view v{bytes.data(), read_only_codec{}, shape};
        if (gap == 0) return v; // strides by omission
        v.token_stride = shape.head_dim + gap;
        v.head_stride  = shape.tokens * v.token_stride + 2 * gap;
        return v;
    }
};

/// A ring of rows: slot s stands at row s mod length.
struct ring_view {
    float const* data = nullptr; // [heads, length, head_dim]
    heads_shape shape{};         // tokens: slots
    index_t length = 1;
};

[[nodiscard]] inline storage_ref describe_storage(ring_view const& v) noexcept {
    return {.data        = memory_ref(v.data),
            .shape       = v.shape,
            .head_stride = v.length * v.shape.head_dim * 4,
            .slot_stride = v.shape.head_dim * 4,
            .ring        = v.length,
            .codec       = codec_id::raw_f32};
}

[[nodiscard]] inline quant::raw<float> const& codec_of(ring_view const&) noexcept {
    static constexpr quant::raw<float> codec{};
    return codec;
}

/// A tensor in pages of `size` tokens, in the order of `table`; what no slot names is NaN.
template <element T>
struct pages_of {
    std::vector<std::int32_t> table;
    std::vector<T> data;
    paged_view<T> view;

    pages_of(tensor<T> const& t, index_t size, random draws) {
        heads_shape const s = t.shape();
        index_t const count = butterfly::detail::ceil_div(s.tokens, size);
        table.resize(static_cast<std::size_t>(count + 2));
        std::iota(table.begin(), table.end(), 0);
        for (index_t i = count + 1; i > 0; --i)
            std::swap(table[static_cast<std::size_t>(i)], table[static_cast<std::size_t>(draws.below(i + 1))]);
        data.assign(static_cast<std::size_t>((count + 2) * size * s.heads * s.head_dim), gap<T>());
        view = {.data      = data.data(),
                .pages     = table.data(),
                .page_size = size,
                .shape     = s,
                .strides   = {.page = size * s.heads * s.head_dim, .head = s.head_dim, .token = s.heads * s.head_dim}};
        for (index_t h = 0; h < s.heads; ++h)
            for (index_t j = 0; j < s.tokens; ++j)
                for (index_t d = 0; d < s.head_dim; ++d)
                    data[static_cast<std::size_t>(table[static_cast<std::size_t>(j / size)] * view.strides.page +
                                                  h * view.strides.head + j % size * view.strides.token + d)] =
                        t.at(h, j, d);
        table.resize(static_cast<std::size_t>(count)); // a read past its end is a read past an allocation
        table.shrink_to_fit();
        view.pages = table.data();
    }
    pages_of(pages_of const&) = delete;
};

/// A tensor as packed rows that begin at odd bytes, a byte between two of them.
template <element T>
struct rows_at_any_byte {
    std::vector<std::byte> bytes;
    heads_shape shape;

    explicit rows_at_any_byte(tensor<T> const& t) : shape(t.shape()) {
        bytes.assign(static_cast<std::size_t>(1 + shape.heads * shape.tokens * stride()), std::byte{0xff});
        std::byte* to = bytes.data() + 1;
        for (index_t h = 0; h < shape.heads; ++h)
            for (index_t j = 0; j < shape.tokens; ++j, to += stride())
                for (index_t d = 0; d < shape.head_dim; ++d) {
                    T const x = t.at(h, j, d);
                    std::memcpy(to + d * static_cast<index_t>(sizeof x), &x, sizeof x);
                }
    }
    rows_at_any_byte(rows_at_any_byte const&) = delete;

    [[nodiscard]] index_t stride() const { return shape.head_dim * static_cast<index_t>(sizeof(T)) + 1; }
    [[nodiscard]] packed_view<quant::raw<T>> view() const {
        packed_view<quant::raw<T>> v{bytes.data() + 1, quant::raw<T>{}, shape};
        v.token_stride = stride();
        v.head_stride  = shape.tokens * stride();
        return v;
    }
};

} // namespace detail

/// Rows of keys and values may stand at any byte.
template <class Policy, element KV = float>
[[nodiscard]] report rows_stand_at_any_byte(Policy const& policy, sweep const& s) {
    report r;
    for (index_t const tokens : {1, 3, 30})
        for (index_t const head_dim : {1, 13, 32, 50, 64}) {
            auto p = make_problem<float, KV>(
                {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 150, .head_dim = head_dim, .seed = s.seed});
            detail::rows_at_any_byte<KV> const k(p.k), v(p.v);
            attend_options const o = detail::at_end(p);
            attention const wanted = evaluate(p.q.view(), p.out.view(), o, detail::whole(p));
            detail::expect(r, detail::say("head_dim", head_dim, "tokens", tokens), policy, s, wanted, p, o,
                           pool(k.view(), v.view(), visible::causal_prefix()));
        }
    return r;
}

/// Contiguous, misaligned, interleaved and strided tensors are the same tensor.
template <class Policy, element KV = float>
[[nodiscard]] report layouts_do_not_matter(Policy const& policy, sweep const& s) {
    report r;
    for (index_t const tokens : {1, 21})
        for (index_t const head_dim : {5, 16, 40})
            for (layout const queries : layouts)
                for (layout const keys : layouts) {
                    if (s.brief && head_dim == 16) continue;
                    problem_options shape{
                        .heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 77, .head_dim = head_dim};
                    shape.seed             = s.seed;
                    auto plain             = make_problem<float, KV>(shape);
                    shape.queries_in       = queries;
                    shape.keys_in          = keys;
                    auto p                 = make_problem<float, KV>(shape);
                    attend_options const o = detail::at_end(p);
                    attention const wanted = evaluate(plain.q.view(), plain.out.view(), o, detail::whole(plain));
                    detail::expect(r,
                                   std::string("q ") + name_of(queries) + ", keys " + name_of(keys) +
                                       detail::say(" head_dim", head_dim, "tokens", tokens),
                                   policy, s, wanted, p, o, detail::whole(p));
                }
    return r;
}

/// Pages in any order, and rings that have started over, are the contiguous tensor they stand for; NaN beside them is
/// never felt.
template <class Policy, element KV = float>
[[nodiscard]] report pages_and_rings_equal_contiguous_storage(Policy const& policy, sweep const& s) {
    using half = std::conditional_t<std::is_same_v<KV, float>, float16, KV>;
    report r;
    random draws(s.seed, 401);
    for (index_t const tokens : {1, 30})
        for (index_t const keys : {30, 100, 193}) {
            auto p = make_problem(
                {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 19, .seed = draws.bits()});
            auto h = make_problem<float, half>(
                {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 32, .seed = draws.bits()});
            attend_options const o = detail::at_end(p);
            for (index_t const size : {1, 4, 16, 64, 256}) {
                detail::pages_of<float> const k(p.k, size, draws), v(p.v, size, draws);
                std::string const what = detail::say("pages of", size, "tokens", tokens, "keys", keys);
                for (visible::interval const sees : {visible::interval{}, visible::exact_window(23)}) {
                    attention const wanted = evaluate(p.q.view(), p.out.view(), o, detail::whole(p, sees));
                    detail::expect(r, what, policy, s, wanted, p, o, pool(k.view, v.view, sees));
                }
                detail::pages_of<half> const hk(h.k, size, draws), hv(h.v, size, draws);
                attention const wanted = evaluate(h.q.view(), h.out.view(), o, detail::whole(h));
                detail::expect(r, name_of(element_type_of<half>) + (" " + what), policy, s, wanted, h, o,
                               pool(hk.view, hv.view, visible::causal_prefix()));
            }

            // Only the last `length` slots are kept; the window ends where the ring begins.
            index_t const window = draws.between(1, 20);
            index_t const length = window + tokens - 1 + draws.below(9);
            std::vector<float> k(static_cast<std::size_t>(2 * length * 19), detail::gap<float>()), v = k;
            for (index_t head = 0; head < 2; ++head)
                for (index_t j = std::max<index_t>(0, keys - (window + tokens - 1)); j < keys; ++j)
                    for (index_t d = 0; d < 19; ++d) {
                        auto const at = static_cast<std::size_t>((head * length + j % length) * 19 + d);
                        k[at]         = p.k.at(head, j, d);
                        v[at]         = p.v.at(head, j, d);
                    }
            detail::ring_view const ring_k{.data = k.data(), .shape = {2, keys, 19}, .length = length};
            detail::ring_view const ring_v{.data = v.data(), .shape = {2, keys, 19}, .length = length};
            auto const sees        = visible::exact_window(window);
            attention const wanted = evaluate(p.q.view(), p.out.view(), o, detail::whole(p, sees));
            detail::expect(r, detail::say("ring of", length, "window", window, "tokens", tokens, "keys", keys), policy,
                           s, wanted, p, o, pool(ring_k, ring_v, sees));
        }
    return r;
}

/// Keys in any order with key_positions, empty slots full of NaN among them, are the keys in order.
template <class Policy>
[[nodiscard]] report key_positions_equal_order(Policy const& policy, sweep const& s) {
    report r;
    random draws(s.seed, 402);
    for (index_t const tokens : {1, 20})
        for (visible::interval const sees :
             {visible::interval{}, visible::exact_window(31, 4), visible::interval{.window = 40, .before = 9}}) {
            auto p = make_problem(
                {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 90, .head_dim = 10, .seed = draws.bits()});
            std::vector<std::int32_t> order(130, -1);
            std::iota(order.begin(), order.begin() + 90, 0);
            for (index_t i = 129; i > 0; --i)
                std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(draws.below(i + 1))]);
            tensor<float> k({2, 130, 10}), v({2, 130, 10});
            for (index_t head = 0; head < 2; ++head)
                for (index_t j = 0; j < 130; ++j)
                    for (index_t d = 0; d < 10; ++d) {
                        std::int32_t const at = order[static_cast<std::size_t>(j)];
                        if (at < 0) continue;
                        k.at(head, j, d) = p.k.at(head, at, d);
                        v.at(head, j, d) = p.v.at(head, at, d);
                    }
            attend_options o = detail::at_end(p);
            std::vector<float> const slopes{0.1F, -0.2F, 0.05F, 1.0F};
            o.alibi_slopes         = slopes.data();
            attention const wanted = evaluate(p.q.view(), p.out.view(), o, detail::whole(p, sees));
            detail::expect(r, detail::say("window", sees.window, "tokens", tokens), policy, s, wanted, p, o,
                           pool(std::as_const(k).view(), std::as_const(v).view(), sees, {}, order.data()));
        }
    return r;
}

/// A codec known only by its decode is read, on either side and on both.
template <class Policy>
[[nodiscard]] report foreign_codecs_are_read(Policy const& policy, sweep const& s) {
    report r;
    for (index_t const tokens : {1, 40})
        for (index_t const head_dim : {1, 17, 64}) {
            auto p = make_problem(
                {.heads = 6, .kv_heads = 2, .tokens = tokens, .keys = 150, .head_dim = head_dim, .seed = s.seed});
            detail::packed_rows const k_rows(p.k), v_rows(p.v, 3);
            packed_view const k = k_rows.view(), v = v_rows.view();
            attend_options const o = detail::at_end(p);
            attention const wanted = evaluate(p.q.view(), p.out.view(), o, detail::whole(p));
            std::string const what = detail::say("head_dim", head_dim, "tokens", tokens);
            auto const sees        = visible::causal_prefix();
            detail::expect(r, "keys, " + what, policy, s, wanted, p, o, pool(k, p.v.view(), sees));
            detail::expect(r, "values, " + what, policy, s, wanted, p, o, pool(p.k.view(), v, sees));
            detail::expect(r, "both, " + what, policy, s, wanted, p, o, pool(k, v, sees));
        }
    return r;
}

/// One pool cut into several, of several storages, is one softmax over their union.
template <class Policy>
[[nodiscard]] report pools_join_in_one_softmax(Policy const& policy, sweep const& s) {
    report r;
    random draws(s.seed, 403);
    for (int i = 0; i < (s.brief ? 4 : 12); ++i)
        for (index_t const tokens : {1, 25}) {
            index_t const keys = 140;
            auto p             = make_problem(
                            {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 22, .seed = draws.bits()});
            detail::packed_rows const k_rows(p.k), v_rows(p.v);
            packed_view const k = k_rows.view(), v = v_rows.view();
            std::vector<std::int32_t> positions(static_cast<std::size_t>(keys));
            std::iota(positions.begin(), positions.end(), 0);
            attend_options const o = detail::at_end(p);
            attention const wanted = evaluate(p.q.view(), p.out.view(), o, detail::whole(p));
            index_t const a = draws.below(keys), b = draws.between(a, keys);
            std::string const what = detail::say("cut at", a, "and", b, "tokens", tokens);
            auto const sees        = visible::causal_prefix();
            auto const part        = [&](tensor<float> const& t, index_t first, index_t end) {
                return t.view().slice(first, end - first);
            };
            detail::expect(r, what, policy, s, wanted, p, o, pool(part(p.k, 0, a), part(p.v, 0, a), sees),
                           pool(part(p.k, a, b), part(p.v, a, b), sees, {}, positions.data() + a),
                           pool(part(p.k, b, keys), part(p.v, b, keys), sees, {}, positions.data() + b));

            // The first tokens raw, the window raw, and in between a codec, hidden where the others see.
            index_t const first = draws.between(1, 9), window = draws.between(1, 60);
            std::vector<std::int32_t> middle(positions);
            for (index_t j = 0; j < first; ++j) middle[static_cast<std::size_t>(j)] = -1;
            std::vector<float> hidden(static_cast<std::size_t>(keys), 0.0F);
            if (tokens == 1) { // one query: what its window shows is the same for the call
                for (index_t j = std::max<index_t>(0, keys - window); j < keys; ++j)
                    hidden[static_cast<std::size_t>(j)] = -std::numeric_limits<float>::infinity();
                detail::expect(r, what + " by rules", policy, s, wanted, p, o,
                               pool(p.k.view(), p.v.view(), visible::interval{.window = window, .before = first}),
                               pool(k, v, sees, hidden.data(), middle.data()),
                               pool(p.k.view(), p.v.view(), visible::exact_window(window)));
            }
        }
    return r;
}

} // namespace butterfly::testing
