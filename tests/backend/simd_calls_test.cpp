// SPDX-License-Identifier: MIT
#include <butterfly/backend/scalar.hpp>
#include <butterfly/backend/simd.hpp>
#include <butterfly/graph/graph.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/sdpa/graph_rows.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/testing/problem.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/cycle.hpp>
#include <butterfly/topology/row.hpp>
#include <butterfly/topology/window.hpp>

#include "support/catch.hpp"
#include "support/on_threads.hpp"
#include "support/sweep.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

namespace bf = butterfly;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

bf::problem dense_problem(bf::pool_ref const& pool, bf::index_t heads, bf::index_t tokens, bf::index_t position) {
    bf::problem p;
    p.q.shape            = {heads, tokens, 64};
    p.out.shape          = p.q.shape;
    p.kv_heads           = 1;
    p.options.scale      = 1.0F;
    p.options.q_position = position;
    p.pools              = &pool;
    p.pool_count         = 1;
    return p;
}

bf::pool_ref dense_pool(bf::visible::interval const& sees, bf::index_t slots) {
    bf::pool_ref pool;
    pool.keys.shape   = {1, slots, 64};
    pool.values.shape = pool.keys.shape;
    pool.visibility   = bf::erase(sees);
    pool.slots        = slots;
    return pool;
}

} // namespace

// A value that is not finite, behind a mask that hides it from some rows only: 0 * inf must not reach those.
TEMPLATE_TEST_CASE("a mask of its own for each row keeps a value from the rows it hides it from",
                   "[backend]",
                   bf::backend::scalar,
                   bf::backend::simd<>) {
    auto const tokens     = GENERATE(1, 2, 5, 40); // both kernel classes
    auto const mask_heads = GENERATE(1, 4);
    auto const causal     = GENERATE(false, true);
    CAPTURE(tokens, mask_heads, causal);
    bf::index_t const keys = 70, heads = 4, bad = 2;
    auto data = bf::testing::make_problem<float, float, float>(
        {.heads = heads, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 24, .seed = 5});
    auto const v = data.v.view();
    for (bf::index_t h = 0; h < 2; ++h) v.row(h, bad)[3] = inf;

    std::vector<float> mask(static_cast<std::size_t>(mask_heads * tokens * keys), 0.0F);
    auto const hidden = [&](bf::index_t head, bf::index_t token) { return (head % mask_heads + token) % 2 == 0; };
    for (bf::index_t h = 0; h < mask_heads; ++h)
        for (bf::index_t t = 0; t < tokens; ++t)
            if (hidden(h, t)) mask[static_cast<std::size_t>((h * tokens + t) * keys + bad)] = -inf;

    bf::dense_sdpa(
        TestType{}, data.q.view(), data.k.view(), data.v.view(), data.out.view(),
        {.causal     = causal,
         .q_position = keys - tokens,
         .mask       = {.data = mask.data(), .heads = mask_heads, .head_stride = tokens * keys, .token_stride = keys}});
    for (bf::index_t h = 0; h < heads; ++h)
        for (bf::index_t t = 0; t < tokens; ++t) {
            CAPTURE(h, t);
            REQUIRE(std::isfinite(data.out.view().row(h, t)[3]) == hidden(h, t));
        }
}

// A weight that underflows to 0 beside a value that is not finite: NaN in every row that sees it, whoever stands
// beside.
TEMPLATE_TEST_CASE("a value that is not finite is felt whatever its weight, and however the call is cut",
                   "[backend]",
                   bf::backend::scalar,
                   bf::backend::simd<>) {
    bf::index_t const all = 96, bad = 64;
    auto data           = bf::testing::make_problem({.heads = 1, .tokens = all, .head_dim = 8, .seed = 9});
    auto const dominate = [&](bf::index_t token, float size) {
        for (float& x : data.q.view().row(0, token)) x = size;
    };
    for (bf::index_t t = 0; t < all; ++t) dominate(t, 30.0F);
    dominate(95, 0.01F); // this one's weights do not underflow
    for (bf::index_t j = 0; j < all; ++j)
        for (float& x : data.k.view().row(0, j)) x = j == 0 ? 30.0F : 0.5F;
    data.v.view().row(0, bad)[3] = std::numeric_limits<float>::quiet_NaN();
    for (bf::index_t const first : {0, 20, 48, 60, 72, 90, 95}) // both kernel classes
        for (bf::index_t const end : {96, 95}) {
            if (end <= first) continue;
            auto out = data.out;
            bf::dense_sdpa(TestType{}, data.q.view().slice(first, end - first), data.k.view().slice(0, end),
                           data.v.view().slice(0, end), out.view().slice(first, end - first), {.q_position = first});
            for (bf::index_t t = first; t < end; ++t) {
                CAPTURE(first, end, t);
                REQUIRE(std::isnan(out.at(0, t, 3)) == (t >= bad));
                REQUIRE(std::isfinite(out.at(0, t, 2)));
            }
        }
}

TEMPLATE_TEST_CASE("a problem runs where it was bound", "[backend]", bf::backend::scalar, bf::backend::simd<>) {
    using other =
        std::conditional_t<std::is_same_v<TestType, bf::backend::scalar>, bf::backend::simd<>, bf::backend::scalar>;
    auto data           = bf::testing::make_problem({.heads = 2, .tokens = 3, .head_dim = 8});
    auto const keys     = bf::pool(data.k.view(), data.v.view(), bf::visible::causal_prefix());
    auto const bound    = bf::make_problem(other{}, data.q.view(), data.out.view(), {}, keys);
    bf::problem const p = bound.problem();
    REQUIRE(supports(other{}, p));
    REQUIRE(supports(TestType{}, p).reason.find("pool 0 was bound for ") == 0);
    REQUIRE_THROWS_AS(bf::attend(TestType{}, std::span<bf::problem const>(&p, 1)), bf::backend_error);
}

namespace {

/// A policy of another kind of memory: what it calls for a codec is no codec_ops.
struct elsewhere {
    [[nodiscard]] static std::string name() { return "elsewhere"; }
    [[nodiscard]] static bool available() noexcept { return true; }
};

template <bf::quant::decoder Codec>
[[nodiscard]] bf::bound_codec bind_codec(elsewhere const&, Codec const&) noexcept {
    static std::byte const small{};
    return {&small, "elsewhere"};
}

thread_local std::atomic<bf::index_t>* rows_decoded = nullptr; // by this thread

/// f32 rows; counts those that are decoded.
struct counting {
    [[nodiscard]] bf::index_t row_bytes(bf::index_t head_dim) const noexcept { return 4 * head_dim; }
    void decode(std::byte const* row, bf::index_t head_dim, float* out) const noexcept {
        std::memcpy(out, row, static_cast<std::size_t>(4 * head_dim));
        if (rows_decoded != nullptr) ++*rows_decoded;
    }
};

/// One sequence of a call: `tokens` queries at the end of `keys` keys, in a cache with room for so many.
struct sequence {
    bf::index_t tokens, keys, room = keys;
};

/// A barrier that counts how often one is waited for.
struct counting_meeting {
    bf::meeting all{};
    std::atomic<int> waits{0};

