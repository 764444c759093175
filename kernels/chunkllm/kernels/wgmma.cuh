// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

/// Hopper's warpgroup products (sm_90a), and the barriers of warp-specialised kernels. 128 threads
/// of four warps, the first at a multiple of four, call the products together.
///
/// Layouts and encodings are those of the PTX ISA, "Asynchronous Warpgroup Level Matrix
/// Instructions": matrix descriptor format, and the canonical layouts of its 128-byte swizzle.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace chunkllm::kernels {

// ---------------------------------------------------------------------------------------------
// Matrix descriptors. In the 128-byte swizzle a matrix consists of atoms of 8 rows x 128 bytes,
// whose 16-byte pieces are exchanged by an XOR of address bits 4..6 with bits 7..9. Atoms start at
// multiples of 1024 bytes, so the base offset of the descriptor is 0. Byte counts are encoded
// without their last four bits.

constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
constexpr std::uint64_t kAtomBytes = 1024;

__device__ inline std::uint64_t encode_bytes(std::uint64_t bytes) {
  return (bytes & 0x3ffff) >> 4;
}

/// A left or right operand whose products run along the 128 bytes of a row (K-major): rows are the
/// result's rows or columns. From 8 rows to the next 8 (stride offset) it is one atom. The leading
/// offset has no meaning here and is 1 by convention. The next 16 of the products' dimensions start
/// 32 bytes further: the hardware applies the XOR to the sum.
__device__ inline std::uint64_t describe_rows(std::uint32_t shared) {
  return encode_bytes(shared) | std::uint64_t{1} << 16 | encode_bytes(kAtomBytes) << 32 |
         kSwizzle128;
}

/// A right operand whose rows are what products run along, and whose 64 columns stand in the 128
/// bytes of a row (N-major): from 8 rows to the next 8 (stride offset) it is one atom, from 64
/// columns to the next 64 (leading offset) a whole panel.
__device__ inline std::uint64_t describe_columns(std::uint32_t shared, std::uint32_t panel_bytes) {
  return encode_bytes(shared) | encode_bytes(panel_bytes) << 16 | encode_bytes(kAtomBytes) << 32 |
         kSwizzle128;
}

/// The same matrix, `bytes` further on.
__device__ inline std::uint64_t advance(std::uint64_t descriptor, std::uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// ---------------------------------------------------------------------------------------------
// Products. Accumulators are [columns / 8][4]: of each 8 columns a lane holds columns
// 2 (lane % 4) + {0, 1} of rows lane / 4 (values 0, 1) and lane / 4 + 8 (values 2, 3) of its warp's
// 16 of the 64 rows. A left operand in registers has the layout of mma.m16n8k16's.

/// Makes earlier writes to registers visible to the products that follow.
__device__ inline void fence_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most `kPending` of the newest groups are still running.
template <int kPending>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from moving reads and writes of accumulators across this place.
template <int kBlocks>
__device__ inline void pin(float (&values)[kBlocks][4]) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(values[b][e])::"memory");
  }
}
template <int kBlocks>
__device__ inline void pin(std::uint32_t (&values)[kBlocks][4]) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+r"(values[b][e])::"memory");
  }
}

// clang-format off
#define CHUNKLLM_WGMMA_NAMES_32                                                                \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
#define CHUNKLLM_WGMMA_NAMES_64                                                                \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "           \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "           \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
#define CHUNKLLM_WGMMA_BLOCK(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define CHUNKLLM_WGMMA_BLOCKS_8                                                                \
  CHUNKLLM_WGMMA_BLOCK(0), CHUNKLLM_WGMMA_BLOCK(1), CHUNKLLM_WGMMA_BLOCK(2),                   \
  CHUNKLLM_WGMMA_BLOCK(3), CHUNKLLM_WGMMA_BLOCK(4), CHUNKLLM_WGMMA_BLOCK(5),                   \
  CHUNKLLM_WGMMA_BLOCK(6), CHUNKLLM_WGMMA_BLOCK(7)
