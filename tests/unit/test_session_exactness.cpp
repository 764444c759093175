// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/infer/session.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "support/session_reading.hpp"

namespace chunkllm {
namespace {

using testing::append;
using testing::backbone;
using testing::decode;
using testing::describe;
using testing::kPrompt;
using testing::kSteps;
using testing::make_session;
using testing::read_in_blocks;
using testing::Reading;
using testing::small_budget;
using testing::tiny_text;
using testing::Trace;

template <typename KvType>
void expect_blocks_equal(const Reading& reading,
                         const std::vector<std::int64_t>& blocks = {7, 64, 512}) {
  const Trace one = read_in_blocks<KvType>(reading, 1);
  EXPECT_GT(one.boundaries, 10);
  for (const std::int64_t block : blocks) {
    const Trace many = read_in_blocks<KvType>(reading, block);
    EXPECT_EQ(one.chunk_ends, many.chunk_ends) << "block " << block;
    EXPECT_EQ(one.segments, many.segments) << "block " << block;
    EXPECT_TRUE(one == many) << "block " << block;
  }
}

/// All settings of one scorer that change how a text is read.
std::vector<Reading> readings_of(const std::string& scorer) {
  std::vector<Reading> readings;
  for (const bool finds_boundaries : {false, true}) {
    for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
      for (const auto refresh : {RefreshPolicy{RefreshPolicy::Kind::kBoundary, 0},
                                 RefreshPolicy{RefreshPolicy::Kind::kEvery, 0},
                                 RefreshPolicy{RefreshPolicy::Kind::kStride, 5}}) {
        Reading reading{scorer, /*windowed=*/false, finds_boundaries, small_budget()};
        reading.options.chunk.selection = selection;
        reading.options.chunk.refresh = refresh;
        readings.push_back(reading);
      }
    }
  }
  return readings;
}

class BlocksEqual : public ::testing::TestWithParam<const char*> {};

TEST_P(BlocksEqual, ForEveryRefreshSelectionAndBoundary) {
  for (const Reading& reading : readings_of(GetParam())) {
    SCOPED_TRACE(std::string(reading.finds_boundaries ? "adapter" : "rules") + ", selection " +
                 std::to_string(static_cast<int>(reading.options.chunk.selection)) + ", refresh " +
                 std::to_string(static_cast<int>(reading.options.chunk.refresh.kind)));
    const bool at_boundaries = reading.options.chunk.refresh.kind == RefreshPolicy::Kind::kBoundary;
    expect_blocks_equal<float>(reading, at_boundaries ? std::vector<std::int64_t>{3, 7, 64, 512}
                                                      : std::vector<std::int64_t>{7, 512});
  }
}

INSTANTIATE_TEST_SUITE_P(Scorers, BlocksEqual,
                         ::testing::Values("mean", "minmax", "recent", "random", "adapter",
                                           "adapter_end"));

TEST(Session, BlocksEqualWithOtherCachesPositionsAndWindows) {
  for (const bool windowed : {false, true}) {
    for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
      for (const bool finds_boundaries : {false, true}) {
        SCOPED_TRACE(std::to_string(windowed) + std::to_string(static_cast<int>(positions)) +
                     std::to_string(finds_boundaries));
        Reading reading{"mean", windowed, finds_boundaries, small_budget()};
        reading.options.positions = positions;
        expect_blocks_equal<F16>(reading);
        reading.options.chunk.selection = Selection::kLayer;
        expect_blocks_equal<float>(reading);
      }
    }
  }
}

TEST(Session, BlocksEqualUnderOtherBudgetsAndJoins) {
  Reading reading{"mean", false, false, small_budget()};
  reading.options.chunk.budget.kind = Budget::Kind::kChunks;
  reading.options.chunk.budget.chunks = 4;
  reading.options.chunk.selection = Selection::kVote;
  expect_blocks_equal<float>(reading);
  reading.options.chunk.selection = Selection::kSoft;
  reading.options.chunk.head_join = HeadJoin::kMean;
  reading.options.chunk.second_look = 0;
  expect_blocks_equal<float>(reading);
  reading.options.dense_prefill = true;
  expect_blocks_equal<float>(reading);
}

TEST(Session, PromptInSeveralCallsEqualsOneCall) {
  ThreadPool pool(1);
  const Reading reading{"mean", false, true, small_budget()};
  const std::vector<std::int32_t> text = tiny_text(kPrompt);
  auto whole = make_session<float>(reading, pool);
  ASSERT_TRUE(whole.prefill(text).ok());
  auto parts = make_session<float>(reading, pool);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t count = std::min<std::size_t>(1 + begin % 97, text.size() - begin);
    ASSERT_TRUE(parts.prefill(std::span(text).subspan(begin, count)).ok());
    begin += count;
  }
  Trace a;
  Trace b;
  append(a.logits, whole.finish_prompt());
  append(b.logits, parts.finish_prompt());
  describe(whole, a);
  describe(parts, b);
  EXPECT_TRUE(a == b);
}

