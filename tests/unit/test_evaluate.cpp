// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0

#include "chunkllm/eval/evaluate.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "support/tiny_backbone.hpp"
#include "support/tiny_tokenizer.hpp"

namespace chunkllm {
namespace {

class Evaluate : public ::testing::Test {
 protected:
  Evaluate()
      : backbone_(testing::tiny_backbone(256)),
        tokenizer_(BpeTokenizer::create(testing::tiny_spec()).value()) {
    std::string text = "It rains.";
    for (int i = 0; i < 60; ++i) text += " Rain falls on hill " + std::to_string(i) + " now.";
    texts_.push_back({"a", tokenizer_.encode(text, false).value()});
    options_.lengths = {400};
    options_.budgets = {{Budget{Budget::Kind::kTokens, 200, 1.0, 0}, "200"}};
    options_.selections = {Selection::kLayer, Selection::kMax};
    options_.head_joins = {HeadJoin::kMax, HeadJoin::kMean};
    options_.second_looks = {0, 8};
    options_.depths = {0.2, 0.8};
    options_.num_windows = 2;
    options_.num_trials = 2;
    const BackboneConfig& config = backbone_.config();
    add("recent", AnyScorer(RecentScorer()));
    options_.scorers.back().ignores_scores = true;
    add("mean-key", AnyScorer(MeanKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim,
                                            softmax_scale(config))));
  }

  void add(const std::string& name, AnyScorer scorer) {
    EvaluateScorer entry;
    entry.name = name;
    entry.scorer = std::make_shared<const AnyScorer>(std::move(scorer));
    options_.scorers.push_back(std::move(entry));
  }
  void add_oracle() {
    EvaluateScorer entry;
    entry.name = "oracle-next";
    options_.scorers.push_back(std::move(entry));
  }

  Status run(int num_threads = 2, std::int64_t stop_after = -1) {
    ThreadPool pool(num_threads);
    Evaluator<DecoderBackbone, float> evaluator(backbone_, tokenizer_, nullptr, options_, pool);
    rows_.clear();
    return evaluator.run(
        texts_,
        [&](const EvaluateRow& row) {
          rows_.push_back(row);
          return Status();
        },
        [&](std::string_view label, std::int64_t done, std::int64_t total) {
          EXPECT_FALSE(label.empty());
          EXPECT_LE(done, total);
          EXPECT_GE(done, last_done_);
          last_done_ = done;
          last_total_ = total;
          return stop_after < 0 || done < stop_after;
        });
  }

