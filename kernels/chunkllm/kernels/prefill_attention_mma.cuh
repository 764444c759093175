// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/core/status.hpp"
#include "chunkllm/kernels/prefill_attention_common.cuh"
#include "chunkllm/kernels/primitives.cuh"

/// Chunk prefill attention with mma.sync, for every device from sm_80 on.
namespace chunkllm::kernels {
namespace prefill {

/// Sizes of a block: 16 rows a warp, so that scores become the next product's operand without
/// leaving the lane. Shared memory stays below the 99 KB of the smallest device (sm_86, sm_89).
template <int kHeadDim>
struct MmaShape {
  static constexpr int kWarps = kHeadDim > 128 ? 4 : 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = kWarps * 16;
  static constexpr int kKeys = kHeadDim > 128 ? 32 : 64;
  static constexpr int kStages = 2;
  static constexpr bool kQueriesInRegisters = kHeadDim <= 128;  // else there is no room for them
  static constexpr int kQueryBytes = tile_bytes(kRows, kHeadDim);
  static constexpr int kKeyBytes = tile_bytes(kKeys, kHeadDim);
  static constexpr int kOffsetsAt = kQueryBytes + 2 * kStages * kKeyBytes;
  static constexpr int kSharedBytes =
      kOffsetsAt + kStages * kKeys * static_cast<int>(sizeof(std::int64_t));
  static_assert(kSharedBytes <= 99 * 1024);
};

/// Attention of the rows of one block. Layout of shared memory: queries, stages of keys, stages of
/// values, where the keys of the next two tiles begin in the cache.
template <typename T, int kHeadDim>
class MmaBlock {
  using Shape = MmaShape<kHeadDim>;
  static constexpr int kKeys = Shape::kKeys;
  static constexpr int kRows = Shape::kRows;
  static constexpr std::int64_t kAbsent = -1;

 public:
  __device__ MmaBlock(const PrefillAttentionArgs<T>& args, const QueryBlock& block,
                      unsigned char* shared)
      : args_(args),
        block_(block),
        shared_(shared),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % kWarpSize),
        first_pair_(thread_ / kWarpSize * 16),
        tiles_(key_tiles<kKeys>(block, args.window)),
        visible_(block, first_pair_, lane_, args.window),
        offsets_(reinterpret_cast<std::int64_t*>(shared + Shape::kOffsetsAt)) {}

  __device__ void run() {
    load_queries<kHeadDim, kRows, Shape::kThreads, kRows>(args_, block_, 0, shared_, thread_);
    if (thread_ < kKeys) {
      offsets_[tiles_.first % 2 * kKeys + thread_] = key_offset(tiles_.first);
      offsets_[(tiles_.first + 1) % 2 * kKeys + thread_] = key_offset(tiles_.first + 1);
    }
    __syncthreads();
    if constexpr (Shape::kQueriesInRegisters) {
#pragma unroll
      for (int step = 0; step < kHeadDim / 16; ++step) load_query(queries_[step], step);
    }

    const float scale_log2 = args_.scale * args_.kv.key_scale * kLog2OfE;
    const bool turn = turns_keys(args_);
    const bool has_rows = first_pair_ < block_.num_pairs;
    // Of the warp's rows: the first sees the fewest new and the most old keys.
    const std::int32_t first_rank = block_.rank(min(first_pair_, block_.num_pairs - 1));
    const std::int32_t last_rank = block_.rank(min(first_pair_ + 15, block_.num_pairs - 1));

    fetch(tiles_.first);
    for (std::int32_t tile = tiles_.first; tile < tiles_.end; ++tile) {
      fetch(tile + 1);
      // Where the keys of the tile after the next begin: asked for now, needed in the next round.
      const std::int64_t next = thread_ < kKeys ? key_offset(tile + 2) : kAbsent;
      wait_async<1>();
      __syncthreads();
      if (turn) {
        prefill::turn_keys<kHeadDim, kKeys, Shape::kThreads>(args_, block_, tile * kKeys,
                                                             shared_ + keys_at(tile), thread_);
        __syncthreads();
      }
      // Its readers fetched this very tile, before the barrier.
      if (thread_ < kKeys) offsets_[tile % 2 * kKeys + thread_] = next;

      const std::int32_t rank = tile * kKeys;
      const bool none_seen =
          rank > last_rank || (args_.window > 0 && rank + kKeys <= first_rank - args_.window + 1);
      if (has_rows && !none_seen) {
        float scores[kKeys / 8][4] = {};
        score(tile, scores);
        const bool some_hidden = rank + kKeys - 1 > first_rank ||
                                 (args_.window > 0 && rank < last_rank - args_.window + 1);
        if (some_hidden) hide(scores, rank, lane_, visible_);
        float kept[2];
        softmax_.update(scores, scale_log2, kept);
        scale_rows(out_, kept);
        add_values(tile, scores);
      }
      __syncthreads();  // the stage is free, the offsets stand
    }
    wait_async<0>();
    if (has_rows) {
      write_rows<kHeadDim, kRows>(args_, block_, first_pair_, out_, softmax_, shared_, lane_);
    }
  }

 private:
  static __device__ std::uint32_t keys_at(std::int32_t tile) {
    return Shape::kQueryBytes + static_cast<std::uint32_t>(tile % 2) * Shape::kKeyBytes;
  }
  static __device__ std::uint32_t values_at(std::int32_t tile) {
    return keys_at(tile) + 2 * Shape::kKeyBytes;
  }

