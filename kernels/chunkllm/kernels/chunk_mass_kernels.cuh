// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "chunkllm/core/host_device.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels {

/// Operands of `launch_chunk_mass`: consecutive rows of one sequence in one layer.
///
/// \tparam T  __half or __nv_bfloat16
template <typename T>
struct ChunkMassArgs {
  /// [num_rows, num_heads, head_dim], rotated, as attention got them; at multiples of 4 bytes.
  const T* q = nullptr;
  std::int64_t q_row_stride = 0;   ///< even; 0: rows side by side
  std::int64_t q_head_stride = 0;  ///< even; 0: heads side by side
  /// Rotated at token positions; holds every token up to the last row's. Values are not read.
  cuda::DeviceKvView<const T> kv;
  /// [num_rows, num_heads] natural log of the softmax's denominator, over all causal keys.
  const float* lse = nullptr;
  /// The sequence's closed chunks; those that end behind the last row may be in it.
  cuda::DeviceChunkTable table;
  std::int32_t seq = 0;          ///< row of the chunk table and of the page table
  std::int32_t first_token = 0;  ///< position of row 0
  std::int32_t num_rows = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  float scale = 0.0F;            ///< of q . k
  std::int32_t num_columns = 0;  ///< chunks an output has room for

  /// Outputs, f32; null: not wanted. Every element is written.
  float* maybe_head_mass = nullptr;  ///< [num_heads, num_rows, num_columns]
  float* maybe_max = nullptr;        ///< [num_rows, num_columns] maximum over heads
  float* maybe_mean = nullptr;       ///< [num_rows, num_columns] mean over heads
  /// [num_pooled] strictly ascending positions, the ends of chunks as a rule; may be filled up with
  /// INT32_MAX. Row j of a pooled output is of the rows behind position j of the list, up to
  /// position j + 1 and with it; the last has no end.
  const std::int32_t* maybe_pooled_tokens = nullptr;
  std::int32_t num_pooled = 0;
  float* maybe_pooled_heads = nullptr;  ///< [num_pooled, num_heads, num_columns]
  float* maybe_pooled_max = nullptr;    ///< [num_pooled, num_columns]
  float* maybe_pooled_mean = nullptr;   ///< [num_pooled, num_columns]

  void* workspace = nullptr;  ///< `chunk_mass_workspace_bytes`, at a multiple of 4; pooled only
  std::size_t workspace_bytes = 0;

  CHUNKLLM_HD bool wants_pooled() const {
    return num_pooled > 0 && (maybe_pooled_heads != nullptr || maybe_pooled_max != nullptr ||
                              maybe_pooled_mean != nullptr);
  }
};

namespace detail {

inline constexpr int kMassWarps = 4;
inline constexpr int kMassThreads = kMassWarps * kWarpSize;
/// Rows a block: 16, the M of the matrix instruction, a warp.
inline constexpr int kMassRows = kMassWarps * 16;
/// Keys a step; with two steps in shared memory three blocks fit on a multiprocessor at head_dim
/// 128. Steps begin at multiples of it, so that sums do not depend on how chunks are dealt out.
inline constexpr int kMassKeys = 64;
/// Chunks a block: one a thread where sums are handed out, and some 50 steps to hide that behind.
inline constexpr int kMassChunks = kMassThreads;
/// Where the sum of a row and chunk lies. Rows are turned against each other, because eight lanes
/// write eight rows of one column at once.
__device__ constexpr int mass_sum_index(int row, int chunk) {
  return row * kMassChunks + (chunk + row * 4) % kMassChunks;
}
/// Of what is no chunk: larger than any position.
inline constexpr std::int32_t kMassNoEnd = std::numeric_limits<std::int32_t>::max();
/// Rows whose joined values are read together, so that their latencies overlap.
inline constexpr int kMassBatch = 8;
/// Row of keys, padded by 16 bytes: eight rows of a matrix lie in different banks.
template <int kHeadDim>
inline constexpr int kMassKeyStride = kHeadDim + 8;

template <int kHeadDim>
constexpr std::size_t chunk_mass_shared_bytes() {
  return 2 * std::size_t{kMassKeys} * kMassKeyStride<kHeadDim> * sizeof(std::uint16_t) +
         std::size_t{kMassRows} * kMassChunks * sizeof(float);
}

/// Rows of partial sums a head has in the workspace: each tile of rows holds at most one group of
/// pooled rows more than end in it, so group j of tile r is row j + r.
inline std::int64_t num_mass_partials(std::int32_t num_rows, std::int32_t num_pooled) {
  return std::int64_t{num_pooled} + ceil_div(num_rows, kMassRows);
}

/// Queries of one head in the registers of a warp: rows lane / 4 and lane / 4 + 8 of its 16.
template <typename T, int kHeadDim>
struct MassQueries {
  std::uint32_t fragments[kHeadDim / 16][4];
  float lse[2];  // times log2(e)

