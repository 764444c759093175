// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "chunkllm/kernels/decode_attention_plan.cuh"
#include "chunkllm/kernels/decode_attention_tile.cuh"
#include "chunkllm/kernels/primitives.cuh"

/// How results of warps, then of blocks, become one: in a fixed order, so two runs agree to the
/// bit.
namespace chunkllm::kernels::decode_attention {

/// Heads and values of the softmax of a (sequence, KV head) pair as they leave the kernel.
template <typename T, int kHeadDim>
struct PairOutput {
  T* out = nullptr;            ///< [group, head_dim]
  float* maybe_lse = nullptr;  ///< [group]
  float value_scale = 1.0F;

  __device__ void write(int head, int dim, float4 acc, float reference, float sum) const {
    const float factor = value_scale / sum;
    uint2 packed;
    packed.x = Element<T>::pack(acc.x * factor, acc.y * factor);
    packed.y = Element<T>::pack(acc.z * factor, acc.w * factor);
    *reinterpret_cast<uint2*>(out + head * kHeadDim + dim) = packed;
    if (dim == 0 && maybe_lse != nullptr) {
      maybe_lse[head] = (reference + log2f(sum)) * 0.693147180559945309F;
    }
  }
};

/// A block's part of a pair in the workspace: a head's unnormalised output, its reference and sum.
/// A block has two, one for the pair it begins in and one for the pair it ends in.
template <int kHeadDim>
struct PartialRecord {
  static constexpr int kFloats = kHeadDim + 4;  // keeps vectors of four aligned

  static __device__ float* of(float* partials, std::int32_t block, int which, int group) {
    return partials + (static_cast<std::int64_t>(block) * 2 + which) * group * kFloats;
  }
};

__device__ inline void add_scaled(float4& sum, const float4& value, float factor) {
  sum.x += value.x * factor;
  sum.y += value.y * factor;
  sum.z += value.z * factor;
  sum.w += value.w * factor;
}

/// Joins what the warps of the block laid down, and hands each head's pieces of four dimensions to
/// `emit(head, dim, acc, reference, sum)`.
///
/// \param states  of warp 0; the others follow `state_stride` floats apart
template <typename Warp, int kHeadDim, typename Emit>
__device__ void merge_warps(const float* states, int state_stride, int group, int stats_offset,
                            const Emit& emit) {
  constexpr int kPieces = kHeadDim / 4;
  const int num_threads = static_cast<int>(blockDim.x);
  const int num_warps = num_threads / kWarpSize;
  for (int i = static_cast<int>(threadIdx.x); i < group * kPieces; i += num_threads) {
    const int head = i / kPieces;
    const int dim = i % kPieces * 4;
    float reference = -FLT_MAX;
#pragma unroll 4
    for (int w = 0; w < num_warps; ++w) {
      reference = fmaxf(reference, states[w * state_stride + stats_offset + 2 * head]);
    }
    float sum = 0.0F;
    float4 acc = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll 4
    for (int w = 0; w < num_warps; ++w) {
      const float* state = states + w * state_stride;
      const float factor = exp2_approx(state[stats_offset + 2 * head] - reference);
      sum += state[stats_offset + 2 * head + 1] * factor;
      add_scaled(acc, *reinterpret_cast<const float4*>(state + head * Warp::kStatePitch + dim),
                 factor);
    }
    emit(head, dim, acc, reference, sum);
  }
}

/// Four dimensions of a head over some of the keys.
struct Piece {
  float4 acc = {0.0F, 0.0F, 0.0F, 0.0F};
  float reference = -FLT_MAX;
  float sum = 0.0F;

