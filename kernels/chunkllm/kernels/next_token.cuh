// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/kernels/dependent_launch.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/rms_norm.cuh"
#include "chunkllm/kernels/row_strides.cuh"

namespace chunkllm::kernels {

/// One block a row: a vocabulary of 128256 in f32 is 513 KB, some microseconds of one
/// multiprocessor's bandwidth against milliseconds of a decode step.
inline constexpr int kNextTokenThreads = 1024;
inline constexpr int kNextTokenWarps = kNextTokenThreads / kWarpSize;
/// Logits a thread loads before it looks at the first.
inline constexpr int kNextTokenUnroll = 8;

/// What `launch_next_token` reads and writes. A stride of 0 stands for rows side by side.
///
/// \tparam L  float, __half or __nv_bfloat16: the logits' type
template <typename L>
struct NextTokenArgs {
  const L* logits = nullptr;  ///< [num_rows, vocab_size]
  std::int64_t logits_stride = 0;
  std::int32_t num_rows = 0;
  std::int32_t vocab_size = 0;
  std::int32_t* maybe_tokens = nullptr;         ///< [num_rows] out: the likeliest ids
  const std::int32_t* maybe_targets = nullptr;  ///< [num_rows] ids whose likelihood is asked
  float* maybe_log_likelihoods = nullptr;       ///< [num_rows] out; with maybe_targets
  bool overlaps = true;  ///< begins before the kernel in front has ended, where the device can
};

template <typename L>
__device__ inline float logit_value(L logit) {
  if constexpr (std::is_same_v<L, float>) {
    return logit;
  } else {
    return Element<L>::to_float(logit);
  }
}

/// Grows with the logit, NaN lowest of all; of equal logits (0 and -0 are) the smaller id is
/// higher.
__device__ inline std::uint64_t logit_rank(float logit, std::int32_t id) {
  const std::uint32_t bits = __float_as_uint(logit + 0.0F);  // -0 becomes 0
  std::uint32_t order = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  if (logit != logit) order = 0;
  return static_cast<std::uint64_t>(order) << 32 | (0xffffffffU - static_cast<std::uint32_t>(id));
}

/// The maximum over the block, in every thread.
__device__ inline std::uint64_t block_max(std::uint64_t rank, std::uint64_t* warp_ranks) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    const std::uint64_t other = __shfl_xor_sync(kFullWarp, rank, mask);
    rank = other > rank ? other : rank;
  }
  if (threadIdx.x % kWarpSize == 0) warp_ranks[threadIdx.x / kWarpSize] = rank;
  __syncthreads();
  for (int w = 0; w < kNextTokenWarps; ++w) {
    rank = warp_ranks[w] > rank ? warp_ranks[w] : rank;
  }
  return rank;
}

template <typename L>
__global__ void __launch_bounds__(kNextTokenThreads)
    next_token_kernel(const NextTokenArgs<L> args) {
  __shared__ std::uint64_t warp_ranks[kNextTokenWarps];
  __shared__ float warp_sums[kNextTokenWarps];
  const std::int64_t r = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const L* row = args.logits + r * args.logits_stride;
  let_next_start();
  wait_for_previous();

  std::uint64_t best = 0;
  for (int first = thread; first < args.vocab_size; first += kNextTokenThreads * kNextTokenUnroll) {
    L batch[kNextTokenUnroll];
#pragma unroll
    for (int u = 0; u < kNextTokenUnroll; ++u) {
      const int i = first + u * kNextTokenThreads;
      if (i < args.vocab_size) batch[u] = row[i];
    }
#pragma unroll
    for (int u = 0; u < kNextTokenUnroll; ++u) {
      const int i = first + u * kNextTokenThreads;
      if (i >= args.vocab_size) continue;
      const std::uint64_t rank = logit_rank(logit_value(batch[u]), i);
      best = rank > best ? rank : best;
    }
  }
  best = block_max(best, warp_ranks);
  const auto best_id = static_cast<std::int32_t>(0xffffffffU - static_cast<std::uint32_t>(best));
  if (thread == 0 && args.maybe_tokens != nullptr) args.maybe_tokens[r] = best_id;
  if (args.maybe_log_likelihoods == nullptr) return;

  const float largest = logit_value(row[best_id]);
  float sum = 0.0F;
#pragma unroll 4
  for (int i = thread; i < args.vocab_size; i += kNextTokenThreads) {
    sum += expf(logit_value(row[i]) - largest);
  }
  sum = warp_sum(sum);
  if (thread % kWarpSize == 0) warp_sums[thread / kWarpSize] = sum;
  __syncthreads();
  if (thread != 0) return;
  float total = 0.0F;
  for (int w = 0; w < kNextTokenWarps; ++w) total += warp_sums[w];
  const std::int32_t target = args.maybe_targets[r];
  const bool known = target >= 0 && target < args.vocab_size;
  args.maybe_log_likelihoods[r] = known
                                      ? logit_value(row[known ? target : 0]) - largest - logf(total)
                                      : __int_as_float(0x7fffffff);
}

/// The likeliest token of each row, and the log-likelihood of given ones.
///
/// Ties:     the smaller id; 0 and -0 are equal. NaN comes last: id 0 where all are NaN.
/// Numerics: log-softmax in f32: exp(logit - largest) summed a thread, then a warp's tree, then the
///           warps in order. A row with a NaN or +infinity has a likelihood of NaN; so has a target
///           outside the vocabulary, for which nothing is read.
/// Cost:     reads a row once from memory, with likelihoods once more from L2.
/// Errors:   kInvalidArgument for null logits, an empty vocabulary, no output, likelihoods without
///           targets, rows that overlap.
template <typename L>
inline Status launch_next_token(NextTokenArgs<L> args, cudaStream_t stream) {
  if (args.num_rows == 0) return {};
  if (args.num_rows < 0 || args.vocab_size <= 0 || args.logits == nullptr) {
    return invalid_argument("next_token: " + std::to_string(args.num_rows) + " rows of " +
                            std::to_string(args.vocab_size) +
                            " logits, expected at least one logit and no null pointer");
  }
  if (args.maybe_tokens == nullptr && args.maybe_log_likelihoods == nullptr) {
    return invalid_argument("next_token: neither tokens nor likelihoods are asked for");
  }
  if ((args.maybe_targets == nullptr) != (args.maybe_log_likelihoods == nullptr)) {
    return invalid_argument("next_token: give both targets and log_likelihoods, or none");
  }
  CHUNKLLM_RETURN_IF_ERROR(take_row_stride("next_token: logits_stride", args.logits_stride,
                                           args.num_rows, args.vocab_size));
  return launch_dependent("next_token_kernel", next_token_kernel<L>,
                          {static_cast<unsigned>(args.num_rows), kNextTokenThreads}, stream, args,
                          args.overlaps);
}

}  // namespace chunkllm::kernels
