// SPDX-License-Identifier: MIT

// Outputs of the published system: what cache_rules::published does, and what only testing/published.hpp does.

#include <butterfly/cache/attend.hpp>
#include <butterfly/sdpa/softmax_state.hpp>
#include <butterfly/testing/published.hpp>
#include <butterfly/testing/published_rows.hpp>
#include <butterfly/topology/landmark.hpp>

#include "cache/backends.hpp"
#include "support/catch.hpp"
#include "support/npy.hpp"

#include <array>

namespace bf      = butterfly;
namespace testing = butterfly::testing;

namespace {

constexpr double tolerance = 1e-5; // the published system rounds each stream to float before it merges them

std::string const folders[] = {"bs4_w1_t21", "bs4_w4_t24", "bs4_w8_t40_mqa", "bs8_w8_t61"};

/// Inputs and runs of one folder.
struct recorded {
    std::string path;
    bf::heads_buffer<float> q, k, v;
    nlohmann::json cases;

    explicit recorded(std::string const& folder)
        : path("cache/compressed/" + folder + "/"), q(testing::read_npy(path + "q.npy")),
          k(testing::read_npy(path + "k.npy")), v(testing::read_npy(path + "v.npy")),
          cases(testing::read_cases(path + "cases.json")) {}
};

/// One run's parameters.
struct run_of {
    nlohmann::json const& json;
    testing::published_sizes sizes;
    std::string rule;

    explicit run_of(nlohmann::json const& j)
        : json(j), sizes{.block_size = j.at("bs"), .exact_window = j.at("W")}, rule(j.at("rule")) {}

    [[nodiscard]] bf::index_t number(char const* name) const { return json.at(name).get<bf::index_t>(); }
    [[nodiscard]] double scale(bf::index_t dim) const {
        auto const it = json.find("scale");
        return it == json.end() || it->is_null() ? 1.0 / std::sqrt(static_cast<double>(dim)) : it->get<double>();
    }

    /// The published rows for a length.
    [[nodiscard]] testing::published_rows_options rows(bf::index_t tokens) const {
        return {.blocks   = bf::detail::ceil_div(tokens, sizes.block_size),
                .layer    = number("layer"),
                .rule     = rule,
                .local    = number("L"),
                .sinks    = number("S"),
                .partners = number("p")};
    }

    /// The same rows as a rule of the library.
    template <class F>
    void with_rule(bf::index_t tokens, F const& f) const {
        auto const stages = testing::published_stages(rows(tokens));
        bf::topology::window const local{.predecessors = number("L")};
        bf::topology::landmark const first{.stride = 1, .count = number("S")};
        if (rule == "causal_shift") f(bf::topology::row(local, bf::topology::causal_shift{stages}, first));
        if (rule == "xor") f(bf::topology::row(local, bf::topology::xor_partner{stages}, first));
        if (rule == "bit_reversal") f(bf::topology::row(local, bf::topology::bit_reversal{stages}, first));
        if (rule == "benes") f(bf::topology::row(local, bf::topology::benes{stages}, first));
    }
};

bf::cache_config config_of(recorded const& data, run_of const& run) {
    return {.kv_heads     = data.k.shape().heads,
            .head_dim     = data.k.shape().head_dim,
            .block_size   = run.sizes.block_size,
            .exact_window = run.sizes.exact_window,
            .max_tokens   = data.k.shape().tokens,
            .max_append   = data.k.shape().tokens,
            .rules        = bf::cache_rules::published};
}

/// Largest difference of the rows [first, first + count) of two tensors, the second starting at `from`.
double difference(bf::heads_view<float const> a,
                  bf::heads_view<float const> b,
                  bf::index_t first,
                  bf::index_t count,
                  bf::index_t from = 0) {
    double worst = a.heads() == b.heads() && a.head_dim() == b.head_dim() ? 0.0 : 1e30;
    for (bf::index_t h = 0; h < std::min(a.heads(), b.heads()); ++h)
        for (bf::index_t t = 0; t < count; ++t)
            for (std::size_t d = 0; d < a.row(h, first + t).size(); ++d) {
                double const x = std::abs(static_cast<double>(a.row(h, first + t)[d]) - b.row(h, from + t)[d]);
                worst          = x <= worst ? worst : x; // a NaN is a difference
            }
    return worst;
}

/// Rows of a storage as a tensor.
bf::heads_buffer<float> decoded(bf::storage_ref const& s, bf::index_t first, bf::index_t end) {
    bf::heads_buffer<float> out({s.shape.heads, end - first, s.shape.head_dim});
    for (bf::index_t h = 0; h < s.shape.heads; ++h)
        for (bf::index_t slot = first; slot < end; ++slot)
            bf::backend::on_host::decode_row(s, h, slot, out.view().row(h, slot - first).data());
    return out;
}

} // namespace

