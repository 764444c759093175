// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/row_strides.cuh"

namespace chunkllm::kernels {

/// Attended keys and values of a batch of sequences, to be laid side by side.
///
/// \tparam Kv   __half, __nv_bfloat16 or __nv_fp8_e4m3
/// \tparam Out  Kv: copied as stored; of fp8 also __half or __nv_bfloat16: times the view's scale
template <typename Kv, typename Out = Kv>
struct GatherKvArgs {
  cuda::DeviceKvView<const Kv> kv;  ///< contiguous or paged
  cuda::DeviceAttendedSets sets;    ///< set s is sequence s's
  /// [num_seqs] tokens of each sequence: those from `tail_begin` on are gathered, too; 0: the
  /// sequence is idle, nothing is. Null: listed tokens alone. Read on the device.
  const std::int32_t* maybe_num_tokens = nullptr;
  std::int32_t num_seqs = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  Out* keys = nullptr;    ///< [num_seqs, capacity, num_kv_heads, head_dim], or by the strides below
  Out* values = nullptr;  ///< likewise
  std::int32_t capacity = 0;    ///< tokens a sequence has room for
  std::int64_t seq_stride = 0;  ///< of the outputs, in elements; each that is 0: without gaps
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int32_t* num_gathered = nullptr;  ///< [num_seqs] written: tokens gathered, <= capacity
};

namespace gather {

inline constexpr int kThreads = 256;
/// 16-byte vectors of keys, and as many of values, that a thread has on their way: 8 reads for each
/// of 1,024 threads are 128 KB an SM, several times what latency asks for, which hides the blocks
/// that look up their tokens.
inline constexpr int kUnroll = 4;
/// Widening takes registers.
template <typename Kv, typename Out>
inline constexpr int kBlocksPerSm = std::is_same_v<Kv, Out> ? 4 : 3;
inline constexpr int kTileVectors = kThreads * kUnroll;

/// What the kernel reads: the launcher's arguments after validation.
template <typename Kv, typename Out>
struct Params {
  GatherKvArgs<Kv, Out> args;
  std::int32_t row_vectors = 0;   ///< of a token's keys
  std::int32_t head_vectors = 0;  ///< of a head's
  std::int32_t tile_tokens = 0;   ///< a block copies at a time
  std::int32_t seq_tiles = 0;     ///< of a sequence that fills its capacity
};

template <typename Kv, typename Out>
__device__ std::int32_t num_to_gather(const GatherKvArgs<Kv, Out>& args, std::int32_t seq) {
  std::int32_t count = args.sets.num_span_tokens[seq];
  if (args.maybe_num_tokens != nullptr) {
    const std::int32_t tokens = args.maybe_num_tokens[seq];
    count = tokens <= 0 ? 0 : count + max(tokens - args.sets.tail_begin[seq], 0);
  }
  return min(max(count, 0), args.capacity);
}

/// Writes a vector of 16 bytes of Kv at `out`.
template <typename Kv, typename Out>
__device__ void write_vector(Out* out, const uint4& vector, float scale) {
  auto* const target = reinterpret_cast<uint4*>(out);
  if constexpr (std::is_same_v<Kv, Out>) {
    *target = vector;
  } else {
    const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
    std::uint32_t wide[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(
          static_cast<__nv_fp8x2_storage_t>(words[i / 2] >> (i % 2 * 16) & 0xffffU), __NV_E4M3);
      const float2 value = __half22float2(__half2(pair));
      wide[i] = Element<Out>::pack(value.x * scale, value.y * scale);
    }
    target[0] = {wide[0], wide[1], wide[2], wide[3]};
    target[1] = {wide[4], wide[5], wide[6], wide[7]};
  }
}

/// A block copies tiles of `tile_tokens` tokens of all heads. The grid is as large as the device;
/// tiles behind a sequence's last token are passed over.
template <typename Kv, typename Out>
__global__ void __launch_bounds__(kThreads, (kBlocksPerSm<Kv, Out>))
    gather_kv_kernel(const __grid_constant__ Params<Kv, Out> params) {
  constexpr int kPerVector = 16 / static_cast<int>(sizeof(Kv));
  __shared__ std::int64_t sources[kThreads];
  const GatherKvArgs<Kv, Out>& args = params.args;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int64_t num_tiles = static_cast<std::int64_t>(params.seq_tiles) * args.num_seqs;
  for (std::int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const auto seq = static_cast<std::int32_t>(tile / params.seq_tiles);
    const auto first =
        static_cast<std::int32_t>(tile - static_cast<std::int64_t>(seq) * params.seq_tiles) *
        params.tile_tokens;
    const std::int32_t count = num_to_gather(args, seq);
    if (first == 0 && thread == 0) args.num_gathered[seq] = count;
    if (first >= count) continue;
    const std::int32_t tokens = min(params.tile_tokens, count - first);

    if (thread < tokens) {
      const std::int32_t rank = first + thread;
      const std::int32_t listed = args.sets.num_span_tokens[seq];
      const std::int32_t token = rank < listed ? args.sets.span_tokens_of(seq)[rank]
                                               : args.sets.tail_begin[seq] + rank - listed;
      sources[thread] = args.kv.token_offset(seq, token);
    }
    __syncthreads();
    const std::int32_t num_vectors = tokens * params.row_vectors;
    const std::int64_t out_first = seq * args.seq_stride + first * args.token_stride;
    for (std::int32_t begin = 0; begin < num_vectors; begin += kTileVectors) {
      uint4 keys[kUnroll];
      uint4 values[kUnroll];
      std::int64_t targets[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const std::int32_t i = begin + u * kThreads + thread;
        if (i >= num_vectors) continue;
        const std::int32_t row = i / params.row_vectors;
        const std::int32_t column = i - row * params.row_vectors;
        const std::int32_t head = column / params.head_vectors;
        const std::int32_t dim = (column - head * params.head_vectors) * kPerVector;
        const std::int64_t source = sources[row] + head * args.kv.head_stride + dim;
        keys[u] = load_streaming(args.kv.keys + source);
        values[u] = load_streaming(args.kv.values + source);
        targets[u] = out_first + row * args.token_stride + head * args.head_stride + dim;
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (begin + u * kThreads + thread >= num_vectors) continue;
        write_vector<Kv>(args.keys + targets[u], keys[u], args.kv.key_scale);
        write_vector<Kv>(args.values + targets[u], values[u], args.kv.value_scale);
      }
    }
    __syncthreads();  // before the sources of the next tile are written
  }
}

/// Puts strides without gaps in the place of zeros: the tokens' heads lie side by side, or where
/// heads lie further apart than tokens, the heads' tokens do.
///
/// Errors: kInvalidArgument for rows of head_dim elements that overlap
template <typename Kv, typename Out>
Status take_strides(GatherKvArgs<Kv, Out>& args) {
  const auto take = [&](const char* field, std::int64_t& stride, std::int64_t count) {
    return take_row_stride(std::string("gather_kv: ") + field, stride, count, args.head_dim);
  };
  CHUNKLLM_RETURN_IF_ERROR(take("head_stride", args.head_stride, args.num_kv_heads));
  const std::int64_t heads = args.num_kv_heads * args.head_stride;
  if (args.token_stride == 0) args.token_stride = heads;
  if (args.seq_stride == 0) args.seq_stride = std::max(heads, args.capacity * args.token_stride);
  CHUNKLLM_RETURN_IF_ERROR(take("token_stride", args.token_stride, args.capacity));
  return take("seq_stride", args.seq_stride, args.num_seqs);
}

/// Checks what `launch_gather_kv` is given and puts strides in the place of zeros.
template <typename Kv, typename Out>
Status prepare(GatherKvArgs<Kv, Out>& args) {
  constexpr auto kPerVector = static_cast<std::int32_t>(16 / sizeof(Kv));
  constexpr auto kPerOutVector = static_cast<std::int64_t>(16 / sizeof(Out));
  constexpr std::int32_t kMaxWidth = 1 << 20;
  if (args.head_dim <= 0 || args.head_dim % kPerVector != 0 || args.num_kv_heads <= 0 ||
      args.head_dim > kMaxWidth / args.num_kv_heads) {
    return unsupported(std::to_string(args.num_kv_heads) + " KV heads of " +
                       std::to_string(args.head_dim) + ", supported are multiples of " +
                       std::to_string(kPerVector) + " and rows of up to " +
                       std::to_string(kMaxWidth) + " elements");
  }
  if (args.num_seqs < 0 || args.capacity < 0) {
    return invalid_argument("num_seqs is " + std::to_string(args.num_seqs) + ", capacity " +
                            std::to_string(args.capacity));
  }
  if (args.num_seqs == 0) return {};
  if (args.kv.keys == nullptr || args.kv.values == nullptr || args.num_gathered == nullptr ||
      (args.capacity > 0 && (args.keys == nullptr || args.values == nullptr))) {
    return invalid_argument("keys, values, outputs or num_gathered are null");
  }
  if (args.sets.num_sets < args.num_seqs || args.sets.num_span_tokens == nullptr ||
      args.sets.tail_begin == nullptr ||
      (args.sets.span_capacity > 0 && args.sets.span_tokens == nullptr)) {
    return invalid_argument(std::to_string(args.sets.num_sets) + " attended sets for " +
                            std::to_string(args.num_seqs) + " sequences, or null ones");
  }
  const bool paged = args.kv.page_table != nullptr;
  if (paged && (args.kv.page_size < 1 || args.kv.max_pages < 1)) {
    return invalid_argument("pages of " + std::to_string(args.kv.page_size) + " tokens, " +
                            std::to_string(args.kv.max_pages) + " a sequence");
  }
  CHUNKLLM_RETURN_IF_ERROR(take_strides(args));
  const std::int64_t outer = paged ? args.kv.page_stride : args.kv.seq_stride;
  if (!is_aligned(args.kv.keys) || !is_aligned(args.kv.values) || !is_aligned(args.keys) ||
      !is_aligned(args.values) || args.kv.token_stride % kPerVector != 0 ||
      args.kv.head_stride % kPerVector != 0 ||
      (outer % kPerVector != 0 && (paged || args.num_seqs > 1)) ||
      args.token_stride % kPerOutVector != 0 || args.head_stride % kPerOutVector != 0 ||
      (args.seq_stride % kPerOutVector != 0 && args.num_seqs > 1)) {
    return invalid_argument("rows of keys, values and outputs must begin at multiples of 16 bytes");
  }
  return {};
}

}  // namespace gather

/// Copies the keys and values of attended tokens side by side, in ascending order, for an attention
/// that reads contiguous memory only. `launch_chunk_decode_attention` needs no such copy.
///
/// Keys keep the rotation they were stored with. fp8 is copied as it is, or widened: then an
/// output is the stored number times its scale in f32 (one scale for all keys of the cache, one for
/// all values), rounded to Out; NaN stays NaN. A plain copy
/// keeps every bit.
///
/// A sequence with more attended tokens than `capacity` has its first ones gathered; nothing is
/// written behind them. What lies behind the gathered tokens is left alone.
///
/// Empty input: no sequence: nothing is launched. No room or no token: num_gathered is written.
/// Cost:   one read and one write of each attended key and value, 4 bytes a token for the list; one
///         launch, no workspace
/// Errors: kUnsupported lists what is supported; kInvalidArgument names what contradicts what;
///         kDeviceError. Page tables, strides, sets and lengths are the caller's word.
/// Source: the counterpart of `gather_kv` on the host
template <typename Kv, typename Out>
Status launch_gather_kv(GatherKvArgs<Kv, Out> args, cudaStream_t stream) {
  static_assert(std::is_same_v<Kv, __half> || std::is_same_v<Kv, __nv_bfloat16> ||
                std::is_same_v<Kv, __nv_fp8_e4m3>);
  static_assert(std::is_same_v<Kv, Out> ||
                (std::is_same_v<Kv, __nv_fp8_e4m3> &&
                 (std::is_same_v<Out, __half> || std::is_same_v<Out, __nv_bfloat16>)));
  CHUNKLLM_RETURN_IF_ERROR(gather::prepare(args));
  if (args.num_seqs == 0) return {};
  CHUNKLLM_ASSIGN_OR_RETURN(const int num_sms,
                            cuda::device_attribute(cudaDevAttrMultiProcessorCount));

  gather::Params<Kv, Out> params;
  params.args = args;
  params.head_vectors = args.head_dim * static_cast<std::int32_t>(sizeof(Kv)) / 16;
  params.row_vectors = params.head_vectors * args.num_kv_heads;
  params.tile_tokens = std::clamp(gather::kTileVectors / params.row_vectors, 1, gather::kThreads);
  // At least one tile a sequence, which writes num_gathered.
  params.seq_tiles = std::max(ceil_div(args.capacity, params.tile_tokens), 1);
  const std::int64_t tiles = static_cast<std::int64_t>(params.seq_tiles) * args.num_seqs;
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(
      tiles, static_cast<std::int64_t>(num_sms) * (gather::kBlocksPerSm<Kv, Out>)));
  gather::gather_kv_kernel<Kv, Out><<<grid, gather::kThreads, 0, stream>>>(params);
  return cuda::launch_status("gather_kv_kernel");
}

}  // namespace chunkllm::kernels