  __device__ void load(const ChunkMassArgs<T>& args, std::int32_t first_row, std::int32_t head) {
    constexpr float kLog2E = 1.4426950408889634F;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t row = first_row + lane / 4 + half * 8;
      const bool is_row = row < args.num_rows;
      const T* q = args.q + row * args.q_row_stride + head * args.q_head_stride + lane % 4 * 2;
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; ++k) {
        fragments[k][half] = is_row ? *reinterpret_cast<const std::uint32_t*>(q + k * 16) : 0;
        fragments[k][half + 2] =
            is_row ? *reinterpret_cast<const std::uint32_t*>(q + k * 16 + 8) : 0;
      }
      const std::int64_t at = static_cast<std::int64_t>(row) * args.num_heads + head;
      lse[half] = is_row ? args.lse[at] * kLog2E : 0.0F;
    }
  }
};

/// Brings the keys of tokens [first, first + kMassKeys) to shared memory; zeros outside
/// [begin, end).
template <typename T, int kHeadDim>
__device__ inline void fetch_mass_keys(const ChunkMassArgs<T>& args, std::int32_t kv_head,
                                       std::int32_t first, std::int32_t begin, std::int32_t end,
                                       T* shared) {
  constexpr int kVectors = kHeadDim / 8;  // of 16 bytes a key
  for (int i = static_cast<int>(threadIdx.x); i < kMassKeys * kVectors; i += kMassThreads) {
    const int key = i / kVectors;
    const int d = i % kVectors * 8;
    const std::int32_t token = first + key;
    const bool valid = token >= begin && token < end;
    // No address is made of a token that has no page.
    const T* source = args.kv.keys;
    if (valid) {
      source += args.kv.token_offset(args.seq, token) + kv_head * args.kv.head_stride + d;
    }
    copy_async_16(shared_address(shared + key * kMassKeyStride<kHeadDim> + d), source, valid);
  }
  commit_async();
}

/// Logits of the warp's 16 rows and a step's keys: sums[j] is of keys [8 j, 8 j + 8).
template <typename T, int kHeadDim>
__device__ inline void mass_logits(const MassQueries<T, kHeadDim>& queries, const T* keys,
                                   float (&sums)[kMassKeys / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  // Matrices 0 and 1 are d [0, 8) and [8, 16) of keys [0, 8), 2 and 3 those of keys [8, 16).
  const int row = lane / 16 * 8 + lane % 8;
  const int column = lane / 8 % 2 * 8;
#pragma unroll
  for (int j = 0; j < kMassKeys / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] = 0.0F;
  }
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int j = 0; j < kMassKeys / 8; j += 2) {
      std::uint32_t b[4];
      load_matrices(
          b, shared_address(keys + (j * 8 + row) * kMassKeyStride<kHeadDim> + k * 16 + column));
      Element<T>::multiply_add(sums[j], queries.fragments[k], b[0], b[1]);
      Element<T>::multiply_add(sums[j + 1], queries.fragments[k], b[2], b[3]);
    }
  }
}

/// The running sum of the chunk that the keys have reached, of two rows a lane. Each of the four
/// lanes of a row holds the keys it has seen.
struct MassRun {
  float sums[2];
  std::int32_t chunk;  // within the block's
  std::int32_t end;    // its last key's position plus one; kMassNoEnd behind the last chunk

