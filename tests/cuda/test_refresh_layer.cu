// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/kernels/refresh_layer.cuh"
#include "cuda/support/device.hpp"
#include "support/random_values.hpp"

namespace chunkllm::kernels {
namespace {

using testing::DeviceBuffer;
using testing::rounded;
using testing::succeeds;

std::size_t at(std::int64_t index) {
  return static_cast<std::size_t>(index);
}

/// A sequence of a batch: its closed chunks, tokens behind them, and what its newest token does.
struct Phase {
  std::int32_t num_chunks = 0;
  std::int32_t open_tokens = 0;  ///< 0: the newest token ended the last chunk
  bool triggers = false;
};

struct Shape {
  bool is_adapter = true;
  std::int32_t num_heads = 1;
  std::int32_t num_key_heads = 1;
  std::int32_t key_dim = 128;
  std::int32_t row_size = 256;  ///< adapter; mean keys: key_size()
  std::int32_t max_chunks = 64;
  std::int32_t span_capacity = 4096;
  Budget budget;
  HeadJoin head_join = HeadJoin::kMax;
  float nan_share = 0.0F;  ///< of the chunk keys

  [[nodiscard]] std::int32_t key_size() const { return num_key_heads * key_dim; }
  [[nodiscard]] std::int32_t query_features() const { return num_heads * key_dim; }
  [[nodiscard]] std::int32_t nulls() const { return is_adapter ? num_heads : 0; }
  /// Features and null logits, and a gap to the next 16 bytes.
  [[nodiscard]] std::int32_t query_stride() const {
    return (query_features() + nulls() + 3) / 4 * 4;
  }
};

Budget tokens_budget(std::int64_t tokens) {
  Budget budget;
  budget.kind = Budget::Kind::kTokens;
  budget.tokens = tokens;
  return budget;
}

template <typename T>
std::vector<T> random_rounded(std::mt19937_64& random, std::int64_t count, float scale) {
  return rounded<T>(testing::random_values(random, count, scale));
}

template <typename T>
std::vector<unsigned char> bytes_of(const DeviceBuffer<T>& buffer) {
  const std::vector<T> values = buffer.download();
  std::vector<unsigned char> bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

/// What both ways read.
template <typename T>
struct Inputs {
  Inputs(const Shape& shape_in, const std::vector<Phase>& phases_in, std::uint64_t seed)
      : shape(shape_in), phases(phases_in) {
    std::mt19937_64 random(seed);
    std::uniform_int_distribution<std::int32_t> length(1, 40);
    for (const Phase& phase : phases) {
      std::int32_t end = 0;
      for (std::int32_t c = 0; c < shape.max_chunks; ++c) {
        if (c < phase.num_chunks) end += length(random);
        ends.push_back(c < phase.num_chunks ? end : -1);
      }
      num_chunks.push_back(phase.num_chunks);
      num_tokens.push_back(end + phase.open_tokens);
      triggers.push_back(phase.triggers ? num_tokens.back() - 1 : -1);
    }
    const auto seqs = static_cast<std::int64_t>(phases.size());
    rows = random_rounded<T>(random, seqs * shape.row_size, 1.0F);
    query_rows = random_rounded<T>(random, seqs * shape.query_features(), 1.0F);
    sums = random_rounded<float>(random, seqs * shape.row_size, 3.0F);
    keys = random_rounded<T>(random, seqs * shape.max_chunks * shape.key_size(), 1.0F);
    std::bernoulli_distribution is_nan(static_cast<double>(shape.nan_share));
    for (std::int64_t row = 0; row < seqs * shape.max_chunks; ++row) {
      if (!is_nan(random)) continue;
      keys[at(row * shape.key_size())] = rounded<T>(std::numeric_limits<float>::quiet_NaN());
    }
    const float deviation = 1.0F / std::sqrt(static_cast<float>(shape.row_size));
    key_weight =
        random_rounded<T>(random, std::int64_t{shape.key_size()} * shape.row_size, deviation);
    query_weight =
        random_rounded<T>(random, std::int64_t{shape.query_features()} * shape.row_size, deviation);
    null_weight =
        random_rounded<T>(random, std::int64_t{shape.num_heads} * shape.row_size, deviation);
    null_bias = random_rounded<float>(random, shape.num_heads, 1.0F);
    distance_bias =
        random_rounded<float>(random, std::int64_t{shape.num_heads} * kNumDistanceBins, 0.5F);
  }

  Shape shape;
  std::vector<Phase> phases;
  std::vector<std::int32_t> ends, num_chunks, num_tokens, triggers;
  std::vector<T> rows, query_rows, keys, key_weight, query_weight, null_weight;
  std::vector<float> sums, null_bias, distance_bias;
};

/// One way of refreshing, with memory of its own.
template <typename T>
class Refresh {
 public:
  explicit Refresh(const Inputs<T>& in)
      : shape_(in.shape),
        num_seqs_(static_cast<std::int32_t>(in.phases.size())),
        ends_(in.ends),
        num_chunks_(in.num_chunks),
        num_tokens_(in.num_tokens),
        triggers_(in.triggers),
        rows_(in.rows),
        query_rows_(in.query_rows),
        key_weight_(in.key_weight),
        query_weight_(in.query_weight),
        null_weight_(in.null_weight),
        null_bias_(in.null_bias),
        distance_bias_(in.distance_bias),
        sums(in.sums),
        keys(in.keys),
        queries(at(std::int64_t{num_seqs_} * in.shape.query_stride())),
        open_keys(at(std::int64_t{num_seqs_} * in.shape.key_size())),
        scores(at(std::int64_t{num_seqs_} * in.shape.max_chunks)),
        chosen(scores.size()),
        num_chosen(at(num_seqs_)),
        num_nan(at(num_seqs_)),
        span_tokens(at(std::int64_t{num_seqs_} * in.shape.span_capacity)),
        num_span_tokens(at(num_seqs_)),
        tail_begin(at(num_seqs_)),
        overflow(at(num_seqs_)),
        state(std::vector<unsigned>(2, 0U)),
        workspace_(
            score_chunks_workspace_bytes(1, num_seqs_, in.shape.num_heads, in.shape.max_chunks)) {}

  [[nodiscard]] RefreshLayerArgs<T, T, T> args() const {
    RefreshLayerArgs<T, T, T> all;
    const cuda::DeviceChunkTable table = {ends_.data(), num_chunks_.data(), num_seqs_,
                                          shape_.max_chunks};
    UpdateChunkKeysArgs<T, T, T>& update = all.update;
    update.num_layers = 1;
    update.row_size = shape_.row_size;
    update.key_size = shape_.key_size();
    update.num_heads = shape_.num_heads;
    update.num_query_features = shape_.query_features();
    update.table = table;
    update.num_tokens = num_tokens_.data();
    update.maybe_triggers = triggers_.data();
    update.rows = rows_.data();
    update.row_seq_stride = shape_.row_size;
    update.open_sums = sums.data();
    update.keys = keys.data();
    update.queries = queries.data();
    update.query_seq_stride = shape_.query_stride();
    DeviceScoreArgs<T>& score = all.score;
    if (shape_.is_adapter) {
      update.maybe_key_weight = key_weight_.data();
      update.maybe_query_weight = query_weight_.data();
      update.maybe_null_weight = null_weight_.data();
      update.maybe_null_bias = null_bias_.data();
      score.maybe_null = queries.data() + shape_.query_features();
      score.null_stride = shape_.query_stride();
      score.maybe_bias = distance_bias_.data();
    } else {
      update.maybe_query_rows = query_rows_.data();
      update.query_row_seq_stride = shape_.query_features();
      update.maybe_open_keys = open_keys.data();
      score.maybe_open_keys = open_keys.data();
    }
    score.queries = queries.data();
    score.query_stride = shape_.query_stride();
    score.keys = keys.data();
    score.table = table;
    score.triggers = {triggers_.data(), nullptr, num_seqs_};
    score.num_layers = 1;
    score.num_heads = shape_.num_heads;
    score.num_key_heads = shape_.num_key_heads;
    score.key_dim = shape_.key_dim;
    score.adds_log_length = true;
    score.scale = 1.0F / std::sqrt(static_cast<float>(shape_.key_dim));
    score.head_join = shape_.head_join;
    score.scores = scores.data();
    score.score_stride = shape_.max_chunks;
    score.workspace = workspace_.data();
    score.workspace_bytes = workspace_.size();
    SelectChunksArgs& select = all.select;
    select.scores = scores.data();
    select.score_stride = shape_.max_chunks;
    select.table = table;
    select.triggers = score.triggers;
    select.budget = shape_.budget;
    select.chosen = chosen.data();
    select.max_chosen = shape_.max_chunks;
    select.num_chosen = num_chosen.data();
    select.num_nan = num_nan.data();
    PlanArgs& plan = all.plan;
    plan.table = table;
    plan.triggers = score.triggers;
    plan.chosen = select.chosen;
    plan.max_chosen = select.max_chosen;
    plan.num_chosen = select.num_chosen;
    plan.sets = {span_tokens.data(), num_span_tokens.data(), tail_begin.data(), num_seqs_,
                 shape_.span_capacity};
    plan.maybe_overflow = overflow.data();
    all.state = state.data();
    return all;
  }

  Status apart(cudaStream_t stream) const {
    const RefreshLayerArgs<T, T, T> all = args();
    CHUNKLLM_RETURN_IF_ERROR(launch_update_chunk_keys(all.update, stream));
    CHUNKLLM_RETURN_IF_ERROR(launch_score_chunks(all.score, stream));
    return launch_select_and_plan(all.select, all.plan, stream);
  }
  Status together(cudaStream_t stream) const {
    const RefreshLayerArgs<T, T, T> all = args();
    CHUNKLLM_RETURN_IF_ERROR(launch_refresh_layer(all, stream));
    return launch_sum_newest_rows(all.update, stream);
  }

 private:
  Shape shape_;
  std::int32_t num_seqs_;
  DeviceBuffer<std::int32_t> ends_, num_chunks_, num_tokens_, triggers_;
  DeviceBuffer<T> rows_, query_rows_, key_weight_, query_weight_, null_weight_;
  DeviceBuffer<float> null_bias_, distance_bias_;

 public:
  DeviceBuffer<float> sums;
  DeviceBuffer<T> keys;
  DeviceBuffer<float> queries, open_keys, scores;
  DeviceBuffer<std::int32_t> chosen, num_chosen, num_nan;
  DeviceBuffer<std::int32_t> span_tokens, num_span_tokens, tail_begin, overflow;
  DeviceBuffer<unsigned> state;

 private:
  DeviceBuffer<std::byte> workspace_;
};

/// \param with_scores  whether scores are made both ways: no budget holds all
template <typename T>
void expect_equal(const Refresh<T>& together, const Refresh<T>& apart, bool with_scores) {
  EXPECT_EQ(bytes_of(together.sums), bytes_of(apart.sums)) << "sums";
  EXPECT_EQ(bytes_of(together.keys), bytes_of(apart.keys)) << "chunk keys";
  EXPECT_EQ(bytes_of(together.queries), bytes_of(apart.queries)) << "queries";
  EXPECT_EQ(bytes_of(together.open_keys), bytes_of(apart.open_keys)) << "open keys";
  if (with_scores) {
    EXPECT_EQ(bytes_of(together.scores), bytes_of(apart.scores)) << "scores";
  }
  EXPECT_EQ(together.num_chosen.download(), apart.num_chosen.download()) << "num_chosen";
  EXPECT_EQ(together.num_nan.download(), apart.num_nan.download()) << "num_nan";
  EXPECT_EQ(together.chosen.download(), apart.chosen.download()) << "chosen";
  EXPECT_EQ(together.num_span_tokens.download(), apart.num_span_tokens.download());
  EXPECT_EQ(together.tail_begin.download(), apart.tail_begin.download()) << "tail_begin";
  EXPECT_EQ(together.overflow.download(), apart.overflow.download()) << "overflow";
  EXPECT_EQ(together.span_tokens.download(), apart.span_tokens.download()) << "span_tokens";
  EXPECT_EQ(together.state.download(), std::vector<unsigned>(2, 0U)) << "the state is not cleared";
  for (const bool intact :
       {together.sums.intact(), together.keys.intact(), together.queries.intact(),
        together.open_keys.intact(), together.scores.intact(), together.chosen.intact(),
        together.span_tokens.intact(), together.num_span_tokens.intact(),
        together.tail_begin.intact(), together.overflow.intact(), together.state.intact()}) {
    EXPECT_TRUE(intact) << "written out of bounds";
  }
}

template <typename T>
void compare(const Shape& shape, const std::vector<Phase>& phases, std::uint64_t seed,
             cudaStream_t stream, bool with_scores = true) {
  const Inputs<T> inputs(shape, phases, seed);
  const Refresh<T> apart(inputs);
  const Refresh<T> together(inputs);
  ASSERT_TRUE(succeeds(apart.apart(stream)));
  ASSERT_TRUE(succeeds(together.together(stream)));
  expect_equal(together, apart, with_scores);
}

Shape adapter(std::int32_t heads, std::int32_t key_dim) {
  Shape shape;
  shape.num_heads = heads;
  shape.key_dim = key_dim;
  shape.budget = tokens_budget(300);
  return shape;
}
Shape adapter(std::int32_t heads, std::int32_t key_heads, std::int32_t key_dim) {
  Shape shape = adapter(heads, key_dim);
  shape.num_key_heads = key_heads;
  return shape;
}
Shape mean_key(std::int32_t heads, std::int32_t key_heads, std::int32_t key_dim) {
  Shape shape;
  shape.is_adapter = false;
  shape.num_heads = heads;
  shape.num_key_heads = key_heads;
  shape.key_dim = key_dim;
  shape.row_size = shape.key_size();
  shape.budget = tokens_budget(300);
  return shape;
}

/// Closed by this token, closed before, still in its first chunk, not in use.
const std::vector<Phase> kMixed = {{40, 0, true},  {37, 5, false}, {0, 0, false}, {64, 0, true},
                                   {50, 7, true},  {0, 9, false},  {1, 0, true},  {29, 0, false},
                                   {33, 1, false}, {3, 0, true}};

template <typename T>
class RefreshLayerOf : public testing::DeviceTest {};
using KeyTypes = ::testing::Types<__half, __nv_bfloat16>;
TYPED_TEST_SUITE(RefreshLayerOf, KeyTypes);
using RefreshLayer = testing::DeviceTest;

TYPED_TEST(RefreshLayerOf, EqualsSeparateLaunchesInABatchAtDifferentPhases) {
  for (const Shape& shape : {adapter(1, 128), adapter(2, 64), adapter(4, 32), adapter(8, 128),
                             adapter(1, 256), adapter(9, 3, 48), mean_key(2, 1, 64),
                             mean_key(8, 2, 128), mean_key(32, 8, 128), mean_key(3, 3, 40)}) {
    SCOPED_TRACE((shape.is_adapter ? "adapter, heads " : "mean key, heads ") +
                 std::to_string(shape.num_heads) + ", key_dim " + std::to_string(shape.key_dim));
    compare<TypeParam>(shape, kMixed, this->seed(), this->stream_, false);
  }
}

TYPED_TEST(RefreshLayerOf, MakesTheSameScores) {
  const std::vector<Phase> phases = {{60, 0, true}, {41, 3, true}, {55, 0, false}};
  for (Shape shape :
       {adapter(1, 128), adapter(2, 128), adapter(4, 64), adapter(9, 3, 48), mean_key(1, 1, 128),
        mean_key(2, 1, 64), mean_key(8, 4, 64), mean_key(4, 4, 256)}) {
    shape.budget = tokens_budget(200);
    for (const HeadJoin join : {HeadJoin::kMax, HeadJoin::kMean}) {
      SCOPED_TRACE("heads " + std::to_string(shape.num_heads));
      shape.head_join = join;
      compare<TypeParam>(shape, phases, this->seed() + 1, this->stream_);
    }
  }
}

TYPED_TEST(RefreshLayerOf, TakesManyChunksAndWideRows) {
  Shape shape = adapter(1, 128);
  shape.row_size = 4096 + 264;
  shape.max_chunks = 5120;
  shape.span_capacity = 16384;
  shape.budget = tokens_budget(12000);
  compare<TypeParam>(shape, {{5000, 0, true}}, this->seed() + 2, this->stream_);
  shape = mean_key(32, 8, 128);
  shape.max_chunks = 5120;
  shape.span_capacity = 16384;
  shape.budget = tokens_budget(12000);
  compare<TypeParam>(shape, {{5000, 0, true}}, this->seed() + 3, this->stream_);
}

TEST_F(RefreshLayer, ReadsCandidatesThatSharedMemoryDoesNotHold) {
  Shape shape = adapter(2, 32);
  shape.max_chunks = kCachedCandidates + 2000;
  shape.span_capacity = 160000;
  for (const std::int64_t tokens : {1000, 150000}) {  // few chosen chunks, and more than are cached
    shape.budget = tokens_budget(tokens);
    compare<__half>(shape, {{shape.max_chunks, 0, true}}, seed() + 4, stream_);
  }
}

TEST_F(RefreshLayer, DoesNothingButSumsWithoutTriggers) {
  for (const Shape& shape : {adapter(1, 128), mean_key(8, 2, 128)}) {
    const std::vector<Phase> phases = {
        {37, 5, false}, {0, 1, false}, {0, 0, false}, {12, 1, false}};
    compare<__nv_bfloat16>(shape, phases, seed() + 5, stream_);
    const Inputs<__nv_bfloat16> inputs(shape, phases, seed() + 5);
    const Refresh<__nv_bfloat16> untouched(inputs);
    const Refresh<__nv_bfloat16> refresh(inputs);
    ASSERT_TRUE(succeeds(launch_refresh_layer(refresh.args(), stream_)));
    EXPECT_EQ(bytes_of(refresh.sums), bytes_of(untouched.sums)) << "the launch leaves sums alone";
    EXPECT_EQ(bytes_of(refresh.span_tokens), bytes_of(untouched.span_tokens));
  }
}

TEST_F(RefreshLayer, HandlesFewCandidatesAndFittingBudgets) {
  for (Shape shape : {adapter(1, 128), mean_key(8, 2, 128)}) {
    // Chunks of up to 40 tokens: none, one and a few candidates in front of the local window.
    for (std::int32_t chunks = 0; chunks < 12; ++chunks) {
      SCOPED_TRACE("chunks " + std::to_string(chunks));
      for (const std::int64_t tokens : {0, 100, 1000000}) {
        shape.budget = tokens_budget(tokens);
        compare<__half>(shape, {{chunks, 0, chunks > 0}, {chunks, 4, true}, {30, 0, true}},
                        seed() + 6 + at(chunks), stream_, false);
      }
    }
  }
}

TEST_F(RefreshLayer, ReportsOverflowingSpans) {
  Shape shape = adapter(1, 128);
  shape.span_capacity = 77;
  compare<__half>(shape, {{60, 0, true}, {44, 0, true}}, seed() + 7, stream_);
}

TEST_F(RefreshLayer, CountsNanScores) {
  for (Shape shape : {adapter(1, 128), adapter(4, 64)}) {
    shape.nan_share = 0.1F;
    compare<__nv_bfloat16>(shape, {{60, 0, true}, {64, 2, true}}, seed() + 8, stream_, false);
  }
}

TEST_F(RefreshLayer, WorksInGraphsAndOnTwoStreams) {
  Shape shape = mean_key(32, 8, 128);
  shape.max_chunks = 2048;
  shape.budget = tokens_budget(3000);
  shape.span_capacity = 8192;
  const Inputs<__nv_bfloat16> inputs(shape, {{2000, 0, true}, {1500, 0, true}}, seed() + 9);
  const Refresh<__nv_bfloat16> apart(inputs);
  ASSERT_TRUE(succeeds(apart.apart(stream_)));
  const Refresh<__nv_bfloat16> captured(inputs);
  replay_as_graph([&](cudaStream_t s) { return captured.together(s); });
  expect_equal(captured, apart, true);

  cudaStream_t other = nullptr;
  ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking)));
  const Refresh<__nv_bfloat16> one(inputs);
  const Refresh<__nv_bfloat16> two(inputs);
  for (int i = 0; i < 20; ++i) {  // many at once: none may wait for blocks that find no room
    EXPECT_TRUE(succeeds(launch_refresh_layer(one.args(), stream_)));
    EXPECT_TRUE(succeeds(launch_refresh_layer(two.args(), other)));
  }
  ASSERT_TRUE(succeeds(launch_sum_newest_rows(one.args().update, stream_)));
  ASSERT_TRUE(succeeds(launch_sum_newest_rows(two.args().update, other)));
  ASSERT_TRUE(succeeds(cudaStreamSynchronize(other)));
  expect_equal(one, apart, true);
  expect_equal(two, apart, true);
  EXPECT_TRUE(succeeds(cudaStreamDestroy(other)));
}

