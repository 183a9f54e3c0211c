// SPDX-License-Identifier: MIT
// docs/adding-a-backend.md
#include <butterfly/backend/host/cache_ops.hpp>
#include <butterfly/backend/host/logits.hpp>
#include <butterfly/backend/host/shift_ops.hpp>
#include <butterfly/butterfly.hpp>
#include <butterfly/testing/properties.hpp>

#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

namespace bf = butterfly;

namespace mine {

/// 1. The policy: a small value with a name, an answer whether this machine runs it, and an executor.
struct two_pass {
    bf::executor executor{};

    [[nodiscard]] static std::string name() { return "two_pass"; }
    [[nodiscard]] static bool available() noexcept { return true; }
};

static_assert(bf::backend::host_policy<two_pass>);

/// 2. What it calls for a codec, and whose it is.
template <bf::quant::decoder Codec>
inline constexpr bf::backend::on_host::codec_ops ops{&bf::backend::on_host::decode_rows<Codec>};

template <bf::quant::decoder Codec>
[[nodiscard]] bf::bound_codec bind_codec(two_pass const&, Codec const&) noexcept {
    return {&ops<Codec>, "two_pass"};
}

/// 3. What it runs, and with what. These need shapes, types and strides, never data.
[[nodiscard]] inline bf::support supports(two_pass const& policy, bf::problem const& p) {
    std::string reason = bf::backend::on_host::decline(policy.executor, p, "two_pass");
    return {reason.empty(), reason};
}

[[nodiscard]] inline std::string explain(two_pass const&, bf::problem const&) {
    return "two_pass: the largest logit of a row, then its sums";
}

[[nodiscard]] inline bf::index_t workspace_bytes(two_pass const&, std::span<bf::problem const>) {
    return 0;
}

namespace detail {

struct seen_key {
    float logit;
    bf::pool_ref const* pool;
    bf::index_t slot;
};

/// One row: asks every pool for key tiles until it has no more.
inline std::vector<seen_key> keys_of(bf::problem const& p, bf::index_t head, bf::index_t token, float const* query) {
    namespace host = bf::backend::on_host;
    std::vector<seen_key> keys;
    std::vector<float> key(static_cast<std::size_t>(p.q.shape.head_dim));
    for (int i = 0; i < p.pool_count; ++i) {
        bf::pool_ref const& pool = p.pools[i];
        bf::row_tile const row{.first = token, .tokens = 1, .head = host::row_head(p, pool, head)};
        bf::tile_cursor cursor;
        bf::key_tile tile;
        while (pool.visibility.next(pool.visibility.state, p, i, row, {0, bf::no_alignment}, cursor, tile))
            for (int j = 0; j < tile.count; ++j) {
                if (tile.bits != nullptr && (tile.bits[0] >> j & 1U) == 0U) continue;
                float const bias = host::key_bias(pool, tile, j) + host::row_bias(p, pool, head, token, tile.slot(j));
                if (bias == -std::numeric_limits<float>::infinity()) continue;
                bf::backend::on_host::decode_row(pool.keys, head / p.group(), tile.slot(j), key.data());
                float const dot = std::inner_product(key.begin(), key.end(), query, 0.0F);
                keys.push_back(
                    {host::soft_capped(p.options.scale * dot, p.options.soft_cap) + bias, &pool, tile.slot(j)});
            }
    }
    return keys;
}

inline void attend_row(bf::problem const& p, bf::index_t head, bf::index_t token) {
    auto const dv = static_cast<std::size_t>(p.out.shape.head_dim);
    std::vector<float> query(static_cast<std::size_t>(p.q.shape.head_dim)), value(dv), out(dv);
    bf::backend::on_host::load_row(p.q, head, token, query.data());
    std::vector<seen_key> const keys = keys_of(p, head, token, query.data());
    auto const* const sinks          = bf::host_pointer<float const>(p.options.sink_logits);

    // The largest logit, then sums in double. A row that sees nothing is zero, with lse = -inf.
    float top = sinks != nullptr ? sinks[head] : -std::numeric_limits<float>::infinity();
    for (seen_key const& key : keys) top = std::max(top, key.logit);
    double total = 0.0;
    std::vector<double> sum(dv);
    for (seen_key const& key : keys) {
        if (key.logit == -std::numeric_limits<float>::infinity()) continue;
        double const weight = std::exp(static_cast<double>(key.logit) - top);
        total += weight;
        bf::backend::on_host::decode_row(key.pool->values, head / p.group(), key.slot, value.data());
        for (std::size_t d = 0; d < dv; ++d) sum[d] += weight * value[d];
    }
    if (auto* const lse = bf::host_pointer<float>(p.options.lse))
        lse[head * p.tokens() + token] =
            total == 0.0 ? -std::numeric_limits<float>::infinity() : static_cast<float>(top + std::log(total));
    if (sinks != nullptr) total += std::exp(static_cast<double>(sinks[head]) - top);
    for (std::size_t d = 0; d < dv; ++d) out[d] = static_cast<float>(total == 0.0 ? 0.0 : sum[d] / total);
    bf::backend::on_host::store_row(p.out, head, token, out.data(), 1.0F);
}

} // namespace detail

/// 4. The work. The executor decides which thread does which row.
inline void run(two_pass const& policy, std::span<bf::problem const> problems) {
    for (bf::problem const& p : problems)
        policy.executor.each(p.heads() * p.tokens(), [&](bf::index_t row, int) noexcept {
            detail::attend_row(p, row / p.tokens(), row % p.tokens());
        });
}

/// 5. Caches: what every host policy may use as it is.
using bf::backend::copy_bytes;
using bf::backend::shift_cache;
using bf::backend::update_cache;
using bf::backend::workspace_bytes;

} // namespace mine

/// 6. The laws every backend keeps.
int main() {
    for (auto const& law : bf::testing::laws<mine::two_pass>()) {
        bf::testing::report const found = law.check(mine::two_pass{}, {.brief = true});
        std::printf("%-45s %5d cases, worst %.2f of the tolerance\n", law.name, found.cases, found.worst);
        if (!found) return std::printf("%s\n", found.text.c_str()), 1;
    }
    bf::compressed_kv_cache<> cache({.kv_heads = 2, .head_dim = 16, .block_size = 8, .max_tokens = 64});
    bf::heads_buffer<float> k({2, 40, 16}), out({4, 40, 16}), q({4, 40, 16});
    bf::topology::row const routed{bf::topology::window{.predecessors = 1}};
    bf::append(mine::two_pass{}, cache, k.view(), k.view());
    bf::attend(mine::two_pass{}, q.view(), cache, routed, out.view());
    return cache.summaries() == 5 ? 0 : 1;
}
