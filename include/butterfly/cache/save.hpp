// SPDX-License-Identifier: MIT
#pragma once

// Saves caches and loads them.
//
//   save(policy, cache, path)           a file, replaced as a whole or not at all
//   save(policy, cache, sink)           the same bytes, to sink(std::span<std::byte const>) piece by piece
//   save(policy, cache)                 the same bytes, in memory
//   load(policy, path or bytes, cache)  into a cache that the caller has made: no file decides what is allocated
//   describe_saved(path or bytes)       what such a cache must be
//
// What is saved is what retained_bytes() counts: valid slots, log-weights, token weights, means; not the scratch of a
// ring. A loaded cache goes on bit for bit as the saved one would. It must be of the same class, sizes, rules, pooling,
// centring and codecs, by name; max_tokens, max_append and max_rollback may differ as long as the content fits. Layout:
// saved.hpp.
//
// A file is mapped: its bytes are read once for their checksums and once as they are copied. Nothing stays mapped, for
// the checksums read every byte before anything is changed, and a cache's memory is written to from then on. Bytes are
// moved by the policy's copy_bytes, which must reach host memory too. save reads the cache like attend; load is
// exclusive, like append, and one thread's call.

#include <butterfly/cache/saved.hpp>
#include <butterfly/core/mapped_file.hpp>

#include <concepts>

namespace butterfly {
namespace detail::saved {

/// Sends the bytes of a saved cache to a sink.
template <class Sink>
class writer {
public:
    explicit writer(Sink& sink) : sink_(sink), buffer_(std::size_t{1} << 18) {}

    void header(saved_cache const& s) {
        std::vector<std::byte> const bytes = encode(s);
        crc_ = static_cast<std::uint32_t>(get(bytes.data() + bytes.size() - crc_size, crc_size));
        sink_(std::span<std::byte const>(bytes));
    }

    template <class Policy>
    void section(Policy const& policy, cache_part const& p) {
        p.for_each_run([&](memory_ref from, index_t bytes) {
            while (bytes > 0) {
                if (used_ == buffer_.size()) send();
                auto const room = static_cast<index_t>(buffer_.size() - used_);
                index_t const n = std::min(bytes, room);
                copy_bytes(policy, from, memory_ref(buffer_.data() + used_), n);
                from.offset += n;
                bytes -= n;
                used_ += static_cast<std::size_t>(n);
            }
        });
        send();
        auto const bytes = static_cast<std::size_t>(p.bytes());
        used_            = sealed_size(bytes) - bytes - crc_size;
        std::fill_n(buffer_.begin(), used_, std::byte{0});
        send();
        for (; used_ < crc_size; ++used_) buffer_[used_] = static_cast<std::byte>(crc_ >> (8 * used_));
        sink_(std::span<std::byte const>(buffer_).first(std::exchange(used_, 0)));
    }

private:
    void send() {
        if (used_ == 0) return;
        auto const bytes = std::span<std::byte const>(buffer_).first(std::exchange(used_, 0));
        crc_             = crc32(bytes, crc_);
        sink_(bytes);
    }

