// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/kernels/score_chunks.cuh"
#include "cuda/support/device.hpp"
#include "cuda/support/device_chunks.hpp"
#include "reference/oracle.hpp"
#include "support/compare.hpp"

namespace chunkllm::kernels {
namespace {

using testing::DeviceBuffer;
using testing::DeviceChunks;
using testing::DeviceTriggerList;
using testing::succeeds;

struct Shape {
  std::int32_t num_layers = 2;
  std::int32_t num_heads = 4;
  std::int32_t num_key_heads = 2;
  std::int32_t key_dim = 32;
  bool has_null = false;
  bool has_bias = false;
  bool has_lengths = true;
  bool has_open = true;
  HeadJoin join = HeadJoin::kMax;
  std::int32_t slack = 5;  // chunks a sequence's room is larger than the longest
  bool has_absent = true;  // every fourth trigger
  bool has_integers = false;
  float scale = 0.25F;
  float query_size = 1.0F;  // factor of the queries
};

/// Random operands of all layers and triggers, on the host and on the device.
template <typename Key>
class ScoreRun {
 public:
  ScoreRun(const Shape& shape, const std::vector<std::int32_t>& num_chunks,
           const std::vector<std::int32_t>& seqs, std::uint64_t seed)
      : shape_(shape),
        random_(static_cast<std::uint32_t>(seed)),
        chunks_(num_chunks, *std::max_element(num_chunks.begin(), num_chunks.end()) + shape.slack,
                random_),
        triggers_(tokens(seqs), seqs),
        stride_(chunks_.max_chunks() + 1) {
    const auto layers = static_cast<std::size_t>(shape.num_layers);
    const std::size_t rows = layers * triggers_.count();
    queries_ = normal(rows * query_size());
    for (float& value : queries_) value *= shape.query_size;
    null_ = normal(rows * heads());
    bias_ = normal(layers * heads() * kNumDistanceBins);
    open_keys_ = normal(rows * key_size());
    const std::vector<float> keys = normal(
        layers * num_chunks.size() * static_cast<std::size_t>(chunks_.max_chunks()) * key_size());
    device_keys_.emplace_back(testing::rounded<Key>(keys));
    keys_ = testing::widened(testing::rounded<Key>(keys));
    workspace_bytes_ =
        score_chunks_workspace_bytes(shape.num_layers, static_cast<std::int32_t>(triggers_.count()),
                                     shape.num_heads, chunks_.max_chunks());
    workspace_.emplace_back(workspace_bytes_);
    scores_.emplace_back(rows * static_cast<std::size_t>(stride_), 3);
  }

  std::vector<float>& queries() { return queries_; }
  std::vector<float>& bias() { return bias_; }
  [[nodiscard]] const std::vector<float>& null_logits() const { return null_; }
  [[nodiscard]] const DeviceTriggerList& triggers() const { return triggers_; }

  void upload() {
    device_queries_.clear();
    device_queries_.emplace_back(queries_);
    device_queries_.emplace_back(null_);
    device_queries_.emplace_back(bias_);
    device_queries_.emplace_back(open_keys_);
  }

