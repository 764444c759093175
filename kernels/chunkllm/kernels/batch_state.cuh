// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels {

inline constexpr int kBatchThreads = 128;

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    advance_tokens_kernel(std::int32_t* num_tokens, const std::uint8_t* active,
                          std::int32_t num_seqs) {
  const auto seq = static_cast<std::int32_t>(blockIdx.x * kBatchThreads + threadIdx.x);
  if (seq < num_seqs && active[seq] != 0) ++num_tokens[seq];
}

/// Makes room for one more token in each active sequence: num_tokens[s] += active[s] != 0.
///
/// \param num_tokens  [num_seqs]   \param active  [num_seqs]
inline Status launch_advance_tokens(std::int32_t* num_tokens, const std::uint8_t* active,
                                    std::int32_t num_seqs, cudaStream_t stream) {
  if (num_seqs <= 0) return {};
  advance_tokens_kernel<kBatchThreads><<<static_cast<unsigned>(ceil_div(num_seqs, kBatchThreads)), kBatchThreads,
                          0, stream>>>(num_tokens, active, num_seqs);
  return cuda::launch_status("advance_tokens_kernel");
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    copy_set_kernel(cuda::DeviceAttendedSets from, std::int32_t from_set,
                    cuda::DeviceAttendedSets to, std::int32_t to_set) {
  const std::int32_t count = min(from.num_span_tokens[from_set], to.span_capacity);
  const std::int32_t* source = from.span_tokens_of(from_set);
  std::int32_t* target = to.span_tokens_of(to_set);
  for (auto i = static_cast<std::int32_t>(blockIdx.x * kBatchThreads + threadIdx.x); i < count;
       i += static_cast<std::int32_t>(gridDim.x) * kBatchThreads) {
    target[i] = source[i];
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    to.num_span_tokens[to_set] = count;
    to.tail_begin[to_set] = from.tail_begin[from_set];
  }
}

/// Copies one attended set to another place, which must have room for it.
inline Status launch_copy_set(const cuda::DeviceAttendedSets& from, std::int32_t from_set,
                              const cuda::DeviceAttendedSets& to, std::int32_t to_set,
                              cudaStream_t stream) {
  constexpr unsigned kBlocks = 16;  // a list of 16K tokens in eight rounds
  copy_set_kernel<kBatchThreads><<<kBlocks, kBatchThreads, 0, stream>>>(from, from_set, to, to_set);
  return cuda::launch_status("copy_set_kernel");
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    fill_strided_rows_kernel(const float* values, std::int32_t size, float* rows,
                             std::int64_t row_stride) {
  float* row = rows + blockIdx.x * row_stride;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < size; i += kBatchThreads) {
    row[i] = values[i];
  }
}

/// Writes the same values into each row: biases, in front of a product that adds to them.
///
/// \param values  [size]   \param rows  [num_rows, size], row_stride elements apart
inline Status launch_fill_strided_rows(const float* values, std::int32_t size, float* rows,
                                       std::int64_t row_stride, std::int32_t num_rows,
                                       cudaStream_t stream) {
  if (num_rows <= 0 || size <= 0) return {};
  fill_strided_rows_kernel<kBatchThreads><<<static_cast<unsigned>(num_rows), kBatchThreads, 0, stream>>>(
      values, size, rows, row_stride);
  return cuda::launch_status("fill_strided_rows_kernel");
}

}  // namespace chunkllm::kernels
