// SPDX-License-Identifier: MIT
#pragma once

// The tile class: attention of many query rows, the keys decoded once per row tile.
//
//   for each key tile the pools show:   decode K and V (once for all strips)
//       for each strip of rows:         S = K Q;  logits;  online softmax;  O += S V
//
// equals attend_row (backend/scalar.hpp), up to summation order. Scores stay in L1, decoded tiles in L2. A key tile
// that a row does not see adds exact zeros to it, so a row's result does not depend on the rows beside it.

#include <butterfly/backend/host/workspace.hpp>
#include <butterfly/backend/simd/item.hpp>
#include <butterfly/backend/simd/tile_kernels.hpp>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// One thread's memory of the tile class.
template <class Isa>
struct tile_scratch {
    float* queries;  // [strips][head_dim][strip], times scale
    float* keys;     // [tile_slots][key_stride]
    float* values;   // [tile_slots][value_stride]
    float* scores;   // [tile_slots][strip]
    float* out;      // [strips * strip][value_stride]
    float* max;      // [strips * strip]
    float* sum;      // [strips * strip]
    float* factor;   // [strip]
    float* begin;    // [strips * strip]: rows see keys [begin, end) of a partial tile
    float* end;      // [strips * strip]
    float* slope;    // [strips * strip]: ALiBi
    float* position; // [strips * strip]: relative to the item's first
    float* mask;     // [strips * strip][tile_slots]: the additive mask of a tile

    static constexpr int rows = static_cast<int>(detail::round_up(item_rows<Isa>, strip_rows<Isa>));

    [[nodiscard]] static constexpr index_t padded(index_t n) noexcept { return detail::round_up(n, lanes<Isa>); }

    [[nodiscard]] static index_t bytes(index_t dk, index_t dv) noexcept {
        return host::scratch_bytes<float>(rows * dk) + host::scratch_bytes<float>(tile_slots * dk) +
               host::scratch_bytes<float>(tile_slots * padded(dv)) +
               host::scratch_bytes<float>(tile_slots * strip_rows<Isa>) +
               host::scratch_bytes<float>(rows * padded(dv)) + 6 * host::scratch_bytes<float>(rows) +
               host::scratch_bytes<float>(rows * tile_slots) + host::scratch_bytes<float>(strip_rows<Isa>);
    }

    tile_scratch(index_t dk, index_t dv, std::byte* memory) noexcept {
        host::carver c(memory);
        queries  = c.take<float>(rows * dk);
        keys     = c.take<float>(tile_slots * dk);
        values   = c.take<float>(tile_slots * padded(dv));
        scores   = c.take<float>(tile_slots * strip_rows<Isa>);
        out      = c.take<float>(rows * padded(dv));
        max      = c.take<float>(rows);
        sum      = c.take<float>(rows);
        begin    = c.take<float>(rows);
        end      = c.take<float>(rows);
        slope    = c.take<float>(rows);
        position = c.take<float>(rows);
        factor   = c.take<float>(strip_rows<Isa>);
        mask     = c.take<float>(rows * tile_slots);
    }
};

/// Attention of one item.
template <class Isa>
class tile_attention {
public:
    tile_attention(problem const& p, item const& i, std::byte* memory) noexcept
        : p_(p), i_(i), dk_(p.q.shape.head_dim), dv_(p.out.shape.head_dim), stride_(tile_scratch<Isa>::padded(dv_)),
          at_(dk_, dv_, memory) {}

    void run() noexcept {
        start();
        for (int k = 0; k < p_.pool_count; ++k) {
            pool_ref const& pool = p_.pools[k];
            row_tile const rows  = rows_of(p_, pool, i_);
            tile_cursor cursor;
            key_tile tile;
            while (pool.visibility.next(pool.visibility.state, p_, k, rows, {0, no_alignment}, cursor, tile))
                visit(pool, tile);
        }
        finish();
    }

private:
    static constexpr int strip = strip_rows<Isa>;
    using vector               = f32<Isa>;

