// SPDX-License-Identifier: MIT
// A toy engine: [tokens, heads, head_dim] tensors, a kernel of its own for decode, ours for prefill. Its test asks for
// seeded inputs, for the definition, and for the laws.
#include <butterfly/backend/scalar.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/testing/laws/structure.hpp>

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

namespace bf = butterfly;
namespace bt = butterfly::testing;

namespace engine {

/// Attention of one query over all keys, two passes: the engine's own kernel.
void decode(float const* q, float const* k, float const* v, float* out, int heads, int kv_heads, int keys, int dim) {
    std::vector<float> weights(static_cast<std::size_t>(keys));
    for (int h = 0; h < heads; ++h) {
        int const g = h / (heads / kv_heads);
        float top = -1e30F, sum = 0.0F;
        for (int j = 0; j < keys; ++j) {
            float dot = 0.0F;
            for (int d = 0; d < dim; ++d) dot += q[h * dim + d] * k[(j * kv_heads + g) * dim + d];
            weights[static_cast<std::size_t>(j)] = dot / std::sqrt(static_cast<float>(dim));
            top                                  = std::max(top, weights[static_cast<std::size_t>(j)]);
        }
        for (float& w : weights) sum += w = std::exp(w - top);
        for (int d = 0; d < dim; ++d) {
            float x = 0.0F;
            for (int j = 0; j < keys; ++j) x += weights[static_cast<std::size_t>(j)] * v[(j * kv_heads + g) * dim + d];
            out[h * dim + d] = x / sum;
        }
    }
}

/// A backend of the engine's: what it adds to a policy of ours is its name.
struct policy : bf::backend::scalar {
    [[nodiscard]] static std::string name() { return "engine"; }
};

} // namespace engine

TEST_CASE("the engine's decode is its definition") {
    for (int const keys : {1, 17, 300}) {
        auto p = bt::make_problem({.heads      = 4,
                                   .kv_heads   = 2,
                                   .tokens     = 1,
                                   .keys       = keys,
                                   .head_dim   = 80,
                                   .seed       = 11,
                                   .queries_in = bt::layout::interleaved,
                                   .keys_in    = bt::layout::interleaved});
        bf::attend_options o;
        o.q_position = keys - 1;
        bt::attention const wanted =
            bt::evaluate(p.q.view(), p.out.view(), o, bf::pool(p.k.view(), p.v.view(), bf::visible::causal_prefix()));
        engine::decode(p.q.view().data(), p.k.view().data(), p.v.view().data(), p.out.view().data(), 4, 2, keys, 80);
        bt::comparison const found = bt::compare(p.out.view(), wanted);
        INFO(found.text());
        REQUIRE(found.ok);
    }
}

TEST_CASE("the engine's backend keeps laws of ours") {
    for (auto const& law : {bt::law<engine::policy>{"dense limit", &bt::sparse_has_a_dense_limit<engine::policy>},
                            bt::law<engine::policy>{"causality", &bt::causality_is_exact<engine::policy>},
                            bt::law<engine::policy>{"empty rows", &bt::empty_rows_are_zero<engine::policy>}}) {
        bt::report const found = law.check({}, {.seed = 3, .brief = true});
        INFO(law.name << ": " << found.text);
        REQUIRE(found.ok);
        REQUIRE(found.cases > 0);
    }
}

int main(int argc, char** argv) {
    return Catch::Session().run(argc, argv);
}
