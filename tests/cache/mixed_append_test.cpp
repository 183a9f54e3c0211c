// SPDX-License-Identifier: MIT

// What append promises of a mixed-precision cache: codes that depend on neither chunks nor threads, means of exactly
// the tokens that were asked for, bytes that add up, refusals that change nothing.

#include "cache/backends.hpp"
#include "support/catch.hpp"
#include "support/mixed_model.hpp"
#include "support/on_threads.hpp"

#include <limits>
#include <string>

namespace bf      = butterfly;
namespace testing = butterfly::testing;

namespace mixed_append { // names of its own, for builds that compile several of these files as one
namespace {

struct input {
    testing::tensor<float> k, v;
    input(bf::index_t heads, bf::index_t tokens, bf::index_t dim, bf::index_t value_dim, std::uint64_t seed = 1)
        : k({heads, tokens, dim}, testing::layout::interleaved), v({heads, tokens, value_dim}) {
        testing::fill(k, testing::random(seed, 1), testing::distribution::normal);
        testing::fill(v, testing::random(seed, 2), testing::distribution::normal);
        for (bf::index_t h = 0; h < heads; ++h)
            for (bf::index_t t = 0; t < tokens; ++t) k.at(h, t, std::min<bf::index_t>(3, dim - 1)) += 4.0F;
    }
};

bf::mixed_cache_config small(bf::index_t tokens = 400) {
    return {.kv_heads       = 2,
            .head_dim       = 32,
            .value_head_dim = 16,
            .block_size     = 64,
            .exact_window   = 20,
            .exact_sinks    = 3,
            .centre_keys    = 70,
            .centre_values  = 0,
            .max_tokens     = tokens,
            .max_append     = 400};
}

using channels_mix = bf::packed_mix<bf::quant::affine_channels<4, 32>, bf::quant::lloyd_max<16>>;

template <class F>
void for_each_mix(F const& f) {
    f(bf::packed_mix<bf::quant::raw<float>, bf::quant::raw<bf::bfloat16>, bf::quant::raw<float>>{});
    f(bf::packed_mix<bf::quant::int8>{});
    f(bf::packed_mix<bf::quant::lloyd_max<16>, bf::quant::lloyd_max<6>>{});
    f(channels_mix{});
    f(bf::packed_mix<testing::byte_codec, bf::quant::affine<4, 64>, bf::quant::raw<bf::float16>>{});
    f(testing::six_codecs{});
}

template <class Policy, class Cache>
void append_in(Policy const& policy, Cache& cache, input& in, bf::index_t step, bf::index_t end) {
    while (cache.tokens() < end) {
        bf::index_t const count = std::min(step, end - cache.tokens());
        bf::append(policy, cache, in.k.view().slice(cache.tokens(), count), in.v.view().slice(cache.tokens(), count));
    }
}

/// What a slot stands for.
std::vector<float> row_of(bf::storage_ref const& s, bf::index_t head, bf::index_t slot) {
    std::vector<float> row(static_cast<std::size_t>(s.shape.head_dim));
    bf::backend::on_host::decode_row(s, head, slot, row.data());
    return row;
}

/// The bytes of the middle, all heads.
std::vector<std::byte> codes_of(bf::storage_ref const& s) {
    std::vector<std::byte> bytes;
    bf::index_t const row = s.page_shift > 0 ? s.page_stride >> s.page_shift : s.slot_stride;
    for (bf::index_t h = 0; h < s.shape.heads; ++h) {
        auto const* const at = bf::host_pointer<std::byte const>(s.data) + h * s.head_stride;
        bytes.insert(bytes.end(), at, at + s.shape.tokens * row);
    }
    return bytes;
}

std::vector<float> means_of(bf::storage_ref const& s) {
    if (!s.mean) return {};
    auto const* const at = bf::host_pointer<float const>(s.mean);
    return {at, at + s.shape.heads * s.shape.head_dim};
}

template <class Cache>
void require_same_codes(Cache const& a, Cache const& b) {
    bf::backend::scalar const policy;
    REQUIRE(a.counters() == b.counters());
    auto const p = a.pools(policy), q = b.pools(policy);
    REQUIRE(codes_of(p.middle_k) == codes_of(q.middle_k));
    REQUIRE(codes_of(p.middle_v) == codes_of(q.middle_v));
    REQUIRE(means_of(p.middle_k) == means_of(q.middle_k));
    REQUIRE(means_of(p.middle_v) == means_of(q.middle_v));
    for (bf::index_t h = 0; h < p.tail_k.shape.heads; ++h) {
        for (bf::index_t t = a.tail_start(); t < a.tokens(); ++t) {
            REQUIRE(row_of(p.tail_k, h, t) == row_of(q.tail_k, h, t));
            REQUIRE(row_of(p.tail_v, h, t) == row_of(q.tail_v, h, t));
        }
        for (bf::index_t t = 0; t < p.sink_k.shape.tokens; ++t) {
            REQUIRE(row_of(p.sink_k, h, t) == row_of(q.sink_k, h, t));
            REQUIRE(row_of(p.sink_v, h, t) == row_of(q.sink_v, h, t));
        }
    }
}

// What is no mix is no error.
static_assert(bf::mixed_mix<channels_mix> && bf::mixed_mix<testing::six_codecs> && !bf::mixed_mix<bf::raw_mix<float>>);
static_assert(!bf::cache_mix<channels_mix> && !bf::mixed_mix<int> && !bf::cache_mix<std::span<std::byte>>);

} // namespace

TEMPLATE_LIST_TEST_CASE("codes are those of the rows of the tail, to the bit, for every cut",
                        "[mixed]",
                        cache_backends) {
    TestType const policy;
    for_each_mix([&](auto const& mix) {
        using cache_type = bf::mixed_kv_cache<std::remove_cvref_t<decltype(mix)>>;
        input in(2, 400, 32, 16);
        for (bf::index_t const step : {1, 3, 63, 64, 130, 400}) {
            cache_type cache(small(), mix);
            append_in(policy, cache, in, step, 400);
            CAPTURE(step);
            REQUIRE(cache.packed() == 320); // 64 * floor((399 - 19) / 64)
            auto const p        = cache.pools(policy);
            auto const check_of = [&](auto const& codec, auto const& kept, bf::storage_ref const& s, auto const& from,
                                      bf::index_t centre) {
                for (bf::index_t h = 0; h < 2; ++h) {
                    std::vector<std::vector<float>> rows;
                    for (bf::index_t t = 0; t < 320; ++t) {
                        std::vector<float> row;
                        bf::index_t const shown = std::max<bf::index_t>(t, 3); // of a tile's sinks: token 3
                        for (bf::index_t d = 0; d < s.shape.head_dim; ++d) row.push_back(from.at(h, shown, d));
                        rows.push_back(testing::kept_tokens::kept(kept, row));
                    }
                    std::vector<float> mean(static_cast<std::size_t>(s.shape.head_dim));
                    for (bf::index_t t = 0; t < centre; ++t) {
                        std::vector<float> row;
                        for (bf::index_t d = 0; d < s.shape.head_dim; ++d) row.push_back(from.at(h, t, d));
                        row = testing::kept_tokens::kept(kept, row);
                        for (std::size_t d = 0; d < row.size(); ++d) mean[d] += row[d];
                    }
                    for (float& x : mean) x = centre > 0 ? x / static_cast<float>(centre) : 0.0F;
                    for (std::size_t d = 0; centre > 0 && d < mean.size(); ++d)
                        REQUIRE(bf::host_pointer<float const>(
                                    s.mean)[h * s.shape.head_dim + static_cast<bf::index_t>(d)] == mean[d]);
                    auto const wanted = testing::through(codec, rows, mean);
                    for (bf::index_t t = 3; t < 320; ++t)
                        REQUIRE(row_of(s, h, t) == wanted[static_cast<std::size_t>(t)]);
                }
            };
            check_of(mix.middle_k, bf::detail::tail_k_of(mix), p.middle_k, in.k, 70);
            check_of(mix.middle_v, bf::detail::tail_v_of(mix), p.middle_v, in.v, 0);
        }
    });
}

TEMPLATE_LIST_TEST_CASE("a ring without slack loses no row before it is packed", "[mixed]", cache_backends) {
    TestType const policy;
    using mix_type = bf::packed_mix<bf::quant::raw<float>, bf::quant::raw<float>, bf::quant::raw<float>>;
    input in(1, 600, 2, 2);
    for (bf::index_t const block_size : {1, 16, 64})
        for (bf::index_t const window : {1, 5, 16})
            for (bf::index_t const rollback : {0, 70}) {
                bf::index_t const step = 192 - window - block_size + 2 - rollback; // the ring has 192 rows
                bf::mixed_cache_config const c{.kv_heads     = 1,
                                               .head_dim     = 2,
                                               .block_size   = block_size,
                                               .exact_window = window,
                                               .exact_sinks  = 0,
                                               .centre_keys  = window + block_size - 1,
                                               .max_tokens   = 600,
                                               .max_append   = step,
                                               .max_rollback = rollback};
                CAPTURE(block_size, window, rollback);
                bf::mixed_kv_cache<mix_type> cache(c);
                auto const append = [&](bf::index_t count) {
                    append_in(policy, cache, in, count, std::min<bf::index_t>(cache.tokens() + count, 600));
                };
                append_in(policy, cache, in, step, block_size + window - 1); // the next append may drop block 0
                if (rollback == 0) REQUIRE(cache.packed() == 0);
                while (cache.tokens() < 600) {
                    append(step);
                    append(1);
                }
                auto const p = cache.pools(policy);
                REQUIRE(p.tail_k.ring == 192);
                REQUIRE(cache.packed() == (600 - window) / block_size * block_size);
                float sum = 0.0F;
                for (bf::index_t t = 0; t < c.centre_keys; ++t) sum += in.k.at(0, t, 1);
                float const mean = sum / static_cast<float>(c.centre_keys);
                for (bf::index_t t = 0; t < cache.packed(); ++t) {
                    REQUIRE(row_of(p.middle_v, 0, t)[1] == in.v.at(0, t, 1));
                    REQUIRE(row_of(p.middle_k, 0, t)[1] == in.k.at(0, t, 1) - mean + mean);
                }
            }
}

TEMPLATE_LIST_TEST_CASE("a sink widens no grid", "[mixed]", cache_backends) {
    TestType const policy;
    input plain(2, 200, 32, 16), loud(2, 200, 32, 16);
    for (bf::index_t h = 0; h < 2; ++h)
        for (bf::index_t t = 0; t < 3; ++t)
            for (bf::index_t d = 0; d < 32; ++d) loud.k.at(h, t, d) = 1e4F;
    bf::mixed_cache_config c = small();
    c.centre_keys            = 0;
    bf::mixed_kv_cache<channels_mix> a(c), b(c);
    append_in(policy, a, plain, 200, 200);
    append_in(policy, b, loud, 200, 200);
    REQUIRE(codes_of(a.pools(policy).middle_k) == codes_of(b.pools(policy).middle_k));
    REQUIRE(row_of(b.pools(policy).sink_k, 1, 2)[0] == static_cast<float>(bf::bfloat16(1e4F)));

    c.exact_sinks = 70; // more than two tiles: they are zeros, which nobody sees
    bf::mixed_kv_cache<channels_mix> many(c);
    append_in(policy, many, plain, 200, 200);
    REQUIRE(row_of(many.pools(policy).middle_k, 0, 40) == std::vector<float>(32));
    REQUIRE(row_of(many.pools(policy).middle_k, 0, 75) != std::vector<float>(32));
}

TEMPLATE_LIST_TEST_CASE("a channel without a finite mean is not centred", "[mixed]", cache_backends) {
    TestType const policy;
    input in(1, 200, 16, 16);
    in.k.at(0, 5, 2) = std::numeric_limits<float>::quiet_NaN();
    in.k.at(0, 6, 7) = in.k.at(0, 7, 7) = std::numeric_limits<float>::max();
    bf::mixed_cache_config c            = small();
    c.kv_heads                          = 1;
    c.head_dim                          = 16;
    bf::mixed_kv_cache<bf::packed_mix<bf::quant::int8, bf::quant::int8, bf::quant::raw<float>>> cache(c);
    append_in(policy, cache, in, 200, 200);
    auto const mean = means_of(cache.pools(policy).middle_k);
    REQUIRE(mean[2] == 0.0F);
    REQUIRE(mean[7] == 0.0F);
    REQUIRE(std::abs(mean[3] - 4.0F) < 1.0F);
    for (bf::index_t t = 3; t < 128; ++t)
        for (float const x : row_of(cache.pools(policy).middle_k, 0, t)) REQUIRE(std::isfinite(x) == (t < 5 || t > 7));
}

TEMPLATE_LIST_TEST_CASE("bytes add up", "[mixed]", cache_backends) {
    TestType const policy;
    // keys 32 values: a tile of 32 tokens has 4 * 32 + 32 * 16 bytes, 20 a row; values 16: 2 + 8. The tail: 64 and 32.
    bf::mixed_cache_config c = small();
    c.centre_values          = 5;
    c.max_append             = 50;
    bf::mixed_kv_cache<channels_mix> cache(c);
    input in(2, 400, 32, 16);
    REQUIRE(cache.retained_bytes() == 0);
    append_in(policy, cache, in, 2, 2);
    REQUIRE(cache.retained_bytes() == 2 * (2 + 2) * (64 + 32)); // two heads, two sinks that are in the tail as well
    append_in(policy, cache, in, 1, 83);
    REQUIRE(cache.packed() == 0);
    REQUIRE(cache.retained_bytes() == 2 * (3 + 83) * (64 + 32));
    append_in(policy, cache, in, 1, 84); // the window of the next query starts at 64
    REQUIRE(cache.packed() == 64);
    REQUIRE(cache.tail_start() == 64);
    REQUIRE(cache.retained_bytes() == 2 * ((3 + 20) * (64 + 32) + 64 * (20 + 10) + (32 + 16) * 4));
    append_in(policy, cache, in, 1, 400);
    REQUIRE(cache.packed() == 320);
    REQUIRE(cache.retained_bytes() == 2 * ((3 + 80) * (64 + 32) + 320 * (20 + 10) + (32 + 16) * 4));
    REQUIRE(cache.retained_bytes() == cache.retained_bytes(c, cache.counters()));

    // Every part to a multiple of 64 bytes; a ring of 20 + 64 - 2 + 50 tokens in whole blocks.
    bf::index_t const sinks = bf::detail::round_up(2 * 3 * 64, 64) + bf::detail::round_up(2 * 3 * 32, 64);
    REQUIRE(cache.allocated_bytes() == sinks + 2 * 192 * (64 + 32) + 2 * 320 * (20 + 10) + 2 * (32 + 16) * 4);
    REQUIRE(cache.allocated_bytes(c) == cache.allocated_bytes());
    REQUIRE(cache.required_bytes(c) == cache.allocated_bytes() + 63);
    cache.clear();
    REQUIRE(cache.retained_bytes() == 0);

    c.max_tokens = 20; // nothing will ever be packed
    REQUIRE(cache.allocated_bytes(c) == sinks + 2 * 64 * (64 + 32) + 2 * (32 + 16) * 4);
    c.max_tokens = 20 + 64;
    REQUIRE(cache.allocated_bytes(c) == sinks + 2 * 128 * (64 + 32) + 2 * 64 * (20 + 10) + 2 * (32 + 16) * 4);
}

TEMPLATE_LIST_TEST_CASE("a block of codes that may come is one that has room", "[mixed]", cache_backends) {
    TestType const policy;
    for (bf::index_t const tokens : {1, 19, 20, 21, 83, 84, 85, 147, 148, 400}) { // canaries are in the model's test
        bf::mixed_cache_config c = small(tokens);
        c.max_rollback           = 30;
        input in(2, tokens, 32, 16);
        bf::mixed_kv_cache<channels_mix> cache(c);
        append_in(policy, cache, in, 7, tokens);
        bf::index_t const blocks = std::max<bf::index_t>(0, tokens - 20) / 64;
        REQUIRE(cache.packed() == 64 * blocks);
        REQUIRE(cache.pools(policy).middle_k.head_stride == 64 * blocks * 20);
    }
}

TEMPLATE_LIST_TEST_CASE("a refused append changes neither counters nor memory of a mixed cache",
                        "[mixed]",
                        cache_backends) {
    TestType const policy;
    using cache_type = bf::mixed_kv_cache<channels_mix>;
    input in(2, 400, 32, 16);
    bf::mixed_cache_config c = small(200);
    c.max_append             = 150;
    std::vector<std::byte> memory(static_cast<std::size_t>(cache_type::required_bytes(c)));
    cache_type cache(c, memory);
    append_in(policy, cache, in, 120, 120); // the next append packs a block first
    auto const bytes    = memory;
    auto const counters = cache.counters();

    auto const k = in.k.view().slice(120, 20);
    auto const v = in.v.view().slice(120, 20);
    testing::tensor<float> three({3, 20, 32}), four({2, 20, 4}), one({2, 1, 16});
    REQUIRE_THROWS_AS(bf::append(policy, cache, in.k.view().slice(0, 151), in.v.view().slice(0, 151)),
                      bf::capacity_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, in.k.view().slice(0, 81), in.v.view().slice(0, 81)),
                      bf::capacity_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, three.view(), v), bf::shape_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, four.view(), v), bf::shape_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, k, four.view()), bf::shape_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, k, one.view()), bf::shape_error);
    REQUIRE_THROWS_AS(bf::append(policy, cache, bf::heads_view<float const>(nullptr, {2, 20, 32}), v), bf::shape_error);
    float const weight = 1.0F;
    REQUIRE_THROWS_AS(bf::append(policy, cache, k, v, {.token_weights = bf::memory_ref(&weight)}), bf::shape_error);
    std::vector<std::byte> little(static_cast<std::size_t>(bf::append_workspace_bytes(policy, cache)) - 64);
    REQUIRE_THROWS_AS(bf::append(policy, cache, k, v, {.workspace = std::span(little).subspan(1)}), bf::shape_error);
    bf::append(policy, cache, in.k.view().slice(0, 0), in.v.view().slice(0, 0)); // nothing is not an error
    REQUIRE(memory == bytes);
    REQUIRE(cache.counters() == counters);
    bf::append(policy, cache, in.k.view().slice(120, 80), in.v.view().slice(120, 80)); // exactly full
    REQUIRE(cache.tokens() == 200);
}

