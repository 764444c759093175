// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/io/dequantize.hpp"

namespace chunkllm::detail {

/// Input features that share a scale: of a row of weights, and of activations.
inline constexpr std::int64_t kBlockFeatures = 32;

/// 32 consecutive input features of one row: w = scale * code + minimum.
///
/// K-quants keep their sub-block scales as f32, since d * sc is exact there.
struct RowBlock {
  float scale[2] = {0.0F, 0.0F};  // of the first and second 16 features
  float minimum = 0.0F;
  std::int8_t codes[kBlockFeatures] = {};  // 0..15 in 4 bit types but for Q4_0's zero at 8
};

/// Byte i of an array of bytes.
inline int byte_at(const std::byte* p, std::int64_t i) {
  return std::to_integer<int>(p[i]);
}

/// Reads the 32 features from 32 `block` on of a row in a file's 4, 6 or 8 bit type.
inline RowBlock read_row_block(DType dtype, const std::byte* row, std::int64_t block) {
  RowBlock out;
  const auto set_scale = [&](float scale) { out.scale[0] = out.scale[1] = scale; };
  switch (dtype) {
    case DType::kQ8_0: {
      const std::byte* p = row + block * 34;
      set_scale(read_f16(p));
      std::memcpy(out.codes, p + 2, kBlockFeatures);
      break;
    }
    case DType::kQ4_0:
    case DType::kQ4_1: {
      const bool has_minimum = dtype == DType::kQ4_1;
      const std::byte* p = row + block * (has_minimum ? 20 : 18);
      set_scale(read_f16(p));
      out.minimum = has_minimum ? read_f16(p + 2) : 0.0F;
      const std::byte* nibbles = p + (has_minimum ? 4 : 2);
      for (int j = 0; j < 16; ++j) {
        out.codes[j] = static_cast<std::int8_t>(byte_at(nibbles, j) & 15);
        out.codes[j + 16] = static_cast<std::int8_t>(byte_at(nibbles, j) >> 4);
      }
      break;
    }
    case DType::kQ4_K: {  // eight sub-blocks of 32 with 6-bit scales and minima
      const std::byte* p = row + block / 8 * 144;
      const std::byte* s = p + 4;
      const std::int64_t j = block % 8;
      const int scale =
          j < 4 ? byte_at(s, j) & 63 : (byte_at(s, j + 4) & 15) | ((byte_at(s, j - 4) >> 6) << 4);
      const int minimum =
          j < 4 ? byte_at(s, j + 4) & 63 : (byte_at(s, j + 4) >> 4) | ((byte_at(s, j) >> 6) << 4);
      set_scale(read_f16(p) * static_cast<float>(scale));
      out.minimum = -(read_f16(p + 2) * static_cast<float>(minimum));
      const std::byte* nibbles = p + 16 + j / 2 * 32;
      for (int i = 0; i < 32; ++i) {
        const int both = byte_at(nibbles, i);
        out.codes[i] = static_cast<std::int8_t>(j % 2 == 0 ? both & 15 : both >> 4);
      }
      break;
    }
    case DType::kQ6_K: {  // sixteen sub-blocks of 16 with 8-bit scales; codes are offset by 32
      const std::byte* p = row + block / 8 * 210;
      const std::int64_t half = block % 8 / 4;
      const std::int64_t quarter = block % 4;
      const std::byte* low = p + half * 64 + quarter % 2 * 32;
      const std::byte* high = p + 128 + half * 32;
      const std::byte* scales = p + 192 + half * 8 + quarter * 2;
      const float d = read_f16(p + 208);
      for (int i = 0; i < 2; ++i) {
        out.scale[i] = d * static_cast<float>(read_as<std::int8_t>(scales + i));
      }
      for (int i = 0; i < 32; ++i) {
        const int four = quarter < 2 ? byte_at(low, i) & 15 : byte_at(low, i) >> 4;
        const int two = (byte_at(high, i) >> (2 * quarter)) & 3;
        out.codes[i] = static_cast<std::int8_t>((four | (two << 4)) - 32);
      }
      break;
    }
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16: break;
  }
  return out;
}

/// 32 features in 8 bits, as Q8_0 does it; not finite ones make the scale NaN or infinite.
inline RowBlock quantize_row_block(const float* values) {
  float largest = 0.0F;
  for (std::int64_t i = 0; i < kBlockFeatures; ++i) {
    const float magnitude = std::fabs(values[i]);
    if (magnitude > largest || std::isnan(magnitude)) largest = magnitude;
    if (std::isnan(magnitude)) break;
  }
  const float scale = to_f32(to_f16(largest / 127.0F));
  RowBlock out;
  out.scale[0] = out.scale[1] = scale;
  // A scale of 0, NaN or infinity says all there is to say; codes would be undefined.
  for (std::int64_t i = 0; i < kBlockFeatures && scale > 0.0F && std::isfinite(scale); ++i) {
    const float code = std::clamp(std::round(values[i] / scale), -127.0F, 127.0F);
    out.codes[i] = static_cast<std::int8_t>(code);
  }
  return out;
}

}  // namespace chunkllm::detail
