// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace chunkllm {

/// Constants of Adam. beta2 is below the usual 0.999: runs are of some thousand steps.
struct AdamOptions {
  float beta1 = 0.9F;
  float beta2 = 0.98F;
  float epsilon = 1e-8F;
};

/// First and second moments of one tensor's gradient.
struct AdamMoments {
  std::vector<float> first;
  std::vector<float> second;

  explicit AdamMoments(std::size_t size = 0) : first(size), second(size) {}
};

/// One step of Adam, in place.
///
///   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
///   w -= rate m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + epsilon)
///
/// \param gradient        the gradient is `gradient_scale` times this
/// \param step            counted from 1
/// Numerics: f32, each element on its own
/// Source: D. P. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2015
inline void take_adam_step(std::span<float> weights, std::span<const float> gradient,
                           float gradient_scale, float rate, std::int64_t step,
                           AdamMoments& moments, const AdamOptions& options = {}) {
  const auto correction = [&](float beta) {
    return static_cast<float>(
        1.0 / (1.0 - std::pow(static_cast<double>(beta), static_cast<double>(step))));
  };
  const float first_correction = correction(options.beta1) * rate;
  const float second_correction = correction(options.beta2);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const float g = gradient[i] * gradient_scale;
    float& m = moments.first[i];
    float& v = moments.second[i];
    m = options.beta1 * m + (1.0F - options.beta1) * g;
    v = options.beta2 * v + (1.0F - options.beta2) * g * g;
    weights[i] -= first_correction * m / (std::sqrt(v * second_correction) + options.epsilon);
  }
}

}  // namespace chunkllm
