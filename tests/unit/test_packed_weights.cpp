// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/model/packed_weights.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/core/thread_pool.hpp"
#include "support/random_tensor.hpp"

namespace chunkllm {
namespace {

using testing::kAllDTypes;
using testing::RandomTensor;

constexpr std::int64_t kRows = 70;  // two whole panels and a narrow one
constexpr std::int64_t kCols = 512;

/// The matrix, row by row.
std::vector<float> unpack(const PackedWeights& packed) {
  std::vector<float> values(static_cast<std::size_t>(packed.rows() * packed.cols()));
  for (std::int64_t r = 0; r < packed.rows(); ++r) {
    packed.unpack_row(r, values.data() + r * packed.cols());
  }
  return values;
}

PackedWeights pack(const TensorBytes& tensor, WeightFormat format) {
  ThreadPool pool(2);
  Result<PackedWeights> packed = PackedWeights::pack(tensor, {}, format, pool);
  EXPECT_TRUE(packed.ok()) << packed.status().message();
  return std::move(packed).value();
}

class PackedWeightsOf : public ::testing::TestWithParam<DType> {};

TEST_P(PackedWeightsOf, KeepAndF32ReproduceTheFileExactly) {
  const RandomTensor tensor(GetParam(), kRows, kCols, 1);
  for (const WeightFormat format : {WeightFormat::kKeep, WeightFormat::kF32}) {
    const std::vector<float> values = unpack(pack(tensor.view(), format));
    for (std::int64_t r = 0; r < kRows; ++r) {
      for (std::int64_t c = 0; c < kCols; ++c) {
        // The exact value fits a double in every format, so there is one rounding on both sides.
        ASSERT_EQ(values[static_cast<std::size_t>(r * kCols + c)],
                  static_cast<float>(tensor.at(r, c)))
            << r << ", " << c;
      }
    }
  }
}

TEST_P(PackedWeightsOf, Bf16RoundsToNearest) {
  const RandomTensor tensor(GetParam(), kRows, kCols, 2);
  const std::vector<float> values = unpack(pack(tensor.view(), WeightFormat::kBF16));
  for (std::int64_t r = 0; r < kRows; ++r) {
    for (std::int64_t c = 0; c < kCols; ++c) {
      const double exact = tensor.at(r, c);
      int exponent = 0;
      std::frexp(exact, &exponent);
      const double ulp = std::ldexp(1.0, exponent - 8);
      const auto value = static_cast<double>(values[static_cast<std::size_t>(r * kCols + c)]);
      ASSERT_EQ(value, std::nearbyint(value / ulp) * ulp) << "not a bf16 number";
      // Half a unit, and what the rounding to f32 before may add.
      ASSERT_TRUE(std::abs(value - exact) <= ulp * (0.5 + 0x1p-15)) << exact;
    }
  }
}

TEST_P(PackedWeightsOf, Int8IsWithinHalfAStepAndKeepsQ8) {
  const RandomTensor tensor(GetParam(), kRows, kCols, 3);
  const std::vector<float> values = unpack(pack(tensor.view(), WeightFormat::kInt8));
  for (std::int64_t r = 0; r < kRows; ++r) {
    for (std::int64_t block = 0; block < kCols; block += 32) {
      double largest = 0.0;
      for (std::int64_t c = block; c < block + 32; ++c) {
        largest = std::max(largest, std::abs(tensor.at(r, c)));
      }
      // A step is largest / 127, rounded to f16; where that is subnormal, 127 steps may fall short
      // by 127 times half the smallest f16.
      const double half_step = GetParam() == DType::kQ8_0
                                   ? 0.0
                                   : 0.5 * largest / 127.0 * (1.0 + 0x1p-10) + 127.0 * 0x1p-25;
      for (std::int64_t c = block; c < block + 32; ++c) {
        const auto value = static_cast<double>(values[static_cast<std::size_t>(r * kCols + c)]);
        ASSERT_TRUE(std::abs(value - tensor.at(r, c)) <= half_step) << r << ", " << c;
      }
    }
  }
}

TEST_P(PackedWeightsOf, RowOrderPermutesRows) {
  const RandomTensor tensor(GetParam(), kRows, kCols, 5);
  std::vector<std::int64_t> order;
  for (std::int64_t r = 0; r < kRows; ++r) order.push_back((r * 9 + 4) % kRows);
  ThreadPool pool(1);
  const Result<PackedWeights> packed =
      PackedWeights::pack(tensor.view(), order, WeightFormat::kKeep, pool);
  ASSERT_TRUE(packed.ok());
  std::vector<float> row(kCols);
  for (std::int64_t r = 0; r < kRows; ++r) {
    packed->unpack_row(r, row.data());
    for (std::int64_t c = 0; c < kCols; ++c) {
      ASSERT_EQ(row[static_cast<std::size_t>(c)],
                static_cast<float>(tensor.at(order[static_cast<std::size_t>(r)], c)));
    }
  }
}

TEST_P(PackedWeightsOf, MisalignedBytesAreRead) {
  const RandomTensor tensor(GetParam(), 3, 256, 6);
  std::vector<std::byte> moved(tensor.view().bytes.size() + 1);
  std::copy(tensor.view().bytes.begin(), tensor.view().bytes.end(), moved.begin() + 1);
  TensorBytes view = tensor.view();
  view.bytes = std::span<const std::byte>(moved).subspan(1);
  EXPECT_EQ(unpack(pack(view, WeightFormat::kKeep)),
            unpack(pack(tensor.view(), WeightFormat::kKeep)));
}

TEST_P(PackedWeightsOf, ShortDataAndBrokenBlocksAreRefused) {
  ThreadPool pool(1);
  const RandomTensor tensor(GetParam(), 4, 256, 7);
  TensorBytes view = tensor.view();
  view.bytes = view.bytes.first(view.bytes.size() - 1);
  const auto code_of = [&](const TensorBytes& bytes) {
    return PackedWeights::pack(bytes, {}, WeightFormat::kKeep, pool).status().code();
  };
  EXPECT_EQ(code_of(view), StatusCode::kInvalidFile);
  view = tensor.view();
  view.rows = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(code_of(view), StatusCode::kInvalidFile);
  view.rows = 0;
  EXPECT_EQ(code_of(view), StatusCode::kInvalidFile);
  if (dtype_traits(GetParam()).block_size > 1) {
    view = tensor.view();
    view.cols = 255;
    EXPECT_EQ(code_of(view), StatusCode::kInvalidFile);
  }
}

TEST_P(PackedWeightsOf, TypesOfFourToEightBitsGoToBlocks) {
  const RandomTensor tensor(GetParam(), kRows, kCols, 4);
  const bool quantized = dtype_traits(GetParam()).block_size > 1;
  for (const WeightFormat format :
       {WeightFormat::kKeep, WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8}) {
    const PackedWeights packed = pack(tensor.view(), format);
    const bool in_blocks =
        format == WeightFormat::kInt8 || (format == WeightFormat::kKeep && quantized);
    EXPECT_EQ(packed.maybe_blocks() != nullptr, in_blocks);
    EXPECT_EQ(packed.maybe_panels() == nullptr, in_blocks);
    EXPECT_EQ(packed.rows(), kRows);
    EXPECT_EQ(packed.cols(), kCols);
  }
}

INSTANTIATE_TEST_SUITE_P(AllTypes, PackedWeightsOf, ::testing::ValuesIn(kAllDTypes),
                         [](const auto& instance) {
                           return std::string(dtype_traits(instance.param).name);
                         });

TEST(PackedWeights, BytesAreThoseOfTheFileForWholePanels) {
  const auto bytes_of = [](DType dtype) {
    return pack(RandomTensor(dtype, 64, 512, 8).view(), WeightFormat::kKeep).bytes();
  };
  EXPECT_EQ(bytes_of(DType::kF32), 64 * 512 * 4);
  EXPECT_EQ(bytes_of(DType::kBF16), 64 * 512 * 2);
  EXPECT_EQ(bytes_of(DType::kQ8_0), 64 * 512 / 32 * 34);
  EXPECT_EQ(bytes_of(DType::kQ4_0), 64 * 512 / 32 * 18);
  EXPECT_EQ(bytes_of(DType::kQ4_1), 64 * 512 / 32 * 20);
}

TEST_P(PackedWeightsOf, BytesAreKnownBeforehand) {
  const RandomTensor tensor(GetParam(), kRows, kCols, 4);
  for (const WeightFormat format :
       {WeightFormat::kKeep, WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kInt8}) {
    EXPECT_EQ(PackedWeights::bytes_of(GetParam(), kRows, kCols, format),
              pack(tensor.view(), format).bytes());
  }
}

TEST(PackedWeights, RowOrderIsChecked) {
  ThreadPool pool(1);
  const RandomTensor tensor(DType::kF32, 2, 3, 9);
  const auto code_of = [&](const std::vector<std::int64_t>& order) {
    return PackedWeights::pack(tensor.view(), order, WeightFormat::kKeep, pool).status().code();
  };
  EXPECT_EQ(code_of({1, 0}), StatusCode::kOk);
  EXPECT_EQ(code_of({0}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of({0, 1, 0}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of({0, 2}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of({-1, 0}), StatusCode::kInvalidArgument);
}

TEST(PackedWeights, Int8NeedsWholeBlocks) {
  ThreadPool pool(1);
  const RandomTensor tensor(DType::kF32, 2, 40, 10);
  const Status status = PackedWeights::pack(tensor.view(), {}, WeightFormat::kInt8, pool).status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("40"), std::string::npos) << status.message();
}

TEST(PackedWeights, Int8TurnsABlockWithNaNIntoNaN) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e38F}) {
    std::vector<float> values(64, 1.0F);
    values[5] = bad;
    values[6] = 2.0F;
    const std::vector<float> packed = unpack(pack(
        {DType::kF32, std::as_bytes(std::span<const float>(values)), 1, 64}, WeightFormat::kInt8));
    for (std::size_t i = 0; i < 32; ++i) EXPECT_TRUE(std::isnan(packed[i])) << i;
    for (std::size_t i = 32; i < 64; ++i) EXPECT_EQ(packed[i], packed[32]);
    EXPECT_NEAR(packed[32], 1.0F, 0.01F);
  }
}

TEST(PackedWeights, Int8OfZerosIsZero) {
  const std::vector<float> zeros(64, 0.0F);
  EXPECT_EQ(unpack(pack({DType::kF32, std::as_bytes(std::span<const float>(zeros)), 2, 32},
                        WeightFormat::kInt8)),
            zeros);
}

}  // namespace
}  // namespace chunkllm
