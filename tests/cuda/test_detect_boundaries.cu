// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/kernels/detect_boundaries.cuh"
#include "cuda/support/device.hpp"
#include "support/compare.hpp"
#include "support/random_values.hpp"

namespace chunkllm::kernels {
namespace {

using testing::DeviceBuffer;
using testing::random_values;
using testing::succeeds;

constexpr std::uint8_t kPoisonByte = 0xff;

/// One sequence read token by token with the CPU's table and guards.
struct HostSequence {
  ChunkTable table;
  std::int64_t num_tokens = 0;
  std::int32_t trigger = -1;
  std::vector<std::uint8_t> flags;  // of the last rows
  std::int32_t counters[3] = {0, 0, 0};
  std::int32_t overflow = 0;

  void read(std::span<const std::uint8_t> wanted, const ChunkGuards& guards,
            const RefreshPolicy& refresh, std::int64_t max_chunks) {
    trigger = -1;
    flags.clear();
    for (const std::uint8_t wants : wanted) {
      const std::int64_t token = num_tokens++;
      BoundaryDecision made = decide_boundary(token + 1 - table.open_begin(), wants != 0, guards);
      if (made.boundary && table.num_chunks() >= max_chunks) {
        overflow = 1;
        made = {};
      }
      if (made.boundary) table.close(token + 1);
      counters[0] += made.boundary ? 1 : 0;
      counters[1] += made.forced ? 1 : 0;
      flags.push_back(static_cast<std::uint8_t>(made.boundary ? (made.forced ? 2 : 1) : 0));
      const bool refreshes = made.boundary && refresh.kind == RefreshPolicy::Kind::kBoundary;
      if (refreshes || refresh.triggers_at(token)) {
        trigger = static_cast<std::int32_t>(token);
        ++counters[2];
      }
    }
  }
};

/// What the device keeps of a batch between launches.
struct DeviceBatch {
  DeviceBatch(std::int32_t num_seqs, std::int32_t max_chunks)
      : num_seqs(num_seqs),
        max_chunks(max_chunks),
        ends(static_cast<std::size_t>(num_seqs) * static_cast<std::size_t>(max_chunks)),
        num_chunks(std::vector<std::int32_t>(static_cast<std::size_t>(num_seqs), 0)),
        num_tokens(static_cast<std::size_t>(num_seqs)),
        triggers(static_cast<std::size_t>(num_seqs)),
        counters(std::vector<std::int32_t>(static_cast<std::size_t>(num_seqs) * 3, 0)),
        overflow(std::vector<std::int32_t>(static_cast<std::size_t>(num_seqs), 0)) {}

  template <typename T>
  BoundaryArgs<T> args() const {
    BoundaryArgs<T> made;
    made.num_tokens = num_tokens.data();
    made.table = {ends.data(), num_chunks.data(), num_seqs, max_chunks};
    made.triggers = triggers.data();
    made.maybe_counters = counters.data();
    made.maybe_overflow = overflow.data();
    return made;
  }

  void expect_equal(const std::vector<HostSequence>& expected) const {
    const std::vector<std::int32_t> got_ends = ends.download();
    const std::vector<std::int32_t> got_chunks = num_chunks.download();
    const std::vector<std::int32_t> got_triggers = triggers.download();
    const std::vector<std::int32_t> got_counters = counters.download();
    const std::vector<std::int32_t> got_overflow = overflow.download();
    for (std::size_t s = 0; s < expected.size(); ++s) {
      const HostSequence& want = expected[s];
      SCOPED_TRACE("sequence " + std::to_string(s));
      ASSERT_EQ(got_chunks[s], want.table.num_chunks());
      std::vector<std::int64_t> want_ends = want.table.ends();
      want_ends.resize(static_cast<std::size_t>(max_chunks), -1);  // poison behind the last
      const auto row = got_ends.begin() + static_cast<std::ptrdiff_t>(s * want_ends.size());
      const auto differ = std::mismatch(want_ends.begin(), want_ends.end(), row);
      ASSERT_TRUE(differ.first == want_ends.end())
          << "chunk " << differ.first - want_ends.begin() << " ends at " << *differ.second
          << ", expected " << *differ.first;
      EXPECT_EQ(got_triggers[s], want.trigger);
      EXPECT_EQ(got_overflow[s], want.overflow);
      for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_EQ(got_counters[s * 3 + i], want.counters[i]) << "counter " << i;
      }
    }
    EXPECT_TRUE(ends.intact() && num_chunks.intact() && triggers.intact() && counters.intact() &&
                overflow.intact() && num_tokens.intact());
  }

