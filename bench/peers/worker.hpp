// SPDX-License-Identifier: MIT
#pragma once

// A peer as a process of its own, driven line by line over standard input and output (compare.py), so that runtimes
// which would meet in one process do not, and repetitions of all peers can be taken in turns.
//
// The peer says {"peer", "version"} first. Then each line of JSON is answered by one line:
//
//   {"cmd": "prepare", "kind", "type", "heads", "kv_heads", "queries", "keys", "head_dim", "block", "threads",
//   "inputs"}
//       reads the inputs, makes one call            {"types": "q, k, v, out bf16", "ms": of it} or {"refused": "why"}
//   {"cmd": "go", "calls": n}                       {"ms": milliseconds of one call, the mean of n}
//   {"cmd": "rows", "rows": [[head, query], ...]}   {"values": [head_dim floats for each]}
//
// Anything that goes wrong is answered by {"error": "what"}. The process ends with its input.
//
// `inputs` is a file of q [heads, queries, head_dim], k and v [kv_heads, keys, head_dim], one after the other, nothing
// else, all of `type`: f32, f16 or bf16. Of 8bit and 4bit, which decode alone has, all are f32, and the peer packs keys
// and values into so many bits before the first call. Which keys a query sees: prefill: those up to its own, queries ==
// keys; decode: all; sparse: those up to its own in the blocks b, b - 1, b - 8 and 0, where b is its own block.

#include <butterfly/core/executor.hpp>
#include <butterfly/core/half.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace peers {

namespace bf = butterfly;
using bf::index_t;

enum class task { prefill, sparse, decode };

struct work {
    task kind             = task::prefill;
    bf::element_type type = bf::element_type::f32; // of the inputs
    int bits              = 0;                     // of each number of packed keys and values; 0: not packed
    index_t heads         = 0;
    index_t kv_heads      = 0;
    index_t queries       = 0;
    index_t keys          = 0;
    index_t head_dim      = 0;
    index_t block         = 0; // tokens of a block, of sparse alone
    int threads           = 1;

    [[nodiscard]] index_t q_size() const { return heads * queries * head_dim; }
    [[nodiscard]] index_t kv_size() const { return kv_heads * keys * head_dim; }
    /// Whether query i sees key j; see the head of this file.
    [[nodiscard]] bool sees(index_t i, index_t j) const;
};

/// Elements of the work's type, contiguous.
struct tensors {
    std::span<std::byte const> q, k, v;
};

/// Such elements as floats.
[[nodiscard]] std::vector<float> to_floats(std::span<std::byte const> elements, bf::element_type type);

class peer {
public:
    peer()                       = default;
    peer(peer const&)            = delete;
    peer& operator=(peer const&) = delete;
    virtual ~peer()              = default;

    [[nodiscard]] virtual std::string version() const = 0;
    /// Why this work is not for it; "" where it is.
    [[nodiscard]] virtual std::string refusal(work const& w) const = 0;
    /// Takes copies of the inputs. Returns which types it computes with, for the reader of the table.
    [[nodiscard]] virtual std::string prepare(work const& w, tensors const& in) = 0;
    /// One call, all that an engine would pay for each time.
    virtual void run() = 0;
    /// Row [head_dim] of the output.
    virtual void read_row(index_t head, index_t query, std::span<float> out) const = 0;
    /// What packed keys and values are read as, [kv_heads, keys, head_dim] each. Called where the work has bits.
    virtual void read_packed(std::span<float>, std::span<float>) const {}
    /// Before and after some calls of `run`: wake threads, and put them to sleep.
    virtual void wake() {}
    virtual void rest() {}
};

/// So many threads of OpenMP, or the calling one.
[[nodiscard]] bf::executor team(int threads);

/// main() of a peer's program. --self-test holds it to the definition in double on small shapes, 1 where it is wrong.
int serve(int argc, char const* const* argv, std::string const& name, peer& subject);

} // namespace peers