    operator bf::barrier_ref() noexcept {
        bf::barrier_ref barrier = all;
        barrier.context         = this;
        barrier.wait            = [](void* self, int threads) noexcept {
            auto* const me = static_cast<counting_meeting*>(self);
            ++me->waits;
            me->all.wait(threads);
        };
        return barrier;
    }
};

/// How one call was dealt to the threads of a share.
struct dealt {
    double busiest; // rows the busiest thread decodes, over the mean
    int waits;      // of one thread
};

dealt deal(int threads, std::vector<sequence> const& of, bf::index_t group = 1) {
    bf::index_t keys = 0, tokens = 0;
    for (sequence const& s : of) {
        keys = std::max(keys, s.room);
        tokens += s.tokens;
    }
    bf::heads_buffer<float> const k({2, keys, 8}), q({2 * group, tokens, 8});
    bf::heads_buffer<float> out({2 * group, tokens, 8});
    auto const pool_of = [&](bf::index_t n) {
        bf::packed_view<counting> const rows{
            reinterpret_cast<std::byte const*>(k.values().data()), {}, {2, n, 8}, keys * 32, 32};
        return bf::pool(rows, rows, bf::visible::causal_prefix());
    };
    std::vector<decltype(pool_of(1))> pools;
    for (sequence const& s : of) pools.push_back(pool_of(s.room));
    std::vector<std::atomic<bf::index_t>> decoded(static_cast<std::size_t>(threads));
    counting_meeting all;
    auto const work = [&](int thread) {
        rows_decoded = &decoded[static_cast<std::size_t>(thread)];
        bf::backend::simd<> const cpu{.executor = bf::share{.thread = thread, .threads = threads, .barrier = all}};
        std::vector<bf::bound_problem<1>> bound;
        std::vector<bf::problem> problems;
        bf::index_t at = 0;
        for (std::size_t i = 0; i < of.size(); at += of[i++].tokens)
            bound.push_back(bf::make_problem(cpu, q.view().slice(at, of[i].tokens), out.view().slice(at, of[i].tokens),
                                             {.q_position = of[i].keys - of[i].tokens}, pools[i]));
        for (auto const& b : bound) problems.push_back(b.problem());
        bf::attend(cpu, std::span<bf::problem const>(problems));
    };
    bf::testing::on_threads(threads, work);
    double sum = 0, most = 0;
    for (auto const& d : decoded) {
        sum += static_cast<double>(d.load());
        most = std::max(most, static_cast<double>(d.load()));
    }
    return {most * threads / sum, all.waits / threads};
}

/// `first` and then `count` - 1 of `other`.
std::vector<sequence> one_among(sequence first, int count, sequence other) {
    std::vector<sequence> all(static_cast<std::size_t>(count), other);
    all[0] = first;
    return all;
}

} // namespace

TEST_CASE("functions of another policy are not looked into", "[backend]") {
    auto data           = bf::testing::make_problem({.heads = 2, .tokens = 3, .head_dim = 8});
    auto const keys     = bf::pool(data.k.view(), data.v.view(), bf::visible::causal_prefix());
    auto const bound    = bf::make_problem(elsewhere{}, data.q.view(), data.out.view(), {}, keys);
    bf::problem const p = bound.problem();
    REQUIRE(supports(bf::backend::scalar{}, p).reason == "pool 0 was bound for elsewhere, not for scalar");
}

TEST_CASE("a share deals the work of many problems to all its threads", "[backend]") {
    sequence const short_decode{1, 10};
    for (int const threads : {2, 3, 4})
        for (int const count : {1, threads + 1, 2 * threads, 70}) {
            CAPTURE(threads, count);
            REQUIRE(deal(threads, one_among({1500, 1500}, count, short_decode)).busiest < 1.25);
            REQUIRE(deal(threads, one_among({1, 65536}, count, short_decode)).busiest < 1.25);
        }
    for (int const threads : {4, 8}) {
        for (int const count : {2, 3, 5, 16}) {
            CAPTURE(threads, count);
            REQUIRE(deal(threads, one_among({1, 16384}, count, {1, 16384})).busiest < 1.25);
        }
        CAPTURE(threads);
        REQUIRE(deal(threads, one_among({1500, 1500}, 2, {1, 65536})).busiest < 1.25);
        // Long ones where the deal would give them to one thread.
        std::vector<sequence> some(16, {1, 16});
        for (std::size_t const i : {0U, 7U, 8U, 15U}) some[i] = {1, 30000};
        REQUIRE(deal(threads, some).busiest < 1.25);
    }
}

TEST_CASE("a cache with room for more keys than there are keeps no thread idle", "[backend]") {
    for (bf::index_t const keys : {8192, 8193, 40000}) {
        CAPTURE(keys);
        REQUIRE(deal(4, {{8, keys, 131072}}, 36).busiest < 1.25); // two items of 288 rows
        REQUIRE(deal(4, one_among({8, keys, 131072}, 20, {1, 10}), 36).busiest < 1.25);
    }
}

TEST_CASE("few equal sequences are split, many are not", "[backend]") {
    int const whole = deal(8, one_among({1, 10}, 16, {1, 10})).waits;
    REQUIRE(deal(8, one_among({1, 16384}, 16, {1, 16384})).waits == whole); // 32 items, 4 for each thread
    REQUIRE(deal(8, one_among({1, 16384}, 15, {1, 16384})).waits == whole + 1);
}

TEST_CASE("items that cannot be split are not asked what they see before they run", "[backend]") {
    struct asked : bf::visible::interval {
        std::atomic<int>* count;
        [[nodiscard]] bf::key_span
        extent(bf::problem const& p, bf::index_t pool, bf::row_tile const& rows) const noexcept {
            ++*count;
            return bf::visible::interval::extent(p, pool, rows);
        }
    };
    auto data              = bf::testing::make_problem({.heads = 2, .tokens = 300, .head_dim = 8});
    std::atomic<int> count = 0;
    asked const sees{bf::visible::causal_prefix(), &count};
    auto const calls = [&](int threads) {
        count = 0;
        bf::meeting all;
        bf::testing::on_threads(threads, [&](int thread) {
            bf::backend::simd<> const cpu{.executor = bf::share{.thread = thread, .threads = threads, .barrier = all}};
            bf::attend(cpu, data.q.view(), data.out.view(), {}, bf::pool(data.k.view(), data.v.view(), sees));
        });
        return count.load();
    };
    REQUIRE(calls(4) == calls(1));
}

namespace {

/// Sequences of several lengths: short and long ones, with one query at the end and with many. Keys are seen twice, in
/// a window and all of them.
struct sequences {
    using view = bf::heads_view<float const>;
    using near = decltype(bf::pool(std::declval<view>(), std::declval<view>(), bf::visible::exact_window(1)));
    using all  = decltype(bf::pool(std::declval<view>(), std::declval<view>(), bf::visible::causal_prefix()));

    bf::testing::seeded_problem<> far; // its first keys are those of the long ones
    std::vector<bf::testing::seeded_problem<>> data{};
    std::vector<near> windows{};
    std::vector<all> keys{};
    std::vector<bf::testing::tensor<float>> wanted{}; // of single calls on one thread

