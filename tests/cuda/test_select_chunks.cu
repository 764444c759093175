// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/kernels/join_scores.cuh"
#include "chunkllm/kernels/select_chunks.cuh"
#include "cuda/support/device.hpp"
#include "cuda/support/device_chunks.hpp"

namespace chunkllm::kernels {
namespace {

using testing::DeviceBuffer;
using testing::DeviceChunks;
using testing::DeviceTriggerList;
using testing::succeeds;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr std::int32_t kPoisoned = -1;  // of `DeviceBuffer`, and what kEverything is: see below

std::vector<Budget> budgets(std::int64_t candidates, std::int64_t past) {
  std::vector<Budget> list;
  for (const std::int64_t tokens :
       {std::int64_t{0}, std::int64_t{100}, std::int64_t{2048}, past / 3, past - 1, past}) {
    list.push_back({Budget::Kind::kTokens, tokens, 1.0, 0});
  }
  for (const double share : {0.01, 0.1, 0.75}) list.push_back({Budget::Kind::kShare, 0, share, 0});
  for (const std::int64_t chunks : {std::int64_t{0}, std::int64_t{1}, std::int64_t{7},
                                    candidates / 2, candidates - 1, candidates}) {
    list.push_back({Budget::Kind::kChunks, 0, 1.0, std::max<std::int64_t>(chunks, 0)});
  }
  return list;
}

constexpr int kNumPatterns = 8;
const char* const kPatterns[kNumPatterns] = {"skewed shares", "all equal",  "few values",
                                             "with NaN",      "infinities", "zeros of both signs",
                                             "all NaN",       "both signs"};

std::vector<float> pattern(int kind, std::size_t size, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(0.0F, 1.0F);
  std::vector<float> scores(size);
  for (float& score : scores) {
    const float u = uniform(random);
    switch (kind) {
      case 0: score = std::exp2(-30.0F * u); break;
      case 1: score = 0.25F; break;
      case 2: score = std::floor(5.0F * u) / 100.0F; break;
      case 3: score = u < 0.1F ? kNaN : u * 0.02F; break;
      case 4: score = u < 0.1F ? kInf : u < 0.2F ? -kInf : u; break;
      case 5: score = u < 0.4F ? -0.0F : u < 0.8F ? 0.0F : 1e-40F; break;
      case 6: score = kNaN; break;
      default: score = u - 0.5F; break;
    }
  }
  return scores;
}

struct Selected {
  std::int32_t num_chosen = 0;
  std::int32_t num_nan = 0;
  std::vector<std::int32_t> chosen;
};

Selected expected_selection(const ChunkTable& table, std::int32_t trigger,
                            const LocalWindow& window, const Budget& budget, float threshold,
                            const float* scores) {
  Selected result;
  const CandidateRange range =
      chunkllm::candidate_range(table, trigger, window.min_tokens, window.min_chunks);
  if (chunkllm::budget_holds_all(range, trigger, budget)) {
    result.num_chosen = kEverything;
    return result;
  }
  const ChunkOrder order(
      std::span<const float>(scores, static_cast<std::size_t>(range.num_candidates())), threshold);
  result.num_nan = static_cast<std::int32_t>(order.num_nan());
  for (const std::int64_t chunk : take_within_budget(table, range, trigger, budget, order)) {
    result.chosen.push_back(static_cast<std::int32_t>(chunk));
  }
  result.num_chosen = static_cast<std::int32_t>(result.chosen.size());
  return result;
}

/// Outputs of one launch, and how they compare with the CPU.
class SelectRun {
 public:
  SelectRun(const DeviceChunks& chunks, const DeviceTriggerList& triggers,
            const LocalWindow& window, std::int64_t score_stride)
      : chunks_(chunks),
        triggers_(triggers),
        window_(window),
        score_stride_(score_stride),
        host_scores_(triggers.count() * static_cast<std::size_t>(score_stride)),
        scores_(host_scores_.size(), 1),
        chosen_(triggers.count() * static_cast<std::size_t>(chunks.max_chunks()), 1),
        num_chosen_(triggers.count()),
        num_nan_(triggers.count()) {}

  [[nodiscard]] float* row(std::size_t i) {
    return host_scores_.data() + i * static_cast<std::size_t>(score_stride_);
  }
  void upload() { scores_.upload(host_scores_); }

