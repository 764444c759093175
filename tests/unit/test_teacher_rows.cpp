// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/train/teacher_rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/eval/oracle_scores.hpp"
#include "reference/decoder_oracle.hpp"
#include "support/compare.hpp"
#include "support/memory_tensor_source.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm {
namespace {

using Positions = std::vector<std::int64_t>;

/// A dense pass in double: what the definition of the rows speaks of.
struct NaivePass {
  std::vector<oracle::Matrix> inputs;  // [layer][token]
  /// [layer][head][row][token]
  std::vector<std::vector<oracle::Matrix>> probabilities;
};

/// Attention probabilities of one head, causal.
oracle::Matrix naive_probabilities(const BackboneConfig& config, const oracle::Tensors& tensors,
                                   std::int64_t layer, const oracle::Matrix& normed,
                                   std::int64_t head) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".self_attn.";
  const std::int64_t kv_head = head * config.num_kv_heads / config.num_heads;
  oracle::Matrix keys;
  oracle::Matrix rows;
  for (std::size_t t = 0; t < normed.size(); ++t) {
    const auto position = static_cast<std::int64_t>(t);
    const auto turned = [&](const char* name, std::int64_t of_head) {
      return oracle::rotate(oracle::head_of(oracle::project(tensors, prefix + name, normed[t]),
                                            of_head, config.head_dim),
                            position, config);
    };
    keys.push_back(turned("k_proj", kv_head));
    const oracle::Vector q = turned("q_proj", head);
    oracle::Vector row;
    double sum = 0.0;
    for (const oracle::Vector& key : keys) {
      double dot = 0.0;
      for (std::size_t d = 0; d < q.size(); ++d) dot += q[d] * key[d];
      row.push_back(std::exp(dot / std::sqrt(static_cast<double>(config.head_dim))));
      sum += row.back();
    }
    for (double& p : row) p /= sum;
    rows.push_back(std::move(row));
  }
  return rows;
}

NaivePass naive_pass(const BackboneConfig& config, const oracle::Tensors& tensors,
                     const std::vector<std::int32_t>& ids) {
  NaivePass pass;
  const oracle::Vector& embedding = tensors.at("model.embed_tokens.weight");
  oracle::Matrix hidden;
  for (const std::int32_t id : ids) {
    hidden.emplace_back(embedding.begin() + id * config.hidden_size,
                        embedding.begin() + (id + 1) * config.hidden_size);
  }
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const auto norm = [&](const oracle::Vector& x, const char* name) {
      return oracle::rms_norm(x, tensors.at(prefix + name), config.rms_norm_eps);
    };
    oracle::Matrix normed;
    for (const oracle::Vector& x : hidden) normed.push_back(norm(x, "input_layernorm.weight"));
    pass.inputs.push_back(normed);
    pass.probabilities.emplace_back();
    for (std::int64_t head = 0; head < config.num_heads; ++head) {
      pass.probabilities.back().push_back(
          naive_probabilities(config, tensors, layer, normed, head));
    }
    const oracle::Matrix attended = oracle::attention(config, tensors, layer, normed);
    for (std::size_t t = 0; t < hidden.size(); ++t) {
      oracle::add(hidden[t], oracle::project(tensors, prefix + "self_attn.o_proj", attended[t]));
      oracle::add(hidden[t], oracle::gated_mlp(tensors, prefix + "mlp.",
                                               norm(hidden[t], "post_attention_layernorm.weight")));
    }
  }
  return pass;
}

/// Mean over rows [row_begin, row_end) of the mass on tokens [begin, end), as far as they are seen.
double naive_mass(const oracle::Matrix& probabilities, std::int64_t row_begin, std::int64_t row_end,
                  std::int64_t begin, std::int64_t end) {
  double sum = 0.0;
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const oracle::Vector& p = probabilities[static_cast<std::size_t>(row)];
    for (std::int64_t t = begin; t < std::min(end, row + 1); ++t) {
      sum += p[static_cast<std::size_t>(t)];
    }
  }
  return sum / static_cast<double>(row_end - row_begin);
}

