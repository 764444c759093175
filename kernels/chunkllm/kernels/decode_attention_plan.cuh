// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/decode_attention_tile.cuh"
#include "chunkllm/kernels/primitives.cuh"

/// Which block attends which tiles. Every block works it out from the lengths on the device, so a
/// captured launch serves sequences that grow.
namespace chunkllm::kernels::decode_attention {

/// What a sequence's new token attends: ranks [first_rank, num_attended).
struct Extent {
  std::int32_t num_attended = 0;
  std::int32_t first_rank = 0;  ///< not 0 only behind a window

  __device__ std::int32_t num_tiles() const {
    return ceil_div(num_attended - first_rank, kTileTokens);
  }
};

__device__ inline Extent extent_of(const cuda::DeviceAttendedSets& sets,
                                   const std::int32_t* num_tokens, std::int32_t window,
                                   std::int32_t seq) {
  const std::int32_t tokens = num_tokens[seq];
  const std::int32_t attended = sets.num_attended(seq, tokens - 1);
  Extent extent;
  if (tokens <= 0 || attended <= 0) return extent;
  extent.num_attended = attended;
  extent.first_rank = window > 0 ? max(attended - window, 0) : 0;
  return extent;
}

/// The tiles of all (sequence, KV head) pairs, one behind the other, cut into one stretch a block.
/// Stretches differ by one tile at most, and none is so short that starting it costs more than it
/// saves.
///
/// A block whose stretch reaches into a second pair empties its rings in between, starts anew and
/// ends last, and all wait for it. So the pairs of a lone sequence, which are equally long, are cut
/// each by itself, where that leaves few blocks idle: memory is as busy with 128 of 132 of them.
struct Partition {
  std::int32_t num_stretches = 0;
  std::int32_t num_tiles = 0;   ///< of a group, which is all, or a pair that is cut by itself
  std::int32_t per_group = 1;   ///< stretches of a group
  std::int32_t short_size = 0;  ///< tiles of a stretch; the first `num_long` of a group have one
                                ///< more
  std::int32_t num_long = 0;

  /// \param num_equal_pairs  pairs of the same number of tiles that make up the whole; 1: unknown
  __host__ __device__ Partition(std::int32_t all_tiles, std::int32_t max_stretches,
                                std::int32_t min_stretch_tiles, std::int32_t num_equal_pairs) {
    const std::int32_t wanted = ceil_div(all_tiles, min_stretch_tiles);
    num_stretches = wanted < max_stretches ? wanted : max_stretches;
    if (num_stretches == 0) return;
    const std::int32_t most = max_stretches / num_equal_pairs;
    const std::int32_t share = ceil_div(num_stretches, num_equal_pairs);
    num_tiles = all_tiles;
    per_group = share < most ? share : most;
    if (16 * per_group * num_equal_pairs >= 15 * num_stretches) {
      num_tiles /= num_equal_pairs;
      num_stretches = per_group * num_equal_pairs;
    } else {
      per_group = num_stretches;
    }
    short_size = num_tiles / per_group;
    num_long = num_tiles % per_group;
  }
  __host__ __device__ std::int32_t begin(std::int32_t stretch) const {
    const std::int32_t group = stretch / per_group;
    const std::int32_t i = stretch - group * per_group;
    return group * num_tiles + i * short_size + (i < num_long ? i : num_long);
  }
  __host__ __device__ std::int32_t stretch_of(std::int32_t tile) const {
    const std::int32_t group = tile / num_tiles;
    const std::int32_t i = tile - group * num_tiles;
    const std::int32_t in_long = num_long * (short_size + 1);
    return group * per_group +
           (i < in_long ? i / (short_size + 1) : num_long + (i - in_long) / short_size);
  }
};

/// Where a tile of the whole lies.
struct PairPlace {
  std::int32_t seq = 0;
  std::int32_t kv_head = 0;
  std::int32_t first_tile = 0;  ///< of the pair
  std::int32_t num_tiles = 0;   ///< of the pair
};

/// Finds tiles among sequences; called by whole warps.
struct TileIndex {
  const cuda::DeviceAttendedSets& sets;
  const std::int32_t* num_tokens;
  std::int32_t window;
  std::int32_t num_seqs;
  std::int32_t num_kv_heads;
  int lane;

  /// Tiles of all KV heads of sequence `first_seq + lane`.
  __device__ std::int32_t tiles_of(std::int32_t first_seq) const {
    const std::int32_t seq = first_seq + lane;
    if (seq >= num_seqs) return 0;
    return extent_of(sets, num_tokens, window, seq).num_tiles() * num_kv_heads;
  }

  __device__ std::int32_t count() const {
    std::int32_t count = 0;
    for (std::int32_t first = 0; first < num_seqs; first += kWarpSize) count += tiles_of(first);
#pragma unroll
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      count += __shfl_xor_sync(kFullWarp, count, mask);
    }
    return count;
  }

  __device__ PairPlace find(std::int32_t tile) const {
    std::int32_t before = 0;
    for (std::int32_t first = 0; first < num_seqs; first += kWarpSize) {
      const std::int32_t mine = tiles_of(first);
      std::int32_t end = mine;
#pragma unroll
      for (int step = 1; step < kWarpSize; step *= 2) {
        const std::int32_t left = __shfl_up_sync(kFullWarp, end, step);
        if (lane >= step) end += left;
      }
      const unsigned behind = __ballot_sync(kFullWarp, before + end > tile);
      if (behind != 0) {
        const int found = __ffs(static_cast<int>(behind)) - 1;
        PairPlace place;
        place.seq = first + found;
        place.num_tiles = __shfl_sync(kFullWarp, mine, found) / num_kv_heads;
        const std::int32_t seq_begin = before + __shfl_sync(kFullWarp, end - mine, found);
        place.kv_head = (tile - seq_begin) / place.num_tiles;
        place.first_tile = seq_begin + place.kv_head * place.num_tiles;
        return place;
      }
      before += __shfl_sync(kFullWarp, end, kWarpSize - 1);
    }
    return {};
  }
};

}  // namespace chunkllm::kernels::decode_attention
