// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/kernels/matrix_vector.cuh"
#include "chunkllm/kernels/random_weights.cuh"
#include "chunkllm/kernels/rms_norm.cuh"
#include "cuda/support/device.hpp"
#include "cuda/support/two_threads.hpp"
#include "support/compare.hpp"
#include "support/random_values.hpp"

namespace chunkllm::kernels {
namespace {

using testing::DeviceBuffer;
using testing::kRoundoff;
using testing::rounded;
using testing::succeeds;
using testing::uniform_values;
using testing::widened;

/// A product's operands on both sides. Rows of x have a stride of k + 8.
template <typename T>
struct Operands {
  int n, k, m;
  std::vector<T> weight, x;
  DeviceBuffer<T> d_weight, d_x;

  Operands(int outputs, int features, int rows, std::uint64_t seed)
      : n(outputs),
        k(features),
        m(rows),
        weight(rounded<T>(uniform_values(static_cast<std::size_t>(n) * k, seed,
                                         1.7F / std::sqrt(static_cast<float>(k))))),
        x(rounded<T>(uniform_values(static_cast<std::size_t>(m) * (k + 8), seed + 1))),
        d_weight(weight),
        d_x(x) {}

  [[nodiscard]] MatrixVectorArgs<T> args() const {
    MatrixVectorArgs<T> args;
    args.weight = d_weight.data();
    args.num_outputs = n;
    args.k = k;
    args.num_rows = m;
    args.x = d_x.data();
    args.x_stride = k + 8;
    return args;
  }
  /// The exact sum of row r and output i, and the sum of magnitudes.
  [[nodiscard]] std::pair<double, double> sum(int r, int i) const {
    double value = 0.0;
    double magnitude = 0.0;
    for (int j = 0; j < k; ++j) {
      const double product =
          static_cast<double>(widened(weight[static_cast<std::size_t>(i) * k + j])) *
          static_cast<double>(widened(x[static_cast<std::size_t>(r) * (k + 8) + j]));
      value += product;
      magnitude += std::abs(product);
    }
    return {value, magnitude};
  }
  /// Each of at most k / 16 tensor core steps may cut its sum at 2^-22 of the magnitudes; eight
  /// warps are added in f32.
  [[nodiscard]] double sum_bound(double magnitude) const {
    return magnitude * 0x1p-22 * (k / 16.0 + 8.0);
  }
};

class MatrixVector : public testing::DeviceTest {
 protected:
  static bool fuses_norm(int rows, int k) {
    const Result<int> bytes = cuda::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    EXPECT_TRUE(succeeds(bytes.status()));
    return bytes.ok() && can_fuse_norm(rows, k, bytes.value());
  }
  template <typename T>
  std::vector<T> product(const MatrixVectorArgs<T>& given, int outputs) {
    MatrixVectorArgs<T> args = given;
    const DeviceBuffer<T> y(static_cast<std::size_t>(args.num_rows) * outputs);
    args.y = y.data();
    args.y_stride = outputs;
    EXPECT_TRUE(succeeds(launch_matrix_vector(args, stream_)));
    std::vector<T> values = y.download();
    EXPECT_TRUE(y.intact());
    return values;
  }

