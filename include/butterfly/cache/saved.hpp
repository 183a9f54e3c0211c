// SPDX-License-Identifier: MIT
#pragma once

// The format of a saved cache, and its header as a value.
//
//   | header | section | section | ...      one section for each part of the cache (part.hpp), in the cache's order
//
// Numbers are unsigned and little-endian. Header and sections are multiples of 64 bytes each, the last four of which
// are a CRC-32 (core/crc32.hpp) of those before: in the header from 0, in a section continued from the CRC-32 before
// it. So every byte is covered, sections cannot change places, and each can be checked alone.
//
//   header    0    8   89 42 46 4b 56 0d 0a 1a          section   heads x slots x row_bytes bytes: the slots of head 0
//             8    4   version: 1                                 that mean something, ascending, then those of head 1,
//            12    4   bytes of the header                        ... each as it stands in memory
//            16    8   kind: 0 compressed, 1 mixed                zeros
//            24    8   kv_heads                                   4 bytes: CRC-32
//            32    8   head_dim
//            40    8   value_head_dim, never 0          part      8   heads
//            48    8   block_size                                 8   slots of a head
//            56    8   exact_window                               8   row_bytes
//            64    8   exact_sinks; 0: the rules keep none        4   bytes of the name, n
//            72   32   rules, 8 each, 0 or 1:                     4   bytes of the codec's name, c
//                      whole_blocks, counted, sinks, late         n   name
//           104    8   pooling: 0 mean, 1 weighted, 2 custom      c   the codec's name
//           112    8   takes_weights, 0 or 1
//           120    8   centre_keys
//           128    8   centre_values
//           136    8   max_tokens
//           144    8   max_append
//           152    8   max_rollback
//           160    8   tokens
//           168    8   tail_start
//           176    8   summaries
//           184    8   trim_floor
//           192    8   number of parts
//           200        parts, one after the other
//                      zeros
//         end-4    4   CRC-32
//
// A mixed-precision cache has the rules and the pooling it counts by, as if it were a compressed one: late, not
// counted, mean; its summaries are packed blocks.
//
// Reading trusts nothing: each length and count is checked before use, memory is bounded by the size of the file, and
// any defect is a format_error.

#include <butterfly/cache/compressed_kv_cache.hpp>
#include <butterfly/cache/mixed_kv_cache.hpp>
#include <butterfly/core/crc32.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace butterfly {

/// Which class a saved cache is of.
enum class saved_kind : std::uint8_t { compressed, mixed };

/// A part of a saved cache.
struct saved_part {
    std::string name{};
    std::string codec{};
    index_t heads     = 0;
    index_t slots     = 0; // of a head
    index_t row_bytes = 0;
};

/// What the header of a saved cache says: all that is needed to make a cache it can be loaded into.
struct saved_cache {
    saved_kind kind = saved_kind::compressed;
    cache_config config{}; // of a mixed one, all but its centring
    index_t centre_keys   = 0;
    index_t centre_values = 0;
    pooling_kind pooling  = pooling_kind::mean;
    bool takes_weights    = false;
    counter_values counters{};
    std::vector<saved_part> parts{};

    /// Of a mixed-precision cache.
    [[nodiscard]] mixed_cache_config mixed_config() const noexcept {
        return {.kv_heads       = config.kv_heads,
                .head_dim       = config.head_dim,
                .value_head_dim = config.value_head_dim,
                .block_size     = config.block_size,
                .exact_window   = config.exact_window,
                .exact_sinks    = config.exact_sinks,
                .centre_keys    = centre_keys,
                .centre_values  = centre_values,
                .max_tokens     = config.max_tokens,
                .max_append     = config.max_append,
                .max_rollback   = config.max_rollback};
    }
};

