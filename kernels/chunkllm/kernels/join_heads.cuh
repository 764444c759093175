// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/score_chunks_kernels.cuh"
#include "chunkllm/kernels/trigger_work.cuh"

/// The second pass of `launch_score_chunks`: from the logits of all heads to scores.
namespace chunkllm::kernels {

inline constexpr int kJoinBlocksPerSm = 3;
inline constexpr int kJoinHeads = 8;        ///< loads that a thread has under way
inline constexpr int kStretchesAtOnce = 6;  ///< likewise, of a lane and head, while it adds them up

namespace detail {

/// Two neighbouring logits, read once. Volatile, so that the reads of several heads stay together:
/// each for itself would wait for memory.
__device__ inline float2 load_logits(const float* address) {
  float2 z;
  asm volatile("ld.global.L1::no_allocate.v2.f32 {%0, %1}, [%2];"
               : "=f"(z.x), "=f"(z.y)
               : "l"(address));
  return z;
}

/// The softmax's sum over the stretches of a row, by a warp; in every lane.
__device__ inline SoftmaxSum add_stretches(const SoftmaxSum* partials, std::int32_t num_stretches,
                                           std::int32_t lane) {
  SoftmaxSum sum;
  for (std::int32_t begin = lane; begin < num_stretches; begin += kStretchesAtOnce * kWarpSize) {
    SoftmaxSum parts[kStretchesAtOnce];
#pragma unroll
    for (int k = 0; k < kStretchesAtOnce; ++k) {
      if (begin + k * kWarpSize >= num_stretches) continue;
      const float2 part =
          load_logits(reinterpret_cast<const float*>(partials + begin + k * kWarpSize));
      parts[k].largest = part.x;
      parts[k].sum = part.y;
    }
    float largest = sum.largest;
#pragma unroll
    for (int k = 0; k < kStretchesAtOnce; ++k) largest = fmaxf(largest, parts[k].largest);
    sum.sum *= expf(sum.largest - largest);
#pragma unroll
    for (int k = 0; k < kStretchesAtOnce; ++k) {
      sum.sum += parts[k].sum * expf(parts[k].largest - largest);
    }
    sum.largest = largest;
  }
  const float largest = warp_max(sum.largest);
  sum.sum = warp_sum(sum.sum * expf(sum.largest - largest));
  sum.largest = largest;
  return sum;
}

/// Shared memory of the second pass.
struct JoinHeadsShared {
  TriggerWork work;
  float largest[kMaxScoreHeads];  ///< of a row's logits
  float inverse[kMaxScoreHeads];  ///< of the softmax's sum

