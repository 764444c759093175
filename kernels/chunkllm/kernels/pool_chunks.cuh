// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/row_strides.cuh"
#include "chunkllm/kernels/row_vectors.cuh"

namespace chunkllm::kernels {

/// A block of consecutive tokens of one sequence in one layer, as prefill reads it.
///
/// \tparam Row  float, __half or __nv_bfloat16
template <typename Row>
struct TokenBlock {
  const Row* rows = nullptr;    ///< [num_rows, row_size] QK Adapter: normed inputs; mean key: keys
  std::int64_t row_stride = 0;  ///< 0: rows side by side
  std::int32_t num_rows = 0;
  std::int32_t row_size = 0;     ///< a multiple of 8
  std::int32_t first_token = 0;  ///< position of row 0
  std::int32_t seq = 0;          ///< row of the chunk table
  cuda::DeviceChunkTable table;  ///< with the boundaries of the block
  KeyPooling pooling = KeyPooling::kMean;
};

/// What `launch_pool_chunks` reads and writes.
///
/// \tparam Rounded  of the rounded rows: float, __half or __nv_bfloat16
template <typename Row, typename Rounded = Row>
struct PoolChunksArgs {
  TokenBlock<Row> block;
  std::int32_t first_chunk = 0;     ///< chunks that were closed before the block
  std::int32_t num_new_chunks = 0;  ///< chunks that end within it
  float* open_sum = nullptr;  ///< [row_size] in: of the chunk that is open in front of the block,
                              ///< not read where none is; out: behind it, left where none is
  float* maybe_pooled = nullptr;     ///< [num_new_chunks, row_size]
  Rounded* maybe_rounded = nullptr;  ///< [num_new_chunks, row_size] the same, rounded
};

/// What `launch_open_keys_at_triggers` reads and writes.
template <typename Row, typename Rounded = Row>
struct OpenKeysArgs {
  TokenBlock<Row> block;
  const float* open_sum = nullptr;         ///< [row_size] as it stands in front of the block
  const std::int32_t* triggers = nullptr;  ///< [num_triggers] positions in the block, or < 0
  std::int32_t num_triggers = 0;
  float* maybe_pooled = nullptr;     ///< [num_triggers, row_size]
  Rounded* maybe_rounded = nullptr;  ///< [num_triggers, row_size] the same, rounded
};

/// What `launch_gather_rows` reads and writes.
///
/// \tparam Out  `Row`, or float
template <typename Row, typename Out = float>
struct GatherRowsArgs {
  const Row* rows = nullptr;    ///< [num_rows, row_size]
  std::int64_t row_stride = 0;  ///< 0: rows side by side
  std::int32_t num_rows = 0;
  std::int32_t row_size = 0;              ///< a multiple of 8
  const std::int32_t* indices = nullptr;  ///< [num_indices]
  std::int32_t num_indices = 0;
  std::int32_t index_base = 0;  ///< index of row 0: `indices` may be token positions
  Out* out = nullptr;           ///< [num_indices, row_size]
};

namespace pooling {

/// Threads of a block; each takes eight features, so four blocks take a row of 4096.
inline constexpr int kThreads = 128;
inline constexpr int kFeaturesPerBlock = kThreads * kRowVector;
/// Rows whose loads are on their way before the first is added: 128 bytes a thread of 16 bit rows.
inline constexpr int kRowsAhead = 8;

/// Adds rows [begin, end) of the block to `sum`, in order. `at` is the first row's address.
template <typename Row>
__device__ inline void add_rows(const Row* at, std::int64_t stride, std::int32_t begin,
                                std::int32_t end, float (&sum)[kRowVector]) {
  for (std::int32_t first = begin; first < end; first += kRowsAhead) {
    RowVector<Row> words[kRowsAhead];
#pragma unroll
    for (int u = 0; u < kRowsAhead; ++u) {
      if (first + u < end) words[u].load(at + (first + u) * stride);
    }
#pragma unroll
    for (int u = 0; u < kRowsAhead; ++u) {
      if (first + u >= end) continue;
      float row[kRowVector];
      words[u].widen(row);
#pragma unroll
      for (int j = 0; j < kRowVector; ++j) sum[j] = __fadd_rn(sum[j], row[j]);
    }
  }
}

/// The sum (or end token) over tokens [begin, end) at eight features; end > begin.
///
/// \param open_sum  [row_size] what tokens in front of the block have gathered
template <typename Row>
__device__ inline void gather_span(const TokenBlock<Row>& block, const float* open_sum,
                                   std::int32_t begin, std::int32_t end, std::int32_t feature,
                                   float (&sum)[kRowVector]) {
  const Row* rows = block.rows + feature;
  // Tokens in front of the block have been summed; a table that names tokens behind it is wrong,
  // but must not make us read there.
  const std::int32_t first_row = max(begin - block.first_token, 0);
  const std::int32_t end_row = min(end - block.first_token, block.num_rows);
  const bool is_carried = begin < block.first_token;
  RowVector<float> carried;
  if (block.pooling == KeyPooling::kEndToken) {
    if (end_row > 0) {
      RowVector<Row> words;
      words.load(rows + (end_row - 1) * block.row_stride);
      words.widen(sum);
    } else {
      carried.load(open_sum + feature);
      carried.widen(sum);
    }
    return;
  }
  if (is_carried) {
    carried.load(open_sum + feature);
    carried.widen(sum);
    add_rows(rows, block.row_stride, first_row, end_row, sum);
    return;
  }
  if (first_row >= end_row) {
#pragma unroll
    for (int j = 0; j < kRowVector; ++j) sum[j] = 0.0F;
    return;
  }
  // The first row replaces: -0 stays -0.
  RowVector<Row> words;
  words.load(rows + first_row * block.row_stride);
  words.widen(sum);
  add_rows(rows, block.row_stride, first_row + 1, end_row, sum);
}

/// Divides a sum by the length of [begin, end) and writes it as row `row` of the outputs.
template <typename Rounded>
__device__ inline void write_mean(KeyPooling pooling, std::int32_t length,
                                  const float (&sum)[kRowVector], std::int64_t offset,
                                  float* maybe_pooled, Rounded* maybe_rounded) {
  const float scale =
      pooling == KeyPooling::kMean ? __fdiv_rn(1.0F, static_cast<float>(length)) : 1.0F;
  float mean[kRowVector];
#pragma unroll
  for (int j = 0; j < kRowVector; ++j) mean[j] = __fmul_rn(sum[j], scale);
  if (maybe_pooled != nullptr) RowVector<float>::store(maybe_pooled + offset, mean);
  if (maybe_rounded != nullptr) RowVector<Rounded>::store(maybe_rounded + offset, mean);
}

__device__ inline std::int32_t thread_feature() {
  return static_cast<std::int32_t>(blockIdx.y * kFeaturesPerBlock + threadIdx.x * kRowVector);
}

/// A block for each new chunk and `kFeaturesPerBlock` features. That of the first one also takes
/// the tokens behind the last: it alone reads the open sum, so it alone may write it.
template <typename Row, typename Rounded>
__global__ void __launch_bounds__(kThreads)
    pool_chunks_kernel(const __grid_constant__ PoolChunksArgs<Row, Rounded> args) {
  const std::int32_t feature = thread_feature();
  if (feature >= args.block.row_size) return;
  const auto index = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t* ends = args.block.table.ends_of(args.block.seq);
  float sum[kRowVector];
  if (index < args.num_new_chunks) {
    const std::int32_t chunk = args.first_chunk + index;
    const std::int32_t begin = chunk == 0 ? 0 : ends[chunk - 1];
    const std::int32_t end = ends[chunk];
    gather_span(args.block, args.open_sum, begin, end, feature, sum);
    write_mean(args.block.pooling, end - begin, sum,
               static_cast<std::int64_t>(index) * args.block.row_size + feature, args.maybe_pooled,
               args.maybe_rounded);
  }
  if (index > 0) return;
  const std::int32_t num_chunks = args.first_chunk + args.num_new_chunks;
  const std::int32_t begin = num_chunks == 0 ? 0 : ends[num_chunks - 1];
  const std::int32_t end = args.block.first_token + args.block.num_rows;
  if (begin >= end) return;
  gather_span(args.block, args.open_sum, begin, end, feature, sum);
  RowVector<float>::store(args.open_sum + feature, sum);
}

template <typename Row, typename Rounded>
__global__ void __launch_bounds__(kThreads)
    open_keys_at_triggers_kernel(const __grid_constant__ OpenKeysArgs<Row, Rounded> args) {
  const std::int32_t feature = thread_feature();
  if (feature >= args.block.row_size) return;
  const auto index = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t end = args.triggers[index] + 1;
  const bool is_in_block =
      end > args.block.first_token && end <= args.block.first_token + args.block.num_rows;
  float sum[kRowVector] = {};
  std::int32_t length = 0;
  if (is_in_block) {
    const std::int32_t* ends = args.block.table.ends_of(args.block.seq);
    const std::int32_t num_closed =
        chunks_before(ends, args.block.table.num_chunks[args.block.seq], end);
    const std::int32_t begin = num_closed == 0 ? 0 : ends[num_closed - 1];
    length = end - begin;
    if (length > 0) gather_span(args.block, args.open_sum, begin, end, feature, sum);
  }
  write_mean(args.block.pooling, max(length, 1), sum,
             static_cast<std::int64_t>(index) * args.block.row_size + feature, args.maybe_pooled,
             args.maybe_rounded);
}

template <typename Row, typename Out>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const __grid_constant__ GatherRowsArgs<Row, Out> args) {
  const std::int32_t feature = thread_feature();
  if (feature >= args.row_size) return;
  const std::int64_t row = static_cast<std::int64_t>(args.indices[blockIdx.x]) - args.index_base;
  float values[kRowVector] = {};
  if (row >= 0 && row < args.num_rows) {
    RowVector<Row> words;
    words.load(args.rows + row * args.row_stride + feature);
    words.widen(values);
  }
  RowVector<Out>::store(args.out + static_cast<std::int64_t>(blockIdx.x) * args.row_size + feature,
                        values);
}

inline dim3 grid_of(std::int32_t num_outputs, std::int32_t row_size) {
  return {static_cast<unsigned>(num_outputs),
          static_cast<unsigned>(ceil_div(row_size, kFeaturesPerBlock))};
}

/// Checks sizes and puts the dense stride in the place of 0.
inline Status prepare_rows(const std::string& name, std::int64_t& row_stride, std::int32_t num_rows,
                           std::int32_t row_size) {
  // blockIdx.y counts tiles of a row.
  constexpr std::int32_t kMostFeatures = 65535 * kFeaturesPerBlock;
  if (num_rows < 0 || row_size < kRowVector || row_size % kRowVector != 0 ||
      row_size > kMostFeatures) {
    return invalid_argument(name + ": " + std::to_string(num_rows) + " rows of " +
                            std::to_string(row_size) + ", expected a multiple of 8, 8 to " +
                            std::to_string(kMostFeatures));
  }
  return take_row_stride(name + ": row_stride", row_stride, num_rows, row_size);
}

inline Status check_alignment(const std::string& name, bool is_aligned) {
  if (is_aligned) return {};
  return invalid_argument(name + ": rows, sums and outputs must begin at multiples of 16 bytes");
}

template <typename Row>
Status prepare_block(const std::string& name, TokenBlock<Row>& block, bool outputs_are_aligned) {
  CHUNKLLM_RETURN_IF_ERROR(prepare_rows(name, block.row_stride, block.num_rows, block.row_size));
  CHUNKLLM_RETURN_IF_ERROR(check_alignment(
      name, outputs_are_aligned &&
                rows_are_aligned(block.rows, block.num_rows > 1 ? block.row_stride : 0)));
  if (block.seq < 0 || block.seq >= block.table.num_seqs || block.first_token < 0) {
    return invalid_argument(name + ": sequence " + std::to_string(block.seq) + " of " +
                            std::to_string(block.table.num_seqs) + " from token " +
                            std::to_string(block.first_token));
  }
  if (block.num_rows > 0 &&
      (block.rows == nullptr || block.table.ends == nullptr || block.table.num_chunks == nullptr)) {
    return invalid_argument(name + ": rows and the chunk table must not be null");
  }
  return {};
}

}  // namespace pooling

