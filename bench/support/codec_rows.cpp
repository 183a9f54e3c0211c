// SPDX-License-Identifier: MIT
#include "codec_rows.hpp"

#include <butterfly/backend/simd.hpp>
#include <butterfly/cache/mixed_attend.hpp>

#include "kv_mixes.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace bench {
namespace {

/// Memory whose base is a multiple of what tiles of any codec begin at.
class tile_memory {
public:
    explicit tile_memory(index_t bytes) : bytes_(static_cast<std::size_t>(bytes + alignment)) {}

    [[nodiscard]] std::byte* data() noexcept {
        auto const at = reinterpret_cast<std::uintptr_t>(bytes_.data());
        return bytes_.data() + (alignment - at % alignment) % alignment;
    }

private:
    static constexpr index_t alignment = 1024;
    std::vector<std::byte> bytes_;
};

std::vector<float> mean_of(bf::heads_view<float const> rows, index_t head, index_t count) {
    std::vector<double> sum(static_cast<std::size_t>(rows.shape().head_dim));
    for (index_t t = 0; t < count; ++t) {
        auto const row = rows.row(head, t);
        for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += static_cast<double>(row[d]);
    }
    std::vector<float> mean(sum.size());
    for (std::size_t d = 0; d < sum.size(); ++d)
        mean[d] = count > 0 ? static_cast<float>(sum[d] / static_cast<double>(count)) : 0;
    return mean;
}

/// The group of a mix of this library that is another's format.
std::string group_of(std::string_view mix) {
    return mix.ends_with("_channels") ? "KIVI" : "library";
}

/// Outputs at positions, ascending: each a decode step, one query token.
template <class Mix>
bf::heads_buffer<float>
run_cache(Mix const& mix, mix_sizes const& sizes, qkv const& in, std::vector<index_t> const& at, bf::executor threads) {
    constexpr index_t step = 512;
    bf::backend::simd<> const policy{.executor = threads};
    bf::heads_shape const q       = in.q.shape();
    bf::heads_shape const k       = in.k.shape();
    bf::mixed_cache_config config = sizes.of(k.heads, k.head_dim, k.tokens);
    config.value_head_dim         = in.v.shape().head_dim;
    config.max_append             = step;
    bf::mixed_kv_cache<Mix> cache(config, mix);
    bf::heads_shape const out_shape{q.heads, static_cast<index_t>(at.size()), config.value_dim()};
    bf::heads_buffer<float> out(out_shape);
    bf::heads_buffer<float> one({q.heads, 1, config.value_dim()});
    auto next = at.begin();
    for (index_t first = 0; next != at.end();) {
        index_t const count = std::min(step, *next + 1 - first);
        bf::append(policy, cache, in.k.view().slice(first, count), in.v.view().slice(first, count));
        first += count;
        if (first <= *next) continue;
        bf::attend(policy, in.q.view().slice(*next, 1), cache, one.view());
        for (index_t h = 0; h < q.heads; ++h)
            std::ranges::copy(one.view().row(h, 0), out.view().row(h, next - at.begin()).begin());
        ++next;
    }
    return out;
}

} // namespace

bf::heads_buffer<float> packed_and_unpacked(quantizer const& codec,
                                            bf::heads_buffer<float> const& rows,
                                            index_t centre,
                                            bf::executor const& threads) {
    bf::heads_shape const s = rows.shape();
    index_t const tile = codec.tile_tokens(), tiles = s.tokens / tile, bytes = codec.row_bytes(s.head_dim);
    auto const width = static_cast<std::size_t>(s.head_dim);
    std::vector<std::vector<float>> means;
    for (index_t h = 0; h < s.heads; ++h) means.push_back(mean_of(rows.view(), h, std::min(centre, s.tokens)));
    bf::heads_buffer<float> out = rows;
    threads.each(s.heads * tiles, [&](index_t item, int) noexcept {
        index_t const head = item / tiles, first = item % tiles * tile;
        std::vector<float> const& mean = means[static_cast<std::size_t>(head)];
        std::vector<float> values(static_cast<std::size_t>(tile) * width);
        tile_memory packed(tile * bytes);
        for (index_t j = 0; j < tile; ++j) {
            auto const row = rows.view().row(head, first + j);
            for (std::size_t d = 0; d < width; ++d) values[static_cast<std::size_t>(j) * width + d] = row[d] - mean[d];
        }
        codec.encode(values.data(), s.head_dim, packed.data());
        for (index_t j = 0; j < tile; ++j) {
            auto const row = out.view().row(head, first + j);
            codec.decode_exactly(tile == 1 ? packed.data() : packed.data() + j, s.head_dim, row.data());
            for (std::size_t d = 0; d < width; ++d) row[d] += mean[d];
        }
    });
    return out;
}

std::vector<codec_pair> codec_pairs() {
    std::vector<codec_pair> all;
    for_each_mixed_mix([&](auto const& m) {
        all.push_back({m.name, group_of(m.name), short_name(m.mix.middle_k), short_name(m.mix.middle_v),
                       m.sizes.centre_keys > 0});
    });
    for (auto const* const name : {"ggml_q8_0", "ggml_q4_0", "ggml_q4_1"})
        all.push_back({fmt::format("{0}+{0}", std::string_view(name).substr(5)), "ggml", name, name});
    all.push_back({"q8_0+q4_0", "ggml", "ggml_q8_0", "ggml_q4_0"});
    for_each_published_pair([&](auto const& p) {
        std::string const name(p.name);
        std::size_t const plus = name.find('+');
        all.push_back({name, "published", name.substr(0, plus), name.substr(plus + 1)});
    });
    return all;
}

bf::heads_buffer<float> run_mixed_cache(std::string const& pair,
                                        qkv const& in,
                                        std::vector<index_t> const& positions,
                                        bf::executor const& threads) {
    bf::heads_buffer<float> out;
    for_each_mixed_mix([&](auto const& m) {
        if (pair == m.name) out = run_cache(m.mix, m.sizes, in, positions, threads);
    });
    return out;
}

} // namespace bench
