// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <bit>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "chunkllm/core/dtype.hpp"

namespace chunkllm::cuda {

/// `value` rounded to a device type as the library's host types round.
template <typename T>
T rounded(float value) {
  if constexpr (std::is_same_v<T, __half>) {
    return std::bit_cast<__half>(to_f16(value).bits);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return std::bit_cast<__nv_bfloat16>(to_bf16(value).bits);
  } else {
    static_assert(std::is_same_v<T, float>, "__half, __nv_bfloat16 or float");
    return value;
  }
}
template <typename T>
std::vector<T> rounded(std::span<const float> values) {
  std::vector<T> out(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) out[i] = rounded<T>(values[i]);
  return out;
}

}  // namespace chunkllm::cuda
