// SPDX-License-Identifier: MIT

// Packed rows in the SIMD kernels: decoded to the bit, scored and summed from their codes within what the kernels say
// they round (backend/simd/codec/packed.hpp).

#include <butterfly/backend/scalar.hpp>
#include <butterfly/backend/simd.hpp>
#include <butterfly/quant/affine.hpp>
#include <butterfly/quant/ggml.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/quant/outliers.hpp>
#include <butterfly/quant/trellis.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"
#include "support/packed_rows.hpp"
#include "support/sweep.hpp"

#include <algorithm>
#include <cmath>
#include <random>

namespace bf      = butterfly;
namespace quant   = butterfly::quant;
namespace testing = butterfly::testing;
using bf::index_t;

namespace packed_attention { // names of its own, for builds that compile several of these files as one
namespace {

/// Rows of a tensor packed by a codec, each head's rows at odd distances.
template <quant::row_codec Codec>
struct packed {
    Codec codec;
    bf::heads_shape shape;
    std::vector<std::byte> bytes;
    std::vector<float> mean;

    packed(Codec const& c, testing::tensor<float> const& t, bool centred = false)
        : codec(c), shape(t.shape()), bytes(static_cast<std::size_t>(shape.heads * shape.tokens * stride() - 2)) {
        if (centred)
            for (index_t i = 0; i < shape.heads * shape.head_dim; ++i)
                mean.push_back(0.25F * static_cast<float>(i % 7));
        for (index_t h = 0; h < shape.heads; ++h)
            for (index_t j = 0; j < shape.tokens; ++j)
                codec.encode(t.view().row(h, j).data(), shape.head_dim, row(h, j));
    }
    packed(packed const&) = delete;