  __device__ void start(const std::int32_t* ends, std::int32_t num_chunks) {
    sums[0] = sums[1] = 0.0F;
    chunk = 0;
    end = num_chunks > 0 ? ends[0] : kMassNoEnd;
  }

  /// Adds the weights `p` (rows 0, 0, 1, 1) of keys `key`, `key + 1`; `group_end` is the end of the
  /// eight keys that the four lanes share, and every lane of the warp is at the same eight.
  __device__ void add(float (&p)[4], std::int32_t key, std::int32_t group_end,
                      const std::int32_t* ends, std::int32_t num_chunks, int first_row,
                      float* all_sums) {
    while (end <= group_end) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (key + i < end) {
          sums[0] += p[i];
          sums[1] += p[i + 2];
          p[i] = p[i + 2] = 0.0F;
        }
      }
      const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = sums[half];
        sum += __shfl_xor_sync(kFullWarp, sum, 1);
        sum += __shfl_xor_sync(kFullWarp, sum, 2);
        if (lane % 4 == 0) all_sums[mass_sum_index(first_row + lane / 4 + half * 8, chunk)] = sum;
        sums[half] = 0.0F;
      }
      ++chunk;
      end = chunk < num_chunks ? ends[chunk] : kMassNoEnd;
    }
    sums[0] += p[0] + p[1];
    sums[1] += p[2] + p[3];
  }
};

/// Hands out one head's sums of the block's rows and chunks: a thread is a chunk.
///
/// \param end      of the thread's chunk; kMassNoEnd for a column without one
/// \param groups   [kMassRows] the pooled row that each row belongs to; -1: none
template <typename T>
__device__ inline void write_head_mass(const ChunkMassArgs<T>& args, std::int32_t head,
                                       std::int32_t first_row, std::int32_t num_rows,
                                       std::int32_t column, std::int32_t end, const float* sums,
                                       const std::int32_t* groups, float* partials) {
  const auto thread = static_cast<int>(threadIdx.x);
  const auto element = [&](std::int32_t i) {
    return static_cast<std::int64_t>(first_row + i) * args.num_columns + column;
  };
  float* head_mass = args.maybe_head_mass;
  if (head_mass != nullptr) {
    head_mass += static_cast<std::int64_t>(head) * args.num_rows * args.num_columns;
  }
  float pooled = 0.0F;
  for (std::int32_t first = 0; first < num_rows; first += kMassBatch) {
    // A thread meets its own elements again at the next head: the order of heads is fixed.
    float maxima[kMassBatch] = {};
    float totals[kMassBatch] = {};
#pragma unroll
    for (int k = 0; k < kMassBatch; ++k) {
      if (head == 0 || first + k >= num_rows) continue;
      if (args.maybe_max != nullptr) maxima[k] = args.maybe_max[element(first + k)];
      if (args.maybe_mean != nullptr) totals[k] = args.maybe_mean[element(first + k)];
    }
#pragma unroll
    for (int k = 0; k < kMassBatch; ++k) {
      const std::int32_t i = first + k;
      if (i >= num_rows) continue;
      const bool is_closed = end <= args.first_token + first_row + i + 1;
      const float mass = is_closed ? sums[mass_sum_index(i, thread)] : 0.0F;
      if (head_mass != nullptr) head_mass[element(i)] = mass;
      if (args.maybe_max != nullptr) args.maybe_max[element(i)] = max_keeping_nan(maxima[k], mass);
      if (args.maybe_mean != nullptr) {
        const float total = totals[k] + mass;
        args.maybe_mean[element(i)] =
            head + 1 == args.num_heads ? total / static_cast<float>(args.num_heads) : total;
      }
      if (partials == nullptr) continue;
      pooled += mass;
      const std::int32_t group = groups[i];
      if (i + 1 < num_rows && groups[i + 1] == group) continue;
      if (group >= 0) {
        const std::int64_t slot = group + first_row / kMassRows;
        partials[slot * args.num_columns + column] = pooled;
      }
      pooled = 0.0F;
    }
  }
}

