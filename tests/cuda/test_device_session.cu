// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/cuda/device_session.hpp"
#include "chunkllm/infer/session.hpp"
#include "cuda/support/device.hpp"
#include "cuda/support/session_pair.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm::cuda {
namespace {

using testing::AdapterKind;
using testing::ModelPair;
using testing::succeeds;
using testing::tiny_text;
using testing::tiny_token_bytes;

constexpr std::int64_t kPrompt = 300;
constexpr std::int64_t kSteps = 40;
constexpr std::int64_t kSecondPrompt = 60;
constexpr std::int64_t kSecondSteps = 10;
constexpr std::int64_t kAll = kPrompt + kSteps + kSecondPrompt + kSecondSteps;

/// What logits may differ by where both sides attended the same tokens.
///
/// A logit is a sum of 128 products of a normed row (about 1) and weights of 0.12: about 1.4. On
/// its way a token's row passes 3 layers with some 8 roundings to T each, of relative size u and
/// independent sign; each of those reaches the row amplified at most a few times (softmax of
/// scores of about 2, gates). 3 * 8 roundings add up to sqrt(24) u = 5 u in the mean, so to 7 u of
/// a logit; the largest of 60 * 64 differences lies 4 deviations out, and amplification doubles
/// that twice: 100 u.
template <typename T>
constexpr double kLogitBound = 100.0 * (std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8);
/// Near-ties of scores choose another chunk on one side: then a token attends some other tokens.
constexpr double kOtherSetBound = 2.5;
/// Sets that may differ by near-ties, as a share: a choice stands for some ten tokens, and in all
/// three layers where they share it, so that three near-ties make a fifth of what is compared.
constexpr double kMostOtherSets = 0.3;

/// Bias of the Chunk Adapter. The CPU finds the same chunks with one that is 0.15 higher or lower:
/// no probability ties with the threshold, but by many times what T's roundings move a logit of
/// about 6. That holds where the first layer's rows do not depend on scores.
constexpr float kBoundaryBias = 0.17F;

struct Case {
  std::string name;
  BackboneConfig config = testing::session_config();
  SessionOptions options;
  std::optional<AdapterKind> adapter;  // mean keys without
  bool ranks_by_recency = false;       // instead of either
  bool finds_boundaries = false;
  bool has_second_turn = true;
  bool may_part = false;  // a near-tie may part the two; what follows is not compared then
};

SessionOptions small_budget(Selection selection) {
  SessionOptions options;
  options.chunk.budget.tokens = 96;
  options.chunk.selection = selection;
  options.chunk.local_min_tokens = 32;
  options.chunk.guards = {2, 24};
  options.chunk.second_look = 32;
  options.chunk.journal_len = 64;
  return options;
}

/// A second look that begins with a chunk, where the device looks at chunks as a whole.
std::int64_t aligned_look(std::int64_t look, const ChunkGuards& guards) {
  BoundaryJournal journal(guards);
  const std::vector<std::int32_t> text = tiny_text(kAll);
  for (std::int64_t t = 0; t < kPrompt; ++t) {
    journal.on_token(tiny_token_bytes(text[static_cast<std::size_t>(t)]));
    journal.decide(t, journal.wanted(t));
  }
  return kPrompt - journal.table().begin(journal.table().chunk_of(kPrompt - look));
}

/// What can be told of a reading from outside.
struct Trace {
  std::vector<std::vector<float>> logits;    // behind prompts and steps
  std::vector<std::vector<TokenSpan>> sets;  // [stages * layers] of the next token
  std::vector<std::int64_t> chunk_ends;
  ChunkCounters counters;
  std::vector<AttendedStats> attended;  // behind the first prompt's text, its end, everything
};

template <typename T>
using HostKv = std::conditional_t<std::is_same_v<T, __half>, F16, BF16>;
template <typename T>
using HostSession = Session<DecoderBackbone, AnyScorer, HostKv<T>>;

template <typename S>
constexpr bool kIsHost = requires(const S& session) {
  session.chunks();
};

template <typename S>
void note(const S& session, const Result<std::span<const float>>& logits, Trace& trace) {
  ASSERT_TRUE(succeeds(logits.status())) << "behind token " << session.num_tokens();
  trace.logits.emplace_back(logits.value().begin(), logits.value().end());
  for (std::int64_t layer = 0; layer < 3; ++layer) {
    if constexpr (kIsHost<S>) {
      trace.sets.push_back(session.chunks().segments(layer, session.num_tokens()));
    } else {
      const auto segments = session.segments(layer);
      ASSERT_TRUE(succeeds(segments.status()));
      trace.sets.push_back(segments.value());
    }
  }
}

/// Prefill, prompt's end, steps, and a second turn.
template <typename S>
void read_turns(S& session, bool has_second_turn, Trace& trace) {
  const std::vector<std::int32_t> text = tiny_text(kAll);
  std::span<const std::int32_t> rest(text);
  const auto take = [&](std::int64_t count) {
    const auto part = rest.first(static_cast<std::size_t>(count));
    rest = rest.subspan(static_cast<std::size_t>(count));
    return part;
  };
  const auto turn = [&](std::int64_t prompt, std::int64_t steps) {
    ASSERT_TRUE(succeeds(session.prefill(take(prompt))));
    trace.attended.push_back(session.attended());
    note(session, session.finish_prompt(), trace);
    trace.attended.push_back(session.attended());
    for (const std::int32_t token : take(steps)) note(session, session.step(token), trace);
    trace.attended.push_back(session.attended());
  };
  turn(kPrompt, kSteps);
  if (has_second_turn && !::testing::Test::HasFatalFailure()) turn(kSecondPrompt, kSecondSteps);
  if constexpr (kIsHost<S>) {
    trace.chunk_ends = session.chunks().table().ends();
    trace.counters = session.chunks().counters();
  } else {
    trace.chunk_ends = session.table().ends();
    trace.counters = session.counters();
  }
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    most = difference <= most ? most : difference;  // a NaN stays
  }
  return most;
}
double nll(const std::vector<float>& logits, std::int32_t target) {
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  return std::log(sum) - static_cast<double>(logits[static_cast<std::size_t>(target)]);
}
std::string to_text(const std::vector<TokenSpan>& spans) {
  std::string text;
  for (const TokenSpan& span : spans) {
    text += "[" + std::to_string(span.begin) + "," + std::to_string(span.end) + ")";
  }
  return text;
}

