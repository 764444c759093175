// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "chunkllm/chunk/positions.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/decode_attention_kernel.cuh"
#include "chunkllm/kernels/decode_attention_merge.cuh"
#include "chunkllm/kernels/dependent_launch.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/row_strides.cuh"
#include "chunkllm/kernels/shared_memory.cuh"

namespace chunkllm::kernels {

/// One layer's attention of one new token in each of a batch of sequences.
///
/// \tparam T   __half or __nv_bfloat16
/// \tparam Kv  T, or __nv_fp8_e4m3
template <typename T, typename Kv>
struct DecodeAttentionArgs {
  const T* q = nullptr;         ///< [num_seqs, num_heads, head_dim], 16-byte aligned rows
  T* out = nullptr;             ///< as `q`
  std::int64_t q_stride = 0;    ///< from one sequence to the next; 0: num_heads * head_dim
  std::int64_t out_stride = 0;  ///< likewise; sequences must not overlap
  /// Holds the new tokens' own keys and values already.
  cuda::DeviceKvView<const Kv> kv;
  cuda::DeviceAttendedSets sets;  ///< set s is sequence s's; no span and tail_begin 0: dense
  /// [num_seqs] tokens of each sequence, the new one counted: it is token num_tokens - 1. 0: the
  /// sequence is idle, its outputs are left alone. Read on the device.
  const std::int32_t* num_tokens = nullptr;
  std::int32_t num_seqs = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  float scale = 1.0F;  ///< on q . k
  Rotation q_rotation = Rotation::kAtTokenPosition;
  Positions positions = Positions::kOriginal;
  /// Needed where a key or query must still be turned. It must reach the largest difference between
  /// a wanted and a stored position. Lengths stand on the device, so only its presence is checked:
  /// what is to be turned further becomes NaN.
  cuda::DeviceRope rope;
  /// Newest attended tokens seen, the new one included; 0: all. It counts ranks of the attended
  /// set, not positions of the text.
  std::int32_t window = 0;
  /// On devices of compute capability 9.0 or more, where it hides the launch and, with kPast, the
  /// start. Exact in streams and graphs whatever kernel stands in front. With kPast that kernel may
  /// write queries and the new tokens' keys and values only: lengths, sets, page and RoPE tables,
  /// and past keys and values must be complete before it begins.
  decode_attention::Overlap overlap = decode_attention::Overlap::kNone;
  float* maybe_lse = nullptr;  ///< [num_seqs, num_heads] log of the softmax's denominator, or null
  void* workspace = nullptr;   ///< 16-byte aligned, made ready by `init_decode_attention_workspace`
  std::size_t workspace_bytes = 0;
};

namespace decode_attention {

inline constexpr std::int32_t kMaxGroup = 2 * kHeadColumns;  // query heads of a KV head

/// Blocks an SM that a workspace has room for, whatever tuning is launched.
inline constexpr std::int32_t kMaxBlocksPerSm = 4;

/// Token lists up to which all their lines are asked for ahead, whatever is listed: 0.1 us.
inline constexpr std::int64_t kMaxPrefetchedBytes = std::int64_t{512} << 10;

/// Rings of about 200 KB an SM, two thirds of it on its way: at 4.3 TB/s and a loaded latency of
/// more than a microsecond, 132 SMs need over 32 KB each. One block an SM, because a launch ends
/// with the join of a pair's parts, one a block. Short rows leave room for more warps, which hide
/// the longer arithmetic a byte. A device of less shared memory has fewer warps a block.
template <int kRowBytes, int kColumnTiles>
struct TuningFor;
template <int kColumnTiles>
struct TuningFor<64, kColumnTiles> {
  using Type = Tuning<12, 6, 1>;
};
template <int kColumnTiles>
struct TuningFor<96, kColumnTiles> {
  using Type = Tuning<8, 6, 1>;
};
template <>
struct TuningFor<128, 1> {
  using Type = Tuning<12, 4, 1>;
};
template <>
struct TuningFor<128, 2> {  // more warps would have too few registers
  using Type = Tuning<8, 5, 1>;
};
template <int kColumnTiles>
struct TuningFor<192, kColumnTiles> {
  using Type = Tuning<8, 4, 1>;
};
template <int kColumnTiles>
struct TuningFor<256, kColumnTiles> {
  using Type = Tuning<8, 3, 1>;
};
template <int kColumnTiles>
struct TuningFor<512, kColumnTiles> {
  using Type = Tuning<4, 3, 1>;
};

/// Floats of all partial results at most.
inline std::size_t partial_floats(std::int32_t num_sms, std::int32_t num_heads,
                                  std::int32_t head_dim) {
  const std::int32_t group = std::min(num_heads, kMaxGroup);
  return static_cast<std::size_t>(num_sms) * kMaxBlocksPerSm * 2 * static_cast<std::size_t>(group) *
         static_cast<std::size_t>(head_dim + 4);
}

}  // namespace decode_attention

/// Bytes of workspace for up to `num_seqs` sequences on the current device; 0 where there is none.
///
/// The bulk depends on the device's size, not on the context: 8.5 MiB for 132 SMs and 16 heads or
/// more of 128.
inline std::size_t chunk_decode_attention_workspace_bytes(std::int32_t num_seqs,
                                                          std::int32_t num_heads,
                                                          std::int32_t head_dim) {
  const Result<std::int32_t> num_sms = cuda::device_attribute(cudaDevAttrMultiProcessorCount);
  if (!num_sms.ok() || num_seqs <= 0 || num_heads <= 0 || head_dim <= 0) return 0;
  return decode_attention::partial_floats(num_sms.value(), num_heads, head_dim) * sizeof(float) +
         static_cast<std::size_t>(num_seqs) * static_cast<std::size_t>(num_heads) *
             sizeof(std::int32_t);
}

/// Makes a workspace ready, once: every launch leaves it ready for the next.
///
/// A workspace serves launches of one `num_heads` and `head_dim`, any number of sequences up to
/// that it was sized for, one after the other. Two streams need one each. After an aborted launch,
/// and before it serves another shape, it must be made ready again.
inline Status init_decode_attention_workspace(void* workspace, std::size_t bytes,
                                              cudaStream_t stream) {
  if (bytes == 0) return {};
  if (workspace == nullptr) return invalid_argument("the workspace is null");
  return cuda::cuda_status(cudaMemsetAsync(workspace, 0, bytes, stream), "cudaMemsetAsync");
}

namespace decode_attention {

template <typename T, typename Kv>
bool turns_keys(const DecodeAttentionArgs<T, Kv>& args) {
  return args.kv.rotation == Rotation::kNone || args.positions == Positions::kInCache;
}
template <typename T, typename Kv>
bool turns(const DecodeAttentionArgs<T, Kv>& args) {
  return turns_keys(args) || args.q_rotation == Rotation::kNone;
}

/// Checks what `launch_chunk_decode_attention` is given and puts dense strides in the place of
/// zeros.
template <typename T, typename Kv>
Status prepare(DecodeAttentionArgs<T, Kv>& args) {
  if (args.head_dim != 64 && args.head_dim != 96 && args.head_dim != 128 && args.head_dim != 256) {
    return unsupported("head_dim is " + std::to_string(args.head_dim) +
                       ", supported are 64, 96, 128 and 256");
  }
  if (args.num_heads <= 0 || args.num_kv_heads <= 0 || args.num_heads % args.num_kv_heads != 0 ||
      args.num_heads / args.num_kv_heads > kMaxGroup) {
    return unsupported(
        std::to_string(args.num_heads) + " query heads for " + std::to_string(args.num_kv_heads) +
        " KV heads, supported are whole ratios from 1 to " + std::to_string(kMaxGroup));
  }
  if (args.num_seqs < 0 || args.window < 0) {
    return invalid_argument("num_seqs is " + std::to_string(args.num_seqs) + ", window " +
                            std::to_string(args.window));
  }
  if (args.num_seqs == 0) return {};
  if (args.q == nullptr || args.out == nullptr || args.kv.keys == nullptr ||
      args.kv.values == nullptr || args.num_tokens == nullptr) {
    return invalid_argument("queries, outputs, keys, values or num_tokens are null");
  }
  const cuda::DeviceAttendedSets& sets = args.sets;
  if (sets.num_sets < args.num_seqs || sets.num_span_tokens == nullptr ||
      sets.tail_begin == nullptr || (sets.span_capacity > 0 && sets.span_tokens == nullptr)) {
    return invalid_argument(std::to_string(sets.num_sets) + " attended sets for " +
                            std::to_string(args.num_seqs) + " sequences, or null ones");
  }
  const bool paged = args.kv.page_table != nullptr;
  if (paged && (args.kv.page_size < 1 || args.kv.max_pages < 1)) {
    return invalid_argument("pages of " + std::to_string(args.kv.page_size) + " tokens, " +
                            std::to_string(args.kv.max_pages) + " a sequence");
  }
  const std::int64_t row = static_cast<std::int64_t>(args.num_heads) * args.head_dim;
  CHUNKLLM_RETURN_IF_ERROR(
      take_row_stride("decode attention: q_stride", args.q_stride, args.num_seqs, row));
  CHUNKLLM_RETURN_IF_ERROR(
      take_row_stride("decode attention: out_stride", args.out_stride, args.num_seqs, row));
  constexpr auto kVector = static_cast<std::int64_t>(16 / sizeof(Kv));
  const std::int64_t outer = paged ? args.kv.page_stride : args.kv.seq_stride;
  if (!is_aligned(args.q) || !is_aligned(args.out) || args.q_stride % 8 != 0 ||
      args.out_stride % 8 != 0 || !is_aligned(args.kv.keys) || !is_aligned(args.kv.values) ||
      args.kv.token_stride % kVector != 0 || args.kv.head_stride % kVector != 0 ||
      (outer % kVector != 0 && (paged || args.num_seqs > 1))) {
    return invalid_argument(
        "rows of queries, outputs, keys and values must begin at multiples of 16 bytes");
  }
  if (turns(args) &&
      (args.rope.values == nullptr || args.rope.count < 1 || !is_aligned(args.rope.values))) {
    return invalid_argument(
        "keys or queries must be turned, but there is no RoPE table (aligned to 16 bytes)");
  }
  const std::size_t needed =
      chunk_decode_attention_workspace_bytes(args.num_seqs, args.num_heads, args.head_dim);
  if (args.workspace == nullptr || !is_aligned(args.workspace) || args.workspace_bytes < needed) {
    return invalid_argument("the workspace has " + std::to_string(args.workspace_bytes) +
                            " bytes, expected " + std::to_string(needed) + " aligned to 16 bytes");
  }
  return {};
}

/// Launches validated arguments with a head size and tuning fixed at compile time; the seam at
/// which a benchmark compares tunings.
template <int kHeadDim, int kColumnTiles, bool kTurned, typename Cut, typename T, typename Kv>
Status launch_as(const DecodeAttentionArgs<T, Kv>& args, cudaStream_t stream) {
  using Block = BlockLayout<T, Kv, kHeadDim, kColumnTiles, kTurned, Cut>;
  static_assert(2 * Cut::kBlocksPerSm <= kMaxBlocksPerSm);
  CHUNKLLM_ASSIGN_OR_RETURN(const std::int32_t num_sms,
                            cuda::device_attribute(cudaDevAttrMultiProcessorCount));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::int32_t sm_bytes,
                            cuda::device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::int32_t block_bytes,
                            cuda::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  constexpr std::int32_t kStatic = 128;    // shared memory of the kernel that is not dynamic
  constexpr std::int32_t kRuntime = 1024;  // that the runtime keeps of each block's for itself
  const auto resident_of = [&](std::int32_t warps) {
    return sm_bytes / (Block::shared_bytes(warps) + kStatic + kRuntime);
  };
  std::int32_t num_warps = std::min((block_bytes - kStatic - Block::kTurnBytes) / Block::kWarpBytes,
                                    std::int32_t{Cut::kNumWarps});
  if (num_warps < 1) {
    return unsupported("decode attention of head_dim " + std::to_string(kHeadDim) + " needs " +
                       std::to_string(Block::shared_bytes(1) + kStatic) +
                       " bytes of shared memory a block, the device has " +
                       std::to_string(block_bytes));
  }
  std::int32_t blocks_per_sm = std::clamp(resident_of(num_warps), 1, Cut::kBlocksPerSm);
  if (args.num_seqs > 1 && num_warps > 1 && resident_of(num_warps / 2) >= 2 * blocks_per_sm) {
    num_warps /= 2;
    blocks_per_sm *= 2;
  }

  Params<T, Kv> params;
  params.q = args.q;
  params.out = args.out;
  params.q_stride = args.q_stride;
  params.out_stride = args.out_stride;
  params.kv = args.kv;
  const auto page_size = static_cast<std::uint32_t>(args.kv.page_size);
  params.page_shift = std::has_single_bit(page_size) ? std::countr_zero(page_size) : -1;
  params.sets = args.sets;
  params.num_tokens = args.num_tokens;
  params.num_seqs = args.num_seqs;
  params.num_kv_heads = args.num_kv_heads;
  params.group = args.num_heads / args.num_kv_heads;
  params.score_factor = static_cast<float>(1.4426950408889634 * static_cast<double>(args.scale) *
                                           static_cast<double>(args.kv.key_scale));
  params.q_rotation = args.q_rotation;
  params.positions = args.positions;
  params.rope = args.rope.values;
  params.rope_count = args.rope.count;
  params.turns_keys = turns_keys(args);
  params.turns_by_tile = args.positions == Positions::kInCache &&
                         args.kv.rotation == Rotation::kNone && args.q_rotation == Rotation::kNone;
  params.window = args.window;
  const std::int64_t list_bytes = static_cast<std::int64_t>(args.num_seqs) *
                                  args.sets.span_capacity *
                                  static_cast<std::int64_t>(sizeof(std::int32_t));
  params.prefetched_bytes = list_bytes <= kMaxPrefetchedBytes ? list_bytes : 0;
  params.maybe_lse = args.maybe_lse;
  params.partials = static_cast<float*>(args.workspace);
  params.counters = reinterpret_cast<std::int32_t*>(
      params.partials + partial_floats(num_sms, args.num_heads, args.head_dim));

  const auto kernel = chunk_decode_attention_kernel<T, Kv, kHeadDim, kColumnTiles, kTurned, Cut>;
  CHUNKLLM_RETURN_IF_ERROR(allow_any_shared("chunk_decode_attention", kernel));
  params.overlap = can_overlap(kernel) ? args.overlap : Overlap::kNone;
  const LaunchShape shape{dim3(static_cast<unsigned>(num_sms * blocks_per_sm)),
                          static_cast<unsigned>(num_warps * kWarpSize),
                          static_cast<std::size_t>(Block::shared_bytes(num_warps))};
  return launch_kernel("chunk_decode_attention_kernel", kernel, shape,
                       params.overlap != Overlap::kNone, stream, params);
}

template <int kHeadDim, int kColumnTiles, typename T, typename Kv>
Status launch_columns(const DecodeAttentionArgs<T, Kv>& args, cudaStream_t stream) {
  constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(Kv));
  using Cut = typename TuningFor<kRowBytes, kColumnTiles>::Type;
  return turns(args) ? launch_as<kHeadDim, kColumnTiles, true, Cut>(args, stream)
                     : launch_as<kHeadDim, kColumnTiles, false, Cut>(args, stream);
}

template <int kHeadDim, typename T, typename Kv>
Status launch_head_dim(const DecodeAttentionArgs<T, Kv>& args, cudaStream_t stream) {
  return args.num_heads / args.num_kv_heads <= kHeadColumns
             ? launch_columns<kHeadDim, 1>(args, stream)
             : launch_columns<kHeadDim, 2>(args, stream);
}

}  // namespace decode_attention

/// Attention of one new token a sequence over its attended set, read in place: contiguous or paged,
/// without gathering. Dense attention is the same with a set that holds no span and whose tail
/// begins at 0.
///
/// One launch. The tiles of 16 attended tokens of all sequences and KV heads are cut into stretches
/// of equal size, one a resident block, so that all SMs finish together whatever the lengths; the
/// KV heads of a lone sequence are cut each by itself where that costs few blocks. A (sequence, KV
/// head) pair that two or more blocks share is joined by the last of them to arrive. The cut is
/// made on the device: a captured launch serves sequences that grow and sets that change.
///
/// RoPE: where something is turned, dimension i of a head is turned with i + head_dim / 2, over all
///        of head_dim; a model that rotates neighbours or a part of the head must have keys and
///        queries turned beforehand.
///
/// Numerics: products of 16 bit operands, sums in f32, online softmax in base 2. The weights are
///        rounded to the operands' type before they meet the values. fp8 keys and values are
///        widened to __half exactly, and queries rounded to it (above 65504 they become infinite).
///        A query or key that is turned is rounded to 16 bits again, as it would be if it had been
///        stored turned. fp8 has one scale for all keys of the cache and one for all values.
/// NaN:   in a query reaches that head, in an attended key or value all heads of its group (a
///        value's its own dimension). Infinite scores give NaN. Tokens outside the set are not
///        read.
/// Order: fixed by the lengths of the batch and by the device: two runs agree to the bit. A
///        sequence in another batch is cut elsewhere and may differ in the last bits. What lists
///        the same tokens, by spans or in the tail, gives the same bits.
/// Cost:  one read of each attended key and value, 4 * num_heads * head_dim flops an attended
///        token, and where keys are turned head_dim floats of the RoPE table a key and KV head; a
///        16th of that where keys and queries without a rotation take in-cache positions
/// Limits: head_dim 64, 96, 128, 256; 1 to 16 query heads a KV head; fewer than 2^31 tiles
/// Errors: kUnsupported lists what is supported; kInvalidArgument names what contradicts what;
///        kDeviceError. Page tables, strides, sets and lengths are the caller's word.
/// Source: online softmax, M. Milakov and N. Gimelshein, 2018; split keys as in FlashDecoding,
///        2023; equal stretches as in Stream-K, M. Osama et al., 2023
template <typename T, typename Kv>
Status launch_chunk_decode_attention(DecodeAttentionArgs<T, Kv> args, cudaStream_t stream) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  static_assert(std::is_same_v<Kv, T> || std::is_same_v<Kv, __nv_fp8_e4m3>);
  CHUNKLLM_RETURN_IF_ERROR(decode_attention::prepare(args));
  if (args.num_seqs == 0) return {};
  switch (args.head_dim) {
    case 64: return decode_attention::launch_head_dim<64>(args, stream);
    case 96: return decode_attention::launch_head_dim<96>(args, stream);
    case 128: return decode_attention::launch_head_dim<128>(args, stream);
    default: return decode_attention::launch_head_dim<256>(args, stream);
  }
}

}  // namespace chunkllm::kernels
