// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/select_chunks.cuh"

namespace chunkllm::kernels {

/// Inputs and outputs of `launch_plan_attended_sets`.
struct PlanArgs {
  cuda::DeviceChunkTable table;
  cuda::DeviceTriggers triggers;
  LocalWindow window;
  const std::int32_t* chosen = nullptr;  ///< [triggers.count, max_chosen] ascending chunk ids
  std::int32_t max_chosen = 0;
  const std::int32_t* num_chosen = nullptr;         ///< [triggers.count], or kEverything
  cuda::DeviceAttendedSets sets;                    ///< written
  const std::int32_t* maybe_set_indices = nullptr;  ///< [triggers.count] row of `sets`, each at
                                                    ///< most once; null: trigger i fills row i
  /// [triggers.count] position whose local window begins the tail, if that is before the trigger's:
  /// the first token of a second look. Null, or < 0: the trigger's window.
  const std::int32_t* maybe_tail_tokens = nullptr;
  std::int32_t* maybe_overflow =
      nullptr;  ///< [triggers.count] 1 where the list did not fit, else 0
};

/// Tokens of a list entry: chunk 0, then the chosen ones.
struct PlanEntry {
  std::int32_t begin;
  std::int32_t length;
  std::int32_t offset;
};

/// Shared memory of `plan_row`.
template <int kThreads>
struct PlanShared {
  PlanEntry entries[kThreads];
  std::int32_t warp_tokens[kThreads / kWarpSize];
};

/// Entries that a warp writes at once, so that it need not wait for each.
inline constexpr int kEntriesAtOnce = 4;

/// A trigger's row of the sets, by a block of kThreads threads. What the block wrote of the chosen
/// chunks must lie behind a barrier.
///
/// \param num_chosen  of the trigger, or kEverything
/// \param chosen_at   index -> chosen chunk
/// \param end_of      chunk -> its end, of chosen chunks and those in front of them
template <int kThreads, typename ChosenAt, typename EndOf>
__device__ inline void plan_row(const PlanArgs& args, std::int32_t row, std::int32_t seq,
                                std::int32_t num_chosen, const DeviceCandidateRange& range,
                                PlanShared<kThreads>& shared, const ChosenAt& chosen_at,
                                const EndOf& end_of) {
  constexpr int kWarps = kThreads / kWarpSize;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
  const bool everything = num_chosen == kEverything;
  std::int32_t tail_begin = everything ? 0 : range.tail_begin;
  const std::int32_t tail_token =
      args.maybe_tail_tokens == nullptr ? -1 : args.maybe_tail_tokens[row];
  if (tail_token >= 0) {
    tail_begin =
        min(tail_begin, candidate_range(args.table, seq, tail_token, args.window).tail_begin);
  }
  const std::int32_t set = args.maybe_set_indices == nullptr ? row : args.maybe_set_indices[row];
  std::int32_t* tokens = args.sets.span_tokens_of(set);
  const std::int32_t capacity = args.sets.span_capacity;
  const std::int32_t num_entries = everything || range.num_closed == 0 ? 0 : num_chosen + 1;

  std::int32_t total = 0;
  for (std::int32_t first = 0; first < num_entries; first += kThreads) {
    PlanEntry entry = {0, 0, 0};
    if (first + thread < num_entries) {
      const std::int32_t chunk = first + thread == 0 ? 0 : chosen_at(first + thread - 1);
      entry.begin = chunk == 0 ? 0 : end_of(chunk - 1);
      entry.length = max(min(end_of(chunk), tail_begin) - entry.begin, 0);
    }
    std::int32_t up_to_here = entry.length;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const std::int32_t other = __shfl_up_sync(kFullWarp, up_to_here, offset);
      if (lane >= offset) up_to_here += other;
    }
    if (lane == kWarpSize - 1) shared.warp_tokens[warp] = up_to_here;
    __syncthreads();
    const std::int32_t warp_total = lane < kWarps ? shared.warp_tokens[lane] : 0;
    entry.offset = total + __reduce_add_sync(kFullWarp, lane < warp ? warp_total : 0) + up_to_here -
                   entry.length;
    total += __reduce_add_sync(kFullWarp, warp_total);
    shared.entries[thread] = entry;
    __syncthreads();
    // A warp writes a chunk: its tokens lie side by side in the list.
    const std::int32_t num_here = min(num_entries - first, kThreads);
    for (std::int32_t e = warp; e < num_here; e += kEntriesAtOnce * kWarps) {
      PlanEntry listed[kEntriesAtOnce];
#pragma unroll
      for (int j = 0; j < kEntriesAtOnce; ++j) {
        const std::int32_t other = e + j * kWarps;
        listed[j] = other < num_here ? shared.entries[other] : PlanEntry{0, 0, 0};
      }
#pragma unroll
      for (int j = 0; j < kEntriesAtOnce; ++j) {
        const std::int32_t length = min(listed[j].length, capacity - listed[j].offset);
        for (std::int32_t i = lane; i < length; i += kWarpSize) {
          tokens[listed[j].offset + i] = listed[j].begin + i;
        }
      }
    }
    __syncthreads();
  }
  if (thread == 0) {
    args.sets.num_span_tokens[set] = min(total, capacity);
    args.sets.tail_begin[set] = tail_begin;
    if (args.maybe_overflow != nullptr) args.maybe_overflow[row] = total > capacity ? 1 : 0;
  }
}