ChunkOptions small_window() {
  ChunkOptions options;
  options.local_min_tokens = 20;
  return options;
}

Result<TeacherRows> collect(const DecoderBackbone& backbone, const std::vector<std::int32_t>& ids,
                            const Positions& ends, const Positions& triggers,
                            KeyPooling pooling = KeyPooling::kMean, int num_threads = 2) {
  ThreadPool pool(num_threads);
  return collect_teacher_rows<float>(backbone, ids, ends, triggers, small_window(), pooling, pool,
                                     {});
}

/// f32 sums of up to 48 products are off by at most 48 * 2^-24 = 3e-6 of their magnitudes, which
/// are some units; three layers of a few such sums, each amplified a few times at most.
constexpr double kValueBound = 1e-4;
/// Masses lie in [0, 1]; an error e of a logit of magnitude below 10 moves one by at most 2 e.
constexpr double kMassBound = 1e-4;

TEST(TeacherRows, EqualTheDefinitionInDouble) {
  const BackboneConfig config = testing::tiny_config();
  testing::MemoryTensorSource source = testing::MemoryTensorSource::random(config, 1);
  const DecoderBackbone backbone = testing::tiny_backbone(config, 1);
  const std::vector<std::int32_t> ids = testing::tiny_text(150);
  const Positions ends = {5, 6, 40, 75, 110, 111, 140};
  const Positions triggers = {4, 5, 39, 50, 74, 109, 110, 139, 149};
  const auto rows = collect(backbone, ids, ends, triggers);
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  EXPECT_EQ(rows->triggers, Positions(triggers.begin(), triggers.end() - 1));
  EXPECT_EQ(rows->chunk_ends, ends);
  EXPECT_EQ(rows->hidden_size, 32);
  EXPECT_EQ(rows->num_heads, 4);
  ASSERT_EQ(rows->layers.size(), 3U);

  const NaivePass pass = naive_pass(config, source.to_double(), ids);
  for (std::size_t layer = 0; layer < 3; ++layer) {
    const TeacherRows::Layer& actual = rows->layers[layer];
    std::vector<double> inputs;
    for (const std::int64_t trigger : rows->triggers) {
      const oracle::Vector& x = pass.inputs[layer][static_cast<std::size_t>(trigger)];
      inputs.insert(inputs.end(), x.begin(), x.end());
    }
    EXPECT_TRUE(testing::all_within(actual.inputs, inputs, kValueBound)) << "layer " << layer;

    std::vector<double> pooled;
    std::int64_t begin = 0;
    for (const std::int64_t end : ends) {
      oracle::Vector mean(32, 0.0);
      for (std::int64_t t = begin; t < end; ++t) {
        oracle::add(mean, pass.inputs[layer][static_cast<std::size_t>(t)]);
      }
      for (const double value : mean) pooled.push_back(value / static_cast<double>(end - begin));
      begin = end;
    }
    EXPECT_TRUE(testing::all_within(actual.pooled, pooled, kValueBound)) << "layer " << layer;

    std::vector<double> mass;
    for (std::size_t r = 0; r < rows->triggers.size(); ++r) {
      const std::int64_t trigger = rows->triggers[r];
      const std::int64_t row_end = triggers[r + 1] + 1;
      for (std::size_t head = 0; head < 4; ++head) {
        const oracle::Matrix& p = pass.probabilities[layer][head];
        double total = 0.0;
        for (std::size_t c = 0; c < ends.size(); ++c) {
          const bool is_closed = ends[c] <= trigger + 1;
          mass.push_back(
              is_closed ? naive_mass(p, trigger + 1, row_end, c == 0 ? 0 : ends[c - 1], ends[c])
                        : 0.0);
          total += actual.mass[(r * 4 + head) * ends.size() + c];
        }
        // What the tokens behind the closed chunks keep makes up the rest.
        const auto closed = std::upper_bound(ends.begin(), ends.end(), trigger + 1);
        const std::int64_t open_begin = closed == ends.begin() ? 0 : *(closed - 1);
        const double open = naive_mass(p, trigger + 1, row_end, open_begin, 150);
        EXPECT_LE(total, 1.0);
        EXPECT_NEAR(total + open, 1.0, kMassBound) << "trigger " << trigger << " head " << head;
      }
    }
    EXPECT_TRUE(testing::all_within(actual.mass, mass, kMassBound)) << "layer " << layer;
    for (std::size_t i = 0; i < mass.size(); ++i) {
      // Exactly nothing of a chunk that was not closed.
      EXPECT_EQ(actual.mass[i] == 0.0F, mass[i] == 0.0) << i;
    }
  }
}