TEMPLATE_LIST_TEST_CASE("what cannot be a mixed-precision cache is refused by name", "[mixed]", cache_backends) {
    auto const refused = [](auto const& mix, auto const& change, std::string const& word) {
        using cache_type         = bf::mixed_kv_cache<std::remove_cvref_t<decltype(mix)>>;
        bf::mixed_cache_config c = small();
        c.centre_keys            = 0;
        change(c);
        try {
            cache_type const cache(c, mix);
            FAIL("accepted: " << word);
        } catch (bf::shape_error const& e) {
            CAPTURE(e.what());
            REQUIRE(std::string(e.what()).find(word) != std::string::npos);
        }
        std::vector<std::byte> memory(100);
        REQUIRE_THROWS_AS(cache_type(c, memory, mix), bf::shape_error);
        REQUIRE_THROWS_AS(cache_type(c, bf::memory_ref(memory.data()), 100, mix), bf::shape_error);
        REQUIRE_THROWS_AS(cache_type::required_bytes(c, mix), bf::shape_error);
    };
    channels_mix const mix;
    refused(
        mix, [](auto& c) { c.kv_heads = 0; }, "kv_heads is 0");
    refused(
        mix, [](auto& c) { c.head_dim = 0; }, "head_dim is 0");
    refused(
        mix, [](auto& c) { c.value_head_dim = -1; }, "value_head_dim is -1");
    refused(
        mix, [](auto& c) { c.block_size = 0; }, "block_size is 0");
    refused(
        mix, [](auto& c) { c.exact_window = 0; }, "exact_window is 0");
    refused(
        mix, [](auto& c) { c.exact_sinks = -1; }, "exact_sinks is -1");
    refused(
        mix, [](auto& c) { c.max_tokens = 0; }, "max_tokens is 0");
    refused(
        mix, [](auto& c) { c.max_append = 0; }, "max_append is 0");
    refused(
        mix, [](auto& c) { c.max_rollback = -3; }, "max_rollback is -3");
    refused(
        mix, [](auto& c) { c.max_tokens = bf::index_t{1} << 41; }, "2^40");
    refused(
        mix, [](auto& c) { c.kv_heads = bf::index_t{1} << 40, c.max_tokens = bf::index_t{1} << 36; }, "overflow");
    refused(
        mix, [](auto& c) { c.head_dim = bf::index_t{1} << 36; },
        "affine_channels: head_dim 68719476736 is not a multiple");
    refused(
        mix, [](auto& c) { c.centre_keys = -1; }, "centre_keys is -1");
    refused(
        mix, [](auto& c) { c.centre_values = -1; }, "centre_values is -1");
    refused(
        mix, [](auto& c) { c.centre_keys = 84; }, "centre_keys is 84, more than exact_window + block_size - 1 = 83");
    refused(
        mix, [](auto& c) { c.centre_values = 84; }, "centre_values is 84");
    refused(
        mix, [](auto& c) { c.block_size = 48; }, "block_size 48 is not a multiple of the 32 tokens that middle_k");
    refused(
        testing::six_codecs{}, [](auto& c) { c.block_size = 16; },
        "block_size 16 is not a multiple of the 32 tokens that middle_v");
    refused(
        mix, [](auto& c) { c.head_dim = 24; }, "affine_channels: head_dim 24 is not a multiple of 16");
    refused(
        mix, [](auto& c) { c.value_head_dim = 24; }, "lloyd_max: head_dim 24 is not a multiple of 16");
    refused(
        bf::packed_mix<testing::byte_codec, testing::byte_codec, bf::quant::int8>{},
        [](auto& c) { c.value_head_dim = 24; }, "int8: head_dim 24");

    std::vector<std::byte> memory(static_cast<std::size_t>(bf::mixed_kv_cache<channels_mix>::required_bytes(small())));
    bf::mixed_kv_cache<channels_mix> const fits(small(), std::span(memory));
    REQUIRE_THROWS_AS(bf::mixed_kv_cache<channels_mix>(small(), std::span(memory).subspan(64)), bf::capacity_error);
    bf::mixed_kv_cache const deduced(small(), mix);
    REQUIRE(std::is_same_v<decltype(deduced), bf::mixed_kv_cache<channels_mix> const>);
}

