// SPDX-License-Identifier: MIT
#include <butterfly/backend/simd.hpp>
#include <butterfly/backend/simd/exp2.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"
#include "support/on_threads.hpp"
#include "support/sweep.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace bf  = butterfly;
namespace vec = butterfly::backend::vec;
using bf::index_t;
using bf::backend::bf16_unit;
using isa = bf::isa::current;

namespace {

struct named_unit {
    vec::tile_unit const* unit;
    bool emulated;
};

/// The units this CPU can run.
std::vector<named_unit> units() {
    std::vector<named_unit> found{{&vec::fma_unit<isa>, false}, {&vec::emulated_unit, true}};
#if defined(__x86_64__)
    if (available(bf16_unit::dot)) found.push_back({&vec::dot_unit, false});
    if (available(bf16_unit::tile)) found.push_back({&vec::amx_unit, false});
#endif
    return found;
}

/// Memory as the tile class hands it over: aligned, with what was there before.
template <class T>
class aligned {
public:
    aligned(index_t count, T fill) : store_(static_cast<std::size_t>(count) + 64 / sizeof(T), fill) {
        void* at          = store_.data();
        std::size_t space = store_.size() * sizeof(T);
        data_             = static_cast<T*>(std::align(64, static_cast<std::size_t>(count) * sizeof(T), at, space));
    }
    aligned(aligned const&)            = delete;
    aligned& operator=(aligned const&) = delete;

    [[nodiscard]] T* data() noexcept { return data_; }

private:
    std::vector<T> store_;
    T* data_;
};

/// A tile of random operands, exact in bf16, for one unit.
struct operands {
    vec::tile_unit const& unit;
    index_t dk, dv;
    int first, end, rows;
    std::vector<bf::bfloat16> k, v; // [tile_slots][dk], [tile_slots][dv]; whole keys beyond [first, end) are NaN
    std::vector<float> q, w;        // [rows][dk], [rows][tile_slots], zero outside [first, end)
    aligned<std::uint32_t> keys, values, queries, weights;
    aligned<float> scores, out;
    std::vector<vec::fetch_queue::row> fetched;

    operands(vec::tile_unit const& u, index_t key_dim, index_t value_dim, int from, int to, int count, std::mt19937& g)
        : unit(u), dk(key_dim), dv(value_dim), first(from), end(to), rows(count),
          keys(vec::operand_words(dk), 0x7fc07fc0U), values(vec::operand_words(dv), 0U),
          queries(bf::detail::round_up(dk, vec::operand_step) / u.pairs * u.strip, 0U),
          weights(bf::tile_slots * u.strip, 0U), scores(bf::tile_slots * u.strip, 0.0F),
          out(vec::column_rows(dv) * u.strip, 0.0F) {
        std::normal_distribution<float> normal;
        auto const draw = [&](auto& to_fill, index_t size) {
            to_fill.resize(static_cast<std::size_t>(size));
            for (auto& x : to_fill) x = bf::bfloat16(normal(g));
        };
        draw(k, bf::tile_slots * dk);
        draw(v, bf::tile_slots * dv);
        draw(q, rows * dk);
        draw(w, rows * bf::tile_slots);
        for (int r = 0; r < rows; ++r)
            for (int j = 0; j < bf::tile_slots; ++j)
                if (j < first || j >= end) w[at(r, j, bf::tile_slots)] = 0.0F;
        for (int j = 0; j < bf::tile_slots; ++j) {
            if (j >= first && j < end) continue;
            for (index_t d = 0; d < dk; ++d) k[at(j, d, dk)] = bf::bfloat16(NAN);
            for (index_t d = 0; d < dv; ++d) v[at(j, d, dv)] = bf::bfloat16(NAN);
        }
        pack();
    }

    static std::size_t at(index_t row, index_t column, index_t stride) {
        return static_cast<std::size_t>(row * stride + column);
    }