    explicit sequences(bf::index_t count)
        : far(bf::testing::make_problem({.heads = 4, .kv_heads = 2, .tokens = 1, .keys = 14000, .head_dim = 16})) {
        auto const is_long = [](bf::index_t i) { return i % 4 == 1; };
        for (bf::index_t i = 0; i < count; ++i)
            data.push_back(bf::testing::make_problem({.heads    = 4,
                                                      .kv_heads = 2,
                                                      .tokens   = i % 3 == 0 && !is_long(i) ? 60 : 1,
                                                      .keys     = 60 + 2 * i,
                                                      .head_dim = 16,
                                                      .seed     = static_cast<std::uint64_t>(i)}));
        for (bf::index_t i = 0; i < count; ++i) {
            auto const& p   = is_long(i) ? far : data[static_cast<std::size_t>(i)];
            auto const held = is_long(i) ? 12900 + 10 * i : p.k.shape().tokens;
            view const k = p.k.view().slice(0, held), v = p.v.view().slice(0, held);
            windows.push_back(bf::pool(k, v, bf::visible::exact_window(9000)));
            keys.push_back(bf::pool(k, v, bf::visible::causal_prefix()));
        }
        bf::backend::simd<> const alone;
        for (std::size_t i = 0; i < data.size(); ++i) {
            bf::attend(alone, data[i].q.view(), data[i].out.view(), options(i), windows[i], keys[i]);
            wanted.push_back(data[i].out);
        }
    }

    [[nodiscard]] bf::attend_options options(std::size_t i) const {
        return {.q_position = keys[i].keys.shape().tokens - data[i].q.shape().tokens};
    }

    template <class Policy>
    [[nodiscard]] std::vector<bf::bound_problem<2>> bind(Policy const& policy) {
        std::vector<bf::bound_problem<2>> bound;
        for (std::size_t i = 0; i < data.size(); ++i)
            bound.push_back(
                bf::make_problem(policy, data[i].q.view(), data[i].out.view(), options(i), windows[i], keys[i]));
        return bound;
    }

    void forget() {
        for (auto& p : data)
            for (bf::index_t h = 0; h < p.out.shape().heads; ++h)
                for (bf::index_t t = 0; t < p.out.shape().tokens; ++t)
                    std::ranges::fill(p.out.view().row(h, t), -77.0F);
    }

    void check() const {
        for (std::size_t i = 0; i < data.size(); ++i) {
            CAPTURE(i);
            REQUIRE(bf::testing::compare_bits(data[i].out.view(), wanted[i].view()));
        }
    }
};

std::vector<bf::problem> problems_of(std::vector<bf::bound_problem<2>> const& bound) {
    std::vector<bf::problem> problems;
    for (auto const& b : bound) problems.push_back(b.problem());
    return problems;
}

} // namespace

TEST_CASE("many problems in one call have the bits of single calls", "[backend]") {
    for (bf::index_t const count : {2, 9, 70}) {
        if (test::shortest_sweep() && count == 70) continue;
        sequences some(count);
        for (int const threads : {2, 3, 20}) { // 20: every long one is split
            CAPTURE(count, threads);
            some.forget();
            bf::meeting all;
            bf::testing::on_threads(threads, [&](int thread) {
                bf::backend::simd<> const cpu{.executor =
                                                  bf::share{.thread = thread, .threads = threads, .barrier = all}};
                auto const bound    = some.bind(cpu);
                auto const problems = problems_of(bound);
                bf::attend(cpu, std::span<bf::problem const>(problems));
            });
            some.check();
        }
#if defined(_OPENMP)
        some.forget();
        bf::backend::simd<> const team{.executor = bf::openmp{.threads = 3}};
        auto const bound    = some.bind(team);
        auto const problems = problems_of(bound);
        bf::attend(team, std::span<bf::problem const>(problems));
        some.check();
#endif
    }
}

TEST_CASE("problems whose partial results do not fit together are dealt one after another", "[backend]") {
    namespace vec = bf::backend::vec;
    using isa     = bf::isa::current;
    sequences some(9);
    some.forget();
    bf::backend::simd<> const cpu;
    auto const bound       = some.bind(cpu);
    auto const problems    = problems_of(bound);
    bf::index_t const each = vec::thread_bytes<isa>(problems);
    bf::index_t room       = 0; // for the largest
    for (bf::problem const& p : problems) room = std::max(room, vec::parts_room<isa>(20, {&p, 1}));
    REQUIRE(room > 0);
    std::vector<std::byte> memory(static_cast<std::size_t>(each + room + 64));
    void* data       = memory.data();
    std::size_t size = memory.size();
    auto* const at   = static_cast<std::byte*>(std::align(64, static_cast<std::size_t>(each + room), data, size));
    int split        = 0;
    vec::work_list<isa> list(cpu.executor, at, each, at + each, room);
    for (bf::problem const& p : problems) {
        vec::cut const c         = vec::cut_problem<isa>(p);
        bf::index_t const widest = vec::load_of(p, c).widest;
        split += widest > 0;
        list.add(p, c, widest);
    }
    list.run();
    REQUIRE(split == 2);
    some.check();
}

TEST_CASE("a problem none of whose items sees three spans of a pool is not split", "[backend]") {
    namespace vec     = bf::backend::vec;
    auto const widest = [](bf::index_t window) {
        bf::visible::interval const sees = bf::visible::exact_window(window);
        bf::pool_ref const pool          = dense_pool(sees, 100000);
        bf::problem const p              = dense_problem(pool, 2, 1, 65535);
        return vec::load_of(p, vec::cut_problem<bf::isa::current>(p)).widest;
    };
    REQUIRE(widest(2 * vec::span_slots) == 0);
    REQUIRE(widest(2 * vec::span_slots + 1) == 3);
}

TEST_CASE("workspace_bytes asks for shapes alone and does not move with the position", "[backend]") {
    bf::visible::interval const sees = bf::visible::causal_prefix();
    bf::pool_ref const pool          = dense_pool(sees, 100000);
    bf::backend::simd<> const cpu{.executor = bf::share{.thread = 0, .threads = 8, .barrier = [] {
                                                            static bf::meeting all;
                                                            return bf::barrier_ref(all);
                                                        }()}};
    auto const bytes = [&](bf::problem const& p) { return workspace_bytes(cpu, std::span<bf::problem const>(&p, 1)); };

    bf::problem early = dense_problem(pool, 2, 1, 0);
    bf::problem late  = dense_problem(pool, 2, 1, 99999);
    REQUIRE(bytes(early) == bytes(late));

    late.options.q_positions = bf::memory_ref(reinterpret_cast<std::int32_t*>(std::uintptr_t{16})); // never read
    REQUIRE(bytes(late) == bytes(early));
    REQUIRE(explain(cpu, late).find("stream") != std::string::npos);
}