    [[nodiscard]] int strips() const noexcept { return (i_.rows() + strip - 1) / strip; }
    [[nodiscard]] int rows_in(int s) const noexcept { return std::min(strip, i_.rows() - s * strip); }
    [[nodiscard]] index_t token(int row) const noexcept { return i_.first + row / i_.heads; }
    [[nodiscard]] index_t head(int row) const noexcept { return i_.head + row % i_.heads; }

    // Queries, transposed and scaled; empty states.
    void start() noexcept {
        int const padded = strips() * strip;
        std::fill_n(at_.queries, padded * dk_, 0.0F);
        std::fill_n(at_.out, padded * stride_, 0.0F);
        std::fill_n(at_.max, padded, minus_infinity);
        std::fill_n(at_.sum, padded, 0.0F);
        std::fill_n(at_.slope, padded, 0.0F);
        std::fill_n(at_.position, padded, 0.0F);
        if (stride_ != dv_) std::fill_n(at_.values, tile_slots * stride_, 0.0F);
        auto const* const slopes = host_pointer<float const>(p_.options.alibi_slopes);
        for (int r = 0; r < i_.rows(); ++r) {
            float* const row = at_.keys; // free until the first tile
            host::load_row(p_.q, head(r), token(r), row);
            float* const to = at_.queries + (r / strip) * dk_ * strip + r % strip;
            for (index_t d = 0; d < dk_; ++d) to[d * strip] = row[d] * p_.options.scale;
            if (slopes != nullptr) {
                at_.slope[r]    = slopes[head(r)];
                at_.position[r] = static_cast<float>(detail::position_of(p_, token(r)) - origin());
            }
        }
    }

    [[nodiscard]] index_t origin() const noexcept { return detail::position_of(p_, i_.first); }

    void visit(pool_ref const& pool, key_tile const& tile) noexcept {
        std::uint64_t const weightless = weightless_keys(pool, tile);
        std::uint64_t const seen       = visible_keys(tile, i_.tokens) & ~weightless;
        if (seen == 0 || (p_.options.mask.data && masked_out(tile))) return;
        int const first = std::countr_zero(seen);
        int const end   = tile_slots - std::countl_zero(seen);

        std::byte const* rows[tile_slots];
        gather_rows(pool.keys, i_.kv_head, tile, rows);
        ops_of(pool.keys).base.decode(pool.keys.codec_state, rows + first, end - first, dk_, at_.keys + first * dk_,
                                      dk_);
        gather_rows(pool.values, i_.kv_head, tile, rows);
        ops_of(pool.values)
            .base.decode(pool.values.codec_state, rows + first, end - first, dv_, at_.values + first * stride_,
                         stride_);
        bool const runs   = tile.bits == nullptr || find_runs(tile);
        bool const all    = tile.bits == nullptr && !p_.options.mask.data && weightless == 0; // seen by all rows
        bool const finite = all || all_finite(first, end);

        for (int s = 0; s < strips(); ++s) {
            score_strip<Isa>(at_.queries + s * dk_ * strip, rows_in(s), at_.keys, dk_, first, end, dk_, at_.scores);
            adjust(pool, tile, s, first, end);
            if (tile.bits != nullptr) runs ? hide_runs(s, first, end) : hide_bits(tile, s, first, end);
            // Where every weight is 0 there is nothing to add, but what is not finite: 0 * inf is NaN for who sees it.
            if (!soften(s, first, end) && (all ? all_finite(first, end) : finite)) continue;
            if (finite)
                accumulate_strip<Isa>(at_.scores, rows_in(s), at_.values, first, end, at_.out + s * strip * stride_,
                                      stride_);
            else
                accumulate_seen(tile, weightless, s, first, end);
        }
    }

