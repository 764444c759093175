// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/device_attribute.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/dependent_launch.cuh"
#include "chunkllm/kernels/matrix_vector_parts.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/rms_norm.cuh"
#include "chunkllm/kernels/row_strides.cuh"
#include "chunkllm/kernels/shared_memory.cuh"
#include "chunkllm/kernels/silu_gate.cuh"

namespace chunkllm::kernels {

/// Copies the rows of x into `staged`.
template <typename T>
__device__ inline void stage_rows(const MatrixVectorArgs<T>& args, T* staged) {
  constexpr int kVector = MatrixVectorShape::kVectorK;
  for (int r = 0; r < args.num_rows; ++r) {
    const T* row = args.x + r * args.x_stride;
    T* target = staged + r * staged_stride(args.k);
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x) * kVector; i < args.k;
         i += MatrixVectorShape::kThreads * kVector) {
      *reinterpret_cast<uint4*>(target + i) = *reinterpret_cast<const uint4*>(row + i);
    }
  }
  __syncthreads();
}

/// The norm's weights that a thread multiplies by, as many as it holds in registers: asked for
/// before the wait, they are there when the rows are.
class NormWeights {
 public:
  static constexpr int kHeld = 4;  ///< groups of four: all of 4096 values
  static constexpr int kStep = kNormThreads * 4;

  __device__ NormWeights(const float* weight, int size) : weight_(weight) {
#pragma unroll
    for (int s = 0; s < kHeld; ++s) {
      const int i = first() + s * kStep;
      // Volatile: the assembler would move another load behind the wait.
      if (i < size) {
        asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(held_[s].x), "=f"(held_[s].y), "=f"(held_[s].z), "=f"(held_[s].w)
                     : "l"(weight + i));
      }
    }
  }
  /// Calls body(i, weights of i to i + 3) for the thread's groups of `size` values.
  template <typename Body>
  __device__ void for_each(int size, const Body& body) const {
#pragma unroll
    for (int s = 0; s < kHeld; ++s) {
      const int i = first() + s * kStep;
      if (i < size) body(i, held_[s]);
    }
    for (int i = first() + kHeld * kStep; i < size; i += kStep) {
      body(i, *reinterpret_cast<const float4*>(weight_ + i));
    }
  }

 private:
  __device__ static int first() {
    return static_cast<int>(threadIdx.x) * 4;
  }

  const float* weight_;
  float4 held_[kHeld];
};

/// Norms the rows of `args.hidden` into `staged`; block 0 also writes them out where asked.
template <typename T>
__device__ inline void stage_normed_rows(const MatrixVectorArgs<T>& args,
                                         const NormWeights& weights, float* warp_sums, T* staged) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int r = 0; r < args.num_rows; ++r) {
    const float* row = args.hidden + r * args.hidden_stride;
    const float sum = warp_sum(thread_sum_of_squares(row, args.k));
    if (thread % kWarpSize == 0) warp_sums[r * kNormWarps + thread / kWarpSize] = sum;
  }
  __syncthreads();
  const bool writes = blockIdx.x == 0 && args.maybe_normed != nullptr;
  for (int r = 0; r < args.num_rows; ++r) {
    const float* row = args.hidden + r * args.hidden_stride;
    const float scale = norm_scale(warp_sums + r * kNormWarps, args.k, args.eps);
    weights.for_each(args.k, [&](int i, float4 weight) {
      const float4 given = *reinterpret_cast<const float4*>(row + i);
      const uint2 values = normed_values<T>(given, weight, scale);
      *reinterpret_cast<uint2*>(staged + r * staged_stride(args.k) + i) = values;
      if (writes) {
        *reinterpret_cast<uint2*>(args.maybe_normed + static_cast<std::int64_t>(r) * args.k + i) =
            values;
      }
    });
  }
  __syncthreads();
}

/// What is added to an output's sum: asked for before the sum is known.
struct Addends {
  float bias = 0.0F;
  float up_bias = 0.0F;
  float residual = 0.0F;
};
template <typename T>
__device__ inline Addends load_addends(const MatrixVectorArgs<T>& args, int column, int output) {
  Addends addends;
  if (args.maybe_bias != nullptr) {
    addends.bias = args.maybe_bias[output];
    if (args.epilogue == Epilogue::kSiluGate) {
      addends.up_bias = args.maybe_bias[output + args.num_outputs / 2];
    }
  }
  if (args.epilogue == Epilogue::kAddF32) {
    addends.residual = args.y_f32[column * args.y_f32_stride + output];
  }
  return addends;
}

