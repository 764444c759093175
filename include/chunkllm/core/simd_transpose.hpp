// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/core/simd.hpp"

namespace chunkllm::simd {

/// out[c][r] = rows[r][first + c] for r, c in [0, 16), as f32.
///
/// \param rows  16 rows in any storage type   \param out  [16, 16], `out_stride` floats apart
template <typename T>
inline void transpose_16x16(const T* const* rows, std::int64_t first, float* out,
                            std::int64_t out_stride) {
#if defined(CHUNKLLM_SIMD_AVX512)
  __m512 a[16];
  __m512 b[16];
  // Each stage doubles the length of the column pieces that stand side by side: 2, 4, 8, 16 rows.
  for (int r = 0; r < 16; ++r) a[r] = load(rows[r] + first).v;
  for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_maskz_unpacklo_ps(kAll, a[r], a[r + 1]);
    b[r + 1] = _mm512_maskz_unpackhi_ps(kAll, a[r], a[r + 1]);
  }
  const auto pair = [](__m512 low, __m512 high, bool upper) {
    const __m512d x = _mm512_castps_pd(low);
    const __m512d y = _mm512_castps_pd(high);
    return _mm512_castpd_ps(upper ? _mm512_maskz_unpackhi_pd(0xff, x, y)
                                  : _mm512_maskz_unpacklo_pd(0xff, x, y));
  };
  for (int r = 0; r < 16; r += 4) {
    for (int c = 0; c < 4; ++c) a[r + c] = pair(b[r + c / 2], b[r + 2 + c / 2], c % 2 != 0);
  }
  for (int c = 0; c < 4; ++c) {  // a[r + c]: columns c, c + 4, c + 8, c + 12 of rows r to r + 3
    for (int r = 0; r < 16; r += 8) {
      b[r + c] = _mm512_maskz_shuffle_f32x4(kAll, a[r + c], a[r + 4 + c], 0x88);
      b[r + 4 + c] = _mm512_maskz_shuffle_f32x4(kAll, a[r + c], a[r + 4 + c], 0xdd);
    }
  }
  for (int c = 0; c < 4; ++c) {  // b[r + c]: columns c and c + 8, b[r + 4 + c]: c + 4 and c + 12
    for (int half = 0; half < 2; ++half) {
      const __m512 top = b[4 * half + c];
      const __m512 bottom = b[8 + 4 * half + c];
      _mm512_storeu_ps(out + (4 * half + c) * out_stride,
                       _mm512_maskz_shuffle_f32x4(kAll, top, bottom, 0x88));
      _mm512_storeu_ps(out + (8 + 4 * half + c) * out_stride,
                       _mm512_maskz_shuffle_f32x4(kAll, top, bottom, 0xdd));
    }
  }
#else
  for (std::int64_t r = 0; r < 16; ++r) {
    float row[kLanes];
    store(row, load(rows[r] + first));
    for (std::int64_t c = 0; c < 16; ++c) out[c * out_stride + r] = row[c];
  }
#endif
}

}  // namespace chunkllm::simd
