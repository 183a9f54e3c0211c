// SPDX-License-Identifier: MIT
#pragma once

// The tile class: attention of many query rows, keys and values packed once per item.
//
//   for each key tile the pools show:   pack K and V (once for all strips)
//       for each strip of rows:         S = K Q^T;  logits;  online softmax;  O^T = O^T * factor + V^T P^T
//
// equals attend_row (backend/scalar.hpp), up to summation order. Calls of few tokens do so a span at a time, from an
// empty state, and fold what spans leave, so that threads can share the keys of one item. A unit (tile_unit.hpp)
// multiplies; scores stay in L1, packed tiles in L2. A strip skips the tiles that none of its rows sees and masks only
// those that not all of them see; a key that a row does not see adds exact zeros to it, so a row's result does not
// depend on the rows beside it.
//
// The softmax runs in base 2: weight = 2^(c (s - base)) with c = scale * log2(e). A row is rescaled only once its
// maximum has grown by `slack` binary digits, so weights reach 2^slack and most tiles rescale nothing. The price: sums
// of values may overflow from 2^(128 - slack) / keys on.
//
// What it brought (Zen 5, head_dim 128, one thread, in turns):
//
//   base 2 with slack, its numbers in registers                     1.06 to 1.11
//   rows read in place                                              1.02 to 1.04
//   the next tile fetched                                           1.05 to 1.10; in routed blocks where it does begin,
//                                                                   not what follows this one, 1.02 more
//   q and out where rows have 130 keys: fetched 16 rows ahead       1.05 to 1.09
//     moved in and out of lanes through registers (lanes.hpp)       1.06 to 1.09
//     fetched by the register blocks of the products (fetch_queue)  1.02 to 1.05
//   sums that begin without being cleared, likewise                 1.01
//
// Rejected: keys in lanes (fma_unit.hpp); rows fetched between the products, which wait for them; the next item's first
// tile fetched, items of 528 rows, register blocks twice as high where a strip has one vector: nothing gained.

#include <butterfly/backend/simd/item.hpp>
#include <butterfly/backend/simd/lanes.hpp>
#include <butterfly/backend/simd/tile_ahead.hpp>
#include <butterfly/backend/simd/tile_scratch.hpp>
#include <butterfly/backend/simd/tile_weights.hpp>

#include <cstring>
#include <numbers>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Attention of one item, at once or a span at a time.
template <class Isa>
class tile_attention {
public:
    /// Bytes of what a span leaves of so many rows.
    [[nodiscard]] static index_t part_bytes(problem const& p, int rows) noexcept {
        return tile_part::bytes(unit_of<Isa>(p), rows, p.out.shape.head_dim);
    }

    tile_attention(problem const& p, cut const& c, item const& i, std::byte* memory) noexcept
        : p_(p), i_(i), unit_(unit_of<Isa>(p)), dk_(p.q.shape.head_dim), dv_(p.out.shape.head_dim),
          masked_(static_cast<bool>(p.options.mask.data)), adjusted_(is_adjusted(p)), spanned_(c.spanned),
          at_(unit_, {i.rows(), dk_, dv_, masked_, spanned_, has_rounded_rows(p, unit_)}, memory),
          to_(part_at(at_.part)), ahead_(p_, i_, unit_, spanned_) {}

    /// `next`: the item whose queries this thread will probably read next.
    void run(item const& next = {}) noexcept {
        ahead_.expect(next);
        if (spanned_) return run_spans(p_, i_, *this, at_.part);
        load_item();
        clear(to_);
        for (int k = 0; k < p_.pool_count; ++k) walk(k, {0, no_alignment});
        finish(to_);
    }

    /// One span of one pool, from an empty state.
    void run_span(int pool, index_t span, std::byte* part) noexcept {
        if (!loaded_) load_item();
        to_ = part_at(part);
        clear(to_);
        walk(pool, {span * span_slots, (span + 1) * span_slots});
    }

    void clear_total() noexcept { clear(part_at(at_.total)); }

