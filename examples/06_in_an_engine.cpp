// SPDX-License-Identifier: MIT

// Inside an inference engine: its tensors are [tokens, heads, head_dim], its worker threads all call every op with
// (thread, threads), and each layer takes its own log-steps, so that the layers together reach every block.

#include <butterfly/butterfly.hpp>
#include <butterfly/topology/reach.hpp>

#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

namespace bf = butterfly;

namespace engine {
constexpr bf::index_t layers = 6, heads = 4, kv_heads = 2, head_dim = 32, max_tokens = 4096, step = 256;
}

/// One layer's state: a cache, and a counter where the engine's workers meet.
struct layer_state {
    bf::compressed_kv_cache<> cache{{.kv_heads     = engine::kv_heads,
                                     .head_dim     = engine::head_dim,
                                     .block_size   = 64,
                                     .exact_window = 32,
                                     .max_tokens   = engine::max_tokens,
                                     .max_append   = engine::step}};
    bf::meeting meeting{};
};

/// The engine's tensors are used in place, through strides.
template <class T>
bf::heads_view<T> view(std::vector<float>& data, bf::index_t count_heads) {
    return {data.data(),
            {.heads = count_heads, .tokens = engine::step, .head_dim = engine::head_dim},
            {.head = engine::head_dim, .token = count_heads * engine::head_dim}};
}

int main() {
    std::vector<std::unique_ptr<layer_state>> model;
    for (bf::index_t i = 0; i < engine::layers; ++i) model.push_back(std::make_unique<layer_state>());
    bf::index_t const blocks = model[0]->cache.max_blocks();
    bf::topology::stage_schedule const schedule({.attention_layers = engine::layers, .blocks = blocks});

    std::vector<float> q(engine::step * engine::heads * engine::head_dim, 0.5F), out(q.size());
    std::vector<float> k(engine::step * engine::kv_heads * engine::head_dim, 0.5F), v(k);

    // What the engine does for a chunk of the prompt: every worker runs every layer.
    auto const worker = [&](int thread, int threads) {
        for (bf::index_t ordinal = 0; ordinal < engine::layers; ++ordinal) {
            layer_state& layer = *model[static_cast<std::size_t>(ordinal)];
            bf::backend::simd<> const cpu{
                .executor = bf::share{.thread = thread, .threads = threads, .barrier = layer.meeting}};
            bf::topology::row const row(bf::topology::causal_shift{schedule[ordinal]},
                                        bf::topology::window{.predecessors = 1});
            bf::append(cpu, layer.cache, view<float const>(k, engine::kv_heads),
                       view<float const>(v, engine::kv_heads));
            bf::attend(cpu, view<float const>(q, engine::heads), layer.cache, row, view<float>(out, engine::heads));
        }
    };
    for (bf::index_t chunk = 0; chunk < engine::max_tokens / engine::step; ++chunk) {
        std::thread other(worker, 1, 2);
        worker(0, 2);
        other.join();
    }

    auto const& cache = model[0]->cache;
    auto const reach = bf::topology::reachable(schedule, {.heads = 1, .nodes = blocks}, {.head = 0, .node = blocks - 1},
                                               bf::topology::window{.predecessors = 1});
    std::printf("%d tokens in %d layers, %.0f KB retained per layer instead of %.0f KB\n",
                static_cast<int>(cache.tokens()), static_cast<int>(engine::layers),
                static_cast<double>(cache.retained_bytes()) / 1000,
                static_cast<double>(engine::max_tokens * engine::kv_heads * 2 * engine::head_dim * 4) / 1000);
    std::printf("the last block reaches %d of %d blocks through the layers\n", static_cast<int>(reach),
                static_cast<int>(blocks));
    std::printf("last output %.6f (all values are 0.5)\n", static_cast<double>(out.back()));
    return cache.tokens() == engine::max_tokens && reach == blocks && out.back() > 0.4999F && out.back() < 0.5001F ? 0
                                                                                                                   : 1;
}
