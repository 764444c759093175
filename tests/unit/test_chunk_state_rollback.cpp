// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "chunkllm/chunk/chunk_state.hpp"
#include "support/hook_driver.hpp"

namespace chunkllm {
namespace {

using testing::all_policies;
using testing::HashScorer;
using testing::HookDriver;
using testing::IntegerScorer;
using testing::MadeUpText;
using testing::make_state;
using testing::small_options;

TEST(ChunkState, RollbackAndReplayAttendTheSame) {
  for (const bool finds_boundaries : {true, false}) {
    for (const RefreshPolicy& refresh : all_policies()) {
      for (const std::int64_t block : {1, 200}) {
        ChunkOptions options = small_options();
        options.selection = Selection::kLayer;
        options.refresh = refresh;
        ThreadPool pool(1);
        MadeUpText text(500);
        HookDriver<IntegerScorer> straight(make_state<IntegerScorer>(options, finds_boundaries),
                                           text, pool);
        straight.read(500, block, ReadMode::kLayerLocal);
        HookDriver<IntegerScorer> winding(make_state<IntegerScorer>(options, finds_boundaries),
                                          text, pool);
        for (std::int64_t t = 60; t <= 480; t += 60) {
          winding.read(t - winding.state().num_tokens(), block, ReadMode::kLayerLocal);
          const std::int64_t back = t - 1 - t % 47;
          ASSERT_TRUE(winding.state().rollback(back).ok());
          winding.forget_from(back);
        }
        winding.read(500 - winding.state().num_tokens(), block, ReadMode::kLayerLocal);
        EXPECT_EQ(straight.attended(), winding.attended());
        EXPECT_EQ(straight.state().table().ends(), winding.state().table().ends());
        EXPECT_EQ(straight.state().counters().refreshes, winding.state().counters().refreshes);
      }
    }
  }
}

/// One turn or a part of it, drawn from `random`; the same draws give the same reading.
template <typename Scorer>
void read_some(HookDriver<Scorer>& driver, std::mt19937& random, std::int64_t most) {
  const auto draw = [&](std::int64_t below) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint32_t>(below));
  };
  const std::int64_t prompt = 1 + draw(most);
  driver.read(prompt, 1 + draw(40), draw(5) == 0 ? ReadMode::kDense : ReadMode::kLayerLocal);
  if (draw(3) > 0) driver.end_prompt(prompt, /*look_again=*/draw(4) > 0);
  const std::int64_t rest = most - prompt;
  if (rest > 0) driver.read(draw(rest + 1), 1 + draw(20), ReadMode::kAsDecode);
}

/// A branch of reading, prompts' ends and second looks included, then back: from there on the
/// state must do what one does that never took the branch.
template <typename Scorer>
void expect_branches_leave_no_trace(const ChunkOptions& options, bool finds_boundaries,
                                    std::uint32_t seed) {
  ThreadPool pool(1);
  std::mt19937 random(seed);
  MadeUpText text(900, seed);
  ChunkState<Scorer> state = make_state<Scorer>(options, finds_boundaries);
  while (state.num_tokens() < 500) {
    HookDriver<Scorer> straight(state, text, pool);
    read_some(straight, random, 120);
    state = straight.state();
    const MadeUpText text_then = text;

    MadeUpText other = text;
    other.alter_from(state.num_tokens());
    HookDriver<Scorer> branch(state, other, pool);
    const std::int64_t back = state.num_tokens();
    read_some(branch, random, 1 + static_cast<std::int64_t>(random() % 25));
    if (random() % 2 == 0) read_some(branch, random, 20);
    ASSERT_TRUE(branch.state().rollback(back).ok());

    const auto script = static_cast<std::uint32_t>(random());
    MadeUpText same = text_then;
    HookDriver<Scorer> returned(branch.state(), same, pool);
    HookDriver<Scorer> never_left(state, text, pool);
    std::mt19937 left_draws(script);
    std::mt19937 right_draws(script);
    for (int turn = 0; turn < 2; ++turn) {
      read_some(never_left, left_draws, 40);
      read_some(returned, right_draws, 40);
      ASSERT_EQ(never_left.attended(), returned.attended()) << "back at " << back;
      ASSERT_EQ(never_left.state().table().ends(), returned.state().table().ends());
      const ChunkCounters& a = never_left.state().counters();
      const ChunkCounters& b = returned.state().counters();
      ASSERT_EQ(a.boundaries, b.boundaries);
      ASSERT_EQ(a.forced_boundaries, b.forced_boundaries);
      ASSERT_EQ(a.refreshes, b.refreshes) << "back at " << back;
      ASSERT_EQ(a.nan_scores, b.nan_scores);
    }
    state = never_left.state();
  }
}

