// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/boundary_f1.hpp"
#include "chunkllm/eval/evaluate_plan.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/rule_boundaries.hpp"
#include "chunkllm/eval/text_chunks.hpp"
#include "chunkllm/infer/position_limits.hpp"

namespace chunkllm::detail {

/// F1 of the boundaries in use, over all texts together.
template <typename KvType, typename Context>
Status evaluate_boundary_f1(Context& context) {
  BoundaryScore score;
  std::int64_t num_tokens = 0;
  for (const EvaluateText& text : context.texts) {
    const auto length = static_cast<std::int64_t>(text.ids.size());
    TextChunks chunks;
    if (context.maybe_adapter != nullptr) {
      SessionOptions reading;
      reading.chunk = context.options.chunk;
      reading.positions = context.options.positions.value_or(
          default_positions(length, context.backbone.config().context_length));
      CHUNKLLM_ASSIGN_OR_RETURN(
          chunks,
          chunks_by_adapter<KvType>(context.backbone, context.maybe_adapter,
                                    std::make_shared<const AnyScorer>(RecentScorer()), reading,
                                    text.ids, context.progress("boundaries"), context.pool));
      context.finish_pass(length);
    } else {
      chunks.ends = rule_chunk_ends(text.ids, context.token_bytes(), context.options.chunk.guards);
    }
    CHUNKLLM_ASSIGN_OR_RETURN(const BoundaryScore of_text,
                              score_chunk_ends(context.tokenizer, text.ids, chunks.ends));
    score += of_text;
    num_tokens += length;
  }
  EvaluateRow row;
  row.task = to_string(EvaluateTask::kBoundaryF1);
  row.metric = "f1";
  row.length = num_tokens;
  row.value = score.f1();
  row.trials = static_cast<std::int64_t>(context.texts.size());
  return context.on_row(row);
}

}  // namespace chunkllm::detail
