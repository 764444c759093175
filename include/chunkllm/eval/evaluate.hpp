// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
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
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/boundary_f1.hpp"
#include "chunkllm/eval/evaluate_plan.hpp"
#include "chunkllm/eval/evaluate_row.hpp"
#include "chunkllm/eval/mass_recall.hpp"
#include "chunkllm/eval/multi_key.hpp"
#include "chunkllm/eval/oracle_scores.hpp"
#include "chunkllm/eval/passkey.hpp"
#include "chunkllm/eval/perplexity.hpp"
#include "chunkllm/eval/rule_boundaries.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm {

/// Makes the rows of the quality tables, one after the other.
///
/// Dense attention is measured once for a window or trial and stands beside every row. Rows of a
/// scorer come when its last window or trial is done; where `on_progress` stops the work, rows of
/// what was done so far come first, with fewer trials.
///
/// \tparam KvType  float, F16 or BF16
template <FrozenBackbone Backbone, typename KvType>
class Evaluator {
 public:
  using OnRow = std::function<Status(const EvaluateRow&)>;
  /// Called with what runs, and with the tokens read so far and in all; false stops the work.
  using OnProgress =
      std::function<bool(std::string_view label, std::int64_t done, std::int64_t total)>;

  /// \param maybe_adapter  finds the boundaries, but for the oracle and the mass recall, which
  ///                       always have those of the sentence rules
  Evaluator(const Backbone& backbone, const BpeTokenizer& tokenizer,
            std::shared_ptr<const ChunkAdapter> maybe_adapter, EvaluateOptions options,
            ThreadPool& pool)
      : backbone_(backbone),
        tokenizer_(tokenizer),
        adapter_(std::move(maybe_adapter)),
        options_(std::move(options)),
        pool_(pool) {}

  /// Runs all tasks over the texts.
  ///
  /// Errors: kInvalidArgument for settings or lengths that the texts or the model's window do not
  ///         allow, before anything is measured; kInterrupted where `on_progress` asks to stop;
  ///         what `on_row` returns.
  Status run(std::span<const EvaluateText> texts, const OnRow& on_row,
             const OnProgress& on_progress) {
    on_row_ = &on_row;
    on_progress_ = &on_progress;
    texts_ = texts;
    CHUNKLLM_RETURN_IF_ERROR(check());
    total_ = count_tokens();
    for (const EvaluateTask task : options_.tasks) {
      if (task == EvaluateTask::kBoundaryF1) {
        CHUNKLLM_RETURN_IF_ERROR(run_boundary_f1());
        continue;
      }
      for (const std::int64_t length : options_.lengths) {
        switch (task) {
          case EvaluateTask::kPerplexity: CHUNKLLM_RETURN_IF_ERROR(run_perplexity(length)); break;
          case EvaluateTask::kMassRecall: CHUNKLLM_RETURN_IF_ERROR(run_mass_recall(length)); break;
          default: CHUNKLLM_RETURN_IF_ERROR(run_retrieval(task, length)); break;
        }
      }
    }
    return {};
  }

 private:
  using EvaluateSession = Session<Backbone, AnyScorer, KvType>;

  using Group = EvaluateGroup;
  using Configuration = EvaluateConfiguration;

  struct Window {
    std::vector<std::int32_t> ids;
    double dense_nll = 0.0;  // sum over the scored tokens
    std::int64_t num_scored = 0;
    bool has_dense = false;
  };

  // ----- plans ------------------------------------------------------------------------------