  /// Where this thread's key of a tile begins in the cache; kAbsent past the block's last key.
  __device__ std::int64_t key_offset(std::int32_t tile) const {
    const std::int32_t rank = tile * kKeys + thread_;
    if (rank > block_.last_rank) return kAbsent;
    return args_.kv.token_offset(args_.seq, block_.token(rank)) +
           block_.kv_head * args_.kv.head_stride;
  }

  /// Starts to copy a tile's keys and values, zeros where there are none; one group, empty behind
  /// the last tile.
  __device__ void fetch(std::int32_t tile) {
    constexpr int kPieces = kHeadDim / kPieceValues;
    if (tile < tiles_.end) {
      const std::uint32_t keys = shared_address(shared_) + keys_at(tile);
      const std::uint32_t values = shared_address(shared_) + values_at(tile);
#pragma unroll 4
      for (int i = thread_; i < kKeys * kPieces; i += Shape::kThreads) {
        const int key = i / kPieces;
        const int piece = i % kPieces;
        const std::int64_t offset = offsets_[tile % 2 * kKeys + key];
        const bool present = offset != kAbsent;
        const std::int64_t source = present ? offset + piece * kPieceValues : 0;
        const std::uint32_t place = swizzled<kKeys>(key, piece);
        copy_async_16(keys + place, args_.kv.keys + source, present);
        copy_async_16(values + place, args_.kv.values + source, present);
      }
    }
    commit_async();
  }

  /// Queries of dimensions [16 step, 16 step + 16) as the left operand.
  __device__ void load_query(std::uint32_t (&query)[4], int step) const {
    const std::uint32_t row =
        shared_address(shared_) + swizzled<kRows>(first_pair_ + lane_ % 16, lane_ / 16);
    load_matrices(query, step_along_row<kRows>(row, step));
  }

  /// scores = queries . keys. A matrix of 8 keys x 8 dimensions, as it lies, is the right operand.
  __device__ void score(std::int32_t tile, float (&scores)[kKeys / 8][4]) {
    const std::uint32_t keys = shared_address(shared_) + keys_at(tile) +
                               swizzled<kKeys>(lane_ % 8 + lane_ / 16 * 8, lane_ / 8 % 2);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      std::uint32_t loaded[4];
      if constexpr (!Shape::kQueriesInRegisters) load_query(loaded, step);
      const std::uint32_t(&query)[4] = Shape::kQueriesInRegisters ? queries_[step] : loaded;
#pragma unroll
      for (int b = 0; b < kKeys / 16; ++b) {
        std::uint32_t k[4];
        load_matrices(k, step_along_row<kKeys>(keys, step) + 16 * b * kPanelRowBytes);
        Element<T>::multiply_add(scores[2 * b], query, k[0], k[1]);
        Element<T>::multiply_add(scores[2 * b + 1], query, k[2], k[3]);
      }
    }
  }

  /// out += weights . values. The weights are the left operand where they are; the values' matrices
  /// are transposed on the way.
  __device__ void add_values(std::int32_t tile, const float (&weights)[kKeys / 8][4]) {
    const std::uint32_t values =
        shared_address(shared_) + values_at(tile) + swizzled<kKeys>(lane_ % 16, lane_ / 16);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      std::uint32_t p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&w)[4] = weights[2 * step + i / 2];
        p[i] = Element<T>::pack(w[i % 2 * 2], w[i % 2 * 2 + 1]);
      }
#pragma unroll
      for (int b = 0; b < kHeadDim / 16; ++b) {
        std::uint32_t v[4];
        load_matrices_transposed(v, step_along_row<kKeys>(values, b) + 16 * step * kPanelRowBytes);
        Element<T>::multiply_add(out_[2 * b], p, v[0], v[1]);
        Element<T>::multiply_add(out_[2 * b + 1], p, v[2], v[3]);
      }
    }
  }

  const PrefillAttentionArgs<T>& args_;
  const QueryBlock& block_;
  unsigned char* shared_;
  int thread_;
  int lane_;
  std::int32_t first_pair_;  // of the warp
  KeyTiles tiles_;
  VisibleRanks visible_;
  std::int64_t* offsets_;  // [2][kKeys] of tiles 2 i and 2 i + 1
  std::uint32_t queries_[Shape::kQueriesInRegisters ? kHeadDim / 16 : 1][4];
  RowSoftmax softmax_;
  float out_[kHeadDim / 8][4] = {};
};

}  // namespace prefill

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(prefill::MmaShape<kHeadDim>::kThreads)
    prefill_attention_mma_kernel(const __grid_constant__ PrefillAttentionArgs<T> args) {
  extern __shared__ __align__(1024) unsigned char prefill_mma_shared[];
  prefill::QueryBlock block;
  if (!prefill::find_query_block<prefill::MmaShape<kHeadDim>::kRows>(args, block)) return;
  prefill::MmaBlock<T, kHeadDim>(args, block, prefill_mma_shared).run();
}

namespace prefill {

template <typename T, int kHeadDim>
Status launch_mma(const PrefillAttentionArgs<T>& args, cudaStream_t stream) {
  return launch_blocks<MmaShape<kHeadDim>>("prefill_attention_mma_kernel",
                                           prefill_attention_mma_kernel<T, kHeadDim>, args, stream);
}

}  // namespace prefill
}  // namespace chunkllm::kernels
