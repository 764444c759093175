// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/dependent_launch.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/row_strides.cuh"

namespace chunkllm::kernels {

inline constexpr int kRopeThreads = 256;
inline constexpr int kMaxRopeHeadDim = 256;
/// Pairs of neighbours a lane holds of each half of a head.
inline constexpr int kRopePairs = kMaxRopeHeadDim / 2 / (2 * kWarpSize);

/// What `launch_rope_store` reads and writes.
///
/// \tparam T   __half or __nv_bfloat16
/// \tparam Kv  T or __nv_fp8_e4m3: the type of the cache
template <typename T, typename Kv = T>
struct RopeStoreArgs {
  const T* qkv = nullptr;       ///< [num_rows, (num_heads + 2 * num_kv_heads) * head_dim]: q, k, v
  std::int64_t qkv_stride = 0;  ///< 0: rows side by side
  std::int32_t num_rows = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;            ///< a multiple of 8, at most 256
  const float* maybe_q_norm = nullptr;  ///< [head_dim]; both norms or none
  const float* maybe_k_norm = nullptr;  ///< [head_dim]
  float eps = 0.0F;

  /// Where a row stands: `positions[r]`, or in decode `num_tokens[seq] - 1`. Give one of the two.
  const std::int32_t* positions = nullptr;   ///< [num_rows]
  const std::int32_t* num_tokens = nullptr;  ///< [num_seqs]
  /// Row r is of sequence r, or of `first_seq` where all rows are of one.
  bool one_seq = false;
  std::int32_t first_seq = 0;

  cuda::DeviceRope rope;  ///< read where something is rotated
  Rotation query_rotation = Rotation::kAtTokenPosition;
  T* queries = nullptr;  ///< [num_rows, num_heads, head_dim], dense
  /// The layer's cache; keys are rotated as its `rotation` says, and divided by its scales.
  cuda::DeviceKvView<Kv> kv;
  std::int32_t kv_capacity = 0;    ///< tokens a sequence has room for
  T* maybe_cached_keys = nullptr;  ///< [num_rows, num_kv_heads, head_dim], dense: the keys as
                                   ///< cached, but not as fp8
  bool overlaps = true;  ///< begins before the kernel in front has ended, where the device can
};

/// The values of a head that a lane holds: neighbours i, i + 1 of the first half and their partners
/// in the second, for i = 2 lane, 2 lane + 64.
struct HeadLanes {
  float2 first[kRopePairs] = {};
  float2 second[kRopePairs] = {};

  /// Calls body(p, i) for the pairs within a half of `half` values.
  template <typename Body>
  __device__ static void for_each(int half, const Body& body) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int p = 0; p < kRopePairs; ++p) {
      const int i = 2 * lane + p * 2 * kWarpSize;
      if (i < half) body(p, i);
    }
  }
  template <typename T>
  __device__ void load(const T* head, int half) {
    for_each(half, [&](int p, int i) {
      first[p] = Element<T>::to_float2(*reinterpret_cast<const std::uint32_t*>(head + i));
      second[p] = Element<T>::to_float2(*reinterpret_cast<const std::uint32_t*>(head + half + i));
    });
  }
  __device__ void norm(const float* weight, float eps, int half) {
    float sum = 0.0F;
#pragma unroll
    for (int p = 0; p < kRopePairs; ++p) {  // zeros where the head has no values
      sum = fmaf(first[p].x, first[p].x, sum);
      sum = fmaf(first[p].y, first[p].y, sum);
      sum = fmaf(second[p].x, second[p].x, sum);
      sum = fmaf(second[p].y, second[p].y, sum);
    }
    const float scale = 1.0F / sqrtf(warp_sum(sum) / static_cast<float>(2 * half) + eps);
    for_each(half, [&](int p, int i) {
      first[p].x = weight[i] * (first[p].x * scale);
      first[p].y = weight[i + 1] * (first[p].y * scale);
      second[p].x = weight[half + i] * (second[p].x * scale);
      second[p].y = weight[half + i + 1] * (second[p].y * scale);
    });
  }
  /// \param cos_sin  a row of the table   \param known  false: every value becomes NaN
  __device__ void rotate(const float* cos_sin, bool known, int half) {
    for_each(half, [&](int p, int i) {
      const float nan = __int_as_float(0x7fffffff);
      const float2 c = known ? float2{cos_sin[i], cos_sin[i + 1]} : float2{nan, nan};
      const float2 s = known ? float2{cos_sin[half + i], cos_sin[half + i + 1]} : float2{nan, nan};
      const float2 a = first[p];
      const float2 b = second[p];
      first[p] = {a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y};
      second[p] = {b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y};
    });
  }
  template <typename T>
  __device__ void store(T* head, int half) const {
    for_each(half, [&](int p, int i) {
      *reinterpret_cast<std::uint32_t*>(head + i) = Element<T>::pack(first[p].x, first[p].y);
      *reinterpret_cast<std::uint32_t*>(head + half + i) =
          Element<T>::pack(second[p].x, second[p].y);
    });
  }
  /// As `store`; fp8 takes the value over `scale`, bounded by the type's largest.
  template <typename Kv>
  __device__ void store_cached(Kv* head, float scale, int half) const {
    if constexpr (std::is_same_v<Kv, __nv_fp8_e4m3>) {
      for_each(half, [&](int p, int i) {
        head[i] = __nv_fp8_e4m3(first[p].x / scale);
        head[i + 1] = __nv_fp8_e4m3(first[p].y / scale);
        head[half + i] = __nv_fp8_e4m3(second[p].x / scale);
        head[half + i + 1] = __nv_fp8_e4m3(second[p].y / scale);
      });
    } else {
      store(head, half);
    }
  }
};

