// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/views.hpp"

/// What an engine on the GPU has of its own: lengths, projections and a paged KV cache. Random
/// numbers stand in for what weights would give. Of chunkllm it takes `Status`, memory that frees
/// itself, and the view of a cache that it hands to the operations.
namespace mini {

using chunkllm::Status;
using chunkllm::cuda::DeviceBuffer;
using chunkllm::cuda::DeviceKvView;

constexpr int kLayers = 2;
constexpr int kSeqs = 2;
constexpr int kHeads = 8;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 64;
constexpr int kWidth = kHeads * kHeadDim;
constexpr int kKvWidth = kKvHeads * kHeadDim;
constexpr int kSteps = 600;
constexpr int kJoinStep = 130;  // at which the second sequence begins
constexpr int kPageTokens = 16;
constexpr int kMaxPages = (kSteps + kPageTokens - 1) / kPageTokens;  // a sequence
constexpr int kNumPages = kSeqs * kMaxPages;
constexpr float kLargest = 2.0F;  // of all random numbers

/// `count` zeros on the device.
template <typename T>
Status make_zeros(DeviceBuffer<T>& buffer, std::size_t count, cudaStream_t stream) {
  CHUNKLLM_ASSIGN_OR_RETURN(buffer, DeviceBuffer<T>::create(count));
  return buffer.zero(stream);
}

enum class Row : std::uint32_t { kQuery, kKey, kValue, kSentenceEnd };

/// Bits that depend on their coordinates alone, so that host and device can draw the same ones.
__host__ __device__ inline std::uint32_t random_bits(Row row, int layer, int seq, int token,
                                                     int feature) {
  auto x = static_cast<std::uint32_t>(((layer * kSeqs + seq) * kSteps + token) * kWidth + feature);
  x = (x * 4 + static_cast<std::uint32_t>(row)) * 0x9e3779b9U;
  x = (x ^ (x >> 16)) * 0x85ebca6bU;
  x = (x ^ (x >> 13)) * 0xc2b2ae35U;
  return x ^ (x >> 16);
}
/// A query, key or value's feature, in [-2, 2).
__host__ __device__ inline __half random_half(Row row, int layer, int seq, int token, int feature) {
  const std::uint32_t bits = random_bits(row, layer, seq, token, feature) >> 8;
  return __float2half_rn(static_cast<float>(bits) * (2.0F * kLargest / 16777216.0F) - kLargest);
}

/// One more token in each active sequence, and whether it ends a sentence.
static __global__ void begin_step_kernel(const std::uint8_t* active, std::int32_t* num_tokens,
                                         std::uint8_t* wanted) {
  const int seq = static_cast<int>(threadIdx.x);
  if (active[seq] == 0) return;
  const std::int32_t token = num_tokens[seq]++;
  wanted[seq] = random_bits(Row::kSentenceEnd, 0, seq, token, 0) % 10 == 0 ? 1 : 0;
}

/// A layer's queries, keys and values of the new tokens; keys and values go to their pages.
static __global__ void project_kernel(int layer, const std::int32_t* num_tokens,
                                      DeviceKvView<__half> kv, __half* queries, __half* keys) {
  const int seq = static_cast<int>(blockIdx.x);
  const std::int32_t token = num_tokens[seq] - 1;
  if (token < 0) return;
  for (int i = static_cast<int>(threadIdx.x); i < kWidth; i += static_cast<int>(blockDim.x)) {
    queries[seq * kWidth + i] = random_half(Row::kQuery, layer, seq, token, i);
    if (i >= kKvWidth) continue;
    const std::int64_t place =
        kv.token_offset(seq, token) + i / kHeadDim * kv.head_stride + i % kHeadDim;
    const __half key = random_half(Row::kKey, layer, seq, token, i);
    keys[seq * kKvWidth + i] = key;
    kv.keys[place] = key;
    kv.values[place] = random_half(Row::kValue, layer, seq, token, i);
  }
}

/// What any engine has: lengths, queries, new keys, and a paged cache.
struct Engine {
  DeviceBuffer<std::uint8_t> active;      // [kSeqs]
  DeviceBuffer<std::int32_t> num_tokens;  // [kSeqs] 0: the sequence is not in use
  DeviceBuffer<std::uint8_t> wanted;      // [kSeqs] whether the newest token ends a sentence
  DeviceBuffer<__half> queries;           // [kLayers, kSeqs, kWidth]
  DeviceBuffer<__half> new_keys;          // [kLayers, kSeqs, kKvWidth] as cached
  DeviceBuffer<__half> attended;          // [kLayers, kSeqs, kWidth]
  DeviceBuffer<__half> key_pages;         // [kLayers, kNumPages, kPageTokens, kKvHeads, kHeadDim]
  DeviceBuffer<__half> value_pages;       // likewise
  DeviceBuffer<std::int32_t> page_table;  // [kSeqs, kMaxPages], of keys and values in all layers

  Status allocate(cudaStream_t stream) {
    constexpr std::size_t kPool = std::size_t{kLayers} * kNumPages * kPageTokens * kKvWidth;
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(active, kSeqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(num_tokens, kSeqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(wanted, kSeqs, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(queries, kLayers * kSeqs * kWidth, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(new_keys, kLayers * kSeqs * kKvWidth, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(attended, kLayers * kSeqs * kWidth, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(key_pages, kPool, stream));
    CHUNKLLM_RETURN_IF_ERROR(make_zeros(value_pages, kPool, stream));
    std::vector<std::int32_t> pages(kNumPages);
    for (int i = 0; i < kNumPages; ++i) pages[static_cast<std::size_t>(i)] = i * 7 % kNumPages;
    CHUNKLLM_ASSIGN_OR_RETURN(
        page_table, DeviceBuffer<std::int32_t>::from(std::span<const std::int32_t>(pages), stream));
    return {};
  }
  /// A layer's cache. Strides count elements and are all given: 0 does not stand for dense.
  [[nodiscard]] DeviceKvView<__half> kv(int layer) const {
    DeviceKvView<__half> view;
    view.page_size = kPageTokens;
    view.page_stride = kPageTokens * kKvWidth;
    view.token_stride = kKvWidth;
    view.head_stride = kHeadDim;
    view.keys = key_pages.data() + layer * kNumPages * view.page_stride;
    view.values = value_pages.data() + layer * kNumPages * view.page_stride;
    view.page_table = page_table.data();
    view.max_pages = kMaxPages;
    return view;
  }
  [[nodiscard]] __half* queries_of(int layer) const {
    return queries.data() + layer * kSeqs * kWidth;
  }
  [[nodiscard]] __half* attended_of(int layer) const {
    return attended.data() + layer * kSeqs * kWidth;
  }
  /// A sequence takes part from the next step on.
  Status activate(int seq, cudaStream_t stream) const {
    return chunkllm::cuda::cuda_status(cudaMemsetAsync(active.data() + seq, 1, 1, stream),
                                       "activate");
  }
  Status begin_step(cudaStream_t stream) const {
    begin_step_kernel<<<1, kSeqs, 0, stream>>>(active.data(), num_tokens.data(), wanted.data());
    return chunkllm::cuda::launch_status("begin_step_kernel");
  }
  Status project(int layer, cudaStream_t stream) const {
    project_kernel<<<kSeqs, 256, 0, stream>>>(layer, num_tokens.data(), kv(layer),
                                              queries_of(layer),
                                              new_keys.data() + layer * kSeqs * kKvWidth);
    return chunkllm::cuda::launch_status("project_kernel");
  }
};

}  // namespace mini
