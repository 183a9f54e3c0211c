// SPDX-License-Identifier: MIT
#include <butterfly/cache/save.hpp>
#include <butterfly/graph/io.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/topology/build.hpp>

#include "cache/backends.hpp"
#include "support/catch.hpp"
#include "support/saved_file.hpp"

#include <filesystem>
#include <fstream>

namespace saved_tests { // names of its own, for builds that compile several of these files as one

namespace bf    = butterfly;
namespace quant = butterfly::quant;
using bf::index_t;
using bf::testing::append_stream;
using bf::testing::file_bytes;
using bf::testing::reseal;
using bf::testing::watched_cache;
using bf::testing::with_header;
using Catch::Matchers::Contains;

using small_compressed = bf::compressed_kv_cache<bf::raw_mix<bf::bfloat16>, bf::weighted_mean_pooling>;
using small_mixed      = bf::mixed_kv_cache<bf::packed_mix<quant::lloyd_max<4>, quant::int8>>;

constexpr bf::cache_config compressed{.kv_heads       = 1,
                                      .head_dim       = 3,
                                      .value_head_dim = 2,
                                      .block_size     = 2,
                                      .exact_window   = 3,
                                      .exact_sinks    = 1,
                                      .max_tokens     = 40,
                                      .max_append     = 4,
                                      .max_rollback   = 1};

constexpr bf::mixed_cache_config mixed{.kv_heads     = 2,
                                       .head_dim     = 16,
                                       .block_size   = 2,
                                       .exact_window = 3,
                                       .exact_sinks  = 1,
                                       .centre_keys  = 3,
                                       .max_tokens   = 40,
                                       .max_append   = 4};

/// A small cache that was filled and its file.
template <class Cache, class Config>
file_bytes small_file(Config const& config, typename Cache::mix_type const& mix = {}) {
    Cache cache(config, mix);
    for (int i = 0; i < 4; ++i) append_stream(bf::backend::scalar{}, cache, 3);
    return bf::save(bf::backend::scalar{}, cache);
}

/// A cache with other content, at which files are thrown. Whatever is refused must leave no trace.
template <class Cache>
class target {
public:
    template <class Config>
    explicit target(Config const& config, typename Cache::mix_type const& mix = {}) : at_(config, mix) {
        for (int i = 0; i < 5; ++i) append_stream(bf::backend::scalar{}, at_.cache, 2, 3);
        memory_   = at_.memory;
        counters_ = at_.cache.counters();
    }

