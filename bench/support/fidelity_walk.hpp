// SPDX-License-Identifier: MIT
#pragma once

// Which tokens each query saw, and with what weight, told by the call itself.
//
// `witness` is a policy: put in the place of a backend, it is handed the very problem a backend is handed (pools, their
// visibilities, their storage) and walks each visibility with `next`, row by row. So what is written down here is what
// the cache, the window or the routing rule shows; no rule is stated a second time. Logits and the softmax over what
// was seen are in double.

#include <butterfly/backend/host/codec_ops.hpp>
#include <butterfly/backend/policy.hpp>
#include <butterfly/sdpa/attend.hpp>

#include <vector>

namespace bench {

namespace bf = butterfly;
using bf::index_t;

/// Consecutive tokens a query saw: each by its own key, or all of them by one summary.
struct sight {
    std::int32_t first = 0;
    std::int32_t end   = 0;
    bool summary       = false;
};

/// What one query head of one query token saw.
struct sight_row {
    std::vector<sight> runs{};
    std::vector<float> weights{}; // softmax weights: one per token of an exact run, one per summary
    index_t keys = 0;             // keys read: exact tokens and summaries
};

/// What the chosen queries saw: filled by `witness`, for positions that were chosen.
class sightings {
public:
    /// `positions` ascending, all below `tokens`.
    sightings(index_t heads, index_t tokens, index_t value_dim, std::vector<index_t> const& positions);

    [[nodiscard]] index_t heads() const noexcept { return heads_; }
    [[nodiscard]] index_t queries() const noexcept { return queries_; }

    /// Number of a position among the chosen ones; -1: not chosen.
    [[nodiscard]] index_t query_of(index_t position) const noexcept {
        return query_of_[static_cast<std::size_t>(position)];
    }
    [[nodiscard]] sight_row& row(index_t head, index_t query) noexcept { return rows_[at(head, query)]; }
    [[nodiscard]] sight_row const& row(index_t head, index_t query) const noexcept { return rows_[at(head, query)]; }

    /// Attention over what was seen, in double: [value_dim] of one row.
    [[nodiscard]] double* out(index_t head, index_t query) noexcept {
        return out_.data() + at(head, query) * static_cast<std::size_t>(value_dim_);
    }
    [[nodiscard]] double const* out(index_t head, index_t query) const noexcept {
        return out_.data() + at(head, query) * static_cast<std::size_t>(value_dim_);
    }

private:
    [[nodiscard]] std::size_t at(index_t head, index_t query) const noexcept {
        return static_cast<std::size_t>(head * queries_ + query);
    }

    index_t heads_, queries_, value_dim_;
    std::vector<index_t> query_of_; // [tokens]
    std::vector<sight_row> rows_;   // [heads, queries]
    std::vector<double> out_;       // [heads, queries, value_dim]
};

/// The policy that looks instead of computing. `out` of a call is not written.
struct witness {
    bf::executor executor{};
    sightings* book         = nullptr;
    index_t summaries_skip  = 0; // first tokens that no summary stands for
    bool keep_token_weights = false;

    [[nodiscard]] static std::string name() { return "witness"; }
    [[nodiscard]] static bool available() noexcept { return true; }
};

static_assert(bf::backend::host_policy<witness>);

template <bf::quant::decoder Codec>
inline constexpr bf::backend::on_host::codec_ops witness_codec_ops{&bf::backend::on_host::decode_rows<Codec>};

template <bf::quant::decoder Codec>
[[nodiscard]] bf::bound_codec bind_codec(witness const&, Codec const&) noexcept {
    return &witness_codec_ops<Codec>;
}
[[nodiscard]] inline bf::support supports(witness const&, bf::problem const&) {
    return {};
}
[[nodiscard]] inline index_t workspace_bytes(witness const&, std::span<bf::problem const>) noexcept {
    return 0;
}
void run(witness const& w, std::span<bf::problem const> problems);

} // namespace bench
