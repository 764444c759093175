// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/core/simd_int8.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <random>

namespace chunkllm::simd {
namespace {

/// Sums as the kernels make them: from zero or the signed start, converted at the end.
void expect_lanes(F32x16 lanes, const std::int32_t* expected) {
  float values[kLanes];
  store(values, lanes);
  for (std::int64_t i = 0; i < kLanes; ++i) {
    EXPECT_EQ(values[i], static_cast<float>(expected[i])) << "lane " << i;
  }
}

TEST(SimdInt8, NibblesTimesBytesAreExact) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::byte bytes[64];
    std::int8_t x[8];
    for (std::byte& byte : bytes)
      byte = round == 0 ? std::byte{0xff} : static_cast<std::byte>(random());
    for (std::int8_t& value : x) {
      value = round == 0 ? std::int8_t{-127}
                         : static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
    }
    UnsignedCodes low;
    UnsignedCodes high;
    load_nibble_codes(bytes, low, high);
    std::int32_t expected[16] = {};
    for (int lane = 0; lane < 16; ++lane) {
      for (int k = 0; k < 4; ++k) {
        const int both = std::to_integer<int>(bytes[lane * 4 + k]);
        expected[lane] += (both & 15) * x[k] + (both >> 4) * x[4 + k];
      }
    }
    expect_lanes(to_f32(add_dots(high, x + 4, add_dots(low, x, zero_i32()))), expected);
  }
}

TEST(SimdInt8, SignedBytesTimesBytesAreExact) {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    std::byte bytes[64];
    std::int8_t x[4];
    std::int32_t sum = 0;
    for (std::byte& byte : bytes)
      byte = round == 0 ? std::byte{0x80} : static_cast<std::byte>(random());
    for (std::int8_t& value : x) {
      value = round == 0 ? std::int8_t{-127}
                         : static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
      sum += value;
    }
    std::int32_t expected[16] = {};
    for (int lane = 0; lane < 16; ++lane) {
      for (int k = 0; k < 4; ++k) {
        expected[lane] += static_cast<std::int8_t>(bytes[lane * 4 + k]) * x[k];
      }
    }
    expect_lanes(to_f32(add_dots(load_signed_codes(bytes), x, signed_start(-128 * sum))), expected);
  }
}

}  // namespace
}  // namespace chunkllm::simd
