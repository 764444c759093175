// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/chunk_state.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "support/hook_driver.hpp"

namespace chunkllm {
namespace {

using testing::HashScorer;
using testing::HookDriver;
using testing::kLayers;
using testing::listed;
using testing::MadeUpText;
using testing::make_state;
using testing::small_options;

TEST(ChunkState, TriggerTokenSeesItsSetOneTokenLaterInTheFirstLayer) {
  for (const bool finds_boundaries : {true, false}) {
    ChunkOptions options = small_options();
    options.selection = Selection::kLayer;
    ThreadPool pool(1);
    MadeUpText text(400);
    HookDriver<HashScorer> driver(make_state<HashScorer>(options, finds_boundaries), text, pool);
    driver.read(400, 64, ReadMode::kLayerLocal);
    const ChunkTable& table = driver.state().table();
    int num_changes = 0;
    for (std::int64_t c = 0; c < table.num_chunks(); ++c) {
      const std::int64_t trigger = table.end(c) - 1;
      if (trigger < 200 || trigger + 1 >= 400) continue;
      const auto set = [&](std::size_t layer, std::int64_t token) {
        std::vector<TokenSpan> spans = driver.attended()[layer][static_cast<std::size_t>(token)];
        spans.back().end = 0;  // all but the growing end of the tail
        return spans;
      };
      for (std::size_t layer = 0; layer < kLayers; ++layer) {
        const std::int64_t first_new = layer == 0 ? trigger + 1 : trigger;
        EXPECT_EQ(set(layer, first_new - 1), set(layer, first_new - 2));
        num_changes += set(layer, first_new) != set(layer, first_new - 1) ? 1 : 0;
      }
    }
    EXPECT_GT(num_changes, 15);
  }
}

TEST(ChunkState, JoinedSetsActFromTheNextToken) {
  ChunkOptions options = small_options();
  options.selection = Selection::kSoft;
  ThreadPool pool(1);
  MadeUpText text(400);
  HookDriver<HashScorer> driver(make_state<HashScorer>(options, /*finds_boundaries=*/true), text,
                                pool);
  driver.read(300, 64, ReadMode::kLayerLocal);
  driver.end_prompt(300);
  driver.read(100, 1, ReadMode::kAsDecode);
  for (std::size_t t = 300; t < 400; ++t) {
    EXPECT_EQ(driver.attended()[0][t], driver.attended()[1][t]);
    EXPECT_EQ(driver.attended()[0][t], driver.attended()[2][t]);
    const bool follows_boundary = driver.state().table().chunk_of(static_cast<std::int64_t>(t)) !=
                                  driver.state().table().chunk_of(static_cast<std::int64_t>(t) - 1);
    if (t == 300 || follows_boundary) continue;
    auto before = driver.attended()[0][t - 1];
    before.back().end += 1;
    EXPECT_EQ(driver.attended()[0][t], before) << t;
  }
}

TEST(ChunkState, PromptEndEvaluatesAtLeastTheLastTokenAgain) {
  for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
    ChunkOptions options = small_options();
    options.selection = selection;
    ThreadPool pool(1);
    for (const std::int64_t look : {0, 1, 17}) {
      options.second_look = look;
      MadeUpText text(300);
      HookDriver<HashScorer> driver(make_state<HashScorer>(options, true), text, pool);
      driver.read(300, 64, ReadMode::kLayerLocal);
      EXPECT_EQ(driver.end_prompt(300), std::max<std::int64_t>(look, 1));
    }
    MadeUpText text(300);
    HookDriver<HashScorer> dense(make_state<HashScorer>(options, true), text, pool);
    dense.read(300, 64, ReadMode::kDense);
    EXPECT_EQ(listed(dense.attended()[1][299]).size(), 300U);
    EXPECT_EQ(dense.end_prompt(300, /*look_again=*/false), 0);
    EXPECT_LT(listed(dense.state().segments(1, 300)).size(), 160U);
    MadeUpText short_text(100);
    HookDriver<HashScorer> fits(make_state<HashScorer>(options, true), short_text, pool);
    fits.read(100, 64, ReadMode::kLayerLocal);
    EXPECT_EQ(fits.end_prompt(100), 0);
  }
}

TEST(ChunkState, SegmentsSayWhatADenseStepAttends) {
  ThreadPool pool(1);
  MadeUpText text(400);
  HookDriver<HashScorer> driver(make_state<HashScorer>(small_options(), true), text, pool);
  driver.read(300, 64, ReadMode::kLayerLocal);
  EXPECT_LT(listed(driver.state().segments(1, 300)).size(), 160U);  // of the next token
  driver.read(20, 20, ReadMode::kDense);  // the driver compares tiles and segments
  EXPECT_EQ(listed(driver.attended()[1][310]).size(), 311U);
  EXPECT_EQ(listed(driver.state().segments(1, 310)).size(), 311U);
  EXPECT_LT(listed(driver.state().segments(1, 320)).size(), 180U);
  ASSERT_TRUE(driver.state().rollback(310).ok());
  EXPECT_LT(listed(driver.state().segments(1, 310)).size(), 180U);
}

TEST(ChunkState, EndPromptNeedsATokenAndItsRows) {
  ThreadPool pool(1);
  MadeUpText text(300);
  HookDriver<HashScorer> driver(make_state<HashScorer>(small_options(), true), text, pool);
  EXPECT_EQ(driver.state().end_prompt(1, true, pool).status().code(), StatusCode::kInvalidArgument);
  driver.read(200, 64, ReadMode::kLayerLocal);
  EXPECT_EQ(driver.state().end_prompt(0, true, pool).status().code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(driver.state().rollback(200).ok());
  ASSERT_TRUE(driver.state().rollback(190).ok());
  EXPECT_EQ(driver.state().end_prompt(190, true, pool).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(ChunkState, CreateRefusesShapesThatDoNotFit) {
  ChunkStateShape shape;
  shape.num_layers = 2;
  shape.hidden_size = 4;
  const auto scorer = std::make_shared<const RecentScorer>();
  const auto code = [&](const ChunkStateShape& s, std::shared_ptr<const RecentScorer> given,
                        std::shared_ptr<const ChunkAdapter> adapter, const ChunkOptions& options) {
    return ChunkState<RecentScorer>::create(s, std::move(given), std::move(adapter), options)
        .status()
        .code();
  };
  EXPECT_EQ(code(shape, scorer, nullptr, {}), StatusCode::kOk);
  EXPECT_EQ(code(shape, nullptr, nullptr, {}), StatusCode::kInvalidArgument);
  auto adapter = std::make_shared<ChunkAdapter>();
  adapter->weight.resize(3);
  EXPECT_EQ(code(shape, scorer, adapter, {}), StatusCode::kInvalidArgument);
  ChunkStateShape bad = shape;
  bad.windowed = {true};
  EXPECT_EQ(code(bad, scorer, nullptr, {}), StatusCode::kInvalidArgument);
  struct HeadsWithoutKeys : ChunkScorerBase {
    [[nodiscard]] ScorerShape shape() const {
      ScorerShape shape;
      shape.num_heads = 4;
      return shape;
    }
  };
  EXPECT_EQ(ChunkState<HeadsWithoutKeys>::create(shape, std::make_shared<const HeadsWithoutKeys>(),
                                                 nullptr, {})
                .status()
                .code(),
            StatusCode::kInvalidArgument);
  bad = shape;
  bad.num_layers = 0;
  EXPECT_EQ(code(bad, scorer, nullptr, {}), StatusCode::kInvalidArgument);
  ChunkOptions options;
  options.budget.tokens = 0;
  EXPECT_EQ(code(shape, scorer, nullptr, options), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm
