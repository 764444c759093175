// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/rounding.hpp"

namespace chunkllm::testing {

/// Whether `CHUNKLLM_REQUIRE_GPU=1` forbids skipping.
inline bool gpu_is_required() {
  const char* value = std::getenv("CHUNKLLM_REQUIRE_GPU");
  return value != nullptr && std::string_view(value) == "1";
}

inline ::testing::AssertionResult succeeds(cudaError_t error) {
  if (error == cudaSuccess) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << cudaGetErrorName(error) << ": " << cudaGetErrorString(error);
}
inline ::testing::AssertionResult succeeds(const Status& status) {
  if (status.ok()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << to_string(status.code()) << ": " << status.message();
}

/// Copies `values` to device memory at `to`, which holds as many.
///
/// Of memory that is not pinned, `cudaMemcpy` may return before the last bytes have arrived, and
/// the default stream, on which it runs, does not hold back the tests' own streams: a kernel
/// launched behind it could read what lay there before. So this waits for the device.
template <typename T>
cudaError_t copy_to_device(T* to, std::span<const T> values) {
  if (values.empty()) return cudaSuccess;
  const cudaError_t copied =
      cudaMemcpy(to, values.data(), values.size_bytes(), cudaMemcpyHostToDevice);
  return copied == cudaSuccess ? cudaDeviceSynchronize() : copied;
}

/// Device memory with a fence on each side, poisoned with NaN bits until written.
///
/// \tparam T  trivially copyable
template <typename T>
class DeviceBuffer {
 public:
  /// \param offset  elements behind a 256 byte boundary at which the buffer starts
  explicit DeviceBuffer(std::size_t size, std::size_t offset = 0)
      : size_(size), front_(kFence + offset * sizeof(T)) {
    EXPECT_TRUE(succeeds(cudaMalloc(&memory_, bytes())));
    EXPECT_TRUE(succeeds(cudaMemset(memory_, kPoison, bytes())));
    // The default stream, on which this ran, does not hold back the tests' own streams.
    EXPECT_TRUE(succeeds(cudaDeviceSynchronize()));
  }
  explicit DeviceBuffer(std::span<const T> values, std::size_t offset = 0)
      : DeviceBuffer(values.size(), offset) {
    upload(values);
  }
  explicit DeviceBuffer(const std::vector<T>& values, std::size_t offset = 0)
      : DeviceBuffer(std::span<const T>(values), offset) {}
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : size_(other.size_), front_(other.front_), memory_(std::exchange(other.memory_, nullptr)) {}
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;
  ~DeviceBuffer() { cudaFree(memory_); }

  [[nodiscard]] T* data() const { return reinterpret_cast<T*>(memory_ + front_); }
  [[nodiscard]] std::size_t size() const { return size_; }

  void upload(std::span<const T> values) {
    ASSERT_EQ(values.size(), size_);
    ASSERT_TRUE(succeeds(copy_to_device(data(), values)));
  }
  /// Waits for the whole device.
  [[nodiscard]] std::vector<T> download() const {
    std::vector<T> values(size_);
    EXPECT_TRUE(succeeds(cudaDeviceSynchronize()));
    if (size_ > 0) {
      EXPECT_TRUE(
          succeeds(cudaMemcpy(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost)));
    }
    return values;
  }
  void poison() {
    ASSERT_TRUE(succeeds(cudaMemset(data(), kPoison, size_ * sizeof(T))));
    ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));
  }
  /// Whether nothing outside the buffer was written.
  [[nodiscard]] bool intact() const {
    std::vector<unsigned char> all(bytes());
    EXPECT_TRUE(succeeds(cudaDeviceSynchronize()));
    EXPECT_TRUE(succeeds(cudaMemcpy(all.data(), memory_, bytes(), cudaMemcpyDeviceToHost)));
    const auto is_poison = [](unsigned char byte) { return byte == kPoison; };
    const auto end = static_cast<std::ptrdiff_t>(front_ + size_ * sizeof(T));
    return std::all_of(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(front_), is_poison) &&
           std::all_of(all.begin() + end, all.end(), is_poison);
  }

 private:
  static constexpr std::size_t kFence = 4096;
  static constexpr int kPoison = 0xff;  // NaN in every floating type, -1 in integers

  [[nodiscard]] std::size_t bytes() const { return front_ + size_ * sizeof(T) + kFence; }

