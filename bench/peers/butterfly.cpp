// SPDX-License-Identifier: MIT

// Our library with the simd backend: tensors of the work's type throughout, q and out too. Packed keys and values are
// rows of quant::int8 or quant::lloyd_max<16>, under queries and outputs in float.

#include <butterfly/backend/simd.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>
#include <butterfly/topology/ablation.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/row.hpp>
#include <butterfly/topology/window.hpp>
#include <butterfly/version.hpp>

#include "worker.hpp"

#include <fmt/format.h>

#include <cstring>

namespace {

using namespace peers;

/// One call of the library at one type of work.
class problem {
public:
    problem()                          = default;
    problem(problem const&)            = delete;
    problem& operator=(problem const&) = delete;
    virtual ~problem()                 = default;

    virtual void run()                                                             = 0;
    virtual void read_row(index_t head, index_t query, std::span<float> out) const = 0;
    virtual void read_packed(std::span<float>, std::span<float>) const {}
};

void fill(auto& to, std::span<std::byte const> from) {
    std::memcpy(static_cast<void*>(to.values().data()), from.data(), from.size());
}

void copy_row(auto const& buffer, index_t head, index_t query, std::span<float> out) {
    auto const row = buffer.view().row(head, query);
    for (std::size_t d = 0; d < out.size(); ++d) out[d] = static_cast<float>(row[d]);
}

template <class T>
class problem_of final : public problem {
public:
    problem_of(work const& w, tensors const& in)
        : work_(w), q_({w.heads, w.queries, w.head_dim}), k_({w.kv_heads, w.keys, w.head_dim}), v_(k_.shape()),
          out_(q_.shape()) {
        policy_.executor = team(w.threads);
        fill(q_, in.q);
        fill(k_, in.k);
        fill(v_, in.v);
    }

    void run() override {
        auto const q = std::as_const(q_).view(), k = std::as_const(k_).view(), v = std::as_const(v_).view();
        if (work_.kind == task::sparse) {
            bf::block_routing const blocks{row_, work_.block, (work_.keys + work_.block - 1) / work_.block};
            bf::sparse_sdpa(policy_, q, k, v, blocks, out_.view());
        } else {
            bf::dense_sdpa(policy_, q, k, v, out_.view(), {.q_position = work_.keys - work_.queries});
        }
    }

    void read_row(index_t head, index_t query, std::span<float> out) const override {
        copy_row(out_, head, query, out);
    }

private:
    work work_;
    bf::backend::simd<> policy_{};
    bf::heads_buffer<T> q_, k_, v_, out_;
    bf::topology::row<bf::topology::landmark, bf::topology::fixed_stride, bf::topology::window, bf::topology::self>
        row_{bf::topology::landmark{.stride = 1, .count = 1}, bf::topology::fixed_stride{.stride = 8, .count = 1},
             bf::topology::window{.predecessors = 1}, bf::topology::self{}};
};

/// A decode step over packed rows.
template <class Codec>
class packed_problem final : public problem {
public:
    packed_problem(work const& w, tensors const& in)
        : shape_{w.kv_heads, w.keys, w.head_dim}, q_({w.heads, w.queries, w.head_dim}), out_(q_.shape()) {
        policy_.executor = team(w.threads);
        fill(q_, in.q);
        k_ = pack(in.k);
        v_ = pack(in.v);
    }

    void run() override {
        bf::packed_view const k{k_.data(), codec_, shape_}, v{v_.data(), codec_, shape_};
        bf::dense_sdpa(policy_, std::as_const(q_).view(), k, v, out_.view(),
                       {.q_position = shape_.tokens - q_.shape().tokens});
    }

    void read_row(index_t head, index_t query, std::span<float> out) const override {
        copy_row(out_, head, query, out);
    }

    void read_packed(std::span<float> k, std::span<float> v) const override {
        unpack(k_, k);
        unpack(v_, v);
    }

private:
    [[nodiscard]] index_t rows() const { return shape_.heads * shape_.tokens; }
    [[nodiscard]] index_t row_bytes() const { return codec_.row_bytes(shape_.head_dim); }

    [[nodiscard]] std::vector<std::byte> pack(std::span<std::byte const> from) const {
        std::vector<float> const values = to_floats(from, bf::element_type::f32);
        std::vector<std::byte> to(static_cast<std::size_t>(rows() * row_bytes()));
        policy_.executor.each(rows(), [&](index_t row, int) noexcept {
            codec_.encode(values.data() + row * shape_.head_dim, shape_.head_dim, to.data() + row * row_bytes());
        });
        return to;
    }

    void unpack(std::vector<std::byte> const& from, std::span<float> to) const {
        for (index_t row = 0; row < rows(); ++row)
            codec_.decode(from.data() + row * row_bytes(), shape_.head_dim, to.data() + row * shape_.head_dim);
    }

    bf::heads_shape shape_;
    Codec codec_{};
    bf::backend::simd<> policy_{};
    bf::heads_buffer<float> q_, out_;
    std::vector<std::byte> k_, v_;
};

class ours final : public peer {
public:
    [[nodiscard]] std::string version() const override {
        return fmt::format("{}.{}.{} {}", BUTTERFLY_VERSION_MAJOR, BUTTERFLY_VERSION_MINOR, BUTTERFLY_VERSION_PATCH,
                           bf::backend::simd<>{}.name());
    }
    [[nodiscard]] std::string refusal(work const&) const override { return {}; }
    [[nodiscard]] std::string prepare(work const& w, tensors const& in) override {
        if (w.bits == 8) return pack<bf::quant::int8>(w, in);
        if (w.bits == 4) return pack<bf::quant::lloyd_max<16>>(w, in);
        if (w.type == bf::element_type::f32) problem_ = std::make_unique<problem_of<float>>(w, in);
        if (w.type == bf::element_type::f16) problem_ = std::make_unique<problem_of<bf::float16>>(w, in);
        if (w.type == bf::element_type::bf16) problem_ = std::make_unique<problem_of<bf::bfloat16>>(w, in);
        return fmt::format("q, k, v, out {}", name_of(w.type));
    }
    void run() override { problem_->run(); }
    void read_row(index_t head, index_t query, std::span<float> out) const override {
        problem_->read_row(head, query, out);
    }
    void read_packed(std::span<float> k, std::span<float> v) const override { problem_->read_packed(k, v); }

private:
    template <class Codec>
    [[nodiscard]] std::string pack(work const& w, tensors const& in) {
        problem_ = std::make_unique<packed_problem<Codec>>(w, in);
        Codec const codec{};
        return fmt::format("q, out f32; k, v {}, {} bytes a row", codec.name(), codec.row_bytes(w.head_dim));
    }

    std::unique_ptr<problem> problem_;
};

} // namespace

int main(int argc, char** argv) {
    ours subject;
    return serve(argc, argv, "butterfly", subject);
}
