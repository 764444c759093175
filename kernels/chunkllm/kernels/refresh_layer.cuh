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
#include "chunkllm/kernels/chunk_keys.cuh"
#include "chunkllm/kernels/dependent_launch.cuh"
#include "chunkllm/kernels/join_heads.cuh"
#include "chunkllm/kernels/plan_attended_sets.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/score_chunks.cuh"
#include "chunkllm/kernels/select_chunks.cuh"
#include "chunkllm/kernels/trigger_work.cuh"

namespace chunkllm::kernels {

/// What `launch_refresh_layer` reads and writes: what the launches do that it stands for. Of
/// `score.scores`, `select.chosen` and the like only what has to be chosen is written.
///
/// \tparam Row, Key, Weight  as of `UpdateChunkKeysArgs`; `Key` of 16 bits
template <typename Row, typename Key, typename Weight = Row>
struct RefreshLayerArgs {
  UpdateChunkKeysArgs<Row, Key, Weight> update;  ///< of one layer; `open_sums` without the new rows
  DeviceScoreArgs<Key> score;
  SelectChunksArgs select;
  PlanArgs plan;
  /// kRefreshStateBytes zeros at a multiple of 4, zeros again behind the launch. Launches that may
  /// run at the same time need states of their own.
  void* state = nullptr;
};

inline constexpr std::size_t kRefreshStateBytes = 2 * sizeof(unsigned);

/// Sequences of a launch at most: a thread each.
inline constexpr std::int32_t kMostRefreshSeqs = kWorkThreads;

namespace refresh {

/// Heads up to which the block that selects also joins: their logits cost it less than it would to
/// wait for other blocks to do it.
inline constexpr std::int32_t kMostDirectHeads = 2;
inline constexpr int kBlocksPerSm = 2;

/// All that the kernel is given.
template <typename Row, typename Key, typename Weight>
struct Work {
  UpdateChunkKeysArgs<Row, Key, Weight> update;
  DeviceScoreArgs<Key> score;
  ScoreLayout layout;
  SelectChunksArgs select;
  PlanArgs plan;
  unsigned* state;
};

/// Lets the blocks of a grid, all of them resident, wait for each other. Called by whole blocks.
class GridBarrier {
 public:
  __device__ explicit GridBarrier(unsigned* state) : state_(state) {}

  /// What the block wrote is there for those that wait.
  __device__ void arrive() {
    target_ += gridDim.x;
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    atomicAdd(&state_[0], 1U);
  }
  __device__ void wait() const {
    if (threadIdx.x == 0) {
      unsigned arrived = 0;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                     : "=r"(arrived)
                     : "l"(state_)
                     : "memory");
      } while (arrived < target_);
      __threadfence();
    }
    __syncthreads();
  }
  /// Behind the block's last wait. The last to leave clears the state: no block looks at it then.
  __device__ void leave() const {
    if (threadIdx.x != 0 || atomicAdd(&state_[1], 1U) != gridDim.x - 1) return;
    state_[0] = 0;
    state_[1] = 0;
  }

 private:
  unsigned* state_;  // blocks that have arrived, that have left
  unsigned target_ = 0;
};

/// Shared memory of the phases, one behind the other in the same place.
struct KeyShared {
  chunk_keys::InputTile input;
  chunk_keys::NewestToken newest[kMostRefreshSeqs];
};
struct ChoiceShared {
  SelectAndPlanShared<kWorkThreads> choice;
  kernels::detail::JoinHeadsShared heads;
};