    /// total = total merged with part. What a row gets depends on its own part alone, and an empty one changes no bit.
    void fold(std::byte* memory) noexcept {
        float const to_base_2 = unit_of_scores() * std::numbers::log2e_v<float>;
        merge_parts<Isa>(unit_, i_.rows(), dv_, part_at(at_.total), part_at(memory), to_base_2);
    }

    void finish() noexcept { finish(part_at(at_.total)); }

private:
    using vector = f32<Isa>;

    /// Binary digits by which a maximum may grow before its row is rescaled.
    static constexpr float slack = 8.0F;

    /// What a score times is a logit.
    [[nodiscard]] float unit_of_scores() const noexcept { return adjusted_ ? 1.0F : p_.options.scale; }
    [[nodiscard]] int strip() const noexcept { return unit_.strip; }
    [[nodiscard]] int strips() const noexcept { return (i_.rows() + strip() - 1) / strip(); }
    [[nodiscard]] int rows_in(int s) const noexcept { return std::min(strip(), i_.rows() - s * strip()); }
    [[nodiscard]] index_t token(int row) const noexcept { return i_.first + row / i_.heads; }
    [[nodiscard]] index_t head(int row) const noexcept { return i_.head + row % i_.heads; }
    [[nodiscard]] index_t origin() const noexcept { return detail::position_of(p_, i_.first); }
    [[nodiscard]] std::uint32_t* queries(int s) const noexcept {
        return at_.queries + s * tile_scratch::query_words(unit_, dk_);
    }
    [[nodiscard]] float* out(tile_part const& part, int s) const noexcept {
        return part.out + s * strip() * column_rows(dv_);
    }
    [[nodiscard]] tile_part part_at(std::byte* memory) const noexcept { return {unit_, i_.rows(), dv_, memory}; }

    void clear(tile_part const& part) const noexcept { part.clear(unit_, i_.rows()); }

    /// Queries into lanes, and what else is of the item.
    void load_item() noexcept {
        loaded_          = true;
        int const padded = strips() * strip();
        if (dk_ % operand_step != 0 || i_.rows() < padded) // what no row is loaded to
            std::memset(at_.queries, 0, static_cast<std::size_t>(strips() * tile_scratch::query_words(unit_, dk_)) * 4);
        std::fill_n(at_.factor, strip(), 1.0F); // beyond the rows too, where units may read it
        std::fill_n(at_.slope, padded, 0.0F);
        std::fill_n(at_.position, padded, 0.0F);
        if (unit_.pack_values == nullptr) std::memset(at_.values, 0, static_cast<std::size_t>(operand_words(dv_)) * 4);
        for (int s = 0; s < strips(); ++s)
            for (int r = 0; r < rows_in(s); r += rows_at_once) {
                int const count = std::min(rows_at_once, rows_in(s) - r);
                fetch_rows(p_.q, i_, s * strip() + r + count);
                row_place places[rows_at_once];
                place_rows(i_, s * strip() + r, count, places);
                load_lanes<Isa>(p_.q, places, count, unit_.pairs, at_.rows, at_.keys, queries(s) + r, strip());
            }

        auto const* const slopes = host_pointer<float const>(p_.options.alibi_slopes);
        if (slopes == nullptr) return;
        for (int r = 0; r < i_.rows(); ++r) {
            at_.slope[r]    = slopes[head(r)];
            at_.position[r] = static_cast<float>(detail::position_of(p_, token(r)) - origin());
        }
    }

    /// What the rows see of `slots` of a pool.
    void walk(int pool_index, key_span const& slots) noexcept {
        pool_ref const& pool = p_.pools[pool_index];
        row_tile const rows  = rows_of(p_, pool, i_, true);
        tile_cursor cursor;
        key_tile tile;
        while (pool.visibility.next(pool.visibility.state, p_, pool_index, rows, slots, cursor, tile))
            visit(pool, tile);
    }