/// Adds the warps' sums of one output in their order and hands the result on.
///
/// \param sums  [kWarps, num_columns, kColumnStride]
template <typename T>
__device__ inline void finish_output(const MatrixVectorArgs<T>& args, const Addends& addends,
                                     const float* sums, int num_columns, int column,
                                     int row_in_tile, int output) {
  using Shape = MatrixVectorShape;
  const auto total = [&](int tile_row) {
    float sum = 0.0F;
#pragma unroll
    for (int w = 0; w < Shape::kWarps; ++w) {
      sum += sums[(w * num_columns + column) * Shape::kColumnStride + tile_row];
    }
    return sum;
  };
  const float value = total(row_in_tile) + addends.bias;
  switch (args.epilogue) {
    case Epilogue::kStore:
      args.y[column * args.y_stride + output] = Element<T>::from_float(value);
      break;
    case Epilogue::kStoreF32: args.y_f32[column * args.y_f32_stride + output] = value; break;
    case Epilogue::kAddF32:
      args.y_f32[column * args.y_f32_stride + output] = addends.residual + value;
      break;
    case Epilogue::kSiluGate: {
      const float up = total(row_in_tile + Shape::kTileRows / 2) + addends.up_bias;
      args.y[column * args.y_stride + output] = Element<T>::from_float(silu_times(value, up));
      break;
    }
  }
}

template <typename T, int kColumnTiles, int kRowTiles, VectorInput kInput>
__global__ void __launch_bounds__(
    MatrixVectorShape::kThreads, MatrixVectorPlan<kColumnTiles, kRowTiles, kInput>::kResidentBlocks)
    matrix_vector_kernel(const MatrixVectorArgs<T> args) {
  using Shape = MatrixVectorShape;
  using Plan = MatrixVectorPlan<kColumnTiles, kRowTiles, kInput>;
  constexpr int kSteps = Shape::kStageK / (4 * Shape::kVectorK);
  extern __shared__ __align__(128) unsigned char shared[];
  float* sums = reinterpret_cast<float*>(shared + Shape::kWarps * Plan::kRingBytes);
  T* staged = reinterpret_cast<T*>(sums + Plan::kSumSets * Plan::kSums);

  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const int group = thread % kWarpSize / 4;
  const int quad = thread % 4;
  WeightRing<T, kRowTiles, Plan::kStages> ring(args, shared + warp * Plan::kRingBytes);
  ring.start();  // on their way while x is made
  let_next_start();
  if constexpr (kInput == VectorInput::kNormed) {
    const NormWeights weights(args.norm_weight, args.k);
    wait_for_previous();
    stage_normed_rows(args, weights, /*warp_sums=*/sums, staged);
  } else {
    wait_for_previous();
    if constexpr (kInput == VectorInput::kStaged) stage_rows(args, staged);
  }

  const auto input = [&](int row, int k) -> uint4 {
    if (row >= args.num_rows || k >= args.k) return {};
    if constexpr (kInput == VectorInput::kGlobal) {
      return *reinterpret_cast<const uint4*>(args.x + row * args.x_stride + k);
    } else {
      return *reinterpret_cast<const uint4*>(staged + row * staged_stride(args.k) + k);
    }
  };
  // A round ahead: x may come from L2, and its latency would add to each round's.
  uint4 x[kSteps][kColumnTiles];
  uint4 next_x[kSteps][kColumnTiles];
  const auto load_inputs = [&](uint4(&into)[kSteps][kColumnTiles], int round) {
    const int k0 = round * Shape::kRoundK + warp * Shape::kStageK + quad * Shape::kVectorK;
#pragma unroll
    for (int u = 0; u < kSteps; ++u) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        into[u][c] = input(c * 8 + group, k0 + u * 4 * Shape::kVectorK);
      }
    }
  };
  const int num_tiles = ring.num_tiles();
  const int num_rounds = ring.num_rounds();
  int parity = 0;
  load_inputs(x, 0);
  for (int tile = static_cast<int>(blockIdx.x); tile < num_tiles;
       tile += static_cast<int>(gridDim.x)) {
    const int per_tile = ring.outputs_per_tile();
    const int column = thread / per_tile;
    Addends addends[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const int output = (tile * kRowTiles + r) * per_tile + thread % per_tile;
      if (column < args.num_rows && output < ring.num_outputs()) {
        addends[r] = load_addends(args, column, output);
      }
    }
    float acc[kRowTiles][kColumnTiles][4] = {};
    for (int round = 0; round < num_rounds; ++round) {
      load_inputs(next_x, round + 1 == num_rounds ? 0 : round + 1);
      ring.turn();
#pragma unroll
      for (int u = 0; u < kSteps; ++u) {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const uint4 low = ring.read(r, group, u * 4 + quad);
          const uint4 high = ring.read(r, group + 8, u * 4 + quad);
#pragma unroll
          for (int c = 0; c < kColumnTiles; ++c) {
            Element<T>::multiply_add(acc[r][c], {low.x, high.x, low.y, high.y}, x[u][c].x,
                                     x[u][c].y);
            Element<T>::multiply_add(acc[r][c], {low.z, high.z, low.w, high.w}, x[u][c].z,
                                     x[u][c].w);
          }
        }
      }
      ring.leave();
#pragma unroll
      for (int u = 0; u < kSteps; ++u) {
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) x[u][c] = next_x[u][c];
      }
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float* tile_sums = sums + parity * Plan::kSums;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        float* target =
            tile_sums + (warp * Plan::kColumns + c * 8 + 2 * quad) * Shape::kColumnStride;
        target[group] = acc[r][c][0];
        target[Shape::kColumnStride + group] = acc[r][c][1];
        target[group + 8] = acc[r][c][2];
        target[Shape::kColumnStride + group + 8] = acc[r][c][3];
      }
      __syncthreads();
      const int output = (tile * kRowTiles + r) * per_tile + thread % per_tile;
      if (column < args.num_rows && output < ring.num_outputs()) {
        finish_output(args, addends[r], tile_sums, Plan::kColumns, column, thread % per_tile,
                      output);
      }
      if constexpr (Plan::kSumSets == 1) {
        __syncthreads();
      } else {
        parity ^= 1;
      }
    }
  }
}