/// Adapter: keys and queries of the sequences that need them. An output has a warp; neighbours go
/// to different blocks, so that each SM reads a part of the weights.
template <typename Row, typename Key, typename Weight>
__device__ inline void project_outputs(const UpdateChunkKeysArgs<Row, Key, Weight>& args,
                                       KeyShared& shared) {
  using chunk_keys::kInputFeatures;
  // All vectors that a lane has of 4096 features of 16 bits: they arrive while the input is made.
  constexpr int kAhead = sizeof(Weight) == 2 ? 16 : 4;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
  const auto grid = static_cast<std::int32_t>(gridDim.x);  // at least 2
  auto block = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t num_queries = args.num_query_features == 0 ? 0 : args.query_size();
  std::int32_t key_blocks = grid;
  if (num_queries > 0) {
    const std::int64_t share =
        static_cast<std::int64_t>(grid) * args.key_size / (args.key_size + num_queries);
    key_blocks = max(1, min(static_cast<std::int32_t>(share), grid - 1));
  }
  const bool makes_keys = block < key_blocks;
  const std::int32_t num_blocks = makes_keys ? key_blocks : grid - key_blocks;
  const std::int32_t num_outputs = makes_keys ? args.key_size : num_queries;
  if (!makes_keys) block -= key_blocks;

  for (std::int32_t base = block; base < num_outputs; base += num_blocks * kWorkWarps) {
    const std::int32_t output = base + warp * num_blocks;
    const bool is_output = output < num_outputs;
    const Weight* weights =
        chunk_keys::output_weights(args, 0, makes_keys, min(output, num_outputs - 1));
    for (std::int32_t seq = 0; seq < args.table.num_seqs; ++seq) {
      const chunk_keys::NewestToken newest = shared.newest[seq];
      if (!chunk_keys::needs_output(newest, makes_keys, args.maybe_open_keys != nullptr)) continue;
      const Row* row = args.rows + seq * args.row_seq_stride;
      const float* sums = args.open_sums + static_cast<std::int64_t>(seq) * args.row_size;
      float total[1] = {0.0F};
      for (std::int32_t from = 0; from < args.row_size; from += kInputFeatures) {
        const std::int32_t num_vectors = min(kInputFeatures, args.row_size - from) / kRowVector;
        RowVector<Weight> words[kAhead];
        const auto load = [&](std::int32_t first) {
#pragma unroll
          for (int u = 0; u < kAhead; ++u) {
            const std::int32_t at = first + u * kWarpSize;
            if (is_output && at < num_vectors) words[u].load_once(weights + from + at * kRowVector);
          }
        };
        load(lane);
        __syncthreads();  // the last input has been read
        if (makes_keys) {
          for (std::int32_t i = thread; i < num_vectors; i += kWorkThreads) {
            RowVector<Row> row_words;
            RowVector<float> sum_words;
            row_words.load(row + from + i * kRowVector);
            sum_words.load(sums + from + i * kRowVector);
            float v[kRowVector];
            chunk_keys::add_row(row_words, sum_words, newest, args.pooling, v);
            shared.input.set(i, v);
          }
        } else {
          shared.input.load<kWorkThreads>(row + from, num_vectors * kRowVector);
        }
        __syncthreads();
#pragma unroll 1
        for (std::int32_t first = lane; first < num_vectors; first += kAhead * kWarpSize) {
          if (first != lane) load(first);
#pragma unroll
          for (int u = 0; u < kAhead; ++u) {
            const std::int32_t at = first + u * kWarpSize;
            if (is_output && at < num_vectors) {
              chunk_keys::multiply_vector(words[u], shared.input, at, total[0]);
            }
          }
        }
      }
      const float value = warp_sum(total[0]);
      if (lane == 0 && is_output) {
        chunk_keys::store_output(args, 0, seq, makes_keys, output, newest, value);
      }
    }
  }
}

