// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/chunk_keys_kernels.cuh"
#include "chunkllm/kernels/row_strides.cuh"

namespace chunkllm::kernels {

namespace chunk_keys {

/// Puts dense strides in the place of zeros. Errors: kInvalidArgument for strides smaller than what
/// they step over.
template <typename Row, typename Key, typename Weight>
Status take_strides(UpdateChunkKeysArgs<Row, Key, Weight>& args) {
  const std::int64_t num_seqs = args.table.num_seqs;
  const auto take = [](const char* field, std::int64_t& stride, std::int64_t count,
                       std::int64_t width) {
    return take_row_stride(std::string("update_chunk_keys: ") + field, stride, count, width);
  };
  const auto take_layers = [&](const char* field, std::int64_t& stride, std::int64_t seq_stride,
                               std::int64_t seq_size) {
    // The last sequence's row may end its layer.
    if (stride == 0) stride = num_seqs * seq_stride;
    return take(field, stride, args.num_layers, (num_seqs - 1) * seq_stride + seq_size);
  };
  CHUNKLLM_RETURN_IF_ERROR(take("row_seq_stride", args.row_seq_stride, num_seqs, args.row_size));
  // Layers may share their rows: the stride is the caller's word.
  if (args.row_layer_stride == 0) args.row_layer_stride = num_seqs * args.row_seq_stride;
  CHUNKLLM_RETURN_IF_ERROR(
      take_layers("sum_layer_stride", args.sum_layer_stride, args.row_size, args.row_size));
  const std::int64_t seq_keys = static_cast<std::int64_t>(args.table.max_chunks) * args.key_size;
  CHUNKLLM_RETURN_IF_ERROR(
      take_layers("key_layer_stride", args.key_layer_stride, seq_keys, seq_keys));
  if (args.num_query_features > 0) {
    CHUNKLLM_RETURN_IF_ERROR(
        take("query_seq_stride", args.query_seq_stride, num_seqs, args.query_size()));
    CHUNKLLM_RETURN_IF_ERROR(take_layers("query_layer_stride", args.query_layer_stride,
                                         args.query_seq_stride, args.query_size()));
    CHUNKLLM_RETURN_IF_ERROR(
        take("query_row_seq_stride", args.query_row_seq_stride, num_seqs, args.num_query_features));
    if (args.query_row_layer_stride == 0) {
      args.query_row_layer_stride = num_seqs * args.query_row_seq_stride;
    }
  }
  if (args.maybe_open_keys == nullptr) return {};
  return take_layers("open_key_layer_stride", args.open_key_layer_stride, args.key_size,
                     args.key_size);
}

/// Checks what the launchers are given and puts dense strides in the place of zeros.
template <typename Row, typename Key, typename Weight>
Status prepare(UpdateChunkKeysArgs<Row, Key, Weight>& args) {
  const auto refuse = [](const std::string& what) {
    return invalid_argument("update_chunk_keys: " + what);
  };
  constexpr std::int32_t kMostInGrid = 65535;
  const bool has_adapter = args.maybe_key_weight != nullptr;
  if (args.num_layers < 0 || args.num_layers > kMostInGrid || args.table.num_seqs < 0 ||
      args.table.num_seqs > kMostInGrid || args.table.max_chunks < 0) {
    return refuse("there are " + std::to_string(args.num_layers) + " layers and " +
                  std::to_string(args.table.num_seqs) + " sequences of " +
                  std::to_string(args.table.max_chunks) +
                  " chunks, expected at most 65535 layers and sequences and no negative number");
  }
  if (args.num_layers == 0 || args.table.num_seqs == 0) return {};
  if (args.row_size < kRowVector || args.row_size % kRowVector != 0) {
    return refuse("row_size is " + std::to_string(args.row_size) + ", expected a multiple of 8");
  }
  if (args.key_size < 1 || (!has_adapter && args.key_size != args.row_size)) {
    return refuse("key_size is " + std::to_string(args.key_size) + ", expected row_size, " +
                  std::to_string(args.row_size) + ", for mean keys and at least 1 with an adapter");
  }
  if (args.num_query_features < 0 || args.num_heads < 0 ||
      (!has_adapter && args.num_query_features % kRowVector != 0)) {
    return refuse("there are " + std::to_string(args.num_query_features) +
                  " query features, expected a multiple of 8 for mean keys, and " +
                  std::to_string(args.num_heads) + " heads, expected no negative number");
  }
  if (args.num_tokens == nullptr || args.table.ends == nullptr ||
      args.table.num_chunks == nullptr || args.rows == nullptr || args.open_sums == nullptr ||
      args.keys == nullptr) {
    return refuse("num_tokens, the chunk table, rows, open_sums and keys must not be null");
  }
  const bool has_query_source =
      has_adapter ? args.maybe_query_weight != nullptr && args.maybe_query_rows == nullptr
                  : args.maybe_query_rows != nullptr && args.maybe_query_weight == nullptr;
  if (args.num_query_features > 0 &&
      (!has_query_source || args.queries == nullptr || args.maybe_triggers == nullptr)) {
    return refuse(
        "queries need triggers, room, and either query weights beside key weights or query rows "
        "without them");
  }
  if (args.maybe_null_weight != nullptr &&
      (!has_adapter || args.num_query_features == 0 || args.num_heads == 0)) {
    return refuse("null weights need an adapter with queries and num_heads");
  }
  if (args.maybe_open_keys != nullptr && args.maybe_triggers == nullptr) {
    return refuse("open keys need triggers");
  }
  const bool one_layer = args.num_layers == 1;
  const auto layer_stride = [&](std::int64_t stride) { return one_layer ? 0 : stride; };
  const std::int64_t num_seqs = args.table.num_seqs;
  CHUNKLLM_RETURN_IF_ERROR(take_strides(args));
  bool aligned = rows_are_aligned(args.rows, layer_stride(args.row_layer_stride)) &&
                 rows_are_aligned(args.rows, num_seqs == 1 ? 0 : args.row_seq_stride) &&
                 rows_are_aligned(args.open_sums, layer_stride(args.sum_layer_stride)) &&
                 rows_are_aligned(args.maybe_key_weight) &&
                 rows_are_aligned(args.maybe_query_weight) &&
                 rows_are_aligned(args.maybe_null_weight);
  if (!has_adapter) {
    aligned = aligned && rows_are_aligned(args.keys, layer_stride(args.key_layer_stride)) &&
              rows_are_aligned(args.maybe_open_keys, layer_stride(args.open_key_layer_stride));
    if (args.num_query_features > 0) {
      aligned =
          aligned &&
          rows_are_aligned(args.maybe_query_rows, layer_stride(args.query_row_layer_stride)) &&
          rows_are_aligned(args.maybe_query_rows, num_seqs == 1 ? 0 : args.query_row_seq_stride) &&
          rows_are_aligned(args.queries, layer_stride(args.query_layer_stride)) &&
          rows_are_aligned(args.queries, num_seqs == 1 ? 0 : args.query_seq_stride);
    }
  }
  if (!aligned) {
    return refuse(
        "rows, sums, weights and, for mean keys, keys, queries and open keys must begin at "
        "multiples of 16 bytes");
  }
  return {};
}

template <int kThreads, int kOutputs, typename Row, typename Key, typename Weight>
Status launch_project(const UpdateChunkKeysArgs<Row, Key, Weight>& args, cudaStream_t stream) {
  constexpr int kOutputsPerBlock = kThreads / kWarpSize * kOutputs;
  const int num_key_blocks = ceil_div(args.key_size, kOutputsPerBlock);
  const int num_query_blocks =
      args.num_query_features == 0 ? 0 : ceil_div(args.query_size(), kOutputsPerBlock);
  const dim3 grid(static_cast<unsigned>(num_key_blocks + num_query_blocks),
                  static_cast<unsigned>(args.num_layers));
  project_newest_kernel<kThreads, kOutputs><<<grid, kThreads, 0, stream>>>(args, num_key_blocks);
  return cuda::launch_status("project_newest_kernel");
}

}  // namespace chunk_keys

/// Takes the newest token of each sequence into its open chunk, in all layers given: adds its row
/// to the sum, makes the key of a chunk that it closes, and the query of a trigger.
///
/// Call it behind `launch_detect_boundaries`, whose table already holds a chunk that ends with the
/// token. The first row of a chunk replaces the sum, so sums need no clearing. A key is the sum
/// divided by the chunk's length, through the adapter's key weights where there are any:
/// k' = (Wk sum) / len, as `QkAdapter` and `MeanKeyScorer`. With an adapter the query is Wq x, then
/// n . x + n0 a head; else the given query row. Where `maybe_open_keys` is given (scorers whose
/// null class counts the open chunk), a trigger also writes the key of the chunk that is open
/// behind it. A sequence that is not in use (0 tokens) is not touched.
///
/// Numerics: sums in f32, token by token, a feature on its own: with f32 rows the same bits as on
/// the CPU. Projections in f32 multiply-adds, in an order that depends on row_size alone. Keys
/// round to nearest, ties to even. NaN and infinities pass through. Deterministic.
/// Cost: sums read and written, rows read; where a chunk closes its key weights, where triggered
/// the query weights, at memory speed. One launch for mean keys, two with an adapter, the second
/// of which ends at once where no sequence needs it.
///
/// Errors: kInvalidArgument for sizes, strides, missing or misaligned arrays; kDeviceError from the
///         launch.
/// Source: ChunkLLM, arXiv 2510.02361 (adapters beside Q and K); mean pooling is ours.
template <typename Row, typename Key, typename Weight>
Status launch_update_chunk_keys(UpdateChunkKeysArgs<Row, Key, Weight> args, cudaStream_t stream) {
  static_assert(kIsRowType<Row> && kIsRowType<Key> && kIsRowType<Weight>,
                "rows, keys and weights are float, __half or __nv_bfloat16");
  CHUNKLLM_RETURN_IF_ERROR(chunk_keys::prepare(args));
  if (args.num_layers == 0 || args.table.num_seqs == 0) return {};
  const auto num_layers = static_cast<unsigned>(args.num_layers);
  const auto num_seqs = static_cast<unsigned>(args.table.num_seqs);
  constexpr int kSumFeatures = chunk_keys::kSumThreads * kRowVector;
  const bool has_adapter = args.maybe_key_weight != nullptr;
  const int num_sum_blocks = ceil_div(args.row_size, kSumFeatures);
  const int num_copy_blocks = has_adapter ? 0 : ceil_div(args.num_query_features, kSumFeatures);
  const dim3 sum_grid(static_cast<unsigned>(num_sum_blocks + num_copy_blocks), num_seqs,
                      num_layers);
  chunk_keys::sum_newest_rows_kernel<false>
      <<<sum_grid, chunk_keys::kSumThreads, 0, stream>>>(args, num_sum_blocks);
  CHUNKLLM_RETURN_IF_ERROR(cuda::launch_status("sum_newest_rows_kernel"));
  if (!has_adapter) return {};

  constexpr int kOutputs = chunk_keys::kProjectThreads / kWarpSize * chunk_keys::kOutputsPerWarp;
  if (args.num_layers * (args.key_size + args.query_size()) >=
      chunk_keys::kFewProjectBlocks * kOutputs) {
    return chunk_keys::launch_project<chunk_keys::kProjectThreads, chunk_keys::kOutputsPerWarp>(
        args, stream);
  }
  return chunk_keys::launch_project<chunk_keys::kFewProjectThreads, 1>(args, stream);
}

/// Only what `launch_update_chunk_keys` does with sums: once a step, behind keys that
/// `launch_refresh_layer` has made of the sums so far and the newest rows.
///
/// Errors: as `launch_update_chunk_keys`
template <typename Row, typename Key, typename Weight>
Status launch_sum_newest_rows(UpdateChunkKeysArgs<Row, Key, Weight> args, cudaStream_t stream) {
  CHUNKLLM_RETURN_IF_ERROR(chunk_keys::prepare(args));
  if (args.num_layers == 0 || args.table.num_seqs == 0) return {};
  const int num_blocks = ceil_div(args.row_size, chunk_keys::kSumThreads * kRowVector);
  const dim3 grid(static_cast<unsigned>(num_blocks), static_cast<unsigned>(args.table.num_seqs),
                  static_cast<unsigned>(args.num_layers));
  chunk_keys::sum_newest_rows_kernel<true>
      <<<grid, chunk_keys::kSumThreads, 0, stream>>>(args, num_blocks);
  return cuda::launch_status("sum_newest_rows_kernel");
}

}  // namespace chunkllm::kernels