  [[nodiscard]] SelectChunksArgs args(const Budget& budget, float threshold) const {
    SelectChunksArgs args;
    args.scores = scores_.data();
    args.score_stride = score_stride_;
    args.table = chunks_.view();
    args.triggers = triggers_.view();
    args.window = window_;
    args.budget = budget;
    args.threshold = threshold;
    args.chosen = chosen_.data();
    args.max_chosen = chunks_.max_chunks();
    args.num_chosen = num_chosen_.data();
    args.num_nan = num_nan_.data();
    return args;
  }
  void poison() {
    chosen_.poison();
    const std::vector<std::int32_t> untouched(triggers_.count(), kUntouched);
    num_chosen_.upload(untouched);
    num_nan_.upload(untouched);
    ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // the default stream orders no other
  }
  [[nodiscard]] std::vector<Selected> download() const {
    const std::vector<std::int32_t> chosen = chosen_.download();
    const std::vector<std::int32_t> num_chosen = num_chosen_.download();
    const std::vector<std::int32_t> num_nan = num_nan_.download();
    std::vector<Selected> results(triggers_.count());
    for (std::size_t i = 0; i < results.size(); ++i) {
      results[i].num_chosen = num_chosen[i];
      results[i].num_nan = num_nan[i];
      const auto first = chosen.begin() + static_cast<std::ptrdiff_t>(i) * chunks_.max_chunks();
      const std::int32_t size = std::clamp(num_chosen[i], 0, chunks_.max_chunks());
      results[i].chosen.assign(first, first + size);
      EXPECT_TRUE(std::all_of(first + size, first + chunks_.max_chunks(),
                              [](std::int32_t c) { return c == kPoisoned; }))
          << "written behind the chosen chunks of trigger " << i;
    }
    return results;
  }
  void expect_equals_cpu(const Budget& budget, float threshold) {
    const std::vector<Selected> got = download();
    for (std::size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE("trigger " + std::to_string(i) + " at token " +
                   std::to_string(triggers_.token(i)));
      if (triggers_.token(i) < 0) {
        EXPECT_EQ(got[i].num_chosen, kUntouched);
        EXPECT_EQ(got[i].num_nan, kUntouched);
        continue;
      }
      const Selected expected = expected_selection(
          chunks_.table(triggers_.seq(i)), triggers_.token(i), window_, budget, threshold, row(i));
      EXPECT_EQ(got[i].num_chosen, expected.num_chosen);
      EXPECT_EQ(got[i].num_nan, expected.num_nan);
      EXPECT_TRUE(got[i].chosen == expected.chosen) << difference(got[i], expected);
    }
  }
  [[nodiscard]] bool intact() const {
    return scores_.intact() && chosen_.intact() && num_chosen_.intact() && num_nan_.intact();
  }

  static constexpr std::int32_t kUntouched = -99;

 private:
  static std::string difference(const Selected& got, const Selected& expected) {
    const auto [a, b] = std::mismatch(got.chosen.begin(), got.chosen.end(), expected.chosen.begin(),
                                      expected.chosen.end());
    return "chosen chunks differ first at place " + std::to_string(a - got.chosen.begin()) +
           ": got " + (a == got.chosen.end() ? "none" : std::to_string(*a)) + ", expected " +
           (b == expected.chosen.end() ? "none" : std::to_string(*b));
  }

