// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/chunk/positions.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/decode_attention_feed.cuh"
#include "chunkllm/kernels/decode_attention_merge.cuh"
#include "chunkllm/kernels/decode_attention_plan.cuh"
#include "chunkllm/kernels/decode_attention_tile.cuh"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels::decode_attention {

/// How a launch is cut up.
///
/// \tparam kWarps   of a block
/// \tparam kStages  tiles in a warp's ring; all but one are on their way
/// \tparam kBlocks  resident ones an SM; the grid is as large
template <int kWarps, int kStages, int kBlocks>
struct Tuning {
  static constexpr int kNumWarps = kWarps;
  static constexpr int kNumStages = kStages;
  static constexpr int kBlocksPerSm = kBlocks;
};

/// What the kernel reads: the launcher's arguments after validation.
template <typename T, typename Kv>
struct Params {
  const T* q = nullptr;
  T* out = nullptr;
  std::int64_t q_stride = 0;
  std::int64_t out_stride = 0;
  cuda::DeviceKvView<const Kv> kv;
  std::int32_t page_shift = -1;
  cuda::DeviceAttendedSets sets;
  const std::int32_t* num_tokens = nullptr;
  std::int32_t num_seqs = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t group = 1;     ///< query heads of a KV head
  float score_factor = 1.0F;  ///< scale, times the keys' scale, times log2(e)
  Rotation q_rotation = Rotation::kAtTokenPosition;
  Positions positions = Positions::kOriginal;
  const float* rope = nullptr;
  bool turns_keys = false;
  std::int32_t window = 0;
  float* maybe_lse = nullptr;
  std::int32_t* counters = nullptr;  ///< [num_seqs, num_kv_heads] blocks that have arrived; zeros
  float* partials = nullptr;         ///< [grid, 2, group, PartialRecord]
};

/// \tparam Cut  a Tuning
template <typename T, typename Kv, int kHeadDim, int kColumnTiles, typename Cut>
struct BlockLayout {
  using Warp = WarpAttention<T, Kv, kHeadDim, kColumnTiles>;
  using Tile = TileLayout<Kv, kHeadDim>;
  static constexpr int kRingBytes = Cut::kNumStages * Tile::kBytes;
  static constexpr int kThreads = Cut::kNumWarps * kWarpSize;
  static constexpr int kMaxHeads = kColumnTiles * kHeadColumns;
  /// Rings, and the RoPE steps of the keys in them.
  static constexpr int kSharedBytes =
      Cut::kNumWarps *
      (kRingBytes + Cut::kNumStages * kTileTokens * static_cast<int>(sizeof(std::int32_t)));
  /// Parts of one pair whose factors fit where the rings were.
  static constexpr int kMaxParts =
      (Cut::kNumWarps * kRingBytes / static_cast<int>(sizeof(float)) - 2 * kMaxHeads) / kMaxHeads;
  /// Tiles below which a block is not worth its start: two for each warp.
  static constexpr int kMinStretchTiles = 2 * Cut::kNumWarps;

  static_assert(Warp::kStateFloats * static_cast<int>(sizeof(float)) <= kRingBytes,
                "a warp lays its result down in its own ring");
};