/// \tparam kThreads  kCutThreads
template <int kThreads>
__global__ void __launch_bounds__(kThreads) plan_attended_sets_kernel(const PlanArgs args) {
  __shared__ PlanShared<kThreads> shared;
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t trigger = args.triggers.tokens[row];
  if (trigger < 0) return;
  const std::int32_t seq = args.triggers.seq(row);
  const std::int32_t* ends = args.table.ends_of(seq);
  const std::int32_t* chosen = args.chosen + static_cast<std::int64_t>(row) * args.max_chosen;
  plan_row<kThreads>(
      args, row, seq, args.num_chosen[row], candidate_range(args.table, seq, trigger, args.window),
      shared, [=](std::int32_t k) { return chosen[k]; }, [=](std::int32_t c) { return ends[c]; });
}

/// Shared memory of `select_and_plan_row`.
template <int kThreads>
struct SelectAndPlanShared {
  SelectShared<kThreads> select;
  PlanShared<kThreads> plan;
};

/// Both for one trigger, by a block of kThreads threads; the plan takes chosen chunks and ends from
/// shared memory.
///
/// \param score_of  see `select_row`
template <int kThreads, typename ScoreOf>
__device__ inline void select_and_plan_row(const SelectChunksArgs& select, const PlanArgs& plan,
                                           std::int32_t row, std::int32_t trigger,
                                           SelectAndPlanShared<kThreads>& shared,
                                           const ScoreOf& score_of) {
  const std::int32_t seq = select.triggers.seq(row);
  const DeviceCandidateRange range = candidate_range(select.table, seq, trigger, select.window);
  const std::int32_t num_chosen =
      select_row<kThreads>(select, row, seq, trigger, range, shared.select, score_of);
  __syncthreads();  // the chosen chunks are read by other threads than wrote them
  const std::int32_t* ends = select.table.ends_of(seq);
  const std::int32_t* chosen = select.chosen + static_cast<std::int64_t>(row) * select.max_chosen;
  const std::int32_t num_candidates = range.num_candidates();
  plan_row<kThreads>(
      plan, row, seq, num_chosen, range, shared.plan,
      [&](std::int32_t k) { return k < kCachedChosen ? shared.select.chosen()[k] : chosen[k]; },
      [&](std::int32_t chunk) {
        return num_candidates > 0 ? shared.select.cut.end_of(ends, chunk) : ends[chunk];
      });
}

/// \tparam kThreads  kCutThreads
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    select_and_plan_kernel(const SelectChunksArgs select, const PlanArgs plan) {
  auto& shared = dynamic_shared<SelectAndPlanShared<kThreads>>();
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t trigger = select.triggers.tokens[row];
  if (trigger < 0) return;
  const float* scores = select.scores + row * select.score_stride;
  select_and_plan_row<kThreads>(select, plan, row, trigger, shared,
                                [=](std::int32_t i) { return scores[i]; });
}

