// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/infer/session.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm {
namespace {

using testing::tiny_text;
using testing::tiny_token_bytes;

constexpr std::int64_t kPrompt = 300;
constexpr std::int64_t kSteps = 20;

const DecoderBackbone& backbone(bool windowed = false) {
  static const DecoderBackbone plain = testing::tiny_backbone();
  static const DecoderBackbone with_windows = [] {
    BackboneConfig config = testing::tiny_config();
    config.architecture = Architecture::kMistral;
    config.sliding_window = {40, 0, 40};  // the first layer, which finds boundaries, among them
    return testing::tiny_backbone(config, /*seed=*/2);
  }();
  return windowed ? with_windows : plain;
}

QkAdapter random_adapter(std::uint32_t seed, KeyPooling pooling) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 0.4F);
  const auto fill = [&](std::size_t size) {
    std::vector<float> values(size);
    for (float& value : values) value = normal(random);
    return values;
  };
  std::vector<QkAdapterLayer> layers(3);
  for (QkAdapterLayer& layer : layers) {
    layer.query_weight = fill(2 * 8 * 32);
    layer.key_weight = fill(1 * 8 * 32);
    layer.distance_bias = fill(2 * static_cast<std::size_t>(kNumDistanceBins));
    layer.null_weight = fill(2 * 32);
    layer.null_bias = fill(2);
  }
  return QkAdapter(std::move(layers), /*hidden_size=*/32, /*num_heads=*/2, /*num_key_heads=*/1,
                   /*key_dim=*/8, pooling, /*adds_log_length=*/true);
}

AnyScorer make_scorer(const std::string& name) {
  const BackboneConfig& config = backbone().config();
  const float scale = softmax_scale(config);
  if (name == "minmax") {
    return AnyScorer(
        MinMaxKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim, scale));
  }
  if (name == "recent") return AnyScorer(RecentScorer());
  if (name == "random") return AnyScorer(RandomScorer(/*seed=*/5));
  if (name == "adapter") return AnyScorer(random_adapter(11, KeyPooling::kMean));
  if (name == "adapter_end") return AnyScorer(random_adapter(12, KeyPooling::kEndToken));
  return AnyScorer(MeanKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim, scale));
}

/// Ends a chunk at about one token in twelve of the tiny model.
std::shared_ptr<const ChunkAdapter> boundary_adapter() {
  auto adapter = std::make_shared<ChunkAdapter>();
  std::mt19937 random(21);
  std::normal_distribution<float> normal;
  adapter->weight.resize(32);
  for (float& weight : adapter->weight) weight = normal(random);
  adapter->bias = -1.2F;
  adapter->threshold = 0.9F;
  return adapter;
}

/// One way to read a text.
struct Reading {
  std::string scorer = "mean";
  bool windowed = false;
  bool finds_boundaries = false;  // by a Chunk Adapter instead of the sentence rules
  SessionOptions options;
};

SessionOptions small_budget() {
  SessionOptions options;
  options.chunk.budget.tokens = 120;
  options.chunk.local_min_tokens = 24;
  options.chunk.guards = {2, 24};
  options.chunk.second_look = 32;
  options.chunk.journal_len = 64;
  return options;
}

template <typename KvType>
using TestSession = Session<DecoderBackbone, AnyScorer, KvType>;

template <typename KvType>
TestSession<KvType> make_session(const Reading& reading, ThreadPool& pool) {
  auto session = TestSession<KvType>::create(
      backbone(reading.windowed), std::make_shared<const AnyScorer>(make_scorer(reading.scorer)),
      reading.finds_boundaries ? boundary_adapter() : nullptr, tiny_token_bytes, reading.options,
      pool);
  EXPECT_TRUE(session.ok()) << session.status().message();
  return std::move(session).value();
}

void append(std::vector<float>& all, const Result<std::span<const float>>& logits) {
  ASSERT_TRUE(logits.ok()) << logits.status().message();
  all.insert(all.end(), logits.value().begin(), logits.value().end());
}