  [[nodiscard]] DeviceScoreArgs<Key> args() const {
    DeviceScoreArgs<Key> args;
    args.queries = device_queries_[0].data();
    if (shape_.has_null) args.maybe_null = device_queries_[1].data();
    if (shape_.has_bias) args.maybe_bias = device_queries_[2].data();
    if (shape_.has_open) args.maybe_open_keys = device_queries_[3].data();
    args.keys = device_keys_[0].data();
    args.table = chunks_.view();
    args.triggers = triggers_.view();
    args.num_layers = shape_.num_layers;
    args.num_heads = shape_.num_heads;
    args.num_key_heads = shape_.num_key_heads;
    args.key_dim = shape_.key_dim;
    args.adds_log_length = shape_.has_lengths;
    args.scale = shape_.scale;
    args.head_join = shape_.join;
    args.scores = scores_[0].data();
    args.score_stride = stride_;
    args.workspace = workspace_[0].data();
    args.workspace_bytes = workspace_bytes_;
    return args;
  }
  /// As args(), of triggers [first, first + count) alone, for one layer.
  [[nodiscard]] DeviceScoreArgs<Key> part(std::size_t first, std::int32_t count) const {
    DeviceScoreArgs<Key> part = args();
    part.queries += first * query_size();
    if (part.maybe_null != nullptr) part.maybe_null += first * heads();
    if (part.maybe_open_keys != nullptr) part.maybe_open_keys += first * key_size();
    part.scores += static_cast<std::int64_t>(first) * part.score_stride;
    part.triggers.tokens += first;
    part.triggers.maybe_seqs += first;
    part.triggers.count = count;
    return part;
  }
  /// As args(), of one layer alone.
  [[nodiscard]] DeviceScoreArgs<Key> layer_part(std::size_t layer) const {
    DeviceScoreArgs<Key> part = args();
    const std::size_t rows = layer * triggers_.count();
    part.queries += rows * query_size();
    if (part.maybe_null != nullptr) part.maybe_null += rows * heads();
    if (part.maybe_bias != nullptr) part.maybe_bias += layer * heads() * kNumDistanceBins;
    if (part.maybe_open_keys != nullptr) part.maybe_open_keys += rows * key_size();
    part.keys += layer * static_cast<std::size_t>(part.table.num_seqs) *
                 static_cast<std::size_t>(chunks_.max_chunks()) * key_size();
    part.scores += static_cast<std::int64_t>(rows) * part.score_stride;
    part.num_layers = 1;
    return part;
  }
  void poison() {
    scores_[0].poison();
    workspace_[0].poison();
    ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));  // the default stream orders no other
  }
  [[nodiscard]] std::vector<float> download() const { return scores_[0].download(); }
  /// Uploads, launches all and downloads.
  std::vector<float> scores(cudaStream_t stream) {
    upload();
    poison();
    EXPECT_TRUE(succeeds(launch_score_chunks(args(), stream)));
    return download();
  }
  [[nodiscard]] std::size_t num_candidates(std::size_t i) const {
    if (triggers_.token(i) < 0) return 0;
    return static_cast<std::size_t>(
        chunkllm::candidate_range(chunks_.table(triggers_.seq(i)), triggers_.token(i), 64, 2)
            .num_candidates());
  }
  /// The scores of a layer and trigger among what was downloaded.
  [[nodiscard]] std::vector<float> row(const std::vector<float>& all, std::size_t layer,
                                       std::size_t i) const {
    const auto first = all.begin() + static_cast<std::ptrdiff_t>((layer * triggers_.count() + i) *
                                                                 static_cast<std::size_t>(stride_));
    return {first, first + static_cast<std::ptrdiff_t>(num_candidates(i))};
  }

  void expect_equals_oracle() const {
    const std::vector<float> all = download();
    for (std::size_t layer = 0; layer < static_cast<std::size_t>(shape_.num_layers); ++layer) {
      for (std::size_t i = 0; i < triggers_.count(); ++i) {
        SCOPED_TRACE("layer " + std::to_string(layer) + ", trigger " + std::to_string(i) +
                     " at token " + std::to_string(triggers_.token(i)));
        const std::size_t begin =
            (layer * triggers_.count() + i) * static_cast<std::size_t>(stride_);
        for (std::size_t c = num_candidates(i); c < static_cast<std::size_t>(stride_); ++c) {
          ASSERT_TRUE(std::isnan(all[begin + c])) << "written behind the candidates at " << c;
        }
        if (num_candidates(i) > 0) expect_row(row(all, layer, i), layer, i);
      }
    }
    EXPECT_TRUE(scores_[0].intact());
    EXPECT_TRUE(workspace_[0].intact());
  }

