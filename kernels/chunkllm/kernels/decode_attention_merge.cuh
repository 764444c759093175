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
template <typename Warp, int kHeadDim, int kNumWarps, typename Emit>
__device__ void merge_warps(const float* states, int state_stride, int group, int stats_offset,
                            const Emit& emit) {
  constexpr int kPieces = kHeadDim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < group * kPieces; i += kNumWarps * kWarpSize) {
    const int head = i / kPieces;
    const int dim = i % kPieces * 4;
    float reference = -FLT_MAX;
#pragma unroll
    for (int w = 0; w < kNumWarps; ++w) {
      reference = fmaxf(reference, states[w * state_stride + stats_offset + 2 * head]);
    }
    float sum = 0.0F;
    float4 acc = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
    for (int w = 0; w < kNumWarps; ++w) {
      const float* state = states + w * state_stride;
      const float factor = exp2_approx(state[stats_offset + 2 * head] - reference);
      sum += state[stats_offset + 2 * head + 1] * factor;
      add_scaled(acc, *reinterpret_cast<const float4*>(state + head * Warp::kStatePitch + dim),
                 factor);
    }
    emit(head, dim, acc, reference, sum);
  }
}

/// Joins the parts that `num_parts` blocks from `first_block` on left of a pair; run by the last of
/// them to arrive.
///
/// \param first_which  the slot of the first block; the others begin in the pair, so theirs is 0
/// \param factors      shared memory, [num_parts, group], then [2, group]
template <typename T, int kHeadDim, int kNumWarps>
__device__ void merge_blocks(float* partials, std::int32_t first_block, int first_which,
                             std::int32_t num_parts, int group, float* factors,
                             const PairOutput<T, kHeadDim>& output) {
  using Record = PartialRecord<kHeadDim>;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const auto part_of = [&](std::int32_t part, int head) {
    return Record::of(partials, first_block + part, part == 0 ? first_which : 0, group) +
           head * Record::kFloats;
  };
  float* joined = factors + num_parts * group;
  for (int head = warp; head < group; head += kNumWarps) {
    float reference = -FLT_MAX;
    for (std::int32_t part = lane; part < num_parts; part += kWarpSize) {
      reference = fmaxf(reference, __ldcg(part_of(part, head) + kHeadDim));
    }
    reference = warp_max(reference);
    float sum = 0.0F;
    for (std::int32_t part = lane; part < num_parts; part += kWarpSize) {
      const float2 stats = __ldcg(reinterpret_cast<const float2*>(part_of(part, head) + kHeadDim));
      const float factor = exp2_approx(stats.x - reference);
      factors[part * group + head] = factor;
      sum += stats.y * factor;
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      joined[2 * head] = reference;
      joined[2 * head + 1] = sum;
    }
  }
  __syncthreads();
  constexpr int kPieces = kHeadDim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < group * kPieces; i += kNumWarps * kWarpSize) {
    const int head = i / kPieces;
    const int dim = i % kPieces * 4;
    float4 acc = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll 8  // reads in flight: this is the tail of the whole launch
    for (std::int32_t part = 0; part < num_parts; ++part) {
      const float4 value = __ldcg(reinterpret_cast<const float4*>(part_of(part, head) + dim));
      add_scaled(acc, value, factors[part * group + head]);
    }
    output.write(head, dim, acc, joined[2 * head], joined[2 * head + 1]);
  }
}

}  // namespace chunkllm::kernels::decode_attention
