// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels {

/// Consecutive query rows that attend the same set.
struct PrefillTile {
  std::int32_t first_row;
  std::int32_t num_rows;
  std::int32_t set;  ///< row of `sets`; its tail begins at or before the tile's first token
};

/// One layer's chunk-selective attention over many rows; row r is the token at `first_token + r`.
///
/// \tparam T  __half or __nv_bfloat16
template <typename T>
struct PrefillAttentionArgs {
  const T* q = nullptr;            ///< [num_rows, num_heads, head_dim], 16-byte aligned
  T* out = nullptr;                ///< [num_rows, num_heads, head_dim], 16-byte aligned
  std::int64_t q_stride = 0;       ///< elements from a row of `q` to the next, a multiple of 8;
                                   ///< 0: rows side by side
  std::int64_t out_stride = 0;     ///< likewise of `out`
  cuda::DeviceKvView<const T> kv;  ///< holds the rows' own keys and values already
  std::int32_t seq = 0;            ///< the sequence of `kv` that all rows belong to
  cuda::DeviceAttendedSets sets;
  const PrefillTile* tiles = nullptr;  ///< device [num_tiles]; cover the rows once, in order
  std::int32_t num_tiles = 0;
  std::int32_t max_tile_rows = 0;  ///< the caller's promise: no tile has more rows
  std::int32_t first_token = 0;
  std::int32_t num_rows = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  float scale = 1.0F;  ///< on q . k, positive
  Rotation q_rotation = Rotation::kAtTokenPosition;
  Positions positions = Positions::kOriginal;
  /// Needed where a query or key must still be turned. It must reach the largest difference between
  /// a wanted and a stored position; turns beyond it become NaN.
  cuda::DeviceRope rope;
  /// Newest attended tokens seen, the row's own included; 0: all. It counts ranks of the attended
  /// set, not positions of the text.
  std::int32_t window = 0;
  float* maybe_lse = nullptr;  ///< [num_rows, num_heads] log of the softmax's denominator, or null
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

/// What both versions of the kernel share: how rows are cut into blocks, which keys a block sees,
/// how operands lie in shared memory, the softmax.
namespace prefill {

inline constexpr float kLog2OfE = 1.4426950408889634F;
inline constexpr float kHidden = -__builtin_huge_valf();

// ---------------------------------------------------------------------------------------------
// Work of a block. Its rows are (token, head) pairs of one KV head, head by head of the group, so
// that keys and values are read once for the whole group.

struct QueryBlock {
  std::int32_t group;  // query heads for the KV head
  std::int32_t kv_head;
  std::int32_t first_row;   // of the tile
  std::int32_t first_pair;  // of the block, counted from the tile's first row
  std::int32_t num_pairs;

  const std::int32_t* span_tokens;
  std::int32_t num_span_tokens;
  std::int32_t tail_begin;
  std::int32_t first_rank;  // rank of the block's first row among the tokens that it attends
  std::int32_t last_rank;

  __device__ std::int32_t row(std::int32_t pair) const {
    return first_row + (first_pair + pair) / group;
  }
  __device__ std::int32_t head(std::int32_t pair) const {
    return kv_head * group + (first_pair + pair) % group;
  }
  __device__ std::int32_t rank(std::int32_t pair) const {
    return first_rank + (first_pair + pair) / group - first_pair / group;
  }
  /// The attended token of a rank.
  __device__ std::int32_t token(std::int32_t rank) const {
    return rank < num_span_tokens ? __ldg(span_tokens + rank)
                                  : tail_begin + (rank - num_span_tokens);
  }
};

/// Blocks that may be needed for one KV head. Tile i gets the slots from
/// first_row(i) * group / kRows + i on: at least as many as it needs, whatever the lengths, and a
/// block finds its tile by a search, so that one long and many short tiles share a grid.
template <int kRows, typename T>
__host__ __device__ std::int32_t num_slots(const PrefillAttentionArgs<T>& args) {
  const std::int32_t group = args.num_heads / args.num_kv_heads;
  if (static_cast<std::int64_t>(args.max_tile_rows) * group <= kRows) return args.num_tiles;
  return args.num_rows * group / kRows + args.num_tiles;
}

/// Launches num_kv_heads * num_slots blocks of `kernel`.
///
/// \tparam Shape  kRows, kThreads and kSharedBytes of a block
template <typename Shape, typename T>
Status launch_blocks(const std::string& name, void (*kernel)(PrefillAttentionArgs<T>),
                     const PrefillAttentionArgs<T>& args, cudaStream_t stream) {
  CHUNKLLM_RETURN_IF_ERROR(
      cuda::cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             Shape::kSharedBytes),
                        name + ": shared memory"));
  const auto blocks = static_cast<unsigned>(num_slots<Shape::kRows>(args)) *
                      static_cast<unsigned>(args.num_kv_heads);
  kernel<<<blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(args);
  return cuda::launch_status(name);
}

