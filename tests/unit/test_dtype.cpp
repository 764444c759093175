// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/core/dtype.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

// test_dtype_portable.cpp runs the same tests over the code for targets without F16C.
#ifndef CHUNKLLM_DTYPE_SUITE
#define CHUNKLLM_DTYPE_SUITE DTypeConversion
#endif

namespace chunkllm {
namespace {

constexpr std::uint32_t kNumHalves = 65536;

F16 half(std::uint32_t bits) {
  return F16{static_cast<std::uint16_t>(bits)};
}
BF16 brain(std::uint32_t bits) {
  return BF16{static_cast<std::uint16_t>(bits)};
}

/// Value of a sign-exponent-mantissa format by its definition.
double decode(std::uint32_t bits, int exponent_bits, int mantissa_bits) {
  const std::uint32_t mantissa = bits & ((1U << mantissa_bits) - 1U);
  const auto exponent = static_cast<int>((bits >> mantissa_bits) & ((1U << exponent_bits) - 1U));
  const double sign = (bits >> (exponent_bits + mantissa_bits)) != 0 ? -1.0 : 1.0;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  const double fraction = std::ldexp(static_cast<double>(mantissa), -mantissa_bits);
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                       : sign * std::ldexp(1.0 + fraction, exponent - bias);
}

/// Nearest value of a 16-bit format, ties to even, by search over its non-negative values.
std::uint32_t nearest(double value, int exponent_bits, int mantissa_bits) {
  const std::uint32_t sign = std::signbit(value) ? 0x8000U : 0U;
  const double magnitude = std::abs(value);
  const std::uint32_t infinity = ((1U << exponent_bits) - 1U) << mantissa_bits;
  std::uint32_t low = 0;  // the largest code that is at most `magnitude`
  std::uint32_t high = infinity;
  while (high - low > 1) {
    const std::uint32_t middle = (low + high) / 2;
    (decode(middle, exponent_bits, mantissa_bits) <= magnitude ? low : high) = middle;
  }
  const double below = decode(low, exponent_bits, mantissa_bits);
  // Rounding acts as if the exponent had no upper end.
  const double above = high == infinity
                           ? below + (below - decode(low - 1, exponent_bits, mantissa_bits))
                           : decode(high, exponent_bits, mantissa_bits);
  const double middle = (below + above) / 2.0;
  if (magnitude > middle || (magnitude == middle && low % 2 == 1)) return sign | high;
  return sign | low;
}

/// Values at, just below and just above every representable value and every tie, and random ones.
std::vector<float> interesting_floats(int exponent_bits, int mantissa_bits) {
  std::vector<float> values;
  const std::uint32_t infinity = ((1U << exponent_bits) - 1U) << mantissa_bits;
  for (std::uint32_t code = 0; code < infinity; ++code) {
    const double value = decode(code, exponent_bits, mantissa_bits);
    const double next = code + 1 < infinity
                            ? decode(code + 1, exponent_bits, mantissa_bits)
                            : 2.0 * value - decode(code - 1, exponent_bits, mantissa_bits);
    for (const double exact : {value, (value + next) / 2.0}) {
      const auto x = static_cast<float>(exact);
      if (std::isinf(x)) continue;
      for (const float near :
           {x, std::nextafter(x, 0.0F), std::nextafter(x, std::numeric_limits<float>::max())}) {
        values.push_back(near);
        values.push_back(-near);
      }
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (!std::isnan(x)) values.push_back(x);
  }
  return values;
}

TEST(CHUNKLLM_DTYPE_SUITE, EveryF16HasItsDefinedValueAndComesBack) {
  for (std::uint32_t bits = 0; bits < kNumHalves; ++bits) {
    const float value = to_f32(half(bits));
    const double expected = decode(bits, 5, 10);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      // A signalling NaN comes back quiet, everything else of it is kept.
      ASSERT_EQ(to_f16(value).bits, bits | 0x0200U) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(value), expected) << bits;
      ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
      ASSERT_EQ(to_f16(value).bits, bits) << bits;
    }
  }
}

TEST(CHUNKLLM_DTYPE_SUITE, EveryBf16HasItsDefinedValueAndComesBack) {
  for (std::uint32_t bits = 0; bits < kNumHalves; ++bits) {
    const float value = to_f32(brain(bits));
    const double expected = decode(bits, 8, 7);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_EQ(to_bf16(value).bits, bits | 0x0040U) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(value), expected) << bits;
      ASSERT_EQ(to_bf16(value).bits, bits) << bits;
    }
  }
}

TEST(CHUNKLLM_DTYPE_SUITE, F32RoundsToTheNearestF16TiesToEven) {
  for (const float value : interesting_floats(5, 10)) {
    ASSERT_EQ(to_f16(value).bits, nearest(static_cast<double>(value), 5, 10)) << value;
  }
}

TEST(CHUNKLLM_DTYPE_SUITE, F32RoundsToTheNearestBf16TiesToEven) {
  for (const float value : interesting_floats(8, 7)) {
    ASSERT_EQ(to_bf16(value).bits, nearest(static_cast<double>(value), 8, 7)) << value;
  }
}

TEST(CHUNKLLM_DTYPE_SUITE, InfinityAndNaN) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(to_f16(infinity).bits, 0x7c00);
  EXPECT_EQ(to_f16(-infinity).bits, 0xfc00);
  EXPECT_EQ(to_bf16(infinity).bits, 0x7f80);
  // A payload in the low bits only must not turn into infinity.
  const auto nan = std::bit_cast<float>(0x7f800001U);
  EXPECT_TRUE(std::isnan(to_f32(to_f16(nan))));
  EXPECT_TRUE(std::isnan(to_f32(to_bf16(nan))));
}

TEST(CHUNKLLM_DTYPE_SUITE, FromF32) {
  EXPECT_EQ(from_f32<float>(1.5F), 1.5F);
  EXPECT_EQ(from_f32<F16>(1.5F).bits, to_f16(1.5F).bits);
  EXPECT_EQ(from_f32<BF16>(1.5F).bits, to_bf16(1.5F).bits);
}

TEST(CHUNKLLM_DTYPE_SUITE, BlockSizesAreThoseOfGguf) {
  EXPECT_EQ(dtype_traits(DType::kF32).block_bytes, 4U);
  EXPECT_EQ(dtype_traits(DType::kF16).block_bytes, 2U);
  EXPECT_EQ(dtype_traits(DType::kBF16).block_bytes, 2U);
  EXPECT_EQ(dtype_traits(DType::kQ8_0).block_bytes, 34U);
  EXPECT_EQ(dtype_traits(DType::kQ4_0).block_bytes, 18U);
  EXPECT_EQ(dtype_traits(DType::kQ4_1).block_bytes, 20U);
  EXPECT_EQ(dtype_traits(DType::kQ4_K).block_bytes, 144U);
  EXPECT_EQ(dtype_traits(DType::kQ6_K).block_bytes, 210U);
  EXPECT_EQ(dtype_traits(DType::kQ4_1).block_size, 32U);
  EXPECT_EQ(dtype_traits(DType::kQ6_K).block_size, 256U);
  EXPECT_EQ(dtype_traits(DType::kF32).block_size, 1U);
}

}  // namespace
}  // namespace chunkllm