TEST_CASE("one token of up to 128 heads on one kv head is of the stream class", "[backend]") {
    bf::visible::interval const sees = bf::visible::causal_prefix();
    bf::pool_ref const pool          = dense_pool(sees, 5000);
    for (bf::index_t const heads : {16, 17, 71, 128}) {
        bf::problem const p = dense_problem(pool, heads, 1, 4999);
        CAPTURE(heads);
        REQUIRE(bf::backend::vec::cut_problem<bf::isa::current>(p).stream);
    }
    REQUIRE_FALSE(bf::backend::vec::cut_problem<bf::isa::current>(dense_problem(pool, 65, 2, 4998)).stream);
    REQUIRE(bf::backend::vec::cut_problem<bf::isa::current>(dense_problem(pool, 128, 1, 4999)).items() == 1);
}

TEST_CASE("scratch of a decode step is of its rows", "[backend]") {
    bf::visible::interval const sees = bf::visible::causal_prefix();
    bf::pool_ref const pool          = dense_pool(sees, 131072);
    auto const bytes                 = [&](bf::index_t heads, bf::index_t tokens) {
        bf::problem const p = dense_problem(pool, heads, tokens, 131072 - tokens);
        return workspace_bytes(bf::backend::simd<>{}, std::span(&p, 1));
    };
    REQUIRE(bf::backend::vec::cut_problem<bf::isa::current>(dense_problem(pool, 4, 1, 131071)).streamed() == 4);
    REQUIRE(bytes(4, 1) < bytes(16, 1));
    REQUIRE(bytes(4, 1) < bytes(4, 4));
}

// Tiles of rows are anchored at positions, whatever the length of the call: a short one meets few borders.
TEST_CASE("speculation over routed blocks shares a pass", "[backend]") {
    bf::visible::interval const sees = bf::visible::causal_prefix();
    bf::pool_ref pool                = dense_pool(sees, 5000);
    pool.visibility.row_alignment    = 128;
    auto const once = [&](bf::index_t group, bf::index_t tokens) { // positions of the block where it does
        int count = 0;
        for (bf::index_t at = 1024; at < 1152; ++at) {
            bf::problem const p = dense_problem(pool, group, tokens, at);
            count += bf::backend::vec::cut_problem<bf::isa::current>(p).items() == 1 ? 1 : 0;
        }
        return count;
    };
    for (int const tokens : {2, 5, 8}) {
        CAPTURE(tokens);
        REQUIRE(once(4, tokens) >= 128 - 4 * tokens); // tiles of 32 tokens have four borders
        pool = dense_pool(sees, 131072);              // many spans: the tile class, and the block's own border
        pool.visibility.row_alignment = 128;
        REQUIRE(once(128, tokens) == 128 - (tokens - 1));
        pool                          = dense_pool(sees, 5000);
        pool.visibility.row_alignment = 128;
    }
}

TEST_CASE("a few tokens of speculation share a pass over the keys, which is split", "[backend]") {
    bf::visible::interval const sees = bf::visible::causal_prefix();
    bf::pool_ref const pool          = dense_pool(sees, 131072);
    for (bf::index_t const group : {1, 4, 8, 16})
        for (bf::index_t const tokens : {2, 3, 5, 8}) {
            bf::problem const p = dense_problem(pool, group, tokens, 131072 - tokens);
            auto const c        = bf::backend::vec::cut_problem<bf::isa::current>(p);
            CAPTURE(group, tokens);
            REQUIRE(c.items() == 1); // of one kv head
            REQUIRE(bf::backend::vec::may_split(p, c, 16));
            REQUIRE(bf::backend::vec::load_of(p, c).widest == 32);
        }
    REQUIRE_FALSE(bf::backend::vec::cut_problem<bf::isa::current>(dense_problem(pool, 4, 9, 131063)).stream);
}

TEST_CASE("tiles of a few tokens share a pass over the keys, which is split", "[backend]") {
    using isa                        = bf::isa::current;
    namespace vec                    = bf::backend::vec;
    bf::visible::interval const sees = bf::visible::causal_prefix();
    bf::pool_ref const pool          = dense_pool(sees, 131072);
    for (auto const& [group, tokens] : {std::array{259, 1}, {32, 8}, {128, 2}, {128, 8}, {132, 8}, {36, 8}}) {
        bf::problem const p = dense_problem(pool, group, tokens, 131072 - tokens);
        vec::cut const c    = vec::cut_problem<isa>(p, 8);
        CAPTURE(group, tokens);
        REQUIRE((!c.stream && c.spanned));
        REQUIRE(c.items() == 1); // of one kv head
        REQUIRE(vec::may_split(p, c, 8));
        REQUIRE(vec::load_of(p, c).widest == 32);
    }
    REQUIRE_FALSE(vec::cut_problem<isa>(dense_problem(pool, 128, 9, 131063)).spanned);
}

TEST_CASE("rows of few tokens are several items where spans are too few for the threads", "[backend]") {
    using isa                        = bf::isa::current;
    namespace vec                    = bf::backend::vec;
    bf::visible::interval const sees = bf::visible::causal_prefix();
    for (bf::index_t const keys : {8193, 12000, 16385})
        for (int const threads : {2, 4, 16}) {
            bf::pool_ref const pool  = dense_pool(sees, keys);
            bf::problem const p      = dense_problem(pool, 128, 8, keys - 8);
            vec::cut const c         = vec::cut_problem<isa>(p, threads);
            bf::index_t const spans  = vec::load_of(p, c).widest;
            bf::index_t const pieces = 1024 / vec::unit_of<isa>(p).rows + 1;
            CAPTURE(keys, threads, spans);
            REQUIRE(c.items() * spans >= std::min<bf::index_t>(4 * threads, pieces * spans));
        }
}

TEST_CASE("no item has more rows than its scratch, whoever shares the call", "[backend]") {
    using isa                        = bf::isa::current;
    namespace vec                    = bf::backend::vec;
    bf::visible::interval const sees = bf::visible::causal_prefix();
    for (bf::index_t const slots : {100, 9000, 131072, 2000000})
        for (bf::index_t const alignment : {bf::no_alignment, bf::index_t{5}, bf::index_t{128}})
            for (bf::index_t const group : {1, 3, 17, 128, 133, 300, 1100})
                for (bf::index_t const tokens : {1, 2, 7, 8, 9, 100}) {
                    bf::pool_ref pool             = dense_pool(sees, slots);
                    pool.visibility.row_alignment = alignment;
                    bf::problem const p           = dense_problem(pool, group, tokens, slots - tokens);
                    vec::cut const one            = vec::cut_problem<isa>(p);
                    if (one.stream) continue;
                    bf::index_t const most = vec::most_rows(p, one, vec::unit_of<isa>(p));
                    for (int const threads : {1, 2, 3, 16, 100})
                        for (bool const share_spans : {true, false}) {
                            vec::cut const c = vec::cut_problem<isa>(p, threads, share_spans);
                            bf::index_t seen = 0, largest = 0;
                            for (bf::index_t i = 0; i < c.items(); ++i) {
                                bf::index_t const rows = vec::item_at(p, c, i).rows();
                                largest                = std::max(largest, rows);
                                seen += rows;
                            }
                            CAPTURE(slots, alignment, group, tokens, threads, share_spans);
                            REQUIRE(largest <= most);
                            REQUIRE(largest <= c.item_tokens() * c.chunk); // what a partial result has room for
                            REQUIRE(seen == tokens * group);
                        }
                }
}

