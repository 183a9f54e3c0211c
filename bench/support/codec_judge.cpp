// SPDX-License-Identifier: MIT
#include "codec_judge.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>

namespace bench {
namespace {

using row_major     = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using row_major_f32 = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr index_t block_positions = 8; // judged together, for all heads of a group

Eigen::Map<row_major_f32 const> head_of(bf::heads_buffer<float> const& t, index_t head) {
    bf::heads_shape const s = t.shape();
    return {t.values().data() + head * s.tokens * s.head_dim, s.tokens, s.head_dim};
}

/// Positions of a block and the queries of one group there.
struct block {
    index_t kv_head, first, count, group;

    [[nodiscard]] index_t rows() const noexcept { return count * group; }
    [[nodiscard]] index_t head(index_t row) const noexcept { return kv_head * group + row / count; }
    [[nodiscard]] std::size_t position(index_t row) const noexcept {
        return static_cast<std::size_t>(first + row % count);
    }
};

/// The blocks of all heads of keys, one after the other.
struct blocks {
    index_t kv_heads, group, positions;

    explicit blocks(qkv const& in, std::size_t at)
        : kv_heads(in.k.shape().heads), group(in.q.shape().heads / kv_heads), positions(static_cast<index_t>(at)) {}

    [[nodiscard]] index_t per_head() const noexcept { return (positions + block_positions - 1) / block_positions; }
    [[nodiscard]] index_t count() const noexcept { return kv_heads * per_head(); }
    [[nodiscard]] block at(index_t item) const noexcept {
        index_t const first = item % per_head() * block_positions;
        return {item / per_head(), first, std::min(block_positions, positions - first), group};
    }
};

/// Logits of a block's queries over keys [0, last position of the block].
row_major
scores_of(qkv const& in, std::vector<index_t> const& at, block const& b, bf::heads_buffer<float> const& keys) {
    index_t const seen  = at[static_cast<std::size_t>(b.first + b.count - 1)] + 1;
    index_t const width = in.q.shape().head_dim;
    row_major q(b.rows(), width);
    for (index_t r = 0; r < b.rows(); ++r) q.row(r) = head_of(in.q, b.head(r)).row(at[b.position(r)]).cast<double>();
    return q * head_of(keys, b.kv_head).topRows(seen).cast<double>().transpose() /
           std::sqrt(static_cast<double>(width));
}

/// Sums over queries from which a verdict is made.
struct sums {
    double kl = 0, same = 0, miss = 0, all = 0;
};

} // namespace

index_t exact_rows::first_recent(index_t t) const noexcept {
    return window == 0 ? t + 1 : std::max<index_t>(0, t - window + 1) / block_size * block_size;
}

index_t exact_rows::count(index_t t) const noexcept {
    if (window == 0) return 0;
    index_t const recent = first_recent(t);
    return t + 1 - recent + std::min(sinks, recent);
}

double mean_exact_share(exact_rows const& exact, index_t tokens) noexcept {
    double sum = 0;
    for (index_t t = 0; t < tokens; ++t) sum += static_cast<double>(exact.count(t)) / static_cast<double>(t + 1);
    return sum / static_cast<double>(tokens);
}

codec_judge::codec_judge(qkv const& in, std::vector<index_t> positions, bf::executor const& threads)
    : in_(in), positions_(std::move(positions)), threads_(threads),
      truths_(static_cast<std::size_t>(in.q.shape().heads) * positions_.size()) {
    blocks const all(in_, positions_.size());
    threads_.each(all.count(), [&](index_t item, int) noexcept {
        block const b          = all.at(item);
        row_major const scores = scores_of(in_, positions_, b, in_.k);
        row_major const v      = head_of(in_.v, b.kv_head).topRows(scores.cols()).cast<double>();
        for (index_t r = 0; r < b.rows(); ++r) {
            index_t const seen = positions_[b.position(r)] + 1;
            truth& to          = truths_[static_cast<std::size_t>(b.head(r)) * positions_.size() + b.position(r)];
            auto const row     = scores.row(r).head(seen);
            to.scores.assign(row.begin(), row.end());
            double const most            = row.maxCoeff(&to.first);
            to.lse                       = most + std::log((row.array() - most).exp().sum());
            Eigen::RowVectorXd const out = (row.array() - to.lse).exp().matrix() * v.topRows(seen);
            to.out.assign(out.begin(), out.end());
        }
    });
}

codec_verdict codec_judge::compare(bf::heads_buffer<float> const* keys,
                                   bf::heads_buffer<float> const* values,
                                   exact_rows const& exact) const {
    blocks const all(in_, positions_.size());
    std::vector<sums> parts(static_cast<std::size_t>(all.count()));
    threads_.each(all.count(), [&](index_t item, int) noexcept {
        block const b         = all.at(item);
        sums& to              = parts[static_cast<std::size_t>(item)];
        row_major scores      = scores_of(in_, positions_, b, keys != nullptr ? *keys : in_.k);
        row_major const plain = head_of(in_.v, b.kv_head).topRows(scores.cols()).cast<double>();
        row_major const v =
            values != nullptr ? row_major(head_of(*values, b.kv_head).topRows(scores.cols()).cast<double>()) : plain;
        for (index_t r = 0; r < b.rows(); ++r) {
            index_t const t      = positions_[b.position(r)];
            truth const& is      = truths_[static_cast<std::size_t>(b.head(r)) * positions_.size() + b.position(r)];
            index_t const recent = exact.first_recent(t), sinks = std::min(exact.sinks, recent);
            auto row = scores.row(r).head(t + 1);
            Eigen::Map<Eigen::RowVectorXd const> const want(is.scores.data(), t + 1);
            row.head(sinks)          = want.head(sinks);
            row.tail(t + 1 - recent) = want.tail(t + 1 - recent);

            index_t first     = 0;
            double const most = row.maxCoeff(&first);
            double const lse  = most + std::log((row.array() - most).exp().sum());
            to.kl += ((want.array() - is.lse).exp() * (want - row).array()).sum() + lse - is.lse;
            to.same += first == is.first ? 1 : 0;

            Eigen::RowVectorXd const p = (row.array() - lse).exp();
            Eigen::RowVectorXd out     = p * v.topRows(t + 1);
            if (exact.values) {
                out += p.head(sinks) * (plain - v).topRows(sinks);
                out += p.tail(t + 1 - recent) * (plain - v).middleRows(recent, t + 1 - recent);
            }
            Eigen::Map<Eigen::RowVectorXd const> const truth_out(is.out.data(), out.size());
            to.miss += (out - truth_out).squaredNorm();
            to.all += truth_out.squaredNorm();
        }
    });
    sums total;
    for (sums const& s : parts) total.kl += s.kl, total.same += s.same, total.miss += s.miss, total.all += s.all;
    auto const queries = static_cast<double>(truths_.size());
    return {total.kl / queries, total.same / queries, std::sqrt(total.miss / total.all)};
}

double codec_judge::error_of(bf::heads_buffer<float> const& out) const {
    double miss = 0, all = 0;
    for (std::size_t i = 0; i < truths_.size(); ++i) {
        auto const row =
            out.view().row(static_cast<index_t>(i / positions_.size()), static_cast<index_t>(i % positions_.size()));
        for (std::size_t d = 0; d < row.size(); ++d) {
            double const want = truths_[i].out[d];
            miss += (static_cast<double>(row[d]) - want) * (static_cast<double>(row[d]) - want);
            all += want * want;
        }
    }
    return std::sqrt(miss / all);
}

double codec_judge::mass_on_last(index_t head, index_t tokens) const {
    double sum = 0;
    for (std::size_t i = 0; i < positions_.size(); ++i) {
        truth const& is = truths_[static_cast<std::size_t>(head) * positions_.size() + i];
        auto const from = static_cast<std::ptrdiff_t>(is.scores.size()) - tokens;
        std::size_t j   = static_cast<std::size_t>(std::max<std::ptrdiff_t>(from, 0));
        for (; j < is.scores.size(); ++j) sum += std::exp(is.scores[j] - is.lse);
    }
    return sum / static_cast<double>(positions_.size());
}

} // namespace bench
