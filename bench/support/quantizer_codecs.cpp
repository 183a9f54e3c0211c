// SPDX-License-Identifier: MIT
#include "quantizer_codecs.hpp"

#include <butterfly/backend/simd.hpp>
#include <butterfly/quant/distortion.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>

#include "kv_codecs.hpp"

namespace bench {
namespace {

using policy = bf::backend::simd<>;

template <class Keys, class Values>
void attend_over(
    Keys const& keys, Values const& values, index_t head_dim, std::span<float const> q, std::span<float> out) {
    bf::heads_shape const shape{static_cast<index_t>(q.size()) / head_dim, 1, head_dim};
    bf::dense_sdpa(policy{}, bf::heads_view<float const>{q.data(), shape}, keys, values,
                   bf::heads_view<float>{out.data(), shape}, {.causal = false});
}

template <class Codec>
class quantizer_of final : public quantizer {
public:
    explicit quantizer_of(named_codec<Codec> const& is) : is_(is) {}

    [[nodiscard]] std::string name() const override { return is_.name; }
    [[nodiscard]] std::string description() const override { return std::string(is_.codec.name()); }
    [[nodiscard]] std::string origin() const override { return name_of(is_.origin); }
    [[nodiscard]] index_t tile_tokens() const override { return bf::quant::tile_tokens_of<Codec>(); }
    [[nodiscard]] std::string unit() const override {
        auto const* const ops = static_cast<bf::backend::vec::simd_codec_ops const*>(leaf_.ops);
        return ops->score != nullptr ? ops->unit : "decoded";
    }
    [[nodiscard]] std::string refusal(index_t head_dim) const override try {
        bf::quant::require_head_dim<Codec>(head_dim);
        return "";
    } catch (bf::shape_error const& e) {
        return e.what();
    }
    [[nodiscard]] index_t row_bytes(index_t head_dim) const override { return is_.codec.row_bytes(head_dim); }
    [[nodiscard]] double bits_per_value(index_t head_dim) const override {
        return bf::quant::bits_per_value(is_.codec, head_dim);
    }

    void encode(float const* rows, index_t head_dim, std::byte* to) const override {
        bf::quant::encoder_of<Codec>()(&is_.codec, rows, head_dim, head_dim, to);
    }
    void decode(std::span<std::byte const* const> rows, index_t head_dim, float* out) const override {
        auto const* const ops = static_cast<bf::backend::on_host::codec_ops const*>(leaf_.ops);
        ops->decode(&is_.codec, rows.data(), static_cast<int>(rows.size()), head_dim, out, head_dim);
    }
    void decode_exactly(std::byte const* row, index_t head_dim, float* out) const override {
        is_.codec.decode(row, head_dim, out);
    }
    bool score(std::span<std::byte const* const> rows,
               index_t head_dim,
               std::span<float const> q,
               std::span<float> scores) const override {
        namespace vec         = bf::backend::vec;
        auto const* const ops = static_cast<vec::simd_codec_ops const*>(leaf_.ops);
        if (ops->score == nullptr) return false;
        index_t const stride = bf::detail::round_up(head_dim, vec::query_padding), heads = std::ssize(q) / head_dim;
        std::vector<float> padded(static_cast<std::size_t>(heads * stride));
        for (index_t h = 0; h < heads; ++h) std::copy_n(q.data() + h * head_dim, head_dim, padded.data() + h * stride);
        std::vector<std::byte> prepared(padded.size() * sizeof(float));
        vec::stream_queries const queries{padded.data(), stride, static_cast<int>(heads), 1.0F, prepared.data()};
        if (ops->prepare != nullptr) ops->prepare(&is_.codec, queries, head_dim, prepared.data());
        auto const tokens = std::ssize(rows);
        for (index_t t = 0; t < tokens; t += bf::tile_slots) {
            auto const count = static_cast<int>(std::min<index_t>(bf::tile_slots, tokens - t));
            ops->score({rows.data() + t, count, head_dim, {}, &is_.codec}, queries, scores.data() + t * heads);
        }
        return true;
    }
    void attend(std::byte const* keys,
                std::byte const* values,
                index_t tokens,
                index_t head_dim,
                std::span<float const> q,
                std::span<float> out) const override {
        bf::heads_shape const shape{1, tokens, head_dim};
        attend_over(bf::packed_view{keys, is_.codec, shape}, bf::packed_view{values, is_.codec, shape}, head_dim, q,
                    out);
    }

private:
    named_codec<Codec> is_;
    bf::bound_codec leaf_ = bind_codec(policy{}, is_.codec);
};

} // namespace

std::vector<std::unique_ptr<quantizer const>> make_quantizers() {
    std::vector<std::unique_ptr<quantizer const>> all;
    for_each_kv_codec([&]<class Codec>(named_codec<Codec> const& is) {
        all.push_back(std::make_unique<quantizer_of<Codec> const>(is));
    });
    return all;
}

std::string quantizer_backend() {
    return policy::name();
}

void attend_floats(std::span<float const> keys,
                   std::span<float const> values,
                   index_t head_dim,
                   std::span<float const> q,
                   std::span<float> out) {
    bf::heads_shape const shape{1, static_cast<index_t>(keys.size()) / head_dim, head_dim};
    attend_over(bf::heads_view<float const>{keys.data(), shape}, bf::heads_view<float const>{values.data(), shape},
                head_dim, q, out);
}

} // namespace bench
