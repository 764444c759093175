// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"

namespace chunkllm::cuda {

/// A number of the current device. Errors: kDeviceError
inline Result<int> device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  CHUNKLLM_RETURN_IF_ERROR(cuda_status(cudaGetDevice(&device), "cudaGetDevice"));
  CHUNKLLM_RETURN_IF_ERROR(
      cuda_status(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute"));
  return value;
}

}  // namespace chunkllm::cuda