class DeviceSessionTest : public testing::DeviceTest {
 protected:
  template <typename T>
  const ModelPair<T>& models(const BackboneConfig& config) {
    static std::unique_ptr<ModelPair<T>> plain;
    static std::unique_ptr<ModelPair<T>> windowed;
    const bool has_windows = config.sliding_window[0] > 0;
    std::unique_ptr<ModelPair<T>>& pair = has_windows ? windowed : plain;
    if (pair == nullptr) pair = ModelPair<T>::make(config, has_windows ? 2 : 1);
    return *pair;
  }

  template <typename T>
  std::unique_ptr<DeviceSession<T>> device_session(const Case& c, std::int64_t room = kAll) {
    const ModelPair<T>& pair = models<T>(c.config);
    DeviceScorer<T> scorer = c.ranks_by_recency ? DeviceScorer<T>::recent(c.config)
                                                : DeviceScorer<T>::mean_key(c.config);
    if (c.adapter) {
      auto made =
          DeviceScorer<T>::adapter(testing::qk_adapter<T>(c.config, 11, *c.adapter), stream_);
      EXPECT_TRUE(succeeds(made.status()));
      if (!made.ok()) return nullptr;
      scorer = std::move(made).value();
    }
    const ChunkAdapter boundaries = testing::chunk_adapter(c.config, kBoundaryBias);
    auto session = DeviceSession<T>::create(pair.gpu, std::move(scorer), tiny_token_bytes,
                                            c.options, c.finds_boundaries ? &boundaries : nullptr);
    EXPECT_TRUE(succeeds(session.status()));
    if (!session.ok()) return nullptr;
    EXPECT_TRUE(succeeds(session.value()->reserve(room)));
    return std::move(session).value();
  }
  template <typename T>
  std::unique_ptr<HostSession<T>> host_session(const Case& c) {
    const float scale = softmax_scale(c.config);
    AnyScorer scorer = c.adapter
                           ? AnyScorer(testing::qk_adapter<T>(c.config, 11, *c.adapter))
                           : AnyScorer(MeanKeyScorer(c.config.num_heads, c.config.num_kv_heads,
                                                     c.config.head_dim, scale));
    if (c.ranks_by_recency) scorer = AnyScorer(RecentScorer());
    auto session = HostSession<T>::create(
        models<T>(c.config).cpu, std::make_shared<const AnyScorer>(std::move(scorer)),
        c.finds_boundaries
            ? std::make_shared<const ChunkAdapter>(testing::chunk_adapter(c.config, kBoundaryBias))
            : nullptr,
        tiny_token_bytes, c.options, pool_);
    EXPECT_TRUE(succeeds(session.status()));
    if (!session.ok()) return nullptr;
    return std::make_unique<HostSession<T>>(std::move(session).value());
  }