  const DeviceChunks& chunks_;
  const DeviceTriggerList& triggers_;
  LocalWindow window_;
  std::int64_t score_stride_;
  std::vector<float> host_scores_;
  DeviceBuffer<float> scores_;
  DeviceBuffer<std::int32_t> chosen_;
  DeviceBuffer<std::int32_t> num_chosen_;
  DeviceBuffer<std::int32_t> num_nan_;
};

using SelectChunks = testing::DeviceTest;

TEST_F(SelectChunks, EqualsTheCpuAtAllSizesBudgetsAndScores) {
  // A window of one chunk: a trigger that ends chunk n + 1 has n candidates.
  const LocalWindow window = {1, 1};
  std::mt19937 random(static_cast<std::uint32_t>(seed()));
  for (const std::int32_t candidates :
       {-2, -1, 0, 1, 2, 3, 33, 255, 256, 257, 1023, 1024, 1025, 5000, 30000}) {
    SCOPED_TRACE(std::to_string(candidates) + " candidates, seed " + std::to_string(seed()));
    const std::int32_t num_chunks = candidates + 2;
    const DeviceChunks chunks(std::vector<std::int32_t>(kNumPatterns, num_chunks), num_chunks + 3,
                              random);
    std::vector<std::int32_t> tokens;
    std::vector<std::int32_t> seqs;
    for (std::int32_t s = 0; s < kNumPatterns; ++s) {
      tokens.push_back(chunks.last_boundary(static_cast<std::size_t>(s)));
      seqs.push_back(s);
    }
    const DeviceTriggerList triggers(tokens, seqs);
    SelectRun run(chunks, triggers, window, num_chunks + 4);
    for (int kind = 0; kind < kNumPatterns; ++kind) {
      const std::vector<float> scores =
          pattern(kind, static_cast<std::size_t>(num_chunks + 4), random);
      std::copy(scores.begin(), scores.end(), run.row(static_cast<std::size_t>(kind)));
    }
    run.upload();
    for (const Budget& budget : budgets(candidates, chunks.table(0).open_begin())) {
      for (const float threshold : {0.0F, 0.01F, kNaN}) {
        if (std::isnan(threshold) && candidates > 300) continue;
        SCOPED_TRACE("budget kind " + std::to_string(static_cast<int>(budget.kind)) + ", tokens " +
                     std::to_string(budget.tokens) + ", share " + std::to_string(budget.share) +
                     ", chunks " + std::to_string(budget.chunks) + ", threshold " +
                     std::to_string(threshold) +
                     "; trigger i has scores of pattern i: " + kPatterns[0] + ", ...");
        run.poison();
        ASSERT_TRUE(succeeds(launch_select_chunks(run.args(budget, threshold), stream_)));
        run.expect_equals_cpu(budget, threshold);
        if (HasFailure()) return;
      }
    }
    EXPECT_TRUE(run.intact());
  }
}

/// Many triggers of three sequences, some of them inactive.
class ManyTriggers {
 public:
  explicit ManyTriggers(std::uint64_t seed)
      : random_(static_cast<std::uint32_t>(seed)),
        chunks_({700, 3, 90}, 733, random_),
        triggers_(tokens(), seqs()),
        run_(chunks_, triggers_, LocalWindow{}, 733) {
    for (std::size_t i = 0; i < triggers_.count(); ++i) {
      const std::vector<float> scores = pattern(static_cast<int>(i) % kNumPatterns, 733, random_);
      std::copy(scores.begin(), scores.end(), run_.row(i));
    }
    run_.upload();
    run_.poison();
  }
  [[nodiscard]] SelectRun& run() { return run_; }

 private:
  static constexpr std::int32_t kCount = 301;
  static std::vector<std::int32_t> seqs() {
    std::vector<std::int32_t> seqs;
    for (std::int32_t i = 0; i < kCount; ++i) seqs.push_back(i % 7 == 3 ? 1 : i % 5 == 2 ? 2 : 0);
    return seqs;
  }
  std::vector<std::int32_t> tokens() {
    std::vector<std::int32_t> tokens;
    for (const std::int32_t seq : seqs()) {
      const std::int64_t length = chunks_.table(static_cast<std::size_t>(seq)).open_begin() + 9;
      const auto token = static_cast<std::int32_t>(random_() % static_cast<std::uint32_t>(length));
      tokens.push_back(tokens.size() % 11 == 5 ? -1 : token);
    }
    return tokens;
  }

  std::mt19937 random_;
  DeviceChunks chunks_;
  DeviceTriggerList triggers_;
  SelectRun run_;
};

constexpr Budget kTestBudget = {Budget::Kind::kTokens, 1500, 1.0, 0};

TEST_F(SelectChunks, EachTriggerSeesTheChunksClosedByThen) {
  ManyTriggers many(seed());
  for (const Budget& budget : {kTestBudget, Budget{Budget::Kind::kShare, 0, 0.3, 0},
                               Budget{Budget::Kind::kChunks, 0, 1.0, 12}}) {
    many.run().poison();
    ASSERT_TRUE(succeeds(launch_select_chunks(many.run().args(budget, 0.01F), stream_)));
    many.run().expect_equals_cpu(budget, 0.01F);
  }
  EXPECT_TRUE(many.run().intact());
}

TEST_F(SelectChunks, RunsInAGraphOverAndOver) {
  ManyTriggers many(seed());
  replay_as_graph(
      [&](cudaStream_t stream) {
        return launch_select_chunks(many.run().args(kTestBudget, 0.0F), stream);
      },
      3,
      [&](const auto& replay) {
        many.run().poison();
        replay();
        many.run().expect_equals_cpu(kTestBudget, 0.0F);
      });
}

TEST_F(SelectChunks, TwoStreamsDoNotDisturbEachOther) {
  ManyTriggers a(seed());
  ManyTriggers b(seed() + 1);
  cudaStream_t other = nullptr;
  ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking)));
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(succeeds(launch_select_chunks(a.run().args(kTestBudget, 0.0F), stream_)));
    EXPECT_TRUE(succeeds(launch_select_chunks(b.run().args(kTestBudget, 0.0F), other)));
  }
  a.run().expect_equals_cpu(kTestBudget, 0.0F);
  b.run().expect_equals_cpu(kTestBudget, 0.0F);
  EXPECT_TRUE(succeeds(cudaStreamDestroy(other)));
}