    void pack() {
        std::vector<std::byte const*> k_rows, v_rows;
        for (int j = 0; j < bf::tile_slots; ++j) {
            k_rows.push_back(reinterpret_cast<std::byte const*>(k.data() + j * dk));
            v_rows.push_back(reinterpret_cast<std::byte const*>(v.data() + j * dv));
        }
        if (unit.pack_keys != nullptr) {
            unit.pack_keys(k_rows.data(), first, end, dk, keys.data());
            unit.pack_values(v_rows.data(), first, end, dv, values.data());
        } else {
            for (int j = first; j < end; ++j) {
                for (index_t d = 0; d < dk; ++d) put(keys, j * vec::operand_stride(dk) + d, k[at(j, d, dk)]);
                for (index_t d = 0; d < dv; ++d) put(values, j * vec::operand_stride(dv) + d, v[at(j, d, dv)]);
            }
        }
        for (int r = 0; r < rows; ++r) {
            for (index_t d = 0; d < dk; ++d) put_operand(queries, d, r, q[at(r, d, dk)]);
            for (int j = 0; j < bf::tile_slots; ++j) put_operand(weights, j, r, w[at(r, j, bf::tile_slots)]);
        }
    }

    static void put(aligned<std::uint32_t>& to, index_t index, float x) {
        std::memcpy(to.data() + index, &x, sizeof x);
    }

    /// B[k][r] of the unit.
    void put_operand(aligned<std::uint32_t>& to, index_t k_index, int r, float x) {
        if (unit.pairs == 1) return put(to, k_index * unit.strip + r, x);
        std::uint32_t const bits = bf::bfloat16(x).bits;
        to.data()[k_index / 2 * unit.strip + r] |= k_index % 2 == 0 ? bits : bits << 16;
    }

    /// An assertion for each element would take most of the test's time.
    static void expect_close(float got, double wanted, double bound, char const* what, int row, index_t at) {
        if (std::abs(got - wanted) <= bound) return;
        CAPTURE(what, row, at, got, wanted, bound);
        FAIL("too far from the sum in double");
    }

    /// Rows for the products to fetch, most of them far from anything.
    [[nodiscard]] vec::fetch_queue some_rows() {
        auto const* const from = reinterpret_cast<std::byte const*>(k.data());
        fetched.clear();
        for (index_t i = 0; i < 256; ++i) fetched.push_back({from, (i % 3 - 1) * (index_t{1} << 40), 100});
        return {fetched.data(), fetched.data() + fetched.size(), 3};
    }

    void check_scores() {
        vec::fetch_queue ahead = some_rows();
        auto const* const row  = ahead.next;
        unit.score(keys.data(), unit.key_stride != nullptr ? unit.key_stride(dk) : 0, first, end, dk, queries.data(),
                   rows, ahead, scores.data());
        index_t const blocks = bf::detail::ceil_div(end - first, unit.high);
        REQUIRE(ahead.next - row >= 3 * blocks);
        REQUIRE(ahead.next - row <= 3 * (blocks + 1)); // they begin at a multiple
        for (int r = 0; r < rows; ++r) {
            for (int j = first; j < end; ++j) {
                double wanted = 0.0, size = 0.0;
                for (index_t d = 0; d < dk; ++d) {
                    double const product = static_cast<double>(q[at(r, d, dk)]) * static_cast<float>(k[at(j, d, dk)]);
                    wanted += product;
                    size += std::abs(product);
                }
                expect_close(scores.data()[j * unit.strip + r], wanted, 0x1p-22 * size, "score", r, j);
            }
        }
    }

    void check_values(std::mt19937& g) {
        std::uniform_real_distribution<float> some(-1.0F, 1.0F);
        aligned<float> factor(unit.strip, 0.5F);
        std::vector<float> before;
        for (index_t i = 0; i < vec::column_rows(dv) * unit.strip; ++i) before.push_back(some(g));
        enum class sums { added, scaled, fresh };
        for (sums const what : {sums::added, sums::scaled, sums::fresh}) {
            bool const scaled = what == sums::scaled, fresh = what == sums::fresh;
            vec::fetch_queue ahead = some_rows();
            std::copy(before.begin(), before.end(), out.data());
            if (fresh) std::fill_n(out.data(), before.size(), std::numeric_limits<float>::quiet_NaN()); // not read
            auto const* const row = ahead.next;
            unit.accumulate(values.data(), unit.value_stride != nullptr ? unit.value_stride(dv) : 0, first, end, dv,
                            weights.data(), rows, fresh, ahead, scaled || fresh ? factor.data() : nullptr, out.data());
            REQUIRE(ahead.next - row == 3 * bf::detail::ceil_div(dv, unit.high));
            for (int r = 0; r < rows; ++r) {
                for (index_t c = 0; c < dv; ++c) {
                    double const kept = fresh ? 0.0 : scaled ? 0.5 : 1.0;
                    double wanted     = static_cast<double>(before[at(c, r, unit.strip)]) * kept;
                    double size       = std::abs(wanted);
                    for (int j = first; j < end; ++j) {
                        double const product =
                            static_cast<double>(w[at(r, j, bf::tile_slots)]) * static_cast<float>(v[at(j, c, dv)]);
                        wanted += product;
                        size += std::abs(product);
                    }
                    expect_close(out.data()[c * unit.strip + r], wanted, 0x1p-22 * size,
                                 fresh    ? "column, fresh"
                                 : scaled ? "column, rescaled"
                                          : "column",
                                 r, c);
                }
            }
        }
    }
};

} // namespace

TEST_CASE("every unit multiplies tiles of every size and place", "[backend]") {
    std::uint32_t const seed = std::random_device{}() % 1000000;
    std::mt19937 g(seed);
    auto const pick = [&](int low, int high) { return std::uniform_int_distribution(low, high)(g); };
    for (named_unit const u : units())
        for (int round = 0; round < (u.emulated ? 8 : 30); ++round) {
            int const first = pick(0, 63), end = pick(first + 1, 64);
            operands o(*u.unit, pick(1, round % 2 == 0 ? 40 : 300), pick(1, round % 2 == 0 ? 40 : 300), first, end,
                       pick(1, u.unit->strip), g);
            CAPTURE(seed, u.unit->name, u.emulated, o.dk, o.dv, first, end, o.rows);
            if (u.unit->start != nullptr) u.unit->start();
            o.check_scores();
            o.check_values(g);
            if (u.unit->stop != nullptr) u.unit->stop();
        }
}

TEST_CASE("what is not finite reaches exactly the rows that see it, by every unit", "[backend]") {
    constexpr index_t tokens = 100, keys = 130, bad_column = 5;
    namespace testing = bf::testing;
    auto const clean  = testing::make_problem<float, bf::bfloat16>(
        {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 40});
    bf::attend_options const o{.q_position = keys - tokens};
    std::vector<std::int32_t> positions; // what a row sees is then no run of keys
    for (std::int32_t j = 0; j < keys; ++j) positions.push_back(j * 37 % keys);
    auto const check = [&](bf16_unit unit, bf::memory_ref placed, bool in_keys, index_t at, float bad) {
        CAPTURE(name_of(unit), static_cast<bool>(placed), in_keys, at, bad);
        bf::backend::simd<> const policy{.bf16 = unit};
        auto without = clean, with = clean;
        (in_keys ? with.k : with.v).at(1, at, bad_column) = bf::bfloat16(bad);
        auto const pool_of                                = [&](auto const& p) {
            return bf::pool(p.k.view(), p.v.view(), bf::visible::exact_window(30), {}, placed);
        };
        bf::attend(policy, without.q.view(), without.out.view(), o, pool_of(std::as_const(without)));
        bf::attend(policy, with.q.view(), with.out.view(), o, pool_of(std::as_const(with)));

        auto const pool     = pool_of(std::as_const(with));
        auto const bound    = bf::make_problem(testing::oracle{}, with.q.view(), with.out.view(), o, pool);
        bf::problem const p = bound.problem();
        REQUIRE(testing::compare(with.out.view(), testing::evaluate(p), testing::tolerance_of_bf16_units()));
        for (index_t h = 0; h < 4; ++h)
            for (index_t t = 0; t < tokens; ++t) {
                auto const got = with.out.view().row(h, t), other = without.out.view().row(h, t);
                bool holds = true;
                if (h < 2 || !testing::sees(p, p.pools[0], 0, o.q_position + t, at))
                    holds = std::equal(got.begin(), got.end(), other.begin());
                else if (!in_keys)
                    for (index_t d = 0; d < 40; ++d)
                        holds &= std::isfinite(got[static_cast<std::size_t>(d)]) == (d != bad_column);
                else if (std::isnan(bad))
                    holds = std::all_of(got.begin(), got.end(), [](float x) { return std::isnan(x); });
                CAPTURE(h, t);
                REQUIRE(holds);
            }
    };
    float const infinity = std::numeric_limits<float>::infinity();
    for (bf16_unit const unit : {bf16_unit::fma, bf16_unit::dot, bf16_unit::tile, bf16_unit::emulated}) {
        if (!available(unit)) continue;
        for (bool const in_keys : {true, false})
            for (index_t const at : {0, 77, 129}) {
                if (test::short_sweep() && at != 77) continue;
                for (float const bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
                    check(unit, {}, in_keys, at, bad);
                    check(unit, positions.data(), in_keys, at, bad);
                }
            }
    }
}