  /// Reads two turns on both sides and compares all that can be told of them.
  template <typename T>
  void check(const Case& c);

  ThreadPool pool_{2};
  std::size_t num_other_sets_ = 0;  // of the last `check`
};

template <typename T>
void DeviceSessionTest::check(const Case& c) {
  SCOPED_TRACE(c.name);
  const auto host = host_session<T>(c);
  const auto device = device_session<T>(c);
  ASSERT_TRUE(host != nullptr && device != nullptr);
  Trace expected;
  Trace actual;
  read_turns(*host, c.has_second_turn, expected);
  read_turns(*device, c.has_second_turn, actual);
  if (HasFatalFailure()) return;

  // Boundaries of an adapter stand on the first layer's rows: a near-tie of scores there changes
  // them, so that a chunk moves, and what follows cannot be compared.
  if (c.may_part && c.finds_boundaries && actual.chunk_ends != expected.chunk_ends) {
    std::printf("%s: other chunks\n", c.name.c_str());
    return;
  }
  ASSERT_EQ(actual.chunk_ends, expected.chunk_ends);
  EXPECT_EQ(actual.counters.boundaries, expected.counters.boundaries);
  EXPECT_EQ(actual.counters.forced_boundaries, expected.counters.forced_boundaries);
  EXPECT_EQ(actual.counters.refreshes, expected.counters.refreshes);
  EXPECT_EQ(actual.counters.nan_scores, expected.counters.nan_scores);

  ASSERT_EQ(actual.sets.size(), expected.sets.size());
  std::size_t num_other = 0;
  for (std::size_t i = 0; i < expected.sets.size(); ++i) {
    if (actual.sets[i] == expected.sets[i]) continue;
    if (num_other++ == 0) {
      std::printf("%s: first other set behind stage %zu in layer %zu: %s, on the CPU %s\n",
                  c.name.c_str(), i / 3, i % 3, to_text(actual.sets[i]).c_str(),
                  to_text(expected.sets[i]).c_str());
    }
  }
  num_other_sets_ = num_other;
  if (c.may_part && num_other > 0) return;
  EXPECT_LE(static_cast<double>(num_other),
            kMostOtherSets * static_cast<double>(expected.sets.size()))
      << num_other << " of " << expected.sets.size() << " sets differ, more than near-ties explain";

  bool same_tokens = num_other == 0;
  for (std::size_t i = 0; i < expected.attended.size(); ++i) {
    EXPECT_EQ(actual.attended[i].count, expected.attended[i].count) << "behind part " << i;
    const double sum = expected.attended[i].attended_sum;
    if (actual.attended[i].attended_sum != sum) {
      same_tokens = false;
      std::printf("%s: attended %.0f behind part %zu, on the CPU %.0f\n", c.name.c_str(),
                  actual.attended[i].attended_sum, i, sum);
    }
    // Near-ties swap chunks of at most 24 tokens: a few of a hundred attended ones, both ways.
    EXPECT_NEAR(actual.attended[i].attended_sum, sum, 0.01 * sum) << "behind part " << i;
    EXPECT_NEAR(actual.attended[i].share(), expected.attended[i].share(), 0.01);
    if (same_tokens) {
      EXPECT_NEAR(actual.attended[i].share_sum, expected.attended[i].share_sum, 1e-6);
    }
  }

  ASSERT_EQ(actual.logits.size(), expected.logits.size());
  const std::vector<std::int32_t> text = tiny_text(kAll + 1);
  double worst_logit = 0.0;
  double worst_nll = 0.0;
  double nll_sum = 0.0;
  for (std::size_t i = 0; i < expected.logits.size(); ++i) {
    const double logit = largest_difference(actual.logits[i], expected.logits[i]);
    const std::int32_t target = text[static_cast<std::size_t>(kPrompt) + i];
    const double difference = nll(actual.logits[i], target) - nll(expected.logits[i], target);
    worst_logit = logit <= worst_logit ? worst_logit : logit;
    worst_nll = std::abs(difference) <= worst_nll ? worst_nll : std::abs(difference);
    nll_sum += std::abs(difference);
  }
  const double mean_nll = nll_sum / static_cast<double>(expected.logits.size());
  std::printf(
      "%s: %zu of %zu sets differ; logits differ by %.4f, NLL by %.4f at most, %.5f in "
      "the mean\n",
      c.name.c_str(), num_other, expected.sets.size(), worst_logit, worst_nll, mean_nll);
  EXPECT_LE(worst_logit, same_tokens ? kLogitBound<T> : kOtherSetBound);
  EXPECT_LE(worst_nll, same_tokens ? 2.0 * kLogitBound<T> : kOtherSetBound);
  EXPECT_LE(mean_nll, same_tokens ? kLogitBound<T> : 0.1 * kOtherSetBound);
}

