// SPDX-License-Identifier: MIT
#include <butterfly/backend/host.hpp>
#include <butterfly/backend/scalar.hpp>
#include <butterfly/cache/attend.hpp>
#include <butterfly/cache/compressed_kv_cache.hpp>
#include <butterfly/quant/affine.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/topology/window.hpp>

#include "backend/check_laws.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace bf = butterfly;
using bf::backend::bf16_unit;
using bf::backend::isa_level;

namespace {

/// A policy for each level that this CPU has.
std::vector<bf::backend::host> policies() {
    std::vector<bf::backend::host> all;
    for (isa_level const level :
         {isa_level::baseline, isa_level::x86_v3, isa_level::x86_v4, isa_level::x86_zen4, isa_level::x86_amx}) {
        bf::backend::host const policy{.at_most = level};
        if (policy.level() == level) all.push_back(policy);
    }
    return all;
}

/// Every law at every level, with keys and values in KV.
template <bf::element KV>
void check_levels(std::uint64_t seed) {
    if (test::short_sweep()) return; // they are the kernels of simd<>, whose laws are asked either way
    for (bf::backend::host const& policy : policies()) {
        bf::testing::sweep const few{.seed          = seed,
                                     .brief         = true,
                                     .rounds        = policy.bf16() != bf16_unit::fma,
                                     .stream_rows   = 16,
                                     .stream_tokens = 8};
        DYNAMIC_SECTION(policy.name()) {
            test::check_laws<KV>(policy, few);
        }
    }
}

} // namespace

TEST_CASE("host keeps the laws at every level", "[backend]") {
    check_levels<float>(1);
}

TEST_CASE("host keeps the laws at every level with keys and values in bf16", "[backend]") {
    check_levels<bf::bfloat16>(3);
}

TEST_CASE("host takes the best level that is allowed", "[backend]") {
    auto const all = policies();
    REQUIRE(all.size() >= 1);
    REQUIRE(all[0].kernels()->level == isa_level::baseline);
    for (bf::backend::host const& policy : all) {
        CAPTURE(policy.name());
        REQUIRE(policy.available());
        REQUIRE(policy.kernels()->level <= policy.at_most);
        REQUIRE(std::string(policy.kernels()->name) == name_of(policy.kernels()->level));
        std::string const unit = policy.bf16() == bf16_unit::fma ? "" : std::string(", bf16 ") + name_of(policy.bf16());
        REQUIRE(policy.name() == std::string("host (") + policy.kernels()->name + unit + ")");
    }
#if defined(BUTTERFLY_TEST_LOWEST_LEVEL)
    return; // it is the only one that is linked
#endif
    // Every kernel level of this CPU is linked, so the best one is chosen.
    isa_level const best = available(isa_level::x86_v4)   ? isa_level::x86_v4
                           : available(isa_level::x86_v3) ? isa_level::x86_v3
                                                          : isa_level::baseline;
    REQUIRE(bf::backend::host{}.kernels()->level == best);
    REQUIRE(bf::backend::host{}.bf16() == resolve(bf16_unit::best));
    REQUIRE(bf::backend::host{}.level() == all.back().at_most);
}

TEST_CASE("outliers are decoded by kernels of the level that is allowed", "[backend]") {
    bf::quant::outliers<bf::quant::affine<4, 64>, 4> const codec;
    for (bf::backend::host const& one : policies())
        for (bf::backend::host const& other : policies())
            REQUIRE((bind_codec(one, codec).ops == bind_codec(other, codec).ops) == (one.kernels() == other.kernels()));
}

TEST_CASE("a problem runs at the level it was bound for", "[backend]") {
    auto data       = bf::testing::make_problem({.heads = 2, .tokens = 3, .head_dim = 8});
    auto const keys = bf::pool(data.k.view(), data.v.view(), bf::visible::causal_prefix());
    for (bf::backend::host const& bound_for : policies())
        for (bf::backend::host const& run_by : policies()) {
            CAPTURE(bound_for.name(), run_by.name());
            auto const bound    = bf::make_problem(bound_for, data.q.view(), data.out.view(), {}, keys);
            bf::problem const p = bound.problem();
            bool const same     = bound_for.kernels() == run_by.kernels();
            REQUIRE(supports(run_by, p).yes == same);
            if (same) {
                REQUIRE(explain(run_by, p).rfind(run_by.name() + ": stream class, ", 0) == 0);
            } else {
                REQUIRE(explain(run_by, p).rfind("declined: pool 0 was bound for ", 0) == 0);
                REQUIRE_THROWS_AS(bf::attend(run_by, std::span<bf::problem const>(&p, 1)), bf::backend_error);
            }
        }
}

TEST_CASE("raw codecs are packed alike at every level", "[backend]") {
    auto data          = bf::testing::make_problem({.heads = 2, .tokens = 70, .head_dim = 20, .seed = 3});
    auto const read_by = [&](auto const& policy) {
        bf::compressed_kv_cache<bf::raw_mix<bf::bfloat16>> cache(
            {.kv_heads = 2, .head_dim = 20, .block_size = 8, .exact_window = 4, .max_tokens = 96});
        bf::append(policy, cache, data.k.view(), data.v.view());
        bf::heads_buffer<float> out({2, 70, 20});
        bf::attend(bf::backend::scalar{}, data.q.view(), cache,
                   bf::topology::row(bf::topology::window{.predecessors = 2}), out.view(), {.q_position = 0});
        return out;
    };
    auto const wanted = read_by(bf::backend::scalar{});
    for (bf::backend::host const& policy : policies()) {
        CAPTURE(policy.name());
        auto const found = read_by(policy);
        for (bf::index_t h = 0; h < 2; ++h)
            for (bf::index_t t = 0; t < 70; ++t) {
                auto const a = found.view().row(h, t), b = wanted.view().row(h, t);
                REQUIRE(std::equal(a.begin(), a.end(), b.begin()));
            }
    }
}

