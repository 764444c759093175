// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/train/padded_matrix.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/random_values.hpp"

namespace chunkllm::detail {
namespace {

using testing::random_values;

PaddedMatrix random_matrix(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  const std::vector<float> values = random_values(rows * cols, seed);
  PaddedMatrix matrix;
  matrix.resize(rows, cols);
  for (std::int64_t r = 0; r < rows; ++r) {
    std::copy_n(values.data() + r * cols, cols, matrix.row(r));
  }
  return matrix;
}

TEST(PaddedMatrix, RowsAreAnOddNumberOfVectorsApart) {
  PaddedMatrix matrix;
  for (std::int64_t cols = 0; cols < 100; ++cols) {
    matrix.resize(3, cols);
    EXPECT_GE(matrix.stride(), cols);
    EXPECT_EQ(matrix.stride() % 32, 16);
    EXPECT_EQ(matrix.cols(), cols);
  }
}

TEST(PaddedMatrix, Transposes) {
  for (const std::int64_t rows : {1, 15, 16, 17, 40}) {
    for (const std::int64_t cols : {1, 16, 31, 33}) {
      const PaddedMatrix source = random_matrix(rows, cols, 3);
      PaddedMatrix transposed;
      transposed.set_transposed(source);
      ASSERT_EQ(transposed.rows(), cols);
      ASSERT_EQ(transposed.cols(), rows);
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < cols; ++c) {
          ASSERT_EQ(transposed.row(c)[r], source.row(r)[c]) << rows << " x " << cols;
        }
      }
    }
  }
}

/// The chain that a value of the product is; plain multiply-adds, fused or not.
void expect_chain(float actual, float start, std::int64_t depth, const auto& a, const auto& b) {
  double sum = static_cast<double>(start);
  double size = std::abs(sum);
  for (std::int64_t k = 0; k < depth; ++k) {
    const double term = static_cast<double>(a(k)) * static_cast<double>(b(k));
    sum += term;
    size += std::abs(term);
  }
  const double bound = size * static_cast<double>(2 * depth + 1) * 0x1p-24;
  ASSERT_TRUE(std::abs(static_cast<double>(actual) - sum) <= bound) << actual << " for " << sum;
}

TEST(PaddedMatrixProduct, IsTheSumAndStaysWithinItsColumns) {
  constexpr float kFence = 77.0F;
  for (const std::int64_t rows : {1, 12, 13, 97}) {
    for (const std::int64_t cols : {1, 15, 16, 17, 32, 33, 48, 63}) {
      for (const std::int64_t depth : {0, 1, 256, 300}) {
        for (const bool accumulate : {false, true}) {
          const PaddedMatrix a = random_matrix(depth, rows, 5);  // read as its transpose
          const PaddedMatrix b = random_matrix(depth, cols, 6);
          const std::int64_t c_row = cols + 2;
          std::vector<float> c(static_cast<std::size_t>(rows * c_row), kFence);
          multiply({a.row(0), 1, a.stride()}, b.row(0), b.stride(), c.data(), c_row, rows, cols,
                   depth, accumulate);
          for (std::int64_t r = 0; r < rows; ++r) {
            const float* row = c.data() + r * c_row;
            for (std::int64_t col = 0; col < cols; ++col) {
              expect_chain(
                  row[col], accumulate ? kFence : 0.0F, depth,
                  [&](std::int64_t k) { return a.row(k)[r]; },
                  [&](std::int64_t k) { return b.row(k)[col]; });
            }
            ASSERT_EQ(row[cols], kFence);
            ASSERT_EQ(row[cols + 1], kFence);
          }
        }
      }
    }
  }
}

TEST(PaddedMatrixProduct, CutsChangeNoBit) {
  const PaddedMatrix a = random_matrix(29, 310, 7);
  const PaddedMatrix b = random_matrix(310, 45, 8);
  std::vector<float> whole(29 * 45);
  multiply({a.row(0), a.stride(), 1}, b.row(0), b.stride(), whole.data(), 45, 29, 45, 310,
           /*accumulate=*/false);
  std::vector<float> cut(29 * 45);
  for (const std::int64_t depth_begin : {0, 100}) {
    const std::int64_t depth = depth_begin == 0 ? 100 : 210;
    for (const std::int64_t row : {0, 7}) {
      multiply({a.row(row) + depth_begin, a.stride(), 1}, b.row(depth_begin), b.stride(),
               cut.data() + row * 45, 45, row == 0 ? 7 : 22, 45, depth,
               /*accumulate=*/depth_begin > 0);
    }
  }
  EXPECT_EQ(cut, whole);
}

}  // namespace
}  // namespace chunkllm::detail
