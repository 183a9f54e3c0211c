// SPDX-License-Identifier: MIT
#include <butterfly/backend/simd.hpp>

#include "backend/check_laws.hpp"

#include <random>

namespace bf = butterfly;

namespace {

/// Every law with keys and values in KV. Calls of at most sixteen rows are the stream class.
template <bf::element KV = float>
void check(bf::testing::sweep sweep, bf::backend::bf16_unit unit = bf::backend::bf16_unit::best) {
    sweep.stream_rows   = 16;
    sweep.stream_tokens = 8;
    sweep.rounds        = bf::backend::resolve(unit) != bf::backend::bf16_unit::fma;
    test::check_laws<KV>(bf::backend::simd<>{.bf16 = unit}, sweep);
}

} // namespace

TEST_CASE("simd keeps the laws", "[backend]") {
    INFO(bf::backend::simd<>::name());
    check({.seed = 1});
}

TEST_CASE("simd keeps the laws for other inputs", "[backend]") {
    if (test::short_sweep()) return;
    check({.seed = 77, .brief = true});
}

TEST_CASE("simd keeps the laws with keys and values in f16", "[backend]") {
    if (test::shortest_sweep()) return;
    check<bf::float16>({.seed = 2, .brief = true});
}

TEST_CASE("simd keeps the laws with keys and values in bf16, by every unit", "[backend]") {
    for (auto const unit : {bf::backend::bf16_unit::fma, bf::backend::bf16_unit::dot, bf::backend::bf16_unit::tile,
                            bf::backend::bf16_unit::emulated}) {
        if (!available(unit) || (test::shortest_sweep() && unit == bf::backend::bf16_unit::emulated)) continue;
        DYNAMIC_SECTION(name_of(unit)) {
            check<bf::bfloat16>({.seed = 3, .brief = true}, unit);
        }
    }
}

TEST_CASE("simd keeps the laws for inputs that were never seen before", "[backend]") {
    if (test::short_sweep()) return;
    static std::uint64_t const seed = std::random_device{}() % 1000000; // one for all sections
    INFO("seed " << seed);
    check({.seed = seed, .brief = true});
    check<bf::float16>({.seed = seed, .brief = true});
    check<bf::bfloat16>({.seed = seed, .brief = true});
}
