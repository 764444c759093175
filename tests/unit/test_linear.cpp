// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/model/linear.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/thread_pool.hpp"
#include "support/random_tensor.hpp"
#include "support/random_values.hpp"

namespace chunkllm {
namespace {

using testing::kAllDTypes;
using testing::random_values;
using testing::RandomTensor;

constexpr std::int64_t kIn = 512;

/// Three tensors stacked, 33 + 5 + 64 outputs, the middle one with a bias.
struct Stack {
  explicit Stack(DType dtype)
      : tensors{RandomTensor(dtype, 33, kIn, 1), RandomTensor(dtype, 5, kIn, 2),
                RandomTensor(dtype, 64, kIn, 3)},
        bias(random_values(5, 4)) {
    ThreadPool pool(1);
    const std::array<LinearPart, 3> parts = {LinearPart{tensors[0].view(), {}, {}},
                                             LinearPart{tensors[1].view(), {}, bias},
                                             LinearPart{tensors[2].view(), {}, {}}};
    Result<Linear> created = Linear::create(parts, WeightFormat::kKeep, pool);
    EXPECT_TRUE(created.ok()) << created.status().message();
    linear = std::move(created).value();
  }

  /// Exact output and the sum of magnitudes that bounds its rounding errors.
  template <typename X>
  [[nodiscard]] std::pair<double, double> exact(const X* x, std::int64_t output) const {
    const std::size_t part = output < 33 ? 0 : output < 38 ? 1 : 2;
    const std::int64_t row = output - (part == 0 ? 0 : part == 1 ? 33 : 38);
    double sum = part == 1 ? static_cast<double>(bias[static_cast<std::size_t>(row)]) : 0.0;
    double magnitude = std::abs(sum);
    for (std::int64_t i = 0; i < kIn; ++i) {
      const double product = static_cast<double>(x[i]) * tensors[part].at(row, i);
      sum += product;
      magnitude += std::abs(product);
    }
    return {sum, magnitude};
  }

