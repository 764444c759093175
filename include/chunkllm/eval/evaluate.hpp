// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/evaluate_boundaries.hpp"
#include "chunkllm/eval/evaluate_context.hpp"
#include "chunkllm/eval/evaluate_mass_recall.hpp"
#include "chunkllm/eval/evaluate_perplexity.hpp"
#include "chunkllm/eval/evaluate_plan.hpp"
#include "chunkllm/eval/evaluate_retrieval.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/oracle_scores.hpp"
#include "chunkllm/infer/position_limits.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm {

/// Makes the rows of the quality tables, one after the other.
///
/// Dense attention is measured once for a window or trial and stands beside every row, always with
/// original positions. Rows of a scorer come when its last window or trial is done; where
/// `on_progress` stops the work, rows of what was done so far come first, with fewer trials.
///
/// \tparam KvType       float, F16 or BF16
/// \tparam SessionType  reads the texts; oracles and mass recall have a `Session` in any case
template <FrozenBackbone Backbone, typename KvType,
          typename SessionType = Session<Backbone, AnyScorer, KvType>>
class Evaluator {
  using Context = detail::EvaluateContext<Backbone, KvType, SessionType>;

 public:
  using OnRow = typename Context::OnRow;
  /// Called with what runs, and with the tokens read so far and in all; false stops the work.
  using OnProgress = typename Context::OnProgress;

  /// \param maybe_adapter  finds the boundaries, but for the oracle and the mass recall, which
  ///                       always have those of the sentence rules
  Evaluator(const Backbone& backbone, const BpeTokenizer& tokenizer,
            std::shared_ptr<const ChunkAdapter> maybe_adapter, EvaluateOptions options,
            ThreadPool& pool)
      : context_(backbone, tokenizer, std::move(maybe_adapter), std::move(options), pool) {}

  /// Runs all tasks over the texts.
  ///
  /// Errors: kInvalidArgument for settings or lengths that the texts or the model's window do not
  ///         allow, before anything is measured; kInterrupted where `on_progress` asks to stop;
  ///         what `on_row` returns.
  Status run(std::span<const EvaluateText> texts, const OnRow& on_row,
             const OnProgress& on_progress) {
    context_.texts = texts;
    context_.on_row = on_row;
    CHUNKLLM_RETURN_IF_ERROR(validate(options(), texts));
    CHUNKLLM_RETURN_IF_ERROR(measure_trials());
    CHUNKLLM_RETURN_IF_ERROR(check_configurations());
    context_.start(on_progress, count_tokens());
    for (const EvaluateTask task : options().tasks) {
      if (task == EvaluateTask::kBoundaryF1) {
        CHUNKLLM_RETURN_IF_ERROR(detail::evaluate_boundary_f1<KvType>(context_));
        continue;
      }
      for (const std::int64_t length : options().lengths) {
        CHUNKLLM_RETURN_IF_ERROR(run_task(task, length));
      }
    }
    return {};
  }

 private:
  [[nodiscard]] const EvaluateOptions& options() const { return context_.options; }

  Status run_task(EvaluateTask task, std::int64_t length) {
    switch (task) {
      case EvaluateTask::kPerplexity:
        return detail::EvaluatePerplexity<Context>(context_, length).run();
      case EvaluateTask::kMassRecall: return detail::evaluate_mass_recall<KvType>(context_, length);
      case EvaluateTask::kPasskey:
      case EvaluateTask::kMultiKey: break;
      case EvaluateTask::kBoundaryF1: return {};  // of no length
    }
    return detail::EvaluateRetrieval<Context>(context_, task, filler_, length,
                                              tokens_read(task, length))
        .run();
  }

  /// The filler of the longest text, and how long trials are once their facts are in.
  Status measure_trials() {
    const auto longest =
        std::max_element(context_.texts.begin(), context_.texts.end(),
                         [](const auto& a, const auto& b) { return a.ids.size() < b.ids.size(); });
    trial_tokens_.clear();
    for (const EvaluateTask task : options().tasks) {
      if (!is_retrieval(task)) continue;
      if (trial_tokens_.empty()) filler_ = FillerText::from_ids(context_.tokenizer, longest->ids);
      for (const std::int64_t length : options().lengths) {
        CHUNKLLM_ASSIGN_OR_RETURN(
            const std::int64_t num_tokens,
            detail::longest_trial(task, options(), context_.tokenizer, filler_, length));
        trial_tokens_[{task, length}] = num_tokens;
      }
    }
    return {};
  }

