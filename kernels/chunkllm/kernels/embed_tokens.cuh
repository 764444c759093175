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

inline constexpr int kEmbedThreads = 128;

/// What `launch_embed_tokens` reads and writes. A stride of 0 stands for rows side by side.
template <typename T>
struct EmbedTokensArgs {
  const T* embedding = nullptr;  ///< [vocab_size, hidden_size], dense, 16 byte aligned
  std::int32_t vocab_size = 0;
  std::int32_t hidden_size = 0;          ///< a multiple of 8
  const std::int32_t* tokens = nullptr;  ///< [num_rows]
  std::int32_t num_rows = 0;
  float* hidden = nullptr;  ///< [num_rows, hidden_size]
  std::int64_t hidden_stride = 0;
  bool overlaps = true;  ///< begins before the kernel in front has ended, where the device can
};

/// What `launch_fill_rows` reads and writes. A stride of 0 stands for rows side by side.
template <typename T>
struct FillRowsArgs {
  const float* values = nullptr;  ///< [size]
  T* out = nullptr;               ///< [num_rows, size], `out_stride` apart; T also float
  std::int64_t out_stride = 0;
  std::int32_t num_rows = 0;
  std::int32_t size = 0;
  bool accumulate = false;  ///< add to what stands in `out`
};

template <typename T>
__global__ void __launch_bounds__(kEmbedThreads)
    embed_tokens_kernel(const EmbedTokensArgs<T> args) {
  const std::int64_t r = blockIdx.x;
  let_next_start();
  wait_for_previous();
  // The host has checked ids it knows; one made on the device must not read elsewhere.
  const std::int64_t token = min(max(args.tokens[r], 0), args.vocab_size - 1);
  const T* row = args.embedding + token * args.hidden_size;
  float* out = args.hidden + r * args.hidden_stride;
  for (int i = static_cast<int>(threadIdx.x) * 8; i < args.hidden_size; i += kEmbedThreads * 8) {
    const uint4 v = *reinterpret_cast<const uint4*>(row + i);
    const float2 a = Element<T>::to_float2(v.x);
    const float2 b = Element<T>::to_float2(v.y);
    const float2 c = Element<T>::to_float2(v.z);
    const float2 d = Element<T>::to_float2(v.w);
    *reinterpret_cast<float4*>(out + i) = {a.x, a.y, b.x, b.y};
    *reinterpret_cast<float4*>(out + i + 4) = {c.x, c.y, d.x, d.y};
  }
}

template <typename T>
__global__ void __launch_bounds__(kEmbedThreads) fill_rows_kernel(const FillRowsArgs<T> args) {
  T* row = args.out + static_cast<std::int64_t>(blockIdx.x) * args.out_stride;
  for (int i = static_cast<int>(threadIdx.x); i < args.size; i += kEmbedThreads) {
    if constexpr (sizeof(T) == sizeof(float)) {
      row[i] = args.accumulate ? row[i] + args.values[i] : args.values[i];
    } else {
      const float before = args.accumulate ? Element<T>::to_float(row[i]) : 0.0F;
      row[i] = Element<T>::from_float(before + args.values[i]);
    }
  }
}

/// hidden[r] = the embedding of tokens[r], widened to f32.
///
/// Ids outside the vocabulary take its nearest end: nothing else is read. Exact.
/// Cost:     reads 2 bytes a value, writes 4.
/// Errors:   kInvalidArgument for null pointers, an empty vocabulary, a hidden size that is no
///           positive multiple of 8, rows that overlap or do not start at multiples of 16 bytes.
template <typename T>
inline Status launch_embed_tokens(EmbedTokensArgs<T> args, cudaStream_t stream) {
  if (args.num_rows == 0) return {};
  if (args.num_rows < 0 || args.hidden_size <= 0 || args.hidden_size % 8 != 0 ||
      args.vocab_size <= 0) {
    return invalid_argument("embed_tokens: " + std::to_string(args.num_rows) + " rows of " +
                            std::to_string(args.hidden_size) + " values, vocabulary of " +
                            std::to_string(args.vocab_size) +
                            ", expected a positive multiple of 8 values and at least one token");
  }
  if (args.embedding == nullptr || args.tokens == nullptr || args.hidden == nullptr) {
    return invalid_argument("embed_tokens: embedding, tokens and hidden must not be null");
  }
  CHUNKLLM_RETURN_IF_ERROR(take_row_stride("embed_tokens: hidden_stride", args.hidden_stride,
                                           args.num_rows, args.hidden_size));
  if (!rows_are_aligned(args.embedding) || !rows_are_aligned(args.hidden, args.hidden_stride)) {
    return invalid_argument("embed_tokens: rows must start at multiples of 16 bytes");
  }
  return launch_dependent("embed_tokens_kernel", embed_tokens_kernel<T>,
                          {static_cast<unsigned>(args.num_rows), kEmbedThreads}, stream, args,
                          args.overlaps);
}

/// Every row of `out` becomes `values`, or is increased by them: the bias of a product that adds to
/// its output.
///
/// Numerics: one f32 addition where `accumulate`, one rounding to T.
/// Errors:   kInvalidArgument for null pointers, sizes below 1 and rows that overlap.
template <typename T>
inline Status launch_fill_rows(FillRowsArgs<T> args, cudaStream_t stream) {
  if (args.num_rows == 0) return {};
  if (args.num_rows < 0 || args.size <= 0 || args.values == nullptr || args.out == nullptr) {
    return invalid_argument("fill_rows: " + std::to_string(args.num_rows) + " rows of " +
                            std::to_string(args.size) +
                            " values, expected at least one value and no null pointer");
  }
  CHUNKLLM_RETURN_IF_ERROR(
      take_row_stride("fill_rows: out_stride", args.out_stride, args.num_rows, args.size));
  fill_rows_kernel<T><<<static_cast<unsigned>(args.num_rows), kEmbedThreads, 0, stream>>>(args);
  return cuda::launch_status("fill_rows_kernel");
}

}  // namespace chunkllm::kernels
