// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/kernels/chunk_mass.cuh"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/eval/chunk_mass.hpp"
#include "cuda/support/device.hpp"
#include "cuda/support/mass_run.cuh"
#include "support/compare.hpp"

namespace chunkllm::kernels {
namespace {

using testing::join_masses;
using testing::Mass;
using testing::mass_of;
using testing::MassCase;
using testing::MassOperands;
using testing::MassRun;
using testing::pooled_head_mass_of;
using testing::pooled_mass_of;
using testing::random_operands;
using testing::succeeds;

/// Every output of `run` against the definition.
template <typename T>
void expect_right(const MassCase& c, const MassOperands& x, const MassRun<T>& run) {
  std::vector<double> expected;
  std::vector<double> bounds;
  const auto put = [&](const Mass& mass) {
    expected.push_back(mass.value);
    bounds.push_back(mass.bound);
  };
  const auto check = [&](const std::vector<float>& actual, const char* what) {
    EXPECT_TRUE(testing::all_within(actual, expected, bounds)) << what;
    expected.clear();
    bounds.clear();
  };
  const auto columns = static_cast<std::size_t>(c.num_columns);
  std::vector<Mass> masses;  // [head][row][column]
  for (std::int32_t head = 0; head < c.num_heads; ++head) {
    for (std::int32_t row = 0; row < c.num_rows; ++row) {
      for (std::size_t chunk = 0; chunk < columns; ++chunk) {
        masses.push_back(mass_of(c, x, row, head, chunk));
        put(masses.back());
      }
    }
  }
  check(run.head_mass(), "head mass [head][row][column]");
  const std::size_t head_size = static_cast<std::size_t>(c.num_rows) * columns;
  for (const bool is_mean : {false, true}) {
    for (std::size_t i = 0; i < head_size; ++i) {
      put(join_masses(c, is_mean, [&](std::int32_t head) { return masses[head * head_size + i]; }));
    }
  }
  check(run.joined(), "joined over heads, maximum then mean, [row][column]");
  for (std::size_t group = 0; group < c.pooled_tokens.size(); ++group) {
    for (std::int32_t head = 0; head < c.num_heads; ++head) {
      for (std::size_t chunk = 0; chunk < columns; ++chunk) {
        put(pooled_head_mass_of(c, x, group, head, chunk));
      }
    }
  }
  check(run.pooled_heads(), "pooled, [group][head][column]");
  for (const bool is_mean : {false, true}) {
    for (std::size_t group = 0; group < c.pooled_tokens.size(); ++group) {
      for (std::size_t chunk = 0; chunk < columns; ++chunk) {
        put(pooled_mass_of(c, x, group, is_mean, chunk));
      }
    }
  }
  check(run.pooled(), "pooled, maximum then mean, [group][column]");
  EXPECT_TRUE(run.intact()) << "wrote outside its buffers";
}

/// Chunks of lengths 1, 2, ..., 9, 1, ... or of `fixed` tokens, as many as end at or before `end`.
std::vector<std::int32_t> chunk_ends(std::int32_t end, std::int32_t fixed = 0) {
  std::vector<std::int32_t> ends;
  std::int32_t position = 0;
  for (std::int32_t i = 0;; ++i) {
    position += fixed > 0 ? fixed : 1 + i % 9;
    if (position > end) return ends;
    ends.push_back(position);
  }
}

/// The last tokens of every third chunk.
std::vector<std::int32_t> some_triggers(const std::vector<std::int32_t>& ends) {
  std::vector<std::int32_t> tokens;
  for (std::size_t i = 0; i < ends.size(); i += 3) tokens.push_back(ends[i] - 1);
  return tokens;
}

MassCase small_case(std::int32_t first_token, std::int32_t num_rows) {
  MassCase c;
  c.first_token = first_token;
  c.num_rows = num_rows;
  c.ends = chunk_ends(first_token + num_rows);
  c.pooled_tokens = some_triggers(c.ends);
  c.num_columns = static_cast<std::int32_t>(c.ends.size()) + 3;  // three without a chunk
  return c;
}

class ChunkMass : public testing::DeviceTest {
 protected:
  template <typename T>
  void run_and_check(const MassCase& c) {
    const MassOperands x = random_operands<T>(c, seed());
    MassRun<T> run(c, x);
    ASSERT_TRUE(succeeds(run.launch(stream_)));
    expect_right(c, x, run);
  }
};

TEST_F(ChunkMass, RowsAroundATile) {
  for (const std::int32_t num_rows : {1, 7, 63, 64, 65, 131}) {
    for (const std::int32_t first_token : {0, 1, 63, 150}) {
      SCOPED_TRACE(std::to_string(num_rows) + " rows from token " + std::to_string(first_token));
      run_and_check<__half>(small_case(first_token, num_rows));
    }
  }
}

TEST_F(ChunkMass, HeadDimensionsTypesAndGroupSizes) {
  MassCase c = small_case(/*first_token=*/90, /*num_rows=*/20);
  for (const std::int32_t head_dim : {64, 96, 128, 256}) {
    for (const std::int32_t group : {1, 3, 7}) {
      SCOPED_TRACE("head_dim " + std::to_string(head_dim) + ", " + std::to_string(group) +
                   " heads a key head");
      c.head_dim = head_dim;
      c.num_heads = 2 * group;
      run_and_check<__half>(c);
      run_and_check<__nv_bfloat16>(c);
    }
  }
}

TEST_F(ChunkMass, PagedKeys) {
  MassCase c = small_case(/*first_token=*/100, /*num_rows=*/37);
  for (const std::int32_t page_size : {1, 16, 64}) {
    SCOPED_TRACE("page_size " + std::to_string(page_size));
    c.page_size = page_size;
    run_and_check<__nv_bfloat16>(c);
  }
}

TEST_F(ChunkMass, QueriesAtMultiplesOfFourBytes) {
  MassCase c = small_case(/*first_token=*/40, /*num_rows=*/70);
  c.q_padding = 2;
  run_and_check<__half>(c);
}

TEST_F(ChunkMass, ChunksAroundABlock) {
  for (const std::int32_t num_chunks : {127, 128, 129, 257}) {
    for (const std::int32_t len : {1, 5}) {
      SCOPED_TRACE(std::to_string(num_chunks) + " chunks of " + std::to_string(len));
      MassCase c;
      c.num_heads = 2;
      c.num_kv_heads = 1;
      c.num_rows = 10;
      c.first_token = num_chunks * len - 5;
      c.ends = chunk_ends(num_chunks * len, len);
      ASSERT_EQ(c.ends.size(), static_cast<std::size_t>(num_chunks));
      c.pooled_tokens = {c.first_token - 1, c.first_token + 4};
      c.num_columns = num_chunks;
      run_and_check<__half>(c);
    }
  }
}

TEST_F(ChunkMass, AChunkLongerThanAStepOfKeys) {
  MassCase c = small_case(/*first_token=*/900, /*num_rows=*/66);
  c.ends = {3, 700, 701, 899, 930, 965};
  c.pooled_tokens = {898, 929, 964};
  c.num_columns = 6;
  run_and_check<__half>(c);
}

TEST_F(ChunkMass, FewerColumnsThanChunks) {
  MassCase c = small_case(/*first_token=*/100, /*num_rows=*/33);
  c.num_columns = 5;
  run_and_check<__half>(c);
}

TEST_F(ChunkMass, WithoutChunksEverythingIsZero) {
  MassCase c = small_case(/*first_token=*/10, /*num_rows=*/70);
  c.ends.clear();
  c.pooled_tokens = {20};
  c.num_columns = 130;
  const MassOperands x = random_operands<__half>(c, seed());
  MassRun<__half> run(c, x);
  ASSERT_TRUE(succeeds(run.launch(stream_)));
  for (const std::uint32_t bits : run.bits()) ASSERT_EQ(bits, 0U);
  EXPECT_TRUE(run.intact());
}

TEST_F(ChunkMass, WithoutRowsOrColumnsNothingIsWritten) {
  MassCase c = small_case(/*first_token=*/10, /*num_rows=*/20);
  const MassOperands x = random_operands<__half>(c, seed());
  MassRun<__half> run(c, x);
  run.args().num_rows = 0;
  EXPECT_TRUE(succeeds(run.launch(stream_)));
  run.args().num_rows = c.num_rows;
  run.args().num_columns = 0;
  EXPECT_TRUE(succeeds(run.launch(stream_)));
  for (const std::uint32_t bits : run.bits()) ASSERT_EQ(bits, 0xffffffffU);
}

TEST_F(ChunkMass, HeadsThatAreNotJoinedRowByRowGiveTheSameBits) {
  MassCase c = small_case(/*first_token=*/600, /*num_rows=*/150);
  c.num_heads = 6;
  const MassOperands x = random_operands<__half>(c, seed());
  MassRun<__half> joined(c, x);
  ASSERT_TRUE(succeeds(joined.launch(stream_)));
  MassRun<__half> apart(c, x);
  apart.args().maybe_max = apart.args().maybe_mean = nullptr;
  ASSERT_TRUE(succeeds(apart.launch(stream_)));
  EXPECT_EQ(apart.head_mass(), joined.head_mass());
  EXPECT_EQ(apart.pooled_heads(), joined.pooled_heads());
  EXPECT_EQ(apart.pooled(), joined.pooled());
  EXPECT_TRUE(apart.intact());
}

TEST_F(ChunkMass, PooledHeadsAlone) {
  const MassCase c = small_case(/*first_token=*/600, /*num_rows=*/150);
  const MassOperands x = random_operands<__half>(c, seed());
  MassRun<__half> all(c, x);
  ASSERT_TRUE(succeeds(all.launch(stream_)));
  MassRun<__half> run(c, x);
  ChunkMassArgs<__half>& args = run.args();
  args.maybe_head_mass = args.maybe_max = args.maybe_mean = nullptr;
  args.maybe_pooled_max = args.maybe_pooled_mean = nullptr;
  ASSERT_TRUE(succeeds(run.launch(stream_)));
  EXPECT_EQ(run.pooled_heads(), all.pooled_heads());
  for (const float value : run.pooled()) ASSERT_TRUE(std::isnan(value)) << "written";
  EXPECT_TRUE(run.intact());
}

TEST_F(ChunkMass, PooledRowsWithoutRowsAreZero) {
  MassCase c = small_case(/*first_token=*/100, /*num_rows=*/30);
  // Rows of the first lie in front of the call, those of the last two behind it.
  constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::max();
  c.pooled_tokens = {20, 99, 110, 129, kNever - 1, kNever};
  run_and_check<__half>(c);
}

TEST_F(ChunkMass, EqualsTheCollectorOfTheCpu) {
  MassCase c = small_case(/*first_token=*/0, /*num_rows=*/200);
  c.head_dim = 128;
  const MassOperands x = random_operands<__half>(c, seed());
  MassRun<__half> run(c, x);
  ASSERT_TRUE(succeeds(run.launch(stream_)));
  const std::vector<float> pooled = run.pooled();

  BackboneConfig config;
  config.num_layers = 1;
  config.num_heads = c.num_heads;
  config.num_kv_heads = c.num_kv_heads;
  config.head_dim = c.head_dim;
  ThreadPool pool(1);
  const std::vector<std::int64_t> ends(c.ends.begin(), c.ends.end());
  const std::vector<std::int64_t> triggers(c.pooled_tokens.begin(), c.pooled_tokens.end());
  const std::size_t columns = static_cast<std::size_t>(c.num_columns);
  for (const HeadJoin head_join : {HeadJoin::kMax, HeadJoin::kMean}) {
    const bool is_mean = head_join == HeadJoin::kMean;
    auto collector =
        ChunkMassCollector::create(config, ends, triggers, {MassRows::kNext, head_join}, pool);
    ASSERT_TRUE(collector.ok());
    const MatrixView<const float> q{x.q.data(), c.num_rows, std::int64_t{c.num_heads} * c.head_dim};
    collector->observe(
        0, 0, q,
        contiguous_kv(x.keys.data(), x.keys.data(), c.num_tokens(), c.num_kv_heads, c.head_dim),
        std::span<const float>(x.lse));
    const TableScorer::Table table = collector->take();
    const float* actual = pooled.data() + (is_mean ? pooled.size() / 2 : 0);
    std::size_t compared = 0;
    for (std::size_t j = 0; j < triggers.size(); ++j) {
      const std::vector<float>& scores = table[0][static_cast<std::size_t>(triggers[j])];
      for (std::size_t i = 0; i < scores.size(); ++i) {
        // Both sides may be off by as much.
        const Mass exact = pooled_mass_of(c, x, j, is_mean, i + 1);
        ASSERT_LE(std::abs(static_cast<double>(actual[j * columns + i + 1]) -
                           static_cast<double>(scores[i])),
                  2.0 * exact.bound)
            << "trigger " << triggers[j] << " chunk " << i + 1;
        ++compared;
      }
    }
    EXPECT_GT(compared, 100U);
  }
}

TEST_F(ChunkMass, ANanOrInfiniteKeyStaysInItsChunk) {
  MassCase c = small_case(/*first_token=*/100, /*num_rows=*/20);
  MassOperands x = random_operands<__half>(c, seed());
  const std::size_t width = static_cast<std::size_t>(c.num_kv_heads) * c.head_dim;
  x.keys[static_cast<std::size_t>(c.ends[4]) * width] = std::numeric_limits<float>::quiet_NaN();
  x.keys[static_cast<std::size_t>(c.ends[8]) * width] = std::numeric_limits<float>::infinity();
  MassRun<__half> run(c, x);
  ASSERT_TRUE(succeeds(run.launch(stream_)));
  const std::vector<float> mass = run.head_mass();
  const std::vector<float> joined = run.joined();
  const auto columns = static_cast<std::size_t>(c.num_columns);
  for (std::int32_t row = 0; row < c.num_rows; ++row) {
    const std::size_t at = static_cast<std::size_t>(row) * columns;
    EXPECT_TRUE(std::isnan(mass[at + 5])) << "row " << row;
    EXPECT_TRUE(std::isnan(joined[at + 5])) << "row " << row;
    // The sign of q decides; a NaN comes only of 0 times infinity.
    const float q = x.q[static_cast<std::size_t>(row) * c.num_heads * c.head_dim];
    if (q > 0.0F) EXPECT_EQ(mass[at + 9], std::numeric_limits<float>::infinity()) << "row " << row;
    if (q < 0.0F) EXPECT_TRUE(std::isfinite(mass[at + 9])) << "row " << row;
    for (const std::size_t chunk : {std::size_t{4}, std::size_t{6}, std::size_t{8}}) {
      const Mass expected = mass_of(c, x, row, 0, chunk);
      EXPECT_NEAR(mass[at + chunk], expected.value, expected.bound)
          << "row " << row << " chunk " << chunk;
    }
  }
}

TEST_F(ChunkMass, ANanLseStaysInItsRow) {
  const MassCase c = small_case(/*first_token=*/100, /*num_rows=*/20);
  MassOperands x = random_operands<__half>(c, seed());
  x.lse[static_cast<std::size_t>(3 * c.num_heads + 1)] = std::numeric_limits<float>::quiet_NaN();
  MassRun<__half> run(c, x);
  ASSERT_TRUE(succeeds(run.launch(stream_)));
  const std::vector<float> joined = run.joined();
  for (std::int32_t row = 0; row < c.num_rows; ++row) {
    EXPECT_EQ(std::isnan(joined[static_cast<std::size_t>(row * c.num_columns)]), row == 3) << row;
  }
}

TEST_F(ChunkMass, ASumDoesNotDependOnTheOtherRowsOfTheCall) {
  const MassCase all = small_case(/*first_token=*/60, /*num_rows=*/90);
  const MassOperands x = random_operands<__half>(all, seed());
  MassRun<__half> whole(all, x);
  ASSERT_TRUE(succeeds(whole.launch(stream_)));
  const std::vector<float> expected = whole.joined();
  for (const std::int32_t skipped : {1, 30, 89}) {
    MassRun<__half> part(all, x);
    ChunkMassArgs<__half>& args = part.args();
    args.q += skipped * args.q_row_stride;
    args.lse += std::int64_t{skipped} * all.num_heads;
    args.first_token += skipped;
    args.num_rows -= skipped;
    ASSERT_TRUE(succeeds(part.launch(stream_)));
    const std::vector<float> actual = part.joined();
    const std::size_t half = expected.size() / 2;
    const std::size_t gone = static_cast<std::size_t>(skipped) * all.num_columns;
    for (std::size_t i = 0; i + gone < half; ++i) {
      ASSERT_EQ(actual[i], expected[i + gone]) << "maximum " << i << " without " << skipped;
      ASSERT_EQ(actual[half + i], expected[half + i + gone]) << "mean " << i << ", " << skipped;
    }
  }
}

TEST_F(ChunkMass, TwiceAsAGraphAndOnTwoStreamsTheSameBits) {
  MassCase c = small_case(/*first_token=*/700, /*num_rows=*/150);
  const MassOperands x = random_operands<__nv_bfloat16>(c, seed());
  MassRun<__nv_bfloat16> run(c, x);
  MassRun<__nv_bfloat16> other(c, x);
  ASSERT_TRUE(succeeds(run.launch(stream_)));
  const std::vector<std::uint32_t> expected = run.bits();
  run.poison();
  replay_as_graph([&](cudaStream_t stream) { return run.launch(stream); }, /*times=*/3);
  EXPECT_EQ(run.bits(), expected) << "as a graph";

  cudaStream_t second = nullptr;
  ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking)));
  run.poison();
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(succeeds(run.launch(stream_)));
    ASSERT_TRUE(succeeds(other.launch(second)));
  }
  EXPECT_EQ(run.bits(), expected) << "first stream";
  EXPECT_EQ(other.bits(), expected) << "second stream";
  EXPECT_TRUE(succeeds(cudaStreamDestroy(second)));
  EXPECT_TRUE(run.intact());
}

