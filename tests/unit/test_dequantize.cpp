// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/io/dequantize.hpp"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "support/dequantize_golden.hpp"

namespace chunkllm {
namespace {

void expect_block(DType dtype, std::span<const std::uint8_t> block,
                  std::span<const std::uint32_t> expected) {
  // A second row at an odd address: the bytes of a file are not aligned.
  std::vector<std::byte> storage(1 + 2 * block.size());
  std::memcpy(storage.data() + 1 + block.size(), block.data(), block.size());
  const TensorBytes tensor{dtype, std::span<const std::byte>(storage).subspan(1), 2,
                           static_cast<std::int64_t>(expected.size())};
  std::vector<float> values(expected.size());
  ASSERT_TRUE(dequantize_row(tensor, 1, values).ok());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(values[i]), expected[i])
        << dtype_traits(dtype).name << " value " << i;
  }
  ASSERT_TRUE(dequantize_row(tensor, 0, values).ok());
  for (const float value : values) EXPECT_EQ(value, 0.0F);
}

TEST(DequantizeRow, EqualsTheReferenceBitForBit) {
  using namespace testing;
  expect_block(DType::kQ8_0, kQ80Block, kQ80Values);
  expect_block(DType::kQ4_0, kQ40Block, kQ40Values);
  expect_block(DType::kQ4_1, kQ41Block, kQ41Values);
  expect_block(DType::kQ4_K, kQ4KBlock, kQ4KValues);
  expect_block(DType::kQ6_K, kQ6KBlock, kQ6KValues);
}

TEST(DequantizeRow, PlainTypes) {
  const std::array<float, 2> singles = {1.5F, -0.0F};
  const std::array<std::uint16_t, 2> halves = {0x3e00, 0xc000};  // 1.5, -2
  const std::array<std::uint16_t, 2> brains = {0x3fc0, 0xc000};  // 1.5, -2
  std::array<float, 2> out = {};
  ASSERT_TRUE(dequantize_row({DType::kF32, std::as_bytes(std::span(singles)), 1, 2}, 0, out).ok());
  EXPECT_EQ(out[0], 1.5F);
  EXPECT_TRUE(std::signbit(out[1]));
  ASSERT_TRUE(dequantize_row({DType::kF16, std::as_bytes(std::span(halves)), 1, 2}, 0, out).ok());
  EXPECT_EQ(out, (std::array<float, 2>{1.5F, -2.0F}));
  ASSERT_TRUE(dequantize_row({DType::kBF16, std::as_bytes(std::span(brains)), 1, 2}, 0, out).ok());
  EXPECT_EQ(out, (std::array<float, 2>{1.5F, -2.0F}));
}

TEST(DequantizeRow, RefusesWhatDoesNotFit) {
  const std::vector<std::byte> bytes(2 * 34);
  std::vector<float> out(32);
  const TensorBytes good{DType::kQ8_0, bytes, 2, 32};
  EXPECT_EQ(dequantize_row(good, 2, out).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(dequantize_row(good, -1, out).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(dequantize_row(good, 0, std::span(out).first(31)).code(), StatusCode::kInvalidArgument);
  const auto code = [&](TensorBytes tensor) { return dequantize_row(tensor, 0, out).code(); };
  EXPECT_EQ(code({DType::kQ8_0, bytes, 3, 32}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({DType::kQ4_K, bytes, 1, 32}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({DType::kQ8_0, bytes, std::numeric_limits<std::int64_t>::max(), 32}),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code({DType::kQ8_0, bytes, 1, -32}), StatusCode::kInvalidArgument);
}

using Quantizer = Status (*)(std::span<const float>, std::span<std::byte>);
struct QuantizeCase {
  DType dtype;
  Quantizer quantize;
  double max_error;  ///< in steps (quantisation scales)
};
// Q8_0 and Q4_1 round to nearest: half a step. Q4_0 cuts +8 steps to +7: one step. The scale's own
// rounding to f16 (2^-11) moves a value of q steps by q / 2048 of a step more.
const QuantizeCase kQuantizeCases[] = {
    {DType::kQ8_0, quantize_row_q8_0, 0.5 + 127.0 / 2048},
    {DType::kQ4_0, quantize_row_q4_0, 1.0 + 8.0 / 2048},
    // The offset is an f16 too; |offset| is below 16 steps in this test's data.
    {DType::kQ4_1, quantize_row_q4_1, 0.5 + 32.0 / 2048},
};

TEST(QuantizeRow, EqualsTheReferenceBitForBit) {
  using namespace testing;
  std::vector<float> input;
  for (const std::uint32_t bits : kQuantizeInput) input.push_back(std::bit_cast<float>(bits));
  const auto expect = [&](Quantizer quantize, std::span<const std::uint8_t> expected) {
    std::vector<std::byte> block(expected.size());
    ASSERT_TRUE(quantize(input, block).ok());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(std::to_integer<int>(block[i]), expected[i]) << i;
    }
  };
  expect(quantize_row_q8_0, kQuantizedQ80);
  expect(quantize_row_q4_0, kQuantizedQ40);
  expect(quantize_row_q4_1, kQuantizedQ41);
}

TEST(QuantizeRow, ErrorIsWithinTheStep) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> uniform(-1.0F, 1.0F);
  for (const QuantizeCase& test : kQuantizeCases) {
    const DTypeTraits traits = dtype_traits(test.dtype);
    std::vector<float> input(32 * 50);
    for (float& value : input) value = uniform(random);
    std::vector<std::byte> bytes(50 * traits.block_bytes);
    ASSERT_TRUE(test.quantize(input, bytes).ok());
    std::vector<float> output(input.size());
    ASSERT_TRUE(dequantize_row({test.dtype, bytes, 1, 1600}, 0, output).ok());
    for (std::size_t i = 0; i < input.size(); ++i) {
      const double step =
          std::abs(static_cast<double>(detail::read_f16(&bytes[i / 32 * traits.block_bytes])));
      const double error = std::abs(static_cast<double>(input[i]) - static_cast<double>(output[i]));
      EXPECT_TRUE(error <= test.max_error * step * (1 + 1e-6)) << traits.name << " value " << i;
    }
  }
}

TEST(QuantizeRow, ConstantsAndBadInput) {
  for (const QuantizeCase& test : kQuantizeCases) {
    const DTypeTraits traits = dtype_traits(test.dtype);
    std::vector<std::byte> bytes(traits.block_bytes);
    std::vector<float> output(32);
    for (const float constant : {0.0F, -2.0F, 1e-42F}) {
      ASSERT_TRUE(test.quantize(std::vector<float>(32, constant), bytes).ok());
      ASSERT_TRUE(dequantize_row({test.dtype, bytes, 1, 32}, 0, output).ok());
      // -2 and 0 are multiples of every step here but Q8_0's 2/127 in f16.
      for (const float value : output) EXPECT_NEAR(value, constant, 2.0 / 2048);
    }
    std::vector<float> bad(32, 1.0F);
    for (const float value :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e5F}) {
      bad[31] = value;
      EXPECT_EQ(test.quantize(bad, bytes).code(), StatusCode::kInvalidArgument);
    }
    EXPECT_EQ(test.quantize(std::vector<float>(33), bytes).code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(test.quantize(std::vector<float>(64), bytes).code(), StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace chunkllm
