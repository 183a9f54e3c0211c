// SPDX-License-Identifier: MIT

// Bytes of caches: those of published formats by hand, those of this library by filling a cache.

#include <butterfly/backend/scalar.hpp>
#include <butterfly/cache/attend.hpp>
#include <butterfly/cache/mixed_attend.hpp>

#include "../../bench/support/kv_cache_bytes.hpp"
#include "support/catch.hpp"

#include <map>

namespace bf = butterfly;

namespace {

constexpr double kib = 1024;

std::map<std::string, bench::cache_line> lines_of(bench::model const& m, std::vector<bf::index_t> const& lengths) {
    std::map<std::string, bench::cache_line> out;
    for (bench::cache_line& line : bench::cache_lines(m, lengths, 128)) {
        REQUIRE(!out.contains(line.name));
        std::string const name = line.name;
        out.emplace(name, std::move(line));
    }
    return out;
}

bench::model const& llama_3b() {
    return bench::cache_models().front();
}

/// Bytes that a cache has after `tokens` tokens, the last block of them one at a time.
template <class Cache>
bf::index_t filled_bytes(Cache& cache, bf::index_t tokens) {
    auto const& c = cache.config();
    bf::heads_buffer<float> const rows({c.kv_heads, c.max_append, c.head_dim});
    auto const append = [&](bf::index_t step) {
        bf::heads_view<float const> const some{
            rows.view().row(0, 0).data(), {c.kv_heads, step, c.head_dim}, {c.max_append * c.head_dim, c.head_dim}};
        bf::append(bf::backend::scalar{}, cache, some, some);
    };
    bf::index_t const decode = std::min(c.block_size, tokens);
    for (bf::index_t at = 0; at < tokens - decode; at += c.max_append)
        append(std::min(c.max_append, tokens - decode - at));
    for (bf::index_t i = 0; i < decode; ++i) append(1);
    return cache.retained_bytes();
}

} // namespace

TEST_CASE("bytes of a token in the published formats, 28 layers of 8 heads of 128", "[bench]") {
    auto const lines = lines_of(llama_3b(), {32768});
    auto const token = [&](char const* name) { return lines.at(name).token / kib; };
    REQUIRE(token("dense f32") == 224.0);
    REQUIRE(token("dense f16") == 112.0);
    REQUIRE(token("turbo_kv_4b+f16") == 71.75); // 15.75 of keys, 56 of values
    REQUIRE(token("uniform_2b+f16") == 66.5);   // 10.5
    REQUIRE(token("uniform_2b+v_q4") == 28.0);  // 17.5 of values
    REQUIRE(token("uniform_2b+v_q2") == 21.0);
    REQUIRE(token("uniform_4b+v_q4") == 32.375);

    // A window of 128 keys in float32, and, allocated, the keys of all tokens: 112 KiB each.
    bench::cache_line const& four = lines.at("turbo_kv_4b+f16");
    REQUIRE(four.constant == 14680064);
    REQUIRE(four.total[0] == bf::index_t{32768} * 73472 + 14680064);
    REQUIRE(four.allocated[0] - four.total[0] == bf::index_t{32768} * 114688);
    REQUIRE(lines.at("dense f32").total[0] == 7516192768);
}

TEST_CASE("a block of a published format costs the same for half a row", "[bench]") {
    bench::model const& m = bench::cache_models()[1];
    REQUIRE(m.head_dim == 64);
    auto const lines = lines_of(m, {1024});
    REQUIRE(lines.at("turbo_kv_4b+f16").token == 16 * 8 * (72 + 128));
    REQUIRE(lines.at("uniform_2b+v_q4").token == 16 * 8 * (48 + 40));
}

TEST_CASE("values of the published engine are grouped over all heads", "[bench]") {
    bench::model const odd{"odd", 1, 3, 80};
    REQUIRE(lines_of(odd, {64}).at("uniform_2b+v_q4").token == 3 * 48 + 8 * 20); // 240 values in groups of 32
}