/// Mean keys and copies of queries, of the sequences that need them.
template <typename Row, typename Key, typename Weight>
__device__ inline void make_mean_keys(const UpdateChunkKeysArgs<Row, Key, Weight>& args,
                                      const KeyShared& shared) {
  const std::int32_t num_key_vectors = args.row_size / kRowVector;
  const std::int32_t num_vectors = num_key_vectors + args.num_query_features / kRowVector;
  for (std::int32_t seq = 0; seq < args.table.num_seqs; ++seq) {
    const chunk_keys::NewestToken newest = shared.newest[seq];
    const bool makes_key = chunk_keys::needs_output(newest, true, args.maybe_open_keys != nullptr);
    const bool makes_query = chunk_keys::needs_output(newest, false, false);
    if (!makes_key && !makes_query) continue;
    for (auto i = static_cast<std::int32_t>(blockIdx.x * kWorkThreads + threadIdx.x);
         i < num_vectors; i += static_cast<std::int32_t>(gridDim.x) * kWorkThreads) {
      if (i >= num_key_vectors) {
        if (makes_query) {
          chunk_keys::copy_query(args, 0, seq, (i - num_key_vectors) * kRowVector);
        }
        continue;
      }
      if (!makes_key) continue;
      const std::int32_t feature = i * kRowVector;
      RowVector<Row> row_words;
      RowVector<float> sum_words;
      row_words.load(args.rows + seq * args.row_seq_stride + feature);
      sum_words.load(args.open_sums + static_cast<std::int64_t>(seq) * args.row_size + feature);
      float sum[kRowVector];
      chunk_keys::add_row(row_words, sum_words, newest, args.pooling, sum);
      chunk_keys::store_mean_key(args, 0, seq, feature, newest, sum);
    }
  }
}

/// Brings the keys that will be scored to the L2 cache, while those of the new chunks are made.
template <typename Key>
__device__ inline void prefetch_keys(const DeviceScoreArgs<Key>& args,
                                     const std::int32_t* num_closed) {
  constexpr std::int64_t kLine = 128;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kWorkThreads * kLine;
  for (std::int32_t seq = 0; seq < args.triggers.count; ++seq) {
    const std::int64_t bytes = static_cast<std::int64_t>(num_closed[seq]) * args.num_key_heads *
                               args.key_dim * static_cast<std::int64_t>(sizeof(Key));
    const auto* keys =
        reinterpret_cast<const unsigned char*>(args.keys + seq * args.key_seq_stride);
    for (std::int64_t at =
             (static_cast<std::int64_t>(blockIdx.x) * kWorkThreads + threadIdx.x) * kLine;
         at < bytes; at += step) {
      prefetch_to_l2(keys + at);
    }
  }
}