/// What can be told of a session from outside, for comparing two of them.
struct Trace {
  std::vector<float> logits;  // behind the prompt and each step
  std::vector<std::int64_t> chunk_ends;
  std::vector<TokenSpan> segments;  // of the next token in each layer
  std::int64_t boundaries = 0;
  std::int64_t forced = 0;
  std::int64_t refreshes = 0;
  std::int64_t nan_scores = 0;

  friend bool operator==(const Trace&, const Trace&) = default;
};

template <typename S>
void describe(const S& session, Trace& trace) {
  trace.chunk_ends = session.chunks().table().ends();
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    for (const TokenSpan& span : session.chunks().segments(layer, session.num_tokens())) {
      trace.segments.push_back(span);
    }
  }
  const ChunkCounters& counters = session.chunks().counters();
  trace.boundaries = counters.boundaries;
  trace.forced = counters.forced_boundaries;
  trace.refreshes = counters.refreshes;
  trace.nan_scores = counters.nan_scores;
}

template <typename S>
void decode(S& session, std::span<const std::int32_t> tokens, Trace& trace) {
  for (const std::int32_t token : tokens) append(trace.logits, session.step(token));
}

/// Reads a prompt in blocks and calls of `block` tokens, then decodes.
template <typename KvType>
Trace read_in_blocks(Reading reading, std::int64_t block, int threads = 1) {
  ThreadPool pool(threads);
  reading.options.block_len = block;
  auto session = make_session<KvType>(reading, pool);
  const std::vector<std::int32_t> text = tiny_text(kPrompt + kSteps);
  const std::span<const std::int32_t> all(text);
  Trace trace;
  EXPECT_TRUE(session.prefill(all.first(kPrompt)).ok());
  append(trace.logits, session.finish_prompt());
  decode(session, all.subspan(kPrompt), trace);
  describe(session, trace);
  return trace;
}

template <typename KvType>
void expect_blocks_equal(const Reading& reading,
                         const std::vector<std::int64_t>& blocks = {7, 64, 512}) {
  const Trace one = read_in_blocks<KvType>(reading, 1);
  EXPECT_GT(one.boundaries, 10);
  for (const std::int64_t block : blocks) {
    const Trace many = read_in_blocks<KvType>(reading, block);
    EXPECT_EQ(one.chunk_ends, many.chunk_ends) << "block " << block;
    EXPECT_EQ(one.segments, many.segments) << "block " << block;
    EXPECT_TRUE(one == many) << "block " << block;
  }
}

/// All settings of one scorer that change how a text is read.
std::vector<Reading> readings_of(const std::string& scorer) {
  std::vector<Reading> readings;
  for (const bool finds_boundaries : {false, true}) {
    for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
      for (const auto refresh : {RefreshPolicy{RefreshPolicy::Kind::kBoundary, 0},
                                 RefreshPolicy{RefreshPolicy::Kind::kEvery, 0},
                                 RefreshPolicy{RefreshPolicy::Kind::kStride, 5}}) {
        Reading reading{scorer, /*windowed=*/false, finds_boundaries, small_budget()};
        reading.options.chunk.selection = selection;
        reading.options.chunk.refresh = refresh;
        readings.push_back(reading);
      }
    }
  }
  return readings;
}

class BlocksEqual : public ::testing::TestWithParam<const char*> {};

TEST_P(BlocksEqual, ForEveryRefreshSelectionAndBoundary) {
  for (const Reading& reading : readings_of(GetParam())) {
    SCOPED_TRACE(std::string(reading.finds_boundaries ? "adapter" : "rules") + ", selection " +
                 std::to_string(static_cast<int>(reading.options.chunk.selection)) + ", refresh " +
                 std::to_string(static_cast<int>(reading.options.chunk.refresh.kind)));
    const bool at_boundaries = reading.options.chunk.refresh.kind == RefreshPolicy::Kind::kBoundary;
    expect_blocks_equal<float>(reading, at_boundaries ? std::vector<std::int64_t>{3, 7, 64, 512}
                                                      : std::vector<std::int64_t>{7, 512});
  }
}

INSTANTIATE_TEST_SUITE_P(Scorers, BlocksEqual,
                         ::testing::Values("mean", "minmax", "recent", "random", "adapter",
                                           "adapter_end"));

TEST(Session, BlocksEqualWithOtherCachesPositionsAndWindows) {
  for (const bool windowed : {false, true}) {
    for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
      for (const bool finds_boundaries : {false, true}) {
        SCOPED_TRACE(std::to_string(windowed) + std::to_string(static_cast<int>(positions)) +
                     std::to_string(finds_boundaries));
        Reading reading{"mean", windowed, finds_boundaries, small_budget()};
        reading.options.positions = positions;
        expect_blocks_equal<F16>(reading);
        reading.options.chunk.selection = Selection::kLayer;
        expect_blocks_equal<float>(reading);
      }
    }
  }
}

TEST(Session, BlocksEqualUnderOtherBudgetsAndJoins) {
  Reading reading{"mean", false, false, small_budget()};
  reading.options.chunk.budget.kind = Budget::Kind::kChunks;
  reading.options.chunk.budget.chunks = 4;
  reading.options.chunk.selection = Selection::kVote;
  expect_blocks_equal<float>(reading);
  reading.options.chunk.selection = Selection::kSoft;
  reading.options.chunk.head_join = HeadJoin::kMean;
  reading.options.chunk.second_look = 0;
  expect_blocks_equal<float>(reading);
  reading.options.dense_prefill = true;
  expect_blocks_equal<float>(reading);
}

TEST(Session, PromptInSeveralCallsEqualsOneCall) {
  ThreadPool pool(1);
  const Reading reading{"mean", false, true, small_budget()};
  const std::vector<std::int32_t> text = tiny_text(kPrompt);
  auto whole = make_session<float>(reading, pool);
  ASSERT_TRUE(whole.prefill(text).ok());
  auto parts = make_session<float>(reading, pool);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t count = std::min<std::size_t>(1 + begin % 97, text.size() - begin);
    ASSERT_TRUE(parts.prefill(std::span(text).subspan(begin, count)).ok());
    begin += count;
  }
  Trace a;
  Trace b;
  append(a.logits, whole.finish_prompt());
  append(b.logits, parts.finish_prompt());
  describe(whole, a);
  describe(parts, b);
  EXPECT_TRUE(a == b);
}

TEST(Session, ThreadsAndRepetitionChangeNoBit) {
  for (const char* scorer : {"mean", "adapter"}) {
    for (const Selection selection : {Selection::kLayer, Selection::kVote}) {
      Reading reading{scorer, false, true, small_budget()};
      reading.options.chunk.selection = selection;
      const Trace once = read_in_blocks<BF16>(reading, 64);
      EXPECT_TRUE(once == read_in_blocks<BF16>(reading, 64));
      EXPECT_TRUE(once == read_in_blocks<BF16>(reading, 64, /*threads=*/2));
      EXPECT_TRUE(once == read_in_blocks<BF16>(reading, 64, /*threads=*/3));
    }
  }
}

template <typename KvType>
void expect_budget_of_everything_equals_dense() {
  for (const Positions positions : {Positions::kOriginal, Positions::kInCache}) {
    for (const bool windowed : {false, true}) {
      Reading dense{"mean", windowed, false, small_budget()};
      dense.options.positions = positions;
      dense.options.dense = true;
      Reading chunked = dense;
      chunked.options.dense = false;
      chunked.options.chunk.budget.tokens = kPrompt + kSteps;
      const std::vector<float> expected = read_in_blocks<KvType>(dense, 64).logits;
      EXPECT_TRUE(expected == read_in_blocks<KvType>(chunked, 64).logits);
      // Chosen chunk by chunk, and joined anew at every boundary, all of them are everything, too.
      chunked.options.chunk.budget.kind = Budget::Kind::kChunks;
      chunked.options.chunk.budget.chunks = kPrompt;
      EXPECT_TRUE(expected == read_in_blocks<KvType>(chunked, 64).logits);
      chunked.options.chunk.budget.kind = Budget::Kind::kShare;
      chunked.options.chunk.selection = Selection::kLayer;
      EXPECT_TRUE(expected == read_in_blocks<KvType>(chunked, 7).logits);
    }
  }
}

