// SPDX-License-Identifier: MIT
#include <butterfly/backend/scalar.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>
#include <butterfly/testing/laws/storage.hpp>
#include <butterfly/topology/window.hpp>

#include "support/catch.hpp"

namespace bf = butterfly;

namespace {

using view  = bf::heads_view<float>;
using shape = bf::heads_shape;

bf::backend::scalar const scalar;
std::vector<float> memory(4096, 1.0F);

/// A view of any shape, even one whose size overflows.
view of(shape s) {
    bf::index_t const head = bf::detail::try_multiply(s.tokens, s.head_dim);
    return view::unchecked(memory.data(), s, {head < 0 ? s.head_dim : head, s.head_dim});
}

/// A call with some of its parts replaced.
struct call {
    view q                = of({4, 3, 8});
    view k                = of({2, 5, 8});
    view v                = of({2, 5, 8});
    view out              = of({4, 3, 8});
    bf::attend_options o  = {};
    bf::index_t row_heads = 1;

    [[nodiscard]] std::string message() const {
        struct rows_of : bf::visible::interval {
            bf::index_t heads;
            [[nodiscard]] bf::index_t row_heads() const noexcept { return heads; }
        };
        try {
            bf::attend(scalar, q, out, o, bf::pool(k, v, rows_of{{}, row_heads}));
        } catch (bf::shape_error const& e) {
            return e.what();
        }
        return "accepted";
    }
};

} // namespace