TEST(TeacherRows, CandidatesAreThoseOfARefresh) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  const Positions ends = {5, 12, 30, 34, 60, 70};
  const auto rows = collect(backbone, testing::tiny_text(80), ends, {4, 11, 29, 40, 59, 69});
  ASSERT_TRUE(rows.ok());
  // The window of 20 tokens and 2 chunks: from token 69 back that is [34, 60), [60, 70); from token
  // 40, in the open chunk, [12, 30), [30, 34), [34, 41).
  EXPECT_EQ(rows->candidate_ends, (Positions{0, 0, 1, 2, 3, 4}));
}

TEST(TeacherRows, LargestHeadsAreTheOraclesScores) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  // More than a block of the session's, so that rows of a trigger are cut.
  const std::vector<std::int32_t> ids = testing::tiny_text(700);
  Positions ends;
  Positions triggers;
  for (std::int64_t end = 11; end <= 700; end += 5 + end % 13) {
    ends.push_back(end);
    triggers.push_back(end - 1);
  }
  const auto rows = collect(backbone, ids, ends, triggers);
  ASSERT_TRUE(rows.ok());
  ThreadPool pool(2);
  const auto table =
      collect_oracle_scores<float>(backbone, ids, ends, triggers, {}, {}, pool).value();
  std::size_t compared = 0;
  for (std::size_t layer = 0; layer < 3; ++layer) {
    for (std::size_t r = 0; r < rows->triggers.size(); ++r) {
      const std::vector<float>& scores =
          (*table)[layer][static_cast<std::size_t>(rows->triggers[r])];
      ASSERT_EQ(scores.size(), r);
      for (std::size_t i = 0; i < scores.size(); ++i) {
        float largest = 0.0F;
        for (std::size_t head = 0; head < 4; ++head) {
          largest =
              std::max(largest, rows->layers[layer].mass[(r * 4 + head) * ends.size() + i + 1]);
        }
        ASSERT_EQ(largest, scores[i]) << "layer " << layer << " row " << r << " chunk " << i + 1;
        ++compared;
      }
    }
  }
  EXPECT_GT(compared, 3000U);
}

TEST(TeacherRows, EndTokensStandForChunks) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  const Positions ends = {5, 6, 40};
  const auto rows =
      collect(backbone, testing::tiny_text(60), ends, {4, 5, 39}, KeyPooling::kEndToken);
  ASSERT_TRUE(rows.ok());
  for (const TeacherRows::Layer& layer : rows->layers) EXPECT_EQ(layer.pooled, layer.inputs);
}

