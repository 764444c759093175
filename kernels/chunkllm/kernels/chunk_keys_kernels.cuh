// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/core/host_device.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/row_vectors.cuh"

/// Kernels of chunk_keys.cuh, and the steps of them that refresh_layer.cuh shares.
namespace chunkllm::kernels {

/// What `launch_update_chunk_keys` reads and writes: one new token in each sequence of a batch, in
/// one layer or in all of them.
///
/// Strides count elements; 0 stands for dense arrays. Layer strides are not read where `num_layers`
/// is 1. Sequences lie one behind the other where no stride is named.
///
/// \tparam Row     of the rows that feed the scorer: float, __half or __nv_bfloat16
/// \tparam Key     of the key cache, likewise
/// \tparam Weight  of the QK Adapter, likewise
template <typename Row, typename Key, typename Weight = Row>
struct UpdateChunkKeysArgs {
  std::int32_t num_layers = 0;
  std::int32_t row_size = 0;            ///< features that are summed, a multiple of 8
  std::int32_t key_size = 0;            ///< features of a chunk key; mean keys: row_size
  std::int32_t num_heads = 0;           ///< scoring heads; read with null weights only
  std::int32_t num_query_features = 0;  ///< heads times features a head; 0: no queries
  KeyPooling pooling = KeyPooling::kMean;

  cuda::DeviceChunkTable table;              ///< with the new tokens' boundaries
  const std::int32_t* num_tokens = nullptr;  ///< [num_seqs] with the new token; 0: not in use
  /// [num_seqs] >= 0: the sequence wants a query (and its open chunk's key). Null: none does.
  const std::int32_t* maybe_triggers = nullptr;

  /// [num_layers, num_seqs, row_size] QK Adapter: normed inputs; mean key: keys as cached.
  const Row* rows = nullptr;
  std::int64_t row_layer_stride = 0;
  std::int64_t row_seq_stride = 0;
  float* open_sums = nullptr;  ///< [num_layers, num_seqs, row_size] in and out
  std::int64_t sum_layer_stride = 0;
  Key* keys = nullptr;  ///< [num_layers, num_seqs, table.max_chunks, key_size]
  std::int64_t key_layer_stride = 0;

  /// Adapter. Null: mean keys, and queries are copied.
  const Weight* maybe_key_weight = nullptr;    ///< [num_layers, key_size, row_size]
  const Weight* maybe_query_weight = nullptr;  ///< [num_layers, num_query_features, row_size]
  const Weight* maybe_null_weight = nullptr;   ///< [num_layers, num_heads, row_size]
  const float* maybe_null_bias = nullptr;      ///< [num_layers, num_heads]

  /// [num_layers, num_seqs, num_query_features] the backbone's own queries; mean keys only.
  const Row* maybe_query_rows = nullptr;
  std::int64_t query_row_layer_stride = 0;
  std::int64_t query_row_seq_stride = 0;

  /// [num_layers, num_seqs, query_size()]; written where triggered, else left as it is.
  float* queries = nullptr;
  std::int64_t query_layer_stride = 0;
  /// `launch_score_chunks` takes multiples of 4 only, which query_size() with null logits need not
  /// be: leave a gap between queries then. The null logits follow a query's features.
  std::int64_t query_seq_stride = 0;
  /// [num_layers, num_seqs, key_size] key of the chunk that is still open at a trigger; left as it
  /// is where none is, or no trigger. Null: the scorer does not need it.
  float* maybe_open_keys = nullptr;
  std::int64_t open_key_layer_stride = 0;

