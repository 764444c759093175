// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/train/attention_distillation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "chunkllm/io/json.hpp"
#include "reference/distillation_oracle.hpp"
#include "support/compare.hpp"
#include "support/random_values.hpp"
#include "support/test_paths.hpp"

namespace chunkllm {
namespace {

using testing::random_values;

struct CaseOptions {
  std::int64_t hidden = 12;
  std::int64_t num_heads = 4;
  std::int64_t num_key_heads = 2;
  std::int64_t key_dim = 3;
  std::int64_t num_chunks = 7;
  std::int64_t num_rows = 9;
  bool has_bias = true;
  bool adds_log_length = true;
  std::uint32_t seed = 1;
};

/// A layer and a sequence, owned.
struct Case {
  CaseOptions options;
  ScorerShape shape;
  QkAdapterLayer adapter;
  std::vector<float> inputs;
  std::vector<float> pooled;
  std::vector<std::int64_t> triggers;
  std::vector<std::int64_t> chunk_ends;
  std::vector<std::int64_t> candidate_ends;
  std::vector<float> weights;
  std::vector<float> mass;

  [[nodiscard]] DistillationRows rows() const {
    const auto num_rows = static_cast<std::int64_t>(triggers.size());
    const auto num_chunks = static_cast<std::int64_t>(chunk_ends.size());
    DistillationRows view;
    view.inputs = {inputs.data(), num_rows, shape.state_size};
    view.pooled = {pooled.data(), num_chunks, shape.state_size};
    view.triggers = triggers;
    view.chunk_ends = chunk_ends;
    view.candidate_ends = candidate_ends;
    view.weights = weights;
    view.mass = mass;
    return view;
  }
  [[nodiscard]] float* mass_of(std::int64_t row, std::int64_t head) {
    return mass.data() + (row * shape.num_heads + head) * options.num_chunks;
  }
};

ScorerShape shape_of(const CaseOptions& o) {
  ScorerShape shape;
  shape.num_heads = o.num_heads;
  shape.num_key_heads = o.num_key_heads;
  shape.key_dim = o.key_dim;
  shape.state_size = o.hidden;
  shape.uses_input = true;
  shape.adds_log_length = o.adds_log_length;
  shape.has_null_logits = true;
  shape.scale = 1.0F / std::sqrt(static_cast<float>(o.key_dim));
  return shape;
}

/// Triggers at random; a row's candidates are some of the chunks closed there, the later rows'
/// more.
Case make_case(const CaseOptions& o) {
  Case c;
  c.options = o;
  c.shape = shape_of(o);
  std::mt19937 random(o.seed);
  const float size = 1.0F / std::sqrt(static_cast<float>(o.hidden));
  c.adapter.query_weight = random_values(random, o.num_heads * o.key_dim * o.hidden, size);
  c.adapter.key_weight = random_values(random, o.num_key_heads * o.key_dim * o.hidden, size);
  if (o.has_bias) c.adapter.distance_bias = random_values(random, o.num_heads * kNumDistanceBins);
  c.adapter.null_weight = random_values(random, o.num_heads * o.hidden, size);
  c.adapter.null_bias = random_values(random, o.num_heads);
  c.inputs = random_values(random, o.num_rows * o.hidden);
  c.pooled = random_values(random, o.num_chunks * o.hidden);
  std::int64_t end = 0;
  for (std::int64_t i = 0; i < o.num_chunks; ++i) {
    c.chunk_ends.push_back(end += static_cast<std::int64_t>(1 + random() % 40));
  }
  for (std::int64_t r = 0; r < o.num_rows; ++r) {
    const std::int64_t closed = o.num_chunks * (r + 1) / o.num_rows;
    const std::int64_t last = closed == 0 ? 0 : c.chunk_ends[static_cast<std::size_t>(closed - 1)];
    c.triggers.push_back(std::max<std::int64_t>(last - 1, 0) +
                         static_cast<std::int64_t>(random() % 3));
    // Now and then fewer than at the row before.
    c.candidate_ends.push_back(
        std::max<std::int64_t>(0, closed - static_cast<std::int64_t>(random() % 2)));
    c.weights.push_back(r % 4 == 3 ? 20.0F : 0.25F * static_cast<float>(1 + random() % 8));
  }
  std::exponential_distribution<float> share;
  for (std::int64_t r = 0; r < o.num_rows * o.num_heads; ++r) {
    // Shares that leave something to the null class, that add up to 1, and to more than that.
    std::vector<float> shares;
    float sum = r % 3 == 0 ? share(random) : 0.0F;
    for (std::int64_t i = 0; i < o.num_chunks; ++i) {
      shares.push_back(i % 5 == 4 ? 0.0F : share(random));
      sum += shares.back();
    }
    if (r % 3 == 2) sum *= 0.5F;
    for (const float value : shares) c.mass.push_back(value / sum);
  }
  return c;
}

oracle::Row to_double(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

oracle::Rows to_rows(const std::vector<float>& values, std::int64_t cols) {
  oracle::Rows rows;
  for (auto it = values.begin(); it != values.end(); it += cols) rows.emplace_back(it, it + cols);
  return rows;
}

oracle::AdapterLayer to_oracle(const QkAdapterLayer& layer) {
  return {to_double(layer.query_weight), to_double(layer.key_weight),
          to_double(layer.distance_bias), to_double(layer.null_weight), to_double(layer.null_bias)};
}

oracle::DistillationProblem to_oracle(const Case& c) {
  oracle::DistillationProblem p;
  p.num_heads = c.shape.num_heads;
  p.num_key_heads = c.shape.num_key_heads;
  p.key_dim = c.shape.key_dim;
  p.adds_log_length = c.shape.adds_log_length;
  p.inputs = to_rows(c.inputs, c.shape.state_size);
  p.pooled = to_rows(c.pooled, c.shape.state_size);
  p.triggers = c.triggers;
  p.ends = c.chunk_ends;
  p.candidate_ends = c.candidate_ends;
  p.weights = to_double(c.weights);
  const auto num_chunks = static_cast<std::int64_t>(c.chunk_ends.size());
  const oracle::Rows mass = to_rows(c.mass, num_chunks);
  for (std::size_t r = 0; r < c.triggers.size(); ++r) {
    const auto first = mass.begin() + static_cast<std::int64_t>(r) * p.num_heads;
    p.mass.emplace_back(first, first + p.num_heads);
  }
  return p;
}

QkAdapterLayer zeros_like(const QkAdapterLayer& layer) {
  QkAdapterLayer zeros = layer;
  for (auto* part : {&zeros.query_weight, &zeros.key_weight, &zeros.distance_bias,
                     &zeros.null_weight, &zeros.null_bias}) {
    std::fill(part->begin(), part->end(), 0.0F);
  }
  return zeros;
}

constexpr std::array kPartNames = {"query_weight", "key_weight", "distance_bias", "null_weight",
                                   "null_bias"};
std::array<std::vector<float>, 5> parts(const QkAdapterLayer& l) {
  return {l.query_weight, l.key_weight, l.distance_bias, l.null_weight, l.null_bias};
}
std::array<oracle::Row*, 5> parts(oracle::AdapterLayer& l) {
  return {&l.query_weight, &l.key_weight, &l.distance_bias, &l.null_weight, &l.null_bias};
}

void expect_same_bits(const QkAdapterLayer& a, const QkAdapterLayer& b) {
  for (std::size_t i = 0; i < kPartNames.size(); ++i) EXPECT_EQ(parts(a)[i], parts(b)[i]);
}

struct Step {
  DistillationLoss loss;
  QkAdapterLayer gradient;
};

Step run(const Case& c, double scale = 1.0) {
  DistillationScratch scratch;
  Step step = {{}, zeros_like(c.adapter)};
  const Result<DistillationLoss> loss =
      add_distillation_gradient(c.adapter, c.shape, c.rows(), scale, step.gradient, scratch);
  EXPECT_TRUE(loss.ok()) << loss.status().message();
  if (loss.ok()) step.loss = loss.value();
  return step;
}

Status error_of(const Case& c) {
  DistillationScratch scratch;
  QkAdapterLayer gradient = zeros_like(c.adapter);
  gradient.key_weight.assign(gradient.key_weight.size(), 0.5F);
  const QkAdapterLayer before = gradient;
  const Result<DistillationLoss> loss =
      add_distillation_gradient(c.adapter, c.shape, c.rows(), 1.0, gradient, scratch);
  EXPECT_FALSE(loss.ok());
  expect_same_bits(gradient, before);
  EXPECT_EQ(distillation_loss(c.adapter, c.shape, c.rows(), scratch).status().message(),
            loss.status().message());
  return loss.status();
}

/// Error of a gradient: logits are chains of hidden + key_dim products of ordinary size, their
/// rounding goes through the softmax unchanged and into sums over rows, whose sizes the part's
/// largest value and the weight of a single row bound.
double gradient_bound(const Case& c, const oracle::Row& expected) {
  double largest = *std::max_element(c.weights.begin(), c.weights.end());
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  const auto chain = static_cast<double>(c.shape.state_size + c.shape.key_dim + 40);
  return largest * chain * testing::kUnitRoundoff;
}

/// Compares the loss, and the gradient at every `every`-th value of each part, with the oracle and
/// its central differences.
void expect_oracle(const Case& c, std::size_t every) {
  const double scale = 0.375;
  const Step step = run(c, scale);
  const oracle::DistillationProblem problem = to_oracle(c);
  oracle::AdapterLayer adapter = to_oracle(c.adapter);
  const double expected_loss = oracle::distillation_kl_sum(adapter, problem);
  EXPECT_NEAR(step.loss.kl_sum, expected_loss, 1e-5 * expected_loss);
  for (std::size_t part = 0; part < kPartNames.size(); ++part) {
    const std::vector<float> gradient = parts(step.gradient)[part];
    std::vector<float> actual;
    oracle::Row expected;
    for (std::size_t i = part; i < gradient.size(); i += every) {
      // The difference's own error is of the order of step^2 and of the loss' rounding / step.
      constexpr double kStep = 1e-4;
      double& value = (*parts(adapter)[part])[i];
      const double kept = value;
      value = kept + kStep;
      const double above = oracle::distillation_kl_sum(adapter, problem);
      value = kept - kStep;
      const double below = oracle::distillation_kl_sum(adapter, problem);
      value = kept;
      expected.push_back(scale * (above - below) / (2.0 * kStep));
      actual.push_back(gradient[i]);
    }
    EXPECT_TRUE(testing::all_within(actual, expected, gradient_bound(c, expected)))
        << kPartNames[part];
  }
}

TEST(AttentionDistillation, LossAndGradientAgreeWithCentralDifferences) {
  std::uint32_t seed = 1;
  for (const std::int64_t key_heads : {1, 2, 4}) {
    for (const bool has_bias : {false, true}) {
      for (const bool adds_log_length : {false, true}) {
        SCOPED_TRACE(std::to_string(key_heads) + " key heads" + (has_bias ? ", bias" : "") +
                     (adds_log_length ? ", lengths" : ""));
        expect_oracle(make_case({.num_key_heads = key_heads,
                                 .has_bias = has_bias,
                                 .adds_log_length = adds_log_length,
                                 .seed = ++seed}),
                      /*every=*/1);
      }
    }
  }
}

TEST(AttentionDistillation, ShapesBeyondATileAgreeToo) {
  // Rows, chunks, features and outputs beyond a tile, a panel and a block of depth.
  expect_oracle(make_case({.hidden = 300,
                           .num_heads = 6,
                           .num_key_heads = 3,
                           .key_dim = 20,
                           .num_chunks = 70,
                           .num_rows = 61}),
                /*every=*/2003);
  expect_oracle(make_case({.hidden = 32, .key_dim = 48, .num_chunks = 34, .num_rows = 100}),
                /*every=*/401);
  expect_oracle(make_case({.hidden = 1,
                           .num_heads = 1,
                           .num_key_heads = 1,
                           .key_dim = 1,
                           .num_chunks = 3,
                           .num_rows = 1}),
                /*every=*/1);
}

TEST(AttentionDistillation, AgreesWithPyTorch) {
  const Result<Json> read =
      read_json_file(testing::golden_dir() + "/attention_distillation.json", JsonLimits{});
  ASSERT_TRUE(read.ok()) << read.status().message();
  const Json& golden = read.value();
  const auto floats = [](const Json& values) { return values.get<std::vector<float>>(); };
  const auto integers = [](const Json& values) { return values.get<std::vector<std::int64_t>>(); };
  Case c;
  c.chunk_ends = integers(golden.at("chunk_ends"));
  c.triggers = integers(golden.at("triggers"));
  c.candidate_ends = integers(golden.at("candidate_ends"));
  c.options.num_chunks = static_cast<std::int64_t>(c.chunk_ends.size());
  c.options.hidden = golden.at("hidden_size").get<std::int64_t>();
  c.options.num_heads = golden.at("num_heads").get<std::int64_t>();
  c.options.num_key_heads = golden.at("num_key_heads").get<std::int64_t>();
  c.options.key_dim = golden.at("key_dim").get<std::int64_t>();
  c.shape = shape_of(c.options);
  c.weights = floats(golden.at("weights"));
  c.inputs = floats(golden.at("inputs"));
  c.pooled = floats(golden.at("pooled"));
  c.mass = floats(golden.at("mass"));
  const auto layer_of = [&](const Json& values) {
    return QkAdapterLayer{floats(values.at("query_weight")), floats(values.at("key_weight")),
                          floats(values.at("distance_bias")), floats(values.at("null_weight")),
                          floats(values.at("null_bias"))};
  };
  c.adapter = layer_of(golden.at("adapter"));
  const Step step = run(c);
  const double kl_sum = golden.at("kl_sum").get<double>();
  EXPECT_NEAR(step.loss.kl_sum, kl_sum, 1e-6 * kl_sum);
  EXPECT_EQ(step.loss.weight_sum, 42.5);
  EXPECT_EQ(step.loss.num_rows, 5);
  const QkAdapterLayer expected = layer_of(golden.at("gradient"));
  for (std::size_t part = 0; part < kPartNames.size(); ++part) {
    const oracle::Row values = to_double(parts(expected)[part]);
    EXPECT_TRUE(testing::all_within(parts(step.gradient)[part], values, gradient_bound(c, values)))
        << kPartNames[part];
  }
}

/// Replaces the teacher by what inference makes of the same weights, head by head.
void teach_by_score_chunks(Case& c) {
  const CaseOptions& o = c.options;
  const QkAdapter adapter({c.adapter}, o.hidden, o.num_heads, o.num_key_heads, o.key_dim,
                          KeyPooling::kEndToken, o.adds_log_length);
  ChunkTable table;
  std::vector<float> log_lengths;
  std::vector<ChunkKeys> keys(static_cast<std::size_t>(o.num_key_heads), ChunkKeys(o.key_dim));
  std::vector<float> key(static_cast<std::size_t>(adapter.shape().key_size()));
  for (std::int64_t i = 0; i < o.num_chunks; ++i) {
    table.close(c.chunk_ends[static_cast<std::size_t>(i)]);
    log_lengths.push_back(std::log(static_cast<float>(table.length(i))));
    adapter.make_key(0, c.pooled.data() + i * o.hidden, table.length(i), key.data());
    for (std::int64_t g = 0; g < o.num_key_heads; ++g) {
      keys[static_cast<std::size_t>(g)].append(key.data() + g * o.key_dim);
    }
  }
  std::vector<float> query(static_cast<std::size_t>(adapter.shape().query_size()));
  std::vector<float> scratch;
  for (std::size_t r = 0; r < c.triggers.size(); ++r) {
    TokenRow row;
    row.input = c.inputs.data() + static_cast<std::int64_t>(r) * o.hidden;
    adapter.make_query(0, row, query.data());
    for (std::int64_t h = 0; h < o.num_heads; ++h) {
      ScoreChunksArgs args;
      args.query = query.data() + h * o.key_dim;
      args.maybe_null = query.data() + o.num_heads * o.key_dim + h;
      if (o.has_bias) args.maybe_bias = adapter.distance_bias(0) + h * kNumDistanceBins;
      if (o.adds_log_length) args.maybe_log_lengths = log_lengths.data();
      args.keys = &keys[static_cast<std::size_t>(h / (o.num_heads / o.num_key_heads))];
      args.table = &table;
      args.range.num_closed = o.num_chunks;
      args.range.end = c.candidate_ends[r];
      args.query_token = c.triggers[r];
      args.num_heads = 1;
      args.num_key_heads = 1;
      args.key_dim = o.key_dim;
      args.scale = adapter.shape().scale;
      const auto candidates = static_cast<std::size_t>(args.range.num_candidates());
      score_chunks(args, {c.mass_of(static_cast<std::int64_t>(r), h) + 1, candidates}, scratch);
    }
  }
}

TEST(AttentionDistillation, ATeacherEqualToInferenceLeavesNothingToLearn) {
  for (const bool all : {false, true}) {
    Case c = make_case({.hidden = 40,
                        .key_dim = 8,
                        .num_chunks = 40,
                        .num_rows = 20,
                        .has_bias = all,
                        .adds_log_length = all});
    const double before = run(c).loss.mean();
    EXPECT_GT(before, 0.1);
    teach_by_score_chunks(c);
    const Step step = run(c);
    EXPECT_EQ(step.loss.num_rows, 19);
    // Logits of some 5 with 60 roundings each.
    EXPECT_NEAR(step.loss.mean(), 0.0, 300 * testing::kUnitRoundoff);
    for (std::size_t part = 0; part < kPartNames.size(); ++part) {
      const oracle::Row zeros(parts(step.gradient)[part].size(), 0.0);
      EXPECT_TRUE(testing::all_within(parts(step.gradient)[part], zeros, gradient_bound(c, zeros)))
          << kPartNames[part];
    }
  }
}

TEST(AttentionDistillation, GradientsAddOverSequences) {
  const Case a = make_case({.seed = 5});
  Case b = make_case({.num_chunks = 20, .num_rows = 14, .seed = 6});
  b.adapter = a.adapter;
  const Step of_a = run(a);
  const Step of_b = run(b);
  QkAdapterLayer both = zeros_like(a.adapter);
  DistillationScratch scratch;
  DistillationLoss loss;
  for (const Case* c : {&a, static_cast<const Case*>(&b)}) {
    const Result<DistillationLoss> one =
        add_distillation_gradient(c->adapter, c->shape, c->rows(), 1.0, both, scratch);
    ASSERT_TRUE(one.ok());
    loss += one.value();
  }
  EXPECT_EQ(loss.kl_sum, of_a.loss.kl_sum + of_b.loss.kl_sum);
  EXPECT_EQ(loss.weight_sum, of_a.loss.weight_sum + of_b.loss.weight_sum);
  EXPECT_EQ(loss.num_rows, of_a.loss.num_rows + of_b.loss.num_rows);
  for (std::size_t part = 0; part < kPartNames.size(); ++part) {
    oracle::Row sum = to_double(parts(of_a.gradient)[part]);
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] += static_cast<double>(parts(of_b.gradient)[part][i]);
    }
    EXPECT_TRUE(testing::all_within(parts(both)[part], sum, gradient_bound(b, sum)))
        << kPartNames[part];
  }
}

TEST(AttentionDistillation, ScratchAndLossAloneChangeNoBit) {
  const Case small = make_case({.seed = 7});
  const Case large = make_case({.hidden = 70, .num_chunks = 50, .num_rows = 40, .seed = 8});
  const Step fresh = run(small);
  DistillationScratch scratch;
  QkAdapterLayer gradient = zeros_like(large.adapter);
  ASSERT_TRUE(
      add_distillation_gradient(large.adapter, large.shape, large.rows(), 1.0, gradient, scratch)
          .ok());
  gradient = zeros_like(small.adapter);
  const Result<DistillationLoss> loss =
      add_distillation_gradient(small.adapter, small.shape, small.rows(), 1.0, gradient, scratch);
  ASSERT_TRUE(loss.ok());
  EXPECT_EQ(loss->kl_sum, fresh.loss.kl_sum);
  expect_same_bits(gradient, fresh.gradient);
  const Result<DistillationLoss> alone =
      distillation_loss(small.adapter, small.shape, small.rows(), scratch);
  ASSERT_TRUE(alone.ok());
  EXPECT_EQ(alone->kl_sum, fresh.loss.kl_sum);
  EXPECT_EQ(alone->weight_sum, fresh.loss.weight_sum);
}

TEST(AttentionDistillation, WeightsAndScaleMultiply) {
  const Case c = make_case({});
  const Step step = run(c);
  Case doubled = c;
  for (float& weight : doubled.weights) weight *= 2.0F;
  const Step by_weight = run(doubled);
  EXPECT_EQ(by_weight.loss.kl_sum, 2.0 * step.loss.kl_sum);
  EXPECT_EQ(by_weight.loss.mean(), step.loss.mean());
  expect_same_bits(by_weight.gradient, run(c, 2.0).gradient);
  EXPECT_EQ(by_weight.gradient.null_bias[1], 2.0F * step.gradient.null_bias[1]);
  EXPECT_EQ(DistillationLoss().mean(), 0.0);
}

TEST(AttentionDistillation, RowsThatAreNotUsedAreNotRead) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  Case with = make_case({.num_rows = 12, .seed = 9});
  // Among the used rows: one of weight 0, one with a single candidate, one with none.
  const std::vector<std::int64_t> unused = {5, 7, 10};
  with.weights[5] = 0.0F;
  with.candidate_ends[7] = 2;
  with.candidate_ends[10] = 0;
  Case without = with;
  for (auto it = unused.rbegin(); it != unused.rend(); ++it) {
    const std::int64_t r = *it;
    const std::int64_t hidden = with.options.hidden;
    const std::int64_t row_mass = with.options.num_heads * with.options.num_chunks;
    std::fill_n(with.inputs.begin() + r * hidden, hidden, kNan);
    std::fill_n(with.mass_of(r, 0), row_mass, kNan);
    without.inputs.erase(without.inputs.begin() + r * hidden,
                         without.inputs.begin() + (r + 1) * hidden);
    without.mass.erase(without.mass.begin() + r * row_mass,
                       without.mass.begin() + (r + 1) * row_mass);
    without.triggers.erase(without.triggers.begin() + r);
    without.candidate_ends.erase(without.candidate_ends.begin() + r);
    without.weights.erase(without.weights.begin() + r);
  }
  const Step expected = run(without);
  const Step actual = run(with);
  EXPECT_GT(expected.loss.num_rows, 0);
  EXPECT_EQ(actual.loss.num_rows, expected.loss.num_rows);
  EXPECT_EQ(actual.loss.kl_sum, expected.loss.kl_sum);
  EXPECT_EQ(actual.loss.weight_sum, expected.loss.weight_sum);
  expect_same_bits(actual.gradient, expected.gradient);
}

