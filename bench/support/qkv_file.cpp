// SPDX-License-Identifier: MIT
#include "qkv_file.hpp"

#include <algorithm>
#include <cmath>

namespace bench {
namespace {

namespace bf = butterfly;
namespace st = butterfly::safetensors;

bf::heads_buffer<float> widened(st::tensor const& t) {
    auto const widen = [](auto const& from) {
        bf::heads_buffer<float> to(from.shape());
        std::ranges::transform(from.values(), to.values().begin(), [](auto x) { return static_cast<float>(x); });
        return to;
    };
    if (t.type == st::dtype::f16) return widen(st::heads<bf::float16>(t));
    if (t.type == st::dtype::bf16) return widen(st::heads<bf::bfloat16>(t));
    return st::heads<float>(t);
}

bf::heads_buffer<float> read_tensor(st::tensor const& t, std::string_view where) {
    bf::heads_buffer<float> rows = widened(t);
    auto const values            = std::as_const(rows).values();
    auto const bad               = std::ranges::find_if(values, [](float x) { return !std::isfinite(x); });
    if (bad == values.end()) return rows;
    bf::heads_shape const shape = rows.shape();
    index_t const at            = bad - values.begin();
    throw usage_error("{}: {} is {} at head {}, token {}, column {}", where, t.name, *bad,
                      at / shape.head_dim / shape.tokens, at / shape.head_dim % shape.tokens, at % shape.head_dim);
}

} // namespace

qkv_tensors read_layer(st::contents const& file, index_t layer, std::string_view where) {
    auto const read = [&](char const* side) {
        return read_tensor(file.at(fmt::format("layer{}.{}", layer, side)), where);
    };
    qkv_tensors in{read("q"), read("k"), read("v")};
    bf::heads_shape const q = in.q.shape(), k = in.k.shape(), v = in.v.shape();
    if (k.heads < 1 || q.heads < 1 || q.heads % k.heads != 0 || q.tokens < 1 || k.tokens != q.tokens ||
        q.head_dim < 1 || k.head_dim != q.head_dim || v != k)
        throw usage_error("{}: layer {} has q {}, k {}, v {}, which do not fit each other", where, layer,
                          bf::detail::to_text(q), bf::detail::to_text(k), bf::detail::to_text(v));
    return in;
}

} // namespace bench
