// SPDX-License-Identifier: MIT
#pragma once

// Rules and their composition.
//
// A rule answers one question, without state: which nodes does the row of this node name, in which order, and why?
//
//   template <class Sink> void emit(topology_shape, node_ref, Sink&) const noexcept      calls sink.add(node,
//   edge_code) void check(topology_shape) const                                                     optional; throws
//   shape_error
//
// A rule may name a node twice and may name nodes outside [0, nodes): the sink keeps the first mention of a node in
// range and upgrades its code by precedence (graph/abi.hpp). A rule that wants to save work asks the sink which nodes
// can still matter, [sink.from(), sink.limit()), and leaves out the rest; limit() may fall while a row is emitted.
//
// Some parameters need work before rows can be emitted (a random cycle). Such a type is no rule itself but has
//
//   rule auto prepare(topology_shape) const
//
// and `topology::prepare` turns either kind into a rule. `row(...)` composes rules in the order written and is one
// itself.

#include <butterfly/graph/abi.hpp>
#include <butterfly/topology/row_source.hpp>

#include <concepts>
#include <utility>

namespace butterfly::topology {

/// Keeps the smallest `capacity` unique nodes of [from, limit) that a row emits, ascending, in memory of the caller.
class routing_sink {
public:
    BUTTERFLY_HOST_DEVICE constexpr routing_sink(index_t from, index_t limit, std::int32_t* out, int capacity) noexcept
        : from_(from < 0 ? 0 : from), limit_(limit), out_(out), capacity_(capacity) {
        if (capacity_ <= 0) limit_ = from_;
    }

    /// Insertion from the back: rows are mostly ascending already.
    BUTTERFLY_HOST_DEVICE constexpr void add(index_t node, edge_code) noexcept {
        if (node < from_ || node >= limit_) return;
        int at = count_;
        while (at > 0 && out_[at - 1] > node) --at;
        if (at > 0 && out_[at - 1] == node) return;
        int last = count_ < capacity_ ? count_++ : count_ - 1; // full: the largest leaves
        for (; last > at; --last) out_[last] = out_[last - 1];
        out_[at] = static_cast<std::int32_t>(node);
        if (count_ == capacity_) limit_ = out_[count_ - 1];
    }

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t from() const noexcept { return from_; }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t limit() const noexcept { return limit_; }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr int count() const noexcept { return count_; }

private:
    index_t from_;
    index_t limit_; // falls to the largest kept node once full
    std::int32_t* out_;
    int capacity_;
    int count_ = 0;
};

/// Answers the row of a node on the fly; see the head of this file.
template <class R>
concept rule = std::copy_constructible<R> && requires(R const& r, topology_shape s, node_ref n, routing_sink& sink) {
    r.emit(s, n, sink);
    requires noexcept(r.emit(s, n, sink));
};

/// Parameters from which a rule is prepared for one shape.
template <class P>
concept preparable = std::copy_constructible<P> && requires(P const& p, topology_shape s) {
    { p.prepare(s) } -> rule;
};

/// What `row`, `build` and `prepare` take.
template <class R>
concept composable = rule<R> || preparable<R>;

/// Throws shape_error where an extent is below 1 or nodes do not fit an int32.
inline void check(topology_shape shape) {
    if (shape.heads < 1 || shape.nodes < 1)
        detail::fail<shape_error>("topology: heads " + std::to_string(shape.heads) + " and nodes " +
                                  std::to_string(shape.nodes) + " must be at least 1");
    if (shape.nodes > std::numeric_limits<std::int32_t>::max())
        detail::fail<shape_error>("topology: " + std::to_string(shape.nodes) + " nodes do not fit an int32 index");
}

/// Checks the shape, then the rule's own parameters against it. Throws shape_error.
template <rule R>
void check(R const& r, topology_shape shape) {
    check(shape);
    if constexpr (requires { r.check(shape); }) r.check(shape);
}

template <composable... Rules>
class row;

/// A rule for `shape`: a copy of `r`, or what its parameters prepare. Throws shape_error where parameters do not fit.
template <composable R>
[[nodiscard]] auto prepare(R const& r, topology_shape shape) {
    if constexpr (rule<R>) {
        check(r, shape);
        return r;
    } else {
        check(shape);
        auto prepared = r.prepare(shape);
        check(prepared, shape);
        return prepared;
    }
}

/// Rules in the order written; itself a rule, or preparable where one of them is.
template <>
class row<> {
public:
    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape, node_ref, Sink&) const noexcept {}
};

template <composable First, composable... Rest>
class row<First, Rest...> {
public:
    constexpr explicit row(First first, Rest... rest) : first_(std::move(first)), rest_(std::move(rest)...) {}
    constexpr row(First first, row<Rest...> rest) : first_(std::move(first)), rest_(std::move(rest)) {}

    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape shape, node_ref node, Sink& sink) const noexcept
        requires(rule<First> && (rule<Rest> && ...)) {
        first_.emit(shape, node, sink);
        rest_.emit(shape, node, sink);
    }

    void check(topology_shape shape) const requires(rule<First> && (rule<Rest> && ...)) {
        topology::check(first_, shape);
        topology::check(rest_, shape);
    }

    [[nodiscard]] auto prepare(topology_shape shape) const requires(!(rule<First> && (rule<Rest> && ...))) {
        return join(topology::prepare(first_, shape), topology::prepare(rest_, shape));
    }

private:
    template <class Head, class... Tail>
    [[nodiscard]] static row<Head, Tail...> join(Head head, row<Tail...> tail) {
        return {std::move(head), std::move(tail)};
    }

    First first_;
    [[no_unique_address]] row<Rest...> rest_;
};

template <class... Rules>
row(Rules...) -> row<Rules...>;

/// Rows of `r` on the fly. Keeps a pointer to `r`, which must outlive the source; a temporary has none. Throws
/// shape_error where the parameters of `r` do not fit the shape.
template <rule R>
[[nodiscard]] row_source make_row_source(R const& r, topology_shape shape) {
    check(r, shape);
    return {&r,
            [](void const* state, topology_shape s, node_ref node, index_t from, index_t limit, std::int32_t* out,
               int capacity) noexcept -> int {
                routing_sink sink(from, limit < s.nodes ? limit : s.nodes, out, capacity);
                static_cast<R const*>(state)->emit(s, node, sink);
                return sink.count();
            },
            shape};
}
template <rule R>
row_source make_row_source(R const&&, topology_shape) = delete;

} // namespace butterfly::topology