  DecoderBackbone backbone_;
  BpeTokenizer tokenizer_;
  std::vector<EvaluateText> texts_;
  EvaluateOptions options_;
  std::vector<EvaluateRow> rows_;
  std::int64_t last_done_ = 0;
  std::int64_t last_total_ = 0;
};

TEST(EvaluatePlan, WindowsSpreadOverTheTexts) {
  std::vector<EvaluateText> texts(3);
  for (std::int32_t i = 0; i < 100; ++i) texts[0].ids.push_back(i);
  for (std::int32_t i = 0; i < 10; ++i) texts[1].ids.push_back(-1);  // too short
  for (std::int32_t i = 0; i < 50; ++i) texts[2].ids.push_back(1000 + i);
  const std::vector<std::int32_t> prefix = {-5, -6};
  const auto windows = cut_windows(texts, prefix, 20, 5);
  ASSERT_EQ(windows.size(), 5U);
  const std::vector<std::int32_t> firsts = {0, 1000, 40, 1030, 80};
  for (std::size_t w = 0; w < 5; ++w) {
    ASSERT_EQ(windows[w].size(), 20U);
    EXPECT_EQ(windows[w][0], -5);
    EXPECT_EQ(windows[w][1], -6);
    EXPECT_EQ(windows[w][2], firsts[w]) << w;
    EXPECT_EQ(windows[w][19], firsts[w] + 17) << w;
  }
  EXPECT_TRUE(cut_windows(texts, prefix, 101, 5).empty());
  EXPECT_EQ(cut_windows(texts, {}, 100, 1).front(), texts[0].ids);
}

TEST_F(Evaluate, PerplexityHasARowForEachMeaningfulCombination) {
  options_.tasks = {EvaluateTask::kPerplexity};
  add_oracle();
  ASSERT_TRUE(run().ok());
  // recent: neither heads nor selection matter; the others: 2 joins of heads, 2 selections.
  ASSERT_EQ(rows_.size(), 1U + 4U + 4U);
  EXPECT_EQ(rows_[0].scorer, "recent");
  EXPECT_EQ(rows_[0].head_join, "");
  EXPECT_EQ(rows_[0].selection, "");
  EXPECT_EQ(rows_[1].head_join, "max");
  EXPECT_EQ(rows_[1].selection, "layer");
  EXPECT_EQ(rows_[4].head_join, "mean");
  EXPECT_EQ(rows_[4].selection, "max");
  EXPECT_EQ(rows_[8].scorer, "oracle-next");
  for (const EvaluateRow& row : rows_) {
    EXPECT_EQ(row.trials, 2);
    EXPECT_EQ(row.dense_value, rows_[0].dense_value);
    EXPECT_GT(*row.attended_share, 0.3);
    EXPECT_LT(*row.attended_share, 0.9);
    EXPECT_NEAR(*row.ratio(), 1.0, 0.5);
  }
  EXPECT_NE(rows_[1].value, rows_[2].value);
}

TEST_F(Evaluate, PerplexityEqualsTheMeasurementByItself) {
  options_.tasks = {EvaluateTask::kPerplexity};
  options_.scorers.resize(1);
  ASSERT_TRUE(run(1).ok());
  ThreadPool pool(2);
  double nll = 0.0;
  std::int64_t num_scored = 0;
  for (const std::size_t first : {std::size_t{0}, texts_[0].ids.size() - 400}) {
    SessionOptions options;
    options.chunk.budget = options_.budgets[0].budget;
    options.chunk.second_look = 0;
    options.chunk.selection = Selection::kLayer;
    auto session = Session<DecoderBackbone, RecentScorer, float>::create(
        backbone_, std::make_shared<const RecentScorer>(), nullptr,
        [&](std::int32_t id) { return tokenizer_.token_bytes(id); }, options, pool);
    PerplexityResult result;
    ASSERT_TRUE(measure_perplexity(session.value(), std::span(texts_[0].ids).subspan(first, 400),
                                   {200, ReadMode::kAsDecode}, {}, pool, result)
                    .ok());
    nll += result.nll_sum();
    num_scored += result.num_scored();
  }
  EXPECT_EQ(num_scored, 400);
  EXPECT_EQ(rows_[0].value, std::exp(nll / 400.0));
  EXPECT_NE(rows_[0].value, *rows_[0].dense_value);
}

TEST_F(Evaluate, SingleWindowsMakeUpTheWhole) {
  options_.tasks = {EvaluateTask::kPerplexity};
  options_.scorers.resize(1);
  ASSERT_TRUE(run().ok());
  const double both = rows_[0].value;
  double log_sum = 0.0;
  for (const std::int64_t window : {0, 1}) {
    options_.only_window = window;
    last_done_ = 0;
    ASSERT_TRUE(run().ok());
    ASSERT_EQ(rows_.size(), 1U);
    EXPECT_EQ(rows_[0].trials, 1);
    EXPECT_EQ(last_total_, 2 * 400);
    log_sum += std::log(rows_[0].value);
  }
  EXPECT_NEAR(std::exp(log_sum / 2.0), both, 1e-9 * both);
}

TEST_F(Evaluate, AnAmpleBudgetEqualsDenseEverywhere) {
  options_.tasks = {EvaluateTask::kPerplexity, EvaluateTask::kPasskey, EvaluateTask::kMultiKey};
  options_.budgets[0].budget.tokens = 4096;
  add_oracle();
  ASSERT_TRUE(run().ok());
  for (const EvaluateRow& row : rows_) {
    EXPECT_EQ(row.value, *row.dense_value) << row.task << " " << row.scorer;
    EXPECT_EQ(*row.attended_share, 1.0);
  }
}

TEST_F(Evaluate, RetrievalHasRowsByDepthThenOverAll) {
  options_.tasks = {EvaluateTask::kPasskey};
  options_.scorers.resize(1);
  ASSERT_TRUE(run().ok());
  ASSERT_EQ(rows_.size(), 2U * 5U);  // two second looks; two depths, digits, full, forced
  EXPECT_EQ(*rows_[0].depth, 0.2);
  EXPECT_EQ(*rows_[1].depth, 0.8);
  EXPECT_FALSE(rows_[2].depth.has_value());
  EXPECT_EQ(rows_[2].metric, "digits");
  EXPECT_EQ(rows_[3].metric, "full");
  EXPECT_EQ(rows_[4].metric, "forced");
  EXPECT_EQ(rows_[0].trials, 1);
  EXPECT_EQ(rows_[2].trials, 2);
  EXPECT_EQ(*rows_[0].second_look, 0);
  EXPECT_EQ(*rows_[5].second_look, 8);
  EXPECT_DOUBLE_EQ(rows_[2].value, (rows_[0].value + rows_[1].value) / 2.0);
}

TEST_F(Evaluate, ThreadsChangeNothing) {
  options_.tasks = {EvaluateTask::kPerplexity, EvaluateTask::kMassRecall, EvaluateTask::kPasskey};
  add_oracle();
  ASSERT_TRUE(run(1).ok());
  const std::vector<EvaluateRow> expected = rows_;
  last_done_ = 0;
  ASSERT_TRUE(run(3).ok());
  ASSERT_EQ(rows_.size(), expected.size());
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    EXPECT_EQ(rows_[i].value, expected[i].value) << i;
    EXPECT_EQ(rows_[i].attended_share, expected[i].attended_share) << i;
  }
}

