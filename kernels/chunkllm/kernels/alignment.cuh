// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// What launchers ask of the addresses that kernels read and write several bytes at a time.
namespace chunkllm::kernels {

/// Whether `pointer` is a multiple of `bytes`, a power of two. A null pointer is.
inline bool is_aligned(const void* pointer, std::uintptr_t bytes = 16) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

/// Whether rows that begin at `pointer` and every `stride` elements behind it all begin at
/// multiples of `bytes`.
template <typename T>
bool rows_are_aligned(const T* pointer, std::int64_t stride = 0, std::uintptr_t bytes = 16) {
  return is_aligned(pointer, bytes) && static_cast<std::uint64_t>(stride) * sizeof(T) % bytes == 0;
}

}  // namespace chunkllm::kernels
