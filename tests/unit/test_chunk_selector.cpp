// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/chunk_selector.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "reference/oracle.hpp"

namespace chunkllm {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
using Chunks = std::vector<std::int64_t>;

Chunks order_of(const std::vector<float>& scores, float threshold) {
  ChunkOrder order(scores, threshold);
  Chunks chunks;
  while (!order.empty()) {
    const std::int64_t next = order.peek();
    chunks.push_back(order.next());
    EXPECT_EQ(chunks.back(), next);
  }
  return chunks;
}

TEST(ChunkOrder, ByScoreThenLaterFirst) {
  EXPECT_EQ(order_of({0.1F, 0.3F, 0.2F}, 0.0F), (Chunks{2, 3, 1}));
  EXPECT_EQ(order_of({0.2F, 0.2F, 0.2F}, 0.0F), (Chunks{3, 2, 1}));
  EXPECT_EQ(order_of({0.0F, -0.0F, 0.0F}, 0.0F), (Chunks{3, 2, 1}));
  EXPECT_EQ(order_of({}, 0.0F), Chunks{});
}

TEST(ChunkOrder, BelowTheThresholdByRecency) {
  EXPECT_EQ(order_of({0.5F, 0.1F, 0.9F, 0.2F, 0.3F}, 0.3F), (Chunks{3, 1, 5, 4, 2}));
  EXPECT_EQ(order_of({0.5F, 0.1F, 0.9F}, 1.0F), (Chunks{3, 2, 1}));
}

TEST(ChunkOrder, NanLastAndInfinitiesInTheirPlace) {
  EXPECT_EQ(order_of({kNan, 0.1F, kNan, 0.5F}, 0.0F), (Chunks{4, 2, 3, 1}));
  EXPECT_EQ(order_of({kInf, 0.1F, kInf, -kInf, 0.5F}, 0.0F), (Chunks{3, 1, 5, 2, 4}));
  EXPECT_EQ(ChunkOrder(std::vector<float>{kNan, 0.1F, kNan}, 0.0F).num_nan(), 2);
  EXPECT_EQ(ChunkOrder(std::vector<float>{0.2F, kInf}, 0.0F).num_nan(), 0);
  EXPECT_EQ(order_of({kNan, kNan}, 0.5F), (Chunks{2, 1}));
}

struct RandomRefresh {
  ChunkTable table;
  oracle::ChunkList closed;
  CandidateRange range;
  std::int64_t token = 0;

