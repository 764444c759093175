// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/unroll.hpp"

namespace chunkllm::detail {

/// Columns that one call of the micro kernel produces: two vectors of 16.
inline constexpr std::int64_t kPanelCols = 32;

#if defined(CHUNKLLM_SIMD_AVX512)
inline constexpr int kMicroRows = 12;  // 24 accumulators + 2 of b + 1 of a, of 32 registers
#else
inline constexpr int kMicroRows = 3;  // 12 accumulators + 4 of b, of 16 registers
#endif

/// c[Rows, 16 Vectors] (+)= a[Rows, depth] b[depth, 16 Vectors], where a's element (r, k) is a[r *
/// a_row + k * a_col] and b's row k begins at `b_row(k)`, in any storage type.
///
/// Each output is one chain of multiply-adds over ascending depth, whatever `Rows` is. That is
/// what makes a row's result independent of the rows beside it, and lets a caller split the
/// depth into blocks: storing and reloading c in between is exact.
///
/// Strides are in elements; the columns of b and c are contiguous.
template <int Rows, int Vectors, typename RowOf>
inline void multiply_tile(const float* a, std::int64_t a_row, std::int64_t a_col,
                          const RowOf& b_row, float* c, std::int64_t c_row, std::int64_t depth,
                          bool accumulate) {
  simd::F32x16 sum[Rows][Vectors];
  CHUNKLLM_UNROLL(16)
  for (int r = 0; r < Rows; ++r) {
    CHUNKLLM_UNROLL(4)
    for (int v = 0; v < Vectors; ++v) {
      sum[r][v] = accumulate ? simd::load(c + r * c_row + v * simd::kLanes) : simd::zero();
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    simd::F32x16 column[Vectors];
    CHUNKLLM_UNROLL(4)
    for (int v = 0; v < Vectors; ++v) {
      column[v] = simd::load(b_row(k) + v * simd::kLanes);
    }
    CHUNKLLM_UNROLL(16)
    for (int r = 0; r < Rows; ++r) {
      const simd::F32x16 x = simd::broadcast(a[r * a_row + k * a_col]);
      CHUNKLLM_UNROLL(4)
      for (int v = 0; v < Vectors; ++v) {
        sum[r][v] = simd::multiply_add(x, column[v], sum[r][v]);
      }
    }
  }
  CHUNKLLM_UNROLL(16)
  for (int r = 0; r < Rows; ++r) {
    CHUNKLLM_UNROLL(4)
    for (int v = 0; v < Vectors; ++v) {
      simd::store(c + r * c_row + v * simd::kLanes, sum[r][v]);
    }
  }
}

/// `multiply_tile` for any number of rows: full tiles, then one of the remaining height.
template <int Vectors = 2, typename RowOf>
inline void multiply_panel_rows(const float* a, std::int64_t a_row, std::int64_t a_col,
                                const RowOf& b_row, float* c, std::int64_t c_row, std::int64_t rows,
                                std::int64_t depth, bool accumulate) {
  std::int64_t r = 0;
  for (; r + kMicroRows <= rows; r += kMicroRows) {
    multiply_tile<kMicroRows, Vectors>(a + r * a_row, a_row, a_col, b_row, c + r * c_row, c_row,
                                       depth, accumulate);
  }
  const auto rest = [&]<int Rows>(auto&& self) -> void {
    if constexpr (Rows > 0) {
      if (rows - r == Rows) {
        multiply_tile<Rows, Vectors>(a + r * a_row, a_row, a_col, b_row, c + r * c_row, c_row,
                                     depth, accumulate);
      } else {
        self.template operator()<Rows - 1>(self);
      }
    }
  };
  rest.template operator()<kMicroRows - 1>(rest);
}

/// As above where b's rows lie `b_row` floats apart.
template <int Vectors = 2>
inline void multiply_panel(const float* a, std::int64_t a_row, std::int64_t a_col, const float* b,
                           std::int64_t b_row, float* c, std::int64_t c_row, std::int64_t rows,
                           std::int64_t depth, bool accumulate) {
  multiply_panel_rows<Vectors>(
      a, a_row, a_col, [&](std::int64_t k) { return b + k * b_row; }, c, c_row, rows, depth,
      accumulate);
}

}  // namespace chunkllm::detail