    [[nodiscard]] float mean_of(index_t h, index_t d) const {
        return mean.empty() ? 0.0F : mean[static_cast<std::size_t>(h * shape.head_dim + d)];
    }
    [[nodiscard]] index_t stride() const { return codec.row_bytes(shape.head_dim) + 3; }
    [[nodiscard]] std::byte* row(index_t h, index_t j) { return bytes.data() + 1 + (h * shape.tokens + j) * stride(); }
    [[nodiscard]] bf::packed_view<Codec> view() const {
        bf::packed_view<Codec> v{bytes.data() + 1, codec, shape};
        v.token_stride = stride();
        v.head_stride  = shape.tokens * stride();
        if (!mean.empty()) v.mean = mean.data();
        return v;
    }
};

/// Groups of 96 values on an even grid, which are no halves of a chunk: a codec of a user's.
class affine_96 {
public:
    affine_96() {
        format_.codes = quant::packing::bits4;
        format_.group = 96;
        format_.zeros = true;
        for (int c = 0; c < 16; ++c) format_.levels[static_cast<std::size_t>(c)] = static_cast<std::int8_t>(c - 8);
    }
    [[nodiscard]] quant::row_format const& format() const noexcept { return format_; }
    [[nodiscard]] static std::string name() { return "affine_96"; }
    [[nodiscard]] index_t row_bytes(index_t n) const noexcept { return format_.row_bytes(n); }
    void decode(std::byte const* row, index_t n, float* out) const noexcept {
        quant::detail::decode(format_, row, n, out);
    }
    void encode(float const* values, index_t n, std::byte* row) const noexcept {
        std::uint8_t codes[quant::longest_row];
        for (index_t first = 0, g = 0; first < n; first += 96, ++g) {
            auto const grid =
                quant::detail::grid_fit<4>::choose(values + first, std::min<index_t>(96, n - first), codes + first);
            quant::detail::store_half(grid.scale, row + 4 * g);
            quant::detail::store_half(grid.zero, row + 4 * g + 2);
        }
        quant::detail::store_codes(format_.codes, codes, n, row + format_.header_bytes(n));
    }

private:
    quant::row_format format_{};
};

/// What rows look like; those of a trellis but for their codes, which are multiplied as those of base 6 are.
template <class Codec>
quant::row_format format_of(Codec const& codec) {
    return codec.format();
}
template <int Bits>
quant::row_format format_of(quant::trellis<Bits> const& codec) {
    quant::row_format f;
    f.codes   = quant::packing::base6;
    f.rotated = true;
    f.seed    = codec.seed();
    return f;
}

template <class Codec>
concept of_ggml = requires {
    Codec::block_size;
};

/// Blocks of ggml likewise, but for their scales; q8_0 is multiplied by two bytes, as rows of 8 bits are.
template <of_ggml Codec>
quant::row_format format_of(Codec const&) {
    quant::row_format f;
    f.codes = std::same_as<Codec, quant::ggml_q8_0> ? quant::packing::bits8 : quant::packing::base6;
    f.group = 32;
    f.zeros = std::same_as<Codec, quant::ggml_q4_1>;
    return f;
}

/// What lifts value d of a row above what its codes say.
template <class Codec>
float lift_of(Codec const& codec, std::byte const* row, index_t d) {
    if constexpr (std::same_as<Codec, quant::ggml_q4_1>)
        return quant::detail::load_half<bf::float16>(row + d / 32 * 20 + 2) +
               8.0F * quant::detail::load_half<bf::float16>(row + d / 32 * 20); // codes are taken about zero
    else if constexpr (of_ggml<Codec>)
        return 0.0F;
    else {
        quant::row_format const f = format_of(codec);
        auto const s              = quant::detail::load_group(f, row, f.group == 0 ? 0 : d / f.group);
        return s.scale * s.zero;
    }
}

/// Queries as the kernel takes them: in the basis of the rows, rounded to 1/254 of the largest channel, or 1/32512
/// where that is large beside the others.
template <class Codec>
testing::tensor<float> rounded(testing::tensor<float> const& q, Codec const& codec) {
    testing::tensor<float> out(q.shape());
    quant::row_format const f = format_of(codec);
    index_t const n           = q.shape().head_dim;
    for (index_t h = 0; h < q.shape().heads; ++h)
        for (index_t t = 0; t < q.shape().tokens; ++t) {
            std::vector<float> x;
            double roots = 0.0;
            for (index_t d = 0; d < n; ++d) {
                x.push_back(q.at(h, t, d));
                roots += std::sqrt(std::abs(x.back())) / static_cast<double>(n);
            }
            if (f.rotated) quant::rotation{f.seed}.forward(x.data(), n);
            float top = 0.0F;
            for (float const v : x) top = std::max(top, std::abs(v));
            bool const fine  = f.codes == quant::packing::bits8 || top > 8.0 * roots * roots;
            float const unit = top / (fine ? 16256.0F : 127.0F);
            for (float& v : x) v = unit > 0.0F ? unit * std::trunc(v / unit + (v < 0.0F ? -0.5F : 0.5F)) : 0.0F;
            if (f.rotated) quant::rotation{f.seed}.inverse(x.data(), n);
            for (index_t d = 0; d < n; ++d) out.at(h, t, d) = x[static_cast<std::size_t>(d)];
        }
    return out;
}

/// Attention as the kernel takes it: a query meets levels of keys as bytes, what is the same in all values of a group
/// (zeros) and the mean as it is:  <q', k> + <q - q', zeros + mean>,  q' rounded: both as one product of twice the
/// length.
template <class Codec>
testing::attention taken_apart(testing::tensor<float> const& q,
                               packed<Codec>& k,
                               packed<Codec>& v,
                               bf::heads_view<float> out,
                               bf::attend_options const& o,
                               bf::visible::interval const& sees) {
    index_t const n = q.shape().head_dim;
    auto const at_n = [n](bf::heads_shape s) { return bf::heads_shape{s.heads, s.tokens, 2 * n}; };
    testing::tensor<float> queries(at_n(q.shape())), keys(at_n(k.shape)), values(v.shape);
    auto const whole = rounded(q, k.codec);
    for (index_t h = 0; h < q.shape().heads; ++h)
        for (index_t t = 0; t < q.shape().tokens; ++t)
            for (index_t d = 0; d < n; ++d) {
                queries.at(h, t, d)     = whole.at(h, t, d);
                queries.at(h, t, n + d) = q.at(h, t, d) - whole.at(h, t, d);
            }
    std::vector<float> row(static_cast<std::size_t>(n));
    for (index_t h = 0; h < k.shape.heads; ++h)
        for (index_t j = 0; j < k.shape.tokens; ++j) {
            k.codec.decode(k.row(h, j), n, row.data());
            for (index_t d = 0; d < n; ++d) {
                float const mean     = k.mean_of(h, d);
                keys.at(h, j, d)     = row[static_cast<std::size_t>(d)] + mean;
                keys.at(h, j, n + d) = lift_of(k.codec, k.row(h, j), d) + mean;
            }
            v.codec.decode(v.row(h, j), n, row.data());
            for (index_t d = 0; d < n; ++d) values.at(h, j, d) = row[static_cast<std::size_t>(d)] + v.mean_of(h, d);
        }
    return testing::evaluate(queries.view(), out, o, bf::pool(keys.view(), values.view(), sees));
}

/// Every row within `part` of the norm of its spread.
void require_near(testing::tensor<float> const& got, testing::attention const& wanted, double part) {
    bf::heads_shape const s = got.shape();
    for (index_t h = 0; h < s.heads; ++h)
        for (index_t t = 0; t < s.tokens; ++t) {
            double off = 0.0, spread = 0.0;
            for (index_t d = 0; d < s.head_dim; ++d) {
                double const x = got.at(h, t, d) - wanted.out[wanted.at(h, t, d)];
                off += x * x;
                spread += wanted.spread[wanted.at(h, t, d)] * wanted.spread[wanted.at(h, t, d)];
            }
            CAPTURE(h, t, std::sqrt(off / spread), part);
            REQUIRE(off <= part * part * spread);
        }
}

/// What sums of weights in one byte, or two, may be off by: twice what was seen, where weights go to 255 or to 127.
template <class Codec>
double sum_error(Codec const& codec) {
    return format_of(codec).codes == quant::packing::bits8 ? 4e-4 : 4.1 / test::weight_top;
}

template <class Codec>
void check_stream(Codec const& codec, index_t head_dim, std::uint64_t seed) {
    testing::random draws(seed, static_cast<std::uint64_t>(head_dim));
    for (index_t const group : {1, 3, 4, 7}) {
        index_t const tokens = draws.one_of({1, 2, 3}), keys = draws.between(1, 300);
        bool const centred = draws.below(2) == 0;
        CAPTURE(seed, head_dim, group, tokens, keys, centred);
        auto p            = testing::make_problem({.heads    = 2 * group,
                                                   .kv_heads = 2,
                                                   .tokens   = tokens,
                                                   .keys     = keys,
                                                   .head_dim = head_dim,
                                                   .seed     = draws.bits()});
        float const large = draws.one_of({0.0F, 3.0F, 300.0F}); // in all keys alike, and all channels
        CAPTURE(large);
        for (index_t i = 0; i < 2 * keys; ++i)
            for (index_t d = 0; d < head_dim; ++d) p.k.at(i / keys, i % keys, d) += large;
        packed<Codec> k(codec, p.k, centred), v(codec, p.v, centred);
        bf::attend_options o{.scale = p.scale, .q_position = std::max<index_t>(0, keys - tokens)};
        o.lse = p.lse.data();
        bf::visible::interval const sees =
            draws.below(2) == 0 ? bf::visible::causal_prefix() : bf::visible::exact_window(draws.between(1, keys));
        bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), o, bf::pool(k.view(), v.view(), sees));

