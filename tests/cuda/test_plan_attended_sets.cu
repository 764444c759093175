// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/kernels/plan_attended_sets.cuh"
#include "cuda/support/device.hpp"
#include "cuda/support/device_chunks.hpp"

namespace chunkllm::kernels {
namespace {

using testing::DeviceBuffer;
using testing::DeviceChunks;
using testing::DeviceTriggerList;
using testing::succeeds;

constexpr std::int32_t kUntouched = -99;
constexpr LocalWindow kWindow = {64, 2};

/// The sets on the device, with what they were before a launch.
struct Sets {
  Sets(std::int32_t num_sets, std::int32_t span_capacity)
      : capacity(span_capacity),
        span_tokens(static_cast<std::size_t>(num_sets) * static_cast<std::size_t>(span_capacity),
                    1),
        num_span_tokens(static_cast<std::size_t>(num_sets)),
        tail_begin(static_cast<std::size_t>(num_sets)) {
    clear();
  }
  void clear() {
    span_tokens.upload(std::vector<std::int32_t>(span_tokens.size(), kUntouched));
    num_span_tokens.upload(std::vector<std::int32_t>(num_span_tokens.size(), kUntouched));
    tail_begin.upload(std::vector<std::int32_t>(tail_begin.size(), kUntouched));
    ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // the default stream orders no other
  }
  [[nodiscard]] cuda::DeviceAttendedSets view() const {
    cuda::DeviceAttendedSets view;
    view.span_tokens = span_tokens.data();
    view.num_span_tokens = num_span_tokens.data();
    view.tail_begin = tail_begin.data();
    view.num_sets = static_cast<std::int32_t>(tail_begin.size());
    view.span_capacity = capacity;
    return view;
  }
  [[nodiscard]] bool intact() const {
    return span_tokens.intact() && num_span_tokens.intact() && tail_begin.intact();
  }

  std::int32_t capacity;
  DeviceBuffer<std::int32_t> span_tokens;
  DeviceBuffer<std::int32_t> num_span_tokens;
  DeviceBuffer<std::int32_t> tail_begin;
};

/// A selection of random chunks for each trigger.
class PlanRun {
 public:
  PlanRun(const std::vector<std::int32_t>& num_chunks, std::uint64_t seed, double density)
      : random_(static_cast<std::uint32_t>(seed)),
        chunks_(num_chunks, *std::max_element(num_chunks.begin(), num_chunks.end()) + 3, random_),
        triggers_(tokens(num_chunks.size()), seqs(num_chunks.size())),
        chosen_(triggers_.count() * static_cast<std::size_t>(chunks_.max_chunks())),
        num_chosen_(triggers_.count()),
        tail_tokens_(triggers_.count()) {
    std::vector<std::int32_t> chosen;
    std::vector<std::int32_t> counts;
    for (std::size_t i = 0; i < triggers_.count(); ++i) {
      const CandidateRange range = this->range(i, triggers_.token(i));
      host_chosen_.emplace_back();
      for (std::int64_t c = 1; c < range.end; ++c) {
        if (static_cast<double>(random_()) < density * 4294967296.0) {
          host_chosen_.back().push_back(c);
        }
      }
      everything_.push_back(i % 5 == 3);
      counts.push_back(everything_.back() ? kEverything
                                          : static_cast<std::int32_t>(host_chosen_.back().size()));
      chosen.insert(chosen.end(), host_chosen_.back().begin(), host_chosen_.back().end());
      chosen.resize((i + 1) * static_cast<std::size_t>(chunks_.max_chunks()), 1 << 30);
      const std::int32_t back = static_cast<std::int32_t>(random_() % 400U);
      host_tail_tokens_.push_back(
          i % 3 == 1 ? -1 : std::max(triggers_.token(i) - (i % 3 == 0 ? back : 64), 0));
    }
    chosen_.upload(chosen);
    num_chosen_.upload(counts);
    tail_tokens_.upload(host_tail_tokens_);
  }