  std::int32_t num_seqs;
  std::int32_t max_chunks;
  DeviceBuffer<std::int32_t> ends;
  DeviceBuffer<std::int32_t> num_chunks;
  DeviceBuffer<std::int32_t> num_tokens;
  DeviceBuffer<std::int32_t> triggers;
  DeviceBuffer<std::int32_t> counters;
  DeviceBuffer<std::int32_t> overflow;
};

std::vector<std::uint8_t> random_verdicts(std::mt19937_64& random, std::size_t count,
                                          double density) {
  std::bernoulli_distribution wants(density);
  std::vector<std::uint8_t> verdicts(count);
  for (std::uint8_t& verdict : verdicts) verdict = wants(random) ? 1 : 0;
  return verdicts;
}

std::int64_t padded(std::int64_t size) {
  return (size + 7) / 8 * 8;
}

template <typename T>
class AdapterBoundaries : public testing::DeviceTest {};
using RowTypes = ::testing::Types<float, __half, __nv_bfloat16>;
TYPED_TEST_SUITE(AdapterBoundaries, RowTypes);
using Boundaries = testing::DeviceTest;

TYPED_TEST(AdapterBoundaries, ProbabilitiesAreTheAdaptersAndTheTableFollowsThem) {
  std::mt19937_64 random(this->seed());
  for (const std::int32_t hidden_size : {1, 5, 8, 31, 1016, 1024, 1032, 4096}) {
    SCOPED_TRACE("hidden_size " + std::to_string(hidden_size));
    constexpr std::int32_t kRows = 129;
    const std::int64_t stride = padded(hidden_size) + 8;
    const auto size = static_cast<std::size_t>(hidden_size);
    const std::vector<TypeParam> hidden =
        testing::rounded<TypeParam>(random_values(random, kRows * stride));
    const std::vector<float> weight =
        random_values(random, hidden_size, 1.0F / std::sqrt(static_cast<float>(hidden_size)));
    const float bias = -0.75F;

    DeviceBatch prefill(1, 64);
    prefill.num_tokens.upload(std::vector<std::int32_t>{kRows});
    const DeviceBuffer<TypeParam> rows(hidden, 16 / sizeof(TypeParam));
    const DeviceBuffer<float> weights(weight);
    const DeviceBuffer<std::int32_t> indptr(std::vector<std::int32_t>{0, kRows});
    const DeviceBuffer<float> probabilities(kRows);
    const DeviceBuffer<std::uint8_t> flags(kRows);
    const DeviceBuffer<std::uint8_t> workspace(kRows);
    auto args = prefill.args<TypeParam>();
    args.hidden = rows.data();
    args.row_stride = stride;
    args.hidden_size = hidden_size;
    args.weight = weights.data();
    args.bias = bias;
    args.threshold = 0.5F;
    args.num_rows = kRows;
    args.maybe_row_indptr = indptr.data();
    args.guards = {3, 17};
    args.maybe_probabilities = probabilities.data();
    args.maybe_boundary_flags = flags.data();
    EXPECT_EQ(detect_boundaries_workspace_bytes(args), static_cast<std::size_t>(kRows));
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    ASSERT_TRUE(succeeds(launch_detect_boundaries(args, this->stream_)));

    const std::vector<float> got = probabilities.download();
    std::vector<double> expected(kRows);
    std::vector<double> bounds(kRows);
    std::vector<std::uint8_t> wanted(kRows);
    for (std::int32_t r = 0; r < kRows; ++r) {
      double logit = bias;
      double magnitude = std::abs(static_cast<double>(bias));
      for (std::size_t i = 0; i < size; ++i) {
        const double product =
            static_cast<double>(weight[i]) *
            static_cast<double>(testing::widened(hidden[static_cast<std::size_t>(r * stride) + i]));
        logit += product;
        magnitude += std::abs(product);
      }
      const auto at = static_cast<std::size_t>(r);
      expected[at] = 1.0 / (1.0 + std::exp(-logit));
      // The logit's sum is off by at most one rounding a term; the sigmoid's slope is at most 1/4.
      bounds[at] = testing::kUnitRoundoff * (0.25 * (hidden_size + 16.0) * magnitude + 8.0);
      wanted[at] = got[at] > args.threshold ? 1 : 0;
    }
    EXPECT_TRUE(testing::all_within(got, expected, bounds));
    std::vector<HostSequence> host(1);
    host[0].read(wanted, args.guards, args.refresh, 64);
    prefill.expect_equal(host);
    EXPECT_EQ(flags.download(), host[0].flags);
    EXPECT_TRUE(probabilities.intact() && flags.intact() && workspace.intact() && rows.intact());

    // Each row as the newest token of a sequence of its own: the same bits.
    DeviceBatch decode(kRows, 2);
    decode.num_tokens.upload(std::vector<std::int32_t>(kRows, 4));
    const DeviceBuffer<float> decode_probabilities(kRows);
    auto decode_args = args;
    decode_args.num_tokens = decode.num_tokens.data();
    decode_args.table = decode.args<TypeParam>().table;
    decode_args.triggers = decode.triggers.data();
    decode_args.maybe_counters = decode.counters.data();
    decode_args.maybe_overflow = decode.overflow.data();
    decode_args.maybe_row_indptr = nullptr;
    decode_args.maybe_probabilities = decode_probabilities.data();
    EXPECT_EQ(detect_boundaries_workspace_bytes(decode_args), 0U);
    ASSERT_TRUE(succeeds(launch_detect_boundaries(decode_args, this->stream_)));
    EXPECT_EQ(decode_probabilities.download(), got);
    std::vector<HostSequence> singles(kRows);
    for (std::size_t r = 0; r < kRows; ++r) {
      singles[r].num_tokens = 3;
      singles[r].read(std::span(wanted).subspan(r, 1), args.guards, args.refresh, 2);
    }
    decode.expect_equal(singles);
  }
}

TYPED_TEST(AdapterBoundaries, NaNIsNoBoundaryAndInfinitiesAre) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> values(6 * 8, 0.0F);
  values[0] = nan;
  values[8] = inf;
  values[16] = -inf;
  values[24] = inf;  // inf - inf
  values[25] = -inf;
  values[32] = 1000.0F;
  values[40] = -1000.0F;
  const DeviceBuffer<TypeParam> rows(testing::rounded<TypeParam>(values));
  const DeviceBuffer<float> weights(std::vector<float>(8, 1.0F));
  const DeviceBuffer<float> probabilities(6);
  DeviceBatch batch(6, 4);
  batch.num_tokens.upload(std::vector<std::int32_t>(6, 1));
  auto args = batch.args<TypeParam>();
  args.hidden = rows.data();
  args.row_stride = 8;
  args.hidden_size = 8;
  args.weight = weights.data();
  args.num_rows = 6;
  args.guards = {1, 128};
  args.maybe_probabilities = probabilities.data();
  ASSERT_TRUE(succeeds(launch_detect_boundaries(args, this->stream_)));
  const std::vector<float> got = probabilities.download();
  EXPECT_TRUE(std::isnan(got[0]));
  EXPECT_EQ(got[1], 1.0F);
  EXPECT_EQ(got[2], 0.0F);
  EXPECT_TRUE(std::isnan(got[3]));
  EXPECT_EQ(got[4], 1.0F);
  EXPECT_EQ(got[5], 0.0F);
  EXPECT_EQ(batch.num_chunks.download(), (std::vector<std::int32_t>{0, 1, 0, 0, 1, 0}));
  EXPECT_EQ(batch.triggers.download(), (std::vector<std::int32_t>{-1, 0, -1, -1, 0, -1}));
}

