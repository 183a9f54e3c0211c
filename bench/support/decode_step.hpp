// SPDX-License-Identifier: MIT
#pragma once

// What bench/decode times: a few query rows at the end of a context.
//
//   dense        every token as its storage keeps it, in one block of memory: keys, then values
//   compressed   the compressed cache with the rules, rows, block and window that the ladder takes unless told
//   otherwise mixed        the mixed-precision cache with a mix of kv_mixes.hpp, as appends of 512 tokens leave it

#include "machine.hpp"

#include <memory>

namespace bench {

struct decode_shape {
    index_t n_kv = 0, head_dim = 0, rows = 0, heads = 0, kv_heads = 0;
};

/// Not thread-safe: the machine's executor does the threading. Scratch memory is kept between calls.
class decode_step {
public:
    decode_step()                              = default;
    decode_step(decode_step const&)            = delete;
    decode_step& operator=(decode_step const&) = delete;
    virtual ~decode_step()                     = default;

    virtual void attend() = 0;
    /// The same by the definition, in double.
    virtual void attend_exactly() = 0;
    /// The output of the last of these two.
    [[nodiscard]] virtual std::span<float const> output() const = 0;

    /// What the policy says it will do.
    [[nodiscard]] virtual std::string plan() = 0;
    /// Visible (query head, query token, key) triples.
    [[nodiscard]] virtual index_t edges() = 0;
    /// Bytes of the keys, values and weights that the last query token sees, those of a head of keys once.
    [[nodiscard]] virtual index_t bytes() = 0;
    /// Whole pages for plain reads: the keys and values of dense, the memory of the mixed-precision cache, other memory
    /// of as many bytes for the compressed one.
    [[nodiscard]] virtual std::span<std::byte const> pages() = 0;
};

/// How keys and values of dense can be kept: "f32", or a codec of kv_codecs.hpp by its name.
[[nodiscard]] std::vector<std::string> decode_storages();

/// Mixes of the mixed-precision cache, by name.
[[nodiscard]] std::vector<std::string> decode_mixes();

// Steps over keys and values that are written. Errors: usage_error where a name is none of those, or, of compressed, is
// that of a codec whose rows kernels do not read in place; shape_error where rows of head_dim cannot be packed.
[[nodiscard]] std::unique_ptr<decode_step>
make_dense_step(std::string const& storage, decode_shape const& shape, machine const& m);
[[nodiscard]] std::unique_ptr<decode_step>
make_compressed_step(std::string const& storage, decode_shape const& shape, machine const& m);
[[nodiscard]] std::unique_ptr<decode_step>
make_mixed_step(std::string const& mix, decode_shape const& shape, machine const& m);

} // namespace bench
