// SPDX-License-Identifier: MIT

// oneDNN's matmul over 128-row blocks: causal attention as a careful user writes it, in float or with bf16 operands.
//
//   for each query head, for each block of 128 of its rows, longest first, for each block of keys:
//       S = Q_block K_block^T                              a matmul to float
//       P = exp(scale * (S - row max so far))              in float, rounded to the type of the inputs
//       O = O * exp(scale * (old - new max)) + P V_block   a matmul that adds to floats
//   O / row sums
//
// Matmuls are made for each shape of a block when the work is prepared, each for one thread; threads take (head, block)
// pairs. Each thread brings its own scratch memory: that of the library may serve one call at a time.

#include "baselines/blocked_attention.hpp"
#include "worker.hpp"

#include <fmt/format.h>
#include <oneapi/dnnl/dnnl.hpp>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include <bit>
#include <cmath>
#include <map>
#include <utility>

namespace {

using namespace peers;
using bench::block_keys;
using bench::block_rows;
using dnnl::memory;

class onednn final : public peer {
public:
    [[nodiscard]] std::string version() const override {
        dnnl_version_t const* const v = dnnl_version();
        return fmt::format("{}.{}.{}", v->major, v->minor, v->patch);
    }

    [[nodiscard]] std::string refusal(work const& w) const override {
        if (w.kind != task::prefill) return "written for causal prefill";
        return w.type == bf::element_type::f16 ? "no f16 matmul on the CPU" : "";
    }

    [[nodiscard]] std::string prepare(work const& w, tensors const& in) override {
        work_     = w;
        executor_ = team(w.threads);
        type_     = w.type == bf::element_type::f32 ? memory::data_type::f32 : memory::data_type::bf16;
        q_.assign(in.q.begin(), in.q.end());
        k_.assign(in.k.begin(), in.k.end());
        v_.assign(in.v.begin(), in.v.end());
        out_.assign(static_cast<std::size_t>(w.q_size()), 0.0F);
        set_inner_threads();
        products_.clear();
        scratch_bytes_ = 0;
        for (index_t first = 0; first < w.queries; first += block_rows)
            for (index_t key = 0; key < first + rows_of(first); key += block_keys)
                add_products(rows_of(first), keys_of(first, key));
        scratch_ = std::vector<scratch>(static_cast<std::size_t>(w.threads));
        for (scratch& s : scratch_) {
            s.scores.resize(static_cast<std::size_t>(block_rows * block_keys));
            s.weights.resize(s.scores.size());
            s.products.resize(scratch_bytes_ + 1);
        }
        return w.type == bf::element_type::f32 ? "f32 throughout" : "q, k, v, weights bf16; scores, out f32";
    }

    void run() override {
        index_t const blocks = (work_.queries + block_rows - 1) / block_rows;
        executor_.each(blocks * work_.heads, [&](index_t item, int thread) noexcept {
            attend_block(item % work_.heads, (blocks - 1 - item / work_.heads) * block_rows,
                         scratch_[static_cast<std::size_t>(thread)]);
        });
    }

    void read_row(index_t head, index_t query, std::span<float> out) const override {
        auto const from = out_.begin() + (head * work_.queries + query) * work_.head_dim;
        std::copy(from, from + work_.head_dim, out.begin());
    }

private:
    struct scratch {
        std::vector<float> scores;
        std::vector<bf::bfloat16> weights;
        std::vector<std::byte> products;
    };
    struct product {
        memory::desc a, b, out, scratch;
        dnnl::matmul run;
    };
    struct products {
        product scores, values;
    };

    /// The library's products run on the thread that asks.
    static void set_inner_threads() {
#if defined(_OPENMP)
        omp_set_num_threads(1);
#endif
    }

    [[nodiscard]] index_t rows_of(index_t first) const {
        return std::min(block_rows, work_.queries - first);
    }

    /// Keys of the block at `key` that rows from `first` on see.
    [[nodiscard]] index_t keys_of(index_t first, index_t key) const {
        return std::min(block_keys, first + rows_of(first) - key);
    }