/// Block (x, y, z) takes 64 rows, 128 chunks and its share of the heads one after the other: one
/// head, or all of them where they are joined row by row.
template <typename T, int kHeadDim>
__global__ __launch_bounds__(kMassThreads, kHeadDim <= 128 ? 3 : 2) void chunk_mass_kernel(
    const __grid_constant__ ChunkMassArgs<T> args) {
  extern __shared__ __align__(16) unsigned char chunk_mass_shared[];
  __shared__ std::int32_t ends[kMassChunks];
  __shared__ std::int32_t groups[kMassRows];
  T* const keys = reinterpret_cast<T*>(chunk_mass_shared);
  constexpr int kStepSize = kMassKeys * kMassKeyStride<kHeadDim>;
  float* const sums = reinterpret_cast<float*>(keys + 2 * kStepSize);

  const bool is_pooling = args.wants_pooled();
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const auto first_row = static_cast<std::int32_t>(blockIdx.x) * kMassRows;
  const std::int32_t num_rows = min(kMassRows, args.num_rows - first_row);
  const auto first_chunk = static_cast<std::int32_t>(blockIdx.y) * kMassChunks;
  const std::int32_t last_position = args.first_token + first_row + num_rows - 1;
  const std::int32_t* const table = args.table.ends_of(args.seq);
  // Chunks of this block that at least its last row sees closed.
  const std::int32_t end_chunk =
      min(chunks_before(table, args.table.num_chunks[args.seq], last_position + 1),
          first_chunk + kMassChunks);
  const std::int32_t num_chunks = max(end_chunk - first_chunk, 0);
  if (thread < num_chunks) ends[thread] = table[first_chunk + thread];
  if (is_pooling && thread < num_rows) {
    // chunks_before counts the tokens at or before a position; those before are wanted.
    groups[thread] = chunks_before(args.maybe_pooled_tokens, args.num_pooled,
                                   args.first_token + first_row + thread - 1) -
                     1;
  }
  __syncthreads();

  const std::int32_t num_heads = args.num_heads / static_cast<std::int32_t>(gridDim.z);
  const std::int32_t first_head = static_cast<std::int32_t>(blockIdx.z) * num_heads;
  const std::int32_t end_head = first_head + num_heads;
  const std::int32_t column = first_chunk + thread;
  const std::int32_t end = thread < num_chunks ? ends[thread] : kMassNoEnd;
  const std::int64_t head_partials =
      (std::int64_t{args.num_pooled} + ceil_div(args.num_rows, kMassRows)) * args.num_columns;
  const auto write_head = [&](std::int32_t head) {
    if (column >= args.num_columns) return;
    float* const partials =
        is_pooling ? static_cast<float*>(args.workspace) + head * head_partials : nullptr;
    write_head_mass(args, head, first_row, num_rows, column, end, sums, groups, partials);
  };
  if (num_chunks == 0) {  // the same for the whole block
    for (std::int32_t head = first_head; head < end_head; ++head) write_head(head);
    return;
  }

  const std::int32_t begin_token = first_chunk == 0 ? 0 : table[first_chunk - 1];
  const std::int32_t end_token = ends[num_chunks - 1];
  const std::int32_t first_key = begin_token / kMassKeys * kMassKeys;
  const std::int32_t num_steps = ceil_div(end_token - first_key, kMassKeys);
  const std::int32_t group_size = args.num_heads / args.num_kv_heads;
  const auto fetch = [&](std::int32_t head, std::int32_t step, int buffer) {
    fetch_mass_keys<T, kHeadDim>(args, head / group_size, first_key + step * kMassKeys, begin_token,
                                 end_token, keys + buffer * kStepSize);
  };

  const int warp = thread / kWarpSize;
  const int lane = thread % kWarpSize;
  const float scale_log2 = args.scale * args.kv.key_scale * 1.4426950408889634F;
  MassQueries<T, kHeadDim> queries;
  MassRun run;
  int buffer = 0;
  fetch(first_head, /*step=*/0, buffer);
  for (std::int32_t head = first_head; head < end_head; ++head) {
    queries.load(args, first_row + warp * 16, head);
    run.start(ends, num_chunks);
    for (std::int32_t step = 0; step < num_steps; ++step) {
      // The step's keys are here, and nobody reads the other buffer or the sums handed out.
      wait_async<0>();
      __syncthreads();
      if (step + 1 < num_steps) {
        fetch(head, step + 1, buffer ^ 1);
      } else if (head + 1 < end_head) {
        fetch(head + 1, /*step=*/0, buffer ^ 1);
      }
      float p[kMassKeys / 8][4];
      mass_logits<T, kHeadDim>(queries, keys + buffer * kStepSize, p);
#pragma unroll
      for (int j = 0; j < kMassKeys / 8; ++j) {
        const std::int32_t group_begin = first_key + step * kMassKeys + j * 8;
        const std::int32_t key = group_begin + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          p[j][i] = exp2f(fmaf(p[j][i], scale_log2, -queries.lse[i / 2]));
          // Keys in front of the block's first chunk belong to no sum of this block. Those behind
          // its last need no mask: no chunk ends there.
          if (key + i % 2 < begin_token) p[j][i] = 0.0F;
        }
        run.add(p[j], key, group_begin + 8, ends, num_chunks, warp * 16, sums);
      }
      buffer ^= 1;
    }
    __syncthreads();  // a row's sums were written by its warp, and are read by all
    write_head(head);
  }
}

