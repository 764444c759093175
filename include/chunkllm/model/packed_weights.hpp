// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/io/dequantize.hpp"
#include "chunkllm/model/micro_kernel.hpp"

namespace chunkllm {

/// How matrix weights are held in memory (`--weights`).
enum class WeightFormat : std::uint8_t {
  kKeep,  ///< the file's own precision
  kF32,
  kBF16,
  kInt8  ///< 8 bits, one f16 scale for 32 input features, as in Q8_0
};

/// A weight matrix [rows, cols] in panels of 32 rows, input feature by input feature.
///
/// Inside a panel the 32 rows' weights for one input feature lie side by side, so that a product
/// reads memory in order and needs no sum across lanes. Blocks of 4 and 8 bit weights carry
/// 32 scales (and minima) in front of their codes: w = scale * code + minimum, which reproduces
/// GGUF's dequantisation to one rounding of f32. K-quants keep their sub-block scales as f32
/// (d * sc is exact there).
class PackedWeights {
 public:
  PackedWeights() = default;

  /// Repacks a file's tensor.
  ///
  /// \param row_order  packed row i is the tensor's row `row_order[i]`; empty: as in the file
  /// Errors: kInvalidFile if a row is not a whole number of blocks or bytes are missing;
  ///         kInvalidArgument if `row_order` has another length or names rows outside the tensor;
  ///         kUnsupported for int8 where input features are no multiple of 32.
  static Result<PackedWeights> pack(const TensorBytes& tensor,
                                    std::span<const std::int64_t> row_order, WeightFormat format,
                                    ThreadPool& pool);

  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t cols() const { return cols_; }
  [[nodiscard]] std::int64_t num_panels() const {
    return (rows_ + detail::kPanelCols - 1) / detail::kPanelCols;
  }
  [[nodiscard]] std::int64_t bytes() const { return static_cast<std::int64_t>(data_.size()); }

  /// Calls `sink(k, low, high)` for k = 0, ..., depth - 1 with the panel's weights for input
  /// feature first + k: rows 0..15 in `low`, rows 16..31 in `high`. Rows past the matrix are zero.
  ///
  /// \param first  a multiple of the block (32 for all block formats), and so is `depth`
  /// \returns the sink. It travels by value, so that sums which it holds stay in registers.
  template <typename Sink>
  Sink decode(std::int64_t panel, std::int64_t first, std::int64_t depth, Sink sink) const;

  /// Writes weights[k - first][row in panel] for k in [first, first + depth), as f32.
  ///
  /// \param first  a multiple of the block (32 for all block formats)
  /// \param out    [depth, 32]; rows past the matrix are zero
  void expand(std::int64_t panel, std::int64_t first, std::int64_t depth, float* out) const;

  /// Writes row `row` as f32 [cols].
  void unpack_row(std::int64_t row, float* out) const;

 private:
  // One block: `block_size` input features of the 32 rows of a panel.
  enum class Layout : std::uint8_t {
    kF32,         // 32 f32
    kF16,         // 32 f16
    kBF16,        // 32 bf16
    kInt8F16,     // 32 f16 scales, 32 x 32 i8 (Q8_0)
    kInt8F32,     // two halves of: 32 f32 scales, 16 x 32 i8 (Q6_K)
    kInt4F16,     // 32 f16 scales, nibbles; code 8 means zero (Q4_0)
    kInt4MinF16,  // 32 f16 scales, 32 f16 minima, nibbles (Q4_1)
    kInt4MinF32   // 32 f32 scales, 32 f32 minima, nibbles (Q4_K)
  };
  static constexpr std::int64_t kCols = detail::kPanelCols;
  static constexpr std::int64_t kBlock = 32;
  // Hardware prefetchers stop at pages and start late; decoding reads each weight once.
  static constexpr std::int64_t kPrefetchBytes = 4096;

