// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include <chunkllm/core/dtype.hpp>
#include <chunkllm/core/status.hpp>
#include <chunkllm/kernels/chunk_decode_attention.cuh>
#include <chunkllm/kernels/plan_attended_sets.cuh>
#include <concepts>

#include "second_unit.hpp"

#if !defined(__CUDACC__) || __cplusplus < 202002L
#error "chunkllm::cuda must compile .cu files as C++20"
#endif

template <std::integral T>
__global__ void multiply_kernel(const T* count, T factor, T* product) {
  *product = *count * factor;
}

int q8_0_row_bytes_in_cuda_unit() {
  constexpr auto traits = chunkllm::dtype_traits(chunkllm::DType::kQ8_0);
  constexpr int kNumBlocks = 64 / static_cast<int>(traits.block_size);
  constexpr int kBlockBytes = static_cast<int>(traits.block_bytes);
  // No trigger, no sequence: nothing is launched, so a machine without a GPU passes, too.
  if (!chunkllm::kernels::launch_plan_attended_sets({}, nullptr).ok()) return -1;
  chunkllm::kernels::DecodeAttentionArgs<__nv_bfloat16, __nv_bfloat16> args;
  args.num_heads = args.num_kv_heads = 8;
  args.head_dim = 128;
  if (!chunkllm::kernels::launch_chunk_decode_attention(args, nullptr).ok()) return -1;
  int num_devices = 0;
  if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
    return kNumBlocks * kBlockBytes;  // built for a GPU, run without one
  }
  int* values = nullptr;
  if (cudaMalloc(&values, 2 * sizeof(int)) != cudaSuccess) return -1;
  int product = -1;
  cudaMemcpy(values, &kNumBlocks, sizeof(int), cudaMemcpyHostToDevice);
  multiply_kernel<<<1, 1>>>(values, kBlockBytes, values + 1);
  cudaMemcpy(&product, values + 1, sizeof(int), cudaMemcpyDeviceToHost);
  cudaFree(values);
  return product;
}
