// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "chunkllm/core/status.hpp"

/// The rule of strides from row to row, which all launchers keep: 0 stands for rows side by side,
/// and rows never overlap.
namespace chunkllm::kernels {

/// Puts `width`, the elements of a row, in the place of a stride of 0.
///
/// \param name  the launcher's and the field's, for the message
/// Errors: kInvalidArgument for several rows that are nearer to each other than they are wide
inline Status take_row_stride(const std::string& name, std::int64_t& stride, std::int64_t num_rows,
                              std::int64_t width) {
  if (stride == 0) stride = width;
  if (num_rows <= 1 || stride >= width) return {};
  return invalid_argument(name + " is " + std::to_string(stride) + ", expected 0 or at least " +
                          std::to_string(width) + ", the width of a row");
}

}  // namespace chunkllm::kernels
