// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"

namespace chunkllm::cuda {

/// kOk, or what the runtime says of `error` behind the name of what was tried. The runtime's memory
/// of its last error is cleared, so that nobody else is told of this one: an allocation that
/// failed must not count against the next launch. What has broken the context stays.
inline Status cuda_status(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return {};
  static_cast<void>(cudaGetLastError());
  const StatusCode code = error == cudaErrorMemoryAllocation ? StatusCode::kResourceExhausted
                                                             : StatusCode::kDeviceError;
  return {code,
          std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error)};
}

/// The status of the launch just made. An error of an earlier asynchronous call shows here, too.
inline Status launch_status(std::string_view kernel) {
  return cuda_status(cudaGetLastError(), kernel);
}

}  // namespace chunkllm::cuda
