// SPDX-License-Identifier: MIT
#pragma once

// Laws about what must not change a bit: how a sequence is cut into calls, which threads do the work, what else stands
// in the same launch. Calls of at most sweep::stream_rows rows may be a kernel class of their own; between classes
// values agree to the tolerance alone.

#include <butterfly/sdpa/graph_rows.hpp>
#include <butterfly/testing/laws/law.hpp>

#include <array>
#include <list>
#include <thread>

namespace butterfly::testing {
namespace detail {

/// Attends the tokens [first, first + count), which have the keys up to their own.
template <class Policy, element KV, class Visibility>
void attend_part(Policy const& policy,
                 seeded_problem<float, KV>& p,
                 index_t first,
                 index_t count,
                 Visibility const& sees,
                 attend_options o) {
    index_t const all = p.q.shape().tokens;
    std::vector<float> lse(static_cast<std::size_t>(p.q.shape().heads * count));
    o.q_position = first;
    o.lse        = lse.data();
    attend(policy, p.q.view().slice(first, count), p.out.view().slice(first, count), o,
           pool(p.k.view().slice(0, first + count), p.v.view().slice(0, first + count), sees));
    for (index_t h = 0; h < p.q.shape().heads; ++h)
        for (index_t t = 0; t < count; ++t)
            p.lse[static_cast<std::size_t>(h * all + first + t)] = lse[static_cast<std::size_t>(h * count + t)];
}

/// Attends all tokens in calls of `size` tokens, the last one up to twice as long.
template <class Policy, element KV, class Visibility>
void attend_in_chunks(
    Policy const& policy, seeded_problem<float, KV>& p, index_t size, Visibility const& sees, attend_options const& o) {
    index_t const all = p.q.shape().tokens;
    for (index_t first = 0; first < all;) {
        index_t const count = all - first < 2 * size ? all - first : size;
        attend_part(policy, p, first, count, sees, o);
        first += count;
    }
}

/// The same for calls of at most `size` tokens.
template <class Policy, element KV, class Visibility>
void attend_in_steps(
    Policy const& policy, seeded_problem<float, KV>& p, index_t size, Visibility const& sees, attend_options const& o) {
    index_t const all = p.q.shape().tokens;
    for (index_t first = 0; first < all; first += size)
        attend_part(policy, p, first, std::min(size, all - first), sees, o);
}

/// Every way to cut a sequence that stays in one kernel class gives the same bits.
template <class Policy, element KV, class Visibility>
void expect_chunk_invariance(report& r,
                             Policy const& policy,
                             sweep const& s,
                             seeded_problem<float, KV> const& p,
                             char const* name,
                             Visibility const& sees) {
    index_t const all   = p.q.shape().tokens;
    index_t const group = p.q.shape().heads / p.k.shape().heads;
    // Tokens of the largest call of the stream class.
    index_t const few = std::max(s.stream_rows / group, std::min(s.stream_tokens, 8 * s.stream_rows / group));
    attend_options o;
    o.edge_bias            = {0.5F, -0.25F, 1.5F, -2.0F};
    auto whole_run         = p;
    attention const wanted = evaluate(p.q.view(), p.out.view(), o, whole(p, sees));
    std::string const what = name + say(" tokens", all, "group", group);
    expect(r, what + " at once", policy, s, wanted, whole_run, o, whole(p, sees));

    for (index_t const size : {few + 1, index_t{40}, index_t{67}}) {
        if (size <= few || size >= all) continue;
        auto cut = p;
        attend_in_chunks(policy, cut, size, sees, o);
        r.require(same_run(cut.out, cut.lse, whole_run.out, whole_run.lse), what + say(" in chunks of", size));
    }
    if (few < 1) {
        auto cut = p;
        attend_in_steps(policy, cut, 1, sees, o);
        r.require(same_run(cut.out, cut.lse, whole_run.out, whole_run.lse), what + " token by token");
        return;
    }
    auto single = p;
    attend_in_steps(policy, single, 1, sees, o);
    r.require(compare(single.out.view(), wanted, arithmetic(s, wanted)), what + " token by token");
    r.require(compare_lse(single.lse, wanted, arithmetic(s, wanted)), what + " token by token");
    for (index_t const size : {index_t{2}, index_t{3}, few}) {
        if (size > few) continue;
        auto cut = p;
        attend_in_steps(policy, cut, size, sees, o);
        r.require(same_run(cut.out, cut.lse, single.out, single.lse), what + say(" in steps of", size));
    }
}

/// Runs a call by an executor, in the scratch given.
template <class Policy, element KV, class Visibility>
void attend_by(executor const& e,
               Policy const& policy,
               seeded_problem<float, KV>& p,
               Visibility const& sees,
               std::span<std::byte> scratch = {}) {
    attend_options o = at_end(p);
    o.lse            = p.lse.data();
    o.workspace      = scratch;
    attend(with(policy, e), p.q.view(), p.out.view(), o, whole(p, sees));
}

/// Runs a call twice by threads that share it, with scratch of their own or in a workspace.
template <class Policy, element KV, class Visibility>
void attend_shared(
    int threads, bool workspace, Policy const& policy, seeded_problem<float, KV>& p, Visibility const& sees) {
    meeting place;
    std::vector<std::byte> memory;
    auto const worker = [&](int i) { return share{.thread = i, .threads = threads, .barrier = place}; };
    if (workspace) {
        Policy const first             = with(policy, worker(0));
        auto const keys                = whole(p, sees);
        auto const bound               = butterfly::make_problem(first, p.q.view(), p.out.view(), at_end(p), keys);
        butterfly::problem const asked = bound.problem();
        memory.resize(static_cast<std::size_t>(workspace_bytes(first, std::span<butterfly::problem const>(&asked, 1))));
    }
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i)
        workers.emplace_back([&, i] {
            for (int again = 0; again < 2; ++again) attend_by(worker(i), policy, p, sees, memory);
        });
    for (std::thread& w : workers) w.join();
}

/// Runs a call by every executor, which must not change a bit, and returns it.
template <class Policy, element KV, class Visibility>
seeded_problem<float, KV> expect_one_answer(report& r,
                                            std::string const& what,
                                            Policy const& policy,
                                            seeded_problem<float, KV> const& p,
                                            Visibility const& sees) {
    auto alone = p;
    attend_by(serial{}, policy, alone, sees);
    auto const expect_same = [&](seeded_problem<float, KV> const& other, std::string const& who) {
        r.require(same_run(other.out, other.lse, alone.out, alone.lse), what + ": " + who);
    };
#if defined(_OPENMP)
    for (int const threads : {1, 2, 5}) {
        auto team = p;
        attend_by(openmp{.threads = threads}, policy, team, sees);
        expect_same(team, say("openmp", threads));
    }
#endif
    for (int const threads : {1, 2, 3})
        for (bool const workspace : {false, true}) {
            auto shared = p;
            attend_shared(threads, workspace, policy, shared, sees);
            expect_same(shared, say("share of", threads, "workspace", workspace ? 1 : 0));
        }
    return alone;
}

} // namespace detail

