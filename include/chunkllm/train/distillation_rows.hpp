// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/eval/head_mass.hpp"

namespace chunkllm {

/// What one layer's QK Adapter learns from one sequence: R rows (triggers) over C closed chunks.
struct DistillationRows {
  MatrixView<const float> inputs;  ///< [R, hidden_size] the layer's normed inputs at the triggers
  MatrixView<const float> pooled;  ///< [C, hidden_size] what a chunk's key is made of: the mean of
                                   ///< its tokens' inputs, or the last one (`KeyPooling`)
  std::span<const std::int64_t> triggers;        ///< [R] token positions
  std::span<const std::int64_t> chunk_ends;      ///< [C] exclusive, strictly ascending, above 0
  std::span<const std::int64_t> candidate_ends;  ///< [R] candidates are chunks [1, end)
  std::span<const float> weights;                ///< [R] at least 0; a row of weight 0 is not read
  /// [R, num_heads, C] the teacher: attention mass of each chunk under each head of the backbone.
  /// Only the columns of a row's candidates are read.
  std::span<const float> mass;
};

namespace detail {

/// Errors: kInvalidArgument where a part of `layer` has another size than the shape asks for.
inline Status check_adapter_sizes(const char* name, const QkAdapterLayer& layer,
                                  const ScorerShape& shape, bool has_bias) {
  const auto check = [&](const char* part, const std::vector<float>& values,
                         std::int64_t expected) -> Status {
    if (static_cast<std::int64_t>(values.size()) == expected) return {};
    return invalid_argument(std::string(name) + "." + part + " has " +
                            std::to_string(values.size()) + " values, expected " +
                            std::to_string(expected));
  };
  const std::int64_t hidden = shape.state_size;
  CHUNKLLM_RETURN_IF_ERROR(
      check("query_weight", layer.query_weight, shape.num_heads * shape.key_dim * hidden));
  CHUNKLLM_RETURN_IF_ERROR(check("key_weight", layer.key_weight, shape.key_size() * hidden));
  CHUNKLLM_RETURN_IF_ERROR(check("distance_bias", layer.distance_bias,
                                 has_bias ? shape.num_heads * kNumDistanceBins : 0));
  CHUNKLLM_RETURN_IF_ERROR(check("null_weight", layer.null_weight, shape.num_heads * hidden));
  return check("null_bias", layer.null_bias, shape.num_heads);
}

/// Errors: kInvalidArgument where sizes disagree, chunks are not ascending, a row's candidates are
/// not closed at its trigger, or a weight is negative or not finite.
inline Status check_rows(const DistillationRows& rows, const ScorerShape& shape) {
  const std::int64_t num_rows = rows.inputs.rows;
  const std::int64_t num_chunks = rows.pooled.rows;
  const auto check = [](const std::string& name, std::int64_t value,
                        std::int64_t expected) -> Status {
    if (value == expected) return {};
    return invalid_argument(name + " is " + std::to_string(value) + ", expected " +
                            std::to_string(expected));
  };
  const auto size = [](const auto& span) { return static_cast<std::int64_t>(span.size()); };
  CHUNKLLM_RETURN_IF_ERROR(check("inputs.cols", rows.inputs.cols, shape.state_size));
  CHUNKLLM_RETURN_IF_ERROR(check("pooled.cols", rows.pooled.cols, shape.state_size));
  CHUNKLLM_RETURN_IF_ERROR(check("triggers.size", size(rows.triggers), num_rows));
  CHUNKLLM_RETURN_IF_ERROR(check("candidate_ends.size", size(rows.candidate_ends), num_rows));
  CHUNKLLM_RETURN_IF_ERROR(check("weights.size", size(rows.weights), num_rows));
  CHUNKLLM_RETURN_IF_ERROR(check("chunk_ends.size", size(rows.chunk_ends), num_chunks));
  CHUNKLLM_RETURN_IF_ERROR(
      check("mass.size", size(rows.mass), num_rows * shape.num_heads * num_chunks));
  CHUNKLLM_RETURN_IF_ERROR(check_ascending("chunk_ends", rows.chunk_ends, 1));
  for (std::size_t r = 0; r < rows.triggers.size(); ++r) {
    const std::int64_t end = rows.candidate_ends[r];
    const std::int64_t closed =
        std::upper_bound(rows.chunk_ends.begin(), rows.chunk_ends.end(), rows.triggers[r] + 1) -
        rows.chunk_ends.begin();
    if (end < 0 || end > closed) {
      return invalid_argument("candidate_ends[" + std::to_string(r) + "] is " +
                              std::to_string(end) + ", expected 0 to " + std::to_string(closed) +
                              ", the chunks closed at the trigger");
    }
    if (!(rows.weights[r] >= 0.0F && rows.weights[r] <= std::numeric_limits<float>::max())) {
      return invalid_argument("weights[" + std::to_string(r) + "] is " +
                              std::to_string(rows.weights[r]) +
                              ", expected a finite number of at least 0");
    }
  }
  return {};
}

/// Errors: as of the checks above, and kUnsupported without a null class.
inline Status check_distillation(const QkAdapterLayer& weights, const ScorerShape& shape,
                                 const DistillationRows& rows) {
  CHUNKLLM_RETURN_IF_ERROR(validate(shape));
  if (shape.num_heads == 0 || !shape.has_null_logits) {
    return unsupported("training needs a QK Adapter with null.weight and null.bias");
  }
  CHUNKLLM_RETURN_IF_ERROR(
      check_adapter_sizes("weights", weights, shape, !weights.distance_bias.empty()));
  return check_rows(rows, shape);
}

}  // namespace detail

}  // namespace chunkllm
