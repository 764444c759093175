// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
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

/// Chosen chunks of a trigger that also stand in shared memory.
inline constexpr std::int32_t kCachedChosen = 4 * kNumDigits;

/// Shared memory of `select_row`.
template <int kThreads>
struct SelectShared {
  CutShared<kThreads> cut;
  std::int32_t warp_counts[kThreads / kWarpSize];

  /// The first kCachedChosen chosen chunks.
  __device__ std::int32_t* chosen() { return cut.histograms; }
};

/// A trigger's selection, by a block of kThreads threads, all of which get the number of chosen
/// chunks (or kEverything). Chosen chunks, and in `shared` their cache and the candidates' ends,
/// are for the whole block behind a barrier.
///
/// \param score_of  index -> score, called once a candidate; what it gives must stand in `scores`
///                  behind a barrier
template <int kThreads, typename ScoreOf>
__device__ inline std::int32_t select_row(const SelectChunksArgs& args, std::int32_t row,
                                          std::int32_t seq, std::int32_t trigger,
                                          const DeviceCandidateRange& range,
                                          SelectShared<kThreads>& shared, const ScoreOf& score_of) {
  constexpr int kWarps = kThreads / kWarpSize;
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
  const ChunkCut cut = find_cut(score_of, scores, ends, num_candidates,
                                budget_room(range, ends[0], trigger, args.budget), args.threshold,
                                shared.cut, num_nan);

  // Each warp walks a stretch of its own, twice: to count, and to write behind the warps before. A
  // lane keeps what was taken in one round of 32 candidates, so that keys are made once.
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
  const std::int32_t rounds = ceil_div(ceil_div(num_candidates, kWarps), kWarpSize);
  const std::int32_t first = warp * rounds * kWarpSize;
  const auto taken_in = [&](std::int32_t round) {
    const std::int32_t i = first + round * kWarpSize + lane;
    const bool taken =
        i < num_candidates && order_key(shared.cut.rank(scores, args.threshold, i), i + 1,
                                        cut.least_rank, cut.index_bits) >= cut.first_taken;
    return __ballot_sync(kFullWarp, taken);
  };
  std::int32_t count = 0;
  unsigned kept = 0;
#pragma unroll 4
  for (std::int32_t round = 0; round < rounds; ++round) {
    const unsigned mask = taken_in(round);
    if (round == lane) kept = mask;
    count += __popc(mask);
  }
  if (lane == 0) shared.warp_counts[warp] = count;
  __syncthreads();
  const std::int32_t other = lane < kWarps ? shared.warp_counts[lane] : 0;
  const std::int32_t total = __reduce_add_sync(kFullWarp, other);
  std::int32_t place = __reduce_add_sync(kFullWarp, lane < warp ? other : 0);
  std::int32_t* chosen = args.chosen + static_cast<std::int64_t>(row) * args.max_chosen;
  for (std::int32_t round = 0; round < rounds; ++round) {
    const unsigned mask = round < kWarpSize ? __shfl_sync(kFullWarp, kept, round) : taken_in(round);
    if ((mask >> lane & 1U) != 0U) {
      const std::int32_t at = place + __popc(mask & ((1U << lane) - 1U));
      const std::int32_t chunk = first + round * kWarpSize + lane + 1;
      chosen[at] = chunk;
      if (at < kCachedChosen) shared.chosen()[at] = chunk;
    }
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
  auto& shared = dynamic_shared<SelectShared<kThreads>>();
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t trigger = args.triggers.tokens[row];
  if (trigger < 0) return;
  const std::int32_t seq = args.triggers.seq(row);
  const float* scores = args.scores + row * args.score_stride;
  select_row<kThreads>(args, row, seq, trigger,
                       candidate_range(args.table, seq, trigger, args.window), shared,
                       [=](std::int32_t i) { return scores[i]; });
}

namespace detail {

/// Lets a kernel have more shared memory than it gets unasked.
template <typename... Parameters>
Status allow_shared(void (*kernel)(Parameters...), std::size_t bytes) {
  return cuda::cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                static_cast<int>(bytes)),
                           "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)");
}

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

/// A share of NaN would become any number of tokens on the device.
inline Status check_budget(const std::string& name, const Budget& budget) {
  if (budget.kind != Budget::Kind::kShare || (budget.share > 0.0 && budget.share <= 1.0)) return {};
  return invalid_argument(name + ": the budget's share is " + std::to_string(budget.share) +
                          ", expected more than 0 and at most 1");
}

}  // namespace detail

/// Errors: as `launch_select_chunks`
inline Status validate(const SelectChunksArgs& args) {
  Status status = detail::validate_triggers(args.table, args.triggers);
  if (!status.ok() || args.triggers.count == 0) return status;
  CHUNKLLM_RETURN_IF_ERROR(detail::check_budget("select_chunks", args.budget));
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
/// Cost: a block a trigger; 8 bytes a candidate, read once, from L1 or L2 once more for each
/// further
///   digit beyond 8192 candidates
/// Errors: kInvalidArgument for a missing pointer, a `score_stride` below table.max_chunks - 1 or a
///   `max_chosen` that the budget could overflow (table.max_chunks, or with a budget of chunks
///   their number if that is less), or a budget's share outside (0, 1]. kDeviceError from the
///   launch.
inline Status launch_select_chunks(const SelectChunksArgs& args, cudaStream_t stream) {
  Status status = validate(args);
  if (!status.ok() || args.triggers.count == 0) return status;
  constexpr std::size_t kSharedBytes = sizeof(SelectShared<kCutThreads>);
  CHUNKLLM_RETURN_IF_ERROR(detail::allow_shared(select_chunks_kernel<kCutThreads>, kSharedBytes));
  select_chunks_kernel<kCutThreads>
      <<<static_cast<unsigned>(args.triggers.count), kCutThreads, kSharedBytes, stream>>>(args);
  return cuda::launch_status("select_chunks_kernel");
}

}  // namespace chunkllm::kernels