  /// Tokens of a window or of the longest trial.
  [[nodiscard]] std::int64_t tokens_read(EvaluateTask task, std::int64_t length) const {
    return is_retrieval(task) ? trial_tokens_.at({task, length}) : length;
  }

  /// What depends on the model's window and on how long trials are.
  [[nodiscard]] Status check_configurations() const {
    const bool has_oracle =
        std::any_of(options().scorers.begin(), options().scorers.end(),
                    [](const EvaluateScorer& scorer) { return scorer.scorer == nullptr; });
    for (const EvaluateTask task : options().tasks) {
      if (task == EvaluateTask::kBoundaryF1) {
        CHUNKLLM_RETURN_IF_ERROR(chunkllm::validate(options().chunk));
        continue;
      }
      for (const std::int64_t length : options().lengths) {
        const std::int64_t num_tokens = tokens_read(task, length);
        const bool measures_mass = task == EvaluateTask::kMassRecall || has_oracle;
        if (measures_mass && num_tokens > kMaxOracleTokens) {
          return invalid_argument("evaluate: " + std::string(to_string(task)) + " at length " +
                                  std::to_string(length) + " reads " + std::to_string(num_tokens) +
                                  " tokens, expected at most " + std::to_string(kMaxOracleTokens) +
                                  " with an oracle");
        }
        for (const EvaluateGroup& group : plan_groups(options(), is_retrieval(task))) {
          for (const EvaluateConfiguration& configuration : group.configurations) {
            CHUNKLLM_RETURN_IF_ERROR(check(task, length, group, configuration));
          }
        }
      }
    }
    return {};
  }

  [[nodiscard]] Status check(EvaluateTask task, std::int64_t length, const EvaluateGroup& group,
                             const EvaluateConfiguration& configuration) const {
    const std::int64_t num_tokens = tokens_read(task, length);
    const SessionOptions session = context_.session_options(group, configuration, num_tokens);
    CHUNKLLM_RETURN_IF_ERROR(chunkllm::validate(session.chunk));
    if (session.positions != Positions::kInCache || task == EvaluateTask::kMassRecall) return {};
    return check_in_cache_positions(session.chunk, num_tokens,
                                    context_.backbone.config().context_length)
        .with_context("evaluate: budget " + configuration.budget->text + " at length " +
                      std::to_string(length));
  }

  /// Tokens that all tasks will read: the measure of progress.
  [[nodiscard]] std::int64_t count_tokens() const {
    std::int64_t total = 0;
    for (const EvaluateTask task : options().tasks) {
      if (task == EvaluateTask::kBoundaryF1) {
        if (context_.maybe_adapter == nullptr) continue;
        for (const EvaluateText& text : context_.texts) {
          total += static_cast<std::int64_t>(text.ids.size());
        }
        continue;
      }
      std::int64_t passes = task == EvaluateTask::kMassRecall ? 0 : 1;  // dense
      for (const EvaluateGroup& group : plan_groups(options(), is_retrieval(task))) {
        const bool is_oracle = group.scorer->scorer == nullptr;
        passes += task == EvaluateTask::kMassRecall
                      ? (is_oracle ? 0 : 2)
                      : static_cast<std::int64_t>(group.configurations.size()) + is_oracle;
      }
      const std::int64_t num_windows = options().only_window ? 1 : options().num_windows;
      const std::int64_t count = is_retrieval(task) ? options().num_trials : num_windows;
      for (const std::int64_t length : options().lengths) {
        total += passes * count * tokens_read(task, length);
      }
    }
    return total;
  }

  Context context_;
  FillerText filler_;
  std::map<std::pair<EvaluateTask, std::int64_t>, std::int64_t> trial_tokens_;
};

}  // namespace chunkllm