  static std::int64_t block_size(Layout layout) { return layout <= Layout::kBF16 ? 1 : kBlock; }
  static std::int64_t block_bytes(Layout layout) {
    switch (layout) {
      case Layout::kF32: return kCols * 4;
      case Layout::kF16:
      case Layout::kBF16: return kCols * 2;
      case Layout::kInt8F16: return kCols * (2 + kBlock);
      case Layout::kInt8F32: return kCols * (2 * 4 + kBlock);
      case Layout::kInt4F16: return kCols * (2 + kBlock / 2);
      case Layout::kInt4MinF16: return kCols * (4 + kBlock / 2);
      case Layout::kInt4MinF32: return kCols * (8 + kBlock / 2);
    }
    return 0;
  }
  static Layout layout_for(DType dtype, WeightFormat format);
  /// Scale, minimum and codes of 32 consecutive input features of one row.
  struct RowBlock {
    float scale[2] = {0.0F, 0.0F};  // of the first and second 16 features
    float minimum = 0.0F;
    std::int8_t codes[kBlock] = {};
  };
  static RowBlock read_row_block(DType dtype, const std::byte* row, std::int64_t block);
  static RowBlock quantize_int8(const float* values);
  // `values` is scratch memory for one row.
  void pack_row(const TensorBytes& tensor, WeightFormat format, std::int64_t source,
                std::int64_t target, std::span<float> values);
  void write_block(std::int64_t target_row, std::int64_t block, const RowBlock& values);
  template <typename Scale, typename Sink>
  [[gnu::always_inline]] static Sink decode_nibbles(const std::byte* block, bool has_minimum,
                                                    std::int64_t feature, Sink sink);
  template <typename Scale, typename Sink>
  [[gnu::always_inline]] static Sink decode_int8(const std::byte* block, std::int64_t num_features,
                                                 std::int64_t feature, Sink sink);
  template <typename Stored, typename Sink>
  [[gnu::always_inline]] static Sink decode_plain(const std::byte* block, std::int64_t num_features,
                                                  Sink sink);

  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  Layout layout_ = Layout::kF32;
  std::vector<std::byte> data_;
};

inline PackedWeights::Layout PackedWeights::layout_for(DType dtype, WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return Layout::kF32;
    case WeightFormat::kBF16: return Layout::kBF16;
    case WeightFormat::kInt8: return Layout::kInt8F16;
    case WeightFormat::kKeep: break;
  }
  switch (dtype) {
    case DType::kF32: return Layout::kF32;
    case DType::kF16: return Layout::kF16;
    case DType::kBF16: return Layout::kBF16;
    case DType::kQ8_0: return Layout::kInt8F16;
    case DType::kQ6_K: return Layout::kInt8F32;
    case DType::kQ4_0: return Layout::kInt4F16;
    case DType::kQ4_1: return Layout::kInt4MinF16;
    case DType::kQ4_K: return Layout::kInt4MinF32;
  }
  return Layout::kF32;
}

namespace detail {

/// Byte i of an array of bytes.
inline int byte_at(const std::byte* p, std::int64_t i) {
  return std::to_integer<int>(p[i]);
}

}  // namespace detail

