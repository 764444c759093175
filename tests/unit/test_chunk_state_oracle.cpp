// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_state.hpp"
#include "reference/reader_oracle.hpp"
#include "support/hook_driver.hpp"

namespace chunkllm {
namespace {

using testing::all_policies;
using testing::HashScorer;
using testing::HookDriver;
using testing::IntegerScorer;
using testing::kKeySize;
using testing::kLayers;
using testing::listed;
using testing::MadeUpText;
using testing::make_state;
using testing::small_options;

oracle::ReaderSettings settings_of(const ChunkOptions& options, const std::vector<bool>& windowed) {
  oracle::ReaderSettings settings;
  settings.num_layers = kLayers;
  settings.windowed = windowed;
  settings.refresh = options.refresh.kind == RefreshPolicy::Kind::kBoundary
                         ? oracle::ReaderSettings::Refresh::kBoundary
                     : options.refresh.kind == RefreshPolicy::Kind::kEvery
                         ? oracle::ReaderSettings::Refresh::kEvery
                         : oracle::ReaderSettings::Refresh::kStride;
  settings.stride = options.refresh.stride;
  settings.shares_sets = options.selection != Selection::kLayer;
  settings.join = options.selection == Selection::kVote   ? oracle::Join::kVote
                  : options.selection == Selection::kSoft ? oracle::Join::kSoft
                                                          : oracle::Join::kMax;
  switch (options.budget.kind) {
    case Budget::Kind::kTokens:
      settings.budget = {oracle::BudgetRule::Kind::kTokens,
                         static_cast<double>(options.budget.tokens)};
      break;
    case Budget::Kind::kShare:
      settings.budget = {oracle::BudgetRule::Kind::kShare, options.budget.share};
      break;
    case Budget::Kind::kChunks:
      settings.budget = {oracle::BudgetRule::Kind::kChunks,
                         static_cast<double>(options.budget.chunks)};
      break;
  }
  settings.threshold = options.threshold;
  settings.min_len = options.guards.min_len;
  settings.max_len = options.guards.max_len;
  settings.local_min_tokens = options.local_min_tokens;
  settings.local_min_chunks = options.local_min_chunks;
  settings.second_look = options.second_look;
  return settings;
}

/// A prompt, some decoding, a second prompt and more decoding, by the library and by the oracle.
template <typename Scorer>
void expect_reads_as_oracle(const ChunkOptions& options, bool finds_boundaries,
                            std::vector<bool> windowed, std::int64_t num_prompt,
                            std::int64_t block) {
  constexpr std::int64_t kDecode = 60;
  constexpr std::int64_t kSecond = 40;
  const std::int64_t total = num_prompt + kSecond + 2 * kDecode;
  ThreadPool pool(1 + static_cast<int>(block % 3));
  MadeUpText text(total);
  HookDriver<Scorer> driver(make_state<Scorer>(options, finds_boundaries, windowed), text, pool);
  MadeUpText oracle_text(total);
  const oracle::Reader::Scores scores = [&](std::int64_t layer, std::int64_t token,
                                            std::int64_t count, const oracle::ChunkList& closed) {
    std::vector<float> out;
    for (std::int64_t chunk = 1; chunk <= count; ++chunk) {
      if constexpr (std::is_same_v<Scorer, HashScorer>) {
        out.push_back(HashScorer::score(layer, token, chunk));
      } else {
        const auto& [begin, end] = closed[static_cast<std::size_t>(chunk)];
        float z = 0.0F;  // the softmax keeps the order of the logits
        for (std::int64_t i = 0; i < kKeySize; ++i) {
          float largest = 0.0F;
          for (std::int64_t t = begin; t < end; ++t) {
            largest =
                std::max(largest, oracle_text.keys[static_cast<std::size_t>(layer)]
                                                  [static_cast<std::size_t>(t * kKeySize + i)]);
          }
          z += largest * oracle_text.queries[static_cast<std::size_t>(layer)]
                                            [static_cast<std::size_t>(token * kKeySize + i)];
        }
        out.push_back(z);
      }
    }
    return out;
  };
  oracle::Reader reader(settings_of(options, windowed), scores);
  const std::vector<bool> wanted = finds_boundaries ? text.wanted : text.verdicts();
  EXPECT_GT(std::count(wanted.begin(), wanted.end(), true), total / 20);
  std::vector<std::vector<oracle::TokenList>> expected;  // [token][layer]
  const auto oracle_read = [&](std::int64_t count, bool decoding) {
    for (std::int64_t i = 0; i < count; ++i) {
      expected.push_back(reader.read(wanted[expected.size()], decoding));
    }
  };
  const auto oracle_end = [&](std::int64_t turn) {
    const auto looked = reader.end_prompt(turn);
    const auto count = static_cast<std::int64_t>(looked.size());
    expected.resize(expected.size() - looked.size());
    if (count > 0) oracle_text.redraw(static_cast<std::int64_t>(expected.size()), count);
    expected.insert(expected.end(), looked.begin(), looked.end());
    return count;
  };
  driver.read(num_prompt, block, ReadMode::kLayerLocal);
  oracle_read(num_prompt, /*decoding=*/false);
  EXPECT_EQ(driver.end_prompt(num_prompt), oracle_end(num_prompt));
  driver.read(kDecode, 1, ReadMode::kAsDecode);
  oracle_read(kDecode, /*decoding=*/true);
  driver.read(kSecond, block, ReadMode::kLayerLocal);
  oracle_read(kSecond, /*decoding=*/false);
  EXPECT_EQ(driver.end_prompt(kSecond), oracle_end(kSecond));
  driver.read(kDecode, block, ReadMode::kAsDecode);  // teacher forcing: steps are cut
  oracle_read(kDecode, /*decoding=*/true);

  oracle::ChunkList closed;
  for (std::int64_t c = 0; c < driver.state().table().num_chunks(); ++c) {
    closed.emplace_back(driver.state().table().begin(c), driver.state().table().end(c));
  }
  EXPECT_EQ(closed, reader.closed());
  EXPECT_EQ(driver.state().counters().boundaries, static_cast<std::int64_t>(closed.size()));
  EXPECT_EQ(driver.state().counters().forced_boundaries, reader.num_forced());
  EXPECT_EQ(driver.state().counters().refreshes, reader.num_refreshes());
  for (std::size_t t = 0; t < expected.size(); ++t) {
    for (std::size_t l = 0; l < kLayers; ++l) {
      ASSERT_EQ(listed(driver.attended()[l][t]), expected[t][l])
          << "token " << t << ", layer " << l;
    }
  }
}

std::string name_of(const ChunkOptions& options, bool finds_boundaries) {
  return std::string(finds_boundaries ? "adapter" : "rules") + ", selection " +
         std::to_string(static_cast<int>(options.selection)) + ", refresh " +
         std::to_string(static_cast<int>(options.refresh.kind)) + ", budget " +
         std::to_string(static_cast<int>(options.budget.kind));
}

TEST(ChunkState, ReadsAsTheOracleWithScoresHandedIn) {
  for (const bool finds_boundaries : {true, false}) {
    for (const Selection selection :
         {Selection::kLayer, Selection::kMax, Selection::kVote, Selection::kSoft}) {
      for (const RefreshPolicy& refresh : all_policies()) {
        ChunkOptions options = small_options();
        options.selection = selection;
        options.refresh = refresh;
        SCOPED_TRACE(name_of(options, finds_boundaries));
        expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 330, 64);
      }
    }
  }
}

TEST(ChunkState, ReadsAsTheOracleWithExactKeys) {
  for (const bool finds_boundaries : {true, false}) {
    for (const RefreshPolicy& refresh : all_policies()) {
      for (const std::int64_t block : {1, 5, 400}) {
        ChunkOptions options = small_options();
        options.selection = Selection::kLayer;
        options.refresh = refresh;
        SCOPED_TRACE(name_of(options, finds_boundaries) + ", block " + std::to_string(block));
        expect_reads_as_oracle<IntegerScorer>(options, finds_boundaries, {}, 330, block);
      }
    }
  }
}

TEST(ChunkState, ReadsAsTheOracleUnderOtherBudgetsThresholdsAndWindows) {
  for (const bool finds_boundaries : {true, false}) {
    for (const Selection selection : {Selection::kLayer, Selection::kVote}) {
      ChunkOptions options = small_options();
      options.selection = selection;
      options.budget.kind = Budget::Kind::kChunks;
      for (const std::int64_t chunks : {0, 1, 6, 1000}) {
        options.budget.chunks = chunks;
        SCOPED_TRACE(name_of(options, finds_boundaries) + " of " + std::to_string(chunks));
        expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 250, 32);
      }
      options = small_options();
      options.selection = selection;
      options.threshold = 0.1F;
      SCOPED_TRACE("threshold");
      expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 300, 13);
      expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {true, false, true}, 300, 29);
      expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {false, true, false}, 300, 64);
      options.budget.tokens = 10;  // below what is always kept
      expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 200, 64);
      options.local_min_chunks = 9;
      options.second_look = 0;
      options.budget.tokens = 400;
      expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 390, 64);
    }
  }
}

TEST(ChunkState, ReadsAsTheOracleOverThousandsOfTokens) {
  for (const bool finds_boundaries : {true, false}) {
    ChunkOptions options = small_options();
    options.budget.kind = Budget::Kind::kShare;
    options.budget.share = 0.4;
    options.second_look = 64;
    options.selection = finds_boundaries ? Selection::kMax : Selection::kLayer;
    expect_reads_as_oracle<HashScorer>(options, finds_boundaries, {}, 3000, 512);
    if (!finds_boundaries) {
      expect_reads_as_oracle<IntegerScorer>(options, finds_boundaries, {}, 3000, 512);
    }
  }
}

}  // namespace
}  // namespace chunkllm
