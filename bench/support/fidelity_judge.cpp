// SPDX-License-Identifier: MIT
#include "fidelity_judge.hpp"

#include <Eigen/Core>

#include <numeric>

namespace bench {
namespace {

using row_major     = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using row_major_f32 = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr index_t block_rows = 32;

/// Sums over rows from which a verdict is made.
struct sums {
    double miss = 0, dense = 0, out = 0, dot = 0, row_cosine = 0, walk_miss = 0, walk = 0;
    double exact = 0, summary = 0, keys = 0, summaries = 0;
    index_t most_keys = 0;

    void add_output(Eigen::VectorXd const& got, Eigen::VectorXd const& want) {
        miss += (got - want).squaredNorm();
        dense += want.squaredNorm();
        out += got.squaredNorm();
        dot += got.dot(want);
        double const size = std::sqrt(got.squaredNorm() * want.squaredNorm());
        row_cosine += size > 0 ? got.dot(want) / size : 0;
    }

    void operator+=(sums const& o) {
        miss += o.miss, dense += o.dense, out += o.out, dot += o.dot, row_cosine += o.row_cosine;
        walk_miss += o.walk_miss, walk += o.walk, exact += o.exact, summary += o.summary, keys += o.keys,
            summaries += o.summaries;
        most_keys = std::max(most_keys, o.most_keys);
    }
};

/// Everything in double.
struct wide_inputs {
    std::vector<row_major> q, k, v; // by head
    index_t group;

    explicit wide_inputs(qkv const& in) : group(in.q.shape().heads / in.k.shape().heads) {
        auto const widen = [](bf::heads_buffer<float> const& from, std::vector<row_major>& to) {
            bf::heads_shape const s = from.shape();
            for (index_t h = 0; h < s.heads; ++h)
                to.push_back(Eigen::Map<row_major_f32 const>(from.values().data() + h * s.tokens * s.head_dim, s.tokens,
                                                             s.head_dim)
                                 .cast<double>());
        };
        widen(in.q, q);
        widen(in.k, k);
        widen(in.v, v);
    }
};

/// One block of rows: where it writes, and the dense weights of its rows.
struct rows_of_head {
    index_t head, first, count;
    row_major weights; // [count, keys]
};

/// Dense weights of the chosen queries [first, first + count) of a head.
rows_of_head dense_rows(wide_inputs const& in, std::vector<index_t> const& at, index_t head, index_t first) {
    index_t const count = std::min<index_t>(block_rows, static_cast<index_t>(at.size()) - first);
    index_t const keys  = at[static_cast<std::size_t>(first + count - 1)] + 1;
    auto const h        = static_cast<std::size_t>(head);
    row_major const& k  = in.k[h / static_cast<std::size_t>(in.group)];
    row_major q(count, k.cols());
    for (index_t i = 0; i < count; ++i) q.row(i) = in.q[h].row(at[static_cast<std::size_t>(first + i)]);
    rows_of_head rows{head, first, count, row_major(count, keys)};
    rows.weights.noalias() = q * k.topRows(keys).transpose() / std::sqrt(static_cast<double>(k.cols()));
    for (index_t i = 0; i < count; ++i) {
        index_t const seen = at[static_cast<std::size_t>(first + i)] + 1;
        auto row           = rows.weights.row(i);
        row.head(seen)     = (row.head(seen).array() - row.head(seen).maxCoeff()).exp();
        row.head(seen) /= row.head(seen).sum();
        row.tail(keys - seen).setZero();
    }
    return rows;
}

Eigen::VectorXd row_of(bf::heads_buffer<float> const& t, index_t head, index_t query) {
    auto const row = t.view().row(head, query);
    return Eigen::Map<Eigen::VectorXf const>(row.data(), static_cast<Eigen::Index>(row.size())).cast<double>();
}

void put_row(bf::heads_buffer<float>& t, index_t head, index_t query, Eigen::VectorXd const& values) {
    auto const row = t.view().row(head, query);
    for (std::size_t d = 0; d < row.size(); ++d) row[d] = static_cast<float>(values[static_cast<Eigen::Index>(d)]);
}

/// Dense mass of a row that lies in [first, end) of each run.
void add_shares(sums& s, sight_row const& seen, Eigen::Ref<Eigen::RowVectorXd const> const& weights) {
    for (sight const& run : seen.runs) {
        (run.summary ? s.summary : s.exact) += weights.segment(run.first, run.end - run.first).sum();
        s.summaries += run.summary ? 1 : 0;
    }
    s.keys += static_cast<double>(seen.keys);
    s.most_keys = std::max(s.most_keys, seen.keys);
}

/// Attention over the n heaviest keys of a row.
Eigen::VectorXd best_of(Eigen::Ref<Eigen::RowVectorXd const> const& weights, row_major const& v, index_t n, sums& s) {
    std::vector<index_t> order(static_cast<std::size_t>(weights.size()));
    std::iota(order.begin(), order.end(), 0);
    n = std::min(n, static_cast<index_t>(order.size()));
    std::nth_element(order.begin(), order.begin() + (n - 1), order.end(),
                     [&](index_t a, index_t b) { return weights[a] > weights[b]; });
    Eigen::VectorXd out = Eigen::VectorXd::Zero(v.cols());
    double sum          = 0;
    for (index_t i = 0; i < n; ++i) {
        index_t const j = order[static_cast<std::size_t>(i)];
        sum += weights[j];
        out += weights[j] * v.row(j).transpose();
    }
    s.exact += sum;
    s.keys += static_cast<double>(n);
    s.most_keys = std::max(s.most_keys, n);
    return out / sum;
}

verdict to_verdict(std::vector<sums> const& by_head, double rows) {
    verdict out;
    sums all;
    for (sums const& s : by_head) {
        all += s;
        out.head_errors.push_back(std::sqrt(s.miss / s.dense));
    }
    out.relative_error = std::sqrt(all.miss / all.dense);
    out.cosine         = all.dot / std::sqrt(all.out * all.dense);
    out.row_cosine     = all.row_cosine / rows;
    out.walk_error     = all.walk > 0 ? std::sqrt(all.walk_miss / all.walk) : 0;
    out.exact          = all.exact / rows;
    out.summary        = all.summary / rows;
    out.unseen         = 1 - out.exact - out.summary;
    out.keys           = all.keys / rows;
    out.summaries      = all.summaries / rows;
    out.most_keys      = all.most_keys;
    return out;
}

} // namespace

judgement judge(qkv const& in,
                std::vector<index_t> const& positions,
                std::vector<system_run const*> const& runs,
                std::vector<index_t> const& best_keys,
                bf::executor const& threads) {
    wide_inputs const wide(in);
    index_t const heads   = in.q.shape().heads;
    auto const queries    = static_cast<index_t>(positions.size());
    index_t const blocks  = (queries + block_rows - 1) / block_rows;
    std::size_t const all = runs.size() + best_keys.size();
    bf::heads_shape const shape{heads, queries, in.v.shape().head_dim};
    judgement result{.dense = bf::heads_buffer<float>(shape)};
    result.chosen.assign(best_keys.size(), bf::heads_buffer<float>(shape));
    std::vector<std::vector<sums>> parts(static_cast<std::size_t>(heads * blocks), std::vector<sums>(all));

    threads.each(heads * blocks, [&](index_t item, int) noexcept {
        rows_of_head const rows = dense_rows(wide, positions, item / blocks, item % blocks * block_rows);
        row_major const& v      = wide.v[static_cast<std::size_t>(rows.head / wide.group)];
        row_major const dense   = rows.weights * v.topRows(rows.weights.cols());
        std::vector<sums>& part = parts[static_cast<std::size_t>(item)];
        for (index_t i = 0; i < rows.count; ++i) {
            index_t const query        = rows.first + i;
            Eigen::VectorXd const want = dense.row(i).transpose();
            put_row(result.dense, rows.head, query, want);
            for (std::size_t s = 0; s < runs.size(); ++s) {
                Eigen::VectorXd const got = row_of(runs[s]->out, rows.head, query);
                Eigen::Map<Eigen::VectorXd const> const walked(runs[s]->seen.out(rows.head, query), got.size());
                part[s].add_output(got, want);
                part[s].walk_miss += (got - walked).squaredNorm();
                part[s].walk += walked.squaredNorm();
                add_shares(part[s], runs[s]->seen.row(rows.head, query), rows.weights.row(i));
            }
            index_t const visible = positions[static_cast<std::size_t>(query)] + 1;
            for (std::size_t n = 0; n < best_keys.size(); ++n) {
                sums& s                   = part[runs.size() + n];
                Eigen::VectorXd const got = best_of(rows.weights.row(i).head(visible), v, best_keys[n], s);
                put_row(result.chosen[n], rows.head, query, got);
                s.add_output(got, want);
            }
        }
    });

    for (std::size_t s = 0; s < all; ++s) {
        std::vector<sums> by_head(static_cast<std::size_t>(heads));
        for (std::size_t item = 0; item < parts.size(); ++item)
            by_head[item / static_cast<std::size_t>(blocks)] += parts[item][s];
        verdict const v = to_verdict(by_head, static_cast<double>(heads * queries));
        (s < runs.size() ? result.systems : result.best).push_back(v);
    }
    return result;
}

} // namespace bench
