// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/join_heads.cuh"
#include "chunkllm/kernels/row_strides.cuh"
#include "chunkllm/kernels/score_chunks_kernels.cuh"
#include "chunkllm/kernels/score_logits_mma.cuh"
#include "chunkllm/kernels/select_chunks.cuh"

namespace chunkllm::kernels {

namespace detail {

/// Floats from one row of logits to the next: whole sectors of 32 bytes, and never none.
inline std::int64_t logit_stride(std::int32_t max_chunks) {
  return ceil_div<std::int64_t>(std::max(max_chunks, 1), 8) * 8;
}

template <typename Key>
ScoreLayout score_layout(const DeviceScoreArgs<Key>& args) {
  ScoreLayout layout;
  layout.group = args.num_heads / args.num_key_heads;
  layout.inverse_group = ceil_div(1 << ScoreLayout::kInverseBits, layout.group);
  // Tensor cores take all heads of a group from one read of the keys.
  layout.heads_per_warp = std::is_same_v<Key, float> ? (layout.group == 1 ? 1 : 4) : layout.group;
  layout.tiles = ceil_div(layout.group, layout.heads_per_warp);
  layout.num_units = args.num_key_heads * layout.tiles;
  layout.units_per_block = 1;
  while (layout.units_per_block < std::min(layout.num_units, kWorkWarps)) {
    layout.units_per_block *= 2;
  }
  const std::int64_t rows = static_cast<std::int64_t>(args.num_layers) * args.triggers.count;
  const auto pieces = [&] {
    layout.unit_groups = ceil_div(layout.num_units, layout.units_per_block);
    layout.block_chunks = kStretch * (kWorkWarps / layout.units_per_block);
    return rows * layout.unit_groups * ceil_div(args.table.max_chunks, layout.block_chunks);
  };
  // One layer's keys: rather idle warps than idle SMs.
  while (pieces() < kFewPieces && layout.units_per_block < kWorkWarps) layout.units_per_block *= 2;
  layout.join_tile = kScoreTile;
  while (rows * ceil_div(args.table.max_chunks, layout.join_tile) < kFewPieces / 2 &&
         layout.join_tile > kLeastScoreTile) {
    layout.join_tile /= 2;
  }
  layout.num_partials = ceil_div(std::max(args.table.max_chunks, 1), kStretch);
  layout.logit_stride = logit_stride(args.table.max_chunks);
  layout.logits = static_cast<float*>(args.workspace);
  layout.partials = reinterpret_cast<SoftmaxSum*>(
      layout.logits + static_cast<std::int64_t>(args.num_layers) * args.triggers.count *
                          args.num_heads * layout.logit_stride);
  return layout;
}

template <int kDim>
void launch_score_logits_f32(const DeviceScoreArgs<float>& args, const ScoreLayout& layout,
                             unsigned blocks, cudaStream_t stream) {
  if (layout.heads_per_warp == 1) {
    score_logits_f32_kernel<kDim, 1><<<blocks, kWorkThreads, 0, stream>>>(args, layout);
  } else {
    score_logits_f32_kernel<kDim, 4><<<blocks, kWorkThreads, 0, stream>>>(args, layout);
  }
}

template <typename Key>
Status launch_score_logits(const DeviceScoreArgs<Key>& args, const ScoreLayout& layout,
                           unsigned blocks, cudaStream_t stream) {
  if constexpr (std::is_same_v<Key, float>) {
    if (args.key_dim <= 64) {
      launch_score_logits_f32<64>(args, layout, blocks, stream);
    } else if (args.key_dim <= 128) {
      launch_score_logits_f32<128>(args, layout, blocks, stream);
    } else if (args.key_dim <= 256) {
      launch_score_logits_f32<256>(args, layout, blocks, stream);
    } else {
      launch_score_logits_f32<512>(args, layout, blocks, stream);
    }
    return cuda::launch_status("score_logits_f32_kernel");
  } else {
    if (args.key_dim <= 64) {
      score_logits_mma_kernel<Key, 2, true><<<blocks, kWorkThreads, 0, stream>>>(args, layout);
    } else if (args.key_dim <= 128) {
      score_logits_mma_kernel<Key, 4, true><<<blocks, kWorkThreads, 0, stream>>>(args, layout);
    } else {
      score_logits_mma_kernel<Key, 2, false><<<blocks, kWorkThreads, 0, stream>>>(args, layout);
    }
    return cuda::launch_status("score_logits_mma_kernel");
  }
}

}  // namespace detail

/// Bytes that `launch_score_chunks` needs: the logits of all layers, triggers and heads.
inline std::size_t score_chunks_workspace_bytes(std::int32_t num_layers, std::int32_t num_triggers,
                                                std::int32_t num_heads, std::int32_t max_chunks) {
  if (num_layers <= 0 || num_triggers <= 0 || num_heads <= 0) return 0;
  const auto row =
      static_cast<std::size_t>(detail::logit_stride(max_chunks)) * sizeof(float) +
      static_cast<std::size_t>(ceil_div(std::max(max_chunks, 1), kStretch)) * sizeof(SoftmaxSum);
  return static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_triggers) *
         static_cast<std::size_t>(num_heads) * row;
}