/// One warp a head of a row.
template <typename T, typename Kv>
__global__ void __launch_bounds__(kRopeThreads) rope_store_kernel(const RopeStoreArgs<T, Kv> args) {
  wait_for_previous();
  // Behind the wait: attention reads the cache's older tokens before its own.
  let_next_start();
  const int num_slots = args.num_heads + 2 * args.num_kv_heads;
  const std::int64_t warp =
      (static_cast<std::int64_t>(blockIdx.x) * kRopeThreads + threadIdx.x) / kWarpSize;
  const auto row = static_cast<std::int32_t>(warp / num_slots);
  if (row >= args.num_rows) return;
  const auto slot = static_cast<int>(warp % num_slots);
  const std::int32_t seq = args.one_seq ? args.first_seq : row;
  const std::int32_t position =
      args.positions != nullptr ? args.positions[row] : args.num_tokens[seq] - 1;
  const int half = args.head_dim / 2;

  HeadLanes head;
  head.load(args.qkv + row * args.qkv_stride + slot * args.head_dim, half);
  const bool is_query = slot < args.num_heads;
  const bool is_key = !is_query && slot < args.num_heads + args.num_kv_heads;
  if (is_query || is_key) {
    const float* norm = is_query ? args.maybe_q_norm : args.maybe_k_norm;
    if (norm != nullptr) head.norm(norm, args.eps, half);
    const Rotation rotation = is_query ? args.query_rotation : args.kv.rotation;
    if (rotation == Rotation::kAtTokenPosition) {
      const bool known = position >= 0 && position < args.rope.count;
      const std::int64_t table_row = known ? position : 0;
      head.rotate(args.rope.values + table_row * args.head_dim, known, half);
    }
  }
  if (is_query) {
    head.store(
        args.queries + (static_cast<std::int64_t>(row) * args.num_heads + slot) * args.head_dim,
        half);
    return;
  }
  const int kv_head = slot - args.num_heads - (is_key ? 0 : args.num_kv_heads);
  if (is_key && args.maybe_cached_keys != nullptr) {
    head.store(args.maybe_cached_keys +
                   (static_cast<std::int64_t>(row) * args.num_kv_heads + kv_head) * args.head_dim,
               half);
  }
  if (position < 0 || position >= args.kv_capacity) return;
  Kv* base = is_key ? args.kv.keys : args.kv.values;
  head.store_cached(base + args.kv.token_offset(seq, position) + kv_head * args.kv.head_stride,
                    is_key ? args.kv.key_scale : args.kv.value_scale, half);
}

