// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/chunk_table.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace chunkllm {
namespace {

TEST(ChunkTable, ChunksLieEndToEnd) {
  ChunkTable table;
  EXPECT_EQ(table.num_chunks(), 0);
  EXPECT_EQ(table.open_begin(), 0);
  EXPECT_EQ(table.chunk_of(0), 0);
  EXPECT_EQ(table.chunk_of(1000), 0);
  table.close(1);
  table.close(5);
  table.close(6);
  EXPECT_EQ(table.num_chunks(), 3);
  EXPECT_EQ(table.begin(0), 0);
  EXPECT_EQ(table.end(0), 1);
  EXPECT_EQ(table.begin(1), 1);
  EXPECT_EQ(table.length(1), 4);
  EXPECT_EQ(table.length(2), 1);
  EXPECT_EQ(table.open_begin(), 6);
  EXPECT_EQ(table.ends(), (std::vector<std::int64_t>{1, 5, 6}));
  const std::vector<std::int64_t> chunk_of = {0, 1, 1, 1, 1, 2, 3, 3};
  for (std::size_t t = 0; t < chunk_of.size(); ++t) {
    EXPECT_EQ(table.chunk_of(static_cast<std::int64_t>(t)), chunk_of[t]) << t;
  }
}

TEST(ChunkTable, RollbackKeepsWhatLiesWhollyBefore) {
  ChunkTable full;
  for (const std::int64_t end : {3, 8, 9, 20}) full.close(end);
  for (std::int64_t cut = 0; cut <= 25; ++cut) {
    ChunkTable table = full;
    table.rollback(cut);
    std::vector<std::int64_t> expected;
    for (const std::int64_t end : full.ends()) {
      if (end <= cut) expected.push_back(end);
    }
    EXPECT_EQ(table.ends(), expected) << cut;
  }
}

}  // namespace
}  // namespace chunkllm
