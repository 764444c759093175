// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

// The part of `PrefillBlock` that finds boundaries; included by prefill_block.hpp.
#include "chunkllm/cuda/prefill_block.hpp"

namespace chunkllm::cuda {

template <typename T>
Status PrefillBlock<T>::find_boundaries_and_run(TokenBlockPlan& plan,
                                                const DeviceChunkAdapter& adapter,
                                                const Decide& decide, const NewEnds& new_ends,
                                                bool chooses, std::vector<std::int32_t>& triggers,
                                                cudaStream_t stream) {
  // About a chunk: longer stretches are mostly thrown away. As `ChunkState`.
  constexpr std::int32_t kRowsAtATime = 32;
  if (plan.tokens.empty()) return {};
  CHUNKLLM_RETURN_IF_ERROR(begin(plan, stream));
  CHUNKLLM_RETURN_IF_ERROR(project(plan, 0, stream));
  const bool by_layer = chooses && plan.sets == TokenBlockPlan::Sets::kLayerLocal;
  const bool has_own_sets = by_layer && selects(0);
  const bool ends_at_trigger = chooses && plan.sets == TokenBlockPlan::Sets::kStanding;
  if (has_own_sets) {
    CHUNKLLM_RETURN_IF_ERROR(
        kernels::launch_copy_set(batch_->sets(0), plan.seq, block_sets(0), 0, stream));
  }
  const std::int64_t width = config().hidden_size;
  std::vector<float> probabilities(plan.tokens.size());
  std::int32_t num_ends = 0;
  triggers.clear();
  for (std::int32_t done = 0; done < plan.num_rows();) {
    const std::int32_t rest = plan.num_rows() - done;
    const std::int32_t count =
        has_own_sets || ends_at_trigger ? std::min(kRowsAtATime, rest) : rest;
    float* hidden = hidden_.data() + done * width;
    CHUNKLLM_RETURN_IF_ERROR(inputs_.upload_round(count, stream));
    const DeviceAttendedSets sets =
        has_own_sets ? one(block_sets(0), static_cast<std::int32_t>(triggers.size()))
                     : sets_of(plan, 0);
    CHUNKLLM_RETURN_IF_ERROR(
        attend(plan, 0, done, count, inputs_.round_tile(), 1, count, sets, stream));
    CHUNKLLM_RETURN_IF_ERROR(backbone_->finish_layer(
        run_on(stream), 0, attended_.data() + done * config().query_size(), count, hidden));
    CHUNKLLM_RETURN_IF_ERROR(kernels::launch_boundary_probabilities(
        hidden, count, static_cast<std::int32_t>(width), adapter.weight.data(), adapter.bias,
        probabilities_.data(), stream));
    CHUNKLLM_RETURN_IF_ERROR(probabilities_.download(
        std::span<float>(probabilities).first(static_cast<std::size_t>(count)), stream));
    CHUNKLLM_RETURN_IF_ERROR(
        cuda_status(cudaStreamSynchronize(stream), "a round of the first layer"));

    std::int32_t kept = 0;
    bool triggered = false;
    while (kept < count) {
      const std::int32_t token = plan.first_token + done + kept;
      triggered = decide(token, probabilities[static_cast<std::size_t>(kept++)]);
      if (!triggered) continue;
      triggers.push_back(token);
      if (has_own_sets || ends_at_trigger) break;
    }
    if (!batch_->options().dense) {
      const std::span<const std::int32_t> all_ends = new_ends();
      CHUNKLLM_RETURN_IF_ERROR(check_room(plan, triggers.size(), all_ends.size()));
      const std::span<const std::int32_t> ends =
          all_ends.subspan(static_cast<std::size_t>(num_ends));
      const std::int32_t first_chunk = plan.first_chunk + num_ends;
      const std::int32_t last = plan.first_token + done + kept - 1;
      CHUNKLLM_RETURN_IF_ERROR(
          inputs_.upload_found(last, plan.seq, batch_->table(), first_chunk, ends, stream));
      if (selects(0)) {
        ScorerRows<T> rows = scorer_rows(plan, 0, done, kept);
        rows.first_chunk = first_chunk;
        rows.num_new_chunks = static_cast<std::int32_t>(ends.size());
        rows.query_tokens = inputs_.round_query_token();
        rows.num_queries = 1;
        CHUNKLLM_RETURN_IF_ERROR(keys_.take_rows(rows, stream));
        CHUNKLLM_RETURN_IF_ERROR(hand_over_query(plan.seq, 0, 0, stream));
      }
      if (triggered && has_own_sets) {
        CHUNKLLM_RETURN_IF_ERROR(
            choose_sets(0, static_cast<std::int32_t>(triggers.size()) - 1,
                        {inputs_.round_query_token(), inputs_.round_query_seq(), 1}, stream));
      }
      num_ends += static_cast<std::int32_t>(ends.size());
    }
    done += kept;
    if (ends_at_trigger && triggered) {
      plan.tokens = plan.tokens.first(static_cast<std::size_t>(done));
    } else if (kept < count) {  // the rows behind the trigger begin anew
      CHUNKLLM_RETURN_IF_ERROR(backbone_->embed(run_on(stream), inputs_.tokens() + done,
                                                count - kept, hidden + kept * width));
    }
  }
  plan.new_ends = new_ends();
  if (by_layer) plan.triggers = triggers;
  CHUNKLLM_RETURN_IF_ERROR(upload_plan(plan, stream));
  CHUNKLLM_RETURN_IF_ERROR(keep_last_set(plan, 0, stream));
  return run_other_layers(plan, stream);
}

}  // namespace chunkllm::cuda
