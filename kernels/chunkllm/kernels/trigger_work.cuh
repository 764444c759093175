// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels {

/// Threads of a block, and triggers whose work is laid out at a time: a batch.
inline constexpr int kWorkThreads = 256;
inline constexpr int kWorkWarps = kWorkThreads / kWarpSize;

/// How the work of a batch of triggers is numbered, in shared memory.
///
/// How many chunks a trigger sees is known on the device alone. A grid for the most there may be
/// would mostly start blocks that leave at once; instead a grid the size of the device lays the
/// work out itself, and block b takes the b-th part of it. Without a trigger a block ends after one
/// load.
struct TriggerWork {
  std::int32_t num_closed[kWorkThreads];        ///< 0 where a trigger has no candidate
  std::int32_t end[kWorkThreads];               ///< of the candidates
  std::int32_t tile_triggers[kWorkThreads];     ///< of the tile that begins with this trigger
  std::int32_t tile_closed[kWorkThreads];       ///< the largest num_closed of that tile
  std::int32_t items_before[kWorkThreads + 1];  ///< of the triggers in front; the last: of all
  std::int32_t warp_items[kWorkWarps];
};

/// What a trigger sees; of a thread.
struct TriggerSight {
  std::int32_t seq = -1;
  std::int32_t num_closed = 0;  ///< 0: nothing is to be done for it
  std::int32_t end = 0;         ///< of the candidates
};

__device__ inline TriggerSight trigger_sight(const cuda::DeviceChunkTable& table,
                                             const cuda::DeviceTriggers& triggers,
                                             const LocalWindow& window, std::int32_t i) {
  TriggerSight sight;
  const std::int32_t trigger = i < triggers.count ? triggers.tokens[i] : -1;
  if (trigger < 0) return sight;
  sight.seq = triggers.seq(i);
  const DeviceCandidateRange range = candidate_range(table, sight.seq, trigger, window);
  sight.num_closed = range.num_candidates() > 0 ? range.num_closed : 0;
  sight.end = range.end;
  return sight;
}

/// Numbers the items of a batch of triggers, of which each thread knows what its own sees. Called
/// by all threads of a block; begins and ends with a barrier.
///
/// Neighbouring triggers of one sequence that have candidates are worked on together, as a tile:
/// its items count as those of its first trigger, and the others have none.
///
/// \tparam kTile      most triggers of a tile, a power of two; 1 keeps all apart
/// \param count_items  (num_closed, end) -> items of a tile; num_closed is the tile's largest, end
///                     that of its first trigger
template <int kTile, typename CountItems>
__device__ inline void number_work(TriggerWork& work, const TriggerSight& sight,
                                   const CountItems& count_items) {
  static_assert(kTile >= 1 && kTile <= kWarpSize && kWarpSize % kTile == 0);
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
  const std::int32_t num_closed = sight.num_closed;
  const std::int32_t seq = sight.seq;
  bool is_first = true;
  std::int32_t tile_triggers = 1;
  std::int32_t tile_closed = num_closed;
  if constexpr (kTile > 1) {
    const std::int32_t seq_before = __shfl_up_sync(kFullWarp, seq, 1);
    const std::int32_t closed_before = __shfl_up_sync(kFullWarp, num_closed, 1);
    is_first = lane % kTile == 0 || num_closed == 0 || closed_before == 0 || seq != seq_before;
    const unsigned firsts = __ballot_sync(kFullWarp, is_first);
    const unsigned behind = firsts & ~((2U << lane) - 1U);  // for lane 31 none
    tile_triggers = (behind == 0 ? kWarpSize : __ffs(static_cast<int>(behind)) - 1) - lane;
#pragma unroll
    for (int offset = 1; offset < kTile; ++offset) {
      const std::int32_t other = __shfl_down_sync(kFullWarp, num_closed, offset);
      if (offset < tile_triggers) tile_closed = max(tile_closed, other);
    }
  }
  const std::int32_t items = is_first && num_closed > 0 ? count_items(tile_closed, sight.end) : 0;
  std::int32_t up_to_here = items;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const std::int32_t other = __shfl_up_sync(kFullWarp, up_to_here, offset);
    if (lane >= offset) up_to_here += other;
  }
  __syncthreads();  // the batch before has been worked off
  work.num_closed[thread] = num_closed;
  work.end[thread] = sight.end;
  work.tile_triggers[thread] = tile_triggers;
  work.tile_closed[thread] = tile_closed;
  if (lane == kWarpSize - 1) work.warp_items[warp] = up_to_here;
  __syncthreads();
  for (std::int32_t w = 0; w < warp; ++w) up_to_here += work.warp_items[w];
  work.items_before[thread + 1] = up_to_here;
  if (thread == 0) work.items_before[0] = 0;
  __syncthreads();
}

/// The same of triggers first_trigger, first_trigger + 1, ..., whose sight is found here.
template <int kTile, typename CountItems>
__device__ inline void lay_out_work(TriggerWork& work, const cuda::DeviceChunkTable& table,
                                    const cuda::DeviceTriggers& triggers, const LocalWindow& window,
                                    std::int32_t first_trigger, const CountItems& count_items) {
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  number_work<kTile>(work, trigger_sight(table, triggers, window, first_trigger + thread),
                     count_items);
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

/// The trigger, counted from the batch's first, that an item belongs to.
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
