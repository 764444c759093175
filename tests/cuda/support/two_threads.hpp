// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <thread>

#include "chunkllm/core/status.hpp"
#include "cuda/support/device.hpp"

namespace chunkllm::testing {

/// Calls `launch(i, stream)`, which returns Status, `times` times from each of two threads at once:
/// i is the thread, and the stream its own. Waits for all; fails with the first launch that does.
template <typename Launch>
void launch_from_two_threads(const Launch& launch, int times) {
  std::array<cudaStream_t, 2> streams = {};
  std::array<Status, 2> statuses;
  for (cudaStream_t& stream : streams) {
    ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)));
  }
  const auto run = [&](std::size_t i) {
    for (int n = 0; n < times && statuses[i].ok(); ++n) statuses[i] = launch(i, streams[i]);
  };
  std::thread other(run, 1);
  run(0);
  other.join();
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(succeeds(statuses[i])) << "thread " << i;
    EXPECT_TRUE(succeeds(cudaStreamSynchronize(streams[i])));
    EXPECT_TRUE(succeeds(cudaStreamDestroy(streams[i])));
  }
}

}  // namespace chunkllm::testing