TEMPLATE_LIST_TEST_CASE("tiles are aligned wherever the memory begins", "[mixed]", cache_backends) {
    TestType const policy;
    using cache_type = bf::mixed_kv_cache<bf::packed_mix<bf::quant::affine_channels<3, 128>>>;
    REQUIRE(cache_type::alignment == 128);
    bf::mixed_cache_config c = small();
    c.block_size             = 128;
    c.exact_sinks            = 1;
    input in(2, 400, 32, 16);
    cache_type wanted(c);
    append_in(policy, wanted, in, 100, 400);
    REQUIRE(cache_type::required_bytes(c) == wanted.allocated_bytes() + 127);
    for (std::size_t const skew : {0U, 1U, 64U, 65U, 127U}) {
        std::vector<std::byte> memory(static_cast<std::size_t>(cache_type::required_bytes(c)) + skew, std::byte{0xFF});
        cache_type cache(c, std::span(memory).subspan(skew)); // not initialised
        append_in(policy, cache, in, 100, 400);
        require_same_codes(cache, wanted);
        auto const p = cache.pools(policy);
        for (bf::storage_ref const& s : {p.middle_k, p.middle_v})
            for (bf::index_t h = 0; h < 2; ++h)
                REQUIRE(reinterpret_cast<std::uintptr_t>(bf::backend::on_host::row_address(s, h, 128)) % 128 == 0);
        auto const copy = cache.copy(policy);
        require_same_codes(copy, wanted);
    }
}