  [[nodiscard]] const DeviceChunks& chunks() const { return chunks_; }
  [[nodiscard]] const DeviceTriggerList& triggers() const { return triggers_; }
  [[nodiscard]] std::int32_t longest() const {
    std::int32_t longest = 0;
    for (std::size_t i = 0; i < triggers_.count(); ++i) {
      longest = std::max(longest, triggers_.token(i) + 1);
    }
    return longest;
  }
  [[nodiscard]] PlanArgs args(const Sets& sets) const {
    PlanArgs args;
    args.table = chunks_.view();
    args.triggers = triggers_.view();
    args.window = kWindow;
    args.chosen = chosen_.data();
    args.max_chosen = chunks_.max_chunks();
    args.num_chosen = num_chosen_.data();
    args.sets = sets.view();
    return args;
  }
  [[nodiscard]] const std::int32_t* tail_tokens() const { return tail_tokens_.data(); }

  /// \param set_of  row of a trigger's set
  template <typename SetOf>
  void expect_equals_cpu(const Sets& sets, bool looks, const SetOf& set_of) const {
    const std::vector<std::int32_t> tokens = sets.span_tokens.download();
    const std::vector<std::int32_t> counts = sets.num_span_tokens.download();
    const std::vector<std::int32_t> tails = sets.tail_begin.download();
    for (std::size_t i = 0; i < triggers_.count(); ++i) {
      const std::int32_t trigger = triggers_.token(i);
      SCOPED_TRACE("trigger " + std::to_string(i) + " at token " + std::to_string(trigger) +
                   (everything_[i] ? ", everything" : ""));
      const std::size_t set = set_of(i);
      const auto first = tokens.begin() + static_cast<std::ptrdiff_t>(set) * sets.capacity;
      if (trigger < 0) {
        EXPECT_EQ(counts[set], kUntouched);
        EXPECT_EQ(tails[set], kUntouched);
        EXPECT_TRUE(std::all_of(first, first + sets.capacity,
                                [](std::int32_t t) { return t == kUntouched; }));
        continue;
      }
      std::vector<std::int32_t> expected;
      for (const TokenSpan& span : expected_set(i, looks).segments(trigger)) {
        for (std::int64_t t = span.begin; t < span.end; ++t) {
          expected.push_back(static_cast<std::int32_t>(t));
        }
      }
      ASSERT_GE(counts[set], 0);
      ASSERT_LE(counts[set], sets.capacity);
      std::vector<std::int32_t> got(first, first + counts[set]);
      EXPECT_TRUE(std::all_of(first + counts[set], first + sets.capacity, [](std::int32_t t) {
        return t == kUntouched;
      })) << "written behind the list";
      for (std::int32_t t = tails[set]; t <= trigger; ++t) got.push_back(t);
      EXPECT_EQ(sets.view().num_sets, static_cast<std::int32_t>(tails.size()));
      const auto [a, b] = std::mismatch(got.begin(), got.end(), expected.begin(), expected.end());
      EXPECT_TRUE(got == expected)
          << got.size() << " attended tokens, expected " << expected.size()
          << "; first difference at rank " << a - got.begin() << ": " << (a == got.end() ? -1 : *a)
          << ", expected " << (b == expected.end() ? -1 : *b);
    }
    EXPECT_TRUE(sets.intact());
  }
  [[nodiscard]] AttendedSet expected_set(std::size_t i, bool looks) const {
    if (everything_[i]) return {};
    const ChunkTable& table = chunks_.table(triggers_.seq(i));
    AttendedSet set =
        make_attended_set(table, host_chosen_[i], range(i, triggers_.token(i)).tail_begin);
    if (!looks || host_tail_tokens_[i] < 0) return set;
    return make_attended_set(table, host_chosen_[i],
                             std::min(range(i, host_tail_tokens_[i]).tail_begin, set.tail_begin));
  }

 private:
  [[nodiscard]] CandidateRange range(std::size_t i, std::int64_t token) const {
    if (token < 0) return {};
    return chunkllm::candidate_range(chunks_.table(triggers_.seq(i)), token, kWindow.min_tokens,
                                     kWindow.min_chunks);
  }
  static std::vector<std::int32_t> seqs(std::size_t num_seqs) {
    std::vector<std::int32_t> seqs;
    for (std::size_t i = 0; i < 4 * num_seqs; ++i) {
      seqs.push_back(static_cast<std::int32_t>(i / 4));
    }
    return seqs;
  }
  /// A sequence's last boundary, one behind it, none, and some token before.
  std::vector<std::int32_t> tokens(std::size_t num_seqs) {
    std::vector<std::int32_t> tokens;
    for (std::size_t s = 0; s < num_seqs; ++s) {
      const std::int32_t last = chunks_.last_boundary(s);
      const auto earlier = static_cast<std::int32_t>(random_() % static_cast<unsigned>(last + 1));
      tokens.insert(tokens.end(), {last, last + 7, -1, earlier});
    }
    return tokens;
  }

