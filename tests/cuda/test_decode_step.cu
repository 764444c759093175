// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/cuda/decode_step.hpp"
#include "chunkllm/cuda/device_batch.hpp"
#include "chunkllm/cuda/prefill_block.hpp"
#include "chunkllm/cuda/stream.hpp"
#include "cuda/support/device.hpp"
#include "cuda/support/session_pair.hpp"

namespace chunkllm::cuda {
namespace {

using testing::ModelPair;
using testing::succeeds;
using T = __half;

constexpr std::int32_t kMaxTokens = 256;
constexpr std::int64_t kVocab = 64;
constexpr std::int64_t kLayers = 3;
/// A sequence in another batch has its attention cut elsewhere: last bits of f32 sums, which the
/// next rounding to 16 bits may make one unit of. See kLogitBound of test_device_session.cu.
constexpr double kLogitBound = 100.0 * 0x1p-11;

ChunkOptions chunk_options(Selection selection) {
  ChunkOptions options;
  options.budget.tokens = 64;
  options.selection = selection;
  options.local_min_tokens = 24;
  options.guards = {2, 20};
  return options;
}

/// A batch, its decode step, and what is read back of them.
class RunningBatch {
 public:
  RunningBatch(const DeviceBackbone<T>& backbone, const ChunkOptions& chunk, std::int32_t num_seqs,
               bool uses_adapter, std::int32_t max_tokens = kMaxTokens)
      : stream_(taken(Stream::create())),
        cublas_(taken(CublasHandle::create(stream_.get()))),
        scorer_(DeviceScorer<T>::mean_key(backbone.config())),
        batch_(taken(DeviceBatch<T>::create(
            backbone.config(), scorer_, options_of(chunk, num_seqs, max_tokens), stream_.get()))) {
    if (uses_adapter) {
      scorer_ = taken(DeviceScorer<T>::adapter(
          testing::qk_adapter<T>(backbone.config(), 11, {KeyPooling::kMean, true, true}),
          stream_.get()));
      batch_ = taken(DeviceBatch<T>::create(
          backbone.config(), scorer_, options_of(chunk, num_seqs, max_tokens), stream_.get()));
    }
    const ChunkAdapter boundaries = testing::chunk_adapter(backbone.config());
    adapter_.weight =
        taken(DeviceBuffer<float>::from(std::span<const float>(boundaries.weight), stream_.get()));
    adapter_.bias = boundaries.bias;
    adapter_.threshold = boundaries.threshold;
    step_ = std::make_unique<DecodeStep<T>>(
        taken(DecodeStep<T>::create(backbone, scorer_, &adapter_, batch_, cublas_, stream_.get())));
  }
  RunningBatch(const RunningBatch&) = delete;
  RunningBatch& operator=(const RunningBatch&) = delete;

  [[nodiscard]] DecodeStep<T>& step() { return *step_; }
  [[nodiscard]] DeviceBatch<T>& batch() { return batch_; }
  [[nodiscard]] cudaStream_t stream() const { return stream_.get(); }

  template <typename Value>
  void put(Value* to, const std::vector<Value>& from) {
    EXPECT_TRUE(succeeds(cudaMemcpyAsync(to, from.data(), from.size() * sizeof(Value),
                                         cudaMemcpyHostToDevice, stream_.get())));
    EXPECT_TRUE(succeeds(stream_.synchronize()));
  }
  template <typename Value>
  std::vector<Value> get(const Value* from, std::size_t count) {
    std::vector<Value> to(count);
    EXPECT_TRUE(succeeds(cudaMemcpyAsync(to.data(), from, count * sizeof(Value),
                                         cudaMemcpyDeviceToHost, stream_.get())));
    EXPECT_TRUE(succeeds(stream_.synchronize()));
    return to;
  }
  [[nodiscard]] std::size_t num_seqs() const { return static_cast<std::size_t>(batch_.num_seqs()); }
  std::vector<std::int32_t> tokens() { return get(step_->tokens(), num_seqs()); }
  std::vector<std::int32_t> num_tokens() { return get(batch_.num_tokens(), num_seqs()); }
  std::vector<float> logits() {
    return get(step_->logits(), num_seqs() * static_cast<std::size_t>(kVocab));
  }
  std::vector<std::int32_t> chunk_ends(std::int32_t seq) {
    const auto count = get(batch_.table().num_chunks + seq, 1)[0];
    return get(batch_.table().ends_of(seq), static_cast<std::size_t>(count));
  }
  /// Tokens that a sequence's next token finds listed in a layer, then where its tail begins.
  std::vector<std::int32_t> set(std::int64_t layer, std::int32_t seq) {
    const DeviceAttendedSets sets = batch_.sets(layer);
    const auto count = get(sets.num_span_tokens + seq, 1)[0];
    std::vector<std::int32_t> list = get(sets.span_tokens_of(seq), static_cast<std::size_t>(count));
    list.push_back(get(sets.tail_begin + seq, 1)[0]);
    return list;
  }

