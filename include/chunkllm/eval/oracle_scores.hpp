// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/chunk_mass.hpp"
#include "chunkllm/eval/rule_boundaries.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/model/backbone.hpp"

namespace chunkllm {

/// The longest text of which an oracle is made: its tables grow with the square of the length.
inline constexpr std::int64_t kMaxOracleTokens = 16384;

/// Tokens at which a sequence with these chunks refreshes, ascending; the prompt's end left out.
inline std::vector<std::int64_t> refresh_triggers(std::span<const std::int64_t> chunk_ends,
                                                  const RefreshPolicy& refresh,
                                                  std::int64_t num_tokens) {
  std::vector<std::int64_t> triggers;
  if (refresh.kind == RefreshPolicy::Kind::kBoundary) {
    for (const std::int64_t end : chunk_ends) {
      if (end <= num_tokens) triggers.push_back(end - 1);
    }
    return triggers;
  }
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    if (refresh.triggers_at(token)) triggers.push_back(token);
  }
  return triggers;
}

/// The first pass of a two-pass oracle: dense attention over `ids`, and the mass that every chunk
/// gets at every trigger. A `TableScorer` over the result ranks chunks in the second pass.
///
/// The second pass must have the same chunks, which boundaries from the sentence rules guarantee:
/// `rule_chunk_ends`. Positions are original, whatever the second pass uses.
///
/// \tparam KvType     of the dense pass
/// \param chunk_ends  exclusive ends of closed chunks, ascending
/// \param triggers    token positions, ascending
/// \param progress    called with the tokens read so far; false stops
/// Errors: kInvalidArgument as `ChunkMassCollector::create` says, or for an id outside the
///         vocabulary; kResourceExhausted above 16,384 tokens or above 1 GiB of scores;
///         kInterrupted where `progress` asks to stop
/// Cost: a dense pass, and as much again for the mass
template <typename KvType, FrozenBackbone Backbone>
Result<std::shared_ptr<const TableScorer::Table>> collect_oracle_scores(
    const Backbone& backbone, std::span<const std::int32_t> ids,
    std::vector<std::int64_t> chunk_ends, const std::vector<std::int64_t>& triggers,
    const ChunkMassOptions& options, const std::function<bool(std::int64_t)>& progress,
    ThreadPool& pool) {
  if (static_cast<std::int64_t>(ids.size()) > kMaxOracleTokens) {
    return resource_exhausted("the oracle reads at most " + std::to_string(kMaxOracleTokens) +
                              " tokens, the text has " + std::to_string(ids.size()));
  }
  constexpr std::int64_t kMaxScores = std::int64_t{1} << 28;
  std::int64_t num_scores = 0;
  for (const std::int64_t trigger : triggers) {
    num_scores +=
        std::upper_bound(chunk_ends.begin(), chunk_ends.end(), trigger + 1) - chunk_ends.begin();
  }
  if (num_scores > kMaxScores / std::max<std::int64_t>(backbone.config().num_layers, 1)) {
    return resource_exhausted("the oracle's scores of " + std::to_string(triggers.size()) +
                              " refreshes would exceed 1 GiB: refresh less often");
  }
  CHUNKLLM_ASSIGN_OR_RETURN(ChunkMassCollector collector,
                            ChunkMassCollector::create(backbone.config(), std::move(chunk_ends),
                                                       triggers, options, pool));
  SessionOptions dense;
  dense.dense = true;
  // A scorer that nobody asks: of the type that the second pass has, too.
  using DenseSession = Session<Backbone, AnyScorer, KvType>;
  CHUNKLLM_ASSIGN_OR_RETURN(
      DenseSession session,
      DenseSession::create(
          backbone, std::make_shared<const AnyScorer>(RecentScorer()), nullptr,
          [](std::int32_t) { return std::string_view(); }, dense, pool));
  session.reserve(static_cast<std::int64_t>(ids.size()));
  session.observe_attention([&collector](std::int64_t layer, std::int64_t first_token,
                                         MatrixView<const float> q, const KvView<KvType>& kv,
                                         std::span<const float> lse) {
    collector.observe(layer, first_token, q, kv, lse);
  });
  CHUNKLLM_RETURN_IF_ERROR(session.prefill(ids, progress));
  return std::make_shared<const TableScorer::Table>(collector.take());
}

/// `collect_oracle_scores` for a session that reads `ids` with the chunks of the sentence rules, as
/// the scorer of that second pass.
///
/// \param token_bytes  (std::int32_t id) -> std::string_view
/// \param chunk        guards, refreshes and the join of heads of the second pass
/// \param prompt_len   > 0: the prompt's last token is a trigger, too
/// Errors: those of `collect_oracle_scores`.
template <typename KvType, FrozenBackbone Backbone, typename TokenBytes>
Result<std::shared_ptr<const AnyScorer>> make_oracle_scorer(
    const Backbone& backbone, std::span<const std::int32_t> ids, const TokenBytes& token_bytes,
    const ChunkOptions& chunk, MassRows rows, std::int64_t prompt_len,
    const std::function<bool(std::int64_t)>& progress, ThreadPool& pool) {
  std::vector<std::int64_t> ends = rule_chunk_ends(ids, token_bytes, chunk.guards);
  std::vector<std::int64_t> triggers =
      refresh_triggers(ends, chunk.refresh, static_cast<std::int64_t>(ids.size()));
  if (prompt_len > 0) {
    const auto at = std::lower_bound(triggers.begin(), triggers.end(), prompt_len - 1);
    if (at == triggers.end() || *at != prompt_len - 1) triggers.insert(at, prompt_len - 1);
  }
  CHUNKLLM_ASSIGN_OR_RETURN(auto table,
                            collect_oracle_scores<KvType>(backbone, ids, std::move(ends), triggers,
                                                          {rows, chunk.head_join}, progress, pool));
  return std::make_shared<const AnyScorer>(TableScorer(std::move(table)));
}

}  // namespace chunkllm