  /// Features of a query, then one null logit a head where there are null weights.
  [[nodiscard]] CHUNKLLM_HD std::int32_t query_size() const {
    return num_query_features + (maybe_null_weight == nullptr ? 0 : num_heads);
  }
};

namespace chunk_keys {

/// Threads of the summing kernel. 256 of them take 2048 features: 32 layers x 16 sequences x 4096
/// features are 1024 blocks, which are all on the chip at once.
inline constexpr int kSumThreads = 256;

/// Projection: 8 warps, each two outputs at a time, so that an input read from shared memory serves
/// two weights. A lane has eight loads of 16 bytes on their way, an SM with two blocks 64 KB, three
/// times what latency times the bandwidth of HBM3 asks for. 32 layers of 128 + 128 outputs are 512
/// blocks, two full waves on 132 SMs.
inline constexpr int kProjectThreads = 256;
inline constexpr int kOutputsPerWarp = 2;
inline constexpr int kProjectBlocksPerSm = 2;
/// Where there are fewer blocks than that, as in one layer, they get fewer warps with an output
/// each.
inline constexpr int kFewProjectBlocks = 128;
inline constexpr int kFewProjectThreads = 128;
/// Vectors of eight features that a lane loads of its outputs before it multiplies.
template <typename Weight>
inline constexpr int kLoadsAhead = sizeof(Weight) == 2 ? 8 : 4;
/// Input features in shared memory at a time: 16 KB.
inline constexpr int kInputFeatures = 4096;

/// What the newest token of a sequence is to its chunk.
struct NewestToken {
  bool in_use;
  bool is_first;        // of its chunk
  std::int32_t closed;  // the chunk it closes, or -1
  float scale;          // on the sum, to make a key of the chunk so far
  bool triggers;
};

__device__ inline NewestToken newest_token(const cuda::DeviceChunkTable& table,
                                           const std::int32_t* num_tokens,
                                           const std::int32_t* maybe_triggers, KeyPooling pooling,
                                           std::int32_t seq) {
  NewestToken newest{false, false, -1, 1.0F, false};
  // Together, since each waits for memory.
  const std::int32_t count = num_tokens[seq];
  const std::int32_t num_chunks = table.num_chunks[seq];
  const std::int32_t trigger = maybe_triggers == nullptr ? -1 : maybe_triggers[seq];
  newest.in_use = count > 0;
  if (!newest.in_use) return newest;
  newest.triggers = trigger >= 0;
  const std::int32_t* ends = table.ends_of(seq);
  const std::int32_t last_end = num_chunks < 1 ? 0 : ends[num_chunks - 1];
  const std::int32_t end_before = num_chunks < 2 ? 0 : ends[num_chunks - 2];
  std::int32_t begin = last_end;
  if (last_end == count) {
    newest.closed = num_chunks - 1;
    begin = end_before;
  }
  newest.is_first = count - 1 == begin;
  // As the CPU path: a division, then a product.
  if (pooling == KeyPooling::kMean) {
    newest.scale = __fdiv_rn(1.0F, static_cast<float>(count - begin));
  }
  return newest;
}

/// The sum of the open chunk with the newest row, of the features in these vectors.
template <typename Row>
__device__ inline void add_row(const RowVector<Row>& row_words, const RowVector<float>& sum_words,
                               const NewestToken& newest, KeyPooling pooling,
                               float (&sum)[kRowVector]) {
  const bool replace = newest.is_first || pooling == KeyPooling::kEndToken;
  float row[kRowVector];
  row_words.widen(row);
  sum_words.widen(sum);
#pragma unroll
  for (int j = 0; j < kRowVector; ++j) sum[j] = replace ? row[j] : __fadd_rn(sum[j], row[j]);
}

/// Mean keys: makes the key of the chunk that closed, or of the open one at a trigger, of a sum.
template <typename Row, typename Key, typename Weight>
__device__ inline void store_mean_key(const UpdateChunkKeysArgs<Row, Key, Weight>& args,
                                      std::int64_t layer, std::int32_t seq, std::int32_t feature,
                                      const NewestToken& newest, float (&sum)[kRowVector]) {
  const bool makes_open_key =
      newest.closed < 0 && newest.triggers && args.maybe_open_keys != nullptr;
  if (newest.closed < 0 && !makes_open_key) return;
#pragma unroll
  for (int j = 0; j < kRowVector; ++j) sum[j] = __fmul_rn(sum[j], newest.scale);
  if (newest.closed >= 0) {
    const std::int64_t chunk =
        static_cast<std::int64_t>(seq) * args.table.max_chunks + newest.closed;
    RowVector<Key>::store(
        args.keys + layer * args.key_layer_stride + chunk * args.row_size + feature, sum);
  } else {
    RowVector<float>::store(args.maybe_open_keys + layer * args.open_key_layer_stride +
                                static_cast<std::int64_t>(seq) * args.row_size + feature,
                            sum);
  }
}

/// Mean keys: the backbone's query is the scorer's.
template <typename Row, typename Key, typename Weight>
__device__ inline void copy_query(const UpdateChunkKeysArgs<Row, Key, Weight>& args,
                                  std::int64_t layer, std::int32_t seq, std::int32_t feature) {
  RowVector<Row> words;
  words.load(args.maybe_query_rows + layer * args.query_row_layer_stride +
             seq * args.query_row_seq_stride + feature);
  float values[kRowVector];
  words.widen(values);
  RowVector<float>::store(
      args.queries + layer * args.query_layer_stride + seq * args.query_seq_stride + feature,
      values);
}

/// Adds the newest rows to the open sums; without an adapter it also writes mean keys and copies
/// queries. Blocks [0, num_sum_blocks) of x take features of sums, those behind them of queries.
///
/// \tparam kSumsOnly  keys and queries are left alone
template <bool kSumsOnly, typename Row, typename Key, typename Weight>
__global__ void __launch_bounds__(kSumThreads)
    sum_newest_rows_kernel(const __grid_constant__ UpdateChunkKeysArgs<Row, Key, Weight> args,
                           int num_sum_blocks) {
  const auto seq = static_cast<std::int32_t>(blockIdx.y);
  const std::int64_t layer = blockIdx.z;
  const auto block = static_cast<int>(blockIdx.x);

  if (block >= num_sum_blocks) {
    const std::int32_t feature =
        ((block - num_sum_blocks) * kSumThreads + static_cast<std::int32_t>(threadIdx.x)) *
        kRowVector;
    if (feature >= args.num_query_features) return;
    if (args.num_tokens[seq] <= 0 || args.maybe_triggers[seq] < 0) return;
    copy_query(args, layer, seq, feature);
    return;
  }

  const std::int32_t feature =
      (block * kSumThreads + static_cast<std::int32_t>(threadIdx.x)) * kRowVector;
  if (feature >= args.row_size) return;
  // Row and sum do not wait for the table.
  RowVector<Row> row_words;
  RowVector<float> sum_words;
  row_words.load(args.rows + layer * args.row_layer_stride + seq * args.row_seq_stride + feature);
  float* sums = args.open_sums + layer * args.sum_layer_stride +
                static_cast<std::int64_t>(seq) * args.row_size + feature;
  sum_words.load(sums);
  const NewestToken newest =
      newest_token(args.table, args.num_tokens, args.maybe_triggers, args.pooling, seq);
  if (!newest.in_use) return;
  float sum[kRowVector];
  add_row(row_words, sum_words, newest, args.pooling, sum);
  RowVector<float>::store(sums, sum);
  if (kSumsOnly || args.maybe_key_weight != nullptr) return;
  store_mean_key(args, layer, seq, feature, newest, sum);
}

/// Input features in shared memory: two planes of four features each, so that neighbouring lanes,
/// which take eight features each, read neighbouring 16 bytes.
struct InputTile {
  float4 planes[2][kInputFeatures / kRowVector];

  __device__ void set(std::int32_t i, const float (&v)[kRowVector]) {
    planes[0][i] = {v[0], v[1], v[2], v[3]};
    planes[1][i] = {v[4], v[5], v[6], v[7]};
  }
  /// By a whole block of kThreads threads; `count` is a multiple of 8.
  template <int kThreads, typename T>
  __device__ void load(const T* from, std::int32_t count) {
#pragma unroll(kInputFeatures / kRowVector / kThreads)  // all there is of a full tile
    for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < count / kRowVector;
         i += kThreads) {
      RowVector<T> words;
      words.load(from + i * kRowVector);
      float v[kRowVector];
      words.widen(v);
      set(i, v);
    }
  }
};

/// Adds to each sum what eight features give, in their order.
template <typename Weight>
__device__ inline void multiply_vector(const RowVector<Weight>& words, const InputTile& input,
                                       std::int32_t at, float& sum) {
  const float4 low = input.planes[0][at];
  const float4 high = input.planes[1][at];
  const float x[kRowVector] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  float w[kRowVector];
  words.widen(w);
#pragma unroll
  for (int j = 0; j < kRowVector; ++j) sum = fmaf(w[j], x[j], sum);
}

/// Adds to each sum what `count` features of its weight row and of the input give; the lanes' sums
/// are not joined. A lane takes its vectors in ascending order, so that a sum is the same however
/// many outputs a warp has.
template <int kOutputs, typename Weight>
__device__ inline void multiply_tile(const Weight* const (&weights)[kOutputs],
                                     const InputTile& input, std::int32_t count,
                                     float (&sums)[kOutputs]) {
  constexpr int kAhead = kLoadsAhead<Weight> / kOutputs;
  const std::int32_t num_vectors = count / kRowVector;
  const auto lane = static_cast<std::int32_t>(threadIdx.x) % kWarpSize;
#pragma unroll 1  // more registers would only spill
  for (std::int32_t first = lane; first < num_vectors; first += kAhead * kWarpSize) {
    RowVector<Weight> words[kAhead][kOutputs];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const std::int32_t at = first + u * kWarpSize;
      if (at >= num_vectors) continue;
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) words[u][o].load_once(weights[o] + at * kRowVector);
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const std::int32_t at = first + u * kWarpSize;
      if (at >= num_vectors) continue;
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) multiply_vector(words[u][o], input, at, sums[o]);
    }
  }
}