TEST_F(DeviceSessionTest, DenseEqualsTheCpu) {
  Case c;
  c.name = "dense";
  c.options.dense = true;
  check<__half>(c);
  c.name = "dense bf16";
  check<__nv_bfloat16>(c);
  c.name = "dense windowed";
  c.config = testing::windowed_config();
  check<__half>(c);
  c.name = "dense in-cache";
  c.config = testing::session_config();
  c.options.positions = Positions::kInCache;
  check<__half>(c);
}

TEST_F(DeviceSessionTest, MeanKeysEqualTheCpu) {
  const std::pair<const char*, Selection> selections[] = {{"layer", Selection::kLayer},
                                                          {"max", Selection::kMax},
                                                          {"vote", Selection::kVote},
                                                          {"soft", Selection::kSoft}};
  for (const auto& [name, selection] : selections) {
    Case c;
    c.name = std::string("mean keys, ") + name;
    c.options = small_budget(selection);
    check<__half>(c);
    c.name += ", one token looked at again";
    c.options.chunk.second_look = 0;
    check<__half>(c);
  }
  Case c;
  c.name = "mean keys, max, bf16";
  c.may_part = true;  // scores of 8 bits of mantissa tie more often
  c.options = small_budget(Selection::kMax);
  check<__nv_bfloat16>(c);
}

TEST_F(DeviceSessionTest, RecencyHasTheSetsOfTheCpu) {
  for (const Selection selection : {Selection::kLayer, Selection::kMax, Selection::kVote}) {
    for (const bool finds_boundaries : {false, true}) {
      Case c;
      c.name = "recent, selection " + std::to_string(static_cast<int>(selection)) +
               (finds_boundaries ? ", Chunk Adapter" : "");
      c.ranks_by_recency = true;
      c.finds_boundaries = finds_boundaries;
      c.options = small_budget(selection);
      check<__half>(c);
      EXPECT_EQ(num_other_sets_, 0U);  // there are no scores to round
    }
  }
}

TEST_F(DeviceSessionTest, AdaptersEqualTheCpu) {
  for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
    const std::string end = selection == Selection::kLayer ? ", layer" : ", max";
    Case c;
    c.options = small_budget(selection);
    c.name = "end token" + end;
    c.adapter = AdapterKind{KeyPooling::kEndToken, true, true};
    check<__half>(c);
    c.name = "end token, 9 heads" + end;  // of which queries with null logits leave a gap
    c.adapter = AdapterKind{KeyPooling::kEndToken, true, true, 9, 3, 48};
    check<__half>(c);
    c.name = "end token without null class and bias" + end;
    c.adapter = AdapterKind{KeyPooling::kEndToken, false, false};
    check<__half>(c);
    c.has_second_turn = false;  // its look would begin within a chunk
    c.options.chunk.second_look = aligned_look(32, c.options.chunk.guards);
    c.name = "mean of inputs" + end;
    c.adapter = AdapterKind{KeyPooling::kMean, true, true};
    check<__half>(c);
    c.name = "mean of inputs without null class" + end;
    c.adapter = AdapterKind{KeyPooling::kMean, false, true};
    check<__half>(c);
  }
}

TEST_F(DeviceSessionTest, BudgetsAndThresholdsEqualTheCpu) {
  Case c;
  c.options = small_budget(Selection::kMax);
  c.name = "4 chunks";
  c.options.chunk.budget.kind = Budget::Kind::kChunks;
  c.options.chunk.budget.chunks = 4;
  check<__half>(c);
  c.name = "4 chunks by layer";
  c.options.chunk.selection = Selection::kLayer;
  check<__half>(c);
  c.name = "budget below chunk 0 and the local window";
  c.options = small_budget(Selection::kLayer);
  c.options.chunk.budget.tokens = 3;
  check<__half>(c);
  c.name = "threshold";
  c.options = small_budget(Selection::kVote);
  c.options.chunk.threshold = 0.05F;
  check<__half>(c);
}

