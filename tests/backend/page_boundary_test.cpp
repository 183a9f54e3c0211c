// SPDX-License-Identifier: MIT

// Tensors that end where memory ends: a kernel that reads or writes past a row faults.

#include <butterfly/backend/scalar.hpp>
#include <butterfly/backend/simd.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"
#include "support/on_threads.hpp"
#include "support/sweep.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <new>
#include <span>

namespace bf = butterfly;

namespace {

/// Bytes of which the last is the last before a page that may not be touched.
class edge_memory {
public:
    explicit edge_memory(std::size_t bytes) {
        auto const page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        length_         = (bytes + page - 1) / page * page + page;
        memory_         = mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory_ == MAP_FAILED) throw std::bad_alloc();
        auto* const end = static_cast<std::byte*>(memory_) + (length_ - page);
        if (mprotect(end, page, PROT_NONE) != 0) throw std::bad_alloc();
        bytes_ = {end - bytes, bytes};
    }
    edge_memory(edge_memory const&)            = delete;
    edge_memory& operator=(edge_memory const&) = delete;
    ~edge_memory() { munmap(memory_, length_); }

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }

private:
    std::size_t length_ = 0;
    void* memory_       = nullptr;
    std::span<std::byte> bytes_{};
};

/// A copy of a tensor in such memory.
template <bf::element T>
class at_the_edge {
public:
    explicit at_the_edge(bf::testing::tensor<T> const& from)
        : shape_(from.shape()),
          memory_(static_cast<std::size_t>(shape_.heads * shape_.tokens * shape_.head_dim) * sizeof(T)) {
        for (bf::index_t h = 0, i = 0; h < shape_.heads; ++h)
            for (bf::index_t t = 0; t < shape_.tokens; ++t)
                for (bf::index_t d = 0; d < shape_.head_dim; ++d) data()[i++] = from.at(h, t, d);
    }

    [[nodiscard]] bf::heads_view<T const> view() const { return {data(), shape_}; }
    [[nodiscard]] bf::heads_view<T> target() { return {data(), shape_}; }

private:
    [[nodiscard]] T* data() const noexcept { return reinterpret_cast<T*>(memory_.bytes().data()); }

    bf::heads_shape shape_;
    edge_memory memory_;
};

} // namespace

TEMPLATE_TEST_CASE("nothing past the last row of a tensor is touched", "[backend]", float, bf::float16, bf::bfloat16) {
    using unit             = bf::backend::bf16_unit;
    bf::index_t const step = test::short_sweep() ? 5 : 1;
    for (bf::index_t head_dim = 1; head_dim <= 257; head_dim += step * (head_dim < 70 ? 1 : 11))
        for (bf::index_t const tokens : {1, 3, 40}) // both kernel classes
            for (bf::index_t const keys : {40, 64, 67, 128}) {
                CAPTURE(head_dim, tokens, keys);
                auto p = bf::testing::make_problem<float, TestType>({.heads    = 2,
                                                                     .kv_heads = 1,
                                                                     .tokens   = tokens,
                                                                     .keys     = keys,
                                                                     .head_dim = head_dim,
                                                                     .seed     = static_cast<std::uint64_t>(head_dim)});
                at_the_edge<TestType> const k(p.k), v(p.v);
                at_the_edge<float> const q(p.q);
                at_the_edge<float> out(p.out);
                bf::attend_options const o{.q_position = keys - tokens};
                bf::testing::attention const wanted = bf::testing::evaluate(
                    p.q.view(), p.out.view(), o, bf::pool(p.k.view(), p.v.view(), bf::visible::causal_prefix()));
                bf::dense_sdpa(bf::backend::scalar{}, p.q.view(), k.view(), v.view(), p.out.view(), o);
                REQUIRE(bf::testing::compare(p.out.view(), wanted, bf::element_type::f32));
                for (unit const u : {unit::fma, unit::dot, unit::tile, unit::emulated}) {
                    bool const rounds = u != unit::fma;
                    if (!available(u) || (rounds && !std::is_same_v<TestType, bf::bfloat16>)) continue;
                    bf::dense_sdpa(bf::backend::simd<>{.bf16 = u}, q.view(), k.view(), v.view(), out.target(), o);
                    REQUIRE(bf::testing::compare(out.view(), wanted,
                                                 rounds ? bf::testing::tolerance_of_bf16_units()
                                                        : bf::testing::tolerance_of(bf::element_type::f32)));
                }
            }
}

// Few tokens over several spans, in both classes, alone and with threads that share the spans; the workspace ends where
// memory ends, too.
TEMPLATE_TEST_CASE("nothing past keys, values and workspace is touched by calls of few tokens",
                   "[backend]",
                   float,
                   bf::float16,
                   bf::bfloat16) {
    using unit = bf::backend::bf16_unit;
    if (test::shortest_sweep()) return;
    bool const rounds = std::is_same_v<TestType, bf::bfloat16>;
    for (bf::index_t const heads : {2, 33, 119}) { // 119: more rows than a unit likes
        bf::index_t const keys = 8197, tokens = 5;
        auto p = bf::testing::make_problem<float, TestType>(
            {.heads = heads, .kv_heads = 1, .tokens = tokens, .keys = keys, .head_dim = 19, .seed = 7});
        at_the_edge<TestType> const k(p.k), v(p.v);
        bf::attend_options o{.q_position = keys - tokens};
        bf::pool const seen{k.view(), v.view(), bf::visible::causal_prefix()};
        bf::testing::attention const wanted = bf::testing::evaluate(
            p.q.view(), p.out.view(), o, bf::pool(p.k.view(), p.v.view(), bf::visible::causal_prefix()));
        for (unit const u : {unit::fma, unit::dot, unit::tile, unit::emulated}) {
            if (!available(u) || (u != unit::fma && !rounds)) continue;
            for (int const threads : {1, 3}) {
                CAPTURE(heads, name_of(u), threads);
                bf::meeting all;
                auto const policy = [&](int thread) {
                    return bf::backend::simd<>{
                        .executor = bf::share{.thread = thread, .threads = threads, .barrier = all}, .bf16 = u};
                };
                auto const bound      = bf::make_problem(policy(0), p.q.view(), p.out.view(), o, seen);
                bf::problem const one = bound.problem();
                edge_memory const scratch(
                    static_cast<std::size_t>(workspace_bytes(policy(0), std::span<bf::problem const>(&one, 1))));
                bf::attend_options with = o;
                with.workspace          = scratch.bytes();
                bf::testing::on_threads(
                    threads, [&](int thread) { bf::attend(policy(thread), p.q.view(), p.out.view(), with, seen); });
                REQUIRE(bf::testing::compare(p.out.view(), wanted,
                                             u == unit::fma ? bf::testing::tolerance_of(bf::element_type::f32)
                                                            : bf::testing::tolerance_of_bf16_units()));
            }
        }
    }
}