TEST(SelectChunksRefusals, NameWhatIsExpected) {
  std::int32_t ints[4] = {};
  float floats[4] = {};
  SelectChunksArgs args;
  EXPECT_TRUE(launch_select_chunks(args, nullptr).ok()) << "no trigger, nothing to do";
  args.table = {ints, ints, 1, 4};
  args.triggers = {ints, nullptr, 1};
  args.scores = floats;
  args.score_stride = 3;
  args.chosen = ints;
  args.num_chosen = ints;
  args.num_nan = ints;
  args.max_chosen = 3;
  EXPECT_EQ(launch_select_chunks(args, nullptr).code(), StatusCode::kInvalidArgument);
  args.max_chosen = 4;
  args.score_stride = 2;
  EXPECT_EQ(launch_select_chunks(args, nullptr).code(), StatusCode::kInvalidArgument);
  args.score_stride = 3;
  args.triggers.count = 2;  // and one sequence
  EXPECT_EQ(launch_select_chunks(args, nullptr).code(), StatusCode::kInvalidArgument);
  args.triggers.count = 1;
  args.budget.kind = Budget::Kind::kShare;
  for (const double share : {std::numeric_limits<double>::quiet_NaN(), -0.5, 0.0, 1.5}) {
    args.budget.share = share;
    EXPECT_EQ(launch_select_chunks(args, nullptr).code(), StatusCode::kInvalidArgument) << share;
  }
}

using JoinScores = testing::DeviceTest;