    void visit(pool_ref const& pool, key_tile const& tile) noexcept {
        std::uint64_t const weightless = weightless_keys(pool, tile);
        std::uint64_t const seen       = visible_keys(tile, i_.tokens) & ~weightless;
        if (seen == 0 || (masked_ && masked_out(tile))) return;
        int const first = std::countr_zero(seen);
        int const end   = tile_slots - std::countl_zero(seen);

        std::byte const* key_rows[tile_slots];
        std::byte const* rows[tile_slots];
        gather_rows(pool.keys, i_.kv_head, tile, key_rows);
        gather_rows(pool.values, i_.kv_head, tile, rows);
        ahead_.begin(pool, tile, key_rows, rows);
        storage_ref const keys_kept = for_unit(pool.keys, key_rows, first, end, at_.key_rows);
        storage_ref const values    = for_unit(pool.values, rows, first, end, at_.value_rows);
        operand const keys_packed   = pack_keys(keys_kept, tile, key_rows, first, end);
        operand values_packed       = pack_values(values, tile, rows, first, end);
        bool const runs             = tile.bits == nullptr || find_runs(tile);
        // A value that is not finite must not reach rows that do not see it, as 0 * inf: the unit is given zeros for
        // it, and it is added to the rows that do, always, so that no bit depends on who shares an item.
        std::uint64_t const broken = broken_keys(values_packed, rows, first, end);
        if (broken != 0) values_packed = pack_without(broken, values, rows, first, end);

        if (unit_.start != nullptr) unit_.start(); // here, since visibilities are not the library's code
        for (int s = 0; s < strips(); ++s) {
            strip_keys keys = keys_of(tile, weightless, s);
            if (keys.first >= keys.end) continue;
            fetch_queue ahead = ahead_.of_strip(s, strips(), keys);
            keys.to_base_2    = unit_of_scores() * std::numbers::log2e_v<float>;
            unit_.score(keys_packed.words, keys_packed.stride, keys.first, keys.end, dk_, queries(s), rows_in(s), ahead,
                        at_.scores);
            if (adjusted_)
                adjust(pool, tile, s, keys);
            else if (tile.bias != nullptr)
                lean(tile, s, keys);
            if (!keys.all && runs)
                hide_runs<Isa>(at_.scores, keys, strip(), rows_in(s), at_.begin + s * strip(), at_.end + s * strip());
            else if (!keys.all)
                hide_bits(tile, s, keys);
            // Where every weight is 0 there is nothing to add, but what is not finite: 0 * inf is NaN for who sees it.
            bool rescale   = false;
            bool const any = unit_.pairs == 1 ? soften<1>(s, keys, rescale) : soften<2>(s, keys, rescale);
            if (!any && broken == 0) {
                ahead.fetch_rest();
                continue;
            }
            float const* const factor = rescale ? at_.factor : nullptr;
            unit_.accumulate(values_packed.words, values_packed.stride, keys.first, keys.end, dv_, weights(),
                             rows_in(s), to_.fresh[s], ahead, factor, out(to_, s));
            ahead.fetch_rest();
            to_.fresh[s] = false;
            if (broken != 0) add_broken(broken, values, rows, tile, weightless, s, keys);
        }
        if (unit_.stop != nullptr) unit_.stop();
        ahead_.rest().fetch_rest();
    }

    [[nodiscard]] std::uint32_t* weights() const noexcept { return reinterpret_cast<std::uint32_t*>(at_.scores); }

    /// A tile of keys or values as a unit reads it, and words from one row to the next.
    struct operand {
        std::uint32_t const* words;
        index_t stride;
    };

    /// A storage as the unit takes it: itself, or, where the unit packs rows of bfloat16 and these are others, its rows
    /// decoded and rounded to that.
    [[nodiscard]] storage_ref
    for_unit(storage_ref const& s, std::byte const** rows, int first, int end, bfloat16* to) noexcept {
        if (unit_.pairs == 1 || is_of_unit(unit_, s)) return s;
        index_t const dim = s.shape.head_dim;
        for (int j = first; j < end; j += rows_at_once) {
            int const count = std::min(rows_at_once, end - j);
            host::load_rows(s, i_.kv_head, rows + j, count, at_.rows, dim);
            for (index_t i = 0; i < count * dim; ++i) to[j * dim + i] = bfloat16(at_.rows[i]);
            for (int k = j; k < j + count; ++k) rows[k] = reinterpret_cast<std::byte const*>(to + k * dim);
        }
        return {.data        = memory_ref(to),
                .shape       = {1, tile_slots, dim},
                .slot_stride = 2 * dim,
                .codec       = codec_id::raw_bf16,
                .ops         = &raw_ops<Isa, bfloat16>};
    }