    [[nodiscard]] product
    make_product(memory::desc const& a, memory::desc const& b, memory::desc const& out, bool adds) {
        dnnl::primitive_attr mode;
        if (adds) {
            dnnl::post_ops then;
            then.append_sum(1.0F);
            mode.set_post_ops(then);
        }
        mode.set_scratchpad_mode(dnnl::scratchpad_mode::user);
        dnnl::matmul::primitive_desc const what(dnnl::matmul::desc(a, b, out), mode, engine_);
        scratch_bytes_ = std::max(scratch_bytes_, what.scratchpad_desc().get_size());
        return {a, b, out, what.scratchpad_desc(), dnnl::matmul(what)};
    }

    void add_products(index_t rows, index_t keys) {
        if (products_.contains({rows, keys})) return;
        index_t const d = work_.head_dim;
        auto const f32  = memory::data_type::f32;
        products_.emplace(
            std::pair(rows, keys),
            products{make_product({{rows, d}, type_, memory::dims{d, 1}}, {{d, keys}, type_, memory::dims{1, d}},
                                  {{rows, keys}, f32, memory::dims{keys, 1}}, false),
                     make_product({{rows, keys}, type_, memory::dims{keys, 1}}, {{keys, d}, type_, memory::dims{d, 1}},
                                  {{rows, d}, f32, memory::dims{d, 1}}, true)});
    }

    void multiply(product const& p, void const* a, void const* b, void* out, scratch& s) const {
        dnnl::stream stream(engine_);
        p.run.execute(stream, {{DNNL_ARG_SRC, memory(p.a, engine_, const_cast<void*>(a))},
                               {DNNL_ARG_WEIGHTS, memory(p.b, engine_, const_cast<void*>(b))},
                               {DNNL_ARG_DST, memory(p.out, engine_, out)},
                               {DNNL_ARG_SCRATCHPAD, memory(p.scratch, engine_, s.products.data())}});
        stream.wait();
    }

    void attend_block(index_t head, index_t first, scratch& s) {
        index_t const rows = rows_of(first), prefix = first + rows, d = work_.head_dim;
        index_t const bytes = type_ == memory::data_type::f32 ? 4 : 2;
        index_t const kv    = head / (work_.heads / work_.kv_heads) * work_.keys * d;
        index_t const at    = (head * work_.queries + first) * d;
        auto const scale    = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
        float* const out    = out_.data() + at;
        auto const out_row  = [&](index_t i) { return Eigen::Map<Eigen::ArrayXf>(out + i * d, d); };

        std::fill_n(out, rows * d, 0.0F);
        bench::row_states states(rows);
        for (index_t key = 0; key < prefix; key += block_keys) {
            index_t const keys = keys_of(first, key), here = (kv + key * d) * bytes;
            products const& p = products_.at({rows, keys});
            multiply(p.scores, q_.data() + at * bytes, k_.data() + here, s.scores.data(), s);
            for (index_t i = 0; i < rows; ++i)
                states.push(i, Eigen::Map<Eigen::ArrayXf>(s.scores.data() + i * keys, keys),
                            std::clamp<index_t>(first + i + 1 - key, 0, keys), scale, out_row(i));
            void const* weights = s.scores.data();
            if (type_ == memory::data_type::bf16) {
                round({s.scores.data(), static_cast<std::size_t>(rows * keys)}, s.weights.data());
                weights = s.weights.data();
            }
            multiply(p.values, weights, v_.data() + here, out, s);
        }
        for (index_t i = 0; i < rows; ++i) out_row(i) /= states.sum[i];
    }

    /// Weights are finite and not negative: rounding needs no branch, so that the compiler makes vectors of it.
    static void round(std::span<float const> from, bf::bfloat16* to) {
        for (std::size_t i = 0; i < from.size(); ++i) {
            auto const bits = std::bit_cast<std::uint32_t>(from[i]);
            to[i].bits      = static_cast<std::uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
        }
    }

    work work_{};
    bf::executor executor_{};
    dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
    memory::data_type type_ = memory::data_type::f32;
    std::vector<std::byte> q_, k_, v_;
    std::vector<float> out_;
    std::map<std::pair<index_t, index_t>, products> products_; // by rows and keys of a block
    std::size_t scratch_bytes_ = 0;
    std::vector<scratch> scratch_;
};

} // namespace

int main(int argc, char** argv) {
    onednn subject;
    return serve(argc, argv, "onednn", subject);
}
