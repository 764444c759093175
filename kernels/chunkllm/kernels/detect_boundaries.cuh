// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/row_strides.cuh"
#include "chunkllm/kernels/row_vectors.cuh"

namespace chunkllm::kernels {

/// What `launch_detect_boundaries` reads and writes: the newest rows of a ragged batch.
///
/// \tparam T  type of `hidden`: float, __half or __nv_bfloat16; any where verdicts are given
template <typename T>
struct BoundaryArgs {
  // The Chunk Adapter and its rows; not read where verdicts are given.
  const T* hidden = nullptr;    ///< [num_rows, hidden_size] the first layer's output
  std::int64_t row_stride = 0;  ///< of `hidden`; 0: rows side by side
  std::int32_t hidden_size = 0;
  const float* weight = nullptr;  ///< [hidden_size]
  float bias = 0.0F;
  float threshold = 0.5F;
  /// [num_rows] verdicts found elsewhere (sentence rules), not 0: the token wants to end a chunk.
  const std::uint8_t* maybe_wanted = nullptr;

  std::int32_t num_rows = 0;
  /// [num_seqs + 1] rows of sequence s are [indptr[s], indptr[s + 1]); null: row s is of sequence
  /// s, the case of decode. `indptr[num_seqs]` is at most `num_rows`.
  const std::int32_t* maybe_row_indptr = nullptr;
  /// [num_seqs] tokens of each sequence, its rows included; 0: the sequence is not in use.
  const std::int32_t* num_tokens = nullptr;

  ChunkGuards guards;
  RefreshPolicy refresh;
  cuda::DeviceChunkTable table;  ///< appended to; `num_seqs` is the batch's

  std::int32_t* triggers = nullptr;  ///< [num_seqs] position of the last row that triggers, or -1
  std::uint8_t* maybe_boundary_flags = nullptr;  ///< [num_rows] 0 none, 1 boundary, 2 forced
  float* maybe_probabilities = nullptr;          ///< [num_rows] of the Chunk Adapter
  /// [num_seqs, 3] boundaries (forced ones counted), forced boundaries, refreshes: added to.
  std::int32_t* maybe_counters = nullptr;
  /// [num_seqs] set to 1 where a chunk would have closed but the table was full; never cleared.
  std::int32_t* maybe_overflow = nullptr;

  void* workspace = nullptr;  ///< `detect_boundaries_workspace_bytes`, none in decode
  std::size_t workspace_bytes = 0;
};

/// Bytes of workspace that these args need: one a row where the adapter runs over ragged rows.
template <typename T>
std::size_t detect_boundaries_workspace_bytes(const BoundaryArgs<T>& args) {
  const bool needs_verdicts = args.maybe_wanted == nullptr && args.maybe_row_indptr != nullptr;
  return needs_verdicts ? static_cast<std::size_t>(args.num_rows) : 0;
}

namespace boundaries {

/// Threads that share a row. The same in decode and prefill, so that a probability does not depend
/// on which of the two found it; 16 blocks of them fill an SM with 128 KB of loads at 4096
/// features.
inline constexpr int kRowThreads = 128;
/// Threads that turn verdicts into bits; one of them walks the bits.
inline constexpr int kWalkThreads = 512;
/// Rows whose verdicts stand in shared memory at a time, as bits: 4 KB.
inline constexpr std::int32_t kWalkRows = 32768;
/// `ChunkGuards::max_len` stays below this, so that positions plus lengths fit 32 bits.
inline constexpr std::int64_t kMaxGuard = std::int64_t{1} << 24;

/// What deciding needs, without the rows.
struct Decider {
  const std::int32_t* maybe_row_indptr;
  const std::int32_t* num_tokens;
  std::int32_t min_len;
  std::int32_t max_len;
  RefreshPolicy::Kind refresh;
  std::int32_t stride;
  cuda::DeviceChunkTable table;
  std::int32_t* triggers;
  std::uint8_t* maybe_boundary_flags;
  std::int32_t* maybe_counters;
  std::int32_t* maybe_overflow;

