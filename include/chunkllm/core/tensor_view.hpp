// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "chunkllm/core/dtype.hpp"

namespace chunkllm {

/// Non-owning rows x cols matrix; the values of a row are contiguous.
template <typename T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  ///< elements from one row to the next, >= cols

  MatrixView() = default;
  MatrixView(T* values, std::int64_t num_rows, std::int64_t num_cols)
      : MatrixView(values, num_rows, num_cols, num_cols) {}
  MatrixView(T* values, std::int64_t num_rows, std::int64_t num_cols, std::int64_t stride)
      : data(values), rows(num_rows), cols(num_cols), row_stride(stride) {}
  /// A view of mutable values is a view of constant ones.
  template <typename Mutable>
  requires(!std::is_const_v<Mutable> && std::is_same_v<const Mutable, T>)
      MatrixView(const MatrixView<Mutable>& other)
      : MatrixView(other.data, other.rows, other.cols, other.row_stride) {}

  [[nodiscard]] T* row(std::int64_t r) const { return data + r * row_stride; }
  /// Rows [first, first + count).
  [[nodiscard]] MatrixView middle_rows(std::int64_t first, std::int64_t count) const {
    return {row(first), count, cols, row_stride};
  }
};

/// A tensor inside a file: bytes in the file's own layout, shape with the contiguous axis last.
struct TensorBytes {
  DType dtype = DType::kF32;
  std::span<const std::byte> bytes;  ///< may be misaligned: read with memcpy
  std::int64_t rows = 0;             ///< 1 for a vector
  std::int64_t cols = 0;
};

}  // namespace chunkllm
