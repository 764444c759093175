// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"

namespace chunkllm {

/// How well predicted chunk boundaries meet the labelled ones. Counts add up over documents.
struct BoundaryScore {
  std::size_t num_predicted = 0;  ///< boundaries predicted, the document's last token left out
  std::size_t num_labelled = 0;   ///< boundaries labelled, the document's last token left out
  std::size_t num_matched = 0;    ///< pairs of a predicted and a labelled boundary

  /// Matched share of the predicted boundaries; 1 where nothing was predicted.
  [[nodiscard]] double precision() const { return share(num_matched, num_predicted); }

  /// Matched share of the labelled boundaries; 1 where nothing was labelled.
  [[nodiscard]] double recall() const { return share(num_matched, num_labelled); }

  /// Harmonic mean, as 2 matched / (predicted + labelled): 1 where both lists are empty, 0 where
  /// only one is.
  [[nodiscard]] double f1() const { return share(2 * num_matched, num_predicted + num_labelled); }

  BoundaryScore& operator+=(const BoundaryScore& other) {
    num_predicted += other.num_predicted;
    num_labelled += other.num_labelled;
    num_matched += other.num_matched;
    return *this;
  }

  bool operator==(const BoundaryScore&) const = default;

 private:
  static double share(std::size_t part, std::size_t whole) {
    return whole == 0 ? 1.0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

namespace detail {

/// The boundaries without that of the last token, which every splitter finds by definition.
inline Result<std::span<const std::size_t>> inner_boundaries(
    std::string_view name, std::span<const std::size_t> boundaries, std::size_t num_tokens) {
  for (std::size_t i = 0; i < boundaries.size(); ++i) {
    if (boundaries[i] >= num_tokens) {
      return invalid_argument("boundary score: " + std::string(name) + "[" + std::to_string(i) +
                              "] is " + std::to_string(boundaries[i]) + ", expected below " +
                              std::to_string(num_tokens));
    }
    if (i > 0 && boundaries[i] <= boundaries[i - 1]) {
      return invalid_argument("boundary score: " + std::string(name) + "[" + std::to_string(i) +
                              "] is " + std::to_string(boundaries[i]) + ", expected above " +
                              std::to_string(boundaries[i - 1]));
    }
  }
  const bool has_last = !boundaries.empty() && boundaries.back() + 1 == num_tokens;
  return has_last ? boundaries.first(boundaries.size() - 1) : boundaries;
}

}  // namespace detail

/// Counts predicted boundaries that lie within `tolerance` tokens of a labelled one.
///
/// Each boundary is matched at most once, and as many are matched as possible: for two sorted
/// lists and one tolerance, pairing the first two that are near enough is optimal.
///
/// \param predicted   token indices, strictly ascending
/// \param labelled    token indices, strictly ascending
/// \param num_tokens  tokens of the document; the boundary of its last token is left out of both
///                    lists
/// \param tolerance   tokens; 0 asks for equal indices
///
/// Errors: kInvalidArgument where a list is not ascending or an index is not below num_tokens.
/// Cost:   linear in both lists; no allocation unless it fails.
inline Result<BoundaryScore> score_boundaries(std::span<const std::size_t> predicted,
                                              std::span<const std::size_t> labelled,
                                              std::size_t num_tokens, std::size_t tolerance = 0) {
  CHUNKLLM_ASSIGN_OR_RETURN(predicted,
                            detail::inner_boundaries("predicted", predicted, num_tokens));
  CHUNKLLM_ASSIGN_OR_RETURN(labelled, detail::inner_boundaries("labelled", labelled, num_tokens));
  BoundaryScore score{predicted.size(), labelled.size(), 0};
  std::size_t i = 0;
  std::size_t j = 0;
  while (i < predicted.size() && j < labelled.size()) {
    const bool is_before = predicted[i] < labelled[j];
    const std::size_t distance =
        is_before ? labelled[j] - predicted[i] : predicted[i] - labelled[j];
    if (distance <= tolerance) {
      ++score.num_matched;
      ++i;
      ++j;
    } else if (is_before) {
      ++i;
    } else {
      ++j;
    }
  }
  return score;
}

}  // namespace chunkllm
