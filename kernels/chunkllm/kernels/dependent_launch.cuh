// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/cuda_status.hpp"

/// Kernels that take their place before the one in front of them has ended (programmatic dependent
/// launch), so that launch latencies and first loads of a chain of short kernels overlap.
///
/// The rule, for every kernel that `launch_dependent` starts: all its threads call
/// `wait_for_previous` before they read or write what any other kernel writes or reads; in front of
/// it stands only what is constant (weights). Then all kernels in front are complete when a kernel
/// passes its wait, because each of them had passed its own before it completed; buffers can be
/// written again without a thought of readers further up. A kernel launched plainly, also one of a
/// library, begins and is waited for as always, and may stand anywhere in between.
///
/// `let_next_start` only lets the next kernel take its place; it says nothing of memory. A kernel
/// that calls it behind its wait promises the next one more: all but its own results can be read
/// before that one's wait. `launch_rope_store` does.
namespace chunkllm::kernels {

/// Blocks until the kernels in front of this one are complete and what they wrote can be read;
/// returns at once where the launch does not overlap.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel, if it overlaps, take what room there is once all blocks of this one have
/// come here.
__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Brings a line of memory closer; it is not read, so that this may stand in front of the wait.
__device__ inline void prefetch_to_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

/// How many threads and bytes of dynamic shared memory a kernel is launched with.
struct LaunchShape {
  dim3 grid;
  unsigned threads = 0;
  std::size_t shared_bytes = 0;
};

/// Whether the machine code of `kernel` on the current device holds the instructions: compiled for
/// a device of compute capability 9.0 or more, and not translated from an older one's.
template <typename... Parameters>
inline bool can_overlap(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes = {};
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // the launch tells
    return false;
  }
  return attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
}

/// Launches a kernel.
///
/// \param overlaps  begins before the kernel in front has ended: only where all threads of `kernel`
///                  come to a `wait_for_previous` and it `can_overlap`. Captured in a graph, this
///                  becomes a programmatic edge
template <typename Argument>
inline Status launch_kernel(std::string_view name, void (*kernel)(Argument),
                            const LaunchShape& shape, bool overlaps, cudaStream_t stream,
                            const Argument& argument) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = overlaps ? 1 : 0;
  return cuda::cuda_status(cudaLaunchKernelEx(&config, kernel, argument), name);
}

/// Launches a kernel that keeps the rule above, overlapping the one in front where the device can.
///
/// \param overlaps  false: begins behind the kernel in front, as a plain launch
///
/// Asks for as much shared memory a multiprocessor as there is: one is split between L1 and shared
/// memory as its first kernel wants, and a second kernel that needs more would have to wait for it.
template <typename Argument>
inline Status launch_dependent(std::string_view name, void (*kernel)(Argument),
                               const LaunchShape& shape, cudaStream_t stream,
                               const Argument& argument, bool overlaps = true) {
  CHUNKLLM_RETURN_IF_ERROR(
      cuda::cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                             cudaSharedmemCarveoutMaxShared),
                        name));
  return launch_kernel(name, kernel, shape, overlaps && can_overlap(kernel), stream, argument);
}

}  // namespace chunkllm::kernels