  __device__ void count(std::int32_t seq, std::int32_t boundaries, std::int32_t forced,
                        std::int32_t refreshes) const {
    if (maybe_counters == nullptr) return;
    std::int32_t* counters = maybe_counters + static_cast<std::int64_t>(seq) * 3;
    counters[0] += boundaries;
    counters[1] += forced;
    counters[2] += refreshes;
  }
  __device__ void note_overflow(std::int32_t seq) const {
    if (maybe_overflow != nullptr) maybe_overflow[seq] = 1;
  }
};

/// The Chunk Adapter's rows.
template <typename T>
struct Adapter {
  const T* hidden;
  std::int64_t row_stride;
  std::int32_t hidden_size;
  const float* weight;
  float bias;
  float threshold;
  float* maybe_probabilities;
};

/// sigmoid(w . h + b) of one row, by a block of `kRowThreads`; at most once a launch.
template <typename T>
__device__ inline float row_probability(const Adapter<T>& adapter, std::int64_t row) {
  __shared__ float partial[kRowThreads / kWarpSize];
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const T* hidden = adapter.hidden + row * adapter.row_stride;
  const std::int32_t num_vectors = adapter.hidden_size / kRowVector;
  float sum = 0.0F;
#pragma unroll 4
  for (std::int32_t i = thread; i < num_vectors; i += kRowThreads) {
    RowVector<T> hidden_words;
    RowVector<float> weight_words;
    hidden_words.load(hidden + i * kRowVector);
    weight_words.load(adapter.weight + i * kRowVector);
    float h[kRowVector];
    float w[kRowVector];
    hidden_words.widen(h);
    weight_words.widen(w);
#pragma unroll
    for (int j = 0; j < kRowVector; ++j) sum = fmaf(w[j], h[j], sum);
  }
  const std::int32_t rest = num_vectors * kRowVector + thread;
  if (rest < adapter.hidden_size) {
    sum = fmaf(adapter.weight[rest], row_to_float(hidden[rest]), sum);
  }
  sum = warp_sum(sum);
  if (thread % kWarpSize == 0) partial[thread / kWarpSize] = sum;
  __syncthreads();
  float logit = partial[0];
#pragma unroll
  for (int w = 1; w < kRowThreads / kWarpSize; ++w) logit += partial[w];
  return 1.0F / (1.0F + expf(-(logit + adapter.bias)));
}

/// One row a sequence: a block each finds the verdict and decides.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    decide_newest_kernel(Adapter<T> adapter, const std::uint8_t* maybe_wanted, Decider decider) {
  const auto seq = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t num_tokens = decider.num_tokens[seq];
  if (num_tokens <= 0) {
    if (threadIdx.x == 0) {
      decider.triggers[seq] = -1;
      if (decider.maybe_boundary_flags != nullptr) decider.maybe_boundary_flags[seq] = 0;
    }
    return;
  }
  bool wanted = false;
  if (maybe_wanted != nullptr) {
    wanted = maybe_wanted[seq] != 0;
  } else {
    const float probability = row_probability(adapter, seq);
    wanted = probability > adapter.threshold;
    if (threadIdx.x == 0 && adapter.maybe_probabilities != nullptr) {
      adapter.maybe_probabilities[seq] = probability;
    }
  }
  if (threadIdx.x != 0) return;

  std::int32_t* ends = decider.table.ends_of(seq);
  const std::int32_t num_chunks = decider.table.num_chunks[seq];
  const std::int32_t open_len = num_tokens - (num_chunks == 0 ? 0 : ends[num_chunks - 1]);
  bool closes = wanted && open_len >= decider.min_len;
  const bool forced = !closes && open_len >= decider.max_len;
  closes = closes || forced;
  if (closes && num_chunks >= decider.table.max_chunks) {
    decider.note_overflow(seq);
    closes = false;
  }
  if (closes) {
    ends[num_chunks] = num_tokens;
    decider.table.num_chunks[seq] = num_chunks + 1;
  }
  const bool triggers =
      decider.refresh == RefreshPolicy::Kind::kEvery ||
      (decider.refresh == RefreshPolicy::Kind::kStride ? num_tokens % decider.stride == 0 : closes);
  decider.triggers[seq] = triggers ? num_tokens - 1 : -1;
  if (decider.maybe_boundary_flags != nullptr) {
    decider.maybe_boundary_flags[seq] =
        static_cast<std::uint8_t>(closes ? 1 + (forced ? 1 : 0) : 0);
  }
  decider.count(seq, closes ? 1 : 0, closes && forced ? 1 : 0, triggers ? 1 : 0);
}

/// The adapter's verdict on each row; a block a row.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    boundary_verdicts_kernel(Adapter<T> adapter, std::uint8_t* verdicts) {
  const std::int64_t row = blockIdx.x;
  const float probability = row_probability(adapter, row);
  if (threadIdx.x != 0) return;
  verdicts[row] = probability > adapter.threshold ? 1 : 0;
  if (adapter.maybe_probabilities != nullptr) adapter.maybe_probabilities[row] = probability;
}

