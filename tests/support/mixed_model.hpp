// SPDX-License-Identifier: MIT
#pragma once

// The model of a mixed-precision cache for cache_program.hpp. With L(t) = bs * floor(max(0, t - W + 1) / bs) a query at
// t sees every token j <= t once:
//
//   as sinks are kept        j < min(S, L(t))
//   packed                   S <= j < L(t): decode(encode(x - mean)) + mean, encoded with the other tokens of its tile
//   as the tail keeps it     j >= L(t)

#include <butterfly/cache/mixed_attend.hpp>
#include <butterfly/quant/affine.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>

#include "support/cache_program.hpp"

#include <cstdint>
#include <tuple>

namespace butterfly::testing {

/// A codec of its own for every side of every pool, one of which packs tiles.
struct six_codecs {
    quant::raw<float> sink_k{};
    quant::raw<bfloat16> sink_v{};
    quant::raw<float16> tail_k{};
    byte_codec tail_v{};
    quant::raw<bfloat16> middle_k{};
    quant::affine_channels<2, 32> middle_v{};
};

/// Rows of a head as a codec keeps them less `mean`, one after the other: what `rows` stand for once they are packed.
template <class Codec>
[[nodiscard]] std::vector<std::vector<float>>
through(Codec const& codec, std::vector<std::vector<float>> rows, std::vector<float> const& mean) {
    constexpr auto tile = static_cast<std::size_t>(quant::tile_tokens_of<Codec>());
    std::size_t const n = mean.size();
    auto const dim      = static_cast<index_t>(n);
    std::vector<float> values;
    for (auto const& row : rows)
        for (std::size_t d = 0; d < n; ++d) values.push_back(row[d] - mean[d]);
    std::vector<std::byte> memory(tile * static_cast<std::size_t>(codec.row_bytes(dim)) + tile);
    std::byte* const at = memory.data() + (-reinterpret_cast<std::uintptr_t>(memory.data()) % tile);
    for (std::size_t first = 0; first < rows.size(); first += tile) {
        if constexpr (quant::tile_codec<Codec>)
            codec.encode_tile(values.data() + first * n, dim, dim, at);
        else
            codec.encode(values.data() + first * n, dim, at);
        for (std::size_t j = 0; j < tile; ++j) {
            codec.decode(at + j, dim, rows[first + j].data());
            for (std::size_t d = 0; d < n; ++d) rows[first + j][d] += mean[d];
        }
    }
    return rows;
}

/// Every token of a sequence and what it means to attend to it.
template <class Mix>
struct mixed_model : kept_tokens {
    using cache_type = mixed_kv_cache<Mix>;

    mixed_cache_config config;
    std::map<std::tuple<bool, index_t, index_t>, std::vector<std::vector<float>>> packed{}; // (values, head, block)
    std::map<std::pair<bool, index_t>, std::vector<float>> frozen{}; // means of tokens that have moved: (values, head)

    explicit mixed_model(mixed_cache_config const& c) : config(c) {}

    [[nodiscard]] index_t sinks() const { return config.exact_sinks; }
    void changed(index_t length) {
        packed.clear();
        if (length < std::max({config.block_size, config.centre_keys, config.centre_values})) frozen.clear();
    }
    void shifting(bool codes) {
        std::map<std::pair<bool, index_t>, std::vector<float>> means;
        for (index_t head = 0; codes && head < config.kv_heads; ++head)
            for (bool const values : {false, true}) means[{values, head}] = mean(values, head);
        frozen = means;
        packed.clear();
    }

    template <class Policy, class Q, class O>
    void
    attend(Policy const& policy, Q const& q, cache_type const& cache, O const& out, attend_options const& o) const {
        butterfly::attend(policy, q, cache, out, o);
    }

    /// L(t).
    [[nodiscard]] index_t exact_from(index_t t) const {
        return std::max<index_t>(0, t - config.exact_window + 1) / config.block_size * config.block_size;
    }

    [[nodiscard]] std::string defect(cache_type const& cache) const {
        Mix const& mix   = cache.mix();
        index_t const dk = config.head_dim, dv = config.value_dim();
        index_t const bytes[] = {
            std::min(sinks(), tokens()) *
                (butterfly::detail::sink_k_of(mix).row_bytes(dk) + butterfly::detail::sink_v_of(mix).row_bytes(dv)),
            (tokens() - cache.tail_start()) *
                (butterfly::detail::tail_k_of(mix).row_bytes(dk) + butterfly::detail::tail_v_of(mix).row_bytes(dv)),
            cache.packed() * (mix.middle_k.row_bytes(dk) + mix.middle_v.row_bytes(dv)),
            cache.packed() > 0 ? 4 * ((config.centre_keys > 0 ? dk : 0) + (config.centre_values > 0 ? dv : 0)) : 0};
        index_t all = 0;
        for (index_t const part : bytes) all += config.kv_heads * part;
        if (cache.retained_bytes() != all) return "retains " + std::to_string(cache.retained_bytes());
        if (cache.packed() % config.block_size != 0 || cache.packed() > tokens()) return "packed part of a block";
        return tokens() > 0 && cache.packed() < exact_from(tokens() - 1) ? "a token has no codes" : "";
    }

