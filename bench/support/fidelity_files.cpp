// SPDX-License-Identifier: MIT
#include "fidelity_files.hpp"

#include <butterfly/graph/npz.hpp>

#include "usage.hpp"

#include <nlohmann/json.hpp>

#include <cstring>
#include <fstream>

namespace bench {
namespace {

/// The bytes of a safetensors file: 8 bytes of length, a JSON header, data.
struct tensor_file {
    std::string path;
    nlohmann::json header;
    std::vector<char> data;

    explicit tensor_file(std::string const& from) : path(from) {
        std::ifstream in(path, std::ios::binary);
        std::uint64_t size = 0;
        if (!in.read(reinterpret_cast<char*>(&size), sizeof size)) throw usage_error("{}: cannot be read", path);
        std::string text(std::min<std::uint64_t>(size, 1U << 26), '\0');
        if (!in.read(text.data(), static_cast<std::streamsize>(text.size())) || text.size() != size)
            throw usage_error("{}: no safetensors file", path);
        header = nlohmann::json::parse(text, nullptr, false);
        if (!header.is_object()) throw usage_error("{}: no safetensors file", path);
        data.assign(std::istreambuf_iterator<char>(in), {});
    }

    [[nodiscard]] bf::heads_buffer<float> read(std::string const& name) const try {
        auto const& entry = header.at(name);
        auto const shape  = entry.at("shape").get<std::vector<index_t>>();
        auto const type   = entry.at("dtype").get<std::string>();
        auto const ends   = entry.at("data_offsets").get<std::vector<std::size_t>>();
        if (shape.size() != 3 || ends.size() != 2)
            throw usage_error("{}: {} is not [heads, tokens, columns]", path, name);
        bf::heads_buffer<float> out({shape[0], shape[1], shape[2]});
        std::size_t const width = type == "F32" ? 4 : type == "F16" || type == "BF16" ? 2 : 0;
        if (width == 0) throw usage_error("{}: {} is {}, not F32, F16 or BF16", path, name, type);
        if (ends[0] > ends[1] || ends[1] > data.size() || ends[1] - ends[0] != out.values().size() * width)
            throw usage_error("{}: {} is truncated", path, name);
        char const* at = data.data() + ends[0];
        for (float& x : out.values()) {
            std::uint16_t half = 0;
            std::memcpy(width == 4 ? static_cast<void*>(&x) : &half, at, width);
            if (type == "F16") x = bf::detail::from_float16_bits(half);
            if (type == "BF16") x = bf::detail::from_bfloat16_bits(half);
            at += width;
        }
        return out;
    } catch (nlohmann::json::exception const&) {
        throw usage_error("{}: no tensor {}", path, name);
    }
};

} // namespace

qkv load_qkv(std::string const& path, index_t layer) {
    tensor_file const file(path);
    auto const tensor = [&](char const* side) { return file.read(fmt::format("layer{}.{}", layer, side)); };
    qkv in{tensor("q"), tensor("k"), tensor("v"), fmt::format("{}, layer {}", path, layer)};
    bf::heads_shape const q = in.q.shape(), k = in.k.shape(), v = in.v.shape();
    if (k.heads < 1 || q.heads % k.heads != 0 || v.heads != k.heads || k.tokens != q.tokens || v.tokens != q.tokens ||
        k.head_dim != q.head_dim || q.tokens < 1 || q.head_dim < 1 || v.head_dim != q.head_dim)
        throw usage_error("{}: layer {} has q {}, k {}, v {}, which do not fit each other", path, layer,
                          bf::detail::to_text(q), bf::detail::to_text(k), bf::detail::to_text(v));
    return in;
}

void write_outputs(std::string const& path,
                   std::vector<index_t> const& positions,
                   std::vector<std::pair<std::string, bf::heads_buffer<float> const*>> const& outputs) {
    nlohmann::ordered_json header;
    std::size_t at  = 0;
    auto const next = [&](std::string const& name, char const* type, std::vector<index_t> const& shape,
                          std::size_t bytes) {
        header[name] = {{"dtype", type}, {"shape", shape}, {"data_offsets", {at, at + bytes}}};
        at += bytes;
    };
    std::vector<std::int32_t> const where(positions.begin(), positions.end());
    for (auto const& [name, out] : outputs)
        next(name, "F32", {out->shape().heads, out->shape().tokens, out->shape().head_dim}, out->values().size_bytes());
    next("positions", "I32", {static_cast<index_t>(where.size())}, 4 * where.size());

    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    std::uint64_t const size = text.size();
    std::ofstream file(path, std::ios::binary);
    auto const put = [&](void const* data, std::size_t bytes) {
        file.write(static_cast<char const*>(data), static_cast<std::streamsize>(bytes));
    };
    put(&size, sizeof size);
    put(text.data(), text.size());
    for (auto const& [name, out] : outputs) put(out->values().data(), out->values().size_bytes());
    put(where.data(), 4 * where.size());
    if (!file.flush()) throw usage_error("--out {}: the file cannot be written", path);
}

void write_certificate(std::string const& path, std::vector<index_t> const& positions, sightings const& seen) {
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
}

} // namespace bench