/// First set bit in [from, to], or -1.
__device__ inline std::int32_t next_set_bit(const std::uint32_t* bits, std::int32_t from,
                                            std::int32_t to) {
  std::int32_t word = from / 32;
  std::uint32_t rest = bits[word] & (0xffffffffU << (from % 32));
  while (rest == 0) {
    if (++word > to / 32) return -1;
    rest = bits[word];
  }
  const std::int32_t found = word * 32 + __ffs(static_cast<int>(rest)) - 1;
  return found <= to ? found : -1;
}

/// Where the walk over one sequence's rows stands; held by one thread.
struct Walk {
  std::int32_t first_position;  // of row 0
  std::int32_t open_begin;      // of the open chunk, as a row; may lie in front of row 0
  std::int32_t num_chunks;
  std::int32_t next = 0;  // first row that is not decided yet
  std::int32_t last_end = -1;
  std::int32_t boundaries = 0;
  std::int32_t forced = 0;
  bool full = false;

  /// Decides rows [next, tile_end); bit i of `bits` is the verdict of row tile_begin + i.
  __device__ void decide(const Decider& decider, std::int32_t seq, const std::uint32_t* bits,
                         std::int32_t tile_begin, std::int32_t tile_end,
                         std::uint8_t* maybe_flags) {
    std::int32_t* ends = decider.table.ends_of(seq);
    while (!full) {
      // Not every row is looked at: no chunk ends in front of `first`, none passes `last`.
      const std::int32_t first = max(open_begin + decider.min_len - 1, next);
      const std::int32_t last = max(open_begin + decider.max_len - 1, next);
      if (first >= tile_end) break;
      const std::int32_t found =
          next_set_bit(bits, first - tile_begin, min(last, tile_end - 1) - tile_begin);
      if (found < 0 && last >= tile_end) break;
      if (num_chunks >= decider.table.max_chunks) {
        decider.note_overflow(seq);
        full = true;
        break;
      }
      const std::int32_t row = found < 0 ? last : tile_begin + found;
      ends[num_chunks++] = first_position + row + 1;
      if (maybe_flags != nullptr) maybe_flags[row] = found < 0 ? 2 : 1;
      ++boundaries;
      forced += found < 0 ? 1 : 0;
      last_end = row;
      open_begin = row + 1;
      next = row + 1;
      if (next >= tile_end) break;
    }
    next = tile_end;
  }
};