TEST_F(Boundaries, DecodeWalksAsTheCpuAtEveryPhaseAndPolicy) {
  std::mt19937_64 random(seed());
  constexpr std::int32_t kSeqs = 9;
  constexpr std::int32_t kMaxChunks = 40;  // some sequences fill it
  constexpr int kSteps = 150;
  using Kind = RefreshPolicy::Kind;
  for (const RefreshPolicy& refresh :
       {RefreshPolicy{Kind::kBoundary, 0}, RefreshPolicy{Kind::kEvery, 0},
        RefreshPolicy{Kind::kStride, 5}, RefreshPolicy{Kind::kStride, 1}}) {
    for (const ChunkGuards& guards : {ChunkGuards{1, 1}, ChunkGuards{4, 9}, ChunkGuards{4, 128}}) {
      DeviceBatch batch(kSeqs, kMaxChunks);
      std::vector<HostSequence> host(kSeqs);
      DeviceBuffer<std::uint8_t> wanted(kSeqs);
      const DeviceBuffer<std::uint8_t> flags(kSeqs);
      auto args = batch.args<float>();
      args.maybe_wanted = wanted.data();
      args.num_rows = kSeqs;
      args.guards = guards;
      args.refresh = refresh;
      args.maybe_boundary_flags = flags.data();
      for (int step = 0; step < kSteps; ++step) {
        const std::vector<std::uint8_t> verdicts = random_verdicts(random, kSeqs, 0.2);
        std::vector<std::int32_t> num_tokens(kSeqs);
        std::vector<std::uint8_t> expected_flags(kSeqs, 0);
        for (std::size_t s = 0; s < kSeqs; ++s) {
          // Sequence s joins at step 3 s; the last one never does.
          if (s + 1 == kSeqs || step < 3 * static_cast<int>(s)) continue;
          host[s].read(std::span(verdicts).subspan(s, 1), guards, refresh, kMaxChunks);
          num_tokens[s] = static_cast<std::int32_t>(host[s].num_tokens);
          expected_flags[s] = host[s].flags[0];
        }
        wanted.upload(verdicts);
        batch.num_tokens.upload(num_tokens);
        ASSERT_TRUE(succeeds(launch_detect_boundaries(args, stream_)));
        ASSERT_TRUE(succeeds(cudaStreamSynchronize(stream_)));
        if (step % 10 != 0 && step + 1 != kSteps) continue;
        batch.expect_equal(host);
        ASSERT_EQ(flags.download(), expected_flags) << "step " << step;
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(Boundaries, RaggedBlocksWalkAsTheCpu) {
  std::mt19937_64 random(seed());
  // Rows of each sequence in three blocks, one after the other; around warps, words and the tile.
  const std::vector<std::vector<std::int32_t>> blocks = {{0, 1, 31, 32, 33, 500, 511, 513},
                                                         {7, 0, 1, 64, 1000, 32767, 32768, 32769},
                                                         {1, 2, 3, 0, 127, 40000, 65536, 65537}};
  using Kind = RefreshPolicy::Kind;
  struct Case {
    ChunkGuards guards;
    double density;
    RefreshPolicy refresh;
  };
  const std::vector<Case> cases = {{{4, 128}, 0.05, {}},
                                   {{4, 128}, 0.0, {Kind::kStride, 7}},
                                   {{1, 128}, 1.0, {}},
                                   {{1, 1}, 0.3, {}},
                                   {{128, 128}, 1.0, {Kind::kStride, 100}},
                                   {{4, 65536}, 0.00005, {}},
                                   {{200, 1000}, 0.004, {Kind::kEvery, 0}}};
  for (const Case& c : cases) {
    SCOPED_TRACE("guards " + std::to_string(c.guards.min_len) + " " +
                 std::to_string(c.guards.max_len) + ", density " + std::to_string(c.density));
    const auto num_seqs = static_cast<std::int32_t>(blocks[0].size());
    constexpr std::int32_t kMaxChunks = 100000;
    DeviceBatch batch(num_seqs, kMaxChunks);
    std::vector<HostSequence> host(blocks[0].size());
    for (const std::vector<std::int32_t>& sizes : blocks) {
      std::vector<std::int32_t> indptr = {0};
      std::vector<std::int32_t> num_tokens;
      for (const std::int32_t size : sizes) indptr.push_back(indptr.back() + size);
      const auto num_rows = static_cast<std::size_t>(indptr.back());
      const std::vector<std::uint8_t> verdicts = random_verdicts(random, num_rows, c.density);
      std::vector<std::uint8_t> expected_flags;
      for (std::size_t s = 0; s < sizes.size(); ++s) {
        host[s].read(std::span(verdicts).subspan(static_cast<std::size_t>(indptr[s]),
                                                 static_cast<std::size_t>(sizes[s])),
                     c.guards, c.refresh, kMaxChunks);
        num_tokens.push_back(static_cast<std::int32_t>(host[s].num_tokens));
        expected_flags.insert(expected_flags.end(), host[s].flags.begin(), host[s].flags.end());
      }
      batch.num_tokens.upload(num_tokens);
      const DeviceBuffer<std::int32_t> device_indptr(indptr);
      const DeviceBuffer<std::uint8_t> wanted(verdicts, 3);  // at an odd address
      const DeviceBuffer<std::uint8_t> flags(num_rows, 5);
      auto args = batch.args<__half>();
      args.maybe_wanted = wanted.data();
      args.maybe_row_indptr = device_indptr.data();
      args.num_rows = indptr.back();
      args.guards = c.guards;
      args.refresh = c.refresh;
      args.maybe_boundary_flags = flags.data();
      EXPECT_EQ(detect_boundaries_workspace_bytes(args), 0U);
      ASSERT_TRUE(succeeds(launch_detect_boundaries(args, stream_)));
      batch.expect_equal(host);
      EXPECT_EQ(flags.download(), expected_flags);
      EXPECT_TRUE(flags.intact());
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(Boundaries, AFullTableLeavesTheChunkOpen) {
  for (const bool in_one_block : {true, false}) {
    SCOPED_TRACE(in_one_block ? "ragged rows" : "decode");
    constexpr std::int32_t kRows = 40;
    const ChunkGuards guards{2, 8};
    const std::vector<std::uint8_t> verdicts(kRows, 1);
    DeviceBatch batch(2, 5);
    std::vector<HostSequence> host(2);
    auto args = batch.args<float>();
    args.guards = guards;
    if (in_one_block) {
      const DeviceBuffer<std::int32_t> indptr(std::vector<std::int32_t>{0, kRows, kRows + 10});
      const DeviceBuffer<std::uint8_t> wanted(std::vector<std::uint8_t>(kRows + 10, 1));
      host[0].read(verdicts, guards, {}, 5);
      host[1].read(std::span(verdicts).first(10), guards, {}, 5);  // exactly full: no overflow
      batch.num_tokens.upload(std::vector<std::int32_t>{kRows, 10});
      args.maybe_wanted = wanted.data();
      args.maybe_row_indptr = indptr.data();
      args.num_rows = kRows + 10;
      ASSERT_TRUE(succeeds(launch_detect_boundaries(args, stream_)));
      EXPECT_EQ(host[0].overflow, 1);
      EXPECT_EQ(host[1].overflow, 0);
      batch.expect_equal(host);
    } else {
      const DeviceBuffer<std::uint8_t> wanted(std::vector<std::uint8_t>(2, 1));
      args.maybe_wanted = wanted.data();
      args.num_rows = 2;
      for (std::int32_t token = 0; token < 14; ++token) {
        for (HostSequence& sequence : host) {
          sequence.read(std::span(verdicts).first(1), guards, {}, 5);
        }
        batch.num_tokens.upload(std::vector<std::int32_t>(2, token + 1));
        ASSERT_TRUE(succeeds(launch_detect_boundaries(args, stream_)));
        ASSERT_TRUE(succeeds(cudaStreamSynchronize(stream_)));
      }
      batch.expect_equal(host);
    }
  }
}

TEST_F(Boundaries, UnusedSequencesAndEmptyBatchesAreLeftAlone) {
  DeviceBatch batch(3, 4);
  batch.num_tokens.upload(std::vector<std::int32_t>{0, 0, 0});
  const DeviceBuffer<std::uint8_t> wanted(std::vector<std::uint8_t>(5, 1));
  const DeviceBuffer<std::uint8_t> flags(5);
  const DeviceBuffer<std::int32_t> indptr(std::vector<std::int32_t>{0, 2, 2, 5});
  auto args = batch.args<float>();
  args.maybe_wanted = wanted.data();
  args.maybe_boundary_flags = flags.data();
  args.guards = {1, 128};
  EXPECT_TRUE(succeeds(launch_detect_boundaries(args, stream_)));  // 0 rows
  EXPECT_EQ(batch.triggers.download(), std::vector<std::int32_t>(3, -1)) << "poison is -1";
  args.num_rows = 3;
  EXPECT_TRUE(succeeds(launch_detect_boundaries(args, stream_)));
  batch.expect_equal(std::vector<HostSequence>(3));
  EXPECT_EQ(flags.download(), (std::vector<std::uint8_t>{0, 0, 0, kPoisonByte, kPoisonByte}));
  args.num_rows = 5;
  args.maybe_row_indptr = indptr.data();
  EXPECT_TRUE(succeeds(launch_detect_boundaries(args, stream_)));
  batch.expect_equal(std::vector<HostSequence>(3));
  EXPECT_EQ(flags.download(), std::vector<std::uint8_t>(5, 0));
}

TEST_F(Boundaries, AWholeBookTwiceOnTwoStreamsAndInAGraph) {
  std::mt19937_64 random(seed());
  constexpr std::int32_t kRows = 120000;
  constexpr std::int32_t kHidden = 64;
  constexpr std::int32_t kMaxChunks = 30001;
  const std::vector<__nv_bfloat16> hidden =
      testing::rounded<__nv_bfloat16>(random_values(random, std::int64_t{kRows} * kHidden));
  const DeviceBuffer<__nv_bfloat16> rows(hidden);
  const DeviceBuffer<float> weights(random_values(random, kHidden, 0.125F));
  const DeviceBuffer<std::int32_t> indptr(std::vector<std::int32_t>{0, kRows});
  const DeviceBuffer<float> probabilities(kRows);
  cudaStream_t other = nullptr;
  ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking)));
  std::vector<DeviceBatch> batches;
  std::vector<DeviceBuffer<std::uint8_t>> workspaces;
  for (int i = 0; i < 3; ++i) {
    batches.emplace_back(1, kMaxChunks);
    batches.back().num_tokens.upload(std::vector<std::int32_t>{kRows});
    workspaces.emplace_back(static_cast<std::size_t>(kRows));
  }
  const auto args_of = [&](std::size_t i) {
    auto args = batches[i].args<__nv_bfloat16>();
    args.hidden = rows.data();
    args.row_stride = kHidden;
    args.hidden_size = kHidden;
    args.weight = weights.data();
    args.bias = -1.5F;
    args.num_rows = kRows;
    args.maybe_row_indptr = indptr.data();
    args.workspace = workspaces[i].data();
    args.workspace_bytes = workspaces[i].size();
    if (i == 0) args.maybe_probabilities = probabilities.data();
    return args;
  };
  ASSERT_TRUE(succeeds(launch_detect_boundaries(args_of(0), stream_)));
  ASSERT_TRUE(succeeds(launch_detect_boundaries(args_of(1), other)));
  ASSERT_TRUE(succeeds(cudaStreamSynchronize(stream_)));
  ASSERT_TRUE(succeeds(cudaStreamSynchronize(other)));
  replay_as_graph(
      [&](cudaStream_t stream) { return launch_detect_boundaries(args_of(2), stream); });
  const std::vector<float> got = probabilities.download();
  std::vector<std::uint8_t> wanted(kRows);
  std::transform(got.begin(), got.end(), wanted.begin(),
                 [](float p) { return static_cast<std::uint8_t>(p > 0.5F ? 1 : 0); });
  std::vector<HostSequence> host(1);
  host[0].read(wanted, {}, {}, kMaxChunks);
  EXPECT_GT(host[0].counters[0], 2000);
  for (const DeviceBatch& batch : batches) batch.expect_equal(host);
  ASSERT_TRUE(succeeds(cudaStreamDestroy(other)));
}

TEST_F(Boundaries, WithoutAnyRowNothingTriggers) {
  const DeviceBuffer<std::int32_t> triggers(std::vector<std::int32_t>{7, 0, -1});
  const DeviceBuffer<std::int32_t> ints(std::vector<std::int32_t>{0, 0, 0, 0});
  BoundaryArgs<float> args;
  args.maybe_wanted = reinterpret_cast<const std::uint8_t*>(ints.data());
  args.maybe_row_indptr = ints.data();
  args.num_tokens = ints.data();
  args.triggers = triggers.data();
  args.table = {ints.data(), ints.data(), 3, 1};
  for (const bool is_decode : {false, true}) {
    if (is_decode) args.maybe_row_indptr = nullptr;
    ASSERT_TRUE(succeeds(launch_detect_boundaries(args, stream_)));
    EXPECT_EQ(triggers.download(), std::vector<std::int32_t>(3, -1));
    EXPECT_TRUE(triggers.intact());
  }
}

TEST(BoundaryRefusals, NameWhatIsExpected) {
  alignas(16) float memory[64] = {};
  std::int32_t ints[8] = {};
  BoundaryArgs<float> good;
  good.hidden = memory;
  good.row_stride = 8;
  good.hidden_size = 8;
  good.weight = memory;
  good.num_rows = 2;
  good.num_tokens = ints;
  good.triggers = ints;
  good.table = {ints, ints, 2, 2};
  const auto expect_refused = [](const BoundaryArgs<float>& args, const std::string& word) {
    const Status status = launch_detect_boundaries(args, nullptr);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  };
  auto args = good;
  args.num_rows = 3;
  expect_refused(args, "maybe_row_indptr");
  args = good;
  args.hidden = memory + 1;
  expect_refused(args, "16 bytes");
  args = good;
  args.row_stride = 9;
  expect_refused(args, "16 bytes");
  args = good;
  args.row_stride = 4;
  expect_refused(args, "row_stride");
  args = good;
  args.weight = nullptr;
  expect_refused(args, "weight");
  args = good;
  args.triggers = nullptr;
  expect_refused(args, "triggers");
  args = good;
  args.guards = {5, 4};
  expect_refused(args, "guards");
  args = good;
  args.guards = {0, 4};
  expect_refused(args, "guards");
  args = good;
  args.refresh = {RefreshPolicy::Kind::kStride, 0};
  expect_refused(args, "stride");
  args = good;
  args.maybe_row_indptr = ints;
  expect_refused(args, "workspace");
  args = good;
  args.num_rows = 0;
  args.triggers = nullptr;
  expect_refused(args, "triggers");
  args = good;
  args.num_rows = -1;
  expect_refused(args, "negative");
}

}  // namespace
}  // namespace chunkllm::kernels