        bool const codes  = test::from_codes(codec);
        auto const wanted = codes ? taken_apart(p.q, k, v, p.out.view(), o, sees)
                                  : testing::evaluate(p.q.view(), p.out.view(), o, bf::pool(k.view(), v.view(), sees));
        require_near(p.out, wanted, codes ? sum_error(codec) : 1e-5 + 1e-6 * large);
        testing::tolerance t = testing::tolerance_of(bf::element_type::f32);
        t.logit += 8.0; // of queries rounded twice: here, and there
        auto const lse = testing::compare_lse(p.lse, wanted, t);
        INFO(lse.text());
        REQUIRE(lse.ok);
    }
}

/// f(codec) for a codec of every packing, rotated, in groups, with zeros, that takes rows of n values.
template <class F>
void for_each_codec(index_t n, F const& f) {
    f(quant::int8{});
    f(quant::lloyd_max<4>(5));
    f(quant::lloyd_max<6>(5));
    f(quant::lloyd_max<8>(5));
    f(quant::lloyd_max<16>(5));
    f(quant::lloyd_max<32>(5));
    f(quant::affine<3, 32>{});
    f(quant::affine<4, 32>{});
    f(quant::affine<8, 32>{});
    f(quant::affine<4, 64>{});
    f(affine_96{});
    f(quant::trellis<2>(5));
    f(quant::trellis<4>(5));
    if (!test::shortest_sweep()) { // ways of the ones above
        f(quant::affine<2, 32>{});
        f(quant::affine<3, 64>{});
        f(quant::affine<8, 128>{});
        f(quant::trellis<3>(5));
    }
    if (n % 32 != 0) return;
    f(quant::ggml_q8_0{});
    f(quant::ggml_q4_0{});
    f(quant::ggml_q4_1{});
}

