// SPDX-License-Identifier: MIT
#include "ladder_accounting.hpp"

#include <butterfly/cache/accounting.hpp>
#include <butterfly/cache/attend.hpp>

#include "machine.hpp"

#include <array>

namespace bench {
namespace {

using element = bf::bfloat16;

/// Retained bytes of one layer after each of the contexts, by appending that many tokens in steps.
std::vector<index_t> retained_by_appending(bf::accounting::model const& model, ladder_settings const& s) {
    machine const backend = make_machine(s.common.backend, s.common.threads);
    bf::heads_buffer<element> chunk({model.kv_heads, s.step, model.head_dim});
    for (element& x : chunk.values()) x = element(1.0F);
    std::vector<index_t> bytes;
    for (index_t const context : s.contexts) {
        bf::cache_config config = s.cache(context);
        config.kv_heads         = model.kv_heads;
        config.head_dim         = model.head_dim;
        config.rules            = bf::cache_rules::published;
        bf::compressed_kv_cache<bf::raw_mix<element>> cache(config);
        for (index_t at = 0; at < context; at += s.step) {
            auto const rows = bf::heads_view<element const>(chunk.view()).slice(0, std::min(s.step, context - at));
            bf::append(backend, cache, rows, rows);
        }
        bytes.push_back(cache.retained_bytes());
    }
    return bytes;
}

json account(bf::accounting::model const& model, ladder_settings const& s, text_table& table) {
    json rungs                        = json::array();
    std::vector<index_t> const layers = retained_by_appending(model, s);
    for (std::size_t i = 0; i < s.contexts.size(); ++i) {
        index_t const context         = s.contexts[i];
        bf::cache_config const config = [&] {
            bf::cache_config c = s.cache(context);
            c.rules            = bf::cache_rules::published;
            return c;
        }();
        auto const r             = bf::accounting::account(model, config, {.prompt = context, .step = s.step});
        index_t const kv         = model.attention_layers * layers[i];
        index_t const compressed = kv + model.constant_bytes;
        index_t const stock      = r.published_stock();
        auto const share         = [](index_t a, index_t b) { return static_cast<double>(a) / static_cast<double>(b); };
        table.add({i == 0 ? model.name : "", size_text(context), fmt::format("{}", stock),
                   fmt::format("{}", compressed), fmt::format("{:.5f}", share(compressed, stock)),
                   fmt::format("{}", r.dense), fmt::format("{}", kv), fmt::format("{:.5f}", share(kv, r.dense)),
                   fmt::format("1/{:.0f}", share(r.dense, kv)), fmt::format("{}", model.constant_bytes)});
        rungs.push_back({{"context", context},
                         {"stock_bytes", stock},
                         {"compressed_bytes", compressed},
                         {"ratio", share(compressed, stock)},
                         {"kv_stock_bytes", r.dense},
                         {"kv_compressed_bytes", kv},
                         {"kv_ratio", share(kv, r.dense)},
                         {"constant_bytes", model.constant_bytes}});
    }
    return {{"model", model.name}, {"rungs", rungs}};
}

} // namespace

json account_published(ladder_settings const& s, std::FILE* to) {
    text_table table(
        {"model", "context", "stock", "compressed", "ratio", "KV stock", "KV compressed", "ratio", "", "state"}, 2);
    json models = json::array();
    for (auto const& model : {bf::accounting::published_0_8b, bf::accounting::published_4b}) {
        if (!models.empty()) table.gap();
        models.push_back(account(model, s, table));
    }
    fmt::print(to,
               "Bytes retained after a prefill in steps of {}: rules published, {} exact tokens, blocks of {}, bf16.\n"
               "stock and compressed count the constant state of the layers that do not attend (column state), stock\n"
               "also the unused end of a buffer that grows in steps of 256; the KV columns count neither.\n\n",
               s.step, s.exact_window, s.block_size);
    table.print(to);
    return models;
}

} // namespace bench
