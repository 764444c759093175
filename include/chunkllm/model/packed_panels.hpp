// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/model/micro_kernel.hpp"

namespace chunkllm {

/// A matrix [rows, cols] of f32, f16 or bf16 in panels of 32 rows, input feature by input feature,
/// multiplied with f32 activations.
///
/// Inside a panel the 32 rows' weights for one input feature lie side by side, so that a product
/// reads memory in order and needs no sum across lanes.
class PackedPanels {
 public:
  PackedPanels() = default;
  /// All zero. \param type  kF32, kF16 or kBF16
  PackedPanels(std::int64_t rows, std::int64_t cols, DType type)
      : rows_(rows),
        cols_(cols),
        type_(type),
        data_(static_cast<std::size_t>(bytes_of(rows, cols, type))) {}

  /// Memory of a matrix: the last panel is filled up.
  static std::int64_t bytes_of(std::int64_t rows, std::int64_t cols, DType type) {
    return (rows + kCols - 1) / kCols * kCols * cols *
           static_cast<std::int64_t>(dtype_traits(type).block_bytes);
  }

  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t cols() const { return cols_; }
  [[nodiscard]] std::int64_t bytes() const { return static_cast<std::int64_t>(data_.size()); }

  /// Rounds one row to the panels' type. \param values  [cols]
  void set_row(std::int64_t row, std::span<const float> values) {
    switch (type_) {
      case DType::kF16: return set_row<F16>(row, values);
      case DType::kBF16: return set_row<BF16>(row, values);
      default: return set_row<float>(row, values);
    }
  }

  /// out[row in panel] = the panel's 32 outputs for one row of activations.
  ///
  /// The same chains of multiply-adds as `multiply_rows`, but the weights go to the sums without a
  /// stop in memory.
  void multiply_row(std::int64_t panel, const float* x, float* out) const {
    struct Sums {
      const float* x;
      simd::F32x16 low = simd::zero();
      simd::F32x16 high = simd::zero();
      void operator()(std::int64_t k, simd::F32x16 w0, simd::F32x16 w1) {
        low = simd::multiply_add(simd::broadcast(x[k]), w0, low);
        high = simd::multiply_add(simd::broadcast(x[k]), w1, high);
      }
    };
    const Sums sums = decode(panel, 0, cols_, Sums{x});
    simd::store(out, sums.low);
    simd::store(out + simd::kLanes, sums.high);
  }

  /// out[r][row in panel] = the panel's 32 outputs, in one chain of multiply-adds over ascending
  /// input features each.
  ///
  /// \param x, x_stride      [num_rows, cols]      \param out, out_stride  [num_rows, 32]
  void multiply_rows(std::int64_t panel, const float* x, std::int64_t x_stride,
                     std::int64_t num_rows, float* out, std::int64_t out_stride) const {
    if (num_rows == 1) return multiply_row(panel, x, out);
    alignas(64) float weights[kDepthBlock * kCols];
    for (std::int64_t k = 0; k < cols_; k += kDepthBlock) {
      const std::int64_t depth = std::min(kDepthBlock, cols_ - k);
      expand(panel, k, depth, weights);
      detail::multiply_panel(x + k, x_stride, /*a_col=*/1, weights, kCols, out, out_stride,
                             num_rows, depth, /*accumulate=*/k > 0);
    }
  }

  /// Writes row `row` as f32 [cols].
  void unpack_row(std::int64_t row, float* out) const {
    float block[kUnpackDepth * kCols];
    for (std::int64_t k = 0; k < cols_; k += kUnpackDepth) {
      const std::int64_t depth = std::min(kUnpackDepth, cols_ - k);
      expand(row / kCols, k, depth, block);
      for (std::int64_t i = 0; i < depth; ++i) out[k + i] = block[i * kCols + row % kCols];
    }
  }

 private:
  static constexpr std::int64_t kCols = detail::kPanelCols;
  // Input features expanded at a time: 256 x 32 floats fill two thirds of a 48 KB L1 cache.
  static constexpr std::int64_t kDepthBlock = 256;
  static constexpr std::int64_t kUnpackDepth = 32;
  // Hardware prefetchers stop at pages and start late; decoding reads each weight once.
  static constexpr std::int64_t kPrefetchBytes = 4096;

  template <typename Stored>
  void set_row(std::int64_t row, std::span<const float> values) {
    const std::int64_t first = row / kCols * cols_ * kCols + row % kCols;
    for (std::int64_t col = 0; col < cols_; ++col) {
      const auto value = from_f32<Stored>(values[static_cast<std::size_t>(col)]);
      const auto slot = static_cast<std::size_t>(first + col * kCols);
      std::memcpy(&data_[slot * sizeof(Stored)], &value, sizeof(Stored));
    }
  }

  /// Calls `sink(k, low, high)` for k = 0, ..., depth - 1 with the panel's weights for input
  /// feature first + k: rows 0..15 in `low`, rows 16..31 in `high`.
  ///
  /// \returns the sink. It travels by value, so that sums which it holds stay in registers.
  template <typename Sink>
  Sink decode(std::int64_t panel, std::int64_t first, std::int64_t depth, Sink sink) const {
    switch (type_) {
      case DType::kF16: return decode<F16>(panel, first, depth, sink);
      case DType::kBF16: return decode<BF16>(panel, first, depth, sink);
      default: return decode<float>(panel, first, depth, sink);
    }
  }
  template <typename Stored, typename Sink>
  Sink decode(std::int64_t panel, std::int64_t first, std::int64_t depth, Sink sink) const {
    constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(Stored));
    const auto* values =
        reinterpret_cast<const Stored*>(data_.data()) + (panel * cols_ + first) * kCols;
    for (std::int64_t k = 0; k < depth; ++k, values += kCols) {
      __builtin_prefetch(values + kAhead);
      if constexpr (sizeof(Stored) == 4) __builtin_prefetch(values + kAhead + simd::kLanes);
      sink(k, simd::load(values), simd::load(values + simd::kLanes));
    }
    return sink;
  }

  /// Writes weights[k - first][row in panel] for k in [first, first + depth), as f32.
  void expand(std::int64_t panel, std::int64_t first, std::int64_t depth, float* out) const {
    struct Store {
      float* out;
      void operator()(std::int64_t k, simd::F32x16 low, simd::F32x16 high) const {
        simd::store(out + k * kCols, low);
        simd::store(out + k * kCols + simd::kLanes, high);
      }
    };
    decode(panel, first, depth, Store{out});
  }

  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  DType type_ = DType::kF32;
  std::vector<std::byte> data_;
};

}  // namespace chunkllm
