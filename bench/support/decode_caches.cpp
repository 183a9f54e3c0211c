// SPDX-License-Identifier: MIT
#include <butterfly/cache/attend.hpp>
#include <butterfly/cache/mixed_attend.hpp>

#include "decode_step_of.hpp"
#include "kv_mixes.hpp"
#include "ladder_routing.hpp"
#include "usage.hpp"

namespace bench {
namespace {

/// Appends to a cache up to n_kv tokens, the rows of the queries last and together: exact rows then serve all of them.
template <class Cache>
void append_all(machine const& m, Cache& cache, decode_shape const& s, index_t step) {
    bf::heads_buffer<bf::bfloat16> rows({s.kv_heads, std::max(step, s.rows), s.head_dim});
    fill(rows.values());
    auto const append = [&](index_t tokens) {
        auto const next = std::as_const(rows).view().slice(0, tokens);
        bf::append(m, cache, next, next);
    };
    index_t const before = s.n_kv - s.rows;
    while (cache.tokens() < before) append(std::min(step, before - cache.tokens()));
    append(s.rows);
}

/// Every pool of a cache by one codec.
template <class Codec>
struct one_mix {
    Codec tail{}, summary_k{}, summary_v{};
};

/// The ladder's settings for one layer of this shape.
ladder_settings settings_of(decode_shape const& s) {
    ladder_settings out;
    out.model          = find_model("qwen3.5-0.8b"); // for its layers: they go round the partners
    out.model.heads    = s.heads;
    out.model.kv_heads = s.kv_heads;
    out.model.head_dim = s.head_dim;
    return out;
}

template <bf::quant::row_codec Codec>
class compressed_tokens {
public:
    compressed_tokens(decode_shape const& s, machine const& m)
        : settings_(settings_of(s)), cache_(settings_.cache(s.n_kv)),
          row_(ladder_routing(settings_, s.n_kv).over_summaries(0, s.n_kv)) {
        append_all(m, cache_, s, settings_.step);
    }

    template <class Policy, class F>
    void
    with_problem(Policy const& policy, bf::heads_view<float const> q, bf::heads_view<float> out, F const& f) const {
        auto const bound = bf::make_problem(policy, q, cache_, row_, out);
        f(bound.problem());
    }
    [[nodiscard]] std::span<std::byte const> pages(index_t bytes) { return read_.of(bytes); }

private:
    ladder_settings settings_;
    bf::compressed_kv_cache<one_mix<Codec>> cache_;
    summary_row row_;
    read_pages read_{};
};

/// The mixed-precision cache. It reads nearly all of its memory, which is what plain reads get.
template <class Mix>
class mixed_tokens {
public:
    mixed_tokens(decode_shape const& s, machine const& m, named_mix<Mix> const& is)
        : memory_(cache_type::required_bytes(config_of(s, is.sizes), is.mix)),
          cache_(config_of(s, is.sizes), bf::memory_ref(memory_.pages().data()), std::ssize(memory_.pages()), is.mix) {
        append_all(m, cache_, s, step);
    }

    template <class Policy, class F>
    void
    with_problem(Policy const& policy, bf::heads_view<float const> q, bf::heads_view<float> out, F const& f) const {
        auto const bound = bf::make_problem(policy, q, cache_, out);
        f(bound.problem());
    }
    [[nodiscard]] std::span<std::byte const> pages(index_t) { return memory_.pages(); }

private:
    using cache_type              = bf::mixed_kv_cache<Mix>;
    static constexpr index_t step = 512;

    [[nodiscard]] static bf::mixed_cache_config config_of(decode_shape const& s, mix_sizes const& sizes) {
        bf::mixed_cache_config config = sizes.of(s.kv_heads, s.head_dim, s.n_kv);
        config.max_append             = step;
        return config;
    }

    page_memory memory_;
    cache_type cache_;
};

/// The codecs that a whole compressed cache is kept by.
template <class F>
void for_each_compressed(F const& f) {
    f("f32", bf::quant::raw<float>{});
    for_each_kv_codec([&]<bf::quant::codec Codec>(named_codec<Codec> const& is) {
        if constexpr (bf::quant::row_codec<Codec>)
            if constexpr (bf::quant::formatted<Codec> || requires { typename Codec::value_type; }) f(is.name, is.codec);
    });
}

} // namespace

std::vector<std::string> decode_mixes() {
    std::vector<std::string> names;
    for_each_mixed_mix([&](auto const& is) { names.emplace_back(is.name); });
    return names;
}

std::unique_ptr<decode_step> make_mixed_step(std::string const& mix, decode_shape const& shape, machine const& m) {
    std::unique_ptr<decode_step> made;
    for_each_mixed_mix([&]<class Mix>(named_mix<Mix> const& is) {
        if (mix == is.name) made = std::make_unique<step_of<mixed_tokens<Mix>>>(shape, m, is);
    });
    if (made == nullptr) throw usage_error("--mix {}: no such mix", mix);
    return made;
}

std::unique_ptr<decode_step>
make_compressed_step(std::string const& storage, decode_shape const& shape, machine const& m) {
    std::unique_ptr<decode_step> made;
    for_each_compressed([&]<class Codec>(char const* name, Codec const&) {
        if (storage != name) return;
        bf::quant::require_head_dim<Codec>(shape.head_dim);
        made = std::make_unique<step_of<compressed_tokens<Codec>>>(shape, m);
    });
    if (made == nullptr)
        throw usage_error("--storage {}: --system compressed takes rows of numbers, or of codes that kernels read in "
                          "place",
                          storage);
    return made;
}

} // namespace bench