 private:
  template <typename Value>
  static Value taken(Result<Value> result) {
    EXPECT_TRUE(succeeds(result.status()));
    return std::move(result).value();
  }
  static DeviceBatchOptions options_of(const ChunkOptions& chunk, std::int32_t num_seqs,
                                       std::int32_t max_tokens) {
    DeviceBatchOptions options;
    options.num_seqs = num_seqs;
    options.max_tokens = max_tokens;
    options.chunk = chunk;
    return options;
  }

  Stream stream_;
  CublasHandle cublas_;
  DeviceScorer<T> scorer_;
  DeviceBatch<T> batch_;
  DeviceChunkAdapter adapter_;
  std::unique_ptr<DecodeStep<T>> step_;
};

/// Steps of one sequence on its own: what each read and gave.
struct Alone {
  std::vector<std::int32_t> tokens;  // read by each step
  std::vector<std::vector<float>> logits;
  std::vector<std::int32_t> chunk_ends;
};

class DecodeStepTest : public testing::DeviceTest {
 protected:
  static const DeviceBackbone<T>& backbone() {
    static const std::unique_ptr<ModelPair<T>> pair =
        ModelPair<T>::make(testing::session_config(), 1);
    return pair->gpu;
  }

  static Alone run_alone(const ChunkOptions& chunk, bool uses_adapter, std::int32_t first_token,
                         int steps) {
    RunningBatch running(backbone(), chunk, 1, uses_adapter);
    running.put(running.step().active(), std::vector<std::uint8_t>{1});
    running.put(running.step().tokens(), std::vector<std::int32_t>{first_token});
    Alone alone;
    for (int i = 0; i < steps; ++i) {
      alone.tokens.push_back(running.tokens()[0]);
      EXPECT_TRUE(succeeds(running.step().replay(running.stream())));
      alone.logits.push_back(running.logits());
    }
    alone.chunk_ends = running.chunk_ends(0);
    return alone;
  }
};

/// The largest of a row's logits less the second largest.
double lead(const std::vector<float>& logits) {
  std::vector<float> sorted = logits;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  return static_cast<double>(sorted[0]) - static_cast<double>(sorted[1]);
}

TEST_F(DecodeStepTest, SequencesOfABatchRunAsTheyDoAlone) {
  constexpr int kSteps = 230;
  const std::vector<std::int32_t> first_tokens = {63, 5, 17};
  for (const bool uses_adapter : {false, true}) {
    for (const Selection selection : {Selection::kLayer, Selection::kMax}) {
      SCOPED_TRACE("selection " + std::to_string(static_cast<int>(selection)) +
                   (uses_adapter ? ", adapters" : ", mean keys"));
      const ChunkOptions chunk = chunk_options(selection);
      std::vector<Alone> alone;
      for (const std::int32_t token : first_tokens) {
        alone.push_back(run_alone(chunk, uses_adapter, token, kSteps));
      }
      // Sequence 0 runs throughout, 1 begins later, 2 rests for a while.
      const auto is_active = [](int step, std::size_t seq) {
        return seq == 0 || (seq == 1 && step >= 37) || (seq == 2 && (step < 50 || step >= 81));
      };
      RunningBatch running(backbone(), chunk, 3, uses_adapter);
      running.put(running.step().tokens(), first_tokens);
      std::vector<std::size_t> done(3, 0);
      std::vector<bool> same(3, true);
      for (int step = 0; step < kSteps; ++step) {
        std::vector<std::uint8_t> active;
        for (std::size_t s = 0; s < 3; ++s) active.push_back(is_active(step, s) ? 1 : 0);
        running.put(running.step().active(), active);
        const std::vector<std::int32_t> before = running.tokens();
        ASSERT_TRUE(succeeds(running.step().replay(running.stream())));
        const std::vector<float> logits = running.logits();
        const std::vector<std::int32_t> after = running.tokens();
        for (std::size_t s = 0; s < 3; ++s) {
          if (active[s] == 0) {
            EXPECT_EQ(after[s], before[s]) << "a resting sequence lost its token, step " << step;
            continue;
          }
          const std::size_t i = done[s]++;
          if (!same[s]) continue;
          ASSERT_EQ(before[s], alone[s].tokens[i]) << "sequence " << s << ", its step " << i;
          double most = 0.0;
          for (std::size_t v = 0; v < kVocab; ++v) {
            const double difference = std::abs(static_cast<double>(logits[s * kVocab + v]) -
                                               static_cast<double>(alone[s].logits[i][v]));
            most = difference <= most ? most : difference;
          }
          ASSERT_LE(most, kLogitBound) << "sequence " << s << ", its step " << i;
          if (i + 1 < alone[s].tokens.size() && after[s] != alone[s].tokens[i + 1]) {
            EXPECT_LE(lead(alone[s].logits[i]), 2.0 * kLogitBound)
                << "sequence " << s << " went another way without a near-tie, step " << i;
            std::printf("sequence %zu goes another way at a near-tie, step %zu\n", s, i);
            same[s] = false;
          }
        }
      }
      const std::vector<std::int32_t> lengths = running.num_tokens();
      for (std::size_t s = 0; s < 3; ++s) {
        EXPECT_EQ(lengths[s], static_cast<std::int32_t>(done[s]));
        if (!same[s]) continue;
        std::vector<std::int32_t> expected = alone[s].chunk_ends;
        std::erase_if(expected, [&](std::int32_t end) { return end > lengths[s]; });
        EXPECT_EQ(running.chunk_ends(static_cast<std::int32_t>(s)), expected) << "sequence " << s;
        EXPECT_GT(expected.size(), 5U) << "too few chunks for the test to mean anything";
      }
    }
  }
}

TEST_F(DecodeStepTest, GraphsHaveTheBitsOfTheirKernelsOverHundredsOfSteps) {
  constexpr int kSteps = 220;
  for (const Selection selection : {Selection::kLayer, Selection::kVote}) {
    std::vector<std::vector<std::int32_t>> integers[2];
    std::vector<float> logits[2];
    for (const int way : {0, 1}) {
      RunningBatch running(backbone(), chunk_options(selection), 3, /*uses_adapter=*/true);
      running.put(running.step().active(), std::vector<std::uint8_t>{1, 1, 0});
      running.put(running.step().tokens(), std::vector<std::int32_t>{63, 5, 17});
      for (int step = 0; step < kSteps; ++step) {  // no word from the host in between
        ASSERT_TRUE(succeeds(way == 0 ? running.step().enqueue(running.stream())
                                      : running.step().replay(running.stream())));
      }
      integers[way].push_back(running.tokens());
      integers[way].push_back(running.num_tokens());
      integers[way].push_back(running.get(running.step().counters(), 9));
      for (std::int32_t seq = 0; seq < 3; ++seq) {
        integers[way].push_back(running.chunk_ends(seq));
        for (std::int64_t layer = 0; layer < kLayers; ++layer) {
          integers[way].push_back(running.set(layer, seq));
        }
      }
      const std::vector<float> all = running.logits();
      logits[way].assign(all.begin(), all.begin() + 2 * kVocab);  // the third has none
      EXPECT_EQ(running.num_tokens(), (std::vector<std::int32_t>{kSteps, kSteps, 0}));
      EXPECT_EQ(running.tokens()[2], 17);
      EXPECT_TRUE(running.chunk_ends(2).empty());
    }
    EXPECT_EQ(integers[0], integers[1]);
    EXPECT_EQ(logits[0], logits[1]);
  }
}

TEST_F(DecodeStepTest, ChunksEndWhereTheProbabilitiesSay) {
  constexpr int kSteps = 200;
  const ChunkOptions chunk = chunk_options(Selection::kMax);
  RunningBatch running(backbone(), chunk, 2, /*uses_adapter=*/false);
  running.put(running.step().active(), std::vector<std::uint8_t>{1, 1});
  running.put(running.step().tokens(), std::vector<std::int32_t>{63, 9});
  const ChunkAdapter adapter = testing::chunk_adapter(testing::session_config());
  std::vector<ChunkTable> tables(2);
  std::vector<std::int32_t> counters(6);
  for (std::int32_t step = 0; step < kSteps; ++step) {
    ASSERT_TRUE(succeeds(running.step().replay(running.stream())));
    const std::vector<float> probabilities = running.get(running.step().probabilities(), 2);
    const std::vector<std::uint8_t> flags = running.get(running.step().boundary_flags(), 2);
    const std::vector<std::int32_t> triggers = running.get(running.step().triggers(), 2);
    for (std::size_t s = 0; s < 2; ++s) {
      const BoundaryDecision made = decide_boundary(
          step + 1 - tables[s].open_begin(), probabilities[s] > adapter.threshold, chunk.guards);
      if (made.boundary) tables[s].close(step + 1);
      counters[3 * s] += made.boundary ? 1 : 0;
      counters[3 * s + 1] += made.forced ? 1 : 0;
      counters[3 * s + 2] += made.boundary ? 1 : 0;
      ASSERT_EQ(flags[s], made.forced ? 2 : made.boundary ? 1 : 0) << "step " << step;
      ASSERT_EQ(triggers[s], made.boundary ? step : -1) << "step " << step;
    }
  }
  for (std::size_t s = 0; s < 2; ++s) {
    const std::vector<std::int64_t>& ends = tables[s].ends();
    EXPECT_EQ(running.chunk_ends(static_cast<std::int32_t>(s)),
              std::vector<std::int32_t>(ends.begin(), ends.end()));
  }
  EXPECT_EQ(running.get(running.step().counters(), 6), counters);
}

TEST_F(DecodeStepTest, SharedSetsReachAllLayersAndFitTheBudget) {
  RunningBatch running(backbone(), chunk_options(Selection::kMax), 2, /*uses_adapter=*/false);
  running.put(running.step().active(), std::vector<std::uint8_t>{1, 1});
  running.put(running.step().tokens(), std::vector<std::int32_t>{63, 9});
  bool has_list = false;
  for (int step = 0; step < 180; ++step) {
    ASSERT_TRUE(succeeds(running.step().replay(running.stream())));
    for (std::int32_t seq = 0; seq < 2; ++seq) {
      const std::vector<std::int32_t> set = running.set(0, seq);
      EXPECT_EQ(running.set(1, seq), set) << "step " << step;
      EXPECT_EQ(running.set(2, seq), set) << "step " << step;
      EXPECT_TRUE(std::is_sorted(set.begin(), set.end())) << "step " << step;
      if (running.get(running.step().triggers() + seq, 1)[0] < 0) continue;
      const std::int32_t attended =
          static_cast<std::int32_t>(set.size()) - 1 + step + 1 - set.back();
      // Chunk 0 and the local window are attended whatever the budget: 20 and 24 + 20 tokens.
      EXPECT_LE(attended, std::max(64, 20 + 24 + 20)) << "step " << step;
      has_list = has_list || set.size() > 1;
    }
  }
  EXPECT_TRUE(has_list);
}

TEST_F(DecodeStepTest, AFullSequenceSitsOut) {
  RunningBatch running(backbone(), chunk_options(Selection::kLayer), 2, /*uses_adapter=*/false,
                       /*max_tokens=*/40);
  running.put(running.step().active(), std::vector<std::uint8_t>{1, 1});
  running.put(running.step().tokens(), std::vector<std::int32_t>{63, 9});
  for (int step = 0; step < 40; ++step) {
    ASSERT_TRUE(succeeds(running.step().replay(running.stream())));
  }
  const std::vector<std::int32_t> tokens = running.tokens();
  const std::vector<std::int32_t> ends = running.chunk_ends(1);
  for (int step = 0; step < 5; ++step) {
    ASSERT_TRUE(succeeds(running.step().replay(running.stream())));
  }
  EXPECT_EQ(running.num_tokens(), (std::vector<std::int32_t>{40, 40}));
  EXPECT_EQ(running.tokens(), tokens);
  EXPECT_EQ(running.chunk_ends(1), ends);
}

TEST_F(DecodeStepTest, LayersOfTheirOwnRefreshAtBoundariesOnly) {
  ChunkOptions chunk = chunk_options(Selection::kLayer);
  chunk.refresh.kind = RefreshPolicy::Kind::kStride;
  chunk.refresh.stride = 4;
  auto stream = Stream::create();
  ASSERT_TRUE(succeeds(stream.status()));
  auto cublas = CublasHandle::create(stream.value().get());
  ASSERT_TRUE(succeeds(cublas.status()));
  const auto scorer = DeviceScorer<T>::mean_key(backbone().config());
  DeviceBatchOptions options;
  options.max_tokens = 64;
  options.chunk = chunk;
  auto batch = DeviceBatch<T>::create(backbone().config(), scorer, options, stream.value().get());
  ASSERT_TRUE(succeeds(batch.status()));
  const auto step = DecodeStep<T>::create(backbone(), scorer, nullptr, batch.value(),
                                          cublas.value(), stream.value().get());
  EXPECT_EQ(step.status().code(), StatusCode::kUnsupported);
  options.max_tokens = 0;
  EXPECT_EQ(DeviceBatch<T>::create(backbone().config(), scorer, options, stream.value().get())
                .status()
                .code(),
            StatusCode::kInvalidArgument);
}

/// A prompt read in blocks into the middle of a batch, then decoded beside an idle neighbour.
TEST_F(DecodeStepTest, PrefillFillsASequenceBeyondTheFirst) {
  const std::vector<std::int32_t> text = testing::tiny_text(150);
  std::vector<std::vector<float>> logits[2];
  std::vector<std::int32_t> ends[2];
  for (const std::int32_t seq : {0, 1}) {
    RunningBatch running(backbone(), chunk_options(Selection::kLayer), seq + 1,
                         /*uses_adapter=*/true);
    auto cublas = CublasHandle::create(running.stream());
    ASSERT_TRUE(succeeds(cublas.status()));
    const auto scorer = DeviceScorer<T>::adapter(
        testing::qk_adapter<T>(backbone().config(), 11, {KeyPooling::kMean, true, true}),
        running.stream());
    ASSERT_TRUE(succeeds(scorer.status()));
    auto block = PrefillBlock<T>::create(backbone(), scorer.value(), running.batch(),
                                         running.step(), cublas.value(), 100, running.stream());
    ASSERT_TRUE(succeeds(block.status()));
    std::vector<std::int32_t> chunk_ends;
    for (std::int32_t t = 10; t < 150; t += 10) chunk_ends.push_back(t);
    std::vector<std::int32_t> triggers;
    for (const std::int32_t end : chunk_ends) {
      if (end > 64) triggers.push_back(end - 1);
    }
    for (std::int32_t first = 0; first < 150; first += 75) {
      const auto part = [&](const std::vector<std::int32_t>& all, std::int32_t from,
                            std::int32_t to) {
        const auto begin = std::lower_bound(all.begin(), all.end(), from);
        return std::span<const std::int32_t>(begin, std::lower_bound(begin, all.end(), to));
      };
      TokenBlockPlan plan;
      plan.tokens =
          std::span<const std::int32_t>(text).subspan(static_cast<std::size_t>(first), 75);
      plan.seq = seq;
      plan.first_token = first;
      plan.first_chunk = first / 10;
      plan.new_ends = part(chunk_ends, first + 1, first + 76);
      plan.triggers = part(triggers, first, first + 75);
      plan.sets = TokenBlockPlan::Sets::kLayerLocal;
      ASSERT_TRUE(succeeds(block.value().run(plan, running.stream())));
    }
    std::vector<std::uint8_t> active(running.num_seqs(), 0);
    active.back() = 1;
    running.put(running.step().active(), active);
    running.put(running.step().tokens() + seq, std::vector<std::int32_t>{7});
    for (int step = 0; step < 30; ++step) {
      ASSERT_TRUE(succeeds(running.step().replay(running.stream())));
      const std::vector<float> all = running.logits();
      logits[seq].emplace_back(all.end() - kVocab, all.end());
    }
    EXPECT_EQ(running.num_tokens().back(), 180);
    ends[seq] = running.chunk_ends(seq);
  }
  // An idle neighbour takes no part in how attention is cut: the same bits.
  EXPECT_EQ(logits[1], logits[0]);
  EXPECT_EQ(ends[1], ends[0]);
}

}  // namespace
}  // namespace chunkllm::cuda
