// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/device_batch.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/device_scorer.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/join_scores.cuh"
#include "chunkllm/kernels/plan_attended_sets.cuh"
#include "chunkllm/kernels/score_chunks.cuh"
#include "chunkllm/kernels/select_chunks.cuh"

namespace chunkllm::cuda {

/// Triggers of some layers, and where the sets go that are chosen for them.
struct SetRequest {
  DeviceTriggers triggers;
  std::int64_t first_layer = 0;
  std::int64_t num_layers = 1;                      ///< more than one: they share the sets
  const float* queries = nullptr;                   ///< [num_layers, triggers.count, query_stride]
  const float* maybe_open_keys = nullptr;           ///< [num_layers, triggers.count, key_size]
  DeviceAttendedSets sets;                          ///< trigger i fills set i
  const std::int32_t* maybe_tail_tokens = nullptr;  ///< see `PlanArgs`
};

/// Scores, joins, selects and plans for triggers whose queries stand ready; `SetChooser` on the
/// device. Owns what lies between the kernels.
template <typename T>
class DeviceSetChooser {
 public:
  DeviceSetChooser() = default;

  /// \param most_layers    that share a set; 1 where each has its own
  /// \param most_triggers  of one request
  static Result<DeviceSetChooser> create(const BackboneConfig& config,
                                         const DeviceScorer<T>& scorer, const DeviceBatch<T>& batch,
                                         std::int32_t most_layers, std::int32_t most_triggers,
                                         cudaStream_t stream) {
    DeviceSetChooser chooser;
    chooser.scorer_ = &scorer;
    chooser.batch_ = &batch;
    CHUNKLLM_RETURN_IF_ERROR(chooser.allocate(config, most_layers, most_triggers, stream));
    return Result<DeviceSetChooser>(std::move(chooser));
  }

  /// Enqueues the choice; a trigger < 0 leaves its set as it is.
  Status choose(const SetRequest& request, cudaStream_t stream) const {
    if (request.num_layers > 1) return choose_part(request, stream);
    for (std::int32_t first = 0; first < request.triggers.count; first += at_once_) {
      const std::int32_t count = std::min(at_once_, request.triggers.count - first);
      CHUNKLLM_RETURN_IF_ERROR(choose_part(part_of(request, first, count), stream));
    }
    return {};
  }

  /// Device memory between the kernels.
  [[nodiscard]] std::size_t bytes() const {
    return scores_.bytes() + joined_.bytes() + chosen_.bytes() + num_chosen_.bytes() +
           num_nan_.bytes() + selectable_.bytes() + workspace_.bytes();
  }
  /// Whether that many triggers fit one request.
  [[nodiscard]] bool holds(std::int32_t num_triggers) const { return num_triggers <= at_once_; }

  /// The arguments of the operations that choose a layer's sets; for layers together select then
  /// takes the joined scores.
  void fill(const SetRequest& request, kernels::DeviceScoreArgs<T>& score,
            kernels::SelectChunksArgs& select, kernels::PlanArgs& plan) const {
    const ChunkOptions& chunk = batch_->options().chunk;
    score = score_args(request);
    select = {};
    select.scores = scores_.data();
    select.score_stride = batch_->max_chunks();
    select.table = batch_->table();
    select.triggers = request.triggers;
    select.window = local_window();
    select.budget = chunk.budget;
    select.threshold = chunk.threshold;
    select.chosen = chosen_.data();
    select.max_chosen = batch_->max_chunks();
    select.num_chosen = num_chosen_.data();
    select.num_nan = num_nan_.data();
    plan = {};
    plan.table = select.table;
    plan.triggers = select.triggers;
    plan.window = select.window;
    plan.chosen = select.chosen;
    plan.max_chosen = select.max_chosen;
    plan.num_chosen = select.num_chosen;
    plan.sets = request.sets;
    plan.maybe_tail_tokens = request.maybe_tail_tokens;
  }

 private:
  /// Logits of all heads and triggers of a part take no more than this.
  static constexpr std::size_t kMostWorkspaceBytes = std::size_t{256} << 20;

