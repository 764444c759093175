// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/evaluate_perplexity.hpp"
#include "chunkllm/eval/evaluate_plan.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/mass_recall.hpp"

namespace chunkllm::detail {

/// Mass recall of each scorer over the windows of one length. The oracle has no row: it is the
/// teacher, 1 by definition.
template <typename KvType, typename Context>
Status evaluate_mass_recall(Context& context, std::int64_t length) {
  const EvaluateOptions& options = context.options;
  const std::vector<std::vector<std::int32_t>> windows =
      chosen_windows(options, context.texts, context.tokenizer.prefix_ids(), length);
  for (const EvaluateGroup& group : plan_groups(options, /*with_second_looks=*/false)) {
    if (group.scorer->scorer == nullptr) continue;
    ChunkOptions chunk = options.chunk;
    chunk.head_join = group.head_join;
    MassRecall recall;
    std::int64_t num_done = 0;
    Status status;
    for (const std::vector<std::int32_t>& ids : windows) {
      const auto result = measure_mass_recall<KvType>(
          context.backbone, group.scorer->scorer, ids, context.token_bytes(), chunk,
          options.recall_share, context.progress("mass recall, " + group.scorer->name),
          context.pool);
      status = result.status();
      if (!status.ok()) break;
      recall += result.value();
      context.finish_pass(2 * length);
      ++num_done;
    }
    if (recall.num_rows > 0) {
      EvaluateRow row =
          context.make_row(EvaluateTask::kMassRecall, length, group, group.configurations.front());
      row.metric = "recall";
      row.budget.clear();
      row.selection.clear();
      row.value = recall.mean();
      row.trials = num_done;
      CHUNKLLM_RETURN_IF_ERROR(context.on_row(row));
    }
    CHUNKLLM_RETURN_IF_ERROR(status);
  }
  return {};
}

}  // namespace chunkllm::detail