  RandomRefresh(std::mt19937& random, std::int64_t num_chunks) {
    std::int64_t end = 0;
    for (std::int64_t c = 0; c < num_chunks; ++c) {
      const std::int64_t length = static_cast<std::int64_t>(1 + random() % 50);
      closed.emplace_back(end, end + length);
      table.close(end += length);
    }
    token = end + static_cast<std::int64_t>(random() % 20);
    range = candidate_range(table, token, 64, 2);
  }
  [[nodiscard]] oracle::Candidates candidates() const { return {range.end, range.tail_begin}; }
  [[nodiscard]] std::vector<float> scores(std::mt19937& random) const {
    std::vector<float> scores;
    for (std::int64_t i = 0; i < range.num_candidates(); ++i) {
      const auto draw = random() % 40;
      scores.push_back(draw == 0   ? kNan
                       : draw == 1 ? -kInf
                                   : static_cast<float>(draw % 16) / 64.0F);
    }
    return scores;
  }
};

Budget budget_of(Budget::Kind kind, std::int64_t amount) {
  Budget budget;
  budget.kind = kind;
  budget.tokens = amount;
  budget.chunks = amount;
  budget.share = static_cast<double>(amount) / 1000.0;
  return budget;
}

oracle::BudgetRule rule_of(const Budget& budget) {
  switch (budget.kind) {
    case Budget::Kind::kTokens:
      return {oracle::BudgetRule::Kind::kTokens, static_cast<double>(budget.tokens)};
    case Budget::Kind::kShare: return {oracle::BudgetRule::Kind::kShare, budget.share};
    case Budget::Kind::kChunks: break;
  }
  return {oracle::BudgetRule::Kind::kChunks, static_cast<double>(budget.chunks)};
}

TEST(TakeWithinBudget, EqualsTheOracle) {
  std::mt19937 random(4);
  for (int trial = 0; trial < 500; ++trial) {
    const RandomRefresh refresh(random, static_cast<std::int64_t>(random() % 120));
    const std::vector<float> scores = refresh.scores(random);
    const float threshold = static_cast<float>(random() % 8) / 64.0F;
    EXPECT_EQ(order_of(scores, threshold), oracle::rank(scores, threshold));
    for (const Budget& budget :
         {budget_of(Budget::Kind::kTokens, 1 + static_cast<std::int64_t>(random() % 4000)),
          budget_of(Budget::Kind::kShare, 1 + static_cast<std::int64_t>(random() % 1000)),
          budget_of(Budget::Kind::kChunks, static_cast<std::int64_t>(random() % 130))}) {
      EXPECT_EQ(take_within_budget(refresh.table, refresh.range, refresh.token, budget,
                                   ChunkOrder(scores, threshold)),
                oracle::choose(oracle::rank(scores, threshold), refresh.closed,
                               refresh.candidates(), refresh.token, rule_of(budget)));
    }
  }
}

TEST(TakeWithinBudget, SetsOfGrowingTokenBudgetsNest) {
  std::mt19937 random(6);
  for (int trial = 0; trial < 40; ++trial) {
    const RandomRefresh refresh(random, 60);
    const std::vector<float> scores = refresh.scores(random);
    const std::int64_t always =
        refresh.table.length(0) + refresh.token + 1 - refresh.range.tail_begin;
    Chunks before;
    for (std::int64_t tokens = 1; tokens < 2200; tokens += 13) {
      const Budget budget = budget_of(Budget::Kind::kTokens, tokens);
      const Chunks chosen = take_within_budget(refresh.table, refresh.range, refresh.token, budget,
                                               ChunkOrder(scores, 0.1F));
      EXPECT_TRUE(std::includes(chosen.begin(), chosen.end(), before.begin(), before.end()));
      std::int64_t attended = always;
      for (const std::int64_t chunk : chosen) attended += refresh.table.length(chunk);
      if (!chosen.empty()) {
        EXPECT_LE(attended, tokens);
      }
      EXPECT_EQ(budget_holds_all(refresh.range, refresh.token, budget),
                refresh.token + 1 <= tokens);
      before = chosen;
    }
    EXPECT_EQ(static_cast<std::int64_t>(before.size()), refresh.range.num_candidates());
  }
}

TEST(Budget, TokensOfEachKind) {
  EXPECT_EQ(budget_of(Budget::Kind::kTokens, 700).tokens_at(100000), 700);
  EXPECT_EQ(budget_of(Budget::Kind::kShare, 250).tokens_at(100001), 25000);
  EXPECT_EQ(budget_of(Budget::Kind::kShare, 250).tokens_at(2000), 1024);
  EXPECT_EQ(budget_of(Budget::Kind::kShare, 1000).tokens_at(5000), 5000);
  EXPECT_EQ(budget_of(Budget::Kind::kChunks, 8).tokens_at(5000), 5000);
  EXPECT_EQ(budget_of(Budget::Kind::kChunks, 8).max_chunks(100), 8);
  EXPECT_EQ(budget_of(Budget::Kind::kTokens, 8).max_chunks(100), 100);
}

TEST(JoinLayers, OrdersAsTheOracle) {
  std::mt19937 random(8);
  for (int trial = 0; trial < 300; ++trial) {
    const RandomRefresh refresh(random, 3 + static_cast<std::int64_t>(random() % 60));
    std::vector<std::vector<float>> layers(1U << (random() % 4));  // means in f32 are exact
    for (auto& scores : layers) {
      scores = refresh.scores(random);
      for (float& score : scores) score = score == -kInf ? 0.0F : score;
    }
    const float threshold = static_cast<float>(random() % 8) / 64.0F;
    const Budget budget =
        budget_of(Budget::Kind::kTokens, 1 + static_cast<std::int64_t>(random() % 1500));
    for (const auto& [selection, join] : {std::pair(Selection::kMax, oracle::Join::kMax),
                                          std::pair(Selection::kSoft, oracle::Join::kSoft),
                                          std::pair(Selection::kVote, oracle::Join::kVote)}) {
      const std::vector<float> joined = join_layers(layers, selection, refresh.table, refresh.range,
                                                    refresh.token, budget, threshold);
      EXPECT_EQ(order_of(joined, threshold),
                oracle::joined_order(layers, join, threshold, refresh.closed, refresh.candidates(),
                                     refresh.token, rule_of(budget)));
    }
  }
}

TEST(JoinLayers, MaximumKeepsNanAndNegativeScores) {
  std::mt19937 random(8);
  const RandomRefresh refresh(random, 12);
  const auto count = static_cast<std::size_t>(refresh.range.num_candidates());
  ASSERT_GE(count, 3U);
  std::vector<std::vector<float>> layers(2, std::vector<float>(count, -2.0F));
  layers[0][0] = kNan;
  layers[1][1] = kNan;
  layers[1][2] = -1.0F;
  const std::vector<float> joined = join_layers(layers, Selection::kMax, refresh.table,
                                                refresh.range, refresh.token, Budget{}, 0.0F);
  EXPECT_TRUE(std::isnan(joined[0]));
  EXPECT_TRUE(std::isnan(joined[1]));
  EXPECT_EQ(joined[2], -1.0F);
  EXPECT_EQ(joined.back(), count == 3 ? -1.0F : -2.0F);
  EXPECT_EQ(join_layers({}, Selection::kSoft, refresh.table, refresh.range, refresh.token, Budget{},
                        0.0F),
            std::vector<float>(count, 0.0F));
}

}  // namespace
}  // namespace chunkllm
