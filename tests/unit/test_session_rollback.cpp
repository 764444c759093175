// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/infer/session.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

#include "support/session_reading.hpp"

namespace chunkllm {
namespace {

using testing::append;
using testing::decode;
using testing::describe;
using testing::make_session;
using testing::read_in_blocks;
using testing::Reading;
using testing::small_budget;
using testing::tiny_text;
using testing::Trace;

/// Reads two turns with decoding between and behind, as a chat does; `detour(session, position)`
/// may go ahead and roll back at any point.
template <typename Detour>
Trace two_turns(const Reading& reading, ThreadPool& pool, Detour&& detour) {
  const std::vector<std::int32_t> text = tiny_text(400);
  const std::span<const std::int32_t> all(text);
  auto session = make_session<float>(reading, pool);
  Trace trace;
  EXPECT_TRUE(session.prefill(all.first(250)).ok());
  detour(session);
  append(trace.logits, session.finish_prompt());
  detour(session);
  decode(session, all.subspan(250, 30), trace);
  detour(session);
  EXPECT_TRUE(session.prefill(all.subspan(280, 20)).ok());
  detour(session);
  append(trace.logits, session.finish_prompt());
  decode(session, all.subspan(300, 30), trace);
  detour(session);
  describe(session, trace);
  return trace;
}

TEST(Session, RollbackAndReplayChangeNothing) {
  ThreadPool pool(1);
  for (const bool finds_boundaries : {false, true}) {
    for (const char* scorer : {"mean", "adapter"}) {
      for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
        Reading reading{scorer, false, finds_boundaries, small_budget()};
        reading.options.chunk.selection = selection;
        const Trace straight = two_turns(reading, pool, [](auto&) {});
        // Goes on with other tokens, over boundaries and a prompt's end with its second look, and
        // comes back.
        const auto detour = [&](auto& session) {
          const std::int64_t here = session.num_tokens();
          const std::vector<std::int32_t> other = tiny_text(60, /*seed=*/99);
          auto fork = session;
          ASSERT_TRUE(fork.step(other[1]).ok());
          ASSERT_TRUE(fork.prefill(std::span(other).subspan(2, 24)).ok());
          ASSERT_TRUE(fork.finish_prompt().ok());
          for (std::size_t i = 26; i < 60; ++i) ASSERT_TRUE(fork.step(other[i]).ok());
          ASSERT_TRUE(fork.rollback(here + 10).ok());
          ASSERT_TRUE(fork.step(other[3]).ok());
          ASSERT_TRUE(fork.rollback(here).ok());
          const ChunkCounters& a = session.chunks().counters();
          const ChunkCounters& b = fork.chunks().counters();
          EXPECT_EQ(a.boundaries, b.boundaries);
          EXPECT_EQ(a.forced_boundaries, b.forced_boundaries);
          EXPECT_EQ(a.refreshes, b.refreshes);
          EXPECT_EQ(session.chunks().table().ends(), fork.chunks().table().ends());
          for (std::int64_t layer = 0; layer < 3; ++layer) {
            EXPECT_EQ(session.chunks().segments(layer, here), fork.chunks().segments(layer, here));
          }
          if (session.chunks().counters().refreshes > 0) {
            // Both go on alike: what rolled back decodes as what never left.
            auto expected = session;
            for (std::size_t i = 5; i < 40; ++i) {
              Trace x;
              Trace y;
              append(x.logits, expected.step(other[i]));
              append(y.logits, fork.step(other[i]));
              ASSERT_TRUE(x == y) << "step " << i << " behind token " << here;
            }
          }
        };
        EXPECT_TRUE(straight == two_turns(reading, pool, detour));
      }
    }
  }
}

TEST(Session, RollbackIntoATurnReplaysItsSecondLook) {
  ThreadPool pool(1);
  for (const bool finds_boundaries : {false, true}) {
    const Reading reading{"adapter", false, finds_boundaries, small_budget()};
    const std::vector<std::int32_t> text = tiny_text(340);
    const std::span<const std::int32_t> all(text);
    auto session = make_session<float>(reading, pool);
    Trace first;
    ASSERT_TRUE(session.prefill(all.first(300)).ok());
    append(first.logits, session.finish_prompt());
    decode(session, all.subspan(300, 20), first);
    describe(session, first);
    for (const std::int64_t cut : {299, 281, 270, 261}) {
      // Inside, at and in front of the 32 tokens that were looked at again.
      ASSERT_TRUE(session.rollback(cut).ok()) << cut;
      Trace again;
      ASSERT_TRUE(session
                      .prefill(all.subspan(static_cast<std::size_t>(cut),
                                           static_cast<std::size_t>(300 - cut)))
                      .ok());
      append(again.logits, session.finish_prompt());
      decode(session, all.subspan(300, 20), again);
      describe(session, again);
      EXPECT_TRUE(first == again) << "cut at " << cut;
    }
  }
}

TEST(Session, RollbackBeyondTheJournalIsRefusedAndChangesNothing) {
  ThreadPool pool(1);
  const Reading reading{"mean", false, false, small_budget()};
  const std::vector<std::int32_t> text = tiny_text(300);
  auto session = make_session<float>(reading, pool);
  ASSERT_TRUE(session.prefill(text).ok());
  ASSERT_TRUE(session.finish_prompt().ok());
  auto untouched = session;
  EXPECT_EQ(session.rollback(235).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(session.rollback(301).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(session.rollback(-1).code(), StatusCode::kOutOfRange);
  Trace a;
  Trace b;
  decode(session, std::span(text).first(10), a);
  decode(untouched, std::span(text).first(10), b);
  EXPECT_TRUE(a == b);
  // Two steps back do not reach further than one.
  ASSERT_TRUE(session.rollback(260).ok());
  EXPECT_EQ(session.rollback(245).code(), StatusCode::kOutOfRange);
  EXPECT_TRUE(session.rollback(246).ok());
  EXPECT_EQ(session.num_tokens(), 246);
  // At the journal's far end a prompt still gets its whole second look.
  ASSERT_TRUE(session.prefill(std::span(text).subspan(246)).ok());
  Trace c;
  append(c.logits, session.finish_prompt());
  decode(session, std::span(text).first(10), c);
  auto fresh = make_session<float>(reading, pool);
  ASSERT_TRUE(fresh.prefill(text).ok());
  Trace d;
  append(d.logits, fresh.finish_prompt());
  decode(fresh, std::span(text).first(10), d);
  EXPECT_TRUE(c == d);
}

TEST(Session, ForksAreIndependent) {
  ThreadPool pool(1);
  const Reading reading{"mean", false, false, small_budget()};
  const std::vector<std::int32_t> text = tiny_text(400);
  const std::span<const std::int32_t> all(text);
  auto session = make_session<float>(reading, pool);
  ASSERT_TRUE(session.prefill(all.first(300)).ok());
  ASSERT_TRUE(session.finish_prompt().ok());
  auto reference = session;
  auto fork = session;
  Trace fork_trace;
  decode(fork, all.subspan(350, 40), fork_trace);
  Trace a;
  Trace b;
  decode(session, all.subspan(300, 40), a);
  decode(reference, all.subspan(300, 40), b);
  EXPECT_TRUE(a == b);
  EXPECT_FALSE(a.logits == fork_trace.logits);
}

}  // namespace
}  // namespace chunkllm
