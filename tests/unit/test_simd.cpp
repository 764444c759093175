// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/core/simd.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/random_values.hpp"

// test_simd_avx2.cpp and test_simd_portable.cpp run the same tests over the other targets' code.
#ifndef CHUNKLLM_SIMD_SUITE
#define CHUNKLLM_SIMD_SUITE Simd
#endif

namespace chunkllm::simd {
namespace {

using testing::random_values;
using Lanes = std::array<float, kLanes>;

Lanes lanes(F32x16 a) {
  Lanes out;
  store(out.data(), a);
  return out;
}

TEST(CHUNKLLM_SIMD_SUITE, ArithmeticWorksLaneByLane) {
  ::testing::Test::RecordProperty("target", kTargetName);
  const std::vector<float> x = random_values(48, 1);
  const F32x16 a = load(x.data());
  const F32x16 b = load(x.data() + 16);
  const F32x16 c = load(x.data() + 32);
  for (std::size_t i = 0; i < 16; ++i) {
    const float p = x[i];
    const float q = x[i + 16];
    const double r = static_cast<double>(x[i + 32]);
    EXPECT_EQ(lanes(a + b)[i], p + q);
    EXPECT_EQ(lanes(a - b)[i], p - q);
    EXPECT_EQ(lanes(a * b)[i], p * q);
    EXPECT_EQ(lanes(a / b)[i], p / q);
    EXPECT_EQ(lanes(max(a, b))[i], std::max(p, q));
    EXPECT_EQ(lanes(broadcast(p))[i], p);
    EXPECT_EQ(lanes(zero())[i], 0.0F);
    EXPECT_EQ(lanes(round(a * broadcast(8.0F)))[i], std::nearbyint(p * 8.0F));
    EXPECT_EQ(lanes(select_if_at_least(a, b, c, zero()))[i], p >= q ? x[i + 32] : 0.0F);
    const double product = static_cast<double>(p) * static_cast<double>(q);
    // One or two roundings: of the product and of the sum.
    const double bound = (std::abs(product) + std::abs(product + r)) * 0x1p-24;
    EXPECT_TRUE(std::abs(static_cast<double>(lanes(multiply_add(a, b, c))[i]) - (product + r)) <=
                bound);
  }
}

TEST(CHUNKLLM_SIMD_SUITE, RoundTakesTiesToEven) {
  Lanes ties;
  for (std::size_t i = 0; i < 16; ++i) ties[i] = static_cast<float>(i) - 7.5F;
  const Lanes rounded = lanes(round(load(ties.data())));
  for (std::size_t i = 0; i < 16; ++i) EXPECT_EQ(rounded[i], std::nearbyint(ties[i]));
}

TEST(CHUNKLLM_SIMD_SUITE, NarrowTypesAreWidenedExactly) {
  std::array<F16, 16> halves;
  std::array<BF16, 16> brains;
  std::array<std::int8_t, 16> bytes;
  std::array<std::uint8_t, 16> nibbles;
  for (int start = 0; start < 256; start += 16) {
    for (int i = 0; i < 16; ++i) {
      const auto at = static_cast<std::size_t>(i);
      halves[at].bits = static_cast<std::uint16_t>((start + i) * 0x7b);
      brains[at].bits = static_cast<std::uint16_t>((start + i) * 0x7e);
      bytes[at] = static_cast<std::int8_t>(start + i - 128);
      nibbles[at] = static_cast<std::uint8_t>(start + i);
    }
    F32x16 low;
    F32x16 high;
    load_nibbles(nibbles.data(), low, high);
    for (std::size_t i = 0; i < 16; ++i) {
      EXPECT_EQ(lanes(load(halves.data()))[i], to_f32(halves[i]));
      EXPECT_EQ(lanes(load(brains.data()))[i], to_f32(brains[i]));
      EXPECT_EQ(lanes(load(bytes.data()))[i], static_cast<float>(bytes[i]));
      EXPECT_EQ(lanes(low)[i], static_cast<float>(nibbles[i] & 15));
      EXPECT_EQ(lanes(high)[i], static_cast<float>(nibbles[i] >> 4));
    }
  }
}

TEST(CHUNKLLM_SIMD_SUITE, MaxAndSelectTakeTheSecondChoiceForNaN) {
  const F32x16 nan = broadcast(std::numeric_limits<float>::quiet_NaN());
  const F32x16 one = broadcast(1.0F);
  EXPECT_EQ(lanes(max(nan, one))[0], 1.0F);
  EXPECT_TRUE(std::isnan(lanes(max(one, nan))[0]));
  EXPECT_EQ(lanes(select_if_at_least(nan, one, zero(), one))[0], 1.0F);
  EXPECT_EQ(lanes(select_if_at_least(one, nan, zero(), one))[0], 1.0F);
  EXPECT_EQ(lanes(select_if_at_least(one, one, zero(), one))[0], 0.0F);
}

TEST(CHUNKLLM_SIMD_SUITE, PowersOfTwo) {
  for (int n = -126; n <= 127; ++n) {
    EXPECT_EQ(lanes(power_of_two(broadcast(static_cast<float>(n))))[5], std::ldexp(1.0F, n));
  }
}

/// Distance of `value` from `exact` in units in the last place of the float nearest to `exact`.
double ulp_error(float value, double exact) {
  const auto nearest = static_cast<float>(exact);
  const double ulp =
      static_cast<double>(std::nextafter(nearest, std::numeric_limits<float>::infinity())) -
      static_cast<double>(nearest);
  return std::abs(static_cast<double>(value) - exact) / ulp;
}

TEST(CHUNKLLM_SIMD_SUITE, ExpIsWithinTwoUlp) {
  double worst = 0.0;
  for (float x = -86.999F; x <= 88.0F; x += 0x1p-9F * 1.37F) {
    worst =
        std::max(worst, ulp_error(lanes(exp(broadcast(x)))[0], std::exp(static_cast<double>(x))));
  }
  for (float x = 1e-30F; x < 80.0F; x *= 1.0009F) {
    for (const float signed_x : {x, -x}) {
      const float value = lanes(exp(broadcast(signed_x)))[3];
      worst = std::max(worst, ulp_error(value, std::exp(static_cast<double>(signed_x))));
    }
  }
  ::testing::Test::RecordProperty("largest_error_in_ulp", std::to_string(worst));
  EXPECT_TRUE(worst < 2.0) << worst;
}

TEST(CHUNKLLM_SIMD_SUITE, ExpAtTheEnds) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float x : {-infinity, -1e30F, -88.0F, -87.0F}) {
    EXPECT_EQ(lanes(exp(broadcast(x)))[0], 0.0F) << x;
  }
  EXPECT_EQ(lanes(exp(broadcast(0.0F)))[0], 1.0F);
  EXPECT_EQ(lanes(exp(broadcast(-0.0F)))[0], 1.0F);
  EXPECT_GT(lanes(exp(broadcast(std::nextafter(-87.0F, 0.0F))))[0], 0.0F);
  EXPECT_TRUE(std::isnan(lanes(exp(broadcast(std::numeric_limits<float>::quiet_NaN())))[0]));
  EXPECT_TRUE(std::isfinite(lanes(exp(broadcast(88.0F)))[0]));
}

