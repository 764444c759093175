// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "chunkllm/chunk/qk_adapter.hpp"
#include "support/random_values.hpp"

namespace chunkllm::testing {

struct RandomAdapterOptions {
  std::int64_t hidden_size = 0;
  std::int64_t key_dim = 0;
  bool has_null = false;
  bool has_bias = false;
  KeyPooling pooling = KeyPooling::kMean;
  bool adds_log_length = true;
};

/// Two layers of 4 heads on 2 key heads.
inline QkAdapter random_adapter(const RandomAdapterOptions& options) {
  std::vector<QkAdapterLayer> layers(2);
  for (std::uint32_t l = 0; l < 2; ++l) {
    layers[l].query_weight = random_values(4 * options.key_dim * options.hidden_size, 10 + l);
    layers[l].key_weight = random_values(2 * options.key_dim * options.hidden_size, 20 + l);
    if (options.has_bias) layers[l].distance_bias = random_values(4 * kNumDistanceBins, 30 + l);
    if (options.has_null) {
      layers[l].null_weight = random_values(4 * options.hidden_size, 40 + l);
      layers[l].null_bias = random_values(4, 50 + l);
    }
  }
  return QkAdapter(std::move(layers), options.hidden_size, 4, 2, options.key_dim, options.pooling,
                   options.adds_log_length);
}

}  // namespace chunkllm::testing