 private:
  [[nodiscard]] std::size_t heads() const { return static_cast<std::size_t>(shape_.num_heads); }
  [[nodiscard]] std::size_t dim() const { return static_cast<std::size_t>(shape_.key_dim); }
  [[nodiscard]] std::size_t query_size() const { return heads() * dim(); }
  [[nodiscard]] std::size_t key_size() const {
    return static_cast<std::size_t>(shape_.num_key_heads) * dim();
  }
  /// For each trigger its sequence's last boundary, a token inside the open chunk behind it, none,
  /// or some token before.
  std::vector<std::int32_t> tokens(const std::vector<std::int32_t>& seqs) {
    std::vector<std::int32_t> tokens;
    for (std::size_t i = 0; i < seqs.size(); ++i) {
      const std::int32_t last = chunks_.last_boundary(static_cast<std::size_t>(seqs[i]));
      const auto earlier = static_cast<std::int32_t>(random_() % static_cast<unsigned>(last + 1));
      if (shape_.has_absent) {
        tokens.push_back(i % 4 == 0 ? last : i % 4 == 1 ? last + 6 : i % 4 == 2 ? -1 : earlier);
      } else {
        tokens.push_back(i % 5 == 0 ? last : earlier);
      }
    }
    return tokens;
  }
  std::vector<float> normal(std::size_t size) {
    // Few values of many bits: the library's own normal distribution is slow.
    std::vector<float> values(size);
    for (float& value : values) {
      float sum = 0.0F;
      for (int k = 0; k < 3; ++k) sum += static_cast<float>(random_() >> 8) * 0x1p-24F;
      value = 2.0F * sum - 3.0F;
      if (shape_.has_integers) value = std::round(value);
    }
    return values;
  }

  /// z is a sum of key_dim products plus a logarithm and a bias; its error goes through exp into
  /// every probability. The softmax's sum adds a rounding a candidate, and its rescalings (at most
  /// 16 in a lane, then one a merge of lanes and stretches) 5 roundings each.
  ///
  /// With f32 keys a product adds one rounding, u = 2^-24. Tensor cores multiply exactly and add in
  /// steps of at most 16 products and the sum so far: each addend is cut where the largest has its
  /// 24th bit, and so is their sum. Done in two halves of 8 that is at most 2 (8 + 2) cuts of 2u of
  /// what the sum may reach, sum |q k|: 40u for 16 features, for which 3u a feature stand, of whole
  /// steps of 32. The terms of q lose rounding twice: bf16 2^-9 2^-9 of each q; f16 less, but where
  /// the second term is subnormal, 2^-25 of the largest q.
  void expect_row(const std::vector<float>& scores, std::size_t layer, std::size_t i) const {
    const ChunkTable& table = chunks_.table(triggers_.seq(i));
    const std::int32_t trigger = triggers_.token(i);
    const CandidateRange range = chunkllm::candidate_range(table, trigger, 64, 2);
    const std::size_t row = layer * triggers_.count() + i;
    const auto widen = [](const std::vector<float>& from, std::size_t first, std::size_t size) {
      const auto begin = from.begin() + static_cast<std::ptrdiff_t>(first);
      return oracle::Row(begin, begin + static_cast<std::ptrdiff_t>(size));
    };
    oracle::ScoreProblem p;
    for (std::size_t h = 0; h < heads(); ++h) {
      p.queries.push_back(widen(queries_, row * query_size() + h * dim(), dim()));
      if (shape_.has_bias) {
        p.bias.push_back(widen(bias_, (layer * heads() + h) * kNumDistanceBins, kNumDistanceBins));
      }
    }
    double size = 0.0;
    double cut_size = 0.0;  // the same for the largest q in place of each
    const std::size_t group = heads() / static_cast<std::size_t>(shape_.num_key_heads);
    const std::size_t first_row =
        (layer * static_cast<std::size_t>(chunks_.view().num_seqs) + triggers_.seq(i)) *
        static_cast<std::size_t>(chunks_.max_chunks());
    for (std::int64_t c = 0; c < range.num_closed; ++c) {
      p.keys.push_back(
          widen(keys_, (first_row + static_cast<std::size_t>(c)) * key_size(), key_size()));
      for (std::size_t h = 0; h < heads(); ++h) {
        double sum = 0.0;
        double key_sum = 0.0;
        double largest = 0.0;
        for (std::size_t d = 0; d < dim(); ++d) {
          const double key = std::abs(p.keys.back()[h / group * dim() + d]);
          sum += std::abs(p.queries[h][d]) * key;
          key_sum += key;
          largest = std::max(largest, std::abs(p.queries[h][d]));
        }
        size = std::max(size, sum);
        cut_size = std::max(cut_size, largest * key_sum);
      }
      if (shape_.has_lengths) p.lengths.push_back(static_cast<double>(table.length(c)));
      p.last_tokens.push_back(table.end(c) - 1);
    }
    const std::int64_t open_begin = range.num_closed == 0 ? 0 : table.end(range.num_closed - 1);
    if (shape_.has_open && trigger >= open_begin) {
      p.open_key = widen(open_keys_, row * key_size(), key_size());
      p.open_length = static_cast<double>(trigger + 1 - open_begin);
    }
    if (shape_.has_null) p.null_logits = widen(null_, row * heads(), heads());
    p.candidate_end = range.end;
    p.query_token = trigger;
    p.num_key_heads = shape_.num_key_heads;
    p.scale = static_cast<double>(shape_.scale);
    p.mean_over_heads = shape_.join == HeadJoin::kMean;
    const oracle::Row expected = oracle::scores(p);
    const auto scale = static_cast<double>(shape_.scale);
    double roundings = static_cast<double>(shape_.key_dim) + 3.0;
    double split = 0.0;
    if (!std::is_same_v<Key, float>) {
      roundings = 3.0 * static_cast<double>((shape_.key_dim + 31) / 32 * 32) + 3.0;
      split = std::is_same_v<Key, __half> ? 0x1p-22 * size + 0x1p-25 * cut_size : 0x1p-18 * size;
    }
    const double logit = testing::kUnitRoundoff * (roundings * scale * size + 48.0) + scale * split;
    std::vector<double> bounds;
    for (const double score : expected) {
      bounds.push_back(
          score * (2.0 * std::expm1(2.0 * logit) +
                   (static_cast<double>(range.num_closed) + 200.0 + static_cast<double>(heads())) *
                       testing::kUnitRoundoff) +
          1e-37);
    }
    EXPECT_TRUE(testing::all_within(scores, expected, bounds));
  }