TEST(ChunkState, BranchesLeaveNoTrace) {
  std::uint32_t seed = 0;
  for (const bool finds_boundaries : {true, false}) {
    for (const Selection selection : {Selection::kLayer, Selection::kMax, Selection::kVote}) {
      for (const RefreshPolicy& refresh : all_policies()) {
        for (int repeat = 0; repeat < 4; ++repeat) {
          ChunkOptions options = small_options();
          options.selection = selection;
          options.refresh = refresh;
          SCOPED_TRACE("seed " + std::to_string(++seed));
          expect_branches_leave_no_trace<HashScorer>(options, finds_boundaries, seed);
          expect_branches_leave_no_trace<IntegerScorer>(options, finds_boundaries, seed);
        }
      }
    }
  }
}

TEST(ChunkState, APromptsEndCountsAsARefreshWhereOnlyABranchHadOne) {
  ThreadPool pool(1);
  MadeUpText text(200);
  for (std::int64_t t = 150; t < 200; ++t) text.set_wanted(t, false);
  MadeUpText other = text;
  other.set_wanted(161, true);
  const ChunkState<HashScorer> fresh =
      make_state<HashScorer>(small_options(), /*finds_boundaries=*/true);
  const auto refreshes = [&](bool branches) {
    HookDriver<HashScorer> driver(fresh, text, pool);
    driver.read(160, 64, ReadMode::kLayerLocal);
    if (branches) {
      HookDriver<HashScorer> branch(driver.state(), other, pool);
      branch.read(2, 1, ReadMode::kAsDecode);  // token 161 ends a chunk
      EXPECT_EQ(branch.state().table().open_begin(), 162);
      EXPECT_TRUE(branch.state().rollback(160).ok());
      driver.state() = branch.state();
    }
    driver.read(2, 1, ReadMode::kLayerLocal);
    EXPECT_LT(driver.state().table().open_begin(), 162);
    MadeUpText same = text;
    HookDriver<HashScorer> ends(driver.state(), same, pool);
    ends.end_prompt(2);
    return ends.state().counters().refreshes;
  };
  EXPECT_EQ(refreshes(false), refreshes(true));
}

TEST(ChunkState, CountsNanScoresAndUncountsThemOnRollback) {
  ChunkOptions options = small_options();
  for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
    options.selection = selection;
    ThreadPool pool(1);
    MadeUpText text(400);
    HookDriver<HashScorer> driver(make_state<HashScorer>(options, true), text, pool);
    driver.read(350, 64, ReadMode::kLayerLocal);
    const std::int64_t before = driver.state().counters().nan_scores;
    EXPECT_GT(before, 0);
    driver.read(50, 1, ReadMode::kAsDecode);
    EXPECT_GT(driver.state().counters().nan_scores, before);
    ASSERT_TRUE(driver.state().rollback(350).ok());
    EXPECT_EQ(driver.state().counters().nan_scores, before);
  }
}

TEST(ChunkState, RollbackBeyondTheJournalIsRefused) {
  ThreadPool pool(1);
  MadeUpText text(300);
  HookDriver<HashScorer> driver(make_state<HashScorer>(small_options(), true), text, pool);
  driver.read(200, 64, ReadMode::kLayerLocal);
  EXPECT_EQ(driver.state().rollback(149).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(driver.state().rollback(201).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(driver.state().num_tokens(), 200);
  EXPECT_TRUE(driver.state().rollback(160).ok());
  EXPECT_EQ(driver.state().rollback(140).code(), StatusCode::kOutOfRange);
  EXPECT_TRUE(driver.state().rollback(150).ok());
  EXPECT_EQ(driver.state().num_tokens(), 150);
  HookDriver<HashScorer> young(make_state<HashScorer>(small_options(), true), text, pool);
  young.read(30, 64, ReadMode::kLayerLocal);
  EXPECT_TRUE(young.state().rollback(0).ok());
  EXPECT_EQ(young.state().table().num_chunks(), 0);
  EXPECT_EQ(young.state().counters().boundaries, 0);
}

}  // namespace
}  // namespace chunkllm
