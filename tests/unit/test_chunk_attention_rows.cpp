// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "support/attention_run.hpp"

namespace chunkllm {
namespace {

using testing::AttentionCase;
using testing::AttentionRun;
using testing::sparse_set;

TEST(ChunkAttention, RowsDoNotDependOnRowsThreadsTilesOrSplits) {
  for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
    AttentionCase c;
    c.num_heads = 6;
    c.num_kv_heads = 2;
    c.head_dim = 20;
    c.num_tokens = 1300;
    c.num_rows = 250;
    c.rotates = true;
    c.positions = positions;
    c.sets = {sparse_set(900), {}, sparse_set(1000)};
    AttentionRun<float> whole(c);
    whole.run();
    const std::vector<float> expected = whole.out();
    const std::vector<float> expected_lse = whole.lse();
    for (int threads = 2; threads <= 4; ++threads) {
      AttentionRun<float> again(c);
      again.run(threads);
      EXPECT_EQ(expected, again.out());
      EXPECT_EQ(expected_lse, again.lse());
    }
    // The same rows under any other tiling.
    AttentionRun<float> cut(c);
    std::vector<AttentionTile> pieces;
    for (const AttentionTile& tile : whole.tiles()) {
      for (std::int64_t done = 0; done < tile.num_rows;) {
        const std::int64_t rows =
            std::min<std::int64_t>(1 + (tile.first_row + done) % 37, tile.num_rows - done);
        pieces.push_back({tile.first_row + done, rows, tile.set});
        done += rows;
      }
    }
    cut.tiles() = pieces;
    cut.run(2);
    EXPECT_EQ(expected, cut.out());
    EXPECT_EQ(expected_lse, cut.lse());
    // Each row alone, as decoding computes it.
    const std::size_t width = 120;
    for (const AttentionTile& tile : whole.tiles()) {
      for (std::int64_t r = tile.first_row; r < tile.first_row + tile.num_rows; r += 9) {
        AttentionRun<float> all(c);
        ChunkAttentionArgs<float> args = all.args();
        args.q = args.q.middle_rows(r, 1);
        args.out = args.out.middle_rows(r, 1);
        args.first_token += r;
        args.maybe_lse = nullptr;
        const AttentionTile one{0, 1, tile.set};
        args.tiles = {&one, 1};
        ThreadPool pool(1 + static_cast<int>(r % 3));
        std::vector<float> workspace(static_cast<std::size_t>(chunk_attention_workspace_floats(
            c.num_heads, c.num_kv_heads, c.head_dim, c.num_tokens, pool.num_threads())));
        ASSERT_TRUE(chunk_attention(args, std::span<float>(workspace), pool).ok());
        ASSERT_TRUE(std::equal(args.out.data, args.out.data + width,
                               expected.begin() + r * static_cast<std::int64_t>(width)))
            << "row " << r;
      }
    }
  }
}

TEST(ChunkAttention, NanReachesExactlyTheRowsThatSeeIt) {
  for (const std::int64_t rows : {1, 3}) {
    AttentionCase c;
    c.num_tokens = 100;
    c.num_rows = rows;
    c.sets = {{{{0, 10}}, 60}};
    const std::size_t width = 64;
    {
      AttentionRun<float> run(c);  // a value of the first head group that all rows attend
      run.stored_values()[70 * 32] = std::numeric_limits<float>::quiet_NaN();
      run.run();
      const std::vector<float> out = run.out();
      for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
        EXPECT_TRUE(std::isnan(out[r * width]));
        EXPECT_FALSE(std::isnan(out[r * width + 1]));
        EXPECT_FALSE(std::isnan(out[r * width + 32]));
      }
    }
    {
      AttentionRun<float> run(c);  // nobody attends token 30
      for (std::size_t i = 0; i < 32; ++i) {
        run.stored_values()[30 * 32 + i] = std::numeric_limits<float>::quiet_NaN();
      }
      run.run();
      run.expect_equals_oracle();
    }
    {
      AttentionRun<float> run(c);
      run.q()[17] = std::numeric_limits<float>::quiet_NaN();  // head 1 of the first row
      run.run();
      const std::vector<float> out = run.out();
      for (std::size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i / 16 == 1) << i;
      EXPECT_TRUE(std::isnan(run.lse()[1]));
    }
  }
}

TEST(ChunkAttention, LargeScoresStayFinite) {
  AttentionCase c;
  c.num_tokens = 200;
  c.num_rows = 20;
  c.query_size = 1e4F;
  AttentionRun<float> run(c);
  run.run();
  for (const float value : run.out()) EXPECT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace chunkllm
