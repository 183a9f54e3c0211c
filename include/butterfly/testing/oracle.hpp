// SPDX-License-Identifier: MIT
#pragma once

// The definition of attention in double precision. Slow on purpose.
//
// Two forms: `masked_attention` on matrices, and `evaluate`, which answers whatever the front door can ask. Whether a
// query sees a key is decided here one pair at a time, from what a visibility says of itself (visibility_description)
// and never from its walk over tiles, so that a wrong walk and a wrong oracle are two separate mistakes. `oracle` is
// the same as a policy: any front-door call takes it in the place of a backend.

#include <butterfly/backend/host/cache_ops.hpp>
#include <butterfly/backend/host/codec_ops.hpp>
#include <butterfly/backend/host/rows.hpp>
#include <butterfly/backend/host/shift_ops.hpp>
#include <butterfly/backend/host/workspace.hpp>
#include <butterfly/backend/policy.hpp>
#include <butterfly/sdpa/attend.hpp>
#include <butterfly/testing/sees.hpp>

// GCC 12's AVX-512 header warns about itself wherever Eigen inlines it.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace butterfly::testing {

/// out = softmax(scale * Q K^T, over visible keys) V. A row with no visible key is zero.
[[nodiscard]] inline Eigen::MatrixXd masked_attention(Eigen::MatrixXd const& q, // [tokens, head_dim]
                                                      Eigen::MatrixXd const& k, // [keys, head_dim]
                                                      Eigen::MatrixXd const& v, // [keys, value head_dim]
                                                      Eigen::Array<bool, -1, -1> const& visible, // [tokens, keys]
                                                      double scale) {
    Eigen::MatrixXd out          = Eigen::MatrixXd::Zero(q.rows(), v.cols());
    Eigen::MatrixXd const scores = scale * q * k.transpose();
    for (Eigen::Index t = 0; t < q.rows(); ++t) {
        if (!visible.row(t).any()) continue;
        Eigen::ArrayXd const hidden = Eigen::ArrayXd::Constant(k.rows(), -std::numeric_limits<double>::infinity());
        Eigen::ArrayXd const s      = visible.row(t).transpose().select(scores.row(t).transpose().array(), hidden);
        Eigen::ArrayXd const w      = (s - s.maxCoeff()).exp();
        out.row(t)                  = (w.matrix().transpose() * v) / w.sum();
    }
    return out;
}

/// What `evaluate` finds, with what a comparison needs to know how exact a result can be.
struct attention {
    heads_shape shape{};               // of the output
    std::vector<double> out{};         // [heads, tokens, value head_dim]
    std::vector<double> lse{};         // [heads, tokens], -inf where no key is visible
    std::vector<double> spread{};      // like out: sum_j w_j |v_j|, what rounding errors are relative to
    std::vector<double> logit_size{};  // like lse: the largest sum of the magnitudes that make a logit, or the sink
    std::vector<index_t> keys{};       // like lse: visible keys
    std::vector<double> rounded{};     // like out: what rounding queries to bf16 may move it by, where keys are bf16
    std::vector<double> rounded_lse{}; // like lse: the same of the lse
    index_t key_dim      = 0;          // products in a dot product
    element_type storage = element_type::f32; // the coarsest type keys or values are kept in

    [[nodiscard]] std::size_t at(index_t head, index_t token) const noexcept {
        return static_cast<std::size_t>(head * shape.tokens + token);
    }
    [[nodiscard]] std::size_t at(index_t head, index_t token, index_t channel) const noexcept {
        return static_cast<std::size_t>((head * shape.tokens + token) * shape.head_dim + channel);
    }
};

/// The definition as a policy of the host. Problems for `evaluate` must be bound with it.
struct oracle {
    butterfly::executor executor{};

    [[nodiscard]] static std::string name() { return "oracle"; }
    [[nodiscard]] static bool available() noexcept { return true; }
};

static_assert(backend::host_policy<oracle>);

namespace detail {

template <quant::decoder Codec>
inline constexpr backend::on_host::codec_ops oracle_codec_ops{&backend::on_host::decode_rows<Codec>};

/// Rows of one head of a storage as doubles, each decoded when it is first asked for.
class decoded_rows {
public:
    decoded_rows(storage_ref const& s, index_t head, index_t slots)
        : storage_(&s), head_(head), rows_(static_cast<std::size_t>(slots)) {}

    Eigen::VectorXd const& operator[](index_t slot) {
        Eigen::VectorXd& row = rows_[static_cast<std::size_t>(slot)];
        if (row.size() == 0) {
            Eigen::VectorXf values(storage_->shape.head_dim);
            std::byte const* const packed = backend::on_host::row_address(*storage_, head_, slot);
            auto const* const ops         = static_cast<backend::on_host::codec_ops const*>(storage_->ops);
            ops->decode(storage_->codec_state, &packed, 1, values.size(), values.data(), values.size());
            row                     = values.cast<double>();
            float const* const mean = backend::on_host::mean_of(*storage_, head_);
            for (Eigen::Index d = 0; mean != nullptr && d < row.size(); ++d) row[d] += mean[d];
        }
        return row;
    }

private:
    storage_ref const* storage_;
    index_t head_;
    std::vector<Eigen::VectorXd> rows_;
};

/// A plain loop: g++ 12 warns of Eigen's AVX-512 reductions.
[[nodiscard]] inline double dot(Eigen::VectorXd const& a, Eigen::VectorXd const& b, bool magnitudes = false) {
    double sum = 0.0;
    for (Eigen::Index i = 0; i < a.size(); ++i) sum += magnitudes ? std::abs(a[i] * b[i]) : a[i] * b[i];
    return sum;
}

/// What each element of a query loses where it is rounded to bf16 and subnormals are zero, in magnitude.
[[nodiscard]] inline Eigen::VectorXd lost_in_bf16(Eigen::VectorXf const& query) {
    Eigen::VectorXd lost(query.size());
    for (Eigen::Index i = 0; i < query.size(); ++i) {
        float kept = bfloat16(query[i]);
        if (std::abs(kept) < 0x1p-126F) kept = 0.0F;
        lost[i] = std::isfinite(kept) ? std::abs(static_cast<double>(query[i]) - kept) : 0.0;
    }
    return lost;
}

/// One visible key of a row.
struct seen_key {
    double logit;
    double moves; // how far rounding the query to bf16 may move the logit; 0: it is not rounded
    Eigen::VectorXd const* value;
};

/// How far a row may move where each logit l_j moves by m_j <= moves: with D = ln(sum_j w_j e^m_j) no weight changes by
/// more than w_j (e^(m_j + D) - 1), and the changes add up to zero, so that
///
///   |out' - out| <= sum_j w_j (e^(m_j + D) - 1) |v_j - out|,      |lse' - lse| <= D without the sink
inline void move_row(
    std::vector<seen_key> const& seen, double highest, double total, index_t head, index_t token, attention& result) {
    double moved = 0.0, keys = 0.0;
    for (seen_key const& key : seen) {
        double const weight = std::exp(key.logit - highest) / total;
        moved += weight * std::expm1(key.moves);
        keys += weight;
    }
    if (moved == 0.0) return;
    result.rounded_lse[result.at(head, token)] = std::log1p(moved / keys);
    double const all                           = std::log1p(moved); // the sink does not move
    for (index_t d = 0; d < result.shape.head_dim; ++d) {
        double const out = result.out[result.at(head, token, d)];
        double sum       = (1.0 - std::min(keys, 1.0)) * std::expm1(all) * std::abs(out); // the sink's value is zero
        for (seen_key const& key : seen)
            sum +=
                std::exp(key.logit - highest) / total * std::expm1(key.moves + all) * std::abs((*key.value)[d] - out);
        result.rounded[result.at(head, token, d)] = sum;
    }
}

/// Softmax and weighted sum of one row; `result` is zero and -inf where it stands.
inline void
finish_row(std::vector<seen_key> const& seen, double const* sink, index_t head, index_t token, attention& result) {
    if (seen.empty()) return;
    index_t const dv = result.shape.head_dim;
    double top       = -std::numeric_limits<double>::infinity();
    bool broken      = false;
    for (seen_key const& key : seen) {
        broken |= std::isnan(key.logit) || key.logit == std::numeric_limits<double>::infinity();
        top = std::max(top, key.logit);
    }
    if (broken) {
        result.lse[result.at(head, token)] = std::numeric_limits<double>::quiet_NaN();
        for (index_t d = 0; d < dv; ++d)
            result.out[result.at(head, token, d)] = std::numeric_limits<double>::quiet_NaN();
        return;
    }
    double sum = 0.0;
    for (seen_key const& key : seen) sum += std::exp(key.logit - top);
    result.lse[result.at(head, token)] = top + std::log(sum);

    double const highest      = sink != nullptr ? std::max(top, *sink) : top;
    double const total        = sum * std::exp(top - highest) + (sink != nullptr ? std::exp(*sink - highest) : 0.0);
    Eigen::VectorXd out       = Eigen::VectorXd::Zero(dv);
    Eigen::VectorXd magnitude = Eigen::VectorXd::Zero(dv);
    for (seen_key const& key : seen) {
        double const weight = std::exp(key.logit - highest) / total;
        out += weight * *key.value;
        magnitude += weight * key.value->cwiseAbs();
    }
    for (index_t d = 0; d < dv; ++d) {
        result.out[result.at(head, token, d)]    = out[d];
        result.spread[result.at(head, token, d)] = magnitude[d];
    }
    move_row(seen, highest, total, head, token, result);
}

} // namespace detail