#if defined(__AVX2__) || defined(__aarch64__)
/// Levels of a stream by shifts, as CPUs without instructions for windows take them.
template <int Bits>
void check_windows(index_t n, std::uint64_t seed) {
    using isa   = bf::isa::current;
    using bytes = bf::backend::vec::byte_vectors<isa>;
    testing::random draws(seed, static_cast<std::uint64_t>(n));
    quant::trellis<Bits> const codec(5);
    auto const stream_bytes = static_cast<std::size_t>(n * Bits / 8), room = static_cast<std::size_t>(n + 64);
    std::vector<std::byte> const stream = [&] { // to its last byte: what reads past it is found by sanitizers
        std::vector<std::byte> all(stream_bytes);
        for (auto& b : all) b = static_cast<std::byte>(draws.below(256));
        return all;
    }();
    alignas(64) std::uint64_t words[quant::longest_row / 8];
    std::vector<std::int8_t> shifted(room);
    bf::backend::vec::windows::load_words<isa, Bits>(stream.data(), n, words);
    bf::backend::vec::windows::look_up<isa, bytes, Bits>(words, n, bytes::table_of_64(codec.levels().data()),
                                                         shifted.data());
    for (index_t i = 0; i < n; ++i) {
        CAPTURE(seed, Bits, n, i);
        auto const window = quant::detail::load_window<Bits>(stream.data(), n, i);
        REQUIRE(shifted[static_cast<std::size_t>(i)] == codec.levels()[window]);
    }
}
#endif

std::uint64_t fresh_seed() {
    static std::uint64_t const seed = std::random_device{}() % 1000000;
    return seed;
}

} // namespace

TEST_CASE("packed rows are decoded to the bit", "[backend]") {
    testing::random draws(fresh_seed(), 1);
    for (index_t const n : {16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 320, 576, 1024}) {
        if (test::short_sweep() && n > 128) continue;
        for_each_codec(n, [&](auto const& codec) {
            CAPTURE(fresh_seed(), codec.name(), n);
            index_t const count = draws.between(1, 64);
            testing::tensor<float> rows({1, count, n});
            testing::fill(rows, testing::random(draws.bits(), 2), testing::distribution::normal);
            packed<std::remove_cvref_t<decltype(codec)>> p(codec, rows);
            std::vector<std::byte const*> at;
            for (index_t j = 0; j < count; ++j) at.push_back(p.row(0, j));
            std::vector<float> got(static_cast<std::size_t>(count * (n + 1))), want(static_cast<std::size_t>(n));
            auto const bound = bind_codec(bf::backend::simd<>{}, codec);
            auto const* ops  = static_cast<bf::backend::on_host::codec_ops const*>(bound.ops);
            ops->decode(&codec, at.data(), static_cast<int>(count), n, got.data(), n + 1);
            for (index_t j = 0; j < count; ++j) {
                codec.decode(p.row(0, j), n, want.data());
                REQUIRE(std::equal(want.begin(), want.end(), got.begin() + j * (n + 1), [](float a, float b) {
                    return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
                }));
            }
        });
    }
}

#if defined(__AVX2__) || defined(__aarch64__)
TEST_CASE("groups are multiplied from codes where they are a half of a chunk or whole ones", "[backend]") {
    quant::row_format f;
    for (f.group = 0; f.group <= 1024; f.group += 16)
        REQUIRE(bf::backend::vec::packed::is_served(f) == (f.group % 64 == 0 || f.group == 32));
}

TEST_CASE("windows of a trellis are looked up by shifts", "[backend]") {
    for (index_t const n : {16, 32, 48, 64, 80, 128, 144, 256, 1008, 1024}) {
        check_windows<2>(n, fresh_seed());
        check_windows<3>(n, fresh_seed());
        check_windows<4>(n, fresh_seed());
    }
}
#endif

TEST_CASE("packed rows are attended as what they decode to, queries and weights rounded", "[backend]") {
    for (index_t const n : {16, 48, 64, 80, 128, 192, 256, 576}) {
        if (test::short_sweep() && n != 80 && n != 128) continue;
        if (test::shortest_sweep() && n != 80) continue;
        for_each_codec(n, [&](auto const& codec) {
            CAPTURE(codec.name());
            check_stream(codec, n, fresh_seed());
        });
    }
}

