// SPDX-License-Identifier: MIT

#include "decode_step_of.hpp"
#include "kv_codecs.hpp"
#include "usage.hpp"

namespace bench {
namespace {

/// Every token by one codec: keys, then values.
template <bf::quant::codec Codec>
class dense_tokens {
public:
    dense_tokens(decode_shape const& s, machine const&)
        : half_{s.kv_heads, s.n_kv, s.head_dim}, memory_(2 * half_bytes()) {
        if constexpr (requires { typename Codec::value_type; })
            fill(std::span(reinterpret_cast<typename Codec::value_type*>(first()), elements()));
        else
            pack();
    }

    /// f(problem) for queries that end with the context.
    template <class Policy, class F>
    void
    with_problem(Policy const& policy, bf::heads_view<float const> q, bf::heads_view<float> out, F const& f) const {
        bf::packed_view<Codec> const keys{first(), codec_, half_}, values{first() + half_bytes(), codec_, half_};
        bf::pool const all(keys, values, bf::visible::causal_prefix());
        auto const bound = bf::make_problem(policy, q, out, {.q_position = half_.tokens - q.tokens()}, all);
        f(bound.problem());
    }
    [[nodiscard]] std::span<std::byte const> pages(index_t) { return memory_.pages(); }

private:
    /// Bytes of keys, or of values, of which a head ends with a whole tile.
    [[nodiscard]] index_t half_bytes() const {
        return half_.heads * bf::detail::round_up(half_.tokens, tile) * codec_.row_bytes(half_.head_dim);
    }
    [[nodiscard]] std::size_t elements() const {
        return static_cast<std::size_t>(2 * half_.heads * half_.tokens * half_.head_dim);
    }
    [[nodiscard]] std::byte* first() const { return memory_.pages().data(); }

    /// Tiles of N(0, 1), over and over as `fill` does it: a prime number of them.
    void pack() {
        constexpr index_t period = tile == 1 ? 499 : 13;
        index_t const bytes      = tile * codec_.row_bytes(half_.head_dim);
        auto const encode        = bf::quant::encoder_of<Codec>();
        bf::testing::random draws(7);
        std::vector<float> values(static_cast<std::size_t>(tile * half_.head_dim));
        for (index_t i = 0; i < 2 * half_bytes() / bytes; ++i) {
            std::byte* const to = first() + i * bytes;
            if (i >= period) {
                std::copy_n(to - period * bytes, bytes, to);
                continue;
            }
            for (float& x : values) x = static_cast<float>(draws.normal());
            encode(&codec_, values.data(), half_.head_dim, half_.head_dim, to);
        }
    }

    static constexpr index_t tile = bf::quant::tile_tokens_of<Codec>();

    Codec codec_{};
    bf::heads_shape half_;
    page_memory memory_;
};

/// f(name, codec) for every way.
template <class F>
void for_each_storage(F const& f) {
    f("f32", bf::quant::raw<float>{});
    for_each_kv_codec([&](auto const& is) { f(is.name, is.codec); });
}

} // namespace

std::vector<std::string> decode_storages() {
    std::vector<std::string> names;
    for_each_storage([&](char const* name, auto const&) { names.emplace_back(name); });
    return names;
}

std::unique_ptr<decode_step> make_dense_step(std::string const& storage, decode_shape const& shape, machine const& m) {
    std::unique_ptr<decode_step> made;
    for_each_storage([&]<class Codec>(char const* name, Codec const&) {
        if (storage != name) return;
        bf::quant::require_head_dim<Codec>(shape.head_dim);
        made = std::make_unique<step_of<dense_tokens<Codec>>>(shape, m);
    });
    if (made == nullptr) throw usage_error("--storage {}: no such storage", storage);
    return made;
}

} // namespace bench
