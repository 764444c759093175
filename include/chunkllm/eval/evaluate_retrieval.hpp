// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/evaluate_context.hpp"
#include "chunkllm/eval/evaluate_plan.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/multi_key.hpp"
#include "chunkllm/eval/passkey.hpp"
#include "chunkllm/eval/retrieval.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm::detail {

/// Trial `number` of passkey or multi-key; the same one whenever it is asked for.
inline Result<RetrievalTrial> make_trial(EvaluateTask task, const EvaluateOptions& options,
                                         const BpeTokenizer& tokenizer, const FillerText& filler,
                                         std::int64_t length, std::int64_t number) {
  RetrievalTrialOptions trial;
  trial.length = length;
  trial.num_depths = static_cast<std::int64_t>(options.depths.size());
  trial.depth = options.depths[static_cast<std::size_t>(number % trial.num_depths)];
  trial.seed = options.seed;
  trial.trial = number;
  return task == EvaluateTask::kPasskey ? make_passkey_trial(tokenizer, filler, trial)
                                        : make_multi_key_trial(tokenizer, filler, trial);
}

/// Tokens of the longest of all trials, its answer included.
inline Result<std::int64_t> longest_trial(EvaluateTask task, const EvaluateOptions& options,
                                          const BpeTokenizer& tokenizer, const FillerText& filler,
                                          std::int64_t length) {
  std::int64_t longest = 0;
  for (std::int64_t t = 0; t < options.num_trials; ++t) {
    CHUNKLLM_ASSIGN_OR_RETURN(const RetrievalTrial trial,
                              make_trial(task, options, tokenizer, filler, length, t));
    longest =
        std::max(longest, static_cast<std::int64_t>(trial.ids.size() + trial.max_answer_tokens()));
  }
  return longest;
}

/// Passkey or multi-key at one length; dense attention answers each trial once.
template <typename Context>
class EvaluateRetrieval {
 public:
  /// \param num_tokens  of the longest trial: all of them have the positions that it needs
  EvaluateRetrieval(Context& context, EvaluateTask task, const FillerText& filler,
                    std::int64_t length, std::int64_t num_tokens)
      : context_(context),
        task_(task),
        filler_(filler),
        length_(length),
        num_tokens_(num_tokens),
        dense_(static_cast<std::size_t>(context.options.num_trials)) {}

  Status run() {
    for (const EvaluateGroup& group : plan_groups(context_.options, /*with_second_looks=*/true)) {
      std::vector<DepthScores> scores(group.configurations.size());
      Status status;
      for (std::size_t t = 0; t < dense_.size() && status.ok(); ++t) {
        status = run_trial(group, t, scores);
      }
      for (std::size_t i = 0; i < scores.size(); ++i) {
        CHUNKLLM_RETURN_IF_ERROR(emit_rows(group, group.configurations[i], scores[i]));
      }
      CHUNKLLM_RETURN_IF_ERROR(status);
    }
    return {};
  }

 private:
  struct TrialScore {
    double digits = 0.0;
    double forced = 0.0;
    double share = 1.0;
  };
  /// Scores of one configuration, by the asked fact's depth.
  struct DepthScore {
    RetrievalScore chunk;
    RetrievalScore dense;
    double share_sum = 0.0;

    DepthScore& operator+=(const DepthScore& other) {
      chunk += other.chunk;
      dense += other.dense;
      share_sum += other.share_sum;
      return *this;
    }
  };
  using DepthScores = std::map<double, DepthScore>;

