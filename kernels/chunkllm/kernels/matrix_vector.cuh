// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/rms_norm.cuh"
#include "chunkllm/kernels/silu_gate.cuh"

namespace chunkllm::kernels {

/// The shape of the product's work, in one place.
///
/// Tensor cores multiply 16 weight rows by 8 columns, which are the rows of x: the arithmetic of
/// one row costs what that of eight does, and either is far below the time of the weights' bytes,
/// while plain multiply-adds would fill the issue slots at eight rows. A column never meets
/// another, so a row's bits do not depend on the rows beside it.
struct MatrixVectorShape {
  /// The eight warps of a block split k: 4096 outputs are 256 tiles of 16, too few for 132
  /// multiprocessors if each were one warp's. Equal to the norm's threads, which the prologue runs.
  static constexpr int kThreads = kNormThreads;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kTileRows = 16;
  /// Steps of 32 values of k that a warp loads at once: 8 loads of 16 bytes a lane are 64 KB in
  /// flight a multiprocessor with two blocks, where bandwidth times latency asks for some 35 KB.
  static constexpr int kUnroll = 4;
  static constexpr int kStep = 32;
  static constexpr int kBatch = kUnroll * kStep;
  static constexpr int kBlocksPerMultiprocessor = 2;
  /// Sums of a column: 16, padded so that the quads of a warp write to different banks.
  static constexpr int kColumnStride = 20;
  static constexpr int kMaxRows = 16;  ///< two column tiles
  /// The fused norm: every block norms all rows again, 4 bytes a value from L2. At two rows of 4096
  /// that is 8.6 MB for the smallest product's 33.5 MB of weights; above, a launch costs less.
  static constexpr int kMaxNormRows = 2;
  /// Staged rows must leave room for two blocks a multiprocessor, on sm_80 too.
  static constexpr std::size_t kMaxStagedBytes = 64 * 1024;
};

/// What becomes of a sum.
enum class Epilogue : std::uint8_t {
  kStore,     ///< y = sum (+ bias), rounded to T
  kStoreF32,  ///< y_f32 = sum (+ bias)
  kAddF32,    ///< y_f32 += sum (+ bias): a residual stream
  kSiluGate   ///< y[i] = silu(sum_i) * sum_(i + inner), biases first; inner = num_outputs / 2
};

/// What `launch_matrix_vector` reads and writes. Give either `x`, or `hidden` and `norm_weight`.
///
/// \tparam T  __half or __nv_bfloat16
template <typename T>
struct MatrixVectorArgs {
  const T* weight = nullptr;          ///< [num_outputs, k], dense
  const float* maybe_bias = nullptr;  ///< [num_outputs]
  std::int32_t num_outputs = 0;
  std::int32_t k = 0;         ///< a multiple of 8
  std::int32_t num_rows = 0;  ///< at most 16; with a norm, see `can_fuse_norm`

  const T* x = nullptr;  ///< [num_rows, k]
  std::int64_t x_stride = 0;

  const float* hidden = nullptr;  ///< [num_rows, k]: x is its RMSNorm; not an output of the launch
  std::int64_t hidden_stride = 0;
  const float* norm_weight = nullptr;  ///< [k]
  float eps = 0.0F;
  T* maybe_normed = nullptr;  ///< [num_rows, k], dense: x as multiplied, for others to read

  Epilogue epilogue = Epilogue::kStore;
  T* y = nullptr;  ///< [num_rows, num_outputs], with kSiluGate [num_rows, num_outputs / 2]
  std::int64_t y_stride = 0;
  float* y_f32 = nullptr;  ///< [num_rows, num_outputs]
  std::int64_t y_f32_stride = 0;
};

/// Elements from one staged row to the next: an odd multiple of 64 bytes, so that the rows of two
/// neighbouring columns lie in different banks.
__host__ __device__ inline std::int64_t staged_stride(std::int32_t k) {
  return ceil_div<std::int64_t>(k, 64) * 64 + 32;
}

/// Whether the product takes the norm of that many rows of `k` values on itself.
inline bool can_fuse_norm(std::int32_t num_rows, std::int32_t k) {
  return num_rows <= MatrixVectorShape::kMaxNormRows &&
         static_cast<std::size_t>(num_rows * staged_stride(k)) * 2 <=
             MatrixVectorShape::kMaxStagedBytes;
}

/// 16 bytes of weights where `valid`, else zeros and nothing is read. Weights are read once: they
/// take no room in L1, and L2 fetches the 256 bytes that a warp reads of a row together. Not the
/// non-coherent load: the assembler moves that one behind `wait_for_previous_kernel`.
__device__ inline uint4 load_weights(const void* address, bool valid) {
  uint4 v;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.u32 p, %5, 0;\n"
      "mov.u32 %0, 0;\n"
      "mov.u32 %1, 0;\n"
      "mov.u32 %2, 0;\n"
      "mov.u32 %3, 0;\n"
      "@p ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}\n"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(address), "r"(static_cast<unsigned>(valid)));
  return v;
}