TEST(TeacherRows, DoNotDependOnThreads) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  const std::vector<std::int32_t> ids = testing::tiny_text(130);
  const Positions ends = {12, 30, 61, 99};
  const Positions triggers = {11, 29, 60, 98};
  const auto one = collect(backbone, ids, ends, triggers, KeyPooling::kMean, 1);
  const auto three = collect(backbone, ids, ends, triggers, KeyPooling::kMean, 3);
  for (std::size_t layer = 0; layer < 3; ++layer) {
    EXPECT_EQ(one->layers[layer].inputs, three->layers[layer].inputs);
    EXPECT_EQ(one->layers[layer].pooled, three->layers[layer].pooled);
    EXPECT_EQ(one->layers[layer].mass, three->layers[layer].mass);
  }
}

TEST(TeacherRows, WindowedLayersYieldNothing) {
  BackboneConfig config = testing::tiny_config();
  config.sliding_window = {16, 0, 16};
  const auto rows =
      collect(testing::tiny_backbone(config), testing::tiny_text(80), {10, 30}, {9, 29});
  ASSERT_TRUE(rows.ok());
  for (const std::size_t layer : {0U, 2U}) {
    EXPECT_TRUE(rows->layers[layer].inputs.empty());
    EXPECT_TRUE(rows->layers[layer].pooled.empty());
    EXPECT_TRUE(rows->layers[layer].mass.empty());
  }
  EXPECT_EQ(rows->layers[1].inputs.size(), 2U * 32U);
  EXPECT_EQ(rows->layers[1].pooled.size(), 2U * 32U);
  EXPECT_EQ(rows->layers[1].mass.size(), 2U * 4U * 2U);
}

TEST(TeacherRows, WithoutTriggersOrChunksThereIsNothing) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  const auto none = collect(backbone, {}, {}, {});
  ASSERT_TRUE(none.ok()) << none.status().message();
  EXPECT_EQ(none->num_rows(), 0);
  // Its only trigger has no token behind it.
  const auto dropped = collect(backbone, testing::tiny_text(9), {4, 9}, {8});
  ASSERT_TRUE(dropped.ok());
  EXPECT_EQ(dropped->num_rows(), 0);
  EXPECT_EQ(dropped->num_chunks(), 2);
  EXPECT_EQ(dropped->layers[0].pooled.size(), 2U * 32U);
  EXPECT_TRUE(dropped->layers[0].mass.empty());
  const auto no_chunks = collect(backbone, testing::tiny_text(9), {}, {3});
  ASSERT_TRUE(no_chunks.ok());
  EXPECT_EQ(no_chunks->candidate_ends, Positions{0});
  EXPECT_EQ(no_chunks->layers[0].inputs.size(), 32U);
  EXPECT_TRUE(no_chunks->layers[0].mass.empty());
}

TEST(TeacherRows, RefuseWhatDoesNotFit) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  const std::vector<std::int32_t> ids = testing::tiny_text(20);
  const auto code = [&](const Positions& ends, const Positions& triggers) {
    return collect(backbone, ids, ends, triggers).status().code();
  };
  EXPECT_EQ(code({20}, {19}), StatusCode::kOk);
  EXPECT_EQ(code({0}, {}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({21}, {}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({7, 7}, {}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({7}, {20}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({7}, {-1}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({7}, {6, 3}), StatusCode::kInvalidArgument);
  EXPECT_EQ(collect(backbone, {3, 64}, {}, {}).status().code(), StatusCode::kInvalidArgument);

  Positions every;
  for (std::int64_t i = 0; i < 16384; ++i) every.push_back(i);
  const Positions ends(every.begin() + 1, every.end());
  EXPECT_EQ(plan_teacher_rows(backbone.config(), 16384, ends, every, {}).status().code(),
            StatusCode::kResourceExhausted);
}

TEST(TeacherRows, StopWhenAsked) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  ThreadPool pool(1);
  const auto rows =
      collect_teacher_rows<BF16>(backbone, testing::tiny_text(50), Positions{10}, Positions{9}, {},
                                 KeyPooling::kMean, pool, [](std::int64_t) { return false; });
  EXPECT_EQ(rows.status().code(), StatusCode::kInterrupted);
}

}  // namespace
}  // namespace chunkllm
