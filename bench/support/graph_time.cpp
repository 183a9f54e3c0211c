// SPDX-License-Identifier: MIT
#include "graph_time.hpp"

#include <butterfly/core/heads.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>
#include <butterfly/testing/problem.hpp>

#include "timing.hpp"

#include <utility>
#include <vector>

namespace bench {

double time_attention(machine const& m, bf::graph_view const& g, index_t head_dim) {
    bf::heads_buffer<float> q({g.heads(), g.nodes(), head_dim}), k(q.shape()), v(q.shape()), out(q.shape());
    bf::testing::random draws(11);
    for (auto* const t : {&q, &k, &v})
        for (float& x : t->values()) x = static_cast<float>(2 * draws.uniform() - 1);
    auto const attend = [&] {
        bf::sparse_sdpa(m, std::as_const(q).view(), std::as_const(k).view(), std::as_const(v).view(), g, out.view());
    };
    attend();
    std::vector<double> seconds;
    while (seconds.size() < 5) {
        stopwatch const watch;
        attend();
        seconds.push_back(watch.seconds());
    }
    return median(seconds);
}

} // namespace bench