TEST_F(DeviceSessionTest, InCachePositionsEqualTheCpu) {
  for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
    Case c;
    c.name = selection == Selection::kLayer ? "in-cache, layer" : "in-cache, max";
    c.options = small_budget(selection);
    c.options.positions = Positions::kInCache;
    c.config.context_length = 128;  // the text is three windows long
    check<__half>(c);
  }
}

TEST_F(DeviceSessionTest, WindowedLayersEqualTheCpu) {
  for (const Selection selection : {Selection::kLayer, Selection::kMax, Selection::kVote}) {
    Case c;
    c.name = "windowed, selection " + std::to_string(static_cast<int>(selection));
    c.config = testing::windowed_config();
    c.options = small_budget(selection);
    check<__half>(c);
    c.name += " in-cache";
    c.options.positions = Positions::kInCache;
    check<__half>(c);
  }
}

TEST_F(DeviceSessionTest, DensePrefillEqualsTheCpu) {
  for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
    Case c;
    c.name = "dense prefill, selection " + std::to_string(static_cast<int>(selection));
    c.options = small_budget(selection);
    c.options.dense_prefill = true;
    check<__half>(c);
  }
}

TEST_F(DeviceSessionTest, OtherRefreshesEqualTheCpu) {
  Case c;
  c.options = small_budget(Selection::kMax);
  c.name = "every";
  c.options.chunk.refresh.kind = RefreshPolicy::Kind::kEvery;
  check<__half>(c);
  // Sets that change inside chunks part for good at the first near-tie; not every stride has one.
  c.options.chunk.refresh.kind = RefreshPolicy::Kind::kStride;
  c.may_part = true;
  for (const bool has_adapter : {false, true}) {
    if (has_adapter) c.adapter = AdapterKind{KeyPooling::kEndToken, true, true};
    int num_equal = 0;
    for (const std::int64_t stride : {5, 6, 7, 9, 12}) {
      c.name = "stride " + std::to_string(stride) + (has_adapter ? ", adapter" : ", mean keys");
      c.options.chunk.refresh.stride = stride;
      check<__half>(c);
      num_equal += num_other_sets_ == 0 ? 1 : 0;
    }
    EXPECT_GE(num_equal, 2);
  }
}

TEST_F(DeviceSessionTest, ChunkAdaptersEqualTheCpu) {
  for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
    Case c;
    c.name = "Chunk Adapter, selection " + std::to_string(static_cast<int>(selection));
    c.finds_boundaries = true;
    c.may_part = true;  // the first layer attends chunks by score
    c.options = small_budget(selection);
    check<__half>(c);
    c.may_part = false;  // with a window there it does not
    c.name += " windowed";
    c.config = testing::windowed_config();
    check<__half>(c);
  }
}

TEST_F(DeviceSessionTest, RoomForEverythingHasTheBitsOfDense) {
  for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
    Case dense;
    dense.options.dense = true;
    Case roomy;
    roomy.options = small_budget(selection);
    roomy.options.chunk.budget.tokens = 4096;
    const auto a = device_session<__half>(dense);
    const auto b = device_session<__half>(roomy);
    ASSERT_TRUE(a != nullptr && b != nullptr);
    Trace expected;
    Trace actual;
    read_turns(*a, /*has_second_turn=*/true, expected);
    read_turns(*b, /*has_second_turn=*/true, actual);
    EXPECT_EQ(actual.logits, expected.logits);
    EXPECT_EQ(actual.sets, expected.sets);
    EXPECT_EQ(actual.attended.back().attended_sum, expected.attended.back().attended_sum);
  }
}

TEST_F(DeviceSessionTest, TwoRunsHaveTheSameBits) {
  for (const Selection selection : {Selection::kLayer, Selection::kVote}) {
    Case c;
    c.options = small_budget(selection);
    Trace traces[2];
    for (Trace& trace : traces) {
      const auto session = device_session<__half>(c);
      ASSERT_NE(session, nullptr);
      read_turns(*session, /*has_second_turn=*/true, trace);
    }
    EXPECT_EQ(traces[0].logits, traces[1].logits);
    EXPECT_EQ(traces[0].sets, traces[1].sets);
  }
}