/// A block takes one stretch of tiles, pair by pair; its warps take every num_warps-th tile of a
/// pair, each with a ring of its own, and meet at the pair's end only.
template <typename T, typename Kv, int kHeadDim, int kColumnTiles, bool kTurned, typename Cut>
__global__ void __launch_bounds__(Cut::kNumWarps* kWarpSize, Cut::kBlocksPerSm)
    chunk_decode_attention_kernel(const __grid_constant__ Params<T, Kv> params) {
  using Block = BlockLayout<T, Kv, kHeadDim, kColumnTiles, Cut>;
  using Warp = typename Block::Warp;
  using Tile = typename Block::Tile;
  using Record = PartialRecord<kHeadDim>;
  constexpr int kNumWarps = Cut::kNumWarps;
  constexpr int kStages = Cut::kNumStages;

  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ bool is_last;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  auto* const states = reinterpret_cast<float*>(shared);
  constexpr int kStateStride = Block::kRingBytes / static_cast<int>(sizeof(float));
  const std::uint32_t ring = shared_address(shared) + warp * Block::kRingBytes;
  std::int32_t* const steps =
      reinterpret_cast<std::int32_t*>(shared + kNumWarps * Block::kRingBytes) +
      warp * kStages * kTileTokens;

  const TileIndex index{params.sets,     params.num_tokens,   params.window,
                        params.num_seqs, params.num_kv_heads, lane};
  const Partition partition(index.count(), static_cast<std::int32_t>(gridDim.x),
                            Block::kMinStretchTiles);
  const auto block = static_cast<std::int32_t>(blockIdx.x);
  if (block >= partition.num_stretches) return;
  const std::int32_t stretch_begin = partition.begin(block);
  const std::int32_t stretch_end = partition.begin(block + 1);

  for (std::int32_t begin = stretch_begin; begin < stretch_end;) {
    const PairPlace pair = index.find(begin);
    if (pair.num_tiles == 0) return;  // lengths changed under the launch
    const std::int32_t pair_end = pair.first_tile + pair.num_tiles;
    const std::int32_t end = min(pair_end, stretch_end);
    const Extent extent = extent_of(params.sets, params.num_tokens, params.window, pair.seq);

    // This warp's tiles: begin + warp, begin + warp + kNumWarps, ...
    const std::int32_t num_tiles = end - begin > warp ? ceil_div(end - begin - warp, kNumWarps) : 0;
    TileFeed<Kv, kHeadDim, kStages, kTurned> feed(
        RankedTokens<Kv>(params.kv, params.sets, params.page_shift, pair.seq, pair.kv_head),
        extent.first_rank + (begin + warp - pair.first_tile) * kTileTokens, extent.num_attended,
        num_tiles, kNumWarps * kTileTokens, lane);
    feed.start(ring, steps, params.kv.rotation, params.positions);

    // Behind the first copies, so that queries arrive while keys are on their way.
    Warp attention(lane);
    const std::int64_t first_head = static_cast<std::int64_t>(pair.kv_head) * params.group;
    Turn query_turn;
    if constexpr (kTurned) {
      const std::int32_t token = params.num_tokens[pair.seq] - 1;
      const std::int32_t wanted =
          params.positions == Positions::kInCache ? extent.num_attended - 1 : token;
      query_turn =
          turn_by(params.rope,
                  wanted - (params.q_rotation == Rotation::kAtTokenPosition ? token : 0), kHeadDim);
    }
    attention.template load_queries<kTurned>(
        params.q + pair.seq * params.q_stride + first_head * kHeadDim, params.group, query_turn);

    int stage = 0;
    int free_stage = kStages - 1;
    for (std::int32_t i = 0; i < num_tiles; ++i) {
      wait_async<kStages - 2>();
      __syncwarp();  // tile i is there for all lanes, and all have left tile i - 1
      feed.advance(ring + free_stage * Tile::kBytes, steps + free_stage * kTileTokens,
                   i + kStages - 1, params.kv.rotation, params.positions);
      attention.template attend<kTurned>(
          ring + stage * Tile::kBytes, feed.rows_of(i), params.score_factor,
          params.turns_keys ? steps + stage * kTileTokens : nullptr, params.rope);
      free_stage = stage;
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    wait_async<0>();
    __syncwarp();
    attention.store(states + warp * kStateStride);
    __syncthreads();

    const PairOutput<T, kHeadDim> output{
        params.out + pair.seq * params.out_stride + first_head * kHeadDim,
        params.maybe_lse == nullptr
            ? nullptr
            : params.maybe_lse +
                  static_cast<std::int64_t>(pair.seq) * params.num_kv_heads * params.group +
                  first_head,
        params.kv.value_scale};
    constexpr int kStats = Block::kMaxHeads * Warp::kStatePitch;
    if (begin == pair.first_tile && end == pair_end) {
      merge_warps<Warp, kHeadDim, kNumWarps>(
          states, kStateStride, params.group, kStats,
          [&](int head, int dim, const float4& acc, float reference, float sum) {
            output.write(head, dim, acc, reference, sum);
          });
    } else {
      float* const mine =
          Record::of(params.partials, block, begin == stretch_begin ? 0 : 1, params.group);
      merge_warps<Warp, kHeadDim, kNumWarps>(
          states, kStateStride, params.group, kStats,
          [&](int head, int dim, const float4& acc, float reference, float sum) {
            float* record = mine + head * Record::kFloats;
            *reinterpret_cast<float4*>(record + dim) = acc;
            if (dim == 0) *reinterpret_cast<float2*>(record + kHeadDim) = {reference, sum};
          });
      const std::int32_t first_block = partition.stretch_of(pair.first_tile);
      const std::int32_t num_parts = partition.stretch_of(pair_end - 1) - first_block + 1;
      std::int32_t* const counter = params.counters + pair.seq * params.num_kv_heads + pair.kv_head;
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        is_last = atomicAdd(counter, 1) == num_parts - 1;
        if (is_last) *counter = 0;  // for the next launch
      }
      __syncthreads();
      if (is_last) {
        __threadfence();
        merge_blocks<T, kHeadDim, kNumWarps>(
            params.partials, first_block, partition.begin(first_block) == pair.first_tile ? 0 : 1,
            num_parts, params.group, states, output);
      }
    }
    begin = end;
    if (begin < stretch_end) __syncthreads();  // the rings are filled anew
  }
}

}  // namespace chunkllm::kernels::decode_attention