  Status allocate(const BackboneConfig& config, std::int32_t most_layers,
                  std::int32_t most_triggers, cudaStream_t stream) {
    const ChunkOptions& chunk = batch_->options().chunk;
    const auto heads = static_cast<std::int32_t>(scorer_->shape().num_heads);
    at_once_ = most_triggers;
    const auto workspace_bytes = [&] {
      return std::max(
          kernels::score_chunks_workspace_bytes(most_layers, at_once_, heads, batch_->max_chunks()),
          kernels::join_scores_workspace_bytes(chunk.selection, most_layers, at_once_));
    };
    if (most_layers == 1) {
      while (at_once_ > 1 && workspace_bytes() > kMostWorkspaceBytes) at_once_ /= 2;
    }
    const auto triggers = static_cast<std::size_t>(at_once_);
    const auto chunks = static_cast<std::size_t>(batch_->max_chunks());
    CHUNKLLM_ASSIGN_OR_RETURN(workspace_, DeviceBuffer<std::byte>::create(workspace_bytes()));
    CHUNKLLM_RETURN_IF_ERROR(
        make(scores_, static_cast<std::size_t>(most_layers) * triggers * chunks, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(chosen_, triggers * chunks, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(num_chosen_, triggers, stream));
    CHUNKLLM_RETURN_IF_ERROR(make(num_nan_, triggers, stream));
    if (most_layers == 1) return {};
    CHUNKLLM_RETURN_IF_ERROR(make(joined_, triggers * chunks, stream));
    std::vector<std::uint8_t> selectable;
    for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
      selectable.push_back(batch_->is_windowed(layer) ? 0 : 1);
    }
    CHUNKLLM_ASSIGN_OR_RETURN(selectable_, DeviceBuffer<std::uint8_t>::from(
                                               std::span<const std::uint8_t>(selectable), stream));
    return {};
  }

  template <typename Value>
  static Status make(DeviceBuffer<Value>& buffer, std::size_t count, cudaStream_t stream) {
    CHUNKLLM_ASSIGN_OR_RETURN(buffer, DeviceBuffer<Value>::create(count));
    return buffer.zero(stream);
  }

  [[nodiscard]] SetRequest part_of(const SetRequest& request, std::int32_t first,
                                   std::int32_t count) const {
    SetRequest part = request;
    part.triggers.tokens += first;
    if (part.triggers.maybe_seqs != nullptr) part.triggers.maybe_seqs += first;
    part.triggers.count = count;
    part.queries += first * scorer_->query_stride();
    if (part.maybe_open_keys != nullptr) {
      part.maybe_open_keys += first * scorer_->shape().key_size();
    }
    part.sets.span_tokens += std::int64_t{first} * request.sets.span_capacity;
    part.sets.num_span_tokens += first;
    part.sets.tail_begin += first;
    part.sets.num_sets = count;
    if (part.maybe_tail_tokens != nullptr) part.maybe_tail_tokens += first;
    return part;
  }

  Status choose_part(const SetRequest& request, cudaStream_t stream) const {
    kernels::DeviceScoreArgs<T> score;
    kernels::SelectChunksArgs select;
    kernels::PlanArgs plan;
    fill(request, score, select, plan);
    if (!scorer_->ranks_by_recency()) {  // else the scores stay 0, as they were allocated
      CHUNKLLM_RETURN_IF_ERROR(kernels::launch_score_chunks(score, stream));
    }
    if (request.num_layers > 1) {
      CHUNKLLM_RETURN_IF_ERROR(kernels::launch_join_scores(join_args(request), stream));
      select.scores = joined_.data();
    }
    return kernels::launch_select_and_plan(select, plan, stream);
  }

  [[nodiscard]] kernels::DeviceScoreArgs<T> score_args(const SetRequest& request) const {
    const ScorerShape& shape = scorer_->shape();
    kernels::DeviceScoreArgs<T> args;
    args.queries = request.queries;
    args.query_stride = scorer_->query_stride();
    args.query_layer_stride = request.triggers.count * args.query_stride;
    if (shape.has_null_logits) {  // behind each query
      args.maybe_null = request.queries + scorer_->query_features();
      args.null_stride = args.query_stride;
      args.null_layer_stride = args.query_layer_stride;
    } else {
      args.maybe_open_keys = request.maybe_open_keys;
    }
    args.maybe_bias = scorer_->maybe_distance_bias(request.first_layer);
    args.keys = batch_->chunk_keys(request.first_layer);
    args.key_seq_stride = std::int64_t{batch_->max_chunks()} * shape.key_size();
    args.key_layer_stride = batch_->num_seqs() * args.key_seq_stride;
    args.table = batch_->table();
    args.triggers = request.triggers;
    args.window = local_window();
    args.num_layers = static_cast<std::int32_t>(request.num_layers);
    args.num_heads = static_cast<std::int32_t>(shape.num_heads);
    args.num_key_heads = static_cast<std::int32_t>(shape.num_key_heads);
    args.key_dim = static_cast<std::int32_t>(shape.key_dim);
    args.adds_log_length = shape.adds_log_length;
    args.scale = shape.scale;
    args.head_join = batch_->options().chunk.head_join;
    args.scores = scores_.data();
    args.score_stride = batch_->max_chunks();
    args.workspace = workspace_.data();
    args.workspace_bytes = workspace_.size();
    return args;
  }

  [[nodiscard]] kernels::JoinScoresArgs join_args(const SetRequest& request) const {
    const ChunkOptions& chunk = batch_->options().chunk;
    kernels::JoinScoresArgs args;
    args.scores = scores_.data();
    args.score_stride = batch_->max_chunks();
    args.layer_selectable = selectable_.data() + request.first_layer;
    args.num_layers = static_cast<std::int32_t>(request.num_layers);
    args.selection = chunk.selection;
    args.table = batch_->table();
    args.triggers = request.triggers;
    args.window = local_window();
    args.budget = chunk.budget;
    args.threshold = chunk.threshold;
    args.joined = joined_.data();
    args.joined_stride = batch_->max_chunks();
    args.workspace = workspace_.data();
    args.workspace_bytes = workspace_.size();
    return args;
  }

  [[nodiscard]] kernels::LocalWindow local_window() const {
    const ChunkOptions& chunk = batch_->options().chunk;
    return {static_cast<std::int32_t>(chunk.local_min_tokens),
            static_cast<std::int32_t>(chunk.local_min_chunks)};
  }

  const DeviceScorer<T>* scorer_ = nullptr;
  const DeviceBatch<T>* batch_ = nullptr;
  std::int32_t at_once_ = 0;
  DeviceBuffer<float> scores_;  // [most layers, at_once, max_chunks]
  DeviceBuffer<float> joined_;
  DeviceBuffer<std::int32_t> chosen_;
  DeviceBuffer<std::int32_t> num_chosen_;
  DeviceBuffer<std::int32_t> num_nan_;
  DeviceBuffer<std::uint8_t> selectable_;
  DeviceBuffer<std::byte> workspace_;
};

}  // namespace chunkllm::cuda