TEST_CASE("items of a routing block are whole strips, where they fit", "[backend]") {
    using isa                        = bf::isa::current;
    namespace vec                    = bf::backend::vec;
    bf::visible::interval const sees = bf::visible::causal_prefix();
    bf::pool_ref pool                = dense_pool(sees, 100000);
    for (bf::index_t const group : {1, 2, 4, 8}) {
        pool.visibility.row_alignment = 128;
        bf::problem const p           = dense_problem(pool, group, 100000, 0);
        vec::cut const c              = vec::cut_problem<isa>(p);
        int const strip               = vec::unit_of<isa>(p).strip;
        CAPTURE(group, strip);
        REQUIRE((c.tokens == 128 || c.tokens * c.chunk % strip == 0));
        if (group == 4 && strip == 48) REQUIRE(c.tokens == 72);
    }
}

namespace {

/// Calls of the last tokens of a sequence, whose tiles are walked in spans.
template <class KV>
struct few_tokens {
    static constexpr bf::index_t tokens = 8;

    bf::index_t heads = 33, keys = 13000; // of one kv head; steps of 4 tokens are 132 rows, no whole vectors
    bf::testing::seeded_problem<float, KV> data = bf::testing::make_problem<float, KV>(
        {.heads = heads, .kv_heads = 1, .tokens = tokens, .keys = keys, .head_dim = 17, .seed = 3});
    bf::backend::bf16_unit unit = bf::backend::bf16_unit::fma;
    bf::attend_options options{};
    std::vector<std::int32_t> places{}; // [tokens]: positions of their own, or none

    struct answer {
        bf::testing::tensor<float> out;
        std::vector<float> lse; // [steps][heads][step]
    };

    /// Calls of `step` tokens on so many threads.
    template <class... Sees>
    [[nodiscard]] answer run(int threads, bf::index_t step, Sees const&... sees) const {
        auto copy = data;
        std::vector<float> lse(static_cast<std::size_t>(heads * tokens));
        bf::meeting barrier;
        bf::testing::on_threads(threads, [&](int thread) {
            bf::share const part{.thread = thread, .threads = threads, .barrier = barrier};
            bf::backend::simd<> const cpu{.executor = part, .bf16 = unit};
            for (bf::index_t at = 0; at < tokens; at += step) {
                bf::index_t const held = keys - tokens + at + step;
                bf::attend_options o   = options;
                o.q_position           = held - step;
                o.lse                  = lse.data() + at * heads;
                if (!places.empty()) o.q_positions = places.data() + at;
                bf::attend(cpu, copy.q.view().slice(at, step), copy.out.view().slice(at, step), o,
                           bf::pool(copy.k.view().slice(0, held), copy.v.view().slice(0, held), sees)...);
            }
        });
        return {copy.out, lse};
    }

    /// Outputs are those of the definition, and the bits those of any number of threads and any steps.
    template <class... Sees>
    void check(Sees const&... sees) const {
        auto const alone     = run(1, tokens, sees...);
        bf::attend_options o = options;
        o.q_position         = keys - tokens;
        if (!places.empty()) o.q_positions = places.data();
        auto const wanted =
            bf::testing::evaluate(data.q.view(), data.out.view(), o, bf::pool(data.k.view(), data.v.view(), sees)...);
        auto const right = bf::testing::compare(alone.out.view(), wanted);
        INFO(right.text());
        REQUIRE(right.ok);
        if (std::is_same_v<KV, float>)
            REQUIRE(bf::testing::compare_lse(alone.lse, wanted, bf::testing::tolerance_of(bf::element_type::f32)));
        check_bits(sees...);
    }

    template <class... Sees>
    void check_bits(Sees const&... sees) const {
        auto const alone = run(1, tokens, sees...);
        for (int const threads : {1, 2, 20})
            for (bf::index_t const step : {4, 8}) {
                CAPTURE(threads, step);
                auto const other = run(threads, step, sees...);
                auto const same  = bf::testing::compare_bits(other.out.view(), alone.out.view());
                INFO(same.text());
                REQUIRE(same.ok);
                if (step == tokens) REQUIRE(std::memcmp(other.lse.data(), alone.lse.data(), 4 * alone.lse.size()) == 0);
            }
    }
};

} // namespace

TEST_CASE("tiles of a few tokens have the bits of one thread on many", "[backend]") {
    auto const check = []<class KV>(few_tokens<KV> calls) {
        calls.check(bf::visible::causal_prefix());
        calls.check(bf::visible::exact_window(4803)); // some rows see the end of a span, others begin with the next
        calls.check(bf::visible::exact_window(9000), bf::visible::causal_prefix());
        calls.data.v.at(0, calls.keys - 3, 3) = KV(std::numeric_limits<float>::quiet_NaN());
        calls.data.v.at(0, 6000, 5)           = KV(inf); // of a span before
        calls.check(bf::visible::causal_prefix());
    };
    if (test::shortest_sweep()) return;
    check(few_tokens<float>{});
    check(few_tokens<bf::float16>{});
    for (auto const unit :
         {bf::backend::bf16_unit::dot, bf::backend::bf16_unit::tile, bf::backend::bf16_unit::emulated})
        if (available(unit)) check(few_tokens<bf::bfloat16>{.unit = unit});
}

TEST_CASE("options of calls of few tokens hold over all spans", "[backend]") {
    if (test::shortest_sweep()) return;
    few_tokens<float> calls;
    std::vector<float> sinks(33, 2.0F), slopes(33, 1e-3F);
    calls.options.sink_logits = sinks.data();
    calls.check(bf::visible::causal_prefix());
    calls.options.soft_cap = 3.0F;
    calls.check(bf::visible::causal_prefix());
    calls.options.alibi_slopes = slopes.data();
    calls.check(bf::visible::exact_window(9000));
    few_tokens<float> wide{.heads = 300, .keys = 8700}; // one item of 2400 rows
    wide.check(bf::visible::causal_prefix());
    for (auto const unit : {bf::backend::bf16_unit::dot, bf::backend::bf16_unit::tile,
                            bf::backend::bf16_unit::emulated}) // more than a unit likes
        if (available(unit))
            few_tokens<bf::bfloat16>{.heads = 73, .keys = 8700, .unit = unit}.check(bf::visible::causal_prefix());
}

TEST_CASE("tiles of a few tokens whose rows have borders or places of their own", "[backend]") {
    struct aligned : bf::visible::interval {
        bf::index_t alignment = 1;
        [[nodiscard]] bf::index_t row_alignment() const noexcept { return alignment; }
    };
    if (test::shortest_sweep()) return;
    aligned blocks;
    blocks.alignment = 5; // steps of 8 meet two borders, those of 4 one
    few_tokens<float>{}.check(blocks);
    few_tokens<float> strewn{.heads = 259, .keys = 8700}; // token by token
    for (int t = 0; t < 8; ++t) strewn.places.push_back(8692 + t - 100 * (t % 3));
    strewn.check(blocks);
    strewn.check(bf::visible::exact_window(8300));
}

