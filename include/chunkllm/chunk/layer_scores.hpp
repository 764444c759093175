// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "chunkllm/chunk/chunk_keys.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/score_chunks.hpp"

namespace chunkllm {

/// A trigger as one layer sees it.
struct LayerRefresh {
  std::int64_t layer = 0;
  std::int64_t trigger = 0;  ///< token
  TokenRow row;              ///< the trigger's
  CandidateRange range;
  const ChunkTable* table = nullptr;
  const ChunkKeys* keys = nullptr;        ///< the layer's; unused by a scorer without keys
  const float* log_lengths = nullptr;     ///< [range.num_closed]
  const float* maybe_open_key = nullptr;  ///< of the open chunk up to the trigger
  std::int64_t open_length = 0;           ///< its tokens
  HeadJoin head_join = HeadJoin::kMax;
};

/// What a scorer makes of the candidates: scores of chunks 1, ..., range.end - 1.
///
/// Cost: that of `make_query` and `score_chunks`; allocates the query, the scores and the scratch
template <ChunkScorer Scorer>
std::vector<float> layer_scores(const Scorer& scorer, const LayerRefresh& refresh) {
  std::vector<float> scores(static_cast<std::size_t>(refresh.range.num_candidates()));
  if (scores.empty()) return scores;
  const ScorerShape shape = scorer.shape();
  if (shape.num_heads == 0) {
    scorer.direct_scores(refresh.layer, refresh.trigger, scores);
    return scores;
  }
  std::vector<float> query(static_cast<std::size_t>(shape.query_size()));
  scorer.make_query(refresh.layer, refresh.row, query.data());
  ScoreChunksArgs args;
  args.query = query.data();
  if (shape.has_null_logits) args.maybe_null = query.data() + shape.num_heads * shape.key_dim;
  args.maybe_bias = scorer.distance_bias(refresh.layer);
  args.maybe_open_key = refresh.maybe_open_key;
  if (shape.adds_log_length) {
    args.maybe_log_lengths = refresh.log_lengths;
    args.open_log_length =
        std::log(static_cast<float>(std::max<std::int64_t>(refresh.open_length, 1)));
  }
  args.keys = refresh.keys;
  args.table = refresh.table;
  args.range = refresh.range;
  args.query_token = refresh.trigger;
  args.num_heads = shape.num_heads;
  args.num_key_heads = shape.num_key_heads;
  args.key_dim = shape.key_dim;
  args.scale = shape.scale;
  args.head_join = refresh.head_join;
  std::vector<float> scratch;
  score_chunks(args, scores, scratch);
  return scores;
}

}  // namespace chunkllm
