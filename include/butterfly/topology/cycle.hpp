// SPDX-License-Identifier: MIT
#pragma once

// Hamiltonian cycles over the nodes of each head: the backbone that keeps every node reachable.
//
// A permutation p of [0, nodes) is read as the cycle p[0] - p[1] - ... - p[nodes - 1] - p[0]. A node's row names its
// neighbours on all cycles of its head, ascending, each once; they may lie after the node. One node is its own
// neighbour.
//
// The draws are written out here, because std::shuffle and std::uniform_int_distribution differ between libraries: the
// generator is MT19937 (Matsumoto & Nishimura 1998), and a permutation is the Fisher-Yates shuffle from the front whose
// step i swaps entries i and i + draw mod (nodes - i). The same seed gives the same graph on every platform.

#include <butterfly/topology/row.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

namespace butterfly {

/// MT19937: the output of std::mt19937, without the rest of <random>, which costs more than half a second to include.
class mersenne_twister {
public:
    explicit constexpr mersenne_twister(std::uint32_t seed) noexcept {
        state_[0] = seed;
        for (std::uint32_t i = 1; i < size; ++i) state_[i] = 1812433253U * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
    }

    [[nodiscard]] constexpr std::uint32_t operator()() noexcept {
        if (next_ == size) twist();
        std::uint32_t y = state_[next_++];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680U;
        y ^= (y << 15) & 0xefc60000U;
        return y ^ (y >> 18);
    }

private:
    static constexpr std::uint32_t size  = 624;
    static constexpr std::uint32_t shift = 397;

    constexpr void twist() noexcept {
        for (std::uint32_t i = 0; i < size; ++i) {
            std::uint32_t const y = (state_[i] & 0x80000000U) | (state_[(i + 1) % size] & 0x7fffffffU);
            state_[i]             = state_[(i + shift) % size] ^ (y >> 1) ^ ((y & 1U) != 0U ? 0x9908b0dfU : 0U);
        }
        next_ = 0;
    }

    std::uint32_t state_[size] = {};
    std::uint32_t next_        = size;
};

} // namespace butterfly

namespace butterfly::topology {

/// Shuffles `order` in place; advances the generator by one draw per entry but the last.
inline void shuffle(std::span<std::int32_t> order, mersenne_twister& draw) noexcept {
    for (std::size_t i = 0; i + 1 < order.size(); ++i)
        std::swap(order[i], order[i + draw() % static_cast<std::uint32_t>(order.size() - i)]);
}

/// A uniformly random permutation of [0, nodes).
[[nodiscard]] inline std::vector<std::int32_t> random_permutation(index_t nodes, mersenne_twister& draw) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(nodes));
    std::iota(order.begin(), order.end(), 0);
    shuffle(order, draw);
    return order;
}

/// How many Hamiltonian cycles without a common edge the complete graph holds: (nodes - 1) / 2. One or two nodes have
/// one degenerate cycle, which shares no edge with another.
[[nodiscard]] constexpr index_t max_disjoint_cycles(index_t nodes) noexcept {
    return nodes < 3 ? 1 : (nodes - 1) / 2;
}

/// Cycle `i` of Walecki's decomposition, 0 <= i < max_disjoint_cycles(nodes): node nodes - 1 is a hub, the others stand
/// on a ring and are crossed in a zigzag i, i + 1, i - 1, i + 2, i - 2, ... (Alspach 2008). Every edge is used once
/// where nodes are odd; where they are even one edge per node is left over.
[[nodiscard]] inline std::vector<std::int32_t> walecki_cycle(index_t nodes, index_t i) {
    std::vector<std::int32_t> order{static_cast<std::int32_t>(nodes - 1)};
    order.reserve(static_cast<std::size_t>(nodes));
    index_t const ring = nodes - 1;
    for (index_t step = 0; step < ring; ++step) {
        index_t const offset = step % 2 == 1 ? (step + 1) / 2 : ring - step / 2;
        order.push_back(static_cast<std::int32_t>((i + offset) % ring));
    }
    return order;
}