// A logit that overflows to -inf beside a value that is not finite: NaN or not, but the same whoever stands beside.
TEST_CASE("what a span without weight leaves does not depend on the rows beside", "[backend]") {
    few_tokens<float> calls;
    for (bf::index_t h = 0; h < calls.heads; ++h)
        for (bf::index_t t = 0; t < 8; ++t) calls.data.q.at(h, t, 0) = (h + t) % 3 == 0 ? -4.0F : 4.0F;
    for (bf::index_t j = 0; j < calls.keys; ++j) calls.data.k.at(0, j, 0) = j < 12288 ? 0.0F : -3e38F;
    calls.data.v.at(0, 12300, 3) = inf;
    calls.check_bits(bf::visible::causal_prefix());
}

TEST_CASE("items of few tokens that see few spans are enough for the threads", "[backend]") {
    using isa                       = bf::isa::current;
    namespace vec                   = bf::backend::vec;
    bf::visible::interval const far = bf::visible::causal_prefix(), near = bf::visible::exact_window(1024);
    bf::pool_ref const all = dense_pool(far, 131072), last = dense_pool(near, 131072);
    auto const items = [](bf::pool_ref const& pool, bf::index_t group) {
        return vec::cut_problem<isa>(dense_problem(pool, group, 8, 131064), 2).items();
    };
    REQUIRE(items(all, 32) == 1);
    REQUIRE(items(last, 32) == 2);
    REQUIRE(items(all, 65536) == items(last, 65536)); // partial results of all rows: too much memory
    bf::problem const p = dense_problem(last, 32, 8, 131064);
    REQUIRE_FALSE(vec::may_split(p, vec::cut_problem<isa>(p, 16), 16));

    // Windows of which three spans can be seen are split; sinks beside a window change nothing.
    for (auto const& [window, split] : {std::pair{1024, false}, {4000, false}, {4200, true}, {8000, true}}) {
        bf::visible::interval const sees = bf::visible::exact_window(window);
        bf::pool_ref const recent        = dense_pool(sees, 131072);
        for (bf::index_t const tokens : {1, 8}) {
            CAPTURE(window, tokens);
            bf::problem const step = dense_problem(recent, 32, tokens, 131072 - tokens);
            REQUIRE(vec::may_split(step, vec::cut_problem<isa>(step, 16), 16) == split);
        }
    }
    bf::visible::interval const first{.window = 1024, .before = 4};
    std::array const pools{dense_pool(first, 131072), last};
    bf::problem both = dense_problem(pools[0], 32, 8, 131064);
    both.pools       = pools.data();
    both.pool_count  = 2;
    REQUIRE(vec::cut_problem<isa>(both, 2).items() == 2);

    // Blocks whose tiles have borders of their own.
    bf::pool_ref routed             = all;
    routed.visibility.row_alignment = 128;
    bf::problem const blocks        = dense_problem(routed, 36, 8, 131064);
    REQUIRE(vec::may_split(blocks, vec::cut_problem<isa>(blocks, 16), 16));

    // What all borders could leave is too much: rows are shared, as if there were no spans.
    routed.slots    = 1 << 20;
    bf::problem big = dense_problem(routed, 72, 8, 1024);
    big.kv_heads    = 2;
    big.q.shape = big.out.shape = {72, 8, 256};
    vec::cut const c            = vec::cut_problem<isa>(big, 4);
    REQUIRE_FALSE(vec::may_split(big, c, 4));
    REQUIRE(c.items() == 4);
}

TEST_CASE("aligned cuts hold every token once and no empty item", "[backend]") {
    struct aligned : bf::visible::interval {
        bf::index_t alignment = 1;
        [[nodiscard]] bf::index_t row_alignment() const noexcept { return alignment; }
    };
    for (bf::index_t const alignment : {1, 3, 48, 128, 300})
        for (bf::index_t const position : {0, 1, 127, 128, 4000})
            for (bf::index_t const tokens : {1, 2, 15, 129, 400}) {
                CAPTURE(alignment, position, tokens);
                aligned sees;
                sees.alignment                = alignment;
                bf::pool_ref pool             = dense_pool(sees, 5000);
                pool.visibility.row_alignment = alignment;
                bf::problem const p           = dense_problem(pool, 3, tokens, position);
                auto const cut                = bf::backend::vec::cut_problem<bf::isa::current>(p);
                REQUIRE(bf::backend::vec::most_items(p, cut) >= cut.items());
                std::vector<int> seen(static_cast<std::size_t>(3 * tokens));
                REQUIRE(cut.items() <= bf::backend::vec::most_items(p, cut));
                for (bf::index_t index = 0; index < cut.items(); ++index) {
                    auto const item = bf::backend::vec::item_at(p, cut, index);
                    REQUIRE(item.tokens > 0);
                    REQUIRE((position + item.first) / alignment ==
                            (position + item.first + item.tokens - 1) / alignment);
                    for (int r = 0; r < item.rows(); ++r)
                        ++seen[static_cast<std::size_t>((item.head + r % item.heads) * tokens + item.first +
                                                        r / item.heads)];
                }
                for (int const count : seen) REQUIRE(count == 1);
            }
}

// The library's own visibilities bring biases to calls of few rows only; a user's may bring them anywhere.
TEST_CASE("a visibility of the user's biases keys in both kernel classes", "[backend]") {
    struct leaning : bf::visible::interval {
        bool next(bf::problem const& p,
                  bf::index_t pool,
                  bf::row_tile const& rows,
                  bf::key_span span,
                  bf::tile_cursor& cursor,
                  bf::key_tile& tile) const noexcept {
            if (!interval::next(p, pool, rows, span, cursor, tile)) return false;
            for (int j = 0; j < tile.count; ++j)
                cursor.bias[j] = tile.slot(j) % 7 == 3 ? -inf : 0.05F * static_cast<float>(tile.slot(j) % 11);
            tile.bias = cursor.bias;
            return true;
        }
    };
    for (bf::index_t const tokens : {1, 3, 40, 150}) {
        CAPTURE(tokens);
        auto const of = [&](auto const& policy) {
            auto data = bf::testing::make_problem<float, float>(
                {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 150, .head_dim = 24, .seed = 9});
            bf::pool const keys{data.k.view(), data.v.view(), leaning{}};
            bf::attend_options options;
            options.q_position = 150 - tokens;
            bf::attend(policy, data.q.view(), data.out.view(), options, keys);
            return data;
        };
        auto got = of(bf::backend::simd<>{}), wanted = of(bf::backend::scalar{});
        auto const same = bf::testing::compare(got.out.view(), wanted.out.view(), 1e-4);
        INFO(same.text());
        REQUIRE(same.ok);
    }
}

