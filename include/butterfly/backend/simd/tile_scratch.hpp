// SPDX-License-Identifier: MIT
#pragma once

// Memory of the tile class: what one thread holds of an item.

#include <butterfly/backend/host/workspace.hpp>
#include <butterfly/backend/simd/lanes.hpp>
#include <butterfly/backend/simd/tile_part.hpp>
#include <butterfly/backend/simd/tile_unit.hpp>

#include <algorithm>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// What an item's memory is for.
struct tile_extent {
    index_t rows;   // of the item, or of the largest one
    index_t dk, dv; // columns of keys and of values
    bool masked;    // there is an additive mask
    bool spanned;   // keys are walked in spans
    bool rounded;   // rows of some storages are rounded to bfloat16
};

/// One thread's memory of the tile class.
struct tile_scratch {
    std::uint32_t* queries; // [strips][head_dim or pairs of it][strip]
    std::uint32_t* keys;    // a tile, as the unit packs it
    std::uint32_t* values;  // a tile, as the unit packs it
    float* scores;          // [tile_slots][strip]; weights take their place
    std::byte* part;        // tile_part: of the span that is walked, or of all pools
    std::byte* total;       // tile_part: of the spans before
    float* factor;          // [strip]
    float* begin;           // [rows]: rows see keys [begin, end) of a partial tile
    float* end;             // [rows]
    float* slope;           // [rows]: ALiBi
    float* position;        // [rows]: relative to the item's first
    float* mask;            // [rows][tile_slots]: the additive mask of a tile
    float* rows;            // [rows_at_once][head_dim]: rows on their way in and out
    bfloat16* key_rows;     // [tile_slots][dk]: rows rounded for the unit
    bfloat16* value_rows;   // [tile_slots][dv]

    [[nodiscard]] static index_t bytes(tile_unit const& unit, tile_extent const& e) noexcept {
        tile_scratch nothing;
        return nothing.carve(unit, e, nullptr);
    }

    tile_scratch(tile_unit const& unit, tile_extent const& e, std::byte* memory) noexcept { carve(unit, e, memory); }

    /// Words of the queries of a strip.
    [[nodiscard]] static index_t query_words(tile_unit const& unit, index_t dk) noexcept {
        return detail::round_up(dk, operand_step) / unit.pairs * unit.strip;
    }

private:
    tile_scratch() noexcept = default;

    /// Places the arrays; returns their bytes.
    index_t carve(tile_unit const& unit, tile_extent const& e, std::byte* memory) noexcept {
        host::carver c(memory);
        index_t const all    = tile_part::padded(unit, e.rows);
        index_t const strips = all / unit.strip;
        queries              = c.take<std::uint32_t>(strips * query_words(unit, e.dk));
        keys                 = c.take<std::uint32_t>(operand_words(e.dk));
        values               = c.take<std::uint32_t>(operand_words(e.dv));
        scores               = c.take<float>(tile_slots * unit.strip);
        part                 = c.take<std::byte>(tile_part::bytes(unit, all, e.dv));
        total                = c.take<std::byte>(e.spanned ? tile_part::bytes(unit, all, e.dv) : 0);
        for (float** array : {&begin, &end, &slope, &position}) *array = c.take<float>(all);
        factor     = c.take<float>(unit.strip);
        rows       = c.take<float>(rows_at_once * std::max(e.dk, e.dv));
        mask       = c.take<float>(e.masked ? all * tile_slots : 0);
        key_rows   = c.take<bfloat16>(e.rounded ? tile_slots * e.dk : 0);
        value_rows = c.take<bfloat16>(e.rounded ? tile_slots * e.dv : 0);
        return c.taken();
    }
};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