TEST_F(DeviceSessionTest, TeacherForcingReadsAsDecodingDoes) {
  const std::vector<std::int32_t> text = tiny_text(kPrompt + kSteps);
  const std::span<const std::int32_t> all(text);
  for (const Selection selection : {Selection::kLayer, Selection::kMax, Selection::kSoft}) {
    SCOPED_TRACE("selection " + std::to_string(static_cast<int>(selection)));
    Case c;
    c.options = small_budget(selection);
    const auto stepped = device_session<__half>(c);
    const auto read = device_session<__half>(c);
    ASSERT_TRUE(stepped != nullptr && read != nullptr);
    ASSERT_TRUE(succeeds(stepped->prefill(all.first(kPrompt))));
    ASSERT_TRUE(succeeds(read->prefill(all.first(kPrompt))));
    ASSERT_TRUE(succeeds(stepped->finish_prompt().status()));
    ASSERT_TRUE(succeeds(read->finish_prompt().status()));
    std::vector<std::vector<float>> expected;
    for (const std::int32_t token : all.subspan(kPrompt)) {
      const auto logits = stepped->step(token);
      ASSERT_TRUE(succeeds(logits.status()));
      expected.emplace_back(logits.value().begin(), logits.value().end());
    }
    std::vector<std::vector<float>> actual;
    std::int64_t next = kPrompt;
    ASSERT_TRUE(succeeds(
        read->read(all.subspan(kPrompt), ReadMode::kAsDecode, {},
                   [&](std::int64_t first, MatrixView<const float> hidden) {
                     EXPECT_EQ(first, next);
                     next += hidden.rows;
                     std::vector<float> logits(static_cast<std::size_t>(hidden.rows) * 64);
                     EXPECT_TRUE(succeeds(read->logits(hidden, {logits.data(), hidden.rows, 64})));
                     for (std::int64_t r = 0; r < hidden.rows; ++r) {
                       actual.emplace_back(logits.begin() + r * 64, logits.begin() + (r + 1) * 64);
                     }
                   })));
    EXPECT_EQ(read->table().ends(), stepped->table().ends());
    EXPECT_EQ(read->counters().refreshes, stepped->counters().refreshes);
    ASSERT_EQ(actual.size(), expected.size());
    bool same_sets = true;
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      same_sets = same_sets && read->segments(layer).value() == stepped->segments(layer).value();
    }
    same_sets = same_sets && read->attended().attended_sum == stepped->attended().attended_sum;
    if (!same_sets) std::printf("teacher forcing: a near-tie chose another set\n");
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_LE(largest_difference(actual[i], expected[i]),
                same_sets ? kLogitBound<__half> : kOtherSetBound)
          << "step " << i;
    }
  }
}

TEST_F(DeviceSessionTest, LayerLocalReadingIsPrefill) {
  const std::vector<std::int32_t> text = tiny_text(kPrompt);
  for (const bool finds_boundaries : {false, true}) {
    Case c;
    c.finds_boundaries = finds_boundaries;
    c.options = small_budget(Selection::kMax);
    const auto prefilled = device_session<__half>(c);
    const auto read = device_session<__half>(c);
    ASSERT_TRUE(prefilled != nullptr && read != nullptr);
    ASSERT_TRUE(succeeds(prefilled->prefill(text)));
    std::int64_t rows = 0;
    ASSERT_TRUE(succeeds(
        read->read(text, ReadMode::kLayerLocal, {},
                   [&](std::int64_t, MatrixView<const float> hidden) { rows += hidden.rows; })));
    EXPECT_EQ(rows, kPrompt);
    EXPECT_EQ(read->table().ends(), prefilled->table().ends());
    EXPECT_EQ(read->counters().refreshes, prefilled->counters().refreshes);
    EXPECT_EQ(read->attended().attended_sum, prefilled->attended().attended_sum);
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      EXPECT_EQ(read->segments(layer).value(), prefilled->segments(layer).value()) << layer;
    }
    // Without a prompt's end the layers keep their own sets until the first shared one.
    const auto a = read->step(5);
    ASSERT_TRUE(succeeds(a.status()));
    const std::vector<float> expected(a.value().begin(), a.value().end());
    const auto b = prefilled->step(5);
    ASSERT_TRUE(succeeds(b.status()));
    EXPECT_EQ(std::vector<float>(b.value().begin(), b.value().end()), expected);
  }
}

