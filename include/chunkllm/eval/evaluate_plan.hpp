// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

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

/// The combinations that mean something: a scorer without heads has one join of them, and one
/// that ignores scores one selection.
///
/// The groups point into `options`, which must outlive them.
inline std::vector<EvaluateGroup> plan_groups(const EvaluateOptions& options,
                                              bool with_second_looks) {
  std::vector<EvaluateGroup> groups;
  const std::vector<std::int64_t> no_look = {0};
  for (const EvaluateScorer& scorer : options.scorers) {
    const bool has_heads = scorer.scorer == nullptr || scorer.scorer->shape().num_heads > 0;
    for (const HeadJoin head_join : options.head_joins) {
      EvaluateGroup group{&scorer, head_join, {}};
      for (const Selection selection : options.selections) {
        for (const EvaluateBudget& budget : options.budgets) {
          for (const std::int64_t look : with_second_looks ? options.second_looks : no_look) {
            group.configurations.push_back({&budget, selection, look});
          }
        }
        if (scorer.ignores_scores) break;
      }
      groups.push_back(std::move(group));
      if (!has_heads) break;
    }
  }
  return groups;
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
