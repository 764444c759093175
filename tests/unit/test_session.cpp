// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/infer/session.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "support/session_reading.hpp"

namespace chunkllm {
namespace {

using testing::backbone;
using testing::decode;
using testing::describe;
using testing::make_scorer;
using testing::make_session;
using testing::Reading;
using testing::small_budget;
using testing::TestSession;
using testing::tiny_text;
using testing::tiny_token_bytes;
using testing::Trace;

TEST(Session, CountsWhatEachTokenAttends) {
  ThreadPool pool(1);
  for (const bool finds_boundaries : {false, true}) {
    Reading reading{"mean", false, finds_boundaries, small_budget()};
    reading.options.chunk.selection = Selection::kLayer;
    auto session = make_session<float>(reading, pool);
    const std::vector<std::int32_t> text = tiny_text(300);
    session.count_attended_from(100);
    ASSERT_TRUE(session.prefill(text).ok());
    // Rows of the first layer that were tried in vain do not count.
    EXPECT_EQ(session.attended().count, 3 * 200);
    EXPECT_LT(session.attended().share(), 0.9);
    EXPECT_GT(session.attended().share(), 0.2);
  }
}

TEST(Session, InterruptedReadingGoesOnWithOtherTokens) {
  ThreadPool pool(1);
  for (const bool finds_boundaries : {false, true}) {
    Reading reading{"mean", false, finds_boundaries, small_budget()};
    reading.options.block_len = 32;
    const std::vector<std::int32_t> text = tiny_text(300);
    const std::vector<std::int32_t> other = tiny_text(100, /*seed=*/3);
    auto stopped = make_session<float>(reading, pool);
    ASSERT_TRUE(stopped.prefill(text).ok());
    ASSERT_TRUE(stopped.finish_prompt().ok());
    const Status status =
        stopped.read(text, ReadMode::kAsDecode, [](std::int64_t n) { return n < 310; }, {});
    EXPECT_EQ(status.code(), StatusCode::kInterrupted);
    const std::int64_t taken = stopped.num_tokens() - 300;
    ASSERT_GT(taken, 0);
    auto fresh = make_session<float>(reading, pool);
    ASSERT_TRUE(fresh.prefill(text).ok());
    ASSERT_TRUE(fresh.finish_prompt().ok());
    for (std::int64_t i = 0; i < taken; ++i) {
      ASSERT_TRUE(fresh.step(text[static_cast<std::size_t>(i)]).ok());
    }
    Trace a;
    Trace b;
    decode(stopped, other, a);
    decode(fresh, other, b);
    describe(stopped, a);
    describe(fresh, b);
    EXPECT_TRUE(a == b);
  }
}

TEST(Session, RefusesWhatItCannotDo) {
  ThreadPool pool(1);
  Reading reading{"mean", false, false, small_budget()};
  auto session = make_session<float>(reading, pool);
  EXPECT_EQ(session.finish_prompt().status().code(), StatusCode::kInvalidArgument);
  const std::vector<std::int32_t> bad = {1, 64, 2};
  const Status status = session.prefill(bad);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("token 1 has id 64"), std::string::npos) << status.message();
  EXPECT_EQ(session.num_tokens(), 0);
  EXPECT_EQ(session.step(-1).status().code(), StatusCode::kInvalidArgument);
  // A refused prompt leaves nothing to finish.
  EXPECT_EQ(session.finish_prompt().status().code(), StatusCode::kInvalidArgument);
  const std::vector<std::int32_t> text = tiny_text(200);
  ASSERT_TRUE(session.prefill(text).ok());
  ASSERT_TRUE(session.rollback(190).ok());
  // The rows of token 189 are gone.
  EXPECT_EQ(session.finish_prompt().status().code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(session.prefill(std::span(text).subspan(190)).ok());
  EXPECT_TRUE(session.finish_prompt().ok());
  EXPECT_EQ(session.finish_prompt().status().code(), StatusCode::kInvalidArgument);
  reading.options.block_len = 0;
  EXPECT_FALSE(TestSession<float>::create(backbone(),
                                          std::make_shared<const AnyScorer>(make_scorer("mean")),
                                          nullptr, tiny_token_bytes, reading.options, pool)
                   .ok());
}

}  // namespace
}  // namespace chunkllm
