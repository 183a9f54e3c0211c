// SPDX-License-Identifier: MIT
#pragma once

// The stream class: attention of few query rows (decode, speculation), bound by the bytes of K and V. Every key and
// value row is read once, in place, for all query heads of its group, up to stream_rows rows of them.
//
//   for each pool, for each span of span_slots slots, for each key tile the pool shows in it:
//       S = Q K^T;  logits;  online softmax;  O += S V
//   spans fold into one result in pool and slot order
//
// equals attend_row (backend/scalar.hpp), up to summation order. Operands stay in registers (1.14 to 1.26 times in
// cache, GCC read them again); what comes next is fetched while scores and sums are made, from memory 1.8 to 2 times as
// fast as nothing fetched, in a cache slower, so that it is chosen by trial (read_probe.hpp). Rejected, from memory:
// fetching into L2 (58 % of a plain read, where L1 has 67), one to four tiles farther (52), the same operand 8 to 48
// rows ahead (52 to 62). A span starts from an empty state, so spans may run on any thread, and the fold's order is
// fixed: the bits are the same for every number of threads.

#include <butterfly/backend/host/workspace.hpp>
#include <butterfly/backend/simd/item.hpp>
#include <butterfly/backend/simd/read_probe.hpp>
#include <butterfly/backend/simd/rows.hpp>

#include <array>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Softmax states and unnormalised outputs of the rows of an item.
struct stream_part {
    float* max; // [rows]
    float* sum; // [rows]
    float* out; // [rows][stride]

    [[nodiscard]] static index_t bytes(int rows, index_t stride) noexcept {
        return 2 * host::scratch_bytes<float>(rows) + host::scratch_bytes<float>(rows * stride);
    }

    stream_part(int rows, index_t stride, std::byte* memory) noexcept {
        host::carver c(memory);
        max = c.take<float>(rows);
        sum = c.take<float>(rows);
        out = c.take<float>(rows * stride);
    }

    void clear(int rows, index_t stride) const noexcept {
        std::fill_n(max, rows, minus_infinity);
        std::fill_n(sum, rows, 0.0F);
        std::fill_n(out, rows * stride, 0.0F);
    }
};

/// One thread's memory of the stream class.
template <class Isa>
struct stream_scratch {
    float* queries;    // [rows][key stride], zero-padded
    std::byte* packed; // [rows][4 * key stride]: the same as a codec wants them
    float* scores;     // [rows][tile_slots]
    float* lift;       // [rows]: added to logits of a pool whose keys have a mean
    float* decoded;    // [tile_slots][wider stride]: rows of codecs that cannot be read in place
    stream_part total;
    std::byte* part; // stream_part: of the span that is walked

    [[nodiscard]] static constexpr index_t padded(index_t n) noexcept { return detail::round_up(n, query_padding); }

    [[nodiscard]] static index_t bytes(int rows, index_t dk, index_t dv) noexcept {
        return 2 * host::scratch_bytes<float>(rows * padded(dk)) + host::scratch_bytes<float>(rows * tile_slots) +
               host::scratch_bytes<float>(rows) +
               host::scratch_bytes<float>(tile_slots * std::max(padded(dk), padded(dv))) +
               2 * stream_part::bytes(rows, padded(dv));
    }

    stream_scratch(int rows, index_t dk, index_t dv, std::byte* memory) noexcept : total(rows, padded(dv), memory) {
        host::carver c(memory);
        queries = c.take<float>(rows * padded(dk));
        packed  = c.take<std::byte>(4 * rows * padded(dk));
        scores  = c.take<float>(rows * tile_slots);
        lift    = c.take<float>(rows);
        decoded = c.take<float>(tile_slots * std::max(padded(dk), padded(dv)));
        total   = stream_part(rows, padded(dv), c.take<std::byte>(stream_part::bytes(rows, padded(dv))));
        part    = c.take<std::byte>(stream_part::bytes(rows, padded(dv)));
    }
};