TEST(AttentionDistillation, NothingToUseAddsNothing) {
  Case c = make_case({});
  for (std::int64_t& end : c.candidate_ends) end = std::min<std::int64_t>(end, 2);
  const Step step = run(c);
  EXPECT_EQ(step.loss.num_rows, 0);
  EXPECT_EQ(step.loss.kl_sum, 0.0);
  expect_same_bits(step.gradient, zeros_like(c.adapter));
  Case empty;
  empty.shape = c.shape;
  empty.adapter = c.adapter;
  EXPECT_EQ(run(empty).loss.weight_sum, 0.0);
}

TEST(AttentionDistillation, ChunksThatAreNoCandidatesAreNotRead) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  Case c = make_case({.num_chunks = 40, .num_rows = 30, .seed = 10});
  for (std::int64_t& end : c.candidate_ends) end = std::min<std::int64_t>(end, 37);
  const Step expected = run(c);
  for (std::int64_t r = 0; r < c.options.num_rows; ++r) {
    for (std::int64_t h = 0; h < c.options.num_heads; ++h) {
      c.mass_of(r, h)[0] = kNan;
      for (std::int64_t i =
               std::max<std::int64_t>(1, c.candidate_ends[static_cast<std::size_t>(r)]);
           i < c.options.num_chunks; ++i) {
        c.mass_of(r, h)[i] = kNan;
      }
    }
  }
  std::fill_n(c.pooled.begin(), c.options.hidden, kNan);
  std::fill_n(c.pooled.begin() + 37 * c.options.hidden, 3 * c.options.hidden, kNan);
  const Step actual = run(c);
  EXPECT_EQ(actual.loss.kl_sum, expected.loss.kl_sum);
  expect_same_bits(actual.gradient, expected.gradient);
}