  Shape shape_;
  std::mt19937 random_;
  DeviceChunks chunks_;
  DeviceTriggerList triggers_;
  std::int64_t stride_;
  std::vector<float> queries_;
  std::vector<float> null_;
  std::vector<float> bias_;
  std::vector<float> open_keys_;
  std::vector<float> keys_;
  std::size_t workspace_bytes_ = 0;
  std::vector<DeviceBuffer<float>> device_queries_;  // queries, null logits, bias, open keys
  std::vector<DeviceBuffer<Key>> device_keys_;
  std::vector<DeviceBuffer<unsigned char>> workspace_;
  std::vector<DeviceBuffer<float>> scores_;
};

class ScoreChunks : public testing::DeviceTest {
 protected:
  template <typename Key>
  void check(const Shape& shape, const std::vector<std::int32_t>& num_chunks,
             const std::vector<std::int32_t>& seqs) {
    ScoreRun<Key> run(shape, num_chunks, seqs, seed());
    const std::vector<float> first = run.scores(stream_);
    run.expect_equals_oracle();
    run.poison();
    replay_as_graph([&](cudaStream_t stream) { return launch_score_chunks(run.args(), stream); },
                    2);
    const std::vector<float> second = run.download();
    EXPECT_TRUE(std::equal(first.begin(), first.end(), second.begin(), [](float a, float b) {
      return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
    })) << "two runs differ";
  }
};

TEST_F(ScoreChunks, EqualsTheOracleWithEveryTerm) {
  const std::vector<std::int32_t> num_chunks = {0, 1, 2, 6, 31, 32, 33, 65, 130, 515};
  for (int bits = 0; bits < 32; ++bits) {
    Shape shape;
    shape.has_null = (bits & 1) != 0;
    shape.has_bias = (bits & 2) != 0;
    shape.has_lengths = (bits & 4) != 0;
    shape.has_open = (bits & 8) != 0;
    shape.join = (bits & 16) != 0 ? HeadJoin::kMean : HeadJoin::kMax;
    SCOPED_TRACE("case " + std::to_string(bits));
    check<__nv_bfloat16>(shape, num_chunks,
                         {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 8, 7, 6, 5, 4, 3, 8});
    if (HasFailure()) return;
  }
}

TEST_F(ScoreChunks, KeyTypesHeadCountsAndKeySizes) {
  struct Case {
    std::int32_t num_heads;
    std::int32_t num_key_heads;
    std::int32_t key_dim;
  };
  for (const Case& c :
       {Case{1, 1, 8},     Case{1, 1, 64},   Case{1, 1, 128},  Case{1, 1, 96},  Case{3, 3, 256},
        Case{1, 1, 512},   Case{2, 1, 64},   Case{7, 1, 128},  Case{8, 2, 40},  Case{12, 4, 128},
        Case{28, 4, 128},  Case{16, 1, 192}, Case{10, 2, 256}, Case{4, 1, 512}, Case{9, 9, 64},
        Case{20, 20, 128}, Case{32, 8, 128}, Case{9, 1, 96},   Case{6, 2, 136}, Case{7, 1, 320},
        Case{48, 3, 64}}) {
    SCOPED_TRACE(std::to_string(c.num_heads) + " heads, " + std::to_string(c.num_key_heads) +
                 " key heads of " + std::to_string(c.key_dim));
    Shape shape;
    shape.num_heads = c.num_heads;
    shape.num_key_heads = c.num_key_heads;
    shape.key_dim = c.key_dim;
    check<__nv_bfloat16>(shape, {150, 71}, {0, 0, 1, 1, 0, 1});
    check<__half>(shape, {150, 71}, {0, 0, 1, 1, 0, 1});
    check<float>(shape, {150, 71}, {0, 0, 1, 1, 0, 1});
    if (HasFailure()) return;
  }
}

TEST_F(ScoreChunks, FiveThousandChunksOfTheMeanKeyAndTheAdapter) {
  Shape shape;
  shape.num_layers = 1;
  shape.num_heads = 8;
  shape.num_key_heads = 2;
  shape.key_dim = 128;
  check<__nv_bfloat16>(shape, {5000}, {0});
  shape.num_layers = 3;
  shape.num_heads = 1;
  shape.num_key_heads = 1;
  shape.has_null = true;
  shape.has_bias = true;
  check<__nv_bfloat16>(shape, {5000, 30}, {0, 0, 1, 0, 0});
}

TEST_F(ScoreChunks, ATriggersScoresDoNotDependOnTheOthers) {
  Shape shape;
  shape.num_layers = 1;
  // More triggers than a block lays out at a time.
  std::vector<std::int32_t> seqs(600);
  for (std::size_t i = 0; i < seqs.size(); ++i) seqs[i] = i % 3 == 0 ? 1 : 0;
  ScoreRun<__half> run(shape, {200, 90}, seqs, seed());
  const std::vector<float> together = run.scores(stream_);
  run.expect_equals_oracle();
  run.poison();
  // Each in a launch of its own, 50 sampled.
  for (std::size_t i = 0; i < seqs.size(); i += 12) {
    ASSERT_TRUE(succeeds(launch_score_chunks(run.part(i, 1), stream_)));
  }
  const std::vector<float> alone = run.download();
  for (std::size_t i = 0; i < seqs.size(); i += 12) {
    ASSERT_TRUE(run.row(alone, 0, i) == run.row(together, 0, i)) << "trigger " << i;
  }
}

/// 20 triggers of one sequence, as in prefill, then some of two sequences by turns.
std::vector<std::int32_t> mixed_seqs() {
  std::vector<std::int32_t> seqs(20, 0);
  for (std::int32_t i = 0; i < 20; ++i) seqs.push_back(i % 2);
  return seqs;
}

TEST_F(ScoreChunks, PrefillBatchAndSingleTriggersAgreeToTheBit) {
  for (const std::int32_t group : {1, 3, 4, 7, 9, 16}) {
    for (const std::int32_t key_dim : {64, 96, 128, 192}) {
      SCOPED_TRACE("groups of " + std::to_string(group) + ", " + std::to_string(key_dim) +
                   " features");
      Shape shape;
      shape.num_layers = 1;
      shape.num_heads = 2 * group;
      shape.key_dim = key_dim;
      shape.has_absent = false;
      shape.has_bias = true;
      shape.has_null = group == 3;
      ScoreRun<__nv_bfloat16> run(shape, {161, 97}, mixed_seqs(), seed());
      const std::vector<float> together = run.scores(stream_);
      if (group == 7) run.expect_equals_oracle();
      for (const std::int32_t count : {1, 2, 3, 7, 8, 9, 19, 40}) {
        run.poison();
        for (std::size_t i = 0; i + static_cast<std::size_t>(count) <= 40;
             i += static_cast<std::size_t>(count)) {
          ASSERT_TRUE(succeeds(launch_score_chunks(run.part(i, count), stream_)));
        }
        const std::vector<float> apart = run.download();
        for (std::size_t i = 0; i < static_cast<std::size_t>(40 / count * count); ++i) {
          ASSERT_TRUE(run.row(apart, 0, i) == run.row(together, 0, i))
              << "trigger " << i << " in launches of " << count;
        }
      }
    }
  }
}

