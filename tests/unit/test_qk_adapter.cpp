// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/qk_adapter.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "reference/oracle.hpp"
#include "support/compare.hpp"

namespace chunkllm {
namespace {

static_assert(ChunkScorer<QkAdapter>);

constexpr std::int64_t kHidden = 37;

std::vector<float> random_values(std::int64_t size, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(size));
  for (float& value : values) value = normal(random);
  return values;
}

QkAdapter make_adapter(KeyPooling pooling, bool has_null, bool has_bias) {
  std::vector<QkAdapterLayer> layers(2);
  for (std::uint32_t l = 0; l < 2; ++l) {
    layers[l].query_weight = random_values(4 * 5 * kHidden, 10 + l);
    layers[l].key_weight = random_values(2 * 5 * kHidden, 20 + l);
    if (has_bias) layers[l].distance_bias = random_values(4 * kNumDistanceBins, 30 + l);
    if (has_null) {
      layers[l].null_weight = random_values(4 * kHidden, 40 + l);
      layers[l].null_bias = random_values(4, 50 + l);
    }
  }
  return QkAdapter(std::move(layers), kHidden, 4, 2, 5, pooling, true);
}

/// W x in double, and the bound of a chain of kHidden products.
void expect_product(std::span<const float> actual, const std::vector<float>& weight,
                    const oracle::Row& x, const std::vector<float>& bias = {}) {
  oracle::Row expected;
  std::vector<double> bounds;
  for (std::size_t r = 0; r < actual.size(); ++r) {
    double sum = bias.empty() ? 0.0 : static_cast<double>(bias[r]);
    double size = std::abs(sum);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double product = static_cast<double>(weight[r * x.size() + i]) * x[i];
      sum += product;
      size += std::abs(product);
    }
    expected.push_back(sum);
    bounds.push_back(size * static_cast<double>(kHidden + 40) * testing::kUnitRoundoff);
  }
  EXPECT_TRUE(testing::all_within(actual, expected, bounds));
}

TEST(QkAdapter, QueriesAndNullLogits) {
  for (const bool has_null : {false, true}) {
    const QkAdapter adapter = make_adapter(KeyPooling::kMean, has_null, false);
    EXPECT_EQ(adapter.shape().query_size(), has_null ? 24 : 20);
    EXPECT_FLOAT_EQ(adapter.shape().scale, 1.0F / std::sqrt(5.0F));
    const std::vector<float> x = random_values(kHidden, 1);
    std::vector<float> query(static_cast<std::size_t>(adapter.shape().query_size()));
    TokenRow row;
    row.input = x.data();
    adapter.make_query(1, row, query.data());
    const oracle::Row input(x.begin(), x.end());
    const std::span<const float> all(query);
    expect_product(all.first(20), adapter.layers()[1].query_weight, input);
    if (has_null) {
      expect_product(all.subspan(20), adapter.layers()[1].null_weight, input,
                     adapter.layers()[1].null_bias);
    }
  }
}

TEST(QkAdapter, KeysPoolTheChunksInputs) {
  for (const KeyPooling pooling : {KeyPooling::kMean, KeyPooling::kEndToken}) {
    const QkAdapter adapter = make_adapter(pooling, false, false);
    std::vector<float> state(static_cast<std::size_t>(kHidden), 1e30F);
    oracle::Rows rows;
    for (std::uint32_t i = 0; i < 9; ++i) {
      const std::vector<float> x = random_values(kHidden, 100 + i);
      rows.emplace_back(x.begin(), x.end());
      TokenRow row;
      row.input = x.data();
      adapter.add_token(0, row, i == 0, state.data());
    }
    std::vector<float> key(10);
    adapter.make_key(0, state.data(), 9, key.data());
    const oracle::Row pooled = pooling == KeyPooling::kMean ? oracle::mean_of(rows) : rows.back();
    // The pooled sum's own error, 9 roundings of values below 10 in all, is within the slack of
    // the chain's bound only if sizes do not cancel; widen by pooling the sizes.
    oracle::Row expected;
    std::vector<double> bounds;
    for (std::size_t r = 0; r < 10; ++r) {
      double sum = 0.0;
      double size = 0.0;
      for (std::size_t i = 0; i < pooled.size(); ++i) {
        const auto weight =
            static_cast<double>(adapter.layers()[0].key_weight[r * pooled.size() + i]);
        sum += weight * pooled[i];
        for (const oracle::Row& x : rows) {
          size += std::abs(weight * x[i]) / (pooling == KeyPooling::kMean ? 9.0 : 1.0);
        }
      }
      expected.push_back(sum);
      bounds.push_back(size * static_cast<double>(kHidden + 60) * testing::kUnitRoundoff);
    }
    EXPECT_TRUE(testing::all_within(key, expected, bounds));
  }
}

TEST(QkAdapter, DistanceBiasWhereThereIsOne) {
  EXPECT_EQ(make_adapter(KeyPooling::kMean, false, false).distance_bias(1), nullptr);
  const QkAdapter adapter = make_adapter(KeyPooling::kMean, false, true);
  EXPECT_EQ(adapter.distance_bias(1), adapter.layers()[1].distance_bias.data());
}

}  // namespace
}  // namespace chunkllm