namespace detail::saved {

static_assert(std::endian::native == std::endian::little, "rows are stored as they stand in memory: little-endian");

inline constexpr std::array<std::byte, 8> magic{std::byte{0x89}, std::byte{'B'},  std::byte{'F'},  std::byte{'K'},
                                                std::byte{'V'},  std::byte{'\r'}, std::byte{'\n'}, std::byte{0x1a}};
inline constexpr std::uint32_t version = 1;
inline constexpr std::size_t alignment = 64, crc_size = 4;
inline constexpr std::size_t part_size = 32; // bytes of a part without its names

/// Bytes with room for a CRC-32, up to a whole multiple.
[[nodiscard]] constexpr std::size_t sealed_size(std::size_t bytes) noexcept {
    return (bytes + crc_size + alignment - 1) / alignment * alignment;
}

/// A number of the header: its bounds, and whether a cache must have the same.
struct number {
    char const* name;
    index_t least, most;
    bool must_agree = true;
};

/// Calls f(number, field) for every number of the header, in the order of the file.
template <class Saved, class F>
void each_number(Saved& s, F const& f) {
    constexpr index_t size = largest_cache_size;
    f(number{"kind", 0, 1}, s.kind);
    f(number{"kv_heads", 1, size}, s.config.kv_heads);
    f(number{"head_dim", 1, size}, s.config.head_dim);
    f(number{"value_head_dim", 1, size}, s.config.value_head_dim);
    f(number{"block_size", 1, size}, s.config.block_size);
    f(number{"exact_window", 1, size}, s.config.exact_window);
    f(number{"exact_sinks", 0, size}, s.config.exact_sinks);
    f(number{"rules.whole_blocks", 0, 1}, s.config.rules.whole_blocks);
    f(number{"rules.counted", 0, 1}, s.config.rules.counted);
    f(number{"rules.sinks", 0, 1}, s.config.rules.sinks);
    f(number{"rules.late", 0, 1}, s.config.rules.late);
    f(number{"pooling", 0, 2}, s.pooling);
    f(number{"takes_weights", 0, 1}, s.takes_weights);
    f(number{"centre_keys", 0, size}, s.centre_keys);
    f(number{"centre_values", 0, size}, s.centre_values);
    f(number{"max_tokens", 1, size, false}, s.config.max_tokens);
    f(number{"max_append", 1, size, false}, s.config.max_append);
    f(number{"max_rollback", 0, size, false}, s.config.max_rollback);
    f(number{"tokens", 0, size, false}, s.counters.tokens);
    f(number{"tail_start", 0, size, false}, s.counters.tail_start);
    f(number{"summaries", 0, size, false}, s.counters.summaries);
    f(number{"trim_floor", 0, size, false}, s.counters.trim_floor);
}

/// What a cache with these sizes, rules and numbers is saved as, but for its parts.
[[nodiscard]] inline saved_cache without_parts(saved_kind kind, cache_config config, counter_values const& at) {
    config.value_head_dim = config.value_dim();
    config.exact_sinks    = config.sinks();
    return {.kind = kind, .config = config, .counters = at};
}

template <class Mix, class Pooling>
[[nodiscard]] saved_cache without_parts(compressed_kv_cache<Mix, Pooling> const& cache, counter_values const& at) {
    saved_cache s   = without_parts(saved_kind::compressed, cache.config(), at);
    s.pooling       = Pooling::kind;
    s.takes_weights = Pooling::takes_weights;
    return s;
}

template <class Mix>
[[nodiscard]] saved_cache without_parts(mixed_kv_cache<Mix> const& cache, counter_values const& at) {
    saved_cache s   = without_parts(saved_kind::mixed, counted_as(cache.config()), at);
    s.centre_keys   = cache.config().centre_keys;
    s.centre_values = cache.config().centre_values;
    return s;
}

/// What a cache would be saved as with these counters, which must be of such a cache and fit.
template <class Cache>
[[nodiscard]] saved_cache described(Cache const& cache, counter_values const& at) {
    static_assert(Cache::names_codecs, "every codec of a saved cache needs a name(), which the file holds");
    saved_cache s = without_parts(cache, at);
    cache.for_each_part(at, [&](cache_part const& p) {
        s.parts.push_back({p.name, p.codec, p.heads, p.slots(), p.row_bytes});
    });
    return s;
}

template <std::unsigned_integral T>
void put(std::vector<std::byte>& out, T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<std::byte>(value >> (8 * i)));
}

inline void put(std::vector<std::byte>& out, std::string_view text) {
    for (char const c : text) out.push_back(static_cast<std::byte>(c));
}

