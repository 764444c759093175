// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
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

class ModelGolden : public ::testing::TestWithParam<const char*> {};

// The reference computes in f32 too. The largest differences seen are 3e-5 (qwen2, whose tied
// embedding makes logits of some 60, a unit in whose last place is 4e-6) and 5e-6 for the others.
constexpr double kNllTolerance = 1e-4;

TEST_P(ModelGolden, NllAndGreedyTokensEqualTransformers) {
  const std::string folder = testing::golden_dir() + "/" + GetParam();
  const Result<Json> golden = read_json_file(folder + "/golden.json", JsonLimits{});
  ASSERT_TRUE(golden.ok()) << golden.status().message();
  const auto ids = golden->at("ids").get<std::vector<std::int32_t>>();
  const auto nll = golden->at("nll").get<std::vector<double>>();
  const auto prompt_len = golden->at("prompt_len").get<std::int64_t>();
  const auto greedy = golden->at("greedy").get<std::vector<std::int32_t>>();
  ASSERT_EQ(nll.size() + 1, ids.size());

  ThreadPool pool(2);
  const Result<ModelFiles> files = ModelFiles::open(folder);
  ASSERT_TRUE(files.ok()) << files.status().message();
  const Result<DecoderBackbone> backbone =
      DecoderBackbone::load(files.value(), WeightFormat::kKeep, pool);
  ASSERT_TRUE(backbone.ok()) << backbone.status().message();

  const std::vector<float> logits = testing::DenseForward(backbone.value(), pool).append(ids);
  const auto vocab_size = static_cast<std::size_t>(backbone->config().vocab_size);
  double worst = 0.0;
  for (std::size_t t = 0; t < nll.size(); ++t) {
    const double ours =
        testing::token_nll(std::span(logits).subspan(t * vocab_size, vocab_size), ids[t + 1]);
    ASSERT_TRUE(std::abs(ours - nll[t]) <= kNllTolerance)
        << "token " << t << ": " << ours << " instead of " << nll[t];
    worst = std::max(worst, std::abs(ours - nll[t]));
  }
  RecordProperty("largest_nll_difference", std::to_string(worst));

  const auto prompt = std::span(ids).first(static_cast<std::size_t>(prompt_len));
  EXPECT_EQ(
      testing::DenseForward(backbone.value(), pool).greedy(prompt, static_cast<int>(greedy.size())),
      greedy);
}

INSTANTIATE_TEST_SUITE_P(TinyModels, ModelGolden,
                         ::testing::Values("llama", "llama_bf16", "llama_f16", "llama_rope_linear",
                                           "llama_rope_llama3", "llama_rope_yarn", "qwen2", "qwen3",
                                           "mistral"),
                         [](const auto& instance) { return std::string(instance.param); });

TEST(ModelGoldenRefusal, DynamicRopeIsUnsupported) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(::testing::TempDir()) / "chunkllm_dynamic_rope";
  fs::remove_all(folder);
  fs::copy(testing::golden_dir() + "/llama_rope_linear", folder);
  std::ifstream in(folder / "config.json");
  Json config = Json::parse(in);
  config["rope_parameters"]["rope_type"] = "dynamic";
  std::ofstream(folder / "config.json") << config;
  const Result<ModelFiles> files = ModelFiles::open(folder.string());
  fs::remove_all(folder);
  ASSERT_FALSE(files.ok());
  EXPECT_EQ(files.status().code(), StatusCode::kUnsupported);
  EXPECT_NE(files.status().message().find("dynamic"), std::string::npos)
      << files.status().message();
}

}  // namespace
}  // namespace chunkllm