  [[nodiscard]] Status check() const {
    if (texts_.empty()) return invalid_argument("evaluate: there is no text");
    const auto in_range = [](const char* name, std::int64_t value, std::int64_t low,
                             std::int64_t high) -> Status {
      if (value >= low && value <= high) return {};
      return invalid_argument("evaluate: " + std::string(name) + " is " + std::to_string(value) +
                              ", expected " + std::to_string(low) + " to " + std::to_string(high));
    };
    CHUNKLLM_RETURN_IF_ERROR(in_range("number of windows", options_.num_windows, 1, 1 << 16));
    CHUNKLLM_RETURN_IF_ERROR(
        in_range("window", options_.only_window.value_or(0), 0, options_.num_windows - 1));
    CHUNKLLM_RETURN_IF_ERROR(in_range("number of trials", options_.num_trials, 1, 1 << 16));
    if (options_.depths.empty()) return invalid_argument("evaluate: there is no depth");
    const bool has_oracle = std::any_of(options_.scorers.begin(), options_.scorers.end(),
                                        [](const auto& scorer) { return !scorer.scorer; });
    std::int64_t longest = 0;
    for (const EvaluateText& text : texts_) {
      longest = std::max(longest, static_cast<std::int64_t>(text.ids.size()));
    }
    for (const std::int64_t length : options_.lengths) {
      CHUNKLLM_RETURN_IF_ERROR(in_range("length in tokens", length, 2, longest));
      const bool measures_mass = std::find(options_.tasks.begin(), options_.tasks.end(),
                                           EvaluateTask::kMassRecall) != options_.tasks.end();
      if (has_oracle || measures_mass) {
        CHUNKLLM_RETURN_IF_ERROR(
            in_range("length in tokens with an oracle", length, 2, kMaxOracleTokens - 512));
      }
    }
    for (const Group& group : plan_groups(options_, /*with_second_looks=*/true)) {
      for (const Configuration& configuration : group.configurations) {
        for (const std::int64_t length : options_.lengths) {
          const SessionOptions session = session_options(group, configuration, length);
          CHUNKLLM_RETURN_IF_ERROR(validate(session.chunk));
          if (session.positions != Positions::kInCache) continue;
          const std::int64_t most =
              session.chunk.budget.tokens_at(length) + session.chunk.guards.max_len;
          if (most > backbone_.config().context_length) {
            return invalid_argument("evaluate: budget " + configuration.budget->text +
                                    " at length " + std::to_string(length) +
                                    " with positions in the cache needs " + std::to_string(most) +
                                    " positions, the model has " +
                                    std::to_string(backbone_.config().context_length));
          }
        }
      }
    }
    return {};
  }

  /// Tokens that all tasks will read: the measure of progress.
  [[nodiscard]] std::int64_t count_tokens() const {
    std::int64_t total = 0;
    for (const EvaluateTask task : options_.tasks) {
      const bool is_retrieval = task == EvaluateTask::kPasskey || task == EvaluateTask::kMultiKey;
      if (task == EvaluateTask::kBoundaryF1) {
        if (adapter_ == nullptr) continue;
        for (const EvaluateText& text : texts_) {
          total += static_cast<std::int64_t>(text.ids.size());
        }
        continue;
      }
      std::int64_t passes = is_retrieval || task == EvaluateTask::kPerplexity ? 1 : 0;  // dense
      for (const Group& group : plan_groups(options_, is_retrieval)) {
        if (task == EvaluateTask::kMassRecall) {
          passes += group.scorer->scorer == nullptr ? 0 : 2;
          continue;
        }
        passes += static_cast<std::int64_t>(group.configurations.size()) +
                  (group.scorer->scorer == nullptr ? 1 : 0);
      }
      const std::int64_t num_windows = options_.only_window ? 1 : options_.num_windows;
      const std::int64_t count = is_retrieval ? options_.num_trials : num_windows;
      for (const std::int64_t length : options_.lengths) total += passes * count * length;
    }
    return total;
  }

  [[nodiscard]] SessionOptions session_options(const Group& group,
                                               const Configuration& configuration,
                                               std::int64_t length) const {
    SessionOptions session;
    session.chunk = options_.chunk;
    session.chunk.budget = configuration.budget->budget;
    session.chunk.selection = configuration.selection;
    session.chunk.second_look = configuration.second_look;
    session.chunk.head_join = group.head_join;
    session.chunk.threshold = group.scorer->threshold;
    // Room for facts, question and answer.
    constexpr std::int64_t kSlack = 256;
    const bool fits = length + kSlack <= backbone_.config().context_length ||
                      length == backbone_.config().context_length;
    session.positions =
        options_.positions.value_or(fits ? Positions::kOriginal : Positions::kInCache);
    return session;
  }
  [[nodiscard]] static SessionOptions dense_options() {
    SessionOptions session;
    session.dense = true;
    return session;
  }

