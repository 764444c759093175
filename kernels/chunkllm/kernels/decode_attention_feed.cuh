// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/chunk/positions.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/decode_attention_tile.cuh"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels::decode_attention {

/// Attended token of each rank, and where it lies.
template <typename Kv>
struct RankedTokens {
  const Kv* keys = nullptr;    ///< of the KV head
  const Kv* values = nullptr;  ///< likewise
  const std::int32_t* span_tokens = nullptr;
  std::int32_t num_span_tokens = 0;
  std::int32_t tail_shift = 0;                ///< in the tail, token = rank + tail_shift
  const std::int32_t* maybe_pages = nullptr;  ///< the sequence's page table
  std::int32_t page_size = 1;
  std::int32_t page_shift = -1;  ///< log2 of the page size; < 0: it is no power of two
  std::int64_t page_stride = 0;
  std::int64_t token_stride = 0;

  __device__ RankedTokens(const cuda::DeviceKvView<const Kv>& kv,
                          const cuda::DeviceAttendedSets& sets, std::int32_t shift,
                          std::int32_t seq, std::int32_t kv_head) {
    std::int64_t base = kv_head * kv.head_stride;
    if (kv.page_table == nullptr) {
      base += seq * kv.seq_stride;
    } else {
      maybe_pages = kv.page_table + static_cast<std::int64_t>(seq) * kv.max_pages;
      page_size = kv.page_size;
      page_shift = shift;
      page_stride = kv.page_stride;
    }
    keys = kv.keys + base;
    values = kv.values + base;
    token_stride = kv.token_stride;
    span_tokens = sets.span_tokens_of(seq);
    num_span_tokens = sets.num_span_tokens[seq];
    tail_shift = sets.tail_begin[seq] - num_span_tokens;
  }

  __device__ std::int32_t token(std::int32_t rank) const {
    return rank < num_span_tokens ? span_tokens[rank] : rank + tail_shift;
  }
  __device__ std::int32_t page_index(std::int32_t token) const {
    return page_shift >= 0 ? token >> page_shift : token / page_size;
  }
  /// Entry of the page table; 0 without one.
  __device__ std::int32_t page(std::int32_t token) const {
    return maybe_pages == nullptr ? 0 : maybe_pages[page_index(token)];
  }
  __device__ std::int64_t offset(std::int32_t token, std::int32_t page) const {
    if (maybe_pages == nullptr) return token * token_stride;
    return page * page_stride + (token - page_index(token) * page_size) * token_stride;
  }
};

/// One warp's shared memory.
///
/// \tparam kTurned  a stage has a row beside its tile: of [16] the RoPE steps that each key is
///                  still to be turned by, or the RoPE row that the queries are turned by
template <typename Kv, int kHeadDim, bool kTurned>
struct WarpStages {
  using Layout = TileLayout<Kv, kHeadDim>;
  static constexpr int kRowBytes =
      kTurned ? kHeadDim * static_cast<int>(sizeof(float)) : 0;  // no less than 16 steps

  std::uint32_t ring;   ///< shared memory address
  unsigned char* rows;  ///< in shared memory

  __device__ std::uint32_t tile(int stage) const { return ring + stage * Layout::kBytes; }
  __device__ std::int32_t* steps(int stage) const {
    return reinterpret_cast<std::int32_t*>(rows + stage * kRowBytes);
  }
  __device__ float* rope_row(int stage) const {
    return reinterpret_cast<float*>(rows + stage * kRowBytes);
  }
};

/// How keys come to their wanted positions.
struct KeyTurns {
  Rotation stored = Rotation::kAtTokenPosition;
  Positions positions = Positions::kOriginal;
  const float* maybe_rope = nullptr;  ///< not null: queries are turned tile by tile instead
  std::int32_t rope_count = 0;        ///< rows of the table
};

/// Brings one warp's tiles into its ring of shared memory.
///
/// Between a rank and its key lie two reads that depend on one another, the token list and the page
/// table. Each is made one tile ahead of the next, so that no tile waits for them. The two halves
/// of the warp hold the same 16 tokens.
template <typename Kv, int kHeadDim, int kStages, bool kTurned>
class TileFeed {
 public:
  using Layout = TileLayout<Kv, kHeadDim>;
  using Stages = WarpStages<Kv, kHeadDim, kTurned>;

  /// \param first_rank   of the warp's first tile   \param end_rank  of the attended ones
  /// \param num_tiles    of this warp
  /// \param rank_step    ranks from one of its tiles to the next
  __device__ TileFeed(const Stages& stages, const KeyTurns& turns, const RankedTokens<Kv>& tokens,
                      std::int32_t first_rank, std::int32_t end_rank, std::int32_t num_tiles,
                      std::int32_t rank_step, int lane)
      : stages_(stages),
        turns_(turns),
        tokens_(tokens),
        first_rank_(first_rank),
        end_rank_(end_rank),
        num_tiles_(num_tiles),
        rank_step_(rank_step),
        lane_(lane) {}

