// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/train/qk_trainer.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/eval/rule_boundaries.hpp"
#include "chunkllm/train/adam.hpp"
#include "chunkllm/train/initial_adapters.hpp"
#include "chunkllm/train/qk_checkpoint.hpp"
#include "chunkllm/train/train_qk_adapters.hpp"
#include "support/temp_folder.hpp"
#include "support/tiny_backbone.hpp"
#include "support/tiny_tokenizer.hpp"

namespace chunkllm {
namespace {

TEST(Adam, IsKingmaAndBasRule) {
  std::vector<float> weights = {0.5F, -2.0F};
  std::vector<double> expected = {0.5, -2.0};
  std::vector<double> m(2);
  std::vector<double> v(2);
  AdamMoments moments(2);
  const AdamOptions options;
  for (int step = 1; step <= 5; ++step) {
    const std::vector<float> gradient = {0.3F * static_cast<float>(step), -0.01F};
    take_adam_step(weights, gradient, 0.5F, 0.01F, step, moments, options);
    for (std::size_t i = 0; i < 2; ++i) {
      const double g = 0.5 * static_cast<double>(gradient[i]);
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.98 * v[i] + 0.02 * g * g;
      expected[i] -= 0.01 * m[i] / (1 - std::pow(0.9, step)) /
                     (std::sqrt(v[i] / (1 - std::pow(0.98, step))) + 1e-8);
      EXPECT_NEAR(static_cast<double>(weights[i]), expected[i], 2e-6);
    }
  }
}

/// A byte-level model, its text, and all that training asks for.
class QkTraining : public ::testing::Test {
 protected:
  static constexpr std::int64_t kLength = 2048;

  QkTraining()
      : backbone_(testing::tiny_backbone(/*vocab_size=*/256)),
        tokenizer_(BpeTokenizer::create(testing::tiny_spec()).value()),
        pool_(2) {
    std::string text;
    for (int i = 0; i < 800; ++i) {
      text += (i == 0 ? "The " : " The ") + std::string(i % 3 == 0 ? "mill" : "orchard keeper") +
              " saw " + std::to_string(i * 7919 % 1000) + " birds.";
    }
    TrainingTextOptions options;
    options.length = options.long_length = kLength;
    texts_ = std::make_unique<TrainingTexts>(
        TrainingTexts::create(
            tokenizer_, {tokenizer_.encode(text, /*add_special_tokens=*/false).value()}, options)
            .value());
    hooks_.chunk_ends = [this](std::span<const std::int32_t> ids) {
      return Result<std::vector<std::int64_t>>(rule_chunk_ends(
          ids, [this](std::int32_t id) { return tokenizer_.token_bytes(id); }, ChunkGuards{}));
    };
    hooks_.teach = [this](std::span<const std::int32_t> ids,
                          std::span<const std::int64_t> chunk_ends,
                          std::span<const std::int64_t> triggers) {
      return collect_teacher_rows<float>(backbone_, ids, chunk_ends, triggers, ChunkOptions{},
                                         KeyPooling::kMean, pool_, {});
    };
    training_.seed = 5;
  }

  QkTrainer new_trainer() {
    QkTrainerOptions options;
    options.key_dim = 6;
    options.learning_rate = 3e-3F;  // some steps must do
    return QkTrainer::create(backbone_.config(), options,
                             make_random_adapters(backbone_.config(), options.key_dim, 9))
        .value();
  }
  Status train(QkTrainer& trainer, std::int64_t num_steps, TrainingProgress& progress,
               ThreadPool& pool) {
    QkTrainingOptions options = training_;
    options.num_steps = kAllSteps;
    QkTrainingHooks hooks = hooks_;
    hooks.on_step = [&](const TrainingProgress& now, double kl) {
      EXPECT_TRUE(std::isfinite(kl));
      return now.num_steps < num_steps;
    };
    const Status status = train_qk_adapters(trainer, *texts_, options, hooks, pool, progress);
    return status.code() == StatusCode::kInterrupted ? Status() : status;
  }
  static void expect_same(QkTrainer& a, QkTrainer& b) {
    for (std::size_t l = 0; l < a.layers().size(); ++l) {
      for (const auto& [name, part] : detail::kQkAdapterParts) {
        EXPECT_EQ(a.layers()[l].weights.*part, b.layers()[l].weights.*part) << name << " " << l;
      }
    }
  }