TEST_CASE("tables know raw codecs alone", "[backend]") {
    for (bf::backend::host const& policy : policies())
        for (bf16_unit const unit : {bf16_unit::best, bf16_unit::fma, bf16_unit::dot}) {
            auto const ops = policy.kernels()->raw_ops;
            REQUIRE(ops(bf::codec_id::raw_f32, unit) != nullptr);
            REQUIRE(ops(bf::codec_id::raw_f16, unit) != nullptr);
            REQUIRE(ops(bf::codec_id::raw_bf16, unit) != nullptr);
            REQUIRE(ops(bf::codec_id::foreign, unit) == nullptr);
            REQUIRE(bind_codec(policy, bf::quant::raw<float>{}).ops == ops(bf::codec_id::raw_f32, policy.bf16()));
            REQUIRE(bind_codec(policy, bf::quant::raw<bf::float16>{}).ops == ops(bf::codec_id::raw_f16, policy.bf16()));
            REQUIRE(bind_codec(policy, bf::quant::raw<bf::bfloat16>{}).ops ==
                    ops(bf::codec_id::raw_bf16, policy.bf16()));
        }
}

TEST_CASE("tables know the codecs that have a leaf", "[backend]") {
    for (bf::backend::host const& policy : policies()) {
        CAPTURE(policy.name());
        bf::backend::kernel_table const& k = *policy.kernels();
        REQUIRE(bind_codec(policy, bf::quant::trellis<2>{}).ops == k.trellis_ops(2));
        REQUIRE(bind_codec(policy, bf::quant::trellis<3>{}).ops == k.trellis_ops(3));
        REQUIRE(bind_codec(policy, bf::quant::trellis<4>{}).ops == k.trellis_ops(4));
        REQUIRE(bind_codec(policy, bf::quant::affine_channels<2, 64>{}).ops == k.affine_channels_ops(2, 64));
        REQUIRE(bind_codec(policy, bf::quant::ggml_q8_0{}).ops == k.ggml_ops(8, false));
        REQUIRE(bind_codec(policy, bf::quant::ggml_q4_0{}).ops == k.ggml_ops(4, false));
        REQUIRE(bind_codec(policy, bf::quant::ggml_q4_1{}).ops == k.ggml_ops(4, true));

        // Each its own: rows of a codec by the functions of its table.
        auto const decodes = [&](auto const& codec) {
            bf::index_t const n = 48;
            alignas(128) std::byte tile[128 * 64];
            for (std::size_t i = 0; i < sizeof tile; ++i) tile[i] = static_cast<std::byte>(i % 4 != 2 ? 60 : 7 * i);
            std::byte const* const rows[] = {tile + 3, tile + 3};
            std::vector<float> found(2 * n), wanted(n);
            auto const bound = bind_codec(policy, codec);
            static_cast<bf::backend::on_host::codec_ops const*>(bound.ops)->decode(&codec, rows, 2, n, found.data(), n);
            codec.decode(rows[0], n, wanted.data());
            return std::equal(wanted.begin(), wanted.end(), found.begin()) &&
                   std::equal(wanted.begin(), wanted.end(), found.begin() + n);
        };
        REQUIRE(decodes(bf::quant::trellis<2>{}));
        REQUIRE(decodes(bf::quant::trellis<3>{}));
        REQUIRE(decodes(bf::quant::trellis<4>{}));
        REQUIRE(decodes(bf::quant::outliers<bf::quant::affine<4, 64>, 4>{}));
        REQUIRE(decodes(bf::quant::ggml_q8_0{}));
        REQUIRE(decodes(bf::quant::ggml_q4_0{}));
        REQUIRE(decodes(bf::quant::ggml_q4_1{}));
        REQUIRE(decodes(bf::quant::affine_channels<2, 32>{}));
        REQUIRE(decodes(bf::quant::affine_channels<3, 32>{}));
        REQUIRE(decodes(bf::quant::affine_channels<4, 32>{}));
        REQUIRE(decodes(bf::quant::affine_channels<8, 32>{}));
        REQUIRE(decodes(bf::quant::affine_channels<2, 64>{}));
        REQUIRE(decodes(bf::quant::affine_channels<3, 64>{}));
        REQUIRE(decodes(bf::quant::affine_channels<4, 64>{}));
        REQUIRE(decodes(bf::quant::affine_channels<2, 128>{}));
        REQUIRE(decodes(bf::quant::affine_channels<3, 128>{}));
        REQUIRE(decodes(bf::quant::affine_channels<4, 128>{}));
    }
}

TEST_CASE("a text that is too long for its buffer is cut", "[backend]") {
    auto data       = bf::testing::make_problem({.heads = 2, .tokens = 3, .head_dim = 8});
    auto const keys = bf::pool(data.k.view(), data.v.view(), bf::visible::causal_prefix());
    bf::backend::host const policy;
    auto const bound = bf::make_problem(policy, data.q.view(), data.out.view(), {}, keys);
    char text[8]     = "???????";
    policy.kernels()->explain(bound.problem(), 1, std::span<char>(text, 7));
    REQUIRE(std::string(text) == "stream");
    REQUIRE(text[7] == '\0');
}