TEST_F(ChunkMass, LongTextOf5000Chunks) {
  MassCase c;
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.num_rows = 70;
  c.ends = chunk_ends(120000, 24);
  ASSERT_EQ(c.ends.size(), 5000U);
  c.first_token = 120000 - c.num_rows + 10;
  c.pooled_tokens = {c.first_token - 1, c.first_token + 40};
  c.num_columns = 5000;
  const MassOperands x = random_operands<__nv_bfloat16>(c, seed());
  MassRun<__nv_bfloat16> run(c, x);
  ASSERT_TRUE(succeeds(run.launch(stream_)));
  const std::vector<float> joined = run.joined();
  const std::vector<float> pooled = run.pooled();
  const auto columns = static_cast<std::size_t>(c.num_columns);
  for (std::size_t chunk = 0; chunk < columns; chunk += chunk < 4900 ? 97 : 1) {
    for (const std::int32_t row : {0, 15, 64, 69}) {
      for (const bool is_mean : {false, true}) {
        const Mass expected = join_masses(
            c, is_mean, [&](std::int32_t head) { return mass_of(c, x, row, head, chunk); });
        const std::size_t at = static_cast<std::size_t>(row) * columns + chunk;
        ASSERT_NEAR(joined[(is_mean ? joined.size() / 2 : 0) + at], expected.value, expected.bound)
            << "row " << row << " chunk " << chunk << " mean " << is_mean;
      }
    }
    for (std::size_t group = 0; group < 2 && chunk % 5 == 0; ++group) {
      const Mass expected = pooled_mass_of(c, x, group, /*is_mean=*/false, chunk);
      ASSERT_NEAR(pooled[group * columns + chunk], expected.value, expected.bound)
          << "group " << group << " chunk " << chunk;
    }
  }
  EXPECT_TRUE(run.intact());
}