/// Turns the verdicts of a sequence's rows into chunk ends; a block a sequence.
///
/// \tparam kRows  rows whose verdicts stand in shared memory at a time
template <std::int32_t kRows>
__global__ void __launch_bounds__(kWalkThreads)
    decide_rows_kernel(const std::uint8_t* wanted, Decider decider) {
  __shared__ std::uint32_t bits[kRows / 32];
  const auto seq = static_cast<std::int32_t>(blockIdx.x);
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t row_begin = decider.maybe_row_indptr[seq];
  const std::int32_t num_rows = decider.maybe_row_indptr[seq + 1] - row_begin;
  const std::int32_t num_tokens = decider.num_tokens[seq];
  if (num_rows <= 0) {
    if (thread == 0) decider.triggers[seq] = -1;
    return;
  }
  const std::uint8_t* verdicts = wanted + row_begin;
  std::uint8_t* maybe_flags =
      decider.maybe_boundary_flags == nullptr ? nullptr : decider.maybe_boundary_flags + row_begin;
  const bool in_use = num_tokens > 0;
  const std::int32_t num_chunks = in_use ? decider.table.num_chunks[seq] : 0;
  const std::int32_t table_end = num_chunks == 0 ? 0 : decider.table.ends_of(seq)[num_chunks - 1];
  const std::int32_t first_position = num_tokens - num_rows;
  Walk walk{first_position, table_end - first_position, num_chunks};

  for (std::int32_t tile = 0; tile < num_rows; tile += kRows) {
    const std::int32_t tile_end = min(num_rows, tile + kRows);
    __syncthreads();  // the walk over the last tile is over
#pragma unroll 8
    for (std::int32_t i = thread; i < ceil_div(tile_end - tile, 32) * 32; i += kWalkThreads) {
      const std::int32_t row = tile + i;
      const bool is_row = row < tile_end;
      // Through the read-only path: the stores of flags below need not wait for it.
      const std::uint32_t word = __ballot_sync(kFullWarp, is_row && __ldg(verdicts + row) != 0);
      if (i % kWarpSize == 0) bits[i / 32] = word;
      if (is_row && maybe_flags != nullptr) maybe_flags[row] = 0;
    }
    __syncthreads();
    if (thread == 0 && in_use) walk.decide(decider, seq, bits, tile, tile_end, maybe_flags);
  }
  if (thread != 0) return;
  if (!in_use) {
    decider.triggers[seq] = -1;
    return;
  }
  decider.table.num_chunks[seq] = walk.num_chunks;
  std::int32_t last_trigger = walk.last_end;  // as a row
  std::int32_t refreshes = walk.boundaries;
  if (decider.refresh == RefreshPolicy::Kind::kEvery) {
    last_trigger = num_rows - 1;
    refreshes = num_rows;
  } else if (decider.refresh == RefreshPolicy::Kind::kStride) {
    refreshes = num_tokens / decider.stride - first_position / decider.stride;
    last_trigger =
        refreshes > 0 ? num_tokens / decider.stride * decider.stride - 1 - first_position : -1;
  }
  decider.triggers[seq] = last_trigger < 0 ? -1 : first_position + last_trigger;
  decider.count(seq, walk.boundaries, walk.forced, refreshes);
}

/// Checks what `launch_detect_boundaries` is given and puts the dense stride in the place of 0.
template <typename T>
Status prepare(BoundaryArgs<T>& args) {
  const auto refuse = [](const std::string& what) {
    return invalid_argument("detect_boundaries: " + what);
  };
  if (args.num_rows < 0 || args.table.num_seqs < 0 || args.table.max_chunks < 0) {
    return refuse("negative sizes: " + std::to_string(args.num_rows) + " rows, " +
                  std::to_string(args.table.num_seqs) + " sequences of " +
                  std::to_string(args.table.max_chunks) + " chunks");
  }
  if (args.guards.min_len < 1 || args.guards.max_len < args.guards.min_len ||
      args.guards.max_len > kMaxGuard) {
    return refuse("guards are " + std::to_string(args.guards.min_len) + " and " +
                  std::to_string(args.guards.max_len) +
                  ", expected 1 <= min_len <= max_len <= " + std::to_string(kMaxGuard));
  }
  if (args.refresh.kind == RefreshPolicy::Kind::kStride &&
      (args.refresh.stride < 1 || args.refresh.stride > kMaxGuard)) {
    return refuse("refresh stride is " + std::to_string(args.refresh.stride) + ", expected 1 to " +
                  std::to_string(kMaxGuard));
  }
  if (args.table.num_seqs == 0) return {};
  if (args.num_rows == 0) {
    return args.triggers == nullptr ? refuse("triggers must not be null") : Status();
  }
  if (args.maybe_row_indptr == nullptr && args.num_rows != args.table.num_seqs) {
    return refuse(std::to_string(args.num_rows) + " rows of " +
                  std::to_string(args.table.num_seqs) +
                  " sequences, expected one a sequence or maybe_row_indptr");
  }
  if (args.num_tokens == nullptr || args.triggers == nullptr || args.table.ends == nullptr ||
      args.table.num_chunks == nullptr) {
    return refuse("num_tokens, triggers and the chunk table must not be null");
  }
  if (args.maybe_wanted == nullptr) {
    if (args.hidden == nullptr || args.weight == nullptr || args.hidden_size < 1) {
      return refuse("expected verdicts, or hidden rows, weight and hidden_size >= 1");
    }
    CHUNKLLM_RETURN_IF_ERROR(take_row_stride("detect_boundaries: row_stride", args.row_stride,
                                             args.num_rows, args.hidden_size));
    if (!rows_are_aligned(args.hidden, args.num_rows > 1 ? args.row_stride : 0) ||
        !rows_are_aligned(args.weight)) {
      return refuse("hidden rows and weight must begin at multiples of 16 bytes");
    }
  }
  const std::size_t needed = detect_boundaries_workspace_bytes(args);
  if (needed > 0 && (args.workspace == nullptr || args.workspace_bytes < needed)) {
    return refuse("the workspace has " + std::to_string(args.workspace_bytes) +
                  " bytes, expected " + std::to_string(needed));
  }
  return {};
}

}  // namespace boundaries

