// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/train/boundary_examples.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "chunkllm/train/boundary_trainer.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm {
namespace {

using Firsts = std::vector<std::vector<std::int64_t>>;

TEST(BoundaryExamples, WindowsAreSharedOutEvenly) {
  const std::vector<std::int64_t> lens = {1000, 25, 9, 100};
  // Room for ten: the second text has two, the third none, the others four each.
  EXPECT_EQ(spread_windows(lens, {10, 109}),
            (Firsts{{0, 250, 500, 750}, {0, 10}, {}, {0, 20, 50, 70}}));
  EXPECT_EQ(spread_windows(lens, {10, 10}), (Firsts{{0}, {}, {}, {}}));
  const std::vector<std::int64_t> two = {30, 20};
  EXPECT_EQ(spread_windows(two, {10, 1000}), (Firsts{{0, 10, 20}, {0, 10}}));
  EXPECT_EQ(spread_windows({}, {10, 1000}), Firsts{});
}

class BoundaryExamplesOfTexts : public ::testing::Test {
 protected:
  BoundaryExamplesOfTexts()
      : backbone_(testing::tiny_backbone()),
        ids_{testing::tiny_text(700, 3), testing::tiny_text(40, 4), testing::tiny_text(900, 5)},
        texts_(ids_.begin(), ids_.end()) {}

  Result<BoundaryExamples> read(const BoundarySampling& sampling, int num_threads = 2,
                                const std::function<bool(std::int64_t)>& progress = {}) {
    ThreadPool pool(num_threads);
    return read_boundary_examples(backbone_, texts_, testing::tiny_token_bytes, sampling, progress,
                                  pool);
  }

  DecoderBackbone backbone_;
  std::vector<std::vector<std::int32_t>> ids_;
  std::vector<std::span<const std::int32_t>> texts_;
};

TEST_F(BoundaryExamplesOfTexts, RowsAreTheFirstLayersAndLabelsTheWholeTexts) {
  const auto result = read({64, 640});
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_EQ(result->num_windows(), 10);
  EXPECT_EQ(result->hidden_size, 32);
  ASSERT_EQ(result->hidden.size(), 640U * 32U);
  // The third text's third window of five; it has 14.
  const std::int64_t first = 2 * 14 / 5 * 64;
  const std::int64_t window = 7;
  ThreadPool pool(1);
  BackboneConfig config = testing::tiny_config();
  const FirstLayerBackbone first_layer(backbone_);
  SessionOptions dense;
  dense.dense = true;
  auto session = Session<FirstLayerBackbone<DecoderBackbone>, RecentScorer, float>::create(
      first_layer, std::make_shared<const RecentScorer>(), nullptr, testing::tiny_token_bytes,
      dense, pool);
  ASSERT_TRUE(session.ok());
  std::vector<float> expected;
  ASSERT_TRUE(session
                  ->read(texts_[2].subspan(static_cast<std::size_t>(first), 64), ReadMode::kDense,
                         {},
                         [&](std::int64_t, MatrixView<const float> hidden) {
                           expected.insert(expected.end(), hidden.data,
                                           hidden.data + hidden.rows * config.hidden_size);
                         })
                  .ok());
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), result->row(window * 64)));

  const auto labelled = sentence_label_tokens(texts_[2], testing::tiny_token_bytes);
  for (std::int64_t i = 0; i < 64; ++i) {
    const bool ends =
        std::binary_search(labelled.begin(), labelled.end(), static_cast<std::size_t>(first + i));
    EXPECT_EQ(result->labels[static_cast<std::size_t>(window * 64 + i)], ends ? 1 : 0) << i;
  }
  EXPECT_EQ(read({64, 640}, 3)->hidden, result->hidden);
}

TEST_F(BoundaryExamplesOfTexts, AnAdapterLearnsFromThem) {
  const auto examples = read({128, 4096});
  ASSERT_TRUE(examples.ok());
  ThreadPool pool(2);
  const auto result = train_boundaries(examples.value(), {}, pool);
  ASSERT_TRUE(result.ok()) << result.status().message();
  // 32 random features hardly tell 64 tokens apart; a guess reaches a tenth of this.
  EXPECT_GT(result->validation.f1(), 0.8);
  EXPECT_LT(result->validation_loss, 0.15);
}

TEST_F(BoundaryExamplesOfTexts, RefusesAndStops) {
  EXPECT_EQ(read({1, 640}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(read({64, 63}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(read({1000, 4000}).status().code(), StatusCode::kInvalidArgument);
  std::int64_t seen = 0;
  const auto stopped = read({64, 640}, 1, [&](std::int64_t done) {
    seen = done;
    return done < 200;
  });
  EXPECT_EQ(stopped.status().code(), StatusCode::kInterrupted);
  EXPECT_EQ(seen, 256);
  ids_[0][5] = 64;
  EXPECT_EQ(read({64, 640}).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm
