// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/qk_adapter.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "reference/oracle.hpp"
#include "support/compare.hpp"
#include "support/random_adapter.hpp"
#include "support/random_values.hpp"

namespace chunkllm {
namespace {

using testing::random_adapter;
using testing::random_values;

static_assert(ChunkScorer<QkAdapter>);

constexpr std::int64_t kHidden = 37;
constexpr std::int64_t kKeyDim = 5;

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
    const QkAdapter adapter =
        random_adapter({.hidden_size = kHidden, .key_dim = kKeyDim, .has_null = has_null});
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
    const QkAdapter adapter =
        random_adapter({.hidden_size = kHidden, .key_dim = kKeyDim, .pooling = pooling});
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
  EXPECT_EQ(random_adapter({.hidden_size = kHidden, .key_dim = kKeyDim}).distance_bias(1), nullptr);
  const QkAdapter adapter =
      random_adapter({.hidden_size = kHidden, .key_dim = kKeyDim, .has_bias = true});
  EXPECT_EQ(adapter.distance_bias(1), adapter.layers()[1].distance_bias.data());
}

}  // namespace
}  // namespace chunkllm