TEST_F(Evaluate, MassRecallLiesBetweenZeroAndOne) {
  options_.tasks = {EvaluateTask::kMassRecall};
  add_oracle();
  ASSERT_TRUE(run().ok());
  ASSERT_EQ(rows_.size(), 3U);  // the oracle has no row: it is the teacher
  for (const EvaluateRow& row : rows_) {
    EXPECT_EQ(row.metric, "recall");
    EXPECT_GT(row.value, 0.0);
    EXPECT_LE(row.value, 1.0);
  }
  EXPECT_EQ(last_done_, last_total_);
}

TEST_F(Evaluate, MassRecallOfTheTeachersOwnScoresIsOne) {
  ThreadPool pool(2);
  const auto bytes = [&](std::int32_t id) { return tokenizer_.token_bytes(id); };
  const std::vector<std::int32_t>& ids = texts_[0].ids;
  const std::vector<std::int64_t> ends = rule_chunk_ends(ids, bytes, {});
  const auto triggers = refresh_triggers(ends, {}, static_cast<std::int64_t>(ids.size()));
  const auto table = collect_oracle_scores<float>(backbone_, ids, ends, triggers, {}, {}, pool);
  ASSERT_TRUE(table.ok());
  const auto recall = measure_mass_recall<float>(
      backbone_, std::make_shared<const AnyScorer>(TableScorer(table.value())), ids, bytes,
      ChunkOptions{}, 0.125, {}, pool);
  ASSERT_TRUE(recall.ok()) << recall.status().message();
  EXPECT_GT(recall->num_rows, 50);
  EXPECT_DOUBLE_EQ(recall->mean(), 1.0);
  EXPECT_EQ(measure_mass_recall<float>(backbone_, options_.scorers[0].scorer, ids, bytes,
                                       ChunkOptions{}, 0.0, {}, pool)
                .status()
                .code(),
            StatusCode::kInvalidArgument);
}