/// One call, many chunks, token by token: the same bits within a kernel class, for every kind of visibility.
template <class Policy, element KV = float>
[[nodiscard]] report chunking_changes_no_bit(Policy const& policy, sweep const& s) {
    report r;
    for (index_t const group : {1, 2, 3, 8}) {
        if (s.brief && group != 1 && group != 8) continue;
        index_t const tokens = s.brief ? 90 : 150;
        auto const p         = make_problem<float, KV>({.heads    = 2 * group,
                                                        .kv_heads = 2,
                                                        .tokens   = tokens,
                                                        .head_dim = 24,
                                                        .seed     = s.seed + static_cast<std::uint64_t>(group)});
        graph const g        = detail::random_graph(random(s.seed, 301), 2, tokens, 70);
        detail::scattered_rule const rule;
        visible::routed_blocks const routed{
            topology::make_row_source(rule, {.heads = 1, .nodes = butterfly::detail::ceil_div(tokens, 20)}), 20};
        detail::expect_chunk_invariance(r, policy, s, p, "causal", visible::causal_prefix());
        detail::expect_chunk_invariance(r, policy, s, p, "window", visible::exact_window(37));
        detail::expect_chunk_invariance(r, policy, s, p, "aligned window", visible::exact_window(30, 16));
        detail::expect_chunk_invariance(r, policy, s, p, "routed", routed);
        graph const near = detail::near_graph(2, tokens, 40);
        detail::expect_chunk_invariance(r, policy, s, p, "graph", visible::graph_rows{g.view()});
        detail::expect_chunk_invariance(r, policy, s, p, "graph of neighbours", visible::graph_rows{near.view()});
    }
    return r;
}

/// However many keys stand behind the last visible one: the same bits. Long enough for any backend to cut its keys.
template <class Policy, element KV = float>
[[nodiscard]] report keys_out_of_sight_change_no_bit(Policy const& policy, sweep const& s) {
    report r;
    index_t const keys = s.brief ? 4200 : 9000;
    for (index_t const tokens : {1, 24}) {
        auto p = make_problem<float, KV>(
            {.heads = 4, .kv_heads = 2, .tokens = tokens, .keys = keys, .head_dim = 8, .seed = s.seed});
        auto other = p;
        for (index_t const seen : {index_t{64}, index_t{100}, index_t{4096}, index_t{4097}, keys / 2, keys - 1}) {
            attend_options o;
            o.q_position = seen - tokens;
            o.lse        = p.lse.data();
            attend(policy, p.q.view(), p.out.view(), o,
                   pool(p.k.view().slice(0, seen), p.v.view().slice(0, seen), visible::causal_prefix()));
            o.lse = other.lse.data();
            attend(policy, other.q.view(), other.out.view(), o, detail::whole(other));
            r.require(detail::same_run(other.out, other.lse, p.out, p.lse),
                      detail::say("tokens", tokens, "seen", seen));
        }
    }
    return r;
}

/// Serial, an OpenMP team, and a share over threads of the caller's give the same bits, with and without workspace.
template <class Policy, element KV = float>
[[nodiscard]] report executors_change_no_bit(Policy const& policy, sweep const& s) {
    report r;
    for (index_t const tokens : {1, 3, 70}) {
        index_t const keys = tokens > 1 ? 200 : s.brief ? 4200 : 13000; // few rows over many keys: spans are dealt
        auto const p       = make_problem<float, KV>(
            {.heads = 6, .kv_heads = 3, .tokens = tokens, .keys = keys, .head_dim = 20, .seed = s.seed});
        detail::expect_one_answer(r, detail::say("tokens", tokens), policy, p, visible::causal_prefix());
    }
    return r;
}

/// Rows enough for a backend to group them by the number of threads: the same bits, and a value that is NaN reaches
/// exactly the rows that see it, whoever shares their group.
template <class Policy, element KV = float>
[[nodiscard]] report groups_of_rows_change_no_bit(Policy const& policy, sweep const& s) {
    report r;
    constexpr index_t group = 2, tokens = 1200, window = 30, bad_key = 601, bad_column = 3;
    auto const sees = visible::exact_window(window);
    auto const clean =
        make_problem<float, KV>({.heads = 2 * group, .kv_heads = 2, .tokens = tokens, .head_dim = 8, .seed = s.seed});
    auto broken                         = clean;
    broken.v.at(1, bad_key, bad_column) = KV(std::numeric_limits<float>::quiet_NaN());

    auto const wanted = detail::expect_one_answer(r, "finite", policy, clean, sees);
    auto found        = detail::expect_one_answer(r, "a value is NaN", policy, broken, sees);
    for (index_t h = group; h < 2 * group; ++h)
        for (index_t t = bad_key; t < bad_key + window; ++t)
            for (index_t d = 0; d < 8; ++d) {
                bool const finite = std::isfinite(found.out.at(h, t, d));
                r.require(finite == (d != bad_column), detail::say("a value is NaN: head", h, "token", t, "column", d));
                found.out.at(h, t, d) = wanted.out.at(h, t, d);
            }
    r.require(compare_bits(found.out.view(), wanted.out.view()), "a value is NaN: rows that do not see it");

    // Nearly all rows see it, in most groups all do: the other columns are summed in one order nevertheless.
    auto early                    = clean;
    early.v.at(1, 10, bad_column) = KV(std::numeric_limits<float>::quiet_NaN());
    auto const whole = detail::expect_one_answer(r, "an early NaN", policy, early, visible::causal_prefix());
    detail::attend_in_chunks(policy, early, 100, visible::causal_prefix(), {});
    r.require(compare_bits(early.out.view(), whole.out.view()), "an early NaN, in chunks of 100");
    return r;
}

/// A span of problems is each problem alone, bit for bit.
template <class Policy, element KV = float>
[[nodiscard]] report batches_change_no_bit(Policy const& policy, sweep const& s) {
    report r;
    struct sequence {
        seeded_problem<float, KV> p;
        pool<heads_view<KV const>, heads_view<KV const>, visible::interval> keys;
        bound_problem<1> bound;

        sequence(Policy const& policy, problem_options const& o)
            : p(make_problem<float, KV>(o)),
              keys(std::as_const(p.k).view(), std::as_const(p.v).view(), visible::interval{}),
              bound(butterfly::make_problem(policy, p.q.view(), p.out.view(), options(), keys)) {}

        attend_options options() {
            attend_options o = detail::at_end(p);
            o.lse            = p.lse.data();
            return o;
        }
    };
    std::list<sequence> sequences; // addresses stay
    std::vector<butterfly::problem> problems;
    std::uint64_t seed = s.seed;
    for (index_t const tokens : {1, 1, 40, 0, 3, 130, 1})
        for (index_t const head_dim : {8, 33}) {
            sequences.emplace_back(policy, problem_options{.heads    = 4,
                                                           .kv_heads = 2,
                                                           .tokens   = tokens,
                                                           .keys     = tokens + static_cast<index_t>(seed % 90),
                                                           .head_dim = head_dim,
                                                           .seed     = seed,
                                                           .no_keys  = true});
            problems.push_back(sequences.back().bound.problem());
            seed += 17;
        }
    attend(policy, std::span<butterfly::problem const>(problems));
    attend(policy, std::span<butterfly::problem const>());
    int which = 0;
    for (sequence& batched : sequences) {
        auto alone       = batched.p;
        attend_options o = batched.options();
        o.lse            = alone.lse.data();
        attend(policy, alone.q.view(), alone.out.view(), o, batched.keys);
        r.require(detail::same_run(batched.p.out, batched.p.lse, alone.out, alone.lse), detail::say("problem", which));
        ++which;
    }
    return r;
}

} // namespace butterfly::testing
