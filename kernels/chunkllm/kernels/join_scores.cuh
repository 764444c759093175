// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/chunk_order.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/select_chunks.cuh"

namespace chunkllm::kernels {

/// Inputs and outputs of `launch_join_scores`.
struct JoinScoresArgs {
  const float* scores = nullptr;                   ///< [num_layers, triggers.count, score_stride]
  std::int64_t score_stride = 0;                   ///< from trigger to trigger
  std::int64_t score_layer_stride = 0;             ///< 0: triggers.count * score_stride
  const std::uint8_t* layer_selectable = nullptr;  ///< [num_layers] 0: the layer is left out; null:
                                                   ///< none is
  std::int32_t num_layers = 0;
  Selection selection = Selection::kMax;
  cuda::DeviceChunkTable table;
  cuda::DeviceTriggers triggers;
  LocalWindow window;
  Budget budget;            ///< of a layer's votes
  float threshold = 0.0F;   ///< of the null class
  float* joined = nullptr;  ///< [triggers.count, joined_stride], of chunks 1, 2, ...
  std::int64_t joined_stride = 0;
  void* workspace = nullptr;  ///< multiple of 8; kVote only
  std::size_t workspace_bytes = 0;
};

/// Bytes that `launch_join_scores` needs: 16 a layer and trigger with votes, else none.
inline std::size_t join_scores_workspace_bytes(Selection selection, std::int32_t num_layers,
                                               std::int32_t num_triggers) {
  if (selection != Selection::kVote || num_layers <= 0 || num_triggers <= 0) return 0;
  return static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_triggers) *
         sizeof(ChunkCut);
}

/// Threads, and blocks at most for one trigger, of the join.
inline constexpr int kJoinThreads = 256;
inline constexpr int kMaxJoinBlocks = 64;
inline constexpr int kLayersAtATime = 8;  ///< whose loads are on their way together

/// Where each layer's budget would stop: a block a layer and trigger.
/// \tparam kThreads  kCutThreads
template <int kThreads>
__global__ void __launch_bounds__(kThreads) find_layer_cuts_kernel(const JoinScoresArgs args) {
  auto& shared = dynamic_shared<CutShared<kThreads>>();
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  const auto layer = static_cast<std::int32_t>(blockIdx.y);
  const std::int32_t trigger = args.triggers.tokens[row];
  if (trigger < 0) return;
  if (args.layer_selectable != nullptr && args.layer_selectable[layer] == 0) return;
  const std::int32_t seq = args.triggers.seq(row);
  const DeviceCandidateRange range = candidate_range(args.table, seq, trigger, args.window);
  if (range.num_candidates() == 0) return;
  const std::int32_t* ends = args.table.ends_of(seq);
  std::int32_t num_nan = 0;
  const float* scores = args.scores + layer * args.score_layer_stride + row * args.score_stride;
  const ChunkCut cut =
      find_cut([=](std::int32_t i) { return scores[i]; }, scores, ends, range.num_candidates(),
               budget_room(range, ends[0], trigger, args.budget), args.threshold, shared, num_nan);
  if (threadIdx.x == 0) {
    static_cast<ChunkCut*>(
        args.workspace)[static_cast<std::int64_t>(layer) * args.triggers.count + row] = cut;
  }
}

/// \tparam kThreads  kJoinThreads
template <int kThreads>
__global__ void __launch_bounds__(kThreads) join_scores_kernel(const JoinScoresArgs args) {
  const auto row = static_cast<std::int32_t>(blockIdx.y);
  const std::int32_t trigger = args.triggers.tokens[row];
  if (trigger < 0) return;
  const std::int32_t num_candidates =
      candidate_range(args.table, args.triggers.seq(row), trigger, args.window).num_candidates();
  const auto* cuts = static_cast<const ChunkCut*>(args.workspace);
  const bool takes_max = args.selection == Selection::kMax || args.selection == Selection::kLayer;
  const auto step = static_cast<std::int32_t>(gridDim.x) * kJoinThreads;
  for (auto i = static_cast<std::int32_t>(blockIdx.x * kJoinThreads + threadIdx.x);
       i < num_candidates; i += step) {
    const float* scores = args.scores + row * args.score_stride + i;
    std::int32_t used_layers = 0;
    float joined = 0.0F;
    float votes = 0.0F;
    for (std::int32_t first = 0; first < args.num_layers; first += kLayersAtATime) {
      float loaded[kLayersAtATime];
      bool used[kLayersAtATime];
#pragma unroll
      for (int j = 0; j < kLayersAtATime; ++j) {
        const std::int32_t layer = first + j;
        used[j] = layer < args.num_layers &&
                  (args.layer_selectable == nullptr || args.layer_selectable[layer] != 0);
        // Read whether used or not, so that all loads are on their way at once.
        loaded[j] = layer < args.num_layers ? scores[layer * args.score_layer_stride] : 0.0F;
      }
#pragma unroll
      for (int j = 0; j < kLayersAtATime; ++j) {
        if (!used[j]) continue;
        if (takes_max) {
          joined = used_layers == 0 ? loaded[j] : max_keeping_nan(joined, loaded[j]);
        } else {
          joined += loaded[j];
        }
        if (args.selection == Selection::kVote &&
            is_taken(cuts[static_cast<std::int64_t>(first + j) * args.triggers.count + row],
                     loaded[j], args.threshold, i + 1)) {
          votes += 1.0F;
        }
        ++used_layers;
      }
    }
    if (!takes_max && used_layers > 0) {
      // Rounded one by one as on the CPU: no multiply-add.
      joined = __fmul_rn(joined, __fdiv_rn(1.0F, static_cast<float>(used_layers)));
      if (args.selection == Selection::kVote && joined >= args.threshold) {
        joined = __fadd_rn(joined, votes);
      }
    }
    args.joined[row * args.joined_stride + i] = joined;
  }
}

/// One array of scores for all layers, equal to `chunkllm::join_layers`: the maximum over layers,
/// the mean, or the number of layers that would take the chunk under the same budget plus the mean.
///
/// Layers that are left out count neither in the mean nor in the votes; if all are, scores are 0. A
/// trigger < 0 leaves its row as it is, and so stays what lies behind the candidates.
///
/// Numerics: f32 in the CPU's order of operations, equal to it; NaN in a layer is NaN in the result
/// Cost: 4 bytes a layer and candidate; votes find each layer's cut before, in a launch of their
/// own Errors: kInvalidArgument for missing pointers or workspace, strides below table.max_chunks -
/// 1,
///   or a budget's share outside (0, 1]; kUnsupported beyond 65535 triggers or layers.
///   kDeviceError from the launch.
inline Status launch_join_scores(JoinScoresArgs args, cudaStream_t stream) {
  Status status = detail::validate_triggers(args.table, args.triggers);
  if (!status.ok() || args.triggers.count == 0) return status;
  const std::int32_t most = args.table.max_chunks - 1;
  if (args.num_layers < 0 || args.score_stride < most || args.joined_stride < most) {
    return invalid_argument(
        "join_scores: " + std::to_string(args.num_layers) + " layers, score_stride " +
        std::to_string(args.score_stride) + ", joined_stride " +
        std::to_string(args.joined_stride) +
        ", expected strides of at least table.max_chunks - 1 = " + std::to_string(most));
  }
  CHUNKLLM_RETURN_IF_ERROR(detail::check_budget("join_scores", args.budget));
  constexpr std::int32_t kMaxGrid = 65535;
  if (args.triggers.count > kMaxGrid || args.num_layers > kMaxGrid) {
    return unsupported("join_scores: at most 65535 triggers and layers");
  }
  if (args.joined == nullptr || (args.scores == nullptr && args.num_layers > 0)) {
    return invalid_argument("join_scores: scores and joined must be given");
  }
  if (args.score_layer_stride == 0) {
    args.score_layer_stride = args.triggers.count * args.score_stride;
  }
  if (most <= 0) return {};
  if (args.selection == Selection::kVote && args.num_layers > 0) {
    const std::size_t bytes =
        join_scores_workspace_bytes(args.selection, args.num_layers, args.triggers.count);
    if (args.workspace == nullptr || args.workspace_bytes < bytes ||
        !is_aligned(args.workspace, alignof(ChunkCut))) {
      return invalid_argument("join_scores: a workspace of " +
                              std::to_string(args.workspace_bytes) + " bytes, expected " +
                              std::to_string(bytes) + " at a multiple of " +
                              std::to_string(alignof(ChunkCut)));
    }
    const dim3 grid(static_cast<unsigned>(args.triggers.count),
                    static_cast<unsigned>(args.num_layers));
    constexpr std::size_t kSharedBytes = sizeof(CutShared<kCutThreads>);
    CHUNKLLM_RETURN_IF_ERROR(
        detail::allow_shared(find_layer_cuts_kernel<kCutThreads>, kSharedBytes));
    find_layer_cuts_kernel<kCutThreads><<<grid, kCutThreads, kSharedBytes, stream>>>(args);
    if (Status cuts = cuda::launch_status("find_layer_cuts_kernel"); !cuts.ok()) return cuts;
  }
  const dim3 grid(static_cast<unsigned>(std::min(ceil_div(most, kJoinThreads), kMaxJoinBlocks)),
                  static_cast<unsigned>(args.triggers.count));
  join_scores_kernel<kJoinThreads><<<grid, kJoinThreads, 0, stream>>>(args);
  return cuda::launch_status("join_scores_kernel");
}

}  // namespace chunkllm::kernels
