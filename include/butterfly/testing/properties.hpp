// SPDX-License-Identifier: MIT
#pragma once

// The laws every backend keeps, as templates over its policy. A law is a function (policy, sweep) -> report; it needs
// no test framework, and a backend's test is one loop:
//
//   for (auto const& law : testing::laws<backend::mine>()) {
//       testing::report const r = law.check(backend::mine{}, {.seed = 1});
//       if (!r) fail(law.name, r.text);
//   }
//
// `sweep` says which kernel classes the backend has and how it multiplies; see testing/laws/law.hpp. Host memory.

#include <butterfly/testing/laws/invariance.hpp>
#include <butterfly/testing/laws/options.hpp>
#include <butterfly/testing/laws/shapes.hpp>
#include <butterfly/testing/laws/storage.hpp>
#include <butterfly/testing/laws/structure.hpp>
#include <butterfly/testing/laws/values.hpp>

#include <array>

namespace butterfly::testing {

/// All laws of a policy, each under its own name, with keys and values kept as KV where the law leaves that open.
template <class Policy, element KV = float>
[[nodiscard]] constexpr auto laws() {
    return std::array{
        law<Policy>{"head_dims match the definition", &head_dims_match_definition<Policy, KV>},
        law<Policy>{"groups match the definition", &groups_match_definition<Policy, KV>},
        law<Policy>{"lengths match the definition", &lengths_match_definition<Policy, KV>},
        law<Policy>{"visibilities match the definition", &visibilities_match_definition<Policy, KV>},
        law<Policy>{"long contexts match the definition", &long_contexts_match_definition<Policy, KV>},
        law<Policy>{"distributions match the definition", &distributions_match_definition<Policy, KV>},
        law<Policy>{"element types are independent", &element_types_are_independent<Policy>},
        law<Policy>{"sparse has a dense limit", &sparse_has_a_dense_limit<Policy, KV>},
        law<Policy>{"causality is exact", &causality_is_exact<Policy, KV>},
        law<Policy>{"neighbour order and pads are inert", &neighbour_order_and_pads_are_inert<Policy, KV>},
        law<Policy>{"shared heads equal repeated heads", &shared_heads_equal_repeated_heads<Policy, KV>},
        law<Policy>{"queries outside the rows see nothing", &queries_outside_the_rows_see_nothing<Policy, KV>},
        law<Policy>{"empty rows are zero", &empty_rows_are_zero<Policy, KV>},
        law<Policy>{"outputs are convex", &outputs_are_convex<Policy, KV>},
        law<Policy>{"chunking changes no bit", &chunking_changes_no_bit<Policy, KV>},
        law<Policy>{"keys out of sight change no bit", &keys_out_of_sight_change_no_bit<Policy, KV>},
        law<Policy>{"executors change no bit", &executors_change_no_bit<Policy, KV>},
        law<Policy>{"groups of rows change no bit", &groups_of_rows_change_no_bit<Policy, KV>},
        law<Policy>{"batches change no bit", &batches_change_no_bit<Policy, KV>},
        law<Policy>{"layouts do not matter", &layouts_do_not_matter<Policy, KV>},
        law<Policy>{"rows stand at any byte", &rows_stand_at_any_byte<Policy, KV>},
        law<Policy>{"pages and rings equal contiguous storage", &pages_and_rings_equal_contiguous_storage<Policy, KV>},
        law<Policy>{"key_positions equal order", &key_positions_equal_order<Policy>},
        law<Policy>{"foreign codecs are read", &foreign_codecs_are_read<Policy>},
        law<Policy>{"pools join in one softmax", &pools_join_in_one_softmax<Policy>},
        law<Policy>{"options match the definition", &options_match_definition<Policy, KV>},
        law<Policy>{"random calls match the definition", &random_calls_match_definition<Policy, KV>},
        law<Policy>{"a workspace is exact", &workspace_is_exact<Policy, KV>},
        law<Policy>{"values that are not finite reach who sees them",
                    &non_finite_values_reach_who_sees_them<Policy, KV>},
        law<Policy>{"hidden slots are never felt", &hidden_slots_are_never_felt<Policy, KV>},
    };
}

} // namespace butterfly::testing
