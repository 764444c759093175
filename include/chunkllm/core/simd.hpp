// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "chunkllm/core/dtype.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define CHUNKLLM_SIMD_AVX2 1
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define CHUNKLLM_SIMD_AVX512 1
#endif
#endif

/// Sixteen floats at a time: AVX-512, AVX2 or plain loops, chosen by the compiler's target flags.
///
/// Every operation works lane by lane, so the three give the same sums wherever a kernel fixes
/// its order; only the rounding of `multiply_add` differs (the plain loop may round twice).
namespace chunkllm::simd {

inline constexpr std::int64_t kLanes = 16;

#if defined(CHUNKLLM_SIMD_AVX512)

inline constexpr const char* kTargetName = "avx512";
// g++ 12 warns of an uninitialised value inside the plain forms of these intrinsics (its bug
// 105593); the zero-masked forms with a full mask compile to the same instructions.
inline constexpr __mmask16 kAll = 0xffff;
struct F32x16 {
  __m512 v;
};
inline F32x16 zero() {
  return {_mm512_setzero_ps()};
}
inline F32x16 broadcast(float x) {
  return {_mm512_set1_ps(x)};
}
inline F32x16 load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline F32x16 load(const F16* p) {
  return {_mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F32x16 load(const BF16* p) {
  const __m512i wide =
      _mm512_maskz_cvtepu16_epi32(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, wide, 16))};
}
inline F32x16 load(const std::int8_t* p) {
  return {_mm512_maskz_cvtepi32_ps(
      kAll,
      _mm512_maskz_cvtepi8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline void store(float* p, F32x16 a) {
  _mm512_storeu_ps(p, a.v);
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline F32x16 multiply_add(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
/// Lane-wise maximum; where either lane is NaN the second operand is returned, as in hardware.
inline F32x16 max(F32x16 a, F32x16 b) {
  return {_mm512_maskz_max_ps(kAll, a.v, b.v)};
}
/// 2^n for integral n in [-126, 127].
inline F32x16 power_of_two(F32x16 n) {
  const __m512i biased =
      _mm512_add_epi32(_mm512_maskz_cvtps_epi32(kAll, n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, biased, 23))};
}
inline F32x16 round(F32x16 a) {
  return {_mm512_maskz_roundscale_ps(kAll, a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
/// a where x >= bound, b elsewhere (NaN: b).
inline F32x16 select_if_at_least(F32x16 x, F32x16 bound, F32x16 a, F32x16 b) {
  return {_mm512_mask_mov_ps(b.v, _mm512_cmp_ps_mask(x.v, bound.v, _CMP_GE_OQ), a.v)};
}
/// Lanes 0..15 of the low, then of the high nibbles of 16 bytes.
inline void load_nibbles(const std::uint8_t* p, F32x16& low, F32x16& high) {
  const __m512i bytes =
      _mm512_maskz_cvtepu8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  low.v = _mm512_maskz_cvtepi32_ps(kAll, _mm512_and_si512(bytes, _mm512_set1_epi32(15)));
  high.v = _mm512_maskz_cvtepi32_ps(kAll, _mm512_maskz_srli_epi32(kAll, bytes, 4));
}

#elif defined(CHUNKLLM_SIMD_AVX2)

inline constexpr const char* kTargetName = "avx2";
struct F32x16 {
  __m256 v[2];
};
inline F32x16 zero() {
  return {{_mm256_setzero_ps(), _mm256_setzero_ps()}};
}
inline F32x16 broadcast(float x) {
  return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}};
}
inline F32x16 load(const float* p) {
  return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}};
}
inline F32x16 load(const F16* p) {
  const auto* words = reinterpret_cast<const __m128i*>(p);
  return {{_mm256_cvtph_ps(_mm_loadu_si128(words)), _mm256_cvtph_ps(_mm_loadu_si128(words + 1))}};
}
inline F32x16 load(const BF16* p) {
  const auto* words = reinterpret_cast<const __m128i*>(p);
  const auto widen = [](__m128i w) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(w), 16));
  };
  return {{widen(_mm_loadu_si128(words)), widen(_mm_loadu_si128(words + 1))}};
}
inline F32x16 load(const std::int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {{_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
           _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))}};
}
inline void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.v[0]);
  _mm256_storeu_ps(p + 8, a.v[1]);
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
  return {{_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}};
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  return {{_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])}};
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}};
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  return {{_mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1])}};
}
inline F32x16 multiply_add(F32x16 a, F32x16 b, F32x16 c) {
  return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
inline F32x16 max(F32x16 a, F32x16 b) {
  return {{_mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1])}};
}
inline F32x16 power_of_two(F32x16 n) {
  const auto power = [](__m256 x) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  };
  return {{power(n.v[0]), power(n.v[1])}};
}
inline F32x16 round(F32x16 a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {{_mm256_round_ps(a.v[0], kNearest), _mm256_round_ps(a.v[1], kNearest)}};
}
inline F32x16 select_if_at_least(F32x16 x, F32x16 bound, F32x16 a, F32x16 b) {
  return {{_mm256_blendv_ps(b.v[0], a.v[0], _mm256_cmp_ps(x.v[0], bound.v[0], _CMP_GE_OQ)),
           _mm256_blendv_ps(b.v[1], a.v[1], _mm256_cmp_ps(x.v[1], bound.v[1], _CMP_GE_OQ))}};
}
inline void load_nibbles(const std::uint8_t* p, F32x16& low, F32x16& high) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  for (int half = 0; half < 2; ++half) {
    const __m256i wide = _mm256_cvtepu8_epi32(half == 0 ? bytes : _mm_srli_si128(bytes, 8));
    low.v[half] = _mm256_cvtepi32_ps(_mm256_and_si256(wide, _mm256_set1_epi32(15)));
    high.v[half] = _mm256_cvtepi32_ps(_mm256_srli_epi32(wide, 4));
  }
}