/// The phases of a layer's refresh, with all blocks of the grid resident.
template <typename Row, typename Key, typename Weight, int kSteps, bool kWhole>
__global__ void __launch_bounds__(kWorkThreads, kBlocksPerSm)
    refresh_layer_kernel(const __grid_constant__ Work<Row, Key, Weight> work) {
  // What each trigger sees; in shared memory, since registers are scarce where logits are made.
  __shared__ std::int32_t num_closed[kMostRefreshSeqs];  // 0: nothing to score
  __shared__ std::int32_t candidates_end[kMostRefreshSeqs];
  const UpdateChunkKeysArgs<Row, Key, Weight>& update = work.update;
  const DeviceScoreArgs<Key>& score = work.score;
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  auto& keys = dynamic_shared<KeyShared>();
  chunk_keys::NewestToken newest = {};
  std::int32_t trigger = -1;
  if (thread < update.table.num_seqs) {
    trigger = score.triggers.tokens[thread];
    newest = chunk_keys::newest_token(update.table, update.num_tokens, update.maybe_triggers,
                                      update.pooling, thread);
  }
  const bool is_needed = trigger >= 0 || (newest.in_use && newest.closed >= 0);
  if (__syncthreads_or(is_needed ? 1 : 0) == 0) return;  // the same in all blocks

  bool chooses = false;
  num_closed[thread] = 0;
  keys.newest[thread] = newest;
  if (trigger >= 0) {
    const DeviceCandidateRange range = candidate_range(score.table, thread, trigger, score.window);
    chooses = range.num_candidates() > 0 && !budget_holds_all(range, trigger, work.select.budget);
    if (chooses) num_closed[thread] = range.num_closed;
    candidates_end[thread] = range.end;
  }
  const bool any_scores = __syncthreads_or(chooses ? 1 : 0) != 0;
  const auto sight_of = [&](std::int32_t) {
    TriggerSight sight;
    const auto own = static_cast<std::int32_t>(threadIdx.x);
    if (num_closed[own] > 0) sight = {own, num_closed[own], candidates_end[own]};
    return sight;
  };
  if (any_scores) prefetch_keys(score, num_closed);
  if (update.maybe_key_weight != nullptr) {
    project_outputs(update, keys);
  } else {
    make_mean_keys(update, keys);
  }

  GridBarrier barrier(work.state);
  const bool is_direct = score.num_heads <= kMostDirectHeads;
  if (any_scores) {
    barrier.arrive();
    barrier.wait();
    kernels::detail::score_logits_mma<Key, kSteps, kWhole>(
        score, work.layout, dynamic_shared<kernels::detail::ScoreLogitsShared<kSteps>>(), sight_of);
    barrier.arrive();
    if (!is_direct) {
      barrier.wait();
      kernels::detail::join_heads(score, work.layout,
                                  dynamic_shared<kernels::detail::JoinHeadsShared>(), sight_of);
      barrier.arrive();
    }
    if (static_cast<std::int32_t>(blockIdx.x) < score.triggers.count) barrier.wait();
  }
  auto& shared = dynamic_shared<ChoiceShared>();
  for (auto row = static_cast<std::int32_t>(blockIdx.x); row < score.triggers.count;
       row += static_cast<std::int32_t>(gridDim.x)) {
    const std::int32_t token = score.triggers.tokens[row];
    if (token < 0) continue;
    __syncthreads();  // shared memory is free
    float* scores = score.scores + row * score.score_stride;
    if (!is_direct) {
      select_and_plan_row<kWorkThreads>(work.select, work.plan, row, token, shared.choice,
                                        [=](std::int32_t i) { return scores[i]; });
      continue;
    }
    if (num_closed[row] > 0) {
      kernels::detail::normalize_row(score, work.layout, 0, row, num_closed[row], shared.heads);
      __syncthreads();
    }
    const float* logits = work.layout.logits + static_cast<std::int64_t>(row) * score.num_heads *
                                                   work.layout.logit_stride;
    // As `join_heads` does it.
    const auto score_of = [&](std::int32_t i) {
      float joined = 0.0F;
#pragma unroll
      for (std::int32_t head = 0; head < kMostDirectHeads; ++head) {
        if (head >= score.num_heads) break;
        const float p =
            shared.heads.probability(logits[head * work.layout.logit_stride + i + 1], head);
        joined = score.head_join == HeadJoin::kMax ? max_keeping_nan(joined, p) : joined + p;
      }
      if (score.head_join == HeadJoin::kMean) {
        joined = joined * (1.0F / static_cast<float>(score.num_heads));
      }
      scores[i] = joined;
      return joined;
    };
    select_and_plan_row<kWorkThreads>(work.select, work.plan, row, token, shared.choice, score_of);
  }
  if (any_scores) barrier.leave();
}

