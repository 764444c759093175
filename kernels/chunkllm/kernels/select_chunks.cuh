// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/chunk_order.cuh"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels {

/// `num_chosen` of a trigger whose budget holds all that is past: no chunk is listed.
inline constexpr std::int32_t kEverything = -1;

/// Inputs and outputs of `launch_select_chunks`.
struct SelectChunksArgs {
  const float* scores = nullptr;  ///< [triggers.count, score_stride], of chunks 1, 2, ...
  std::int64_t score_stride = 0;  ///< from trigger to trigger
  cuda::DeviceChunkTable table;
  cuda::DeviceTriggers triggers;
  LocalWindow window;
  Budget budget;
  float threshold = 0.0F;              ///< of the null class; 0 ranks all by score
  std::int32_t* chosen = nullptr;      ///< [triggers.count, max_chosen] ascending chunk ids
  std::int32_t max_chosen = 0;         ///< at least what the budget can take; see the launcher
  std::int32_t* num_chosen = nullptr;  ///< [triggers.count], or kEverything
  std::int32_t* num_nan = nullptr;     ///< [triggers.count] candidates whose score was NaN
};

/// Shared memory of `select_row`.
struct SelectShared {
  CutShared cut;
  std::int32_t warp_counts[kCutWarps];
};

/// A trigger's selection, by a block of kCutThreads threads, all of which get the number of chosen
/// chunks (or kEverything).
__device__ inline std::int32_t select_row(const SelectChunksArgs& args, std::int32_t row,
                                          std::int32_t seq, std::int32_t trigger,
                                          const DeviceCandidateRange& range, SelectShared& shared) {
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t num_candidates = range.num_candidates();
  const bool everything = budget_holds_all(range, trigger, args.budget);
  if (everything || num_candidates == 0) {
    const std::int32_t result = everything ? kEverything : 0;
    if (thread == 0) {
      args.num_chosen[row] = result;
      args.num_nan[row] = 0;
    }
    return result;
  }
  const std::int32_t* ends = args.table.ends_of(seq);
  const float* scores = args.scores + row * args.score_stride;
  std::int32_t num_nan = 0;
  const ChunkCut cut =
      find_cut(scores, ends, num_candidates, budget_room(range, ends[0], trigger, args.budget),
               args.threshold, shared.cut, num_nan);

  // Each warp walks a stretch of its own, twice: to count, and to write behind the warps before.
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
  const std::int32_t stretch = ceil_div(ceil_div(num_candidates, kCutWarps), kWarpSize) * kWarpSize;
  const std::int32_t first = warp * stretch;
  const std::int32_t last = min(first + stretch, num_candidates);
  std::int32_t count = 0;
  for (std::int32_t begin = first; begin < last; begin += kWarpSize) {
    const std::int32_t i = begin + lane;
    const bool taken = i < last && is_taken(cut, scores[i], args.threshold, i + 1);
    count += __popc(__ballot_sync(kFullWarp, taken));
  }
  if (lane == 0) shared.warp_counts[warp] = count;
  __syncthreads();
  const std::int32_t other = shared.warp_counts[lane];
  const std::int32_t total = __reduce_add_sync(kFullWarp, other);
  std::int32_t place = __reduce_add_sync(kFullWarp, lane < warp ? other : 0);
  std::int32_t* chosen = args.chosen + static_cast<std::int64_t>(row) * args.max_chosen;
  for (std::int32_t begin = first; begin < last; begin += kWarpSize) {
    const std::int32_t i = begin + lane;
    const bool taken = i < last && is_taken(cut, scores[i], args.threshold, i + 1);
    const unsigned mask = __ballot_sync(kFullWarp, taken);
    if (taken) chosen[place + __popc(mask & ((1U << lane) - 1U))] = i + 1;
    place += __popc(mask);
  }
  if (thread == 0) {
    args.num_chosen[row] = total;
    args.num_nan[row] = num_nan;
  }
  return total;
}

/// \tparam kThreads  kCutThreads
template <int kThreads>
__global__ void __launch_bounds__(kThreads) select_chunks_kernel(const SelectChunksArgs args) {
  __shared__ SelectShared shared;
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t trigger = args.triggers.tokens[row];
  if (trigger < 0) return;
  const std::int32_t seq = args.triggers.seq(row);
  select_row(args, row, seq, trigger, candidate_range(args.table, seq, trigger, args.window),
             shared);
}

namespace detail {

/// What every operation on triggers asks of them and of the chunk table.
inline Status validate_triggers(const cuda::DeviceChunkTable& table,
                                const cuda::DeviceTriggers& triggers) {
  if (triggers.count < 0 || table.num_seqs < 0 || table.max_chunks < 0) {
    return invalid_argument("triggers: negative counts");
  }
  if (triggers.count == 0) return {};
  if (triggers.tokens == nullptr || table.ends == nullptr || table.num_chunks == nullptr) {
    return invalid_argument("triggers: their tokens and the chunk table must be given");
  }
  if (triggers.maybe_seqs == nullptr && triggers.count > table.num_seqs) {
    return invalid_argument("triggers: " + std::to_string(triggers.count) +
                            " without sequences, but the chunk table holds " +
                            std::to_string(table.num_seqs));
  }
  return {};
}

}  // namespace detail

/// Errors: as `launch_select_chunks`
inline Status validate(const SelectChunksArgs& args) {
  Status status = detail::validate_triggers(args.table, args.triggers);
  if (!status.ok() || args.triggers.count == 0) return status;
  const std::int64_t most = args.budget.max_chunks(args.table.max_chunks);
  if (args.max_chosen < most || args.score_stride < args.table.max_chunks - 1) {
    return invalid_argument(
        "select_chunks: max_chosen " + std::to_string(args.max_chosen) + " and score_stride " +
        std::to_string(args.score_stride) + ", expected at least " + std::to_string(most) +
        " (table.max_chunks, or the budget's number of chunks) and table.max_chunks - 1 = " +
        std::to_string(args.table.max_chunks - 1));
  }
  if (args.num_chosen == nullptr || args.num_nan == nullptr ||
      (args.chosen == nullptr && args.max_chosen > 0) || args.scores == nullptr) {
    return invalid_argument("select_chunks: scores, chosen, num_chosen and num_nan must be given");
  }
  return {};
}

/// Chooses chunks for each trigger, equal to `chunkllm::take_within_budget(ChunkOrder(scores,
/// threshold))`: the longest prefix of the order that the budget holds, ascending by chunk.
///
/// The order: scores at or above the threshold, larger first, of equal ones (zeros of both signs
/// are equal) the later chunk; then the others, newest first; then NaN, newest first. A trigger
/// sees the chunks that are closed by then alone. A trigger < 0 leaves its outputs as they are.
/// Behind `num_chosen` a row of `chosen` is left as it is.
///
/// Numerics: integers and comparisons only, exact
/// Cost: a block a trigger; 8 bytes a candidate, read from L1 or L2 some 5 times
/// Errors: kInvalidArgument for a missing pointer, a `score_stride` below table.max_chunks - 1 or a
///   `max_chosen` that the budget could overflow (table.max_chunks, or with a budget of chunks
///   their number if that is less). kDeviceError from the launch.
inline Status launch_select_chunks(const SelectChunksArgs& args, cudaStream_t stream) {
  Status status = validate(args);
  if (!status.ok() || args.triggers.count == 0) return status;
  select_chunks_kernel<kCutThreads>
      <<<static_cast<unsigned>(args.triggers.count), kCutThreads, 0, stream>>>(args);
  return cuda::launch_status("select_chunks_kernel");
}

}  // namespace chunkllm::kernels