/// Averages the heads' sums of a pooled row and joins them: thread c of block (x, j) is chunk
/// 128 x + c.
template <typename T>
__global__ __launch_bounds__(kMassThreads) void pool_chunk_mass_kernel(
    const __grid_constant__ ChunkMassArgs<T> args) {
  const auto column = static_cast<std::int32_t>(blockIdx.x * kMassThreads + threadIdx.x);
  const auto group = static_cast<std::int32_t>(blockIdx.y);
  if (column >= args.num_columns) return;
  const std::int32_t token = args.maybe_pooled_tokens[group];
  const std::int64_t end_of_rows = std::int64_t{args.first_token} + args.num_rows;
  const std::int64_t next = group + 1 < args.num_pooled
                                ? std::int64_t{args.maybe_pooled_tokens[group + 1]} + 1
                                : end_of_rows;
  // In 64 bits: a list may be filled up with INT32_MAX.
  const auto row_of = [&](std::int64_t position) {
    return static_cast<std::int32_t>(
        max(min(position, end_of_rows) - args.first_token, std::int64_t{0}));
  };
  const std::int32_t row_begin = row_of(std::int64_t{token} + 1);
  const std::int32_t row_end = row_of(next);
  const bool is_closed =
      column < args.table.num_chunks[args.seq] && args.table.ends_of(args.seq)[column] - 1 <= token;
  const bool has_rows = is_closed && row_begin < row_end;
  const auto count = static_cast<float>(max(row_end - row_begin, 1));
  const std::int64_t num_partials =
      std::int64_t{args.num_pooled} + ceil_div(args.num_rows, kMassRows);
  const auto* head_partials = static_cast<const float*>(args.workspace) + column;
  float maximum = 0.0F;
  float total = 0.0F;
  for (std::int32_t head = 0; head < args.num_heads; ++head) {
    float sum = 0.0F;
    for (std::int32_t tile = row_begin / kMassRows; has_rows && tile <= (row_end - 1) / kMassRows;
         ++tile) {
      sum += head_partials[(head * num_partials + group + tile) * args.num_columns];
    }
    if (args.maybe_pooled_heads != nullptr) {
      const std::int64_t row = static_cast<std::int64_t>(group) * args.num_heads + head;
      args.maybe_pooled_heads[row * args.num_columns + column] = sum / count;
    }
    maximum = max_keeping_nan(maximum, sum);
    total += sum;
  }
  maximum /= count;
  total /= count * static_cast<float>(args.num_heads);
  const std::int64_t at = static_cast<std::int64_t>(group) * args.num_columns + column;
  if (args.maybe_pooled_max != nullptr) args.maybe_pooled_max[at] = maximum;
  if (args.maybe_pooled_mean != nullptr) args.maybe_pooled_mean[at] = total;
}

}  // namespace detail
}  // namespace chunkllm::kernels