/// What the launch asks of the device.
struct MatrixVectorDevice {
  int num_multiprocessors = 0;
  int shared_bytes = 0;  ///< of a block, at most
};

template <typename T>
inline int num_matrix_vector_tiles(const MatrixVectorArgs<T>& args, int row_tiles) {
  const bool gated = args.epilogue == Epilogue::kSiluGate;
  const int outputs = gated ? args.num_outputs / 2 : args.num_outputs;
  return ceil_div(outputs, MatrixVectorShape::kTileRows / (gated ? 2 : 1) * row_tiles);
}
template <typename T>
inline std::size_t staged_bytes(const MatrixVectorArgs<T>& args) {
  return static_cast<std::size_t>(args.num_rows * staged_stride(args.k)) * sizeof(T);
}

/// The instance of the kernel for a launch, and the shared memory of its blocks.
struct MatrixVectorChoice {
  int column_tiles = 1;
  int row_tiles = 1;
  VectorInput input = VectorInput::kGlobal;
  std::size_t shared_bytes = 0;
};

/// The least that a block can have on a device that the kernels know: 99 KB, on sm_86, 89 and 120.
inline constexpr int kLeastSharedBytes = 99 * 1024;
static_assert(MatrixVectorPlan<1, 1, VectorInput::kGlobal>::kFixedBytes <= kLeastSharedBytes &&
                  MatrixVectorPlan<2, 1, VectorInput::kGlobal>::kFixedBytes <= kLeastSharedBytes,
              "there is an instance for every device");

/// The instance that suits a number of rows.
template <int kColumnTiles, typename T>
inline MatrixVectorChoice choose_matrix_vector_columns(const MatrixVectorArgs<T>& args,
                                                       const MatrixVectorDevice& device) {
  using Shape = MatrixVectorShape;
  using Staged = MatrixVectorPlan<kColumnTiles, 1, VectorInput::kStaged>;
  using Shared = MatrixVectorPlan<kColumnTiles, 2, VectorInput::kGlobal>;
  using Narrow = MatrixVectorPlan<kColumnTiles, 1, VectorInput::kGlobal>;
  const auto most = static_cast<std::size_t>(device.shared_bytes);
  const std::size_t staged = Staged::kFixedBytes + staged_bytes(args);
  const bool pays =
      num_matrix_vector_tiles(args, 1) >= Shape::kMinStagedTiles * device.num_multiprocessors;
  if (pays && staged <= most) return {kColumnTiles, 1, VectorInput::kStaged, staged};
  if (Shared::kFixedBytes <= device.shared_bytes) {
    return {kColumnTiles, 2, VectorInput::kGlobal, Shared::kFixedBytes};
  }
  return {kColumnTiles, 1, VectorInput::kGlobal, Narrow::kFixedBytes};
}

