// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "chunkllm/core/status.hpp"

namespace chunkllm {

/// Shapes that the chunk state shares with its engine.
struct ChunkStateShape {
  std::int64_t num_layers = 0;
  std::int64_t hidden_size = 0;
  std::int64_t query_size = 0;  ///< num_heads * head_dim; of `on_layer_qk`
  std::int64_t kv_size = 0;     ///< num_kv_heads * head_dim; of `on_layer_qk`
  /// [num_layers] or empty: layers that keep a sliding window of their own and take no selection.
  std::vector<bool> windowed;
};

/// How a step's tokens read the past.
enum class ReadMode : std::uint8_t {
  kDense,       ///< all of the past; boundaries and chunk keys are gathered, no set is chosen
  kLayerLocal,  ///< each layer by its own sets: prefill, whatever the selection
  kAsDecode     ///< by `ChunkOptions::selection`; joined sets cut a step at each trigger
};

/// Errors: kInvalidArgument for a shape without layers or hidden size, or a `windowed` list of
/// another length.
inline Status validate(const ChunkStateShape& shape) {
  if (shape.num_layers < 1 || shape.hidden_size < 1) {
    return invalid_argument("the shape has " + std::to_string(shape.num_layers) +
                            " layers of hidden size " + std::to_string(shape.hidden_size));
  }
  if (!shape.windowed.empty() &&
      static_cast<std::int64_t>(shape.windowed.size()) != shape.num_layers) {
    return invalid_argument("windowed names " + std::to_string(shape.windowed.size()) +
                            " layers, expected none or " + std::to_string(shape.num_layers));
  }
  return {};
}

}  // namespace chunkllm
