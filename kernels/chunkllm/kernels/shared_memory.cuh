// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_attribute.hpp"

namespace chunkllm::kernels {

/// Lets launches of a kernel ask for any size of shared memory that a block of the current device
/// can have; what one takes is said at the launch.
///
/// The bound belongs to the kernel and the device, not to a launch. Set to what each launch needs
/// it would be another thread's, who launches the same kernel with less, by the time of the launch.
///
/// Errors: kDeviceError
template <typename... Parameters>
inline Status allow_any_shared(std::string_view name, void (*kernel)(Parameters...)) {
  const std::string what = std::string(name) + ": shared memory";
  CHUNKLLM_ASSIGN_OR_RETURN(const int most,
                            cuda::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  cudaFuncAttributes attributes = {};
  CHUNKLLM_RETURN_IF_ERROR(cuda::cuda_status(cudaFuncGetAttributes(&attributes, kernel), what));
  const int dynamic = most - static_cast<int>(attributes.sharedSizeBytes);
  return cuda::cuda_status(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic), what);
}

}  // namespace chunkllm::kernels
