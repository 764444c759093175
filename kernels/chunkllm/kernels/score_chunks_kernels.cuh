// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/trigger_work.cuh"

namespace chunkllm::kernels {

/// Inputs and outputs of `launch_score_chunks`. Strides of 0 stand for dense arrays; query, key and
/// open-key rows must start at multiples of 16 bytes.
///
/// \tparam Key  __half, __nv_bfloat16 or float
template <typename Key>
struct DeviceScoreArgs {
  const float* queries = nullptr;     ///< [num_layers, triggers.count, num_heads * key_dim]
  const float* maybe_null = nullptr;  ///< [num_layers, triggers.count, num_heads] null logits;
                                      ///< null: logsumexp over chunk 0, local window and open chunk
  const float* maybe_bias = nullptr;  ///< [num_layers, num_heads, kNumDistanceBins]
  /// [num_layers, triggers.count, num_key_heads * key_dim] key of the open chunk at the trigger.
  /// Ignored where no chunk is open there, and with null logits.
  const float* maybe_open_keys = nullptr;
  const Key* keys = nullptr;  ///< [num_layers, num_seqs, max_chunks, num_key_heads * key_dim]
  std::int64_t query_layer_stride = 0;
  std::int64_t query_stride = 0;  ///< from trigger to trigger
  std::int64_t null_layer_stride = 0;
  std::int64_t null_stride = 0;  ///< from trigger to trigger
  std::int64_t open_key_layer_stride = 0;
  std::int64_t key_layer_stride = 0;
  std::int64_t bias_layer_stride = 0;
  std::int64_t key_seq_stride = 0;
  cuda::DeviceChunkTable table;
  cuda::DeviceTriggers triggers;
  LocalWindow window;
  std::int32_t num_layers = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_key_heads = 0;  ///< divides num_heads
  std::int32_t key_dim = 0;
  bool adds_log_length = false;
  float scale = 1.0F;
  HeadJoin head_join = HeadJoin::kMax;
  float* scores = nullptr;  ///< [num_layers, triggers.count, score_stride] of chunks 1, 2, ...
  std::int64_t score_stride = 0;  ///< at least table.max_chunks - 1
  void* workspace = nullptr;      ///< multiple of 16
  std::size_t workspace_bytes = 0;
};

/// Tuning. A warp's stretch of chunks is part of the result (it fixes the order of the softmax's
/// sum), so it depends on nothing: a trigger's scores are the same in decode and in prefill.
inline constexpr std::int32_t kStretch = 32;  ///< chunks whose keys a warp holds in registers
inline constexpr int kScoreBlocksPerSm = 2;   ///< 16 warps with 8 KB of keys under way each
inline constexpr int kScoreTile = 2 * kWorkThreads;  ///< most chunks of a block's second pass
/// And the fewest, where else few blocks would have work: those of a warp.
inline constexpr int kLeastScoreTile = 2 * kWarpSize;
/// Pieces of work below which they are made smaller: about an SM each.
inline constexpr std::int64_t kFewPieces = 128;
inline constexpr std::int32_t kMaxScoreHeads = 256;
inline constexpr std::int32_t kMaxKeyDim = 512;

/// A running sum of exp(z - largest): one exponential a value.
struct alignas(8) SoftmaxSum {
  float largest = -FLT_MAX;  // and not -infinity, whose difference to itself is NaN
  float sum = 0.0F;

  __device__ void add(float z) {
    const float above = z - largest;
    const float factor = expf(-fabsf(above));
    // z - z is 0, but NaN for +infinity: a fault must not pass for a probability of 1.
    sum = above > 0.0F ? sum * factor + (1.0F + (z - z)) : sum + factor;
    largest = fmaxf(largest, z);
  }
  __device__ void merge(const SoftmaxSum& other) {
    const float both = fmaxf(largest, other.largest);
    sum = sum * expf(largest - both) + other.sum * expf(other.largest - both);
    largest = both;
  }
};

/// How the first pass cuts its work.
struct ScoreLayout {
  std::int32_t group;            ///< query heads a key head
  std::int32_t heads_per_warp;   ///< of a key head, f32 keys: that a warp keeps in registers
  std::int32_t tiles;            ///< of heads a key head
  std::int32_t num_units;        ///< (key head, tile): what a warp works on
  std::int32_t units_per_block;  ///< a power of two, so that warps divide evenly
  std::int32_t unit_groups;
  std::int32_t block_chunks;
  std::int32_t num_partials;  ///< stretches of a full table
  std::int32_t join_tile;     ///< chunks of a block of the second pass
  std::int64_t logit_stride;
  float* logits;         ///< [num_layers, count, num_heads, logit_stride] of chunks 0, 1, ...
  SoftmaxSum* partials;  ///< [num_layers, count, num_heads, num_partials]
  std::int32_t inverse_group;

