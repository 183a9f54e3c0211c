// SPDX-License-Identifier: MIT

// Keys and values that end where memory ends: a kernel that reads past a row faults.

#include <butterfly/backend/scalar.hpp>
#include <butterfly/backend/simd.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"
#include "support/sweep.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <new>

namespace bf = butterfly;

namespace {

/// A copy of a tensor whose last element is the last before a page that may not be touched.
template <bf::element T>
class at_the_edge {
public:
    explicit at_the_edge(bf::testing::tensor<T> const& from) : shape_(from.shape()) {
        auto const page  = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        auto const bytes = static_cast<std::size_t>(shape_.heads * shape_.tokens * shape_.head_dim) * sizeof(T);
        length_          = (bytes + page - 1) / page * page + page;
        memory_          = mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory_ == MAP_FAILED) throw std::bad_alloc();
        auto* const end = static_cast<std::byte*>(memory_) + (length_ - page);
        data_           = reinterpret_cast<T*>(end - bytes);
        for (bf::index_t h = 0, i = 0; h < shape_.heads; ++h)
            for (bf::index_t t = 0; t < shape_.tokens; ++t)
                for (bf::index_t d = 0; d < shape_.head_dim; ++d) data_[i++] = from.at(h, t, d);
        if (mprotect(end, page, PROT_NONE) != 0) throw std::bad_alloc();
    }
    at_the_edge(at_the_edge const&)            = delete;
    at_the_edge& operator=(at_the_edge const&) = delete;
    ~at_the_edge() { munmap(memory_, length_); }

    [[nodiscard]] bf::heads_view<T const> view() const { return {data_, shape_}; }

private:
    bf::heads_shape shape_;
    std::size_t length_ = 0;
    void* memory_       = nullptr;
    T* data_            = nullptr;
};

} // namespace

TEMPLATE_TEST_CASE(
    "nothing past the last row of keys and values is read", "[backend]", float, bf::float16, bf::bfloat16) {
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
                bf::attend_options const o{.q_position = keys - tokens};
                bf::testing::attention const wanted = bf::testing::evaluate(
                    p.q.view(), p.out.view(), o, bf::pool(p.k.view(), p.v.view(), bf::visible::causal_prefix()));
                bf::dense_sdpa(bf::backend::scalar{}, p.q.view(), k.view(), v.view(), p.out.view(), o);
                REQUIRE(bf::testing::compare(p.out.view(), wanted, bf::element_type::f32));
                for (unit const u : {unit::fma, unit::dot, unit::tile, unit::emulated}) {
                    bool const rounds = u != unit::fma;
                    if (!available(u) || (rounds && !std::is_same_v<TestType, bf::bfloat16>)) continue;
                    bf::dense_sdpa(bf::backend::simd<>{.bf16 = u}, p.q.view(), k.view(), v.view(), p.out.view(), o);
                    REQUIRE(bf::testing::compare(p.out.view(), wanted,
                                                 rounds ? bf::testing::tolerance_of_bf16_units()
                                                        : bf::testing::tolerance_of(bf::element_type::f32)));
                }
            }
}
