// SPDX-License-Identifier: MIT

// ggml's flash_attn_ext on the CPU, as llama.cpp calls it: q float, k and v of the work's type, a half-precision mask
// where not every key is seen, no repacking between calls. Packed k and v are q8_0 or q4_0, as its caches are.
//
// sparse is the same call with the mask of the blocks. ggml_flash_attn_ext_set_n_kv_max, which tells how many keys a
// row of a mask leaves at most, made no difference in ggml 0.25.3 on Zen 5 (f32 and bf16, 4096 tokens).

#include "worker.hpp"

#include <fmt/format.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace {

using namespace peers;

/// Of keys and values.
ggml_type type_of(work const& w) {
    if (w.bits != 0) return w.bits == 8 ? GGML_TYPE_Q8_0 : GGML_TYPE_Q4_0;
    if (w.type == bf::element_type::f16) return GGML_TYPE_F16;
    return w.type == bf::element_type::bf16 ? GGML_TYPE_BF16 : GGML_TYPE_F32;
}

struct free_context {
    void operator()(ggml_context* c) const noexcept { ggml_free(c); }
};
struct free_threads {
    void operator()(ggml_threadpool* t) const noexcept { ggml_threadpool_free(t); }
};

/// While it lives, the calling thread has the CPUs of the process. libgomp, loaded, ties the first thread to one
/// (OMP_PROC_BIND), which threads that are not libgomp's would inherit.
class unpinned {
public:
#if defined(__linux__)
    unpinned() noexcept {
        cpu_set_t all; // the parent's, which this process began with
        tied_ = sched_getaffinity(0, sizeof before_, &before_) == 0 &&
                sched_getaffinity(getppid(), sizeof all, &all) == 0 && sched_setaffinity(0, sizeof all, &all) == 0;
    }
    ~unpinned() {
        if (tied_) sched_setaffinity(0, sizeof before_, &before_);
    }
    unpinned(unpinned const&)            = delete;
    unpinned& operator=(unpinned const&) = delete;

private:
    cpu_set_t before_{};
    bool tied_ = false;
#endif
};

class flash_attention final : public peer {
public:
    [[nodiscard]] std::string version() const override { return fmt::format("{} {}", ggml_version(), ggml_commit()); }

    [[nodiscard]] std::string refusal(work const&) const override { return {}; }

    [[nodiscard]] std::string prepare(work const& w, tensors const& in) override {
        work_ = w;
        context_.reset();
        std::size_t const mask_bytes = w.queries > 1 ? static_cast<std::size_t>(w.queries * w.keys) * 2 : 0;
        std::size_t const floats     = static_cast<std::size_t>(2 * w.q_size()) * sizeof(float);
        std::size_t const row_bytes  = ggml_row_size(type_of(w), w.head_dim);
        std::size_t const kv_bytes   = 2 * static_cast<std::size_t>(w.kv_heads * w.keys) * row_bytes;
        context_.reset(ggml_init({.mem_size   = floats + kv_bytes + mask_bytes + (std::size_t{1} << 20),
                                  .mem_buffer = nullptr,
                                  .no_alloc   = false}));
        if (!context_) throw std::runtime_error("ggml_init gave no memory");
        ggml_context* const c = context_.get();

        ggml_tensor* const q   = ggml_new_tensor_3d(c, GGML_TYPE_F32, w.head_dim, w.queries, w.heads);
        k_                     = ggml_new_tensor_3d(c, type_of(w), w.head_dim, w.keys, w.kv_heads);
        v_                     = ggml_new_tensor_3d(c, type_of(w), w.head_dim, w.keys, w.kv_heads);
        auto const floats_of_q = to_floats(in.q, w.type);
        std::memcpy(q->data, floats_of_q.data(), floats_of_q.size() * sizeof(float));
        fill(k_, in.k);
        fill(v_, in.v);

        auto const scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(w.head_dim)));
        out_             = ggml_flash_attn_ext(c, q, k_, v_, make_mask(c), scale, 0.0F, 0.0F);
        graph_           = ggml_new_graph(c);
        ggml_build_forward_expand(graph_, out_);
        make_threads();
        plan_           = ggml_graph_plan(graph_, w.threads, threads_.get());
        workspace_      = std::vector<std::uint8_t>(plan_.work_size);
        plan_.work_data = workspace_.data();
        if (w.bits == 0) return fmt::format("q, out f32; k, v {}", name_of(w.type));
        return fmt::format("q, out f32; k, v {}, {} bytes a row", ggml_type_name(k_->type), row_bytes);
    }

    void run() override {
        if (ggml_graph_compute(graph_, &plan_) != GGML_STATUS_SUCCESS) throw std::runtime_error("ggml failed");
    }

    void read_row(index_t head, index_t query, std::span<float> out) const override {
        auto const* const all = static_cast<float const*>(out_->data); // [queries, heads, head_dim]
        std::memcpy(out.data(), all + (query * work_.heads + head) * work_.head_dim, out.size_bytes());
    }

    void read_packed(std::span<float> k, std::span<float> v) const override {
        auto const* const traits = ggml_get_type_traits(k_->type);
        traits->to_float(k_->data, k.data(), static_cast<std::int64_t>(k.size()));
        traits->to_float(v_->data, v.data(), static_cast<std::int64_t>(v.size()));
    }

    // ggml built without OpenMP has threads of its own, which poll.
    void wake() override { ggml_threadpool_resume(threads_.get()); }
    void rest() override { ggml_threadpool_pause(threads_.get()); }

private:
    /// Keys or values, packed where the work's are.
    void fill(ggml_tensor* to, std::span<std::byte const> from) const {
        if (work_.bits == 0) {
            std::memcpy(to->data, from.data(), from.size());
            return;
        }
        auto const values = to_floats(from, work_.type);
        ggml_quantize_chunk(to->type, values.data(), to->data, 0, work_.kv_heads * work_.keys, work_.head_dim, nullptr);
    }

    /// 0 or -infinity for each (query, key); none where all are seen.
    [[nodiscard]] ggml_tensor* make_mask(ggml_context* c) const {
        if (work_.queries == 1) return nullptr;
        ggml_tensor* const mask  = ggml_new_tensor_2d(c, GGML_TYPE_F16, work_.keys, work_.queries);
        auto* const rows         = static_cast<ggml_fp16_t*>(mask->data);
        ggml_fp16_t const seen   = ggml_fp32_to_fp16(0),
                          hidden = ggml_fp32_to_fp16(-std::numeric_limits<float>::infinity());
        for (index_t i = 0; i < work_.queries; ++i)
            for (index_t j = 0; j < work_.keys; ++j) rows[i * work_.keys + j] = work_.sees(i, j) ? seen : hidden;
        return mask;
    }

    void make_threads() {
        threads_.reset();
        ggml_threadpool_params parameters = ggml_threadpool_params_default(work_.threads);
        parameters.paused                 = true;
        [[maybe_unused]] unpinned const here;
        threads_.reset(ggml_threadpool_new(&parameters));
    }

    work work_{};
    std::unique_ptr<ggml_context, free_context> context_;
    std::unique_ptr<ggml_threadpool, free_threads> threads_;
    ggml_tensor* k_     = nullptr;
    ggml_tensor* v_     = nullptr;
    ggml_tensor* out_   = nullptr;
    ggml_cgraph* graph_ = nullptr;
    ggml_cplan plan_{};
    std::vector<std::uint8_t> workspace_;
};

} // namespace

int main(int argc, char** argv) {
    ggml_cpu_init();
    flash_attention subject;
    return serve(argc, argv, "ggml", subject);
}
