// SPDX-License-Identifier: MIT
#pragma once

// The systems of the ladder, each with the keys and values of every attention layer of a model.
//
//   dense          every token raw, causal
//   window         a ring of the latest tokens raw
//   block_sparse   every token raw, the blocks a row names
//   compressed     the library's cache: sinks and latest tokens raw, summaries of the blocks a row names
//
// Queries, keys and values come from ladder_inputs by layer and position, outputs go to a buffer of one chunk.

#include "ladder_settings.hpp"
#include "machine.hpp"

#include <memory>

namespace bench {

/// A system at one context. Not thread-safe: the machine's executor does the threading.
class ladder_system {
public:
    ladder_system()                                = default;
    ladder_system(ladder_system const&)            = delete;
    ladder_system& operator=(ladder_system const&) = delete;
    virtual ~ladder_system()                       = default;

    /// Stores the keys and values of tokens [position, position + tokens). compressed takes them in order only.
    virtual void append(machine const& m, index_t layer, index_t position, index_t tokens) = 0;
    /// Attends the queries at [position, position + tokens), the latest tokens of the layer.
    virtual void attend(machine const& m, index_t layer, index_t position, index_t tokens) = 0;
    /// Forgets all tokens.
    virtual void clear() {}
    /// What the policy says it will do.
    [[nodiscard]] virtual std::string explain(machine const& m, index_t position, index_t tokens) = 0;
    /// Bytes needed to go on after `tokens` tokens, and bytes of all buffers of keys and values.
    [[nodiscard]] virtual index_t retained_bytes(index_t tokens) const = 0;
    [[nodiscard]] virtual index_t allocated_bytes() const              = 0;
    /// The last output, so that somebody can look at it.
    [[nodiscard]] virtual float output() const = 0;
};

/// What systems of one rung have in common.
class ladder_rung {
public:
    ladder_rung()                              = default;
    virtual ~ladder_rung()                     = default;
    ladder_rung(ladder_rung const&)            = delete;
    ladder_rung& operator=(ladder_rung const&) = delete;

    /// A system of `ladder_systems` with room for `capacity` tokens. dense and block_sparse of one rung share their
    /// tokens, which are the same.
    [[nodiscard]] virtual std::unique_ptr<ladder_system> make(std::string const& name, index_t capacity) = 0;
};

/// Inputs and buffers for the storage type of the settings.
[[nodiscard]] std::unique_ptr<ladder_rung> make_rung(ladder_settings const& s, index_t context);

/// A machine that attends nothing and counts, into `bytes`, the bytes of keys, values and weights that the queries of
/// each call see: each key once per head of keys.
[[nodiscard]] machine make_counter(index_t& bytes);

} // namespace bench
