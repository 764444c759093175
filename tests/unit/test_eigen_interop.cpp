// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/core/eigen_interop.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace chunkllm {
namespace {

TEST(EigenInterop, ViewsWithAStrideMapTheSameValues) {
  std::vector<float> memory(3 * 5);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  const MatrixView<float> view(memory.data(), /*num_rows=*/3, /*num_cols=*/4, /*stride=*/5);
  auto mapped = as_eigen(view);
  ASSERT_EQ(mapped.rows(), 3);
  ASSERT_EQ(mapped.cols(), 4);
  for (Eigen::Index r = 0; r < 3; ++r) {
    for (Eigen::Index c = 0; c < 4; ++c) EXPECT_EQ(mapped(r, c), view.row(r)[c]);
  }
  mapped(2, 3) = -1.0F;
  EXPECT_EQ(memory[13], -1.0F);
  EXPECT_EQ(as_eigen(MatrixView<const float>(view))(2, 3), -1.0F);
}

TEST(EigenInterop, AMatrixBecomesAViewOfItsOwnMemory) {
  EigenMatrix matrix(2, 3);
  matrix << 1, 2, 3, 4, 5, 6;
  const MatrixView<float> view = as_view(matrix);
  ASSERT_EQ(view.rows, 2);
  ASSERT_EQ(view.cols, 3);
  EXPECT_EQ(view.row(1)[0], 4.0F);
  view.row(0)[2] = 9.0F;
  EXPECT_EQ(matrix(0, 2), 9.0F);
  const EigenMatrix& constant = matrix;
  EXPECT_EQ(as_view(constant).data, matrix.data());
}

}  // namespace
}  // namespace chunkllm
