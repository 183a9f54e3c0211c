// SPDX-License-Identifier: MIT

// Rows of any bits through every codec, and any bytes read as packed rows. Buffers are as long as what they hold, so
// that sanitizers see a byte too many.
//
//   byte 0: codec    byte 1: head_dim, in steps of 16    the rest, over and over: floats, then packed bytes
//
// What must hold: values are packed into row_bytes bytes and no more; what a row of finite values of ordinary size
// decodes to is finite and no further from zero than the row's norm allows; the scalar backend's rows and the SIMD
// backend's are equal to the bit, whatever the bytes.

#include <butterfly/backend/simd.hpp>
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

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <tuple>
#include <vector>

namespace {

namespace bf    = butterfly;
namespace quant = butterfly::quant;
using bf::index_t;

using codecs = std::tuple<quant::int8,
                          quant::lloyd_max<4>,
                          quant::lloyd_max<6>,
                          quant::lloyd_max<8>,
                          quant::lloyd_max<16>,
                          quant::lloyd_max<32>,
                          quant::affine<2, 32>,
                          quant::affine<3, 64>,
                          quant::affine<4, 128>,
                          quant::affine<8, 32>,
                          quant::affine_channels<2, 32>,
                          quant::affine_channels<4, 64>,
                          quant::affine_channels<8, 32>,
                          quant::outliers<quant::affine<4, 64>, 4>,
                          quant::trellis<2>,
                          quant::trellis<3>,
                          quant::trellis<4>,
                          quant::ggml_q8_0,
                          quant::ggml_q4_0,
                          quant::ggml_q4_1,
                          quant::published::uniform_2b,
                          quant::published::uniform_3b,
                          quant::published::uniform_4b,
                          quant::published::mixed_4b8,
                          quant::published::turbo_kv_3b,
                          quant::published::turbo_kv_4b,
                          quant::published::turbo_kv_4bo,
                          quant::published::v_q4,
                          quant::published::turbo_kv_1b,
                          quant::published::turbo_kv_2b,
                          quant::published::turbo_kv_3bo,
                          quant::published::turbo_kv_5b,
                          quant::published::turbo_kv_5b_fast,
                          quant::published::v_q2>;

[[noreturn]] void fail(std::string const& codec, char const* what) {
    std::fprintf(stderr, "%s: %s\n", codec.c_str(), what);
    std::abort();
}

/// Bytes aligned to what tiles begin at, with nothing behind them.
struct packed_rows {
    explicit packed_rows(std::size_t bytes)
        : size(bytes), data(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{64}))) {}
    packed_rows(packed_rows const&)            = delete;
    packed_rows& operator=(packed_rows const&) = delete;
    ~packed_rows() { ::operator delete (data, std::align_val_t{64}); }

    std::size_t size;
    std::byte* data;
};

/// Fills `to` with the input, over and over.
void fill(std::span<std::uint8_t const> from, void* to, std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; ++at)
        static_cast<std::uint8_t*>(to)[at] = from.empty() ? 0 : from[at % from.size()];
}

template <class Codec>
std::vector<float> decode_all(Codec const& codec, packed_rows const& rows, index_t tile, index_t n) {
    std::vector<float> out(static_cast<std::size_t>(tile * n));
    for (index_t j = 0; j < tile; ++j) codec.decode(rows.data + (tile > 1 ? j : 0), n, out.data() + j * n);

    std::vector<std::byte const*> at;
    for (index_t j = 0; j < tile; ++j) at.push_back(rows.data + (tile > 1 ? j : 0));
    std::vector<float> by_backend(out.size());
    bf::bound_codec const bound = bind_codec(bf::backend::simd<>{}, codec);
    static_cast<bf::backend::on_host::codec_ops const*>(bound.ops)->decode(&codec, at.data(), static_cast<int>(tile), n,
                                                                           by_backend.data(), n);
    for (std::size_t i = 0; i < out.size(); ++i) { // NaNs may differ in sign
        bool const same = std::memcmp(&out[i], &by_backend[i], sizeof(float)) == 0 ||
                          (std::isnan(out[i]) && std::isnan(by_backend[i]));
        if (!same) fail(codec.name(), "the SIMD backend decodes other bits");
    }
    return out;
}

template <class Codec>
void try_codec(Codec const& codec, index_t n, std::span<std::uint8_t const> input) {
    try {
        quant::require_head_dim<Codec>(n);
    } catch (bf::shape_error const&) {
        return;
    }
    constexpr index_t tile = quant::tile_tokens_of<Codec>();
    std::vector<float> values(static_cast<std::size_t>(tile * n));
    fill(input, values.data(), values.size() * sizeof(float));

    packed_rows rows(static_cast<std::size_t>(tile * codec.row_bytes(n)));
    quant::encoder_of<Codec>()(&codec, values.data(), n, n, rows.data);
    std::vector<float> const back = decode_all(codec, rows, tile, n);

    double largest = 0, smallest = HUGE_VAL;
    for (float const x : values) {
        largest = std::isfinite(x) ? std::fmax(largest, std::fabs(static_cast<double>(x))) : HUGE_VAL;
        if (x != 0) smallest = std::fmin(smallest, std::fabs(static_cast<double>(x)));
        if (!std::isfinite(x)) break;
    }
    if (largest < 1e3 && smallest > 1e-3) // float16 headers of foreign formats hold these
        for (float const x : back)
            if (!(std::fabs(static_cast<double>(x)) <= 8 * largest * std::sqrt(static_cast<double>(n))))
                fail(codec.name(), "ordinary rows decode to something else");

    fill(input, rows.data, rows.size);
    decode_all(codec, rows, tile, n);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    if (size < 2) return 0;
    std::size_t const which = data[0] % std::tuple_size_v<codecs>;
    index_t const n         = 16 * (1 + data[1] % 16);
    std::span<std::uint8_t const> const rest{data + 2, size - 2};
    std::size_t number = 0;
    std::apply([&](auto const&... codec) { ((number++ == which ? try_codec(codec, n, rest) : void()), ...); },
               codecs{});
    return 0;
}