// Additive masks that are finite and huge are how many engines hide keys: where all keys carry one, it cancels.
TEST_CASE("huge finite masks hide what smaller ones show and cancel where all keys carry them", "[backend]") {
    for (float const huge : {-1e4F, -1e9F, -1e10F, -1e30F, -std::numeric_limits<float>::max()})
        for (bf::index_t const masked : {70, 200})
            for (bf::index_t const tokens : {1, 40})
                for (auto const unit : {bf::backend::bf16_unit::best, bf::backend::bf16_unit::fma}) {
                    CAPTURE(huge, masked, tokens, name_of(unit));
                    std::vector<float> mask(static_cast<std::size_t>(tokens * 200), 0.0F);
                    for (bf::index_t t = 0; t < tokens; ++t) std::fill_n(mask.begin() + t * 200, masked, huge);
                    auto const of = [&](auto const& policy) {
                        auto data = bf::testing::make_problem<float, bf::bfloat16>(
                            {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 200, .head_dim = 24, .seed = 4});
                        bf::attend_options options;
                        options.causal = false;
                        options.mask   = {.data = bf::memory_ref(mask.data()), .type = bf::element_type::f32};
                        bf::pool const keys{data.k.view(), data.v.view(), bf::visible::causal_prefix()};
                        bf::attend(policy, data.q.view(), data.out.view(), options, keys);
                        return data;
                    };
                    auto got        = of(bf::backend::simd<>{.bf16 = unit});
                    auto wanted     = of(bf::backend::scalar{});
                    auto const same = bf::testing::compare(got.out.view(), wanted.out.view(), 0x1p-4);
                    INFO(same.text());
                    REQUIRE(same.ok);
                }
}

TEST_CASE("biases of edges of any size are those of the scalar kernel", "[backend]") {
    constexpr float most    = std::numeric_limits<float>::max();
    bf::index_t const nodes = 200;
    bf::graph const graph =
        bf::topology::build({.heads = 2, .nodes = nodes},
                            bf::topology::row{bf::topology::window{.predecessors = 40}, bf::topology::cycle{}});
    using edges = std::array<float, 4>;
    for (edges const& bias : {edges{1e14F, -1e14F}, edges{-1e30F, -1e30F}, edges{-most, -most}, edges{-most, -1e38F},
                              edges{1e38F, 1e38F}, edges{0.5F, -most}, edges{1.0F, -inf}, edges{most, -most}})
        for (bf::index_t const tokens : {1, 130}) {
            CAPTURE(bias[0], bias[1], tokens);
            auto const of = [&](auto const& policy) {
                auto data = bf::testing::make_problem(
                    {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = nodes, .head_dim = 24, .seed = 4});
                bf::attend_options const options{.q_position = nodes - tokens, .edge_bias = bias};
                bf::sparse_sdpa(policy, data.q.view(), data.k.view(), data.v.view(), graph, data.out.view(), options);
                return data;
            };
            auto got        = of(bf::backend::simd<>{});
            auto wanted     = of(bf::backend::scalar{});
            auto const same = bf::testing::compare(got.out.view(), wanted.out.view(), 1e-5);
            INFO(same.text());
            REQUIRE(same.ok);
        }
}

// Items grow and shrink with the threads; a value that is not finite must not show how. Positions are odd against
// tiles, so that a tile with a broken value is shared with rows that do not see it in some groupings and not in others.
TEST_CASE("rows that do not see a broken value have the same bits for every number of threads", "[backend]") {
    bf::index_t const tokens = 1400;
    if (test::shortest_sweep()) return;
    for (auto const unit : {bf::backend::bf16_unit::fma, bf::backend::bf16_unit::dot, bf::backend::bf16_unit::tile,
                            bf::backend::bf16_unit::emulated})
        for (bf::index_t const bad : {200, 220, 300}) {
            if (!available(unit) || (test::short_sweep() && bad != 220)) continue;
            CAPTURE(name_of(unit), bad);
            auto const of = [&](int threads) {
                auto data = bf::testing::make_problem<float, bf::bfloat16>(
                    {.heads = 4, .kv_heads = 2, .tokens = tokens, .head_dim = 16, .seed = 8});
                for (bf::index_t h = 0; h < 2; ++h)
                    data.v.at(h, bad, 5) = bf::bfloat16(std::numeric_limits<float>::quiet_NaN());
                bf::pool const keys{data.k.view(), data.v.view(), bf::visible::causal_prefix()};
                auto const q   = data.q.view().slice(20, tokens - 20);
                auto const out = data.out.view().slice(20, tokens - 20);
                bf::meeting barrier;
                bf::testing::on_threads(threads, [&](int thread) {
                    bf::share const part{.thread = thread, .threads = threads, .barrier = barrier};
                    bf::attend(bf::backend::simd<>{.executor = part, .bf16 = unit}, q, out, {.q_position = 20}, keys);
                });
                return data;
            };
            auto one = of(1), four = of(4);
            auto const a = one.out.view().slice(20, bad - 20), b = four.out.view().slice(20, bad - 20);
            auto const same = bf::testing::compare_bits(a, b);
            INFO(same.text());
            REQUIRE(same.ok);
        }
}

// Units of bf16 take keys two by two: one that has no neighbour must not be multiplied in its place.
TEST_CASE("an infinite value of a key without a neighbour stays infinite", "[backend]") {
    for (auto const unit : {bf::backend::bf16_unit::fma, bf::backend::bf16_unit::dot, bf::backend::bf16_unit::tile,
                            bf::backend::bf16_unit::emulated})
        for (bf::index_t const tokens : {1, 3, 40})
            for (bf::index_t const window : {0, 4}) {
                if (!available(unit)) continue;
                CAPTURE(name_of(unit), tokens, window);
                bf::index_t const keys = 65;
                auto p =
                    bf::testing::make_problem<float, bf::bfloat16>({.tokens = tokens, .keys = keys, .head_dim = 40});
                p.v.at(0, keys - 1, 3) = bf::bfloat16(inf);
                bf::attend(bf::backend::simd<>{.bf16 = unit}, p.q.view(), p.out.view(), {.q_position = keys - tokens},
                           bf::pool{p.k.view(), p.v.view(), bf::visible::exact_window(window)});
                for (bf::index_t t = 0; t < tokens; ++t)
                    for (bf::index_t d = 0; d < 40; ++d)
                        if (t == tokens - 1 && d == 3)
                            REQUIRE(p.out.at(0, t, d) == inf);
                        else
                            REQUIRE(std::isfinite(p.out.at(0, t, d)));
            }
}

namespace {

/// The call by both, which are to agree.
template <class Data, class... Pools>
void expect_scalar(Data& data, bf::attend_options const& o, Pools const&... pools) {
    bf::attend(bf::backend::scalar{}, data.q.view(), data.out.view(), o, pools...);
    auto wanted = data.out;
    for (bf::index_t h = 0; h < data.out.shape().heads; ++h)
        for (bf::index_t t = 0; t < data.out.shape().tokens; ++t) data.out.at(h, t, 0) = -inf;
    bf::attend(bf::backend::simd<>{}, data.q.view(), data.out.view(), o, pools...);
    auto const same = bf::testing::compare(data.out.view(), wanted.view(), 1e-5);
    INFO(same.text());
    REQUIRE(same.ok);
}

/// Every node lists itself and one node half as far.
bf::graph halves(bf::index_t nodes) {
    bf::graph g({.heads = 1, .nodes = nodes, .degree = 2});
    for (bf::index_t i = 0; i < nodes; ++i) {
        g.neigh_idx()[static_cast<std::size_t>(2 * i)]     = static_cast<std::int32_t>(i);
        g.neigh_idx()[static_cast<std::size_t>(2 * i + 1)] = static_cast<std::int32_t>(i / 2);
        if (i == 0) g.neigh_idx()[1] = -1;
    }
    return g;
}

} // namespace

