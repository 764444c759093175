// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <vector>

#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "cuda/support/device.hpp"

namespace chunkllm::kernels {
namespace {

using Primitives = testing::DeviceTest;

__global__ void distance_bins_kernel(std::int32_t* bins, std::int32_t count) {
  const auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) bins[i] = distance_bin(i + 1);
}

TEST_F(Primitives, DistanceBinsAreThoseOfTheHost) {
  constexpr std::int32_t kCount = 300000;
  const testing::DeviceBuffer<std::int32_t> bins(kCount);
  distance_bins_kernel<<<ceil_div(kCount, 256), 256, 0, stream_>>>(bins.data(), kCount);
  const std::vector<std::int32_t> got = bins.download();
  for (std::int32_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(got[static_cast<std::size_t>(i)], chunkllm::distance_bin(i + 1)) << i + 1;
  }
  EXPECT_TRUE(bins.intact());
}

}  // namespace
}  // namespace chunkllm::kernels
