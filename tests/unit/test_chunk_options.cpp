// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/chunk/chunk_options.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace chunkllm {
namespace {

TEST(RefreshPolicy, TriggersAt) {
  const RefreshPolicy boundary;
  const RefreshPolicy every{RefreshPolicy::Kind::kEvery, 0};
  const RefreshPolicy stride{RefreshPolicy::Kind::kStride, 3};
  for (std::int64_t token = 0; token < 20; ++token) {
    EXPECT_FALSE(boundary.triggers_at(token));
    EXPECT_TRUE(every.triggers_at(token));
    EXPECT_EQ(stride.triggers_at(token), token % 3 == 2);
  }
}

TEST(ChunkOptions, DefaultsAreValid) {
  EXPECT_TRUE(validate(ChunkOptions{}).ok());
}

TEST(ChunkOptions, EachSettingIsCheckedAndNamed) {
  struct Wrong {
    std::string name;
    std::function<void(ChunkOptions&)> set;
  };
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  const auto nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Wrong> cases = {
      {"guards.min_len is 0", [](ChunkOptions& o) { o.guards.min_len = 0; }},
      {"guards.max_len is 3", [](ChunkOptions& o) { o.guards.max_len = 3; }},
      {"guards.max_len", [=](ChunkOptions& o) { o.guards.max_len = kHuge; }},
      {"local_min_tokens is 0", [](ChunkOptions& o) { o.local_min_tokens = 0; }},
      {"local_min_chunks is -1", [](ChunkOptions& o) { o.local_min_chunks = -1; }},
      {"second_look is -1", [](ChunkOptions& o) { o.second_look = -1; }},
      {"second_look", [=](ChunkOptions& o) { o.second_look = kHuge; }},
      {"journal_len is 65537", [](ChunkOptions& o) { o.journal_len = 65537; }},
      {"budget in tokens is 0", [](ChunkOptions& o) { o.budget.tokens = 0; }},
      {"budget in chunks is -5",
       [](ChunkOptions& o) {
         o.budget.kind = Budget::Kind::kChunks;
         o.budget.chunks = -5;
       }},
      {"budget share is nan",
       [=](ChunkOptions& o) {
         o.budget.kind = Budget::Kind::kShare;
         o.budget.share = nan;
       }},
      {"budget share is 0",
       [](ChunkOptions& o) {
         o.budget.kind = Budget::Kind::kShare;
         o.budget.share = 0.0;
       }},
      {"budget share is 1.5",
       [](ChunkOptions& o) {
         o.budget.kind = Budget::Kind::kShare;
         o.budget.share = 1.5;
       }},
      {"refresh stride is 0",
       [](ChunkOptions& o) {
         o.refresh = {RefreshPolicy::Kind::kStride, 0};
       }},
      // Never later than max_len tokens after the last.
      {"refresh stride is 129",
       [](ChunkOptions& o) {
         o.refresh = {RefreshPolicy::Kind::kStride, 129};
       }},
      {"threshold is nan", [=](ChunkOptions& o) { o.threshold = static_cast<float>(nan); }},
      {"threshold is -0.1", [](ChunkOptions& o) { o.threshold = -0.1F; }},
      {"threshold is 1.1", [](ChunkOptions& o) { o.threshold = 1.1F; }},
  };
  for (const Wrong& wrong : cases) {
    ChunkOptions options;
    wrong.set(options);
    const Status status = validate(options);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << wrong.name;
    EXPECT_TRUE(status.message().starts_with(wrong.name)) << status.message();
    EXPECT_NE(status.message().find("expected"), std::string::npos) << status.message();
  }
}

}  // namespace
}  // namespace chunkllm