  std::mt19937 random_;
  DeviceChunks chunks_;
  DeviceTriggerList triggers_;
  DeviceBuffer<std::int32_t> chosen_;
  DeviceBuffer<std::int32_t> num_chosen_;
  DeviceBuffer<std::int32_t> tail_tokens_;
  std::vector<std::vector<std::int64_t>> host_chosen_;
  std::vector<std::int32_t> host_tail_tokens_;
  std::vector<bool> everything_;
};

using PlanAttendedSets = testing::DeviceTest;

std::size_t same_row(std::size_t i) {
  return i;
}

TEST_F(PlanAttendedSets, AttendedTokensAreThoseOfTheCpu) {
  for (const double density : {0.0, 0.1, 0.9, 1.0}) {
    SCOPED_TRACE("density " + std::to_string(density) + ", seed " + std::to_string(seed()));
    const PlanRun run({0, 1, 2, 3, 5, 31, 33, 300, 1030, 1500, 6000}, seed(), density);
    Sets sets(static_cast<std::int32_t>(run.triggers().count()), run.longest());
    for (const bool looks : {false, true}) {
      SCOPED_TRACE(looks ? "second look" : "trigger's window");
      sets.clear();
      PlanArgs args = run.args(sets);
      if (looks) args.maybe_tail_tokens = run.tail_tokens();
      ASSERT_TRUE(succeeds(launch_plan_attended_sets(args, stream_)));
      run.expect_equals_cpu(sets, looks, same_row);
      sets.clear();
      replay_as_graph([&](cudaStream_t stream) { return launch_plan_attended_sets(args, stream); },
                      2);
      run.expect_equals_cpu(sets, looks, same_row);
    }
    if (HasFailure()) return;
  }
}

TEST_F(PlanAttendedSets, SetIndicesSendTriggersToOtherRows) {
  const PlanRun run({40, 80}, seed(), 0.5);
  const auto count = static_cast<std::int32_t>(run.triggers().count());
  Sets sets(count + 3, run.longest());
  std::vector<std::int32_t> indices;
  for (std::int32_t i = 0; i < count; ++i) indices.push_back(count + 2 - i);
  const DeviceBuffer<std::int32_t> device_indices(indices);
  PlanArgs args = run.args(sets);
  args.maybe_set_indices = device_indices.data();
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));
  ASSERT_TRUE(succeeds(launch_plan_attended_sets(args, stream_)));
  run.expect_equals_cpu(sets, /*looks=*/false,
                        [&](std::size_t i) { return static_cast<std::size_t>(indices[i]); });
  EXPECT_EQ(sets.num_span_tokens.download()[0], kUntouched) << "a row of no trigger";
}

TEST_F(PlanAttendedSets, AListThatDoesNotFitIsCutOffAndReported) {
  const PlanRun run({400, 20}, seed(), 0.7);
  constexpr std::int32_t kCapacity = 333;
  Sets sets(static_cast<std::int32_t>(run.triggers().count()), kCapacity);
  DeviceBuffer<std::int32_t> overflow(run.triggers().count());
  PlanArgs args = run.args(sets);
  args.maybe_overflow = overflow.data();
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));
  ASSERT_TRUE(succeeds(launch_plan_attended_sets(args, stream_)));
  const std::vector<std::int32_t> got = overflow.download();
  const std::vector<std::int32_t> counts = sets.num_span_tokens.download();
  const std::vector<std::int32_t> tails = sets.tail_begin.download();
  const std::vector<std::int32_t> tokens = sets.span_tokens.download();
  int num_overflows = 0;
  for (std::size_t i = 0; i < run.triggers().count(); ++i) {
    SCOPED_TRACE("trigger " + std::to_string(i));
    if (run.triggers().token(i) < 0) {
      EXPECT_EQ(got[i], -1) << "the poison of an untouched place";
      continue;
    }
    // What the list would be, up to the tail that the device gives.
    std::vector<std::int32_t> listed;
    for (const TokenSpan& span : run.expected_set(i, false).segments(run.triggers().token(i))) {
      for (std::int64_t t = span.begin; t < std::min<std::int64_t>(span.end, tails[i]); ++t) {
        listed.push_back(static_cast<std::int32_t>(t));
      }
    }
    const bool overflows = listed.size() > kCapacity;
    num_overflows += overflows ? 1 : 0;
    EXPECT_EQ(got[i], overflows ? 1 : 0);
    listed.resize(std::min<std::size_t>(listed.size(), kCapacity));
    ASSERT_EQ(counts[i], static_cast<std::int32_t>(listed.size()));
    EXPECT_TRUE(std::equal(listed.begin(), listed.end(),
                           tokens.begin() + static_cast<std::ptrdiff_t>(i) * kCapacity));
  }
  EXPECT_GT(num_overflows, 0);
  EXPECT_TRUE(sets.intact());
  EXPECT_TRUE(overflow.intact());
}