    /// What format_error says; "accepted" where nothing is thrown, "capacity: ..." where room is what lacks.
    template <class File>
    std::string refusal(File const& file) {
        std::string said;
        try {
            bf::load(bf::backend::scalar{}, file, at_.cache);
            return "accepted";
        } catch (bf::format_error const& e) {
            said = e.what();
        } catch (bf::capacity_error const& e) {
            said = std::string("capacity: ") + e.what();
        }
        if (at_.memory != memory_ || !(at_.cache.counters() == counters_)) return "half-loaded, then: " + said;
        return said;
    }

private:
    watched_cache<Cache> at_;
    std::vector<std::byte> memory_{};
    bf::cache_counters counters_{};
};

template <class Cache, class Config>
void every_byte(Config const& config) {
    file_bytes const good = small_file<Cache>(config);
    target<Cache> into(config);
    for (std::size_t at = 0; at < good.size(); ++at)
        for (int const flip : {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff}) {
            file_bytes file = good;
            file[at] ^= static_cast<std::byte>(flip);
            CAPTURE(at, flip);
            REQUIRE_THAT(into.refusal(file), Catch::Matchers::StartsWith("load: "));
        }
    for (std::size_t size = 0; size < good.size(); ++size) {
        CAPTURE(size);
        REQUIRE_THAT(into.refusal(std::span(good).first(size)),
                     Contains(size == 0 ? "load: no bytes" : "load: truncated: " + std::to_string(size) + " bytes"));
    }
    for (std::size_t const more : {1U, 4U, 64U, 4096U}) {
        file_bytes file = good;
        file.resize(good.size() + more);
        REQUIRE_THAT(into.refusal(file), Contains(std::to_string(more) + " bytes after its end"));
    }
    for (std::size_t first = 1; first < good.size(); first += 3) // the front is missing
        REQUIRE_THAT(into.refusal(std::span(good).subspan(first)), Contains("no saved cache"));
    REQUIRE(into.refusal(good) == "accepted");
}

TEST_CASE("every changed, missing and added byte is refused, and the cache keeps what it had", "[save]") {
    every_byte<small_compressed>(compressed);
    every_byte<small_mixed>(mixed);
}

TEST_CASE("sections of equal size cannot change places, nor come from another file", "[save]") {
    file_bytes const good = small_file<small_mixed>(mixed);
    target<small_mixed> into(mixed);
    std::vector<std::size_t> at;
    bf::detail::saved::reader("test", good).each_section([&](bf::saved_part const&, std::span<std::byte const> rows) {
        at.push_back(static_cast<std::size_t>(rows.data() - good.data()));
    });
    file_bytes file = good; // keys and values of the tail
    std::swap_ranges(file.begin() + static_cast<std::ptrdiff_t>(at[2]),
                     file.begin() + static_cast<std::ptrdiff_t>(at[3]),
                     file.begin() + static_cast<std::ptrdiff_t>(at[3]));
    REQUIRE(at[3] - at[2] == at[4] - at[3]);
    REQUIRE(into.refusal(file) == "load: its section tail_k has a bad checksum");

    bf::mixed_cache_config longer = mixed;
    longer.max_tokens             = 41; // another header, all sections of the same size and content
    file_bytes const other        = small_file<small_mixed>(longer);
    std::copy(other.begin() + static_cast<std::ptrdiff_t>(at[0]), other.end(),
              file.begin() + static_cast<std::ptrdiff_t>(at[0]));
    REQUIRE(other.size() == good.size());
    REQUIRE(into.refusal(file) == "load: its section sink_k has a bad checksum");
    REQUIRE(into.refusal(other) == "accepted");
}

TEST_CASE("what stands between rows and a checksum is zero", "[save]") {
    file_bytes const good = small_file<small_mixed>(mixed);
    target<small_mixed> into(mixed);
    bf::detail::saved::reader("test", good).each_section([&](bf::saved_part const& p, std::span<std::byte const> rows) {
        auto const end  = static_cast<std::size_t>(rows.data() + rows.size() - good.data());
        file_bytes file = good;
        if (end % 64 == 60) return;
        file[end] = std::byte{1};
        reseal(file);
        REQUIRE(into.refusal(file) == "load: its section " + p.name + " has bytes after its rows");
    });
}

/// A file that is removed at the end.
struct temporary {
    std::string path;
    temporary(std::string name, std::string const& content) : path(std::move(name)) {
        std::ofstream(path, std::ios::binary) << content;
    }
    ~temporary() { std::filesystem::remove(path); }
};

TEST_CASE("foreign files are refused with the reason", "[save]") {
    target<small_mixed> into(mixed);
    auto const refusal = [&](std::string const& path) { return into.refusal(path); };
    temporary const text("saved_test.txt", "not a cache at all\n"), empty("saved_test.empty", ""),
        start("saved_test.start", "\x89"
                                  "BFK"),
        npz("saved_test.npz", "");
    bf::graph const g = bf::topology::build({.heads = 1, .nodes = 4}, bf::topology::window{.predecessors = 2});
    bf::save_npz(g.view(), npz.path);
    REQUIRE(refusal(text.path) == "load: saved_test.txt: no saved cache: it begins with other bytes");
    REQUIRE(refusal(npz.path) == "load: saved_test.npz: no saved cache: it begins with other bytes");
    REQUIRE(refusal(start.path) == "load: saved_test.start: truncated: 4 bytes");
    REQUIRE(refusal(empty.path) == "load: cannot read saved_test.empty: the file is empty");
    REQUIRE(refusal("saved_test.missing") == "load: cannot read saved_test.missing: No such file or directory");
    REQUIRE_THAT(refusal("."), Contains("load: cannot read .: "));
    REQUIRE_THROWS_WITH(bf::describe_saved(text.path),
                        "describe_saved: saved_test.txt: no saved cache: it begins with other bytes");

    file_bytes next = small_file<small_mixed>(mixed); // of a version to come
    next[8]         = std::byte{2};
    reseal(next);
    REQUIRE(into.refusal(next) == "load: version 2, this reader knows 1");
    temporary const file("saved_test.kv", "");
    bf::save(bf::backend::scalar{}, bf::compressed_kv_cache<>(compressed), file.path);
    REQUIRE(refusal(file.path) == "load: saved_test.kv: of a compressed_kv_cache, the cache is a mixed_kv_cache");
}

template <class Cache, class Config, class Change>
std::string refusal_of(Config config, Change const& change) {
    file_bytes const good = small_file<Cache>(config);
    change(config);
    return target<Cache>(config).refusal(good);
}

TEST_CASE("a cache of other sizes or rules is refused by name, with both values", "[save]") {
    auto const of_compressed = [](auto const& change) { return refusal_of<small_compressed>(compressed, change); };
    auto const of_mixed      = [](auto const& change) { return refusal_of<small_mixed>(mixed, change); };
    REQUIRE(of_compressed([](auto& c) { c.kv_heads = 2; }) == "load: its kv_heads is 1, the cache has 2");
    REQUIRE(of_compressed([](auto& c) { c.head_dim = 4; }) == "load: its head_dim is 3, the cache has 4");
    REQUIRE(of_compressed([](auto& c) { c.value_head_dim = 0; }) == "load: its value_head_dim is 2, the cache has 3");
    REQUIRE(of_compressed([](auto& c) { c.block_size = 3; }) == "load: its block_size is 2, the cache has 3");
    REQUIRE(of_compressed([](auto& c) { c.exact_window = 4; }) == "load: its exact_window is 3, the cache has 4");
    REQUIRE(of_compressed([](auto& c) { c.exact_sinks = 0; }) == "load: its exact_sinks is 1, the cache has 0");
    REQUIRE(of_compressed([](auto& c) { c.rules.counted = false; }) == "load: its rules.counted is 1, the cache has 0");
    REQUIRE(of_compressed([](auto& c) { c.rules.late = true; }) == "load: its rules.late is 0, the cache has 1");
    REQUIRE(of_compressed([](auto& c) { c.rules.whole_blocks = false; }) ==
            "load: its rules.whole_blocks is 1, the cache has 0");
    REQUIRE(of_mixed([](auto& c) { c.centre_keys = 2; }) == "load: its centre_keys is 3, the cache has 2");
    REQUIRE(of_mixed([](auto& c) { c.centre_values = 1; }) == "load: its centre_values is 0, the cache has 1");
    REQUIRE(of_mixed([](auto& c) { c.head_dim = 32; }) == "load: its head_dim is 16, the cache has 32");
    REQUIRE(of_mixed([](auto& c) { c.value_head_dim = 16; }) == "accepted"); // which it had

    bf::cache_config no_sinks = compressed;
    no_sinks.rules.sinks      = false;
    REQUIRE(refusal_of<small_compressed>(no_sinks, [](auto& c) { c.exact_sinks = 9; }) == "accepted"); // it keeps none
    REQUIRE(refusal_of<small_compressed>(no_sinks, [](auto& c) {
                c.rules.sinks = true;
                c.exact_sinks = 0;
            }) == "load: its rules.sinks is 0, the cache has 1");

    REQUIRE(target<bf::compressed_kv_cache<bf::raw_mix<bf::bfloat16>>>(compressed)
                .refusal(small_file<small_compressed>(compressed)) == "load: its pooling is 1, the cache has 0");
}

TEST_CASE("a cache of other codecs is refused by part, with both names", "[save]") {
    file_bytes const good = small_file<small_mixed>(mixed, {.middle_k = quant::lloyd_max<4>(7)});
    REQUIRE(target<small_mixed>(mixed).refusal(good) ==
            "load: its codec of middle_k is lloyd_max<4> seed 7, the cache has lloyd_max<4> seed 1");
    REQUIRE(
        target<small_mixed>(mixed, {.middle_k = quant::lloyd_max<4>(7, quant::scale_rule::unbiased)}).refusal(good) ==
        "load: its codec of middle_k is lloyd_max<4> seed 7, the cache has lloyd_max<4> seed 7 unbiased");
    using wide_values = bf::mixed_kv_cache<bf::packed_mix<quant::lloyd_max<4>, quant::lloyd_max<16>>>;
    REQUIRE(target<wide_values>(mixed, {.middle_k = quant::lloyd_max<4>(7)}).refusal(good) ==
            "load: its codec of middle_v is int8, the cache has lloyd_max<16> seed 1");
    using half_tail = bf::mixed_kv_cache<bf::packed_mix<quant::lloyd_max<4>, quant::int8, quant::raw<bf::float16>>>;
    REQUIRE(target<half_tail>(mixed, {.middle_k = quant::lloyd_max<4>(7)}).refusal(good) ==
            "load: its codec of sink_k is bf16, the cache has f16");
    REQUIRE(target<small_mixed>(mixed, {.middle_k = quant::lloyd_max<4>(7)}).refusal(good) == "accepted");
}

TEST_CASE("content that does not fit is a capacity_error that says what lacks", "[save]") {
    bf::cache_config roomy = compressed;
    roomy.max_tokens       = 400;
    roomy.max_append       = 200;
    bf::compressed_kv_cache<> cache(roomy);
    append_stream(bf::backend::scalar{}, cache, 100);
    file_bytes const long_tail = bf::save(bf::backend::scalar{}, cache);
    bf::cache_config tight     = roomy;
    tight.max_append           = 4;
    REQUIRE(
        target<bf::compressed_kv_cache<>>(tight).refusal(long_tail) ==
        "capacity: load: a tail of 100 tokens, the cache has room for 64: give it a larger max_append or max_rollback");
    tight.max_append = 98; // a ring of 128
    tight.max_tokens = 99;
    REQUIRE(target<bf::compressed_kv_cache<>>(tight).refusal(long_tail) ==
            "capacity: load: 100 tokens, max_tokens is 99");
    tight.max_tokens = 100;
    REQUIRE(target<bf::compressed_kv_cache<>>(tight).refusal(long_tail) == "accepted");

    bf::mixed_cache_config back = mixed;
    back.max_rollback           = 30;
    small_mixed packed(back);
    for (int i = 0; i < 10; ++i) append_stream(bf::backend::scalar{}, packed, 4);
    packed.trim(20);
    REQUIRE(packed.packed() == 20); // 12 of which no query there can need
    file_bytes const much = bf::save(bf::backend::scalar{}, packed);
    back.max_tokens       = 20;
    REQUIRE(target<small_mixed>(back).refusal(much) == "capacity: load: 20 packed tokens, the cache has room for 16");
    back.max_tokens = 23;
    REQUIRE(target<small_mixed>(back).refusal(much) == "accepted");
}

/// What is said to a file with a changed header and right checksums.
template <class Change>
std::string forged(Change const& change) {
    file_bytes const good  = small_file<small_mixed>(mixed);
    bf::saved_cache header = bf::describe_saved(good);
    REQUIRE(header.counters == bf::counter_values{.tokens = 12, .tail_start = 6, .summaries = 4, .trim_floor = 9});
    change(header);
    return target<small_mixed>(mixed).refusal(with_header(good, header));
}

TEST_CASE("a header that was written with other numbers is refused, checksums or not", "[save]") {
    REQUIRE(forged([](auto&) {}) == "accepted");
    auto const counters = [](auto const& change) { return forged([&](bf::saved_cache& s) { change(s.counters); }); };
    std::string const wrong = "load: its counters contradict each other: ";
    REQUIRE(counters([](auto& n) { n.tail_start = 5; }) == wrong + "tail_start 5 is no multiple of block_size 2");
    REQUIRE(counters([](auto& n) { n.tail_start = 8; }) == wrong + "tail_start 8 leaves too little for trim_floor 9");
    REQUIRE(counters([](auto& n) { n.trim_floor = 13; }) ==
            wrong + "trim_floor 13 is not in [0, tokens], with tokens 12");
    REQUIRE(counters([](auto& n) { n.trim_floor = 0; }) == wrong + "tail_start 6 leaves too little for trim_floor 0");
    REQUIRE(counters([](auto& n) { n.summaries = 2; }) == wrong + "summaries 2 leave blocks out before tail_start 6");
    REQUIRE(counters([](auto& n) { n.summaries = 3; }) == wrong + "summaries 3 do not fit tokens 12");
    REQUIRE(counters([](auto& n) { n.summaries = 7; }) == wrong + "summaries 7 do not fit tokens 12");
    REQUIRE(counters([](auto& n) { n.tokens = 2; }) == wrong + "trim_floor 9 is not in [0, tokens], with tokens 2");
    REQUIRE(counters([](auto& n) { n.tokens = 41; }) == wrong + "summaries 4 do not fit tokens 41");
    REQUIRE(counters([](auto& n) { n = {.tokens = 50, .summaries = 24}; }) ==
            "load: its tokens 50 are more than its max_tokens 40");
    REQUIRE(counters([](auto& n) { n.tail_start = 4; }) == "load: its number of slots of tail_k is 6, the cache has 8");
    REQUIRE(counters([](auto& n) { n.summaries = 5; }) ==
            "load: its number of slots of middle_k is 8, the cache has 10");
    REQUIRE_THAT(counters([](auto& n) { n.tokens = -1; }), Contains("its tokens is 18446744073709551615, not in [0, "));
    REQUIRE_THAT(counters([](auto& n) { n.summaries = (index_t{1} << 40) + 1; }),
                 Contains("its summaries is 1099511627777"));

    REQUIRE(forged([](auto& s) { s.config.max_tokens = 41; }) == "accepted");
    REQUIRE(forged([](auto& s) { s.config.rules.late = false; }) == wrong + "summaries 4 do not fit tokens 12");
    REQUIRE(forged([](auto& s) { s.config.rules.counted = true; }) == "load: its rules.counted is 1, the cache has 0");
    REQUIRE_THAT(forged([](auto& s) { s.config.block_size = 0; }), Contains("its block_size is 0, not in [1, "));
    REQUIRE_THAT(forged([](auto& s) { s.config.block_size = std::numeric_limits<index_t>::min(); }),
                 Contains("its block_size is 9223372036854775808, not in [1, "));
    REQUIRE_THAT(forged([](auto& s) {
                     s.config.block_size = 1;
                     s.config.max_tokens = index_t{1} << 40;
                 }),
                 Contains("more blocks than an int32 counts"));
    REQUIRE_THAT(forged([](auto& s) { s.kind = static_cast<bf::saved_kind>(2); }),
                 Contains("its kind is 2, not in [0, 1]"));
    REQUIRE_THAT(forged([](auto& s) { s.pooling = static_cast<bf::pooling_kind>(3); }),
                 Contains("its pooling is 3, not in [0, 2]"));

    auto const part = [](auto const& change) { return forged([&](bf::saved_cache& s) { change(s.parts); }); };
    REQUIRE(part([](auto& p) { p[2].name = "tail_q"; }) == "load: its part 2 is tail_q, the cache has tail_k");
    REQUIRE(part([](auto& p) { std::swap(p[2].heads, p[2].slots); }) ==
            "load: its heads of tail_k is 6, the cache has 2");
    REQUIRE(part([](auto& p) {
                p[2].slots /= 2;
                p[2].row_bytes *= 2;
            }) == "load: its row_bytes of tail_k is 64, the cache has 32");
    REQUIRE_THAT(part([](auto& p) { p[2].slots = index_t{1} << 40; }), Contains("load: truncated: "));
    REQUIRE_THAT(part([](auto& p) { p[2].slots = p[2].heads = index_t{1} << 40; }),
                 Contains("part tail_k has more bytes than can be counted"));
    REQUIRE_THAT(part([](auto& p) {
                     for (auto& one : p) {
                         one.heads = one.slots = index_t{1} << 30;
                         one.row_bytes         = 2;
                     }
                 }),
                 Contains("has more bytes than can be counted")); // in sum
    REQUIRE_THAT(part([](auto& p) { p[2].slots = -1; }),
                 Contains("its number of rows or bytes of a part is 18446744073709551615"));
    REQUIRE_THAT(part([](auto& p) { p.pop_back(); }), Contains("bytes after its end"));
    REQUIRE_THAT(part([](auto& p) { p.push_back({"more", "f32", 1, 0, 4}); }), Contains("load: truncated: "));
}

TEST_CASE("lengths within a header are checked before use", "[save]") {
    file_bytes const good = small_file<small_mixed>(mixed);
    target<small_mixed> into(mixed);
    auto const with = [&](std::size_t at, std::uint64_t value, std::size_t bytes) {
        file_bytes file = good;
        for (std::size_t i = 0; i < bytes; ++i) file[at + i] = static_cast<std::byte>(value >> (8 * i));
        reseal(file);
        return into.refusal(file);
    };
    auto const size = static_cast<std::uint64_t>(good.size());
    for (std::uint64_t const header :
         {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{63}, std::uint64_t{0xffffffff}})
        REQUIRE_THAT(with(12, header, 4), Contains("no multiple of 64"));
    REQUIRE_THAT(with(12, size + 64, 4), Contains("truncated: "));
    REQUIRE_THAT(with(12, 0xffffffc0U, 4), Contains("truncated: "));
    REQUIRE_THAT(with(12, 64, 4), Contains("its header ends within a field"));
    REQUIRE_THAT(with(12, 256, 4), Contains("its number of parts is 7, not in [0, 1]"));
    REQUIRE_THAT(with(12, 448, 4), Contains("its header ends within a ")); // part
    REQUIRE_THAT(with(12, size, 4), Contains("its header has bytes after the last part"));
    REQUIRE_THAT(with(192, ~std::uint64_t{0}, 8), Contains("its number of parts is 18446744073709551615"));
    REQUIRE_THAT(with(192, 12, 8), Contains("its number of parts is 12, not in [0, 11]"));
    REQUIRE_THAT(with(192, 11, 8), Contains("its header ends within a field"));
    REQUIRE_THAT(with(192, 8, 8), Contains("truncated: ")); // of zeros, and its section
    REQUIRE_THAT(with(192, 6, 8), Contains("its header has bytes after the last part"));
    REQUIRE_THAT(with(224, 0xffffffffU, 4), Contains("its header ends within a name"));
    REQUIRE_THAT(with(228, 0xffffffffU, 4), Contains("its header ends within a name"));
}

TEST_CASE("counters are refused exactly where an invariant breaks, and others go on", "[save]") {
    int good = 0, bad = 0;
    for (bool const late : {false, true})
        for (index_t const bs : {1, 2, 3})
            for (index_t const window : {1, 3}) {
                bf::cache_config c = compressed;
                c.block_size       = bs;
                c.exact_window     = window;
                c.rules.late       = late;
                auto const before  = [&](index_t t) { return t < window ? 0 : (t - window + 1) / bs; };
                for (bf::counter_values v; v.tokens < 9; ++v.tokens)
                    for (v.tail_start = -1; v.tail_start < 10; ++v.tail_start)
                        for (v.summaries = -1; v.summaries < 10; ++v.summaries)
                            for (v.trim_floor = -1; v.trim_floor < 10; ++v.trim_floor) {
                                bool const holds =
                                    0 <= v.trim_floor && v.trim_floor <= v.tokens && v.tail_start >= 0 &&
                                    v.tail_start % bs == 0 && v.tail_start <= bs * before(v.trim_floor) &&
                                    v.tail_start <= bs * v.summaries && v.summaries <= v.tokens / bs &&
                                    v.summaries >= before(v.tokens - 1) && (late || v.summaries == v.tokens / bs);
                                CAPTURE(late, bs, window, v.tokens, v.tail_start, v.summaries, v.trim_floor);
                                REQUIRE(bf::cache_counters::defect(c, v).empty() == holds);
                                ++(holds ? good : bad);
                                if (!holds) continue;
                                auto at = bf::cache_counters::restored(c, v);
                                REQUIRE(at.values() == v);
                                at.append(3); // asserts what holds
                                at.trim(at.trim_floor());
                            }
            }
    REQUIRE(good > 100);
    REQUIRE(bad > 10000);
    bf::cache_counters fresh(compressed);
    for (int i = 0; i < 9; ++i) fresh.append(4);
    REQUIRE(bf::cache_counters::restored(compressed, fresh.values()) == fresh);
    REQUIRE_THAT(bf::cache_counters::defect(compressed, {.tokens = std::numeric_limits<index_t>::max()}),
                 Contains("tokens 9223372036854775807"));
    REQUIRE_THAT(
        bf::cache_counters::defect(compressed, {.tokens = 4, .summaries = std::numeric_limits<index_t>::max()}),
        Contains("summaries"));
}

} // namespace saved_tests
