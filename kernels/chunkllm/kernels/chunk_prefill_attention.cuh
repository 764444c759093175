// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/prefill_attention_common.cuh"
#include "chunkllm/kernels/prefill_attention_mma.cuh"
#include "chunkllm/kernels/prefill_attention_wgmma.cuh"
#include "chunkllm/kernels/row_strides.cuh"

namespace chunkllm::kernels {

/// Which version of the kernel runs.
enum class PrefillPath : std::uint8_t {
  kAuto,  ///< wgmma where device, build and arguments allow it
  kMma,   ///< mma.sync
  kWgmma  ///< refused where it cannot run
};

namespace prefill {

inline bool is_row_stride(std::int64_t stride) {
  return stride >= 0 && stride % kPieceValues == 0;
}

/// Checks what `launch_chunk_prefill_attention` is given and puts dense strides in the place of
/// zeros.
template <typename T>
Status prepare(PrefillAttentionArgs<T>& args) {
  const auto invalid = [](const std::string& what) {
    return invalid_argument("chunk_prefill_attention: " + what);
  };
  if (args.head_dim != 64 && args.head_dim != 96 && args.head_dim != 128 && args.head_dim != 256) {
    return unsupported("chunk_prefill_attention: head_dim is " + std::to_string(args.head_dim) +
                       ", supported are 64, 96, 128 and 256");
  }
  if (args.num_kv_heads <= 0 || args.num_heads <= 0 || args.num_heads % args.num_kv_heads != 0 ||
      args.num_heads / args.num_kv_heads > 16) {
    return unsupported("chunk_prefill_attention: " + std::to_string(args.num_heads) +
                       " query heads for " + std::to_string(args.num_kv_heads) +
                       " KV heads, supported are whole ratios from 1 to 16");
  }
  if (args.num_rows < 0 || args.num_tiles < 0 || args.first_token < 0 || args.seq < 0 ||
      args.window < 0) {
    return invalid("num_rows, num_tiles, first_token, seq and window must not be negative");
  }
  // Positions, (row, head) pairs and the grid are counted in 32 bits.
  if (static_cast<std::int64_t>(args.first_token) + args.num_rows > (1 << 24)) {
    return unsupported("chunk_prefill_attention: more than 2^24 tokens");
  }
  if (args.num_rows == 0) return {};
  if (args.num_tiles == 0 || args.max_tile_rows <= 0) {
    return invalid(std::to_string(args.num_rows) + " rows, but " + std::to_string(args.num_tiles) +
                   " tiles of at most " + std::to_string(args.max_tile_rows) + " rows");
  }
  if (args.num_tiles > (1 << 24)) {
    return unsupported("chunk_prefill_attention: more than 2^24 tiles");
  }
  if (args.q == nullptr || args.out == nullptr || args.kv.keys == nullptr ||
      args.kv.values == nullptr || args.tiles == nullptr) {
    return invalid("q, out, keys, values or tiles are null");
  }
  if (args.sets.num_sets <= 0 || args.sets.num_span_tokens == nullptr ||
      args.sets.tail_begin == nullptr ||
      (args.sets.span_capacity > 0 && args.sets.span_tokens == nullptr)) {
    return invalid("there are no sets, or their arrays are null");
  }
  const std::int64_t width = static_cast<std::int64_t>(args.num_heads) * args.head_dim;
  CHUNKLLM_RETURN_IF_ERROR(
      take_row_stride("chunk_prefill_attention: q_stride", args.q_stride, args.num_rows, width));
  CHUNKLLM_RETURN_IF_ERROR(take_row_stride("chunk_prefill_attention: out_stride", args.out_stride,
                                           args.num_rows, width));
  if (!is_aligned(args.q) || !is_aligned(args.out) || !is_aligned(args.kv.keys) ||
      !is_aligned(args.kv.values) || !is_row_stride(args.q_stride) ||
      !is_row_stride(args.out_stride) || !is_row_stride(args.kv.token_stride) ||
      !is_row_stride(args.kv.head_stride)) {
    return invalid("rows of q, out, keys and values must start at multiples of 16 bytes");
  }
  if (args.kv.page_table == nullptr
          ? !is_row_stride(args.kv.seq_stride)
          : args.kv.page_size < 1 || args.kv.max_pages < 1 || !is_row_stride(args.kv.page_stride)) {
    return invalid(
        "the cache needs strides that are multiples of 16 bytes and, where paged, a page_size and "
        "max_pages of at least 1");
  }
  if (!(args.scale > 0.0F) || !std::isfinite(args.scale) || !(args.kv.key_scale > 0.0F) ||
      !std::isfinite(args.kv.key_scale)) {
    return invalid("scale and key_scale must be positive");
  }
  if (turns_keys(args) || turns_queries(args)) {
    // How far ranks reach is known on the device alone; positions in the text are known here.
    const std::int32_t needed =
        args.positions == Positions::kOriginal ? args.first_token + args.num_rows : 1;
    if (args.rope.values == nullptr || args.rope.count < needed || !is_aligned(args.rope.values)) {
      return invalid(
          "keys or queries must be rotated, but no 16-byte aligned RoPE table with at "
          "least " +
          std::to_string(needed) + " positions was given");
    }
  }
  return {};
}

template <typename T>
Status launch_mma(const PrefillAttentionArgs<T>& args, cudaStream_t stream) {
  switch (args.head_dim) {
    case 64: return launch_mma<T, 64>(args, stream);
    case 96: return launch_mma<T, 96>(args, stream);
    case 128: return launch_mma<T, 128>(args, stream);
    default: return launch_mma<T, 256>(args, stream);
  }
}

}  // namespace prefill

/// Bytes of `workspace` that `launch_chunk_prefill_attention` needs.
template <typename T>
std::size_t chunk_prefill_attention_workspace_bytes(const PrefillAttentionArgs<T>& /*args*/) {
  return 0;  // a block owns its rows from the first key to the last: nothing is merged
}

/// softmax(q k^T * scale) v of each row over its tile's set: the listed tokens, then all from
/// `tail_begin` to the row's own token. Dense attention is one tile over all rows whose set lists
/// nothing and has tail_begin 0.
///
/// Rows of one sequence a launch; sequences of a batch take a launch each. Where something is
/// turned, dimension i of a head is turned with i + head_dim / 2, over all of head_dim; a model
/// that rotates neighbours or a part of the head must have keys and queries turned beforehand. 16
/// bit keys and values may have a scale, one for all keys of the cache and one for all values.
///
/// As `chunkllm::chunk_attention`. A row's arithmetic is a fixed sequence over the ranks of its
/// attended set, in key tiles counted from rank 0, whatever its tile or block of rows. With
/// mma.sync and finite caches its result so depends on its own query, its set and the cache alone.
/// wgmma rounds a score's last bit by the row's place among sixteen as well (measured on an H200):
/// there a cut at another place moves a row by that much. Two runs are bit-equal.
///
/// \param path  for tests and comparison; kAuto picks wgmma on compute capability 9.0 for head_dim
///              64 and 128
/// Numerics: products of 16-bit operands summed in f32; softmax in f32 to base 2, online; weights
///        are rounded to T before they meet the values, the sum of weights is not. Turned queries
///        and keys are rounded to T. Hidden keys weigh an exact 0; NaN in a query, key or value
///        reaches the outputs that see it, and one in a value also those beside them in its tile.
/// Cost:  4 * num_heads * head_dim flops for each attended (row, key), rounded up to whole tiles of
///        128 (row, head) pairs (64 for head_dim 256) and 64 or 128 keys; keys and values are read
///        once for each such block, mostly from L2
/// Errors: kUnsupported lists the supported head sizes and ratios; kInvalidArgument names what
///        contradicts what; kDeviceError for what the launch reports. What lies on the device
///        (tiles, sets, page table) is the caller's word.
/// Source: T. Dao, FlashAttention-2, 2023; J. Shah et al., FlashAttention-3, 2024
template <typename T>
Status launch_chunk_prefill_attention(PrefillAttentionArgs<T> args, cudaStream_t stream,
                                      PrefillPath path = PrefillPath::kAuto) {
  CHUNKLLM_RETURN_IF_ERROR(prefill::prepare(args));
  if (args.num_rows == 0) return {};
  if (path == PrefillPath::kMma) return prefill::launch_mma(args, stream);
  bool possible = false;
  CHUNKLLM_RETURN_IF_ERROR(prefill::wgmma_is_possible(args, possible));
  if (possible) return prefill::launch_wgmma(args, stream);
  if (path == PrefillPath::kWgmma) {
    return unsupported(
        "chunk_prefill_attention: wgmma needs a device of compute capability 9.0, code built for "
        "sm_90a, and head_dim 64 or 128");
  }
  return prefill::launch_mma(args, stream);
}

}  // namespace chunkllm::kernels