TEMPLATE_LIST_TEST_CASE("published rules give the published per-token attention", "[published]", cache_backends) {
    TestType const policy;
    int runs = 0;
    for (auto const& folder : folders) {
        recorded data(folder);
        for (auto const& json : data.cases) {
            std::string const kind = json.value("kind", "");
            if (kind != "active_all" && kind != "active_some") continue;
            run_of const run(json);
            CAPTURE(folder, json.at("file"));
            bf::index_t const tokens = data.k.shape().tokens;
            bf::compressed_kv_cache<> cache(config_of(data, run));
            bf::append(policy, cache, data.k.view(), data.v.view());

            auto const wanted = testing::read_npy(data.path + json.at("file").get<std::string>());
            bf::heads_buffer<float> out(wanted.shape());
            float const scale = static_cast<float>(run.scale(data.k.shape().head_dim));
            run.with_rule(tokens, [&](auto const& row) {
                if (kind == "active_all") {
                    bf::attend(policy, data.q.view(), cache, row, out.view(), {.scale = scale});
                    return;
                }
                auto const positions = json.at("positions").get<std::vector<bf::index_t>>();
                for (std::size_t i = 0; i < positions.size(); ++i)
                    bf::attend(policy, data.q.view().slice(positions[i], 1), cache, row,
                               out.view().slice(static_cast<bf::index_t>(i), 1),
                               {.scale = scale, .q_position = positions[i]});
            });
            REQUIRE(difference(out.view(), wanted.view(), 0, wanted.shape().tokens) < tolerance);
            ++runs;
        }
    }
    REQUIRE(runs == 18);
}

TEST_CASE("the published one-shot rule gives the published routes and prefill") {
    int runs = 0;
    for (auto const& folder : folders) {
        recorded data(folder);
        for (auto const& json : data.cases) {
            if (json.value("kind", "") != "prefill") continue;
            run_of const run(json);
            CAPTURE(folder, json.at("file"));
            bf::index_t const tokens = data.k.shape().tokens;
            bf::graph const rows     = testing::published_rows(run.rows(tokens));
            auto const wanted        = testing::read_npy(data.path + json.at("file").get<std::string>());
            bf::index_t const group  = data.q.shape().heads / data.k.shape().heads;
            bf::heads_buffer<float> out(wanted.shape());
            for (bf::index_t t = 0; t < tokens; ++t) {
                auto const shot  = testing::published_one_shot(rows.view(), t, run.sizes);
                auto const token = testing::published_per_token(rows.view(), t, run.sizes);
                if (json.contains("routes")) {
                    auto const& routes = json.at("routes");
                    auto const at      = static_cast<std::size_t>(t);
                    auto const block   = static_cast<std::size_t>(t / run.sizes.block_size);
                    REQUIRE(routes.at("token_window").at(at) == nlohmann::json({token.first, token.end - 1}));
                    REQUIRE(routes.at("token_summaries").at(at) == nlohmann::json(token.summaries));
                    REQUIRE(routes.at("block_summaries").at(block) == nlohmann::json(shot.summaries));
                }
                for (bf::index_t h = 0; h < data.q.shape().heads; ++h) {
                    auto const row =
                        testing::published_attend(data.q.view().row(h, t), data.k.view(), data.v.view(), h / group,
                                                  shot, run.sizes.block_size, run.scale(data.k.shape().head_dim));
                    for (std::size_t d = 0; d < row.size(); ++d) out.view().row(h, t)[d] = static_cast<float>(row[d]);
                }
            }
            REQUIRE(difference(out.view(), wanted.view(), 0, tokens) < tolerance);
            ++runs;
        }
    }
    REQUIRE(runs == 16);
}

TEMPLATE_LIST_TEST_CASE("published rules give the published chunks, counters and pools",
                        "[published]",
                        cache_backends) {
    TestType const policy;
    int runs = 0;
    for (auto const& folder : folders) {
        recorded data(folder);
        for (auto const& json : data.cases) {
            if (json.value("kind", "") != "chunked") continue;
            run_of const run(json);
            CAPTURE(folder, json.at("file"));
            auto const wanted       = testing::read_npy(data.path + json.at("file").get<std::string>());
            bool const stock        = json.at("decode_backend") == "dense";
            bf::index_t const group = data.q.shape().heads / data.k.shape().heads;
            bf::compressed_kv_cache<> cache(config_of(data, run));

            for (auto const& step : json.at("trace")) {
                auto const count        = step.at("chunk").get<bf::index_t>();
                bf::index_t const start = cache.tokens();
                bf::append(policy, cache, data.k.view().slice(start, count), data.v.view().slice(start, count));
                CAPTURE(cache.tokens());
                REQUIRE(cache.tokens() == step.at("offset"));
                REQUIRE(cache.tail_start() == step.at("tail_start"));
                REQUIRE(cache.counters().tail_tokens() == step.at("tail_size"));
                REQUIRE(cache.summaries() == step.at("summary_count"));
                REQUIRE(cache.retained_bytes() == step.at("nbytes"));

                bf::heads_buffer<float> out({data.q.shape().heads, count, data.v.shape().head_dim});
                bool const tail_only = stock && count <= 2;
                if (start > 0 && !tail_only) {
                    run.with_rule(cache.tokens(), [&](auto const& row) {
                        bf::attend(policy, data.q.view().slice(start, count), cache, row, out.view());
                    });
                } else {
                    bf::graph const rows = testing::published_rows(run.rows(cache.tokens()));
                    for (bf::index_t t = 0; t < count; ++t)
                        for (bf::index_t h = 0; h < data.q.shape().heads; ++h) {
                            auto const keys = tail_only
                                                  ? testing::published_tail_only(cache.tail_start(), start + t)
                                                  : testing::published_one_shot(rows.view(), start + t, run.sizes);
                            auto const row  = testing::published_attend(
                                 data.q.view().row(h, start + t), data.k.view(), data.v.view(), h / group, keys,
                                 run.sizes.block_size, run.scale(data.k.shape().head_dim));
                            for (std::size_t d = 0; d < row.size(); ++d)
                                out.view().row(h, t)[d] = static_cast<float>(row[d]);
                        }
                }
                REQUIRE(difference(wanted.view(), out.view(), start, count) < tolerance);
            }

            auto const pools = cache.pools(policy);
            auto const file  = [&](char const* name) { return data.path + json.at(name).get<std::string>(); };
            auto const sk    = testing::read_npy(file("summaries_k"));
            auto const sv    = testing::read_npy(file("summaries_v"));
            auto const tk    = testing::read_npy(file("tail_k"));
            REQUIRE(sk.shape().tokens == cache.summaries());
            REQUIRE(tk.shape().tokens == cache.counters().tail_tokens());
            auto const mine_sk = decoded(pools.summary_k, 0, cache.summaries());
            auto const mine_sv = decoded(pools.summary_v, 0, cache.summaries());
            auto const mine_tk = decoded(pools.tail_k, cache.tail_start(), cache.tokens());
            REQUIRE(difference(mine_sk.view(), sk.view(), 0, cache.summaries()) < 1e-6);
            REQUIRE(difference(mine_sv.view(), sv.view(), 0, cache.summaries()) < 1e-6);
            REQUIRE(difference(mine_tk.view(), tk.view(), 0, cache.counters().tail_tokens()) == 0.0);
            ++runs;
        }
    }
    REQUIRE(runs == 10);
}

TEMPLATE_LIST_TEST_CASE("streams and their merge are the published ones", "[published]", cache_backends) {
    TestType const policy;
    std::string const path = "cache/streams/";
    auto const read        = [&](std::string const& name) { return testing::read_npy(path + name + ".npy"); };
    auto const q = read("q"), k = read("k"), v = read("v");
    bf::heads_shape const shape = q.shape();
    auto const rows             = static_cast<std::size_t>(shape.heads * shape.tokens);

    auto const check = [&](std::string const& name, auto const& pool) {
        auto const o = read(name + "_o"), l = read(name + "_l"), m = read(name + "_m");
        bf::heads_buffer<float> out(shape);
        std::vector<float> lse(rows);
        bf::attend(policy, q.view(), out.view(), {.lse = bf::memory_ref(lse.data())}, pool);
        REQUIRE(difference(out.view(), o.view(), 0, shape.tokens) < tolerance);
        for (std::size_t i = 0; i < rows; ++i) {
            float const wanted = l.values()[i] == 0.0F ? -std::numeric_limits<float>::infinity()
                                                       : m.values()[i] + std::log(l.values()[i]);
            REQUIRE((lse[i] == wanted || std::abs(lse[i] - wanted) < tolerance));
        }
    };
    check("swa", bf::pool(k.view(), v.view(), bf::visible::exact_window(4)));

    // "dense": all summaries of blocks before the query's own, whatever the window.
    auto const mean_k = read("summary_k"), mean_v = read("summary_v");
    bf::topology::window const all{.predecessors = 6};
    auto const every = bf::topology::make_row_source(all, {.heads = 1, .nodes = 6});
    check("dense", bf::pool(mean_k.view(), mean_v.view(), bf::visible::routed_summaries{every, 4, 1, 0}));

    // An empty stream (l = 0) leaves the other as it is.
    auto const merged = [&](std::string const& a, std::string const& b, std::string const& both) {
        auto const oa = read(a + "_o"), la = read(a + "_l"), ma = read(a + "_m");
        auto const ob = read(b + "_o"), lb = read(b + "_l"), mb = read(b + "_m");
        auto const wanted = read(both);
        auto const state  = [](float m, float l) { return l == 0.0F ? bf::softmax_state{} : bf::softmax_state{m, l}; };
        bool empty        = false;
        for (std::size_t i = 0; i < rows; ++i) {
            auto const sa = state(ma.values()[i], la.values()[i]);
            auto const sb = state(mb.values()[i], lb.values()[i]);
            auto const w  = bf::merge(sa, sb);
            empty |= sb.empty();
            for (std::size_t d = 0; d < static_cast<std::size_t>(shape.head_dim); ++d) {
                std::size_t const at = i * static_cast<std::size_t>(shape.head_dim) + d;
                float const sum      = w.a * sa.sum * oa.values()[at] + w.b * sb.sum * ob.values()[at];
                REQUIRE(std::abs(sum / w.merged.sum - wanted.values()[at]) < tolerance);
            }
        }
        return empty;
    };
    REQUIRE(merged("swa", "routed", "merge_swa_routed"));
    REQUIRE(merged("swa", "dense", "merge_swa_dense"));
}

TEST_CASE("the published truncation keeps what was written first") {
    // T = 8, cycle 3 0 6 1 7 4 2 5, window 2, landmarks every 3, self.
    std::vector<std::int32_t> const neighbors = {3,  6,  0,  -1, -1, -1, -1, 6,  7,  0, 1,  -1, -1, -1, 4,  5,  0, 1, 2,
                                                 -1, -1, 0,  5,  1,  2,  3,  -1, -1, 2, 7,  3,  0,  4,  -1, -1, 2, 3, 4,
                                                 0,  5,  -1, -1, 0,  1,  4,  5,  3,  6, -1, 1,  4,  5,  6,  0,  3, 7};
    std::vector<std::uint8_t> types(neighbors.size());
    for (std::size_t i = 0; i < types.size(); ++i)
        types[i] = neighbors[i] < 0 ? 0 : static_cast<std::uint8_t>(1 + i % 4);
    bf::graph const whole({1, 8, 7}, neighbors, types);
    bf::graph const cut = testing::published_truncation(whole.view(), 4);
    REQUIRE(cut.shape() == bf::graph_shape{1, 8, 4});
    for (bf::index_t node = 0; node < 8; ++node)
        for (std::size_t slot = 0; slot < 4; ++slot) {
            REQUIRE(cut.view().neighbors(0, node)[slot] == whole.view().neighbors(0, node)[slot]);
            REQUIRE(cut.view().types(0, node)[slot] == whole.view().types(0, node)[slot]);
        }
    auto const last = cut.view().neighbors(0, 7);
    REQUIRE(std::find(last.begin(), last.end(), 7) == last.end()); // self is gone
    REQUIRE(testing::published_truncation(whole.view(), 99).shape() == whole.shape());
    bf::graph const none = testing::published_truncation(whole.view(), 0);
    REQUIRE(none.shape() == bf::graph_shape{1, 8, 1});
    REQUIRE(none.view().neighbors(0, 3)[0] == bf::no_neighbor);
    REQUIRE_THROWS_AS(testing::published_truncation(whole.view(), -1), bf::shape_error);
}