/// Attention of one item, a span at a time.
template <class Isa>
class stream_attention {
public:
    /// Bytes of what a span leaves of so many rows.
    [[nodiscard]] static index_t part_bytes(problem const& p, int rows) noexcept {
        return stream_part::bytes(rows, stream_scratch<Isa>::padded(p.out.shape.head_dim));
    }

    stream_attention(problem const& p, item const& i, std::byte* memory) noexcept
        : p_(p), i_(i), dk_(p.q.shape.head_dim), dv_(p.out.shape.head_dim),
          key_stride_(stream_scratch<Isa>::padded(dk_)), stride_(stream_scratch<Isa>::padded(dv_)),
          at_(i.rows(), dk_, dv_, memory) {
        for (int r = 0; r < i_.rows(); ++r) {
            float* const row = at_.queries + r * key_stride_;
            load_row<Isa>(p_.q, head(r), token(r), row);
            std::fill(row + dk_, row + key_stride_, 0.0F);
        }
    }

    void run() noexcept { run_spans(p_, i_, *this, at_.part); }

    /// One span of one pool, from an empty state.
    void run_span(int pool_index, index_t span, std::byte* memory) noexcept {
        stream_part const part(i_.rows(), stride_, memory);
        part.clear(i_.rows(), stride_);
        pool_ref const& pool = p_.pools[pool_index];
        prepare(pool.keys);
        row_tile const rows = rows_of(p_, pool, i_);
        key_span const slots{span * span_slots, (span + 1) * span_slots};
        tile_cursor cursor;
        key_tile tile;
        auto const walk = [&] {
            index_t keys = 0;
            while (pool.visibility.next(pool.visibility.state, p_, pool_index, rows, slots, cursor, tile)) {
                visit(pool, tile, part);
                keys += tile.count;
            }
            return keys;
        };
        if (pool.visibility.shares != nullptr) { // lists of neighbours: spans do not count slots, runs are short
            how_ = {true, 0, 1, true};
            walk();
        } else {
            walk_timed(pool, extent_of(p_, pool, pool_index, i_), walk);
        }
        settle(pool.values, part);
    }

    /// total = total merged with part; an empty part changes no bit.
    void fold(std::byte* memory) noexcept {
        stream_part const part(i_.rows(), stride_, memory);
        for (int r = 0; r < i_.rows(); ++r) {
            merge_factors const m =
                merge({at_.total.max[r], at_.total.sum[r]}, softmax_state{part.max[r], part.sum[r]});
            if (part.sum[r] == 0.0F) continue;
            float* const to         = at_.total.out + r * stride_;
            float const* const from = part.out + r * stride_;
            for (index_t d = 0; d < dv_; ++d) to[d] = to[d] * m.a + from[d] * m.b;
            at_.total.max[r] = m.merged.max;
            at_.total.sum[r] = m.merged.sum;
        }
    }

    void clear_total() noexcept { at_.total.clear(i_.rows(), stride_); }

    void finish() noexcept {
        auto* const lse         = host_pointer<float>(p_.options.lse);
        auto const* const sinks = host_pointer<float const>(p_.options.sink_logits);
        for (int r = 0; r < i_.rows(); ++r) {
            softmax_state state{at_.total.max[r], at_.total.sum[r]};
            if (lse != nullptr) lse[head(r) * p_.tokens() + token(r)] = state.lse();
            float const rescale = sinks != nullptr ? state.push(sinks[head(r)]) : 1.0F;
            store_row<Isa>(p_.out, head(r), token(r), at_.total.out + r * stride_,
                           state.empty() ? 0.0F : rescale / state.sum);
        }
    }

private:
    using vector = f32<Isa>;

    /// Bytes of a key and its value.
    [[nodiscard]] index_t slot_bytes(pool_ref const& pool) const noexcept {
        return row_bytes(pool.keys, dk_) + row_bytes(pool.values, dv_);
    }