TEST_F(Evaluate, PositionsFollowFromWhatIsRead) {
  const auto positions = [&](EvaluateTask task, std::int64_t window) {
    BackboneConfig config = testing::tiny_config();
    config.vocab_size = 256;
    config.context_length = window;
    backbone_ = testing::tiny_backbone(config, /*seed=*/1);
    options_.tasks = {task};
    options_.scorers.resize(1);
    options_.second_looks = {0};
    options_.depths = {0.5};
    options_.num_windows = options_.num_trials = 1;
    options_.chunk.guards = {2, 24};
    last_done_ = 0;
    EXPECT_TRUE(run().ok());
    return rows_.empty() ? std::string() : rows_.front().positions;
  };
  EXPECT_EQ(positions(EvaluateTask::kPerplexity, 400), "original");
  EXPECT_EQ(positions(EvaluateTask::kPerplexity, 399), "in-cache");
  ThreadPool pool(1);
  const FillerText filler = FillerText::from_ids(tokenizer_, texts_[0].ids);
  RetrievalTrialOptions trial;
  trial.length = 400;
  trial.depth = 0.5;
  // Five digits and up to three spaces are the answer.
  const auto num_tokens =
      static_cast<std::int64_t>(make_passkey_trial(tokenizer_, filler, trial)->ids.size()) + 8;
  EXPECT_EQ(positions(EvaluateTask::kPasskey, num_tokens), "original");
  EXPECT_EQ(positions(EvaluateTask::kPasskey, num_tokens - 1), "in-cache");
}

TEST_F(Evaluate, SessionsFollowTheOptions) {
  options_.dense_prefill = true;
  options_.chunk.refresh = {RefreshPolicy::Kind::kStride, 5};
  ThreadPool pool(1);
  const detail::EvaluateContext<DecoderBackbone, float> context(backbone_, tokenizer_, nullptr,
                                                                options_, pool);
  const auto groups = plan_groups(options_, /*with_second_looks=*/true);
  const SessionOptions session =
      context.session_options(groups[1], groups[1].configurations[1], 400);
  EXPECT_TRUE(session.dense_prefill);
  EXPECT_EQ(session.chunk.refresh.stride, 5);
  EXPECT_EQ(session.chunk.second_look, 8);
  EXPECT_EQ(session.chunk.budget.tokens, 200);
  EXPECT_EQ(session.chunk.selection, Selection::kLayer);
}

TEST_F(Evaluate, AScorerMayHaveSettingsOfItsOwn) {
  options_.scorers[1].selections = {Selection::kSoft};
  options_.scorers[1].head_joins = {HeadJoin::kMean};
  const auto groups = plan_groups(options_, /*with_second_looks=*/false);
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[1].head_join, HeadJoin::kMean);
  ASSERT_EQ(groups[1].configurations.size(), 1U);
  EXPECT_EQ(groups[1].configurations[0].selection, Selection::kSoft);
}

TEST(MassRecall, RanksNaNLastAndEqualScoresNewestFirst) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> mass = {1.0F, 2.0F, 4.0F, 8.0F, 16.0F, 32.0F};
  const std::vector<float> scores = {nan, 0.5F, 0.0F, nan, 0.5F, 0.25F};
  const std::vector<double> sums = {16.0, 18.0, 50.0, 54.0, 62.0, 63.0};
  for (std::size_t count = 1; count <= sums.size(); ++count) {
    EXPECT_EQ(detail::top_mass(scores, mass, count), sums[count - 1]) << count;
  }
}

TEST_F(Evaluate, BoundariesNeedNoLength) {
  options_.tasks = {EvaluateTask::kBoundaryF1};
  options_.lengths = {1 << 20};
  options_.scorers.clear();
  EXPECT_TRUE(run().ok());
  EXPECT_EQ(rows_.size(), 1U);
}