TEST(CHUNKLLM_SIMD_SUITE, HorizontalSumAddsHalvesPairwise) {
  const std::vector<float> x = random_values(16, 2);
  std::vector<float> sums = x;
  for (std::size_t width = 8; width > 0; width /= 2) {
    for (std::size_t i = 0; i < width; ++i) sums[i] = sums[i] + sums[i + width];
  }
  EXPECT_EQ(horizontal_sum(load(x.data())), sums[0]);
}

TEST(CHUNKLLM_SIMD_SUITE, HorizontalMaxFindsTheMaximumInAnyLane) {
  for (std::size_t lane = 0; lane < 16; ++lane) {
    std::vector<float> x = random_values(16, 3);
    x[lane] = 100.0F;
    EXPECT_EQ(horizontal_max(load(x.data())), 100.0F);
  }
  EXPECT_EQ(horizontal_max(broadcast(-3.0F)), -3.0F);
}

TEST(CHUNKLLM_SIMD_SUITE, DotIsAccurateForEverySize) {
  for (std::int64_t size = 0; size <= 130; ++size) {
    const std::vector<float> a = random_values(size, 4);
    const std::vector<float> b = random_values(size, 5);
    double exact = 0.0;
    double magnitude = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double product = static_cast<double>(a[i]) * static_cast<double>(b[i]);
      exact += product;
      magnitude += std::abs(product);
    }
    // Each product is rounded at most twice and passes at most size / 32 + 5 + 31 additions.
    const double bound = magnitude * (static_cast<double>(size) / 32.0 + 38.0) * 0x1p-24;
    EXPECT_TRUE(std::abs(static_cast<double>(dot(a.data(), b.data(), size)) - exact) <= bound)
        << size;
  }
}

TEST(CHUNKLLM_SIMD_SUITE, DotDependsOnSizeAndValuesOnly) {
  const std::int64_t size = 77;
  const std::vector<float> a = random_values(size, 6);
  const std::vector<float> b = random_values(size, 7);
  const float expected = dot(a.data(), b.data(), size);
  for (std::size_t offset = 0; offset < 17; ++offset) {
    std::vector<float> moved(a.size() + offset);
    std::copy(a.begin(), a.end(), moved.begin() + static_cast<std::ptrdiff_t>(offset));
    EXPECT_EQ(dot(moved.data() + offset, b.data(), size), expected) << offset;
  }
}

TEST(CHUNKLLM_SIMD_SUITE, DotKeepsNaN) {
  for (std::size_t at : {std::size_t{0}, std::size_t{40}, std::size_t{76}}) {
    std::vector<float> a = random_values(77, 8);
    a[at] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(dot(a.data(), a.data(), 77))) << at;
  }
}

}  // namespace
}  // namespace chunkllm::simd