/// Waits for the kernels before this one where the launch lets it start early (programmatic
/// dependent launch); otherwise nothing happens. What stands above may read weights only.
__device__ inline void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Reads the batches of weights of one warp: lane (group, quad) has 8 values of k of the tile's
/// rows `group` and `group + 8` in each step. Which of the step's 32 values meet in one lane is the
/// same for weights and x, so the order that tensor cores have for k does not matter.
template <typename T>
class WeightTiles {
 public:
  using Shape = MatrixVectorShape;
  struct Batch {
    uint4 low[Shape::kUnroll];   ///< row `group`
    uint4 high[Shape::kUnroll];  ///< row `group + 8`
  };

  __device__ explicit WeightTiles(const MatrixVectorArgs<T>& args)
      : weight_(args.weight),
        k_(args.k),
        gated_(args.epilogue == Epilogue::kSiluGate),
        num_outputs_(gated_ ? args.num_outputs / 2 : args.num_outputs),
        first_(static_cast<int>(threadIdx.x) / kWarpSize * Shape::kBatch +
               static_cast<int>(threadIdx.x) % 4 * 8),
        group_(static_cast<int>(threadIdx.x) % kWarpSize / 4) {}

  /// Outputs a tile makes: with a gate its rows are 8 gates and the 8 values they gate.
  [[nodiscard]] __device__ int outputs_per_tile() const {
    return gated_ ? Shape::kTileRows / 2 : Shape::kTileRows;
  }
  [[nodiscard]] __device__ int num_outputs() const { return num_outputs_; }
  [[nodiscard]] __device__ int num_tiles() const {
    return ceil_div(num_outputs_, outputs_per_tile());
  }
  /// The lane's first value of k in a round.
  [[nodiscard]] __device__ int first_k(int round) const {
    return round * (Shape::kWarps * Shape::kBatch) + first_;
  }

  __device__ void load(Batch& batch, int tile, int round) const {
    const int low_row = tile * outputs_per_tile() + group_;
    const int high_row = low_row + (gated_ ? num_outputs_ : Shape::kTileRows / 2);
    const bool has_low = low_row < num_outputs_;
    const bool has_high = gated_ ? has_low : high_row < num_outputs_;
    const int k0 = first_k(round);
    const T* low = weight_ + static_cast<std::int64_t>(low_row) * k_ + k0;
    const T* high = weight_ + static_cast<std::int64_t>(high_row) * k_ + k0;
#pragma unroll
    for (int u = 0; u < Shape::kUnroll; ++u) {
      const bool in_row = k0 + u * Shape::kStep < k_;
      batch.low[u] = load_weights(low + u * Shape::kStep, has_low && in_row);
      batch.high[u] = load_weights(high + u * Shape::kStep, has_high && in_row);
    }
  }

 private:
  const T* weight_;
  int k_;
  bool gated_;
  int num_outputs_;
  int first_;
  int group_;
};

/// Norms the rows of `args.hidden` into `staged`; block 0 also writes them out where asked.
template <typename T>
__device__ inline void stage_normed_rows(const MatrixVectorArgs<T>& args, float* warp_sums,
                                         T* staged) {
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
    for (int i = thread * 4; i < args.k; i += kNormThreads * 4) {
      const uint2 values = normed_values<T>(row + i, args.norm_weight + i, scale);
      *reinterpret_cast<uint2*>(staged + r * staged_stride(args.k) + i) = values;
      if (writes) {
        *reinterpret_cast<uint2*>(args.maybe_normed + static_cast<std::int64_t>(r) * args.k + i) =
            values;
      }
    }
  }
  __syncthreads();
}

