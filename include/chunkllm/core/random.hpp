// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace chunkllm {

/// A stream of numbers that depends on nothing but its seeds, the same on every machine.
///
/// Source: SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
/// generators", 2014)
class RandomStream {
 public:
  /// \param seed    of a series
  /// \param number  of the stream within the series
  explicit RandomStream(std::uint64_t seed, std::uint64_t number = 0)
      : state_(seed * kIncrement + number * 0xd1342543de82ef95U) {}

  std::uint64_t draw_bits() {
    state_ += kIncrement;
    std::uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31);
  }
  /// Below `count`, at least 1.
  std::uint64_t draw(std::uint64_t count) { return draw_bits() % count; }
  /// In [0, 1).
  double draw_unit() { return static_cast<double>(draw_bits() >> 11) * 0x1p-53; }
  /// Of mean 0 and deviation 1 (Box and Muller, 1958).
  double draw_normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - draw_unit()));
    return radius * std::cos(2.0 * std::numbers::pi * draw_unit());
  }

 private:
  static constexpr std::uint64_t kIncrement = 0x9e3779b97f4a7c15U;
  std::uint64_t state_;
};

}  // namespace chunkllm
