// SPDX-License-Identifier: MIT
#include <butterfly/backend/scalar.hpp>
#include <butterfly/backend/simd.hpp>
#include <butterfly/cache/attend.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>
#include <butterfly/testing/problem.hpp>
#include <butterfly/topology/window.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"

namespace bf = butterfly;

namespace {

template <class F>
long count(F const& f) {
    long const before = bf::testing::allocations;
    f();
    return bf::testing::allocations - before;
}

} // namespace

TEMPLATE_TEST_CASE("a call with a workspace allocates nothing", "[sdpa]", bf::backend::scalar, bf::backend::simd<>) {
    TestType const cpu;
    std::vector<std::byte> scratch(1 << 20);
    for (bf::index_t const tokens : {1, 40}) { // both kernel classes
        bf::heads_buffer<float> q({4, tokens, 16}), k({2, 64, 16}), v({2, 64, 16}), out({4, tokens, 16});
        bf::attend_options const o{.q_position = 64 - tokens, .workspace = scratch};
        bf::topology::row const rule(bf::topology::window{.predecessors = 2});
        bf::pool const all(k.view(), v.view(), bf::visible::causal_prefix());
        REQUIRE(count([] { static_cast<void>(std::string(100, 'x')); }) == 1);
        REQUIRE(count([&] { bf::attend(cpu, q.view(), out.view(), o, all); }) == 0);
        REQUIRE(count([&] { bf::attend(cpu, q.view(), out.view(), o, all, all, all); }) == 0);
        REQUIRE(count([&] { bf::dense_sdpa(cpu, q.view(), k.view(), v.view(), out.view(), o); }) == 0);
        bf::block_routing const routing{rule, 8, 8};
        REQUIRE(count([&] { bf::sparse_sdpa(cpu, q.view(), k.view(), v.view(), routing, out.view(), o); }) == 0);
    }
}

TEMPLATE_TEST_CASE("decoding from a cache with a workspace allocates nothing",
                   "[sdpa]",
                   bf::backend::scalar,
                   bf::backend::simd<>) {
    TestType const cpu;
    std::vector<std::byte> scratch(1 << 20);
    bf::compressed_kv_cache<> cache({.kv_heads = 2, .head_dim = 16, .block_size = 16, .max_tokens = 512});
    bf::heads_buffer<float> q({4, 1, 16}), k({2, 1, 16}), out({4, 1, 16});
    bf::topology::row const rule(bf::topology::window{.predecessors = 1});
    for (int i = 0; i < 100; ++i)
        REQUIRE(count([&] { bf::append(cpu, cache, k.view(), k.view(), {.workspace = scratch}); }) == 0);
    REQUIRE(count([&] { bf::attend(cpu, q.view(), cache, rule, out.view(), {.workspace = scratch}); }) == 0);
}
