// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/simd_transpose.hpp"
#include "chunkllm/model/micro_kernel.hpp"

namespace chunkllm::detail {

/// `size` rounded up to whole vectors of lanes.
constexpr std::int64_t padded(std::int64_t size) {
  return (size + simd::kLanes - 1) / simd::kLanes * simd::kLanes;
}

/// Row-major f32 matrix whose parts the micro kernel can read and write in whole vectors.
///
/// A vector that begins inside a row may be read to its end; up to column `padded(cols)` it may be
/// written, too. Such padding holds anything. Rows lie an odd number of vectors apart: at a power
/// of two the rows of a column would all fall into a few sets of the cache.
class PaddedMatrix {
 public:
  /// Values are unspecified afterwards; memory only grows, so that a matrix can be used again.
  void resize(std::int64_t rows, std::int64_t cols) {
    rows_ = rows;
    cols_ = cols;
    const std::int64_t vectors = padded(cols) / simd::kLanes;
    stride_ = (vectors % 2 == 0 ? vectors + 1 : vectors) * simd::kLanes;
    // The last vectors of a transposition are whole rows; a read may run over the last row.
    const auto size = static_cast<std::size_t>(padded(rows) * stride_ + simd::kLanes);
    if (values_.size() < size) values_.resize(size);
  }

  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t cols() const { return cols_; }
  [[nodiscard]] std::int64_t stride() const { return stride_; }  ///< floats from row to row
  [[nodiscard]] float* row(std::int64_t r) { return values_.data() + r * stride_; }
  [[nodiscard]] const float* row(std::int64_t r) const { return values_.data() + r * stride_; }

  /// Becomes the transpose of `source`, another matrix.
  void set_transposed(const PaddedMatrix& source) {
    resize(source.cols(), source.rows());
    for (std::int64_t r = 0; r < source.rows(); r += simd::kLanes) {
      const float* rows[simd::kLanes];
      for (std::int64_t i = 0; i < simd::kLanes; ++i) {
        rows[i] = source.row(std::min(r + i, source.rows() - 1));
      }
      for (std::int64_t c = 0; c < source.cols(); c += simd::kLanes) {
        simd::transpose_16x16(rows, c, row(c) + r, stride_);
      }
    }
  }

 private:
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::int64_t stride_ = 0;
  std::vector<float> values_;
};

/// An operand a[r, k] = data[r * row + k * col] of a product; `row == 1` reads a transpose.
struct StridedOperand {
  const float* data = nullptr;
  std::int64_t row = 0;
  std::int64_t col = 0;
};

/// c[rows, cols] = a[rows, depth] b[depth, cols], or += where `accumulate`.
///
/// Each value of c is one chain of multiply-adds over ascending depth that goes on from the value
/// found there, so that sums do not depend on how calls cut rows and columns.
///
/// \param b  part of a `PaddedMatrix`, `b_row` floats from row to row
/// \param c  written in columns [0, cols) only, `c_row` floats from row to row
/// Cost: 2 rows cols depth flops; allocates nothing
inline void multiply(const StridedOperand& a, const float* b, std::int64_t b_row, float* c,
                     std::int64_t c_row, std::int64_t rows, std::int64_t cols, std::int64_t depth,
                     bool accumulate) {
  constexpr std::int64_t kDepth = 256;    // a panel of b stays in the first cache
  constexpr std::int64_t kEdgeRows = 96;  // 8 tiles
  const auto panel = [&](const StridedOperand& part, const float* b_part, float* out,
                         std::int64_t out_row, std::int64_t num_rows, std::int64_t num_cols,
                         std::int64_t num_depth, bool adds) {
    if (num_cols > simd::kLanes) {
      multiply_panel<2>(part.data, part.row, part.col, b_part, b_row, out, out_row, num_rows,
                        num_depth, adds);
    } else {
      multiply_panel<1>(part.data, part.row, part.col, b_part, b_row, out, out_row, num_rows,
                        num_depth, adds);
    }
  };
  for (std::int64_t k = 0; k == 0 || k < depth; k += kDepth) {
    const std::int64_t count = std::min(kDepth, depth - k);
    const bool adds = accumulate || k > 0;
    for (std::int64_t first = 0; first < cols; first += kPanelCols) {
      const std::int64_t width = std::min(kPanelCols, cols - first);
      StridedOperand part = {a.data + k * a.col, a.row, a.col};
      const float* b_part = b + k * b_row + first;
      if (width % simd::kLanes == 0) {
        panel(part, b_part, c + first, c_row, rows, width, count, adds);
        continue;
      }
      // Vectors must not be stored over what lies beside c.
      float edge[kEdgeRows * kPanelCols] = {};
      for (std::int64_t r = 0; r < rows; r += kEdgeRows, part.data += kEdgeRows * a.row) {
        const std::int64_t height = std::min(kEdgeRows, rows - r);
        float* out = c + r * c_row + first;
        for (std::int64_t i = 0; adds && i < height; ++i) {
          std::copy_n(out + i * c_row, width, edge + i * kPanelCols);
        }
        panel(part, b_part, edge, kPanelCols, height, width, count, adds);
        for (std::int64_t i = 0; i < height; ++i) {
          std::copy_n(edge + i * kPanelCols, width, out + i * c_row);
        }
      }
    }
  }
}

}  // namespace chunkllm::detail
