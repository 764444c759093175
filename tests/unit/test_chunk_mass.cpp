// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/eval/chunk_mass.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "chunkllm/infer/session.hpp"
#include "support/tiny_backbone.hpp"

namespace chunkllm {
namespace {

using DenseSession = Session<DecoderBackbone, RecentScorer, float>;

/// Attention probabilities of a dense pass in double: [layer][head][row][token].
using Probabilities = std::vector<std::vector<std::vector<std::vector<double>>>>;

struct DensePass {
  TableScorer::Table table;
  Probabilities probabilities;
};

DensePass run_dense(const DecoderBackbone& backbone, const std::vector<std::int32_t>& ids,
                    const std::vector<std::int64_t>& chunk_ends,
                    const std::vector<std::int64_t>& triggers, const ChunkMassOptions& options,
                    int num_threads = 2, std::int64_t block_len = 23) {
  ThreadPool pool(num_threads);
  const BackboneConfig& config = backbone.config();
  auto collector = ChunkMassCollector::create(config, chunk_ends, triggers, options, pool);
  EXPECT_TRUE(collector.ok()) << collector.status().message();
  SessionOptions dense;
  dense.dense = true;
  dense.block_len = block_len;
  auto session = DenseSession::create(backbone, std::make_shared<const RecentScorer>(), nullptr,
                                      testing::tiny_token_bytes, dense, pool);
  DensePass pass;
  pass.probabilities.resize(static_cast<std::size_t>(config.num_layers));
  for (auto& heads : pass.probabilities) heads.resize(static_cast<std::size_t>(config.num_heads));
  const double scale = static_cast<double>(softmax_scale(config));
  session->observe_attention([&](std::int64_t layer, std::int64_t first, MatrixView<const float> q,
                                 const KvView<float>& kv, std::span<const float> lse) {
    collector->observe(layer, first, q, kv, lse);
    for (std::int64_t h = 0; h < config.num_heads; ++h) {
      for (std::int64_t r = 0; r < q.rows; ++r) {
        std::vector<double> row;
        double sum = 0.0;
        for (std::int64_t t = 0; t <= first + r; ++t) {
          const float* key = kv.keys + kv.offset(t, h / 2);
          double score = 0.0;
          for (std::int64_t d = 0; d < config.head_dim; ++d) {
            score += static_cast<double>(q.row(r)[h * config.head_dim + d]) *
                     static_cast<double>(key[d]);
          }
          row.push_back(std::exp(scale * score));
          sum += row.back();
        }
        for (double& p : row) p /= sum;
        pass.probabilities[static_cast<std::size_t>(layer)][static_cast<std::size_t>(h)].push_back(
            row);
      }
    }
  });
  EXPECT_TRUE(session->prefill(ids).ok());
  pass.table = collector->take();
  return pass;
}

/// The definition, term by term.
double naive_score(const DensePass& pass, std::size_t layer, std::int64_t rows_begin,
                   std::int64_t rows_end, std::int64_t begin, std::int64_t end, HeadJoin join) {
  double joined = 0.0;
  const auto& heads = pass.probabilities[layer];
  for (const auto& head : heads) {
    double mass = 0.0;
    for (std::int64_t row = rows_begin; row < rows_end; ++row) {
      for (std::int64_t t = begin; t < end; ++t) {
        mass += head[static_cast<std::size_t>(row)][static_cast<std::size_t>(t)];
      }
    }
    mass /= static_cast<double>(rows_end - rows_begin);
    joined = join == HeadJoin::kMax ? std::max(joined, mass)
                                    : joined + mass / static_cast<double>(heads.size());
  }
  return joined;
}

TEST(ChunkMass, EqualsTheNaiveSumInDouble) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  const std::vector<std::int32_t> ids = testing::tiny_text(180);
  const std::vector<std::int64_t> ends = {5, 6, 40, 75, 110, 111, 160};
  std::vector<std::int64_t> triggers;
  for (const std::int64_t end : ends) triggers.push_back(end - 1);
  triggers.insert(triggers.begin() + 3, 50);  // a refresh inside a chunk
  for (const MassRows rows : {MassRows::kNext, MassRows::kSame}) {
    for (const HeadJoin join : {HeadJoin::kMax, HeadJoin::kMean}) {
      const DensePass pass = run_dense(backbone, ids, ends, triggers, {rows, join});
      ASSERT_EQ(pass.table.size(), 3U);
      std::int64_t compared = 0;
      for (std::size_t layer = 0; layer < 3; ++layer) {
        for (std::size_t j = 0; j < triggers.size(); ++j) {
          const std::int64_t token = triggers[j];
          const std::int64_t next = j + 1 < triggers.size() ? triggers[j + 1] : 179;
          const std::int64_t rows_begin = rows == MassRows::kSame ? token : token + 1;
          const std::int64_t rows_end = rows == MassRows::kSame ? token + 1 : next + 1;
          const auto closed = static_cast<std::size_t>(
              std::upper_bound(ends.begin(), ends.end(), token + 1) - ends.begin());
          const std::vector<float>& scores = pass.table[layer][static_cast<std::size_t>(token)];
          ASSERT_EQ(scores.size(), closed - 1);
          for (std::size_t c = 1; c < closed; ++c) {
            const double expected =
                naive_score(pass, layer, rows_begin, rows_end, ends[c - 1], ends[c], join);
            // Masses lie in [0, 1]; f32 logits of magnitude below 30 leave 30 eps of relative
            // error.
            EXPECT_NEAR(static_cast<double>(scores[c - 1]), expected, 1e-5)
                << "layer " << layer << " trigger " << token << " chunk " << c;
            ++compared;
          }
        }
      }
      EXPECT_GT(compared, 60);
    }
  }
}

TEST(ChunkMass, DoesNotDependOnThreads) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  const std::vector<std::int32_t> ids = testing::tiny_text(150);
  const std::vector<std::int64_t> ends = {12, 30, 61, 99, 140};
  const std::vector<std::int64_t> triggers = {11, 29, 60, 98, 139};
  const DensePass one = run_dense(backbone, ids, ends, triggers, {}, 1);
  const DensePass three = run_dense(backbone, ids, ends, triggers, {}, 3);
  EXPECT_EQ(one.table, three.table);
}

