// SPDX-License-Identifier: MIT
// docs/adding-a-codec.md
#include <butterfly/butterfly.hpp>

#include <algorithm>
#include <cmath>

namespace bf = butterfly;

namespace mine {

/// One scale per row: x ~ code * scale, code in [-127, 127].
///
///   | scale f32 | c0 | c1 | ... |        4 + head_dim bytes
///
/// Error: |x - decode| <= scale / 2, scale = max |x| / 127, at least 2^-126. Zeros are exact; a row with a value that
/// is not finite decodes to NaN throughout.
struct row_scaled {
    [[nodiscard]] constexpr bf::index_t row_bytes(bf::index_t head_dim) const noexcept { return 4 + head_dim; }

    void encode(float const* values, bf::index_t head_dim, std::byte* row) const noexcept {
        float top = 0.0F, none = 0.0F;
        for (bf::index_t d = 0; d < head_dim; ++d) {
            top = std::max(top, std::abs(values[d]));
            none += 0.0F * values[d]; // NaN where a value is not finite
        }
        float const scale = none + (top > 0.0F ? std::max(top / 127.0F, 0x1p-126F) : 0.0F);
        std::memcpy(row, &scale, sizeof scale);
        for (bf::index_t d = 0; d < head_dim; ++d)
            row[4 + d] = static_cast<std::byte>(scale > 0.0F ? std::lround(values[d] / scale) : 0);
    }

    // One product and nothing to contract: the same bits under any flags.
    void decode(std::byte const* row, bf::index_t head_dim, float* out) const noexcept {
        float scale = 0.0F;
        std::memcpy(&scale, row, sizeof scale);
        for (bf::index_t d = 0; d < head_dim; ++d)
            out[d] = scale * static_cast<float>(static_cast<signed char>(row[4 + d]));
    }
};

static_assert(bf::quant::codec<row_scaled>);

/// Exact tokens in bf16, summaries packed.
struct packed_summaries {
    bf::quant::raw<bf::bfloat16> tail{};
    row_scaled summary_k{};
    row_scaled summary_v{};
};

static_assert(bf::cache_mix<packed_summaries>);

} // namespace mine

namespace mine {

/// The leaf for SIMD backends: rows decoded another way than one by one through row_scaled::decode.
inline void decode_rows(void const*,
                        std::byte const* const* rows,
                        int count,
                        bf::index_t head_dim,
                        float* out,
                        bf::index_t stride) noexcept {
    for (int j = 0; j < count; ++j) row_scaled{}.decode(rows[j], head_dim, out + j * stride);
}

inline constexpr bf::backend::vec::simd_codec_ops leaf{.base = {&decode_rows}, .score = nullptr, .accumulate = nullptr};

template <class Isa>
bf::backend::vec::simd_codec_ops const& simd_ops(Isa, row_scaled const&) noexcept {
    return leaf;
}

} // namespace mine

int main() {
    bf::backend::simd<> const cpu;

    // Any storage of any call.
    mine::row_scaled const codec;
    std::vector<std::byte> packed(static_cast<std::size_t>(2 * 100 * codec.row_bytes(32)));
    bf::packed_view const keys{packed.data(), codec, {2, 100, 32}};
    bf::heads_buffer<float> q({4, 100, 32}), v({2, 100, 32}), out({4, 100, 32});
    bf::dense_sdpa(cpu, q.view(), keys, v.view(), out.view());

    // A pool of a cache.
    bf::compressed_kv_cache<mine::packed_summaries> cache({.kv_heads = 2, .head_dim = 32, .max_tokens = 1024});
    bf::append(cpu, cache, v.view(), v.view());

    std::size_t const row = static_cast<std::size_t>(codec.row_bytes(32));
    float x[32], y[32];
    for (int d = 0; d < 32; ++d) x[d] = static_cast<float>(d - 7);
    codec.encode(x, 32, packed.data() + row);
    codec.decode(packed.data() + row, 32, y);
    for (int d = 0; d < 32; ++d)
        if (std::abs(x[d] - y[d]) > 24.0F / 254.0F) return 1;
    return cpu.available() && bind_codec(cpu, codec).ops == &mine::leaf ? 0 : 1;
}
