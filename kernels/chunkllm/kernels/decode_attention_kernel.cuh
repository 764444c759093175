// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/chunk/positions.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/decode_attention_feed.cuh"
#include "chunkllm/kernels/decode_attention_merge.cuh"
#include "chunkllm/kernels/decode_attention_plan.cuh"
#include "chunkllm/kernels/decode_attention_tile.cuh"
#include "chunkllm/kernels/dependent_launch.cuh"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels::decode_attention {

/// How far a launch reaches into the time of the kernel in front of it.
enum class Overlap : std::uint8_t {
  kNone,    ///< begins when all work in front of it is complete
  kLaunch,  ///< takes its place early, and reads nothing before
  kPast,    ///< reads everything but queries and newest tokens before
};

inline constexpr std::int64_t kLineBytes = 128;  // of the L2 cache

/// How a launch is cut up.
///
/// \tparam kWarps   of a block at most; a device of less shared memory has fewer
/// \tparam kStages  tiles in a warp's ring; all but one are on their way
/// \tparam kBlocks  resident ones an SM; the grid is as large. In batches twice as many of half the
///                  warps each: while one goes on to another pair, the other streams
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
  std::int32_t rope_count = 0;
  bool turns_keys = false;
  bool turns_by_tile = false;  ///< see `TileTurns`
  std::int32_t window = 0;
  Overlap overlap = Overlap::kNone;
  std::int64_t prefetched_bytes = 0;  ///< of the token lists; 0: they are long
  float* maybe_lse = nullptr;
  std::int32_t* counters = nullptr;  ///< [num_seqs, num_kv_heads] blocks that have arrived; zeros
  float* partials = nullptr;         ///< [grid, 2, group, PartialRecord]
};

/// Shared memory: each warp's ring, each warp's rows beside it, and the turns within a tile.
///
/// \tparam Cut  a Tuning
template <typename T, typename Kv, int kHeadDim, int kColumnTiles, bool kTurned, typename Cut>
struct BlockLayout {
  using Warp = WarpAttention<T, Kv, kHeadDim, kColumnTiles>;
  using Tile = TileLayout<Kv, kHeadDim>;
  static constexpr int kRingBytes = Cut::kNumStages * Tile::kBytes;
  static constexpr int kRowsBytes = Cut::kNumStages * WarpStages<Kv, kHeadDim, kTurned>::kRowBytes;
  static constexpr int kWarpBytes = kRingBytes + kRowsBytes;
  static constexpr int kTurnBytes =
      kTurned ? kTileTokens * kHeadDim * static_cast<int>(sizeof(float)) : 0;
  static constexpr int kMaxHeads = kColumnTiles * kHeadColumns;
  static constexpr int shared_bytes(int num_warps) { return num_warps * kWarpBytes + kTurnBytes; }
  /// Tiles a warp below which a block is not worth its start.
  static constexpr int kMinWarpTiles = 2;

  static_assert(kRingBytes >= 6 * static_cast<int>(sizeof(float)) * kWarpSize,
                "the scratch of `merge_blocks` fits where the rings were");
  static_assert(Warp::kStateFloats * static_cast<int>(sizeof(float)) <= kRingBytes,
                "a warp lays its result down in its own ring");
};

