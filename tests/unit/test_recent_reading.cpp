// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/train/recent_reading.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "chunkllm/eval/rule_boundaries.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm {
namespace {

/// Ten chunks of ten tokens in a text of 105.
TeacherRows ten_chunks() {
  TeacherRows rows;
  for (std::int64_t c = 1; c <= 10; ++c) rows.chunk_ends.push_back(10 * c);
  return rows;
}

ChunkOptions small_window() {
  ChunkOptions options;
  options.local_min_tokens = 16;
  options.local_min_chunks = 2;
  return options;
}

void expect_tiles(const std::vector<RecentReading::Tile>& tiles,
                  const std::vector<std::int64_t>& first_rows, std::int64_t num_tokens) {
  ASSERT_EQ(tiles.size(), first_rows.size());
  std::int64_t next = 0;
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    EXPECT_EQ(tiles[i].first_row, first_rows[i]);
    EXPECT_EQ(tiles[i].first_row, next);
    EXPECT_EQ(tiles[i].set, static_cast<std::int64_t>(i));
    next += tiles[i].num_rows;
  }
  EXPECT_EQ(next, num_tokens);
}

TEST(RecentReading, KeepsTheNewestChunksThatFit) {
  const RecentReading reading = plan_recent_reading(ten_chunks(), 105, small_window(), 40);
  EXPECT_EQ(reading.num_sink_tokens, 10);
  // At token 49 chunk 0, the window of chunks 3 and 4, and of the others chunk 2 fit.
  EXPECT_EQ(reading.tail_begins, (std::vector<std::int64_t>{0, 20, 30, 40, 50, 60, 70}));
  expect_tiles(reading.tiles, {0, 49, 59, 69, 79, 89, 99}, 105);
  expect_tiles(reading.first_layer_tiles, {0, 50, 60, 70, 80, 90, 100}, 105);
}

TEST(RecentReading, ATextWithinTheBudgetIsReadWhole) {
  const RecentReading reading = plan_recent_reading(ten_chunks(), 105, small_window(), 105);
  EXPECT_EQ(reading.tail_begins, (std::vector<std::int64_t>{0}));
  expect_tiles(reading.tiles, {0}, 105);
  expect_tiles(reading.first_layer_tiles, {0}, 105);
}

TEST(RecentReading, ABoundaryOnTheLastTokenOpensNoTileInTheFirstLayer) {
  TeacherRows rows = ten_chunks();
  const RecentReading reading = plan_recent_reading(rows, 100, small_window(), 40);
  expect_tiles(reading.tiles, {0, 49, 59, 69, 79, 89, 99}, 100);
  expect_tiles(reading.first_layer_tiles, {0, 50, 60, 70, 80, 90}, 100);
}

class RecentInputs : public ::testing::Test {
 protected:
  RecentInputs() : backbone_(testing::tiny_backbone()), pool_(2), ids_(testing::tiny_text(300)) {
    ends_ = rule_chunk_ends(ids_, testing::tiny_token_bytes, ChunkGuards{});
    for (const std::int64_t end : ends_) triggers_.push_back(end - 1);
  }
  TeacherRows dense_rows() {
    return collect_teacher_rows<float>(backbone_, ids_, ends_, triggers_, small_window(),
                                       KeyPooling::kMean, pool_, {})
        .value();
  }
  TeacherRows recent_rows(std::int64_t budget) {
    TeacherRows rows = dense_rows();
    const Status status =
        take_recent_inputs<float>(backbone_, ids_, nullptr, testing::tiny_token_bytes,
                                  small_window(), budget, KeyPooling::kMean, pool_, rows);
    EXPECT_TRUE(status.ok()) << status.message();
    return rows;
  }

  DecoderBackbone backbone_;
  ThreadPool pool_;
  std::vector<std::int32_t> ids_;
  std::vector<std::int64_t> ends_;
  std::vector<std::int64_t> triggers_;
};

TEST_F(RecentInputs, AreTheDenseOnesWhereEverythingFits) {
  const TeacherRows dense = dense_rows();
  const TeacherRows recent = recent_rows(300);
  for (std::size_t l = 0; l < dense.layers.size(); ++l) {
    EXPECT_EQ(recent.layers[l].inputs, dense.layers[l].inputs) << l;
    EXPECT_EQ(recent.layers[l].pooled, dense.layers[l].pooled) << l;
    EXPECT_EQ(recent.layers[l].mass, dense.layers[l].mass) << l;
  }
}

TEST_F(RecentInputs, DifferFromWhereTheBudgetLeavesSomethingOut) {
  constexpr std::int64_t kBudget = 80;
  const TeacherRows dense = dense_rows();
  const TeacherRows recent = recent_rows(kBudget);
  const auto width = static_cast<std::size_t>(dense.hidden_size);
  for (std::size_t l = 0; l < dense.layers.size(); ++l) {
    EXPECT_EQ(recent.layers[l].mass, dense.layers[l].mass) << l;
    std::int64_t num_other = 0;
    for (std::size_t r = 0; r < dense.triggers.size(); ++r) {
      const auto row = [&](const TeacherRows& rows) {
        const float* first = rows.layers[l].inputs.data() + r * width;
        return std::vector<float>(first, first + width);
      };
      const bool is_same = row(dense) == row(recent);
      if (l == 0 || dense.triggers[r] < kBudget) {
        EXPECT_TRUE(is_same) << "layer " << l << ", row " << r;  // the first layer's are embeddings
      }
      num_other += is_same ? 0 : 1;
    }
    if (l > 0) {
      EXPECT_GT(num_other, 5) << l;
    }
  }
}

}  // namespace
}  // namespace chunkllm
