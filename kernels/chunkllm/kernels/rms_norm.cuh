// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/dependent_launch.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/row_strides.cuh"

namespace chunkllm::kernels {

/// A block of this many threads norms a row, wherever it happens: the order of the sum, and so its
/// bits, depend on it.
inline constexpr int kNormThreads = 256;
inline constexpr int kNormWarps = kNormThreads / kWarpSize;

/// What `launch_rms_norm` reads and writes. Strides of 0 stand for rows side by side.
///
/// \tparam T  __half or __nv_bfloat16
template <typename T>
struct RmsNormArgs {
  float* residual = nullptr;  ///< [num_rows, size], written only where there is an update
  std::int64_t residual_stride = 0;
  const T* maybe_update = nullptr;  ///< [num_rows, size] or null: added to the residual first
  std::int64_t update_stride = 0;
  const float* weight = nullptr;  ///< [size]
  float eps = 0.0F;
  T* normed = nullptr;  ///< [num_rows, size]
  std::int64_t normed_stride = 0;
  std::int32_t num_rows = 0;
  std::int32_t size = 0;  ///< a multiple of 8
  /// Begins before the kernel in front has ended, where the device can; `weight` must be constant
  /// then. False: where the kernel in front writes it.
  bool overlaps = true;
};

/// The calling thread's share of a row's sum of squares, in one chain.
__device__ inline float thread_sum_of_squares(const float* row, int size) {
  float sum = 0.0F;
  for (int i = static_cast<int>(threadIdx.x) * 4; i < size; i += kNormThreads * 4) {
    const float4 v = *reinterpret_cast<const float4*>(row + i);
    sum = fmaf(v.x, v.x, sum);
    sum = fmaf(v.y, v.y, sum);
    sum = fmaf(v.z, v.z, sum);
    sum = fmaf(v.w, v.w, sum);
  }
  return sum;
}

/// 1 / sqrt(mean square + eps) from the sums of the block's warps, added in their order.
__device__ inline float norm_scale(const float* warp_sums, int size, float eps) {
  float sum = 0.0F;
#pragma unroll
  for (int w = 0; w < kNormWarps; ++w) sum += warp_sums[w];
  return 1.0F / sqrtf(sum / static_cast<float>(size) + eps);
}

/// Four values normed and rounded.
template <typename T>
__device__ inline uint2 normed_values(float4 v, float4 w, float scale) {
  return {Element<T>::pack(w.x * (v.x * scale), w.y * (v.y * scale)),
          Element<T>::pack(w.z * (v.z * scale), w.w * (v.w * scale))};
}

/// The block asks for the norm's weights, which are constant, before it waits for the row.
__device__ inline void prefetch_norm_weight(const float* weight, int size) {
  constexpr int kLine = 32;
  for (int i = static_cast<int>(threadIdx.x) * kLine; i < size; i += kNormThreads * kLine) {
    prefetch_to_l2(weight + i);
  }
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads) rms_norm_kernel(const RmsNormArgs<T> args) {
  __shared__ float warp_sums[kNormWarps];
  const std::int64_t r = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  float* row = args.residual + r * args.residual_stride;
  let_next_start();
  prefetch_norm_weight(args.weight, args.size);
  wait_for_previous();
  if (args.maybe_update != nullptr) {
    const T* update = args.maybe_update + r * args.update_stride;
    // A thread reads below what it wrote here: no barrier is needed.
    for (int i = thread * 4; i < args.size; i += kNormThreads * 4) {
      float4 v = *reinterpret_cast<const float4*>(row + i);
      const uint2 u = *reinterpret_cast<const uint2*>(update + i);
      const float2 low = Element<T>::to_float2(u.x);
      const float2 high = Element<T>::to_float2(u.y);
      v.x += low.x;
      v.y += low.y;
      v.z += high.x;
      v.w += high.y;
      *reinterpret_cast<float4*>(row + i) = v;
    }
  }
  const float sum = warp_sum(thread_sum_of_squares(row, args.size));
  if (thread % kWarpSize == 0) warp_sums[thread / kWarpSize] = sum;
  __syncthreads();
  const float scale = norm_scale(warp_sums, args.size, args.eps);
  T* out = args.normed + r * args.normed_stride;
  for (int i = thread * 4; i < args.size; i += kNormThreads * 4) {
    *reinterpret_cast<uint2*>(out + i) =
        normed_values<T>(*reinterpret_cast<const float4*>(row + i),
                         *reinterpret_cast<const float4*>(args.weight + i), scale);
  }
}

/// normed = weight * x / sqrt(mean(x^2) + eps) with x = residual (+ update, which stays added).
///
/// Numerics: x and the sum of squares in f32 (a thread takes every 256th group of four, then the
///           warp's tree, then the warps in order), one rounding to T; the same bits in every
///           kernel of this library that norms a row. A NaN makes its row NaN; an infinity becomes
///           NaN and the others of its row 0, as on the CPU.
/// Cost:     reads 4 bytes a value once from memory, writes 2; with an update 2 more in, 4 out.
/// Errors:   kInvalidArgument for null pointers, a size that is no positive multiple of 8, rows
///           that overlap or do not start at multiples of 16 bytes (residual, weight) or 8 (T).
/// Source:   Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
template <typename T>
inline Status launch_rms_norm(RmsNormArgs<T> args, cudaStream_t stream) {
  if (args.num_rows == 0) return {};
  if (args.num_rows < 0 || args.size <= 0 || args.size % 8 != 0) {
    return invalid_argument("rms_norm: " + std::to_string(args.num_rows) + " rows of " +
                            std::to_string(args.size) +
                            " values, expected a positive multiple of 8 values");
  }
  if (args.residual == nullptr || args.weight == nullptr || args.normed == nullptr) {
    return invalid_argument("rms_norm: residual, weight and normed must not be null");
  }
  const auto take = [&](const char* field, std::int64_t& stride) {
    return take_row_stride(std::string("rms_norm: ") + field, stride, args.num_rows, args.size);
  };
  CHUNKLLM_RETURN_IF_ERROR(take("residual_stride", args.residual_stride));
  CHUNKLLM_RETURN_IF_ERROR(take("update_stride", args.update_stride));
  CHUNKLLM_RETURN_IF_ERROR(take("normed_stride", args.normed_stride));
  if (!rows_are_aligned(args.residual, args.residual_stride) || !rows_are_aligned(args.weight) ||
      !rows_are_aligned(args.normed, args.normed_stride, 8) ||
      !rows_are_aligned(args.maybe_update, args.update_stride, 8)) {
    return invalid_argument(
        "rms_norm: rows of the residual and the weight must start at multiples of 16 bytes, those "
        "of normed and update at multiples of 8");
  }
  return launch_dependent("rms_norm_kernel", rms_norm_kernel<T>,
                          {static_cast<unsigned>(args.num_rows), kNormThreads}, stream, args,
                          args.overlaps);
}

}  // namespace chunkllm::kernels
