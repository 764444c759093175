// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/chunk_state.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/eval/chunk_mass.hpp"
#include "chunkllm/eval/evaluate_row.hpp"

namespace chunkllm {

/// A scorer under evaluation.
struct EvaluateScorer {
  std::string name;                         ///< as on the command line
  std::shared_ptr<const AnyScorer> scorer;  ///< null: the oracle of `oracle_rows`
  MassRows oracle_rows = MassRows::kNext;
  std::optional<std::uint64_t> seed;  ///< of a random scorer, for the row
  float threshold = 0.0F;             ///< of the null class
  bool ignores_scores = false;        ///< recent: the selection changes nothing
  /// Instead of those of `EvaluateOptions`; empty: those. Trained adapters have defaults of their
  /// own.
  std::vector<Selection> selections;
  std::vector<HeadJoin> head_joins;
};

struct EvaluateBudget {
  Budget budget;
  std::string text;  ///< as given
};

/// What is measured. Every task runs over all combinations that mean something to it.
struct EvaluateOptions {
  std::vector<EvaluateTask> tasks;
  std::vector<std::int64_t> lengths;  ///< tokens
  std::vector<EvaluateBudget> budgets;
  std::vector<EvaluateScorer> scorers;
  std::vector<Selection> selections;
  std::vector<HeadJoin> head_joins;
  std::vector<std::int64_t> second_looks;  ///< tokens; of passkey and multi-key
  std::vector<double> depths;              ///< of passkey and multi-key, in turn over the trials
  std::int64_t num_windows = 2;            ///< of a length, spread over the texts
  /// Only this one of the windows, counted from 0, so that a table can be made on many machines.
  std::optional<std::int64_t> only_window;
  std::int64_t num_trials = 10;  ///< of passkey and multi-key, for each length
  std::uint64_t seed = 0;
  double recall_share = 0.125;  ///< of the candidates, for mass recall
  /// Refresh, guards and the like; what the lists above hold is overwritten.
  ChunkOptions chunk;
  ReadMode read_mode = ReadMode::kAsDecode;  ///< of perplexity
  bool dense_prefill = false;                ///< of passkey and multi-key
  std::optional<Positions> positions;        ///< none: original where the model's window holds it
};

/// A text to measure on.
struct EvaluateText {
  std::string name;
  std::vector<std::int32_t> ids;  ///< without the tokenizer's begin token
};

/// What one row stands for, beside its scorer and head join.
struct EvaluateConfiguration {
  const EvaluateBudget* budget = nullptr;
  Selection selection = Selection::kMax;
  std::int64_t second_look = 0;  ///< tokens
};

/// All configurations that share one set of scores.
struct EvaluateGroup {
  const EvaluateScorer* scorer = nullptr;
  HeadJoin head_join = HeadJoin::kMax;
  std::vector<EvaluateConfiguration> configurations;
};

/// Whether a scorer has heads to join.
inline bool has_heads(const EvaluateScorer& scorer) {
  return scorer.scorer == nullptr || scorer.scorer->shape().num_heads > 0;
}

/// The combinations that mean something: a scorer without heads has one join of them, and one
/// that ignores scores one selection.
///
/// The groups point into `options`, which must outlive them.
inline std::vector<EvaluateGroup> plan_groups(const EvaluateOptions& options,
                                              bool with_second_looks) {
  std::vector<EvaluateGroup> groups;
  const std::vector<std::int64_t> no_look = {0};
  for (const EvaluateScorer& scorer : options.scorers) {
    const auto& head_joins = scorer.head_joins.empty() ? options.head_joins : scorer.head_joins;
    const auto& selections = scorer.selections.empty() ? options.selections : scorer.selections;
    for (const HeadJoin head_join : head_joins) {
      EvaluateGroup group{&scorer, head_join, {}};
      for (const Selection selection : selections) {
        for (const EvaluateBudget& budget : options.budgets) {
          for (const std::int64_t look : with_second_looks ? options.second_looks : no_look) {
            group.configurations.push_back({&budget, selection, look});
          }
        }
        if (scorer.ignores_scores) break;
      }
      groups.push_back(std::move(group));
      if (!has_heads(scorer)) break;
    }
  }
  return groups;
}

/// Whether a task asks for hidden facts: then its length is the filler's.
constexpr bool is_retrieval(EvaluateTask task) {
  return task == EvaluateTask::kPasskey || task == EvaluateTask::kMultiKey;
}

/// Errors: kInvalidArgument naming the setting, its value and the range, for what the options alone
///         or the texts tell. Lists that no task uses are not looked at.
inline Status validate(const EvaluateOptions& options, std::span<const EvaluateText> texts) {
  const auto in_range = [](const char* name, std::int64_t value, std::int64_t low,
                           std::int64_t high) -> Status {
    if (value >= low && value <= high) return {};
    return invalid_argument("evaluate: " + std::string(name) + " is " + std::to_string(value) +
                            ", expected " + std::to_string(low) + " to " + std::to_string(high));
  };
  const auto in_unit = [](const char* name, double value) -> Status {
    if (value >= 0.0 && value <= 1.0) return {};
    return invalid_argument("evaluate: " + std::string(name) + " is " + std::to_string(value) +
                            ", expected 0 to 1");
  };
  std::int64_t longest = 0;
  for (const EvaluateText& text : texts) {
    longest = std::max(longest, static_cast<std::int64_t>(text.ids.size()));
  }
  if (longest == 0) return invalid_argument("evaluate: there is no text");
  CHUNKLLM_RETURN_IF_ERROR(in_range("number of windows", options.num_windows, 1, 1 << 16));
  CHUNKLLM_RETURN_IF_ERROR(
      in_range("window", options.only_window.value_or(0), 0, options.num_windows - 1));
  CHUNKLLM_RETURN_IF_ERROR(in_range("number of trials", options.num_trials, 1, 1 << 16));
  if (options.recall_share == 0.0) return invalid_argument("evaluate: recall share is 0");
  CHUNKLLM_RETURN_IF_ERROR(in_unit("recall share", options.recall_share));
  for (const double depth : options.depths) CHUNKLLM_RETURN_IF_ERROR(in_unit("depth", depth));

  const auto& tasks = options.tasks;
  const bool retrieves = std::any_of(tasks.begin(), tasks.end(), is_retrieval);
  const bool has_lengths = std::any_of(tasks.begin(), tasks.end(), [](EvaluateTask task) {
    return task != EvaluateTask::kBoundaryF1;
  });
  const std::pair<bool, const char*> missing[] = {
      {tasks.empty(), "task"},
      {has_lengths && options.lengths.empty(), "length"},
      {has_lengths && options.budgets.empty(), "budget"},
      {has_lengths && options.scorers.empty(), "scorer"},
      {has_lengths && options.selections.empty(), "selection"},
      {has_lengths && options.head_joins.empty(), "join of heads"},
      {retrieves && options.second_looks.empty(), "second look"},
      {retrieves && options.depths.empty(), "depth"}};
  for (const auto& [is_missing, name] : missing) {
    if (is_missing) return invalid_argument("evaluate: there is no " + std::string(name));
  }
  if (!has_lengths) return {};
  for (const std::int64_t length : options.lengths) {
    CHUNKLLM_RETURN_IF_ERROR(in_range("length in tokens", length, 2, longest));
  }
  return {};
}

/// Stretches of `length` tokens, in turn over the texts that are long enough, evenly spread over
/// each: the first begins with the text, the last of several ends with it.
///
/// \param prefix  begin tokens in front of each window, counted in its length
/// \return none where no text is long enough
inline std::vector<std::vector<std::int32_t>> cut_windows(std::span<const EvaluateText> texts,
                                                          std::span<const std::int32_t> prefix,
                                                          std::int64_t length,
                                                          std::int64_t num_windows) {
  std::vector<const EvaluateText*> long_enough;
  for (const EvaluateText& text : texts) {
    if (static_cast<std::int64_t>(text.ids.size()) >= length) long_enough.push_back(&text);
  }
  std::vector<std::vector<std::int32_t>> windows;
  if (long_enough.empty()) return windows;
  const auto num_texts = static_cast<std::int64_t>(long_enough.size());
  for (std::int64_t w = 0; w < num_windows; ++w) {
    const EvaluateText& text = *long_enough[static_cast<std::size_t>(w % num_texts)];
    const std::int64_t in_text = w / num_texts;
    const std::int64_t of_text = (num_windows - w % num_texts + num_texts - 1) / num_texts;
    const std::int64_t room = static_cast<std::int64_t>(text.ids.size()) - length;
    const std::int64_t first = of_text == 1 ? 0 : room * in_text / (of_text - 1);
    std::vector<std::int32_t> window(prefix.begin(), prefix.end());
    window.insert(window.end(), text.ids.begin() + first, text.ids.begin() + first + length);
    window.resize(static_cast<std::size_t>(length));
    windows.push_back(std::move(window));
  }
  return windows;
}

}  // namespace chunkllm