/// Writes the mean (or end token) of every chunk that ends within a block of tokens, and carries
/// the sum of the chunk that stays open.
///
/// The host knows how many chunks the block closes. `maybe_rounded` is the input of the key
/// product; for mean keys it is the place of chunk `first_chunk` in the key cache.
///
/// Numerics: sums in f32, token by token, a feature on its own, whatever the cut into blocks: with
/// f32 rows the same bits as on the CPU. The mean is the sum times the rounded 1 / len, as there.
/// NaN and infinities pass through. Deterministic.
/// Cost: the rows once, a thread for eight features of a chunk; one launch.
/// Errors: kInvalidArgument for sizes, null or misaligned arrays; kDeviceError from the launch.
template <typename Row, typename Rounded>
Status launch_pool_chunks(PoolChunksArgs<Row, Rounded> args, cudaStream_t stream) {
  static_assert(kIsRowType<Row> && kIsRowType<Rounded>, "rows are float, __half or __nv_bfloat16");
  const bool outputs_are_aligned = rows_are_aligned(args.open_sum) &&
                                   rows_are_aligned(args.maybe_pooled) &&
                                   rows_are_aligned(args.maybe_rounded);
  CHUNKLLM_RETURN_IF_ERROR(pooling::prepare_block("pool_chunks", args.block, outputs_are_aligned));
  if (args.first_chunk < 0 || args.num_new_chunks < 0 ||
      args.num_new_chunks > args.block.table.max_chunks - args.first_chunk ||
      args.num_new_chunks > args.block.num_rows) {
    return invalid_argument("pool_chunks: " + std::to_string(args.num_new_chunks) +
                            " chunks from chunk " + std::to_string(args.first_chunk) +
                            ", expected at most one a row and a table of " +
                            std::to_string(args.block.table.max_chunks));
  }
  if (args.block.num_rows == 0) return {};
  if (args.open_sum == nullptr) return invalid_argument("pool_chunks: open_sum must not be null");
  const dim3 grid =
      pooling::grid_of(args.num_new_chunks > 0 ? args.num_new_chunks : 1, args.block.row_size);
  pooling::pool_chunks_kernel<<<grid, pooling::kThreads, 0, stream>>>(args);
  return cuda::launch_status("pool_chunks_kernel");
}