  /// Dense where it is not known yet, then each configuration; counts all of them or none.
  Status run_trial(const EvaluateGroup& group, std::size_t number,
                   std::vector<DepthScores>& scores) {
    CHUNKLLM_ASSIGN_OR_RETURN(const RetrievalTrial trial,
                              make_trial(task_, context_.options, context_.tokenizer, filler_,
                                         length_, static_cast<std::int64_t>(number)));
    const std::string name(to_string(task_));
    std::optional<TrialScore>& dense = dense_[number];
    if (!dense) {
      CHUNKLLM_ASSIGN_OR_RETURN(dense,
                                answer(trial, context_.make_dense_session(), name + ", dense"));
    }
    std::vector<std::int32_t> with_answer = trial.ids;
    if (group.scorer->scorer == nullptr) {  // the oracle knows what the right answer would read
      CHUNKLLM_ASSIGN_OR_RETURN(
          const std::vector<std::int32_t> digits,
          context_.tokenizer.encode(" " + trial.answer, /*add_special_tokens=*/false));
      with_answer.insert(with_answer.end(), digits.begin(), digits.end());
    }
    CHUNKLLM_ASSIGN_OR_RETURN(
        const auto scorer,
        context_.scorer_for(group, with_answer, static_cast<std::int64_t>(trial.ids.size())));
    std::vector<TrialScore> done;
    for (const EvaluateConfiguration& configuration : group.configurations) {
      CHUNKLLM_ASSIGN_OR_RETURN(
          const TrialScore score,
          answer(trial, context_.make_session(group, configuration, scorer, num_tokens_),
                 name + ", " + group.scorer->name + ", " + configuration.budget->text));
      done.push_back(score);
    }
    for (std::size_t i = 0; i < done.size(); ++i) {
      DepthScore& score = scores[i][trial.depth];
      score.chunk.add(done[i].digits, done[i].forced);
      score.dense.add(dense->digits, dense->forced);
      score.share_sum += done[i].share;
    }
    return {};
  }

  Result<TrialScore> answer(const RetrievalTrial& trial,
                            Result<typename Context::EvaluateSession> session, std::string label) {
    if (!session.ok()) return session.status();
    CHUNKLLM_ASSIGN_OR_RETURN(const RetrievalAnswer said,
                              answer_trial(session.value(), context_.tokenizer, trial,
                                           context_.progress(std::move(label))));
    context_.finish_pass(num_tokens_);
    return TrialScore{digit_share(said.text, trial.answer), said.forced_share,
                      session->attended().share()};
  }

  /// Rows of digits for each depth, then digits, full answers and forced digits over all depths;
  /// none without a trial.
  Status emit_rows(const EvaluateGroup& group, const EvaluateConfiguration& configuration,
                   const DepthScores& scores) {
    EvaluateRow row = context_.make_row(task_, length_, group, configuration);
    row.second_look = configuration.second_look;
    row.positions =
        positions_name(context_.session_options(group, configuration, num_tokens_).positions);
    const auto emit = [&](const DepthScore& score, const char* metric,
                          double (RetrievalScore::*share)() const) -> Status {
      row.metric = metric;
      row.value = (score.chunk.*share)();
      row.dense_value = (score.dense.*share)();
      row.trials = score.chunk.num_trials;
      row.attended_share = score.share_sum / static_cast<double>(row.trials);
      return context_.on_row(row);
    };
    DepthScore all;
    for (const auto& [depth, score] : scores) {
      row.depth = depth;
      CHUNKLLM_RETURN_IF_ERROR(emit(score, "digits", &RetrievalScore::digit_share));
      all += score;
    }
    if (all.chunk.num_trials == 0) return {};
    row.depth.reset();
    CHUNKLLM_RETURN_IF_ERROR(emit(all, "digits", &RetrievalScore::digit_share));
    CHUNKLLM_RETURN_IF_ERROR(emit(all, "full", &RetrievalScore::full_share));
    return emit(all, "forced", &RetrievalScore::forced_share);
  }

  Context& context_;
  EvaluateTask task_;
  const FillerText& filler_;
  std::int64_t length_;
  std::int64_t num_tokens_;
  std::vector<std::optional<TrialScore>> dense_;  // [trial]
};

}  // namespace chunkllm::detail
