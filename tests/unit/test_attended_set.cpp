// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/attended_set.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

namespace chunkllm {
namespace {

TEST(AttendedSet, EverythingByDefault) {
  const AttendedSet everything;
  EXPECT_EQ(everything.num_span_tokens(), 0);
  EXPECT_EQ(everything.num_attended(0), 1);
  EXPECT_EQ(everything.num_attended(99), 100);
  EXPECT_EQ(everything.segments(4), (std::vector<TokenSpan>{{0, 5}}));
  EXPECT_EQ(make_attended_set(ChunkTable(), {}, 0), everything);
}

TEST(AttendedSet, MergesNeighbours) {
  ChunkTable table;
  for (const std::int64_t end : {4, 10, 12, 20, 31, 40}) table.close(end);
  using Spans = std::vector<TokenSpan>;
  const auto set = [&](std::vector<std::int64_t> chunks, std::int64_t tail) {
    return make_attended_set(table, chunks, tail);
  };
  EXPECT_EQ(set({}, 31).spans, (Spans{{0, 4}}));
  EXPECT_EQ(set({1}, 31).spans, (Spans{{0, 10}}));
  EXPECT_EQ(set({2, 3}, 31).spans, (Spans{{0, 4}, {10, 20}}));
  // A chunk in front of the tail becomes part of it.
  EXPECT_EQ(set({4}, 31), (AttendedSet{{{0, 4}}, 20}));
  EXPECT_EQ(set({1, 2, 3, 4}, 31), AttendedSet{});
  // What lies in the tail adds nothing, nor does chunk 0 twice.
  EXPECT_EQ(set({0, 5}, 31), (AttendedSet{{{0, 4}}, 31}));
  EXPECT_EQ(set({}, 0), AttendedSet{});
  EXPECT_EQ(set({}, 2), AttendedSet{});
}

TEST(AttendedSet, AgreesWithASetOfTokens) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 300; ++trial) {
    ChunkTable table;
    std::int64_t end = 0;
    const auto num_chunks = static_cast<std::int64_t>(1 + random() % 30);
    for (std::int64_t c = 0; c < num_chunks; ++c) {
      end += static_cast<std::int64_t>(1 + random() % 7);
      table.close(end);
    }
    const std::int64_t first_kept = static_cast<std::int64_t>(random()) % (num_chunks + 1);
    const std::int64_t tail = first_kept == num_chunks ? end : table.begin(first_kept);
    std::vector<std::int64_t> chunks;
    for (std::int64_t c = 1; c < num_chunks; ++c) {
      if (random() % 3 == 0) chunks.push_back(c);
    }
    const std::int64_t position = end + static_cast<std::int64_t>(random() % 5);
    std::set<std::int64_t> expected;
    chunks.insert(chunks.begin(), 0);
    for (const std::int64_t c : chunks) {
      for (std::int64_t t = table.begin(c); t < table.end(c); ++t) expected.insert(t);
    }
    for (std::int64_t t = tail; t <= position; ++t) expected.insert(t);
    const AttendedSet set = make_attended_set(table, chunks, tail);
    std::vector<std::int64_t> listed;
    const std::vector<TokenSpan> segments = set.segments(position);
    for (std::size_t i = 0; i < segments.size(); ++i) {
      EXPECT_LT(segments[i].begin, segments[i].end);
      if (i > 0) {  // neither overlap nor touch
        EXPECT_GT(segments[i].begin, segments[i - 1].end);
      }
      for (std::int64_t t = segments[i].begin; t < segments[i].end; ++t) listed.push_back(t);
    }
    EXPECT_TRUE(std::equal(listed.begin(), listed.end(), expected.begin(), expected.end()));
    EXPECT_EQ(set.num_attended(position), static_cast<std::int64_t>(expected.size()));
  }
}

}  // namespace
}  // namespace chunkllm