    [[nodiscard]] std::vector<key> seen(Mix const& mix, index_t t, index_t head) {
        std::vector<key> keys;
        for (index_t j = 0; j <= t; ++j) {
            auto const at = static_cast<std::size_t>(j);
            if (j >= exact_from(t))
                keys.push_back({part(k[at], head, config.head_dim), part(v[at], head, config.value_dim()), 0.0});
            else if (j < sinks())
                keys.push_back(
                    {part(sink_k[at], head, config.head_dim), part(sink_v[at], head, config.value_dim()), 0.0});
            else
                keys.push_back(
                    {packed_row(mix.middle_k, false, head, j), packed_row(mix.middle_v, true, head, j), 0.0});
        }
        return keys;
    }

private:
    /// What a packed token stands for.
    template <class Codec>
    std::vector<float> packed_row(Codec const& codec, bool values, index_t head, index_t j) {
        index_t const block = j / config.block_size;
        auto& rows          = packed[{values, head, block}];
        if (rows.empty()) {
            constexpr index_t tile = quant::tile_tokens_of<Codec>();
            auto const& from       = values ? v : k;
            index_t const dim      = values ? config.value_dim() : config.head_dim;
            for (index_t i = block * config.block_size; i < (block + 1) * config.block_size; ++i) {
                index_t const in_place_of_sink = std::max(i, sinks());
                bool const none                = in_place_of_sink >= i - i % tile + tile;
                rows.push_back(part(from[static_cast<std::size_t>(none ? i : in_place_of_sink)], head, dim));
                if (none) rows.back() = mean(values, head); // less the mean it is zero
            }
            rows = through(codec, rows, mean(values, head));
        }
        return rows[static_cast<std::size_t>(j % config.block_size)];
    }

    /// fp32 sums in token order, divided once.
    std::vector<float> mean(bool values, index_t head) const {
        if (auto const moved = frozen.find({values, head}); moved != frozen.end()) return moved->second;
        index_t const dim   = values ? config.value_dim() : config.head_dim;
        index_t const count = values ? config.centre_values : config.centre_keys;
        std::vector<float> sum(static_cast<std::size_t>(dim));
        for (index_t i = 0; i < count; ++i) {
            auto const row = part((values ? v : k)[static_cast<std::size_t>(i)], head, dim);
            for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += row[d];
        }
        for (float& x : sum) x = count > 0 ? x / static_cast<float>(count) : 0.0F;
        return sum;
    }
};

/// Runs one program; see run_cache_program. `close`: how far results may be from the model's.
template <class Policy>
std::string
run_mixed_program(Policy const& policy, bool exact_bits, double close, std::span<std::uint8_t const> bytes) {
    program_reader in(bytes);
    mixed_cache_config c;
    index_t const mix = in.below(7);
    auto const run    = [&]<class M>(M const&, index_t tile, index_t dim_step) {
        index_t const sizes[] = {1, 2, 3, 4, 5, 8, 16, 64};
        c.block_size          = tile == 1 ? sizes[in.below(8)] : tile * in.between(1, 3);
        c.exact_window        = in.between(1, 40);
        c.exact_sinks         = in.below(4) == 0 ? in.below(100) : in.below(6);
        c.max_append          = in.between(1, 60);
        c.max_tokens          = in.between(1, 256) + (tile > 1 ? 100 : 0);
        c.max_rollback        = std::max<index_t>(0, in.between(-10, 20));
        c.kv_heads            = in.between(1, 2);
        c.head_dim            = dim_step * in.between(1, 3);
        c.value_head_dim      = dim_step * in.below(3);
        index_t const most    = c.exact_window + c.block_size - 1; // of what can be centred
        c.centre_keys         = in.below(2) == 0 ? 0 : std::max<index_t>(1, most - in.below(most));
        c.centre_values       = in.below(3) == 0 ? most : 0;
        if (in.below(2) == 0) { // the largest append for the same ring: no slack hides a lost row
            index_t const full = c.exact_window + c.block_size - 2 + c.max_rollback + c.max_append;
            c.max_append += butterfly::detail::round_up(full, tile_slots) - full;
        }
        int const group    = static_cast<int>(in.between(1, 2));
        index_t const skew = in.below(9);
        return cache_machine<Policy, mixed_model<M>>(policy, exact_bits, close, mixed_model<M>(c), skew).run(in, group);
    };
    if (mix == 0) return run(packed_mix<quant::raw<float>, quant::raw<bfloat16>, quant::raw<float>>{}, 1, 1);
    if (mix == 1) return run(packed_mix<byte_codec>{}, 1, 1);
    if (mix == 2) return run(packed_mix<quant::int8, quant::int8, quant::raw<float16>>{}, 1, 16);
    if (mix == 3) return run(packed_mix<quant::lloyd_max<16>, quant::lloyd_max<6>>{}, 1, 16);
    if (mix == 4) return run(packed_mix<quant::affine_channels<4, 32>, quant::affine<4, 64>>{}, 32, 16);
    if (mix == 5) return run(packed_mix<quant::affine_channels<3, 128>, quant::affine_channels<2, 64>>{}, 128, 16);
    return run(six_codecs{}, 32, 16);
}

} // namespace butterfly::testing
