// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/chunk_mass_kernels.cuh"
#include "chunkllm/kernels/primitives.cuh"
#include "chunkllm/kernels/row_strides.cuh"

namespace chunkllm::kernels {
namespace detail {

/// Checks addresses and puts the strides of dense queries in the place of zeros.
template <typename T>
Status prepare_chunk_mass_layout(ChunkMassArgs<T>& args) {
  CHUNKLLM_RETURN_IF_ERROR(take_row_stride("chunk_mass: q_head_stride", args.q_head_stride,
                                           args.num_heads, args.head_dim));
  if (args.q_row_stride == 0) args.q_row_stride = args.num_heads * args.q_head_stride;
  CHUNKLLM_RETURN_IF_ERROR(
      take_row_stride("chunk_mass: q_row_stride", args.q_row_stride, args.num_rows, args.head_dim));
  if (!is_aligned(args.q, 4) || args.q_row_stride % 2 != 0 || args.q_head_stride % 2 != 0) {
    return invalid_argument("chunk_mass: q must start at a multiple of 4 bytes, its strides even");
  }
  const cuda::DeviceKvView<const T>& kv = args.kv;
  if (!is_aligned(kv.keys) || kv.seq_stride % 8 != 0 || kv.token_stride % 8 != 0 ||
      kv.head_stride % 8 != 0 || kv.page_stride % 8 != 0) {
    return invalid_argument(
        "chunk_mass: keys must start at a multiple of 16 bytes, their strides be multiples of 8");
  }
  if (kv.rotation != Rotation::kAtTokenPosition) {
    return unsupported("chunk_mass: keys before RoPE; supported: keys rotated at token positions");
  }
  if (kv.page_table != nullptr && (kv.page_size < 1 || kv.max_pages < 1)) {
    return invalid_argument("chunk_mass: " + std::to_string(kv.max_pages) + " pages of " +
                            std::to_string(kv.page_size) +
                            " tokens a sequence, expected at least one of each");
  }
  return {};
}

/// Checks what `launch_chunk_mass` is given and puts dense strides in the place of zeros.
template <typename T>
Status prepare_chunk_mass(ChunkMassArgs<T>& args) {
  constexpr std::int32_t kMaxColumns = 65535 * kMassChunks;  // blocks in y
  constexpr std::int32_t kMaxPooled = 65535;
  if (args.head_dim != 64 && args.head_dim != 96 && args.head_dim != 128 && args.head_dim != 256) {
    return unsupported("chunk_mass: head_dim " + std::to_string(args.head_dim) +
                       "; supported: 64, 96, 128, 256");
  }
  if (args.num_heads < 1 || args.num_kv_heads < 1 || args.num_heads % args.num_kv_heads != 0) {
    return invalid_argument("chunk_mass: " + std::to_string(args.num_heads) + " heads over " +
                            std::to_string(args.num_kv_heads) +
                            " key heads; expected a positive multiple");
  }
  if (args.num_rows < 0 || args.first_token < 0 ||
      args.first_token > std::numeric_limits<std::int32_t>::max() - kMassRows - args.num_rows) {
    return invalid_argument("chunk_mass: rows [" + std::to_string(args.first_token) + ", +" +
                            std::to_string(args.num_rows) + ") are no positions");
  }
  if (args.num_columns < 0 || args.num_columns > kMaxColumns || args.num_pooled < 0 ||
      args.num_pooled > kMaxPooled) {
    return unsupported("chunk_mass: " + std::to_string(args.num_columns) + " columns and " +
                       std::to_string(args.num_pooled) + " pooled rows; supported: 0 to " +
                       std::to_string(kMaxColumns) + " and 0 to " + std::to_string(kMaxPooled));
  }
  if (args.seq < 0 || args.seq >= args.table.num_seqs) {
    return out_of_range("chunk_mass: sequence " + std::to_string(args.seq) + " of " +
                        std::to_string(args.table.num_seqs));
  }
  if (args.num_pooled > 0 && args.maybe_pooled_tokens == nullptr) {
    return invalid_argument("chunk_mass: pooled rows without maybe_pooled_tokens");
  }
  return prepare_chunk_mass_layout(args);
}

template <typename T, int kHeadDim>
Status launch_mass_kernel(const ChunkMassArgs<T>& args, cudaStream_t stream) {
  constexpr auto kBytes = static_cast<int>(chunk_mass_shared_bytes<kHeadDim>());
  CHUNKLLM_RETURN_IF_ERROR(
      cuda::cuda_status(cudaFuncSetAttribute(chunk_mass_kernel<T, kHeadDim>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
                        "chunk_mass_kernel"));
  // A block that joins heads row by row must have them all.
  const bool joins_rows = args.maybe_max != nullptr || args.maybe_mean != nullptr;
  const dim3 grid(static_cast<unsigned>(ceil_div(args.num_rows, kMassRows)),
                  static_cast<unsigned>(ceil_div(args.num_columns, kMassChunks)),
                  joins_rows ? 1U : static_cast<unsigned>(args.num_heads));
  chunk_mass_kernel<T, kHeadDim><<<grid, kMassThreads, kBytes, stream>>>(args);
  return cuda::launch_status("chunk_mass_kernel");
}

template <typename T>
Status launch_mass_kernel(const ChunkMassArgs<T>& args, cudaStream_t stream) {
  switch (args.head_dim) {
    case 64: return launch_mass_kernel<T, 64>(args, stream);
    case 96: return launch_mass_kernel<T, 96>(args, stream);
    case 128: return launch_mass_kernel<T, 128>(args, stream);
    default: return launch_mass_kernel<T, 256>(args, stream);
  }
}

}  // namespace detail

/// Bytes of workspace for `launch_chunk_mass`: 0 where no pooled output is wanted.
template <typename T>
std::size_t chunk_mass_workspace_bytes(const ChunkMassArgs<T>& args) {
  if (!args.wants_pooled() || args.num_rows < 1 || args.num_columns < 1) return 0;
  return static_cast<std::size_t>(detail::num_mass_partials(args.num_rows, args.num_pooled) *
                                  args.num_heads * args.num_columns) *
         sizeof(float);
}

/// Writes the attention mass of past chunks: the teacher of the chunk adapters.
///
///   m[h, i, c] = sum over tokens t of chunk c of exp(scale q[i, h] . k[t] - lse[i, h])
///
/// of the chunks that are closed once row i's token has been read; 0 for all other columns. The
/// maximum and the mean over heads are taken row by row. A pooled row averages each head over its
/// rows and then joins the heads, as `HeadMassCollector` and `ChunkMassCollector` do: a set is
/// chosen once for all tokens that follow it. Rows that this call does not hold are left out of the
/// average, so blocks of rows should end where a pooled row does; a pooled row without rows is 0.
///
/// A text is read in blocks of rows, of 512 to 2,048 as prefill has them, and each block's outputs
/// are used before the next: nothing of size tokens x tokens exists.
///
/// \param args  see `ChunkMassArgs`; q, keys, lse, table and pooled tokens lie on the device
/// Units:       strides in elements, workspace in bytes; it may be used again behind the launch
/// Ties, order: deterministic, no atomics; a sum does not depend on the other rows and chunks of
///              the call, but for pooled rows, which are summed in tiles of 64 rows
/// Numerics:    products of 16 bit values, sums and exponentials in f32. A NaN or infinite key
///              makes its own chunk NaN or infinite; a maximum over heads keeps NaN
/// Empty input: no rows, or no columns: writes nothing and returns kOk
/// Cost:        2 num_heads head_dim flops and one exponential a pair of row and key; keys are read
///              once for 64 rows and a head, mostly from L2. One launch, two with pooled outputs;
///              without maybe_max and maybe_mean heads have blocks of their own and run side by
///              side
/// Errors:      kUnsupported for a head_dim not listed, for keys before RoPE and for more columns
///              than a grid has room for; kInvalidArgument for shapes and strides, for a missing
///              pointer and a short workspace; kOutOfRange for a sequence that the table lacks;
///              kDeviceError
/// Source:      the sum over chunk tokens of ChunkLLM's attention distillation (arXiv 2510.02361);
///              lse from a forward pass instead of a running maximum, so that sums over unequal
///              chunks need no correction
/// Test:        tests/cuda/test_chunk_mass.cu
template <typename T>
Status launch_chunk_mass(ChunkMassArgs<T> args, cudaStream_t stream) {
  CHUNKLLM_RETURN_IF_ERROR(detail::prepare_chunk_mass(args));
  const bool is_pooling = args.wants_pooled();
  const bool has_output = is_pooling || args.maybe_head_mass != nullptr ||
                          args.maybe_max != nullptr || args.maybe_mean != nullptr;
  if (args.num_rows == 0 || args.num_columns == 0 || !has_output) return {};
  if (args.q == nullptr || args.kv.keys == nullptr || args.lse == nullptr ||
      args.table.ends == nullptr || args.table.num_chunks == nullptr) {
    return invalid_argument("chunk_mass: q, keys, lse and the chunk table must be given");
  }
  const std::size_t needed = chunk_mass_workspace_bytes(args);
  if (needed > 0 && (args.workspace == nullptr || args.workspace_bytes < needed ||
                     !is_aligned(args.workspace, sizeof(float)))) {
    return invalid_argument("chunk_mass: workspace of " + std::to_string(args.workspace_bytes) +
                            " bytes, expected " + std::to_string(needed) +
                            " at a multiple of 4 bytes");
  }
  CHUNKLLM_RETURN_IF_ERROR(detail::launch_mass_kernel(args, stream));
  if (!is_pooling) return {};

  const dim3 grid(static_cast<unsigned>(ceil_div(args.num_columns, detail::kMassChunks)),
                  static_cast<unsigned>(args.num_pooled));
  detail::pool_chunk_mass_kernel<T><<<grid, detail::kMassThreads, 0, stream>>>(args);
  return cuda::launch_status("pool_chunk_mass_kernel");
}

}  // namespace chunkllm::kernels
