// SPDX-License-Identifier: MIT

// Compiled, never run: the umbrella is read by nvcc, and one kernel calls every function that a GPU runs as it stands.

#include <butterfly/butterfly.hpp>

namespace bf = butterfly;

namespace {

/// Rows of every rule, through the sink kernels route with.
template <class... Rules>
__device__ int
emit_all(bf::topology::topology_shape shape, bf::topology::node_ref node, std::int32_t* out, Rules const&... rules) {
    bf::topology::routing_sink sink(0, node.node, out, 8);
    (rules.emit(shape, node, sink), ...);
    return sink.count() + static_cast<int>(sink.from() + sink.limit());
}

template <class T>
__device__ float decode(std::byte const* row, bf::index_t head_dim, float* out) {
    bf::quant::raw<T> const codec;
    codec.decode(row, head_dim, out);
    codec.encode(out, head_dim, const_cast<std::byte*>(row));
    return out[codec.row_bytes(head_dim) % head_dim] + static_cast<float>(T(out[0]));
}

__global__ void every_function(bf::graph_view graph,
                               bf::topology::rewire rewire,
                               bf::topology::cycle_edges const* cycle,
                               bf::topology::row<bf::topology::window, bf::topology::self> row,
                               bf::topology::stage_list stages,
                               bf::topology::row_source rows,
                               std::byte const* packed,
                               std::int32_t* neighbors,
                               float* out) {
    namespace topology = bf::topology;
    auto const at      = static_cast<bf::index_t>(threadIdx.x);

    topology::topology_shape const shape{.heads = graph.heads(), .nodes = graph.nodes()};
    topology::node_ref const node{.head = 0, .node = at};
    int count = emit_all(shape, node, neighbors, topology::window{.predecessors = 2}, topology::self{},
                         topology::landmark{.stride = 4}, topology::causal_shift{stages}, topology::xor_partner{stages},
                         topology::bit_reversal{stages}, topology::benes{stages}, topology::fixed_stride{},
                         topology::random_predecessor{stages}, rewire, *cycle, row);
    count += topology::stage_count(shape.nodes) + topology::benes_phase_count(shape.nodes) +
             topology::benes_stage(1, shape.nodes) + bf::precedence(bf::edge_code::cycle);

    bf::softmax_state a;
    float const rescale         = a.push(out[0]);
    bf::softmax_state const b   = bf::state_of(a.lse());
    bf::merge_factors const sum = bf::merge(a, b);
    float const weight          = a.empty() ? 0.0F : a.weight(out[1]);

    bf::visible::interval const window = bf::visible::exact_window(64, 128);
    bf::visible::routed_summaries const summaries{rows, 128, 64, 0};
    bf::visible::routed_blocks const blocks{rows, 128};
    bf::visible::graph_rows const listed{graph};
    auto const keys = window.range(at, graph.degree(), true);
    auto const kind = static_cast<int>(window.describe().kind) + static_cast<int>(summaries.describe().kind) +
                      static_cast<int>(blocks.describe().kind) + static_cast<int>(listed.describe().kind);

    out[2] = decode<float>(packed, 8, out) + decode<bf::float16>(packed, 8, out) + decode<bf::bfloat16>(packed, 8, out);
    out[3] = rescale * weight + sum.a + sum.b + static_cast<float>(count + kind);
    out[4] = static_cast<float>(keys.first + keys.end + summaries.eligible(at) + graph.row_begin(0, at));
    out[5] = static_cast<float>(bf::detail::ceil_div(at, 3) + bf::detail::round_up(at, 4) +
                                bf::detail::round_down(at, 4) + bf::size_of(bf::element_type::f16));
}

} // namespace

/// Keeps the kernel in the object.
void const* kernel_address() {
    return reinterpret_cast<void const*>(&every_function);
}
