// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <type_traits>

#include "chunkllm/core/tensor_view.hpp"

namespace chunkllm {

/// Row-major Eigen matrix of f32, the layout of every activation in this library.
using EigenMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A view's values as an Eigen matrix, without a copy.
///
/// For arithmetic around the library's operations. Eigen chooses its order of summation by shape
/// and alignment, so the library's own kernels, whose rows must not depend on each other, do not
/// go through it (docs/numerics.md).
inline Eigen::Map<EigenMatrix, Eigen::Unaligned, Eigen::OuterStride<>> as_eigen(
    MatrixView<float> view) {
  return {view.data, view.rows, view.cols, Eigen::OuterStride<>(view.row_stride)};
}
inline Eigen::Map<const EigenMatrix, Eigen::Unaligned, Eigen::OuterStride<>> as_eigen(
    MatrixView<const float> view) {
  return {view.data, view.rows, view.cols, Eigen::OuterStride<>(view.row_stride)};
}

/// A row-major Eigen matrix, map or block of rows as a view, without a copy.
///
/// \param matrix  must outlive the view; its rows must be contiguous
template <typename Derived>
requires(bool(Derived::IsRowMajor) && std::is_same_v<typename Derived::Scalar, float>)
    MatrixView<float> as_view(Eigen::PlainObjectBase<Derived>& matrix) {
  return {matrix.data(), matrix.rows(), matrix.cols(), matrix.outerStride()};
}
template <typename Derived>
requires(bool(Derived::IsRowMajor) && std::is_same_v<typename Derived::Scalar, float>)
    MatrixView<const float> as_view(const Eigen::PlainObjectBase<Derived>& matrix) {
  return {matrix.data(), matrix.rows(), matrix.cols(), matrix.outerStride()};
}

}  // namespace chunkllm
