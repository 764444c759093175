// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/core/thread_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace chunkllm {
namespace {

TEST(ThreadPool, EveryIndexRunsExactlyOnce) {
  for (const int num_threads : {1, 2, 3, 5}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (const std::int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
      std::atomic<bool> thread_in_range = true;
      pool.parallel_for(count, [&](std::int64_t index, int thread) {
        calls[static_cast<std::size_t>(index)].fetch_add(1);
        if (thread < 0 || thread >= num_threads) thread_in_range = false;
      });
      for (const auto& call : calls) EXPECT_EQ(call.load(), 1);
      EXPECT_TRUE(thread_in_range.load());
    }
  }
}

TEST(ThreadPool, NoThreadIndexIsUsedTwiceAtATime) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> busy(4);
  std::atomic<bool> overlap = false;
  pool.parallel_for(2000, [&](std::int64_t, int thread) {
    std::atomic<int>& mine = busy[static_cast<std::size_t>(thread)];
    if (mine.fetch_add(1) != 0) overlap = true;
    mine.fetch_sub(1);
  });
  EXPECT_FALSE(overlap.load());
}

TEST(ThreadPool, WritesOfTasksAreSeenByTheCallerAndByTheNextCall) {
  ThreadPool pool(3);
  std::vector<std::int64_t> values(64, 0);  // plain memory: the calls must order the accesses
  for (int round = 0; round < 1000; ++round) {
    pool.parallel_for(64, [&](std::int64_t index, int) {
      // Another thread may have written this element in the round before.
      values[static_cast<std::size_t>(63 - index)] += index;
    });
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(values[i], 1000 * static_cast<std::int64_t>(63 - i));
  }
}

TEST(ThreadPool, TasksMayBeConstOrMoveOnly) {
  ThreadPool pool(2);
  std::atomic<std::int64_t> sum = 0;
  const auto task = [&](std::int64_t index, int) { sum += index; };
  pool.parallel_for(10, task);
  EXPECT_EQ(sum.load(), 45);
  pool.parallel_for(
      10, [&, unit = std::make_unique<int>(2)](std::int64_t index, int) { sum += index * *unit; });
  EXPECT_EQ(sum.load(), 135);
}

TEST(ThreadPool, PoolsMayBeMadeAndDroppedWithoutWork) {
  for (int i = 0; i < 20; ++i) {
    ThreadPool pool(3);
  }
}

}  // namespace
}  // namespace chunkllm
