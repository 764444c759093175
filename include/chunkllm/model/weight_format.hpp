// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace chunkllm {

/// How matrix weights are held in memory and multiplied (`--weights`).
///
/// Weights of 4 and 8 bits are multiplied with activations of 8 bits (see `PackedBlocks`), the
/// others with f32 activations (see `PackedWeights`), in decode and prefill alike.
enum class WeightFormat : std::uint8_t {
  kKeep,  ///< the file's own precision
  kF32,
  kBF16,
  kInt8  ///< 8 bits, one f16 scale for 32 input features, as in Q8_0
};

}  // namespace chunkllm