  __device__ float probability(float z, std::int32_t head) const {
    return expf(z - largest[head]) * inverse[head];
  }
};

/// The softmax's sum of a layer and trigger for all heads, by a block of kWorkThreads threads,
/// which needs a barrier behind it.
template <typename Key>
__device__ inline void normalize_row(const DeviceScoreArgs<Key>& args, const ScoreLayout& layout,
                                     std::int32_t layer, std::int32_t trigger,
                                     std::int32_t num_closed, JoinHeadsShared& shared) {
  const std::int32_t warp = static_cast<std::int32_t>(threadIdx.x) / kWarpSize;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % kWarpSize;
  const std::int64_t row = static_cast<std::int64_t>(layer) * args.triggers.count + trigger;
  const std::int32_t num_stretches = ceil_div(num_closed, kStretch);
  for (std::int32_t head = warp; head < args.num_heads; head += kWorkWarps) {
    SoftmaxSum sum = add_stretches(
        layout.partials + (row * args.num_heads + head) * layout.num_partials, num_stretches, lane);
    if (lane != 0) continue;
    if (args.maybe_null != nullptr) {
      sum.add(args.maybe_null[layer * args.null_layer_stride + trigger * args.null_stride + head]);
    }
    shared.largest[head] = sum.largest;
    shared.inverse[head] = 1.0F / sum.sum;
  }
}

/// Body of `join_heads_kernel`, by all blocks of a grid.
///
/// \param sight_of  first trigger of a batch -> what the thread's trigger of that batch sees
template <typename Key, typename SightOf>
__device__ inline void join_heads(const DeviceScoreArgs<Key>& args, const ScoreLayout& layout,
                                  JoinHeadsShared& shared, const SightOf& sight_of) {
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  TriggerWork& work = shared.work;
  for (std::int32_t batch = 0; batch < args.triggers.count; batch += kWorkThreads) {
    number_work<1>(work, sight_of(batch), [&](std::int32_t, std::int32_t end) {
      return ceil_div(end, layout.join_tile) * args.num_layers;
    });
    const WorkShare share = block_share(work);
    if (share.first >= share.last) continue;
    std::int32_t t = trigger_of_item(work, share.first);
    std::int64_t row_in_force = -1;
    for (std::int32_t item = share.first; item < share.last; ++item) {
      while (item >= work.items_before[t + 1]) ++t;
      const std::int32_t end = work.end[t];
      const std::int32_t tiles = ceil_div(end, layout.join_tile);
      const std::int32_t local = item - work.items_before[t];
      const std::int32_t layer = local / tiles;
      const std::int64_t row = static_cast<std::int64_t>(layer) * args.triggers.count + batch + t;
      const std::int32_t tile_begin = (local - layer * tiles) * layout.join_tile;
      const std::int32_t tile_end = min(tile_begin + layout.join_tile, end);
      const std::int32_t first = tile_begin + 2 * thread;
      const float* logits = layout.logits + row * args.num_heads * layout.logit_stride + first;
      float2 z[kJoinHeads];
      const auto load = [&](std::int32_t first_head) {
#pragma unroll
        for (int h = 0; h < kJoinHeads; ++h) {
          z[h] = {0.0F, 0.0F};
          // An even stride: behind the last chunk there is room, if nothing of meaning.
          if (first < tile_end && first_head + h < args.num_heads) {
            z[h] = detail::load_logits(logits + (first_head + h) * layout.logit_stride);
          }
        }
      };
      load(0);  // the first are on their way while the sums are made
      if (row != row_in_force) {
        __syncthreads();  // the row before has been used
        detail::normalize_row(args, layout, layer, batch + t, work.num_closed[t], shared);
        __syncthreads();
        row_in_force = row;
      }
      if (first >= tile_end) continue;  // the barriers above are passed by the whole block
      float2 joined = {0.0F, 0.0F};
      for (std::int32_t first_head = 0; first_head < args.num_heads; first_head += kJoinHeads) {
        if (first_head > 0) load(first_head);
#pragma unroll
        for (int h = 0; h < kJoinHeads; ++h) {
          const std::int32_t head = first_head + h;
          if (head >= args.num_heads) break;
          const float2 p = {shared.probability(z[h].x, head), shared.probability(z[h].y, head)};
          if (args.head_join == HeadJoin::kMax) {
            joined = {max_keeping_nan(joined.x, p.x), max_keeping_nan(joined.y, p.y)};
          } else {
            joined = {joined.x + p.x, joined.y + p.y};
          }
        }
      }
      if (args.head_join == HeadJoin::kMean) {
        const float scale = 1.0F / static_cast<float>(args.num_heads);
        joined = {joined.x * scale, joined.y * scale};
      }
      float* scores = args.scores + row * args.score_stride;  // the first is of chunk 1
      if (first > 0) scores[first - 1] = joined.x;
      if (first + 1 < tile_end) scores[first] = joined.y;
    }
  }
}

}  // namespace detail

/// Second pass: sums of a row's stretches in a fixed order, then probabilities, joined over heads.
template <typename Key>
__global__ void __launch_bounds__(kWorkThreads, kJoinBlocksPerSm)
    join_heads_kernel(const DeviceScoreArgs<Key> args, const ScoreLayout layout) {
  __shared__ detail::JoinHeadsShared shared;
  detail::join_heads(args, layout, shared, [&](std::int32_t batch) {
    return trigger_sight(args.table, args.triggers, args.window,
                         batch + static_cast<std::int32_t>(threadIdx.x));
  });
}

}  // namespace chunkllm::kernels
