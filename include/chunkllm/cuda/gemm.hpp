// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>

#include "chunkllm/core/status.hpp"

namespace chunkllm::cuda {

/// Y = X W^T, or Y += X W^T: rows of inputs against rows of weights, all row-major.
///
/// \tparam T    of X and W: __half or __nv_bfloat16
/// \tparam Out  of Y: T or float
template <typename T, typename Out>
struct GemmArgs {
  const T* inputs = nullptr;      ///< X [num_rows, in_features]
  const T* weights = nullptr;     ///< W [out_features, in_features]
  Out* outputs = nullptr;         ///< Y [num_rows, out_features]
  std::int64_t input_stride = 0;  ///< elements from row to row
  std::int64_t weight_stride = 0;
  std::int64_t output_stride = 0;
  std::int64_t num_rows = 0;
  std::int64_t in_features = 0;
  std::int64_t out_features = 0;
  bool accumulates = false;  ///< adds to what `outputs` holds
};

/// kOk, or what cuBLAS says behind the name of what was tried. Clears the runtime's last error as
/// `cuda_status` does.
inline Status cublas_status(cublasStatus_t status, std::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  static_cast<void>(cudaGetLastError());
  const StatusCode code = status == CUBLAS_STATUS_ALLOC_FAILED ? StatusCode::kResourceExhausted
                                                               : StatusCode::kDeviceError;
  return {code, std::string(what) + ": " + cublasGetStatusName(status)};
}

/// Enqueues the product on the stream of the caller's handle; nothing with 0 rows or 0 outputs.
///
/// Sums in f32. This allocates nothing; cuBLAS takes its workspace from the handle, so give it one
/// with `cublasSetWorkspace` where the product is captured in a graph or must give the same bits on
/// several streams at once. The handle's pointer mode is as before on return.
///
/// Errors: kInvalidArgument for null arrays, negative sizes, no input features, sizes or strides
///         that do not fit 32 bits, or strides below the row's size; else cuBLAS's own.
template <typename T, typename Out>
Status gemm(cublasHandle_t handle, const GemmArgs<T, Out>& args) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>,
                "inputs and weights are __half or __nv_bfloat16");
  static_assert(std::is_same_v<Out, T> || std::is_same_v<Out, float>,
                "outputs are of the inputs' type or float");
  const auto shape = [&args] {
    return std::to_string(args.num_rows) + " x " + std::to_string(args.in_features) + " times " +
           std::to_string(args.out_features) + " x " + std::to_string(args.in_features);
  };
  const auto fits = [](std::int64_t value, std::int64_t least) {
    return value >= least && value <= std::numeric_limits<int>::max();
  };
  if (!fits(args.num_rows, 0) || !fits(args.out_features, 0) || !fits(args.in_features, 1)) {
    return invalid_argument("gemm: " + shape() +
                            ", expected at least one input feature and 32 bit sizes");
  }
  if (args.num_rows == 0 || args.out_features == 0) return {};
  if (!fits(args.input_stride, args.in_features) || !fits(args.weight_stride, args.in_features) ||
      !fits(args.output_stride, args.out_features)) {
    return invalid_argument(
        "gemm: " + shape() + " with strides " + std::to_string(args.input_stride) + ", " +
        std::to_string(args.weight_stride) + " and " + std::to_string(args.output_stride) +
        ", expected at least a row each and 32 bits");
  }
  if (handle == nullptr || args.inputs == nullptr || args.weights == nullptr ||
      args.outputs == nullptr) {
    return invalid_argument("gemm: the handle and the arrays must not be null");
  }

  constexpr cudaDataType_t kType = std::is_same_v<T, __half> ? CUDA_R_16F : CUDA_R_16BF;
  constexpr cudaDataType_t kOutType = std::is_same_v<Out, float> ? CUDA_R_32F : kType;
  const float alpha = 1.0F;
  const float beta = args.accumulates ? 1.0F : 0.0F;
  cublasPointerMode_t mode = CUBLAS_POINTER_MODE_HOST;
  CHUNKLLM_RETURN_IF_ERROR(
      cublas_status(cublasGetPointerMode(handle, &mode), "cublasGetPointerMode"));
  CHUNKLLM_RETURN_IF_ERROR(cublas_status(cublasSetPointerMode(handle, CUBLAS_POINTER_MODE_HOST),
                                         "cublasSetPointerMode"));
  // cuBLAS is column-major, where our Y is Y^T [out_features, num_rows] = W X^T: W stands there as
  // its transpose, X as X^T already.
  const cublasStatus_t status =
      cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(args.out_features),
                   static_cast<int>(args.num_rows), static_cast<int>(args.in_features), &alpha,
                   args.weights, kType, static_cast<int>(args.weight_stride), args.inputs, kType,
                   static_cast<int>(args.input_stride), &beta, args.outputs, kOutType,
                   static_cast<int>(args.output_stride), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  const cublasStatus_t restored = cublasSetPointerMode(handle, mode);
  CHUNKLLM_RETURN_IF_ERROR(cublas_status(status, "cublasGemmEx, " + shape()));
  return cublas_status(restored, "cublasSetPointerMode");
}

}  // namespace chunkllm::cuda
