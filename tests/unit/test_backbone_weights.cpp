// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/model/backbone_weights.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/tensor_names.hpp"
#include "support/memory_tensor_source.hpp"

namespace chunkllm {
namespace {

using testing::MemoryTensorSource;
using testing::small_config;

BackboneConfig config_with_everything() {
  BackboneConfig config = small_config();
  config.qkv_bias = true;
  config.output_bias = true;
  config.mlp_bias = true;
  config.qk_norm = true;
  return config;
}

Result<BackboneWeights> load(const MemoryTensorSource& source,
                             WeightFormat format = WeightFormat::kKeep,
                             const LoadProgress& progress = {}) {
  ThreadPool pool(2);
  return BackboneWeights::load(source, format, pool, progress);
}

std::vector<float> matrix_of(const Linear& linear) {
  std::vector<float> values(static_cast<std::size_t>(linear.out_features() * linear.in_features()));
  for (std::int64_t r = 0; r < linear.out_features(); ++r) {
    linear.unpack_row(r, values.data() + r * linear.in_features());
  }
  return values;
}

std::vector<float> joined(std::vector<float> a, const std::vector<float>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// What a linear map adds to zero.
std::vector<float> bias_of(const Linear& linear) {
  ThreadPool pool(1);
  const std::vector<float> x(static_cast<std::size_t>(linear.in_features()), 0.0F);
  std::vector<float> y(static_cast<std::size_t>(linear.out_features()));
  linear.apply({x.data(), 1, linear.in_features()}, {y.data(), 1, linear.out_features()}, pool);
  return y;
}

TEST(BackboneWeights, EveryTensorGoesToItsPlace) {
  MemoryTensorSource source = MemoryTensorSource::random(config_with_everything(), 1);
  const Result<BackboneWeights> weights = load(source);
  ASSERT_TRUE(weights.ok()) << weights.status().message();
  ASSERT_EQ(weights->layers.size(), 2U);
  for (std::int64_t i = 0; i < 2; ++i) {
    const LayerWeights& layer = weights->layers[static_cast<std::size_t>(i)];
    const auto values = [&](const std::string& part) {
      return source.values(layer_tensor_name(i, part));
    };
    EXPECT_EQ(layer.attention_norm, values("input_layernorm.weight"));
    EXPECT_EQ(layer.mlp_norm, values("post_attention_layernorm.weight"));
    EXPECT_EQ(layer.q_norm, values("self_attn.q_norm.weight"));
    EXPECT_EQ(layer.k_norm, values("self_attn.k_norm.weight"));
    EXPECT_EQ(matrix_of(layer.qkv),
              joined(joined(values("self_attn.q_proj.weight"), values("self_attn.k_proj.weight")),
                     values("self_attn.v_proj.weight")));
    EXPECT_EQ(bias_of(layer.qkv),
              joined(joined(values("self_attn.q_proj.bias"), values("self_attn.k_proj.bias")),
                     values("self_attn.v_proj.bias")));
    EXPECT_EQ(matrix_of(layer.output), values("self_attn.o_proj.weight"));
    EXPECT_EQ(bias_of(layer.output), values("self_attn.o_proj.bias"));
    EXPECT_EQ(matrix_of(layer.gate_up),
              joined(values("mlp.gate_proj.weight"), values("mlp.up_proj.weight")));
    EXPECT_EQ(bias_of(layer.gate_up),
              joined(values("mlp.gate_proj.bias"), values("mlp.up_proj.bias")));
    EXPECT_EQ(matrix_of(layer.down), values("mlp.down_proj.weight"));
    EXPECT_EQ(bias_of(layer.down), values("mlp.down_proj.bias"));
  }
  EXPECT_EQ(weights->final_norm, source.values("model.norm.weight"));
  EXPECT_EQ(matrix_of(weights->embedding), source.values("model.embed_tokens.weight"));
  EXPECT_EQ(matrix_of(weights->head()), source.values("lm_head.weight"));
}

TEST(BackboneWeights, TiedEmbeddingsShareOneMatrix) {
  BackboneConfig config = small_config();
  const Result<BackboneWeights> untied = load(MemoryTensorSource::random(config, 2));
  config.tied_embeddings = true;
  const Result<BackboneWeights> tied = load(MemoryTensorSource::random(config, 2));
  ASSERT_TRUE(untied.ok());
  ASSERT_TRUE(tied.ok());
  EXPECT_EQ(&tied->head(), &tied->embedding);
  EXPECT_EQ(untied->bytes() - tied->bytes(), untied->untied_head.weight_bytes());
}

/// Rows of each head in GGUF's order: row 2i is row i, row 2i + 1 is row i + head_dim / 2.
std::vector<float> permuted(const std::vector<float>& values, std::int64_t num_rows,
                            std::int64_t head_dim) {
  const std::int64_t cols = static_cast<std::int64_t>(values.size()) / num_rows;
  std::vector<float> out;
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const std::int64_t i = row % head_dim;
    const std::int64_t source = row - i + i / 2 + i % 2 * (head_dim / 2);
    out.insert(out.end(), values.begin() + source * cols, values.begin() + (source + 1) * cols);
  }
  return out;
}

TEST(BackboneWeights, GgufOrderOfQueriesAndKeysIsUndone) {
  const BackboneConfig config = config_with_everything();
  MemoryTensorSource source = MemoryTensorSource::random(config, 3);
  const Result<BackboneWeights> expected = load(source);
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const char* suffix : {".weight", ".bias"}) {
      const auto permute = [&](const std::string& part, std::int64_t rows) {
        std::vector<float>& values = source.values(layer_tensor_name(layer, part + suffix));
        values = permuted(values, rows, config.head_dim);
      };
      permute("self_attn.q_proj", config.query_size());
      permute("self_attn.k_proj", config.kv_size());
    }
  }
  source.set_qk_rows_permuted(true);
  const Result<BackboneWeights> weights = load(source);
  ASSERT_TRUE(expected.ok());
  ASSERT_TRUE(weights.ok());
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(matrix_of(weights->layers[i].qkv), matrix_of(expected->layers[i].qkv));
    EXPECT_EQ(bias_of(weights->layers[i].qkv), bias_of(expected->layers[i].qkv));
  }
}

