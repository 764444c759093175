// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "chunkllm/core/dtype.hpp"

/// The value at one index of a row, in double, straight from GGUF's block formulas.
namespace chunkllm::oracle {

inline unsigned byte_of(std::span<const std::byte> row, std::size_t i) {
  return std::to_integer<unsigned>(row[i]);
}

inline int signed_byte_of(std::span<const std::byte> row, std::size_t i) {
  const int value = std::to_integer<int>(row[i]);
  return value < 128 ? value : value - 256;
}

/// IEEE binary16 by its definition.
inline double half_of(std::span<const std::byte> row, std::size_t i) {
  const unsigned bits = byte_of(row, i) | byte_of(row, i + 1) << 8;
  const double sign = bits >> 15 != 0 ? -1.0 : 1.0;
  const int exponent = static_cast<int>(bits >> 10 & 31U);
  const double fraction = static_cast<double>(bits & 1023U) / 1024.0;
  if (exponent == 31) return std::numeric_limits<double>::quiet_NaN();
  return sign *
         (exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15));
}

inline double float_of(unsigned bits) {
  const double sign = bits >> 31 != 0 ? -1.0 : 1.0;
  const int exponent = static_cast<int>(bits >> 23 & 255U);
  const double fraction = std::ldexp(static_cast<double>(bits & 0x7fffffU), -23);
  if (exponent == 255) return std::numeric_limits<double>::quiet_NaN();
  return sign *
         (exponent == 0 ? std::ldexp(fraction, -126) : std::ldexp(1 + fraction, exponent - 127));
}

/// Value `col` of a row of bytes.
inline double value_at(DType dtype, std::span<const std::byte> row, std::size_t col) {
  const auto nibble = [&](std::size_t first) {  // 16 bytes hold values 0..15 low, 16..31 high
    const unsigned both = byte_of(row, first + col % 16);
    return static_cast<double>(col % 32 < 16 ? both & 15U : both >> 4);
  };
  switch (dtype) {
    case DType::kF32:
      return float_of(byte_of(row, col * 4) | byte_of(row, col * 4 + 1) << 8 |
                      byte_of(row, col * 4 + 2) << 16 | byte_of(row, col * 4 + 3) << 24);
    case DType::kF16: return half_of(row, col * 2);
    case DType::kBF16:
      return float_of(byte_of(row, col * 2) << 16 | byte_of(row, col * 2 + 1) << 24);
    case DType::kQ8_0: {
      const std::size_t block = col / 32 * 34;
      return half_of(row, block) * signed_byte_of(row, block + 2 + col % 32);
    }
    case DType::kQ4_0: {
      const std::size_t block = col / 32 * 18;
      return half_of(row, block) * (nibble(block + 2) - 8.0);
    }
    case DType::kQ4_1: {
      const std::size_t block = col / 32 * 20;
      return half_of(row, block) * nibble(block + 4) + half_of(row, block + 2);
    }
    case DType::kQ4_K: {
      const std::size_t block = col / 256 * 144;
      const std::size_t j = col % 256 / 32;
      const auto s = [&](std::size_t i) { return byte_of(row, block + 4 + i); };
      const unsigned scale = j < 4 ? s(j) & 63U : (s(j + 4) & 15U) | (s(j - 4) >> 6) << 4;
      const unsigned minimum = j < 4 ? s(j + 4) & 63U : s(j + 4) >> 4 | (s(j) >> 6) << 4;
      const unsigned both = byte_of(row, block + 16 + j / 2 * 32 + col % 32);
      const unsigned q = j % 2 == 0 ? both & 15U : both >> 4;
      return half_of(row, block) * scale * q - half_of(row, block + 2) * minimum;
    }
    case DType::kQ6_K: {
      const std::size_t block = col / 256 * 210;
      const std::size_t half = col % 256 / 128;
      const std::size_t quarter = col % 128 / 32;
      const std::size_t l = col % 32;
      const unsigned low = byte_of(row, block + half * 64 + quarter % 2 * 32 + l);
      const unsigned high = byte_of(row, block + 128 + half * 32 + l) >> (2 * quarter) & 3U;
      const int q = static_cast<int>((quarter < 2 ? low & 15U : low >> 4) | high << 4) - 32;
      const int scale = signed_byte_of(row, block + 192 + half * 8 + quarter * 2 + l / 16);
      return half_of(row, block + 208) * scale * q;
    }
  }
  return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace chunkllm::oracle