/// Arguments that would be taken, with pointers that are never followed.
ChunkMassArgs<__half> acceptable_args() {
  alignas(16) static std::uint32_t somewhere[4];
  ChunkMassArgs<__half> args;
  args.q = reinterpret_cast<const __half*>(somewhere);
  args.q_head_stride = 64;
  args.q_row_stride = 128;
  args.kv.keys = reinterpret_cast<__half*>(somewhere);
  args.kv.token_stride = args.kv.head_stride = 64;
  args.lse = reinterpret_cast<const float*>(somewhere);
  args.table = {reinterpret_cast<std::int32_t*>(somewhere),
                reinterpret_cast<std::int32_t*>(somewhere), 1, 10};
  args.num_rows = 1;
  args.num_heads = 2;
  args.num_kv_heads = 1;
  args.head_dim = 64;
  args.num_columns = 4;
  args.maybe_max = reinterpret_cast<float*>(somewhere);
  return args;
}

TEST(ChunkMassRefusals, NameWhatIsSupported) {
  const auto code = [](const std::function<void(ChunkMassArgs<__half>&)>& change) {
    ChunkMassArgs<__half> args = acceptable_args();
    change(args);
    const Status status = launch_chunk_mass(args, nullptr);
    EXPECT_EQ(status.message().substr(0, 12), "chunk_mass: ");
    return status.code();
  };
  using Args = ChunkMassArgs<__half>;
  constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](Args& a) { a.head_dim = 80; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.num_kv_heads = 0; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.num_heads = 3, a.num_kv_heads = 2; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.num_rows = -1; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.first_token = std::numeric_limits<std::int32_t>::max(); }),
            kInvalid);
  EXPECT_EQ(code([](Args& a) { a.num_columns = -1; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.num_pooled = 65536; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.seq = 1; }), StatusCode::kOutOfRange);
  EXPECT_EQ(code([](Args& a) { a.num_pooled = 2; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.q_row_stride = 129; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.num_rows = 2, a.q_row_stride = 32; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.num_heads = 2, a.q_head_stride = 32; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.kv.page_table = a.table.ends, a.kv.page_size = 8; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { ++a.q; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { ++a.kv.keys; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.kv.token_stride = 68; }), kInvalid);
  EXPECT_EQ(code([](Args& a) { a.kv.rotation = Rotation::kNone; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](Args& a) { a.lse = nullptr; }), kInvalid);
  EXPECT_EQ(code([](Args& a) {
              a.num_pooled = 1;
              a.maybe_pooled_tokens = a.table.ends;
              a.maybe_pooled_max = a.maybe_max;
            }),
            kInvalid);
}

TEST(ChunkMassRefusals, WorkspaceIsAskedForPooledOutputsOnly) {
  ChunkMassArgs<__half> args = acceptable_args();
  EXPECT_EQ(chunk_mass_workspace_bytes(args), 0U);
  args.num_rows = 130;
  args.num_pooled = 5;
  EXPECT_EQ(chunk_mass_workspace_bytes(args), 0U);
  args.maybe_pooled_mean = args.maybe_max;
  EXPECT_EQ(chunk_mass_workspace_bytes(args), 2U * (5 + 3) * 4 * sizeof(float));
  args.maybe_pooled_heads = std::exchange(args.maybe_pooled_mean, nullptr);
  EXPECT_EQ(chunk_mass_workspace_bytes(args), 2U * (5 + 3) * 4 * sizeof(float));
}

}  // namespace
}  // namespace chunkllm::kernels
