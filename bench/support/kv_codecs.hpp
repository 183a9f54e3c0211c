// SPDX-License-Identifier: MIT
#pragma once

// The codecs of keys and values by name: the one list that all programs share.
//
//   lloyd_max16             16 levels, scales by least squares; lloyd_max16_unbiased: those that keep <x, decoded>
//   affine4_64              4 bits, groups of 64 values of a row
//   affine_channels4_32     4 bits, groups of 32 tokens of a channel: rows are packed 32 at a time
//   affine4_64_outliers4    the same with the 4 largest values of a row apart
//   uniform_2b, turbo_kv_4b, v_q4, ...     published formats by the names they have there

#include <butterfly/quant/affine.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/quant/ggml.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/quant/outliers.hpp>
#include <butterfly/quant/published/mixed.hpp>
#include <butterfly/quant/published/turbo_kv.hpp>
#include <butterfly/quant/published/turbo_kv_outliers.hpp>
#include <butterfly/quant/published/turbo_kv_signs.hpp>
#include <butterfly/quant/published/uniform.hpp>
#include <butterfly/quant/published/values.hpp>
#include <butterfly/quant/trellis.hpp>

#include <type_traits>

namespace bench {

namespace bf = butterfly;

/// Whose format a codec is.
enum class codec_origin { raw, library, ggml, published };

[[nodiscard]] constexpr char const* name_of(codec_origin origin) noexcept {
    return origin == codec_origin::raw       ? "raw"
           : origin == codec_origin::library ? "library"
           : origin == codec_origin::ggml    ? "ggml"
                                             : "published";
}

/// A codec as command lines call it.
template <bf::quant::codec Codec>
struct named_codec {
    char const* name;
    codec_origin origin;
    Codec codec{};
};

template <bf::quant::codec Codec>
named_codec(char const*, codec_origin, Codec) -> named_codec<Codec>;

/// Calls f(named_codec) for every codec.
template <class F>
void for_each_kv_codec(F const& f) {
    namespace quant      = bf::quant;
    namespace published  = bf::quant::published;
    auto const raw       = codec_origin::raw;
    auto const library   = codec_origin::library;
    auto const ggml      = codec_origin::ggml;
    auto const theirs    = codec_origin::published;
    auto const unbiased  = quant::scale_rule::unbiased;
    constexpr int a_seed = 1;

    f(named_codec{"f16", raw, quant::raw<bf::float16>{}});
    f(named_codec{"bf16", raw, quant::raw<bf::bfloat16>{}});

    f(named_codec{"int8", library, quant::int8{}});
    f(named_codec{"lloyd_max4", library, quant::lloyd_max<4>{a_seed}});
    f(named_codec{"lloyd_max6", library, quant::lloyd_max<6>{a_seed}});
    f(named_codec{"lloyd_max8", library, quant::lloyd_max<8>{a_seed}});
    f(named_codec{"lloyd_max16", library, quant::lloyd_max<16>{a_seed}});
    f(named_codec{"lloyd_max32", library, quant::lloyd_max<32>{a_seed}});
    f(named_codec{"lloyd_max4_unbiased", library, quant::lloyd_max<4>{a_seed, unbiased}});
    f(named_codec{"lloyd_max6_unbiased", library, quant::lloyd_max<6>{a_seed, unbiased}});
    f(named_codec{"lloyd_max8_unbiased", library, quant::lloyd_max<8>{a_seed, unbiased}});
    f(named_codec{"lloyd_max16_unbiased", library, quant::lloyd_max<16>{a_seed, unbiased}});
    f(named_codec{"lloyd_max32_unbiased", library, quant::lloyd_max<32>{a_seed, unbiased}});
    f(named_codec{"trellis2", library, quant::trellis<2>{}});
    f(named_codec{"trellis3", library, quant::trellis<3>{}});
    f(named_codec{"trellis4", library, quant::trellis<4>{}});
    f(named_codec{"affine2_32", library, quant::affine<2, 32>{}});
    f(named_codec{"affine2_64", library, quant::affine<2, 64>{}});
    f(named_codec{"affine2_128", library, quant::affine<2, 128>{}});
    f(named_codec{"affine3_32", library, quant::affine<3, 32>{}});
    f(named_codec{"affine3_64", library, quant::affine<3, 64>{}});
    f(named_codec{"affine3_128", library, quant::affine<3, 128>{}});
    f(named_codec{"affine4_32", library, quant::affine<4, 32>{}});
    f(named_codec{"affine4_64", library, quant::affine<4, 64>{}});
    f(named_codec{"affine4_128", library, quant::affine<4, 128>{}});
    f(named_codec{"affine8_32", library, quant::affine<8, 32>{}});
    f(named_codec{"affine8_64", library, quant::affine<8, 64>{}});
    f(named_codec{"affine8_128", library, quant::affine<8, 128>{}});
    f(named_codec{"affine2_64_outliers4", library, quant::outliers<quant::affine<2, 64>, 4>{}});
    f(named_codec{"affine2_64_outliers8", library, quant::outliers<quant::affine<2, 64>, 8>{}});
    f(named_codec{"affine3_64_outliers4", library, quant::outliers<quant::affine<3, 64>, 4>{}});
    f(named_codec{"affine4_64_outliers4", library, quant::outliers<quant::affine<4, 64>, 4>{}});
    f(named_codec{"affine_channels2_32", library, quant::affine_channels<2, 32>{}});
    f(named_codec{"affine_channels2_128", library, quant::affine_channels<2, 128>{}});
    f(named_codec{"affine_channels3_32", library, quant::affine_channels<3, 32>{}});
    f(named_codec{"affine_channels3_128", library, quant::affine_channels<3, 128>{}});
    f(named_codec{"affine_channels4_32", library, quant::affine_channels<4, 32>{}});
    f(named_codec{"affine_channels4_128", library, quant::affine_channels<4, 128>{}});
    f(named_codec{"affine_channels8_128", library, quant::affine_channels<8, 128>{}});

    f(named_codec{"ggml_q8_0", ggml, quant::ggml_q8_0{}});
    f(named_codec{"ggml_q4_0", ggml, quant::ggml_q4_0{}});
    f(named_codec{"ggml_q4_1", ggml, quant::ggml_q4_1{}});

    f(named_codec{"uniform_2b", theirs, published::uniform_2b{}});
    f(named_codec{"uniform_3b", theirs, published::uniform_3b{}});
    f(named_codec{"uniform_4b", theirs, published::uniform_4b{}});
    f(named_codec{"mixed_4b8", theirs, published::mixed_4b8{}});
    f(named_codec{"turbo_kv_1b", theirs, published::turbo_kv_1b{}});
    f(named_codec{"turbo_kv_2b", theirs, published::turbo_kv_2b{}});
    f(named_codec{"turbo_kv_3b", theirs, published::turbo_kv_3b{}});
    f(named_codec{"turbo_kv_3bo", theirs, published::turbo_kv_3bo{}});
    f(named_codec{"turbo_kv_4b", theirs, published::turbo_kv_4b{}});
    f(named_codec{"turbo_kv_4bo", theirs, published::turbo_kv_4bo{}});
    f(named_codec{"turbo_kv_5b", theirs, published::turbo_kv_5b{}});
    f(named_codec{"turbo_kv_5b_fast", theirs, published::turbo_kv_5b_fast{}});
    f(named_codec{"v_q4", theirs, published::v_q4{}});
    f(named_codec{"v_q2", theirs, published::v_q2{}});
}

/// The name of a codec's type: the first in the list.
template <bf::quant::codec Codec>
[[nodiscard]] char const* short_name(Codec const&) {
    char const* found = nullptr;
    for_each_kv_codec([&]<class Other>(named_codec<Other> const& is) {
        if (std::is_same_v<Other, Codec> && found == nullptr) found = is.name;
    });
    return found;
}

} // namespace bench