  // ----- helpers ----------------------------------------------------------------------------

  [[nodiscard]] std::string_view token_bytes(std::int32_t id) const {
    return tokenizer_.token_bytes(id);
  }

  Result<EvaluateSession> make_session(std::shared_ptr<const AnyScorer> scorer,
                                       bool with_rule_boundaries, const SessionOptions& options) {
    return EvaluateSession::create(
        backbone_, std::move(scorer), with_rule_boundaries ? nullptr : adapter_,
        [this](std::int32_t id) { return token_bytes(id); }, options, pool_);
  }

  /// Progress of a pass over `length` tokens; what it read is kept in `done_` when it ends.
  std::function<bool(std::int64_t)> progress(std::string label) {
    return [this, label = std::move(label)](std::int64_t read) {
      return (*on_progress_)(label, std::min(done_ + read, total_), total_);
    };
  }

  /// A scorer for `ids`: the given one, or the oracle's first pass.
  ///
  /// \param prompt_len  > 0: the prompt's last token is a trigger, too
  Result<std::shared_ptr<const AnyScorer>> scorer_for(const Group& group,
                                                      std::span<const std::int32_t> ids,
                                                      std::int64_t prompt_len) {
    if (group.scorer->scorer != nullptr) return group.scorer->scorer;
    const std::vector<std::int64_t> ends = rule_chunk_ends(
        ids, [this](std::int32_t id) { return token_bytes(id); }, options_.chunk.guards);
    std::vector<std::int64_t> triggers =
        refresh_triggers(ends, options_.chunk.refresh, static_cast<std::int64_t>(ids.size()));
    if (prompt_len > 0) {
      const auto at = std::lower_bound(triggers.begin(), triggers.end(), prompt_len - 1);
      if (at == triggers.end() || *at != prompt_len - 1) triggers.insert(at, prompt_len - 1);
    }
    CHUNKLLM_ASSIGN_OR_RETURN(
        auto table, collect_oracle_scores<KvType>(backbone_, ids, ends, triggers,
                                                  {group.scorer->oracle_rows, group.head_join},
                                                  progress("oracle"), pool_));
    done_ += static_cast<std::int64_t>(ids.size());
    return std::make_shared<const AnyScorer>(TableScorer(std::move(table)));
  }

  [[nodiscard]] EvaluateRow make_row(EvaluateTask task, std::int64_t length, const Group& group,
                                     const Configuration& configuration) const {
    EvaluateRow row;
    row.task = to_string(task);
    row.length = length;
    row.budget = configuration.budget->text;
    row.scorer = group.scorer->name;
    if (group.scorer->scorer == nullptr || group.scorer->scorer->shape().num_heads > 0) {
      row.head_join = head_join_name(group.head_join);
    }
    if (!group.scorer->ignores_scores) row.selection = selection_name(configuration.selection);
    row.seed = group.scorer->seed;
    return row;
  }

  // ----- perplexity -------------------------------------------------------------------------

  [[nodiscard]] std::vector<Window> make_windows(std::int64_t length) const {
    std::vector<std::vector<std::int32_t>> all =
        cut_windows(texts_, tokenizer_.prefix_ids(), length, options_.num_windows);
    std::vector<Window> windows;
    for (std::size_t w = 0; w < all.size(); ++w) {
      if (options_.only_window && static_cast<std::size_t>(*options_.only_window) != w) continue;
      windows.emplace_back().ids = std::move(all[w]);
    }
    return windows;
  }