TEST_F(Evaluate, BoundariesOfAnAdapterAreThoseOfASession) {
  auto adapter = std::make_shared<ChunkAdapter>();
  for (int i = 0; i < 32; ++i) adapter->weight.push_back(0.1F * static_cast<float>(i % 7 - 3));
  adapter->threshold = 0.6F;
  options_.tasks = {EvaluateTask::kBoundaryF1};
  ThreadPool pool(2);
  Evaluator<DecoderBackbone, float> evaluator(backbone_, tokenizer_, adapter, options_, pool);
  double f1 = -1.0;
  std::int64_t most_done = 0;
  ASSERT_TRUE(evaluator
                  .run(
                      texts_,
                      [&](const EvaluateRow& row) {
                        f1 = row.value;
                        return Status();
                      },
                      [&](std::string_view, std::int64_t done, std::int64_t total) {
                        most_done = done;
                        return done <= total;
                      })
                  .ok());
  EXPECT_EQ(most_done, static_cast<std::int64_t>(texts_[0].ids.size()));
  SessionOptions reading;
  reading.positions = default_positions(most_done, backbone_.config().context_length);
  auto session = Session<DecoderBackbone, RecentScorer, float>::create(
      backbone_, std::make_shared<const RecentScorer>(), adapter, {}, reading, pool);
  ASSERT_TRUE(session->prefill(texts_[0].ids).ok());
  const auto score = score_chunk_ends(tokenizer_, texts_[0].ids, session->chunks().table().ends());
  ASSERT_TRUE(score.ok());
  EXPECT_GT(score->num_predicted, 5U);
  EXPECT_EQ(f1, score->f1());
}

TEST_F(Evaluate, BoundariesOfTheRulesLoseOnlyToTheGuards) {
  options_.tasks = {EvaluateTask::kBoundaryF1};
  options_.chunk.guards = {1, 4096};
  ASSERT_TRUE(run().ok());
  ASSERT_EQ(rows_.size(), 1U);
  EXPECT_EQ(rows_[0].value, 1.0);
  EXPECT_EQ(rows_[0].length, static_cast<std::int64_t>(texts_[0].ids.size()));
  options_.chunk.guards = {1, 16};
  ASSERT_TRUE(run().ok());
  EXPECT_LT(rows_[0].value, 1.0);
}

TEST_F(Evaluate, AnInterruptionKeepsTheRowsSoFar) {
  options_.tasks = {EvaluateTask::kPerplexity};
  options_.scorers.resize(1);
  // Dense and recent of the first window are 800 tokens; stop within the second.
  const Status status = run(1, 900);
  EXPECT_EQ(status.code(), StatusCode::kInterrupted);
  ASSERT_EQ(rows_.size(), 1U);
  EXPECT_EQ(rows_[0].trials, 1);
  last_done_ = 0;
  EXPECT_EQ(run(1, 0).code(), StatusCode::kInterrupted);
  EXPECT_TRUE(rows_.empty());
}

TEST_F(Evaluate, RefusesBadSettingsBeforeItMeasures) {
  options_.tasks = {EvaluateTask::kPerplexity};
  const EvaluateOptions good = options_;
  const auto code = [&] {
    const StatusCode result = run().code();
    options_ = good;
    EXPECT_TRUE(rows_.empty());
    EXPECT_EQ(last_done_, 0);
    return result;
  };
  options_.lengths = {1 << 20};
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  options_.lengths = {1};
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  options_.num_windows = 0;
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  options_.only_window = 2;
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  options_.tasks = {};
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  options_.tasks = {EvaluateTask::kPasskey};
  options_.depths = {};
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  // The perplexity before it would have been measured in vain.
  options_.tasks = {EvaluateTask::kPerplexity, EvaluateTask::kPasskey};
  options_.depths = {0.5, 1.5};
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  options_.tasks = {EvaluateTask::kMassRecall};
  options_.budgets = {};
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  options_.tasks = {EvaluateTask::kPerplexity, EvaluateTask::kMassRecall};
  options_.recall_share = 0.0;
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  options_.budgets[0].budget.tokens = 0;
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  options_.positions = Positions::kInCache;
  options_.budgets[0].budget.tokens = 4000;
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
  texts_.clear();
  EXPECT_EQ(code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace chunkllm
