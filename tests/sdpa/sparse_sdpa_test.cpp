// SPDX-License-Identifier: MIT
#include <butterfly/backend/scalar.hpp>
#include <butterfly/graph/npz.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>
#include <butterfly/testing/compare.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/topology/ablation.hpp>
#include <butterfly/topology/causal_shift.hpp>
#include <butterfly/topology/cycle.hpp>
#include <butterfly/topology/window.hpp>

#include "support/catch.hpp"
#include "support/npy.hpp"

#include <limits>

namespace bf = butterfly;

namespace {

using bf::index_t;
bf::backend::scalar const one_by_one;

template <class T>
std::vector<T> read_array(std::string const& name) {
    std::string const bytes   = bf::testing::read_data(name);
    bf::npz::array const read = bf::npz::format::parse_npy(name, std::as_bytes(std::span(bytes)));
    return read.values<T>();
}

/// The tokens of a tensor at these positions.
bf::heads_buffer<float> rows_at(bf::heads_buffer<float> const& t, std::vector<std::int32_t> const& positions) {
    bf::heads_buffer<float> out({t.shape().heads, static_cast<index_t>(positions.size()), t.shape().head_dim});
    for (index_t h = 0; h < t.shape().heads; ++h)
        for (std::size_t i = 0; i < positions.size(); ++i) {
            auto const from = t.view().row(h, positions[i]);
            std::copy(from.begin(), from.end(), out.view().row(h, static_cast<index_t>(i)).begin());
        }
    return out;
}

void require_golden(bf::heads_buffer<float> const& out, std::string const& file) {
    auto const wanted               = bf::testing::read_npy(file);
    bf::testing::comparison const c = bf::testing::compare(out.view(), wanted.view(), 1e-5);
    INFO(file << ": " << c.text());
    REQUIRE(c.ok);
}

/// Blocks 0 .. count - 1: the sinks of the published rows.
struct first_blocks {
    index_t count;
    template <class Sink>
    void emit(bf::topology::topology_shape, bf::topology::node_ref at, Sink& sink) const noexcept {
        for (index_t j = 0; j < count && j <= at.node; ++j) sink.add(j, bf::edge_code::landmark);
    }
};

} // namespace

TEST_CASE("attention along published graphs is the published output", "[sdpa]") {
    for (std::string const folder : {"sdpa/gather_t9/", "sdpa/gather_t40/"}) {
        auto const q        = bf::testing::read_npy(folder + "q.npy");
        auto const k        = bf::testing::read_npy(folder + "k.npy");
        auto const v        = bf::testing::read_npy(folder + "v.npy");
        auto neigh          = read_array<std::int32_t>(folder + "neigh_idx.npy");
        auto types          = read_array<std::uint8_t>(folder + "edge_type.npy");
        index_t const heads = q.shape().heads, tokens = q.shape().tokens;
        bf::graph const g({heads, tokens, static_cast<index_t>(neigh.size()) / (heads * tokens)}, neigh, types);
        int runs = 0;
        for (auto const& run : bf::testing::read_cases(folder + "cases.json")) {
            if (!run.contains("file")) continue;
            auto const file = run.at("file").get<std::string>();
            if (file != "full.npy" && file != "full_bias_offset.npy" && file != "active.npy") continue;
            bf::attend_options o;
            for (char const* const part : {"bias", "offset"})
                for (std::size_t i = 0; run.contains(part) && !run.at(part).is_null() && i < 4; ++i)
                    o.edge_bias[i] += run.at(part).at(i).get<float>();
            ++runs;
            if (run.at("kind") == "full") {
                bf::heads_buffer<float> out(q.shape());
                bf::sparse_sdpa(one_by_one, q.view(), k.view(), v.view(), g, out.view(), o);
                require_golden(out, folder + file);
                continue;
            }
            auto const positions = run.at("positions").get<std::vector<std::int32_t>>();
            auto const keys      = run.at("Tk").get<index_t>();
            auto const active    = rows_at(q, positions);
            bf::heads_buffer<float> out(active.shape());
            o.q_positions = positions.data();
            bf::sparse_sdpa(one_by_one, active.view(), k.view().slice(0, keys), v.view().slice(0, keys), g, out.view(),
                            o);
            require_golden(out, folder + file);
        }
        REQUIRE(runs == 3);
    }
}

TEST_CASE("block-sparse attention is the published output", "[sdpa]") {
    namespace topology       = bf::topology;
    std::string const folder = "sdpa/raw_block_t45/";
    auto const q             = bf::testing::read_npy(folder + "q.npy");
    auto const k             = bf::testing::read_npy(folder + "k.npy");
    auto const v             = bf::testing::read_npy(folder + "v.npy");
    auto const run           = [&](auto const& rule, bf::attend_options const& o, char const* file) {
        bf::heads_buffer<float> out(q.shape());
        bf::sparse_sdpa(one_by_one, q.view(), k.view(), v.view(), bf::block_routing{rule, 8, 6}, out.view(), o);
        require_golden(out, folder + file);
    };
    topology::row const shift(topology::self{}, topology::window{.predecessors = 1}, topology::causal_shift{{1}},
                              first_blocks{1});
    run(shift, {}, "l1_causal_shift_L1_S1_p1.npy");
    topology::row const benes(topology::self{}, topology::window{.predecessors = 1}, topology::benes{{3, 0}},
                              first_blocks{2});
    run(benes, {}, "l3_benes_L1_S2_p2.npy");
    bf::attend_options o;
    o.scale = 0.1F;
    run(benes, o, "scale.npy");

    // Rows of the present length: 30 keys are four blocks.
    std::vector<std::int32_t> const positions{29, 24, 23, 1};
    auto const active = rows_at(q, positions);
    topology::row const four(topology::self{}, topology::window{.predecessors = 1}, topology::benes{{1, 0}},
                             first_blocks{2});
    bf::heads_buffer<float> out(active.shape());
    bf::attend_options at;
    at.q_positions = positions.data();
    bf::sparse_sdpa(one_by_one, active.view(), k.view().slice(0, 30), v.view().slice(0, 30),
                    bf::block_routing{four, 8, 4}, out.view(), at);
    require_golden(out, folder + "active.npy");
}

