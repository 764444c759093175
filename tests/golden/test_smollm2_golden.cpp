// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
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

class SmolLm2Golden : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const Result<Json> golden =
        read_json_file(testing::golden_dir() + "/smollm2/" + GetParam() + ".json", JsonLimits{});
    ASSERT_TRUE(golden.ok()) << golden.status().message();
    golden_ = golden.value();
    ids_ = golden_.at("ids").get<std::vector<std::int32_t>>();
    nll_ = golden_.at("nll").get<std::vector<double>>();
    ASSERT_EQ(nll_.size() + 1, ids_.size());
  }

  Result<DecoderBackbone> load(WeightFormat format) {
    CHUNKLLM_ASSIGN_OR_RETURN(const ModelFiles files, ModelFiles::open(testing::model_path()));
    return DecoderBackbone::load(files, format, pool_);
  }

  /// Our likelihood of each of the first `count` tokens less that of transformers. In blocks, so
  /// that the logits of a whole text need not be held at once.
  std::vector<double> nll_differences(const DecoderBackbone& backbone, std::size_t count) {
    constexpr std::size_t kBlock = 500;
    testing::DenseForward dense(backbone, pool_);
    const auto vocab_size = static_cast<std::size_t>(backbone.config().vocab_size);
    std::vector<double> differences;
    for (std::size_t first = 0; first < count; first += kBlock) {
      const std::size_t size = std::min(kBlock, count - first);
      const std::vector<float> logits = dense.append(std::span(ids_).subspan(first, size));
      for (std::size_t i = 0; i < size; ++i) {
        differences.push_back(
            testing::token_nll(std::span(logits).subspan(i * vocab_size, vocab_size),
                               ids_[first + i + 1]) -
            nll_[first + i]);
      }
    }
    return differences;
  }

  ThreadPool pool_{2};
  Json golden_;
  std::vector<std::int32_t> ids_;
  std::vector<double> nll_;
};

TEST_P(SmolLm2Golden, NllAndGreedyTokensEqualTransformers) {
  const auto prompt = golden_.at("prompt").get<std::vector<std::int32_t>>();
  const auto greedy = golden_.at("greedy").get<std::vector<std::int32_t>>();
  const Result<DecoderBackbone> backbone = load(WeightFormat::kF32);
  ASSERT_TRUE(backbone.ok()) << backbone.status().message();

  double worst = 0.0;
  const std::vector<double> differences = nll_differences(backbone.value(), nll_.size());
  for (std::size_t i = 0; i < differences.size(); ++i) {
    ASSERT_TRUE(std::abs(differences[i]) <= kNllTolerance)
        << "token " << i << ": " << differences[i] << " more than " << nll_[i];
    worst = std::max(worst, std::abs(differences[i]));
  }
  RecordProperty("largest_nll_difference", std::to_string(worst));

  EXPECT_EQ(testing::DenseForward(backbone.value(), pool_)
                .greedy(prompt, static_cast<int>(greedy.size())),
            greedy);
}

// The default: the file's 4 bit weights with activations of 8 bits.
TEST_P(SmolLm2Golden, EightBitActivationsKeepTheMeanNll) {
  const Result<DecoderBackbone> backbone = load(WeightFormat::kKeep);
  ASSERT_TRUE(backbone.ok()) << backbone.status().message();
  const std::vector<double> differences = nll_differences(backbone.value(), 1000);
  const double mean = std::accumulate(differences.begin(), differences.end(), 0.0) /
                      static_cast<double>(differences.size());
  RecordProperty("mean_nll_difference", std::to_string(mean));
  EXPECT_TRUE(std::abs(mean) <= kMeanNllTolerance) << mean;
}

INSTANTIATE_TEST_SUITE_P(Books, SmolLm2Golden, ::testing::Values("opticks", "austen", "sawyer"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace chunkllm
