// SPDX-License-Identifier: MIT
#pragma once

// The codecs every backend of the table is asked for.

#include <butterfly/quant/codec.hpp>

namespace bench {

template <class... Codecs>
struct codec_list {};

using known_codecs = codec_list<butterfly::quant::raw<float>,
                                butterfly::quant::raw<butterfly::float16>,
                                butterfly::quant::raw<butterfly::bfloat16>>;

} // namespace bench
