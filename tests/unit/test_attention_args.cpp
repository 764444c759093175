// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/attention_args.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "support/attention_run.hpp"

namespace chunkllm {
namespace {

using testing::AttentionCase;
using testing::AttentionRun;
using testing::frequencies;

template <typename Change>
Status status_of(Change&& change) {
  AttentionCase c;
  c.num_rows = 3;
  c.sets = {{{{0, 10}, {20, 30}}, 150}};
  AttentionRun<float> run(c);
  ChunkAttentionArgs<float> args = run.args();
  ThreadPool pool(2);
  std::vector<float> workspace(
      static_cast<std::size_t>(chunk_attention_workspace_floats(4, 2, 16, 200, 2)));
  std::span<float> space(workspace);
  change(args, space);
  return chunk_attention(args, space, pool);
}

TEST(AttentionArgs, RefusesContradictions) {
  using Args = ChunkAttentionArgs<float>;
  using Space = std::span<float>;
  EXPECT_TRUE(status_of([](Args&, Space&) {}).ok());
  const auto code = [](auto change) { return status_of(change).code(); };
  EXPECT_EQ(code([](Args& a, Space&) { a.head_dim = 15; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.head_dim = 0; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.head_dim = 514; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.num_heads = 5; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.num_heads = 0; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.num_kv_heads = 0; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.num_heads = 258; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a, Space&) { a.q.cols = 60; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.out.rows = 2; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.kv.num_tokens = 199; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.first_token = -1; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.q.data = nullptr; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.out.data = nullptr; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.kv.keys = nullptr; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.kv.values = nullptr; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.tiles = {}; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.q_rotation = Rotation::kNone; }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](Args& a, Space&) { a.positions = Positions::kInCache; }),
            StatusCode::kInvalidArgument);
  const Status small = status_of([](Args&, Space& space) { space = space.first(100); });
  EXPECT_EQ(small.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(small.message().find("workspace of 100 floats"), std::string::npos);
  const Status none = status_of([](Args& args, Space& space) {
    args.q = args.q.middle_rows(0, 1);
    args.out = args.out.middle_rows(0, 1);
    static const AttendedSet everything;
    static const AttentionTile tile{0, 1, &everything};
    args.tiles = {&tile, 1};
    space = {};
  });
  EXPECT_EQ(none.code(), StatusCode::kInvalidArgument);
}

TEST(AttentionArgs, RefusesBadTilesAndSets) {
  AttendedSet late{{}, 198};
  AttendedSet overlapping{{{0, 10}, {5, 20}}, 150};
  AttendedSet backwards{{{30, 10}}, 150};
  AttendedSet into_tail{{{0, 151}}, 150};
  AttendedSet negative{{}, -1};
  const AttendedSet good{};
  const auto refused = [](std::vector<AttentionTile> tiles) {
    return status_of([&](ChunkAttentionArgs<float>& a, std::span<float>&) {
             a.tiles = tiles;
           }).code() == StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused({{0, 3, &good}}));
  EXPECT_TRUE(refused({{0, 3, nullptr}}));
  EXPECT_TRUE(refused({{0, 2, &good}}));
  EXPECT_TRUE(refused({{0, 4, &good}}));
  EXPECT_TRUE(refused({{1, 2, &good}}));
  EXPECT_TRUE(refused({{0, 1, &good}, {2, 1, &good}}));
  EXPECT_TRUE(refused({{0, 0, &good}, {0, 3, &good}}));
  for (const AttendedSet* set : {&late, &overlapping, &backwards, &into_tail, &negative}) {
    EXPECT_TRUE(refused({{0, 3, set}}));
  }
}

TEST(AttentionArgs, RopeTableMustReachTheLargestTurn) {
  AttentionCase c;
  c.num_tokens = 100;
  c.num_rows = 2;
  c.rotates = true;
  c.sets = {{{{0, 10}}, 70}};
  ThreadPool pool(1);
  std::vector<float> workspace(
      static_cast<std::size_t>(chunk_attention_workspace_floats(4, 2, 16, 100, 1)));
  const auto accepts = [&](std::int64_t positions, bool in_cache, Rotation stored) {
    c.positions = in_cache ? Positions::kInCache : Positions::kOriginal;
    c.q_rotation = stored;
    c.key_rotation = stored;
    AttentionRun<float> run(c);
    ChunkAttentionArgs<float> args = run.args();
    const RopeTable rope(frequencies(16), 0, positions);
    args.rope = &rope;
    return chunk_attention(args, std::span<float>(workspace), pool).ok();
  };
  EXPECT_TRUE(accepts(100, false, Rotation::kNone));
  EXPECT_FALSE(accepts(99, false, Rotation::kNone));
  EXPECT_TRUE(accepts(40, true, Rotation::kNone));  // 10 + 30 attended
  EXPECT_FALSE(accepts(39, true, Rotation::kNone));
  EXPECT_TRUE(accepts(61, true, Rotation::kAtTokenPosition));  // the tail moves 60 back
  EXPECT_FALSE(accepts(60, true, Rotation::kAtTokenPosition));
}

TEST(AttentionArgs, NoRowsDoNothing) {
  ThreadPool pool(1);
  ChunkAttentionArgs<float> args;
  args.num_heads = 2;
  args.num_kv_heads = 1;
  args.head_dim = 4;
  args.q = {nullptr, 0, 8};
  args.out = {nullptr, 0, 8};
  EXPECT_TRUE(chunk_attention(args, std::span<float>(), pool).ok());
}

}  // namespace
}  // namespace chunkllm