/// Adds the warps' sums of one output in their order and hands the result on.
///
/// \param sums  [kWarps, num_columns, kColumnStride]
template <typename T>
__device__ inline void finish_output(const MatrixVectorArgs<T>& args, const float* sums,
                                     int num_columns, int column, int row_in_tile, int output) {
  using Shape = MatrixVectorShape;
  const auto total = [&](int tile_row, int bias_idx) {
    float sum = 0.0F;
#pragma unroll
    for (int w = 0; w < Shape::kWarps; ++w) {
      sum += sums[(w * num_columns + column) * Shape::kColumnStride + tile_row];
    }
    return args.maybe_bias == nullptr ? sum : sum + args.maybe_bias[bias_idx];
  };
  const float value = total(row_in_tile, output);
  switch (args.epilogue) {
    case Epilogue::kStore:
      args.y[column * args.y_stride + output] = Element<T>::from_float(value);
      break;
    case Epilogue::kStoreF32: args.y_f32[column * args.y_f32_stride + output] = value; break;
    case Epilogue::kAddF32: args.y_f32[column * args.y_f32_stride + output] += value; break;
    case Epilogue::kSiluGate: {
      const float up = total(row_in_tile + Shape::kTileRows / 2, output + args.num_outputs / 2);
      args.y[column * args.y_stride + output] = Element<T>::from_float(silu_times(value, up));
      break;
    }
  }
}

/// \tparam kColumnTiles  eight rows of x each   \tparam kNorm  x is made of `hidden`
template <typename T, int kColumnTiles, bool kNorm>
__global__ void __launch_bounds__(MatrixVectorShape::kThreads,
                                  MatrixVectorShape::kBlocksPerMultiprocessor)
    matrix_vector_kernel(const MatrixVectorArgs<T> args) {
  using Shape = MatrixVectorShape;
  constexpr int kColumns = kColumnTiles * 8;
  constexpr int kSums = Shape::kWarps * kColumns * Shape::kColumnStride;
  // Two sets of sums: a tile's are read while the next one's are written, one barrier a tile.
  extern __shared__ __align__(16) unsigned char shared[];
  float* sums = reinterpret_cast<float*>(shared);
  T* staged = reinterpret_cast<T*>(sums + 2 * kSums);

  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const int group = thread % kWarpSize / 4;
  const int quad = thread % 4;
  const WeightTiles<T> tiles(args);
  const int num_tiles = tiles.num_tiles();
  const int num_rounds = ceil_div(args.k, Shape::kWarps * Shape::kBatch);
  int tile = static_cast<int>(blockIdx.x);

  typename WeightTiles<T>::Batch batch;
  tiles.load(batch, tile, /*round=*/0);  // on its way while x is made
  wait_for_previous_kernel();
  if constexpr (kNorm) stage_normed_rows(args, /*warp_sums=*/sums, staged);

  const auto input = [&](int row, int k) -> uint4 {
    if (row >= args.num_rows || k >= args.k) return {};
    if constexpr (kNorm) {
      return *reinterpret_cast<const uint4*>(staged + row * staged_stride(args.k) + k);
    } else {
      return *reinterpret_cast<const uint4*>(args.x + row * args.x_stride + k);
    }
  };
  for (int parity = 0; tile < num_tiles; parity ^= 1) {
    const int next_tile = tile + static_cast<int>(gridDim.x);
    float acc[kColumnTiles][4] = {};
    for (int round = 0; round < num_rounds; ++round) {
      typename WeightTiles<T>::Batch next;
      const bool last = round + 1 == num_rounds;
      tiles.load(next, last ? next_tile : tile, last ? 0 : round + 1);
      const int k0 = tiles.first_k(round);
#pragma unroll
      for (int u = 0; u < Shape::kUnroll; ++u) {
        const uint4 low = batch.low[u];
        const uint4 high = batch.high[u];
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          const uint4 x = input(c * 8 + group, k0 + u * Shape::kStep);
          Element<T>::multiply_add(acc[c], {low.x, high.x, low.y, high.y}, x.x, x.y);
          Element<T>::multiply_add(acc[c], {low.z, high.z, low.w, high.w}, x.z, x.w);
        }
      }
      batch = next;
    }
    float* tile_sums = sums + parity * kSums;
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      float* column = tile_sums + (warp * kColumns + c * 8 + 2 * quad) * Shape::kColumnStride;
      column[group] = acc[c][0];
      column[Shape::kColumnStride + group] = acc[c][1];
      column[group + 8] = acc[c][2];
      column[Shape::kColumnStride + group + 8] = acc[c][3];
    }
    __syncthreads();
    const int per_tile = tiles.outputs_per_tile();
    const int column = thread / per_tile;
    const int output = tile * per_tile + thread % per_tile;
    if (column < args.num_rows && output < tiles.num_outputs()) {
      finish_output(args, tile_sums, kColumns, column, thread % per_tile, output);
    }
    tile = next_tile;
  }
}