    [[nodiscard]] operand pack_keys(
        storage_ref const& keys, key_tile const& tile, std::byte const* const* rows, int first, int end) noexcept {
        bool const whole = dk_ % unit_.pairs == 0 && unit_.key_stride != nullptr;
        if (whole && in_place(keys, tile, rows))
            return {reinterpret_cast<std::uint32_t const*>(rows[0]), keys.slot_stride / 4};
        index_t const stride = unit_.key_stride != nullptr ? unit_.key_stride(dk_) : 0;
        if (unit_.pack_keys != nullptr)
            unit_.pack_keys(rows, first, end, dk_, at_.keys);
        else
            host::load_rows(keys, i_.kv_head, rows + first, end - first,
                            reinterpret_cast<float*>(at_.keys) + first * stride, stride);
        return {at_.keys, stride};
    }

    /// Values are read across their rows, a few columns of all of them at a time: rows a multiple of 2 KiB apart, which
    /// share sets of the first cache, are copied. So are rows that end within a register block.
    [[nodiscard]] operand pack_values(
        storage_ref const& values, key_tile const& tile, std::byte const* const* rows, int first, int end) noexcept {
        bool const whole = unit_.pairs == 1 && dv_ % operand_step == 0 && values.slot_stride % 2048 != 0;
        if (whole && in_place(values, tile, rows))
            return {reinterpret_cast<std::uint32_t const*>(rows[0]), values.slot_stride / 4};
        index_t const stride = unit_.value_stride != nullptr ? unit_.value_stride(dv_) : 0;
        if (unit_.pack_values != nullptr)
            unit_.pack_values(rows, first, end, dv_, at_.values);
        else
            host::load_rows(values, i_.kv_head, rows + first, end - first,
                            reinterpret_cast<float*>(at_.values) + first * stride, stride);
        return {at_.values, stride};
    }

    /// Whether rows can be read where they are: of the unit's own kind, words, and all of the tile there, since
    /// register blocks reach beyond [first, end).
    [[nodiscard]] bool
    in_place(storage_ref const& s, key_tile const& tile, std::byte const* const* rows) const noexcept {
        if (!is_of_unit(unit_, s) || !host::is_run(s)) return false;
        return tile.slots == nullptr && tile.count == tile_slots && s.slot_stride % 4 == 0 &&
               rows[tile_slots - 1] - rows[0] == (tile_slots - 1) * s.slot_stride &&
               reinterpret_cast<std::uintptr_t>(rows[0]) % 4 == 0;
    }