    /// Walks a span in the way that is to be tried.
    template <class Walk>
    void walk_timed(pool_ref const& pool, key_span const& seen, Walk const& walk) noexcept {
        read_probe::trial const trial = reads.next((seen.end - seen.first) * p_.kv_heads * slot_bytes(pool));
        how_                          = trial.how();
        double const start            = trial.timed ? nanoseconds() : 0.0;
        auto const bytes              = static_cast<float>(walk() * slot_bytes(pool));
        if (trial.timed && bytes > 0.0F) reads.tell(trial, static_cast<float>(nanoseconds() - start) / bytes);
    }

    [[nodiscard]] index_t token(int row) const noexcept { return i_.first + row / i_.heads; }
    [[nodiscard]] index_t head(int row) const noexcept { return i_.head + row % i_.heads; }

    /// A tile for all rows at once where all see the same keys, otherwise for those that do: the rows of a token, or
    /// one row where a mask differs from head to head. Only keys that are seen are ever read.
    void visit(pool_ref const& pool, key_tile const& tile, stream_part const& part) noexcept {
        std::uint64_t const felt  = detail::bit_range(0, tile.count) & ~weightless_keys(pool, tile);
        additive_mask const& mask = p_.options.mask;
        if (tile.bits == nullptr && !mask.data) return visit(pool, tile, felt, 0, i_.rows(), part);
        int const alike = mask.data && (mask.heads != 1 || mask.slopes) ? 1 : i_.heads;
        for (int r = 0; r < i_.rows(); r += alike) {
            std::uint64_t seen = tile.bits == nullptr ? felt : felt & tile.bits[r / i_.heads];
            if (mask.data) {
                float values[tile_slots];
                load_mask<Isa>(p_, head(r), token(r), tile, values);
                for (int j = 0; j < tile.count; ++j)
                    if (values[j] == minus_infinity) seen &= ~(std::uint64_t{1} << j);
            }
            visit(pool, tile, seen, r, alike, part);
        }
    }

    /// Queries as the keys' codec wants them, unless they are, and what the mean of keys that are read in place adds to
    /// logits.
    void prepare(storage_ref const& keys) noexcept {
        simd_codec_ops const& ops = ops_of(keys);
        float const* const mean   = ops.score != nullptr ? host::mean_of(keys, i_.kv_head) : nullptr;
        for (int r = 0; mean != nullptr && r < i_.rows(); ++r) {
            float const* const query = at_.queries + r * key_stride_;
            at_.lift[r]              = p_.options.scale * std::inner_product(mean, mean + dk_, query, 0.0F);
        }
        if (ops.prepare == nullptr || (prepared_ == &ops && prepared_for_ == keys.codec_state)) return;
        stream_queries const q{at_.queries, key_stride_, i_.rows()};
        ops.prepare(keys.codec_state, q, dk_, at_.packed);
        prepared_     = &ops;
        prepared_for_ = keys.codec_state;
    }

    /// Sums of a span in the order and basis of rows, their mean added.
    void settle(storage_ref const& values, stream_part const& part) noexcept {
        simd_codec_ops const& ops = ops_of(values);
        if (ops.accumulate == nullptr) return; // they were decoded
        if (ops.settle != nullptr) ops.settle(values.codec_state, part.out, i_.rows(), dv_, stride_);
        float const* const mean = host::mean_of(values, i_.kv_head);
        for (int r = 0; mean != nullptr && r < i_.rows(); ++r)
            for (index_t d = 0; d < dv_; ++d) part.out[r * stride_ + d] += part.sum[r] * mean[d];
    }