  struct WindowScore {
    double nll = 0.0;
    double share = 1.0;
    std::int64_t num_scored = 0;
  };
  Result<WindowScore> score_window(const Window& window, std::shared_ptr<const AnyScorer> scorer,
                                   bool with_rule_boundaries, const SessionOptions& options,
                                   const std::string& label) {
    CHUNKLLM_ASSIGN_OR_RETURN(EvaluateSession session,
                              make_session(std::move(scorer), with_rule_boundaries, options));
    PerplexityResult result;
    const auto length = static_cast<std::int64_t>(window.ids.size());
    CHUNKLLM_RETURN_IF_ERROR(measure_perplexity(
        session, window.ids, {std::max<std::int64_t>(1, length / 2), options_.read_mode},
        progress(label), pool_, result));
    done_ += length;
    return WindowScore{result.nll_sum(), session.attended().share(), result.num_scored()};
  }

  Status add_dense(Window& window) {
    if (window.has_dense) return {};
    CHUNKLLM_ASSIGN_OR_RETURN(
        const WindowScore score,
        score_window(window, std::make_shared<const AnyScorer>(RecentScorer()),
                     /*with_rule_boundaries=*/true, dense_options(), "perplexity, dense"));
    window.dense_nll = score.nll;
    window.num_scored = score.num_scored;
    window.has_dense = true;
    return {};
  }

  Status run_perplexity(std::int64_t length) {
    std::vector<Window> windows = make_windows(length);
    for (const Group& group : plan_groups(options_, /*with_second_looks=*/false)) {
      std::vector<WindowScore> sums(group.configurations.size(), WindowScore{0.0, 0.0, 0});
      double dense_nll = 0.0;
      std::int64_t num_done = 0;
      Status status;
      for (Window& window : windows) {
        std::vector<WindowScore> scores;
        status = score_group(group, window, length, scores);
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
        EvaluateRow row =
            make_row(EvaluateTask::kPerplexity, length, group, group.configurations[i]);
        row.metric = "perplexity";
        const auto scored = static_cast<double>(sums[i].num_scored);
        row.value = std::exp(sums[i].nll / scored);
        row.dense_value = std::exp(dense_nll / scored);
        row.attended_share = sums[i].share / static_cast<double>(num_done);
        row.trials = num_done;
        CHUNKLLM_RETURN_IF_ERROR((*on_row_)(row));
      }
      CHUNKLLM_RETURN_IF_ERROR(status);
    }
    return {};
  }

  Status score_group(const Group& group, Window& window, std::int64_t length,
                     std::vector<WindowScore>& scores) {
    CHUNKLLM_RETURN_IF_ERROR(add_dense(window));
    CHUNKLLM_ASSIGN_OR_RETURN(const std::shared_ptr<const AnyScorer> scorer,
                              scorer_for(group, window.ids, /*prompt_len=*/0));
    for (const Configuration& configuration : group.configurations) {
      CHUNKLLM_ASSIGN_OR_RETURN(
          const WindowScore score,
          score_window(window, scorer, /*with_rule_boundaries=*/group.scorer->scorer == nullptr,
                       session_options(group, configuration, length),
                       "perplexity, " + group.scorer->name + ", " + configuration.budget->text));
      scores.push_back(score);
    }
    return {};
  }

  // ----- passkey and multi-key --------------------------------------------------------------

  struct TrialScore {
    double digits = 0.0;
    double forced = 0.0;
    double share = 1.0;
  };
  struct Trial {
    RetrievalTrial trial;
    std::optional<TrialScore> dense;
  };

  Result<std::vector<Trial>> make_trials(EvaluateTask task, std::int64_t length) const {
    const auto longest =
        std::max_element(texts_.begin(), texts_.end(),
                         [](const auto& a, const auto& b) { return a.ids.size() < b.ids.size(); });
    const FillerText filler = FillerText::from_ids(tokenizer_, longest->ids);
    std::vector<Trial> trials;
    for (std::int64_t t = 0; t < options_.num_trials; ++t) {
      RetrievalTrialOptions options;
      options.length = length;
      options.depth = options_.depths[static_cast<std::size_t>(t) % options_.depths.size()];
      options.seed = options_.seed;
      options.trial = t;
      Trial trial;
      if (task == EvaluateTask::kPasskey) {
        CHUNKLLM_ASSIGN_OR_RETURN(trial.trial, make_passkey_trial(tokenizer_, filler, options));
      } else {
        CHUNKLLM_ASSIGN_OR_RETURN(trial.trial, make_multi_key_trial(tokenizer_, filler, options));
      }
      trials.push_back(std::move(trial));
    }
    return trials;
  }

