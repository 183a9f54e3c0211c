// SPDX-License-Identifier: MIT
#include "quantizer_measure.hpp"

#include <butterfly/testing/problem.hpp>

#include "timing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <numbers>
#include <stdexcept>

namespace bench {
namespace {

using bf::testing::random;

/// A Gaussian draw (Box and Muller 1958).
float gaussian(random& draws) {
    double const radius = std::sqrt(-2.0 * std::log(draws.uniform()));
    return static_cast<float>(radius * std::cos(2.0 * std::numbers::pi * draws.uniform()));
}

std::vector<float> gaussian_values(index_t count, random draws) {
    std::vector<float> x(static_cast<std::size_t>(count));
    for (float& v : x) v = gaussian(draws);
    return x;
}

/// Packed rows of one head, at a multiple of 128 bytes: whatever a tile needs.
class packed_rows {
public:
    packed_rows(quantizer const& codec, index_t tokens, index_t head_dim)
        : codec_(codec), tile_(codec.tile_tokens()), tokens_(tokens - tokens % tile_), head_dim_(head_dim),
          row_bytes_(codec.row_bytes(head_dim)),
          data_(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(tokens_* row_bytes_ + 64), alignment))),
          rows_(static_cast<std::size_t>(tokens_)) {
        for (index_t t = 0; t < tokens_; ++t) {
            index_t const within               = t % tile_;
            rows_[static_cast<std::size_t>(t)] = data_.get() + (t - within) * row_bytes_ + within * step();
        }
    }

    [[nodiscard]] index_t tokens() const noexcept { return tokens_; }
    [[nodiscard]] index_t bytes() const noexcept { return tokens_ * row_bytes_; }
    [[nodiscard]] std::byte const* data() const noexcept { return data_.get(); }
    [[nodiscard]] std::span<std::byte const* const> rows(index_t first, index_t count) const noexcept {
        return std::span(rows_).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    }

    /// Packs `count` rows from row `first` on, whole tiles.
    void encode(float const* from, index_t first, index_t count) {
        for (index_t t = first; t < first + count; t += tile_)
            codec_.encode(from + t * head_dim_, head_dim_, data_.get() + t * row_bytes_);
    }

    /// Unpacks all, `at_once` rows at a time into one place; f(first, count, floats) after each.
    template <class F>
    void decode(index_t at_once, std::vector<float>& floats, F const& f) const {
        floats.resize(static_cast<std::size_t>(at_once * head_dim_));
        for (index_t t = 0; t < tokens_; t += at_once) {
            index_t const count = std::min(at_once, tokens_ - t);
            codec_.decode(rows(t, count), head_dim_, floats.data());
            f(t, count, floats.data());
        }
    }

private:
    static constexpr std::align_val_t alignment{128};
    struct release {
        void operator()(std::byte* p) const noexcept { ::operator delete(p, alignment); }
    };

    /// From a row to the next of its tile.
    [[nodiscard]] index_t step() const noexcept { return tile_ == 1 ? 0 : 1; }

    quantizer const& codec_;
    index_t tile_, tokens_, head_dim_, row_bytes_;
    std::unique_ptr<std::byte, release> data_;
    std::vector<std::byte const*> rows_;
};

/// Rows that a kernel works on at a time.
constexpr index_t at_once = 64;

/// Calls f until `seconds` have passed, three times at least, and returns what it says.
template <class F>
std::vector<double> samples(double seconds, F const& f) {
    std::vector<double> out;
    stopwatch const watch;
    do out.push_back(f());
    while (watch.seconds() < seconds || out.size() < 3);
    return out;
}

/// Throws where the leaf does not decode what the codec does.
void check_decode(quantizer const& codec, packed_rows const& packed, index_t head_dim) {
    auto const rows = packed.rows(0, std::min(at_once, packed.tokens()));
    auto const size = static_cast<std::size_t>(head_dim);
    std::vector<float> got(rows.size() * size), want(got.size());
    codec.decode(rows, head_dim, got.data());
    for (std::size_t i = 0; i < rows.size(); ++i) codec.decode_exactly(rows[i], head_dim, want.data() + i * size);
    if (double const e = bf::quant::nmse(want, got); e != 0.0)
        throw std::runtime_error(fmt::format("{}: the backend decodes something else: nmse {:.1e}", codec.name(), e));
}

} // namespace

std::vector<row_set> made_up_rows(index_t vectors, index_t head_dim, std::uint64_t seed) {
    index_t const count = vectors * head_dim;
    row_set const gauss{"gaussian",
                        1,
                        vectors,
                        head_dim,
                        gaussian_values(count, random(seed, 1)),
                        gaussian_values(count, random(seed, 2))};
    row_set large = gauss, one = gauss;
    large.name = "large_channels";
    one.name   = "around_one";
    for (index_t t = 0; t < vectors; ++t)
        for (index_t i = 0; i < std::min<index_t>(8, head_dim); ++i)
            large.rows[static_cast<std::size_t>(t * head_dim + (37 * i + 5) % head_dim)] *= 8.0F;
    for (float& x : one.rows) x = 1.0F + 0.1F * x;
    row_set tails = gauss;
    tails.name    = "heavy_tails";
    random draws(seed, 4);
    for (float& x : tails.rows) { // a sum of four squares is -2 log(u v); the deviation is sqrt(2)
        double const squares = -2.0 * std::log(draws.uniform() * draws.uniform());
        x                    = static_cast<float>(static_cast<double>(x) / std::sqrt(squares / 4.0 * 2.0));
    }
    return {gauss, large, one, tails};
}

