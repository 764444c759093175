// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/train/boundary_trainer.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "chunkllm/core/random.hpp"

namespace chunkllm {
namespace {

/// Features of very different size and place, and labels that a noisy linear rule gives.
BoundaryExamples noisy_examples(std::int64_t hidden_size, std::int64_t window_len,
                                std::int64_t num_windows, double noise) {
  BoundaryExamples examples;
  examples.hidden_size = hidden_size;
  examples.window_len = window_len;
  RandomStream random(5);
  for (std::int64_t i = 0; i < window_len * num_windows; ++i) {
    double z = -3.0 + noise * random.draw_normal();
    for (std::int64_t j = 0; j < hidden_size; ++j) {
      const double x = random.draw_normal();
      z += (j % 2 == 0 ? 2.0 : -1.0) * x;
      const double scale = std::pow(10.0, static_cast<double>(j % 4) - 1.0);
      examples.hidden.push_back(static_cast<float>(scale * (x + 2.0)));
    }
    examples.labels.push_back(z > 0.0 ? 1 : 0);
  }
  return examples;
}

std::vector<std::int64_t> all_windows(const BoundaryExamples& examples) {
  std::vector<std::int64_t> windows(static_cast<std::size_t>(examples.num_windows()));
  std::iota(windows.begin(), windows.end(), 0);
  return windows;
}

/// The objective as its documentation states it, in double.
class NaiveObjective {
 public:
  NaiveObjective(const BoundaryExamples& examples, double ridge)
      : num_features_(static_cast<std::size_t>(examples.hidden_size)),
        num_tokens_(examples.labels.size()),
        labels_(examples.labels),
        ridge_(ridge) {
    for (std::size_t i = 0; i < num_tokens_; ++i) {
      for (std::size_t j = 0; j < num_features_; ++j) {
        rows_.push_back(static_cast<double>(examples.hidden[i * num_features_ + j]));
      }
    }
    for (std::size_t j = 0; j < num_features_; ++j) {
      double mean = 0.0;
      double square = 0.0;
      for (std::size_t i = 0; i < num_tokens_; ++i) mean += at(i, j);
      mean /= static_cast<double>(num_tokens_);
      for (std::size_t i = 0; i < num_tokens_; ++i) square += std::pow(at(i, j) - mean, 2);
      const double deviation = std::sqrt(square / static_cast<double>(num_tokens_));
      for (std::size_t i = 0; i < num_tokens_; ++i) at(i, j) = (at(i, j) - mean) / deviation;
    }
  }
  [[nodiscard]] double loss(const std::vector<double>& weights) const {
    double sum = 0.0;
    double square = 0.0;
    for (std::size_t i = 0; i < num_tokens_; ++i) {
      double z = weights.back();
      for (std::size_t j = 0; j < num_features_; ++j) {
        z += weights[j] * rows_[i * num_features_ + j];
      }
      sum += std::log1p(std::exp(labels_[i] != 0 ? -z : z));
    }
    for (std::size_t j = 0; j < num_features_; ++j) square += weights[j] * weights[j];
    return sum / static_cast<double>(num_tokens_) + ridge_ / 2.0 * square;
  }

 private:
  double& at(std::size_t i, std::size_t j) { return rows_[i * num_features_ + j]; }

