// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/layer_scores.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "chunkllm/chunk/qk_adapter.hpp"
#include "support/random_adapter.hpp"
#include "support/random_values.hpp"

namespace chunkllm {
namespace {

using testing::random_adapter;
using testing::random_values;

constexpr std::int64_t kHidden = 11;
constexpr std::int64_t kKeyDim = 3;
constexpr std::int64_t kChunks = 40;

struct Sequence {
  ChunkTable table;
  ChunkKeys keys{6};
  std::vector<float> log_lengths;
  std::vector<float> input = random_values(kHidden, 1);
  std::vector<float> open_key = random_values(6, 2);
  LayerRefresh refresh;

  Sequence() {
    for (std::int64_t c = 0; c < kChunks; ++c) {
      table.close(table.open_begin() + 5 + c % 7);
      keys.append(random_values(6, static_cast<std::uint32_t>(100 + c)).data());
      log_lengths.push_back(std::log(static_cast<float>(table.length(c))));
    }
    refresh.layer = 1;
    refresh.trigger = table.open_begin() + 2;
    refresh.row.input = input.data();
    refresh.range = candidate_range(table, refresh.trigger, 30, 2);
    refresh.table = &table;
    refresh.keys = &keys;
    refresh.log_lengths = log_lengths.data();
    refresh.maybe_open_key = open_key.data();
    refresh.open_length = 3;
  }
};

TEST(LayerScores, HandOverEverythingThatAScorerHas) {
  for (int bits = 0; bits < 16; ++bits) {
    const bool has_null = (bits & 1) != 0;
    const bool has_bias = (bits & 2) != 0;
    const bool adds_log_length = (bits & 4) != 0;
    Sequence s;
    s.refresh.head_join = (bits & 8) != 0 ? HeadJoin::kMean : HeadJoin::kMax;
    const QkAdapter adapter = random_adapter({.hidden_size = kHidden,
                                              .key_dim = kKeyDim,
                                              .has_null = has_null,
                                              .has_bias = has_bias,
                                              .adds_log_length = adds_log_length});

    std::vector<float> query(static_cast<std::size_t>(adapter.shape().query_size()));
    adapter.make_query(1, s.refresh.row, query.data());
    ScoreChunksArgs args;
    args.query = query.data();
    args.maybe_null = has_null ? &query[12] : nullptr;
    args.maybe_bias = has_bias ? adapter.layers()[1].distance_bias.data() : nullptr;
    args.maybe_open_key = s.open_key.data();
    args.maybe_log_lengths = adds_log_length ? s.log_lengths.data() : nullptr;
    args.open_log_length = adds_log_length ? std::log(3.0F) : 0.0F;
    args.keys = &s.keys;
    args.table = &s.table;
    args.range = s.refresh.range;
    args.query_token = s.refresh.trigger;
    args.num_heads = 4;
    args.num_key_heads = 2;
    args.key_dim = 3;
    args.scale = 1.0F / std::sqrt(3.0F);
    args.head_join = s.refresh.head_join;
    std::vector<float> expected(static_cast<std::size_t>(s.refresh.range.num_candidates()));
    std::vector<float> scratch;
    score_chunks(args, expected, scratch);

    const std::vector<float> scores = layer_scores(adapter, s.refresh);
    ASSERT_GT(scores.size(), 30U);
    EXPECT_EQ(scores, expected) << bits;
    Sequence without = s;
    without.refresh = s.refresh;
    without.refresh.maybe_open_key = nullptr;
    EXPECT_EQ(layer_scores(adapter, without.refresh) == scores, has_null) << bits;
  }
}

TEST(LayerScores, AScorerWithoutKeysGivesThemItself) {
  Sequence s;
  std::vector<float> expected(static_cast<std::size_t>(s.refresh.range.num_candidates()));
  RandomScorer(3).direct_scores(1, s.refresh.trigger, expected);
  s.refresh.keys = nullptr;
  s.refresh.row = {};
  EXPECT_EQ(layer_scores(RandomScorer(3), s.refresh), expected);
}

TEST(LayerScores, NoCandidatesAskForNothing) {
  LayerRefresh nothing;  // all pointers are null
  EXPECT_TRUE(
      layer_scores(
          random_adapter(
              {.hidden_size = kHidden, .key_dim = kKeyDim, .has_null = true, .has_bias = true}),
          nothing)
          .empty());
}

}  // namespace
}  // namespace chunkllm
