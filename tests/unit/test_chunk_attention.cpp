// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/chunk_attention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "support/attention_run.hpp"

namespace chunkllm {
namespace {

using testing::AttentionCase;
using testing::expect_equals_oracle;
using testing::sparse_set;

TEST(ChunkAttention, KeyCountsAroundTilesAndSplits) {
  for (const std::int64_t tokens :
       {1, 2, 31, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1023, 1025}) {
    SCOPED_TRACE(tokens);
    AttentionCase c;
    c.num_tokens = tokens;
    expect_equals_oracle(c);
    c.num_rows = std::min<std::int64_t>(tokens, 3);
    expect_equals_oracle(c);
  }
}

TEST(ChunkAttention, ThousandsOfKeys) {
  AttentionCase c;
  c.num_tokens = 5000;
  c.head_dim = 64;
  c.query_size = 3.0F;
  expect_equals_oracle(c, /*threads=*/2);
  c.sets = {sparse_set(4800)};
  expect_equals_oracle(c, /*threads=*/2);
}

TEST(ChunkAttention, HeadSizes) {
  for (const std::int64_t head_dim : {2, 6, 16, 18, 64, 80, 128, 256, 512}) {
    SCOPED_TRACE(head_dim);
    AttentionCase c;
    c.head_dim = head_dim;
    c.num_tokens = 130;
    expect_equals_oracle(c);
    c.num_rows = 40;
    expect_equals_oracle(c);
    expect_equals_oracle<F16>(c);
  }
}

TEST(ChunkAttention, HeadRatios) {
  for (const std::int64_t ratio : {1, 3, 4, 7, 16, 33, 128}) {
    SCOPED_TRACE(ratio);
    AttentionCase c;
    c.num_kv_heads = ratio == 128 ? 1 : 2;
    c.num_heads = ratio * c.num_kv_heads;
    c.num_tokens = 150;
    expect_equals_oracle(c);
    c.num_rows = 70;
    c.sets = {sparse_set(60), sparse_set(100)};
    expect_equals_oracle(c);
  }
}

TEST(ChunkAttention, StorageTypesAndLayouts) {
  for (const std::int64_t page_size : {0, 1, 16, 64}) {
    for (const std::int64_t extra : {0, 5}) {
      SCOPED_TRACE(std::to_string(page_size) + " " + std::to_string(extra));
      AttentionCase c;
      c.num_tokens = 333;
      c.head_dim = 24;
      c.page_size = page_size;
      c.extra_stride = extra;
      for (const std::int64_t rows : {1, 50}) {
        c.num_rows = rows;
        c.sets = {sparse_set(250)};
        expect_equals_oracle<float>(c);
        expect_equals_oracle<F16>(c);
        expect_equals_oracle<BF16>(c);
      }
    }
  }
}

TEST(ChunkAttention, RotationsAndPositions) {
  for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
    for (const Rotation q : {Rotation::kNone, Rotation::kAtTokenPosition}) {
      for (const Rotation k : {Rotation::kNone, Rotation::kAtTokenPosition}) {
        for (const std::int64_t rows : {1, 33}) {
          SCOPED_TRACE(std::to_string(static_cast<int>(positions)) +
                       std::to_string(static_cast<int>(q)) + std::to_string(static_cast<int>(k)));
          AttentionCase c;
          c.num_tokens = 400;
          c.num_rows = rows;
          c.rotates = true;
          c.positions = positions;
          c.q_rotation = q;
          c.key_rotation = k;
          c.sets = {sparse_set(300), sparse_set(365)};
          expect_equals_oracle<float>(c);
          expect_equals_oracle<F16>(c);
        }
      }
    }
  }
}

TEST(ChunkAttention, Windows) {
  for (const std::int64_t window : {1, 2, 63, 64, 65, 150, 1000}) {
    for (const std::int64_t rows : {1, 90}) {
      SCOPED_TRACE(std::to_string(window) + " " + std::to_string(rows));
      AttentionCase c;
      c.num_tokens = 300;
      c.num_rows = rows;
      c.window = window;
      expect_equals_oracle(c);
      c.sets = {sparse_set(200)};
      expect_equals_oracle(c);
    }
  }
}

TEST(ChunkAttention, SetsOfOneRowAndSetsWithoutSpans) {
  AttentionCase c;
  c.num_tokens = 90;
  c.num_rows = 5;
  c.sets = {{{}, 85}, {{}, 86}, {{}, 0}, {{{0, 1}}, 88}, {{{3, 4}, {50, 70}}, 89}};
  expect_equals_oracle(c);
}

}  // namespace
}  // namespace chunkllm