TEST_CASE("NaN that all rows of a strip see outlives spans", "[backend]") {
    namespace testing        = bf::testing;
    constexpr index_t tokens = 3, heads = 64, dim = 40; // 192 rows of one kv head
    auto const check = [&]<class T>(T, bf16_unit unit, index_t keys, int threads, int where) {
        auto p = testing::make_problem<float, T>(
            {.heads = heads, .kv_heads = 1, .tokens = tokens, .keys = keys, .head_dim = dim});
        if (where == 0) p.k.at(0, keys - tokens, 3) = T(NAN); // the last span's only tile
        if (where == 1)
            for (index_t j = 0; j < keys; ++j) p.k.at(0, j, 3) = T(NAN);
        if (where == 2)
            for (index_t h = 0; h < heads; ++h)
                for (index_t t = 0; t < tokens; ++t) p.q.at(h, t, 3) = NAN;
        CAPTURE(sizeof(T), name_of(unit), keys, threads, where);
        bf::attend_options const o{.q_position = keys - tokens, .lse = p.lse.data()};
        for (index_t h = 0; h < heads; ++h)
            for (index_t t = 0; t < tokens; ++t) std::ranges::fill(p.out.view().row(h, t), 0.0F); // NaN until written
        std::ranges::fill(p.lse, 0.0F);
        bf::meeting barrier;
        testing::on_threads(threads, [&](int thread) {
            bf::share const part{.thread = thread, .threads = threads, .barrier = barrier};
            bf::backend::simd<> const policy{.executor = part, .bf16 = unit};
            bf::attend(policy, std::as_const(p.q).view(), p.out.view(), o,
                       bf::pool(std::as_const(p.k).view(), std::as_const(p.v).view(), bf::visible::causal_prefix()));
        });
        index_t numbers = 0;
        for (index_t h = 0; h < heads; ++h)
            for (index_t t = 0; t < tokens; ++t)
                for (float const x : p.out.view().row(h, t)) numbers += std::isnan(x) ? 0 : 1;
        REQUIRE(numbers == 0);
        REQUIRE(std::all_of(p.lse.begin(), p.lse.end(), [](float x) { return std::isnan(x); }));
    };
    for (index_t const keys : {200, test::shortest_sweep() ? 4200 : 8200}) // two or three spans, which threads share
        for (int const threads : {1, 3})
            for (int where = 0; where < 3; ++where) {
                check(float{}, bf16_unit::fma, keys, threads, where);
                for (bf16_unit const unit : {bf16_unit::fma, bf16_unit::dot, bf16_unit::tile, bf16_unit::emulated})
                    if (available(unit)) check(bf::bfloat16{}, unit, keys, threads, where);
            }
}

TEST_CASE("a unit says what it is", "[backend]") {
    for (named_unit const u : units()) {
        CAPTURE(u.unit->name);
        REQUIRE(bf::tile_slots % u.unit->high == 0);
        REQUIRE(vec::operand_step % u.unit->high == 0);
        REQUIRE(u.unit->strip % vec::lanes<isa> == 0);
        REQUIRE(u.unit->rows % u.unit->strip == 0);
        REQUIRE(bf::tile_slots % u.unit->key_step == 0);
        REQUIRE((u.unit->pack_keys == nullptr) == (u.unit->pairs == 1));
    }
    bf::backend::simd<> const cpu{.bf16 = bf16_unit::emulated};
    auto const bound = bind_codec(cpu, bf::quant::raw<bf::bfloat16>{});
    REQUIRE(static_cast<vec::simd_codec_ops const*>(bound.ops)->tile == &vec::emulated_unit);
    auto const plain = bind_codec(bf::backend::simd<>{.bf16 = bf16_unit::fma}, bf::quant::raw<bf::bfloat16>{});
    REQUIRE(static_cast<vec::simd_codec_ops const*>(plain.ops)->tile == nullptr);
}

TEST_CASE("two to a power, of logits in base 2", "[backend]") {
    using batch            = vec::f32<isa>;
    constexpr int lanes    = vec::lanes<isa>;
    float const infinity   = std::numeric_limits<float>::infinity();
    auto const both_powers = [&](float x) {
        float five[16], three[16];
        vec::exp2<5>(batch(x)).store_unaligned(five);
        vec::exp2<3>(batch(x)).store_unaligned(three);
        for (int i = 1; i < lanes; ++i) REQUIRE((five[i] == five[0] || std::isnan(x)));
        return std::pair(five[0], three[0]);
    };
    for (int i = 0; i < 40000; ++i) {
        float const x            = -120.0F + static_cast<float>(i) * 0.0033F;
        double const wanted      = std::exp2(static_cast<double>(x));
        auto const [five, three] = both_powers(x);
        CAPTURE(x);
        REQUIRE(std::abs(five / wanted - 1.0) < 2.5e-7);
        REQUIRE(std::abs(three / wanted - 1.0) < 9e-5);
    }
    REQUIRE(both_powers(0.0F) == std::pair(1.0F, 1.0F));
    REQUIRE(both_powers(-infinity) == std::pair(0.0F, 0.0F));
    REQUIRE(both_powers(-1e30F) == std::pair(0.0F, 0.0F));
    REQUIRE(both_powers(-160.0F) == std::pair(0.0F, 0.0F));
    REQUIRE(std::isnan(both_powers(NAN).first));
    REQUIRE(std::isnan(both_powers(NAN).second));
}

TEST_CASE("pairs of weights are rounded to the nearest bf16", "[backend]") {
    using batch        = vec::f32<isa>;
    auto const rounded = [](float low, float high) {
        std::uint32_t pair[16];
        vec::bf16_pair(batch(low), batch(high)).store_unaligned(pair);
        return std::pair(bf::detail::from_bfloat16_bits(static_cast<std::uint16_t>(pair[0] & 0xffffU)),
                         bf::detail::from_bfloat16_bits(static_cast<std::uint16_t>(pair[0] >> 16)));
    };
    std::mt19937 g(5);
    std::uniform_real_distribution<float> some(0.0F, 256.0F);
    for (int i = 0; i < 2000; ++i) {
        float const a = some(g), b = std::exp2(-some(g) / 4);
        auto const [low, high] = rounded(a, b);
        CAPTURE(a, b);
        REQUIRE(std::abs(low - a) <= 0x1p-8F * a);
        REQUIRE(std::abs(high - b) <= 0x1p-8F * b);
    }
    REQUIRE(rounded(0.0F, 1.0F) == std::pair(0.0F, 1.0F));
    REQUIRE(std::isnan(rounded(NAN, 1.0F).first));
    REQUIRE(std::isnan(rounded(1.0F, -NAN).second));
    REQUIRE(std::isnan(rounded(1.0F, std::bit_cast<float>(0x7fffffffU)).second));
    REQUIRE(rounded(NAN, 1.0F).second == 1.0F);
}

TEST_CASE("words are transposed, whole blocks and tails", "[backend]") {
    for (index_t const rows : {1, 5, 16, 17, 48})
        for (index_t const columns : {1, 7, 16, 33, 64}) {
            CAPTURE(rows, columns);
            std::vector<float> in(static_cast<std::size_t>(rows * (columns + 3)));
            std::vector<float> out(static_cast<std::size_t>(columns * (rows + 5)), -1.0F);
            for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
            vec::transpose(in.data(), columns + 3, rows, columns, out.data(), rows + 5);
            for (index_t c = 0; c < columns; ++c)
                for (index_t r = 0; r < rows + 5; ++r)
                    REQUIRE(out[static_cast<std::size_t>(c * (rows + 5) + r)] ==
                            (r < rows ? static_cast<float>(r * (columns + 3) + c) : -1.0F));
        }
}