/// The work of this block of a grid of num_kv_heads * num_slots; false if there is none.
///
/// Slots run from the last to the first: with causal rows the heaviest blocks start first. Blocks
/// of one KV head stand side by side, so that what they read together fits the L2 cache.
template <int kRows, typename T>
__device__ bool find_query_block(const PrefillAttentionArgs<T>& args, QueryBlock& block) {
  const std::int32_t slots = num_slots<kRows>(args);
  const auto index = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t slot = slots - 1 - index % slots;
  block.kv_head = index / slots;
  block.group = args.num_heads / args.num_kv_heads;
  const auto first_slot = [&](std::int32_t tile) {
    return args.tiles[tile].first_row * block.group / kRows + tile;
  };
  std::int32_t tile = slot;
  std::int32_t place = 0;
  if (slots != args.num_tiles) {
    // The last tile whose first slot is at or before ours. A warp probes 32 places at once: three
    // loads one after the other find one of 32,768 tiles, where halving would take fifteen.
    const auto lane = static_cast<std::int32_t>(threadIdx.x) % kWarpSize;
    tile = 0;
    std::int32_t end = args.num_tiles;
    while (end - tile > 1) {
      const std::int32_t step = ceil_div(end - tile, kWarpSize);
      const std::int32_t probe = tile + lane * step;
      const unsigned before = __ballot_sync(kFullWarp, probe < end && first_slot(probe) <= slot);
      tile += (kWarpSize - 1 - __clz(static_cast<int>(before))) * step;  // lane 0's always is
      end = min(end, tile + step);
    }
    place = slot - first_slot(tile);
  }
  const PrefillTile rows = args.tiles[tile];
  block.first_row = rows.first_row;
  block.first_pair = place * kRows;
  block.num_pairs = min(kRows, rows.num_rows * block.group - block.first_pair);
  if (block.num_pairs <= 0) return false;

  block.span_tokens = args.sets.span_tokens_of(rows.set);
  block.num_span_tokens = args.sets.num_span_tokens[rows.set];
  block.tail_begin = args.sets.tail_begin[rows.set];
  block.first_rank = block.num_span_tokens + args.first_token - block.tail_begin + block.row(0);
  block.last_rank = block.rank(block.num_pairs - 1);
  return true;
}

/// The key tiles [first, end) of `kKeys` ranks that some row of a block sees. Tiles are cut from
/// rank 0 on, so that a row meets the same tiles whichever rows stand beside it.
struct KeyTiles {
  std::int32_t first;
  std::int32_t end;
};
template <int kKeys>
__device__ KeyTiles key_tiles(const QueryBlock& block, std::int32_t window) {
  const std::int32_t oldest = window > 0 ? max(0, block.first_rank - window + 1) : 0;
  return {oldest / kKeys, block.last_rank / kKeys + 1};
}

// ---------------------------------------------------------------------------------------------
// Operands in shared memory: panels of 64 dimensions, 128 bytes a row, whose 16-byte pieces are
// swizzled by the row's last three bits. Eight rows of one piece then lie in different banks, for
// ldmatrix and for the matrix descriptors of wgmma (their 128-byte mode) alike.

