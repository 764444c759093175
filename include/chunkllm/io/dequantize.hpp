// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/io/byte_reader.hpp"

namespace chunkllm {

namespace detail {

// Block layouts and formulas: ggml (ggml-common.h, ggml-quants.c). The products of a block's f16
// scale, integer sub-scale and quant have at most 24 significant bits, so they are exact in f32 in
// any order: only the additions of Q4_1 and Q4_K round, and a fused multiply-add changes nothing.

inline float read_f16(const std::byte* bytes) {
  return to_f32(F16{read_as<std::uint16_t>(bytes)});
}

inline int low_nibble(std::byte byte) {
  return std::to_integer<int>(byte) & 15;
}
inline int high_nibble(std::byte byte) {
  return std::to_integer<int>(byte) >> 4;
}

inline void dequantize_block_q8_0(const std::byte* block, float* out) {
  const float scale = read_f16(block);
  for (int j = 0; j < 32; ++j) {
    out[j] = scale * static_cast<float>(read_as<std::int8_t>(block + 2 + j));
  }
}

inline void dequantize_block_q4_0(const std::byte* block, float* out) {
  const float scale = read_f16(block);
  for (int j = 0; j < 16; ++j) {
    out[j] = scale * static_cast<float>(low_nibble(block[2 + j]) - 8);
    out[j + 16] = scale * static_cast<float>(high_nibble(block[2 + j]) - 8);
  }
}

inline void dequantize_block_q4_1(const std::byte* block, float* out) {
  const float scale = read_f16(block);
  const float min = read_f16(block + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = scale * static_cast<float>(low_nibble(block[4 + j])) + min;
    out[j + 16] = scale * static_cast<float>(high_nibble(block[4 + j])) + min;
  }
}

inline void dequantize_block_q4_k(const std::byte* block, float* out) {
  const float super_scale = read_f16(block);
  const float super_min = read_f16(block + 2);
  const std::byte* packed = block + 4;  // 8 scales and 8 mins of 6 bits
  const std::byte* quants = block + 16;
  const auto at = [packed](int i) { return std::to_integer<int>(packed[i]); };
  for (int j = 0; j < 8; ++j) {
    const int scale = j < 4 ? at(j) & 63 : (at(j + 4) & 15) | ((at(j - 4) >> 6) << 4);
    const int min = j < 4 ? at(j + 4) & 63 : (at(j + 4) >> 4) | ((at(j) >> 6) << 4);
    const float block_scale = super_scale * static_cast<float>(scale);
    const float block_min = super_min * static_cast<float>(min);
    for (int l = 0; l < 32; ++l) {
      const std::byte pair = quants[j / 2 * 32 + l];
      const int quant = j % 2 == 0 ? low_nibble(pair) : high_nibble(pair);
      out[j * 32 + l] = block_scale * static_cast<float>(quant) - block_min;
    }
  }
}

inline void dequantize_block_q6_k(const std::byte* block, float* out) {
  const float super_scale = read_f16(block + 208);
  for (int half = 0; half < 2; ++half) {
    const std::byte* low = block + half * 64;
    const std::byte* high = block + 128 + half * 32;
    const std::byte* scales = block + 192 + half * 8;
    for (int part = 0; part < 4; ++part) {  // 32 values each
      for (int l = 0; l < 32; ++l) {
        const std::byte pair = low[part % 2 * 32 + l];
        const int low_bits = part < 2 ? low_nibble(pair) : high_nibble(pair);
        const int high_bits = (std::to_integer<int>(high[l]) >> (2 * part)) & 3;
        const int scale = read_as<std::int8_t>(scales + 2 * part + l / 16);
        const int quant = (low_bits | (high_bits << 4)) - 32;
        out[half * 128 + part * 32 + l] =
            super_scale * static_cast<float>(scale) * static_cast<float>(quant);
      }
    }
  }
}

/// `values` whole blocks of 32, one after the other, given to `quantize_block(in, out)`.
template <typename QuantizeBlock>
Status quantize_row(DType dtype, std::span<const float> values, std::span<std::byte> out,
                    QuantizeBlock quantize_block) {
  const DTypeTraits traits = dtype_traits(dtype);
  const std::size_t num_blocks = values.size() / traits.block_size;
  if (values.size() % traits.block_size != 0 || out.size() != num_blocks * traits.block_bytes) {
    return invalid_argument("quantize_row: " + std::to_string(values.size()) + " values into " +
                            std::to_string(out.size()) + " bytes, expected whole blocks of " +
                            std::to_string(traits.block_size) + " values in " +
                            std::to_string(traits.block_bytes) + " bytes");
  }
  constexpr float kMaxMagnitude = 65504.0F;  // the scales are f16; NaN fails too
  if (!std::all_of(values.begin(), values.end(),
                   [](float value) { return std::abs(value) <= kMaxMagnitude; })) {
    return invalid_argument("quantize_row: a value is NaN or outside [-65504, 65504]");
  }
  for (std::size_t i = 0; i < num_blocks; ++i) {
    quantize_block(values.data() + i * traits.block_size, out.data() + i * traits.block_bytes);
  }
  return {};
}

inline void write_f16(float value, std::byte* out) {
  const F16 half = to_f16(value);
  std::memcpy(out, &half.bits, sizeof(half.bits));
}

/// `value` / `scale` (by its reciprocal, as ggml) + `offset`, truncated to 0..15. In double the
/// product of two floats is exact, so the result does not depend on fused multiply-adds.
inline unsigned quantize_nibble(float value, float inverse_scale, double offset) {
  const double quant = static_cast<double>(value) * static_cast<double>(inverse_scale) + offset;
  return static_cast<unsigned>(std::clamp(quant, 0.0, 15.0));
}

inline float inverse_or_zero(float scale) {
  const float inverse = scale == 0.0F ? 0.0F : 1.0F / scale;
  return std::isfinite(inverse) ? inverse : 0.0F;  // a subnormal scale: the values are as good as 0
}

}  // namespace detail

/// Writes one row of a tensor as f32: the scalar reference of every storage type.
///
/// \param row  in [0, tensor.rows)
/// \param out  [tensor.cols]
/// Numerics:   bit-equal to ggml's own dequantisation.
/// Errors:     kOutOfRange for `row`; kInvalidArgument where `out` or the tensor's bytes do not fit
///             its shape.
inline Status dequantize_row(const TensorBytes& tensor, std::int64_t row, std::span<float> out) {
  if (row < 0 || row >= tensor.rows) {
    return out_of_range("dequantize_row: row " + std::to_string(row) + " of " +
                        std::to_string(tensor.rows));
  }
  const DTypeTraits traits = dtype_traits(tensor.dtype);
  const std::size_t cols = out.size();
  const std::size_t num_blocks = cols / traits.block_size;
  const std::size_t row_bytes = num_blocks * traits.block_bytes;
  // The last test is row_bytes * rows <= size without its overflow.
  if (static_cast<std::uint64_t>(tensor.cols) != cols || cols % traits.block_size != 0 ||
      (row_bytes != 0 &&
       static_cast<std::uint64_t>(tensor.rows) > tensor.bytes.size() / row_bytes)) {
    return invalid_argument("dequantize_row: " + std::to_string(cols) + " values for a tensor of " +
                            std::to_string(tensor.rows) + " x " + std::to_string(tensor.cols) +
                            " in " + std::to_string(tensor.bytes.size()) + " bytes");
  }
  const std::byte* block = tensor.bytes.data() + static_cast<std::size_t>(row) * row_bytes;
  float* values = out.data();
  for (std::size_t i = 0; i < num_blocks; ++i) {
    switch (tensor.dtype) {
      case DType::kF32: *values = detail::read_as<float>(block); break;
      case DType::kF16: *values = detail::read_f16(block); break;
      case DType::kBF16: *values = to_f32(BF16{detail::read_as<std::uint16_t>(block)}); break;
      case DType::kQ8_0: detail::dequantize_block_q8_0(block, values); break;
      case DType::kQ4_0: detail::dequantize_block_q4_0(block, values); break;
      case DType::kQ4_1: detail::dequantize_block_q4_1(block, values); break;
      case DType::kQ4_K: detail::dequantize_block_q4_k(block, values); break;
      case DType::kQ6_K: detail::dequantize_block_q6_k(block, values); break;
    }
    block += traits.block_bytes;
    values += traits.block_size;
  }
  return {};
}

/// Quantises to Q8_0: per 32 values a scale of max|x| / 127, rounded to nearest, ties away from 0.
///
/// \param values  whole blocks of 32, in [-65504, 65504]
/// \param out     34 bytes a block
/// Errors: kInvalidArgument where a size or value breaks this.
inline Status quantize_row_q8_0(std::span<const float> values, std::span<std::byte> out) {
  return detail::quantize_row(DType::kQ8_0, values, out, [](const float* in, std::byte* block) {
    float max = 0.0F;
    for (int j = 0; j < 32; ++j) max = std::max(max, std::abs(in[j]));
    const float scale = max / 127.0F;
    const float inverse = detail::inverse_or_zero(scale);
    detail::write_f16(scale, block);
    for (int j = 0; j < 32; ++j) {
      const auto quant =
          static_cast<std::int8_t>(std::clamp(std::round(in[j] * inverse), -127.0F, 127.0F));
      block[2 + j] = static_cast<std::byte>(quant);
    }
  });
}

/// Quantises to Q4_0: per 32 values a scale that maps the value of largest magnitude to -8.
///
/// Sizes and errors as `quantize_row_q8_0`, with 18 bytes a block.
inline Status quantize_row_q4_0(std::span<const float> values, std::span<std::byte> out) {
  return detail::quantize_row(DType::kQ4_0, values, out, [](const float* in, std::byte* block) {
    float extreme = 0.0F;
    for (int j = 0; j < 32; ++j) {
      if (std::abs(in[j]) > std::abs(extreme)) extreme = in[j];
    }
    const float scale = extreme / -8.0F;
    const float inverse = detail::inverse_or_zero(scale);
    detail::write_f16(scale, block);
    for (int j = 0; j < 16; ++j) {
      block[2 + j] = static_cast<std::byte>(detail::quantize_nibble(in[j], inverse, 8.5) |
                                            detail::quantize_nibble(in[j + 16], inverse, 8.5) << 4);
    }
  });
}

/// Quantises to Q4_1: per 32 values an offset (the minimum) and a scale of (max - min) / 15.
///
/// Sizes and errors as `quantize_row_q8_0`, with 20 bytes a block.
inline Status quantize_row_q4_1(std::span<const float> values, std::span<std::byte> out) {
  return detail::quantize_row(DType::kQ4_1, values, out, [](const float* in, std::byte* block) {
    const float min = *std::min_element(in, in + 32);
    const float max = *std::max_element(in, in + 32);
    const float scale = (max - min) / 15.0F;
    const float inverse = detail::inverse_or_zero(scale);
    detail::write_f16(scale, block);
    detail::write_f16(min, block + 2);
    for (int j = 0; j < 16; ++j) {
      block[4 + j] =
          static_cast<std::byte>(detail::quantize_nibble(in[j] - min, inverse, 0.5) |
                                 detail::quantize_nibble(in[j + 16] - min, inverse, 0.5) << 4);
    }
  });
}

}  // namespace chunkllm