    /// Reads the mask of the tile; true where it hides the tile from every row.
    [[nodiscard]] bool masked_out(key_tile const& tile) noexcept {
        bool any = false;
        for (int r = 0; r < i_.rows(); ++r) {
            float* const row = at_.mask + r * tile_slots;
            if (p_.options.mask.heads == 1 && !p_.options.mask.slopes && r % i_.heads != 0) {
                std::copy_n(row - tile_slots, tile.count, row); // the heads of a token share it
                continue;
            }
            load_mask<Isa>(p_, head(r), token(r), tile, row);
            for (int j = 0; j < tile.count && !any; ++j) any = row[j] != minus_infinity;
        }
        return !any;
    }

    // Soft cap, per-key bias, ALiBi, mask: the logit order of host/logits.hpp.
    void adjust(pool_ref const& pool, key_tile const& tile, int s, int first, int end) noexcept {
        bool const biased   = static_cast<bool>(pool.log_weights) || tile.bias != nullptr;
        float const cap     = p_.options.soft_cap;
        bool const alibi    = static_cast<bool>(p_.options.alibi_slopes);
        bool const any_bias = biased || alibi;
        if (cap <= 0.0F && !any_bias && !p_.options.mask.data) return;
        for (int j = first; j < end; ++j) {
            float const bias = biased ? host::key_bias(pool, tile, j) : 0.0F;
            vector const key(alibi ? static_cast<float>(host::key_position(pool, tile.slot(j)) - origin()) : 0.0F);
            for (int r = 0; r < rows_in(s); r += lanes<Isa>) {
                float* const at = at_.scores + j * strip + r;
                vector x        = load_as<Isa>(at);
                if (cap > 0.0F) x = vector(cap) * tanh(x / vector(cap));
                if (any_bias) {
                    vector const slope    = load_as<Isa>(at_.slope + s * strip + r);
                    vector const distance = key - load_as<Isa>(at_.position + s * strip + r);
                    x                     = x + (alibi ? fma(slope, distance, vector(bias)) : vector(bias));
                    if (bias == minus_infinity) x = vector(bias);
                }
                x.store_unaligned(at);
            }
        }
        if (!p_.options.mask.data) return;
        for (int r = 0; r < rows_in(s); ++r) {
            float const* const mask = at_.mask + (s * strip + r) * tile_slots;
            for (int j = first; j < end; ++j) {
                float& score = at_.scores[j * strip + r];
                score        = mask[j] == minus_infinity ? minus_infinity : score + mask[j];
            }
        }
    }

    /// Per row the run of keys it sees; false where some row's keys are no run.
    [[nodiscard]] bool find_runs(key_tile const& tile) noexcept {
        for (int t = 0; t < i_.tokens; ++t) {
            std::uint64_t const bits = tile.bits[t];
            int const begin          = bits == 0 ? 0 : std::countr_zero(bits);
            int const end            = bits == 0 ? 0 : tile_slots - std::countl_zero(bits);
            if (bits != detail::bit_range(begin, end)) return false;
            std::fill_n(at_.begin + t * i_.heads, i_.heads, static_cast<float>(begin));
            std::fill_n(at_.end + t * i_.heads, i_.heads, static_cast<float>(end));
        }
        return true;
    }

    void hide_runs(int s, int first, int end) noexcept {
        for (int r = 0; r < rows_in(s); r += lanes<Isa>) {
            vector const begin = load_as<Isa>(at_.begin + s * strip + r);
            vector const stop  = load_as<Isa>(at_.end + s * strip + r);
            for (int j = first; j < end; ++j) {
                float* const at = at_.scores + j * strip + r;
                vector const key(static_cast<float>(j));
                xsimd::select(key >= begin && key < stop, load_as<Isa>(at), vector(minus_infinity)).store_unaligned(at);
            }
        }
    }

    void hide_bits(key_tile const& tile, int s, int first, int end) noexcept {
        for (int r = 0; r < rows_in(s); ++r) {
            std::uint64_t const bits = tile.bits[(s * strip + r) / i_.heads];
            for (int j = first; j < end; ++j)
                if ((bits >> j & 1U) == 0U) at_.scores[j * strip + r] = minus_infinity;
        }
    }

