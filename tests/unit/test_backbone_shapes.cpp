// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/cuda/backbone_shapes.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "chunkllm/model/tensor_names.hpp"
#include "chunkllm/model/validate_config.hpp"

namespace chunkllm::cuda {
namespace {

std::int64_t num_parameters(const BackboneConfig& config) {
  std::int64_t count = 0;
  for (const ExpectedTensor& tensor : expected_tensors(config)) count += tensor.rows * tensor.cols;
  return count;
}

TEST(BackboneShapes, AreValidAndHaveTheirModelsParameters) {
  struct Known {
    std::string_view name;
    std::int64_t parameters;
  };
  // As published with the models.
  for (const Known& known :
       {Known{"llama-3.1-8b", 8'030'261'248}, Known{"qwen2.5-7b", 7'615'616'512},
        Known{"llama-3.2-1b", 1'235'814'400}, Known{"qwen3-8b", 8'190'735'360},
        Known{"mistral-7b", 7'248'023'552}, Known{"smollm2-135m", 134'515'008}}) {
    const Result<BackboneConfig> config = backbone_shape(known.name);
    ASSERT_TRUE(config.ok()) << config.status().message();
    const Status valid = validate(config.value(), known.name);
    EXPECT_TRUE(valid.ok()) << valid.message();
    EXPECT_EQ(num_parameters(config.value()), known.parameters) << known.name;
  }
}

TEST(BackboneShapes, AnUnknownNameListsTheKnownOnes) {
  const Result<BackboneConfig> config = backbone_shape("gpt-2");
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(config.status().message(),
            "backbone shape 'gpt-2', known are llama-3.1-8b, qwen2.5-7b, llama-3.2-1b, qwen3-8b, "
            "mistral-7b, smollm2-135m");
}

}  // namespace
}  // namespace chunkllm::cuda