/// The instance for validated arguments, whose norm, if any, can be fused.
template <typename T>
inline MatrixVectorChoice choose_matrix_vector(const MatrixVectorArgs<T>& args,
                                               const MatrixVectorDevice& device) {
  using Normed = MatrixVectorPlan<1, 1, VectorInput::kNormed>;
  using Unshared = MatrixVectorPlan<1, 1, VectorInput::kGlobal>;
  MatrixVectorChoice choice;
  if (args.hidden != nullptr) {
    choice = {1, 1, VectorInput::kNormed, Normed::kFixedBytes + staged_bytes(args)};
  } else if (args.num_rows <= MatrixVectorShape::kMaxUnsharedRows) {
    choice = {1, 1, VectorInput::kGlobal, Unshared::kFixedBytes};
  } else if (args.num_rows <= 8) {
    choice = choose_matrix_vector_columns<1>(args, device);
  } else {
    choice = choose_matrix_vector_columns<2>(args, device);
  }
  if (args.one_block_an_sm) {
    // Half of Hopper's 228 KB and a little more; the next product's block still fits beside it.
    constexpr std::size_t kMoreThanHalf = 116 * 1024 - 512;
    choice.shared_bytes =
        std::max(choice.shared_bytes,
                 std::min(kMoreThanHalf, static_cast<std::size_t>(device.shared_bytes)));
  }
  return choice;
}

template <typename T, int kColumnTiles, int kRowTiles, VectorInput kInput>
inline Status launch_matrix_vector_as(const MatrixVectorArgs<T>& args,
                                      const MatrixVectorDevice& device, std::size_t shared_bytes,
                                      cudaStream_t stream) {
  const auto kernel = matrix_vector_kernel<T, kColumnTiles, kRowTiles, kInput>;
  CHUNKLLM_RETURN_IF_ERROR(allow_any_shared("matrix_vector", kernel));
  const int grid = std::min(num_matrix_vector_tiles(args, kRowTiles), device.num_multiprocessors);
  const LaunchShape shape{static_cast<unsigned>(grid), MatrixVectorShape::kThreads, shared_bytes};
  return launch_dependent("matrix_vector_kernel", kernel, shape, stream, args, args.overlaps);
}

template <int kColumnTiles, typename T>
inline Status launch_matrix_vector_columns(const MatrixVectorArgs<T>& args,
                                           const MatrixVectorDevice& device,
                                           const MatrixVectorChoice& choice, cudaStream_t stream) {
  const std::size_t bytes = choice.shared_bytes;
  if (choice.input == VectorInput::kStaged) {
    return launch_matrix_vector_as<T, kColumnTiles, 1, VectorInput::kStaged>(args, device, bytes,
                                                                             stream);
  }
  if (choice.row_tiles == 1) {
    return launch_matrix_vector_as<T, kColumnTiles, 1, VectorInput::kGlobal>(args, device, bytes,
                                                                             stream);
  }
  return launch_matrix_vector_as<T, kColumnTiles, 2, VectorInput::kGlobal>(args, device, bytes,
                                                                           stream);
}

/// Launches validated arguments on a device of these sizes; the seam at which a test takes a
/// smaller one than it has.
template <typename T>
inline Status launch_matrix_vector_on(const MatrixVectorArgs<T>& args,
                                      const MatrixVectorDevice& device, cudaStream_t stream) {
  const MatrixVectorChoice choice = choose_matrix_vector(args, device);
  if (choice.input == VectorInput::kNormed) {
    return launch_matrix_vector_as<T, 1, 1, VectorInput::kNormed>(args, device, choice.shared_bytes,
                                                                  stream);
  }
  return choice.column_tiles == 1 ? launch_matrix_vector_columns<1>(args, device, choice, stream)
                                  : launch_matrix_vector_columns<2>(args, device, choice, stream);
}

/// Whether the norm of the arguments, if they have one, can be part of the product.
template <typename T>
inline Status check_fused_norm(const MatrixVectorArgs<T>& args, int shared_bytes) {
  if (args.hidden == nullptr || can_fuse_norm(args.num_rows, args.k, shared_bytes)) return {};
  return unsupported("matrix_vector: the norm of " + std::to_string(args.num_rows) + " rows of " +
                     std::to_string(args.k) + " values, supported are " +
                     std::to_string(MatrixVectorShape::kMaxNormRows) + " rows and " +
                     std::to_string(MatrixVectorShape::kMaxNormedBytes) +
                     " bytes, fewer on devices of little shared memory; norm them with rms_norm "
                     "first");
}