TEST_F(DeviceSessionTest, StepsWithoutAPromptsEndKeepTheLayersSets) {
  const std::vector<std::int32_t> text = tiny_text(kPrompt + kSteps);
  const std::span<const std::int32_t> all(text);
  Case c;
  c.options = small_budget(Selection::kMax);
  const auto host = host_session<__half>(c);
  const auto device = device_session<__half>(c);
  ASSERT_TRUE(host != nullptr && device != nullptr);
  ASSERT_TRUE(succeeds(host->prefill(all.first(kPrompt))));
  ASSERT_TRUE(succeeds(device->prefill(all.first(kPrompt))));
  int num_other = 0;
  for (const std::int32_t token : all.subspan(kPrompt)) {
    ASSERT_TRUE(succeeds(host->step(token).status()));
    ASSERT_TRUE(succeeds(device->step(token).status()));
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      const auto actual = device->segments(layer).value();
      const auto expected = host->chunks().segments(layer, host->num_tokens());
      if (actual != expected) ++num_other;
    }
  }
  EXPECT_LE(num_other, static_cast<int>(kMostOtherSets * 3 * kSteps));
}

TEST_F(DeviceSessionTest, RollbackGivesTheSameBitsAgain) {
  const std::vector<std::int32_t> text = tiny_text(kPrompt + kSteps);
  const std::span<const std::int32_t> all(text);
  for (const bool finds_boundaries : {false, true}) {
    for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
      Case c;
      c.finds_boundaries = finds_boundaries;
      c.options = small_budget(selection);
      const auto session = device_session<__half>(c);
      ASSERT_NE(session, nullptr);
      ASSERT_TRUE(succeeds(session->prefill(all.first(kPrompt))));
      ASSERT_TRUE(succeeds(session->finish_prompt().status()));
      const std::vector<std::int64_t> ends = session->table().ends();
      std::vector<std::vector<float>> logits[2];
      std::int64_t refreshes[2] = {};
      for (int run = 0; run < 2; ++run) {
        for (const std::int32_t token : all.subspan(kPrompt)) {
          const auto made = session->step(token);
          ASSERT_TRUE(succeeds(made.status()));
          logits[run].emplace_back(made.value().begin(), made.value().end());
        }
        refreshes[run] = session->counters().refreshes;
        ASSERT_TRUE(succeeds(session->rollback(kPrompt)));
        EXPECT_EQ(session->num_tokens(), kPrompt);
        EXPECT_EQ(session->table().ends(), ends);
      }
      EXPECT_EQ(logits[0], logits[1]);
      EXPECT_EQ(refreshes[0], refreshes[1]);
      EXPECT_EQ(session->finish_prompt().status().code(), StatusCode::kInvalidArgument);
      EXPECT_EQ(session->rollback(kPrompt - 1).code(), StatusCode::kOutOfRange);
      // Another turn goes on from there.
      ASSERT_TRUE(succeeds(session->prefill(all.subspan(kPrompt, 9))));
      EXPECT_TRUE(succeeds(session->finish_prompt().status()));
      EXPECT_EQ(session->num_tokens(), kPrompt + 9);
    }
  }
}

TEST_F(DeviceSessionTest, ProgressStopsBetweenBlocksAndPrefillGoesOn) {
  const std::vector<std::int32_t> text = tiny_text(3000);
  Case c;
  c.options = small_budget(Selection::kMax);
  const auto whole = device_session<__half>(c, 3100);
  const auto stopped = device_session<__half>(c, 3100);
  ASSERT_TRUE(whole != nullptr && stopped != nullptr);
  ASSERT_TRUE(succeeds(whole->prefill(text)));
  const Status status = stopped->prefill(text, [](std::int64_t) { return false; });
  EXPECT_EQ(status.code(), StatusCode::kInterrupted);
  EXPECT_EQ(stopped->num_tokens(), 2048);
  ASSERT_TRUE(succeeds(stopped->prefill(std::span<const std::int32_t>(text).subspan(2048))));
  const auto expected = whole->finish_prompt();
  const auto actual = stopped->finish_prompt();
  ASSERT_TRUE(succeeds(expected.status()));
  ASSERT_TRUE(succeeds(actual.status()));
  EXPECT_TRUE(std::equal(actual.value().begin(), actual.value().end(), expected.value().begin()));
  EXPECT_EQ(stopped->table().ends(), whole->table().ends());
}

