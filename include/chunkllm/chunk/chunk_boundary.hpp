// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "chunkllm/core/simd.hpp"

namespace chunkllm {

/// Limits on chunk length in tokens (ours, not the paper's): no chunk shorter than `min_len`
/// ends of its own accord, and none grows past `max_len`.
struct ChunkGuards {
  std::int64_t min_len = 4;
  std::int64_t max_len = 128;
};

struct BoundaryDecision {
  bool boundary = false;
  bool forced = false;  ///< only because the chunk reached `max_len`
};

/// Whether the open chunk ends with its newest token.
///
/// \param open_len  tokens of the open chunk, the newest included
/// \param wanted    what the Chunk Adapter or the sentence rules say of that token
constexpr BoundaryDecision decide_boundary(std::int64_t open_len, bool wanted,
                                           const ChunkGuards& guards) {
  if (wanted && open_len >= guards.min_len) return {true, false};
  if (open_len >= guards.max_len) return {true, true};
  return {};
}

/// The paper's Chunk Adapter, read literally: sigmoid(w . h + b) on the first layer's output.
///
/// h is the residual stream behind layer 1, without a norm. A feature-wise standardisation used in
/// training is folded into w and b. Source: ChunkLLM, arXiv 2510.02361, the boundary formula
/// y_i = 1 iff Sigmoid(FFN(H_i)) > alpha.
struct ChunkAdapter {
  std::vector<float> weight;  ///< [hidden_size]
  float bias = 0.0F;
  float threshold = 0.5F;  ///< alpha

  /// Probability that a chunk ends with the token whose first-layer output is `hidden`.
  [[nodiscard]] float probability(const float* hidden) const {
    const float logit =
        simd::dot(weight.data(), hidden, static_cast<std::int64_t>(weight.size())) + bias;
    return 1.0F / (1.0F + std::exp(-logit));
  }
};

}  // namespace chunkllm