inline PackedWeights::RowBlock PackedWeights::read_row_block(DType dtype, const std::byte* row,
                                                             std::int64_t block) {
  using detail::byte_at;
  using detail::read_f16;
  RowBlock out;
  const auto set_scale = [&](float scale) { out.scale[0] = out.scale[1] = scale; };
  switch (dtype) {
    case DType::kQ8_0: {
      const std::byte* p = row + block * 34;
      set_scale(read_f16(p));
      std::memcpy(out.codes, p + 2, kBlock);
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
        out.scale[i] = d * static_cast<float>(detail::read_as<std::int8_t>(scales + i));
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

inline PackedWeights::RowBlock PackedWeights::quantize_int8(const float* values) {
  float largest = 0.0F;
  for (std::int64_t i = 0; i < kBlock; ++i) {
    const float magnitude = std::fabs(values[i]);
    if (magnitude > largest || std::isnan(magnitude)) largest = magnitude;
    if (std::isnan(magnitude)) break;
  }
  const float scale = to_f32(to_f16(largest / 127.0F));
  RowBlock out;
  out.scale[0] = out.scale[1] = scale;
  // A scale of 0, NaN or infinity says all there is to say; codes would be undefined.
  for (std::int64_t i = 0; i < kBlock && scale > 0.0F && std::isfinite(scale); ++i) {
    const float code = std::clamp(std::round(values[i] / scale), -127.0F, 127.0F);
    out.codes[i] = static_cast<std::int8_t>(code);
  }
  return out;
}

inline void PackedWeights::write_block(std::int64_t target_row, std::int64_t block,
                                       const RowBlock& values) {
  const std::int64_t lane = target_row % kCols;
  const std::int64_t num_blocks = cols_ / kBlock;
  std::byte* out = data_.data() + (target_row / kCols * num_blocks + block) * block_bytes(layout_);
  const auto put = [&](std::byte* array, auto value) {
    std::memcpy(array + lane * static_cast<std::int64_t>(sizeof(value)), &value, sizeof(value));
  };
  const auto put_codes = [&](std::byte* array, std::int64_t first, std::int64_t count) {
    for (std::int64_t k = 0; k < count; ++k) {
      array[k * kCols + lane] = static_cast<std::byte>(values.codes[first + k]);
    }
  };
  // Feature 2j sits in the low and 2j + 1 in the high nibble.
  const auto put_nibbles = [&](std::byte* array) {
    for (std::int64_t j = 0; j < kBlock / 2; ++j) {
      array[j * kCols + lane] =
          static_cast<std::byte>(values.codes[2 * j] | (values.codes[2 * j + 1] << 4));
    }
  };
  switch (layout_) {
    case Layout::kInt8F16:
      put(out, to_f16(values.scale[0]));
      put_codes(out + kCols * 2, 0, kBlock);
      break;
    case Layout::kInt8F32:
      for (std::int64_t half = 0; half < 2; ++half) {
        std::byte* part = out + half * kCols * (4 + 16);
        put(part, values.scale[half]);
        put_codes(part + kCols * 4, half * 16, 16);
      }
      break;
    case Layout::kInt4F16:
      put(out, to_f16(values.scale[0]));
      put_nibbles(out + kCols * 2);
      break;
    case Layout::kInt4MinF16:
      put(out, to_f16(values.scale[0]));
      put(out + kCols * 2, to_f16(values.minimum));
      put_nibbles(out + kCols * 4);
      break;
    case Layout::kInt4MinF32:
      put(out, values.scale[0]);
      put(out + kCols * 4, values.minimum);
      put_nibbles(out + kCols * 8);
      break;
    case Layout::kF32:
    case Layout::kF16:
    case Layout::kBF16: break;
  }
}

inline void PackedWeights::pack_row(const TensorBytes& tensor, WeightFormat format,
                                    std::int64_t source, std::int64_t target,
                                    std::span<float> values) {
  const bool requantize = format == WeightFormat::kInt8 && tensor.dtype != DType::kQ8_0;
  if (block_size(layout_) == kBlock && !requantize) {
    const DTypeTraits traits = dtype_traits(tensor.dtype);
    const std::byte* row = tensor.bytes.data() + static_cast<std::size_t>(source) *
                                                     (static_cast<std::size_t>(cols_) /
                                                      traits.block_size * traits.block_bytes);
    for (std::int64_t block = 0; block < cols_ / kBlock; ++block) {
      write_block(target, block, read_row_block(tensor.dtype, row, block));
    }
    return;
  }
  [[maybe_unused]] const Status status = dequantize_row(tensor, source, values);
  assert(status.ok() && "pack() checks the shapes");
  if (requantize) {
    for (std::int64_t block = 0; block < cols_ / kBlock; ++block) {
      write_block(target, block, quantize_int8(values.data() + block * kBlock));
    }
    return;
  }
  const std::int64_t first = target / kCols * cols_ * kCols + target % kCols;
  const auto put_all = [&](auto round) {
    using Stored = decltype(round(0.0F));
    for (std::int64_t col = 0; col < cols_; ++col) {
      const Stored value = round(values[static_cast<std::size_t>(col)]);
      const auto slot = static_cast<std::size_t>(first + col * kCols);
      std::memcpy(&data_[slot * sizeof(Stored)], &value, sizeof(Stored));
    }
  };
  switch (layout_) {
    case Layout::kF16:
      put_all([](float value) { return to_f16(value); });
      break;  // from f16: exact
    case Layout::kBF16: put_all([](float value) { return to_bf16(value); }); break;
    default: put_all([](float value) { return value; }); break;
  }
}

inline Result<PackedWeights> PackedWeights::pack(const TensorBytes& tensor,
                                                 std::span<const std::int64_t> row_order,
                                                 WeightFormat format, ThreadPool& pool) {
  const DTypeTraits traits = dtype_traits(tensor.dtype);
  const auto cols = static_cast<std::size_t>(tensor.cols);
  if (tensor.rows <= 0 || tensor.cols <= 0 || cols % traits.block_size != 0) {
    return invalid_file("a " + std::string(traits.name) + " matrix of " +
                        std::to_string(tensor.rows) + " x " + std::to_string(tensor.cols) +
                        ", expected rows of whole blocks of " + std::to_string(traits.block_size));
  }
  if (tensor.bytes.size() / static_cast<std::size_t>(tensor.rows) <
      cols / traits.block_size * traits.block_bytes) {
    return invalid_file("a matrix's data is shorter than its shape says");
  }
  if (format == WeightFormat::kInt8 && cols % kBlock != 0) {
    return unsupported("int8 weights need input features in multiples of 32, not " +
                       std::to_string(cols));
  }
  PackedWeights packed;
  packed.rows_ = row_order.empty() ? tensor.rows : static_cast<std::int64_t>(row_order.size());
  if (packed.rows_ != tensor.rows) {
    return invalid_argument("row_order names " + std::to_string(packed.rows_) + " of " +
                            std::to_string(tensor.rows) + " rows");
  }
  for (const std::int64_t row : row_order) {
    if (row < 0 || row >= tensor.rows) {
      return invalid_argument("row_order names row " + std::to_string(row) + " of " +
                              std::to_string(tensor.rows));
    }
  }
  packed.cols_ = tensor.cols;
  packed.layout_ = layout_for(tensor.dtype, format);
  packed.data_.resize(
      static_cast<std::size_t>(packed.num_panels() * (tensor.cols / block_size(packed.layout_)) *
                               block_bytes(packed.layout_)));
  pool.parallel_for(packed.num_panels(), [&](std::int64_t panel, int) {
    std::vector<float> values(cols);
    const std::int64_t end = std::min(packed.rows_, (panel + 1) * kCols);
    for (std::int64_t row = panel * kCols; row < end; ++row) {
      packed.pack_row(tensor, format,
                      row_order.empty() ? row : row_order[static_cast<std::size_t>(row)], row,
                      values);
    }
  });
  return packed;
}

template <typename Scale, typename Sink>
inline Sink PackedWeights::decode_nibbles(const std::byte* block, bool has_minimum,
                                          std::int64_t feature, Sink sink) {
  using simd::F32x16;
  const auto* scales = reinterpret_cast<const Scale*>(block);
  const auto* nibbles = reinterpret_cast<const std::uint8_t*>(
      block + kCols * static_cast<std::int64_t>(sizeof(Scale)) * (has_minimum ? 2 : 1));
  const F32x16 scale0 = simd::load(scales);
  const F32x16 scale1 = simd::load(scales + simd::kLanes);
  // Without minima code 8 means zero; the product is exact.
  const F32x16 offset = simd::broadcast(-8.0F);
  const F32x16 minimum0 = has_minimum ? simd::load(scales + kCols) : scale0 * offset;
  const F32x16 minimum1 = has_minimum ? simd::load(scales + kCols + simd::kLanes) : scale1 * offset;
  for (std::int64_t j = 0; j < kBlock / 2; ++j) {
    F32x16 even0;
    F32x16 even1;
    F32x16 odd0;
    F32x16 odd1;
    simd::load_nibbles(nibbles + j * kCols, even0, odd0);
    simd::load_nibbles(nibbles + j * kCols + simd::kLanes, even1, odd1);
    sink(feature + 2 * j, simd::multiply_add(even0, scale0, minimum0),
         simd::multiply_add(even1, scale1, minimum1));
    sink(feature + 2 * j + 1, simd::multiply_add(odd0, scale0, minimum0),
         simd::multiply_add(odd1, scale1, minimum1));
  }
  return sink;
}

template <typename Scale, typename Sink>
inline Sink PackedWeights::decode_int8(const std::byte* block, std::int64_t num_features,
                                       std::int64_t feature, Sink sink) {
  const auto* scales = reinterpret_cast<const Scale*>(block);
  const auto* codes = reinterpret_cast<const std::int8_t*>(scales + kCols);
  const simd::F32x16 scale0 = simd::load(scales);
  const simd::F32x16 scale1 = simd::load(scales + simd::kLanes);
  for (std::int64_t k = 0; k < num_features; ++k) {
    sink(feature + k, simd::load(codes + k * kCols) * scale0,
         simd::load(codes + k * kCols + simd::kLanes) * scale1);
  }
  return sink;
}

template <typename Stored, typename Sink>
inline Sink PackedWeights::decode_plain(const std::byte* block, std::int64_t num_features,
                                        Sink sink) {
  const auto* values = reinterpret_cast<const Stored*>(block);
  constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(Stored));
  for (std::int64_t k = 0; k < num_features; ++k, values += kCols) {
    __builtin_prefetch(values + kAhead);
    if constexpr (sizeof(Stored) == 4) __builtin_prefetch(values + kAhead + simd::kLanes);
    sink(k, simd::load(values), simd::load(values + simd::kLanes));
  }
  return sink;
}

template <typename Sink>
inline Sink PackedWeights::decode(std::int64_t panel, std::int64_t first, std::int64_t depth,
                                  Sink sink) const {
  const std::int64_t size = block_size(layout_);
  const std::int64_t bytes = block_bytes(layout_);
  const std::byte* block = data_.data() + (panel * (cols_ / size) + first / size) * bytes;
  switch (layout_) {
    case Layout::kF32: return decode_plain<float>(block, depth, sink);
    case Layout::kF16: return decode_plain<F16>(block, depth, sink);
    case Layout::kBF16: return decode_plain<BF16>(block, depth, sink);
    default: break;
  }
  for (std::int64_t k = 0; k < depth; k += kBlock, block += bytes) {
    for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(block + kPrefetchBytes + i);
    switch (layout_) {
      case Layout::kInt8F16: sink = decode_int8<F16>(block, kBlock, k, sink); break;
      case Layout::kInt8F32:
        sink = decode_int8<float>(block, kBlock / 2, k, sink);
        sink =
            decode_int8<float>(block + kCols * (4 + kBlock / 2), kBlock / 2, k + kBlock / 2, sink);
        break;
      case Layout::kInt4F16: sink = decode_nibbles<F16>(block, false, k, sink); break;
      case Layout::kInt4MinF16: sink = decode_nibbles<F16>(block, true, k, sink); break;
      case Layout::kInt4MinF32: sink = decode_nibbles<float>(block, true, k, sink); break;
      default: break;
    }
  }
  return sink;
}

inline void PackedWeights::expand(std::int64_t panel, std::int64_t first, std::int64_t depth,
                                  float* out) const {
  struct Store {
    float* out;
    void operator()(std::int64_t k, simd::F32x16 low, simd::F32x16 high) const {
      simd::store(out + k * kCols, low);
      simd::store(out + k * kCols + simd::kLanes, high);
    }
  };
  decode(panel, first, depth, Store{out});
}

inline void PackedWeights::unpack_row(std::int64_t row, float* out) const {
  float block[kBlock * kCols];
  for (std::int64_t k = 0; k < cols_; k += kBlock) {
    const std::int64_t depth = std::min(kBlock, cols_ - k);
    expand(row / kCols, k, depth, block);
    for (std::int64_t i = 0; i < depth; ++i) out[k + i] = block[i * kCols + row % kCols];
  }
}

}  // namespace chunkllm