/// Whether what the phases share is the same memory and the same shape in their arguments, each
/// checked by itself.
///
/// Errors: kInvalidArgument
template <typename Row, typename Key, typename Weight>
Status check_fit(const Work<Row, Key, Weight>& work) {
  const UpdateChunkKeysArgs<Row, Key, Weight>& update = work.update;
  const DeviceScoreArgs<Key>& score = work.score;
  const SelectChunksArgs& select = work.select;
  const cuda::DeviceTriggers& triggers = score.triggers;
  if (triggers.count != update.table.num_seqs || triggers.maybe_seqs != nullptr ||
      triggers.tokens != update.maybe_triggers || triggers.tokens != select.triggers.tokens ||
      triggers.count != select.triggers.count || select.triggers.maybe_seqs != nullptr ||
      score.window.min_tokens != select.window.min_tokens ||
      score.window.min_chunks != select.window.min_chunks || score.scores != select.scores ||
      score.score_stride != select.score_stride) {
    return invalid_argument(
        "refresh_layer: keys, scores and selection must share window, scores and triggers, one a "
        "sequence");
  }
  const auto is_other_table = [&](const cuda::DeviceChunkTable& table) {
    return table.ends != update.table.ends || table.num_chunks != update.table.num_chunks ||
           table.max_chunks != update.table.max_chunks;
  };
  if (is_other_table(score.table) || is_other_table(select.table) ||
      is_other_table(work.plan.table)) {
    return invalid_argument(
        "refresh_layer: keys, scores, selection and plan must share the chunk table");
  }
  if (triggers.count == 0 || update.table.max_chunks <= 1) return {};  // nothing is scored
  const std::int64_t key_size = static_cast<std::int64_t>(score.num_key_heads) * score.key_dim;
  if (score.keys != update.keys || key_size != update.key_size ||
      (triggers.count > 1 && score.key_seq_stride != update.table.max_chunks * key_size)) {
    return invalid_argument("refresh_layer: scores read keys of " + std::to_string(key_size) +
                            " features, " + std::to_string(score.key_seq_stride) +
                            " from sequence to sequence, expected the keys that are made, of " +
                            std::to_string(update.key_size) + " and " +
                            std::to_string(update.table.max_chunks) + " a sequence");
  }
  if (score.queries != update.queries ||
      update.num_query_features != score.num_heads * score.key_dim ||
      (triggers.count > 1 && score.query_stride != update.query_seq_stride)) {
    return invalid_argument("refresh_layer: scores read queries of " +
                            std::to_string(score.num_heads * score.key_dim) + " features, " +
                            std::to_string(score.query_stride) +
                            " apart, expected the queries that are made, of " +
                            std::to_string(update.num_query_features) + " and " +
                            std::to_string(update.query_seq_stride) + " apart");
  }
  const bool makes_nulls = update.maybe_null_weight != nullptr;
  if (makes_nulls && (score.maybe_null != update.queries + update.num_query_features ||
                      update.num_heads != score.num_heads ||
                      (triggers.count > 1 && score.null_stride != update.query_seq_stride))) {
    return invalid_argument(
        "refresh_layer: null logits are made behind each query's features, and must be read there");
  }
  if (score.maybe_open_keys != nullptr && score.maybe_open_keys != update.maybe_open_keys) {
    return invalid_argument("refresh_layer: scores read other open keys than are made");
  }
  return {};
}

template <typename Row, typename Key, typename Weight, int kSteps, bool kWhole>
Status launch(const Work<Row, Key, Weight>& work, cudaStream_t stream) {
  constexpr std::size_t kSharedBytes =
      std::max({sizeof(KeyShared), sizeof(ChoiceShared),
                sizeof(kernels::detail::ScoreLogitsShared<kSteps>)});
  constexpr auto kernel = refresh_layer_kernel<Row, Key, Weight, kSteps, kWhole>;
  CHUNKLLM_ASSIGN_OR_RETURN(const int is_cooperative,
                            cuda::device_attribute(cudaDevAttrCooperativeLaunch));
  if (is_cooperative == 0) {
    return unsupported("refresh_layer: the device has no cooperative launches");
  }
  CHUNKLLM_RETURN_IF_ERROR(kernels::detail::allow_shared(kernel, kSharedBytes));
  CHUNKLLM_ASSIGN_OR_RETURN(const int num_sms,
                            cuda::device_attribute(cudaDevAttrMultiProcessorCount));
  int blocks_per_sm = 0;
  CHUNKLLM_RETURN_IF_ERROR(
      cuda::cuda_status(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_per_sm, kernel,
                                                                      kWorkThreads, kSharedBytes),
                        "refresh_layer: resident blocks"));
  // More blocks than there is work for only wait for each other; an SM each is little to ask.
  const std::int64_t pieces =
      static_cast<std::int64_t>(work.score.triggers.count) * work.layout.unit_groups *
      ceil_div(std::max(work.score.table.max_chunks, 1), work.layout.block_chunks);
  const std::int64_t most = static_cast<std::int64_t>(num_sms) * blocks_per_sm;
  if (most < 2) return unsupported("refresh_layer: the device holds fewer than two blocks");
  const std::int64_t blocks =
      std::min(most, std::max<std::int64_t>({pieces, num_sms, std::int64_t{2}}));

  // Cooperative: all blocks are on the device at once, whatever else runs beside them.
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kWorkThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cuda::cuda_status(cudaLaunchKernelEx(&config, kernel, work), "refresh_layer_kernel");
}

}  // namespace refresh

