// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace chunkllm {

/// Storage types of tensors in model and adapter files. Block types are GGUF's.
enum class DType : std::uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ6_K };

/// `block_size` consecutive values of a row are stored in `block_bytes` bytes.
struct DTypeTraits {
  std::string_view name;
  std::size_t block_size;
  std::size_t block_bytes;
};

constexpr DTypeTraits dtype_traits(DType dtype) {
  switch (dtype) {
    case DType::kF32: return {"f32", 1, 4};
    case DType::kF16: return {"f16", 1, 2};
    case DType::kBF16: return {"bf16", 1, 2};
    case DType::kQ8_0: return {"q8_0", 32, 34};
    case DType::kQ4_0: return {"q4_0", 32, 18};
    case DType::kQ4_1: return {"q4_1", 32, 20};
    case DType::kQ4_K: return {"q4_k", 256, 144};
    case DType::kQ6_K: return {"q6_k", 256, 210};
  }
  return {"?", 1, 1};
}

/// IEEE 754 binary16, storage only.
struct F16 {
  std::uint16_t bits = 0;
};

/// The upper half of an IEEE 754 binary32, storage only.
struct BF16 {
  std::uint16_t bits = 0;
};

constexpr float to_f32(float value) {
  return value;
}

constexpr float to_f32(BF16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

inline float to_f32(F16 value) {
#if defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000U) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffU);
  if (magnitude >= 0x7c00U) {  // inf and NaN; a NaN is made quiet, as the hardware conversion does
    const std::uint32_t quiet = magnitude > 0x7c00U ? 0x00400000U : 0U;
    return std::bit_cast<float>(sign | 0x7f800000U | quiet | ((magnitude & 0x3ffU) << 13));
  }
  // A subnormal or zero is magnitude x 2^-24, exactly; the others differ in the exponent's bias
  // only.
  if (magnitude < 0x0400U) {
    const float scaled = static_cast<float>(magnitude) * 0x1p-24F;
    return sign != 0 ? -scaled : scaled;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000U));
#endif
}

/// Rounds to nearest, ties to even; overflow becomes infinity, NaN stays a quiet NaN.
inline F16 to_f16(float value) {
#if defined(__F16C__)
  return {static_cast<std::uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
#else
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) {
    return {static_cast<std::uint16_t>(sign | 0x7e00U | ((magnitude >> 13) & 0x3ffU))};
  }
  if (magnitude >= 0x477ff000U) return {static_cast<std::uint16_t>(sign | 0x7c00U)};
  if (magnitude < 0x38800000U) {
    // Adding 0.5 puts the subnormal's last place at the float's last place: the addition rounds.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return {
        static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000U))};
  }
  const std::uint32_t odd = (magnitude >> 13) & 1U;
  const std::uint32_t rounded = magnitude - 0x38000000U + 0xfffU + odd;
  return {static_cast<std::uint16_t>(sign | (rounded >> 13))};
#endif
}

/// Rounds to nearest, ties to even; NaN stays a quiet NaN.
constexpr BF16 to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return {static_cast<std::uint16_t>((bits >> 16) | 0x0040U)};
  }
  return {static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}

template <typename T>
T from_f32(float value);
template <>
inline float from_f32<float>(float value) {
  return value;
}
template <>
inline F16 from_f32<F16>(float value) {
  return to_f16(value);
}
template <>
inline BF16 from_f32<BF16>(float value) {
  return to_bf16(value);
}

}  // namespace chunkllm
