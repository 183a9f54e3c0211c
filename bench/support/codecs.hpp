// SPDX-License-Identifier: MIT
#pragma once

// The codecs every backend of the table is asked for.

#include <butterfly/quant/affine.hpp>
#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>

#include <string>

namespace bench {

template <class... Codecs>
struct codec_list {};

using known_codecs = codec_list<butterfly::quant::raw<float>,
                                butterfly::quant::raw<butterfly::float16>,
                                butterfly::quant::raw<butterfly::bfloat16>,
                                butterfly::quant::int8,
                                butterfly::quant::affine<8, 64>,
                                butterfly::quant::affine<4, 64>,
                                butterfly::quant::lloyd_max<32>,
                                butterfly::quant::lloyd_max<16>,
                                butterfly::quant::lloyd_max<8>,
                                butterfly::quant::lloyd_max<4>>;

/// Its name in options: "bf16", "int8", "affine4_64", "lloyd_max16".
template <class Codec>
[[nodiscard]] std::string short_name(Codec const& codec) {
    std::string const name = codec.name();
    std::string text;
    for (char const c : name.substr(0, name.find(' ')))
        if (c == ',')
            text += '_';
        else if (c != '<' && c != '>' && c != ' ')
            text += c;
    std::size_t const group = name.find(", ");
    if (group != std::string::npos) text += name.substr(group + 2, name.find('>') - group - 2);
    return text;
}

} // namespace bench
