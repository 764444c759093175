// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/model/block_kernel.hpp"
#include "chunkllm/model/quantized_rows.hpp"
#include "chunkllm/model/row_block.hpp"

namespace chunkllm {

/// A matrix [rows, cols] of 4, 6 or 8 bit blocks in panels of 16 rows, multiplied with 8 bit
/// activations.
///
/// A panel is its blocks of 32 input features one after the other, each laid out as
/// `detail::NibbleBlock` or `detail::ByteBlock` read it. The file's codes, scales and minima are
/// kept exactly; K-quants' sub-block scales stand as f32.
class PackedBlocks {
 public:
  PackedBlocks() = default;
  /// All zero.
  ///
  /// \param type  kQ8_0, kQ6_K, kQ4_0, kQ4_1 or kQ4_K   \param cols  a multiple of 32
  PackedBlocks(std::int64_t rows, std::int64_t cols, DType type)
      : rows_(rows),
        cols_(cols),
        type_(type),
        data_(static_cast<std::size_t>(bytes_of(rows, cols, type))) {}

  /// Memory of a matrix: the last panel is filled up.
  static std::int64_t bytes_of(std::int64_t rows, std::int64_t cols, DType type) {
    std::int64_t block_bytes = 0;
    visit(type, [&]<typename Block>() { block_bytes = Block::kBytes; });
    return (rows + kOutputs - 1) / kOutputs * (cols / kFeatures) * block_bytes;
  }

  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t cols() const { return cols_; }
  [[nodiscard]] DType type() const { return type_; }
  [[nodiscard]] std::int64_t bytes() const { return static_cast<std::int64_t>(data_.size()); }

  /// Puts the 32 input features from 32 `block` on into row `row`.
  void set_block(std::int64_t row, std::int64_t block, const detail::RowBlock& values) {
    visit(type_,
          [&]<typename Block>() { Block::write(at<Block>(row, block), row % kOutputs, values); });
  }

  /// out[r][i] = the product of row 16 panel + i of the matrix with activation row first_row + r.
  void multiply_rows(std::int64_t panel, const QuantizedRows& x, std::int64_t first_row,
                     std::int64_t num_rows, float* out, std::int64_t out_stride) const {
    visit(type_, [&]<typename Block>() {
      detail::multiply_block_rows<Block>(at<Block>(panel * kOutputs, 0), num_blocks(), x, first_row,
                                         num_rows, out, out_stride);
    });
  }

  /// Writes row `row` as f32 [cols], each weight rounded once.
  void unpack_row(std::int64_t row, float* out) const {
    visit(type_, [&]<typename Block>() {
      for (std::int64_t block = 0; block < num_blocks(); ++block) {
        const detail::RowBlock values = Block::read(at<Block>(row, block), row % kOutputs);
        for (std::int64_t k = 0; k < kFeatures; ++k) {
          out[block * kFeatures + k] =
              std::fma(values.scale[k / 16], static_cast<float>(values.codes[k]), values.minimum);
        }
      }
    });
  }

 private:
  static constexpr std::int64_t kOutputs = detail::kBlockOutputs;
  static constexpr std::int64_t kFeatures = detail::kBlockFeatures;

  [[nodiscard]] std::int64_t num_blocks() const { return cols_ / kFeatures; }

  /// Calls `action` with a type's block layout.
  template <typename Action>
  static void visit(DType type, Action&& action) {
    switch (type) {
      case DType::kQ8_0: return action.template operator()<detail::ByteBlock<F16, 1>>();
      case DType::kQ6_K: return action.template operator()<detail::ByteBlock<float, 2>>();
      case DType::kQ4_0: return action.template operator()<detail::NibbleBlock<F16, false>>();
      case DType::kQ4_1: return action.template operator()<detail::NibbleBlock<F16, true>>();
      case DType::kQ4_K: return action.template operator()<detail::NibbleBlock<float, true>>();
      case DType::kF32:
      case DType::kF16:
      case DType::kBF16: break;
    }
  }

  template <typename Block>
  [[nodiscard]] const std::byte* at(std::int64_t row, std::int64_t block) const {
    return data_.data() + (row / kOutputs * num_blocks() + block) * Block::kBytes;
  }
  template <typename Block>
  [[nodiscard]] std::byte* at(std::int64_t row, std::int64_t block) {
    return data_.data() + (row / kOutputs * num_blocks() + block) * Block::kBytes;
  }

  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  DType type_ = DType::kQ8_0;
  std::vector<std::byte> data_;
};

}  // namespace chunkllm
