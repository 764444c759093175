// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/simd_int8.hpp"
#include "chunkllm/core/unroll.hpp"
#include "chunkllm/model/quantized_rows.hpp"
#include "chunkllm/model/row_block.hpp"

/// Products of 4 and 8 bit block weights with 8 bit activations.
///
/// A weight block holds 32 input features of 16 output features: scales (and minima) first, then
/// codes of which each lane of 4 bytes belongs to one output feature. For every block the integer
/// dot product is exact, and one multiply-add brings it into the f32 sum:
///   sum = fma(f32(dot), weight_scale * activation_scale, sum)
///   sum = fma(weight_minimum, activation_scale * activation_code_sum, sum)   (4 bit only)
/// over ascending blocks. So a row's result depends on that row alone.
namespace chunkllm::detail {

inline constexpr std::int64_t kBlockOutputs = simd::kLanes;
inline constexpr std::int64_t kPrefetchAhead = 4096;

#if defined(CHUNKLLM_SIMD_AVX512)
inline constexpr int kBlockRows = 8;  // 8 sums, 8 of codes, scale, minimum: no register is spilled
#else
inline constexpr int kBlockRows = 4;
#endif

/// Element `lane` of an array in a block.
template <typename T>
inline T get_lane(const std::byte* array, std::int64_t lane) {
  T value;
  std::memcpy(&value, array + lane * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}
template <typename T>
inline void put_lane(std::byte* array, std::int64_t lane, float value) {
  const T stored = from_f32<T>(value);  // exact: it was read from such a value
  std::memcpy(array + lane * static_cast<std::int64_t>(sizeof(T)), &stored, sizeof(T));
}
/// Where lane's code of an input feature stands among a block's codes, four features a lane.
inline std::int64_t code_index(std::int64_t lane, std::int64_t feature) {
  return feature / 4 * (4 * kBlockOutputs) + lane * 4 + feature % 4;
}

/// w = scale * code + minimum with codes of 4 bits: scales, minima, then 64 bytes for features 4i
/// to 4i + 3 in the low and 16 + 4i to 16 + 4i + 3 in the high nibbles, i = 0, ..., 3.
///
/// \tparam Scale           type of scales and minima as stored
/// \tparam kStoredMinimum  false: the minimum is -8 * scale (Q4_0)
template <typename Scale, bool kStoredMinimum>
struct NibbleBlock {
  static constexpr std::int64_t kBytes =
      kBlockOutputs *
      (static_cast<std::int64_t>(sizeof(Scale)) * (kStoredMinimum ? 2 : 1) + kBlockFeatures / 2);
  static constexpr std::int64_t kCodes = kBytes - kBlockOutputs * kBlockFeatures / 2;
  static constexpr std::int64_t kMinima = kBlockOutputs * static_cast<std::int64_t>(sizeof(Scale));
  simd::F32x16 scale;
  simd::F32x16 minimum;
  simd::UnsignedCodes codes[8];  // of four input features each

  static void write(std::byte* p, std::int64_t lane, const RowBlock& values) {
    put_lane<Scale>(p, lane, values.scale[0]);
    if constexpr (kStoredMinimum) put_lane<Scale>(p + kMinima, lane, values.minimum);
    for (std::int64_t k = 0; k < 16; ++k) {
      p[kCodes + code_index(lane, k)] =
          static_cast<std::byte>(values.codes[k] | (values.codes[16 + k] << 4));
    }
  }
  static RowBlock read(const std::byte* p, std::int64_t lane) {
    RowBlock values;
    values.scale[0] = values.scale[1] = to_f32(get_lane<Scale>(p, lane));
    values.minimum =
        kStoredMinimum ? to_f32(get_lane<Scale>(p + kMinima, lane)) : -8.0F * values.scale[0];
    for (std::int64_t k = 0; k < 16; ++k) {
      const auto both = std::to_integer<int>(p[kCodes + code_index(lane, k)]);
      values.codes[k] = static_cast<std::int8_t>(both & 15);
      values.codes[16 + k] = static_cast<std::int8_t>(both >> 4);
    }
    return values;
  }

  [[gnu::always_inline]] explicit NibbleBlock(const std::byte* p) {
    const auto* scales = reinterpret_cast<const Scale*>(p);
    scale = simd::load(scales);
    if constexpr (kStoredMinimum) {
      minimum = simd::load(scales + kBlockOutputs);
    } else {
      minimum = scale * simd::broadcast(-8.0F);
    }
    CHUNKLLM_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      simd::load_nibble_codes(p + kCodes + 64 * i, codes[i], codes[i + 4]);
    }
  }

  [[gnu::always_inline]] simd::F32x16 add(const std::int8_t* x, const ActivationBlock& block,
                                          simd::F32x16 sum) const {
    simd::I32x16 dots = simd::zero_i32();
    CHUNKLLM_UNROLL(8)
    for (int i = 0; i < 8; ++i) dots = simd::add_dots(codes[i], x + 4 * i, dots);
    sum = simd::multiply_add(simd::to_f32(dots), scale * simd::broadcast(block.scale), sum);
    return simd::multiply_add(minimum, simd::broadcast(block.scaled_sum), sum);
  }
};

/// w = scale * code with codes of 8 bits and a scale for each `32 / kNumScales` input features:
/// scales, then 64 bytes for features 4i to 4i + 3, i = 0, ..., 7.
template <typename Scale, int kNumScales>
struct ByteBlock {
  static constexpr std::int64_t kBytes =
      kBlockOutputs * (static_cast<std::int64_t>(sizeof(Scale)) * kNumScales + kBlockFeatures);
  static constexpr std::int64_t kCodes = kBytes - kBlockOutputs * kBlockFeatures;
  static constexpr std::int64_t kScales = kBlockOutputs * static_cast<std::int64_t>(sizeof(Scale));
  static constexpr int kPerScale = 8 / kNumScales;
  simd::F32x16 scale[kNumScales];
  simd::SignedCodes codes[8];