/// A cycle that visits `clusters` contiguous runs of nodes in turn: each round names the next unused node of every run
/// left, in an order drawn for the round. Runs differ by one node at most.
[[nodiscard]] inline std::vector<std::int32_t>
regular_partition_cycle(index_t nodes, index_t clusters, mersenne_twister& draw) {
    index_t const count = std::clamp<index_t>(clusters, 1, nodes);
    std::vector<std::int32_t> members(static_cast<std::size_t>(nodes));
    std::iota(members.begin(), members.end(), 0);
    auto const begin_of = [&](index_t c) { return c * (nodes / count) + std::min(c, nodes % count); };
    for (index_t c = 0; c < count; ++c)
        shuffle(std::span(members).subspan(static_cast<std::size_t>(begin_of(c)),
                                           static_cast<std::size_t>(begin_of(c + 1) - begin_of(c))),
                draw);

    std::vector<std::int32_t> order;
    order.reserve(members.size());
    for (index_t round = 0; order.size() < members.size(); ++round)
        for (std::int32_t const c : random_permutation(count, draw))
            if (begin_of(c) + round < begin_of(c + 1))
                order.push_back(members[static_cast<std::size_t>(begin_of(c) + round)]);
    return order;
}

/// Neighbours on the cycles of each head: the rule that `cycle` and `given_cycles` prepare. Copies share one table of
/// 4 * heads * nodes * 2 * cycles bytes.
class cycle_edges {
public:
    /// `permutations` is [1 or heads, cycles, nodes]; with one head's worth all heads share it. Throws shape_error
    /// where the size differs or one is no permutation.
    cycle_edges(topology_shape shape, index_t cycles, std::span<std::int32_t const> permutations)
        : shape_(shape), width_(2 * cycles) {
        topology::check(shape);
        if (cycles < 1)
            detail::fail<shape_error>("cycle: cycles is " + std::to_string(cycles) + ", must be at least 1");
        index_t const per_head = detail::checked_multiply(cycles, shape.nodes, "cycle: cycles x nodes");
        auto const size        = static_cast<index_t>(permutations.size());
        if (size == per_head) {
            shape_.heads = 1;
        } else if (size != detail::checked_multiply(per_head, shape.heads, "cycle: permutations x heads")) {
            detail::fail<shape_error>("cycle: " + std::to_string(size) + " entries given, permutations need " +
                                      std::to_string(per_head) + " for one head or for each of " +
                                      std::to_string(shape.heads));
        }
        auto table = std::make_shared<std::vector<std::int32_t>>(2 * permutations.size(), no_neighbor);
        for (index_t row = 0; row < shape_.heads * cycles; ++row)
            link(permutations.subspan(static_cast<std::size_t>(row * shape.nodes),
                                      static_cast<std::size_t>(shape.nodes)),
                 row / cycles, row % cycles, *table);
        for (auto node = table->begin(); node != table->end(); node += width_) {
            std::sort(node, node + width_);
            std::fill(std::unique(node, node + width_), node + width_, no_neighbor);
        }
        neighbors_ = table->data();
        table_     = std::move(table);
    }

    void check(topology_shape shape) const {
        if (shape.nodes != shape_.nodes || (shape_.heads != 1 && shape.heads != shape_.heads))
            detail::fail<shape_error>("cycle: prepared for " + std::to_string(shape_.heads) + " heads of " +
                                      std::to_string(shape_.nodes) + " nodes, asked for " +
                                      std::to_string(shape.heads) + " of " + std::to_string(shape.nodes));
    }

    template <class Sink>
    BUTTERFLY_HOST_DEVICE void emit(topology_shape, node_ref at, Sink& sink) const noexcept {
        index_t const head = shape_.heads == 1 ? 0 : at.head;
        for (index_t i = 0; i < width_; ++i) {
            std::int32_t const j = neighbors_[(head * shape_.nodes + at.node) * width_ + i];
            if (j == no_neighbor) break;
            sink.add(j, edge_code::cycle);
        }
    }

private:
    /// Enters both neighbours of each node on one cycle.
    void
    link(std::span<std::int32_t const> order, index_t head, index_t cycle, std::vector<std::int32_t>& table) const {
        std::vector<bool> seen(order.size());
        for (std::size_t i = 0; i < order.size(); ++i) {
            std::int32_t const node = order[i];
            if (node < 0 || node >= shape_.nodes || seen[static_cast<std::size_t>(node)])
                detail::fail<shape_error>("cycle: head " + std::to_string(head) + " cycle " + std::to_string(cycle) +
                                          " is no permutation of [0, " + std::to_string(shape_.nodes) + "): entry " +
                                          std::to_string(i) + " is " + std::to_string(node));
            seen[static_cast<std::size_t>(node)] = true;
            auto const slot = static_cast<std::size_t>((head * shape_.nodes + node) * width_ + 2 * cycle);
            table[slot]     = order[(i + order.size() - 1) % order.size()];
            table[slot + 1] = order[(i + 1) % order.size()];
        }
    }