/// Weights of a projection's output: keys, or queries and behind them null logits.
template <typename Row, typename Key, typename Weight>
__device__ inline const Weight* output_weights(const UpdateChunkKeysArgs<Row, Key, Weight>& args,
                                               std::int64_t layer, bool makes_keys,
                                               std::int32_t output) {
  const std::int64_t row_size = args.row_size;
  if (makes_keys) return args.maybe_key_weight + (layer * args.key_size + output) * row_size;
  if (output < args.num_query_features) {
    return args.maybe_query_weight + (layer * args.num_query_features + output) * row_size;
  }
  return args.maybe_null_weight +
         (layer * args.num_heads + output - args.num_query_features) * row_size;
}

/// Puts an output, the sum over all features, where it belongs; by one lane.
template <typename Row, typename Key, typename Weight>
__device__ inline void store_output(const UpdateChunkKeysArgs<Row, Key, Weight>& args,
                                    std::int64_t layer, std::int64_t seq, bool makes_keys,
                                    std::int32_t output, const NewestToken& newest, float value) {
  if (makes_keys) {
    value *= newest.scale;
    if (newest.closed >= 0) {
      const std::int64_t chunk = seq * args.table.max_chunks + newest.closed;
      args.keys[layer * args.key_layer_stride + chunk * args.key_size + output] =
          row_from_float<Key>(value);
    } else {
      args.maybe_open_keys[layer * args.open_key_layer_stride + seq * args.key_size + output] =
          value;
    }
    return;
  }
  if (output >= args.num_query_features && args.maybe_null_bias != nullptr) {
    value += args.maybe_null_bias[layer * args.num_heads + output - args.num_query_features];
  }
  args.queries[layer * args.query_layer_stride + seq * args.query_seq_stride + output] = value;
}

