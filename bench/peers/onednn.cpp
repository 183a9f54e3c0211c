// SPDX-License-Identifier: MIT

// oneDNN's matmul over 128-row blocks: causal attention as a careful user writes it, in float or with bf16 operands.
//
//   for each query head, for each block of 128 of its rows, longest first:
//       S = Q_block K_prefix^T            a matmul to float
//       P = exp(scale * (S - row max))    in float, rounded to the type of the inputs
//       O = P V_prefix / row sums         a matmul to float
//
// Matmuls are made for each length of the prefix when the work is prepared, each for one thread; threads take
// (head, block) pairs. Each thread brings its own scratch memory: that of the library may serve one call at a time.

#include "baselines/blocked_attention.hpp"
#include "worker.hpp"

#include <fmt/format.h>
#include <oneapi/dnnl/dnnl.hpp>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include <bit>
#include <cmath>
#include <unordered_map>

namespace {

using namespace peers;
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
        scores_products_.clear();
        value_products_.clear();
        scratch_bytes_ = 0;
        for (index_t first = 0; first < w.queries; first += block_rows) add_products(first);
        scratch_ = std::vector<scratch>(static_cast<std::size_t>(w.threads));
        for (scratch& s : scratch_) {
            s.scores.resize(static_cast<std::size_t>(block_rows * w.keys));
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

    /// The library's products run on the thread that asks.
    static void set_inner_threads() {
#if defined(_OPENMP)
        omp_set_num_threads(1);
#endif
    }

    [[nodiscard]] index_t rows_of(index_t first) const {
        return std::min(block_rows, work_.queries - first);
    }

    [[nodiscard]] product make_product(memory::desc const& a, memory::desc const& b, memory::desc const& out) {
        dnnl::primitive_attr mode;
        mode.set_scratchpad_mode(dnnl::scratchpad_mode::user);
        dnnl::matmul::primitive_desc const what(dnnl::matmul::desc(a, b, out), mode, engine_);
        scratch_bytes_ = std::max(scratch_bytes_, what.scratchpad_desc().get_size());
        return {a, b, out, what.scratchpad_desc(), dnnl::matmul(what)};
    }

    void add_products(index_t first) {
        index_t const rows = rows_of(first), prefix = first + rows, d = work_.head_dim;
        auto const f32 = memory::data_type::f32;
        scores_products_.emplace(first, make_product({{rows, d}, type_, memory::dims{d, 1}},
                                                     {{d, prefix}, type_, memory::dims{1, d}},
                                                     {{rows, prefix}, f32, memory::dims{prefix, 1}}));
        value_products_.emplace(first, make_product({{rows, prefix}, type_, memory::dims{prefix, 1}},
                                                    {{prefix, d}, type_, memory::dims{d, 1}},
                                                    {{rows, d}, f32, memory::dims{d, 1}}));
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

        multiply(scores_products_.at(first), q_.data() + at * bytes, k_.data() + kv * bytes, s.scores.data(), s);
        float sums[block_rows];
        for (index_t i = 0; i < rows; ++i)
            sums[i] = bench::exponentiate(s.scores.data() + i * prefix, first + i + 1, prefix, scale);
        void const* weights = s.scores.data();
        if (type_ == memory::data_type::bf16) {
            std::span<float const> const from(s.scores.data(), static_cast<std::size_t>(rows * prefix));
            round(from, s.weights.data());
            weights = s.weights.data();
        }
        float* const out = out_.data() + at;
        multiply(value_products_.at(first), weights, v_.data() + kv * bytes, out, s);
        for (index_t i = 0; i < rows; ++i) Eigen::Map<Eigen::ArrayXf>(out + i * d, d) /= sums[i];
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
    std::unordered_map<index_t, product> scores_products_, value_products_;
    std::size_t scratch_bytes_ = 0;
    std::vector<scratch> scratch_;
};

} // namespace

int main(int argc, char** argv) {
    onednn subject;
    return serve(argc, argv, "onednn", subject);
}
