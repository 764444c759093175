// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace chunkllm::testing {

/// Normally distributed numbers; equal for equal states of `random`.
template <std::uniform_random_bit_generator Generator>
std::vector<float> random_values(Generator& random, std::int64_t size, float deviation = 1.0F) {
  std::normal_distribution<float> normal(0.0F, deviation);
  std::vector<float> values(static_cast<std::size_t>(size));
  for (float& value : values) value = normal(random);
  return values;
}
/// The same; equal for equal seeds.
inline std::vector<float> random_values(std::int64_t size, std::uint64_t seed) {
  std::mt19937 random(static_cast<std::uint32_t>(seed));
  return random_values(random, size);
}

/// Numbers spread evenly over [-spread, spread), equal for equal seeds: quick to make, and the same
/// with every standard library.
inline std::vector<float> uniform_values(std::size_t size, std::uint64_t seed,
                                         float spread = 1.0F) {
  std::mt19937 random(static_cast<std::uint32_t>(seed));
  std::vector<float> values(size);
  for (float& value : values) {
    value = spread * (static_cast<float>(random() >> 8) * 0x1p-23F - 1.0F);
  }
  return values;
}

}  // namespace chunkllm::testing