  static void write(std::byte* p, std::int64_t lane, const RowBlock& values) {
    for (int i = 0; i < kNumScales; ++i) put_lane<Scale>(p + i * kScales, lane, values.scale[i]);
    for (std::int64_t k = 0; k < kBlockFeatures; ++k) {
      p[kCodes + code_index(lane, k)] = static_cast<std::byte>(values.codes[k]);
    }
  }
  static RowBlock read(const std::byte* p, std::int64_t lane) {
    RowBlock values;
    for (int i = 0; i < 2; ++i) {
      values.scale[i] = to_f32(get_lane<Scale>(p + i % kNumScales * kScales, lane));
    }
    for (std::int64_t k = 0; k < kBlockFeatures; ++k) {
      values.codes[k] = get_lane<std::int8_t>(p + kCodes, code_index(lane, k));
    }
    return values;
  }

  [[gnu::always_inline]] explicit ByteBlock(const std::byte* p) {
    const auto* scales = reinterpret_cast<const Scale*>(p);
    for (int i = 0; i < kNumScales; ++i) scale[i] = simd::load(scales + i * kBlockOutputs);
    CHUNKLLM_UNROLL(8)
    for (int i = 0; i < 8; ++i) codes[i] = simd::load_signed_codes(p + kCodes + 64 * i);
  }

  [[gnu::always_inline]] simd::F32x16 add(const std::int8_t* x, const ActivationBlock& block,
                                          simd::F32x16 sum) const {
    const simd::F32x16 activation_scale = simd::broadcast(block.scale);
    CHUNKLLM_UNROLL(2)
    for (int s = 0; s < kNumScales; ++s) {
      simd::I32x16 dots =
          simd::signed_start(kNumScales == 1 ? block.minus_128_sums[0] + block.minus_128_sums[1]
                                             : block.minus_128_sums[s]);
      CHUNKLLM_UNROLL(8)
      for (int i = s * kPerScale; i < (s + 1) * kPerScale; ++i) {
        dots = simd::add_dots(codes[i], x + 4 * i, dots);
      }
      sum = simd::multiply_add(simd::to_f32(dots), scale[s] * activation_scale, sum);
    }
    return sum;
  }
};

/// out[r][16] = the 16 output features of a panel for `Rows` rows.
///
/// \param blocks     the panel's blocks over all input features
/// \param out_stride floats from row to row
template <typename Block, int Rows>
inline void multiply_blocks(const std::byte* blocks, std::int64_t num_blocks,
                            const QuantizedRows& x, std::int64_t first_row, float* out,
                            std::int64_t out_stride) {
  simd::F32x16 sum[Rows];
  CHUNKLLM_UNROLL(16)
  for (int r = 0; r < Rows; ++r) sum[r] = simd::zero();
  const std::int8_t* codes = x.codes(first_row);
  const ActivationBlock* scales = x.blocks(first_row);
  const std::int64_t row_codes = num_blocks * kBlockFeatures;
  for (std::int64_t b = 0; b < num_blocks; ++b, blocks += Block::kBytes) {
    if constexpr (Rows == 1) {  // decoding reads each weight once, from memory
      for (std::int64_t i = 0; i < Block::kBytes; i += 64) {
        __builtin_prefetch(blocks + kPrefetchAhead + i);
      }
    }
    const Block block(blocks);
    CHUNKLLM_UNROLL(16)
    for (int r = 0; r < Rows; ++r) {
      sum[r] =
          block.add(codes + r * row_codes + b * kBlockFeatures, scales[r * num_blocks + b], sum[r]);
    }
  }
  CHUNKLLM_UNROLL(16)
  for (int r = 0; r < Rows; ++r) simd::store(out + r * out_stride, sum[r]);
}

/// `multiply_blocks` for any number of rows: full tiles, then halves of them.
template <typename Block, int Rows = kBlockRows>
inline void multiply_block_rows(const std::byte* blocks, std::int64_t num_blocks,
                                const QuantizedRows& x, std::int64_t first_row, std::int64_t rows,
                                float* out, std::int64_t out_stride) {
  std::int64_t r = 0;
  for (; r + Rows <= rows; r += Rows) {
    multiply_blocks<Block, Rows>(blocks, num_blocks, x, first_row + r, out + r * out_stride,
                                 out_stride);
  }
  if constexpr (Rows > 1) {
    if (r < rows) {
      multiply_block_rows<Block, Rows / 2>(blocks, num_blocks, x, first_row + r, rows - r,
                                           out + r * out_stride, out_stride);
    }
  }
}

}  // namespace chunkllm::detail