namespace detail {

/// Checks what `launch_score_chunks` is given and puts dense strides in the place of zeros.
template <typename Key>
Status prepare(DeviceScoreArgs<Key>& args) {
  Status status = detail::validate_triggers(args.table, args.triggers);
  if (!status.ok()) return status;
  if (args.num_layers < 0) return invalid_argument("score_chunks: a negative number of layers");
  if (args.triggers.count == 0 || args.num_layers == 0) return {};
  if (args.num_heads < 1 || args.num_key_heads < 1 || args.num_heads > kMaxScoreHeads ||
      args.num_heads % args.num_key_heads != 0 || args.key_dim < 8 || args.key_dim > kMaxKeyDim ||
      args.key_dim % 8 != 0) {
    return unsupported("score_chunks: " + std::to_string(args.num_heads) + " heads, " +
                       std::to_string(args.num_key_heads) + " key heads of " +
                       std::to_string(args.key_dim) +
                       " features; supported are 1 to 256 heads, key heads that divide them, and "
                       "multiples of 8 features up to 512");
  }
  if (args.score_stride < args.table.max_chunks - 1) {
    return invalid_argument(
        "score_chunks: score_stride " + std::to_string(args.score_stride) +
        ", expected at least table.max_chunks - 1 = " + std::to_string(args.table.max_chunks - 1));
  }
  if (args.table.max_chunks <= 1) return {};  // no room for a candidate
  const std::int64_t key_size = static_cast<std::int64_t>(args.num_key_heads) * args.key_dim;
  const std::int64_t query_size = static_cast<std::int64_t>(args.num_heads) * args.key_dim;
  const std::int64_t count = args.triggers.count;
  const auto fill = [](std::int64_t& stride, std::int64_t dense) {
    if (stride == 0) stride = dense;
  };
  const auto take = [](const char* field, std::int64_t& stride, std::int64_t rows,
                       std::int64_t width) {
    return take_row_stride(std::string("score_chunks: ") + field, stride, rows, width);
  };
  CHUNKLLM_RETURN_IF_ERROR(take("query_stride", args.query_stride, count, query_size));
  CHUNKLLM_RETURN_IF_ERROR(take("null_stride", args.null_stride, count, args.num_heads));
  CHUNKLLM_RETURN_IF_ERROR(take("key_seq_stride", args.key_seq_stride, args.table.num_seqs,
                                args.table.max_chunks * key_size));
  fill(args.query_layer_stride, count * args.query_stride);
  fill(args.null_layer_stride, count * args.null_stride);
  fill(args.open_key_layer_stride, count * key_size);
  fill(args.key_layer_stride, args.table.num_seqs * args.key_seq_stride);
  fill(args.bias_layer_stride, args.num_heads * kNumDistanceBins);
  constexpr std::int64_t kKeysA16 = 16 / sizeof(Key);
  if (args.queries == nullptr || args.keys == nullptr || args.scores == nullptr) {
    return invalid_argument("score_chunks: queries, keys and scores must be given");
  }
  if (!is_aligned(args.queries) || !is_aligned(args.keys) || !is_aligned(args.maybe_open_keys) ||
      args.query_stride % 4 != 0 || args.query_layer_stride % 4 != 0 ||
      args.open_key_layer_stride % 4 != 0 || args.key_seq_stride % kKeysA16 != 0 ||
      args.key_layer_stride % kKeysA16 != 0) {
    return invalid_argument(
        "score_chunks: queries, keys and open keys and their strides must be multiples of 16 "
        "bytes");
  }
  const std::size_t bytes = score_chunks_workspace_bytes(args.num_layers, args.triggers.count,
                                                         args.num_heads, args.table.max_chunks);
  if (args.workspace == nullptr || args.workspace_bytes < bytes || !is_aligned(args.workspace)) {
    return invalid_argument("score_chunks: a workspace of " + std::to_string(args.workspace_bytes) +
                            " bytes, expected " + std::to_string(bytes) + " at a multiple of 16");
  }
  return {};
}

}  // namespace detail

/// Writes the scores of each trigger's candidates in each layer, as `chunkllm::score_chunks` does.
///
///   z[h,c] = scale q_h . k_(h,c) + log len_c + b_h[distance_bin(t - e_c)]
///   p[h,c] = softmax of z[h,.] over the candidates and one null logit
///   score[c] = max (or mean) over h of p[h,c]
///
/// A trigger sees the chunks that are closed by then alone; one that is < 0 leaves its rows as they
/// are and costs a load. Behind the candidates a row is left as it is. Scores are made whether or
/// not a budget would hold all chunks.
///
/// Numerics: f32 sums. With f32 keys so are the products. With 16 bit keys they are of tensor
///   cores, exact, of a query in two terms of the keys' type: it is off by 2^-18 of its magnitude
///   (bf16), or by 2^-22 and 2^-25 of the head's largest (f16). A NaN or +infinity in z makes all
///   scores of its layer and trigger NaN, and so may an infinite key or query. Sums have a fixed
///   order that does not depend on what else is in the launch: on one kind of device a trigger's
///   scores are the same in any batch, in decode and in prefill.
/// Cost: 2 num_heads key_dim flops a chunk (twice that with 16 bit keys). Keys are read once from
///   memory a trigger; up to 8 neighbouring triggers of a sequence share a read of 16 bit keys of
///   up to 128 features. Wider ones are read again, from L2, for every four (trigger, head) of a
///   key head, f32 keys for every trigger and four heads. 8 bytes of logits a head and chunk. Two
///   launches.
/// Errors: kInvalidArgument for missing pointers, a workspace too small, rows that do not begin at
///   multiples of 16 bytes, or a `score_stride` below table.max_chunks - 1; kUnsupported for a
///   key_dim that is no multiple of 8 up to 512, more than 256 heads, or more work than 2^31
///   pieces. kDeviceError from the launch.
template <typename Key>
Status launch_score_chunks(DeviceScoreArgs<Key> args, cudaStream_t stream) {
  CHUNKLLM_RETURN_IF_ERROR(detail::prepare(args));
  if (args.triggers.count == 0 || args.num_layers == 0 || args.table.max_chunks <= 1) return {};
  const std::int64_t count = args.triggers.count;
  const ScoreLayout layout = detail::score_layout(args);
  const std::int64_t logit_items = static_cast<std::int64_t>(args.num_layers) * layout.unit_groups *
                                   ceil_div(args.table.max_chunks, layout.block_chunks) * count;
  const std::int64_t join_items = static_cast<std::int64_t>(args.num_layers) *
                                  ceil_div(args.table.max_chunks, layout.join_tile) * count;
  if (std::max(logit_items, join_items) > 0x7fffffff) {
    return unsupported("score_chunks: " + std::to_string(logit_items) +
                       " pieces of work, at most 2147483647 in a launch");
  }
  CHUNKLLM_ASSIGN_OR_RETURN(const int num_sms,
                            cuda::device_attribute(cudaDevAttrMultiProcessorCount));
  const auto blocks = [&](std::int64_t items, int blocks_per_sm) {
    return static_cast<unsigned>(
        std::min(items, static_cast<std::int64_t>(num_sms) * blocks_per_sm));
  };
  const unsigned logit_blocks = blocks(logit_items, kScoreBlocksPerSm);
  Status logits = detail::launch_score_logits(args, layout, logit_blocks, stream);
  if (!logits.ok()) return logits;
  join_heads_kernel<Key>
      <<<blocks(join_items, kJoinBlocksPerSm), kWorkThreads, 0, stream>>>(args, layout);
  return cuda::launch_status("join_heads_kernel");
}

}  // namespace chunkllm::kernels