TEMPLATE_LIST_TEST_CASE("the caller's workspace is enough and gives the same codes", "[mixed]", cache_backends) {
    TestType const policy;
    for_each_mix([&](auto const& mix) {
        bf::mixed_kv_cache a(small(), mix), b(small(), mix);
        input in(2, 400, 32, 16);
        auto const size = static_cast<std::size_t>(bf::append_workspace_bytes(policy, b));
        std::vector<std::byte> scratch(size + 64, std::byte{0x77});
        for (bf::index_t at = 0; at < 400; at += 50) {
            bf::append(policy, a, in.k.view().slice(at, 50), in.v.view().slice(at, 50));
            bf::append(policy, b, in.k.view().slice(at, 50), in.v.view().slice(at, 50),
                       {.workspace = std::span(scratch).first(size)});
        }
        for (std::size_t i = size; i < scratch.size(); ++i) REQUIRE(scratch[i] == std::byte{0x77});
        require_same_codes(a, b);
    });
}

TEMPLATE_LIST_TEST_CASE("threads pack the same codes", "[mixed]", cache_backends) {
    for_each_mix([&](auto const& mix) {
        input in(2, 400, 32, 16);
        bf::mixed_kv_cache wanted(small(), mix);
        append_in(TestType{}, wanted, in, 200, 400);
#if defined(_OPENMP)
        bf::mixed_kv_cache team(small(), mix);
        append_in(TestType{.executor = bf::openmp{.threads = 3}}, team, in, 200, 400);
        require_same_codes(team, wanted);
#endif
        bf::mixed_kv_cache shared(small(), mix);
        bf::meeting barrier;
        bf::testing::on_threads(3, [&](int thread) {
            TestType const policy{.executor = bf::share{.thread = thread, .threads = 3, .barrier = barrier}};
            for (bf::index_t at = 0; at < 400; at += 200)
                bf::append(policy, shared, in.k.view().slice(at, 200), in.v.view().slice(at, 200));
        });
        require_same_codes(shared, wanted);
    });
}

TEMPLATE_LIST_TEST_CASE("a mean is taken again from the tokens that took the place of those trimmed",
                        "[mixed]",
                        cache_backends) {
    TestType const policy;
    bf::mixed_cache_config c = small();
    c.centre_keys            = 83; // as many as there may be
    c.centre_values          = 40;
    c.max_rollback           = 90;
    input first(2, 400, 32, 16, 1), second(2, 400, 32, 16, 2);
    for (bf::index_t const before : {84, 100, 170})
        for (bf::index_t const length : {0, 1, 39, 40, 63, 64, 82, 83, 84}) {
            CAPTURE(before, length);
            bf::mixed_kv_cache<channels_mix> cache(c), fresh(c);
            append_in(policy, cache, first, before, before); // in one piece: everything may be undone
            REQUIRE(cache.packed() > 0);
            cache.trim(length);
            REQUIRE(cache.packed() <= (length < 83 ? 0 : 64));
            auto const go_on = [&](auto& to) {
                bf::append(policy, to, second.k.view().slice(length, 400 - length),
                           second.v.view().slice(length, 400 - length));
            };
            go_on(cache);
            if (length > 0) append_in(policy, fresh, first, length, length);
            go_on(fresh);
            require_same_codes(cache, fresh);
        }
}

} // namespace mixed_append
