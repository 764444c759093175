// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/chunk_boundary.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "reference/oracle.hpp"

namespace chunkllm {
namespace {

TEST(DecideBoundary, EqualsTheOracle) {
  for (std::int64_t min_len = 1; min_len <= 5; ++min_len) {
    for (std::int64_t max_len = min_len; max_len <= 8; ++max_len) {
      for (std::int64_t open_len = 1; open_len <= 10; ++open_len) {
        for (const bool wanted : {false, true}) {
          const BoundaryDecision decision = decide_boundary(open_len, wanted, {min_len, max_len});
          const int expected = oracle::boundary(open_len, wanted, min_len, max_len);
          EXPECT_EQ(decision.boundary, expected != 0);
          EXPECT_EQ(decision.forced, expected == 2);
        }
      }
    }
  }
}

TEST(ChunkAdapter, ProbabilityIsTheSigmoid) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  ChunkAdapter adapter;
  std::vector<float> hidden;
  for (int i = 0; i < 75; ++i) {
    adapter.weight.push_back(normal(random));
    hidden.push_back(normal(random));
  }
  adapter.bias = -0.75F;
  double logit = -0.75;
  double size = 0.75;
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    const double product = static_cast<double>(adapter.weight[i]) * static_cast<double>(hidden[i]);
    logit += product;
    size += std::abs(product);
  }
  const double expected = 1.0 / (1.0 + std::exp(-logit));
  // A chain of 75 products; the sigmoid's slope is at most a quarter.
  EXPECT_LE(std::abs(static_cast<double>(adapter.probability(hidden.data())) - expected),
            (80.0 * size / 4.0 + 4.0) * 0x1p-24);
}

TEST(ChunkAdapter, ExtremesAndNan) {
  ChunkAdapter adapter;
  adapter.weight = {1.0F};
  const auto probability = [&](float hidden) { return adapter.probability(&hidden); };
  EXPECT_EQ(probability(0.0F), 0.5F);
  EXPECT_EQ(probability(1000.0F), 1.0F);
  EXPECT_EQ(probability(-1000.0F), 0.0F);
  // NaN is no boundary: the comparison is false.
  EXPECT_FALSE(probability(std::numeric_limits<float>::quiet_NaN()) > adapter.threshold);
}

}  // namespace
}  // namespace chunkllm