    Sink& sink_;
    std::vector<std::byte> buffer_;
    std::size_t used_  = 0;
    std::uint32_t crc_ = 0;
};

/// "whole_blocks is 1, the cache has 0".
[[nodiscard]] inline std::string differ(std::string const& what, std::string const& file, std::string const& cache) {
    return what + " is " + file + ", the cache has " + cache;
}

/// Throws format_error naming the first number that a file and a cache must agree on and do not.
inline void check_numbers(reader const& in, saved_cache const& cache) {
    if (bool const mixed = in.header().kind == saved_kind::mixed; in.header().kind != cache.kind)
        in.bad(mixed ? "of a mixed_kv_cache, the cache is a compressed_kv_cache"
                     : "of a compressed_kv_cache, the cache is a mixed_kv_cache");
    std::vector<index_t> has;
    each_number(cache, [&](number const&, auto const& field) { has.push_back(static_cast<index_t>(field)); });
    std::size_t i = 0;
    each_number(in.header(), [&](number const& n, auto const& field) {
        auto const value = static_cast<index_t>(field);
        if (n.must_agree && value != has[i])
            in.bad(differ(std::string("its ") + n.name, std::to_string(value), std::to_string(has[i])));
        ++i;
    });
}

/// Throws format_error naming the first part in which a file and a cache differ.
inline void check_parts(reader const& in, saved_cache const& cache) {
    std::vector<saved_part> const& parts = in.header().parts;
    if (parts.size() != cache.parts.size())
        in.bad(differ("its number of parts", std::to_string(parts.size()), std::to_string(cache.parts.size())));
    for (std::size_t i = 0; i < parts.size(); ++i) {
        saved_part const& a = parts[i];
        saved_part const& b = cache.parts[i];
        if (a.name != b.name) in.bad(differ("its part " + std::to_string(i), a.name, b.name));
        auto const same = [&](char const* what, index_t x, index_t y) {
            if (x != y) in.bad(differ(what + (" of " + a.name), std::to_string(x), std::to_string(y)));
        };
        if (a.codec != b.codec) in.bad(differ("its codec of " + a.name, a.codec, b.codec));
        same("its heads", a.heads, b.heads);
        same("its row_bytes", a.row_bytes, b.row_bytes);
        same("its number of slots", a.slots, b.slots);
    }
}

/// Loads a file into a cache. All that can throw, but for a device that fails to copy, comes before the first change.
template <class Policy, class Cache>
void load(std::string const& who, Policy const& policy, std::span<std::byte const> bytes, Cache& cache) {
    reader const in(who, bytes);
    counter_values const& at = in.header().counters;
    check_numbers(in, without_parts(cache, at));
    check_restore(who, cache, at);
    check_parts(in, described(cache, at));
    in.check_sections();

    std::vector<cache_part> parts;
    cache.for_each_part(at, [&](cache_part const& p) { parts.push_back(p); });
    cache.clear(); // should a device fail, the cache is empty, not spoilt
    auto part = parts.begin();
    in.each_section([&](saved_part const&, std::span<std::byte const> rows) {
        std::byte const* from = rows.data();
        part->for_each_run([&](memory_ref to, index_t size) {
            copy_bytes(policy, memory_ref(from), to, size);
            from += size;
        });
        ++part;
    });
    cache.restore(at);
}

} // namespace detail::saved

/// Bytes of a cache once it is saved.
template <class Cache>
[[nodiscard]] index_t saved_bytes(Cache const& cache) {
    saved_cache const s = detail::saved::described(cache, cache.counters().values());
    std::size_t bytes   = detail::saved::encode(s).size();
    for (saved_part const& p : s.parts)
        bytes += detail::saved::sealed_size(static_cast<std::size_t>(p.heads * p.slots * p.row_bytes));
    return static_cast<index_t>(bytes);
}

/// Calls sink(std::span<std::byte const>) for the bytes of a cache, in order, in pieces of up to 256 KiB: a file, a
/// socket. Equal caches make equal bytes.
template <class Policy, class Cache, std::invocable<std::span<std::byte const>> Sink>
void save(Policy const& policy, Cache const& cache, Sink&& sink) {
    counter_values const at = cache.counters().values();
    detail::saved::writer writer(sink);
    writer.header(detail::saved::described(cache, at));
    cache.for_each_part(at, [&](cache_part const& p) { writer.section(policy, p); });
}

/// The bytes of a cache.
template <class Policy, class Cache>
[[nodiscard]] std::vector<std::byte> save(Policy const& policy, Cache const& cache) {
    std::vector<std::byte> out;
    out.reserve(static_cast<std::size_t>(saved_bytes(cache)));
    save(policy, cache, [&](std::span<std::byte const> piece) { out.insert(out.end(), piece.begin(), piece.end()); });
    return out;
}

/// Writes a cache to a file, replacing `path` only once all of it is written (core/file.hpp). Throws format_error with
/// the system's words where that fails.
template <class Policy, class Cache>
void save(Policy const& policy, Cache const& cache, std::string const& path) {
    detail::replacement_file file("save", path);
    save(policy, cache, [&](std::span<std::byte const> piece) { file.write(piece); });
    file.commit();
}

/// Loads a cache from the bytes of a file. What the cache had is forgotten. Throws, with the cache as it was,
/// format_error where the bytes are no saved cache, are damaged, or are of another cache than this one, naming what
/// differs; capacity_error where the content does not fit.
template <class Policy, class Cache>
void load(Policy const& policy, std::span<std::byte const> bytes, Cache& cache) {
    detail::saved::load("load", policy, bytes, cache);
}

/// Loads a cache from a file, which must not be written to meanwhile; replacing it is no harm. Throws as above, and
/// format_error with the system's words where it cannot be read.
template <class Policy, class Cache>
void load(Policy const& policy, std::string const& path, Cache& cache) {
    detail::mapped_file const file("load", path);
    detail::saved::load("load: " + path, policy, file.bytes(), cache);
}

/// What the bytes of a file are of. Throws format_error where they are no saved cache or their header is damaged;
/// checksums of sections are not looked at.
[[nodiscard]] inline saved_cache describe_saved(std::span<std::byte const> bytes) {
    return detail::saved::reader("describe_saved", bytes).header();
}

/// What a file is of; only its header is read. Throws as above.
[[nodiscard]] inline saved_cache describe_saved(std::string const& path) {
    detail::mapped_file const file("describe_saved", path);
    return detail::saved::reader("describe_saved: " + path, file.bytes()).header();
}

} // namespace butterfly