/// Attention as sdpa/attend.hpp defines it, of a problem bound with `oracle` whose memory is the host's.
[[nodiscard]] inline attention evaluate(problem const& p) {
    index_t const dk        = p.q.shape.head_dim;
    index_t const dv        = p.out.shape.head_dim;
    attend_options const& o = p.options;
    auto const rows         = static_cast<std::size_t>(p.heads() * p.tokens());
    attention result{.shape = {p.heads(), p.tokens(), dv}, .key_dim = dk};
    result.out.assign(rows * static_cast<std::size_t>(dv), 0.0);
    result.spread = result.rounded = result.out;
    result.rounded_lse.assign(rows, 0.0);
    result.lse.assign(rows, -std::numeric_limits<double>::infinity());
    result.logit_size.assign(rows, 0.0);
    result.keys.assign(rows, 0);
    for (int i = 0; i < p.pool_count; ++i)
        for (codec_id const id : {p.pools[i].keys.codec, p.pools[i].values.codec}) {
            if (id == codec_id::raw_bf16) result.storage = element_type::bf16;
            if (id == codec_id::raw_f16 && result.storage == element_type::f32) result.storage = element_type::f16;
        }

    auto const* const sinks  = host_pointer<float const>(o.sink_logits);
    auto const* const slopes = host_pointer<float const>(o.alibi_slopes);
    std::vector<detail::decoded_rows> keys;
    std::vector<detail::decoded_rows> values;
    Eigen::VectorXf query(dk);
    for (index_t head = 0; head < p.heads(); ++head) {
        if (head % p.group() == 0) {
            keys.clear();
            values.clear();
            for (int i = 0; i < p.pool_count; ++i) {
                index_t const slots = last_slot(p, p.pools[i]);
                keys.emplace_back(p.pools[i].keys, head / p.group(), slots);
                values.emplace_back(p.pools[i].values, head / p.group(), slots);
            }
        }
        for (index_t token = 0; token < p.tokens(); ++token) {
            backend::on_host::load_row(p.q, head, token, query.data());
            Eigen::VectorXd const q    = query.cast<double>();
            Eigen::VectorXd const lost = detail::lost_in_bf16(query);
            index_t const position     = query_position(p, token);
            std::vector<detail::seen_key> seen;
            double& sizes = result.logit_size[result.at(head, token)];
            for (int i = 0; i < p.pool_count; ++i) {
                pool_ref const& pool      = p.pools[i];
                auto const at             = static_cast<std::size_t>(i);
                auto const* const weights = host_pointer<float const>(pool.log_weights);
                auto const* const placed  = host_pointer<std::int32_t const>(pool.key_positions);
                index_t const row_head    = backend::on_host::row_head(p, pool, head);
                index_t const end         = last_slot(p, pool);
                for (index_t slot = 0; slot < end; ++slot) {
                    std::optional<double> const edge = sees(p, pool, row_head, position, slot);
                    if (!edge) continue;
                    double const alibi =
                        slopes != nullptr
                            ? slopes[head] * static_cast<double>((placed != nullptr ? placed[slot] : slot) - position)
                            : 0.0;
                    double const weight = weights != nullptr ? weights[slot] : 0.0;
                    double const mask   = mask_of(p, head, token, slot);
                    double const bias   = weight + *edge + alibi + mask;
                    if (bias == -std::numeric_limits<double>::infinity()) continue;

                    Eigen::VectorXd const& key = keys[at][slot];
                    double s                   = static_cast<double>(o.scale) * detail::dot(q, key);
                    if (o.soft_cap > 0.0F) s = o.soft_cap * std::tanh(s / o.soft_cap);
                    s += bias;
                    if (s == -std::numeric_limits<double>::infinity()) continue;
                    double const products = std::abs(o.scale) * detail::dot(q, key, true);
                    double const size =
                        products + std::abs(weight) + std::abs(*edge) + std::abs(alibi) + std::abs(mask);
                    sizes                = std::max(sizes, size);
                    bool const may_round = pool.keys.codec == codec_id::raw_bf16;
                    double const moves   = may_round ? std::abs(o.scale) * detail::dot(lost, key, true) : 0.0;
                    seen.push_back({s, moves, &values[at][slot]});
                }
            }
            result.keys[result.at(head, token)] = static_cast<index_t>(seen.size());
            double const sink                   = sinks != nullptr ? sinks[head] : 0.0;
            sizes                               = std::max(sizes, std::abs(sink));
            detail::finish_row(seen, sinks != nullptr ? &sink : nullptr, head, token, result);
        }
    }
    return result;
}