/// Errors: as `launch_plan_attended_sets`
inline Status validate(const PlanArgs& args) {
  Status status = detail::validate_triggers(args.table, args.triggers);
  if (!status.ok() || args.triggers.count == 0) return status;
  if (args.num_chosen == nullptr || (args.chosen == nullptr && args.max_chosen > 0) ||
      args.max_chosen < 0) {
    return invalid_argument("plan_attended_sets: chosen and num_chosen must be given");
  }
  if (args.sets.num_span_tokens == nullptr || args.sets.tail_begin == nullptr ||
      (args.sets.span_tokens == nullptr && args.sets.span_capacity > 0) ||
      args.sets.span_capacity < 0) {
    return invalid_argument("plan_attended_sets: all arrays of the sets must be given");
  }
  if (args.maybe_set_indices == nullptr && args.sets.num_sets < args.triggers.count) {
    return invalid_argument("plan_attended_sets: " + std::to_string(args.sets.num_sets) +
                            " sets for " + std::to_string(args.triggers.count) +
                            " triggers without set indices");
  }
  return {};
}

/// Lists what the tokens behind each trigger attend: chunk 0 and the chosen chunks token by token,
/// and all from the local window on. The attended tokens are those of `make_attended_set`; a chosen
/// chunk that touches the tail stays in the list.
///
/// A trigger < 0 leaves its set as it is; one with kEverything gets an empty list and a tail from
/// token 0. With `maybe_tail_tokens` the tail also holds the local window of an earlier token, as
/// in `ChunkState`'s second look. A list longer than the capacity is cut off and `maybe_overflow`
/// says so: the set then lacks its newest listed tokens.
///
/// Cost: a block a trigger; 4 bytes written a token, 12 read a chunk
/// Errors: kInvalidArgument for missing arrays or too few sets. kDeviceError from the launch.
inline Status launch_plan_attended_sets(const PlanArgs& args, cudaStream_t stream) {
  Status status = validate(args);
  if (!status.ok() || args.triggers.count == 0) return status;
  plan_attended_sets_kernel<kCutThreads>
      <<<static_cast<unsigned>(args.triggers.count), kCutThreads, 0, stream>>>(args);
  return cuda::launch_status("plan_attended_sets_kernel");
}

/// Errors: as `launch_select_and_plan`
inline Status validate(const SelectChunksArgs& select, const PlanArgs& plan) {
  CHUNKLLM_RETURN_IF_ERROR(validate(select));
  CHUNKLLM_RETURN_IF_ERROR(validate(plan));
  if (select.table.ends != plan.table.ends || select.table.max_chunks != plan.table.max_chunks ||
      select.triggers.tokens != plan.triggers.tokens ||
      select.triggers.maybe_seqs != plan.triggers.maybe_seqs ||
      select.triggers.count != plan.triggers.count ||
      select.window.min_tokens != plan.window.min_tokens ||
      select.window.min_chunks != plan.window.min_chunks || select.chosen != plan.chosen ||
      select.max_chosen != plan.max_chosen || select.num_chosen != plan.num_chosen) {
    return invalid_argument(
        "select_and_plan: the selection and the plan must share table, triggers, window and chosen "
        "chunks");
  }
  return {};
}

/// `launch_select_chunks` and `launch_plan_attended_sets` in one launch, for decode, where a launch
/// costs more than a token without a trigger has to do.
///
/// Both must name the same table, triggers and window, and the plan the selection's outputs.
///
/// Errors: as of the two; kInvalidArgument where they do not fit each other
inline Status launch_select_and_plan(const SelectChunksArgs& select, const PlanArgs& plan,
                                     cudaStream_t stream) {
  CHUNKLLM_RETURN_IF_ERROR(validate(select, plan));
  if (select.triggers.count == 0) return {};
  constexpr std::size_t kSharedBytes = sizeof(SelectAndPlanShared<kCutThreads>);
  CHUNKLLM_RETURN_IF_ERROR(detail::allow_shared(select_and_plan_kernel<kCutThreads>, kSharedBytes));
  select_and_plan_kernel<kCutThreads>
      <<<static_cast<unsigned>(select.triggers.count), kCutThreads, kSharedBytes, stream>>>(select,
                                                                                            plan);
  return cuda::launch_status("select_and_plan_kernel");
}

}  // namespace chunkllm::kernels