TEST(Session, BudgetOfTheWholeContextIsBitIdenticalToDense) {
  expect_budget_of_everything_equals_dense<float>();
  expect_budget_of_everything_equals_dense<F16>();
  expect_budget_of_everything_equals_dense<BF16>();
}

TEST(Session, SelectionChangesTheLogits) {
  Reading reading{"mean", false, false, small_budget()};
  const Trace sparse = read_in_blocks<float>(reading, 64);
  reading.options.dense = true;
  EXPECT_FALSE(sparse.logits == read_in_blocks<float>(reading, 64).logits);
}

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

TEST(Session, JournalOfNoTokensStillLooksAgain) {
  Reading reading{"adapter", false, true, small_budget()};
  reading.options.chunk.journal_len = 0;
  for (const std::int64_t look : {0, 1, 40}) {
    reading.options.chunk.second_look = look;
    expect_blocks_equal<float>(reading);
    Reading long_journal = reading;
    long_journal.options.chunk.journal_len = 300;
    EXPECT_TRUE(read_in_blocks<float>(reading, 64) == read_in_blocks<float>(long_journal, 64));
  }
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

TEST(Session, TeacherForcingEqualsDecoding) {
  ThreadPool pool(1);
  for (const bool finds_boundaries : {false, true}) {
    for (const Selection selection : {Selection::kLayer, Selection::kMax, Selection::kVote}) {
      for (const auto kind : {RefreshPolicy::Kind::kBoundary, RefreshPolicy::Kind::kStride}) {
        Reading reading{"mean", false, finds_boundaries, small_budget()};
        reading.options.chunk.selection = selection;
        reading.options.chunk.refresh = {kind, 7};
        const std::vector<std::int32_t> text = tiny_text(360);
        const std::span<const std::int32_t> all(text);
        auto stepping = make_session<float>(reading, pool);
        ASSERT_TRUE(stepping.prefill(all.first(200)).ok());
        ASSERT_TRUE(stepping.finish_prompt().ok());
        auto forced = stepping;
        std::vector<float> rows;
        std::int64_t next = 200;
        ASSERT_TRUE(forced
                        .read(all.subspan(200), ReadMode::kAsDecode, {},
                              [&](std::int64_t first, MatrixView<const float> hidden) {
                                EXPECT_EQ(first, next);
                                next += hidden.rows;
                                rows.insert(rows.end(), hidden.data, hidden.row(hidden.rows));
                              })
                        .ok());
        EXPECT_EQ(next, 360);
        std::vector<float> logits(64);
        for (std::size_t i = 0; i < 160; ++i) {
          backbone().logits({rows.data() + i * 32, 1, 32}, {logits.data(), 1, 64}, pool);
          const auto expected = stepping.step(text[200 + i]);
          ASSERT_TRUE(expected.ok());
          ASSERT_TRUE(std::equal(logits.begin(), logits.end(), expected.value().begin())) << i;
        }
        // What a cut step left in the journal is what single steps leave there.
        ASSERT_TRUE(forced.rollback(320).ok());
        ASSERT_TRUE(stepping.rollback(320).ok());
        Trace a;
        Trace b;
        decode(forced, all.subspan(300, 30), a);
        decode(stepping, all.subspan(300, 30), b);
        EXPECT_TRUE(a == b);
      }
    }
  }
}

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