/// The definition of the call attend(policy, q, out, options, pools...), whose output is not written.
template <tensor_view Q, tensor_view O, class... K, class... V, class... Visibility>
[[nodiscard]] attention
evaluate(Q const& q, O const& out, attend_options const& options, pool<K, V, Visibility> const&... pools) {
    auto const bound = butterfly::make_problem(oracle{}, q, out, options, pools...);
    return evaluate(bound.problem());
}

template <quant::decoder Codec>
[[nodiscard]] bound_codec bind_codec(oracle const&, Codec const&) noexcept {
    return {&detail::oracle_codec_ops<Codec>, "oracle"};
}

/// Declines visibilities of kinds it has no definition of, and problems bound with another policy.
[[nodiscard]] inline support supports(oracle const&, problem const& p) {
    if (std::string const reason = backend::on_host::wrong_owner(p, "oracle"); !reason.empty()) return {false, reason};
    for (int i = 0; i < p.pool_count; ++i)
        if (p.pools[i].visibility.description.kind == visibility_kind::custom)
            return {false, "oracle: no definition of a custom visibility"};
    return {};
}

[[nodiscard]] inline std::string explain(oracle const& policy, problem const& p) {
    support const s = supports(policy, p);
    return s ? "oracle: the definition in double precision" : "declined: " + s.reason;
}

[[nodiscard]] inline index_t workspace_bytes(oracle const&, std::span<problem const>) noexcept {
    return 0;
}

/// Writes the definition, rounded to the output's type.
inline void run(oracle const& policy, std::span<problem const> problems) {
    if (!policy.executor.first()) return policy.executor.wait();
    for (problem const& p : problems) {
        attention const result = evaluate(p);
        Eigen::VectorXf row(result.shape.head_dim);
        for (index_t head = 0; head < p.heads(); ++head)
            for (index_t token = 0; token < p.tokens(); ++token) {
                for (index_t d = 0; d < row.size(); ++d)
                    row[d] = static_cast<float>(result.out[result.at(head, token, d)]);
                backend::on_host::store_row(p.out, head, token, row.data(), 1.0F);
                if (auto* const lse = host_pointer<float>(p.options.lse))
                    lse[result.at(head, token)] = static_cast<float>(result.lse[result.at(head, token)]);
            }
    }
    policy.executor.wait();
}

// A cache's own work is the host's, whatever attends it.
using backend::copy_bytes;
using backend::shift_cache;
using backend::update_cache;
using backend::workspace_bytes;

} // namespace butterfly::testing
