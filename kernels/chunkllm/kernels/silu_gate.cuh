// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/row_strides.cuh"

namespace chunkllm::kernels {

inline constexpr int kSiluThreads = 256;
/// 16 bytes of T: what a thread reads of the gate and of the up part at once.
inline constexpr int kSiluVector = 8;

/// What `launch_silu_gate` reads and writes. Rows start at multiples of 16 bytes; strides of 0
/// stand for rows side by side.
template <typename T>
struct SiluGateArgs {
  const T* gate_up = nullptr;  ///< [num_rows, 2 * inner]: the gate's part, then the other
  std::int64_t gate_up_stride = 0;
  const float* maybe_bias = nullptr;  ///< [2 * inner] or null: added to gate_up first
  T* out = nullptr;                   ///< [num_rows, inner]; not gate_up's memory
  std::int64_t out_stride = 0;
  std::int32_t num_rows = 0;
  std::int32_t inner = 0;  ///< a multiple of 8
};

/// gate * sigmoid(gate) * up in f32.
__device__ inline float silu_times(float gate, float up) {
  // Below -88 e^-gate would overflow, and -infinity would become NaN. A NaN stays: it is divided.
  return gate / (1.0F + expf(-fmaxf(gate, -88.0F))) * up;
}

template <typename T>
__global__ void __launch_bounds__(kSiluThreads) silu_gate_kernel(const SiluGateArgs<T> args) {
  const std::int64_t r = blockIdx.x;
  const int i = static_cast<int>(blockIdx.y * kSiluThreads + threadIdx.x) * kSiluVector;
  if (i >= args.inner) return;
  const T* row = args.gate_up + r * args.gate_up_stride;
  const uint4 gates = load_streaming(row + i);
  const uint4 ups = load_streaming(row + args.inner + i);
  const std::uint32_t gate_words[4] = {gates.x, gates.y, gates.z, gates.w};
  const std::uint32_t up_words[4] = {ups.x, ups.y, ups.z, ups.w};
  std::uint32_t out[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    float2 gate = Element<T>::to_float2(gate_words[w]);
    float2 up = Element<T>::to_float2(up_words[w]);
    if (args.maybe_bias != nullptr) {
      const float* bias = args.maybe_bias + i + 2 * w;
      gate.x += bias[0];
      gate.y += bias[1];
      up.x += bias[args.inner];
      up.y += bias[args.inner + 1];
    }
    out[w] = Element<T>::pack(silu_times(gate.x, up.x), silu_times(gate.y, up.y));
  }
  *reinterpret_cast<uint4*>(args.out + r * args.out_stride + i) = {out[0], out[1], out[2], out[3]};
}

/// out = gate * sigmoid(gate) * up, the activation of a gated MLP.
///
/// Numerics: in f32, one rounding to T. NaN stays NaN; a gate of -infinity gives -infinity times
///           up, as on the CPU.
/// Cost:     reads 4 bytes an output, writes 2.
/// Errors:   kInvalidArgument for null pointers, an `inner` that is no positive multiple of 8, rows
///           that overlap or do not start at multiples of 16 bytes.
template <typename T>
inline Status launch_silu_gate(SiluGateArgs<T> args, cudaStream_t stream) {
  if (args.num_rows == 0) return {};
  if (args.num_rows < 0 || args.inner <= 0 || args.inner % kSiluVector != 0) {
    return invalid_argument("silu_gate: " + std::to_string(args.num_rows) + " rows of " +
                            std::to_string(args.inner) +
                            " gates, expected a positive multiple of 8 gates");
  }
  if (args.gate_up == nullptr || args.out == nullptr) {
    return invalid_argument("silu_gate: gate_up and out must not be null");
  }
  CHUNKLLM_RETURN_IF_ERROR(take_row_stride("silu_gate: gate_up_stride", args.gate_up_stride,
                                           args.num_rows, 2 * std::int64_t{args.inner}));
  CHUNKLLM_RETURN_IF_ERROR(
      take_row_stride("silu_gate: out_stride", args.out_stride, args.num_rows, args.inner));
  if (!rows_are_aligned(args.gate_up, args.gate_up_stride) ||
      !rows_are_aligned(args.out, args.out_stride)) {
    return invalid_argument("silu_gate: rows must start at multiples of 16 bytes");
  }
  const dim3 grid(static_cast<unsigned>(args.num_rows),
                  static_cast<unsigned>(ceil_div(args.inner, kSiluThreads * kSiluVector)));
  silu_gate_kernel<T><<<grid, kSiluThreads, 0, stream>>>(args);
  return cuda::launch_status("silu_gate_kernel");
}

}  // namespace chunkllm::kernels