  std::vector<RandomTensor> tensors;
  std::vector<float> bias;
  Linear linear;
};

constexpr std::int64_t kOut = 102;

std::vector<float> apply(const Linear& linear, MatrixView<const float> x, int num_threads) {
  ThreadPool pool(num_threads);
  std::vector<float> y(static_cast<std::size_t>(x.rows * linear.out_features()),
                       std::numeric_limits<float>::quiet_NaN());
  linear.apply(x, {y.data(), x.rows, linear.out_features()}, pool);
  return y;
}

class LinearOf : public ::testing::TestWithParam<DType> {};

/// x as the product sees it: itself, or rounded to 8 bits in blocks of 32 where weights are.
std::vector<double> seen(DType dtype, const float* x) {
  std::vector<double> values(x, x + kIn);
  if (dtype_traits(dtype).block_size == 1) return values;
  QuantizedRows quantized(1, kIn);
  quantized.set_row(0, x);
  for (std::int64_t i = 0; i < kIn; ++i) {
    values[static_cast<std::size_t>(i)] = static_cast<double>(quantized.blocks(0)[i / 32].scale) *
                                          static_cast<double>(quantized.codes(0)[i]);
  }
  return values;
}

TEST_P(LinearOf, EqualsTheExactProductWithinRounding) {
  const Stack stack(GetParam());
  ASSERT_EQ(stack.linear.in_features(), kIn);
  ASSERT_EQ(stack.linear.out_features(), kOut);
  // 37 rows: full tiles of rows and every smaller one.
  const std::vector<float> x = random_values(37 * kIn, 5);
  const std::vector<float> y = apply(stack.linear, {x.data(), 37, kIn}, 2);
  for (std::int64_t r = 0; r < 37; ++r) {
    const std::vector<double> input = seen(GetParam(), x.data() + r * kIn);
    for (std::int64_t o = 0; o < kOut; ++o) {
      const auto [exact, magnitude] = stack.exact(input.data(), o);
      // In f32 one rounding of the weight and two an addition over kIn products; in blocks three
      // of scales and sums and two an addition over kIn / 32, but of terms in which minimum and
      // codes need not have cancelled yet: 15 times the weights' span. The bias in both.
      const double bound = magnitude * (2.0 * kIn + 2.0) * 0x1p-24;
      const auto value = static_cast<double>(y[static_cast<std::size_t>(r * kOut + o)]);
      ASSERT_TRUE(std::abs(value - exact) <= bound) << value << " instead of " << exact;
    }
  }
}

TEST(QuantizedRows, CodesAreWithinHalfAStepAndSumsAreTheirs) {
  const std::vector<float> x = random_values(3 * kIn, 20);
  QuantizedRows rows(3, kIn);
  for (std::int64_t r = 0; r < 3; ++r) rows.set_row(r, x.data() + r * kIn);
  for (std::int64_t r = 0; r < 3; ++r) {
    for (std::int64_t b = 0; b < kIn / 32; ++b) {
      const ActivationBlock& block = rows.blocks(r)[b];
      double largest = 0.0;
      std::int32_t sums[2] = {0, 0};
      for (std::int64_t k = 0; k < 32; ++k) {
        const double value = static_cast<double>(x[static_cast<std::size_t>(r * kIn + b * 32 + k)]);
        const int code = rows.codes(r)[b * 32 + k];
        largest = std::max(largest, std::abs(value));
        sums[k / 16] += code;
        const auto scale = static_cast<double>(block.scale);
        // Half a step, and a few roundings of scale, inverse and product on values up to 127 steps.
        ASSERT_TRUE(std::abs(value - scale * code) <= scale * (0.5 + 127.0 * 4.0 * 0x1p-24));
        ASSERT_TRUE(code >= -127 && code <= 127);
      }
      EXPECT_NEAR(static_cast<double>(block.scale), largest / 127.0, largest * 0x1p-24);
      EXPECT_EQ(block.minus_128_sums[0], -128 * sums[0]);
      EXPECT_EQ(block.minus_128_sums[1], -128 * sums[1]);
      EXPECT_EQ(block.scaled_sum, block.scale * static_cast<float>(sums[0] + sums[1]));
    }
  }
}

TEST(QuantizedRows, ZerosAndTiniestValuesAreZeroAndNaNAndInfinityAreNaN) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad :
       {0.0F, std::numeric_limits<float>::denorm_min(), kNaN, kInfinity, -kInfinity}) {
    std::vector<float> x(64, 1.0F);
    std::fill_n(x.begin(), 32, 0.0F);
    x[7] = bad;
    QuantizedRows rows(1, 64);
    rows.set_row(0, x.data());
    for (std::int64_t k = 0; k < 32; ++k) EXPECT_EQ(rows.codes(0)[k], 0);
    const bool finite = std::isfinite(bad);
    EXPECT_EQ(std::isnan(rows.blocks(0)[0].scale), !finite);
    EXPECT_EQ(std::isnan(rows.blocks(0)[0].scaled_sum), !finite);
    if (finite) {
      EXPECT_EQ(rows.blocks(0)[0].scale, 0.0F);
    }
    EXPECT_EQ(rows.blocks(0)[1].scale, 1.0F / 127.0F);
    EXPECT_EQ(rows.codes(0)[40], 127);
  }
}

TEST(QuantizedRows, LargestFiniteValuesStayFinite) {
  std::vector<float> x(32, std::numeric_limits<float>::max());
  x[3] = -x[3];
  QuantizedRows rows(1, 32);
  rows.set_row(0, x.data());
  EXPECT_EQ(rows.codes(0)[0], 127);
  EXPECT_EQ(rows.codes(0)[3], -127);
  EXPECT_TRUE(std::isfinite(rows.blocks(0)[0].scale));
}

