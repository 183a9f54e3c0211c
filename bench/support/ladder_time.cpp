// SPDX-License-Identifier: MIT
#include "ladder_time.hpp"

#include "ladder_fit.hpp"
#include "ladder_systems.hpp"
#include "timing.hpp"

#include <algorithm>

namespace bench {
namespace {

constexpr index_t dense_samples       = 5; // long contexts: a chunk takes seconds
constexpr index_t short_dense_samples = 9;
constexpr index_t short_context       = 64 << 10;
constexpr index_t light_samples       = 8;
constexpr index_t least_decodes       = 3;
constexpr index_t most_rounds         = 7;

/// A chunk of a prefill and its times, one per round.
struct chunk {
    index_t position = 0, tokens = 0;
    std::vector<double> seconds{};
};

/// A system with what is measured of it.
struct runner {
    std::string name;
    std::unique_ptr<ladder_system> kv;
    std::vector<chunk> chunks{};    // sampled, or all of a full prefill; empty: compressed
    std::vector<double> prefills{}; // compressed: seconds of all layers, one per round
    std::vector<double> decodes{};  // seconds per token, one per round
    index_t decode_tokens = 0;      // of a round
    index_t length        = 0;      // tokens it holds
};

class rung_times {
public:
    rung_times(ladder_settings const& s, index_t context, progress& bar, double work)
        : s_(s), context_(context), bar_(bar), work_(work), machine_(make_machine(s.common.backend, s.common.threads)),
          rung_(make_rung(s, context)) {}

    std::map<std::string, ladder_times> run(double seconds) {
        stopwatch const watch;
        prepare();
        repeat(1, 0.75 * seconds - watch.seconds(), 0.75 * work_, [&] { prefill_round(); });
        explain();
        repeat(least_decodes, seconds - watch.seconds(), 0.2 * work_, [&] { decode_round(); });
        std::map<std::string, ladder_times> times;
        for (runner& r : runners_) times[r.name] = summarise(r);
        return times;
    }

private:
    /// Rounds until the seconds are spent, at least `least`; settings.rounds where they are given.
    template <class F>
    void repeat(index_t least, double seconds, double work, F const& round) {
        stopwatch const watch;
        index_t const most = s_.rounds > 0 ? s_.rounds : most_rounds;
        for (index_t done = 1; done <= most; ++done) {
            round_work_ = done == 1 ? work : 0.0; // how many rounds there will be is known after the first
            round();
            double const each = watch.seconds() / static_cast<double>(done);
            bool const room   = s_.rounds > 0 || each * static_cast<double>(done + 1) <= seconds;
            if (done >= least && !room) return;
        }
    }

    void prepare() {
        bar_.label(fmt::format("{}: filling", size_text(context_)));
        index_t const period = std::max<index_t>(128, s_.block_size);
        index_t const rounds = s_.rounds > 0 ? s_.rounds : most_rounds;
        for (std::string const& name : s_.systems) {
            bool const compressed = name == "compressed";
            runner r{.name = name, .decode_tokens = compressed ? period : s_.decode};
            r.kv = rung_->make(name, context_ + (compressed ? rounds * (period + 1) : s_.room()));
            if (!compressed) plan(r);
            runners_.push_back(std::move(r));
        }
        bool filled = false;
        for (runner& r : runners_) {
            if (r.name == "compressed" || (r.name == "block_sparse" && filled)) continue;
            filled |= r.name == "dense";
            fill(r);
        }
        bar_.advance(0.05 * work_);
    }

    /// The chunks of a system that are timed.
    void plan(runner& r) const {
        index_t const all  = butterfly::detail::ceil_div(context_, s_.step);
        bool const full    = r.name == "dense" && s_.dense_full;
        index_t const some = context_ <= short_context ? short_dense_samples : dense_samples;
        index_t const want = full ? all : r.name == "dense" ? some : light_samples;
        for (index_t const i : sampled_chunks(all, want)) {
            index_t const position = i * s_.step;
            r.chunks.push_back({position, std::min(s_.step, context_ - position)});
        }
    }

    /// Writes every token of every layer; only the latest ones of a window stay.
    void fill(runner& r) {
        index_t const first = r.name == "window" ? context_ - std::min(context_, 4 * s_.step + s_.exact_window) : 0;
        for (index_t at = first / s_.step * s_.step; at < context_; at += s_.step)
            for (index_t layer = 0; layer < s_.model.layers; ++layer)
                r.kv->append(machine_, layer, at, std::min(s_.step, context_ - at));
    }

    /// One pass: slices of the compressed prefill with the chunks of the others between them.
    void prefill_round() {
        std::vector<std::pair<runner*, chunk*>> jobs;
        std::size_t most = 1;
        for (runner& r : runners_) most = std::max(most, r.chunks.size());
        for (std::size_t i = 0; i < most; ++i) // spread each system's chunks evenly over the pass
            for (runner& r : runners_)
                for (std::size_t j = 0; j < r.chunks.size(); ++j)
                    if (j * most / r.chunks.size() == i) jobs.emplace_back(&r, &r.chunks[j]);

        runner* const compressed = find("compressed");
        if (compressed != nullptr) begin_compressed(*compressed);
        index_t const steps  = butterfly::detail::ceil_div(context_, s_.step);
        auto const pieces    = static_cast<index_t>(std::max<std::size_t>(jobs.size(), 1));
        double const advance = round_work_ / static_cast<double>(pieces);
        for (index_t i = 0; i < pieces; ++i) {
            if (compressed != nullptr) compressed_slice(*compressed, i * steps / pieces, (i + 1) * steps / pieces);
            if (!jobs.empty())
                time_chunk(*jobs[static_cast<std::size_t>(i)].first, *jobs[static_cast<std::size_t>(i)].second);
            bar_.advance(advance);
        }
        if (compressed != nullptr) compressed->length = context_;
    }

    void begin_compressed(runner& r) {
        r.kv->clear();
        r.prefills.push_back(0);
    }

    void compressed_slice(runner& r, index_t first, index_t end) {
        bar_.label(fmt::format("{}: prefill, compressed", size_text(context_)));
        stopwatch const watch;
        for (index_t step = first; step < end; ++step) {
            index_t const at     = step * s_.step;
            index_t const tokens = std::min(s_.step, context_ - at);
            for (index_t layer = 0; layer < s_.model.layers; ++layer) {
                r.kv->append(machine_, layer, at, tokens);
                r.kv->attend(machine_, layer, at, tokens);
            }
        }
        r.prefills.back() += watch.seconds();
    }

    /// The layers take turns, because their rows differ; each has the same number of tokens.
    void time_chunk(runner& r, chunk& c) {
        bar_.label(fmt::format("{}: prefill, {} at {}", size_text(context_), r.name, c.position));
        index_t const layer = r.name == "dense" ? 0 : (&c - r.chunks.data()) % s_.model.layers;
        stopwatch const watch;
        r.kv->append(machine_, layer, c.position, c.tokens);
        r.kv->attend(machine_, layer, c.position, c.tokens);
        c.seconds.push_back(watch.seconds());
    }

    void decode_round() {
        for (runner& r : runners_) {
            bar_.label(fmt::format("{}: decode, {}", size_text(context_), r.name));
            bool const keeps = r.name != "compressed";
            index_t at       = keeps ? context_ : r.length;
            decode_token(r, at++);
            stopwatch const watch;
            for (index_t i = 0; i < r.decode_tokens; ++i) decode_token(r, at++);
            r.decodes.push_back(watch.seconds() / static_cast<double>(r.decode_tokens));
            if (!keeps) r.length = at;
        }
        bar_.advance(round_work_);
    }

    void decode_token(runner& r, index_t position) {
        for (index_t layer = 0; layer < s_.model.layers; ++layer) {
            r.kv->append(machine_, layer, position, 1);
            r.kv->attend(machine_, layer, position, 1);
        }
    }

    void explain() {
        index_t const last = std::min(s_.step, context_ - (context_ - 1) / s_.step * s_.step);
        for (runner& r : runners_) {
            kernels_[r.name].first  = r.kv->explain(machine_, context_ - last, last);
            kernels_[r.name].second = r.kv->explain(machine_, context_ - 1, 1);
        }
    }

    runner* find(std::string_view name) {
        for (runner& r : runners_)
            if (r.name == name) return &r;
        return nullptr;
    }

    ladder_times summarise(runner const& r) const {
        double apart = std::max(spread(r.decodes), spread(r.prefills));
        for (chunk const& c : r.chunks) apart = std::max(apart, spread(c.seconds));
        ladder_times t{.decode_seconds = median(r.decodes),
                       .spread         = apart,
                       .prefill_kernel = kernels_.at(r.name).first,
                       .decode_kernel  = kernels_.at(r.name).second};
        t.samples["decode_seconds_per_token"] = r.decodes;
        t.samples["decode_tokens"]            = r.decode_tokens;
        t.samples["output"]                   = r.kv->output();
        if (r.chunks.empty()) {
            t.prefill_seconds            = median(r.prefills);
            t.samples["prefill_seconds"] = r.prefills;
            return t;
        }
        summarise_chunks(r, t);
        return t;
    }

    void summarise_chunks(runner const& r, ladder_times& t) const {
        std::vector<double> x, y;
        json raw   = json::array();
        double sum = 0;
        for (chunk const& c : r.chunks) {
            double const seconds = median(c.seconds);
            sum += seconds;
            x.push_back(static_cast<double>(c.position) + static_cast<double>(c.tokens) / 2);
            y.push_back(seconds / static_cast<double>(c.tokens));
            raw.push_back({{"position", c.position}, {"tokens", c.tokens}, {"seconds", c.seconds}});
        }
        line_fit const fit = fit_line(x, y);
        t.sampled          = static_cast<index_t>(r.chunks.size()) < butterfly::detail::ceil_div(context_, s_.step);
        if (t.sampled) {
            sum             = fit.sum(static_cast<double>(context_));
            t.prefill_error = fit.sum_error(static_cast<double>(context_));
        }
        t.prefill_seconds   = sum * static_cast<double>(s_.model.layers);
        t.samples["chunks"] = raw;
        t.samples["fit"]    = {{"seconds_per_token_at_zero", fit.at_zero}, {"slope", fit.slope}};
    }

    ladder_settings const& s_;
    index_t context_;
    progress& bar_;
    double work_;
    double round_work_ = 0;
    machine machine_;
    std::unique_ptr<ladder_rung> rung_;
    std::vector<runner> runners_;
    std::map<std::string, std::pair<std::string, std::string>> kernels_;
};

} // namespace

json ladder_times::to_json() const {
    return {{"prefill_seconds", prefill_seconds},
            {"prefill_sampled", sampled},
            {"prefill_standard_error", prefill_error},
            {"decode_seconds_per_token", decode_seconds},
            {"spread", spread},
            {"prefill_kernel", prefill_kernel},
            {"decode_kernel", decode_kernel},
            {"raw", samples}};
}

std::map<std::string, ladder_times>
measure_times(ladder_settings const& s, index_t context, double seconds, progress& bar, double work) {
    return rung_times(s, context, bar, work).run(seconds);
}

} // namespace bench