    /// Keys `seen` of a tile for the rows [first_row, first_row + rows).
    void visit(pool_ref const& pool,
               key_tile const& tile,
               std::uint64_t seen,
               int first_row,
               int rows,
               stream_part const& part) noexcept {
        if (seen == 0) return;
        static constexpr auto every = [] {
            std::array<int, tile_slots> all{};
            for (int j = 0; j < tile_slots; ++j) all[static_cast<std::size_t>(j)] = j;
            return all;
        }();
        std::byte const* in_tile[tile_slots];
        std::byte const* values[tile_slots];
        gather_rows(pool.keys, i_.kv_head, tile, in_tile);
        gather_rows(pool.values, i_.kv_head, tile, values);

        // The visible keys, ascending; the usual ones are the first of the tile.
        int listed[tile_slots];
        std::byte const *keys_seen[tile_slots], *values_seen[tile_slots];
        int const count               = std::popcount(seen);
        bool const first_ones         = seen == detail::bit_range(0, count);
        int const* keys               = every.data();
        std::byte const* const* shown = in_tile;
        if (!first_ones) {
            int k = 0;
            for (std::uint64_t left = seen; left != 0; left &= left - 1, ++k) {
                listed[k]      = std::countr_zero(left);
                keys_seen[k]   = in_tile[listed[k]];
                values_seen[k] = values[listed[k]];
            }
            keys  = listed;
            shown = keys_seen;
        }

        // Scores of the visible keys, then spread to where they stand in the tile. Values are fetched meanwhile, and
        // while they are summed the keys where a run goes on.
        index_t const skip  = tile.slots == nullptr && !pool.keys.pages ? tile.count * pool.keys.slot_stride : 0;
        float* const scores = at_.scores + first_row * tile_slots;
        std::byte const* turned[tile_slots];
        rows_ahead const after{in_turns(first_ones ? values : values_seen, count, turned), how_.ahead ? count : 0,
                               row_bytes(pool.values, dv_), 0, how_.lead};
        score(pool.keys, {shown, count, dk_, after, pool.keys.codec_state}, first_row, rows, scores);
        if (first_ones)
            for (int r = 0; r < rows; ++r)
                std::fill(scores + r * tile_slots + count, scores + (r + 1) * tile_slots, minus_infinity);
        else
            spread(scores, rows, keys, count);
        adjust(pool, tile, seen, first_row, rows);
        soften(first_row, rows, part);
        rows_ahead const next{in_turns(in_tile, tile.count, turned),
                              skip != 0 && how_.ahead ? tile.count : 0,
                              row_bytes(pool.keys, dk_),
                              skip,
                              how_.lead,
                              how_.in_order};
        accumulate(pool.values, values, {values, keys, count, dv_, next, pool.values.codec_state}, first_row, rows,
                   part);
    }

    /// Rows in the order in which they are to be fetched.
    [[nodiscard]] std::byte const* const*
    in_turns(std::byte const* const* rows, int count, std::byte const** turned) const noexcept {
        if (how_.streams == 1 || count != tile_slots) return rows;
        for (int k = 0; k < tile_slots; ++k) turned[k] = rows[how_.turn(k)];
        return turned;
    }

    void score(storage_ref const& s, key_rows k, int first_row, int query_rows, float* scores) noexcept {
        simd_codec_ops const& ops = ops_of(s);
        stream_queries const q{at_.queries + first_row * key_stride_, key_stride_, query_rows, p_.options.scale,
                               at_.packed + 4 * first_row * key_stride_};
        if (ops.score != nullptr) {
            ops.score(k, q, scores);
            for (int r = 0; s.mean && r < query_rows; ++r)
                for (int j = 0; j < k.count; ++j) scores[r * tile_slots + j] += at_.lift[first_row + r];
            return;
        }
        host::load_rows(s, i_.kv_head, k.rows, k.count, at_.decoded, key_stride_);
        std::byte const* decoded[tile_slots];
        for (int i = 0; i < k.count; ++i)
            decoded[i] = reinterpret_cast<std::byte const*>(at_.decoded + i * key_stride_);
        score_raw<Isa, float>({decoded, k.count, dk_}, q, scores);
    }

