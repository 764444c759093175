// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/infer/generate.hpp"

#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <vector>

namespace chunkllm {
namespace {

/// After token t comes t + 1; token 4 breaks the model.
class CountingSession {
 public:
  Result<std::span<const float>> step(std::int32_t token) {
    steps.push_back(token);
    if (token == 4) return out_of_range("no more");
    logits_.assign(8, 0.0F);
    logits_[static_cast<std::size_t>(token + 1)] = 1.0F;
    return std::span<const float>(logits_);
  }

  std::vector<std::int32_t> steps;

 private:
  std::vector<float> logits_;
};

class Generate : public ::testing::Test {
 protected:
  /// The first new token is 1.
  template <typename OnToken>
  Result<StopReason> run(const GenerationLimits& limits, OnToken&& on_token) {
    Sampler sampler = Sampler::create({}).value();
    return generate(session_, std::array{0.0F, 1.0F, 0.0F}, sampler, limits, ids_, on_token);
  }
  Result<StopReason> run(const GenerationLimits& limits) {
    return run(limits, [](std::int32_t) { return true; });
  }

  CountingSession session_;
  std::vector<std::int32_t> ids_;
};

using Ids = std::vector<std::int32_t>;

TEST_F(Generate, StopsAtTheLimitWithoutReadingTheLastToken) {
  EXPECT_EQ(run({.max_new_tokens = 3, .eos_ids = {}}).value(), StopReason::kLength);
  EXPECT_EQ(ids_, (Ids{1, 2, 3}));
  EXPECT_EQ(session_.steps, (Ids{1, 2}));
}

TEST_F(Generate, StopsAtAnEndTokenAndKeepsIt) {
  const std::array eos = {std::int32_t{7}, std::int32_t{2}};
  EXPECT_EQ(run({.max_new_tokens = 9, .eos_ids = eos}).value(), StopReason::kEos);
  EXPECT_EQ(ids_, (Ids{1, 2}));
}

TEST_F(Generate, NothingAskedForIsNothingDone) {
  EXPECT_EQ(run({.max_new_tokens = 0, .eos_ids = {}}).value(), StopReason::kLength);
  EXPECT_TRUE(ids_.empty());
  EXPECT_TRUE(session_.steps.empty());
}

TEST_F(Generate, TheCallbackSeesEachTokenAndStops) {
  Ids seen;
  const auto stop = run({.max_new_tokens = 9, .eos_ids = {}}, [&](std::int32_t token) {
    seen.push_back(token);
    return token < 2;
  });
  EXPECT_EQ(stop.value(), StopReason::kInterrupted);
  EXPECT_EQ(seen, (Ids{1, 2}));
  EXPECT_EQ(ids_, seen);
}

TEST_F(Generate, AnErrorLeavesTheTokensSoFar) {
  const auto stop = run({.max_new_tokens = 9, .eos_ids = {}});
  EXPECT_EQ(stop.status().code(), StatusCode::kOutOfRange);
  EXPECT_EQ(ids_, (Ids{1, 2, 3, 4}));
}

TEST_F(Generate, NaNLogitsAreAnError) {
  Sampler sampler = Sampler::create({}).value();
  const std::array logits = {0.0F, std::numeric_limits<float>::quiet_NaN()};
  const auto stop =
      generate(session_, logits, sampler, {}, ids_, [](std::int32_t) { return true; });
  EXPECT_EQ(stop.status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(ids_.empty());
}

}  // namespace
}  // namespace chunkllm
