// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/score_chunks.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "reference/oracle.hpp"
#include "support/compare.hpp"

namespace chunkllm {
namespace {

TEST(DistanceBin, EqualsItsDefinition) {
  for (std::int64_t distance = 1; distance <= 5000; ++distance) {
    ASSERT_EQ(distance_bin(distance), oracle::distance_bin(distance)) << distance;
  }
  for (std::int64_t power = 0; power < 40; ++power) {
    for (const std::int64_t off : {-1, 0, 1}) {
      const std::int64_t distance = std::max<std::int64_t>(1, (std::int64_t{1} << power) + off);
      EXPECT_EQ(distance_bin(distance), oracle::distance_bin(distance)) << distance;
    }
  }
  EXPECT_EQ(distance_bin(1), 0);
  EXPECT_EQ(distance_bin(std::numeric_limits<std::int64_t>::max()), kNumDistanceBins - 1);
}

TEST(CandidateRange, AgreesWithAWalkOverTheChunks) {
  std::mt19937 random(9);
  for (int trial = 0; trial < 2000; ++trial) {
    ChunkTable table;
    oracle::ChunkList closed;
    std::int64_t end = 0;
    const std::int64_t num_chunks = static_cast<std::int64_t>(random() % 12);
    for (std::int64_t c = 0; c < num_chunks; ++c) {
      const std::int64_t length = static_cast<std::int64_t>(1 + random() % 40);
      closed.emplace_back(end, end + length);
      table.close(end += length);
    }
    const std::int64_t token = static_cast<std::int64_t>(random()) % (end + 30);
    std::erase_if(closed, [&](const auto& chunk) { return chunk.second > token + 1; });
    const std::int64_t min_tokens = static_cast<std::int64_t>(1 + random() % 90);
    const std::int64_t min_chunks = static_cast<std::int64_t>(1 + random() % 4);
    const CandidateRange range = candidate_range(table, token, min_tokens, min_chunks);
    const oracle::Candidates expected = oracle::candidates(closed, token, min_tokens, min_chunks);
    ASSERT_EQ(range.num_closed, static_cast<std::int64_t>(closed.size()));
    ASSERT_EQ(range.end, expected.end);
    ASSERT_EQ(range.tail_begin, expected.tail_begin);
    ASSERT_EQ(range.num_candidates(), std::max<std::int64_t>(0, expected.end - 1));
  }
}

/// One refresh with random operands.
struct Refresh {
  std::int64_t num_heads = 4;
  std::int64_t num_key_heads = 2;
  std::int64_t key_dim = 24;
  std::int64_t num_closed = 50;
  bool has_null = false;
  bool has_bias = false;
  bool has_lengths = true;
  bool has_open = true;
  HeadJoin join = HeadJoin::kMax;
  std::uint32_t seed = 1;
};

class ScoreRun {
 public:
  explicit ScoreRun(const Refresh& r) : r_(r), keys_(r.num_key_heads * r.key_dim) {
    std::mt19937 random(r.seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& values, std::int64_t size) {
      values.resize(static_cast<std::size_t>(size));
      for (float& value : values) value = normal(random);
    };
    fill(query_, r.num_heads * r.key_dim);
    fill(null_, r.num_heads);
    fill(bias_, r.num_heads * kNumDistanceBins);
    fill(open_, keys_.key_size());
    std::int64_t end = 0;
    for (std::int64_t c = 0; c < r.num_closed; ++c) {
      rows_.emplace_back();
      fill(rows_.back(), keys_.key_size());
      keys_.append(rows_.back().data());
      table_.close(end += static_cast<std::int64_t>(1 + random() % 40));
      log_lengths_.push_back(std::log(static_cast<float>(table_.length(c))));
    }
    token_ = end + (r.has_open ? 6 : -1);
    range_ = candidate_range(table_, token_, 64, 2);
    scores_.resize(static_cast<std::size_t>(range_.num_candidates()));
  }

  std::vector<float>& query() { return query_; }
  [[nodiscard]] const std::vector<float>& scores() const { return scores_; }

  void run() {
    ScoreChunksArgs args;
    args.query = query_.data();
    args.maybe_null = r_.has_null ? null_.data() : nullptr;
    args.maybe_bias = r_.has_bias ? bias_.data() : nullptr;
    args.maybe_open_key = r_.has_open ? open_.data() : nullptr;
    args.maybe_log_lengths = r_.has_lengths ? log_lengths_.data() : nullptr;
    args.open_log_length = std::log(7.0F);
    args.keys = &keys_;
    args.table = &table_;
    args.range = range_;
    args.query_token = token_;
    args.num_heads = r_.num_heads;
    args.num_key_heads = r_.num_key_heads;
    args.key_dim = r_.key_dim;
    args.scale = 0.25F;
    args.head_join = r_.join;
    std::vector<float> scratch;
    score_chunks(args, scores_, scratch);
  }