TEST_CASE("the tile class takes packed rows rounded to its unit", "[backend]") {
    for (auto const unit :
         {bf::backend::bf16_unit::fma, bf::backend::bf16_unit::best, bf::backend::bf16_unit::emulated})
        for (index_t const n : {64, 80, 128}) {
            if (test::shortest_sweep() && n != 80) continue;
            for_each_codec(n, [&](auto const& codec) {
                CAPTURE(codec.name(), n, name_of(unit));
                auto p = testing::make_problem(
                    {.heads = 4, .kv_heads = 2, .tokens = 40, .keys = 150, .head_dim = n, .seed = fresh_seed()});
                using type = std::remove_cvref_t<decltype(codec)>;
                packed<type> const k(codec, p.k, true), v(codec, p.v, true);
                bf::attend_options const o{.scale = p.scale, .q_position = 110};
                bf::pool const all(k.view(), v.view(), bf::visible::causal_prefix());
                bf::attend(bf::backend::simd<>{.bf16 = unit}, p.q.view(), p.out.view(), o, all);
                auto const wanted = testing::evaluate(p.q.view(), p.out.view(), o, all);
                bool const exact  = bf::backend::resolve(unit) == bf::backend::bf16_unit::fma;
                require_near(p.out, wanted, exact ? 1e-5 : 6e-2); // 2e-2 was seen: logits of rounded keys
            });
        }
}

TEST_CASE("a pool of bf16 keeps its unit beside a packed one", "[backend]") {
    auto p = testing::make_problem<float, bf::bfloat16>(
        {.heads = 4, .kv_heads = 2, .tokens = 40, .keys = 150, .head_dim = 64, .seed = 3});
    testing::tensor<float> rows({2, 70, 64});
    testing::fill(rows, testing::random(4, 2), testing::distribution::normal);
    quant::lloyd_max<16> const codec(9);
    packed<quant::lloyd_max<16>> const k(codec, rows), v(codec, rows);
    bf::attend_options const o{.scale = p.scale, .q_position = 110};
    bf::pool const raw(p.k.view(), p.v.view(), bf::visible::causal_prefix());
    bf::pool const codes(k.view(), v.view(), bf::visible::causal_prefix());
    bf::backend::simd<> const policy{.bf16 = bf::backend::bf16_unit::emulated};
    auto const bound = bf::make_problem(policy, p.q.view(), p.out.view(), o, raw, codes);
    REQUIRE(explain(policy, bound.problem()).find("amx") != std::string::npos);
    bf::attend(policy, p.q.view(), p.out.view(), o, raw, codes);
    require_near(p.out, testing::evaluate(p.q.view(), p.out.view(), o, raw, codes), 3e-2);

    // f32 beside it: all in f32.
    testing::tensor<float> const wide = rows;
    bf::pool const exact(wide.view(), wide.view(), bf::visible::causal_prefix());
    bf::attend(policy, p.q.view(), p.out.view(), o, exact, codes);
    require_near(p.out, testing::evaluate(p.q.view(), p.out.view(), o, exact, codes), 1e-5);
}

TEST_CASE("neither tokens beside a row nor threads change a bit of packed attention", "[backend]") {
    for_each_codec(32, [&](auto const& codec) {
        using type = std::remove_cvref_t<decltype(codec)>;
        CAPTURE(codec.name());
        index_t const keys = test::shortest_sweep() ? 4200 : 9000; // two spans, or three
        auto p             = testing::make_problem(
                        {.heads = 6, .kv_heads = 2, .tokens = 5, .keys = keys, .head_dim = 32, .seed = fresh_seed()});
        packed<type> const k(codec, p.k), v(codec, p.v);
        bf::pool const all(k.view(), v.view(), bf::visible::causal_prefix());
        test::require_same_bits(p, all);
    });
}

TEST_CASE("a packed row that is not finite reaches who sees it", "[backend]") {
    for_each_codec(64, [&](auto const& codec) {
        using type = std::remove_cvref_t<decltype(codec)>;
        for (index_t const tokens : {3, 40})
            for (bool const in_keys : {true, false}) {
                CAPTURE(codec.name(), tokens, in_keys);
                auto p = testing::make_problem(
                    {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 90, .head_dim = 64, .seed = 8});
                index_t const broken = 90 - tokens + 1; // the first token does not see it
                for (index_t d = 0; d < 64; ++d)
                    (in_keys ? p.k : p.v).at(0, broken, d) = std::numeric_limits<float>::infinity();
                packed<type> const k(codec, p.k), v(codec, p.v);
                bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), {.q_position = 90 - tokens},
                           bf::pool(k.view(), v.view(), bf::visible::causal_prefix()));
                for (index_t h = 0; h < 4; ++h)
                    for (index_t t = 0; t < tokens; ++t)
                        for (index_t d = 0; d < 64; ++d)
                            REQUIRE(std::isfinite(p.out.at(h, t, d)) == (h >= 2 || t == 0));
            }
    });
}