TEST_F(DeviceSessionTest, LooksLongerThanABlockAreCut) {
  const std::vector<std::int32_t> text = tiny_text(2500);
  Case c;
  c.options = small_budget(Selection::kLayer);
  c.options.chunk.second_look = 2300;
  const auto host = host_session<__half>(c);
  const auto device = device_session<__half>(c, 2600);
  ASSERT_TRUE(host != nullptr && device != nullptr);
  ASSERT_TRUE(succeeds(host->prefill(text)));
  ASSERT_TRUE(succeeds(device->prefill(text)));
  const auto expected = host->finish_prompt();
  const auto actual = device->finish_prompt();
  ASSERT_TRUE(succeeds(expected.status()));
  ASSERT_TRUE(succeeds(actual.status()));
  const std::vector<float> a(actual.value().begin(), actual.value().end());
  const std::vector<float> b(expected.value().begin(), expected.value().end());
  EXPECT_LE(largest_difference(a, b), kOtherSetBound);
  EXPECT_EQ(device->attended().count, host->attended().count);
  EXPECT_NEAR(device->attended().attended_sum, host->attended().attended_sum,
              0.01 * host->attended().attended_sum);
}

TEST_F(DeviceSessionTest, RefusesWhatItCannotDo) {
  Case c;
  c.options = small_budget(Selection::kMax);
  const auto session = device_session<__half>(c, 50);
  ASSERT_NE(session, nullptr);
  EXPECT_EQ(session->finish_prompt().status().message(), "the prompt has no token");
  const std::vector<std::int32_t> bad = {1, 64};
  EXPECT_EQ(session->prefill(bad).message(), "token 1 has id 64, expected 0 to 63");
  EXPECT_EQ(session->step(-1).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(succeeds(session->prefill({})));
  EXPECT_EQ(session->num_tokens(), 0);
  EXPECT_EQ(session->prefill(tiny_text(51)).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(session->num_tokens(), 0);
  ASSERT_TRUE(succeeds(session->prefill(tiny_text(50))));
  ASSERT_TRUE(succeeds(session->finish_prompt().status()));
  EXPECT_EQ(session->step(3).status().message(), "the session has room for 50 tokens, not for 51");
  EXPECT_EQ(session->rollback(51).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(session->reserve(51).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(succeeds(session->reserve(50)));
  EXPECT_EQ(session->segments(3).status().code(), StatusCode::kOutOfRange);
}

TEST_F(DeviceSessionTest, RefusesSettingsWithoutKernels) {
  const auto& pair = models<__half>(testing::session_config());
  const auto create = [&](const SessionOptions& options, const ChunkAdapter* adapter) {
    auto session =
        DeviceSession<__half>::create(pair.gpu, DeviceScorer<__half>::mean_key(pair.gpu.config()),
                                      tiny_token_bytes, options, adapter);
    return session.ok() ? session.value()->reserve(100) : session.status();
  };
  SessionOptions every = small_budget(Selection::kLayer);
  every.chunk.refresh.kind = RefreshPolicy::Kind::kEvery;
  EXPECT_EQ(create(every, nullptr).code(), StatusCode::kUnsupported);
  SessionOptions no_block = small_budget(Selection::kMax);
  no_block.block_len = 0;
  EXPECT_EQ(create(no_block, nullptr).code(), StatusCode::kInvalidArgument);
  ChunkAdapter narrow = testing::chunk_adapter(testing::session_config());
  narrow.weight.pop_back();
  EXPECT_EQ(create(small_budget(Selection::kMax), &narrow).code(), StatusCode::kInvalidArgument);
  const ChunkAdapter adapter = testing::chunk_adapter(testing::session_config());
  every.chunk.selection = Selection::kMax;
  EXPECT_EQ(create(every, &adapter).code(), StatusCode::kUnsupported);
  EXPECT_EQ(create(small_budget(Selection::kMax), nullptr).code(), StatusCode::kOk);
}

TEST_F(DeviceSessionTest, AStepIsNoPromptsEnd) {
  Case c;
  c.options = small_budget(Selection::kMax);
  const auto session = device_session<__half>(c);
  ASSERT_NE(session, nullptr);
  ASSERT_TRUE(succeeds(session->prefill(tiny_text(20))));
  ASSERT_TRUE(succeeds(session->step(4).status()));
  EXPECT_EQ(session->finish_prompt().status().code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(succeeds(session->prefill(tiny_text(3))));
  EXPECT_TRUE(succeeds(session->finish_prompt().status()));
}

}  // namespace
}  // namespace chunkllm::cuda
