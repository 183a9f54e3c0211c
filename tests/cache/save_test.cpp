// SPDX-License-Identifier: MIT
#include <butterfly/cache/save.hpp>
#include <butterfly/quant/affine.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/quant/outliers.hpp>
#include <butterfly/quant/trellis.hpp>

#include "cache/backends.hpp"
#include "support/catch.hpp"
#include "support/saved_file.hpp"
#include "support/sweep.hpp"

#include <filesystem>
#include <fstream>

namespace save_tests { // names of its own, for builds that compile several of these files as one

namespace bf    = butterfly;
namespace quant = butterfly::quant;
using bf::index_t;
using bf::testing::append_stream;
using bf::testing::attend_latest;
using bf::testing::file_bytes;
using bf::testing::watched_cache;
using Catch::Matchers::Contains;

struct k8v4 {
    quant::raw<bf::bfloat16> tail{};
    quant::int8 summary_k{};
    quant::affine<4, 64> summary_v{};
};

struct six_codecs {
    quant::raw<float> sink_k{};
    quant::raw<bf::bfloat16> sink_v{};
    quant::raw<bf::float16> tail_k{};
    quant::int8 tail_v{};
    quant::lloyd_max<6> summary_k{7, quant::scale_rule::unbiased};
    quant::outliers<quant::affine<2, 64>, 2> summary_v{};
};

struct six_of_mixed {
    quant::raw<float> sink_k{};
    quant::raw<bf::bfloat16> sink_v{};
    quant::int8 tail_k{};
    quant::raw<bf::float16> tail_v{};
    quant::raw<bf::bfloat16> middle_k{};
    quant::affine_channels<2, 32> middle_v{};
};

constexpr bf::cache_config compressed{.kv_heads       = 2,
                                      .head_dim       = 32,
                                      .value_head_dim = 16,
                                      .block_size     = 8,
                                      .exact_window   = 20,
                                      .exact_sinks    = 3,
                                      .max_tokens     = 500,
                                      .max_append     = 40,
                                      .max_rollback   = 9};

constexpr bf::mixed_cache_config mixed{.kv_heads       = 2,
                                       .head_dim       = 32,
                                       .value_head_dim = 16,
                                       .block_size     = 32,
                                       .exact_window   = 20,
                                       .exact_sinks    = 3,
                                       .max_tokens     = 500,
                                       .max_append     = 40,
                                       .max_rollback   = 9};

/// What happens to a cache before it is saved: appends of so many tokens; below zero, a trim of so many, or as far
/// as it goes.
using story = std::vector<index_t>;

/// A ring of 128 or so tokens is gone round several times by the longest.
std::vector<story> const stories{{},
                                 {1},
                                 {2},
                                 {16},
                                 {32, 8},
                                 {40, 40, 12, 1, 1},
                                 {40, 40, 12, -9},
                                 {40, -40},
                                 {30, 5, -7, 4, 40, 40, 40, 40, 40, 40, 40, 40, 1, 1, -5},
                                 {40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 13, 1, 1, 1}};

/// Those of round trips: in the short sweep an empty cache, one that was trimmed, and one whose ring went round.
std::vector<story> told() {
    if (test::short_sweep()) return {stories[0], stories[6], stories[8]};
    return stories;
}

template <class Policy, class Cache>
void tell(Policy const& policy, Cache& cache, story const& steps, std::uint64_t stream = 1) {
    for (index_t const step : steps)
        if (step >= 0)
            append_stream(policy, cache, step, stream);
        else
            cache.trim(std::max(cache.tokens() + step, cache.counters().trim_floor()));
}

/// How many of the latest positions can be asked.
template <class Cache>
index_t askable(Cache const& cache) {
    return std::min<index_t>(cache.tokens() - std::min(cache.counters().first_query(), cache.tokens()), 30);
}

template <class Cache>
index_t part_bytes(Cache const& cache) {
    index_t bytes = 0;
    cache.for_each_part(cache.counters().values(), [&](bf::cache_part const& p) {
        index_t runs = 0;
        p.for_each_run([&](bf::memory_ref, index_t size) { runs += size; });
        REQUIRE(runs == p.bytes());
        bytes += runs;
    });
    return bytes;
}

/// Saves after every story, loads into a cache of `config` that had other content, and lets both go on.
template <class Cache, class Policy, class Config>
void round_trip(Policy const& policy, Config const& saved, Config const& config, typename Cache::mix_type const& mix) {
    std::size_t loads = 0, misfits = 0;
    for (story const& steps : told()) {
        CAPTURE(steps, policy.name());
        Cache original(saved, mix);
        tell(policy, original, steps);
        file_bytes const bytes = bf::save(policy, original);
        REQUIRE(static_cast<index_t>(bytes.size()) == bf::saved_bytes(original));
        REQUIRE(part_bytes(original) == original.retained_bytes());

        watched_cache<Cache> loaded(config, mix);
        tell(policy, loaded.cache, {40, 17}, 2);
        if (!loaded.cache.misfit(original.counters().values()).empty()) {
            REQUIRE_THROWS_AS(bf::load(policy, bytes, loaded.cache), bf::capacity_error);
            ++misfits;
            continue;
        }
        bf::load(policy, bytes, loaded.cache);
        ++loads;
        REQUIRE(loaded.cache.counters().values() == original.counters().values());
        REQUIRE(loaded.cache.retained_bytes() == original.retained_bytes());

        auto const same = [&] {
            index_t const ask = std::min(askable(original), askable(loaded.cache));
            if (original.tokens() > loaded.cache.counters().trim_floor()) REQUIRE(ask > 0);
            if (ask == 0) return;
            REQUIRE(attend_latest(policy, original, ask) == attend_latest(policy, loaded.cache, ask));
        };
        same();
        for (index_t const step : {1, 1, 30, 1, -9, 25, 1, -2, 6, 12}) {
            if (original.tokens() + step > std::min(saved.max_tokens, config.max_tokens) || step > config.max_append)
                continue;
            if (step < 0 && std::max(original.counters().trim_floor(), loaded.cache.counters().trim_floor()) >
                                original.tokens() + step)
                continue;
            for (Cache* const c : {&original, &loaded.cache}) tell(policy, *c, {step});
            same();
        }
        if (saved.max_rollback == config.max_rollback) { // else one has a longer tail
            REQUIRE(loaded.cache.counters().values() == original.counters().values());
            file_bytes a = bf::save(policy, original), b = bf::save(policy, loaded.cache);
            bf::saved_cache header = bf::describe_saved(b);
            header.config          = bf::describe_saved(a).config; // but for what may differ
            REQUIRE(bf::testing::with_header(b, header) == a);
        }
    }
    REQUIRE(loads + misfits == told().size());
    REQUIRE(misfits <= 3);
}

/// A tail, a ring and a length as short as the longest story allows.
template <class Config>
Config tighter(Config config) {
    config.max_tokens   = 497;
    config.max_append   = 57;
    config.max_rollback = 2;
    return config;
}

/// Into caches with rings, rollbacks and lengths of their own.
template <class Cache, class Policy, class Config>
void round_trips(Policy const& policy, Config const& config, typename Cache::mix_type const& mix = {}) {
    Config longer       = config;
    longer.max_tokens   = 3000;
    longer.max_append   = 400;
    longer.max_rollback = 0;
    round_trip<Cache>(policy, config, config, mix);
    round_trip<Cache>(policy, config, tighter(config), mix);
    if (test::short_sweep()) return;
    round_trip<Cache>(policy, config, longer, mix);
    round_trip<Cache>(policy, longer, config, mix);
}

TEMPLATE_LIST_TEST_CASE("a loaded cache goes on bit for bit as the saved one", "[save]", cache_backends) {
    TestType const policy;
    round_trips<bf::compressed_kv_cache<k8v4>>(policy, compressed);
    round_trips<bf::compressed_kv_cache<bf::raw_mix<bf::bfloat16>, bf::weighted_mean_pooling>>(policy, compressed);
    bf::mixed_cache_config centred = mixed;
    centred.centre_keys            = 51; // W + bs - 1
    centred.centre_values          = 20;
    round_trips<bf::mixed_kv_cache<bf::packed_mix<quant::affine_channels<2, 32>, quant::int8>>>(policy, centred);
}

/// With one backend: what differs here is none of its business.
template <class Cache, class Config>
void one_round_trip(Config const& config, typename Cache::mix_type const& mix = {}) {
    round_trip<Cache>(bf::backend::scalar{}, config, tighter(config), mix);
}

TEST_CASE("compressed caches of every kind of mix, pooling and rules are saved and loaded", "[save]") {
    one_round_trip<bf::compressed_kv_cache<>>(compressed);
    one_round_trip<bf::compressed_kv_cache<six_codecs>>(compressed);
    one_round_trip<bf::compressed_kv_cache<six_codecs, bf::weighted_mean_pooling>>(compressed);
    bf::cache_config other = compressed;
    other.rules            = bf::cache_rules::published;
    other.value_head_dim   = 0;
    one_round_trip<bf::compressed_kv_cache<>>(other);
    other.rules      = {.counted = false, .late = true};
    other.block_size = 64;
    one_round_trip<bf::compressed_kv_cache<>>(other);
    one_round_trip<bf::compressed_kv_cache<bf::raw_mix<bf::float16>, bf::weighted_mean_pooling>>(other);
    other.exact_sinks  = 0;
    other.block_size   = 1;
    other.exact_window = 1;
    one_round_trip<bf::compressed_kv_cache<>>(other);
}

TEST_CASE("mixed caches of every kind of mix and centring are saved and loaded", "[save]") {
    bf::mixed_cache_config centred = mixed;
    centred.centre_keys            = 51;
    centred.centre_values          = 20;
    one_round_trip<bf::mixed_kv_cache<bf::packed_mix<quant::raw<float>, quant::int8, quant::raw<float>>>>(mixed);
    one_round_trip<bf::mixed_kv_cache<bf::packed_mix<quant::lloyd_max<16>, quant::lloyd_max<6>>>>(
        centred, {.middle_k = quant::lloyd_max<16>(5),
                  .middle_v = quant::lloyd_max<6>(std::uint64_t{1} << 63, quant::scale_rule::unbiased)});
    one_round_trip<bf::mixed_kv_cache<bf::packed_mix<quant::trellis<2>, quant::affine<4, 64>>>>(
        centred, {.middle_k = quant::trellis<2>(3)});
    centred.centre_values = 0;
    centred.exact_sinks   = 40; // a tile of sinks alone
    one_round_trip<bf::mixed_kv_cache<six_of_mixed>>(centred);
    bf::mixed_cache_config wide = mixed;
    wide.block_size             = 128;
    wide.exact_window           = 1;
    one_round_trip<bf::mixed_kv_cache<bf::packed_mix<quant::affine_channels<3, 128>, quant::affine_channels<2, 64>>>>(
        wide);
}

TEST_CASE("equal caches make equal files, whatever stood in their memory and however they came about", "[save]") {
    bf::backend::scalar const cpu;
    bf::mixed_cache_config centred = mixed;
    centred.centre_keys            = 40;
    using mixed_type               = bf::mixed_kv_cache<six_of_mixed>;
    using weighted                 = bf::compressed_kv_cache<six_codecs, bf::weighted_mean_pooling>;
    auto const file                = [&]<class Cache>(watched_cache<Cache> one, story const& steps) {
        tell(cpu, one.cache, steps);
        return bf::save(cpu, one.cache);
    };
    for (story const& steps : stories) {
        CAPTURE(steps);
        REQUIRE(file(watched_cache<mixed_type>(centred, {}, std::byte{0}), steps) ==
                file(watched_cache<mixed_type>(centred, {}, std::byte{0xff}), steps));
        REQUIRE(file(watched_cache<weighted>(compressed, {}, std::byte{0}), steps) ==
                file(watched_cache<weighted>(compressed, {}, std::byte{0xff}), steps));
    }
    bf::cache_config no_rollback = compressed;
    no_rollback.max_rollback     = 0;
    REQUIRE(file(watched_cache<weighted>(no_rollback), {40, 40, 40, 1}) ==
            file(watched_cache<weighted>(no_rollback), {17, 3, 40, 20, 40, 1}));
}

TEST_CASE("a file, a sink and memory get the same bytes, in pieces however long a part is", "[save]") {
    bf::backend::scalar const cpu;
    bf::compressed_kv_cache<> cache({.kv_heads = 3, .head_dim = 100, .max_tokens = 1000, .max_append = 1000});
    append_stream(cpu, cache, 1000);
    file_bytes const bytes = bf::save(cpu, cache);
    REQUIRE(bytes.size() > 2'000'000);
    file_bytes sent;
    std::size_t longest = 0;
    bf::save(cpu, cache, [&](std::span<std::byte const> piece) {
        longest = std::max(longest, piece.size());
        sent.insert(sent.end(), piece.begin(), piece.end());
    });
    REQUIRE(sent == bytes);
    REQUIRE(longest == std::size_t{1} << 18);

    std::string const path = "save_test_pieces.kv";
    bf::save(cpu, cache, path);
    bf::detail::mapped_file const file("test", path);
    REQUIRE(file_bytes(file.bytes().begin(), file.bytes().end()) == bytes);
    bf::compressed_kv_cache<> loaded(cache.config());
    bf::load(cpu, path, loaded);
    REQUIRE(bf::save(cpu, loaded) == bytes);
    std::filesystem::remove(path);

    file_bytes shifted(bytes.size() + 1); // a message in a buffer of its own alignment
    std::copy(bytes.begin(), bytes.end(), shifted.begin() + 1);
    loaded.clear();
    bf::load(cpu, std::span<std::byte const>(shifted).subspan(1), loaded);
    REQUIRE(bf::save(cpu, loaded) == bytes);
}

TEST_CASE("a save that fails leaves the file before it, and nothing else", "[save]") {
    bf::backend::scalar const cpu;
    bf::compressed_kv_cache<> cache(compressed);
    append_stream(cpu, cache, 40);
    REQUIRE_THROWS_WITH(bf::save(cpu, cache, "no/such/folder/x.kv"),
                        Contains("save: cannot write no/such/folder/x.kv"));
    REQUIRE_THROWS_WITH(bf::save(cpu, cache, "."), Contains("save: cannot write .: no regular file"));

    std::string const path = "save_test_kept.kv";
    bf::save(cpu, cache, path);
    append_stream(cpu, cache, 1);
    std::ofstream(path + ".part") << "of another writer";
    REQUIRE_THROWS_WITH(bf::save(cpu, cache, path), Contains(path + ".part: it is there: another is writing it"));
    REQUIRE(bf::describe_saved(path).counters.tokens == 40);
    std::filesystem::remove(path + ".part");
    bf::save(cpu, cache, path);
    REQUIRE(bf::describe_saved(path).counters.tokens == 41);
    REQUIRE_FALSE(std::filesystem::exists(path + ".part"));
    std::filesystem::remove(path);

    int pieces              = 0; // a sink that throws reaches the caller, and the cache is what it was
    file_bytes const before = bf::save(cpu, cache);
    REQUIRE_THROWS_AS(bf::save(cpu, cache,
                               [&](std::span<std::byte const>) {
                                   if (++pieces == 4) throw std::runtime_error("the line is down");
                               }),
                      std::runtime_error);
    REQUIRE(bf::save(cpu, cache) == before);
}

TEST_CASE("a cache that was moved from is neither saved nor loaded into", "[save]") {
    bf::backend::scalar const cpu;
    bf::compressed_kv_cache<> cache(compressed);
    file_bytes const bytes = bf::save(cpu, cache);
    bf::compressed_kv_cache<> const other(std::move(cache));
    REQUIRE_THROWS_AS(bf::save(cpu, cache), bf::shape_error);
    REQUIRE_THROWS_AS(bf::load(cpu, bytes, cache), bf::shape_error);
    REQUIRE(bf::save(cpu, other) == bytes);
}

TEST_CASE("what describe_saved says makes a cache that the file can be loaded into", "[save]") {
    bf::backend::scalar const cpu;
    bf::mixed_cache_config centred = mixed;
    centred.centre_keys            = 40;
    using mixed_type               = bf::mixed_kv_cache<six_of_mixed>;
    mixed_type cache(centred);
    tell(cpu, cache, stories.back());
    file_bytes const bytes     = bf::save(cpu, cache);
    bf::saved_cache const says = bf::describe_saved(bytes);
    REQUIRE(says.kind == bf::saved_kind::mixed);
    REQUIRE(says.counters == cache.counters().values());
    std::vector<std::string> const names{"sink_k", "sink_v", "tail_k", "tail_v", "middle_k", "middle_v", "mean_k"};
    std::vector<std::string> const codecs{"f32", "bf16", "int8", "f16", "bf16", "affine_channels<2, 32>", "f32"};
    REQUIRE(says.parts.size() == names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
        REQUIRE(says.parts[i].name == names[i]);
        REQUIRE(says.parts[i].codec == codecs[i]);
    }
    mixed_type again(says.mixed_config());
    bf::load(cpu, bytes, again);
    REQUIRE(bf::save(cpu, again) == bytes);

    bf::compressed_kv_cache<six_codecs, bf::weighted_mean_pooling> weighted(compressed);
    tell(cpu, weighted, stories.back());
    file_bytes const other     = bf::save(cpu, weighted);
    bf::saved_cache const that = bf::describe_saved(other);
    REQUIRE(that.kind == bf::saved_kind::compressed);
    REQUIRE(that.pooling == bf::pooling_kind::weighted_mean);
    REQUIRE(that.takes_weights);
    REQUIRE(that.parts[5].name == "summary_k");
    REQUIRE(that.parts[5].codec == "lloyd_max<6> seed 7 unbiased");
    bf::compressed_kv_cache<six_codecs, bf::weighted_mean_pooling> same(that.config);
    bf::load(cpu, other, same);
    REQUIRE(bf::save(cpu, same) == other);
}

TEST_CASE("restore takes over what a loader has checked, or nothing", "[save]") {
    bf::compressed_kv_cache<> cache(compressed); // W 20, bs 8
    bf::counter_values const good{.tokens = 60, .tail_start = 24, .summaries = 7, .trim_floor = 51};
    cache.restore(good);
    REQUIRE(cache.counters().values() == good);
    bf::counter_values bad = good;
    bad.tail_start         = 25;
    REQUIRE_THROWS_WITH(cache.restore(bad), "restore: tail_start 25 is no multiple of block_size 8");
    REQUIRE_THROWS_WITH(cache.restore({.tokens = 501, .summaries = 62}), "restore: 501 tokens, max_tokens is 500");
    REQUIRE_THROWS_AS(cache.restore({.tokens = 400, .summaries = 50}), bf::capacity_error); // a tail of 400
    REQUIRE(cache.counters().values() == good);

    bf::mixed_cache_config centred = mixed; // W 20, bs 32
    centred.centre_values          = 51;
    bf::mixed_kv_cache<bf::packed_mix<quant::int8>> packed(centred);
    packed.restore({.tokens = 51, .summaries = 1});
    REQUIRE_THROWS_WITH(packed.restore({.tokens = 50, .summaries = 1}),
                        Contains("packed less the mean of 51 tokens, there are 50"));
    packed.restore({.tokens = 50});
    REQUIRE(packed.tokens() == 50);
    REQUIRE_THROWS_AS(bf::cache_counters::restored(compressed, bad), bf::format_error);
    REQUIRE(bf::cache_counters::restored(compressed, good).values() == good);
}

struct nameless {
    quant::raw<float> tail{};
    struct codec : quant::raw<float> {
        void name() const = delete;
    } summary_k{}, summary_v{};
};
static_assert(bf::compressed_kv_cache<six_codecs>::names_codecs && bf::mixed_kv_cache<six_of_mixed>::names_codecs);
static_assert(!bf::compressed_kv_cache<nameless>::names_codecs);

} // namespace save_tests
