// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/evaluate_context.hpp"
#include "chunkllm/eval/evaluate_plan.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/perplexity.hpp"

namespace chunkllm::detail {

/// The windows of one length that `options` ask for.
inline std::vector<std::vector<std::int32_t>> chosen_windows(const EvaluateOptions& options,
                                                             std::span<const EvaluateText> texts,
                                                             std::span<const std::int32_t> prefix,
                                                             std::int64_t length) {
  std::vector<std::vector<std::int32_t>> windows =
      cut_windows(texts, prefix, length, options.num_windows);
  if (!options.only_window) return windows;
  return {std::move(windows[static_cast<std::size_t>(*options.only_window)])};
}

/// Perplexity of the second half of windows of one length; dense attention reads each window once.
template <typename Context>
class EvaluatePerplexity {
 public:
  EvaluatePerplexity(Context& context, std::int64_t length) : context_(context), length_(length) {
    for (auto& ids :
         chosen_windows(context.options, context.texts, context.tokenizer.prefix_ids(), length)) {
      windows_.emplace_back().ids = std::move(ids);
    }
  }

  Status run() {
    for (const EvaluateGroup& group : plan_groups(context_.options, /*with_second_looks=*/false)) {
      CHUNKLLM_RETURN_IF_ERROR(run_group(group));
    }
    return {};
  }

 private:
  struct Score {
    double nll = 0.0;  // sum over the scored tokens
    double share = 0.0;
    std::int64_t num_scored = 0;
  };
  struct Window {
    std::vector<std::int32_t> ids;
    double dense_nll = 0.0;
    bool has_dense = false;
  };

  /// A row for each configuration, over the windows that were read before the work was stopped.
  Status run_group(const EvaluateGroup& group) {
    std::vector<Score> sums(group.configurations.size());
    double dense_nll = 0.0;
    std::int64_t num_done = 0;
    Status status;
    for (Window& window : windows_) {
      std::vector<Score> scores;
      status = score_window(group, window, scores);
      if (!status.ok()) break;
      for (std::size_t i = 0; i < scores.size(); ++i) {
        sums[i].nll += scores[i].nll;
        sums[i].share += scores[i].share;
        sums[i].num_scored += scores[i].num_scored;
      }
      dense_nll += window.dense_nll;
      ++num_done;
    }
    for (std::size_t i = 0; i < sums.size() && num_done > 0; ++i) {
      const EvaluateConfiguration& configuration = group.configurations[i];
      EvaluateRow row = context_.make_row(EvaluateTask::kPerplexity, length_, group, configuration);
      row.metric = "perplexity";
      row.positions =
          positions_name(context_.session_options(group, configuration, length_).positions);
      const auto scored = static_cast<double>(sums[i].num_scored);
      row.value = std::exp(sums[i].nll / scored);
      row.dense_value = std::exp(dense_nll / scored);
      row.attended_share = sums[i].share / static_cast<double>(num_done);
      row.trials = num_done;
      CHUNKLLM_RETURN_IF_ERROR(context_.on_row(row));
    }
    return status;
  }

  /// Dense where it is not known yet, then each configuration.
  Status score_window(const EvaluateGroup& group, Window& window, std::vector<Score>& scores) {
    if (!window.has_dense) {
      CHUNKLLM_ASSIGN_OR_RETURN(const Score dense,
                                score(window, context_.make_dense_session(), "perplexity, dense"));
      window.dense_nll = dense.nll;
      window.has_dense = true;
    }
    CHUNKLLM_ASSIGN_OR_RETURN(const auto scorer,
                              context_.scorer_for(group, window.ids, /*prompt_len=*/0));
    for (const EvaluateConfiguration& configuration : group.configurations) {
      CHUNKLLM_ASSIGN_OR_RETURN(
          const Score chunked,
          score(window, context_.make_session(group, configuration, scorer, length_),
                "perplexity, " + group.scorer->name + ", " + configuration.budget->text));
      scores.push_back(chunked);
    }
    return {};
  }

  Result<Score> score(const Window& window, Result<typename Context::EvaluateSession> session,
                      std::string label) {
    if (!session.ok()) return session.status();
    PerplexityResult result;
    CHUNKLLM_RETURN_IF_ERROR(
        measure_perplexity(session.value(), window.ids,
                           {std::max<std::int64_t>(1, length_ / 2), context_.options.read_mode},
                           context_.progress(std::move(label)), context_.pool, result));
    context_.finish_pass(length_);
    return Score{result.nll_sum(), session->attended().share(), result.num_scored()};
  }

  Context& context_;
  std::int64_t length_;
  std::vector<Window> windows_;
};

}  // namespace chunkllm::detail