#define CHUNKLLM_WGMMA_BLOCKS_16                                                               \
  CHUNKLLM_WGMMA_BLOCKS_8, CHUNKLLM_WGMMA_BLOCK(8), CHUNKLLM_WGMMA_BLOCK(9),                   \
  CHUNKLLM_WGMMA_BLOCK(10), CHUNKLLM_WGMMA_BLOCK(11), CHUNKLLM_WGMMA_BLOCK(12),                \
  CHUNKLLM_WGMMA_BLOCK(13), CHUNKLLM_WGMMA_BLOCK(14), CHUNKLLM_WGMMA_BLOCK(15)

// Both operands in shared memory, both K-major; 64 x 128.
#define CHUNKLLM_WGMMA_ROWS_128(TYPE)                                                          \
  asm volatile(                                                                                \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                         \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " "                         \
      CHUNKLLM_WGMMA_NAMES_64 "%64, %65, add, 1, 1, 0, 0;\n}"                                  \
      : CHUNKLLM_WGMMA_BLOCKS_16                                                               \
      : "l"(a), "l"(b), "r"(add))
// Left operand in registers, right one N-major in shared memory.
#define CHUNKLLM_WGMMA_COLUMNS_128(TYPE)                                                       \
  asm volatile(                                                                                \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " "                         \
      CHUNKLLM_WGMMA_NAMES_64 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                         \
      : CHUNKLLM_WGMMA_BLOCKS_16                                                               \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define CHUNKLLM_WGMMA_COLUMNS_64(TYPE)                                                        \
  asm volatile(                                                                                \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " "                          \
      CHUNKLLM_WGMMA_NAMES_32 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                         \
      : CHUNKLLM_WGMMA_BLOCKS_8                                                                \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
// clang-format on

/// c = a b, or c += a b where `add` is not 0: 64 rows of `a` and 128 rows of `b` (`describe_rows`),
/// over 16 dimensions.
template <typename T>
__device__ inline void multiply_rows(float (&c)[16][4], std::uint64_t a, std::uint64_t b, int add) {
  if constexpr (std::is_same_v<T, __half>) {
    CHUNKLLM_WGMMA_ROWS_128("f16");
  } else {
    CHUNKLLM_WGMMA_ROWS_128("bf16");
  }
}
/// c += a b: 64 rows of `a` in registers, 16 rows of `b` (`describe_columns`).
template <typename T>
__device__ inline void multiply_columns(float (&c)[16][4], const std::uint32_t (&a)[4],
                                        std::uint64_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    CHUNKLLM_WGMMA_COLUMNS_128("f16");
  } else {
    CHUNKLLM_WGMMA_COLUMNS_128("bf16");
  }
}
template <typename T>
__device__ inline void multiply_columns(float (&c)[8][4], const std::uint32_t (&a)[4],
                                        std::uint64_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    CHUNKLLM_WGMMA_COLUMNS_64("f16");
  } else {
    CHUNKLLM_WGMMA_COLUMNS_64("bf16");
  }
}

#undef CHUNKLLM_WGMMA_NAMES_32
#undef CHUNKLLM_WGMMA_NAMES_64
#undef CHUNKLLM_WGMMA_BLOCK
#undef CHUNKLLM_WGMMA_BLOCKS_8
#undef CHUNKLLM_WGMMA_BLOCKS_16
#undef CHUNKLLM_WGMMA_ROWS_128
#undef CHUNKLLM_WGMMA_COLUMNS_128
#undef CHUNKLLM_WGMMA_COLUMNS_64

// ---------------------------------------------------------------------------------------------
// Barriers.

/// Orders what this thread knows to be written to shared memory before the wgmma that follow, its
/// own or those of threads that it lets go on: writes by threads and by cp.async are of another
/// proxy than the reads of wgmma.
__device__ inline void fence_for_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// A barrier in shared memory whose phase ends with `count` arrivals.
__device__ inline void init_barrier(std::uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ inline void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives when all copies that this thread has started with cp.async are complete; the arrival is
/// one of the barrier's count.
__device__ inline void arrive_behind_copies(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
/// Waits for the end of the phase of this parity: 0 for the first. A new barrier counts as past
/// parity 1.
__device__ inline void wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  do {
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

/// Hardware barriers 1 to 15 of a block, of `threads` threads; 0 is __syncthreads().
__device__ inline void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void arrive_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Registers a thread of this warpgroup may use from here on.
template <int kCount>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace chunkllm::kernels

#endif  // __CUDA_ARCH_FEAT_SM90_ALL
