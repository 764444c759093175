// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"
#include "chunkllm/cuda/views.hpp"
#include "chunkllm/kernels/alignment.cuh"
#include "chunkllm/kernels/detect_boundaries.cuh"
#include "chunkllm/kernels/primitives.cuh"

namespace chunkllm::kernels {

inline constexpr int kBatchThreads = 128;

namespace detail {

inline Status refuse_batch(std::string_view name, const std::string& what) {
  return invalid_argument(std::string(name) + ": " + what);
}
/// Whether there are sets to read or write; those that list nothing need no list.
inline bool has_arrays(const cuda::DeviceAttendedSets& sets) {
  return sets.num_span_tokens != nullptr && sets.tail_begin != nullptr && sets.span_capacity >= 0 &&
         (sets.span_tokens != nullptr || sets.span_capacity == 0);
}

}  // namespace detail

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    advance_tokens_kernel(std::int32_t* num_tokens, const std::uint8_t* active,
                          std::int32_t max_tokens, std::int32_t* step_tokens,
                          std::int32_t num_seqs) {
  const auto seq = static_cast<std::int32_t>(blockIdx.x * kThreads + threadIdx.x);
  if (seq >= num_seqs) return;
  const std::int32_t count = num_tokens[seq];
  const bool takes_part = active[seq] != 0 && count < max_tokens;
  if (takes_part) num_tokens[seq] = count + 1;
  step_tokens[seq] = takes_part ? count + 1 : 0;
}

/// Makes room for one more token in each active sequence that has any, and says for how many tokens
/// each takes part in a step: its new length, or 0, which every operation takes for "not in use".
///
/// \param num_tokens   [num_seqs] in and out   \param active  [num_seqs]
/// \param step_tokens  [num_seqs] out
/// Errors: kInvalidArgument for null arrays and negative numbers; kDeviceError from the launch.
inline Status launch_advance_tokens(std::int32_t* num_tokens, const std::uint8_t* active,
                                    std::int32_t max_tokens, std::int32_t* step_tokens,
                                    std::int32_t num_seqs, cudaStream_t stream) {
  if (num_seqs == 0) return {};
  if (num_seqs < 0 || max_tokens < 0 || num_tokens == nullptr || active == nullptr ||
      step_tokens == nullptr) {
    return detail::refuse_batch("advance_tokens", std::to_string(num_seqs) + " sequences of " +
                                                      std::to_string(max_tokens) +
                                                      " tokens, or null arrays");
  }
  advance_tokens_kernel<kBatchThreads>
      <<<static_cast<unsigned>(ceil_div(num_seqs, kBatchThreads)), kBatchThreads, 0, stream>>>(
          num_tokens, active, max_tokens, step_tokens, num_seqs);
  return cuda::launch_status("advance_tokens_kernel");
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    take_tokens_kernel(const std::int32_t* likeliest, const std::int32_t* step_tokens,
                       std::int32_t* tokens, std::int32_t num_seqs) {
  const auto seq = static_cast<std::int32_t>(blockIdx.x * kThreads + threadIdx.x);
  if (seq < num_seqs && step_tokens[seq] > 0) tokens[seq] = likeliest[seq];
}

/// The next step's tokens: the likeliest ones, and the old ones where a sequence took no part.
///
/// Errors: kInvalidArgument for null arrays and negative numbers; kDeviceError from the launch.
inline Status launch_take_tokens(const std::int32_t* likeliest, const std::int32_t* step_tokens,
                                 std::int32_t* tokens, std::int32_t num_seqs, cudaStream_t stream) {
  if (num_seqs == 0) return {};
  if (num_seqs < 0 || likeliest == nullptr || step_tokens == nullptr || tokens == nullptr) {
    return detail::refuse_batch("take_tokens",
                                std::to_string(num_seqs) + " sequences, or null arrays");
  }
  take_tokens_kernel<kBatchThreads>
      <<<static_cast<unsigned>(ceil_div(num_seqs, kBatchThreads)), kBatchThreads, 0, stream>>>(
          likeliest, step_tokens, tokens, num_seqs);
  return cuda::launch_status("take_tokens_kernel");
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    copy_set_kernel(cuda::DeviceAttendedSets from, std::int32_t from_set,
                    cuda::DeviceAttendedSets to, std::int32_t to_set) {
  const std::int32_t count = min(from.num_span_tokens[from_set], to.span_capacity);
  const std::int32_t* source = from.span_tokens_of(from_set);
  std::int32_t* target = to.span_tokens_of(to_set);
  for (auto i = static_cast<std::int32_t>(blockIdx.x * kThreads + threadIdx.x); i < count;
       i += static_cast<std::int32_t>(gridDim.x) * kThreads) {
    target[i] = source[i];
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    to.num_span_tokens[to_set] = count;
    to.tail_begin[to_set] = from.tail_begin[from_set];
  }
}

/// Copies one attended set to another place, which must have room for it: a longer list is cut off.
///
/// Errors: kInvalidArgument for null arrays and sets that are not there; kDeviceError from the
/// launch.
inline Status launch_copy_set(const cuda::DeviceAttendedSets& from, std::int32_t from_set,
                              const cuda::DeviceAttendedSets& to, std::int32_t to_set,
                              cudaStream_t stream) {
  if (from_set < 0 || from_set >= from.num_sets || to_set < 0 || to_set >= to.num_sets ||
      !detail::has_arrays(from) || !detail::has_arrays(to)) {
    return detail::refuse_batch("copy_set", "set " + std::to_string(from_set) + " of " +
                                                std::to_string(from.num_sets) + " to set " +
                                                std::to_string(to_set) + " of " +
                                                std::to_string(to.num_sets) + ", or null arrays");
  }
  constexpr unsigned kBlocks = 16;  // a list of 16K tokens in eight rounds
  copy_set_kernel<kBatchThreads><<<kBlocks, kBatchThreads, 0, stream>>>(from, from_set, to, to_set);
  return cuda::launch_status("copy_set_kernel");
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    spread_sets_kernel(cuda::DeviceAttendedSets sets, const std::int32_t* triggers,
                       std::int32_t num_seqs) {
  const auto seq = static_cast<std::int32_t>(blockIdx.y);
  if (triggers[seq] < 0) return;
  const std::int32_t count = sets.num_span_tokens[seq];
  const std::int32_t target = (static_cast<std::int32_t>(blockIdx.x) + 1) * num_seqs + seq;
  const std::int32_t* from = sets.span_tokens_of(seq);
  std::int32_t* to = sets.span_tokens_of(target);
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < count; i += kThreads) to[i] = from[i];
  if (threadIdx.x == 0) {
    sets.num_span_tokens[target] = count;
    sets.tail_begin[target] = sets.tail_begin[seq];
  }
}

/// Gives every layer the set that all layers share, for sequences with a trigger.
///
/// Layers keep sets of their own even where one is shared: a prompt read layer by layer leaves them
/// different ones, which stay in force until the first shared set is chosen.
///
/// \param sets      [num_layers * num_seqs] of layer 0 first: in; the other layers': out
/// \param triggers  [num_seqs] < 0: the sequence's sets stay
/// Errors: kInvalidArgument for null arrays, negative numbers and fewer sets than layers have;
///         kUnsupported for more than 65535 sequences; kDeviceError from the launch.
inline Status launch_spread_sets(const cuda::DeviceAttendedSets& sets, const std::int32_t* triggers,
                                 std::int32_t num_layers, std::int32_t num_seqs,
                                 cudaStream_t stream) {
  if (num_layers < 0 || num_seqs < 0) {
    return detail::refuse_batch("spread_sets", std::to_string(num_layers) + " layers of " +
                                                   std::to_string(num_seqs) + " sequences");
  }
  if (num_layers <= 1 || num_seqs == 0) return {};
  constexpr std::int32_t kMostInGrid = 65535;
  if (num_seqs > kMostInGrid) {
    return unsupported("spread_sets: " + std::to_string(num_seqs) +
                       " sequences, supported are up to 65535");
  }
  if (sets.num_sets < std::int64_t{num_layers} * num_seqs || !detail::has_arrays(sets) ||
      triggers == nullptr) {
    return detail::refuse_batch(
        "spread_sets", std::to_string(sets.num_sets) + " sets for " + std::to_string(num_layers) +
                           " layers of " + std::to_string(num_seqs) + " sequences, or null arrays");
  }
  constexpr int kThreads = 1024;  // a list of 16K tokens in sixteen rounds
  const dim3 grid(static_cast<unsigned>(num_layers - 1), static_cast<unsigned>(num_seqs));
  spread_sets_kernel<kThreads><<<grid, kThreads, 0, stream>>>(sets, triggers, num_seqs);
  return cuda::launch_status("spread_sets_kernel");
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    boundary_probabilities_kernel(boundaries::Adapter<float> adapter) {
  const std::int64_t row = blockIdx.x;
  const float probability = boundaries::row_probability(adapter, row);
  if (threadIdx.x == 0) adapter.maybe_probabilities[row] = probability;
}

/// The Chunk Adapter's word on each row, with the bits of `launch_detect_boundaries`; where a chunk
/// ends is decided elsewhere.
///
/// \param hidden  [num_rows, hidden_size]   \param probabilities  [num_rows] out
/// Errors: kInvalidArgument for null arrays, sizes that are none and misaligned rows or weights;
///         kDeviceError from the launch.
inline Status launch_boundary_probabilities(const float* hidden, std::int32_t num_rows,
                                            std::int32_t hidden_size, const float* weight,
                                            float bias, float* probabilities, cudaStream_t stream) {
  if (num_rows == 0) return {};
  if (num_rows < 0 || hidden_size < 1 || hidden == nullptr || weight == nullptr ||
      probabilities == nullptr) {
    return detail::refuse_batch("boundary_probabilities", std::to_string(num_rows) + " rows of " +
                                                              std::to_string(hidden_size) +
                                                              " features, or null arrays");
  }
  if (!rows_are_aligned(hidden, num_rows > 1 ? hidden_size : 0) || !rows_are_aligned(weight)) {
    return invalid_argument(
        "boundary_probabilities: hidden rows and weight must begin at multiples of 16 bytes");
  }
  const boundaries::Adapter<float> adapter{hidden, hidden_size, hidden_size,  weight,
                                           bias,   0.0F,        probabilities};
  boundary_probabilities_kernel<boundaries::kRowThreads>
      <<<static_cast<unsigned>(num_rows), boundaries::kRowThreads, 0, stream>>>(adapter);
  return cuda::launch_status("boundary_probabilities_kernel");
}

}  // namespace chunkllm::kernels
