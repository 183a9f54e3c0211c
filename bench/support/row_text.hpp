// SPDX-License-Identifier: MIT
#pragma once

// Rows written as text, for command lines:
//
//   ROW  = RULE { "," RULE }
//   RULE = NAME [ ":" VALUE ] { ":" KEY "=" VALUE }         a bare value belongs to the first key of the rule
//
// Rules and their keys are `known_rules`; lists are joined by "+": causal_shift:0+3. For example
// cycle:seed=7,window:64,landmark:64,self. The result is composed at run time and is used like any other
// parameters of a row: topology::build, topology::prepare, topology::make_row_source.

#include <butterfly/topology/ablation.hpp>
#include <butterfly/topology/cycle.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/window.hpp>

#include <algorithm>
#include <charconv>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace bench {

namespace topology = butterfly::topology;
using butterfly::index_t;

/// A row text that says nothing sensible; one line that names the part.
struct row_text_error : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

/// One rule of those a text can name; a cycle is described before it is prepared, and a list of edges after.
template <class Cycle>
using any_rule_with = std::variant<Cycle,
                                   topology::window,
                                   topology::landmark,
                                   topology::self,
                                   topology::causal_shift,
                                   topology::xor_partner,
                                   topology::bit_reversal,
                                   topology::benes,
                                   topology::fixed_stride,
                                   topology::random_predecessor>;

/// Rules chosen at run time, in order; a topology::rule.
class runtime_row {
public:
    using any_rule = any_rule_with<topology::cycle_edges>;

    template <topology::rule R>
    void push_back(R rule) {
        rules_.emplace_back(std::move(rule));
    }

    void check(topology::topology_shape shape) const {
        for (any_rule const& any : rules_) std::visit([&](auto const& rule) { topology::check(rule, shape); }, any);
    }

    template <class Sink>
    void emit(topology::topology_shape shape, topology::node_ref at, Sink& sink) const noexcept {
        for (any_rule const& any : rules_) std::visit([&](auto const& rule) { rule.emit(shape, at, sink); }, any);
    }

private:
    std::vector<any_rule> rules_;
};

/// What a row text says; topology::prepare makes a runtime_row of it.
class text_row {
public:
    using any_rule = any_rule_with<topology::cycle>;

    explicit text_row(std::vector<any_rule> rules) : rules_(std::move(rules)) {}

    [[nodiscard]] std::vector<any_rule> const& rules() const noexcept { return rules_; }

    [[nodiscard]] runtime_row prepare(topology::topology_shape shape) const {
        runtime_row out;
        for (any_rule const& any : rules_)
            std::visit([&](auto const& rule) { out.push_back(topology::prepare(rule, shape)); }, any);
        return out;
    }

private:
    std::vector<any_rule> rules_;
};

namespace row_text {

/// A rule that a text can name, and its keys: those the parser knows, with spaces between.
struct known_rule {
    std::string_view name, keys, note{};
};

inline constexpr known_rule known_rules[] = {
    {"cycle", "seed cycles draw clusters", "draw: independent, disjoint or regular_partition"},
    {"window", "predecessors"},
    {"landmark", "stride count"},
    {"self", ""},
    {"causal_shift", "stages"},
    {"xor", "stages"},
    {"bit_reversal", "stages"},
    {"benes", "phases"},
    {"fixed_stride", "stride count"},
    {"random", "draws"}};

[[nodiscard]] inline std::vector<std::string_view> split(std::string_view text, char at) {
    std::vector<std::string_view> out;
    for (;;) {
        std::size_t const end = text.find(at);
        out.push_back(text.substr(0, end));
        if (end == std::string_view::npos) return out;
        text.remove_prefix(end + 1);
    }
}

/// One rule of a row: its name and the values not yet asked for.
class rule_text {
public:
    explicit rule_text(std::string_view text) : text_(text) {
        auto const parts = split(text, ':');
        name_            = parts[0];
        auto const* rule = std::ranges::find(known_rules, name_, &known_rule::name);
        if (rule == std::end(known_rules)) {
            std::string known;
            for (known_rule const& r : known_rules) known += (known.empty() ? "" : ", ") + std::string(r.name);
            bad("no rule '" + std::string(name_) + "'; there is " + known);
        }
        auto const keys = rule->keys.empty() ? std::vector<std::string_view>{} : split(rule->keys, ' ');
        for (std::size_t i = 1; i < parts.size(); ++i) {
            std::size_t const equals = parts[i].find('=');
            bool const bare          = equals == std::string_view::npos;
            if (bare && (i != 1 || keys.size() == 0)) bad("'" + std::string(parts[i]) + "' has no key");
            std::string_view const key = bare ? keys[0] : parts[i].substr(0, equals);
            if (std::find(keys.begin(), keys.end(), key) == keys.end()) bad("no key '" + std::string(key) + "'");
            if (!find(key).empty()) bad("key '" + std::string(key) + "' twice");
            std::string_view const value = bare ? parts[i] : parts[i].substr(equals + 1);
            if (value.empty()) bad("key '" + std::string(key) + "' has no value");
            values_.emplace_back(key, value);
        }
    }

    [[noreturn]] void bad(std::string const& what) const {
        throw row_text_error("row text '" + std::string(text_) + "': " + what);
    }

    [[nodiscard]] std::string_view name() const noexcept { return name_; }

    [[nodiscard]] std::string_view find(std::string_view key) const noexcept {
        for (auto const& [name, value] : values_)
            if (name == key) return value;
        return {};
    }

    template <class Integer>
    [[nodiscard]] Integer number(std::string_view key, Integer otherwise) const {
        std::string_view const text = find(key);
        return text.empty() ? otherwise : parse<Integer>(key, text);
    }

    /// A list that must be there.
    [[nodiscard]] topology::stage_list list(std::string_view key) const {
        if (find(key).empty()) bad("needs " + std::string(key));
        topology::stage_list out;
        for (std::string_view const item : split(find(key), '+')) {
            int const stage = parse<int>(key, item);
            if (stage < 0 || stage >= topology::stage_list::capacity || out.size() == topology::stage_list::capacity)
                bad("stage " + std::to_string(stage) + " is outside [0, " +
                    std::to_string(topology::stage_list::capacity) + ")");
            out.push_back(stage);
        }
        return out;
    }

private:
    template <class Integer>
    [[nodiscard]] Integer parse(std::string_view key, std::string_view text) const {
        Integer value{};
        auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (error != std::errc() || end != text.data() + text.size())
            bad("'" + std::string(text) + "' is no number for " + std::string(key));
        return value;
    }

    std::string_view text_, name_{};
    std::vector<std::pair<std::string_view, std::string_view>> values_;
};

[[nodiscard]] inline topology::cycle parse_cycle(rule_text const& in) {
    topology::cycle out;
    out.seed                    = in.number("seed", out.seed);
    out.cycles                  = in.number("cycles", out.cycles);
    out.clusters                = in.number("clusters", out.clusters);
    std::string_view const draw = in.find("draw");
    if (draw == "disjoint")
        out.draw = topology::cycle_draw::disjoint;
    else if (draw == "regular_partition")
        out.draw = topology::cycle_draw::regular_partition;
    else if (!draw.empty() && draw != "independent")
        in.bad("no draw '" + std::string(draw) + "'; independent, disjoint and regular_partition are known");
    return out;
}

[[nodiscard]] inline text_row::any_rule parse_rule(std::string_view text) {
    rule_text const in(text);
    if (in.name() == "cycle") return parse_cycle(in);
    if (in.name() == "window") return topology::window{in.number<index_t>("predecessors", 0)};
    if (in.name() == "landmark") {
        topology::landmark const otherwise;
        return topology::landmark{in.number("stride", otherwise.stride), in.number("count", otherwise.count)};
    }
    if (in.name() == "self") return topology::self{};
    if (in.name() == "causal_shift") return topology::causal_shift{in.list("stages")};
    if (in.name() == "xor") return topology::xor_partner{in.list("stages")};
    if (in.name() == "bit_reversal") return topology::bit_reversal{in.list("stages")};
    if (in.name() == "benes") return topology::benes{in.list("phases")};
    if (in.name() == "fixed_stride")
        return topology::fixed_stride{in.number<index_t>("stride", 1), in.number<index_t>("count", 1)};
    if (in.name() == "random") return topology::random_predecessor{in.list("draws")};
    in.bad("this rule is known, and nothing builds it");
}

} // namespace row_text

/// Parses a row; see the head of this file. Throws row_text_error. Parameters are checked against a shape when the row
/// is prepared.
[[nodiscard]] inline text_row parse_row(std::string_view text) {
    std::vector<text_row::any_rule> rules;
    for (std::string_view const rule : row_text::split(text, ',')) rules.push_back(row_text::parse_rule(rule));
    return text_row(std::move(rules));
}

} // namespace bench