inline constexpr int kPieceValues = 8;  // values in 16 bytes
inline constexpr int kPanelPieces = 8;
inline constexpr int kPanelRowBytes = 128;

/// Bytes of a tile of rows of `head_dim` values.
constexpr int tile_bytes(int rows, int head_dim) {
  return (head_dim + 63) / 64 * rows * kPanelRowBytes;
}

/// Byte offset of a 16-byte piece in a tile of `kRows` rows.
template <int kRows>
__device__ constexpr std::uint32_t swizzled(int row, int piece) {
  return static_cast<std::uint32_t>(piece / kPanelPieces * (kRows * kPanelRowBytes) +
                                    row * kPanelRowBytes +
                                    ((piece % kPanelPieces) ^ (row % kPanelPieces)) * 16);
}

/// The address of the piece 2 * step further in the same row, given that of piece 0 or 1 of the
/// panel. With `step` known, what remains at run time is one of four values.
template <int kRows>
__device__ constexpr std::uint32_t step_along_row(std::uint32_t address, int step) {
  return (address ^ static_cast<std::uint32_t>(step % 4 * 32)) +
         static_cast<std::uint32_t>(step / 4 * (kRows * kPanelRowBytes));
}

/// Turns eight pairs of dimensions by `steps` positions: `low` holds dimensions
/// [8 piece, 8 piece + 8), `high` those half a head further.
template <typename T>
__device__ void turn_pairs(uint4& low, uint4& high, const cuda::DeviceRope& rope, int half_dim,
                           int piece, std::int32_t steps) {
  if (steps == 0) return;
  const std::int32_t position = steps < 0 ? -steps : steps;
  const bool known = position < rope.count;
  const float* row =
      rope.values + static_cast<std::int64_t>(known ? position : 0) * 2 * half_dim + 8 * piece;
  auto* a = reinterpret_cast<std::uint32_t*>(&low);
  auto* b = reinterpret_cast<std::uint32_t*>(&high);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 cosine = __ldg(reinterpret_cast<const float2*>(row) + i);
    float2 sine = __ldg(reinterpret_cast<const float2*>(row + half_dim) + i);
    if (steps < 0) sine = {-sine.x, -sine.y};
    if (!known) cosine.x = cosine.y = __int_as_float(0x7fc00000);
    const float2 x = Element<T>::to_float2(a[i]);
    const float2 y = Element<T>::to_float2(b[i]);
    a[i] = Element<T>::pack(x.x * cosine.x - y.x * sine.x, x.y * cosine.y - y.y * sine.y);
    b[i] = Element<T>::pack(y.x * cosine.x + x.x * sine.x, y.y * cosine.y + x.y * sine.y);
  }
}

/// From where a head stands to where it is wanted.
__device__ inline std::int32_t steps_to_turn(std::int32_t token, std::int32_t rank,
                                             Positions positions, Rotation stored) {
  const std::int32_t wanted = positions == Positions::kInCache ? rank : token;
  return wanted - (stored == Rotation::kAtTokenPosition ? token : 0);
}

/// Must stored keys be turned?
template <typename T>
__host__ __device__ bool turns_keys(const PrefillAttentionArgs<T>& args) {
  return args.kv.rotation == Rotation::kNone || args.positions == Positions::kInCache;
}
template <typename T>
__host__ __device__ bool turns_queries(const PrefillAttentionArgs<T>& args) {
  return args.q_rotation == Rotation::kNone || args.positions == Positions::kInCache;
}