TEST_CASE("sparse_sdpa refuses what does not fit", "[sdpa]") {
    auto p             = bf::testing::make_problem({.heads = 4, .kv_heads = 2, .tokens = 6, .head_dim = 4});
    auto const message = [&](auto const& rows, bf::attend_options const& o) -> std::string {
        try {
            bf::sparse_sdpa(one_by_one, p.q.view(), p.k.view(), p.v.view(), rows, p.out.view(), o);
        } catch (bf::shape_error const& e) {
            return e.what();
        }
        return "accepted";
    };
    bf::graph const one({.heads = 1, .nodes = 6, .degree = 2}), three({.heads = 3, .nodes = 6, .degree = 2}),
        few({.heads = 1, .nodes = 5, .degree = 2});
    REQUIRE(message(one, {}) == "accepted");
    REQUIRE(message(three, {}) == "sparse_sdpa: topology has heads 3, q has 4 and k has 2");
    REQUIRE(message(few, {}) == "sparse_sdpa: q ends at position 6, graph has nodes 5");
    bf::attend_options o;
    o.q_position = 1;
    REQUIRE(message(one, o) == "sparse_sdpa: q ends at position 7, graph has nodes 6");
    REQUIRE(message(bf::graph_view{nullptr, nullptr, {1, 6, 2}}, {}) ==
            "sparse_sdpa: graph is null with shape [1, 6, 2]");
    bf::topology::self const self;
    REQUIRE(message(bf::block_routing{self, 0, 2}, {}) ==
            "sparse_sdpa: block_routing has block_size 0, must be at least 1");
    REQUIRE(message(bf::block_routing{self, 4, 0}, {}) ==
            "sparse_sdpa: block_routing has nodes 0, give the number of blocks of the longest sequence");
    REQUIRE(message(bf::block_routing{self, 4, 2, 0}, {}) ==
            "sparse_sdpa: block_routing has heads 0, must be at least 1");
    REQUIRE(message(bf::block_routing{self, 4, 2, 3}, {}) == "sparse_sdpa: topology has heads 3, q has 4 and k has 2");
    REQUIRE(message(bf::block_routing{self, 4, 2}, {}) == "accepted");
    REQUIRE(message(bf::block_routing{self, 4, 2}, {.q_position = 2}) == "accepted");
    REQUIRE(message(bf::block_routing{self, 4, 2}, {.q_position = 3}) ==
            "sparse_sdpa: q ends at position 9, 2 blocks of 4 tokens end before");

    // Positions are checked before anything is computed from them.
    for (index_t const far : {std::numeric_limits<index_t>::max(), index_t{-7}}) {
        std::string const wanted = "sparse_sdpa: q_position " + std::to_string(far) + " out of range";
        REQUIRE(message(one, {.q_position = far}) == wanted);
        REQUIRE(message(bf::block_routing{self, 4, 2}, {.q_position = far}) == wanted);
    }
}

TEST_CASE("block rows do not change while keys are added", "[sdpa]") {
    auto p = bf::testing::make_problem({.heads = 2, .tokens = 40, .head_dim = 4});
    bf::topology::row const rule(bf::topology::self{}, bf::topology::bit_reversal{{0}});
    bf::block_routing const routing{rule, 4, 16};
    bf::sparse_sdpa(one_by_one, p.q.view(), p.k.view(), p.v.view(), routing, p.out.view());
    for (index_t const tokens : {1, 7, 23}) {
        bf::testing::tensor<float> out({2, tokens, 4});
        bf::sparse_sdpa(one_by_one, p.q.view().slice(0, tokens), p.k.view().slice(0, tokens),
                        p.v.view().slice(0, tokens), routing, out.view());
        REQUIRE(bf::testing::compare_bits(out.view(), p.out.view().slice(0, tokens)).ok);
    }
}

TEST_CASE("each head may have block rows of its own", "[sdpa]") {
    auto p          = bf::testing::make_problem({.heads = 4, .kv_heads = 2, .tokens = 30, .head_dim = 4});
    auto const rule = bf::topology::prepare(bf::topology::cycle{.seed = 3}, {.heads = 4, .nodes = 8});
    bf::sparse_sdpa(one_by_one, p.q.view(), p.k.view(), p.v.view(), bf::block_routing{rule, 4, 8, 4}, p.out.view());
    bf::visible::routed_blocks const sees{bf::topology::make_row_source(rule, {.heads = 4, .nodes = 8}), 4};
    bf::pool const all(p.k.view(), p.v.view(), sees);
    auto const wanted = bf::testing::evaluate(p.q.view(), p.out.view(), {}, all);
    REQUIRE(bf::testing::compare(p.out.view(), wanted).ok);
}