/// A block takes one stretch of tiles, pair by pair; its warps take every num_warps-th tile of a
/// pair, each with a ring of its own, and meet at the pair's end only.
template <typename T, typename Kv, int kHeadDim, int kColumnTiles, bool kTurned, typename Cut>
__global__ void __launch_bounds__(Cut::kNumWarps* kWarpSize, Cut::kBlocksPerSm)
    chunk_decode_attention_kernel(const __grid_constant__ Params<T, Kv> params) {
  using Block = BlockLayout<T, Kv, kHeadDim, kColumnTiles, kTurned, Cut>;
  using Warp = typename Block::Warp;
  using Record = PartialRecord<kHeadDim>;
  constexpr int kStages = Cut::kNumStages;

  let_next_start();
  const std::int64_t line =
      (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kLineBytes;
  if (line < params.prefetched_bytes) {  // the lists come closer while lengths are on their way
    prefetch_to_l2(reinterpret_cast<const char*>(params.sets.span_tokens) + line);
  }
  if (params.overlap != Overlap::kPast) wait_for_previous();

  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ bool is_last;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int num_warps = static_cast<int>(blockDim.x) / kWarpSize;
  auto* const states = reinterpret_cast<float*>(shared);
  constexpr int kStateStride = Block::kRingBytes / static_cast<int>(sizeof(float));
  unsigned char* const rows = shared + num_warps * Block::kRingBytes;
  auto* const in_tile_turns = reinterpret_cast<float4*>(rows + num_warps * Block::kRowsBytes);
  const WarpStages<Kv, kHeadDim, kTurned> stages{shared_address(shared) + warp * Block::kRingBytes,
                                                 rows + warp * Block::kRowsBytes};
  KeyTurns key_turns{params.kv.rotation, params.positions, nullptr, params.rope_count};
  if constexpr (kTurned) {
    if (params.turns_by_tile) key_turns.maybe_rope = params.rope;
  }

  const TileIndex index{params.sets,     params.num_tokens,   params.window,
                        params.num_seqs, params.num_kv_heads, lane};
  const Partition partition(index.count(), static_cast<std::int32_t>(gridDim.x),
                            Block::kMinWarpTiles * num_warps,
                            params.num_seqs == 1 ? params.num_kv_heads : 1);
  const auto block = static_cast<std::int32_t>(blockIdx.x);
  if (block >= partition.num_stretches) {
    wait_for_previous();
    return;
  }
  const std::int32_t stretch_begin = partition.begin(block);
  const std::int32_t stretch_end = partition.begin(block + 1);

  for (std::int32_t begin = stretch_begin; begin < stretch_end;) {
    const PairPlace pair = index.find(begin);
    if (pair.num_tiles == 0) {  // lengths changed under the launch
      wait_for_previous();
      return;
    }
    const std::int32_t pair_end = pair.first_tile + pair.num_tiles;
    const std::int32_t end = min(pair_end, stretch_end);
    const Extent extent = extent_of(params.sets, params.num_tokens, params.window, pair.seq);

    // This warp's tiles: begin + warp, begin + warp + num_warps, ...
    const std::int32_t num_tiles = end - begin > warp ? ceil_div(end - begin - warp, num_warps) : 0;
    TileFeed<Kv, kHeadDim, kStages, kTurned> feed(
        stages, key_turns,
        RankedTokens<Kv>(params.kv, params.sets, params.page_shift, pair.seq, pair.kv_head),
        extent.first_rank + (begin + warp - pair.first_tile) * kTileTokens, extent.num_attended,
        num_tiles, num_warps * kTileTokens, lane);
    // The newest token, in the pair's last tile, may be as new as the queries.
    if (end == pair_end && num_tiles < kStages) wait_for_previous();
    feed.start();
    wait_for_previous();

    // Behind the first copies, so that queries arrive while keys are on their way.
    Warp attention(lane);
    const std::int64_t first_head = static_cast<std::int64_t>(pair.kv_head) * params.group;
    Turn query_turn;
    if constexpr (kTurned) {
      if (params.turns_by_tile && begin == stretch_begin) {
        Warp::store_in_tile_turns(in_tile_turns, params.rope, params.rope_count);
        __syncthreads();
      }
    }
    if (kTurned && !params.turns_by_tile) {
      const std::int32_t token = params.num_tokens[pair.seq] - 1;
      const std::int32_t wanted =
          params.positions == Positions::kInCache ? extent.num_attended - 1 : token;
      query_turn = turn_by(
          params.rope,
          known_steps(wanted - (params.q_rotation == Rotation::kAtTokenPosition ? token : 0),
                      params.rope_count),
          kHeadDim);
    }
    attention.template load_queries<kTurned>(
        params.q + pair.seq * params.q_stride + first_head * kHeadDim, params.group, query_turn);

    int stage = 0;
    int free_stage = kStages - 1;
    for (std::int32_t i = 0; i < num_tiles; ++i) {
      wait_async<kStages - 2>();
      __syncwarp();  // tile i is there for all lanes, and all have left tile i - 1
      feed.advance(free_stage, i + kStages - 1);
      TileTurns turns;
      if constexpr (kTurned) {
        if (params.turns_by_tile) {
          turns.maybe_query_row = stages.rope_row(stage);
          turns.in_tile = in_tile_turns;
        } else if (params.turns_keys) {
          turns.maybe_steps = stages.steps(stage);
          turns.rope = params.rope;
        }
      }
      attention.template attend<kTurned>(stages.tile(stage), feed.rows_of(i), params.score_factor,
                                         turns);
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
      merge_warps<Warp, kHeadDim>(states, kStateStride, params.group, kStats,
                                  [&](int head, int dim, const float4& acc, float reference,
                                      float sum) { output.write(head, dim, acc, reference, sum); });
    } else {
      float* const mine =
          Record::of(params.partials, block, begin == stretch_begin ? 0 : 1, params.group);
      merge_warps<Warp, kHeadDim>(
          states, kStateStride, params.group, kStats,
          [&](int head, int dim, const float4& acc, float reference, float sum) {
            float* record = mine + head * Record::kFloats;
            *reinterpret_cast<float4*>(record + dim) = acc;
            if (dim == 0) *reinterpret_cast<float2*>(record + kHeadDim) = {reference, sum};
          });
      const std::int32_t first_block = partition.stretch_of(pair.first_tile);
      const std::int32_t num_parts = partition.stretch_of(pair_end - 1) - first_block + 1;
      std::int32_t* const counter = params.counters + pair.seq * params.num_kv_heads + pair.kv_head;
      __syncthreads();  // a fence of one thread behind it covers what all of them wrote
      if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicAdd(counter, 1) == num_parts - 1;
        if (is_last) {
          *counter = 0;  // for the next launch
          __threadfence();
        }
      }
      __syncthreads();
      if (is_last) {
        merge_blocks<T, kHeadDim, Cut::kNumWarps>(
            params.partials, first_block, partition.begin(first_block) == pair.first_tile ? 0 : 1,
            num_parts, params.group, states, output);
      }
    }
    begin = end;
    if (begin < stretch_end) __syncthreads();  // the rings are filled anew
  }
}

}  // namespace chunkllm::kernels::decode_attention