  Result<TrialScore> run_trial(const RetrievalTrial& trial, std::shared_ptr<const AnyScorer> scorer,
                               bool with_rule_boundaries, const SessionOptions& options,
                               std::int64_t length, const std::string& label) {
    CHUNKLLM_ASSIGN_OR_RETURN(EvaluateSession session,
                              make_session(std::move(scorer), with_rule_boundaries, options));
    CHUNKLLM_ASSIGN_OR_RETURN(const RetrievalAnswer answer,
                              answer_trial(session, tokenizer_, trial, progress(label)));
    done_ += length;
    return TrialScore{digit_share(answer.text, trial.answer), answer.forced_share,
                      session.attended().share()};
  }

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

  Status run_retrieval(EvaluateTask task, std::int64_t length) {
    CHUNKLLM_ASSIGN_OR_RETURN(std::vector<Trial> trials, make_trials(task, length));
    for (const Group& group : plan_groups(options_, /*with_second_looks=*/true)) {
      std::vector<DepthScores> scores(group.configurations.size());
      Status status;
      for (Trial& trial : trials) {
        status = run_trial_group(task, group, length, trial, scores);
        if (!status.ok()) break;
      }
      for (std::size_t i = 0; i < scores.size(); ++i) {
        CHUNKLLM_RETURN_IF_ERROR(
            emit_retrieval(make_row(task, length, group, group.configurations[i]),
                           group.configurations[i].second_look, scores[i]));
      }
      CHUNKLLM_RETURN_IF_ERROR(status);
    }
    return {};
  }

  Status run_trial_group(EvaluateTask task, const Group& group, std::int64_t length, Trial& trial,
                         std::vector<DepthScores>& scores) {
    const std::string name(to_string(task));
    if (!trial.dense) {
      CHUNKLLM_ASSIGN_OR_RETURN(
          const TrialScore score,
          run_trial(trial.trial, std::make_shared<const AnyScorer>(RecentScorer()),
                    /*with_rule_boundaries=*/true, dense_options(), length, name + ", dense"));
      trial.dense = score;
    }
    std::vector<std::int32_t> with_answer = trial.trial.ids;
    if (group.scorer->scorer == nullptr) {  // the oracle knows what the right answer would read
      CHUNKLLM_ASSIGN_OR_RETURN(
          const std::vector<std::int32_t> answer,
          tokenizer_.encode(" " + trial.trial.answer, /*add_special_tokens=*/false));
      with_answer.insert(with_answer.end(), answer.begin(), answer.end());
    }
    CHUNKLLM_ASSIGN_OR_RETURN(
        const std::shared_ptr<const AnyScorer> scorer,
        scorer_for(group, with_answer, static_cast<std::int64_t>(trial.trial.ids.size())));
    std::vector<TrialScore> done;
    for (const Configuration& configuration : group.configurations) {
      CHUNKLLM_ASSIGN_OR_RETURN(
          const TrialScore score,
          run_trial(trial.trial, scorer, /*with_rule_boundaries=*/group.scorer->scorer == nullptr,
                    session_options(group, configuration, length), length,
                    name + ", " + group.scorer->name + ", " + configuration.budget->text));
      done.push_back(score);
    }
    for (std::size_t i = 0; i < done.size(); ++i) {
      DepthScore& score = scores[i][trial.trial.depth];
      score.chunk.add(done[i].digits, done[i].forced);
      score.dense.add(trial.dense->digits, trial.dense->forced);
      score.share_sum += done[i].share;
    }
    return {};
  }

