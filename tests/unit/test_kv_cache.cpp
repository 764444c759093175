// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/kv_cache.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace chunkllm {
namespace {

float value_at(std::int64_t layer, std::int64_t token, std::int64_t i, bool is_value) {
  return static_cast<float>(layer * 1000 + token * 10 + i) + (is_value ? 0.5F : 0.25F);
}

template <typename T>
void store_tokens(KvCache<T>& cache, std::int64_t num_layers, std::int64_t first,
                  std::int64_t count) {
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    std::vector<float> keys;
    std::vector<float> values;
    for (std::int64_t t = first; t < first + count; ++t) {
      for (std::int64_t i = 0; i < cache.row_size(); ++i) {
        keys.push_back(value_at(layer, t, i, false));
        values.push_back(value_at(layer, t, i, true));
      }
    }
    cache.store(layer, first, {keys.data(), count, cache.row_size()},
                {values.data(), count, cache.row_size()});
  }
}

template <typename T>
void expect_holds(const KvCache<T>& cache, std::int64_t num_layers) {
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    const KvView<T> view = cache.view(layer, Rotation::kNone);
    EXPECT_EQ(view.num_tokens, cache.num_tokens());
    for (std::int64_t t = 0; t < cache.num_tokens(); ++t) {
      for (std::int64_t h = 0; h < 2; ++h) {
        for (std::int64_t d = 0; d < 4; ++d) {
          EXPECT_EQ(to_f32(view.keys[view.offset(t, h) + d]),
                    to_f32(from_f32<T>(value_at(layer, t, h * 4 + d, false))));
          EXPECT_EQ(to_f32(view.values[view.offset(t, h) + d]),
                    to_f32(from_f32<T>(value_at(layer, t, h * 4 + d, true))));
        }
      }
    }
  }
}

template <typename T>
class KvCacheOf : public ::testing::Test {};
using StorageTypes = ::testing::Types<float, F16, BF16>;
TYPED_TEST_SUITE(KvCacheOf, StorageTypes);

TYPED_TEST(KvCacheOf, GrowsCopiesAndCounts) {
  KvCache<TypeParam> cache(/*num_layers=*/2, /*num_kv_heads=*/2, /*head_dim=*/4);
  EXPECT_EQ(cache.resident_bytes(), 0);
  EXPECT_EQ(cache.bytes_per_token(), static_cast<std::int64_t>(2 * 2 * 8 * sizeof(TypeParam)));
  for (const std::int64_t tokens : {1, 2, 7, 8, 40}) {
    const std::int64_t first = cache.num_tokens();
    cache.resize(tokens);
    store_tokens(cache, 2, first, tokens - first);
    expect_holds(cache, 2);
  }
  EXPECT_EQ(cache.resident_bytes(), 40 * cache.bytes_per_token());
  KvCache<TypeParam> copy = cache;
  cache.resize(3);
  cache.store(0, 0, MatrixView<const float>(std::vector<float>(8).data(), 1, 8),
              MatrixView<const float>(std::vector<float>(8).data(), 1, 8));
  EXPECT_EQ(copy.num_tokens(), 40);
  expect_holds(copy, 2);
  KvCache<TypeParam> empty(1, 2, 4);
  copy = empty;
  EXPECT_EQ(copy.num_tokens(), 0);
}

TYPED_TEST(KvCacheOf, SavesAndRestoresRows) {
  KvCache<TypeParam> cache(2, 2, 4);
  cache.resize(10);
  store_tokens(cache, 2, 0, 10);
  const auto saved0 = cache.save_rows(0, 4, 3);
  const auto saved1 = cache.save_rows(1, 4, 3);
  const std::vector<float> zeros(24);
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    cache.store(layer, 4, {zeros.data(), 3, 8}, {zeros.data(), 3, 8});
  }
  cache.restore_rows(0, 4, saved0);
  cache.restore_rows(1, 4, saved1);
  expect_holds(cache, 2);
}

TEST(KvCache, RoundsOnceToNearestEven) {
  KvCache<F16> cache(1, 1, 2);
  cache.resize(1);
  const std::vector<float> row = {1.0F + 0x1p-11F, 70000.0F};
  cache.store(0, 0, {row.data(), 1, 2}, {row.data(), 1, 2});
  const KvView<F16> view = cache.view(0, Rotation::kNone);
  EXPECT_EQ(to_f32(view.keys[0]), 1.0F);
  EXPECT_TRUE(std::isinf(to_f32(view.keys[1])));
}

TEST(KvView, PagedOffsets) {
  const std::vector<std::int32_t> table = {3, 0, 5};
  KvView<float> view;
  view.token_stride = 8;
  view.head_stride = 4;
  EXPECT_EQ(view.offset(5, 1), 44);
  view.page_table = table.data();
  view.page_size = 4;
  view.page_stride = 32;
  EXPECT_EQ(view.offset(0, 0), 96);
  EXPECT_EQ(view.offset(3, 1), 96 + 24 + 4);
  EXPECT_EQ(view.offset(4, 0), 0);
  EXPECT_EQ(view.offset(10, 1), 160 + 16 + 4);
}

}  // namespace
}  // namespace chunkllm
