// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm {

/// Rotary frequencies of a model, [head_dim / 2].
///
/// Plain: f_i = 1 / theta^(2i / head_dim), the power and its inverse each rounded to f32 as in the
/// reference implementations: at position 100,000 one rounding less would turn a pair by up to
/// 0.006 radians from theirs.
/// linear, llama3 and yarn stretch it (Su et al., RoFormer, 2021; Peng et al., YaRN, 2023; the
/// Llama 3.1 rule with low and high frequency bounds).
struct RopeFrequencies {
  std::vector<float> inverse_wavelength;  ///< radians a token, [head_dim / 2]

  explicit RopeFrequencies(const BackboneConfig& config) {
    const RopeScaling& scaling = config.rope_scaling;
    const auto dim = static_cast<double>(config.head_dim);
    const double two_pi = 2.0 * std::numbers::pi;
    // Dimension at which a full original context makes `rotations` turns (yarn).
    const auto correction_dim = [&](double rotations) {
      return dim * std::log(scaling.original_context_length / (rotations * two_pi)) /
             (2.0 * std::log(config.rope_theta));
    };
    double low = correction_dim(scaling.beta_fast);
    double high = correction_dim(scaling.beta_slow);
    if (scaling.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, dim - 1.0);
    if (low == high) high += 0.001;

    for (std::int64_t i = 0; i < config.head_dim / 2; ++i) {
      const auto power =
          static_cast<float>(std::pow(config.rope_theta, 2.0 * static_cast<double>(i) / dim));
      auto f = static_cast<double>(1.0F / power);
      switch (scaling.kind) {
        case RopeScaling::Kind::kNone: break;
        case RopeScaling::Kind::kLinear: f /= scaling.factor; break;
        case RopeScaling::Kind::kLlama3: {
          const double wavelength = two_pi / f;
          const double turns = scaling.original_context_length / wavelength;
          const double smooth = std::clamp((turns - scaling.low_freq_factor) /
                                               (scaling.high_freq_factor - scaling.low_freq_factor),
                                           0.0, 1.0);
          f = (1.0 - smooth) * f / scaling.factor + smooth * f;
          break;
        }
        case RopeScaling::Kind::kYarn: {
          const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
          f = ramp * f / scaling.factor + (1.0 - ramp) * f;
          break;
        }
      }
      auto frequency = static_cast<float>(f);
      if (!config.rope_frequency_divisors.empty()) {
        frequency /= config.rope_frequency_divisors[static_cast<std::size_t>(i)];
      }
      inverse_wavelength.push_back(frequency);
    }
  }

  [[nodiscard]] std::int64_t half_dim() const {
    return static_cast<std::int64_t>(inverse_wavelength.size());
  }
};

/// Factor on q . k before the softmax: 1 / sqrt(head_dim), times the square of yarn's attention
/// factor, which the reference implementations put on the cosines and sines of both q and k.
inline float softmax_scale(const BackboneConfig& config) {
  const double factor = config.rope_scaling.attention_factor;
  return static_cast<float>(factor * factor / std::sqrt(static_cast<double>(config.head_dim)));
}

/// cos and sin of consecutive positions.
///
/// A row holds head_dim / 2 cosines, then head_dim / 2 sines. The angle is rounded to f32 before
/// cos and sin are taken, as the reference implementations do. A table is a pure rotation: yarn's
/// attention factor belongs to `softmax_scale`.
class RopeTable {
 public:
  RopeTable() = default;

  /// \param first  position of row 0   \param count  number of positions
  RopeTable(const RopeFrequencies& frequencies, std::int64_t first, std::int64_t count)
      : half_dim_(frequencies.half_dim()), first_(first), count_(count) {
    values_.resize(static_cast<std::size_t>(count * 2 * half_dim_));
    for (std::int64_t p = 0; p < count; ++p) {
      float* out = values_.data() + p * 2 * half_dim_;
      for (std::int64_t i = 0; i < half_dim_; ++i) {
        const float angle = static_cast<float>(first + p) *
                            frequencies.inverse_wavelength[static_cast<std::size_t>(i)];
        const double exact = static_cast<double>(angle);
        out[i] = static_cast<float>(std::cos(exact));
        out[half_dim_ + i] = static_cast<float>(std::sin(exact));
      }
    }
  }

  [[nodiscard]] std::int64_t first() const { return first_; }
  [[nodiscard]] std::int64_t count() const { return count_; }
  [[nodiscard]] std::int64_t half_dim() const { return half_dim_; }

  /// cosines of `position`, which must lie in [first, first + count); its sines follow them.
  [[nodiscard]] const float* row(std::int64_t position) const {
    return values_.data() + (position - first_) * 2 * half_dim_;
  }

 private:
  std::int64_t half_dim_ = 0;
  std::int64_t first_ = 0;
  std::int64_t count_ = 0;
  std::vector<float> values_;
};

/// Rotates one head in place, pairing dimension i with i + head_dim / 2.
///
/// \param head  [2 * half_dim]   \param cos_sin  a row of `RopeTable`
inline void rotate_head(float* head, const float* cos_sin, std::int64_t half_dim) {
  const float* cosine = cos_sin;
  const float* sine = cos_sin + half_dim;
  for (std::int64_t i = 0; i < half_dim; ++i) {
    const float a = head[i];
    const float b = head[i + half_dim];
    head[i] = a * cosine[i] - b * sine[i];
    head[i + half_dim] = b * cosine[i] + a * sine[i];
  }
}

/// Rotates `num_heads` heads of each row: row r stands at position `first_position + r`.
inline void rotate_rows(MatrixView<float> rows, std::int64_t num_heads, const RopeTable& table,
                        std::int64_t first_position) {
  const std::int64_t head_dim = 2 * table.half_dim();
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    const float* cos_sin = table.row(first_position + r);
    for (std::int64_t h = 0; h < num_heads; ++h) {
      rotate_head(rows.row(r) + h * head_dim, cos_sin, table.half_dim());
    }
  }
}

}  // namespace chunkllm
