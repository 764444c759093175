// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/eval/oracle_scores.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "chunkllm/eval/rule_boundaries.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm {
namespace {

using Ends = std::vector<std::int64_t>;

TEST(RuleBoundaries, EqualThoseOfASession) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  const std::vector<std::int32_t> ids = testing::tiny_text(300);
  ThreadPool pool(1);
  SessionOptions options;
  options.chunk.guards = {6, 11};
  auto session = Session<DecoderBackbone, RecentScorer, float>::create(
      backbone, std::make_shared<const RecentScorer>(), nullptr, testing::tiny_token_bytes, options,
      pool);
  ASSERT_TRUE(session->prefill(ids).ok());
  const Ends ends = rule_chunk_ends(ids, testing::tiny_token_bytes, options.chunk.guards);
  EXPECT_EQ(ends, session->chunks().table().ends());
  EXPECT_GT(session->chunks().counters().forced_boundaries, 0);
  const std::vector<std::size_t> sentences = sentence_end_tokens(ids, testing::tiny_token_bytes);
  EXPECT_GT(sentences.size(), 20U);
  for (const std::size_t token : sentences) EXPECT_EQ(ids[token], 0) << token;
}

TEST(OracleScores, TriggersFollowThePolicy) {
  const Ends ends = {4, 9, 12};
  EXPECT_EQ(refresh_triggers(ends, {}, 12), (Ends{3, 8, 11}));
  EXPECT_EQ(refresh_triggers(ends, {}, 11), (Ends{3, 8}));
  EXPECT_EQ(refresh_triggers(ends, {RefreshPolicy::Kind::kStride, 5}, 12), (Ends{4, 9}));
  EXPECT_EQ(refresh_triggers(ends, {RefreshPolicy::Kind::kEvery, 0}, 3), (Ends{0, 1, 2}));
}

TEST(OracleScores, SecondPassSelectsTheHeaviestChunks) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  const std::vector<std::int32_t> ids = testing::tiny_text(405);
  ThreadPool pool(2);
  SessionOptions options;
  options.chunk.budget.kind = Budget::Kind::kChunks;
  options.chunk.budget.chunks = 1;
  options.chunk.local_min_tokens = 16;
  options.chunk.selection = Selection::kLayer;
  const Ends ends = rule_chunk_ends(ids, testing::tiny_token_bytes, options.chunk.guards);
  auto table = collect_oracle_scores<float>(
      backbone, ids, ends, refresh_triggers(ends, options.chunk.refresh, 405), {}, {}, pool);
  ASSERT_TRUE(table.ok()) << table.status().message();
  auto session = Session<DecoderBackbone, AnyScorer, float>::create(
      backbone, std::make_shared<const AnyScorer>(TableScorer(table.value())), nullptr,
      testing::tiny_token_bytes, options, pool);
  ASSERT_TRUE(session->prefill(ids).ok());
  ASSERT_EQ(session->chunks().table().ends(), ends);
  ASSERT_LT(ends.back(), 405);
  // Chunks 0 and the heaviest candidate, then the tail.
  const std::int64_t trigger = ends.back() - 1;
  const CandidateRange range = candidate_range(session->chunks().table(), trigger, 16, 2);
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    const auto& scores =
        table.value()->at(static_cast<std::size_t>(layer)).at(static_cast<std::size_t>(trigger));
    std::int64_t best = 1;
    for (std::int64_t c = 2; c < range.end; ++c) {
      if (scores[static_cast<std::size_t>(c - 1)] >= scores[static_cast<std::size_t>(best - 1)]) {
        best = c;
      }
    }
    const std::int64_t position = ends.back();
    const AttendedSet expected = make_attended_set(
        session->chunks().table(), std::vector<std::int64_t>{best}, range.tail_begin);
    EXPECT_EQ(session->chunks().segments(layer, position), expected.segments(position)) << layer;
  }
}

TEST(OracleScores, RefusesWhatIsTooLarge) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  ThreadPool pool(1);
  const std::vector<std::int32_t> ids(16385, 3);
  EXPECT_EQ(collect_oracle_scores<float>(backbone, ids, {}, {}, {}, {}, pool).status().code(),
            StatusCode::kResourceExhausted);
  Ends every;
  for (std::int64_t i = 1; i <= 16384; ++i) every.push_back(i);
  EXPECT_EQ(collect_oracle_scores<float>(backbone, std::span(ids).first(16384), every, every, {},
                                         {}, pool)
                .status()
                .code(),
            StatusCode::kResourceExhausted);
}

TEST(OracleScores, StopsWhenAsked) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  ThreadPool pool(1);
  const std::vector<std::int32_t> ids = testing::tiny_text(50);
  const auto result = collect_oracle_scores<F16>(
      backbone, ids, {10}, {9}, {}, [](std::int64_t) { return false; }, pool);
  EXPECT_EQ(result.status().code(), StatusCode::kInterrupted);
}

}  // namespace
}  // namespace chunkllm