TEST(RefreshLayerRefusals, SayWhatIsSupported) {
  RefreshLayerArgs<__half, __half, __half> args;
  args.update.num_layers = 2;
  args.score.num_layers = 2;
  EXPECT_EQ(launch_refresh_layer(args, nullptr).code(), StatusCode::kUnsupported);
  args.update.num_layers = args.score.num_layers = 1;
  args.update.table.num_seqs = kMostRefreshSeqs + 1;
  EXPECT_EQ(launch_refresh_layer(args, nullptr).code(), StatusCode::kUnsupported);
}

TEST(RefreshLayerRefusals, PartsMustFitEachOther) {
  using Args = RefreshLayerArgs<__half, __half, __half>;
  // Of two sequences; nothing is launched.
  const auto at_page = [](std::uintptr_t page) { return page * 4096; };
  auto* const half = reinterpret_cast<__half*>(at_page(1));
  auto* const keys = reinterpret_cast<__half*>(at_page(2));
  auto* const queries = reinterpret_cast<float*>(at_page(3));
  auto* const scores = reinterpret_cast<float*>(at_page(4));
  auto* const ints = reinterpret_cast<std::int32_t*>(at_page(5));
  constexpr std::int32_t kHeads = 9;
  constexpr std::int32_t kKeyHeads = 3;
  constexpr std::int32_t kDim = 48;
  constexpr std::int32_t kStride = kHeads * kDim + 12;
  const auto status_of = [&](const auto& change) {
    Args all;
    all.update.num_layers = all.score.num_layers = 1;
    all.update.row_size = 64;
    all.update.key_size = kKeyHeads * kDim;
    all.update.num_heads = all.score.num_heads = kHeads;
    all.update.num_query_features = kHeads * kDim;
    all.update.table = {ints, ints, 2, 8};
    all.update.num_tokens = all.update.maybe_triggers = ints;
    all.update.rows = all.update.maybe_key_weight = half;
    all.update.maybe_query_weight = all.update.maybe_null_weight = half;
    all.update.open_sums = queries;
    all.update.keys = keys;
    all.update.queries = queries;
    all.update.query_seq_stride = kStride;
    all.score.queries = queries;
    all.score.query_stride = all.score.null_stride = kStride;
    all.score.maybe_null = queries + kHeads * kDim;
    all.score.keys = keys;
    all.score.table = all.update.table;
    all.score.triggers = {ints, nullptr, 2};
    all.score.num_key_heads = kKeyHeads;
    all.score.key_dim = kDim;
    all.score.scores = scores;
    all.score.score_stride = 8;
    all.score.workspace = scores;
    all.score.workspace_bytes = score_chunks_workspace_bytes(1, 2, kHeads, 8);
    all.select.scores = scores;
    all.select.score_stride = 8;
    all.select.table = all.update.table;
    all.select.triggers = all.score.triggers;
    all.select.chosen = all.select.num_chosen = all.select.num_nan = ints;
    all.select.max_chosen = 8;
    all.plan.table = all.update.table;
    all.plan.triggers = all.score.triggers;
    all.plan.chosen = ints;
    all.plan.max_chosen = 8;
    all.plan.num_chosen = ints;
    all.plan.sets = {ints, ints, ints, 2, 64};
    change(all);
    return launch_refresh_layer(all, nullptr);
  };
  // Without a state the launch ends behind the checks.
  const Status fitting = status_of([](Args&) {});
  EXPECT_NE(fitting.message().find("state"), std::string::npos) << fitting.message();
  const auto expect_refused = [&](const std::string& word, const auto& change) {
    const Status status = status_of(change);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  };
  expect_refused("chunk table", [&](Args& a) { a.score.table.num_chunks = ints + 2; });
  expect_refused("chunk table", [&](Args& a) { a.update.table.num_chunks = ints + 2; });
  expect_refused("table", [&](Args& a) { a.plan.table.num_chunks = ints + 2; });
  expect_refused("scores", [&](Args& a) { a.select.scores = queries; });
  expect_refused("keys", [&](Args& a) { a.score.keys = half; });
  expect_refused("keys", [](Args& a) { a.update.key_size = kDim; });
  expect_refused("keys", [](Args& a) { a.score.key_seq_stride = 16 * kKeyHeads * kDim; });
  expect_refused("queries", [&](Args& a) { a.score.queries = scores; });
  expect_refused("queries", [](Args& a) { a.score.query_stride = kStride + 4; });
  expect_refused("queries", [](Args& a) { a.update.num_query_features = kHeads * kDim - 8; });
  expect_refused("null logits", [](Args& a) { a.score.maybe_null = nullptr; });
  expect_refused("null logits", [](Args& a) { a.score.null_stride = 0; });
  expect_refused("open keys", [&](Args& a) { a.score.maybe_open_keys = queries; });
}

}  // namespace
}  // namespace chunkllm::kernels
