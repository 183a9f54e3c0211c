// SPDX-License-Identifier: MIT
#include "ladder_qkv.hpp"

#include <butterfly/interop/safetensors.hpp>

#include "finite.hpp"

#include <algorithm>
#include <charconv>

namespace bench {
namespace {

namespace bf = butterfly;
namespace st = butterfly::safetensors;

/// The L of every tensor layerL.q, ascending.
std::vector<index_t> layers_of(st::contents const& file) {
    constexpr std::string_view prefix = "layer";
    std::vector<index_t> layers;
    for (st::tensor const& t : file.tensors) {
        if (!t.name.starts_with(prefix) || !t.name.ends_with(".q")) continue;
        index_t layer           = 0;
        char const* const first = t.name.data() + prefix.size();
        char const* const last  = t.name.data() + t.name.size() - 2;
        if (auto const [end, code] = std::from_chars(first, last, layer); code == std::errc{} && end == last)
            layers.push_back(layer);
    }
    std::sort(layers.begin(), layers.end());
    return layers;
}

template <bf::element T>
bf::heads_buffer<float> widened(st::tensor const& t) {
    bf::heads_buffer<T> const rows = st::heads<T>(t);
    bf::heads_buffer<float> wide(rows.shape());
    std::copy(rows.values().begin(), rows.values().end(), wide.values().begin());
    return wide;
}

bf::heads_buffer<float> read_heads(st::tensor const& t) {
    switch (t.type) {
    case st::dtype::f16:
        return widened<bf::float16>(t);
    case st::dtype::bf16:
        return widened<bf::bfloat16>(t);
    default:
        return st::heads<float>(t);
    }
}

/// Throws usage_error where the tensors of a layer, or a layer and the first one, do not fit together.
void check_layer(std::string const& path, qkv_layer const& layer, qkv_layer const& first) {
    bf::heads_shape const q = layer.q.shape(), k = layer.k.shape(), v = layer.v.shape();
    if (k.heads < 1 || q.heads < 1 || q.heads % k.heads != 0 || q.tokens < 1 || k.tokens != q.tokens ||
        q.head_dim < 1 || k.head_dim != q.head_dim || v != k)
        throw usage_error("--qkv {}: layer {} has q {}, k {}, v {}, which do not fit each other", path, layer.number,
                          bf::detail::to_text(q), bf::detail::to_text(k), bf::detail::to_text(v));
    if (q != first.q.shape() || k != first.k.shape())
        throw usage_error("--qkv {}: layers {} and {} differ in shape", path, first.number, layer.number);
}

} // namespace

std::vector<qkv_layer> read_qkv(std::string const& path) try {
    std::vector<std::byte> const bytes = st::read_bytes(path);
    st::contents const file            = st::parse(bytes);
    std::vector<qkv_layer> layers;
    for (index_t const number : layers_of(file)) {
        auto const read = [&](char const* side) {
            std::string const name       = fmt::format("layer{}.{}", number, side);
            bf::heads_buffer<float> rows = read_heads(file.at(name));
            check_finite("--qkv " + path, name, rows);
            return rows;
        };
        layers.push_back({number, read("q"), read("k"), read("v")});
        check_layer(path, layers.back(), layers.front());
    }
    if (layers.empty()) throw usage_error("--qkv {}: it has no tensor layerL.q", path);
    return layers;
} catch (bf::format_error const& e) {
    throw usage_error("--qkv {}: {}", path, e.what());
} catch (bf::shape_error const& e) {
    throw usage_error("--qkv {}: {}", path, e.what());
}

qkv_geometry read_qkv_geometry(std::string const& path) {
    std::vector<qkv_layer> const layers = read_qkv(path);
    bf::heads_shape const q = layers.front().q.shape(), k = layers.front().k.shape();
    qkv_geometry g{.model  = {.name     = "file",
                              .heads    = q.heads,
                              .kv_heads = k.heads,
                              .head_dim = q.head_dim,
                              .layers   = static_cast<index_t>(layers.size())},
                   .tokens = q.tokens};
    for (qkv_layer const& layer : layers) g.model.numbers.push_back(layer.number);
    return g;
}

} // namespace bench
