// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/evaluate_plan.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/oracle_scores.hpp"
#include "chunkllm/infer/position_limits.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm::detail {

/// What every task of an `Evaluator` needs: model and settings, sessions, scorers, progress, rows.
///
/// \tparam SessionType  made by a `create` with the parameters of `Session::create`
template <FrozenBackbone Backbone, typename KvType,
          typename SessionType = Session<Backbone, AnyScorer, KvType>>
class EvaluateContext {
 public:
  using EvaluateSession = SessionType;
  using OnRow = std::function<Status(const EvaluateRow&)>;
  using OnProgress =
      std::function<bool(std::string_view label, std::int64_t done, std::int64_t total)>;

  EvaluateContext(const Backbone& model, const BpeTokenizer& text_tokenizer,
                  std::shared_ptr<const ChunkAdapter> chunk_adapter, EvaluateOptions settings,
                  ThreadPool& threads)
      : backbone(model),
        tokenizer(text_tokenizer),
        maybe_adapter(std::move(chunk_adapter)),
        options(std::move(settings)),
        pool(threads) {}

  const Backbone& backbone;
  const BpeTokenizer& tokenizer;
  const std::shared_ptr<const ChunkAdapter> maybe_adapter;
  const EvaluateOptions options;
  ThreadPool& pool;
  std::span<const EvaluateText> texts;
  OnRow on_row;

  /// Starts to count progress towards `total` tokens.
  void start(OnProgress on_progress, std::int64_t total) {
    on_progress_ = std::move(on_progress);
    done_ = 0;
    total_ = total;
  }
  /// Progress of a pass, for the callbacks of sessions; `finish_pass` ends it.
  std::function<bool(std::int64_t)> progress(std::string label) {
    return [this, label = std::move(label)](std::int64_t read) {
      return on_progress_(label, std::min(done_ + read, total_), total_);
    };
  }
  void finish_pass(std::int64_t num_tokens) { done_ += num_tokens; }

  /// Bytes of a token, as the sentence rules see them.
  [[nodiscard]] auto token_bytes() const {
    return [this](std::int32_t id) { return tokenizer.token_bytes(id); };
  }

  /// \param num_tokens  of prompt and answer
  [[nodiscard]] SessionOptions session_options(const EvaluateGroup& group,
                                               const EvaluateConfiguration& configuration,
                                               std::int64_t num_tokens) const {
    SessionOptions session;
    session.dense_prefill = options.dense_prefill;
    session.chunk = options.chunk;
    session.chunk.budget = configuration.budget->budget;
    session.chunk.selection = configuration.selection;
    session.chunk.second_look = configuration.second_look;
    session.chunk.head_join = group.head_join;
    session.chunk.threshold = group.scorer->threshold;
    session.positions =
        options.positions.value_or(default_positions(num_tokens, backbone.config().context_length));
    return session;
  }

  /// A session whose chunks are the oracle's where the group's scorer is one.
  Result<EvaluateSession> make_session(const EvaluateGroup& group,
                                       const EvaluateConfiguration& configuration,
                                       std::shared_ptr<const AnyScorer> scorer,
                                       std::int64_t num_tokens) {
    const bool by_rules = group.scorer->scorer == nullptr;
    return EvaluateSession::create(backbone, std::move(scorer), by_rules ? nullptr : maybe_adapter,
                                   token_bytes(), session_options(group, configuration, num_tokens),
                                   pool);
  }
  Result<EvaluateSession> make_dense_session() {
    SessionOptions dense;
    dense.dense = true;
    return EvaluateSession::create(backbone, std::make_shared<const AnyScorer>(RecentScorer()),
                                   nullptr, token_bytes(), dense, pool);
  }

  /// A scorer for `ids`: the group's, or what the oracle's first pass over them gives.
  ///
  /// \param prompt_len  > 0: the prompt's last token is a trigger, too
  Result<std::shared_ptr<const AnyScorer>> scorer_for(const EvaluateGroup& group,
                                                      std::span<const std::int32_t> ids,
                                                      std::int64_t prompt_len) {
    if (group.scorer->scorer != nullptr) return group.scorer->scorer;
    ChunkOptions chunk = options.chunk;
    chunk.head_join = group.head_join;
    auto scorer =
        make_oracle_scorer<KvType>(backbone, ids, token_bytes(), chunk, group.scorer->oracle_rows,
                                   prompt_len, progress("oracle"), pool);
    if (scorer.ok()) finish_pass(static_cast<std::int64_t>(ids.size()));
    return scorer;
  }

  [[nodiscard]] EvaluateRow make_row(EvaluateTask task, std::int64_t length,
                                     const EvaluateGroup& group,
                                     const EvaluateConfiguration& configuration) const {
    EvaluateRow row;
    row.task = to_string(task);
    row.length = length;
    row.budget = configuration.budget->text;
    row.scorer = group.scorer->name;
    if (has_heads(*group.scorer)) row.head_join = head_join_name(group.head_join);
    if (!group.scorer->ignores_scores) row.selection = selection_name(configuration.selection);
    row.seed = group.scorer->seed;
    return row;
  }

 private:
  OnProgress on_progress_;
  std::int64_t done_ = 0;  // tokens
  std::int64_t total_ = 0;
};

}  // namespace chunkllm::detail