TEST(Session, ThreadsAndRepetitionChangeNoBit) {
  for (const char* scorer : {"mean", "adapter"}) {
    for (const Selection selection : {Selection::kLayer, Selection::kVote}) {
      Reading reading{scorer, false, true, small_budget()};
      reading.options.chunk.selection = selection;
      const Trace once = read_in_blocks<BF16>(reading, 64);
      EXPECT_TRUE(once == read_in_blocks<BF16>(reading, 64));
      EXPECT_TRUE(once == read_in_blocks<BF16>(reading, 64, /*threads=*/2));
      EXPECT_TRUE(once == read_in_blocks<BF16>(reading, 64, /*threads=*/3));
    }
  }
}

template <typename KvType>
void expect_budget_of_everything_equals_dense() {
  for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
    for (const bool windowed : {false, true}) {
      Reading dense{"mean", windowed, false, small_budget()};
      dense.options.positions = positions;
      dense.options.dense = true;
      Reading chunked = dense;
      chunked.options.dense = false;
      chunked.options.chunk.budget.tokens = kPrompt + kSteps;
      const std::vector<float> expected = read_in_blocks<KvType>(dense, 64).logits;
      EXPECT_TRUE(expected == read_in_blocks<KvType>(chunked, 64).logits);
      // Chosen chunk by chunk, and joined anew at every boundary, all of them are everything, too.
      chunked.options.chunk.budget.kind = Budget::Kind::kChunks;
      chunked.options.chunk.budget.chunks = kPrompt;
      EXPECT_TRUE(expected == read_in_blocks<KvType>(chunked, 64).logits);
      chunked.options.chunk.budget.kind = Budget::Kind::kShare;
      chunked.options.chunk.selection = Selection::kLayer;
      EXPECT_TRUE(expected == read_in_blocks<KvType>(chunked, 7).logits);
    }
  }
}

TEST(Session, BudgetOfTheWholeContextIsBitIdenticalToDense) {
  expect_budget_of_everything_equals_dense<float>();
  expect_budget_of_everything_equals_dense<F16>();
  expect_budget_of_everything_equals_dense<BF16>();
}

TEST(Session, SelectionChangesTheLogits) {
  Reading reading{"mean", false, false, small_budget()};
  const Trace sparse = read_in_blocks<float>(reading, 64);
  reading.options.dense = true;
  EXPECT_FALSE(sparse.logits == read_in_blocks<float>(reading, 64).logits);
}

TEST(Session, TeacherForcingEqualsDecoding) {
  ThreadPool pool(1);
  for (const bool finds_boundaries : {false, true}) {
    for (const Selection selection : {Selection::kLayer, Selection::kMax, Selection::kVote}) {
      for (const auto kind : {RefreshPolicy::Kind::kBoundary, RefreshPolicy::Kind::kStride}) {
        Reading reading{"mean", false, finds_boundaries, small_budget()};
        reading.options.chunk.selection = selection;
        reading.options.chunk.refresh = {kind, 7};
        const std::vector<std::int32_t> text = tiny_text(360);
        const std::span<const std::int32_t> all(text);
        auto stepping = make_session<float>(reading, pool);
        ASSERT_TRUE(stepping.prefill(all.first(200)).ok());
        ASSERT_TRUE(stepping.finish_prompt().ok());
        auto forced = stepping;
        std::vector<float> rows;
        std::int64_t next = 200;
        ASSERT_TRUE(forced
                        .read(all.subspan(200), ReadMode::kAsDecode, {},
                              [&](std::int64_t first, MatrixView<const float> hidden) {
                                EXPECT_EQ(first, next);
                                next += hidden.rows;
                                rows.insert(rows.end(), hidden.data, hidden.row(hidden.rows));
                              })
                        .ok());
        EXPECT_EQ(next, 360);
        std::vector<float> logits(64);
        for (std::size_t i = 0; i < 160; ++i) {
          backbone().logits({rows.data() + i * 32, 1, 32}, {logits.data(), 1, 64}, pool);
          const auto expected = stepping.step(text[200 + i]);
          ASSERT_TRUE(expected.ok());
          ASSERT_TRUE(std::equal(logits.begin(), logits.end(), expected.value().begin())) << i;
        }
        // What a cut step left in the journal is what single steps leave there.
        ASSERT_TRUE(forced.rollback(320).ok());
        ASSERT_TRUE(stepping.rollback(320).ok());
        Trace a;
        Trace b;
        decode(forced, all.subspan(300, 30), a);
        decode(stepping, all.subspan(300, 30), b);
        EXPECT_TRUE(a == b);
      }
    }
  }
}

TEST(Session, JournalOfNoTokensStillLooksAgain) {
  Reading reading{"adapter", false, true, small_budget()};
  reading.options.chunk.journal_len = 0;
  for (const std::int64_t look : {0, 1, 40}) {
    reading.options.chunk.second_look = look;
    expect_blocks_equal<float>(reading);
    Reading long_journal = reading;
    long_journal.options.chunk.journal_len = 300;
    EXPECT_TRUE(read_in_blocks<float>(reading, 64) == read_in_blocks<float>(long_journal, 64));
  }
}

}  // namespace
}  // namespace chunkllm