  static constexpr std::int64_t kAllSteps = 24;

  DecoderBackbone backbone_;
  BpeTokenizer tokenizer_;
  ThreadPool pool_;
  std::unique_ptr<TrainingTexts> texts_;
  QkTrainingHooks hooks_;
  QkTrainingOptions training_;
};

TEST_F(QkTraining, BringsTheStudentNearerToItsTeacher) {
  const auto validation = read_validation_rows(*texts_, hooks_, 3);
  ASSERT_TRUE(validation.ok()) << validation.status().message();
  QkTrainer trainer = new_trainer();
  const auto before = trainer.evaluate(validation.value(), pool_);
  TrainingProgress progress;
  const Status status = train(trainer, kAllSteps, progress, pool_);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(progress.num_steps, kAllSteps);
  EXPECT_EQ(progress.num_tokens, kAllSteps * 2 * kLength);
  const auto after = trainer.evaluate(validation.value(), pool_);
  ASSERT_TRUE(before.ok() && after.ok());
  EXPECT_LT(after->kl, 0.85 * before->kl);
  // Random weights attend nearly alike everywhere: there is little to be recalled better.
  EXPECT_GT(after->mass_recall, before->mass_recall - 0.02);
  EXPECT_LE(after->mass_recall, 1.0 + 1e-6);
}

TEST_F(QkTraining, DistancesThatWereNotSeenGetTheFarthestSeen) {
  QkTrainerOptions options;
  options.key_dim = 6;
  options.max_distance = kLength;
  QkTrainer trainer =
      QkTrainer::create(backbone_.config(), options, make_random_adapters(backbone_.config(), 6, 9))
          .value();
  TrainingProgress progress;
  ASSERT_TRUE(train(trainer, 2, progress, pool_).ok());
  const std::int64_t last_seen = distance_bin(kLength - 1);
  const QkAdapter adapter = trainer.adapter();
  for (std::int64_t head = 0; head < backbone_.config().num_heads; ++head) {
    const float* bias = adapter.distance_bias(0) + head * kNumDistanceBins;
    EXPECT_NE(bias[last_seen - 1], 0.0F);
    for (std::int64_t bin = last_seen; bin < kNumDistanceBins; ++bin) {
      EXPECT_EQ(bias[bin], bias[last_seen]);
    }
  }
}

TEST_F(QkTraining, GivesTheSameBitsAtAnyNumberOfThreads) {
  ThreadPool one(1);
  QkTrainer first = new_trainer();
  QkTrainer second = new_trainer();
  TrainingProgress progress;
  ASSERT_TRUE(train(first, 3, progress, pool_).ok());
  progress = {};
  ASSERT_TRUE(train(second, 3, progress, one).ok());
  expect_same(first, second);
}

TEST_F(QkTraining, GoesOnFromACheckpointAsIfNothingHadHappened) {
  const testing::TempFolder folder;
  const std::string path = folder.file("run.checkpoint");
  QkTrainer whole = new_trainer();
  TrainingProgress progress;
  ASSERT_TRUE(train(whole, 6, progress, pool_).ok());

  QkTrainer first = new_trainer();
  TrainingProgress part;
  ASSERT_TRUE(train(first, 2, part, pool_).ok());
  ASSERT_TRUE(write_checkpoint(path, first, part, "settings").ok());
  QkTrainer second = new_trainer();
  auto read = read_checkpoint(path, second, "settings");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->num_steps, 2);
  EXPECT_EQ(read->num_tokens, part.num_tokens);
  ASSERT_TRUE(train(second, 6, read.value(), pool_).ok());
  expect_same(whole, second);
}

TEST_F(QkTraining, RefusesForeignCheckpoints) {
  const testing::TempFolder folder;
  const std::string path = folder.file("run.checkpoint");
  QkTrainer trainer = new_trainer();
  ASSERT_TRUE(write_checkpoint(path, trainer, {}, "seed 1").ok());
  const auto other = read_checkpoint(path, trainer, "seed 2");
  ASSERT_FALSE(other.ok());
  EXPECT_NE(other.status().message().find("seed 1"), std::string::npos);
  EXPECT_EQ(read_checkpoint(folder.file("none"), trainer, "").status().code(),
            StatusCode::kNotFound);
  ASSERT_TRUE(write_safetensors(path, {}, {{"format", "chunkllm.adapter"}}).ok());
  EXPECT_EQ(read_checkpoint(path, trainer, "").status().code(), StatusCode::kInvalidFile);

  QkTrainerOptions wide;
  wide.key_dim = 8;
  QkTrainer wider =
      QkTrainer::create(backbone_.config(), wide, make_random_adapters(backbone_.config(), 8, 1))
          .value();
  ASSERT_TRUE(write_checkpoint(path, trainer, {}, "").ok());
  EXPECT_EQ(read_checkpoint(path, wider, "").status().code(), StatusCode::kInvalidFile);
}

TEST_F(QkTraining, StartsWithTheBackbonesOwnLogits) {
  const BackboneConfig& config = backbone_.config();
  const auto taught = teach_sequence(hooks_, texts_->validation_sequence(0).value());
  ASSERT_TRUE(taught.ok()) << taught.status().message();
  const std::vector<TeacherRows> samples = {taught->rows};
  const auto layers = make_initial_adapters(backbone_, samples, config.head_dim, pool_);
  ASSERT_TRUE(layers.ok()) << layers.status().message();
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t width = config.num_heads * config.head_dim;
  const std::int64_t key_width = config.num_kv_heads * config.head_dim;
  const auto& first = taught->rows.layers[1];
  std::vector<float> q(static_cast<std::size_t>(2 * width));
  std::vector<float> k(static_cast<std::size_t>(2 * key_width));
  std::vector<float> v(k.size());
  backbone_.project_qkv(1, {first.inputs.data(), 2, hidden}, {q.data(), 2, width},
                        {k.data(), 2, key_width}, {v.data(), 2, key_width}, pool_);
  const QkAdapter adapter(layers.value(), hidden, config.num_heads, config.num_kv_heads,
                          config.head_dim, KeyPooling::kMean, /*adds_log_length=*/true);
  std::vector<float> query(static_cast<std::size_t>(adapter.shape().query_size()));
  std::vector<float> key(static_cast<std::size_t>(adapter.shape().key_size()));
  TokenRow row;
  row.input = first.inputs.data();
  adapter.make_query(1, row, query.data());
  adapter.make_key(1, first.inputs.data() + hidden, /*length=*/1, key.data());
  for (std::int64_t h = 0; h < config.num_heads; ++h) {
    const std::int64_t g = h * config.num_kv_heads / config.num_heads;
    double expected = 0.0;
    double logit = 0.0;
    for (std::int64_t d = 0; d < config.head_dim; ++d) {
      const auto at = [d, &config](const std::vector<float>& values, std::int64_t head) {
        return static_cast<double>(values[static_cast<std::size_t>(head * config.head_dim + d)]);
      };
      expected += at(q, h) * at(k, config.num_kv_heads + g);
      logit += at(query, h) * at(key, g);
    }
    // Two f32 products of 32 features and a double decomposition.
    EXPECT_NEAR(logit * static_cast<double>(adapter.shape().scale),
                expected * static_cast<double>(softmax_scale(config)),
                1e-4 * (1.0 + std::abs(expected)));
  }
  EXPECT_EQ(make_initial_adapters(backbone_, samples, config.head_dim + 1, pool_).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(make_initial_adapters(backbone_, {}, 4, pool_).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(RateFactor, WarmsUpAndFallsToTheFloor) {
  EXPECT_DOUBLE_EQ(rate_factor(0, 10, 0.0), 0.1);
  EXPECT_DOUBLE_EQ(rate_factor(9, 10, 0.0), 1.0);
  EXPECT_NEAR(rate_factor(100, 10, 0.5), 0.51, 1e-12);
  EXPECT_NEAR(rate_factor(100, 10, 1.0), 0.02, 1e-12);
  EXPECT_NEAR(rate_factor(100, 10, 2.0), 0.02, 1e-12);
}

}  // namespace
}  // namespace chunkllm