TEST_F(ScoreChunks, OneToFortyTriggersOfASequenceEqualTheOracle) {
  Shape shape;
  shape.num_layers = 1;
  shape.num_heads = 6;
  shape.num_key_heads = 2;
  shape.has_absent = false;
  for (std::size_t count = 1; count <= 40; ++count) {
    SCOPED_TRACE(std::to_string(count) + " triggers");
    ScoreRun<__nv_bfloat16> run(shape, {100}, std::vector<std::int32_t>(count, 0), seed());
    run.scores(stream_);
    run.expect_equals_oracle();
    if (HasFailure()) return;
  }
}

TEST_F(ScoreChunks, AllLayersInOneLaunchAgreeWithEachAloneToTheBit) {
  Shape shape;
  shape.num_layers = 5;
  shape.num_heads = 12;
  shape.num_key_heads = 3;
  shape.key_dim = 128;
  shape.has_bias = true;
  for (const bool has_null : {false, true}) {
    shape.has_null = has_null;
    ScoreRun<__half> run(shape, {300, 70}, {0, 1, 0}, seed());
    const std::vector<float> together = run.scores(stream_);
    run.poison();
    for (std::size_t layer = 0; layer < 5; ++layer) {
      ASSERT_TRUE(succeeds(launch_score_chunks(run.layer_part(layer), stream_)));
    }
    const std::vector<float> apart = run.download();
    for (std::size_t layer = 0; layer < 5; ++layer) {
      for (std::size_t i = 0; i < 3; ++i) {
        ASSERT_TRUE(run.row(apart, layer, i) == run.row(together, layer, i))
            << "layer " << layer << ", trigger " << i;
      }
    }
  }
}

/// Integers make all products and sums exact, so that logits of both passes are the same: a feature
/// that meets the wrong one shows.
template <typename Key>
void expect_same_as_f32_keys(const Shape& shape, std::uint64_t seed, cudaStream_t stream) {
  const std::vector<std::int32_t> seqs = mixed_seqs();
  ScoreRun<float> exact(shape, {161, 97}, seqs, seed);
  ScoreRun<Key> run(shape, {161, 97}, seqs, seed);
  const std::vector<float> expected = exact.scores(stream);
  const std::vector<float> scores = run.scores(stream);
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    const std::vector<float> a = exact.row(expected, 0, i);
    const std::vector<float> b = run.row(scores, 0, i);
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t c = 0; c < a.size(); ++c) {
      // Only the softmax's sum has another order: a rounding a chunk, and of each exponential.
      ASSERT_LE(std::abs(a[c] - b[c]), a[c] * 600.0F * 0x1p-24F + 1e-37F)
          << "trigger " << i << ", candidate " << c << ": " << b[c] << ", expected " << a[c];
    }
  }
}

TEST_F(ScoreChunks, IntegersScoreAsWithF32Keys) {
  for (const std::int32_t key_dim : {8, 24, 32, 64, 72, 96, 104, 128, 136, 192, 256, 512}) {
    for (const std::int32_t group : {1, 4, 7}) {
      SCOPED_TRACE("groups of " + std::to_string(group) + ", " + std::to_string(key_dim) +
                   " features");
      Shape shape;
      shape.num_layers = 1;
      shape.num_heads = 3 * group;
      shape.num_key_heads = 3;
      shape.key_dim = key_dim;
      shape.has_integers = true;
      shape.has_absent = false;
      expect_same_as_f32_keys<__nv_bfloat16>(shape, seed(), stream_);
      expect_same_as_f32_keys<__half>(shape, seed(), stream_);
      if (HasFailure()) return;
    }
  }
}

TEST_F(ScoreChunks, QueriesFarOutsideTheRangeOfHalfPrecision) {
  for (const float size : {1e-30F, 1e-7F, 1e6F, 1e30F}) {
    SCOPED_TRACE("queries of " + std::to_string(std::log10(size)) + " digits");
    Shape shape;
    shape.num_layers = 1;
    shape.query_size = size;
    shape.scale = 0.25F / size;
    shape.has_open = false;
    check<__half>(shape, {150, 71}, {0, 0, 1, 1, 0, 1});
    check<__nv_bfloat16>(shape, {150, 71}, {0, 0, 1, 1, 0, 1});
  }
}