#else

inline constexpr const char* kTargetName = "portable";
struct F32x16 {
  float v[kLanes];
};
template <typename Lane>
inline F32x16 make_lanes(Lane&& lane) {
  F32x16 out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = lane(i);
  return out;
}
inline F32x16 zero() {
  return F32x16{};
}
inline F32x16 broadcast(float x) {
  return make_lanes([&](int) { return x; });
}
template <typename T>
inline F32x16 load(const T* p) {
  return make_lanes([&](int i) { return to_f32(p[i]); });
}
inline F32x16 load(const std::int8_t* p) {
  return make_lanes([&](int i) { return static_cast<float>(p[i]); });
}
inline void store(float* p, F32x16 a) {
  std::memcpy(p, a.v, sizeof(a.v));
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
  return make_lanes([&](int i) { return a.v[i] + b.v[i]; });
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  return make_lanes([&](int i) { return a.v[i] - b.v[i]; });
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  return make_lanes([&](int i) { return a.v[i] * b.v[i]; });
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  return make_lanes([&](int i) { return a.v[i] / b.v[i]; });
}
inline F32x16 multiply_add(F32x16 a, F32x16 b, F32x16 c) {
  return make_lanes([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline F32x16 max(F32x16 a, F32x16 b) {
  return make_lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32x16 power_of_two(F32x16 n) {
  return make_lanes([&](int i) {
    const float bounded = n.v[i] >= -127.0F ? n.v[i] : -127.0F;  // NaN has no integer
    return std::bit_cast<float>((static_cast<std::int32_t>(bounded) + 127) << 23);
  });
}
inline F32x16 round(F32x16 a) {
  return make_lanes([&](int i) { return std::nearbyint(a.v[i]); });
}
inline F32x16 select_if_at_least(F32x16 x, F32x16 bound, F32x16 a, F32x16 b) {
  return make_lanes([&](int i) { return x.v[i] >= bound.v[i] ? a.v[i] : b.v[i]; });
}
inline void load_nibbles(const std::uint8_t* p, F32x16& low, F32x16& high) {
  low = make_lanes([&](int i) { return static_cast<float>(p[i] & 15); });
  high = make_lanes([&](int i) { return static_cast<float>(p[i] >> 4); });
}

#endif

/// e^x for x <= 88; 0 at and below -87 and for -inf; NaN for NaN. Relative error below 2 ulp
/// (tests/unit/test_simd.cpp).
///
/// Cephes' expf in lanes: x = n ln 2 + r with |r| <= ln 2 / 2, then a polynomial of degree 6
/// (S. Moshier, Methods and Programs for Mathematical Functions, 1989).
inline F32x16 exp(F32x16 x) {
  const F32x16 lowest = broadcast(-87.0F);
  const F32x16 clamped = max(lowest, x);  // in this order NaN stays NaN
  const F32x16 n = round(clamped * broadcast(1.44269504088896341F));
  F32x16 r = multiply_add(n, broadcast(-0.693359375F), clamped);
  r = multiply_add(n, broadcast(2.12194440e-4F), r);
  F32x16 p = broadcast(1.9875691500e-4F);
  p = multiply_add(p, r, broadcast(1.3981999507e-3F));
  p = multiply_add(p, r, broadcast(8.3334519073e-3F));
  p = multiply_add(p, r, broadcast(4.1665795894e-2F));
  p = multiply_add(p, r, broadcast(1.6666665459e-1F));
  p = multiply_add(p, r, broadcast(5.0000001201e-1F));
  p = multiply_add(p, r * r, r) + broadcast(1.0F);
  return select_if_at_least(lowest, x, zero(), p * power_of_two(n));
}

/// Lane 0, where all are alike.
inline float first_lane(F32x16 a) {
#if defined(CHUNKLLM_SIMD_AVX512)
  return _mm512_cvtss_f32(a.v);
#elif defined(CHUNKLLM_SIMD_AVX2)
  return _mm256_cvtss_f32(a.v[0]);
#else
  return a.v[0];
#endif
}

/// Sum of the lanes, pairwise in a fixed order.
inline float horizontal_sum(F32x16 a) {
  float lane[kLanes];
  store(lane, a);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

inline float horizontal_max(F32x16 a) {
  float lane[kLanes];
  store(lane, a);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  }
  return lane[0];
}

/// sum_i a[i] b[i] in an order that depends on `size` alone, not on alignment.
inline float dot(const float* a, const float* b, std::int64_t size) {
  F32x16 sum0 = zero();
  F32x16 sum1 = zero();
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    sum0 = multiply_add(load(a + i), load(b + i), sum0);
    sum1 = multiply_add(load(a + i + kLanes), load(b + i + kLanes), sum1);
  }
  // The rest goes through the lanes too: a scalar loop may or may not be fused, as the compiler
  // likes at each place it is inlined.
  for (; i < size; i += kLanes) {
    float rest_a[kLanes] = {};
    float rest_b[kLanes] = {};
    const auto count = static_cast<std::size_t>(std::min(kLanes, size - i)) * sizeof(float);
    std::memcpy(rest_a, a + i, count);
    std::memcpy(rest_b, b + i, count);
    sum0 = multiply_add(load(rest_a), load(rest_b), sum0);
  }
  return horizontal_sum(sum0 + sum1);
}

}  // namespace chunkllm::simd