TEST_CASE("what does not fit is a shape_error that names both sides", "[sdpa]") {
    constexpr float nan       = std::numeric_limits<float>::quiet_NaN();
    constexpr bf::index_t big = bf::index_t{1} << 61;
    struct bad_input {
        char const* what;
        call c;
        char const* wanted;
    };
    auto const with = [](auto const& change) {
        call c;
        change(c);
        return c;
    };
    bad_input const table[] = {
        {"nothing", call{}, "accepted"},
        {"key head_dim", with([](call& c) {
             c.k = of({2, 5, 9});
         }),
         "attend: k has head_dim 9, q has 8"},
        {"value heads", with([](call& c) {
             c.v = of({1, 5, 8});
         }),
         "attend: v has heads 1, k has 2"},
        {"value tokens", with([](call& c) {
             c.v = of({2, 6, 8});
         }),
         "attend: v has tokens 6, k has 5"},
        {"value head_dim", with([](call& c) {
             c.v = of({2, 5, 7});
         }),
         "attend: v has head_dim 7, out has 8"},
        {"out heads", with([](call& c) {
             c.out = of({3, 3, 8});
         }),
         "attend: out has heads 3, q has 4"},
        {"out tokens", with([](call& c) {
             c.out = of({4, 2, 8});
         }),
         "attend: out has tokens 2, q has 3"},
        {"groups", with([](call& c) {
             c.k = c.v = of({3, 5, 8});
         }),
         "attend: q has heads 4, not a multiple of k's 3"},
        {"no heads", with([](call& c) {
             c.q = c.out = of({0, 3, 8});
         }),
         "attend: q has shape [0, 3, 8]"},
        {"no head_dim", with([](call& c) {
             c.q = c.out = c.k = c.v = of({4, 3, 0});
         }),
         "attend: q has shape [4, 3, 0]"},
        {"no key heads", with([](call& c) {
             c.k = c.v = of({0, 5, 8});
         }),
         "attend: k has shape [0, 5, 8]"},
        {"no scale", with([](call& c) {
             c.v = of({2, 5, 6}), c.out = of({4, 3, 6});
         }),
         "attend: head_dim 8 of keys and 6 of values differ, so scale must be given"},
        {"q alone differs, no scale", with([](call& c) {
             c.q = of({4, 3, 6});
         }),
         "attend: k has head_dim 8, q has 6"},
        {"out alone differs, no scale", with([](call& c) {
             c.out = of({4, 3, 6});
         }),
         "attend: v has head_dim 8, out has 6"},
        {"null q", with([](call& c) {
             c.q = view(nullptr, {4, 3, 8});
         }),
         "attend: q is null with shape [4, 3, 8]"},
        {"null k", with([](call& c) {
             c.k = view(nullptr, {2, 5, 8});
         }),
         "attend: k is null with shape [2, 5, 8]"},
        {"null v", with([](call& c) {
             c.v = view(nullptr, {2, 5, 8});
         }),
         "attend: v is null with shape [2, 5, 8]"},
        {"null out", with([](call& c) {
             c.out = view(nullptr, {4, 3, 8});
         }),
         "attend: out is null with shape [4, 3, 8]"},
        {"negative q", with([](call& c) {
             c.q = c.out = of({4, -3, 8});
         }),
         "shape [4, -3, 8] has a negative size"},
        {"huge q", with([](call& c) {
             c.q = c.out = of({4, big, 8});
         }),
         "shape [4, 2305843009213693952, 8] overflows"},
        {"huge k", with([](call& c) {
             c.k = c.v = of({2, big, 8});
         }),
         "shape [2, 2305843009213693952, 8] overflows"},
        {"huge strides", with([](call& c) {
             c.q = view::unchecked(memory.data(), {4, 3, 8}, {big, 8});
         }),
         "attend: q: strides overflow"},
        {"scale", with([](call& c) { c.o.scale = nan; }),
         "attend: scale and soft_cap must be finite, soft_cap not negative"},
        {"infinite scale", with([](call& c) { c.o.scale = std::numeric_limits<float>::infinity(); }),
         "attend: scale and soft_cap must be finite, soft_cap not negative"},
        {"cap", with([](call& c) { c.o.soft_cap = nan; }),
         "attend: scale and soft_cap must be finite, soft_cap not negative"},
        {"negative cap", with([](call& c) { c.o.soft_cap = -1.0F; }),
         "attend: scale and soft_cap must be finite, soft_cap not negative"},
        {"position", with([](call& c) { c.o.q_position = -2; }), "attend: q_position -2 out of range"},
        {"far position", with([](call& c) { c.o.q_position = bf::no_alignment; }),
         "attend: q_position 9223372036854775807 out of range"},
        {"mask heads", with([](call& c) { c.o.mask.data = memory.data(), c.o.mask.heads = 3; }),
         "attend: mask has heads 3, q has 4"},
        {"mask type", with([](call& c) { c.o.mask.data = memory.data(), c.o.mask.type = bf::element_type::bf16; }),
         "attend: a mask is f32 or f16, not bf16"},
        {"mask strides", with([](call& c) { c.o.mask.data = memory.data(), c.o.mask.token_stride = big; }),
         "attend: mask: strides overflow"},
        {"rows", with([](call& c) { c.row_heads = 3; }), "attend: topology has heads 3, q has 4 and k has 2"},
    };
    for (bad_input const& bad : table) {
        CAPTURE(bad.what);
        REQUIRE(bad.c.message() == bad.wanted);
    }
}

TEST_CASE("queries whose position is not given stand at 0", "[sdpa]") {
    auto const keys     = bf::pool(of({2, 5, 8}), of({2, 5, 8}), bf::visible::causal_prefix());
    auto const position = [&](bf::attend_options const& o) {
        auto const bound = bf::make_problem(scalar, of({4, 3, 8}), of({4, 3, 8}), o, keys);
        return bound.problem().options.q_position;
    };
    REQUIRE(position({}) == 0);
    REQUIRE(position({.q_position = 0}) == 0);
    REQUIRE(position({.q_position = 2}) == 2);
}

TEST_CASE("an output whose rows overlap is refused", "[sdpa]") {
    call c;
    for (bf::heads_strides const good : {bf::heads_strides{24, 8}, {8, 32}, {-24, 8}, {30, 10}, {24, 16}}) {
        c.out = view::unchecked(memory.data() + 2000, {4, 3, 8}, good);
        REQUIRE(c.message() == "accepted");
    }
    for (bf::heads_strides const bad : {bf::heads_strides{0, 8}, {24, 0}, {24, 7}, {23, 8}, {8, 31}, {0, 0}}) {
        c.out = view::unchecked(memory.data() + 2000, {4, 3, 8}, bad);
        CAPTURE(bad.head, bad.token);
        REQUIRE(c.message().find("out has overlapping rows") != std::string::npos);
    }
}

