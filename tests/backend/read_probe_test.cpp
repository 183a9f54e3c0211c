// SPDX-License-Identifier: MIT
#include <butterfly/backend/simd/raw_codec.hpp>
#include <butterfly/backend/simd/read_probe.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <array>
#include <vector>

namespace {

using butterfly::index_t;
using butterfly::backend::vec::read_probe;

using times = std::array<float, read_probe::patterns.size()>;

/// How often each pattern is read by in `spans` spans of a context, where a span takes `time` a byte, and every
/// `busy`th ten times as long.
std::array<int, read_probe::patterns.size()>
read(read_probe& probe, index_t bytes, times const& time, int spans, int busy = 9) {
    std::array<int, read_probe::patterns.size()> count{};
    for (int i = 0; i < spans; ++i) {
        read_probe::trial const t = probe.next(bytes);
        auto const pattern        = static_cast<std::size_t>(t.pattern);
        ++count[pattern];
        if (t.timed) probe.tell(t, time[pattern] * (i % busy == busy - 1 ? 10.0F : 1.0F));
    }
    return count;
}

} // namespace

TEST_CASE("spans are read by the pattern that is fastest", "[backend]") {
    for (std::size_t best = 0; best < read_probe::patterns.size(); ++best) {
        read_probe probe;
        times time{1.0F, 1.0F, 1.0F, 1.0F, 1.0F, 1.0F};
        time[best] = 0.6F;
        read(probe, 1 << 22, time, 200);
        REQUIRE(read(probe, 1 << 22, time, 1000)[best] > 900);
    }
    read_probe probe; // as good as equal: the first
    REQUIRE(read(probe, 1 << 22, {1.0F, 0.99F, 1.0F, 0.98F, 1.0F, 1.0F}, 1000, 2000)[0] > 900);
}

TEST_CASE("a pattern that has become slow is left", "[backend]") {
    read_probe probe;
    read(probe, 1 << 22, {1.0F, 0.5F, 1.0F, 1.0F, 1.0F, 1.0F}, 500); // in a cache
    read(probe, 1 << 22, {1.0F, 3.0F, 2.0F, 2.0F, 2.0F, 2.0F}, 1000);
    REQUIRE(read(probe, 1 << 22, {1.0F, 3.0F, 2.0F, 2.0F, 2.0F, 2.0F}, 1000)[0] > 900);
}

TEST_CASE("a pattern that has become fast is found", "[backend]") {
    read_probe probe;
    read(probe, 1 << 22, {1.0F, 3.0F, 2.0F, 2.0F, 2.0F, 2.0F}, 500);
    read(probe, 1 << 22, {1.0F, 0.5F, 1.0F, 1.0F, 1.0F, 1.0F}, 1000); // it is in a cache now
    REQUIRE(read(probe, 1 << 22, {1.0F, 0.5F, 1.0F, 1.0F, 1.0F, 1.0F}, 1000)[1] > 900);
}

TEST_CASE("contexts of other sizes are read by other patterns", "[backend]") {
    read_probe probe;
    for (int i = 0; i < 100; ++i) {
        read(probe, 1 << 20, {1.0F, 0.5F, 1.0F, 1.0F, 1.0F, 1.0F}, 10);
        read(probe, index_t{1} << 40, {1.0F, 3.0F, 1.0F, 0.5F, 1.0F, 1.0F}, 10);
        read(probe, 0, {1.0F, 3.0F, 0.5F, 1.0F, 1.0F, 1.0F}, 10);
    }
    REQUIRE(read(probe, 1 << 20, {1.0F, 0.5F, 1.0F, 1.0F, 1.0F, 1.0F}, 100)[1] > 85);
    REQUIRE(read(probe, index_t{1} << 40, {1.0F, 3.0F, 1.0F, 0.5F, 1.0F, 1.0F}, 100)[3] > 85);
    REQUIRE(read(probe, 0, {1.0F, 3.0F, 0.5F, 1.0F, 1.0F, 1.0F}, 100)[2] > 85);
}

TEST_CASE("rows that are read in turns are each read once", "[backend]") {
    for (butterfly::backend::vec::read_pattern const& pattern : read_probe::patterns) {
        std::array<int, butterfly::tile_slots> seen{};
        for (int k = 0; k < butterfly::tile_slots; ++k) ++seen.at(static_cast<std::size_t>(pattern.turn(k)));
        REQUIRE(std::ranges::count(seen, 1) == butterfly::tile_slots);
        REQUIRE(pattern.turn(1) == (pattern.streams == 1 ? 1 : butterfly::tile_slots / pattern.streams));
    }
}

TEST_CASE("passes over values take every byte of the rows ahead once", "[backend]") {
    namespace vec = butterfly::backend::vec;
    std::array<std::byte, 5> const memory{};
    std::array<std::byte const*, 5> rows{};
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = memory.data() + i;
    for (bool const in_order : {true, false})
        for (index_t const bytes : {2, 64, 160, 256, 512, 1032})
            for (index_t const passes : {1, 2, 3, 7}) {
                CAPTURE(in_order, bytes, passes);
                index_t const skip = 1000;
                vec::rows_ahead const ahead{rows.data(), 5, bytes, skip, 0, in_order};
                vec::pieces_ahead pieces(ahead, passes);
                std::array<std::vector<int>, 5> taken;
                for (auto& row : taken) row.resize(static_cast<std::size_t>(bytes));
                index_t last = -1;
                for (index_t pass = 0; pass < passes; ++pass) {
                    for (int key = 0; key < 5; ++key) {
                        auto const piece = pieces.take();
                        if (piece.row == nullptr) continue;
                        REQUIRE(std::ranges::count(rows, piece.row) == 1);
                        index_t const row = piece.row - rows[0], from = piece.from - skip;
                        REQUIRE((0 <= from && from < bytes));
                        for (index_t b = from; b < std::min(from + pieces.size(), bytes); ++b)
                            ++taken[static_cast<std::size_t>(row)][static_cast<std::size_t>(b)];
                        if (in_order) REQUIRE(row * bytes + from > last);
                        last = row * bytes + from;
                    }
                    pieces.end_pass();
                }
                for (auto const& row : taken) REQUIRE(std::ranges::count(row, 1) == bytes);
            }
    vec::pieces_ahead none(vec::rows_ahead{}, 2);
    REQUIRE(none.take().row == nullptr);
}