  /// Starts the copies of the first kStages - 1 tiles.
  __device__ void start() {
    std::int32_t token[kStages + 1];
    std::int32_t page[kStages];
#pragma unroll
    for (int s = 0; s <= kStages; ++s) token[s] = token_of(s);
#pragma unroll
    for (int s = 0; s < kStages; ++s) page[s] = tokens_.page(token[s]);
    token_ = token[0];
    page_ = page[0];
#pragma unroll
    for (int s = 0; s + 1 < kStages; ++s) {
      copy(s, s);
      token_ = token[s + 1];
      page_ = page[s + 1];
    }
    next_token_ = token[kStages];
  }

  /// Starts the copy of tile `i` into a stage; tiles come in order, without a gap. An empty group
  /// is committed behind the last one, so that groups and tiles count alike.
  __device__ void advance(int stage, std::int32_t i) {
    copy(stage, i);
    token_ = next_token_;
    page_ = tokens_.page(token_);
    next_token_ = token_of(i + 2);
  }

  __device__ std::int32_t rank_of(std::int32_t i) const {
    return first_rank_ + i * rank_step_;
  }
  /// Tokens of tile `i`; 16 but for the last one of the sequence.
  __device__ std::int32_t rows_of(std::int32_t i) const {
    return min(end_rank_ - rank_of(i), kTileTokens);
  }

 private:
  /// The token of this lane in tile `i`; 0, which exists, where there is none.
  __device__ std::int32_t token_of(std::int32_t i) const {
    const std::int32_t rank = rank_of(i) + lane_ % kTileTokens;
    return i < num_tiles_ && rank < end_rank_ ? tokens_.token(rank) : 0;
  }

  /// Copies tile `i`, whose tokens are at hand.
  __device__ void copy(int stage, std::int32_t i) {
    if (i < num_tiles_) {
      const std::uint32_t tile = stages_.tile(stage);
      const std::int32_t num_rows = rows_of(i);
      const std::int64_t offset = tokens_.offset(token_, page_);
#pragma unroll
      for (int n = 0; n < Layout::kVectors / 2; ++n) {
        const int index = n * kWarpSize + lane_;
        const int row = index / Layout::kVectors;
        const int column = index % Layout::kVectors * 16;
        const std::int64_t bytes =
            __shfl_sync(kFullWarp, offset, row) * static_cast<std::int64_t>(sizeof(Kv)) + column;
        const std::uint32_t target =
            tile + static_cast<std::uint32_t>(row * Layout::kPitch + column);
        const bool valid = row < num_rows;
        copy_async_16(target, reinterpret_cast<const char*>(tokens_.keys) + bytes, valid);
        copy_async_16(target + Layout::kValues,
                      reinterpret_cast<const char*>(tokens_.values) + bytes, valid);
      }
      if constexpr (kTurned) {
        if (turns_.maybe_rope != nullptr) {
          copy_query_row(stage, end_rank_ - 1 - rank_of(i));
        } else if (lane_ < kTileTokens) {
          const std::int32_t wanted =
              turns_.positions == Positions::kInCache ? rank_of(i) + lane_ : token_;
          const std::int32_t now = turns_.stored == Rotation::kAtTokenPosition ? token_ : 0;
          stages_.steps(stage)[lane_] =
              lane_ < num_rows ? known_steps(wanted - now, turns_.rope_count) : 0;
        }
      }
    }
    commit_async();
  }

  /// The row of the table that queries are turned by against a tile whose first key lies `steps` in
  /// front of them; NaN where the table does not know it.
  __device__ void copy_query_row(int stage, std::int32_t steps) {
    constexpr int kVectors = kHeadDim / 4;
    const bool known = steps < turns_.rope_count;
    const float* row = turns_.maybe_rope + static_cast<std::int64_t>(steps) * kHeadDim;
    float* const target = stages_.rope_row(stage);
#pragma unroll
    for (int n = 0; n < kVectors; n += kWarpSize) {
      const int vector = n + lane_;
      if (vector >= kVectors) continue;
      if (known) {
        copy_async_16(shared_address(target + 4 * vector), row + 4 * vector, true);
      } else {
        const float nan = __int_as_float(0x7fffffff);
        *reinterpret_cast<float4*>(target + 4 * vector) = {nan, nan, nan, nan};
      }
    }
  }

  Stages stages_;
  KeyTurns turns_;
  RankedTokens<Kv> tokens_;
  std::int32_t first_rank_;
  std::int32_t end_rank_;
  std::int32_t num_tiles_;
  std::int32_t rank_step_;
  int lane_;
  std::int32_t token_ = 0;  ///< of the tile that is copied next
  std::int32_t page_ = 0;
  std::int32_t next_token_ = 0;  ///< of the tile behind it
};

}  // namespace chunkllm::kernels::decode_attention