  /// slot / group without a division, for 0 <= slot < 2048 and group <= 256: rounding 2^20 / group
  /// up adds less than slot * group / 2^20 < 1 / group to the quotient.
  static constexpr int kInverseBits = 20;
  __device__ std::int32_t trigger_of_slot(std::int32_t slot) const {
    return (slot * inverse_group) >> kInverseBits;
  }
};

namespace detail {

/// Sums each of v over lanes that differ in the bits up to kMask. Values are dealt out on the way:
/// a lane ends with those of index `first_held`, first_held + 1, ... in v[0], v[1], ....
template <int kMask, int kCount, int kSize>
__device__ inline void fold_lanes(float (&v)[kSize], std::int32_t lane) {
  if constexpr (kMask > 0 && kCount > 1) {
    constexpr int kHalf = kCount / 2;
    const bool upper = (lane & kMask) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float kept = upper ? v[i + kHalf] : v[i];
      const float sent = upper ? v[i] : v[i + kHalf];
      v[i] = kept + __shfl_xor_sync(kFullWarp, sent, kMask);
    }
    fold_lanes<kMask / 2, kHalf>(v, lane);
  } else if constexpr (kMask > 0) {
    v[0] += __shfl_xor_sync(kFullWarp, v[0], kMask);
    fold_lanes<kMask / 2, 1>(v, lane);
  }
}

/// Index of the first value that `fold_lanes` leaves in a lane.
template <int kMask, int kCount>
__device__ inline std::int32_t first_held(std::int32_t lane) {
  if constexpr (kMask > 0 && kCount > 1) {
    return ((lane & kMask) != 0 ? kCount / 2 : 0) + first_held<kMask / 2, kCount / 2>(lane);
  } else {
    return 0;
  }
}

/// Eight neighbouring floats.
struct EightFloats {
  float4 halves[2] = {};

  __device__ void load(const float* address) {
    halves[0] = __ldg(reinterpret_cast<const float4*>(address));
    halves[1] = __ldg(reinterpret_cast<const float4*>(address) + 1);
  }
  /// As `load`, of memory that this very kernel may have written.
  __device__ void load_changed(const float* address) {
    halves[0] = reinterpret_cast<const float4*>(address)[0];
    halves[1] = reinterpret_cast<const float4*>(address)[1];
  }
  __device__ void copy_to(float (&out)[8]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      out[4 * half] = halves[half].x;
      out[4 * half + 1] = halves[half].y;
      out[4 * half + 2] = halves[half].z;
      out[4 * half + 3] = halves[half].w;
    }
  }
};

}  // namespace detail

