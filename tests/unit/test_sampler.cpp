// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/infer/sampler.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace chunkllm {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Sampler make_sampler(const SamplerOptions& options) {
  Result<Sampler> sampler = Sampler::create(options);
  EXPECT_TRUE(sampler.ok()) << sampler.status().message();
  return std::move(sampler).value();
}

/// How often each token comes in `num_draws` draws.
std::vector<int> count_draws(Sampler sampler, std::span<const float> logits, int num_draws) {
  std::vector<int> counts(logits.size());
  for (int i = 0; i < num_draws; ++i) {
    const Result<std::int32_t> token = sampler.sample(logits);
    EXPECT_TRUE(token.ok()) << token.status().message();
    ++counts[static_cast<std::size_t>(token.value())];
  }
  return counts;
}

TEST(Argmax, TakesTheLowestIdAmongEqualLogits) {
  EXPECT_EQ(argmax_token(std::array{1.0F, 3.0F, 2.0F, 3.0F}).value(), 1);
  EXPECT_EQ(argmax_token(std::array{-kInfinity, -2.0F}).value(), 1);
  EXPECT_EQ(argmax_token(std::array{-kInfinity, -kInfinity}).value(), 0);
}

TEST(Argmax, RefusesWhatHidesBrokenWeights) {
  for (const std::vector<float>& logits :
       {std::vector<float>{}, {0.0F, kNaN}, {kNaN, 0.0F}, {0.0F, kInfinity}}) {
    EXPECT_EQ(argmax_token(logits).status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(SamplerOptions, OutOfRangeIsNamed) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto message = [](SamplerOptions options) {
    return Sampler::create(options).status().message();
  };
  EXPECT_NE(message({.temperature = nan}).find("temperature"), std::string::npos);
  EXPECT_NE(message({.temperature = -1.0}).find("temperature"), std::string::npos);
  EXPECT_NE(message({.top_k = -1}).find("top_k"), std::string::npos);
  EXPECT_NE(message({.top_p = 1.5}).find("top_p"), std::string::npos);
  EXPECT_NE(message({.min_p = nan}).find("min_p"), std::string::npos);
}

TEST(Xoshiro256, EqualsTheReferenceSequence) {
  // First outputs of the authors' C programs, SplitMix64 seeded with 0 filling the state.
  Xoshiro256 random(0);
  EXPECT_EQ(random.next(), 0x99ec5f36cb75f2b4U);
  EXPECT_EQ(random.next(), 0xbf6e1f784956452aU);
  EXPECT_EQ(random.next(), 0x1a5f849d4933e6e0U);
}

TEST(Sampler, TemperatureZeroIsGreedyWhateverTheFilters) {
  Sampler sampler = make_sampler({.temperature = 0.0, .top_k = 3, .top_p = 0.1, .seed = 5});
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(sampler.sample(std::array{0.5F, 2.0F, 2.0F}).value(), 1);
  }
}

TEST(Sampler, DrawsByTheSoftmax) {
  const std::array logits = {0.0F, std::log(2.0F), std::log(5.0F)};
  constexpr int kDraws = 80000;
  const std::vector<int> counts =
      count_draws(make_sampler({.temperature = 1.0, .seed = 1}), logits, kDraws);
  const std::array expected = {1.0 / 8, 2.0 / 8, 5.0 / 8};
  for (std::size_t i = 0; i < counts.size(); ++i) {
    // Five standard deviations of a binomial share; the seed is fixed.
    const double bound = 5.0 * std::sqrt(expected[i] * (1.0 - expected[i]) / kDraws);
    const double share = static_cast<double>(counts[i]) / kDraws;
    EXPECT_TRUE(std::abs(share - expected[i]) <= bound) << i << ": " << share;
  }
}

TEST(Sampler, FiltersKeepTheLikeliest) {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const std::array logits = {std::log(2.0F), std::log(8.0F), std::log(4.0F), std::log(2.0F)};
  const auto drawn = [&](SamplerOptions options) {
    options.temperature = 1.0;
    std::vector<bool> seen;
    for (const int count : count_draws(make_sampler(options), logits, 400)) {
      seen.push_back(count > 0);
    }
    return seen;
  };
  using Seen = std::vector<bool>;
  EXPECT_EQ(drawn({}), (Seen{true, true, true, true}));
  EXPECT_EQ(drawn({.top_k = 1}), (Seen{false, true, false, false}));
  EXPECT_EQ(drawn({.top_k = 3}), (Seen{true, true, true, false})) << "equal logits: lower id";
  EXPECT_EQ(drawn({.top_k = 99}), (Seen{true, true, true, true}));
  EXPECT_EQ(drawn({.top_p = 0.0}), (Seen{false, true, false, false}));
  EXPECT_EQ(drawn({.top_p = 0.6}), (Seen{false, true, true, false}));
  EXPECT_EQ(drawn({.top_p = 0.8}), (Seen{true, true, true, false}));
  EXPECT_EQ(drawn({.min_p = 0.3}), (Seen{false, true, true, false}));
  EXPECT_EQ(drawn({.min_p = 1.0}), (Seen{false, true, false, false}));
  // top_p counts what top_k left: 2/3 of 0.5 + 0.25 reaches 0.6 with the likeliest alone.
  EXPECT_EQ(drawn({.top_k = 2, .top_p = 0.6}), (Seen{false, true, false, false}));
}

TEST(Sampler, EqualSeedsGiveEqualTokens) {
  std::vector<float> logits(100);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7);
  const auto draw = [&](std::uint64_t seed) {
    Sampler sampler = make_sampler({.temperature = 2.0, .top_k = 50, .seed = seed});
    std::vector<std::int32_t> tokens;
    for (int i = 0; i < 32; ++i) tokens.push_back(sampler.sample(logits).value());
    return tokens;
  };
  EXPECT_EQ(draw(7), draw(7));
  EXPECT_NE(draw(7), draw(8));
}

TEST(Sampler, TinyTemperaturesAndMaskedLogitsStayFinite) {
  Sampler cold = make_sampler({.temperature = 1e-300, .seed = 2});
  EXPECT_EQ(cold.sample(std::array{1.0F, 2.0F, -kInfinity}).value(), 1);
  Sampler warm = make_sampler({.temperature = 1.0, .seed = 2});
  EXPECT_EQ(warm.sample(std::array{-kInfinity, 2.0F, -kInfinity}).value(), 1);
  EXPECT_TRUE(warm.sample(std::array{-kInfinity, -kInfinity}).ok());
  EXPECT_FALSE(warm.sample(std::array{1.0F, kNaN}).ok());
}

}  // namespace
}  // namespace chunkllm