TEST_CASE("rows overlap where they share an element, and only there", "[sdpa]") {
    bf::testing::random draws(GENERATE(take(1, random(0, 1 << 30))));
    for (int i = 0; i < 20000; ++i) {
        bf::index_t const heads = draws.between(1, 7), tokens = draws.between(1, 7), width = draws.between(1, 6);
        bf::index_t const head = draws.below(40), token = draws.below(40);
        std::vector<bool> taken(600);
        bool shared = false;
        for (bf::index_t e = 0; e < heads * tokens * width; ++e) {
            bf::index_t const at                = e / width / tokens * head + e / width % tokens * token + e % width;
            shared                              = shared || taken[static_cast<std::size_t>(at)];
            taken[static_cast<std::size_t>(at)] = true;
        }
        CAPTURE(heads, tokens, width, head, token);
        REQUIRE(bf::detail::rows_overlap(head, heads, token, tokens, width) == shared);
    }
}

TEST_CASE("a ring stands for more slots than memory could hold", "[sdpa]") {
    bf::index_t const length = 16, slots = bf::index_t{1} << 60;
    auto p          = bf::testing::make_problem({.heads = 2, .tokens = 1, .keys = length, .head_dim = 8, .seed = 3});
    auto const near = bf::visible::exact_window(length);
    bf::attend(scalar, p.q.view(), p.out.view(), {.q_position = length - 1}, bf::pool(p.k.view(), p.v.view(), near));
    auto const ring = [&](bf::heads_view<float> rows) {
        return bf::testing::detail::ring_view{rows.data(), {2, slots, 8}, length};
    };
    auto late = p;
    bf::attend(scalar, late.q.view(), late.out.view(), {.q_position = slots - 1},
               bf::pool(ring(late.k.view()), ring(late.v.view()), near));
    REQUIRE(bf::testing::compare_bits(late.out.view(), p.out.view()));
}

TEST_CASE("a call of no tokens does nothing", "[sdpa]") {
    call c;
    c.q   = of({4, 0, 8});
    c.out = of({4, 0, 8});
    REQUIRE(c.message() == "accepted");
    c.q = c.out = view(nullptr, {4, 0, 8});
    REQUIRE(c.message() == "accepted");
}

TEST_CASE("pools are named by their number where there are several", "[sdpa]") {
    auto const a       = bf::pool(of({2, 5, 8}), of({2, 5, 8}), bf::visible::causal_prefix());
    auto const b       = bf::pool(of({1, 5, 8}), of({1, 5, 8}), bf::visible::causal_prefix());
    auto const message = [&](auto const&... pools) -> std::string {
        try {
            bf::attend_options o;
            o.mask.data = memory.data();
            bf::attend(scalar, of({4, 3, 8}), of({4, 3, 8}), o, pools...);
        } catch (bf::shape_error const& e) {
            return e.what();
        }
        return "accepted";
    };
    REQUIRE(message(a, b) == "attend: pool 1 k has heads 1, the first pool has 2");
    REQUIRE(message(a, a) == "attend: a mask needs exactly one pool, the call has 2");
}

TEST_CASE("a workspace too small is a shape_error", "[sdpa]") {
    std::byte few[3];
    call c;
    c.o.workspace = few;
    REQUIRE(c.message().find("options.workspace has 3 bytes, the call needs ") == 0);
}

TEST_CASE("a page table is checked", "[sdpa]") {
    std::int32_t const pages[] = {0, 0};
    auto const message         = [&](bf::index_t size, bf::memory_ref table) -> std::string {
        bf::paged_view<float const> const k{
                    .data = memory.data(), .pages = table, .page_size = size, .shape = {2, 5, 8}};
        try {
            bf::attend(scalar, of({4, 3, 8}), of({4, 3, 8}), {}, bf::pool(k, k, bf::visible::causal_prefix()));
        } catch (bf::shape_error const& e) {
            return e.what();
        }
        return "accepted";
    };
    REQUIRE(message(4, pages) == "accepted");
    REQUIRE(message(3, pages) == "paged_view: page_size 3 is not a power of two");
    REQUIRE(message(0, pages) == "paged_view: page_size 0 is not a power of two");
    REQUIRE(message(-4, pages) == "paged_view: page_size -4 is not a power of two");
    REQUIRE(message(4, {}) == "paged_view: the page table is null");
}

TEST_CASE("a policy that declines says why", "[sdpa]") {
    // A barrier without a board cannot hand scratch to the others.
    bf::barrier_ref const bare{.context = nullptr, .wait = [](void*, int) noexcept {}};
    bf::backend::scalar const shared{.executor = bf::share{.thread = 0, .threads = 2, .barrier = bare}};
    auto const all = bf::pool(of({2, 5, 8}), of({2, 5, 8}), bf::visible::causal_prefix());
    REQUIRE_THROWS_AS(bf::attend(shared, of({4, 3, 8}), of({4, 3, 8}), {}, all), bf::backend_error);
    auto const bound = bf::make_problem(shared, of({4, 3, 8}), of({4, 3, 8}), {}, all);
    REQUIRE_FALSE(supports(shared, bound.problem()));
    REQUIRE(explain(shared, bound.problem()) ==
            "declined: share 0/2: a share whose barrier has no board needs options.workspace");
}

TEST_CASE("supports, explain and workspace_bytes need no data", "[sdpa]") {
    // Addresses that must not be read.
    auto const nowhere = [](shape s) {
        return view::unchecked(reinterpret_cast<float*>(std::uintptr_t{64}), s, {s.tokens * s.head_dim, s.head_dim});
    };
    auto const all      = bf::pool(nowhere({2, 5, 8}), nowhere({2, 5, 8}), bf::visible::causal_prefix());
    auto const bound    = bf::make_problem(scalar, nowhere({4, 3, 8}), nowhere({4, 3, 8}), {}, all);
    bf::problem const p = bound.problem();
    REQUIRE(supports(scalar, p));
    REQUIRE_FALSE(explain(scalar, p).empty());
    REQUIRE(workspace_bytes(scalar, std::span<bf::problem const>(&p, 1)) > 0);
    REQUIRE(p.options.scale == static_cast<float>(1.0 / std::sqrt(8.0)));
}

TEST_CASE("a visibility that cannot be walked is a shape_error", "[sdpa]") {
    bf::topology::self const self;
    auto const rows    = bf::topology::make_row_source(self, {.heads = 1, .nodes = 4});
    auto const message = [&](auto const& sees, bf::memory_ref positions = {}) -> std::string {
        try {
            bf::attend(scalar, of({4, 3, 8}), of({4, 3, 8}), {},
                       bf::pool(of({2, 5, 8}), of({2, 5, 8}), sees, {}, positions));
        } catch (bf::shape_error const& e) {
            return e.what();
        }
        return "accepted";
    };
    namespace visible = bf::visible;
    REQUIRE(message(visible::exact_window(2, 0)) == "attend: visibility has align 0, must be at least 1");
    REQUIRE(message(visible::exact_window(-2)) == "attend: visibility has window -2, must be at least 0");
    REQUIRE(message(visible::interval{.window = 2, .align = 1, .before = -1}) ==
            "attend: visibility has before -1, must be at least 0");
    REQUIRE(message(visible::interval{.window = 2, .align = 1, .before = 1, .after = -1}) ==
            "attend: visibility has after -1, must be at least 0");
    REQUIRE(message(visible::routed_blocks{rows, 0}) == "attend: visibility has block_size 0, must be at least 1");
    REQUIRE(message(visible::routed_summaries{rows, 0}) == "attend: visibility has block_size 0, must be at least 1");
    REQUIRE(message(visible::routed_summaries{rows, 4, -1}) == "attend: visibility has window -1, must be at least 0");
    REQUIRE(message(visible::routed_summaries{rows, 4, 1, -1}) ==
            "attend: visibility has first_slot -1, must be at least 0");

    // Positions of keys mean nothing to those that go by slots.
    std::int32_t const positions[] = {4, 3, 2, 1, 0};
    std::string const refused      = "attend: visibility goes by slots and takes no key_positions";
    bf::graph const g({.heads = 1, .nodes = 5, .degree = 1});
    REQUIRE(message(visible::causal_prefix(), positions) == "accepted");
    REQUIRE(message(visible::exact_window(2, 2), positions) == "accepted");
    REQUIRE(message(visible::routed_blocks{rows, 4}, positions) == refused);
    REQUIRE(message(visible::routed_summaries{rows, 4}, positions) == refused);
    REQUIRE(message(visible::graph_rows{g.view()}, positions) == refused);
}

TEST_CASE("strides that overflow in bytes are a shape_error", "[sdpa]") {
    constexpr bf::index_t big  = bf::index_t{1} << 62;
    std::int32_t const pages[] = {0, 0};
    auto const message         = [&](auto const& k) -> std::string {
        try {
            bf::attend(scalar, of({4, 3, 8}), of({4, 3, 8}), {}, bf::pool(k, k, bf::visible::causal_prefix()));
        } catch (bf::shape_error const& e) {
            return e.what();
        }
        return "accepted";
    };
    auto const strided = [](bf::heads_strides s) { return view::unchecked(memory.data(), {2, 5, 8}, s); };
    REQUIRE(message(strided({big, 8})) == "view: head stride 4611686018427387904 x 4 overflows");
    REQUIRE(message(strided({40, -big})) == "view: token stride -4611686018427387904 x 4 overflows");
    REQUIRE(message(strided({40, -big - big})) == "view: token stride -9223372036854775808 x 4 overflows");
    REQUIRE(message(strided({big / 16, 8})) == "attend: k: strides overflow");

    using paged         = bf::paged_view<float const>;
    auto const in_pages = [&](paged::page_strides s) {
        return paged{.data = memory.data(), .pages = pages, .page_size = 4, .shape = {2, 5, 8}, .strides = s};
    };
    REQUIRE(message(in_pages({64, 32, 8})) == "accepted");
    REQUIRE(message(in_pages({big, 32, 8})) == "paged_view: page stride 4611686018427387904 x 4 overflows");
    REQUIRE(message(in_pages({big / 64, 32, 8})) == "attend: k: page strides overflow");
    REQUIRE(message(in_pages({64, big, 8})) == "paged_view: head stride 4611686018427387904 x 4 overflows");
    REQUIRE(message(in_pages({64, 32, big / 16})) == "attend: k: strides overflow");
    // A slot stride is taken within a page alone.
    paged one     = in_pages({8, 8, big / 16});
    one.page_size = 1;
    REQUIRE_NOTHROW(
        bf::make_problem(scalar, of({4, 3, 8}), of({4, 3, 8}), {}, bf::pool(one, one, bf::visible::causal_prefix())));

    bf::packed_view const packed{std::as_bytes(std::span(memory)).data(), bf::quant::raw<float>{}, shape{2, 5, 8}};
    auto wide         = packed;
    wide.token_stride = big;
    REQUIRE(message(packed) == "accepted");
    REQUIRE(message(wide) == "packed_view: row bytes 4611686018427387904 x 5 overflows");
}

TEST_CASE("the workspace of the first problem serves all of a launch", "[sdpa]") {
    bf::barrier_ref const bare{.context = nullptr, .wait = [](void*, int) noexcept {}};
    bf::backend::scalar const shared{.executor = bf::share{.thread = 0, .threads = 2, .barrier = bare}};
    auto const all   = bf::pool(of({2, 5, 8}), of({2, 5, 8}), bf::visible::causal_prefix());
    auto const bound = bf::make_problem(shared, of({4, 3, 8}), of({4, 3, 8}), {}, all);
    std::vector<bf::problem> problems(3, bound.problem());
    std::vector<std::byte> scratch(4096);
    problems[0].options.workspace = scratch;
    REQUIRE_NOTHROW(bf::attend(shared, std::span<bf::problem const>(problems)));
    std::swap(problems[0], problems[1]);
    REQUIRE_THROWS_AS(bf::attend(shared, std::span<bf::problem const>(problems)), bf::backend_error);
}
