// SPDX-License-Identifier: MIT

#include <butterfly/cache/accounting.hpp>

#include "support/catch.hpp"
#include "support/npy.hpp"

namespace bf = butterfly;

TEST_CASE("the byte tables are the published ones") {
    for (auto const& json : bf::testing::read_cases("cache/accounting.json")) {
        bool const small                 = json.at("model") == "0.8B";
        bf::accounting::model const& m   = small ? bf::accounting::published_0_8b : bf::accounting::published_4b;
        bf::accounting::schedule const s = {
            .prompt = json.at("T"), .step = json.at("chunk"), .decode = json.at("decode")};
        CAPTURE(m.name, s.prompt, s.decode);
        REQUIRE(json.at("attention_layers") == m.attention_layers);
        REQUIRE(json.at("Hkv") == m.kv_heads);
        REQUIRE(json.at("dh") == m.head_dim);
        REQUIRE(json.at("linear_bytes") == m.constant_bytes);

        auto const r = bf::accounting::account(
            m, {.block_size = json.at("bs"), .exact_window = json.at("W"), .rules = bf::cache_rules::published}, s);
        REQUIRE(r.counters.tail_tokens() == json.at("tail"));
        REQUIRE(r.counters.summaries() == json.at("summaries"));
        REQUIRE(r.retained == m.attention_layers * json.at("bytes_per_attention_layer_compressed").get<bf::index_t>());
        REQUIRE(r.stepped == m.attention_layers * json.at("bytes_per_attention_layer_stock").get<bf::index_t>());
        REQUIRE(r.published_compressed() == json.at("compressed_total"));
        REQUIRE(r.published_stock() == json.at("stock_total"));
    }
}

TEST_CASE("the ladder of the published tables") {
    struct rung {
        bf::accounting::model const& model;
        bf::index_t tokens, stock, prefilled, decoded; // decoded: eight tokens later; 0: not published
    };
    rung const ladder[] = {{bf::accounting::published_0_8b, 32768, 414326784, 16379904, 14905344},
                           {bf::accounting::published_0_8b, 65536, 816979968, 21098496, 18051072},
                           {bf::accounting::published_0_8b, 131072, 1622286336, 25817088, 24342528},
                           {bf::accounting::published_0_8b, 262144, 3232899072, 39972864, 36925440},
                           {bf::accounting::published_4b, 32768, 1104281600, 43089920, 0},
                           {bf::accounting::published_4b, 65536, 2178023424, 55672832, 0},
                           {bf::accounting::published_4b, 131072, 4325507072, 68255744, 0}};
    for (rung const& r : ladder) {
        CAPTURE(r.model.name, r.tokens);
        auto const at = [&](bf::index_t decode) {
            return bf::accounting::account(r.model, {.rules = bf::cache_rules::published},
                                           {.prompt = r.tokens, .decode = decode});
        };
        REQUIRE(at(0).published_stock() == r.stock);
        REQUIRE(at(0).published_compressed() == r.prefilled);
        if (r.decoded != 0) REQUIRE(at(8).published_compressed() == r.decoded);
    }
}

TEST_CASE("gap_free retains sinks, one summary per full block and their weights") {
    bf::accounting::model const m{.attention_layers = 3, .kv_heads = 2, .head_dim = 8, .constant_bytes = 100};
    auto const r          = bf::accounting::account(m, {.block_size = 16, .exact_window = 8, .exact_sinks = 4},
                                                    {.prompt = 1000, .step = 100});
    bf::index_t const row = 2 * 2 * 8 * 2; // K and V of two heads in bf16
    REQUIRE(r.counters.summaries() == 62);
    REQUIRE(r.counters.tail_start() == 880); // the last append started at 900: 16 * floor(893 / 16)
    REQUIRE(r.retained == 3 * (row * (120 + 62 + 4) + 62 * 4));
    REQUIRE(r.dense == 3 * row * 1000);
    REQUIRE(r.allocated >= r.retained);
    REQUIRE(r.constant == 100);
    REQUIRE_THROWS_AS(bf::accounting::account(m, {}, {.prompt = 10, .step = 0}), bf::shape_error);
}
