// SPDX-License-Identifier: MIT
#include "fidelity_files.hpp"

#include <butterfly/graph/npz.hpp>
#include <butterfly/interop/safetensors.hpp>

#include "qkv_file.hpp"
#include "usage.hpp"

#include <algorithm>

namespace bench {
namespace {

namespace safetensors = bf::safetensors;

} // namespace

qkv load_qkv(std::string const& path, index_t layer) try {
    auto const bytes     = safetensors::read_bytes(path);
    auto const file      = safetensors::parse(bytes);
    qkv_tensors layer_of = read_layer(file, layer, path);
    return {std::move(layer_of.q), std::move(layer_of.k), std::move(layer_of.v),
            fmt::format("{}, layer {}", path, layer)};
} catch (bf::format_error const& e) {
    throw usage_error("{}: {}", path, e.what());
} catch (bf::shape_error const& e) {
    throw usage_error("{}: {}", path, e.what());
}

void write_outputs(std::string const& path,
                   std::vector<index_t> const& positions,
                   std::vector<std::pair<std::string, bf::heads_buffer<float> const*>> const& outputs) try {
    std::vector<std::int32_t> const where(positions.begin(), positions.end());
    std::vector<safetensors::tensor> tensors;
    for (auto const& [name, out] : outputs)
        tensors.push_back(safetensors::make_tensor<float>(
            name, {out->shape().heads, out->shape().tokens, out->shape().head_dim}, out->values()));
    tensors.push_back(safetensors::make_tensor<std::int32_t>("positions", {static_cast<index_t>(where.size())},
                                                             std::span<std::int32_t const>(where)));
    safetensors::save(path, tensors);
} catch (bf::format_error const& e) {
    throw usage_error("--out {}: {}", path, e.what());
}

void write_certificate(std::string const& path, std::vector<index_t> const& positions, sightings const& seen) try {
    auto const tokens_of = [](sight_row const& row) {
        index_t count = 0;
        for (sight const& run : row.runs) count += run.end - run.first;
        return count;
    };
    index_t degree = 1;
    for (index_t h = 0; h < seen.heads(); ++h)
        for (index_t q = 0; q < seen.queries(); ++q) degree = std::max(degree, tokens_of(seen.row(h, q)));

    auto const slots = static_cast<std::size_t>(seen.heads() * seen.queries() * degree);
    std::vector<std::int32_t> neigh_idx(slots, bf::no_neighbor);
    std::vector<float> weight(slots, 0.0F);
    for (index_t h = 0; h < seen.heads(); ++h)
        for (index_t q = 0; q < seen.queries(); ++q) {
            auto at         = static_cast<std::size_t>((h * seen.queries() + q) * degree);
            auto const& row = seen.row(h, q);
            std::size_t key = 0;
            for (sight const& run : row.runs) {
                for (std::int32_t token = run.first; token < run.end; ++token, ++at) {
                    neigh_idx[at] = token;
                    weight[at]    = run.summary ? row.weights[key] / static_cast<float>(run.end - run.first)
                                                : row.weights[key + static_cast<std::size_t>(token - run.first)];
                }
                key += run.summary ? 1 : static_cast<std::size_t>(run.end - run.first);
            }
        }
    std::vector<std::int32_t> const position(positions.begin(), positions.end());
    std::vector<index_t> const shape{seen.heads(), seen.queries(), degree};
    using values                    = std::span<std::int32_t const>;
    bf::npz::member const members[] = {
        bf::npz::make_member<std::int32_t>("neigh_idx", shape, values(neigh_idx)),
        bf::npz::make_member<float>("weight", shape, std::span<float const>(weight)),
        bf::npz::make_member<std::int32_t>("position", {static_cast<index_t>(position.size())}, values(position))};
    bf::npz::write(path, members);
} catch (bf::format_error const& e) {
    throw usage_error("--certificate {}: {}", path, e.what());
}

} // namespace bench
