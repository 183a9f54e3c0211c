// SPDX-License-Identifier: MIT
// Keys and values packed by our own codec, attended along our own rule, against the definition in double.
#include <butterfly/backend/scalar.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/topology/build.hpp>

#include "fibonacci.hpp"
#include "signs.hpp"

#include <cstdio>

namespace bf = butterfly;
namespace bt = butterfly::testing;

namespace {

int failures = 0;

void check(bool holds, char const* what, std::string const& text = {}) {
    std::printf("%s: %s %s\n", what, holds ? "ok" : "FAILED", text.c_str());
    if (!holds) ++failures;
}

std::vector<std::byte> pack(bt::tensor<float> const& t) {
    mine::signs const codec;
    auto const row = static_cast<std::size_t>(codec.row_bytes(t.shape().head_dim));
    std::vector<std::byte> out(row * static_cast<std::size_t>(t.shape().heads * t.shape().tokens));
    std::byte* at = out.data();
    for (bf::index_t h = 0; h < t.shape().heads; ++h)
        for (bf::index_t j = 0; j < t.shape().tokens; ++j, at += row)
            codec.encode(t.view().row(h, j).data(), t.shape().head_dim, at);
    return out;
}

} // namespace

int main() {
    // The rule as a graph: row 13 names itself and 12, 11, 10, 8, 5, 0.
    mine::fibonacci const rule;
    bf::graph const g = bf::topology::build({.heads = 1, .nodes = 40}, rule);
    auto const row    = g.view().neighbors(0, 13);
    check(std::vector<std::int32_t>(row.begin(), row.begin() + 8) ==
              std::vector<std::int32_t>{13, 12, 11, 10, 8, 5, 0, -1},
          "row 13");

    auto p = bt::make_problem({.heads = 4, .kv_heads = 2, .tokens = 40, .head_dim = 20, .seed = 4});
    std::vector<std::byte> const k_raw = pack(p.k), v_raw = pack(p.v);
    bf::packed_view const k{k_raw.data(), mine::signs{}, p.k.shape()};
    bf::packed_view const v{v_raw.data(), mine::signs{}, p.v.shape()};

    // Along the graph.
    bf::backend::scalar const cpu;
    bt::attention wanted =
        bt::evaluate(p.q.view(), p.out.view(), {}, bf::pool(k, v, bf::visible::graph_rows{g.view()}));
    bf::sparse_sdpa(cpu, p.q.view(), k, v, g, p.out.view());
    bt::comparison found = bt::compare(p.out.view(), wanted);
    check(found.ok, "our codec along our graph", found.text());
    check(wanted.keys[wanted.at(0, 13)] == 7, "row 13 sees seven keys");

    // The same rule over blocks of four, on the fly.
    bf::visible::routed_blocks const routed{bf::topology::make_row_source(rule, {.heads = 1, .nodes = 10}), 4};
    wanted = bt::evaluate(p.q.view(), p.out.view(), {}, bf::pool(k, v, routed));
    bf::sparse_sdpa(cpu, p.q.view(), k, v, bf::block_routing{rule, 4, 10}, p.out.view());
    found = bt::compare(p.out.view(), wanted);
    check(found.ok, "our codec along our rule over blocks", found.text());
    check(wanted.keys[wanted.at(0, 39)] == 6 * 4, "block 9 sees blocks 9, 8, 7, 6, 4 and 1");
    return failures == 0 ? 0 : 1;
}
