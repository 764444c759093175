// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace chunkllm::testing {

/// Floats with a fence on each side, for finding writes outside an output.
///
/// The values start at an odd multiple of 4 bytes, so that code which assumes alignment shows up,
/// and hold NaN until written.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(std::size_t size) : size_(size), memory_(size + 2 * kFence) {
    std::fill(memory_.begin(), memory_.end(), sentinel());
  }

  [[nodiscard]] float* data() { return memory_.data() + kFence; }
  [[nodiscard]] std::span<float> span() { return {data(), size_}; }
  [[nodiscard]] std::span<const float> span() const { return {memory_.data() + kFence, size_}; }

  /// Whether both fences are as they were made.
  [[nodiscard]] bool intact() const {
    for (std::size_t i = 0; i < kFence; ++i) {
      if (!is_sentinel(memory_[i]) || !is_sentinel(memory_[kFence + size_ + i])) return false;
    }
    return true;
  }
  /// Whether any element was never written.
  [[nodiscard]] bool has_unwritten() const {
    const std::span<const float> values = span();
    return std::any_of(values.begin(), values.end(), is_sentinel);
  }

 private:
  static constexpr std::size_t kFence = 67;
  static constexpr std::uint32_t kSentinelBits = 0x7fc0beefU;  // a quiet NaN with a payload

  static float sentinel() { return std::bit_cast<float>(kSentinelBits); }
  static bool is_sentinel(float value) {
    return std::bit_cast<std::uint32_t>(value) == kSentinelBits;
  }

  std::size_t size_;
  std::vector<float> memory_;
};

}  // namespace chunkllm::testing
