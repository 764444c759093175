// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "chunkllm/cuda/gemm.hpp"
#include "cuda/support/device.hpp"
#include "support/compare.hpp"
#include "support/random_values.hpp"

namespace chunkllm::cuda {
namespace {

using testing::DeviceBuffer;
using testing::random_values;
using testing::succeeds;
using testing::widened;

template <typename Types>
class Gemm : public testing::DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    ASSERT_EQ(cublasCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasSetStream(handle_, stream_), CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(cublasSetWorkspace(handle_, workspace(), kWorkspaceBytes), CUBLAS_STATUS_SUCCESS);
  }
  void TearDown() override {
    if (handle_ != nullptr) {
      EXPECT_EQ(cublasDestroy(handle_), CUBLAS_STATUS_SUCCESS);
      EXPECT_TRUE(succeeds(cudaFree(workspace_)));
    }
    DeviceTest::TearDown();
  }
  void* workspace() {
    EXPECT_TRUE(succeeds(cudaMalloc(&workspace_, kWorkspaceBytes)));
    return workspace_;
  }

  static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;
  cublasHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
};

template <typename InputType, typename OutputType>
struct Pair {
  using Input = InputType;
  using Output = OutputType;
};
using TypePairs = ::testing::Types<Pair<__half, __half>, Pair<__half, float>,
                                   Pair<__nv_bfloat16, __nv_bfloat16>, Pair<__nv_bfloat16, float>>;
TYPED_TEST_SUITE(Gemm, TypePairs);

TYPED_TEST(Gemm, IsTheProductOfRowsByRows) {
  using T = typename TypeParam::Input;
  using Out = typename TypeParam::Output;
  std::mt19937_64 random(this->seed());
  struct Shape {
    std::int64_t rows;
    std::int64_t in;
    std::int64_t out;
    std::int64_t padding;
  };
  for (const Shape& shape :
       {Shape{1, 1, 1, 0}, Shape{1, 64, 7, 0}, Shape{5, 3, 2, 8}, Shape{127, 65, 129, 0},
        Shape{128, 64, 128, 8}, Shape{33, 256, 31, 1}, Shape{64, 1024, 96, 0}}) {
    for (const bool accumulates : {false, true}) {
      SCOPED_TRACE(std::to_string(shape.rows) + " x " + std::to_string(shape.in) + " x " +
                   std::to_string(shape.out) + (accumulates ? ", added" : ""));
      const std::int64_t in_stride = shape.in + shape.padding;
      const std::int64_t out_stride = shape.out + shape.padding;
      const std::vector<T> x = rounded<T>(random_values(random, shape.rows * in_stride));
      const std::vector<T> w = rounded<T>(random_values(random, shape.out * in_stride));
      const std::vector<Out> y = rounded<Out>(random_values(random, shape.rows * out_stride));
      const DeviceBuffer<T> device_x(x);
      const DeviceBuffer<T> device_w(w);
      const DeviceBuffer<Out> device_y(y);
      const GemmArgs<T, Out> args{device_x.data(), device_w.data(), device_y.data(), in_stride,
                                  in_stride,       out_stride,      shape.rows,      shape.in,
                                  shape.out,       accumulates};
      ASSERT_TRUE(succeeds(gemm(this->handle_, args)));
      const std::vector<float> wide_x = widened(x);
      const std::vector<float> wide_w = widened(w);
      const std::vector<float> wide_y = widened(y);
      std::vector<double> expected(y.size());
      std::vector<double> bounds(y.size(), 0.0);
      // To nearest is half of these; cuBLAS may round partial sums of a 16 bit output, too.
      const double unit = std::is_same_v<Out, float>    ? 0.0
                          : std::is_same_v<Out, __half> ? 0x1p-10
                                                        : 0x1p-7;
      for (std::int64_t r = 0; r < shape.rows; ++r) {
        for (std::int64_t c = 0; c < out_stride; ++c) {
          const auto to = static_cast<std::size_t>(r * out_stride + c);
          expected[to] = wide_y[to];
          if (c >= shape.out) continue;  // padding stays
          double sum = accumulates ? wide_y[to] : 0.0;
          double magnitude = std::abs(sum);
          for (std::int64_t i = 0; i < shape.in; ++i) {
            const double term =
                static_cast<double>(wide_x[static_cast<std::size_t>(r * in_stride + i)]) *
                static_cast<double>(wide_w[static_cast<std::size_t>(c * in_stride + i)]);
            sum += term;
            magnitude += std::abs(term);
          }
          expected[to] = sum;
          // Tensor cores cut products short by an ulp of f32 where the host would round.
          bounds[to] =
              (2.0 * testing::kUnitRoundoff * static_cast<double>(shape.in + 8) + unit) * magnitude;
        }
      }
      EXPECT_TRUE(testing::all_within(widened(device_y.download()), expected, bounds));
      EXPECT_TRUE(device_y.intact());
    }
  }
}

TYPED_TEST(Gemm, RunsInAGraphWithTheSameBits) {
  using T = typename TypeParam::Input;
  using Out = typename TypeParam::Output;
  std::mt19937_64 random(this->seed());
  constexpr std::int64_t kRows = 40;
  constexpr std::int64_t kIn = 512;
  constexpr std::int64_t kOut = 256;
  const DeviceBuffer<T> x(rounded<T>(random_values(random, kRows * kIn)));
  const DeviceBuffer<T> w(rounded<T>(random_values(random, kOut * kIn)));
  const DeviceBuffer<Out> once(kRows * kOut);
  const DeviceBuffer<Out> again(kRows * kOut);
  GemmArgs<T, Out> args{x.data(), w.data(), once.data(), kIn, kIn, kOut, kRows, kIn, kOut, false};
  ASSERT_TRUE(succeeds(gemm(this->handle_, args)));
  args.outputs = again.data();
  this->replay_as_graph([&](cudaStream_t) { return gemm(this->handle_, args); }, 2);
  EXPECT_EQ(widened(once.download()), widened(again.download()));
  EXPECT_TRUE(once.intact() && again.intact());
  // A caller's device pointer mode is kept.
  ASSERT_EQ(cublasSetPointerMode(this->handle_, CUBLAS_POINTER_MODE_DEVICE), CUBLAS_STATUS_SUCCESS);
  ASSERT_TRUE(succeeds(gemm(this->handle_, args)));
  cublasPointerMode_t mode = CUBLAS_POINTER_MODE_HOST;
  ASSERT_EQ(cublasGetPointerMode(this->handle_, &mode), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(mode, CUBLAS_POINTER_MODE_DEVICE);
}

TEST(GemmRefusals, NameWhatIsExpected) {
  alignas(16) __half memory[64] = {};
  const GemmArgs<__half, __half> good{memory, memory, memory, 4, 4, 4, 2, 4, 4, false};
  const auto expect_refused = [](const GemmArgs<__half, __half>& args, const std::string& word) {
    const Status status = gemm(nullptr, args);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  };
  expect_refused(good, "handle");
  auto args = good;
  args.num_rows = 0;
  EXPECT_TRUE(gemm(nullptr, args).ok());
  args = good;
  args.out_features = 0;
  EXPECT_TRUE(gemm(nullptr, args).ok());
  args = good;
  args.in_features = 0;
  expect_refused(args, "input feature");
  args = good;
  args.num_rows = std::int64_t{1} << 31;
  expect_refused(args, "32 bit");
  args = good;
  args.output_stride = 3;
  expect_refused(args, "strides");
}

}  // namespace
}  // namespace chunkllm::cuda