TEST_CASE("which lines of the published table its formats give", "[bench]") {
    std::map<std::string, bench::published_claim> claims;
    for (auto const& claim : bench::published_claims()) claims.emplace(claim.text, claim);
    REQUIRE(claims.size() == 7);
    REQUIRE(claims.at("FP32").reproduced());
    REQUIRE(claims.at("FP32").computed == Approx(7.168));
    REQUIRE(claims.at("turbo_kv_4b (flat)").reproduced());
    REQUIRE(claims.at("turbo_kv_4b (flat)").computed == Approx(2.296));
    REQUIRE(claims.at("turbo_kv_4b (flat)").pairs == std::vector<std::string>{"turbo_kv_4b+f16"});
    REQUIRE(!claims.at("turbo_kv_4b + k128").reproduced());
    REQUIRE(claims.at("turbo_kv_4b + k128").computed == Approx(2.296 + 0.014336));
    REQUIRE(claims.at("2-bit (flat)").computed == Approx(2.128));
    REQUIRE(claims.at("2-bit + k512").computed == Approx(2.128 + 0.057344));
    for (char const* const line : {"2-bit (flat)", "2-bit + k128", "2-bit + k256", "2-bit + k512"}) {
        REQUIRE(!claims.at(line).reproduced());
        REQUIRE(claims.at(line).pairs.empty()); // no formats of keys and values come to it
    }
}

TEST_CASE("bytes of mixed caches at any length are those of a filled one", "[bench]") {
    bench::model const m{"small", 3, 2, 32};
    std::vector<bf::index_t> const lengths{1, 100, 700, 1024};
    auto const lines = lines_of(m, lengths);
    bench::for_each_mixed_mix([&]<class Mix>(bench::named_mix<Mix> const& is) {
        bench::cache_line const& line = lines.at(is.name);
        CAPTURE(is.name, line.refusal);
        REQUIRE(line.refusal.empty());
        for (std::size_t i = 0; i < lengths.size(); ++i) {
            bf::mixed_kv_cache<Mix> cache(is.sizes.of(m.kv_heads, m.head_dim, lengths[i]), is.mix);
            REQUIRE(line.total[i] == 3 * filled_bytes(cache, lengths[i]));
            REQUIRE(line.allocated[i] == 3 * cache.allocated_bytes());
        }
        REQUIRE(line.token == 3 * 2 * (is.mix.middle_k.row_bytes(32) + is.mix.middle_v.row_bytes(32)));
        REQUIRE(static_cast<double>(line.total[3]) == line.token * 1024 + line.constant);
    });
    bench::for_each_summary_mix([&]<class Mix>(bench::named_mix<Mix> const& is) {
        bench::cache_line const& line = lines.at(is.name);
        bf::compressed_kv_cache<Mix> cache({.kv_heads = 2, .head_dim = 32, .max_tokens = 700}, is.mix);
        REQUIRE(line.total[2] == 3 * filled_bytes(cache, 700));
        REQUIRE(static_cast<double>(line.total[3]) == line.token * 1024 + line.constant);
    });
}

TEST_CASE("what a mixed cache keeps beside packed tokens", "[bench]") {
    // Decoding at 32k: the tail is the window back to the start of a block, 191 tokens, of which 127 are packed later;
    // four sinks; both in bf16, and packed rows less. Centred, a mean of 128 keys: 8 heads of 128 floats.
    auto const lines           = lines_of(llama_3b(), {32768});
    bench::cache_line const& k = lines.at("k4v4");
    REQUIRE(k.token == 28 * 8 * 2 * 66);
    bf::index_t const tail = 32768 - (32768 - 1 - 127) / 64 * 64, packed = (32768 - 128) / 64 * 64;
    REQUIRE(k.total[0] == 28 * 8 * ((tail + 4) * 512 + packed * 132));
    REQUIRE(lines.at("k4v4_centred").total[0] == k.total[0] + 28 * 8 * 512);
    REQUIRE(lines.at("k8v4").token == 28 * 8 * (130 + 66));
    REQUIRE(lines.at("k2v2").token == 28 * 8 * 2 * 34);
}

TEST_CASE("a model whose rows a codec does not take leaves that cache out, with the reason", "[bench]") {
    auto const lines = lines_of({"odd", 1, 1, 40}, {64});
    REQUIRE(lines.at("k4v4").refusal == "lloyd_max: head_dim 40 is not a multiple of 16 up to 1024");
    REQUIRE(lines.at("dense f16").refusal.empty());
    REQUIRE(lines.at("summaries").refusal.empty());
}