TEST(BackboneWeights, EveryMissingTensorIsNamed) {
  const BackboneConfig config = config_with_everything();
  for (const ExpectedTensor& expected : expected_tensors(config)) {
    MemoryTensorSource source = MemoryTensorSource::random(config, 4);
    source.erase(expected.name);
    const Status status = load(source).status();
    EXPECT_EQ(status.code(), StatusCode::kNotFound) << expected.name;
    EXPECT_NE(status.message().find(expected.name), std::string::npos) << status.message();
  }
}

TEST(BackboneWeights, EveryWrongShapeIsNamed) {
  const BackboneConfig config = config_with_everything();
  for (const ExpectedTensor& expected : expected_tensors(config)) {
    for (const bool longer_rows : {false, true}) {
      MemoryTensorSource source = MemoryTensorSource::random(config, 5);
      const std::int64_t rows = expected.rows + (longer_rows ? 0 : 1);
      const std::int64_t cols = expected.cols + (longer_rows ? 1 : 0);
      source.set(expected.name, rows, cols,
                 std::vector<float>(static_cast<std::size_t>(rows * cols), 1.0F));
      const Status status = load(source).status();
      EXPECT_EQ(status.code(), StatusCode::kInvalidFile) << expected.name;
      EXPECT_NE(status.message().find(expected.name), std::string::npos) << status.message();
    }
  }
}

