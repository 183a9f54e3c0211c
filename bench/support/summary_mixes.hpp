// SPDX-License-Identifier: MIT
#pragma once

// Compressed caches whose summaries are packed, for programs that are told the codec by name.

#include <butterfly/cache/mix.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace bench {

/// Sinks and tail as they are, summaries packed.
template <butterfly::quant::row_codec Summary, butterfly::element T = butterfly::bfloat16>
struct summary_mix {
    butterfly::quant::raw<T> tail{};
    Summary summary_k{};
    Summary summary_v{};
};

/// How summaries can be kept; "raw": as tokens are.
[[nodiscard]] inline std::vector<std::string> const& summary_codec_names() {
    static std::vector<std::string> const names{"raw", "int8", "lloyd_max16", "lloyd_max8", "lloyd_max4"};
    return names;
}

/// Calls f(mix) for a cache of elements T whose summaries are kept by one of summary_codec_names.
template <butterfly::element T, class F>
decltype(auto) with_summaries(std::string_view name, F const& f) {
    namespace quant = butterfly::quant;
    if (name == "int8") return f(summary_mix<quant::int8, T>{});
    if (name == "lloyd_max16") return f(summary_mix<quant::lloyd_max<16>, T>{});
    if (name == "lloyd_max8") return f(summary_mix<quant::lloyd_max<8>, T>{});
    if (name == "lloyd_max4") return f(summary_mix<quant::lloyd_max<4>, T>{});
    return f(butterfly::raw_mix<T>{});
}

} // namespace bench