    topology_shape shape_;
    index_t width_;
    std::shared_ptr<std::vector<std::int32_t> const> table_; // [heads, nodes, width], ascending, -1 pads
    std::int32_t const* neighbors_ = nullptr;
};

/// How the cycles of a head are drawn.
enum class cycle_draw : std::uint8_t {
    independent,       ///< random permutations one after another; two of them share about two edges
    disjoint,          ///< no common edge: Walecki cycles under one random relabelling of the nodes
    regular_partition, ///< each cycle visits `clusters` runs of nodes in turn
};

/// Random Hamiltonian cycles, other ones for each head: head h draws from seed + 7919 * h (mod 2^32). Type cycle.
/// Preparing throws shape_error where `cycles` is below 1, or above max_disjoint_cycles(nodes) for disjoint ones.
struct cycle {
    std::uint64_t seed = 0;
    index_t cycles     = 1;
    cycle_draw draw    = cycle_draw::independent;
    index_t clusters   = 8; ///< of regular_partition

    [[nodiscard]] cycle_edges prepare(topology_shape shape) const {
        topology::check(shape);
        if (cycles < 1 || clusters < 1)
            detail::fail<shape_error>("cycle: cycles " + std::to_string(cycles) + " and clusters " +
                                      std::to_string(clusters) + " must be at least 1");
        if (draw == cycle_draw::disjoint && cycles > max_disjoint_cycles(shape.nodes))
            detail::fail<shape_error>("cycle: " + std::to_string(cycles) + " cycles without a common edge asked for, " +
                                      std::to_string(shape.nodes) + " nodes have " +
                                      std::to_string(max_disjoint_cycles(shape.nodes)));
        index_t const per_head = detail::checked_multiply(cycles, shape.nodes, "cycle: cycles x nodes");
        index_t const size     = detail::checked_multiply(per_head, shape.heads, "cycle: permutations x heads");
        static_cast<void>(detail::checked_multiply(size, 2 * sizeof(std::int32_t), "cycle: bytes"));
        std::vector<std::int32_t> all;
        all.reserve(static_cast<std::size_t>(size));
        for (index_t head = 0; head < shape.heads; ++head) {
            auto const one = permutations(shape.nodes, head);
            all.insert(all.end(), one.begin(), one.end());
        }
        return {shape, cycles, all};
    }

    /// The permutations of one head, [cycles, nodes].
    [[nodiscard]] std::vector<std::int32_t> permutations(index_t nodes, index_t head) const {
        mersenne_twister random(static_cast<std::uint32_t>(seed + 7919 * static_cast<std::uint64_t>(head)));
        std::vector<std::int32_t> all, label;
        if (draw == cycle_draw::disjoint) label = random_permutation(nodes, random);
        for (index_t i = 0; i < cycles; ++i) {
            auto one = draw == cycle_draw::independent ? random_permutation(nodes, random)
                       : draw == cycle_draw::disjoint  ? walecki_cycle(nodes, i)
                                                       : regular_partition_cycle(nodes, clusters, random);
            if (draw == cycle_draw::disjoint)
                for (std::int32_t& node : one) node = label[static_cast<std::size_t>(node)];
            all.insert(all.end(), one.begin(), one.end());
        }
        return all;
    }
};

/// Cycles of the caller. `permutations` is [1 or heads, cycles, nodes] and is read while preparing only.
struct given_cycles {
    std::span<std::int32_t const> permutations{};
    index_t cycles = 1;

    [[nodiscard]] cycle_edges prepare(topology_shape shape) const { return {shape, cycles, permutations}; }
};

} // namespace butterfly::topology