TEST(BackboneWeights, VectorsMustBeFinite) {
  const BackboneConfig config = config_with_everything();
  for (const char* name : {"model.norm.weight", "model.layers.1.self_attn.k_norm.weight",
                           "model.layers.0.mlp.down_proj.bias"}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      MemoryTensorSource source = MemoryTensorSource::random(config, 6);
      source.values(name)[3] = bad;
      const Status status = load(source).status();
      EXPECT_EQ(status.code(), StatusCode::kInvalidFile);
      EXPECT_NE(status.message().find(name), std::string::npos) << status.message();
      EXPECT_NE(status.message().find("index 3"), std::string::npos) << status.message();
    }
  }
}

TEST(BackboneWeights, ImpossibleConfigurationsAreRefusedBeforeAnythingIsRead) {
  const auto code_of = [](const auto& change) {
    BackboneConfig config = small_config();
    change(config);
    return load(MemoryTensorSource(config)).status().code();
  };
  EXPECT_EQ(code_of([](BackboneConfig& c) { c.num_kv_heads = 3; }), StatusCode::kInvalidFile);
  // More query heads for one key-value head than attention takes.
  EXPECT_EQ(code_of([](BackboneConfig& c) { c.num_heads = 258; }), StatusCode::kInvalidFile);
  EXPECT_EQ(code_of([](BackboneConfig& c) { c.num_heads = 256; }), StatusCode::kNotFound);
  EXPECT_EQ(code_of([](BackboneConfig& c) { c.head_dim = 11; }), StatusCode::kInvalidFile);
  EXPECT_EQ(code_of([](BackboneConfig& c) { c.hidden_size = 0; }), StatusCode::kInvalidFile);
  EXPECT_EQ(code_of([](BackboneConfig& c) { c.sliding_window.pop_back(); }),
            StatusCode::kInvalidFile);
  EXPECT_EQ(code_of([](BackboneConfig&) {}), StatusCode::kNotFound);
}

TEST(BackboneWeights, FormatsChangeMatricesOnly) {
  BackboneConfig config = small_config();
  config.vocab_size = 64;  // whole panels of either kind
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.head_dim = 16;
  MemoryTensorSource source = MemoryTensorSource::random(config, 7);
  const Result<BackboneWeights> full = load(source, WeightFormat::kF32);
  const Result<BackboneWeights> brief = load(source, WeightFormat::kBF16);
  const Result<BackboneWeights> bytes = load(source, WeightFormat::kInt8);
  ASSERT_TRUE(full.ok());
  ASSERT_TRUE(brief.ok());
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(full->embedding.weight_bytes(), 2 * brief->embedding.weight_bytes());
  EXPECT_EQ(full->embedding.weight_bytes() * 34, bytes->embedding.weight_bytes() * 128);
  EXPECT_EQ(bytes->final_norm, full->final_norm);
}

TEST(BackboneWeights, AFormatThatDoesNotFitNamesTheTensor) {
  const Status status =
      load(MemoryTensorSource::random(small_config(), 8), WeightFormat::kInt8).status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("model.embed_tokens.weight"), std::string::npos)
      << status.message();
}

TEST(BackboneWeights, ProgressCountsEveryTensorAndMayStop) {
  const BackboneConfig config = config_with_everything();
  const MemoryTensorSource source = MemoryTensorSource::random(config, 9);
  const auto num_tensors = static_cast<std::int64_t>(expected_tensors(config).size());
  std::int64_t last = 0;
  const Result<BackboneWeights> weights =
      load(source, WeightFormat::kKeep, [&](std::int64_t done, std::int64_t total) {
        EXPECT_EQ(done, last + 1);
        EXPECT_EQ(total, num_tensors);
        last = done;
        return true;
      });
  EXPECT_TRUE(weights.ok());
  EXPECT_EQ(last, num_tensors);

  const Status stopped = load(source, WeightFormat::kKeep, [](std::int64_t done, std::int64_t) {
                           return done < 5;
                         }).status();
  EXPECT_EQ(stopped.code(), StatusCode::kInterrupted);
}

}  // namespace
}  // namespace chunkllm
