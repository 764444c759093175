// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels {

inline constexpr int kRandomThreads = 256;
inline constexpr std::int64_t kMaxRandomBlocks = 4096;

/// What `launch_random_weights` writes.
template <typename T>
struct RandomWeightsArgs {
  T* values = nullptr;  ///< [count]; __half, __nv_bfloat16 or float
  std::int64_t count = 0;
  std::uint64_t seed = 0;
  float mean = 0.0F;
  float deviation = 0.02F;
};

template <typename T>
__global__ void __launch_bounds__(kRandomThreads)
    random_weights_kernel(const RandomWeightsArgs<T> args) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kRandomThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kRandomThreads + threadIdx.x;
       i < args.count; i += step) {
    // SplitMix64 of (seed, index); the sum of its four 16 bit parts is close to normal.
    std::uint64_t z = args.seed + (static_cast<std::uint64_t>(i) + 1) * 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    z ^= z >> 31;
    const auto sum =
        static_cast<float>((z & 0xffffU) + (z >> 16 & 0xffffU) + (z >> 32 & 0xffffU) + (z >> 48));
    constexpr float kMean = 2.0F * 65535.0F;
    constexpr float kInverseDeviation = 2.64296e-5F;  // sqrt(12 / 4) / 65536
    const float value = args.mean + args.deviation * ((sum - kMean) * kInverseDeviation);
    if constexpr (sizeof(T) == sizeof(float)) {
      args.values[i] = value;
    } else {
      args.values[i] = Element<T>::from_float(value);
    }
  }
}

/// Values of about normal distribution, the same for a seed wherever they are made: for work on
/// speed, where a model's true weights do not matter.
///
/// Values lie within 3.5 deviations of the mean. Errors: kInvalidArgument for a null pointer or a
/// negative count.
template <typename T>
inline Status launch_random_weights(const RandomWeightsArgs<T>& args, cudaStream_t stream) {
  if (args.count == 0) return {};
  if (args.count < 0 || args.values == nullptr) {
    return invalid_argument("random_weights: " + std::to_string(args.count) +
                            " values, expected no negative number and no null pointer");
  }
  const std::int64_t num_blocks =
      std::min(kMaxRandomBlocks, ceil_div<std::int64_t>(args.count, kRandomThreads));
  random_weights_kernel<T><<<static_cast<unsigned>(num_blocks), kRandomThreads, 0, stream>>>(args);
  return cuda::launch_status("random_weights_kernel");
}

}  // namespace chunkllm::kernels
