// SPDX-License-Identifier: MIT
// docs/attention.md
#include <butterfly/butterfly.hpp>

#include <vector>

namespace bf = butterfly;

int main() {
    bf::backend::simd<> const cpu;
    bf::heads_buffer<float> q({8, 300, 64}), out({8, 300, 64}), other({8, 300, 64});
    bf::heads_buffer<bf::float16> k({2, 300, 64}), v({2, 300, 64});
    std::vector<float> lse(8 * 300);

    // Dense: a prompt of 300 tokens.
    bf::attend_options options;
    options.lse = lse.data();
    bf::dense_sdpa(cpu, q.view(), k.view(), v.view(), out.view(), options);

    // Decode: one token that sees all 300 keys. It stands at 300 - 1; without q_position it would stand at 0.
    auto const token = [](auto& x) { return x.view().slice(0, 1); };
    std::vector<float> token_lse(8);
    options.lse        = token_lse.data();
    options.q_position = k.shape().tokens - 1;
    bf::dense_sdpa(cpu, token(q), k.view(), v.view(), token(out), options);

    // The same call along a graph.
    bf::graph const g = bf::topology::build({.heads = 8, .nodes = 300}, bf::topology::cycle{.seed = 7},
                                            bf::topology::window{.predecessors = 64},
                                            bf::topology::landmark{.stride = 64}, bf::topology::self{});
    bf::sparse_sdpa(cpu, q.view(), k.view(), v.view(), g, other.view());

    // Two pools in one softmax: old tokens as float16, the latest 44 as float32.
    bf::heads_buffer<float> recent_k({2, 44, 64}), recent_v({2, 44, 64});
    std::vector<std::int32_t> position(44);
    for (std::size_t i = 0; i < position.size(); ++i) position[i] = 256 + static_cast<std::int32_t>(i);
    bf::pool const old{k.view().slice(0, 256), v.view().slice(0, 256), bf::visible::causal_prefix()};
    bf::pool const recent{recent_k.view(), recent_v.view(), bf::visible::causal_prefix(), {}, position.data()};
    bf::attend(cpu, q.view(), out.view(), {}, old, recent);

    // What would run, and in how much scratch memory: asked without touching data.
    auto const bound       = bf::make_problem(cpu, q.view(), out.view(), {}, old, recent);
    bf::problem const call = bound.problem();
    std::string const text = explain(cpu, call);
    std::vector<std::byte> scratch(
        static_cast<std::size_t>(workspace_bytes(cpu, std::span<bf::problem const>(&call, 1))));
    options           = {};
    options.workspace = scratch;
    bf::attend(cpu, q.view(), out.view(), options, old, recent);
    return text.find("tile class") != std::string::npos && lse[0] == 0.0F && token_lse[0] > 5.7F ? 0 : 1; // ln 300
}
