// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <string>

#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/kernels/dependent_launch.cuh"
#include "cuda/support/device.hpp"

namespace chunkllm::kernels {
namespace {

using testing::succeeds;
using CudaStatus = testing::DeviceTest;

struct SetWord {
  std::int32_t* word = nullptr;
  std::int32_t value = 0;
};

__global__ void set_word_kernel(SetWord args) {
  *args.word = args.value;
}

TEST_F(CudaStatus, AFailedAllocationIsNotChargedToTheNextLaunch) {
  const testing::DeviceBuffer<std::int32_t> word(1);
  const auto impossible = cuda::DeviceBuffer<std::byte>::create(std::size_t{1} << 62);
  ASSERT_EQ(impossible.status().code(), StatusCode::kResourceExhausted);
  EXPECT_NE(impossible.status().message().find(std::to_string(std::size_t{1} << 62)),
            std::string::npos);
  set_word_kernel<<<1, 1, 0, stream_>>>({word.data(), 5});
  EXPECT_TRUE(succeeds(cuda::launch_status("set_word_kernel")));
  EXPECT_EQ(word.download().front(), 5);
}

TEST_F(CudaStatus, ALaunchTellsOfItselfAlone) {
  const testing::DeviceBuffer<std::int32_t> word(1);
  const LaunchShape shape{dim3(1), 1, 0};
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, std::size_t{1} << 62), cudaErrorMemoryAllocation);  // somebody's
  EXPECT_TRUE(succeeds(launch_kernel("set_word_kernel", set_word_kernel, shape, false, stream_,
                                     SetWord{word.data(), 6})));
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(word.download().front(), 6);

  const LaunchShape impossible{dim3(1), 4096, 0};
  EXPECT_EQ(launch_kernel("set_word_kernel", set_word_kernel, impossible, false, stream_,
                          SetWord{word.data(), 7})
                .code(),
            StatusCode::kDeviceError);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(word.download().front(), 6);
}

}  // namespace
}  // namespace chunkllm::kernels
