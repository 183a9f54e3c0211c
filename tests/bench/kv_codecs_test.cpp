// SPDX-License-Identifier: MIT
#include "../../bench/support/kv_codecs.hpp"
#include "../../bench/support/kv_mixes.hpp"
#include "support/catch.hpp"

#include <set>
#include <string>

namespace bf = butterfly;

TEST_CASE("every codec has a name of its own that a shell need not quote", "[bench]") {
    std::set<std::string> names, descriptions;
    bench::for_each_kv_codec([&](auto const& is) {
        std::string const name = is.name;
        CAPTURE(name);
        REQUIRE(names.insert(name).second);
        REQUIRE(name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos);
        REQUIRE(descriptions.insert(std::string(is.codec.name())).second); // no format twice under two names
        if (is.origin == bench::codec_origin::published || is.origin == bench::codec_origin::ggml)
            REQUIRE(name == is.codec.name());
    });
    REQUIRE(names.size() >= 40);
    for (char const* const name : {"int8", "lloyd_max16", "affine4_64", "ggml_q8_0", "turbo_kv_4b", "v_q2", "bf16"})
        REQUIRE(names.contains(name));
}

TEST_CASE("names of codecs say what they are", "[bench]") {
    auto const description = [](std::string const& name) {
        std::string found;
        bench::for_each_kv_codec([&](auto const& is) {
            if (is.name == name) found = std::string(is.codec.name());
        });
        return found;
    };
    REQUIRE(description("lloyd_max6").starts_with("lloyd_max<6>"));
    REQUIRE(description("lloyd_max32_unbiased").starts_with("lloyd_max<32>"));
    REQUIRE(description("lloyd_max32_unbiased").ends_with("unbiased"));
    REQUIRE(description("affine3_128") == "affine<3, 128>");
    REQUIRE(description("affine_channels4_32") == "affine_channels<4, 32>");
    REQUIRE(description("affine2_64_outliers8") == "affine<2, 64> and 8 outliers");
}

TEST_CASE("every mix has a name of its own and fits a cache of its sizes", "[bench]") {
    std::set<std::string> names;
    bench::for_each_mixed_mix([&]<class Mix>(bench::named_mix<Mix> const& is) {
        CAPTURE(is.name);
        REQUIRE(names.insert(is.name).second);
        auto const config = is.sizes.of(2, 64, 1000);
        REQUIRE(config.kv_heads == 2);
        REQUIRE(config.head_dim == 64);
        REQUIRE(bf::mixed_kv_cache<Mix>::allocated_bytes(config, is.mix) > 0); // throws where sizes do not fit
    });
    bench::for_each_summary_mix([&]<class Mix>(bench::named_mix<Mix> const& is) {
        CAPTURE(is.name);
        REQUIRE(names.insert(is.name).second);
        REQUIRE(bf::compressed_kv_cache<Mix>::allocated_bytes({.kv_heads = 2, .head_dim = 64, .max_tokens = 1000},
                                                              is.mix) > 0);
    });
    bench::for_each_published_pair([&](auto const& pair) {
        CAPTURE(pair.name);
        REQUIRE(names.insert(pair.name).second);
        REQUIRE(std::string(pair.name) == std::string(pair.keys.name()) + "+" + std::string(pair.values.name()));
    });
}