    // Online softmax: scores become weights, what was accumulated is rescaled where a maximum moved. False where every
    // score is hidden.
    [[nodiscard]] bool soften(int s, int first, int end) noexcept {
        bool any     = false;
        bool rescale = false;
        for (int r = 0; r < rows_in(s); r += lanes<Isa>) {
            float* const scores = at_.scores + r;
            vector const old    = load_as<Isa>(at_.max + s * strip + r);
            vector top          = old;
            for (int j = first; j < end; ++j) top = xsimd::max(top, load_as<Isa>(scores + j * strip));
            vector const base = xsimd::select(top == vector(minus_infinity), vector(0.0F), top); // all hidden so far
            vector added(0.0F);
            for (int j = first; j < end; ++j) {
                vector const weight = exp(load_as<Isa>(scores + j * strip) - base);
                weight.store_unaligned(scores + j * strip);
                added = added + weight;
            }
            vector const factor = exp(old - base);
            factor.store_unaligned(at_.factor + r);
            fma(load_as<Isa>(at_.sum + s * strip + r), factor, added).store_unaligned(at_.sum + s * strip + r);
            top.store_unaligned(at_.max + s * strip + r);
            any |= xsimd::any(added != vector(0.0F));
            rescale |= xsimd::any(top != old);
        }
        if (rescale) rescale_rows(s);
        return any;
    }

    void rescale_rows(int s) noexcept {
        for (int r = 0; r < rows_in(s); ++r) {
            if (at_.factor[r] == 1.0F) continue;
            vector const factor(at_.factor[r]);
            float* const row = at_.out + (s * strip + r) * stride_;
            for (index_t d = 0; d < stride_; d += lanes<Isa>) (load_as<Isa>(row + d) * factor).store_unaligned(row + d);
        }
    }

    [[nodiscard]] bool all_finite(int first, int end) const noexcept {
        vector check(0.0F); // x * 0 is NaN where x is not finite
        for (index_t at = first * stride_; at < end * stride_; at += lanes<Isa>)
            check = fma(load_as<Isa>(at_.values + at), vector(0.0F), check);
        return xsimd::all(check == vector(0.0F));
    }

    // Row by row over the keys a row sees: a value that is not finite must not reach the others as 0 * inf.
    void accumulate_seen(key_tile const& tile, std::uint64_t weightless, int s, int first, int end) noexcept {
        for (int r = 0; r < rows_in(s); ++r) {
            int const row            = s * strip + r;
            std::uint64_t const bits = tile.bits != nullptr ? tile.bits[row / i_.heads] : ~std::uint64_t{0};
            for (int j = first; j < end; ++j) {
                if (((bits & ~weightless) >> j & 1U) == 0U) continue;
                if (p_.options.mask.data && at_.mask[row * tile_slots + j] == minus_infinity) continue;
                vector const weight(at_.scores[j * strip + r]);
                float* const out = at_.out + row * stride_;
                for (index_t d = 0; d < stride_; d += lanes<Isa>)
                    fma(weight, load_as<Isa>(at_.values + j * stride_ + d), load_as<Isa>(out + d))
                        .store_unaligned(out + d);
            }
        }
    }

    void finish() noexcept {
        auto* const lse         = host_pointer<float>(p_.options.lse);
        auto const* const sinks = host_pointer<float const>(p_.options.sink_logits);
        for (int r = 0; r < i_.rows(); ++r) {
            softmax_state state{at_.max[r], at_.sum[r]};
            if (lse != nullptr) lse[head(r) * p_.tokens() + token(r)] = state.lse();
            float const rescale = sinks != nullptr ? state.push(sinks[head(r)]) : 1.0F;
            host::store_row(p_.out, head(r), token(r), at_.out + r * stride_,
                            state.empty() ? 0.0F : rescale / state.sum);
        }
    }

    problem const& p_;
    item const i_;
    index_t const dk_;
    index_t const dv_;
    index_t const stride_;
    tile_scratch<Isa> at_;
};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