  std::size_t size_;
  std::size_t front_;
  unsigned char* memory_ = nullptr;
};

/// Skips, or fails where a GPU is required, on a machine without one.
class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) {
      ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)));
      return;
    }
    const std::string reason =
        error == cudaSuccess ? "no CUDA device" : std::string(cudaGetErrorString(error));
    if (gpu_is_required()) FAIL() << "CHUNKLLM_REQUIRE_GPU is 1, but: " << reason;
    GTEST_SKIP() << "needs a GPU: " << reason;
  }
  void TearDown() override {
    if (stream_ == nullptr) return;
    EXPECT_TRUE(succeeds(cudaStreamSynchronize(stream_)));
    EXPECT_TRUE(succeeds(cudaStreamDestroy(stream_)));
  }

  /// Captures what `launch(stream)` enqueues and replays it `times` times. `launch` returns Status.
  template <typename Launch>
  void replay_as_graph(const Launch& launch, int times = 1) {
    with_graph(launch, [&](cudaGraphExec_t graph) {
      for (int i = 0; i < times; ++i) ASSERT_TRUE(succeeds(cudaGraphLaunch(graph, stream_)));
    });
  }
  /// The same with `around(replay)` in the place of each replay, which `replay()` runs and waits
  /// for.
  template <typename Launch, typename Around>
  void replay_as_graph(const Launch& launch, int times, const Around& around) {
    with_graph(launch, [&](cudaGraphExec_t graph) {
      const auto replay = [&] {
        ASSERT_TRUE(succeeds(cudaGraphLaunch(graph, stream_)));
        ASSERT_TRUE(succeeds(cudaStreamSynchronize(stream_)));
      };
      for (int i = 0; i < times; ++i) around(replay);
    });
  }

  /// Calls `launch(i, stream)`, which returns Status: 0 on the test's stream, 1 on another beside
  /// it, 2 in a graph; and waits for all.
  template <typename Launch>
  void launch_three_ways(const Launch& launch) {
    cudaStream_t other = nullptr;
    ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking)));
    EXPECT_TRUE(succeeds(launch(0, stream_)));
    EXPECT_TRUE(succeeds(launch(1, other)));
    EXPECT_TRUE(succeeds(cudaStreamSynchronize(stream_)));
    EXPECT_TRUE(succeeds(cudaStreamSynchronize(other)));
    replay_as_graph([&](cudaStream_t stream) { return launch(2, stream); });
    ASSERT_TRUE(succeeds(cudaStreamDestroy(other)));
  }

  /// The seed of a test's random numbers: fixed, or CHUNKLLM_TEST_SEED; shown where a test fails.
  static std::uint64_t seed() {
    const char* value = std::getenv("CHUNKLLM_TEST_SEED");
    return value == nullptr ? 20251002U : std::strtoull(value, nullptr, 10);
  }

  cudaStream_t stream_ = nullptr;

 private:
  /// Calls `use` with a graph of what `launch(stream)` enqueues, and waits for the stream.
  template <typename Launch, typename Use>
  void with_graph(const Launch& launch, const Use& use) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t instance = nullptr;
    ASSERT_TRUE(succeeds(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal)));
    EXPECT_TRUE(succeeds(launch(stream_)));
    ASSERT_TRUE(succeeds(cudaStreamEndCapture(stream_, &graph)));
    ASSERT_TRUE(succeeds(cudaGraphInstantiate(&instance, graph, 0)));
    use(instance);
    EXPECT_TRUE(succeeds(cudaStreamSynchronize(stream_)));
    EXPECT_TRUE(succeeds(cudaGraphExecDestroy(instance)));
    EXPECT_TRUE(succeeds(cudaGraphDestroy(graph)));
  }
};

/// Relative error of rounding to a 16 bit type.
template <typename T>
inline constexpr double kRoundoff = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;

using cuda::rounded;

/// What a rounded value is.
inline float widened(float value) {
  return value;
}
inline float widened(__half value) {
  return to_f32(F16{std::bit_cast<std::uint16_t>(value)});
}
inline float widened(__nv_bfloat16 value) {
  return to_f32(BF16{std::bit_cast<std::uint16_t>(value)});
}
template <typename T>
std::vector<float> widened(const std::vector<T>& values) {
  std::vector<float> out(values.size());
  std::transform(values.begin(), values.end(), out.begin(), [](T v) { return widened(v); });
  return out;
}

}  // namespace chunkllm::testing