// Either pool says whether rows share enough keys to be worked on together: the dense one has no opinion.
TEST_CASE("a graph beside another pool", "[backend]") {
    for (bf::index_t const tokens : {1, 3, 90}) {
        bf::index_t const keys = 2000;
        auto data              = bf::testing::make_problem(
                         {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 64, .seed = 5});
        bf::graph const g = halves(keys);
        bf::pool const dense(data.k.view(), data.v.view(), bf::visible::exact_window(40));
        bf::pool const listed(data.k.view(), data.v.view(), bf::visible::graph_rows{g.view()});
        CAPTURE(tokens);
        expect_scalar(data, {.q_position = keys - tokens}, dense, listed);
        expect_scalar(data, {.q_position = keys - tokens}, listed, dense);
        if (tokens == 90) {
            bf::attend_options const o{.q_position = keys - tokens};
            auto const bound =
                bf::make_problem(bf::backend::simd<>{}, data.q.view(), data.out.view(), o, dense, listed);
            auto const c = bf::backend::vec::cut_problem<bf::isa::current>(bound.problem());
            REQUIRE_FALSE(
                bf::backend::vec::rows_share(bound.problem(), bf::backend::vec::item_at(bound.problem(), c, 0)));
        }
    }
}

TEST_CASE("a graph with more query heads on a key head than an item holds", "[backend]") {
    bf::index_t const heads = 2 * bf::backend::vec::stream_rows + 3;
    auto data = bf::testing::make_problem({.heads = heads, .kv_heads = 1, .tokens = 70, .head_dim = 9, .seed = 6});
    bf::graph const g = halves(70);
    expect_scalar(data, {}, bf::pool(data.k.view(), data.v.view(), bf::visible::graph_rows{g.view()}));
}

// Numbers below the normal ones are numbers: f16 has many that matter.
TEST_CASE("subnormal keys and values count", "[backend]") {
    auto const check = []<class KV>(KV, float size) {
        for (bf::index_t const tokens : {1, 40})
            for (bf::index_t const head_dim : {9, 64}) {
                auto data = bf::testing::make_problem<float, KV>(
                    {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 100, .head_dim = head_dim, .seed = 7});
                for (auto* const t : {&data.k, &data.v})
                    for (bf::index_t h = 0; h < 2; ++h)
                        for (bf::index_t j = 0; j < 100; ++j)
                            for (bf::index_t d = 0; d < head_dim; ++d)
                                t->at(h, j, d) = KV(size * static_cast<float>(t->at(h, j, d)));
                bf::attend_options const o{.scale = 1.0F / size, .q_position = 100 - tokens};
                bf::pool const keys(data.k.view(), data.v.view(), bf::visible::causal_prefix());
                auto const wanted = bf::testing::evaluate(data.q.view(), data.out.view(), o, keys);
                bf::attend(bf::backend::simd<>{}, data.q.view(), data.out.view(), o, keys);
                CAPTURE(size, tokens, head_dim);
                double largest = 0;
                for (bf::index_t h = 0; h < 4; ++h)
                    for (bf::index_t t = 0; t < tokens; ++t)
                        for (bf::index_t d = 0; d < head_dim; ++d) {
                            double const want = wanted.out[wanted.at(h, t, d)];
                            largest           = std::max(largest, std::abs(want));
                            REQUIRE(std::abs(data.out.at(h, t, d) - want) < 1e-3 * static_cast<double>(size));
                        }
                REQUIRE(largest > 0.1 * static_cast<double>(size)); // zeros would not pass
            }
    };
    check(float{}, 0x1p-127F);
    check(bf::float16{}, 0x1p-17F);
}

TEST_CASE("outputs in f16 are those in f32, rounded", "[backend]") {
    for (bf::index_t const tokens : {1, 30})
        for (float const size : {1.0F, 1e5F, 1e-7F}) { // beyond the largest f16, and below the normal ones
            bf::testing::problem_options const o{
                .heads = 4, .kv_heads = 2, .tokens = tokens, .keys = 60, .head_dim = 43, .seed = 4};
            auto wide   = bf::testing::make_problem<float, float, float>(o);
            auto narrow = bf::testing::make_problem<float, float, bf::float16>(o);
            for (auto* const v : {&wide.v, &narrow.v})
                for (bf::index_t h = 0; h < 2; ++h)
                    for (bf::index_t j = 0; j < 60; ++j)
                        for (bf::index_t d = 0; d < 43; ++d) v->at(h, j, d) *= size;
            bf::attend_options const at{.q_position = 60 - tokens};
            bf::visible::interval const sees = bf::visible::causal_prefix();
            bf::backend::simd<> const cpu;
            bf::attend(cpu, wide.q.view(), wide.out.view(), at, bf::pool(wide.k.view(), wide.v.view(), sees));
            bf::attend(cpu, narrow.q.view(), narrow.out.view(), at, bf::pool(narrow.k.view(), narrow.v.view(), sees));
            CAPTURE(tokens, size);
            for (bf::index_t h = 0; h < 4; ++h)
                for (bf::index_t t = 0; t < tokens; ++t)
                    for (bf::index_t d = 0; d < 43; ++d)
                        REQUIRE(narrow.out.at(h, t, d).bits == bf::float16(wide.out.at(h, t, d)).bits);
        }
}

// One key: the output is its value, so that every kind of value can be had, ties among them.
TEST_CASE("an output in f16 is rounded as float16 rounds", "[backend]") {
    std::vector<float> values{1.0F + 0x1p-11F, 1.0F + 0x3p-11F, -1.0F - 0x1p-11F, 65519.0F, 65520.0F, -1e9F, 0x1p-25F,
                              0x3p-25F,        0x1.8p-24F,      0x1p-26F,         -0.0F,    inf,      -inf};
    while (values.size() < 43) values.push_back(0.37F * static_cast<float>(values.size()));
    for (std::size_t turn = 0; turn < values.size(); ++turn) { // each in a whole vector and in a tail
        auto p = bf::testing::make_problem<float, float, bf::float16>({.tokens = 1, .keys = 1, .head_dim = 43});
        for (bf::index_t d = 0; d < 43; ++d) p.v.at(0, 0, d) = values[static_cast<std::size_t>(d)];
        bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), {},
                   bf::pool(p.k.view(), p.v.view(), bf::visible::causal_prefix()));
        for (bf::index_t d = 0; d < 43; ++d) {
            float const value = values[static_cast<std::size_t>(d)];
            CAPTURE(turn, d, value);
            if (value == 0.0F)
                REQUIRE(static_cast<float>(p.out.at(0, 0, d)) == 0.0F); // 0 + -0 is 0
            else
                REQUIRE(p.out.at(0, 0, d).bits == bf::float16(value).bits);
        }
        std::rotate(values.begin(), values.begin() + 1, values.end());
    }
}