TEST(ChunkMass, BlocksDifferByRoundingOnly) {
  const DecoderBackbone backbone = testing::tiny_backbone();
  const std::vector<std::int32_t> ids = testing::tiny_text(150);
  const std::vector<std::int64_t> ends = {12, 30, 61, 99, 140};
  const std::vector<std::int64_t> triggers = {11, 29, 60, 98, 139};
  const DensePass whole = run_dense(backbone, ids, ends, triggers, {}, 1, 150);
  for (const std::int64_t block_len : {1, 7, 64}) {
    const DensePass cut = run_dense(backbone, ids, ends, triggers, {}, 1, block_len);
    for (std::size_t layer = 0; layer < 3; ++layer) {
      for (const std::int64_t trigger : triggers) {
        const auto& a = whole.table[layer][static_cast<std::size_t>(trigger)];
        const auto& b = cut.table[layer][static_cast<std::size_t>(trigger)];
        ASSERT_EQ(a.size(), b.size());
        for (std::size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-6F);
      }
    }
  }
}

TEST(ChunkMass, LeavesWindowedLayersOut) {
  BackboneConfig config = testing::tiny_config();
  config.sliding_window = {0, 16, 0};
  const DecoderBackbone backbone = testing::tiny_backbone(config);
  const DensePass pass = run_dense(backbone, testing::tiny_text(80), {10, 30}, {9, 29}, {});
  EXPECT_FALSE(pass.table[0].empty());
  EXPECT_TRUE(pass.table[1].empty());
  EXPECT_FALSE(pass.table[2].empty());
}

TEST(ChunkMass, RefusesListsOutOfOrder) {
  ThreadPool pool(1);
  const BackboneConfig config = testing::tiny_config();
  const auto code = [&](std::vector<std::int64_t> ends, std::vector<std::int64_t> triggers) {
    return ChunkMassCollector::create(config, std::move(ends), std::move(triggers), {}, pool)
        .status()
        .code();
  };
  EXPECT_EQ(code({}, {}), StatusCode::kOk);
  EXPECT_EQ(code({0}, {}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({4, 4}, {}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({4}, {-1}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({4}, {3, 2}), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm
