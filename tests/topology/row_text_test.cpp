// SPDX-License-Identifier: MIT
#include <butterfly/topology/build.hpp>

#include "row_text.hpp"
#include "support/catch.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <set>
#include <string>

namespace bf       = butterfly;
namespace topology = butterfly::topology;

TEST_CASE("a row text builds the graph of the same rules", "[topology]") {
    topology::build_options const o{.heads = 2, .nodes = 33};
    REQUIRE(topology::build(o, bench::parse_row("cycle:seed=7,window:5,landmark:8,self")) ==
            topology::build(o, topology::cycle{.seed = 7}, topology::window{.predecessors = 5},
                            topology::landmark{.stride = 8}, topology::self{}));
    REQUIRE(topology::build(o, bench::parse_row("cycle:3:cycles=2:draw=disjoint,landmark:stride=4:count=2,"
                                                "causal_shift:4+0,fixed_stride:3:count=2,random:draws=0+1")) ==
            topology::build(o, topology::cycle{.seed = 3, .cycles = 2, .draw = topology::cycle_draw::disjoint},
                            topology::landmark{.stride = 4, .count = 2}, topology::causal_shift{{4, 0}},
                            topology::fixed_stride{.stride = 3, .count = 2}, topology::random_predecessor{{0, 1}}));
    REQUIRE(topology::build(o, bench::parse_row("xor:1,bit_reversal:0+5,benes:9")) ==
            topology::build(o, topology::xor_partner{{1}}, topology::bit_reversal{{0, 5}}, topology::benes{{9}}));
    REQUIRE(topology::build(o, bench::parse_row("cycle:draw=regular_partition:clusters=3")) ==
            topology::build(o, topology::cycle{.draw = topology::cycle_draw::regular_partition, .clusters = 3}));
    STATIC_REQUIRE(topology::preparable<bench::text_row>);
    STATIC_REQUIRE(topology::rule<bench::runtime_row>);
}

TEST_CASE("a row text that says nothing sensible is refused in one line that names the part", "[topology]") {
    for (char const* text : {"",
                             ",",
                             "self,",
                             "nope",
                             "nope:3",
                             "window:x",
                             "window:3x",
                             "window:",
                             "window:=3",
                             "window:3:4",
                             "window:width=3",
                             "window:3:predecessors=4",
                             "window:predecessors=",
                             "window:99999999999999999999",
                             "self:1",
                             "self:seed=1",
                             "cycle:seed=-1",
                             "cycle:draw=nope",
                             "causal_shift",
                             "causal_shift:",
                             "causal_shift:1+",
                             "causal_shift:-1",
                             "causal_shift:62",
                             "xor:1+x",
                             "window :3",
                             " self"}) {
        CAPTURE(text);
        REQUIRE_THROWS_AS(bench::parse_row(text), bench::row_text_error);
        REQUIRE_THROWS_WITH(bench::parse_row(text), Catch::Matchers::Contains("row text '"));
    }
    REQUIRE_THROWS_AS(topology::build({.heads = 1, .nodes = 8}, bench::parse_row("landmark:0")), bf::shape_error);
    REQUIRE_THROWS_AS(topology::build({.heads = 1, .nodes = 8}, bench::parse_row("xor:3")), bf::shape_error);
}

TEST_CASE("the page of programs lists the rules that a text can name, with their keys", "[topology]") {
    std::ifstream file(std::string(BUTTERFLY_TEST_DATA) + "/../../docs/programs.md");
    std::string const page{std::istreambuf_iterator<char>(file), {}};
    REQUIRE_FALSE(page.empty());
    for (auto const& [name, keys, note] : bench::row_text::known_rules) {
        CAPTURE(name);
        std::size_t const row = page.find("\n| `" + std::string(name) + "` | ");
        REQUIRE(row != std::string::npos);
        std::string const line = page.substr(row + 1, page.find('\n', row + 1) - row);
        for (std::string_view const key : bench::row_text::split(keys, ' '))
            REQUIRE((key.empty() || line.find('`' + std::string(key) + '`') != std::string::npos));
        std::ptrdiff_t const cells = std::count(line.begin(), line.end(), '|');
        REQUIRE(cells == 4);
        std::string const listed = line.substr(0, line.rfind('|', line.rfind('|') - 1)); // without the last cell
        for (std::size_t at = listed.find('`', name.size() + 4);
             at != std::string::npos;) { // and back: no key but those
            std::size_t const end  = listed.find('`', at + 1);
            std::string const word = listed.substr(at + 1, end - at - 1);
            CAPTURE(word);
            auto const known = bench::row_text::split(keys, ' ');
            REQUIRE((std::ranges::find(known, word) != known.end() || note.find(word) != std::string::npos));
            at = listed.find('`', end + 1);
        }
    }
}

TEST_CASE("every known rule is a rule of its own", "[topology]") {
    std::set<std::size_t> kinds;
    for (auto const& [name, keys, note] : bench::row_text::known_rules) {
        CAPTURE(name);
        std::string text(name);
        if (keys == "stages" || keys == "phases" || keys == "draws") text += ":0"; // a list must be given
        kinds.insert(bench::row_text::parse_rule(text).index());
    }
    REQUIRE(kinds.size() == std::size(bench::row_text::known_rules));
    REQUIRE(kinds.size() == std::variant_size_v<bench::text_row::any_rule>);
}