  std::size_t num_features_;
  std::size_t num_tokens_;
  std::vector<std::uint8_t> labels_;
  std::vector<double> rows_;
  double ridge_;
};

class BoundaryObjectiveAt : public ::testing::TestWithParam<std::int64_t> {};

TEST_P(BoundaryObjectiveAt, GradientAndHessianAreTheDifferencesOfTheNaiveLoss) {
  const BoundaryExamples examples = noisy_examples(GetParam(), 300, 4, 1.0);
  const double ridge = 0.01;
  const std::size_t size = static_cast<std::size_t>(GetParam()) + 1;
  const NaiveObjective naive(examples, ridge);
  ThreadPool pool(2);
  BoundaryObjective objective(examples, all_windows(examples), ridge, pool);
  RandomStream random(9);
  std::vector<double> weights;
  for (std::size_t j = 0; j < size; ++j) weights.push_back(0.5 * random.draw_normal());

  std::vector<double> gradient(size);
  std::vector<double> hessian;
  // f32 features, logits of a few units, sums of 512 terms of about 1.
  EXPECT_NEAR(objective.evaluate(weights, gradient), naive.loss(weights), 1e-5);
  objective.hessian(hessian);
  const auto moved = [&](std::size_t i, double by_i, std::size_t j, double by_j) {
    std::vector<double> at = weights;
    at[i] += by_i;
    at[j] += by_j;
    return naive.loss(at);
  };
  for (std::size_t i = 0; i < size; ++i) {
    const double h = 1e-4;
    EXPECT_NEAR(gradient[i], (moved(i, h, i, 0) - moved(i, -h, i, 0)) / (2 * h), 1e-5) << i;
    for (std::size_t j = 0; j <= i; j += 1 + size / 8) {
      const double d = 1e-3;
      const double difference =
          moved(i, d, j, d) - moved(i, d, j, -d) - moved(i, -d, j, d) + moved(i, -d, j, -d);
      EXPECT_NEAR(hessian[i * size + j], difference / (4 * d * d), 1e-5) << i << ", " << j;
    }
  }
}

// Around the 16 lanes and the tiles of 32.
INSTANTIATE_TEST_SUITE_P(Sizes, BoundaryObjectiveAt, ::testing::Values(1, 15, 31, 32, 50));

TEST(BoundaryTrainer, OneBinaryFeatureGivesTheLogOdds) {
  BoundaryExamples examples;
  examples.hidden_size = 1;
  examples.window_len = 100;
  // Of 60 tokens at 0 six are labelled, of 40 at 5 thirty; twice, the second time kept aside.
  for (int copy = 0; copy < 2; ++copy) {
    for (int i = 0; i < 100; ++i) {
      examples.hidden.push_back(i < 60 ? 0.0F : 5.0F);
      examples.labels.push_back(i < 6 || (i >= 60 && i < 90) ? 1 : 0);
    }
  }
  BoundaryTrainerOptions options;
  options.validation_stride = 2;
  options.ridge = 1e-12;
  ThreadPool pool(1);
  const auto result = train_boundaries(examples, options, pool);
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_TRUE(result->converged);
  EXPECT_EQ(result->num_tokens, 100);
  EXPECT_EQ(result->num_validation_tokens, 100);
  EXPECT_DOUBLE_EQ(result->positive_share, 0.36);
  // The gain at which it stops, 1e-6 of the loss, leaves about its root of the logits.
  EXPECT_NEAR(result->adapter.bias, std::log(0.1 / 0.9), 5e-3);
  EXPECT_NEAR(result->adapter.bias + 5.0F * result->adapter.weight[0], std::log(0.75 / 0.25), 5e-3);
  const double entropy =
      -0.06 * std::log(0.1) - 0.54 * std::log(0.9) - 0.3 * std::log(0.75) - 0.1 * std::log(0.25);
  EXPECT_NEAR(result->loss, entropy, 1e-5);
  EXPECT_NEAR(result->validation_loss, entropy, 1e-5);
}

TEST(BoundaryTrainer, FindsALinearRuleAcrossScales) {
  const BoundaryExamples examples = noisy_examples(21, 500, 12, 0.0);
  BoundaryTrainerOptions options;
  options.guards = {1, 4096};
  ThreadPool pool(2);
  const auto result = train_boundaries(examples, options, pool);
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_GT(result->validation.f1(), 0.98);
  EXPECT_EQ(result->num_tokens, 5000);
  EXPECT_EQ(result->num_validation_tokens, 1000);
  EXPECT_LT(result->validation_loss, 0.1);
  EXPECT_LE(result->num_steps, 40);
}

TEST(BoundaryTrainer, SameBitsAtAnyNumberOfThreads) {
  const BoundaryExamples examples = noisy_examples(45, 700, 7, 1.0);
  const BoundaryTrainerOptions options;
  ThreadPool one(1);
  const auto expected = train_boundaries(examples, options, one);
  ASSERT_TRUE(expected.ok());
  EXPECT_TRUE(expected->converged);
  for (const int num_threads : {1, 2, 3, 5}) {
    ThreadPool pool(num_threads);
    const auto result = train_boundaries(examples, options, pool);
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->adapter.weight, expected->adapter.weight);
    EXPECT_EQ(result->adapter.bias, expected->adapter.bias);
    EXPECT_EQ(result->adapter.threshold, expected->adapter.threshold);
    EXPECT_EQ(result->loss, expected->loss);
    EXPECT_EQ(result->num_passes, expected->num_passes);
  }
}

TEST(BoundaryTrainer, ACoordinateThatNeverVariesHasNoWeight) {
  BoundaryExamples examples = noisy_examples(6, 200, 6, 1.0);
  for (std::size_t i = 0; i < examples.labels.size(); ++i) examples.hidden[i * 6 + 3] = 1234.5F;
  ThreadPool pool(1);
  const auto result = train_boundaries(examples, {}, pool);
  ASSERT_TRUE(result.ok());
  EXPECT_TRUE(result->converged);
  EXPECT_EQ(result->adapter.weight[3], 0.0F);
  EXPECT_NE(result->adapter.weight[2], 0.0F);
}

TEST(BoundaryTrainer, WindowsAreScoredUnderTheGuards) {
  BoundaryExamples examples;
  examples.hidden_size = 1;
  examples.window_len = 10;
  examples.hidden.resize(20);
  examples.labels.resize(20);
  examples.labels[12] = examples.labels[15] = examples.labels[19] = 1;
  const std::vector<std::int64_t> windows = {1};
  std::vector<float> probabilities(10, 0.1F);
  probabilities[1] = 0.9F;  // too early
  probabilities[2] = 0.6F;
  // A chunk may not end before its third token and must with its sixth.
  const ChunkGuards guards{3, 6};
  const auto score = score_windows(examples, windows, probabilities, 0.5F, guards);
  ASSERT_TRUE(score.ok());
  // Predicted: 2 and, forced, 8; labelled: 2, 5 and the window's last, which does not count.
  EXPECT_EQ(score.value(), (BoundaryScore{2, 2, 1}));
  // Above the threshold, not at it.
  const auto none = score_windows(examples, windows, probabilities, 0.6F, guards);
  EXPECT_EQ(none.value(), (BoundaryScore{1, 2, 1}));
}

TEST(BoundaryTrainer, RefusesWhatCannotBeFitted) {
  const BoundaryExamples good = noisy_examples(3, 50, 4, 1.0);
  ThreadPool pool(1);
  BoundaryTrainerOptions options;
  options.validation_stride = 2;
  ASSERT_TRUE(train_boundaries(good, options, pool).ok());
  const auto fails = [&](const BoundaryExamples& examples, const BoundaryTrainerOptions& with) {
    return train_boundaries(examples, with, pool).status().code() == StatusCode::kInvalidArgument;
  };
  BoundaryExamples bad = good;
  bad.hidden.pop_back();
  EXPECT_TRUE(fails(bad, options));
  bad = good;
  bad.window_len = 0;
  EXPECT_TRUE(fails(bad, options));
  bad = good;
  bad.hidden[7] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(fails(bad, options));
  for (const std::uint8_t label : {std::uint8_t{0}, std::uint8_t{1}}) {
    bad = good;
    bad.labels.assign(bad.labels.size(), label);
    EXPECT_TRUE(fails(bad, options));
  }
  BoundaryTrainerOptions wrong = options;
  for (const std::int64_t stride : {1, 5}) {
    wrong.validation_stride = stride;
    EXPECT_TRUE(fails(good, wrong));
  }
  wrong = options;
  wrong.ridge = 0.0;
  EXPECT_TRUE(fails(good, wrong));
}

}  // namespace
}  // namespace chunkllm
