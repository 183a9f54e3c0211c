// SPDX-License-Identifier: MIT
#pragma once

// A decode step over tokens that are kept in some way. `Tokens` says how:
//
//   Tokens(decode_shape, machine)                writes them
//   with_problem(policy, q, out, f)              f(problem) for queries that end with the context
//   pages(bytes)                                 whole pages for plain reads of `bytes` bytes

#include <butterfly/sdpa/attend.hpp>
#include <butterfly/testing/oracle.hpp>
#include <butterfly/testing/problem.hpp>

#include "decode_step.hpp"
#include "fidelity_count.hpp"
#include "ladder_systems.hpp"
#include "limits_threads.hpp"

#include <algorithm>
#include <atomic>

namespace bench {

/// Memory of whole pages that begins at a line of the cache, and where tiles of any codec may begin.
class page_memory {
public:
    explicit page_memory(index_t bytes)
        : size_(static_cast<std::size_t>(bf::detail::round_up(bytes, static_cast<index_t>(page_bytes)))),
          memory_(std::make_unique<std::byte[]>(size_ + line)) {}

    [[nodiscard]] std::span<std::byte> pages() const {
        auto const past = reinterpret_cast<std::uintptr_t>(memory_.get()) % line;
        return {memory_.get() + (line - past) % line, size_};
    }

private:
    static constexpr std::size_t line = 128;

    std::size_t size_;
    std::unique_ptr<std::byte[]> memory_;
};

/// N(0, 1), over and over: rows differ, because the period is a prime, and filling is fast.
template <class T>
void fill(std::span<T> to) {
    bf::testing::random draws(7);
    std::vector<T> some(9973);
    for (T& x : some) x = T(static_cast<float>(draws.normal()));
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = some[i % some.size()];
}

/// Pages of their own to read, for tokens that are not in one piece.
class read_pages {
public:
    [[nodiscard]] std::span<std::byte const> of(index_t bytes) {
        if (memory_.pages().empty()) {
            memory_ = page_memory(bytes);
            fill(std::span(reinterpret_cast<float*>(memory_.pages().data()), memory_.pages().size() / sizeof(float)));
        }
        return memory_.pages();
    }

private:
    page_memory memory_{0};
};

template <class Tokens>
class step_of final : public decode_step {
public:
    /// `how`: what Tokens is told besides.
    template <class... How>
    step_of(decode_shape const& s, machine const& m, How const&... how)
        : machine_(m), tokens_(s, m, how...), q_({s.heads, s.rows, s.head_dim}), out_(q_.shape()) {
        fill(q_.values());
        with_problem(machine_, s.rows, [&](bf::problem const& p) {
            scratch_.resize(static_cast<std::size_t>(workspace_bytes(machine_, std::span(&p, 1))));
        });
    }

    void attend() override {
        with_problem(machine_, rows(), [&](bf::problem p) {
            p.options.workspace = scratch_;
            bf::attend(machine_, std::span<bf::problem const>(&p, 1));
        });
    }
    void attend_exactly() override { attend_by(bf::testing::oracle{}, rows()); }
    std::span<float const> output() const override { return out_.values(); }

    std::string plan() override {
        std::string text;
        with_problem(machine_, rows(), [&](bf::problem const& p) { text = explain(machine_, p); });
        return text;
    }
    index_t edges() override {
        std::atomic<index_t> edges = 0;
        attend_by(edge_counter{{}, &edges}, rows());
        return edges;
    }
    index_t bytes() override {
        index_t bytes = 0;
        attend_by(make_counter(bytes), 1);
        return bytes;
    }
    std::span<std::byte const> pages() override { return tokens_.pages(bytes()); }

private:
    [[nodiscard]] index_t rows() const { return q_.shape().tokens; }

    /// f(problem) for the last `rows` query tokens.
    template <class Policy, class F>
    void with_problem(Policy const& policy, index_t rows, F const& f) {
        index_t const first = q_.shape().tokens - rows;
        tokens_.with_problem(policy, std::as_const(q_).view().slice(first, rows), out_.view().slice(first, rows), f);
    }
    template <class Policy>
    void attend_by(Policy const& policy, index_t rows) {
        with_problem(policy, rows,
                     [&](bf::problem const& p) { bf::attend(policy, std::span<bf::problem const>(&p, 1)); });
    }

    machine machine_;
    Tokens tokens_;
    bf::heads_buffer<float> q_, out_;
    std::vector<std::byte> scratch_{};
};

} // namespace bench