TEST_F(ScoreChunks, AFaultyQueryDoesNotReachTheTriggersBesideIt) {
  Shape shape;
  shape.num_layers = 1;
  shape.num_heads = 3;
  shape.num_key_heads = 1;
  shape.key_dim = 64;
  shape.has_absent = false;
  ScoreRun<__half> run(shape, {161}, std::vector<std::int32_t>(16, 0), seed());
  const std::vector<float> sound = run.scores(stream_);
  run.queries()[5 * 3 * 64 + 70] = std::numeric_limits<float>::quiet_NaN();
  run.queries()[10 * 3 * 64 + 1] = std::numeric_limits<float>::infinity();
  const std::vector<float> faulty = run.scores(stream_);
  for (std::size_t i = 0; i < 16; ++i) {
    const std::vector<float> row = run.row(faulty, 0, i);
    if (i == 5 || i == 10) {
      for (const float score : row) ASSERT_TRUE(std::isnan(score)) << "trigger " << i;
    } else {
      ASSERT_TRUE(row == run.row(sound, 0, i)) << "trigger " << i;
    }
  }
}

TEST_F(ScoreChunks, NullLogitsMayStandInWiderRows) {
  Shape shape;
  shape.has_null = true;
  ScoreRun<__nv_bfloat16> run(shape, {90, 40}, {0, 1, 0, 0}, seed());
  const std::vector<float> dense = run.scores(stream_);
  run.poison();
  std::vector<float> wide(8 * 7, 1e30F);  // 2 layers of 4 triggers with 4 heads
  for (std::size_t row = 0; row < 8; ++row) {
    for (std::size_t h = 0; h < 4; ++h) wide[row * 7 + h] = run.null_logits()[row * 4 + h];
  }
  const DeviceBuffer<float> device_wide(wide);
  DeviceScoreArgs<__nv_bfloat16> args = run.args();
  args.maybe_null = device_wide.data();
  args.null_stride = 7;
  ASSERT_TRUE(succeeds(launch_score_chunks(args, stream_)));
  const std::vector<float> strided = run.download();
  for (std::size_t layer = 0; layer < 2; ++layer) {
    for (std::size_t i = 0; i < 4; ++i) {
      ASSERT_TRUE(run.row(strided, layer, i) == run.row(dense, layer, i)) << "trigger " << i;
    }
  }
}

TEST_F(ScoreChunks, QueriesOfNineHeadsCarryTheirNullLogitsInPaddedRows) {
  Shape shape;
  shape.num_heads = 9;
  shape.num_key_heads = 3;
  shape.key_dim = 48;
  shape.has_null = true;
  shape.has_bias = true;
  constexpr std::size_t kFeatures = std::size_t{9} * 48;
  constexpr std::size_t kStride = kFeatures + 12;  // 9 null logits and a gap
  constexpr std::size_t kRows = 8;                 // 2 layers of 4 triggers
  ScoreRun<__nv_bfloat16> run(shape, {90, 40}, {0, 1, 0, 0}, seed());
  const std::vector<float> dense = run.scores(stream_);
  run.expect_equals_oracle();
  run.poison();
  std::vector<float> padded(kRows * kStride, std::numeric_limits<float>::quiet_NaN());
  for (std::size_t row = 0; row < kRows; ++row) {
    for (std::size_t d = 0; d < kFeatures; ++d) {
      padded[row * kStride + d] = run.queries()[row * kFeatures + d];
    }
    for (std::size_t h = 0; h < 9; ++h) {
      padded[row * kStride + kFeatures + h] = run.null_logits()[row * 9 + h];
    }
  }
  const DeviceBuffer<float> device_padded(padded);
  DeviceScoreArgs<__nv_bfloat16> args = run.args();
  args.queries = device_padded.data();
  args.query_stride = kStride;
  args.maybe_null = device_padded.data() + kFeatures;
  args.null_stride = kStride;
  ASSERT_TRUE(succeeds(launch_score_chunks(args, stream_)));
  const std::vector<float> strided = run.download();
  for (std::size_t layer = 0; layer < 2; ++layer) {
    for (std::size_t i = 0; i < 4; ++i) {
      ASSERT_TRUE(run.row(strided, layer, i) == run.row(dense, layer, i)) << "trigger " << i;
    }
  }
}

