// SPDX-License-Identifier: MIT
#pragma once

// Log-step partners: at stage k a node sees the node 2^k before it.
//
// With self edges, layers that go through the stages 0 .. w-1, w = stage_count(nodes), each once and in any order, let
// every node reach each earlier one: the stages taken are the binary digits of the distance. Sums of m powers of two
// are all that m layers reach, however many partners a layer has; topology/reach.hpp counts what a given stack reaches.

#include <butterfly/topology/row.hpp>

#include <initializer_list>
#include <vector>

namespace butterfly::topology {

/// ceil(log2 nodes), and 1 where nodes <= 1: how many stages reach everything.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr int stage_count(index_t nodes) noexcept {
    int w = 1;
    while (w < 62 && (index_t{1} << w) < nodes) ++w;
    return w;
}

/// A few stages in order, without allocation.
class stage_list {
public:
    static constexpr int capacity = 62;

    constexpr stage_list() = default;

    /// Throws shape_error where there are more than `capacity` stages or one is outside [0, capacity).
    stage_list(std::initializer_list<int> stages) {
        for (int const k : stages) push_back(k);
    }

    void push_back(int stage) {
        if (stage < 0 || stage >= capacity)
            detail::fail<shape_error>("stage_list: stage " + std::to_string(stage) + " is outside [0, " +
                                      std::to_string(capacity) + ")");
        if (size_ == capacity)
            detail::fail<shape_error>("stage_list: more than " + std::to_string(capacity) + " stages");
        stages_[size_++] = static_cast<std::uint8_t>(stage);
    }

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr int size() const noexcept { return size_; }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr int operator[](int i) const noexcept { return stages_[i]; }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr std::uint8_t const* begin() const noexcept { return stages_; }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr std::uint8_t const* end() const noexcept { return stages_ + size_; }

    friend constexpr bool operator==(stage_list const& a, stage_list const& b) noexcept {
        if (a.size_ != b.size_) return false;
        for (int i = 0; i < a.size_; ++i)
            if (a.stages_[i] != b.stages_[i]) return false;
        return true;
    }

private:
    std::uint8_t stages_[capacity] = {};
    int size_                      = 0;
};

/// node - 2^k for each stage k, in the order of the list, where there is such a node; type rewire. The partner of a
/// node never depends on how many nodes there are.
struct causal_shift {
    stage_list stages{};

    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape, node_ref at, Sink& sink) const noexcept {
        for (int const k : stages) {
            index_t const partner = at.node - (index_t{1} << k);
            if (partner >= 0) sink.add(partner, edge_code::rewire);
        }
    }
};

/// The stage of a layer in the published system: the absolute layer index modulo the stages of the current length. A
/// stack that attends in every fourth layer repeats few stages; `stage_schedule` does not.
[[nodiscard]] constexpr int published_stage(index_t layer, index_t blocks) noexcept {
    return static_cast<int>(layer % stage_count(blocks));
}

/// Parameters of a stage_schedule. `blocks` is the most there will ever be, so that stages do not move as a sequence
/// grows; `partners` are stages per layer, 0 for as few as use every stage.
struct stage_schedule_options {
    index_t attention_layers = 0;
    index_t blocks           = 0;
    int partners             = 0;
};

/// Which stages each attention layer takes, by its ordinal among the attention layers: `partners` stages at a time,
/// going round the stage_count(blocks) stages. With partners 0 every stage is used by some layer: one per layer where
/// there are layers enough, else ceil(stages / layers) each.
class stage_schedule {
public:
    /// Throws shape_error where layers or blocks are below 1 or partners are negative or more than there are stages.
    explicit stage_schedule(stage_schedule_options o) : stages_(stage_count(o.blocks)) {
        if (o.attention_layers < 1 || o.blocks < 1)
            detail::fail<shape_error>("stage_schedule: attention_layers " + std::to_string(o.attention_layers) +
                                      " and blocks " + std::to_string(o.blocks) + " must be at least 1");
        if (o.partners < 0 || o.partners > stages_)
            detail::fail<shape_error>("stage_schedule: partners " + std::to_string(o.partners) + " is outside [0, " +
                                      std::to_string(stages_) + "], the stages of " + std::to_string(o.blocks) +
                                      " blocks");
        index_t const few = detail::ceil_div(stages_, o.attention_layers);
        index_t const p   = o.partners > 0 ? o.partners : few;
        layers_.resize(static_cast<std::size_t>(o.attention_layers));
        for (index_t layer = 0; layer < o.attention_layers; ++layer)
            for (index_t i = 0; i < p; ++i)
                layers_[static_cast<std::size_t>(layer)].push_back(
                    static_cast<int>((layer % stages_ * p + i) % stages_));
    }

    [[nodiscard]] index_t layers() const noexcept { return static_cast<index_t>(layers_.size()); }

    /// How many stages the blocks need.
    [[nodiscard]] int stages() const noexcept { return stages_; }

    /// Stages of the layer of this ordinal; ordinals go round after the last layer. `ordinal` must not be negative.
    [[nodiscard]] stage_list const& operator[](index_t ordinal) const noexcept {
        BUTTERFLY_ASSERT(ordinal >= 0);
        return layers_[static_cast<std::size_t>(ordinal % layers())];
    }

private:
    int stages_;
    std::vector<stage_list> layers_;
};

} // namespace butterfly::topology