  /// Rows of digits for each depth, then digits, full answers and forced digits over all depths.
  Status emit_retrieval(EvaluateRow row, std::int64_t second_look, const DepthScores& scores) {
    row.second_look = second_look;
    const auto emit = [&](const DepthScore& score, const char* metric,
                          double (RetrievalScore::*share)() const) -> Status {
      row.metric = metric;
      row.value = (score.chunk.*share)();
      row.dense_value = (score.dense.*share)();
      row.trials = score.chunk.num_trials;
      row.attended_share = score.share_sum / static_cast<double>(row.trials);
      return (*on_row_)(row);
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

  // ----- boundaries and mass ----------------------------------------------------------------

  Status run_boundary_f1() {
    const auto bytes = [this](std::int32_t id) { return token_bytes(id); };
    BoundaryScore score;
    std::int64_t num_tokens = 0;
    for (const EvaluateText& text : texts_) {
      std::vector<std::int64_t> ends = rule_chunk_ends(text.ids, bytes, options_.chunk.guards);
      if (adapter_ != nullptr) {
        SessionOptions reading;
        reading.chunk = options_.chunk;
        CHUNKLLM_ASSIGN_OR_RETURN(EvaluateSession session,
                                  make_session(std::make_shared<const AnyScorer>(RecentScorer()),
                                               /*with_rule_boundaries=*/false, reading));
        CHUNKLLM_RETURN_IF_ERROR(session.prefill(text.ids, progress("boundaries")));
        done_ += static_cast<std::int64_t>(text.ids.size());
        ends = session.chunks().table().ends();
      }
      std::vector<std::size_t> predicted;
      predicted.reserve(ends.size());
      for (const std::int64_t end : ends) predicted.push_back(static_cast<std::size_t>(end - 1));
      CHUNKLLM_ASSIGN_OR_RETURN(
          const BoundaryScore of_text,
          score_boundaries(predicted, sentence_end_tokens(text.ids, bytes), text.ids.size()));
      score += of_text;
      num_tokens += static_cast<std::int64_t>(text.ids.size());
    }
    EvaluateRow row;
    row.task = to_string(EvaluateTask::kBoundaryF1);
    row.metric = "f1";
    row.length = num_tokens;
    row.value = score.f1();
    row.trials = static_cast<std::int64_t>(texts_.size());
    return (*on_row_)(row);
  }

  Status run_mass_recall(std::int64_t length) {
    const std::vector<Window> windows = make_windows(length);
    for (const Group& group : plan_groups(options_, /*with_second_looks=*/false)) {
      if (group.scorer->scorer == nullptr) continue;  // the teacher itself: 1 by definition
      ChunkOptions chunk = options_.chunk;
      chunk.head_join = group.head_join;
      MassRecall recall;
      std::int64_t num_done = 0;
      Status status;
      for (const Window& window : windows) {
        const auto result = measure_mass_recall<KvType>(
            backbone_, group.scorer->scorer, window.ids,
            [this](std::int32_t id) { return token_bytes(id); }, chunk, options_.recall_share,
            progress("mass recall, " + group.scorer->name), pool_);
        status = result.status();
        if (!status.ok()) break;
        recall += result.value();
        done_ += 2 * length;
        ++num_done;
      }
      if (recall.num_rows > 0) {
        EvaluateRow row =
            make_row(EvaluateTask::kMassRecall, length, group, group.configurations.front());
        row.metric = "recall";
        row.budget.clear();
        row.selection.clear();
        row.value = recall.mean();
        row.trials = num_done;
        CHUNKLLM_RETURN_IF_ERROR((*on_row_)(row));
      }
      CHUNKLLM_RETURN_IF_ERROR(status);
    }
    return {};
  }

  const Backbone& backbone_;
  const BpeTokenizer& tokenizer_;
  std::shared_ptr<const ChunkAdapter> adapter_;
  EvaluateOptions options_;
  ThreadPool& pool_;
  std::span<const EvaluateText> texts_;
  const OnRow* on_row_ = nullptr;
  const OnProgress* on_progress_ = nullptr;
  std::int64_t done_ = 0;  // tokens
  std::int64_t total_ = 0;
};

}  // namespace chunkllm