TEST_P(LinearOf, ARowDependsOnItselfAlone) {
  const Stack stack(GetParam());
  const std::vector<float> x = random_values(40 * kIn, 6);
  std::vector<float> single;
  for (std::int64_t r = 0; r < 40; ++r) {
    const std::vector<float> row = apply(stack.linear, {x.data() + r * kIn, 1, kIn}, 1);
    single.insert(single.end(), row.begin(), row.end());
  }
  for (int num_threads = 1; num_threads <= 3; ++num_threads) {
    for (std::int64_t rows = 1; rows <= 40; ++rows) {
      const std::vector<float> y = apply(stack.linear, {x.data(), rows, kIn}, num_threads);
      ASSERT_EQ(y, std::vector<float>(single.begin(), single.begin() + rows * kOut))
          << rows << " rows, " << num_threads << " threads";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllTypes, LinearOf, ::testing::ValuesIn(kAllDTypes),
                         [](const auto& instance) {
                           return std::string(dtype_traits(instance.param).name);
                         });

TEST(Linear, SlicesOfLargerBuffersGiveTheSameAndNothingElseIsWritten) {
  const Stack stack(DType::kQ4_1);
  ThreadPool pool(2);
  const std::vector<float> x = random_values(7 * (kIn + 3), 7);
  const MatrixView<const float> slice(x.data() + 1, 7, kIn, kIn + 3);
  std::vector<float> dense;
  for (std::int64_t r = 0; r < 7; ++r) dense.insert(dense.end(), slice.row(r), slice.row(r) + kIn);
  const std::vector<float> expected = apply(stack.linear, {dense.data(), 7, kIn}, 1);

  constexpr float kUntouched = 1234.5F;
  std::vector<float> y(7 * (kOut + 5) + 2, kUntouched);
  stack.linear.apply(slice, {y.data() + 2, 7, kOut, kOut + 5}, pool);
  std::size_t num_untouched = 0;
  for (const float value : y) num_untouched += value == kUntouched ? 1 : 0;
  EXPECT_EQ(num_untouched, 7U * 5U + 2U);
  for (std::int64_t r = 0; r < 7; ++r) {
    for (std::int64_t o = 0; o < kOut; ++o) {
      ASSERT_EQ(y[static_cast<std::size_t>(2 + r * (kOut + 5) + o)],
                expected[static_cast<std::size_t>(r * kOut + o)]);
    }
  }
}

TEST(Linear, PartsMayGoToPlacesOfTheirOwn) {
  const Stack stack(DType::kQ8_0);
  ThreadPool pool(2);
  const std::vector<float> x = random_values(6 * kIn, 8);
  const std::vector<float> expected = apply(stack.linear, {x.data(), 6, kIn}, 1);
  std::vector<float> a(6 * 33);
  std::vector<float> b(6 * 9);  // in the columns 2..6 of a wider buffer
  std::vector<float> c(6 * 64);
  const std::array<MatrixView<float>, 3> outputs = {MatrixView<float>(a.data(), 6, 33),
                                                    MatrixView<float>(b.data() + 2, 6, 5, 9),
                                                    MatrixView<float>(c.data(), 6, 64)};
  stack.linear.apply({x.data(), 6, kIn}, outputs, pool);
  for (std::int64_t r = 0; r < 6; ++r) {
    std::vector<float> row(a.begin() + r * 33, a.begin() + (r + 1) * 33);
    row.insert(row.end(), b.begin() + r * 9 + 2, b.begin() + r * 9 + 7);
    row.insert(row.end(), c.begin() + r * 64, c.begin() + (r + 1) * 64);
    ASSERT_EQ(row,
              std::vector<float>(expected.begin() + r * kOut, expected.begin() + (r + 1) * kOut));
  }
}

TEST(Linear, ManyRowsGoThroughInPasses) {
  ThreadPool pool(2);
  const RandomTensor tensor(DType::kBF16, 40, 32, 9);
  const std::array<LinearPart, 1> parts = {LinearPart{tensor.view(), {}, {}}};
  const Result<Linear> linear = Linear::create(parts, WeightFormat::kKeep, pool);
  ASSERT_TRUE(linear.ok());
  const std::vector<float> x = random_values(1100 * 32, 10);
  const std::vector<float> y = apply(linear.value(), {x.data(), 1100, 32}, 2);
  for (const std::int64_t r : {0, 511, 512, 1023, 1024, 1099}) {
    const std::vector<float> row = apply(linear.value(), {x.data() + r * 32, 1, 32}, 1);
    ASSERT_EQ(row, std::vector<float>(y.begin() + r * 40, y.begin() + (r + 1) * 40)) << r;
  }
}

TEST(Linear, UnpackRowFindsItsPart) {
  const Stack stack(DType::kQ6_K);
  std::vector<float> row(kIn);
  for (const auto& [output, part, source] : {std::array<int, 3>{0, 0, 0},
                                             {32, 0, 32},
                                             {33, 1, 0},
                                             {37, 1, 4},
                                             {38, 2, 0},
                                             {101, 2, 63}}) {
    stack.linear.unpack_row(output, row.data());
    for (std::int64_t i = 0; i < kIn; ++i) {
      ASSERT_EQ(row[static_cast<std::size_t>(i)],
                static_cast<float>(stack.tensors[static_cast<std::size_t>(part)].at(source, i)));
    }
  }
}

TEST(Linear, WeightBytesAreTheSumOfTheParts) {
  ThreadPool pool(1);
  const RandomTensor tensor(DType::kQ4_0, 32, 64, 11);
  const std::array<LinearPart, 2> parts = {LinearPart{tensor.view(), {}, {}},
                                           LinearPart{tensor.view(), {}, {}}};
  const Result<Linear> linear = Linear::create(parts, WeightFormat::kKeep, pool);
  ASSERT_TRUE(linear.ok());
  EXPECT_EQ(linear->weight_bytes(), 2 * 32 * 64 / 32 * 18);
}

TEST(Linear, NoRowsWriteNothing) {
  const Stack stack(DType::kF32);
  EXPECT_TRUE(apply(stack.linear, {nullptr, 0, kIn}, 2).empty());
}

TEST(Linear, NaNOfAWeightReachesItsOutputOnly) {
  ThreadPool pool(1);
  std::vector<float> weights(3 * 4, 1.0F);
  weights[5] = std::numeric_limits<float>::quiet_NaN();
  const std::array<LinearPart, 1> parts = {
      LinearPart{{DType::kF32, std::as_bytes(std::span<const float>(weights)), 3, 4}, {}, {}}};
  const Result<Linear> linear = Linear::create(parts, WeightFormat::kKeep, pool);
  ASSERT_TRUE(linear.ok());
  const std::vector<float> x(4, 1.0F);
  const std::vector<float> y = apply(linear.value(), {x.data(), 1, 4}, 1);
  EXPECT_EQ(y[0], 4.0F);
  EXPECT_TRUE(std::isnan(y[1]));
  EXPECT_EQ(y[2], 4.0F);
}

TEST(Linear, NaNOfAnActivationReachesEveryOutputOfItsRowOnly) {
  const Stack stack(DType::kQ4_1);
  std::vector<float> x = random_values(3 * kIn, 14);
  x[kIn + 100] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> y = apply(stack.linear, {x.data(), 3, kIn}, 2);
  for (std::int64_t i = 0; i < 3 * kOut; ++i) {
    EXPECT_EQ(std::isnan(y[static_cast<std::size_t>(i)]), i / kOut == 1) << i;
  }
}

TEST(Linear, DisagreeingShapesAreRefused) {
  ThreadPool pool(1);
  const RandomTensor wide(DType::kF32, 2, 8, 12);
  const RandomTensor narrow(DType::kF32, 2, 6, 13);
  const std::vector<float> bias(3);
  const std::array<LinearPart, 2> widths = {LinearPart{wide.view(), {}, {}},
                                            LinearPart{narrow.view(), {}, {}}};
  EXPECT_EQ(Linear::create(widths, WeightFormat::kKeep, pool).status().code(),
            StatusCode::kInvalidFile);
  const std::array<LinearPart, 1> biased = {LinearPart{wide.view(), {}, bias}};
  EXPECT_EQ(Linear::create(biased, WeightFormat::kKeep, pool).status().code(),
            StatusCode::kInvalidFile);
}

}  // namespace
}  // namespace chunkllm