TEST(AttentionDistillation, AStudentThatHasRuledOutAChunkStaysFinite) {
  Case c = make_case({});
  for (float& value : c.adapter.null_bias) value = 300.0F;  // every share underflows
  const Step step = run(c);
  EXPECT_TRUE(std::isfinite(step.loss.kl_sum));
  EXPECT_GT(step.loss.mean(), 50.0);
  EXPECT_LT(std::abs(step.gradient.null_bias[0]), 200.0F);
}

TEST(AttentionDistillation, BadMassIsRefusedByRow) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -1e-3F, std::numeric_limits<float>::infinity()}) {
    Case c = make_case({});
    ASSERT_GE(c.candidate_ends[6], 3);
    c.mass_of(6, 2)[1] = bad;
    const Status status = error_of(c);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message().rfind("row 6, head 2: the teacher's mass", 0), 0U)
        << status.message();
  }
}

TEST(AttentionDistillation, LogitsThatAreNotFiniteAreRefusedByRow) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Case c = make_case({});
    c.inputs[static_cast<std::size_t>(7 * c.options.hidden + 2)] = bad;
    const Status status = error_of(c);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message().rfind("row 7, head 0: the adapter's logits", 0), 0U)
        << status.message();
  }
}

TEST(AttentionDistillation, SizesAndListsAreChecked) {
  const Case good = make_case({});
  const auto expect_error = [&](auto&& change, const std::string& start,
                                StatusCode code = StatusCode::kInvalidArgument) {
    Case c = good;
    change(c);
    const Status status = error_of(c);
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(status.message().rfind(start, 0), 0U) << status.message();
  };
  expect_error([](Case& c) { c.shape.has_null_logits = false; }, "training needs",
               StatusCode::kUnsupported);
  expect_error([](Case& c) { c.shape.num_key_heads = 3; }, "the scorer has 4 heads, 3 key heads");
  expect_error([](Case& c) { c.adapter.query_weight.pop_back(); },
               "weights.query_weight has 143 values, expected 144");
  expect_error([](Case& c) { c.adapter.key_weight.pop_back(); }, "weights.key_weight");
  expect_error([](Case& c) { c.adapter.distance_bias.pop_back(); }, "weights.distance_bias");
  expect_error([](Case& c) { c.adapter.null_weight.clear(); }, "weights.null_weight");
  expect_error([](Case& c) { c.adapter.null_bias.clear(); }, "weights.null_bias");
  expect_error([](Case& c) { c.weights.pop_back(); }, "weights.size is 8, expected 9");
  expect_error([](Case& c) { c.candidate_ends.pop_back(); }, "candidate_ends.size");
  expect_error([](Case& c) { c.mass.pop_back(); }, "mass.size is 251, expected 252");
  expect_error([](Case& c) { c.chunk_ends[3] = c.chunk_ends[2]; }, "chunk_ends[3]");
  expect_error([](Case& c) { c.chunk_ends[0] = 0; }, "chunk_ends[0]");
  expect_error([](Case& c) { c.candidate_ends[2] = 6; }, "candidate_ends[2] is 6, expected 0 to ");
  expect_error([](Case& c) { c.candidate_ends[8] = 8; }, "candidate_ends[8] is 8, expected 0 to 7");
  expect_error([](Case& c) { c.candidate_ends[0] = -1; }, "candidate_ends[0] is -1");
  expect_error([](Case& c) { c.weights[1] = -1.0F; }, "weights[1]");
  expect_error([](Case& c) { c.weights[1] = std::numeric_limits<float>::quiet_NaN(); },
               "weights[1]");

  DistillationScratch scratch;
  QkAdapterLayer gradient = zeros_like(good.adapter);
  gradient.distance_bias.clear();
  const Result<DistillationLoss> loss =
      add_distillation_gradient(good.adapter, good.shape, good.rows(), 1.0, gradient, scratch);
  EXPECT_EQ(loss.status().message(), "gradient.distance_bias has 0 values, expected 136");
}

}  // namespace
}  // namespace chunkllm