/// Writes the mean (or end token) of the chunk that is open behind each trigger of a block: what
/// the null class of a scorer without null logits asks for. Zeros where no chunk is open, and for
/// a trigger < 0 or outside the block.
///
/// Call it in front of `launch_pool_chunks`: it needs the open sum as the block found it. Numerics
/// and errors as there; bits do not depend on the other triggers.
/// Cost: the rows of each trigger's open chunk; one launch.
template <typename Row, typename Rounded>
Status launch_open_keys_at_triggers(OpenKeysArgs<Row, Rounded> args, cudaStream_t stream) {
  static_assert(kIsRowType<Row> && kIsRowType<Rounded>, "rows are float, __half or __nv_bfloat16");
  const bool outputs_are_aligned = rows_are_aligned(args.open_sum) &&
                                   rows_are_aligned(args.maybe_pooled) &&
                                   rows_are_aligned(args.maybe_rounded);
  CHUNKLLM_RETURN_IF_ERROR(
      pooling::prepare_block("open_keys_at_triggers", args.block, outputs_are_aligned));
  if (args.num_triggers < 0) {
    return invalid_argument("open_keys_at_triggers: " + std::to_string(args.num_triggers) +
                            " triggers");
  }
  if (args.num_triggers == 0) return {};
  if (args.open_sum == nullptr || args.triggers == nullptr || args.block.table.ends == nullptr ||
      args.block.table.num_chunks == nullptr) {
    return invalid_argument(
        "open_keys_at_triggers: open_sum, triggers and the chunk table must not be null");
  }
  const dim3 grid = pooling::grid_of(args.num_triggers, args.block.row_size);
  pooling::open_keys_at_triggers_kernel<<<grid, pooling::kThreads, 0, stream>>>(args);
  return cuda::launch_status("open_keys_at_triggers_kernel");
}