TEST_F(JoinScores, EqualsTheCpuForEachSelection) {
  std::mt19937 random(static_cast<std::uint32_t>(seed()));
  constexpr std::int32_t kLayers = 11;
  constexpr std::int64_t kStride = 5013;
  constexpr std::int64_t kJoinedStride = 5017;
  const DeviceChunks chunks({5000, 300, 4, 2}, 5003, random);
  const DeviceTriggerList triggers(
      {chunks.last_boundary(0), -1, chunks.last_boundary(1) + 3, chunks.last_boundary(0) / 2,
       chunks.last_boundary(2), chunks.last_boundary(3)},
      {0, 1, 1, 0, 2, 3});
  std::vector<float> scores(static_cast<std::size_t>(kLayers * kStride) * triggers.count());
  for (std::int32_t layer = 0; layer < kLayers; ++layer) {
    for (std::size_t i = 0; i < triggers.count(); ++i) {
      // Shares mostly; ties, NaN and infinities in some rows.
      const int kind = i == 2 ? layer % 6 : layer == 4 ? 2 : 0;
      const std::vector<float> row = pattern(kind, static_cast<std::size_t>(kStride), random);
      std::copy(row.begin(), row.end(),
                scores.begin() + static_cast<std::ptrdiff_t>(
                                     (static_cast<std::size_t>(layer) * triggers.count() + i) *
                                     static_cast<std::size_t>(kStride)));
    }
  }
  const DeviceBuffer<float> device_scores(scores);
  std::vector<std::uint8_t> some(kLayers, 1);
  some[0] = some[5] = some[10] = 0;
  const DeviceBuffer<std::uint8_t> some_layers(some);
  const DeviceBuffer<std::uint8_t> no_layers(std::vector<std::uint8_t>(kLayers, 0));
  DeviceBuffer<float> joined(triggers.count() * static_cast<std::size_t>(kJoinedStride));
  const std::size_t bytes = join_scores_workspace_bytes(
      Selection::kVote, kLayers, static_cast<std::int32_t>(triggers.count()));
  const DeviceBuffer<unsigned char> workspace(bytes);
  for (int layers = 0; layers < 3; ++layers) {
    for (const Selection selection :
         {Selection::kMax, Selection::kLayer, Selection::kSoft, Selection::kVote}) {
      for (const float threshold : {0.0F, 0.01F}) {
        SCOPED_TRACE("layers " + std::to_string(layers) + ", selection " +
                     std::to_string(static_cast<int>(selection)) + ", threshold " +
                     std::to_string(threshold));
        JoinScoresArgs args;
        args.scores = device_scores.data();
        args.score_stride = kStride;
        args.layer_selectable = layers == 0   ? nullptr
                                : layers == 1 ? some_layers.data()
                                              : no_layers.data();
        args.num_layers = kLayers;
        args.selection = selection;
        args.table = chunks.view();
        args.triggers = triggers.view();
        args.budget = {Budget::Kind::kShare, 0, 0.1, 0};
        args.threshold = threshold;
        args.joined = joined.data();
        args.joined_stride = kJoinedStride;
        args.workspace = workspace.data();
        args.workspace_bytes = bytes;
        joined.poison();
        ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));
        ASSERT_TRUE(succeeds(launch_join_scores(args, stream_)));
        const std::vector<float> got = joined.download();
        joined.poison();
        ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));
        replay_as_graph([&](cudaStream_t stream) { return launch_join_scores(args, stream); }, 2);
        const std::vector<float> again = joined.download();
        for (std::size_t i = 0; i < triggers.count(); ++i) {
          const std::int32_t trigger = triggers.token(i);
          CandidateRange range;
          std::vector<float> expected;
          if (trigger >= 0) {
            const ChunkTable& table = chunks.table(triggers.seq(i));
            range = chunkllm::candidate_range(table, trigger, 64, 2);
            std::vector<std::vector<float>> by_layer;
            for (std::size_t layer = 0; layer < kLayers; ++layer) {
              if (layers == 2 || (layers == 1 && some[layer] == 0)) continue;
              const auto first =
                  scores.begin() + static_cast<std::ptrdiff_t>((layer * triggers.count() + i) *
                                                               static_cast<std::size_t>(kStride));
              by_layer.emplace_back(first, first + range.num_candidates());
            }
            expected =
                join_layers(by_layer, selection, table, range, trigger, args.budget, threshold);
          }
          for (std::size_t c = 0; c < static_cast<std::size_t>(kJoinedStride); ++c) {
            const std::size_t at = i * static_cast<std::size_t>(kJoinedStride) + c;
            const bool equal = c < expected.size() && !std::isnan(expected[c])
                                   ? got[at] == expected[c] && again[at] == expected[c]
                                   : std::isnan(got[at]) && std::isnan(again[at]);
            ASSERT_TRUE(equal) << "trigger " << i << ", candidate " << c << " of "
                               << expected.size() << ": " << got[at] << ", again " << again[at]
                               << ", expected " << (c < expected.size() ? expected[c] : kNaN)
                               << " (poison is NaN)";
          }
        }
      }
    }
  }
  EXPECT_TRUE(joined.intact());
  EXPECT_TRUE(workspace.intact());
}

TEST(JoinScoresRefusals, NameWhatIsExpected) {
  std::int32_t ints[4] = {};
  float floats[4] = {};
  JoinScoresArgs args;
  EXPECT_TRUE(launch_join_scores(args, nullptr).ok()) << "no trigger, nothing to do";
  args.table = {ints, ints, 1, 4};
  args.triggers = {ints, nullptr, 1};
  args.scores = floats;
  args.joined = floats;
  args.score_stride = 3;
  args.joined_stride = 3;
  args.num_layers = 2;
  args.selection = Selection::kVote;  // without its workspace
  EXPECT_EQ(launch_join_scores(args, nullptr).code(), StatusCode::kInvalidArgument);
  args.selection = Selection::kMax;
  args.joined_stride = 2;
  EXPECT_EQ(launch_join_scores(args, nullptr).code(), StatusCode::kInvalidArgument);
  args.joined_stride = 3;
  args.budget.kind = Budget::Kind::kShare;
  args.budget.share = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(launch_join_scores(args, nullptr).code(), StatusCode::kInvalidArgument);
  args.budget = {};
  args.triggers.maybe_seqs = ints;
  args.triggers.count = 65536;
  EXPECT_EQ(launch_join_scores(args, nullptr).code(), StatusCode::kUnsupported);
  args.triggers.count = 1;
  args.num_layers = 65536;
  EXPECT_EQ(launch_join_scores(args, nullptr).code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace chunkllm::kernels