  /// z is a chain of key_dim products plus a logarithm and a bias; its error goes through exp into
  /// every probability, and the softmax's sum adds one rounding a candidate.
  void expect_equals_oracle() {
    oracle::ScoreProblem p;
    double size = 0.0;
    for (std::int64_t h = 0; h < r_.num_heads; ++h) {
      const auto first = query_.begin() + h * r_.key_dim;
      p.queries.emplace_back(first, first + r_.key_dim);
    }
    for (const auto& row : rows_) {
      p.keys.emplace_back(row.begin(), row.end());
      for (std::size_t h = 0; h < p.queries.size(); ++h) {
        const std::size_t offset =
            h / static_cast<std::size_t>(r_.num_heads / r_.num_key_heads) * p.queries[h].size();
        double sum = 0.0;
        for (std::size_t i = 0; i < p.queries[h].size(); ++i) {
          sum += std::abs(p.queries[h][i] * p.keys.back()[offset + i]);
        }
        size = std::max(size, sum);
      }
    }
    if (r_.has_open) p.open_key.assign(open_.begin(), open_.end());
    if (r_.has_null) p.null_logits.assign(null_.begin(), null_.end());
    if (r_.has_bias) {
      for (std::int64_t h = 0; h < r_.num_heads; ++h) {
        const auto first = bias_.begin() + h * kNumDistanceBins;
        p.bias.emplace_back(first, first + kNumDistanceBins);
      }
    }
    for (std::int64_t c = 0; c < r_.num_closed; ++c) {
      if (r_.has_lengths) p.lengths.push_back(static_cast<double>(table_.length(c)));
      p.last_tokens.push_back(table_.end(c) - 1);
    }
    p.open_length = 7.0;
    p.candidate_end = range_.end;
    p.query_token = token_;
    p.num_key_heads = r_.num_key_heads;
    p.scale = 0.25;
    p.mean_over_heads = r_.join == HeadJoin::kMean;
    const oracle::Row expected = oracle::scores(p);
    const double logit = testing::kUnitRoundoff *
                         ((static_cast<double>(r_.key_dim) + 3.0) * 0.25 * size + 4.0 * 12.0);
    std::vector<double> bounds;
    for (const double score : expected) {
      bounds.push_back(score *
                           (2.0 * std::expm1(2.0 * logit) +
                            (static_cast<double>(r_.num_closed) + 16.0) * testing::kUnitRoundoff) +
                       1e-37);  // exp ends at -87
    }
    EXPECT_TRUE(testing::all_within(scores_, expected, bounds));
  }

 private:
  Refresh r_;
  ChunkKeys keys_;
  ChunkTable table_;
  std::vector<std::vector<float>> rows_;
  std::vector<float> query_;
  std::vector<float> null_;
  std::vector<float> bias_;
  std::vector<float> open_;
  std::vector<float> log_lengths_;
  std::vector<float> scores_;
  CandidateRange range_;
  std::int64_t token_ = 0;
};

TEST(ScoreChunks, EqualsTheOracle) {
  for (const std::int64_t closed : {6, 31, 32, 33, 64, 65, 700}) {
    for (int bits = 0; bits < 32; ++bits) {
      Refresh r;
      r.num_closed = closed;
      r.has_null = (bits & 1) != 0;
      r.has_bias = (bits & 2) != 0;
      r.has_lengths = (bits & 4) != 0;
      r.has_open = (bits & 8) != 0;
      r.join = (bits & 16) != 0 ? HeadJoin::kMean : HeadJoin::kMax;
      r.seed = static_cast<std::uint32_t>(closed * 32 + bits);
      SCOPED_TRACE(std::to_string(closed) + " chunks, case " + std::to_string(bits));
      ScoreRun run(r);
      run.run();
      run.expect_equals_oracle();
    }
  }
}

TEST(ScoreChunks, HeadCountsAndKeySizes) {
  for (const std::int64_t ratio : {1, 3, 7, 16}) {
    for (const std::int64_t key_dim : {1, 2, 31, 64, 128}) {
      Refresh r;
      r.num_heads = 2 * ratio;
      r.key_dim = key_dim;
      ScoreRun run(r);
      run.run();
      run.expect_equals_oracle();
    }
  }
}

TEST(ScoreChunks, ScoresAreShares) {
  ScoreRun run(Refresh{});
  run.run();
  for (const float score : run.scores()) {
    EXPECT_GE(score, 0.0F);
    EXPECT_LE(score, 1.0F);
  }
}

TEST(ScoreChunks, NanInOneHeadReachesEveryScore) {
  for (const HeadJoin join : {HeadJoin::kMax, HeadJoin::kMean}) {
    for (const std::size_t head : {0U, 3U}) {
      Refresh r;
      r.join = join;
      ScoreRun run(r);
      run.query()[head * 24] = std::numeric_limits<float>::quiet_NaN();
      run.run();
      for (const float score : run.scores()) EXPECT_TRUE(std::isnan(score));
    }
  }
}

TEST(ScoreChunks, NoCandidatesWriteNothing) {
  Refresh r;
  r.num_closed = 2;
  ScoreRun run(r);
  EXPECT_TRUE(run.scores().empty());
  run.run();
}

TEST(ChunkKeys, PanelsHoldWhatWasWritten) {
  ChunkKeys keys(3);
  std::vector<std::vector<float>> rows;
  const auto check = [&] {
    ASSERT_EQ(keys.num_chunks(), static_cast<std::int64_t>(rows.size()));
    for (std::size_t c = 0; c < rows.size(); ++c) {
      std::vector<float> row(3);
      keys.read(static_cast<std::int64_t>(c), row.data());
      EXPECT_EQ(row, rows[c]);
      EXPECT_EQ(keys.panel(static_cast<std::int64_t>(c) / 32)[32 + c % 32], rows[c][1]);
    }
  };
  const auto append = [&](int count) {
    for (int i = 0; i < count; ++i) {
      const auto x = static_cast<float>(rows.size() * 10 + static_cast<std::size_t>(count));
      rows.push_back({x, x + 1, x + 2});
      keys.append(rows.back().data());
    }
    check();
  };
  append(31);
  append(1);
  append(1);
  append(40);
  for (const std::size_t size : {64U, 63U, 32U, 31U, 0U}) {
    keys.truncate(static_cast<std::int64_t>(size));
    rows.resize(size);
    check();
    append(5);
    keys.truncate(static_cast<std::int64_t>(size));
    rows.resize(size);
  }
  append(2);
  rows[1] = {7, 8, 9};
  keys.write(1, rows[1].data());
  check();
}

}  // namespace
}  // namespace chunkllm
