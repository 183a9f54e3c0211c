// SPDX-License-Identifier: MIT
#pragma once

// Caches filled from a stream that positions alone decide, and saved files with their checksums made right again.

#include <butterfly/cache/attend.hpp>
#include <butterfly/cache/mixed_attend.hpp>
#include <butterfly/cache/save.hpp>
#include <butterfly/testing/problem.hpp>
#include <butterfly/topology/causal_shift.hpp>
#include <butterfly/topology/window.hpp>

#include <string>
#include <vector>

namespace butterfly::testing {

using file_bytes = std::vector<std::byte>;

/// A cache in memory that the test can look at, which at first holds `filler`.
template <class Cache>
struct watched_cache {
    using config_type = typename Cache::config_type;
    using mix_type    = typename Cache::mix_type;

    std::vector<std::byte> memory;
    Cache cache;

    explicit watched_cache(config_type const& config, mix_type const& mix = {}, std::byte filler = std::byte{0xa5})
        : memory(static_cast<std::size_t>(Cache::required_bytes(config, mix)), filler),
          cache(config, std::span(memory), mix) {}
};

/// Rows of positions [first, first + tokens) of a stream.
[[nodiscard]] inline heads_buffer<float>
stream_rows(std::uint64_t stream, index_t heads, index_t first, index_t tokens, index_t dim) {
    heads_buffer<float> rows({heads, tokens, dim});
    for (index_t h = 0; h < heads; ++h)
        for (index_t t = 0; t < tokens; ++t) {
            random draws(stream, static_cast<std::uint64_t>((first + t) * heads + h));
            for (float& x : rows.view().row(h, t)) x = static_cast<float>(draws.normal());
            rows.view().row(h, t)[0] += 3.0F; // what centring takes out
        }
    return rows;
}

/// Appends the next `tokens` positions of a stream, with weights where the cache takes them.
template <class Policy, class Cache>
void append_stream(Policy const& policy, Cache& cache, index_t tokens, std::uint64_t stream = 1) {
    auto const& c       = cache.config();
    index_t const first = cache.tokens();
    auto const k        = stream_rows(2 * stream, c.kv_heads, first, tokens, c.head_dim);
    auto const v        = stream_rows(2 * stream + 1, c.kv_heads, first, tokens, c.value_dim());
    std::vector<float> weights;
    for (index_t t = 0; t < tokens; ++t) weights.push_back(0.25F * static_cast<float>((first + t) % 7));
    append_options options;
    if (Cache::takes_weights) options.token_weights = memory_ref(weights.data());
    append(policy, cache, k.view(), v.view(), options);
}

/// What the latest `tokens` queries see, two query heads for each of the cache.
template <class Policy, class Cache>
[[nodiscard]] std::vector<float> attend_latest(Policy const& policy, Cache const& cache, index_t tokens) {
    auto const& c       = cache.config();
    index_t const heads = 2 * c.kv_heads;
    auto const q        = stream_rows(9, heads, cache.tokens() - tokens, tokens, c.head_dim);
    heads_buffer<float> out({heads, tokens, c.value_dim()});
    if constexpr (requires { cache.max_blocks(); })
        attend(policy, q.view(), cache,
               topology::row(topology::causal_shift{{0, 1, 2}}, topology::window{.predecessors = 1}), out.view(),
               {.scale = 0.5F});
    else
        attend(policy, q.view(), cache, out.view(), {.scale = 0.5F});
    return {out.values().begin(), out.values().end()};
}

/// Makes the checksums of a file those of its bytes, as far as its header can be read.
inline void reseal(file_bytes& file) {
    namespace saved = butterfly::detail::saved;
    auto const seal = [&](std::size_t first, std::size_t end, std::uint32_t crc) {
        crc = butterfly::detail::crc32(std::span(file).subspan(first, end - first - saved::crc_size), crc);
        for (std::size_t i = 0; i < saved::crc_size; ++i)
            file[end - saved::crc_size + i] = static_cast<std::byte>(crc >> (8 * i));
        return crc;
    };
    if (file.size() < 16) return;
    auto const header = static_cast<std::size_t>(saved::get(file.data() + 12, 4));
    if (header < saved::crc_size || header > file.size()) return;
    std::uint32_t crc = seal(0, header, 0);
    try {
        std::size_t at = header;
        saved::reader const in("reseal", file);
        in.each_section([&](saved_part const&, std::span<std::byte const> rows) {
            std::size_t const end = at + saved::sealed_size(rows.size());
            crc                   = seal(at, end, crc);
            at                    = end;
        });
    } catch (format_error const&) {
    }
}

/// A file with another header before the same sections.
[[nodiscard]] inline file_bytes with_header(file_bytes const& file, saved_cache const& header) {
    file_bytes out    = butterfly::detail::saved::encode(header);
    auto const before = static_cast<std::ptrdiff_t>(butterfly::detail::saved::get(file.data() + 12, 4));
    out.insert(out.end(), file.begin() + before, file.end());
    reseal(out);
    return out;
}

} // namespace butterfly::testing