  template <typename T>
  void check_sums(int n, int k, int m) {
    const Operands<T> operands(n, k, m, seed());
    const DeviceBuffer<float> y(static_cast<std::size_t>(m) * n);
    MatrixVectorArgs<T> args = operands.args();
    args.epilogue = Epilogue::kStoreF32;
    args.y_f32 = y.data();
    args.y_f32_stride = n;
    ASSERT_TRUE(succeeds(launch_matrix_vector(args, stream_)));
    std::vector<double> expected;
    std::vector<double> bounds;
    for (int r = 0; r < m; ++r) {
      for (int i = 0; i < n; ++i) {
        const auto [value, magnitude] = operands.sum(r, i);
        expected.push_back(value);
        bounds.push_back(operands.sum_bound(magnitude));
      }
    }
    EXPECT_TRUE(testing::all_within(y.download(), expected, bounds))
        << n << " x " << k << ", " << m << " rows";
    EXPECT_TRUE(y.intact());
  }
};

TEST_F(MatrixVector, SumsEqualDoublesAtOddSizes) {
  for (const int k : {8, 24, 56, 64, 72, 128, 136, 504, 512, 520, 576, 1000, 1024, 1032, 1536}) {
    for (const int n : {1, 15, 16, 17, 31, 32, 33, 70}) {
      for (const int m : {1, 2, 3, 8, 9, 16}) {
        check_sums<__nv_bfloat16>(n, k, m);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(MatrixVector, SumsOfHalfsEqualDoubles) {
  for (const int k : {8, 64, 576, 4096}) {
    for (const int m : {1, 5, 12}) check_sums<__half>(33, k, m);
  }
}

TEST_F(MatrixVector, LongRowsEqualDoubles) {
  check_sums<__nv_bfloat16>(48, 14336, 8);
}

TEST_F(MatrixVector, BlocksTakeSeveralTiles) {
  // More tiles than blocks on any device up to 250 multiprocessors.
  constexpr int kOutputs = 8200;
  constexpr int kFeatures = 512;
  const Operands<__nv_bfloat16> operands(kOutputs, kFeatures, 2, seed());
  const std::vector<__nv_bfloat16> y = product(operands.args(), kOutputs);
  for (int i = 0; i < kOutputs; i += 7) {
    for (int r = 0; r < 2; ++r) {
      const auto [value, magnitude] = operands.sum(r, i);
      const double bound = operands.sum_bound(magnitude) * 2 + std::abs(value) * 0x1p-8;
      const double got = widened(y[static_cast<std::size_t>(r) * kOutputs + i]);
      ASSERT_TRUE(std::abs(got - value) <= bound)
          << "row " << r << ", output " << i << ": " << got << " instead of " << value;
    }
  }
}

TEST_F(MatrixVector, ARowOfABatchHasTheBitsOfTheRowAlone) {
  for (const int k : {72, 576, 4096}) {
    constexpr int kOutputs = 100;
    Operands<__nv_bfloat16> operands(kOutputs, k, 16, seed());
    std::vector<std::vector<float>> alone;
    for (int r = 0; r < 16; ++r) {
      MatrixVectorArgs<__nv_bfloat16> args = operands.args();
      args.num_rows = 1;
      args.x += static_cast<std::int64_t>(r) * args.x_stride;
      alone.push_back(widened(product(args, kOutputs)));
    }
    for (int m = 1; m <= 16; ++m) {
      MatrixVectorArgs<__nv_bfloat16> args = operands.args();
      args.num_rows = m;
      const std::vector<float> y = widened(product(args, kOutputs));
      for (int r = 0; r < m; ++r) {
        ASSERT_EQ(std::vector<float>(y.begin() + r * kOutputs, y.begin() + (r + 1) * kOutputs),
                  alone[static_cast<std::size_t>(r)])
            << "k " << k << ", row " << r << " of " << m;
      }
    }
  }
}

TEST_F(MatrixVector, RowsHeldInSharedMemoryHaveTheBitsOfTheRowAlone) {
  // Enough tiles that x is copied on devices of up to 140 multiprocessors; the last is not full.
  constexpr int kOutputs = 9002;
  for (const int k : {8, 200, 576, 1536}) {
    for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kSiluGate}) {
      const int results = epilogue == Epilogue::kSiluGate ? kOutputs / 2 : kOutputs;
      const Operands<__nv_bfloat16> operands(kOutputs, k, 16, seed());
      std::vector<std::vector<float>> alone;
      for (int r = 0; r < 16; ++r) {
        MatrixVectorArgs<__nv_bfloat16> args = operands.args();
        args.epilogue = epilogue;
        args.num_rows = 1;
        args.x += static_cast<std::int64_t>(r) * args.x_stride;
        alone.push_back(widened(product(args, results)));
      }
      for (const int m : {2, 3, 8, 9, 16}) {
        MatrixVectorArgs<__nv_bfloat16> args = operands.args();
        args.epilogue = epilogue;
        args.num_rows = m;
        const std::vector<float> y = widened(product(args, results));
        for (int r = 0; r < m; ++r) {
          ASSERT_TRUE(std::equal(alone[static_cast<std::size_t>(r)].begin(),
                                 alone[static_cast<std::size_t>(r)].end(), y.begin() + r * results))
              << "k " << k << ", row " << r << " of " << m << ", epilogue "
              << static_cast<int>(epilogue);
        }
      }
    }
  }
}

TEST_F(MatrixVector, RowsThatDoNotFitSharedMemoryEqualDoubles) {
  // 16 rows of 8192 values are 264 KB; sums of some outputs are checked.
  constexpr int kOutputs = 8600;
  constexpr int kFeatures = 8192;
  const Operands<__nv_bfloat16> operands(kOutputs, kFeatures, 16, seed());
  const std::vector<__nv_bfloat16> y = product(operands.args(), kOutputs);
  for (int i = 0; i < kOutputs; i += 409) {
    for (int r = 0; r < 16; r += 5) {
      const auto [value, magnitude] = operands.sum(r, i);
      const double bound = operands.sum_bound(magnitude) * 2 + std::abs(value) * 0x1p-8;
      const double got = widened(y[static_cast<std::size_t>(r) * kOutputs + i]);
      ASSERT_TRUE(std::abs(got - value) <= bound)
          << "row " << r << ", output " << i << ": " << got << " instead of " << value;
    }
  }
}

TEST_F(MatrixVector, ADeviceOfLittleSharedMemoryGivesTheSameBits) {
  const Result<int> multiprocessors = cuda::device_attribute(cudaDevAttrMultiProcessorCount);
  ASSERT_TRUE(succeeds(multiprocessors.status()));
  const MatrixVectorDevice device{multiprocessors.value(), kLeastSharedBytes};
  for (const int outputs : {100, 9002}) {
    const Operands<__nv_bfloat16> operands(outputs, 1024, 16, seed());
    for (const int m : {1, 3, 8, 9, 16}) {
      MatrixVectorArgs<__nv_bfloat16> args = operands.args();
      args.num_rows = m;
      const std::vector<float> expected = widened(product(args, outputs));
      const DeviceBuffer<__nv_bfloat16> y(static_cast<std::size_t>(m) * outputs);
      args.y = y.data();
      args.y_stride = outputs;
      for (const bool one_block_an_sm : {false, true}) {
        args.one_block_an_sm = one_block_an_sm;
        ASSERT_TRUE(succeeds(launch_matrix_vector_on(args, device, stream_)));
        EXPECT_EQ(widened(y.download()), expected) << outputs << " outputs, " << m << " rows";
      }
      EXPECT_TRUE(y.intact());
    }
  }
}

TEST(MatrixVectorChoices, FitEveryDevice) {
  MatrixVectorArgs<__half> args;
  for (const int shared_bytes : {kLeastSharedBytes, 163 * 1024, 227 * 1024}) {
    const MatrixVectorDevice device{108, shared_bytes};
    const auto most = static_cast<std::size_t>(shared_bytes);
    for (const int k : {8, 576, 4096, 14336}) {
      for (const int outputs : {16, 4096, 128256}) {
        for (int rows = 1; rows <= MatrixVectorShape::kMaxRows; ++rows) {
          for (const bool one_block_an_sm : {false, true}) {
            args.hidden = nullptr;
            args.k = k;
            args.num_outputs = outputs;
            args.num_rows = rows;
            args.one_block_an_sm = one_block_an_sm;
            const MatrixVectorChoice choice = choose_matrix_vector(args, device);
            EXPECT_LE(choice.shared_bytes, most) << rows << " rows of " << k;
            EXPECT_GE(8 * choice.column_tiles, rows);
            if (!can_fuse_norm(rows, k, shared_bytes)) continue;
            args.hidden = reinterpret_cast<const float*>(std::uintptr_t{4096});
            EXPECT_LE(choose_matrix_vector(args, device).shared_bytes, most)
                << "the norm of " << rows << " rows of " << k;
          }
        }
      }
    }
  }
  EXPECT_TRUE(can_fuse_norm(1, 4096, kLeastSharedBytes));
  EXPECT_FALSE(can_fuse_norm(2, 4096, kLeastSharedBytes));
  EXPECT_TRUE(can_fuse_norm(2, 4096, 163 * 1024));
}

TEST_F(MatrixVector, NaNAndInfinityStayInTheirRow) {
  constexpr int kOutputs = 40;
  constexpr int kFeatures = 200;
  Operands<__nv_bfloat16> operands(kOutputs, kFeatures, 3, seed());
  const std::vector<float> clean = widened(product(operands.args(), kOutputs));
  std::vector<__nv_bfloat16> x = operands.x;
  const auto bad = [](float value) { return rounded<__nv_bfloat16>(value); };
  x[kFeatures + 8 + 123] = bad(std::numeric_limits<float>::quiet_NaN());
  x[2 * (kFeatures + 8)] = bad(std::numeric_limits<float>::infinity());
  operands.d_x.upload(x);
  const std::vector<float> y = widened(product(operands.args(), kOutputs));
  for (std::size_t i = 0; i < kOutputs; ++i) {
    EXPECT_EQ(y[i], clean[i]) << i;
    EXPECT_TRUE(std::isnan(y[kOutputs + i])) << i;
    EXPECT_FALSE(std::isfinite(y[2 * kOutputs + i])) << i;
  }
}

TEST_F(MatrixVector, BiasAndResidualAreAdded) {
  constexpr int kOutputs = 37;
  const Operands<__half> operands(kOutputs, 96, 5, seed());
  const std::vector<float> bias = uniform_values(kOutputs, 5);
  const std::vector<float> before = uniform_values(5 * kOutputs, 6);
  const DeviceBuffer<float> d_bias(bias);
  const DeviceBuffer<float> y(before);
  MatrixVectorArgs<__half> args = operands.args();
  args.maybe_bias = d_bias.data();
  args.epilogue = Epilogue::kAddF32;
  args.y_f32 = y.data();
  args.y_f32_stride = kOutputs;
  ASSERT_TRUE(succeeds(launch_matrix_vector(args, stream_)));
  std::vector<double> expected;
  std::vector<double> bounds;
  for (int r = 0; r < 5; ++r) {
    for (int i = 0; i < kOutputs; ++i) {
      const auto [value, magnitude] = operands.sum(r, i);
      const double old = before[static_cast<std::size_t>(r * kOutputs + i)];
      const double added = bias[static_cast<std::size_t>(i)];
      expected.push_back(old + value + added);
      bounds.push_back(operands.sum_bound(magnitude) +
                       4 * testing::kUnitRoundoff * (magnitude + std::abs(old) + std::abs(added)));
    }
  }
  EXPECT_TRUE(testing::all_within(y.download(), expected, bounds));
  EXPECT_TRUE(y.intact());
}

TEST_F(MatrixVector, TheGateMeetsItsValue) {
  for (const int inner : {1, 8, 9, 48}) {
    const Operands<__half> operands(2 * inner, 136, 8, seed());
    const std::vector<float> bias = uniform_values(static_cast<std::size_t>(2 * inner), 5);
    const DeviceBuffer<float> d_bias(bias);
    MatrixVectorArgs<__half> args = operands.args();
    args.maybe_bias = d_bias.data();
    args.epilogue = Epilogue::kSiluGate;
    const std::vector<float> y = widened(product(args, inner));
    std::vector<double> expected;
    std::vector<double> bounds;
    for (int r = 0; r < 8; ++r) {
      for (int i = 0; i < inner; ++i) {
        const auto gate_sum = operands.sum(r, i);
        const auto up_sum = operands.sum(r, i + inner);
        const double gate = gate_sum.first + bias[static_cast<std::size_t>(i)];
        const double up = up_sum.first + bias[static_cast<std::size_t>(i + inner)];
        const double value = gate / (1.0 + std::exp(-gate)) * up;
        expected.push_back(value);
        // The gate's slope is at most 1.1; exp and the division round some units each.
        bounds.push_back(1.1 * std::abs(up) * operands.sum_bound(gate_sum.second + 1) +
                         std::abs(gate) * operands.sum_bound(up_sum.second + 1) +
                         std::abs(value) * (0x1p-11 + 0x1p-20) + 0x1p-24);
      }
    }
    EXPECT_TRUE(testing::all_within(y, expected, bounds)) << inner;
  }
}

TEST_F(MatrixVector, TheFusedNormHasTheBitsOfTheKernel) {
  for (const int k : {64, 576, 4096}) {
    for (const int m : {1, 2}) {
      constexpr int kOutputs = 50;
      if (!fuses_norm(m, k)) continue;
      const Operands<__nv_bfloat16> operands(kOutputs, k, m, seed());
      const DeviceBuffer<float> hidden(uniform_values(static_cast<std::size_t>(m) * k, 7, 3.0F));
      const DeviceBuffer<float> weight(uniform_values(static_cast<std::size_t>(k), 8));
      const DeviceBuffer<__nv_bfloat16> normed(static_cast<std::size_t>(m) * k);
      const DeviceBuffer<__nv_bfloat16> copy(static_cast<std::size_t>(m) * k);
      RmsNormArgs<__nv_bfloat16> norm;
      norm.residual = hidden.data();
      norm.residual_stride = k;
      norm.weight = weight.data();
      norm.eps = 1e-5F;
      norm.normed = normed.data();
      norm.normed_stride = k;
      norm.num_rows = m;
      norm.size = k;
      ASSERT_TRUE(succeeds(launch_rms_norm(norm, stream_)));
      MatrixVectorArgs<__nv_bfloat16> args = operands.args();
      args.x = normed.data();
      args.x_stride = k;
      const std::vector<float> apart = widened(product(args, kOutputs));
      args.x = nullptr;
      args.hidden = hidden.data();
      args.hidden_stride = k;
      args.norm_weight = weight.data();
      args.eps = 1e-5F;
      args.maybe_normed = copy.data();
      EXPECT_EQ(widened(product(args, kOutputs)), apart) << k << ", " << m << " rows";
      EXPECT_EQ(widened(copy.download()), widened(normed.download())) << k << ", " << m << " rows";
      EXPECT_TRUE(copy.intact());
    }
  }
}

TEST_F(MatrixVector, RunsAndGraphsAgree) {
  constexpr int kOutputs = 6000;
  const Operands<__nv_bfloat16> operands(kOutputs, 1024, 4, seed());
  const std::vector<float> first = widened(product(operands.args(), kOutputs));
  EXPECT_EQ(widened(product(operands.args(), kOutputs)), first);
  const DeviceBuffer<__nv_bfloat16> y(4 * kOutputs);
  MatrixVectorArgs<__nv_bfloat16> args = operands.args();
  args.y = y.data();
  args.y_stride = kOutputs;
  replay_as_graph([&](cudaStream_t stream) { return launch_matrix_vector(args, stream); }, 3);
  EXPECT_EQ(widened(y.download()), first);
}

TEST_F(MatrixVector, TwoStreamsDoNotMeet) {
  constexpr int kOutputs = 3000;
  const Operands<__nv_bfloat16> a(kOutputs, 1024, 1, seed());
  const Operands<__nv_bfloat16> b(kOutputs, 1024, 1, seed() + 10);
  const std::vector<float> expected_a = widened(product(a.args(), kOutputs));
  const std::vector<float> expected_b = widened(product(b.args(), kOutputs));
  const DeviceBuffer<__nv_bfloat16> y_a(kOutputs);
  const DeviceBuffer<__nv_bfloat16> y_b(kOutputs);
  cudaStream_t other = nullptr;
  ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking)));
  for (int i = 0; i < 20; ++i) {
    MatrixVectorArgs<__nv_bfloat16> args = a.args();
    args.y = y_a.data();
    args.y_stride = kOutputs;
    EXPECT_TRUE(succeeds(launch_matrix_vector(args, stream_)));
    args = b.args();
    args.y = y_b.data();
    args.y_stride = kOutputs;
    EXPECT_TRUE(succeeds(launch_matrix_vector(args, other)));
  }
  EXPECT_EQ(widened(y_a.download()), expected_a);
  EXPECT_EQ(widened(y_b.download()), expected_b);
  EXPECT_TRUE(succeeds(cudaStreamDestroy(other)));
}

TEST_F(MatrixVector, TwoThreadsLaunchProductsOfTheirOwn) {
  // The same kernel with rows of other lengths, and so other sizes of shared memory.
  constexpr int kOutputs = 64;
  const Operands<__nv_bfloat16> a(kOutputs, 4096, 1, seed());
  const Operands<__nv_bfloat16> b(kOutputs, 64, 1, seed() + 10);
  const DeviceBuffer<float> hidden(uniform_values(4096, 7, 3.0F));
  const DeviceBuffer<float> weight(uniform_values(4096, 8));
  const DeviceBuffer<__nv_bfloat16> y_a(kOutputs);
  const DeviceBuffer<__nv_bfloat16> y_b(kOutputs);
  const auto args_of = [&](std::size_t i) {
    MatrixVectorArgs<__nv_bfloat16> args = i == 0 ? a.args() : b.args();
    args.x = nullptr;
    args.hidden = hidden.data();
    args.norm_weight = weight.data();
    args.eps = 1e-5F;
    args.y = i == 0 ? y_a.data() : y_b.data();
    return args;
  };
  const std::vector<float> expected_a = widened(product(args_of(0), kOutputs));
  const std::vector<float> expected_b = widened(product(args_of(1), kOutputs));
  testing::launch_from_two_threads(
      [&](std::size_t i, cudaStream_t stream) { return launch_matrix_vector(args_of(i), stream); },
      2000);
  EXPECT_EQ(widened(y_a.download()), expected_a);
  EXPECT_EQ(widened(y_b.download()), expected_b);
}

TEST_F(MatrixVector, StridesOfZeroStandForRowsSideBySide) {
  constexpr int kOutputs = 40;
  constexpr int kFeatures = 136;
  const DeviceBuffer<__nv_bfloat16> x(
      rounded<__nv_bfloat16>(uniform_values(5 * kFeatures, seed() + 3)));
  const Operands<__nv_bfloat16> operands(kOutputs, kFeatures, 5, seed());
  MatrixVectorArgs<__nv_bfloat16> args = operands.args();
  args.x = x.data();
  args.x_stride = kFeatures;
  const std::vector<float> expected = widened(product(args, kOutputs));
  const DeviceBuffer<__nv_bfloat16> y(5 * kOutputs);
  args.x_stride = 0;
  args.y = y.data();
  for (const bool overlaps : {false, true}) {
    args.overlaps = overlaps;
    ASSERT_TRUE(succeeds(launch_matrix_vector(args, stream_)));
    EXPECT_EQ(widened(y.download()), expected);
  }
  EXPECT_TRUE(y.intact());
}

/// Arguments that pass but for what a test breaks; nothing is launched.
MatrixVectorArgs<__half> plausible_args() {
  MatrixVectorArgs<__half> args;
  args.weight = reinterpret_cast<const __half*>(std::uintptr_t{4096});
  args.x = args.weight;
  args.y = reinterpret_cast<__half*>(std::uintptr_t{8192});
  args.num_outputs = 16;
  args.k = 64;
  args.num_rows = 1;
  args.x_stride = 64;
  return args;
}

TEST(MatrixVectorRefusals, SayWhatIsSupported) {
  const auto refusal = [](const auto& change) {
    MatrixVectorArgs<__half> args = plausible_args();
    change(args);
    return launch_matrix_vector(args, nullptr);
  };
  using Args = MatrixVectorArgs<__half>;
  EXPECT_TRUE(refusal([](Args& a) { a.num_rows = 0; }).ok());
  EXPECT_EQ(refusal([](Args& a) { a.num_rows = 17; }).code(), StatusCode::kUnsupported);
  EXPECT_EQ(refusal([](Args& a) { a.k = 60; }).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) { a.k = 0; }).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) { a.num_outputs = 0; }).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) { a.x = nullptr; }).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) { a.x += 1; }).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) { a.x_stride = 65; }).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) { a.weight += 4; }).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) {
              a.num_rows = 2;
              a.x_stride = 56;
            }).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) {
              a.num_rows = 2;
              a.y_stride = 15;
            }).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) {
              a.y_f32 = reinterpret_cast<float*>(std::uintptr_t{4096});
              a.hidden = a.norm_weight = a.y_f32;
              a.epilogue = Epilogue::kAddF32;
            }).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) {
              a.epilogue = Epilogue::kSiluGate;
              a.num_outputs = 17;
            }).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(refusal([](Args& a) { a.epilogue = Epilogue::kAddF32; }).code(),
            StatusCode::kInvalidArgument);
  const Status norm = refusal([](Args& a) {
    a.hidden = reinterpret_cast<const float*>(std::uintptr_t{4096});
    a.hidden_stride = 64;
    a.norm_weight = a.hidden;
    a.num_rows = 3;
  });
  EXPECT_EQ(norm.code(), StatusCode::kUnsupported);
  EXPECT_NE(norm.message().find("rms_norm first"), std::string::npos) << norm.message();
}

}  // namespace
}  // namespace chunkllm::kernels