TEST_CASE("weights and scales of any size are summed", "[backend]") {
    for (float const size : {1e-37F, 1e-30F, 1e-3F, 1e18F, 1e30F})
        for_each_codec(64, [&](auto const& codec) {
            using type = std::remove_cvref_t<decltype(codec)>;
            CAPTURE(codec.name(), size);
            if (of_ggml<type> && size > 1e3F) return; // whose scales are float16
            auto p = testing::make_problem(
                {.heads = 4, .kv_heads = 2, .tokens = 1, .keys = 130, .head_dim = 64, .seed = 12});
            for (index_t h = 0; h < 2; ++h)
                for (index_t j = 0; j < 130; ++j)
                    for (index_t d = 0; d < 64; ++d) p.v.at(h, j, d) *= size;
            packed<type> const k(codec, p.k), v(codec, p.v);
            bf::attend_options const o{.scale = p.scale, .q_position = 129};
            bf::pool const all(k.view(), v.view(), bf::visible::causal_prefix());
            bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), o, all);
            require_near(p.out, testing::evaluate(p.q.view(), p.out.view(), o, all), 6e-2);
        });
}

TEST_CASE("channels that are large in queries and small in keys take nothing from the others", "[backend]") {
    for (float const spread : {20.0F, 100.0F})
        for (index_t const n : {64, 128, 176})
            for_each_codec(n, [&](auto const& codec) {
                if (test::shortest_sweep() && n != 64) return;
                using type = std::remove_cvref_t<decltype(codec)>;
                CAPTURE(codec.name(), n, spread);
                auto p = testing::make_problem(
                    {.heads = 4, .kv_heads = 2, .tokens = 2, .keys = 300, .head_dim = n, .seed = fresh_seed()});
                for (index_t const d : {index_t{5}, n - 3}) {
                    for (index_t h = 0; h < 4; ++h) p.q.at(h, 0, d) *= spread; // the other token's are as they were
                    for (index_t h = 0; h < 2; ++h)
                        for (index_t j = 0; j < 300; ++j) p.k.at(h, j, d) /= spread;
                }
                packed<type> const k(codec, p.k), v(codec, p.v);
                bf::attend_options const o{.scale = p.scale, .q_position = 298};
                bf::pool const all(k.view(), v.view(), bf::visible::causal_prefix());
                bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), o, all);
                require_near(p.out, testing::evaluate(p.q.view(), p.out.view(), o, all), 0.08);
                test::require_same_bits(p, all);
            });
}

TEST_CASE("keys of any size meet queries of its inverse", "[backend]") {
    for (float const size : {1e-30F, 1e18F, 1e33F})
        for_each_codec(64, [&](auto const& codec) {
            using type = std::remove_cvref_t<decltype(codec)>;
            CAPTURE(codec.name(), size);
            if (of_ggml<type>) return; // whose scales are float16
            auto p = testing::make_problem(
                {.heads = 4, .kv_heads = 2, .tokens = 1, .keys = 130, .head_dim = 64, .seed = 12});
            for (index_t d = 0; d < 64; ++d) {
                for (index_t h = 0; h < 2; ++h)
                    for (index_t j = 0; j < 130; ++j) p.k.at(h, j, d) *= size;
                for (index_t h = 0; h < 4; ++h) p.q.at(h, 0, d) /= size;
            }
            packed<type> const k(codec, p.k), v(codec, p.v);
            bf::attend_options const o{.scale = p.scale, .q_position = 129};
            bf::pool const all(k.view(), v.view(), bf::visible::causal_prefix());
            bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), o, all);
            require_near(p.out, testing::evaluate(p.q.view(), p.out.view(), o, all), 6e-2);
        });
}

