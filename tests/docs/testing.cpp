// SPDX-License-Identifier: MIT
// docs/testing.md
#include <butterfly/butterfly.hpp>
#include <butterfly/testing/compare.hpp>

#include <cstdio>

namespace bf      = butterfly;
namespace testing = butterfly::testing;

int main() {
    // Inputs: the same values on every platform, heavy-tailed, in an engine's layout, NaN between the rows.
    auto p = testing::make_problem<float, bf::bfloat16>({.heads      = 4,
                                                         .kv_heads   = 2,
                                                         .tokens     = 33,
                                                         .head_dim   = 80,
                                                         .seed       = 11,
                                                         .queries_in = testing::layout::interleaved,
                                                         .keys_in    = testing::layout::odd_stride});

    // The definition in double precision, of the same call: pools, options, visibilities.
    bf::pool const keys{p.k.view(), p.v.view(), bf::visible::exact_window(16)};
    testing::attention const wanted = testing::evaluate(p.q.view(), p.out.view(), {}, keys);

    bf::attend_options options;
    options.lse = p.lse.data();
    bf::attend(bf::backend::simd<>{}, p.q.view(), p.out.view(), options, keys);

    // Held to the tolerance table, in the row of units that multiply bf16; the worst element says where it stands.
    testing::tolerance const bf16    = testing::tolerance_of_bf16_units();
    testing::comparison const values = testing::compare(p.out.view(), wanted, bf16);
    testing::comparison const sums   = testing::compare_lse(p.lse, wanted, bf16);
    if (!values) std::printf("%s\n", values.text().c_str());
    if (!sums) std::printf("%s\n", sums.text().c_str());
    return values && sums && p.out.gaps_intact() ? 0 : 1;
}