    /// What a strip sees of a tile.
    [[nodiscard]] strip_keys keys_of(key_tile const& tile, std::uint64_t weightless, int s) const noexcept {
        std::uint64_t any = detail::bit_range(0, tile.count), all = any;
        if (tile.bits != nullptr) {
            int const last = (s * strip() + rows_in(s) - 1) / i_.heads;
            any            = 0;
            for (int t = s * strip() / i_.heads; t <= last; ++t) {
                any |= tile.bits[t];
                all &= tile.bits[t];
            }
        }
        any &= ~weightless;
        if (any == 0) return {0, 0, false, 0.0F};
        int const first = std::countr_zero(any), end = tile_slots - std::countl_zero(any);
        return {first, end, (detail::bit_range(first, end) & ~all) == 0, 0.0F};
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

    // Scale, soft cap, per-key bias, ALiBi, mask: the logit order of host/logits.hpp.
    void adjust(pool_ref const& pool, key_tile const& tile, int s, strip_keys const& keys) noexcept {
        bool const biased   = static_cast<bool>(pool.log_weights) || tile.bias != nullptr;
        float const cap     = p_.options.soft_cap;
        bool const alibi    = static_cast<bool>(p_.options.alibi_slopes);
        bool const any_bias = biased || alibi;
        for (int j = keys.first; j < keys.end; ++j) {
            float const bias = biased ? host::key_bias(pool, tile, j) : 0.0F;
            vector const key(alibi ? static_cast<float>(host::key_position(pool, tile.slot(j)) - origin()) : 0.0F);
            for (int r = 0; r < rows_in(s); r += lanes<Isa>) {
                float* const at = at_.scores + j * strip() + r;
                vector x        = load_as<Isa>(at) * vector(p_.options.scale);
                if (cap > 0.0F) x = vector(cap) * tanh(x / vector(cap));
                if (any_bias) {
                    vector const slope    = load_as<Isa>(at_.slope + s * strip() + r);
                    vector const distance = key - load_as<Isa>(at_.position + s * strip() + r);
                    x                     = x + (alibi ? fma(slope, distance, vector(bias)) : vector(bias));
                    if (bias == minus_infinity) x = vector(bias);
                }
                x.store_unaligned(at);
            }
        }
        if (!masked_) return;
        for (int r = 0; r < rows_in(s); ++r) {
            float const* const mask = at_.mask + (s * strip() + r) * tile_slots;
            for (int j = keys.first; j < keys.end; ++j) {
                float& score = at_.scores[j * strip() + r];
                score        = mask[j] == minus_infinity ? minus_infinity : score + mask[j];
            }
        }
    }

    /// Small per-key biases where logits are but scaled: in units of the scores, whose bases go on.
    void lean(key_tile const& tile, int s, strip_keys const& keys) noexcept {
        for (int j = keys.first; j < keys.end; ++j) {
            vector const bias(tile.bias[j] / p_.options.scale);
            for (int r = 0; r < rows_in(s); r += lanes<Isa>) {
                float* const at = at_.scores + j * strip() + r;
                vector const x  = tile.bias[j] == minus_infinity ? bias : load_as<Isa>(at) + bias;
                x.store_unaligned(at);
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

    void hide_bits(key_tile const& tile, int s, strip_keys const& keys) noexcept {
        for (int r = 0; r < rows_in(s); ++r) {
            std::uint64_t const bits = tile.bits[(s * strip() + r) / i_.heads];
            for (int j = keys.first; j < keys.end; ++j)
                if ((bits >> j & 1U) == 0U) at_.scores[j * strip() + r] = minus_infinity;
        }
    }

    /// Online softmax: scores become weights of the unit's kind. `rescale`: some row's factor is not 1. False where
    /// every score is hidden.
    template <int Pairs>
    [[nodiscard]] bool soften(int s, strip_keys const keys, bool& rescale) noexcept {
        bool any     = false;
        int const by = strip();
        vector const to_base_2(keys.to_base_2);
        for (int r = 0; r < rows_in(s); r += lanes<Isa>) {
            float* const scores = at_.scores + r;
            float* const base   = to_.base + s * by + r;
            float* const sum    = to_.sum + s * by + r;
            vector const old    = load_as<Isa>(base);
            vector const top    = highest<Isa>(scores, keys, by);
            vector const grown  = xsimd::select((top - old) * to_base_2 > vector(slack), top, old);
            vector const from   = xsimd::select(grown == vector(minus_infinity), vector(0.0F), grown); // all hidden
            vector const added  = Pairs == 1 ? weigh<Isa>(scores, keys, by, from)
                                             : weigh_pairs<Isa>(scores, keys, by, from, unit_.key_step);
            vector const factor = exp2<5>((old - from) * to_base_2);
            factor.store_unaligned(at_.factor + r);
            fma(load_as<Isa>(sum), factor, added).store_unaligned(sum);
            grown.store_unaligned(base);
            any |= !xsimd::all(added == vector(0.0F)); // of NaN too, whatever != says of it
            rescale |= xsimd::any(grown != old);
        }
        return any;
    }

    /// The keys of [first, end) with a value that is not finite.
    [[nodiscard]] std::uint64_t
    broken_keys(operand const& packed, std::byte const* const* rows, int first, int end) const noexcept {
        std::uint64_t broken = 0;
        for (int j = first; j < end; ++j) {
            auto const* const words = reinterpret_cast<float const*>(packed.words + j * packed.stride);
            bool const finite       = unit_.pairs == 1 ? is_finite_row<Isa>(words, dv_)
                                                       : is_finite_row<Isa>(reinterpret_cast<bfloat16 const*>(rows[j]), dv_);
            if (!finite) broken |= std::uint64_t{1} << j;
        }
        return broken;
    }

    /// Values with zeros in the place of broken rows.
    [[nodiscard]] operand pack_without(
        std::uint64_t broken, storage_ref const& values, std::byte const* const* rows, int first, int end) noexcept {
        index_t const stride = unit_.value_stride != nullptr ? unit_.value_stride(dv_) : 0;
        if (unit_.pack_values != nullptr) {
            std::fill_n(at_.rows, dv_, 0.0F); // longer than a row of bf16
            std::byte const* kept[tile_slots];
            for (int j = first; j < end; ++j)
                kept[j] = (broken >> j & 1U) != 0U ? reinterpret_cast<std::byte const*>(at_.rows) : rows[j];
            unit_.pack_values(kept, first, end, dv_, at_.values);
            return {at_.values, stride};
        }
        auto* const to = reinterpret_cast<float*>(at_.values);
        host::load_rows(values, i_.kv_head, rows + first, end - first, to + first * stride, stride);
        for (int j = first; j < end; ++j)
            if ((broken >> j & 1U) != 0U) std::fill_n(to + j * stride, dv_, 0.0F);
        return {at_.values, stride};
    }

    void add_broken(std::uint64_t broken,
                    storage_ref const& values,
                    std::byte const* const* rows,
                    key_tile const& tile,
                    std::uint64_t weightless,
                    int s,
                    strip_keys const& keys) noexcept {
        float* const out = this->out(to_, s);
        for (std::uint64_t left = broken & ~weightless & detail::bit_range(keys.first, keys.end); left != 0;
             left &= left - 1) {
            int const j = std::countr_zero(left);
            host::load_rows(values, i_.kv_head, rows + j, 1, at_.rows, dv_);
            for (int r = 0; r < rows_in(s); ++r) {
                int const row = s * strip() + r;
                if (tile.bits != nullptr && (tile.bits[row / i_.heads] >> j & 1U) == 0U) continue;
                if (masked_ && at_.mask[row * tile_slots + j] == minus_infinity) continue;
                float const weight = weight_of(at_.scores, j, r, strip(), unit_.pairs);
                for (index_t d = 0; d < dv_; ++d) out[d * strip() + r] += weight * at_.rows[d];
            }
        }
    }

    void finish(tile_part const& from) noexcept {
        auto* const lse         = host_pointer<float>(p_.options.lse);
        auto const* const sinks = host_pointer<float const>(p_.options.sink_logits);
        for (int s = 0; s < strips(); ++s) {
            float const* const out = from.settled_out(unit_, s, dv_);
            for (int first = 0; first < rows_in(s); first += rows_at_once) {
                int const count = std::min(rows_at_once, rows_in(s) - first);
                fetch_rows(p_.out, i_, s * strip() + first + count);
                row_place places[rows_at_once];
                place_rows(i_, s * strip() + first, count, places);
                float factor[rows_at_once] = {};
                for (int i = 0; i < count; ++i) {
                    int const r       = s * strip() + first + i;
                    auto const [h, t] = places[i];
                    softmax_state state{from.base[r] * unit_of_scores(), from.sum[r]};
                    if (lse != nullptr) lse[h * p_.tokens() + t] = state.lse();
                    float const rescale = sinks != nullptr ? state.push(sinks[h]) : 1.0F;
                    factor[i]           = state.empty() ? 0.0F : rescale / state.sum;
                }
                store_lanes<Isa>(p_.out, places, count, out + first, strip(), factor, at_.rows);
            }
        }
    }

    problem const& p_;
    item const i_;
    tile_unit const& unit_;
    index_t const dk_;
    index_t const dv_;
    bool const masked_;
    bool const adjusted_;
    bool const spanned_;
    tile_scratch at_;
    tile_part to_; // where sums go
    tile_ahead ahead_;
    bool loaded_ = false; // queries are in lanes
};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
