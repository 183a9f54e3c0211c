// SPDX-License-Identifier: MIT
#include "ladder_qkv.hpp"

#include <butterfly/interop/safetensors.hpp>

#include "qkv_file.hpp"

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

} // namespace

std::vector<qkv_layer> read_qkv(std::string const& path) try {
    std::vector<std::byte> const bytes = st::read_bytes(path);
    st::contents const file            = st::parse(bytes);
    std::vector<qkv_layer> layers;
    for (index_t const number : layers_of(file)) {
        qkv_tensors in = read_layer(file, number, "--qkv " + path);
        layers.push_back({number, std::move(in.q), std::move(in.k), std::move(in.v)});
        qkv_layer const& first = layers.front();
        if (layers.back().q.shape() != first.q.shape() || layers.back().k.shape() != first.k.shape())
            throw usage_error("--qkv {}: layers {} and {} differ in shape", path, first.number, number);
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
