// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>

#include "chunkllm/model/row_block.hpp"

namespace chunkllm {

/// What the products need to know of 32 quantised activations x ~ scale * code.
struct ActivationBlock {
  float scale = 0.0F;       ///< NaN where an activation was NaN or infinite
  float scaled_sum = 0.0F;  ///< scale * (sum of the codes)
  /// -128 * (sum of the codes) of the first and the second sixteen: see `simd::signed_start`.
  std::int32_t minus_128_sums[2] = {0, 0};
};

namespace detail {

/// Writes 32 codes in [-127, 127], rounded to nearest (ties to even), for max |x| = 127 scale.
inline ActivationBlock quantize_activations(const float* x, std::int8_t* codes) {
  float largest = 0.0F;
  bool finite = true;
  for (std::int64_t i = 0; i < kBlockFeatures; ++i) {
    const float magnitude = std::fabs(x[i]);
    finite = finite && magnitude <= std::numeric_limits<float>::max();
    largest = magnitude > largest ? magnitude : largest;
  }
  ActivationBlock block;
  const float inverse = 127.0F / largest;
  if (!finite || !(inverse <= std::numeric_limits<float>::max())) {
    // Nothing (or next to nothing) to tell apart: codes 0, and NaN where the sum would not be
    // finite.
    std::fill_n(codes, kBlockFeatures, std::int8_t{0});
    block.scale = block.scaled_sum = finite ? 0.0F : std::numeric_limits<float>::quiet_NaN();
    return block;
  }
  block.scale = largest / 127.0F;
  std::int32_t sums[2] = {0, 0};
  for (std::int64_t i = 0; i < kBlockFeatures; ++i) {
    const auto code = static_cast<std::int32_t>(std::nearbyint(x[i] * inverse));
    codes[i] = static_cast<std::int8_t>(code);
    sums[i / 16] += code;
  }
  block.scaled_sum = block.scale * static_cast<float>(sums[0] + sums[1]);
  for (int half = 0; half < 2; ++half) block.minus_128_sums[half] = -128 * sums[half];
  return block;
}

}  // namespace detail

/// Rows of activations in 8 bits, a scale for every 32 input features, as in GGUF's Q8_0 but with
/// scales in f32. A row's codes depend on that row alone.
class QuantizedRows {
 public:
  QuantizedRows() = default;  ///< no rows, no memory
  /// \param cols  a multiple of 32
  QuantizedRows(std::int64_t rows, std::int64_t cols)
      : cols_(cols),
        codes_(
            std::make_unique_for_overwrite<std::int8_t[]>(static_cast<std::size_t>(rows * cols))),
        blocks_(std::make_unique_for_overwrite<ActivationBlock[]>(
            static_cast<std::size_t>(rows * cols / detail::kBlockFeatures))) {}

  /// \param x  [cols]
  void set_row(std::int64_t row, const float* x) {
    for (std::int64_t first = 0; first < cols_; first += detail::kBlockFeatures) {
      blocks_[static_cast<std::size_t>((row * cols_ + first) / detail::kBlockFeatures)] =
          detail::quantize_activations(x + first, codes_.get() + row * cols_ + first);
    }
  }

  [[nodiscard]] std::int64_t cols() const { return cols_; }
  [[nodiscard]] const std::int8_t* codes(std::int64_t row) const {
    return codes_.get() + row * cols_;
  }
  [[nodiscard]] const ActivationBlock* blocks(std::int64_t row) const {
    return blocks_.get() + row * cols_ / detail::kBlockFeatures;
  }

 private:
  std::int64_t cols_ = 0;
  std::unique_ptr<std::int8_t[]> codes_;
  std::unique_ptr<ActivationBlock[]> blocks_;
};

}  // namespace chunkllm
