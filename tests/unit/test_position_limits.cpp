// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/infer/position_limits.hpp"

#include <gtest/gtest.h>

namespace chunkllm {
namespace {

TEST(PositionLimits, TheTextDecides) {
  EXPECT_EQ(default_positions(8192, 8192), Positions::kOriginal);
  EXPECT_EQ(default_positions(8193, 8192), Positions::kInCache);
}

TEST(PositionLimits, ABudgetAndAnOpenChunkMustFitTheWindow) {
  ChunkOptions options;
  options.guards = {4, 128};
  options.budget.tokens = 8192 - 128;
  EXPECT_EQ(most_attended(options, 100000), 8192 - 128);
  EXPECT_TRUE(check_in_cache_positions(options, 100000, 8192).ok());
  options.budget.tokens += 1;
  EXPECT_EQ(check_in_cache_positions(options, 100000, 8192).code(), StatusCode::kInvalidArgument);
}

TEST(PositionLimits, ASharedBudgetGrowsWithTheText) {
  ChunkOptions options;
  options.budget = {Budget::Kind::kShare, 0, 0.25, 0};
  EXPECT_EQ(most_attended(options, 20000), 5000);
  EXPECT_TRUE(check_in_cache_positions(options, 20000, 8192).ok());
  EXPECT_FALSE(check_in_cache_positions(options, 40000, 8192).ok());
}

TEST(PositionLimits, ChunksCountAtTheirLongest) {
  ChunkOptions options;
  options.guards = {4, 100};
  options.local_min_tokens = 64;
  options.local_min_chunks = 2;
  options.budget = {Budget::Kind::kChunks, 0, 1.0, 32};
  // Chunk 0, 32 chosen ones, and a local window of 64 tokens and two chunks.
  EXPECT_EQ(most_attended(options, 100000), 33 * 100 + 64 + 200);
  EXPECT_EQ(most_attended(options, 500), 500);
  EXPECT_TRUE(check_in_cache_positions(options, 100000, 3664).ok());
  EXPECT_FALSE(check_in_cache_positions(options, 100000, 3663).ok());
}

}  // namespace
}  // namespace chunkllm