/// Whether a sequence needs a key made, or a query.
__device__ inline bool needs_output(const NewestToken& newest, bool makes_keys,
                                    bool has_open_keys) {
  if (!newest.in_use) return false;
  return makes_keys ? newest.closed >= 0 || (newest.triggers && has_open_keys) : newest.triggers;
}

/// Multiplies the adapter's weights with the sums of sequences that need a key and with the newest
/// rows of those that need a query.
///
/// A block has a few outputs of one layer and takes all sequences that need them, one after the
/// other: their weights then come from the L2 cache. Where none does it ends at once. Blocks
/// [0, num_key_blocks) of x make keys, those behind them queries and null logits.
///
/// \tparam kThreads, kOutputs  of a block, and outputs of a warp; part of no result
template <int kThreads, int kOutputs, typename Row, typename Key, typename Weight>
__global__ void __launch_bounds__(kThreads, kProjectBlocksPerSm* kProjectThreads / kThreads)
    project_newest_kernel(const __grid_constant__ UpdateChunkKeysArgs<Row, Key, Weight> args,
                          int num_key_blocks) {
  constexpr int kOutputsPerBlock = kThreads / kWarpSize * kOutputs;
  __shared__ InputTile input;
  __shared__ NewestToken newest[kThreads];
  const std::int64_t layer = blockIdx.y;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const bool makes_keys = static_cast<int>(blockIdx.x) < num_key_blocks;
  const std::int32_t block =
      static_cast<std::int32_t>(blockIdx.x) - (makes_keys ? 0 : num_key_blocks);
  const std::int32_t num_outputs =
      makes_keys
          ? args.key_size
          : args.num_query_features + (args.maybe_null_weight == nullptr ? 0 : args.num_heads);

  const std::int64_t row_size = args.row_size;
  std::int32_t outputs[kOutputs];
  const Weight* weights[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    outputs[o] = block * kOutputsPerBlock + thread / kWarpSize * kOutputs + o;
    // Warps behind the last output read its weights once more and write nothing.
    weights[o] = output_weights(args, layer, makes_keys, min(outputs[o], num_outputs - 1));
  }

  for (std::int32_t first_seq = 0; first_seq < args.table.num_seqs; first_seq += kThreads) {
    const std::int32_t num_seqs = min(kThreads, args.table.num_seqs - first_seq);
    bool is_needed = false;
    if (thread < num_seqs) {
      const NewestToken token = newest_token(args.table, args.num_tokens, args.maybe_triggers,
                                             args.pooling, first_seq + thread);
      is_needed = needs_output(token, makes_keys, args.maybe_open_keys != nullptr);
      newest[thread] = token;
      newest[thread].in_use = is_needed;
    }
    if (__syncthreads_or(is_needed ? 1 : 0) == 0) continue;

    for (std::int32_t s = 0; s < num_seqs; ++s) {
      if (!newest[s].in_use) continue;  // the same for the whole block
      const std::int64_t seq = first_seq + s;
      float sums[kOutputs] = {};
      for (std::int32_t from = 0; from < args.row_size; from += kInputFeatures) {
        const std::int32_t count = min(kInputFeatures, args.row_size - from);
        __syncthreads();  // the last tile has been read
        if (makes_keys) {
          input.load<kThreads>(
              args.open_sums + layer * args.sum_layer_stride + seq * row_size + from, count);
        } else {
          input.load<kThreads>(
              args.rows + layer * args.row_layer_stride + seq * args.row_seq_stride + from, count);
        }
        __syncthreads();
        const Weight* tile_weights[kOutputs];
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) tile_weights[o] = weights[o] + from;
        multiply_tile(tile_weights, input, count, sums);
      }
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const float value = warp_sum(sums[o]);
        if (thread % kWarpSize == 0 && outputs[o] < num_outputs) {
          store_output(args, layer, seq, makes_keys, outputs[o], newest[s], value);
        }
      }
    }
    __syncthreads();  // `newest` has been read
  }
}

}  // namespace chunk_keys

}  // namespace chunkllm::kernels