/// Finds chunk boundaries among the newest rows of a ragged batch and appends their ends to the
/// chunk table.
///
/// A token wants to end its chunk where sigmoid(w . h + b) > threshold on the first layer's output,
/// or where a given verdict says so; the guards decide as `chunkllm::decide_boundary`. Row r of a
/// sequence's `rows` is the token at num_tokens - rows + r. Triggers follow the refresh policy as
/// `ChunkState` does. A sequence without rows or tokens gets trigger -1 and nothing else is written
/// for it but boundary flags of 0 (probabilities of its rows mean nothing).
///
/// Full table: a chunk that would be one more than `max_chunks` stays open, `maybe_overflow` is set
/// and the sequence finds no further boundary; nothing is written out of bounds.
/// NaN: a NaN probability is no boundary; max_len still holds.
/// Numerics: f32 multiply-adds, in an order that depends on hidden_size alone: decode and prefill,
/// and any cut into blocks of rows, give the same bits. Deterministic.
/// Cost: num_rows * hidden_size * sizeof(T) bytes. One launch in decode; two for ragged rows with
/// an adapter, the second of which takes a few dependent shared-memory reads a chunk.
///
/// \tparam T  float, __half or __nv_bfloat16
/// Errors: kInvalidArgument for guards or a stride out of range, null or misaligned arrays, or a
///         workspace too small; kDeviceError from the launch.
/// Source: ChunkLLM, arXiv 2510.02361, y_i = 1 iff Sigmoid(FFN(H_i)) > alpha; guards are ours.
template <typename T>
Status launch_detect_boundaries(BoundaryArgs<T> args, cudaStream_t stream) {
  static_assert(kIsRowType<T>, "hidden rows are float, __half or __nv_bfloat16");
  CHUNKLLM_RETURN_IF_ERROR(boundaries::prepare(args));
  if (args.table.num_seqs == 0) return {};
  if (args.num_rows == 0) {  // stale triggers would refresh
    const auto bytes = static_cast<std::size_t>(args.table.num_seqs) * sizeof(std::int32_t);
    return cuda::cuda_status(cudaMemsetAsync(args.triggers, 0xff, bytes, stream),
                             "detect_boundaries: triggers of no row");
  }
  const boundaries::Adapter<T> adapter{
      args.hidden, args.row_stride, args.hidden_size,        args.weight,
      args.bias,   args.threshold,  args.maybe_probabilities};
  const boundaries::Decider decider{args.maybe_row_indptr,
                                    args.num_tokens,
                                    static_cast<std::int32_t>(args.guards.min_len),
                                    static_cast<std::int32_t>(args.guards.max_len),
                                    args.refresh.kind,
                                    static_cast<std::int32_t>(args.refresh.stride),
                                    args.table,
                                    args.triggers,
                                    args.maybe_boundary_flags,
                                    args.maybe_counters,
                                    args.maybe_overflow};
  const auto num_seqs = static_cast<unsigned>(args.table.num_seqs);
  if (args.maybe_row_indptr == nullptr) {
    boundaries::decide_newest_kernel<<<num_seqs, boundaries::kRowThreads, 0, stream>>>(
        adapter, args.maybe_wanted, decider);
    return cuda::launch_status("decide_newest_kernel");
  }
  const std::uint8_t* wanted = args.maybe_wanted;
  if (wanted == nullptr) {
    auto* verdicts = static_cast<std::uint8_t*>(args.workspace);
    boundaries::boundary_verdicts_kernel<<<static_cast<unsigned>(args.num_rows),
                                           boundaries::kRowThreads, 0, stream>>>(adapter, verdicts);
    CHUNKLLM_RETURN_IF_ERROR(cuda::launch_status("boundary_verdicts_kernel"));
    wanted = verdicts;
  }
  boundaries::decide_rows_kernel<boundaries::kWalkRows>
      <<<num_seqs, boundaries::kWalkThreads, 0, stream>>>(wanted, decider);
  return cuda::launch_status("decide_rows_kernel");
}

}  // namespace chunkllm::kernels
