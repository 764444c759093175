// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels {

/// Threads of a block, and triggers whose work is laid out at a time.
inline constexpr int kWorkThreads = 256;
inline constexpr int kWorkWarps = kWorkThreads / kWarpSize;

/// How the work of a stretch of triggers is numbered, in shared memory.
///
/// How many chunks a trigger sees is known on the device alone. A grid for the most there may be
/// would mostly start blocks that leave at once; instead a grid the size of the device lays the
/// work out itself, and block b takes the b-th part of it. Without a trigger a block ends after one
/// load.
struct TriggerWork {
  std::int32_t num_closed[kWorkThreads];
  std::int32_t end[kWorkThreads];               ///< of the candidates
  std::int32_t items_before[kWorkThreads + 1];  ///< of the triggers in front; the last: of all
  std::int32_t warp_items[kWorkWarps];
};

/// Numbers the items of triggers first_trigger, first_trigger + 1, .... Called by all threads of a
/// block; begins and ends with a barrier.
///
/// \param count_items  (range) -> items of a trigger that has candidates
template <typename CountItems>
__device__ inline void lay_out_work(TriggerWork& work, const cuda::DeviceChunkTable& table,
                                    const cuda::DeviceTriggers& triggers, const LocalWindow& window,
                                    std::int32_t first_trigger, const CountItems& count_items) {
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
  const std::int32_t i = first_trigger + thread;
  DeviceCandidateRange range = {0, 0, 0};
  std::int32_t items = 0;
  const std::int32_t trigger = i < triggers.count ? triggers.tokens[i] : -1;
  if (trigger >= 0) {
    range = candidate_range(table, triggers.seq(i), trigger, window);
    if (range.num_candidates() > 0) items = count_items(range);
  }
  std::int32_t up_to_here = items;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const std::int32_t other = __shfl_up_sync(kFullWarp, up_to_here, offset);
    if (lane >= offset) up_to_here += other;
  }
  __syncthreads();  // the stretch before has been worked off
  work.num_closed[thread] = range.num_closed;
  work.end[thread] = range.end;
  if (lane == kWarpSize - 1) work.warp_items[warp] = up_to_here;
  __syncthreads();
  for (std::int32_t w = 0; w < warp; ++w) up_to_here += work.warp_items[w];
  work.items_before[thread + 1] = up_to_here;
  if (thread == 0) work.items_before[0] = 0;
  __syncthreads();
}

/// Items [first, last) of the calling block.
struct WorkShare {
  std::int32_t first;
  std::int32_t last;
};
__device__ inline WorkShare block_share(const TriggerWork& work) {
  const std::int64_t total = work.items_before[kWorkThreads];
  return {static_cast<std::int32_t>(total * blockIdx.x / gridDim.x),
          static_cast<std::int32_t>(total * (blockIdx.x + 1) / gridDim.x)};
}

/// The trigger, counted from the stretch's first, that an item belongs to.
__device__ inline std::int32_t trigger_of_item(const TriggerWork& work, std::int32_t item) {
  std::int32_t low = 0;  // items_before[low] <= item < items_before[high]
  std::int32_t high = kWorkThreads;
  while (high - low > 1) {
    const std::int32_t middle = (low + high) / 2;
    if (work.items_before[middle] <= item) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace chunkllm::kernels
