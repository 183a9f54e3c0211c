// SPDX-License-Identifier: MIT
#pragma once

// What baselines/blocked_attention.hpp computes, as a peer: float products whatever the type of the inputs.

#include "baselines/blocked_attention.hpp"
#include "worker.hpp"

namespace peers {

using blocked_function = void (*)(bench::dense_inputs const&, std::span<float>, bf::executor const&);

class blocked final : public peer {
public:
    blocked(blocked_function attend, std::string version) : attend_(attend), version_(std::move(version)) {}

    [[nodiscard]] std::string version() const override { return version_; }
    [[nodiscard]] std::string refusal(work const& w) const override {
        return w.kind == task::prefill ? "" : "written for causal prefill";
    }
    [[nodiscard]] std::string prepare(work const& w, tensors const& in) override {
        q_        = to_floats(in.q, w.type);
        k_        = to_floats(in.k, w.type);
        v_        = to_floats(in.v, w.type);
        out_      = std::vector<float>(q_.size());
        inputs_   = {q_.data(), k_.data(), v_.data(), out_.data(), w.heads, w.kv_heads, w.queries, w.head_dim};
        scores_   = bench::make_scores(w.threads);
        executor_ = team(w.threads);
        return "f32 throughout";
    }
    void run() override { attend_(inputs_, scores_, executor_); }
    void read_row(index_t head, index_t query, std::span<float> out) const override {
        auto const from = out_.begin() + (head * inputs_.tokens + query) * inputs_.head_dim;
        std::copy(from, from + inputs_.head_dim, out.begin());
    }

private:
    blocked_function attend_;
    std::string version_;
    std::vector<float> q_, k_, v_, out_, scores_;
    bench::dense_inputs inputs_{};
    bf::executor executor_{};
};

} // namespace peers
