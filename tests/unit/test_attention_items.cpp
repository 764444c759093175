// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "chunkllm/chunk/attention_args.hpp"
#include "chunkllm/chunk/attention_few_queries.hpp"
#include "chunkllm/chunk/attention_many_queries.hpp"
#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/simd_transpose.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/rope.hpp"

namespace chunkllm {
namespace {

struct Shape {
  std::int64_t group = 1;
  std::int64_t head_dim = 64;
  std::int64_t num_tokens = 700;  // more than one split
  std::int64_t num_rows = 1;
  std::int64_t window = 0;
  Positions positions = Positions::kOriginal;
  Rotation key_rotation = Rotation::kAtTokenPosition;
};

/// Outputs, then log-sum-exps, of one tile by one kind of item.
template <template <typename> typename Item, typename T>
std::vector<float> attend(const Shape& shape, const AttendedSet& set) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const std::int64_t num_kv_heads = 2;
  const std::int64_t num_heads = num_kv_heads * shape.group;
  const std::int64_t width = num_heads * shape.head_dim;
  const std::int64_t kv_width = num_kv_heads * shape.head_dim;
  std::vector<float> q(static_cast<std::size_t>(shape.num_rows * width));
  for (float& value : q) value = normal(random);
  std::vector<T> keys(static_cast<std::size_t>(shape.num_tokens * kv_width));
  std::vector<T> values(keys.size());
  for (T& value : keys) value = from_f32<T>(normal(random));
  for (T& value : values) value = from_f32<T>(normal(random));
  BackboneConfig config;
  config.head_dim = shape.head_dim;
  const RopeFrequencies frequencies(config);
  const RopeTable rope(frequencies, 0, shape.num_tokens + 1);
  std::vector<float> out(q.size() + static_cast<std::size_t>(shape.num_rows * num_heads));
  const AttentionTile tile{0, shape.num_rows, &set};

  ChunkAttentionArgs<T> args;
  args.q = {q.data(), shape.num_rows, width};
  args.out = {out.data(), shape.num_rows, width};
  args.kv.keys = keys.data();
  args.kv.values = values.data();
  args.kv.num_tokens = shape.num_tokens;
  args.kv.token_stride = kv_width;
  args.kv.head_stride = shape.head_dim;
  args.kv.rotation = shape.key_rotation;
  args.tiles = {&tile, 1};
  args.first_token = shape.num_tokens - shape.num_rows;
  args.num_heads = num_heads;
  args.num_kv_heads = num_kv_heads;
  args.head_dim = shape.head_dim;
  args.scale = 0.3F;
  args.window = shape.window;
  args.positions = shape.positions;
  args.rope = &rope;
  args.maybe_lse = out.data() + q.size();
  EXPECT_TRUE(validate(args).ok()) << validate(args).message();
  std::vector<float> memory(static_cast<std::size_t>(Item<T>::Scratch::num_floats(shape.head_dim)),
                            std::numeric_limits<float>::quiet_NaN());
  for (std::int64_t head = 0; head < num_kv_heads; ++head) {
    detail::attend_rows<Item<T>>(args, tile, /*first=*/0, shape.num_rows, head, memory.data());
  }
  return out;
}

template <typename T>
void expect_equal_bits(const Shape& shape, const AttendedSet& set, const std::string& what) {
  const std::vector<float> few = attend<detail::FewQueriesItem, T>(shape, set);
  EXPECT_EQ(few, (attend<detail::ManyQueriesItem, T>(shape, set))) << what;
  EXPECT_TRUE(std::none_of(few.begin(), few.end(), [](float x) { return std::isnan(x); })) << what;
}

// With 701 tokens the last tile has 61 keys, with 577 a single one.
TEST(AttentionItems, FewAndManyQueriesGiveTheSameBits) {
  const AttendedSet dense;
  const AttendedSet sparse{{{0, 3}, {40, 41}, {90, 300}}, 430};
  for (const std::int64_t num_tokens : {1, 15, 16, 64, 65, 513, 577, 701}) {
    for (const std::int64_t head_dim : {2, 6, 16, 64, 80, 128}) {
      Shape shape;
      shape.num_tokens = num_tokens;
      shape.head_dim = head_dim;
      shape.group = 3;
      const std::string what =
          std::to_string(num_tokens) + " tokens of " + std::to_string(head_dim);
      expect_equal_bits<F16>(shape, dense, what);
      if (num_tokens > 430) expect_equal_bits<F16>(shape, sparse, what + ", sparse");
    }
  }
}

TEST(AttentionItems, TheSameForAnyGroupRowsWindowAndStorage) {
  const AttendedSet sparse{{{0, 3}, {90, 300}}, 430};
  for (const std::int64_t group : {1, 2, 4, 8}) {
    for (std::int64_t num_rows = 1; num_rows * group <= detail::kFewQueries; ++num_rows) {
      for (const std::int64_t window : {0, 1, 20, 100}) {
        Shape shape;
        shape.group = group;
        shape.num_rows = num_rows;
        shape.window = window;
        const std::string what = std::to_string(group) + " heads, " + std::to_string(num_rows) +
                                 " rows, window " + std::to_string(window);
        expect_equal_bits<float>(shape, sparse, what);
        expect_equal_bits<BF16>(shape, sparse, what);
      }
    }
  }
}

TEST(AttentionItems, TheSameWhereKeysAreTurned) {
  const AttendedSet sparse{{{0, 3}, {90, 300}}, 430};
  for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
    for (const Rotation rotation : {Rotation::kNone, Rotation::kAtTokenPosition}) {
      for (const std::int64_t head_dim : {8, 64}) {
        Shape shape;
        shape.group = 3;
        shape.head_dim = head_dim;
        shape.positions = positions;
        shape.key_rotation = rotation;
        expect_equal_bits<F16>(shape, sparse, "head_dim " + std::to_string(head_dim));
      }
    }
  }
}

TEST(SimdTranspose, PutsColumnsInRows) {
  std::vector<float> in(16 * 40);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  const float* rows[16];
  for (std::size_t r = 0; r < 16; ++r) rows[r] = in.data() + (15 - r) * 40;
  std::vector<float> out(16 * 19, -1.0F);
  simd::transpose_16x16(rows, 21, out.data(), 19);
  for (std::size_t c = 0; c < 16; ++c) {
    for (std::size_t r = 0; r < 19; ++r) {
      ASSERT_EQ(out[c * 19 + r], r < 16 ? static_cast<float>((15 - r) * 40 + 21 + c) : -1.0F);
    }
  }
}

}  // namespace
}  // namespace chunkllm