/// Checks what `launch_matrix_vector` is given, at least one row, and puts dense strides in the
/// place of zeros.
template <typename T>
inline Status prepare_matrix_vector(MatrixVectorArgs<T>& args) {
  const bool norm = args.hidden != nullptr;
  const bool gated = args.epilogue == Epilogue::kSiluGate;
  const bool to_f32 = args.epilogue == Epilogue::kStoreF32 || args.epilogue == Epilogue::kAddF32;
  if (args.num_rows < 0 || args.num_rows > MatrixVectorShape::kMaxRows) {
    return unsupported("matrix_vector: " + std::to_string(args.num_rows) +
                       " rows, supported are 1 to " + std::to_string(MatrixVectorShape::kMaxRows));
  }
  if (args.k <= 0 || args.k % 8 != 0 || args.num_outputs <= 0 ||
      (gated && args.num_outputs % 2 != 0)) {
    return invalid_argument("matrix_vector: weights of " + std::to_string(args.num_outputs) +
                            " x " + std::to_string(args.k) +
                            ", expected at least one output (an even number with a gate) and a "
                            "positive multiple of 8 columns");
  }
  CHUNKLLM_RETURN_IF_ERROR(check_fused_norm(args, std::numeric_limits<int>::max()));
  if (args.weight == nullptr || (norm ? args.norm_weight == nullptr : args.x == nullptr) ||
      (to_f32 ? args.y_f32 == nullptr : args.y == nullptr)) {
    return invalid_argument(
        "matrix_vector: weight, input (x, or hidden with norm_weight) and output must not be null");
  }
  if (norm && to_f32 && args.hidden == args.y_f32) {
    return invalid_argument(
        "matrix_vector: y_f32 is hidden, which other blocks still norm when one writes it");
  }
  const auto take = [&](const char* field, std::int64_t& stride, std::int64_t width) {
    return take_row_stride(std::string("matrix_vector: ") + field, stride, args.num_rows, width);
  };
  CHUNKLLM_RETURN_IF_ERROR(norm ? take("hidden_stride", args.hidden_stride, args.k)
                                : take("x_stride", args.x_stride, args.k));
  CHUNKLLM_RETURN_IF_ERROR(
      to_f32 ? take("y_f32_stride", args.y_f32_stride, args.num_outputs)
             : take("y_stride", args.y_stride, gated ? args.num_outputs / 2 : args.num_outputs));
  if (!rows_are_aligned(args.weight, args.k) || !rows_are_aligned(args.x, args.x_stride) ||
      !rows_are_aligned(args.hidden, args.hidden_stride) || !rows_are_aligned(args.norm_weight) ||
      !rows_are_aligned(args.maybe_normed)) {
    return invalid_argument(
        "matrix_vector: rows of the weight and the input must start at multiples of 16 bytes");
  }
  return {};
}

/// y = x W^T for few rows of x, each weight read once: the products of a decode step.
///
/// A block takes tiles of 16 outputs in turn; its warps split k, each with a ring of weights in
/// shared memory that is filled across the ends of tiles; tensor cores multiply, and the warps'
/// sums are added in shared memory. The first weights are on their way before the kernel in front
/// has ended (see dependent_launch.cuh): they must be constant, and so must the norm's.
///
/// Numerics: products exact, sums in f32; a warp adds the values of its share of k in one chain of
///           tensor core steps of 16, whose sums may round towards zero, and the eight warps are
///           added in order. A row of y depends on its row of x, W and k alone, bit for bit: not on
///           num_rows, the other rows, the grid or the epilogue. The fused norm has the bits of
///           `launch_rms_norm`. NaN and infinities take their course within their row.
/// Cost:     2 * num_outputs * k bytes of weights, read once. Above two rows x is held in shared
///           memory where it fits and blocks have several tiles, or is read by every 32 outputs: at
///           16 rows half as many bytes from L2 as the weights have.
/// Errors:   kInvalidArgument for null pointers, misaligned rows (16 bytes) or rows that overlap, a
///           `k` that is no positive multiple of 8, an odd num_outputs with kSiluGate, a norm of
///           what the launch writes; kUnsupported for more rows than 16, or than the fused norm
///           takes on the device (see `can_fuse_norm`). kDeviceError.
template <typename T>
inline Status launch_matrix_vector(MatrixVectorArgs<T> args, cudaStream_t stream) {
  if (args.num_rows == 0) return {};
  CHUNKLLM_RETURN_IF_ERROR(prepare_matrix_vector(args));
  MatrixVectorDevice device;
  CHUNKLLM_ASSIGN_OR_RETURN(device.num_multiprocessors,
                            cuda::device_attribute(cudaDevAttrMultiProcessorCount));
  CHUNKLLM_ASSIGN_OR_RETURN(device.shared_bytes,
                            cuda::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  CHUNKLLM_RETURN_IF_ERROR(check_fused_norm(args, device.shared_bytes));
  return launch_matrix_vector_on(args, device, stream);
}

}  // namespace chunkllm::kernels