/// Number in `bytes` bytes at `from`.
[[nodiscard]] inline std::uint64_t get(std::byte const* from, std::size_t bytes) noexcept {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) value |= static_cast<std::uint64_t>(from[i]) << (8 * i);
    return value;
}

/// The header of a saved cache.
[[nodiscard]] inline std::vector<std::byte> encode(saved_cache const& s) {
    std::vector<std::byte> out(magic.begin(), magic.end());
    put(out, version);
    put(out, std::uint32_t{0}); // of its bytes, once they are counted
    each_number(s, [&](number const&, auto const& field) { put(out, static_cast<std::uint64_t>(field)); });
    put(out, std::uint64_t{s.parts.size()});
    for (saved_part const& p : s.parts) {
        for (index_t const n : {p.heads, p.slots, p.row_bytes}) put(out, static_cast<std::uint64_t>(n));
        put(out, static_cast<std::uint32_t>(p.name.size()));
        put(out, static_cast<std::uint32_t>(p.codec.size()));
        put(out, p.name);
        put(out, p.codec);
    }
    std::size_t const size = sealed_size(out.size());
    out.resize(size - crc_size);
    for (std::size_t i = 0; i < 4; ++i) out[magic.size() + 4 + i] = static_cast<std::byte>(size >> (8 * i));
    put(out, crc32(out));
    return out;
}

/// A file that was read: its header, and where its sections are.
class reader {
public:
    /// Checks the header, and that the file has the size it says. Throws format_error, beginning with `who`.
    reader(std::string who, std::span<std::byte const> file) : who_(std::move(who)), file_(file) {
        check_front();
        at_ = magic.size() + 8;
        each_number(header_, [&](number const& n, auto& field) {
            field = static_cast<std::remove_cvref_t<decltype(field)>>(bounded(n.name, n.least, n.most));
        });
        index_t const count = bounded("number of parts", 0, static_cast<index_t>(left() / part_size));
        for (index_t i = 0; i < count; ++i) read_part();
        if (!zeros(at_, at_ + left())) bad("its header has bytes after the last part");
        check_size();
        check_counters();
    }

    [[nodiscard]] saved_cache const& header() const noexcept { return header_; }

    /// Calls f(part, rows) for every section, rows being its bytes [heads, slots, row_bytes].
    template <class F>
    void each_section(F const& f) const {
        std::size_t at = header_size_;
        for (saved_part const& p : header_.parts) {
            f(p, file_.subspan(at, bytes_of(p)));
            at += sealed_size(bytes_of(p));
        }
    }

    /// Throws format_error naming the first section whose bytes have another checksum, or that is not padded by zeros.
    void check_sections() const {
        std::uint32_t crc = checksum(header_size_);
        std::size_t at    = header_size_;
        for (saved_part const& p : header_.parts) {
            std::size_t const size = sealed_size(bytes_of(p));
            crc                    = crc32(file_.subspan(at, size - crc_size), crc);
            if (crc != checksum(at + size)) bad("its section " + p.name + " has a bad checksum");
            if (!zeros(at + bytes_of(p), at + size - crc_size))
                bad("its section " + p.name + " has bytes after its rows");
            at += size;
        }
    }

    [[noreturn]] void bad(std::string const& what) const { fail<format_error>(who_ + ": " + what); }

private:
    [[nodiscard]] static std::size_t bytes_of(saved_part const& p) noexcept {
        return static_cast<std::size_t>(p.heads * p.slots * p.row_bytes);
    }

    /// The checksum that ends at `end`.
    [[nodiscard]] std::uint32_t checksum(std::size_t end) const noexcept {
        return static_cast<std::uint32_t>(get(file_.data() + end - crc_size, crc_size));
    }

    [[nodiscard]] bool zeros(std::size_t first, std::size_t end) const noexcept {
        while (first < end && file_[first] == std::byte{0}) ++first;
        return first == end;
    }

    /// Bytes of the header that are not read.
    [[nodiscard]] std::size_t left() const noexcept { return header_size_ - crc_size - at_; }

    void check_front() {
        if (file_.empty()) bad("no bytes");
        std::size_t const front = magic.size() + 8;
        std::size_t const known = std::min(file_.size(), magic.size());
        if (!std::equal(magic.begin(), magic.begin() + static_cast<std::ptrdiff_t>(known), file_.begin()))
            bad("no saved cache: it begins with other bytes");
        if (file_.size() < front) bad("truncated: " + std::to_string(file_.size()) + " bytes");
        auto const number = [&](std::size_t at) { return static_cast<std::size_t>(get(file_.data() + at, 4)); };
        if (number(8) != version)
            bad("version " + std::to_string(number(8)) + ", this reader knows " + std::to_string(version));
        header_size_ = number(12);
        if (header_size_ % alignment != 0 || header_size_ == 0)
            bad("a header of " + std::to_string(header_size_) + " bytes, no multiple of 64");
        if (header_size_ > file_.size())
            bad("truncated: " + std::to_string(file_.size()) + " bytes, its header has " +
                std::to_string(header_size_));
        if (crc32(file_.first(header_size_ - crc_size)) != checksum(header_size_)) bad("its header has a bad checksum");
    }

    [[nodiscard]] std::uint64_t take(std::size_t bytes) {
        if (bytes > left()) bad("its header ends within a field");
        at_ += bytes;
        return get(file_.data() + at_ - bytes, bytes);
    }

    [[nodiscard]] std::string take_text(std::uint64_t bytes) {
        if (bytes > left()) bad("its header ends within a name");
        at_ += static_cast<std::size_t>(bytes);
        return {reinterpret_cast<char const*>(file_.data()) + at_ - bytes, static_cast<std::size_t>(bytes)};
    }

    [[nodiscard]] index_t bounded(std::string const& name, index_t least, index_t most) {
        std::uint64_t const value = take(8);
        if (value > static_cast<std::uint64_t>(most) || value < static_cast<std::uint64_t>(least))
            bad("its " + name + " is " + std::to_string(value) + ", not in [" + std::to_string(least) + ", " +
                std::to_string(most) + "]");
        return static_cast<index_t>(value);
    }

    void read_part() {
        saved_part p;
        for (index_t* const n : {&p.heads, &p.slots, &p.row_bytes})
            *n = bounded("number of rows or bytes of a part", 0, largest_cache_size);
        std::uint64_t const name = take(4), codec = take(4);
        p.name  = take_text(name);
        p.codec = take_text(codec);
        header_.parts.push_back(std::move(p));
    }

    /// The file ends where its last section does. No product or sum overflows.
    void check_size() const {
        constexpr index_t most = std::numeric_limits<index_t>::max() / 2;
        index_t end            = static_cast<index_t>(header_size_);
        for (saved_part const& p : header_.parts) {
            index_t const bytes = try_multiply(try_multiply(p.heads, p.slots), p.row_bytes);
            if (bytes < 0 || bytes > most - end) bad("part " + p.name + " has more bytes than can be counted");
            end += static_cast<index_t>(sealed_size(static_cast<std::size_t>(bytes)));
        }
        auto const size = static_cast<index_t>(file_.size());
        if (size < end) bad("truncated: " + std::to_string(size) + " bytes of " + std::to_string(end));
        if (size > end) bad(std::to_string(size - end) + " bytes after its end at " + std::to_string(end));
    }

    /// The header contradicts itself nowhere: a cache could be made of it.
    void check_counters() const {
        if (ceil_div(header_.config.max_tokens, header_.config.block_size) > std::numeric_limits<std::int32_t>::max())
            bad("its max_tokens are more blocks than an int32 counts");
        if (std::string const why = cache_counters::defect(header_.config, header_.counters); !why.empty())
            bad("its counters contradict each other: " + why);
        if (header_.counters.tokens > header_.config.max_tokens)
            bad("its tokens " + std::to_string(header_.counters.tokens) + " are more than its max_tokens " +
                std::to_string(header_.config.max_tokens));
    }

    std::string who_;
    std::span<std::byte const> file_;
    saved_cache header_{};
    std::size_t header_size_ = 0;
    std::size_t at_          = 0;
};

} // namespace detail::saved
} // namespace butterfly
