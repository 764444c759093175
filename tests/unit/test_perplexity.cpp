// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/eval/perplexity.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/infer/session.hpp"
#include "chunkllm/model/rope.hpp"
#include "support/dense_forward.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm {
namespace {

using testing::tiny_backbone;
using testing::tiny_text;
using TinySession = Session<DecoderBackbone, AnyScorer, float>;

TinySession make_session(const DecoderBackbone& backbone, const SessionOptions& options,
                         ThreadPool& pool) {
  const BackboneConfig& config = backbone.config();
  auto scorer = std::make_shared<const AnyScorer>(
      MeanKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim, softmax_scale(config)));
  auto session =
      TinySession::create(backbone, scorer, nullptr, testing::tiny_token_bytes, options, pool);
  EXPECT_TRUE(session.ok()) << session.status().message();
  return std::move(session).value();
}

PerplexityResult measure(const DecoderBackbone& backbone, const std::vector<std::int32_t>& ids,
                         const SessionOptions& options, const PerplexityOptions& scored,
                         int num_threads = 2) {
  ThreadPool pool(num_threads);
  TinySession session = make_session(backbone, options, pool);
  PerplexityResult result;
  const Status status = measure_perplexity(session, ids, scored, {}, pool, result);
  EXPECT_TRUE(status.ok()) << status.message();
  return result;
}

TEST(LogSumExp, EqualsTheSumInDouble) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0.0F, 4.0F);
  for (const std::size_t size : {1U, 5U, 16U, 17U, 4096U, 4111U, 70001U}) {
    std::vector<float> x(size);
    for (float& value : x) value = normal(random);
    double sum = 0.0;
    for (const float value : x) sum += std::exp(static_cast<double>(value));
    EXPECT_NEAR(log_sum_exp(x), std::log(sum), 2e-5) << size;
  }
}

TEST(LogSumExp, KeepsLargeValuesAndFaults) {
  const std::vector<float> large(40, 3000.0F);
  EXPECT_NEAR(log_sum_exp(large), 3000.0 + std::log(40.0), 1e-4);
  for (const std::size_t at : {0U, 20U, 39U}) {
    std::vector<float> x(40, 1.0F);
    x[at] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(log_sum_exp(x))) << at;
  }
}

TEST(Perplexity, EqualsPlainDenseAttention) {
  const DecoderBackbone backbone = tiny_backbone();
  const std::vector<std::int32_t> ids = tiny_text(150);
  ThreadPool pool(2);
  testing::DenseForward dense(backbone, pool);
  const std::vector<float> logits = dense.append(ids);
  SessionOptions options;
  options.dense = true;
  options.block_len = 37;
  const PerplexityResult result = measure(backbone, ids, options, {});
  ASSERT_EQ(result.num_scored(), 149);
  EXPECT_EQ(result.num_tokens, 150);
  double sum = 0.0;
  for (std::size_t i = 1; i < ids.size(); ++i) {
    const double expected = testing::token_nll(std::span(logits).subspan((i - 1) * 64, 64), ids[i]);
    // Two f32 forward passes of a 3-layer model with logits of about 10.
    EXPECT_NEAR(static_cast<double>(result.nll[i - 1]), expected, 1e-4) << i;
    sum += expected;
  }
  EXPECT_NEAR(result.nll_mean(), sum / 149.0, 1e-4);
  EXPECT_NEAR(result.perplexity(), std::exp(sum / 149.0), 1e-2);
}

TEST(Perplexity, DoesNotDependOnThreadsOrTheFirstScoredToken) {
  const DecoderBackbone backbone = tiny_backbone();
  const std::vector<std::int32_t> ids = tiny_text(300);
  SessionOptions options;
  options.chunk.budget.tokens = 96;
  options.chunk.local_min_tokens = 16;
  const PerplexityResult all = measure(backbone, ids, options, {});
  EXPECT_EQ(measure(backbone, ids, options, {}, 1).nll, all.nll);
  PerplexityOptions late;
  late.score_from = 201;
  const PerplexityResult tail = measure(backbone, ids, options, late);
  ASSERT_EQ(tail.num_scored(), 99);
  for (std::size_t i = 0; i < 99; ++i) EXPECT_EQ(tail.nll[i], all.nll[200 + i]) << i;
}

TEST(Perplexity, AnAmpleBudgetEqualsDense) {
  const DecoderBackbone backbone = tiny_backbone();
  const std::vector<std::int32_t> ids = tiny_text(200);
  SessionOptions dense;
  dense.dense = true;
  const PerplexityResult expected = measure(backbone, ids, dense, {});
  SessionOptions ample;
  ample.chunk.budget.tokens = 200;
  EXPECT_EQ(measure(backbone, ids, ample, {}).nll, expected.nll);
  ample.chunk.budget.tokens = 64;
  ample.chunk.local_min_tokens = 16;
  EXPECT_NE(measure(backbone, ids, ample, {}).nll, expected.nll);
}

TEST(Perplexity, LayerLocalReadingScoresLikePrefill) {
  const DecoderBackbone backbone = tiny_backbone();
  const std::vector<std::int32_t> ids = tiny_text(260);
  SessionOptions options;
  options.chunk.budget.tokens = 64;
  options.chunk.local_min_tokens = 16;
  options.chunk.selection = Selection::kMax;
  PerplexityOptions local;
  local.mode = ReadMode::kLayerLocal;
  const PerplexityResult layer_local = measure(backbone, ids, options, local);
  options.chunk.selection = Selection::kLayer;
  EXPECT_EQ(measure(backbone, ids, options, {}).nll, layer_local.nll);
}

TEST(Perplexity, AnInterruptionKeepsWhatWasScored) {
  const DecoderBackbone backbone = tiny_backbone();
  const std::vector<std::int32_t> ids = tiny_text(200);
  ThreadPool pool(1);
  SessionOptions options;
  options.dense = true;
  options.block_len = 50;
  TinySession session = make_session(backbone, options, pool);
  PerplexityResult result;
  const Status status = measure_perplexity(
      session, ids, {}, [](std::int64_t read) { return read < 100; }, pool, result);
  EXPECT_EQ(status.code(), StatusCode::kInterrupted);
  EXPECT_EQ(result.num_scored(), 100);
}

TEST(Perplexity, RefusesBadInput) {
  const DecoderBackbone backbone = tiny_backbone();
  ThreadPool pool(1);
  PerplexityResult result;
  const auto code = [&](const std::vector<std::int32_t>& ids, std::int64_t from) {
    TinySession session = make_session(backbone, {}, pool);
    PerplexityOptions options;
    options.score_from = from;
    return measure_perplexity(session, ids, options, {}, pool, result).code();
  };
  EXPECT_EQ(code({}, 1), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({3}, 1), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({3, 4}, 0), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({3, 4}, 2), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({3, 64}, 1), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({3, -1}, 1), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({64, 3}, 1), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({3, 4}, 1), StatusCode::kOk);
  TinySession used = make_session(backbone, {}, pool);
  ASSERT_TRUE(used.step(3).ok());
  EXPECT_EQ(measure_perplexity(used, std::vector<std::int32_t>{3, 4}, {}, {}, pool, result).code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm
