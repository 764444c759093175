// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace chunkllm::testing {

/// Half the distance from 1 to the next float: the relative error of one rounded operation.
inline constexpr double kUnitRoundoff = 0x1p-24;

/// Whether every element lies within its own bound of what is expected.
///
/// Written so that NaN fails: an element passes where |actual - expected| <= bound, or where both
/// are the same infinity. An expected NaN asks for a NaN. A failure names the worst element.
///
/// \param bounds  [expected.size()] derived from the operands and the arithmetic, not tuned
inline ::testing::AssertionResult all_within(std::span<const float> actual,
                                             std::span<const double> expected,
                                             std::span<const double> bounds) {
  if (actual.size() != expected.size() || bounds.size() != expected.size()) {
    return ::testing::AssertionFailure() << actual.size() << " values, expected " << expected.size()
                                         << " with " << bounds.size() << " bounds";
  }
  std::size_t num_bad = 0;
  std::size_t worst = 0;
  double worst_ratio = -1.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto value = static_cast<double>(actual[i]);
    if (std::isnan(expected[i]) ? std::isnan(value) : value == expected[i]) continue;
    const double error = std::abs(value - expected[i]);
    if (error <= bounds[i]) continue;
    ++num_bad;
    // NaN, an infinity, or a bound that is no bound outranks any finite excess.
    double ratio = error / bounds[i];
    if (!(ratio <= std::numeric_limits<double>::max())) {
      ratio = std::numeric_limits<double>::infinity();
    }
    if (ratio > worst_ratio) {
      worst_ratio = ratio;
      worst = i;
    }
  }
  if (num_bad == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << num_bad << " of " << expected.size() << " values are off, worst is " << worst << ": "
         << actual[worst] << ", expected " << expected[worst] << " within " << bounds[worst];
}

/// As above with one bound for all.
inline ::testing::AssertionResult all_within(std::span<const float> actual,
                                             std::span<const double> expected, double bound) {
  const std::vector<double> bounds(expected.size(), bound);
  return all_within(actual, expected, bounds);
}

}  // namespace chunkllm::testing
