// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/chunk_scorer.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "reference/oracle.hpp"
#include "support/compare.hpp"

namespace chunkllm {
namespace {

static_assert(ChunkScorer<MeanKeyScorer> && ChunkScorer<MinMaxKeyScorer> &&
              ChunkScorer<RecentScorer> && ChunkScorer<RandomScorer> && ChunkScorer<TableScorer>);
static_assert(!ChunkScorer<ChunkScorerBase>);  // it has no shape

struct Rows {
  std::vector<std::vector<float>> keys;
  std::vector<float> query;
  Rows(std::int64_t count, std::int64_t key_size, std::int64_t query_size) {
    std::mt19937 random(17);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < count; ++i) {
      keys.emplace_back();
      for (std::int64_t k = 0; k < key_size; ++k) keys.back().push_back(normal(random));
    }
    for (std::int64_t k = 0; k < query_size; ++k) query.push_back(normal(random));
  }
  [[nodiscard]] oracle::Rows doubles() const {
    oracle::Rows rows;
    for (const auto& key : keys) rows.emplace_back(key.begin(), key.end());
    return rows;
  }
};

template <typename Scorer>
std::vector<float> key_of(const Scorer& scorer, const Rows& rows, std::size_t count) {
  std::vector<float> state(static_cast<std::size_t>(scorer.shape().state_size), 1e30F);
  for (std::size_t i = 0; i < count; ++i) {
    TokenRow row;
    row.key = rows.keys[i].data();
    scorer.add_token(0, row, i == 0, state.data());
  }
  std::vector<float> key(static_cast<std::size_t>(scorer.shape().key_size()));
  scorer.make_key(0, state.data(), static_cast<std::int64_t>(count), key.data());
  return key;
}

TEST(MeanKeyScorer, KeyIsTheMean) {
  const MeanKeyScorer scorer(4, 2, 6, 0.5F);
  const Rows rows(40, 12, 24);
  for (const std::size_t count : {1U, 2U, 7U, 40U}) {
    oracle::Rows doubles = rows.doubles();
    doubles.resize(count);
    // A chain of `count` additions of values below 5.
    EXPECT_TRUE(
        testing::all_within(key_of(scorer, rows, count), oracle::mean_of(doubles),
                            (static_cast<double>(count) + 2.0) * 5.0 * testing::kUnitRoundoff));
  }
  std::vector<float> query(24);
  TokenRow row;
  row.query = rows.query.data();
  scorer.make_query(0, row, query.data());
  EXPECT_EQ(query, rows.query);
  EXPECT_TRUE(scorer.shape().adds_log_length);
  EXPECT_FALSE(scorer.shape().has_null_logits);
}

TEST(MinMaxKeyScorer, ProductIsTheUpperBound) {
  const MinMaxKeyScorer scorer(4, 2, 6, 0.5F);
  const Rows rows(30, 12, 24);
  std::vector<float> query(static_cast<std::size_t>(scorer.shape().query_size()));
  TokenRow row;
  row.query = rows.query.data();
  scorer.make_query(0, row, query.data());
  for (const std::size_t count : {1U, 2U, 30U}) {
    const std::vector<float> key = key_of(scorer, rows, count);
    for (std::size_t head = 0; head < 4; ++head) {
      oracle::Rows keys;
      for (std::size_t i = 0; i < count; ++i) {
        const auto first = rows.keys[i].begin() + static_cast<std::ptrdiff_t>(head / 2 * 6);
        keys.emplace_back(first, first + 6);
      }
      const auto q = rows.query.begin() + static_cast<std::ptrdiff_t>(head * 6);
      double product = 0.0;
      for (std::size_t i = 0; i < 12; ++i) {
        product +=
            static_cast<double>(query[head * 12 + i]) * static_cast<double>(key[head / 2 * 12 + i]);
      }
      EXPECT_NEAR(product, oracle::upper_bound(oracle::Row(q, q + 6), keys), 1e-12);
    }
  }
  EXPECT_FALSE(scorer.shape().adds_log_length);
}

TEST(MinMaxKeyScorer, NanStaysWhereverItComes) {
  const MinMaxKeyScorer scorer(4, 2, 6, 0.5F);
  for (const std::size_t at : {0U, 3U, 7U}) {
    Rows rows(8, 12, 24);
    rows.keys[at][7] = std::numeric_limits<float>::quiet_NaN();  // feature 1 of head 1
    const std::vector<float> key = key_of(scorer, rows, 8);
    for (std::size_t i = 0; i < key.size(); ++i) {
      EXPECT_EQ(std::isnan(key[i]), i == 12 + 1 || i == 12 + 6 + 1) << at << ", " << i;
    }
  }
}

TEST(RecentScorer, AllEqual) {
  std::vector<float> scores(5, 9.0F);
  RecentScorer().direct_scores(0, 10, scores);
  EXPECT_EQ(scores, std::vector<float>(5, 0.0F));
}

TEST(RandomScorer, UniformAndReproducible) {
  const RandomScorer scorer(7);
  std::vector<float> scores(20000);
  scorer.direct_scores(2, 100, scores);
  std::vector<float> again(20000);
  RandomScorer(7).direct_scores(2, 100, again);
  EXPECT_EQ(scores, again);
  double sum = 0.0;
  for (const float score : scores) {
    ASSERT_GE(score, 0.0F);
    ASSERT_LT(score, 1.0F);
    sum += static_cast<double>(score);
  }
  EXPECT_NEAR(sum / 20000.0, 0.5, 5.0 * std::sqrt(1.0 / 12.0 / 20000.0));
  // Chunk c's score does not depend on how many candidates there are.
  std::vector<float> few(10);
  scorer.direct_scores(2, 100, few);
  EXPECT_TRUE(std::equal(few.begin(), few.end(), scores.begin()));
  for (const auto& [layer, trigger, seed] :
       {std::tuple(3, 100, 7), std::tuple(2, 101, 7), std::tuple(2, 100, 8)}) {
    RandomScorer(static_cast<std::uint64_t>(seed)).direct_scores(layer, trigger, again);
    EXPECT_NE(scores, again);
  }
}

TEST(TableScorer, GivesWhatItHolds) {
  auto table = std::make_shared<TableScorer::Table>(2);
  (*table)[1].resize(6);
  (*table)[1][5] = {0.5F, 0.25F};
  const TableScorer scorer(table);
  std::vector<float> scores(3, 9.0F);
  scorer.direct_scores(1, 5, scores);
  EXPECT_EQ(scores, (std::vector<float>{0.5F, 0.25F, 0.0F}));
  scorer.direct_scores(1, 4, scores);
  EXPECT_EQ(scores, std::vector<float>(3, 0.0F));
  scorer.direct_scores(0, 77, scores);
  EXPECT_EQ(scores, std::vector<float>(3, 0.0F));
}

TEST(AnyScorer, PassesOn) {
  const MinMaxKeyScorer plain(4, 2, 6, 0.5F);
  const AnyScorer any{plain};
  EXPECT_EQ(any.shape().key_size(), plain.shape().key_size());
  EXPECT_EQ(any.distance_bias(0), nullptr);
  const Rows rows(5, 12, 24);
  EXPECT_EQ(key_of(any, rows, 5), key_of(plain, rows, 5));
  std::vector<float> a(4);
  std::vector<float> b(4);
  AnyScorer(RandomScorer(1)).direct_scores(0, 3, a);
  RandomScorer(1).direct_scores(0, 3, b);
  EXPECT_EQ(a, b);
}

}  // namespace
}  // namespace chunkllm