/// Turns a projection's rows into queries and cache entries: q/k norm per head, RoPE, store.
///
/// Rotation pairs dimension i with i + head_dim / 2. Keys of in-cache positions are cached, and
/// their queries written, before RoPE.
///
/// Numerics: norm and rotation in f32 on the projection's T, one rounding at the store. Fp8 keys
///           and values are clamped to +-448 times their scale; a NaN stays one. A row whose
///           position lies outside the table becomes NaN where it is rotated, and one outside [0,
///           kv_capacity) is not cached: nothing is read or written elsewhere.
/// Cost:     reads 2 bytes a value, writes 2 (the keys' copy: 2 more).
/// Overlap:  starts before the kernel in front has ended (see dependent_launch.cuh), and lets the
///           next one start when that has: what was written further up, such as older tokens of the
///           cache, the next kernel may read before its wait.
/// Errors:   kInvalidArgument for null pointers, both or none of positions and num_tokens, one of
///           two norms, rows that overlap or are misaligned, pages without room for kv_capacity;
///           kUnsupported for a head_dim that is no multiple of 8 up to 256. Entries of the page
///           table are the caller's word.
template <typename T, typename Kv>
inline Status launch_rope_store(RopeStoreArgs<T, Kv> args, cudaStream_t stream) {
  static_assert(std::is_same_v<Kv, T> || std::is_same_v<Kv, __nv_fp8_e4m3>);
  if (args.num_rows == 0) return {};
  if (args.head_dim <= 0 || args.head_dim % 8 != 0 || args.head_dim > kMaxRopeHeadDim) {
    return unsupported("rope_store: head_dim " + std::to_string(args.head_dim) +
                       ", supported are multiples of 8 up to " + std::to_string(kMaxRopeHeadDim));
  }
  if (args.num_rows < 0 || args.num_heads <= 0 || args.num_kv_heads <= 0 || args.kv_capacity < 0) {
    return invalid_argument("rope_store: " + std::to_string(args.num_rows) + " rows of " +
                            std::to_string(args.num_heads) + " and " +
                            std::to_string(args.num_kv_heads) + " heads, room for " +
                            std::to_string(args.kv_capacity) +
                            " tokens, expected at least one head of each and no negative number");
  }
  const bool rotates = args.query_rotation == Rotation::kAtTokenPosition ||
                       args.kv.rotation == Rotation::kAtTokenPosition;
  if (args.qkv == nullptr || args.queries == nullptr || args.kv.keys == nullptr ||
      args.kv.values == nullptr || (rotates && args.rope.values == nullptr)) {
    return invalid_argument(
        "rope_store: qkv, queries, keys, values and (to rotate) the table must not be null");
  }
  if ((args.positions == nullptr) == (args.num_tokens == nullptr)) {
    return invalid_argument("rope_store: give positions or num_tokens, and one of them");
  }
  if ((args.maybe_q_norm == nullptr) != (args.maybe_k_norm == nullptr)) {
    return invalid_argument("rope_store: give both norms, of queries and keys, or none");
  }
  if (args.kv.page_table != nullptr) {
    const std::int64_t room = std::int64_t{args.kv.max_pages} * args.kv.page_size;
    if (args.kv.page_size < 1 || args.kv.max_pages < 1 || room < args.kv_capacity) {
      return invalid_argument("rope_store: " + std::to_string(args.kv.max_pages) + " pages of " +
                              std::to_string(args.kv.page_size) +
                              " tokens a sequence, expected at least one of each and room for "
                              "kv_capacity, " +
                              std::to_string(args.kv_capacity));
    }
  }
  CHUNKLLM_RETURN_IF_ERROR(
      take_row_stride("rope_store: qkv_stride", args.qkv_stride, args.num_rows,
                      (args.num_heads + 2 * std::int64_t{args.num_kv_heads}) * args.head_dim));
  const std::int64_t any_stride =
      args.kv.token_stride | args.kv.head_stride | args.kv.seq_stride | args.kv.page_stride;
  if (!rows_are_aligned(args.qkv, args.qkv_stride, 4) || !rows_are_aligned(args.queries, 0, 4) ||
      !rows_are_aligned(args.maybe_cached_keys, 0, 4) ||
      !rows_are_aligned(args.kv.keys, any_stride, 4) ||
      !rows_are_aligned(args.kv.values, any_stride, 4)) {
    return invalid_argument("rope_store: rows must start at multiples of 4 bytes");
  }
  const std::int64_t num_warps =
      static_cast<std::int64_t>(args.num_rows) * (args.num_heads + 2 * args.num_kv_heads);
  const std::int64_t num_blocks = ceil_div<std::int64_t>(num_warps, kRopeThreads / kWarpSize);
  return launch_dependent("rope_store_kernel", rope_store_kernel<T, Kv>,
                          {static_cast<unsigned>(num_blocks), kRopeThreads}, stream, args,
                          args.overlaps);
}

}  // namespace chunkllm::kernels