/// Writes the block's queries of pairs [first, first + kCount) to their rows of a shared tile of
/// `kRows`, turned; absent ones are zeros. The caller synchronises.
template <int kHeadDim, int kRows, int kThreads, int kCount, typename T>
__device__ void load_queries(const PrefillAttentionArgs<T>& args, const QueryBlock& block,
                             std::int32_t first, unsigned char* shared, int thread) {
  constexpr int kHalfPieces = kHeadDim / 2 / kPieceValues;
  const bool turn = turns_queries(args);
  for (int i = thread; i < kCount * kHalfPieces; i += kThreads) {
    const std::int32_t pair = first + i / kHalfPieces;
    const int piece = i % kHalfPieces;
    uint4 low = {};
    uint4 high = {};
    if (pair < block.num_pairs) {
      const T* head = args.q + block.row(pair) * args.q_stride + block.head(pair) * kHeadDim;
      low = load_streaming(head + piece * kPieceValues);
      high = load_streaming(head + (piece + kHalfPieces) * kPieceValues);
      if (turn) {
        const std::int32_t token = args.first_token + block.row(pair);
        turn_pairs<T>(low, high, args.rope, kHeadDim / 2, piece,
                      steps_to_turn(token, block.rank(pair), args.positions, args.q_rotation));
      }
    }
    *reinterpret_cast<uint4*>(shared + swizzled<kRows>(pair, piece)) = low;
    *reinterpret_cast<uint4*>(shared + swizzled<kRows>(pair, piece + kHalfPieces)) = high;
  }
}

/// Turns the keys of ranks [first_rank, first_rank + kKeys) in their shared tile, each rounded back
/// to T. The tile is complete before, and the caller synchronises behind it.
template <int kHeadDim, int kKeys, int kThreads, typename T>
__device__ void turn_keys(const PrefillAttentionArgs<T>& args, const QueryBlock& block,
                          std::int32_t first_rank, unsigned char* shared, int thread) {
  constexpr int kHalfPieces = kHeadDim / 2 / kPieceValues;
  for (int i = thread; i < kKeys * kHalfPieces; i += kThreads) {
    const int key = i / kHalfPieces;
    const int piece = i % kHalfPieces;
    const std::int32_t rank = first_rank + key;
    if (rank > block.last_rank) break;  // ranks of later items are no smaller
    auto* low = reinterpret_cast<uint4*>(shared + swizzled<kKeys>(key, piece));
    auto* high = reinterpret_cast<uint4*>(shared + swizzled<kKeys>(key, piece + kHalfPieces));
    uint4 a = *low;
    uint4 b = *high;
    turn_pairs<T>(a, b, args.rope, kHeadDim / 2, piece,
                  steps_to_turn(block.token(rank), rank, args.positions, args.kv.rotation));
    *low = a;
    *high = b;
  }
}

// ---------------------------------------------------------------------------------------------
// Softmax on accumulators of the matrix units. Of each 16 x 8 block of scores a lane holds columns
// 2 (lane % 4) + {0, 1} of rows lane / 4 (values 0, 1) and lane / 4 + 8 (values 2, 3): so do
// mma.m16n8 and, for its warp's 16 rows, wgmma.m64nN.

__device__ inline float exp2_approximately(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The ranks that a lane's two rows see.
struct VisibleRanks {
  std::int32_t oldest[2];
  std::int32_t newest[2];

  __device__ VisibleRanks(const QueryBlock& block, std::int32_t first_pair, int lane,
                          std::int32_t window) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t pair = min(first_pair + lane / 4 + 8 * half, block.num_pairs - 1);
      newest[half] = block.rank(pair);
      oldest[half] = window > 0 ? newest[half] - window + 1 : 0;
    }
  }
};

/// Hides the keys that a row does not see. The first column stands at `first_rank`.
template <int kBlocks>
__device__ void hide(float (&scores)[kBlocks][4], std::int32_t first_rank, int lane,
                     const VisibleRanks& visible) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const std::int32_t rank = first_rank + 8 * b + 2 * (lane % 4) + e % 2;
      if (rank > visible.newest[e / 2] || rank < visible.oldest[e / 2]) scores[b][e] = kHidden;
    }
  }
}

/// Running maximum and sum of a lane's two rows; the sum is the lane's own share.
struct RowSoftmax {
  float maximum[2] = {kHidden, kHidden};  // of the unscaled scores
  float sum[2] = {0.0F, 0.0F};

  /// Turns scores into weights relative to the new maximum; `kept` scales what was summed before.
  ///
  /// An unchanged maximum gives kept == 1 exactly, and hidden keys weigh 0, so tiles of which a row
  /// sees nothing change no bit of it. No product here may be fused with its difference: the
  /// remainder of a rounded product would make `kept` differ from 1.
  template <int kBlocks>
  __device__ void update(float (&scores)[kBlocks][4], float scale_log2, float (&kept)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = maximum[half];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        largest = fmaxf(largest, fmaxf(scores[b][2 * half], scores[b][2 * half + 1]));
      }
      largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 2));
      // Finite while no key was seen, so that nothing becomes inf - inf.
      const float base = largest == kHidden ? 0.0F : __fmul_rn(largest, scale_log2);
      kept[half] = exp2_approximately(__fadd_rn(__fmul_rn(maximum[half], scale_log2), -base));
      maximum[half] = largest;
      float total = sum[half] * kept[half];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          scores[b][e] = exp2_approximately(__fmaf_rn(scores[b][e], scale_log2, -base));
          total = __fadd_rn(total, scores[b][e]);
        }
      }
      sum[half] = total;
    }
  }

  /// The sum over the row's four lanes.
  __device__ float row_sum(int half) const {
    const float pair = sum[half] + __shfl_xor_sync(kFullWarp, sum[half], 1);
    return pair + __shfl_xor_sync(kFullWarp, pair, 2);
  }
};

/// Scales the lane's two rows of the output accumulators.
template <int kBlocks>
__device__ void scale_rows(float (&out)[kBlocks][4], const float (&factors)[2]) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int e = 0; e < 4; ++e) out[b][e] *= factors[e / 2];
  }
}

/// Divides by the sums and writes a warp's 16 rows from `first_pair` on, by way of their place in
/// the shared tile of queries, so that rows leave in 16-byte pieces. All lanes call it, with
/// nobody reading these queries any more.
template <int kHeadDim, int kRows, typename T>
__device__ void write_rows(const PrefillAttentionArgs<T>& args, const QueryBlock& block,
                           std::int32_t first_pair, float (&out)[kHeadDim / 8][4],
                           const RowSoftmax& softmax, unsigned char* shared, int lane) {
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = softmax.row_sum(half);
    inverse[half] = args.kv.value_scale / sum;
    const std::int32_t pair = first_pair + lane / 4 + 8 * half;
    if (args.maybe_lse != nullptr && lane % 4 == 0 && pair < block.num_pairs) {
      args.maybe_lse[static_cast<std::int64_t>(block.row(pair)) * args.num_heads +
                     block.head(pair)] =
          softmax.maximum[half] * (args.scale * args.kv.key_scale) + logf(sum);
    }
  }
  scale_rows(out, inverse);
#pragma unroll
  for (int b = 0; b < kHeadDim / 8; ++b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned char* piece =
          shared + swizzled<kRows>(first_pair + lane / 4 + 8 * half, b) + lane % 4 * 4;
      *reinterpret_cast<std::uint32_t*>(piece) =
          Element<T>::pack(out[b][2 * half], out[b][2 * half + 1]);
    }
  }
  __syncwarp();
  constexpr int kPieces = kHeadDim / kPieceValues;
  for (int i = lane; i < 16 * kPieces; i += kWarpSize) {
    const std::int32_t pair = first_pair + i / kPieces;
    const int piece = i % kPieces;
    if (pair >= block.num_pairs) break;
    T* head = args.out + block.row(pair) * args.out_stride + block.head(pair) * kHeadDim;
    *reinterpret_cast<uint4*>(head + piece * kPieceValues) =
        *reinterpret_cast<const uint4*>(shared + swizzled<kRows>(pair, piece));
  }
}

}  // namespace prefill
}  // namespace chunkllm::kernels