TEST_CASE("many light keys beside a heavy one keep their share", "[backend]") {
    for (double const ratio : {300.0, 520.0, 700.0, 1100.0})
        for_each_codec(64, [&](auto const& codec) {
            using type = std::remove_cvref_t<decltype(codec)>;
            CAPTURE(codec.name(), ratio);
            auto p =
                testing::make_problem({.heads = 6, .kv_heads = 2, .tokens = 1, .keys = 64, .head_dim = 64, .seed = 13});
            for (index_t h = 0; h < 2; ++h)
                for (index_t j = 0; j < 64; ++j)
                    for (index_t d = 0; d < 64; ++d) {
                        p.k.at(h, j, d) = j == 5 ? 1.0F : 0.0F;
                        p.v.at(h, j, d) = 1.0F;
                    }
            for (index_t h = 0; h < 6; ++h) // heads 0 and 3 see all keys alike, the others the sixth by this ratio
                for (index_t d = 0; d < 64; ++d)
                    p.q.at(h, 0, d) = h % 3 == 0 ? 0.0F : static_cast<float>(std::log(ratio) / 64.0);
            packed<type> const k(codec, p.k), v(codec, p.v);
            bf::attend_options const o{.scale = 1.0F, .q_position = 63};
            bf::pool const all(k.view(), v.view(), bf::visible::causal_prefix());
            bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), o, all);
            auto const q = test::from_codes(codec) ? rounded(p.q, codec) : p.q;
            require_near(p.out, testing::evaluate(q.view(), p.out.view(), o, all), 1.5e-2);
        });
}

TEST_CASE("a weight is off by its rounding, whichever values follow it", "[backend]") {
    // Beside a key of weight 1, 32 weights just above half a unit, of values +u, and 31 just below, of values -u.
    for_each_codec(64, [&](auto const& codec) {
        using type = std::remove_cvref_t<decltype(codec)>;
        CAPTURE(codec.name());
        auto p =
            testing::make_problem({.heads = 2, .kv_heads = 2, .tokens = 1, .keys = 64, .head_dim = 64, .seed = 17});
        for (index_t h = 0; h < 2; ++h)
            for (index_t d = 0; d < 64; ++d) {
                p.q.at(h, 0, d) = 1.0F / 64.0F;
                for (index_t j = 0; j < 64; ++j) {
                    double const weight = j == 0 ? 1.0 : (j <= 32 ? 0.53 : 0.47) / test::weight_top;
                    p.k.at(h, j, d)     = static_cast<float>(std::log(weight));
                    p.v.at(h, j, d)     = j <= 32 ? 1.0F : -1.0F;
                }
            }
        packed<type> const v(codec, p.v);
        bf::attend_options const o{.scale = 1.0F, .q_position = 63};
        bf::pool const all(p.k.view(), v.view(), bf::visible::causal_prefix());
        bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), o, all);
        auto const exact = testing::evaluate(p.q.view(), p.out.view(), o, all);
        double const top = format_of(codec).codes == quant::packing::bits8 ? 16383.0 : test::weight_top;
        for (index_t h = 0; h < 2; ++h) {
            double off = 0.0;
            for (index_t d = 0; d < 64; ++d) off += std::pow(p.out.at(h, 0, d) - exact.out[exact.at(h, 0, d)], 2.0);
            REQUIRE(std::sqrt(off / 64.0) <= 64.0 / (2.0 * top));
            if (test::from_codes(codec) && top == test::weight_top && !format_of(codec).zeros) // so much is reached
                REQUIRE(std::sqrt(off / 64.0) >= 0.6 * 64.0 / (2.0 * top));
        }
    });
}

TEST_CASE("a query that is not finite reaches its own rows", "[backend]") {
    for (float const bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()})
        for_each_codec(64, [&](auto const& codec) {
            using type = std::remove_cvref_t<decltype(codec)>;
            for (index_t const tokens : {1, 40}) {
                CAPTURE(codec.name(), bad, tokens);
                auto p = testing::make_problem(
                    {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 90, .head_dim = 64, .seed = 14});
                p.q.at(1, 0, 3) = bad;
                packed<type> const k(codec, p.k), v(codec, p.v);
                bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), {.q_position = 90 - tokens},
                           bf::pool(k.view(), v.view(), bf::visible::causal_prefix()));
                for (index_t h = 0; h < 4; ++h)
                    for (index_t t = 0; t < tokens; ++t)
                        for (index_t d = 0; d < 64; ++d)
                            REQUIRE(std::isfinite(p.out.at(h, t, d)) == (h != 1 || t != 0));
            }
        });
}

