// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/gather_kv.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "support/guarded_buffer.hpp"

namespace chunkllm {
namespace {

constexpr std::int64_t kTokens = 50;
constexpr std::int64_t kHeads = 2;
constexpr std::int64_t kDim = 6;

/// A cache in pages of 8 tokens, [page][head][token][dim], whose values name their place.
struct PagedCache {
  std::vector<float> keys = std::vector<float>(14 * 8 * kHeads * kDim, -1.0F);
  std::vector<float> values = keys;
  std::vector<std::int32_t> pages = {13, 2, 5, 0, 7, 11, 1};
  KvView<float> view;

  PagedCache() {
    view.keys = keys.data();
    view.values = values.data();
    view.num_tokens = kTokens;
    view.token_stride = kDim;
    view.head_stride = 8 * kDim;
    view.page_table = pages.data();
    view.page_size = 8;
    view.page_stride = 8 * kHeads * kDim;
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t h = 0; h < kHeads; ++h) {
        for (std::int64_t d = 0; d < kDim; ++d) {
          const auto at = static_cast<std::size_t>(view.offset(t, h) + d);
          keys[at] = key(t, h, d);
          values[at] = -2.0F * key(t, h, d);
        }
      }
    }
  }
  static float key(std::int64_t t, std::int64_t h, std::int64_t d) {
    return static_cast<float>(t) / 16.0F + static_cast<float>(h) * 10.0F - static_cast<float>(d);
  }
};

TEST(GatherKv, CopiesTheSegmentsSideBySide) {
  const PagedCache cache;
  const std::vector<std::vector<TokenSpan>> cases = {
      {}, {{0, 1}}, {{0, 50}}, {{3, 3}, {7, 9}}, {{0, 4}, {6, 17}, {17, 18}, {40, 50}}};
  for (const std::vector<TokenSpan>& segments : cases) {
    for (int threads = 1; threads <= 3; ++threads) {
      ThreadPool pool(threads);
      const auto size = static_cast<std::size_t>(num_segment_tokens(segments) * kHeads * kDim);
      testing::GuardedBuffer keys(size);
      testing::GuardedBuffer values(size);
      ASSERT_TRUE(
          gather_kv(cache.view, segments, kHeads, kDim, keys.span(), values.span(), pool).ok());
      EXPECT_TRUE(keys.intact() && values.intact());
      std::size_t i = 0;
      for (const TokenSpan& segment : segments) {
        for (std::int64_t t = segment.begin; t < segment.end; ++t) {
          for (std::int64_t h = 0; h < kHeads; ++h) {
            for (std::int64_t d = 0; d < kDim; ++d, ++i) {
              ASSERT_EQ(keys.span()[i], PagedCache::key(t, h, d));
              ASSERT_EQ(values.span()[i], -2.0F * PagedCache::key(t, h, d));
            }
          }
        }
      }
    }
  }
}

TEST(GatherKv, AttentionOverTheCopyEqualsAttentionInPlace) {
  const PagedCache cache;
  ThreadPool pool(1);
  const AttendedSet set{{{0, 4}, {10, 21}}, 30};
  const std::vector<TokenSpan> segments = set.segments(kTokens - 1);
  const std::int64_t attended = num_segment_tokens(segments);
  std::vector<float> keys(static_cast<std::size_t>(attended * kHeads * kDim));
  std::vector<float> values(keys.size());
  ASSERT_TRUE(gather_kv(cache.view, segments, kHeads, kDim, std::span<float>(keys),
                        std::span<float>(values), pool)
                  .ok());
  std::vector<float> q(kHeads * kDim);
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = 0.25F * static_cast<float>(i % 5);
  const auto attend = [&](const KvView<float>& kv, const AttendedSet& what) {
    std::vector<float> out(q.size());
    const AttentionTile tile{0, 1, &what};
    ChunkAttentionArgs<float> args;
    args.q = {q.data(), 1, kHeads * kDim};
    args.out = {out.data(), 1, kHeads * kDim};
    args.kv = kv;
    args.tiles = {&tile, 1};
    args.first_token = kv.num_tokens - 1;
    args.num_heads = kHeads;
    args.num_kv_heads = kHeads;
    args.head_dim = kDim;
    std::vector<float> workspace(static_cast<std::size_t>(
        chunk_attention_workspace_floats(kHeads, kHeads, kDim, kTokens, 1)));
    EXPECT_TRUE(chunk_attention(args, std::span<float>(workspace), pool).ok());
    return out;
  };
  const KvView<float> copy = contiguous_kv(keys.data(), values.data(), attended, kHeads, kDim);
  EXPECT_EQ(attend(cache.view, set), attend(copy, AttendedSet{}));
}

TEST(GatherKv, RefusesSegmentsAndSizesThatDoNotFit) {
  const PagedCache cache;
  ThreadPool pool(1);
  const auto code = [&](std::vector<TokenSpan> segments, std::size_t tokens) {
    std::vector<float> keys(tokens * kHeads * kDim, 5.0F);
    std::vector<float> values = keys;
    const Status status = gather_kv(cache.view, segments, kHeads, kDim, std::span<float>(keys),
                                    std::span<float>(values), pool);
    EXPECT_EQ(keys, std::vector<float>(tokens * kHeads * kDim, 5.0F));
    return status.code();
  };
  EXPECT_EQ(code({{0, 51}}, 51), StatusCode::kOutOfRange);
  EXPECT_EQ(code({{-1, 3}}, 4), StatusCode::kOutOfRange);
  EXPECT_EQ(code({{5, 4}}, 0), StatusCode::kOutOfRange);
  EXPECT_EQ(code({{5, 9}, {8, 10}}, 6), StatusCode::kOutOfRange);
  EXPECT_EQ(code({{5, 9}}, 3), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm
