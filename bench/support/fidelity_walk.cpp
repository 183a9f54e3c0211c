// SPDX-License-Identifier: MIT
#include "fidelity_walk.hpp"

#include <butterfly/backend/host/logits.hpp>
#include <butterfly/backend/host/rows.hpp>
#include <butterfly/testing/sees.hpp>

#include <Eigen/Core>

namespace bench {

namespace host = bf::backend::on_host;

sightings::sightings(index_t heads, index_t tokens, index_t value_dim, std::vector<index_t> const& positions)
    : heads_(heads), queries_(static_cast<index_t>(positions.size())), value_dim_(value_dim),
      query_of_(static_cast<std::size_t>(tokens), -1), rows_(static_cast<std::size_t>(heads) * positions.size()),
      out_(rows_.size() * static_cast<std::size_t>(value_dim)) {
    for (std::size_t i = 0; i < positions.size(); ++i)
        query_of_[static_cast<std::size_t>(positions[i])] = static_cast<index_t>(i);
}

namespace {

using row_major_f32 = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Visible keys of one row of one head, with their logits and where their values stand.
struct keys_seen {
    std::vector<double> logits{};
    std::vector<std::pair<bf::storage_ref const*, index_t>> values{};
    std::vector<sight> sights{}; // one per key

    void add(double logit, bf::storage_ref const& values_of, index_t slot, sight s) {
        logits.push_back(logit);
        values.emplace_back(&values_of, slot);
        sights.push_back(s);
    }
};

Eigen::VectorXd decode(bf::storage_ref const& s, index_t head, index_t slot) {
    Eigen::VectorXf row(s.shape.head_dim);
    std::byte const* const packed = host::row_address(s, head, slot);
    host::load_rows(s, head, &packed, 1, row.data(), row.size());
    return row.cast<double>();
}

/// The tokens a slot of a pool stands for.
sight stands_for(bf::pool_ref const& pool, index_t slot, index_t summaries_skip) {
    bf::visibility_description const& d = pool.visibility.description;
    if (d.kind != bf::visibility_kind::routed_summaries) {
        auto const token = static_cast<std::int32_t>(host::key_position(pool, slot));
        return {token, token + 1, false};
    }
    index_t const first = std::max(slot * d.block_size, summaries_skip);
    return {static_cast<std::int32_t>(first), static_cast<std::int32_t>((slot + 1) * d.block_size), true};
}

/// Walks every pool for one row.
keys_seen look(witness const& w, bf::problem const& p, index_t head, index_t token) {
    keys_seen seen;
    Eigen::VectorXf query(p.q.shape.head_dim);
    host::load_row(p.q, head, token, query.data());
    Eigen::VectorXd const q = query.cast<double>();
    for (int i = 0; i < p.pool_count; ++i) {
        bf::pool_ref const& pool = p.pools[i];
        bf::row_tile const row{.first = token, .tokens = 1, .head = host::row_head(p, pool, head)};
        bf::tile_cursor cursor;
        bf::key_tile tile;
        while (pool.visibility.next(pool.visibility.state, p, i, row, {0, bf::no_alignment}, cursor, tile))
            for (int j = 0; j < tile.count; ++j) {
                if (tile.bits != nullptr && (tile.bits[0] >> j & 1U) == 0U) continue;
                index_t const slot = tile.slot(j);
                double const dot   = q.dot(decode(pool.keys, head / p.group(), slot));
                double logit       = static_cast<double>(p.options.scale) * dot;
                if (p.options.soft_cap > 0) logit = p.options.soft_cap * std::tanh(logit / p.options.soft_cap);
                logit += host::key_bias(pool, tile, j) + host::row_bias(p, pool, head, token, slot);
                seen.add(logit, pool.values, slot, stands_for(pool, slot, w.summaries_skip));
            }
    }
    return seen;
}

/// Joins neighbouring exact tokens into runs, in the order they were seen.
std::vector<sight> runs_of(std::vector<sight> const& sights) {
    std::vector<sight> runs;
    for (sight const& s : sights) {
        if (!runs.empty() && !s.summary && !runs.back().summary && runs.back().end == s.first)
            runs.back().end = s.end;
        else
            runs.push_back(s);
    }
    return runs;
}

void write_down(witness const& w, bf::problem const& p, index_t head, index_t token, index_t query) {
    keys_seen const seen = look(w, p, head, token);
    sight_row& row       = w.book->row(head, query);
    row.runs             = runs_of(seen.sights);
    row.keys             = static_cast<index_t>(seen.logits.size());

    Eigen::Map<Eigen::VectorXd> out(w.book->out(head, query), p.out.shape.head_dim);
    out.setZero();
    if (seen.logits.empty()) return;
    Eigen::Map<Eigen::ArrayXd const> const logits(seen.logits.data(), static_cast<Eigen::Index>(seen.logits.size()));
    Eigen::ArrayXd weights = (logits - logits.maxCoeff()).exp();
    weights /= weights.sum();
    for (std::size_t j = 0; j < seen.values.size(); ++j)
        out += weights[static_cast<Eigen::Index>(j)] *
               decode(*seen.values[j].first, head / p.group(), seen.values[j].second);
    if (w.keep_token_weights) row.weights.assign(weights.data(), weights.data() + weights.size());
}

} // namespace

void run(witness const& w, std::span<bf::problem const> problems) {
    for (bf::problem const& p : problems)
        w.executor.each(p.heads() * p.tokens(), [&](index_t item, int) noexcept {
            index_t const head  = item / p.tokens();
            index_t const token = item % p.tokens();
            index_t const query = w.book->query_of(bf::testing::query_position(p, token));
            if (query >= 0) write_down(w, p, head, token, query);
        });
}

} // namespace bench