TEST_CASE("the longest rows are attended as what they decode to", "[backend]") {
    for (index_t const tokens : {1, 40})
        for_each_codec(1024, [&](auto const& codec) {
            CAPTURE(tokens, codec.name());
            auto p = testing::make_problem(
                {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 70, .head_dim = 1024, .seed = 16});
            using type = std::remove_cvref_t<decltype(codec)>;
            packed<type> const k(codec, p.k), v(codec, p.v);
            bf::attend_options const o{.scale = p.scale, .q_position = 70 - tokens};
            bf::pool const all(k.view(), v.view(), bf::visible::causal_prefix());
            bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), o, all);
            require_near(p.out, testing::evaluate(p.q.view(), p.out.view(), o, all), 4e-2); // of queries too
        });
}

TEST_CASE("rows of every packing are multiplied from codes where bytes can be", "[backend]") {
    bool const has_dot = []<class Bytes>(std::type_identity<Bytes>) {
        if constexpr (std::is_void_v<Bytes>)
            return false;
        else
            return Bytes::has_dot();
    }(std::type_identity<bf::backend::vec::byte_vectors<bf::isa::current>>{});
    for_each_codec(64, [&](auto const& codec) {
        CAPTURE(codec.name());
        REQUIRE(test::from_codes(codec) == (has_dot && !std::same_as<std::remove_cvref_t<decltype(codec)>, affine_96>));
    });
}

TEST_CASE("explain names every way that rows are read", "[backend]") {
    auto p = testing::make_problem({.heads = 4, .kv_heads = 2, .tokens = 1, .keys = 70, .head_dim = 64, .seed = 18});
    quant::int8 const codec;
    quant::outliers<quant::affine<2, 64>, 4> const apart;
    packed<quant::int8> const k(codec, p.k);
    packed<quant::outliers<quant::affine<2, 64>, 4>> const v(apart, p.v);
    bf::backend::simd<> const policy{};
    auto const text_of = [&](auto const& pool) {
        auto const bound = bf::make_problem(policy, p.q.view(), p.out.view(), {}, pool);
        return explain(policy, bound.problem());
    };
    std::string const decoded = "f32 of decoded rows";
    std::string const text    = text_of(bf::pool(k.view(), v.view(), bf::visible::causal_prefix()));
    REQUIRE(text.find(decoded) != std::string::npos);
    REQUIRE((text.find("int8 dot") != std::string::npos) == test::from_codes(codec));
    REQUIRE(text_of(bf::pool(p.k.view(), p.v.view(), bf::visible::causal_prefix())).find(decoded) == std::string::npos);
}

template <class Codec>
void check_negative_scales(Codec const& codec) {
    CAPTURE(codec.name());
    auto p = testing::make_problem({.heads = 4, .kv_heads = 2, .tokens = 1, .keys = 90, .head_dim = 64, .seed = 19});
    packed<Codec> k(codec, p.k), v(codec, p.v);
    index_t const block = codec.row_bytes(32);
    for (index_t h = 0; h < 2; ++h)
        for (index_t j = 0; j < 90; ++j)
            for (auto* of : {&k, &v}) of->row(h, j)[j % 2 * block + 1] ^= std::byte{0x80};
    bf::attend_options const o{.scale = p.scale, .q_position = 89};
    bf::pool const all(k.view(), v.view(), bf::visible::causal_prefix());
    bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), o, all);
    require_near(p.out, testing::evaluate(p.q.view(), p.out.view(), o, all), 3e-2);
}

TEST_CASE("blocks of ggml are attended with scales of either sign", "[backend]") {
    check_negative_scales(quant::ggml_q8_0{});
    check_negative_scales(quant::ggml_q4_0{});
    check_negative_scales(quant::ggml_q4_1{});
}

TEST_CASE("a negative scale makes sums NaN where codes are summed", "[backend]") {
    quant::int8 const codec;
    if (!test::from_codes(codec)) return;
    auto p = testing::make_problem({.heads = 4, .kv_heads = 2, .tokens = 1, .keys = 90, .head_dim = 64, .seed = 15});
    packed<quant::int8> const k(codec, p.k);
    packed<quant::int8> v(codec, p.v);
    v.row(0, 7)[1] |= std::byte{0x80}; // the sign of its scale
    bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), {.q_position = 89},
               bf::pool(k.view(), v.view(), bf::visible::causal_prefix()));
    for (index_t h = 0; h < 4; ++h)
        for (index_t d = 0; d < 64; ++d) REQUIRE(std::isnan(p.out.at(h, 0, d)) == (h < 2));
}

} // namespace packed_attention