template <typename T, int kColumnTiles, bool kNorm>
inline Status launch_matrix_vector_tiles(const MatrixVectorArgs<T>& args, cudaStream_t stream) {
  using Shape = MatrixVectorShape;
  const auto kernel = matrix_vector_kernel<T, kColumnTiles, kNorm>;
  std::size_t bytes = 2 * sizeof(float) * Shape::kWarps * 8 * kColumnTiles * Shape::kColumnStride;
  if (kNorm) bytes += static_cast<std::size_t>(args.num_rows * staged_stride(args.k)) * sizeof(T);
  CHUNKLLM_RETURN_IF_ERROR(
      cuda::cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(bytes)),
                        "matrix_vector: shared memory"));
  int device = 0;
  int num_multiprocessors = 0;
  CHUNKLLM_RETURN_IF_ERROR(cuda::cuda_status(cudaGetDevice(&device), "matrix_vector: device"));
  CHUNKLLM_RETURN_IF_ERROR(cuda::cuda_status(
      cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, device),
      "matrix_vector: device"));
  const bool gated = args.epilogue == Epilogue::kSiluGate;
  const int num_tiles = gated ? ceil_div(args.num_outputs / 2, Shape::kTileRows / 2)
                              : ceil_div(args.num_outputs, Shape::kTileRows);
  const int grid = std::min(num_tiles, num_multiprocessors * Shape::kBlocksPerMultiprocessor);
  // Programmatic dependent launch would be an attribute here: the kernel is ready for it.
  kernel<<<static_cast<unsigned>(grid), Shape::kThreads, bytes, stream>>>(args);
  return cuda::launch_status("matrix_vector_kernel");
}

/// y = x W^T for few rows of x, each weight read once: the products of a decode step.
///
/// A block takes tiles of 16 outputs in turn; its warps split k, tensor cores multiply, and the
/// warps' sums are added in shared memory. The next tile's first weights are on their way while a
/// tile ends.
///
/// Numerics: products exact, sums in f32; a warp adds the values of its share of k in one chain of
///           tensor core steps of 16, whose sums may round towards zero, and the eight warps are
///           added in order. A row of y depends on its row of x, W and k alone, bit for bit: not on
///           num_rows, the other rows, the grid or the epilogue. The fused norm has the bits of
///           `launch_rms_norm`. NaN and infinities take their course within their row.
/// Cost:     2 * num_outputs * k bytes of weights; x comes from L1 and L2.
/// Errors:   kInvalidArgument for null pointers and misaligned rows (16 bytes), a `k` that is no
///           positive multiple of 8, an odd num_outputs with kSiluGate; kUnsupported for more rows
///           than 16, or than the fused norm takes (see `can_fuse_norm`).
template <typename T>
inline Status launch_matrix_vector(const MatrixVectorArgs<T>& args, cudaStream_t stream) {
  if (args.num_rows == 0) return {};
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
  if (norm && !can_fuse_norm(args.num_rows, args.k)) {
    return unsupported("matrix_vector: the norm of " + std::to_string(args.num_rows) + " rows of " +
                       std::to_string(args.k) + " values, supported are " +
                       std::to_string(MatrixVectorShape::kMaxNormRows) + " rows and " +
                       std::to_string(MatrixVectorShape::kMaxStagedBytes) +
                       " bytes; norm them with rms_norm first");
  }
  if (args.weight == nullptr || (norm ? args.norm_weight == nullptr : args.x == nullptr) ||
      (to_f32 ? args.y_f32 == nullptr : args.y == nullptr)) {
    return invalid_argument(
        "matrix_vector: weight, input (x, or hidden with norm_weight) and output must not be null");
  }
  if (!rows_aligned(args.weight, args.k, 16) || !rows_aligned(args.x, args.x_stride, 16) ||
      !rows_aligned(args.hidden, args.hidden_stride, 16) ||
      !rows_aligned(args.norm_weight, 0, 16) || !rows_aligned(args.maybe_normed, 0, 16)) {
    return invalid_argument(
        "matrix_vector: rows of the weight and the input must start at multiples of 16 bytes");
  }
  if (norm) return launch_matrix_vector_tiles<T, 1, true>(args, stream);
  if (args.num_rows <= 8) return launch_matrix_vector_tiles<T, 1, false>(args, stream);
  return launch_matrix_vector_tiles<T, 2, false>(args, stream);
}

}  // namespace chunkllm::kernels
