// SPDX-License-Identifier: MIT
// What a composition of rules costs and connects: builds its graph, prints the numbers, times attention along it,
// writes it to a file. With --schedule: which stages each attention layer takes, and what the last block of a stack
// reaches.
#include <butterfly/graph/io.hpp>
#include <butterfly/graph/metrics.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/reach.hpp>
#include <butterfly/version.hpp>

#include "graph_time.hpp"
#include "memory.hpp"
#include "report.hpp"
#include "row_text.hpp"
#include "timing.hpp"
#include "usage.hpp"

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <fmt/ranges.h>

namespace {

namespace bf       = butterfly;
namespace topology = butterfly::topology;
using bench::json;
using bf::index_t;

struct settings {
    bench::common_options common{};
    std::string row = "cycle:seed=7,window:64,landmark:64,self";
    index_t nodes = 4096, heads = 8, max_degree = 0, head_dim = 64;
    int hops = 0;
    std::string dump;

    bool schedule  = false;
    index_t layers = 6, blocks = 2048, first = 3, every = 4, local = 1, sinks = 1;
    int partners = 0;
};

/// Neighbours that a rule gives one node at most.
struct most_neighbors {
    double nodes;

    double operator()(topology::cycle const& r) const { return 2.0 * static_cast<double>(r.cycles); }
    double operator()(topology::window const& r) const { return static_cast<double>(r.predecessors); }
    double operator()(topology::landmark const& r) const {
        return std::min(nodes / static_cast<double>(std::max<index_t>(1, r.stride)), static_cast<double>(r.count));
    }
    double operator()(topology::self const&) const { return 1; }
    double operator()(topology::fixed_stride const& r) const {
        return std::min(nodes / static_cast<double>(std::max<index_t>(1, r.stride)), static_cast<double>(r.count));
    }
    double operator()(topology::benes const& r) const { return static_cast<double>(r.phases.size()); }
    double operator()(topology::random_predecessor const& r) const { return static_cast<double>(r.draws.size()); }
    double operator()(auto const& r) const { return static_cast<double>(r.stages.size()); }
};

/// Bytes that a rule works with while it builds a graph of this shape: permutations and their links.
double working_bytes(bench::text_row::any_rule const& rule, double heads, double nodes) {
    auto const* const cycle = std::get_if<topology::cycle>(&rule);
    return cycle == nullptr ? 0.0 : 12 * static_cast<double>(cycle->cycles) * (heads + 1) * nodes;
}

/// Throws usage_error where the graph, or attention along it, needs more memory than there is.
void check_memory(settings const& s, bench::text_row const& rules) {
    auto const available = bench::available_memory();
    if (!available || s.heads < 1 || s.nodes < 1) return;
    auto const nodes = static_cast<double>(s.nodes);
    auto const heads = static_cast<double>(s.heads);
    double degree = 0, working = 0;
    for (auto const& rule : rules.rules()) {
        degree += std::visit(most_neighbors{nodes}, rule);
        working += working_bytes(rule, heads, nodes);
    }
    degree = std::min(std::max(degree, 1.0), nodes);
    if (s.max_degree > 0) degree = std::min(degree, static_cast<double>(s.max_degree));
    double const bytes    = 5 * heads * nodes * degree + 4 * nodes + working + (s.hops > 0 ? 2048 * nodes : 0.0);
    double const operands = bench::attention_bytes({.heads = s.heads, .nodes = s.nodes}, s.head_dim);
    auto const room       = static_cast<double>(*available);
    auto const gigabytes  = [](double b) { return bench::three_digits(b / 1e9); };
    if (bytes > room)
        throw bench::usage_error("--nodes {}, --heads {}: the graph needs about {} GB of memory, {} GB are available",
                                 s.nodes, s.heads, gigabytes(bytes), gigabytes(room));
    if (bytes + operands > room)
        throw bench::usage_error(
            "--head-dim {}: the graph and attention along it need about {} GB of memory, {} GB are "
            "available; --head-dim 0 leaves attention out",
            s.head_dim, gigabytes(bytes + operands), gigabytes(room));
}

json report_row(settings const& s, bench::machine const& m, json out) {
    auto const rules = bench::parse_row(s.row);
    check_memory(s, rules);
    topology::topology_shape const shape{.heads = s.heads, .nodes = s.nodes};
    bench::stopwatch const watch;
    bf::graph const g    = topology::build({.heads = s.heads, .nodes = s.nodes, .max_degree = s.max_degree}, rules);
    double const seconds = watch.seconds();
    bf::graph_metrics const is  = bf::measure(g.view(), s.hops);
    index_t const fan_in        = topology::candidate_degree(shape, rules);
    auto const nodes            = static_cast<double>(s.nodes);
    auto const rows             = nodes * static_cast<double>(s.heads);
    double const dense_per_node = (nodes + 1) / 2; // causal, the node itself included
    double const causal         = static_cast<double>(is.causal_edges) / rows;

    out.update({{"row", s.row},
                {"heads", s.heads},
                {"nodes", s.nodes},
                {"max_degree", s.max_degree},
                {"degree", is.shape.degree},
                {"degree_min", is.degree_min},
                {"degree_mean", is.degree_mean},
                {"degree_max", is.degree_max},
                {"edges", is.edges},
                {"edges_per_node", is.degree_mean},
                {"causal_edges_per_node", causal},
                {"shortcut_rate", is.shortcut_rate}});
    for (int code = 1; code < bf::edge_codes; ++code)
        out["edges_by_type"][name_of(static_cast<bf::edge_code>(code))] =
            is.edge_counts[static_cast<std::size_t>(code)];
    if (s.hops > 0) {
        out["hops"]         = s.hops;
        out["reachability"] = is.reachability;
    }
    out["fan_in"]               = fan_in;
    out["dense_fan_in"]         = s.nodes - 1;
    out["x_fewer_fan_in"]       = fan_in > 0 ? static_cast<double>(s.nodes - 1) / static_cast<double>(fan_in) : 0.0;
    out["x_fewer_causal_edges"] = causal > 0 ? dense_per_node / causal : 0.0;
    out["graph_bytes"]          = 5 * s.heads * s.nodes * is.shape.degree;
    out["build_seconds"]        = seconds;
    out["head_dim"]             = s.head_dim;
    if (s.head_dim > 0) {
        double const attention         = bench::time_attention(m, g.view(), s.head_dim);
        out["backend"]                 = m.name();
        out["threads"]                 = m.executor.threads();
        out["attention_seconds"]       = attention;
        out["causal_edges_per_second"] = static_cast<double>(is.causal_edges) / attention;
    }
    if (!s.dump.empty()) {
        bf::save_npz(g.view(), s.dump);
        out["dump"] = s.dump;
    }
    return out;
}

void print_row(json const& r) {
    fmt::print("row            {}\n", r["row"].get<std::string>());
    fmt::print("shape          {} heads, {} nodes, degree {}\n", r["heads"].get<index_t>(), r["nodes"].get<index_t>(),
               r["degree"].get<index_t>());
    fmt::print("degree         min {}, mean {:.3f}, max {}\n", r["degree_min"].get<index_t>(),
               r["degree_mean"].get<double>(), r["degree_max"].get<index_t>());
    fmt::print("edges          {}", r["edges"].get<index_t>());
    for (auto const& [name, count] : r["edges_by_type"].items()) fmt::print(", {} {}", name, count.get<index_t>());
    fmt::print("\nper node       {:.3f} edges, {:.3f} of them causal\n", r["edges_per_node"].get<double>(),
               r["causal_edges_per_node"].get<double>());
    fmt::print("shortcut rate  {:.4f}\n", r["shortcut_rate"].get<double>());
    if (r.contains("hops"))
        fmt::print("reachability   {:.3f} nodes within {} hops\n", r["reachability"].get<double>(),
                   r["hops"].get<int>());
    fmt::print("fan-in         {} before overlaps, dense {}: {:.1f}x fewer\n", r["fan_in"].get<index_t>(),
               r["dense_fan_in"].get<index_t>(), r["x_fewer_fan_in"].get<double>());
    fmt::print("causal edges   {:.1f}x fewer than dense\n", r["x_fewer_causal_edges"].get<double>());
    fmt::print("build          {:.4f} s, {} bytes\n", r["build_seconds"].get<double>(),
               r["graph_bytes"].get<index_t>());
    if (r.contains("backend"))
        fmt::print("attention      {} ms by {}, threads {}, head_dim {}: {} M edges/s\n",
                   bench::three_digits(1e3 * r["attention_seconds"].get<double>()), r["backend"].get<std::string>(),
                   r["threads"].get<int>(), r["head_dim"].get<index_t>(),
                   bench::three_digits(1e-6 * r["causal_edges_per_second"].get<double>()));
    if (r.contains("dump")) fmt::print("written        {}\n", r["dump"].get<std::string>());
}

json report_schedule(settings const& s, json out) {
    topology::stage_schedule const schedule({.attention_layers = s.layers, .blocks = s.blocks, .partners = s.partners});
    if (s.first < 0 || s.every < 1)
        bf::detail::fail<bf::shape_error>("--first must not be negative and --every at least 1");
    topology::row const local(topology::window{.predecessors = s.local},
                              topology::landmark{.stride = 1, .count = s.sinks});
    using layer = topology::row<topology::causal_shift, std::remove_const_t<decltype(local)>>;
    topology::topology_shape const shape{.heads = 1, .nodes = s.blocks};
    topology::node_ref const last{.head = 0, .node = s.blocks - 1};

    out.update({{"layers", s.layers},
                {"blocks", s.blocks},
                {"stage_count", schedule.stages()},
                {"local", s.local},
                {"sinks", s.sinks}});
    std::vector<layer> published;
    for (index_t ordinal = 0; ordinal < s.layers; ++ordinal) {
        index_t const absolute = s.first + s.every * ordinal;
        int const stage        = topology::published_stage(absolute, s.blocks);
        out["stages"].push_back(std::vector<int>(schedule[ordinal].begin(), schedule[ordinal].end()));
        out["published_layers"].push_back(absolute);
        out["published_stages"].push_back(stage);
        published.emplace_back(topology::causal_shift{{stage}}, local);
    }
    out["reach"]           = topology::reachable(schedule, shape, last, local);
    out["published_reach"] = topology::reachable(std::span<layer const>(published), shape, last);
    return out;
}

void print_schedule(json const& r) {
    auto const blocks = r["blocks"].get<index_t>();
    fmt::print("blocks         {}, {} stages reach them all\n", blocks, r["stage_count"].get<int>());
    for (std::size_t i = 0; i < r["stages"].size(); ++i)
        fmt::print("layer {:<8} stages {}; published, layer {}: {}\n", i,
                   fmt::join(r["stages"][i].get<std::vector<int>>(), " "), r["published_layers"][i].get<index_t>(),
                   r["published_stages"][i].get<int>());
    auto const percent = [&](char const* key) { return 100.0 * r[key].get<double>() / static_cast<double>(blocks); };
    fmt::print("last block     reaches {} of {} blocks ({:.1f} %)\n", r["reach"].get<index_t>(), blocks,
               percent("reach"));
    fmt::print("published      reaches {} of {} blocks ({:.1f} %)\n", r["published_reach"].get<index_t>(), blocks,
               percent("published_reach"));
}

void run(settings const& s, json heading) try {
    bench::check_writable(s.common.json);
    bench::check_writable(s.dump, "--dump");
    auto const m      = bench::make_machine(s.common.backend, s.common.threads);
    json const report = s.schedule ? report_schedule(s, std::move(heading)) : report_row(s, m, std::move(heading));
    if (s.common.json != "-") s.schedule ? print_schedule(report) : print_row(report);
    bench::write_json(report, s.common.json);
} catch (std::logic_error const& e) { // shapes, rules and room are the user's
    std::string_view what = e.what();
    if (what.starts_with("topology: ")) what.remove_prefix(10);
    throw bench::usage_error("{}", what);
} catch (bf::format_error const& e) {
    throw bench::usage_error("--dump {}: {}", s.dump, e.what());
}

/// What --row may say, for --help.
std::string rules_of_rows() {
    std::string text =
        "Rules of --row; a bare VALUE belongs to the first key, and lists are joined by +, as in causal_shift:0+3:";
    for (auto const& rule : bench::row_text::known_rules) {
        text += fmt::format("\n  {:<14} {}", rule.name, fmt::join(bench::row_text::split(rule.keys, ' '), ", "));
        if (!rule.note.empty()) text += fmt::format("; {}", rule.note);
    }
    return text;
}

} // namespace

int main(int argc, char** argv) {
    settings s;
    CLI::App app{
        "Builds a composition of topology rules, prints what it costs and connects, and times attention along it.",
        "topology"};
    app.set_version_flag("--version", fmt::format("topology (butterfly {}.{}.{})", BUTTERFLY_VERSION_MAJOR,
                                                  BUTTERFLY_VERSION_MINOR, BUTTERFLY_VERSION_PATCH));
    s.common.add_to(app);
    app.add_option("--row", s.row, "rules in order, NAME[:VALUE][:KEY=VALUE]... joined by commas")
        ->capture_default_str();
    app.add_option("--nodes", s.nodes, "tokens or blocks")->capture_default_str();
    app.add_option("--heads", s.heads, "heads")->capture_default_str();
    app.add_option("--max-degree", s.max_degree, "cut longer rows in the order written, self stays; 0: no cut")
        ->capture_default_str();
    app.add_option("--head-dim", s.head_dim, "of attention timed along the graph, nodes being tokens; 0: leave out")
        ->check(CLI::Range(0, 4096))
        ->capture_default_str();
    app.add_option("--hops", s.hops, "count nodes within this many hops; 0: leave out")
        ->check(CLI::Range(0, 64))
        ->capture_default_str();
    auto* const dump = app.add_option("--dump", s.dump, "write the graph to this .npz");
    app.add_flag("--schedule", s.schedule, "stages per attention layer and reach, instead of a graph")->excludes(dump);
    app.add_option("--layers", s.layers, "attention layers of the schedule")
        ->check(CLI::Range(1, 4096))
        ->capture_default_str();
    app.add_option("--blocks", s.blocks, "blocks of the schedule")->capture_default_str();
    app.add_option("--partners", s.partners, "stages per layer; 0: as few as use every stage")->capture_default_str();
    app.add_option("--local", s.local, "blocks before each block that every layer sees")->capture_default_str();
    app.add_option("--sinks", s.sinks, "first blocks that every layer sees")->capture_default_str();
    app.add_option("--first", s.first, "published stages: index of the first attention layer")->capture_default_str();
    app.add_option("--every", s.every, "published stages: layers from one attention layer to the next")
        ->capture_default_str();
    app.footer(rules_of_rows());
    return bench::run_program(app, argc, argv, [&] { run(s, bench::describe_run("topology", argc, argv)); });
}
