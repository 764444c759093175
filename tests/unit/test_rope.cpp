// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/model/rope.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "reference/decoder_oracle.hpp"

namespace chunkllm {
namespace {

BackboneConfig config_of(RopeScaling::Kind kind) {
  BackboneConfig config;
  config.head_dim = 32;
  config.rope_theta = 50000.0;
  config.rope_scaling.kind = kind;
  config.rope_scaling.factor = kind == RopeScaling::Kind::kNone ? 1.0 : 4.0;
  config.rope_scaling.original_context_length = 512.0;
  return config;
}

std::vector<float> random_values(std::int64_t size) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(size));
  for (float& value : values) value = normal(random);
  return values;
}

class RopeOf : public ::testing::TestWithParam<RopeScaling::Kind> {};

TEST_P(RopeOf, FrequenciesEqualTheOracle) {
  for (const bool truncate : {true, false}) {
    BackboneConfig config = config_of(GetParam());
    config.rope_scaling.truncate = truncate;
    const RopeFrequencies frequencies(config);
    ASSERT_EQ(frequencies.half_dim(), 16);
    for (std::int64_t i = 0; i < 16; ++i) {
      const double exact = oracle::rope_frequency(config, i);
      // Roundings of the power, its inverse and the result.
      ASSERT_TRUE(std::abs(static_cast<double>(
                               frequencies.inverse_wavelength[static_cast<std::size_t>(i)]) -
                           exact) <= 3.0 * 0x1p-24 * exact)
          << i;
    }
  }
}

TEST_P(RopeOf, RotationEqualsTheOracle) {
  const BackboneConfig config = config_of(GetParam());
  constexpr std::int64_t kFirst = 700;
  const RopeTable table(RopeFrequencies(config), kFirst, 3);
  // Rows of two heads and a column that no head owns.
  std::vector<float> x = random_values(3 * 65);
  const std::vector<float> before = x;
  rotate_rows({x.data(), 3, 64, 65}, 2, table, kFirst);
  for (std::size_t r = 0; r < 3; ++r) {
    for (std::size_t h = 0; h < 2; ++h) {
      const auto* head = &before[r * 65 + h * 32];
      const oracle::Vector exact = oracle::rotate(oracle::Vector(head, head + 32),
                                                  kFirst + static_cast<std::int64_t>(r), config);
      for (std::size_t i = 0; i < 32; ++i) {
        // The angle: 3 roundings of the frequency and one of the product, at up to 702 radians;
        // values are below 4.
        ASSERT_TRUE(std::abs(static_cast<double>(x[r * 65 + h * 32 + i]) - exact[i]) <=
                    4.0 * 702.0 * 4.0 * 0x1p-24)
            << r << " " << h << " " << i;
      }
    }
    EXPECT_EQ(x[r * 65 + 64], before[r * 65 + 64]);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, RopeOf,
                         ::testing::Values(RopeScaling::Kind::kNone, RopeScaling::Kind::kLinear,
                                           RopeScaling::Kind::kLlama3, RopeScaling::Kind::kYarn));

TEST(Rope, PlainFrequenciesAreThoseOfTransformersBitForBit) {
  // 1.0 / (100000.0 ** (torch.arange(0, 8, 2).float() / 8)) and the same for 10000.
  BackboneConfig config;
  config.head_dim = 8;
  config.rope_theta = 100000.0;
  EXPECT_EQ(RopeFrequencies(config).inverse_wavelength,
            (std::vector<float>{1.0F, 0.05623412877321243F, 0.003162277862429619F,
                                0.00017782794020604342F}));
  config.rope_theta = 10000.0;
  EXPECT_EQ(RopeFrequencies(config).inverse_wavelength,
            (std::vector<float>{1.0F, 0.10000000149011612F, 0.009999999776482582F,
                                0.0010000000474974513F}));
}

TEST(Rope, FrequencyDivisorsDivide) {
  BackboneConfig config = config_of(RopeScaling::Kind::kNone);
  const std::vector<float> plain = RopeFrequencies(config).inverse_wavelength;
  for (int i = 0; i < 16; ++i) config.rope_frequency_divisors.push_back(i < 8 ? 1.0F : 8.0F);
  const std::vector<float> divided = RopeFrequencies(config).inverse_wavelength;
  for (std::size_t i = 0; i < 16; ++i) EXPECT_EQ(divided[i], i < 8 ? plain[i] : plain[i] / 8.0F);
}

TEST(Rope, ATableIsTheSameWhereverItBegins) {
  const RopeFrequencies frequencies(config_of(RopeScaling::Kind::kYarn));
  const RopeTable whole(frequencies, 0, 40);
  const RopeTable part(frequencies, 33, 5);
  EXPECT_EQ(part.first(), 33);
  EXPECT_EQ(part.count(), 5);
  for (std::int64_t position = 33; position < 38; ++position) {
    for (std::int64_t i = 0; i < 32; ++i) {
      ASSERT_EQ(part.row(position)[i], whole.row(position)[i]);
    }
  }
}

TEST(Rope, PositionZeroChangesNothing) {
  const RopeTable table(RopeFrequencies(config_of(RopeScaling::Kind::kLinear)), 0, 1);
  std::vector<float> head = random_values(32);
  const std::vector<float> before = head;
  rotate_head(head.data(), table.row(0), 16);
  EXPECT_EQ(head, before);
}

TEST(Rope, SoftmaxScaleCarriesTheAttentionFactorTwice) {
  BackboneConfig config = config_of(RopeScaling::Kind::kYarn);
  config.head_dim = 64;
  config.rope_scaling.attention_factor = 1.0;
  EXPECT_EQ(softmax_scale(config), 0.125F);
  config.rope_scaling.attention_factor = 2.0;
  EXPECT_EQ(softmax_scale(config), 0.5F);
}

}  // namespace
}  // namespace chunkllm