std::vector<row_set> rows_of_layer(qkv const& layer, std::uint64_t seed) {
    bf::heads_shape const k = layer.k.shape();
    index_t const group     = layer.q.shape().heads / k.heads;
    auto const copy         = [](auto const& from) { return std::vector<float>(from.begin(), from.end()); };
    row_set keys{"keys", k.heads, k.tokens, k.head_dim, copy(layer.k.values())};
    row_set values{"values", k.heads, k.tokens, k.head_dim, copy(layer.v.values())};
    random draws(seed, 3);
    for (index_t h = 0; h < k.heads; ++h)
        for (index_t t = 0; t < k.tokens; ++t) {
            index_t const head = h * group + draws.below(group), at = draws.between(t, k.tokens - 1);
            std::ranges::copy(layer.q.view().row(head, at), std::back_inserter(keys.queries));
        }
    return {std::move(keys), std::move(values)};
}

row_loss measure_loss(quantizer const& codec, row_set const& in) {
    packed_rows packed(codec, in.tokens, in.head_dim);
    if (packed.tokens() == 0) return {};
    auto const size = static_cast<std::size_t>(in.head_dim);
    bf::quant::row_error rows;
    bf::quant::score_error scores;
    std::vector<float> floats;
    for (index_t h = 0; h < in.heads; ++h) {
        index_t const head = h * in.tokens * in.head_dim;
        packed.encode(in.rows.data() + head, 0, packed.tokens());
        packed.decode(at_once, floats, [&](index_t first, index_t count, float const* decoded) {
            for (index_t i = 0; i < count; ++i) {
                index_t const at = head + (first + i) * in.head_dim;
                std::span<float const> const x(in.rows.data() + at, size), y(decoded + i * in.head_dim, size);
                rows.add(x, y);
                if (!in.queries.empty()) scores.add({in.queries.data() + at, size}, x, y);
            }
        });
    }
    return {in.heads * packed.tokens(), rows.nmse(), scores.slope(), scores.rms()};
}

codec_speed measure_speed(quantizer const& codec, row_set const& in, double seconds) {
    packed_rows packed(codec, in.tokens, in.head_dim);
    index_t const tokens = packed.tokens();
    if (tokens == 0) return {};
    double const row_floats = static_cast<double>(in.head_dim) * sizeof(float);
    codec_speed out{.tokens = tokens, .read = 2 * packed.bytes()};

    packed.encode(in.rows.data(), 0, tokens);
    check_decode(codec, packed, in.head_dim);
    constexpr index_t piece = 128; // whole tiles of every codec
    index_t first           = 0;
    out.encode              = samples(seconds, [&] {
        first = first + piece <= tokens ? first : 0;
        stopwatch const watch;
        packed.encode(in.rows.data(), first, piece);
        double const took = watch.seconds();
        first += piece;
        return static_cast<double>(piece) * row_floats / took;
    });

    std::vector<float> floats;
    out.decode = samples(seconds, [&] {
        stopwatch const watch;
        packed.decode(at_once, floats, [](auto...) {});
        return static_cast<double>(tokens) * row_floats / watch.seconds();
    });

    // Queries are small, so that all keys count; values are rows of their own.
    packed_rows values(codec, in.tokens, in.head_dim);
    values.encode(in.queries.data(), 0, tokens);
    auto const length = static_cast<std::size_t>(quantizer_heads * in.head_dim);
    std::vector<float> const q(in.queries.begin(), in.queries.begin() + static_cast<std::ptrdiff_t>(length));
    std::vector<float> got(length), want(length), summed;
    auto const step = [&] { codec.attend(packed.data(), values.data(), tokens, in.head_dim, q, got); };
    packed.decode(tokens, floats, [](auto...) {});
    values.decode(tokens, summed, [](auto...) {});
    attend_floats(floats, summed, in.head_dim, q, want);
    step();
    out.attend_error = std::sqrt(bf::quant::nmse(want, got));
    if (!(out.attend_error < 0.05))
        throw std::runtime_error(fmt::format("{}: attention over packed rows is wrong: relative error {:.1e}",
                                             codec.name(), out.attend_error));
    std::vector<float> scores(static_cast<std::size_t>(quantizer_heads * tokens));
    if (codec.score(packed.rows(0, tokens), in.head_dim, q, scores))
        out.score = samples(seconds, [&] {
            stopwatch const watch;
            codec.score(packed.rows(0, tokens), in.head_dim, q, scores);
            return static_cast<double>(packed.bytes()) / watch.seconds();
        });
    out.attend = samples(seconds, [&] {
        stopwatch const watch;
        step();
        return watch.seconds();
    });
    return out;
}

} // namespace bench