/// One layer's refresh in decode in one launch: `launch_update_chunk_keys` without the sums,
/// `launch_score_chunks` and `launch_select_and_plan`, with the same results, bit by bit. Where no
/// sequence triggers or ends a chunk the launch reads a few words and ends.
///
/// Sums stay as they are: keys are made of the sum and the newest row. `launch_sum_newest_rows`
/// adds the rows of all layers at the end of the step, with the same `UpdateChunkKeysArgs`.
///
/// Blocks wait for each other, so all of them must be on the device at once, one an SM or more: the
/// launch is cooperative and begins only where every SM has room. Beside kernels that hold SMs for
/// long it waits for them, and a device that is divided (MPS, green contexts) must grant it its
/// SMs.
///
/// Trigger i is of sequence i, and `update.maybe_triggers` and the triggers of scores, selection
/// and plan are one array. A sequence whose budget holds all that is past gets no scores.
///
/// Numerics: as of the launches it stands for
/// Cost: as theirs, and three waits of all blocks for each other, two with one or two heads
/// Errors: as of the launches it stands for; kInvalidArgument where their args do not fit each
///   other; kUnsupported for more than one layer, f32 keys, more than 256 sequences, or a device
///   without cooperative launches. kDeviceError from the launch.
template <typename Row, typename Key, typename Weight>
Status launch_refresh_layer(const RefreshLayerArgs<Row, Key, Weight>& args, cudaStream_t stream) {
  static_assert(!std::is_same_v<Key, float>, "keys are __half or __nv_bfloat16");
  const UpdateChunkKeysArgs<Row, Key, Weight>& update = args.update;
  if (update.num_layers != 1 || args.score.num_layers != 1 ||
      update.table.num_seqs > kMostRefreshSeqs) {
    return unsupported("refresh_layer: " + std::to_string(update.num_layers) + " and " +
                       std::to_string(args.score.num_layers) + " layers and " +
                       std::to_string(update.table.num_seqs) +
                       " sequences; supported are one layer and at most 256 sequences");
  }
  refresh::Work<Row, Key, Weight> work;
  work.update = update;
  work.score = args.score;
  work.select = args.select;
  work.plan = args.plan;
  work.state = static_cast<unsigned*>(args.state);
  CHUNKLLM_RETURN_IF_ERROR(chunk_keys::prepare(work.update));
  CHUNKLLM_RETURN_IF_ERROR(kernels::detail::prepare(work.score));
  CHUNKLLM_RETURN_IF_ERROR(validate(args.select, args.plan));
  CHUNKLLM_RETURN_IF_ERROR(refresh::check_fit(work));
  if (work.score.triggers.count == 0) return {};
  if (args.state == nullptr || !is_aligned(args.state, 4)) {
    return invalid_argument("refresh_layer: expected a state of " +
                            std::to_string(kRefreshStateBytes) + " bytes at a multiple of 4");
  }
  work.layout = kernels::detail::score_layout(work.score);
  if (work.score.key_dim <= 64) {
    return refresh::launch<Row, Key, Weight, 2, true>(work, stream);
  }
  if (work.score.key_dim <= 128) {
    return refresh::launch<Row, Key, Weight, 4, true>(work, stream);
  }
  return refresh::launch<Row, Key, Weight, 2, false>(work, stream);
}

}  // namespace chunkllm::kernels