  /// Brings what there is to a reference that is no smaller.
  __device__ void refer_to(float larger) {
    const float kept = exp2_approx(reference - larger);
    acc = {acc.x * kept, acc.y * kept, acc.z * kept, acc.w * kept};
    sum *= kept;
    reference = larger;
  }
  /// Adds a part, once `reference` is no smaller than its own.
  __device__ void add(const float4& value, float2 stats) {
    const float factor = exp2_approx(stats.x - reference);
    sum += stats.y * factor;
    add_scaled(acc, value, factor);
  }
};

/// Joins the parts that `num_parts` blocks from `first_block` on left of a pair; run by the last of
/// them to arrive, while the whole launch waits. So all reads of a thread are on their way before
/// the first is used, references and sums among them, and where there are more threads than pieces
/// the parts are split among them.
///
/// \param first_which  the slot of the first block; the others begin in the pair, so theirs is 0
/// \param scratch      shared memory, 6 floats a thread
template <typename T, int kHeadDim, int kMaxWarps>
__device__ void merge_blocks(float* partials, std::int32_t first_block, int first_which,
                             std::int32_t num_parts, int group, float* scratch,
                             const PairOutput<T, kHeadDim>& output) {
  using Record = PartialRecord<kHeadDim>;
  constexpr int kPieces = kHeadDim / 4;
  // Parts: 17 are half of what 132 blocks leave of 4 KV heads. More warps have fewer registers, and
  // long heads need them for themselves.
  constexpr int kInFlight = kHeadDim > 128 ? 6 : kMaxWarps <= 8 ? 17 : 12;
  const int num_threads = static_cast<int>(blockDim.x);
  const int num_pieces = group * kPieces;
  const int num_slices = max(1, min(num_threads / num_pieces, num_parts));
  const int slice = static_cast<int>(threadIdx.x) / num_pieces;  // 0 where pieces are more
  const std::int32_t slice_parts = ceil_div(num_parts, num_slices);
  auto* const slice_accs = reinterpret_cast<float4*>(scratch);
  auto* const slice_stats = reinterpret_cast<float2*>(scratch + 4 * num_threads);

  const auto join = [&](int head, int dim, std::int32_t begin, std::int32_t end) {
    Piece piece;
    for (std::int32_t first = begin; first < end; first += kInFlight) {
      float4 values[kInFlight];
      float2 stats[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        const std::int32_t part = first + k;
        stats[k] = {-FLT_MAX, 0.0F};
        if (part < end) {
          const float* record =
              Record::of(partials, first_block + part, part == 0 ? first_which : 0, group) +
              head * Record::kFloats;
          values[k] = __ldcg(reinterpret_cast<const float4*>(record + dim));
          stats[k] = __ldcg(reinterpret_cast<const float2*>(record + kHeadDim));
        }
      }
      float largest = piece.reference;
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) largest = fmaxf(largest, stats[k].x);
      piece.refer_to(largest);
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        if (first + k < end) piece.add(values[k], stats[k]);
      }
    }
    return piece;
  };

  if (num_slices == 1) {
    for (int i = static_cast<int>(threadIdx.x); i < num_pieces; i += num_threads) {
      const int head = i / kPieces;
      const int dim = i % kPieces * 4;
      const Piece piece = join(head, dim, 0, num_parts);
      output.write(head, dim, piece.acc, piece.reference, piece.sum);
    }
    return;
  }
  const int i = static_cast<int>(threadIdx.x) - slice * num_pieces;
  const int head = i / kPieces;
  const int dim = i % kPieces * 4;
  if (slice < num_slices) {
    const std::int32_t begin = slice * slice_parts;
    const Piece piece = join(head, dim, begin, min(begin + slice_parts, num_parts));
    slice_accs[threadIdx.x] = piece.acc;
    slice_stats[threadIdx.x] = {piece.reference, piece.sum};
  }
  __syncthreads();
  if (slice != 0) return;
  Piece piece;
  for (int s = 0; s < num_slices; ++s) {
    piece.reference = fmaxf(piece.reference, slice_stats[s * num_pieces + i].x);
  }
  for (int s = 0; s < num_slices; ++s) {
    piece.add(slice_accs[s * num_pieces + i], slice_stats[s * num_pieces + i]);
  }
  output.write(head, dim, piece.acc, piece.reference, piece.sum);
}

}  // namespace chunkllm::kernels::decode_attention
