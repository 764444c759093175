// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/model/decoder_backbone.hpp"
#include "chunkllm/model/model_files.hpp"
#include "support/dense_forward.hpp"
#include "support/test_paths.hpp"

namespace chunkllm {
namespace {

// Seen: at most 1.4e-4, 6e-6 in the mean, with logits of up to 40 after 30 layers in f32 on both
// sides.
constexpr double kNllTolerance = 5e-4;

// Three times what is seen, -0.002 to 0.006: rounding errors of thousands of products average out.
constexpr double kMeanNllTolerance = 0.02;

class SmolLm2Golden : public ::testing::TestWithParam<const char*> {};

TEST_P(SmolLm2Golden, NllAndGreedyTokensEqualTransformers) {
  const Result<Json> golden =
      read_json_file(testing::golden_dir() + "/smollm2/" + GetParam() + ".json", JsonLimits{});
  ASSERT_TRUE(golden.ok()) << golden.status().message();
  const auto ids = golden->at("ids").get<std::vector<std::int32_t>>();
  const auto nll = golden->at("nll").get<std::vector<double>>();
  const auto prompt = golden->at("prompt").get<std::vector<std::int32_t>>();
  const auto greedy = golden->at("greedy").get<std::vector<std::int32_t>>();
  ASSERT_EQ(nll.size() + 1, ids.size());

  ThreadPool pool(2);
  const Result<ModelFiles> files = ModelFiles::open(testing::model_path());
  ASSERT_TRUE(files.ok()) << files.status().message();
  const Result<DecoderBackbone> backbone =
      DecoderBackbone::load(files.value(), WeightFormat::kF32, pool);
  ASSERT_TRUE(backbone.ok()) << backbone.status().message();

  // In blocks, so that the logits of a whole text need not be held at once.
  constexpr std::size_t kBlock = 500;
  testing::DenseForward dense(backbone.value(), pool);
  const auto vocab_size = static_cast<std::size_t>(backbone->config().vocab_size);
  double worst = 0.0;
  for (std::size_t first = 0; first < nll.size(); first += kBlock) {
    const std::size_t count = std::min(kBlock, nll.size() - first);
    const std::vector<float> logits = dense.append(std::span(ids).subspan(first, count));
    for (std::size_t i = 0; i < count; ++i) {
      const double ours = testing::token_nll(std::span(logits).subspan(i * vocab_size, vocab_size),
                                             ids[first + i + 1]);
      const double difference = std::abs(ours - nll[first + i]);
      ASSERT_TRUE(difference <= kNllTolerance)
          << "token " << first + i << ": " << ours << " instead of " << nll[first + i];
      worst = std::max(worst, difference);
    }
  }
  RecordProperty("largest_nll_difference", std::to_string(worst));

  EXPECT_EQ(
      testing::DenseForward(backbone.value(), pool).greedy(prompt, static_cast<int>(greedy.size())),
      greedy);
}

// The default: the file's 4 bit weights with activations of 8 bits.
TEST_P(SmolLm2Golden, EightBitActivationsKeepTheMeanNll) {
  const Result<Json> golden =
      read_json_file(testing::golden_dir() + "/smollm2/" + GetParam() + ".json", JsonLimits{});
  ASSERT_TRUE(golden.ok()) << golden.status().message();
  const auto ids = golden->at("ids").get<std::vector<std::int32_t>>();
  const auto nll = golden->at("nll").get<std::vector<double>>();

  ThreadPool pool(2);
  const Result<ModelFiles> files = ModelFiles::open(testing::model_path());
  ASSERT_TRUE(files.ok()) << files.status().message();
  const Result<DecoderBackbone> backbone =
      DecoderBackbone::load(files.value(), WeightFormat::kKeep, pool);
  ASSERT_TRUE(backbone.ok()) << backbone.status().message();
  constexpr std::size_t kNumTokens = 1000;
  testing::DenseForward dense(backbone.value(), pool);
  const std::vector<float> logits = dense.append(std::span(ids).first(kNumTokens));
  const auto vocab_size = static_cast<std::size_t>(backbone->config().vocab_size);
  double sum = 0.0;
  for (std::size_t i = 0; i < kNumTokens; ++i) {
    sum += testing::token_nll(std::span(logits).subspan(i * vocab_size, vocab_size), ids[i + 1]) -
           nll[i];
  }
  const double mean = sum / static_cast<double>(kNumTokens);
  RecordProperty("mean_nll_difference", std::to_string(mean));
  EXPECT_TRUE(std::abs(mean) <= kMeanNllTolerance) << mean;
}

INSTANTIATE_TEST_SUITE_P(Books, SmolLm2Golden, ::testing::Values("opticks", "austen", "sawyer"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace chunkllm
