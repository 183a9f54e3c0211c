// SPDX-License-Identifier: MIT
#pragma once

// The umbrella for host programs: graph, topology, attention, caches, the scalar and SIMD backends. No GPU headers, no
// Eigen.

#include <butterfly/backend/scalar.hpp>
#include <butterfly/backend/simd.hpp>
#include <butterfly/cache/attend.hpp>
#include <butterfly/cache/compressed_kv_cache.hpp>
#include <butterfly/cache/mixed_attend.hpp>
#include <butterfly/cache/mixed_kv_cache.hpp>
#include <butterfly/cache/save.hpp>
#include <butterfly/cache/shift.hpp>
#include <butterfly/core/executor.hpp>
#include <butterfly/core/heads.hpp>
#include <butterfly/graph/graph.hpp>
#include <butterfly/graph/io.hpp>
#include <butterfly/graph/metrics.hpp>
#include <butterfly/graph/validate.hpp>
#include <butterfly/quant/affine.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/quant/outliers.hpp>
#include <butterfly/quant/trellis.hpp>
#include <butterfly/sdpa/attend.hpp>
#include <butterfly/sdpa/dense_sdpa.hpp>
#include <butterfly/sdpa/merge.hpp>
#include <butterfly/sdpa/sparse_sdpa.hpp>
#include <butterfly/topology/ablation.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/causal_shift.hpp>
#include <butterfly/topology/cycle.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/reach.hpp>
#include <butterfly/topology/rewire.hpp>
#include <butterfly/topology/window.hpp>
#include <butterfly/version.hpp>
