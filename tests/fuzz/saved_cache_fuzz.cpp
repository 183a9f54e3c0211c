// SPDX-License-Identifier: MIT

// Whatever the bytes, load fills a cache that can go on, or throws and leaves it alone. Of the first byte, bit 0 says
// which cache, bit 1 whether checksums are made right first, so that the fuzzer gets behind them; the rest is a file.

#include <butterfly/backend/scalar.hpp>
#include <butterfly/backend/simd.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/quant/outliers.hpp>
#include <butterfly/quant/trellis.hpp>

#include "support/saved_file.hpp"

#include <cstdio>
#include <cstdlib>

namespace {

namespace bf    = butterfly;
namespace quant = butterfly::quant;
using bf::testing::file_bytes;

struct packed_summaries {
    quant::raw<bf::float16> tail{};
    quant::lloyd_max<6> summary_k{};
    quant::outliers<quant::int8, 2> summary_v{};
};

struct packed_middle {
    quant::raw<float> sink{};
    quant::int8 tail{};
    quant::trellis<2> middle_k{};
    quant::affine_channels<3, 32> middle_v{};
};

using compressed_cache = bf::compressed_kv_cache<packed_summaries, bf::weighted_mean_pooling>;
using mixed_cache      = bf::mixed_kv_cache<packed_middle>;

constexpr bf::cache_config compressed{.kv_heads     = 1,
                                      .head_dim     = 16,
                                      .block_size   = 2,
                                      .exact_window = 3,
                                      .exact_sinks  = 1,
                                      .max_tokens   = 40,
                                      .max_append   = 8,
                                      .max_rollback = 2};

constexpr bf::mixed_cache_config mixed{.kv_heads     = 1,
                                       .head_dim     = 16,
                                       .block_size   = 32,
                                       .exact_window = 2,
                                       .exact_sinks  = 1,
                                       .centre_keys  = 9,
                                       .max_tokens   = 100,
                                       .max_append   = 16,
                                       .max_rollback = 2};

void expect(bool ok, char const* what) {
    if (ok) return;
    std::fprintf(stderr, "%s\n", what);
    std::abort();
}

/// A cache that was loaded does all that a cache does.
template <class Cache>
void go_on(Cache& cache) {
    bf::backend::scalar const scalar;
    bf::backend::simd<> const simd;
    auto const attend = [&] {
        bf::index_t const first = std::min(cache.counters().first_query(), cache.tokens());
        if (bf::index_t const count = std::min<bf::index_t>(cache.tokens() - first, 3); count > 0) {
            static_cast<void>(bf::testing::attend_latest(scalar, cache, count));
            static_cast<void>(bf::testing::attend_latest(simd, cache, count));
        }
    };
    cache.counters().check_invariants();
    attend();
    for (int i = 0; i < 6 && cache.tokens() + 7 <= cache.config().max_tokens; ++i) {
        bf::testing::append_stream(scalar, cache, 7);
        attend();
    }
    cache.trim(cache.counters().trim_floor());
    attend();
}

template <class Cache>
void run(typename Cache::config_type const& config, file_bytes const& file) {
    bf::backend::scalar const cpu;
    bf::testing::watched_cache<Cache> at(config);
    bf::testing::append_stream(cpu, at.cache, 5, 2);
    auto const memory   = at.memory;
    auto const counters = at.cache.counters();
    bool loaded         = false;
    try {
        bf::load(cpu, file, at.cache);
        loaded = true;
    } catch (bf::format_error const&) {
    } catch (bf::capacity_error const&) {
    }
    if (!loaded) return expect(at.memory == memory && at.cache.counters() == counters, "half-loaded");
    file_bytes const again = bf::save(cpu, at.cache);
    expect(bf::testing::with_header(file, bf::describe_saved(again)) == again, "saved as other bytes");
    go_on(at.cache);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    if (size == 0 || size > 20000) return 0;
    auto const bytes = std::as_bytes(std::span(data, size)).subspan(1);
    file_bytes file(bytes.begin(), bytes.end());
    if ((data[0] & 2U) != 0) bf::testing::reseal(file);
    if ((data[0] & 1U) != 0)
        run<mixed_cache>(mixed, file);
    else
        run<compressed_cache>(compressed, file);
    return 0;
}