TEST_F(ScoreChunks, NanAndInfinityInOneHeadReachEveryScore) {
  for (const HeadJoin join : {HeadJoin::kMax, HeadJoin::kMean}) {
    for (int fault = 0; fault < 2; ++fault) {
      SCOPED_TRACE("fault " + std::to_string(fault));
      Shape shape;
      shape.num_layers = 1;
      shape.has_bias = true;
      shape.join = join;
      ScoreRun<__nv_bfloat16> run(shape, {130}, {0}, seed());
      if (fault == 0) {
        run.queries()[3 * 32 + 1] = std::numeric_limits<float>::quiet_NaN();
      } else {
        for (std::size_t bin = 10; bin < 34; ++bin) {
          run.bias()[2 * 34 + bin] = std::numeric_limits<float>::infinity();
        }
      }
      run.upload();
      run.poison();
      const std::vector<float> zeros(static_cast<std::size_t>(run.args().score_stride), 0.0F);
      ASSERT_TRUE(
          succeeds(testing::copy_to_device(run.args().scores, std::span<const float>(zeros))));
      ASSERT_TRUE(succeeds(launch_score_chunks(run.args(), stream_)));
      const std::vector<float> scores = run.row(run.download(), 0, 0);
      ASSERT_FALSE(scores.empty());
      for (std::size_t c = 0; c < scores.size(); ++c) {
        ASSERT_TRUE(std::isnan(scores[c])) << "candidate " << c << ": " << scores[c];
      }
    }
  }
}

TEST_F(ScoreChunks, TwoStreamsDoNotDisturbEachOther) {
  const Shape shape;
  ScoreRun<__half> a(shape, {300, 9}, {0, 0, 1, 0}, seed());
  ScoreRun<__half> b(shape, {200, 40}, {0, 1, 1, 0}, seed() + 1);
  a.upload();
  b.upload();
  a.poison();
  b.poison();
  cudaStream_t other = nullptr;
  ASSERT_TRUE(succeeds(cudaDeviceSynchronize()));
  ASSERT_TRUE(succeeds(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking)));
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(succeeds(launch_score_chunks(a.args(), stream_)));
    EXPECT_TRUE(succeeds(launch_score_chunks(b.args(), other)));
  }
  a.expect_equals_oracle();
  b.expect_equals_oracle();
  EXPECT_TRUE(succeeds(cudaStreamDestroy(other)));
}

TEST(ScoreChunksRefusals, NameWhatIsSupported) {
  alignas(16) float floats[64] = {};
  alignas(16) __half halves[64] = {};
  std::int32_t ints[4] = {};
  DeviceScoreArgs<__half> good;
  EXPECT_TRUE(launch_score_chunks(good, nullptr).ok()) << "no trigger, nothing to do";
  good.queries = floats;
  good.keys = halves;
  good.scores = floats;
  good.table = {ints, ints, 1, 4};
  good.triggers = {ints, nullptr, 1};
  good.num_layers = good.num_heads = good.num_key_heads = 1;
  good.key_dim = 8;
  good.score_stride = 3;
  good.workspace = floats;
  good.workspace_bytes = 0;
  EXPECT_EQ(launch_score_chunks(good, nullptr).code(), StatusCode::kInvalidArgument);
  DeviceScoreArgs<__half> bad = good;
  bad.key_dim = 12;
  EXPECT_EQ(launch_score_chunks(bad, nullptr).code(), StatusCode::kUnsupported);
  bad.key_dim = 520;
  EXPECT_EQ(launch_score_chunks(bad, nullptr).code(), StatusCode::kUnsupported);
  bad = good;
  bad.num_heads = 3;
  bad.num_key_heads = 2;
  EXPECT_EQ(launch_score_chunks(bad, nullptr).code(), StatusCode::kUnsupported);
  bad = good;
  bad.workspace_bytes = 1 << 20;
  bad.queries = floats + 1;
  EXPECT_EQ(launch_score_chunks(bad, nullptr).code(), StatusCode::kInvalidArgument);
  bad = good;
  bad.score_stride = 2;
  EXPECT_EQ(launch_score_chunks(bad, nullptr).code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm::kernels
