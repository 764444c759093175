// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/eval/boundary_f1.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <random>
#include <vector>

namespace chunkllm {
namespace {

using Tokens = std::vector<std::size_t>;

BoundaryScore score(const Tokens& predicted, const Tokens& labelled, std::size_t num_tokens,
                    std::size_t tolerance = 0) {
  const Result<BoundaryScore> result = score_boundaries(predicted, labelled, num_tokens, tolerance);
  EXPECT_TRUE(result.ok()) << result.status().message();
  return result.ok() ? result.value() : BoundaryScore{};
}

TEST(BoundaryF1, CountsExactMatches) {
  const BoundaryScore s = score({2, 5, 9}, {2, 6, 9, 12}, 20);
  EXPECT_EQ(s.num_predicted, 3u);
  EXPECT_EQ(s.num_labelled, 4u);
  EXPECT_EQ(s.num_matched, 2u);
  EXPECT_DOUBLE_EQ(s.precision(), 2.0 / 3.0);
  EXPECT_DOUBLE_EQ(s.recall(), 0.5);
  EXPECT_DOUBLE_EQ(s.f1(), 4.0 / 7.0);
}

TEST(BoundaryF1, ToleranceMatchesNeighbours) {
  EXPECT_EQ(score({2, 5, 9}, {3, 6, 11}, 20, 1).num_matched, 2u);
  EXPECT_EQ(score({2, 5, 9}, {3, 6, 11}, 20, 2).num_matched, 3u);
}

TEST(BoundaryF1, MatchesEachBoundaryOnce) {
  EXPECT_EQ(score({4, 5, 6}, {5}, 20, 1).num_matched, 1u);
  EXPECT_EQ(score({5}, {4, 5, 6}, 20, 1).num_matched, 1u);
}

TEST(BoundaryF1, LeavesTheLastTokenOut) {
  const BoundaryScore s = score({3, 9}, {9}, 10);
  EXPECT_EQ(s.num_predicted, 1u);
  EXPECT_EQ(s.num_labelled, 0u);
  EXPECT_EQ(s.num_matched, 0u);
}

TEST(BoundaryF1, EmptyCases) {
  const BoundaryScore both = score({}, {}, 0);
  EXPECT_EQ(both.precision(), 1.0);
  EXPECT_EQ(both.recall(), 1.0);
  EXPECT_EQ(both.f1(), 1.0);
  const BoundaryScore none_predicted = score({}, {1}, 5);
  EXPECT_EQ(none_predicted.precision(), 1.0);
  EXPECT_EQ(none_predicted.recall(), 0.0);
  EXPECT_EQ(none_predicted.f1(), 0.0);
  const BoundaryScore none_labelled = score({1}, {}, 5);
  EXPECT_EQ(none_labelled.precision(), 0.0);
  EXPECT_EQ(none_labelled.recall(), 1.0);
  EXPECT_EQ(none_labelled.f1(), 0.0);
}

TEST(BoundaryF1, AddsUpOverDocuments) {
  BoundaryScore sum = score({1, 2}, {2}, 10);
  sum += score({3}, {3, 4}, 10);
  EXPECT_EQ(sum, (BoundaryScore{3, 3, 2}));
}

TEST(BoundaryF1, RefusesListsThatAreNotAscendingOrLeaveTheDocument) {
  const auto code = [](const Tokens& predicted, const Tokens& labelled) {
    return score_boundaries(predicted, labelled, 10).status().code();
  };
  EXPECT_EQ(code({3, 3}, {}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({}, {4, 2}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({10}, {}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({}, {static_cast<std::size_t>(-1)}), StatusCode::kInvalidArgument);
  EXPECT_EQ(score_boundaries(Tokens{4, 2}, {}, 10).status().message(),
            "boundary score: predicted[1] is 2, expected above 4");
}

/// Size of the largest one-to-one match, by dynamic programming over all pairs.
std::size_t largest_match(const Tokens& a, const Tokens& b, std::size_t tolerance) {
  std::vector<std::vector<std::size_t>> best(a.size() + 1, Tokens(b.size() + 1, 0));
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t distance = std::max(a[i], b[j]) - std::min(a[i], b[j]);
      best[i + 1][j + 1] = std::max(
          {best[i][j + 1], best[i + 1][j], best[i][j] + (distance <= tolerance ? 1u : 0u)});
    }
  }
  return best[a.size()][b.size()];
}

TEST(BoundaryF1, MatchesAsManyAsPossible) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    Tokens lists[2];
    for (Tokens& list : lists) {
      for (std::size_t token = 0; token < 24; ++token) {
        if (random() % 3 == 0) list.push_back(token);
      }
    }
    const std::size_t tolerance = random() % 4;
    ASSERT_EQ(score(lists[0], lists[1], 25, tolerance).num_matched,
              largest_match(lists[0], lists[1], tolerance));
  }
}

}  // namespace
}  // namespace chunkllm