/// First pass with f32 keys: logits of all closed chunks, and each stretch's part of the softmax's
/// sum.
///
/// A warp works on one key head and up to kHeads of its query heads, which stay in registers. Its
/// lanes share a key row (8 elements each), and what they have is summed by shuffles for several
/// rows and heads at once, so that a row costs 4 shuffles and not 5 a head. CUDA cores, so that the
/// products are as exact as on the CPU.
///
/// \tparam kDim    key_dim rounded up to 64, 128, 256 or 512
/// \tparam kHeads  1 or 4
template <int kDim, int kHeads>
__global__ void __launch_bounds__(kWorkThreads, kDim == 512 ? 1 : kScoreBlocksPerSm)
    score_logits_f32_kernel(const DeviceScoreArgs<float> args, const ScoreLayout layout) {
  constexpr int kLanes = kDim / 8 < kWarpSize ? kDim / 8 : kWarpSize;  // that share a row
  constexpr int kSlices = kDim / 8 / kLanes;
  constexpr int kRowsAtOnce = kWarpSize / kLanes;
  constexpr int kLoads = (kHeads == 1 ? 4 : 2) / kSlices;  // rows a lane
  constexpr int kValues = kLoads * kHeads;
  constexpr int kHeld = kValues > kLanes ? kValues / kLanes : 1;    // values a lane ends with
  constexpr int kCopies = kLanes > kValues ? kLanes / kValues : 1;  // lanes that end with the same
  constexpr int kStep = kRowsAtOnce * kLoads;
  static_assert(kHeld <= kHeads && kStretch % kStep == 0);
  constexpr int kHeadBits = (kHeads / kHeld - 1) * kCopies;  // of the lane: the held heads

  __shared__ TriggerWork work;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
  const std::int32_t lane_in_row = lane % kLanes;
  const std::int32_t row_of_lane = lane / kLanes;
  const std::int32_t held = detail::first_held<kLanes / 2, kValues>(lane);
  const std::int32_t held_row = held / kHeads * kRowsAtOnce + row_of_lane;
  const std::int32_t held_head = held % kHeads;
  const bool owns = lane % kCopies == 0;
  const std::int32_t stretch_in_block = warp / layout.units_per_block;
  const std::int32_t row_size = args.num_key_heads * args.key_dim;

  for (std::int32_t batch = 0; batch < args.triggers.count; batch += kWorkThreads) {
    const std::int32_t items_a_piece = args.num_layers * layout.unit_groups;
    lay_out_work<1>(work, args.table, args.triggers, args.window, batch,
                    [&](std::int32_t num_closed, std::int32_t) {
                      return ceil_div(num_closed, layout.block_chunks) * items_a_piece;
                    });
    const WorkShare share = block_share(work);
    if (share.first >= share.last) continue;
    std::int32_t t = trigger_of_item(work, share.first);
    std::int32_t loaded_trigger = -1;
    std::int32_t loaded_set = -1;
    float q[kSlices][kHeads][8];
    for (std::int32_t item = share.first; item < share.last; ++item) {
      while (item >= work.items_before[t + 1]) ++t;
      const std::int32_t num_closed = work.num_closed[t];
      const std::int32_t local = item - work.items_before[t];
      const std::int32_t pieces = ceil_div(num_closed, layout.block_chunks);
      const std::int32_t set = local / pieces;  // (layer, group of units)
      const std::int32_t layer = set / layout.unit_groups;
      const std::int32_t unit = (set - layer * layout.unit_groups) * layout.units_per_block +
                                warp % layout.units_per_block;
      const std::int32_t first =
          (local - set * pieces) * layout.block_chunks + stretch_in_block * kStretch;
      if (unit >= layout.num_units || first >= num_closed) continue;
      const std::int32_t last = min(first + kStretch, num_closed);
      const std::int32_t key_head = unit / layout.tiles;
      const std::int32_t head_in_group = (unit - key_head * layout.tiles) * kHeads;
      const std::int32_t num_heads = min(kHeads, layout.group - head_in_group);  // of this warp
      const std::int32_t first_head = key_head * layout.group + head_in_group;
      const std::int32_t i = batch + t;
      const std::int32_t seq = args.triggers.seq(i);
      const std::int32_t trigger = args.triggers.tokens[i];
      const std::int32_t* ends = args.table.ends_of(seq);

      if (loaded_trigger != t || loaded_set != set) {
        const float* query = args.queries + layer * args.query_layer_stride +
                             i * args.query_stride +
                             static_cast<std::int64_t>(first_head) * args.key_dim;
#pragma unroll
        for (int s = 0; s < kSlices; ++s) {
          const std::int32_t d = (s * kLanes + lane_in_row) * 8;
#pragma unroll
          for (int h = 0; h < kHeads; ++h) {
            detail::EightFloats elements;
            if (d < args.key_dim && h < num_heads) elements.load(query + h * args.key_dim + d);
            elements.copy_to(q[s][h]);
          }
        }
        loaded_trigger = t;
        loaded_set = set;
      }

      const float* keys = args.keys + layer * args.key_layer_stride + seq * args.key_seq_stride +
                          static_cast<std::int64_t>(key_head) * args.key_dim;
      const float* bias = args.maybe_bias == nullptr
                              ? nullptr
                              : args.maybe_bias + layer * args.bias_layer_stride +
                                    static_cast<std::int64_t>(first_head) * kNumDistanceBins;
      const std::int64_t head_row =
          (static_cast<std::int64_t>(layer) * args.triggers.count + i) * args.num_heads +
          first_head;
      SoftmaxSum sums[kHeld];
      for (std::int32_t begin = first; begin < last; begin += kStep) {
        detail::EightFloats rows[kLoads][kSlices];
#pragma unroll
        for (int r = 0; r < kLoads; ++r) {
          // Behind the last row it is read again, and what comes of it is dropped.
          const std::int32_t chunk = min(begin + r * kRowsAtOnce + row_of_lane, last - 1);
          const float* row = keys + static_cast<std::int64_t>(chunk) * row_size;
#pragma unroll
          for (int s = 0; s < kSlices; ++s) {
            // A lane behind the row's end reads its begin, and its queries are 0.
            const std::int32_t d = (s * kLanes + lane_in_row) * 8;
            rows[r][s].load(row + (d < args.key_dim ? d : 0));
          }
        }
        const std::int32_t chunk = begin + held_row;
        const bool counts = owns && chunk < last;
        float log_length = 0.0F;
        std::int32_t bin = 0;
        if (counts) {
          const std::int32_t end = ends[chunk];
          if (args.adds_log_length) {
            log_length = logf(static_cast<float>(end - (chunk == 0 ? 0 : ends[chunk - 1])));
          }
          if (bias != nullptr) bin = distance_bin(max(trigger - (end - 1), 1));
        }
        float v[kValues];
#pragma unroll
        for (int j = 0; j < kValues; ++j) v[j] = 0.0F;
#pragma unroll
        for (int r = 0; r < kLoads; ++r) {
#pragma unroll
          for (int s = 0; s < kSlices; ++s) {
            float x[8];
            rows[r][s].copy_to(x);
#pragma unroll
            for (int h = 0; h < kHeads; ++h) {
#pragma unroll
              for (int e = 0; e < 8; ++e) {
                v[r * kHeads + h] = fmaf(x[e], q[s][h][e], v[r * kHeads + h]);
              }
            }
          }
        }
        detail::fold_lanes<kLanes / 2, kValues>(v, lane);
        // With null logits of its own the softmax is over the candidates, else over all there is.
        const bool is_member = args.maybe_null == nullptr || (chunk > 0 && chunk < work.end[t]);
#pragma unroll
        for (int j = 0; j < kHeld; ++j) {
          const std::int32_t head = held_head + j;
          if (counts && head < num_heads) {
            float z = v[j] * args.scale + log_length;
            if (bias != nullptr) z += bias[head * kNumDistanceBins + bin];
            layout.logits[(head_row + head) * layout.logit_stride + chunk] = z;
            if (is_member) sums[j].add(z);
          }
        }
      }
      __syncwarp();

      const std::int32_t open_begin = num_closed == 0 ? 0 : ends[num_closed - 1];
      if (first == 0 && args.maybe_null == nullptr && args.maybe_open_keys != nullptr &&
          trigger >= open_begin) {
        float v[kHeads];
#pragma unroll
        for (int h = 0; h < kHeads; ++h) v[h] = 0.0F;
        const float* open = args.maybe_open_keys + layer * args.open_key_layer_stride +
                            static_cast<std::int64_t>(i) * row_size +
                            static_cast<std::int64_t>(key_head) * args.key_dim;
#pragma unroll
        for (int s = 0; s < kSlices; ++s) {
          const std::int32_t d = (s * kLanes + lane_in_row) * 8;
          detail::EightFloats elements;
          if (d < args.key_dim) elements.load(open + d);
          float x[8];
          elements.copy_to(x);
#pragma unroll
          for (int h = 0; h < kHeads; ++h) {
#pragma unroll
            for (int e = 0; e < 8; ++e) v[h] = fmaf(x[e], q[s][h][e], v[h]);
          }
        }
        const float log_length =
            args.adds_log_length ? logf(static_cast<float>(trigger + 1 - open_begin)) : 0.0F;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
#pragma unroll
          for (int mask = kLanes / 2; mask > 0; mask /= 2) {
            v[h] += __shfl_xor_sync(kFullWarp, v[h], mask);
          }
          float z = v[h] * args.scale + log_length;
          if (bias != nullptr && h < num_heads) z += bias[h * kNumDistanceBins];
#pragma unroll
          for (int j = 0; j < kHeld; ++j) {
            if (owns && held_row == 0 && held_head + j == h) sums[j].add(z);
          }
        }
      }

#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
#pragma unroll
        for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
          if ((mask & kHeadBits) != 0) continue;
          SoftmaxSum other;
          other.largest = __shfl_xor_sync(kFullWarp, sums[j].largest, mask);
          other.sum = __shfl_xor_sync(kFullWarp, sums[j].sum, mask);
          sums[j].merge(other);
        }
        const std::int32_t head = held_head + j;
        if ((lane & ~kHeadBits) == 0 && head < num_heads) {
          layout.partials[(head_row + head) * layout.num_partials + first / kStretch] = sums[j];
        }
      }
    }
  }
}

}  // namespace chunkllm::kernels