    void accumulate(storage_ref const& s,
                    std::byte const** rows,
                    value_rows const& v,
                    int first_row,
                    int query_rows,
                    stream_part const& part) noexcept {
        simd_codec_ops const& ops  = ops_of(s);
        float const* const weights = at_.scores + first_row * tile_slots;
        float* const out           = part.out + first_row * stride_;
        if (ops.accumulate != nullptr) return ops.accumulate(v, weights, query_rows, out, stride_);
        std::byte const* listed[tile_slots];
        for (int k = 0; k < v.count; ++k) listed[k] = rows[v.keys[k]];
        host::load_rows(s, i_.kv_head, listed, v.count, at_.decoded, stride_);
        for (int k = 0; k < v.count; ++k)
            rows[v.keys[k]] = reinterpret_cast<std::byte const*>(at_.decoded + k * stride_);
        accumulate_raw<Isa, float>({rows, v.keys, v.count, dv_}, weights, query_rows, out, stride_);
    }

    /// scores[r][k] -> scores[r][keys[k]], hidden keys -inf. Backwards, since keys[k] >= k.
    static void spread(float* scores, int rows, int const* keys, int count) noexcept {
        for (int r = 0; r < rows; ++r) {
            float* const row = scores + r * tile_slots;
            int end          = tile_slots;
            for (int k = count - 1; k >= 0; --k) {
                float const score = row[k];
                std::fill(row + keys[k] + 1, row + end, minus_infinity);
                end          = keys[k];
                row[keys[k]] = score;
            }
            std::fill(row, row + end, minus_infinity);
        }
    }

    // Soft cap, per-key bias, ALiBi and mask: the logit order of host/logits.hpp.
    void adjust(pool_ref const& pool, key_tile const& tile, std::uint64_t seen, int first_row, int rows) noexcept {
        bool const biased = static_cast<bool>(pool.log_weights) || tile.bias != nullptr || has_row_bias(p_);
        float const cap   = p_.options.soft_cap;
        if (!biased && cap <= 0.0F) return;
        for (int r = first_row; r < first_row + rows; ++r)
            for (std::uint64_t left = seen; left != 0; left &= left - 1) {
                int const j  = std::countr_zero(left);
                float& score = at_.scores[r * tile_slots + j];
                score        = host::soft_capped(score, cap);
                if (biased) score += host::key_bias(pool, tile, j);
                if (biased) score += host::row_bias(p_, pool, head(r), token(r), tile.slot(j));
            }
    }

    // Online softmax; lanes are slots of the tile, so that a key's lane never depends on the call.
    void soften(int first_row, int rows, stream_part const& part) noexcept {
        constexpr int vectors = tile_slots / lanes<Isa>;
        for (int r = first_row; r < first_row + rows; ++r) {
            float* const scores = at_.scores + r * tile_slots;
            vector score[vectors];
#pragma GCC unroll 16
            for (int j = 0; j < vectors; ++j) score[j] = load_as<Isa>(scores + j * lanes<Isa>);
            vector top = score[0];
#pragma GCC unroll 16
            for (int j = 1; j < vectors; ++j) top = xsimd::max(top, score[j]);
            float const largest = std::max(part.max[r], horizontal_max(top));
            float const base    = largest == minus_infinity ? 0.0F : largest;
            vector added(0.0F);
#pragma GCC unroll 16
            for (int j = 0; j < vectors; ++j) {
                vector const weight = exp(score[j] - vector(base));
                weight.store_unaligned(scores + j * lanes<Isa>);
                added = added + weight;
            }
            if (largest != part.max[r] && part.sum[r] != 0.0F) {
                float const factor = std::exp(part.max[r] - base);
                part.sum[r] *= factor;
                float* const out = part.out + r * stride_;
                for (index_t d = 0; d < stride_; d += lanes<Isa>)
                    (load_as<Isa>(out + d) * vector(factor)).store_unaligned(out + d);
            }
            part.sum[r] += horizontal_sum(added);
            part.max[r] = largest;
        }
    }

    problem const& p_;
    item const i_;
    index_t const dk_;
    index_t const dv_;
    index_t const key_stride_;
    index_t const stride_;
    stream_scratch<Isa> at_;
    read_pattern how_{};
    simd_codec_ops const* prepared_ = nullptr; // whose queries `packed` holds
    void const* prepared_for_       = nullptr; // and of which codec
};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