/// Copies rows by index into one contiguous array, as they are or widened to f32: the rows of
/// triggers, on which queries are made. An index outside the rows gives zeros.
///
/// Cost: the rows read and written; one launch.
/// Errors: kInvalidArgument for sizes, null or misaligned arrays; kDeviceError from the launch.
template <typename Row, typename Out>
Status launch_gather_rows(GatherRowsArgs<Row, Out> args, cudaStream_t stream) {
  static_assert(kIsRowType<Row> && (std::is_same_v<Out, Row> || std::is_same_v<Out, float>),
                "rows are float, __half or __nv_bfloat16, and kept or widened to float");
  CHUNKLLM_RETURN_IF_ERROR(
      pooling::prepare_rows("gather_rows", args.row_stride, args.num_rows, args.row_size));
  CHUNKLLM_RETURN_IF_ERROR(pooling::check_alignment(
      "gather_rows", rows_are_aligned(args.out) &&
                         rows_are_aligned(args.rows, args.num_rows > 1 ? args.row_stride : 0)));
  if (args.num_indices < 0) {
    return invalid_argument("gather_rows: " + std::to_string(args.num_indices) + " indices");
  }
  if (args.num_indices == 0) return {};
  if (args.indices == nullptr || args.out == nullptr ||
      (args.rows == nullptr && args.num_rows > 0)) {
    return invalid_argument("gather_rows: rows, indices and out must not be null");
  }
  const dim3 grid = pooling::grid_of(args.num_indices, args.row_size);
  pooling::gather_rows_kernel<<<grid, pooling::kThreads, 0, stream>>>(args);
  return cuda::launch_status("gather_rows_kernel");
}

}  // namespace chunkllm::kernels
