// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "chunkllm/kernels/primitives.cuh"

/// Eight neighbouring features at a time, whatever type they are stored in.
namespace chunkllm::kernels {

/// Features that one thread takes at once: 16 bytes of a 16 bit type, 32 of f32.
inline constexpr int kRowVector = 8;

template <typename T>
inline constexpr bool kIsRowType =
    std::is_same_v<T, float> || std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

template <typename T>
__device__ inline float row_to_float(T value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return Element<T>::to_float(value);
  }
}

/// Rounds to nearest, ties to even.
template <typename T>
__device__ inline T row_from_float(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return Element<T>::from_float(value);
  }
}

/// `kRowVector` values as they are stored. Addresses are multiples of 16 bytes.
///
/// \tparam T  float, __half or __nv_bfloat16
template <typename T>
struct RowVector {
  static_assert(kIsRowType<T>, "rows are float, __half or __nv_bfloat16");
  static constexpr int kWords = static_cast<int>(sizeof(T)) * kRowVector / 16;

  uint4 words[kWords];

  __device__ void load(const T* address) {
    const uint4* from = reinterpret_cast<const uint4*>(address);
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = from[i];
  }
  /// As `load`, of memory that is read once.
  __device__ void load_once(const T* address) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = load_streaming(reinterpret_cast<const uint4*>(address) + i);
    }
  }
  __device__ void widen(float (&values)[kRowVector]) const {
    if constexpr (std::is_same_v<T, float>) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        values[4 * i] = __uint_as_float(words[i].x);
        values[4 * i + 1] = __uint_as_float(words[i].y);
        values[4 * i + 2] = __uint_as_float(words[i].z);
        values[4 * i + 3] = __uint_as_float(words[i].w);
      }
    } else {
      const std::uint32_t pairs[4] = {words[0].x, words[0].y, words[0].z, words[0].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = Element<T>::to_float2(pairs[i]);
        values[2 * i] = pair.x;
        values[2 * i + 1] = pair.y;
      }
    }
  }
  __device__ static void store(T* address, const float (&values)[kRowVector]) {
    uint4* to = reinterpret_cast<uint4*>(address);
    if constexpr (std::is_same_v<T, float>) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        to[i] = {__float_as_uint(values[4 * i]), __float_as_uint(values[4 * i + 1]),
                 __float_as_uint(values[4 * i + 2]), __float_as_uint(values[4 * i + 3])};
      }
    } else {
      to[0] = {Element<T>::pack(values[0], values[1]), Element<T>::pack(values[2], values[3]),
               Element<T>::pack(values[4], values[5]), Element<T>::pack(values[6], values[7])};
    }
  }
};

}  // namespace chunkllm::kernels
