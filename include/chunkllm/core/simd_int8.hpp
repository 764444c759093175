// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "chunkllm/core/simd.hpp"

#if defined(CHUNKLLM_SIMD_AVX512) && defined(__AVX512VNNI__)
#define CHUNKLLM_SIMD_VNNI 1
#endif

/// Sixteen integer sums of four byte products each: AVX-512 VNNI, AVX-512, AVX2 or plain loops.
///
/// Integer sums are exact, so all paths give the same bits.
namespace chunkllm::simd {

/// 64 codes: lane i holds four consecutive input features of output feature i. `UnsignedCodes` are
/// 0 to 15, `SignedCodes` -128 to 127.
struct UnsignedCodes;
struct SignedCodes;

#if defined(CHUNKLLM_SIMD_AVX512)

struct I32x16 {
  __m512i v;
};
struct UnsignedCodes {
  __m512i v;
};
struct SignedCodes {
  __m512i v;
};

inline F32x16 to_f32(I32x16 a) {
  return {_mm512_maskz_cvtepi32_ps(kAll, a.v)};
}
/// The low, then the high nibbles of 64 bytes.
inline void load_nibble_codes(const std::byte* p, UnsignedCodes& low, UnsignedCodes& high) {
  const __m512i bytes = _mm512_loadu_si512(p);
  const __m512i mask = _mm512_set1_epi8(15);
  low.v = _mm512_and_si512(bytes, mask);
  high.v = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
}

namespace detail {
inline __m512i broadcast_bytes(const std::int8_t* x) {
  std::int32_t four;
  std::memcpy(&four, x, sizeof(four));
  return _mm512_set1_epi32(four);
}
}  // namespace detail

#if defined(CHUNKLLM_SIMD_VNNI)

/// The instruction takes one factor unsigned: signed codes run as code + 128, and the sums start
/// at -128 * (sum of the activations).
inline SignedCodes load_signed_codes(const std::byte* p) {
  return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128))};
}
inline I32x16 signed_start(std::int32_t minus_128_sums) {
  return {_mm512_set1_epi32(minus_128_sums)};
}
template <typename Codes>
inline I32x16 add_dots(Codes codes, const std::int8_t* x, I32x16 sum) {
  return {_mm512_dpbusd_epi32(sum.v, codes.v, detail::broadcast_bytes(x))};
}

#else

inline SignedCodes load_signed_codes(const std::byte* p) {
  return {_mm512_loadu_si512(p)};
}
inline I32x16 signed_start(std::int32_t) {
  return {_mm512_setzero_si512()};
}
namespace detail {
// No pair overflows 16 bits: 2 * 127 * 127.
inline __m512i dots(__m512i magnitudes, __m512i x) {
  return _mm512_madd_epi16(_mm512_maddubs_epi16(magnitudes, x), _mm512_set1_epi16(1));
}
}  // namespace detail
inline I32x16 add_dots(UnsignedCodes codes, const std::int8_t* x, I32x16 sum) {
  return {_mm512_add_epi32(sum.v, detail::dots(codes.v, detail::broadcast_bytes(x)))};
}
inline I32x16 add_dots(SignedCodes codes, const std::int8_t* x, I32x16 sum) {
  const __m512i bytes = detail::broadcast_bytes(x);
  const __m512i turned =
      _mm512_mask_sub_epi8(bytes, _mm512_movepi8_mask(codes.v), _mm512_setzero_si512(), bytes);
  return {_mm512_add_epi32(sum.v, detail::dots(_mm512_abs_epi8(codes.v), turned))};
}

#endif
inline I32x16 zero_i32() {
  return {_mm512_setzero_si512()};
}

#elif defined(CHUNKLLM_SIMD_AVX2)

struct I32x16 {
  __m256i v[2];
};
struct UnsignedCodes {
  __m256i v[2];
};
struct SignedCodes {
  __m256i v[2];
};

namespace detail {
inline __m256i load_half(const std::byte* p, int half) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + half);
}
inline __m256i broadcast_bytes(const std::int8_t* x) {
  std::int32_t four;
  std::memcpy(&four, x, sizeof(four));
  return _mm256_set1_epi32(four);
}
// No pair overflows 16 bits: 2 * 127 * 127.
inline __m256i dots(__m256i magnitudes, __m256i x) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, x), _mm256_set1_epi16(1));
}
}  // namespace detail

inline I32x16 zero_i32() {
  return {{_mm256_setzero_si256(), _mm256_setzero_si256()}};
}
inline I32x16 signed_start(std::int32_t) {
  return zero_i32();
}
inline F32x16 to_f32(I32x16 a) {
  return {{_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])}};
}
inline SignedCodes load_signed_codes(const std::byte* p) {
  return {{detail::load_half(p, 0), detail::load_half(p, 1)}};
}
inline void load_nibble_codes(const std::byte* p, UnsignedCodes& low, UnsignedCodes& high) {
  const __m256i mask = _mm256_set1_epi8(15);
  for (int half = 0; half < 2; ++half) {
    const __m256i bytes = detail::load_half(p, half);
    low.v[half] = _mm256_and_si256(bytes, mask);
    high.v[half] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
  }
}
inline I32x16 add_dots(UnsignedCodes codes, const std::int8_t* x, I32x16 sum) {
  const __m256i bytes = detail::broadcast_bytes(x);
  return {{_mm256_add_epi32(sum.v[0], detail::dots(codes.v[0], bytes)),
           _mm256_add_epi32(sum.v[1], detail::dots(codes.v[1], bytes))}};
}
inline I32x16 add_dots(SignedCodes codes, const std::int8_t* x, I32x16 sum) {
  const __m256i bytes = detail::broadcast_bytes(x);
  const auto add = [&](int half) {
    return _mm256_add_epi32(sum.v[half], detail::dots(_mm256_abs_epi8(codes.v[half]),
                                                      _mm256_sign_epi8(bytes, codes.v[half])));
  };
  return {{add(0), add(1)}};
}

#else

struct I32x16 {
  std::int32_t v[kLanes];
};
struct UnsignedCodes {
  std::uint8_t v[4 * kLanes];
};
struct SignedCodes {
  std::int8_t v[4 * kLanes];
};

inline I32x16 zero_i32() {
  return I32x16{};
}
inline I32x16 signed_start(std::int32_t) {
  return zero_i32();
}
inline F32x16 to_f32(I32x16 a) {
  return make_lanes([&](int i) { return static_cast<float>(a.v[i]); });
}
inline SignedCodes load_signed_codes(const std::byte* p) {
  SignedCodes codes;
  std::memcpy(codes.v, p, sizeof(codes.v));
  return codes;
}
inline void load_nibble_codes(const std::byte* p, UnsignedCodes& low, UnsignedCodes& high) {
  for (int i = 0; i < 4 * kLanes; ++i) {
    const auto byte = std::to_integer<std::uint8_t>(p[i]);
    low.v[i] = byte & 15;
    high.v[i] = byte >> 4;
  }
}
template <typename Codes>
inline I32x16 add_dots(const Codes& codes, const std::int8_t* x, I32x16 sum) {
  for (int i = 0; i < kLanes; ++i) {
    for (int k = 0; k < 4; ++k) sum.v[i] += codes.v[4 * i + k] * x[k];
  }
  return sum;
}

#endif

}  // namespace chunkllm::simd