TEST_F(PlanAttendedSets, SelectionAndPlanInOneLaunchAreThoseOfTwo) {
  const PlanRun run({0, 2, 60, 700, 5000}, seed(), 0.0);
  const std::size_t count = run.triggers().count();
  std::mt19937 random(static_cast<std::uint32_t>(seed()) + 1);
  const auto stride = static_cast<std::size_t>(run.chunks().max_chunks());
  std::vector<float> scores(count * stride);
  for (float& score : scores) score = static_cast<float>(random() >> 8) * 0x1p-24F;
  const DeviceBuffer<float> device_scores(scores);
  std::vector<std::int32_t> results[2];
  for (int fused = 0; fused < 2; ++fused) {
    Sets sets(static_cast<std::int32_t>(count), run.longest());
    DeviceBuffer<std::int32_t> chosen(count * stride);
    DeviceBuffer<std::int32_t> num_chosen(count);
    DeviceBuffer<std::int32_t> num_nan(count);
    SelectChunksArgs select;
    select.scores = device_scores.data();
    select.score_stride = static_cast<std::int64_t>(stride);
    select.table = run.chunks().view();
    select.triggers = run.triggers().view();
    select.window = kWindow;
    select.budget = {Budget::Kind::kTokens, 12000, 1.0, 0};
    select.chosen = chosen.data();
    select.max_chosen = run.chunks().max_chunks();
    select.num_chosen = num_chosen.data();
    select.num_nan = num_nan.data();
    PlanArgs plan = run.args(sets);
    plan.chosen = chosen.data();
    plan.num_chosen = num_chosen.data();
    ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));
    if (fused == 1) {
      ASSERT_TRUE(succeeds(launch_select_and_plan(select, plan, stream_)));
    } else {
      ASSERT_TRUE(succeeds(launch_select_chunks(select, stream_)));
      ASSERT_TRUE(succeeds(launch_plan_attended_sets(plan, stream_)));
    }
    for (const auto& part :
         {chosen.download(), num_chosen.download(), num_nan.download(), sets.span_tokens.download(),
          sets.num_span_tokens.download(), sets.tail_begin.download()}) {
      results[fused].insert(results[fused].end(), part.begin(), part.end());
    }
    EXPECT_TRUE(sets.intact() && chosen.intact() && num_chosen.intact() && num_nan.intact());
  }
  EXPECT_TRUE(results[0] == results[1]);
  EXPECT_TRUE(std::any_of(results[0].begin(), results[0].end(), [](std::int32_t value) {
    return value > 5000;
  })) << "something was planned";
}

TEST(PlanAttendedSetsRefusals, NameWhatIsExpected) {
  std::int32_t ints[4] = {};
  PlanArgs args;
  EXPECT_TRUE(launch_plan_attended_sets(args, nullptr).ok()) << "no trigger, nothing to do";
  args.table = {ints, ints, 1, 4};
  args.triggers = {ints, nullptr, 1};
  args.chosen = ints;
  args.max_chosen = 4;
  args.num_chosen = ints;
  EXPECT_EQ(launch_plan_attended_sets(args, nullptr).code(), StatusCode::kInvalidArgument);
  args.sets = {ints, ints, ints, 0, 4};
  EXPECT_EQ(launch_plan_attended_sets(args, nullptr).code(), StatusCode::kInvalidArgument);
  args.sets.num_sets = 1;
  EXPECT_EQ(launch_select_and_plan(SelectChunksArgs{}, args, nullptr).code(),
            StatusCode::kInvalidArgument)
      << "they name different triggers";
}

}  // namespace
}  // namespace chunkllm::kernels
