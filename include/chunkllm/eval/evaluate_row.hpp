// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/chunk/score_chunks.hpp"

namespace chunkllm {

/// What `Evaluator` can measure.
enum class EvaluateTask : std::uint8_t {
  kPerplexity,  ///< of the second half of windows of a text, dense beside it
  kPasskey,     ///< five digits hidden in plain text
  kMultiKey,    ///< one of eight facts alike
  kBoundaryF1,  ///< the boundaries in use against the rules that know the whole text
  kMassRecall   ///< attention mass in a scorer's first 12.5 % of the chunks
};

constexpr std::string_view to_string(EvaluateTask task) {
  switch (task) {
    case EvaluateTask::kPerplexity: return "perplexity";
    case EvaluateTask::kPasskey: return "passkey";
    case EvaluateTask::kMultiKey: return "multi-key";
    case EvaluateTask::kBoundaryF1: return "boundary-f1";
    case EvaluateTask::kMassRecall: return "mass-recall";
  }
  return "?";
}

/// Names as on the command line.
constexpr std::string_view selection_name(Selection selection) {
  switch (selection) {
    case Selection::kLayer: return "layer";
    case Selection::kMax: return "max";
    case Selection::kVote: return "vote";
    case Selection::kSoft: return "soft";
  }
  return "?";
}
constexpr std::string_view head_join_name(HeadJoin head_join) {
  return head_join == HeadJoin::kMax ? "max" : "mean";
}
constexpr std::string_view positions_name(Positions positions) {
  return positions == Positions::kInCache ? "in-cache" : "original";
}

/// One line of a quality table. Empty where a setting does not apply to the task.
struct EvaluateRow {
  std::string task;
  /// What `value` is: "perplexity"; "digits" and "full", the shares of digits and of whole keys
  /// right in greedy answers, "forced", of digits given the true ones before; "f1"; "recall"
  std::string metric;
  std::int64_t length = 0;  ///< tokens of a window or of the filler
  std::string budget;       ///< as given: "2048", "25%", "32c"
  std::string scorer;
  std::string head_join;
  std::string selection;
  std::optional<std::uint64_t> seed;
  std::optional<std::int64_t> second_look;  ///< tokens
  std::optional<double> depth;              ///< [0, 1]; empty: all depths together
  std::string positions;                    ///< of attended keys; dense has the original ones
  double value = 0.0;
  std::optional<double> dense_value;     ///< of dense attention on the same windows or trials
  std::optional<double> attended_share;  ///< of the past, mean over scored tokens and layers
  std::int64_t trials = 0;               ///< windows or prompts

  /// value / dense value.
  [[nodiscard]] std::optional<double> ratio() const {
    if (!dense_value || *dense_value == 0.0) return std::nullopt;
    return value / *dense_value;
  }
};

}  // namespace chunkllm
