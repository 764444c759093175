// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/model/model_files.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "chunkllm/io/safetensors_writer.hpp"
#include "support/gguf_writer.hpp"
#include "support/temp_folder.hpp"

namespace chunkllm {
namespace {

using testing::GgufWriter;
using testing::TempFolder;

const std::string kConfig = R"({"architectures":["LlamaForCausalLM"],"hidden_size":8,
    "intermediate_size":16,"num_hidden_layers":2,"num_attention_heads":2,"vocab_size":10,
    "max_position_embeddings":64,"tie_word_embeddings":true,"eos_token_id":2})";

BackboneConfig small_config() {
  const auto config = backbone_config_from_json(Json::parse(kConfig), nullptr, "c");
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.value();
}

std::vector<float> values_of(const ExpectedTensor& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.rows * tensor.cols));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i + tensor.name.size());
  }
  return values;
}

/// Writes config.json and the tensors of `config`, less those named in `without`.
void write_folder(const TempFolder& folder, const std::set<std::string>& without = {}) {
  folder.write("config.json", kConfig);
  std::map<std::string, std::vector<float>> storage;
  std::vector<SafetensorsTensor> tensors;
  for (const ExpectedTensor& tensor : expected_tensors(small_config())) {
    if (without.count(tensor.name) != 0) continue;
    const auto& values = storage[tensor.name] = values_of(tensor);
    std::vector<std::int64_t> shape = {tensor.cols};
    if (tensor.rows > 1) shape.insert(shape.begin(), tensor.rows);
    tensors.push_back(
        {tensor.name, DType::kF32, shape, std::as_bytes(std::span<const float>(values))});
  }
  ASSERT_TRUE(write_safetensors(folder.file("model.safetensors"), tensors, {}).ok());
}

GgufWriter gguf_model(std::int64_t vocab_size = 10) {
  GgufWriter writer;
  writer.add_string("general.architecture", "llama");
  writer.add("llama.block_count", std::uint32_t{2});
  writer.add("llama.context_length", std::uint32_t{64});
  writer.add("llama.embedding_length", std::uint32_t{8});
  writer.add("llama.feed_forward_length", std::uint32_t{16});
  writer.add("llama.attention.head_count", std::uint32_t{2});
  writer.add("llama.attention.layer_norm_rms_epsilon", 1e-6F);
  BackboneConfig config = small_config();
  config.vocab_size = vocab_size;
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    std::vector<std::int64_t> dims = {tensor.cols};
    if (tensor.rows > 1) dims.push_back(tensor.rows);
    writer.add_f32_tensor(gguf_tensor_name(tensor.name), dims, values_of(tensor));
  }
  return writer;
}

TEST(TensorNames, TranslateBothWays) {
  EXPECT_EQ(gguf_tensor_name("model.layers.12.self_attn.q_proj.weight"), "blk.12.attn_q.weight");
  EXPECT_EQ(gguf_tensor_name("model.layers.0.mlp.down_proj.bias"), "blk.0.ffn_down.bias");
  EXPECT_EQ(gguf_tensor_name("lm_head.weight"), "output.weight");
  EXPECT_EQ(canonical_tensor_name("blk.3.ffn_norm.weight"),
            "model.layers.3.post_attention_layernorm.weight");
  for (const std::string_view name :
       {"", ".", "model.layers.weight", "model.layers.", "model.layers.1", "model.layers.1.weight",
        "model.layers.x.mlp.up_proj.weight", "model.layers.-1.mlp.up_proj.weight",
        "model.layers.99999999999.mlp.up_proj.weight", "model.norm", "model.norm.scale",
        "model.layers.1.mlp.nope.weight", "output.weight"}) {
    EXPECT_EQ(gguf_tensor_name(name), "") << name;
  }
  BackboneConfig config = small_config();
  config.qkv_bias = config.output_bias = config.mlp_bias = config.qk_norm = true;
  config.tied_embeddings = false;
  const auto expected = expected_tensors(config);
  EXPECT_EQ(expected.size(), 3U + 2 * (9 + 7 + 2));
  for (const ExpectedTensor& tensor : expected) {
    EXPECT_EQ(canonical_tensor_name(gguf_tensor_name(tensor.name)), tensor.name);
  }
}

TEST(ModelFiles, OpensAFolder) {
  const TempFolder folder;
  write_folder(folder);
  const auto files = ModelFiles::open(folder.path());
  ASSERT_TRUE(files.ok()) << files.status().message();
  EXPECT_EQ(files->config().hidden_size, 8);
  EXPECT_EQ(files->config().eos_token_ids, std::vector<std::int64_t>({2}));
  EXPECT_FALSE(files->is_gguf());
  EXPECT_EQ(files->gguf(), nullptr);
  EXPECT_FALSE(files->qk_rows_permuted());
  EXPECT_EQ(files->folder(), folder.path());
  EXPECT_EQ(files->tokenizer_json_path(), folder.file("tokenizer.json"));
  EXPECT_TRUE(files->has_tensor("model.norm.weight"));
  EXPECT_FALSE(files->has_tensor("lm_head.weight"));
  EXPECT_EQ(files->tensor("model.layers.1.mlp.up_proj.weight")->rows, 16);
  const auto infos = files->tensor_infos();
  EXPECT_EQ(infos.size(), expected_tensors(files->config()).size());
  EXPECT_EQ(infos.front().name, "model.embed_tokens.weight");
  EXPECT_EQ(infos.front().dtype, "F32");
  EXPECT_EQ(infos.front().shape, std::vector<std::int64_t>({10, 8}));
  EXPECT_EQ(infos.front().num_bytes, 320U);
  files->drop_pages();

  folder.write("generation_config.json", R"({"eos_token_id":[3,4]})");
  EXPECT_EQ(ModelFiles::open(folder.path())->config().eos_token_ids,
            std::vector<std::int64_t>({3, 4}));
  folder.write("generation_config.json", "[");
  EXPECT_FALSE(ModelFiles::open(folder.path()).ok());
}

TEST(ModelFiles, OpensGguf) {
  const TempFolder folder;
  const auto files = ModelFiles::open(folder.write("m.gguf", gguf_model().finish()));
  ASSERT_TRUE(files.ok()) << files.status().message();
  EXPECT_TRUE(files->is_gguf());
  ASSERT_NE(files->gguf(), nullptr);
  EXPECT_TRUE(files->qk_rows_permuted());
  EXPECT_EQ(files->folder(), folder.path());
  EXPECT_EQ(files->tensor("model.layers.1.mlp.up_proj.weight")->rows, 16);
  EXPECT_EQ(files->tensor("nonsense").status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(files->has_tensor("nonsense"));
  const auto infos = files->tensor_infos();
  EXPECT_EQ(infos.front().name, "model.embed_tokens.weight");
  EXPECT_EQ(infos.front().shape, std::vector<std::int64_t>({10, 8}));
}

TEST(ModelFiles, FingerprintTellsModelsApart) {
  const TempFolder folder;
  const auto fingerprint = [&](const GgufWriter& writer) {
    return ModelFiles::open(folder.write("m.gguf", writer.finish()))->fingerprint();
  };
  const std::string first = fingerprint(gguf_model());
  // Pinned: adapter files carry it, so it must never change for a given model.
  EXPECT_EQ(first, "655a0e4b19796acb");
  EXPECT_EQ(first, fingerprint(gguf_model()));
  EXPECT_NE(first, fingerprint(gguf_model(11)));
  GgufWriter other_theta = gguf_model();
  other_theta.add("llama.rope.freq_base", 500.0F);
  EXPECT_NE(first, fingerprint(other_theta));
  GgufWriter other_ids = gguf_model();
  other_ids.add("tokenizer.ggml.eos_token_id", std::uint32_t{3});
  EXPECT_EQ(first, fingerprint(other_ids));
  testing::Bytes bytes = gguf_model().finish();
  const auto files = GgufFile::parse(bytes, "f");
  ASSERT_TRUE(files.ok());
  const auto embedding = files->tensor("token_embd.weight");
  ASSERT_TRUE(embedding.ok());
  const auto last_row = embedding->bytes.data() - bytes.data() + 9 * 32;
  bytes[static_cast<std::size_t>(last_row)] ^= std::byte{1};
  EXPECT_NE(first, ModelFiles::open(folder.write("m.gguf", bytes))->fingerprint());
}

TEST(ModelFiles, RefusesIncompleteModels) {
  const TempFolder empty;
  EXPECT_EQ(ModelFiles::open(empty.path()).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ModelFiles::open(empty.file("no.gguf")).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ModelFiles::open("").status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(ModelFiles::open(empty.write("model.safetensors", "x")).ok());
  {
    const TempFolder folder;
    write_folder(folder, {"model.layers.1.mlp.up_proj.weight"});
    const auto files = ModelFiles::open(folder.path());
    EXPECT_EQ(files.status().code(), StatusCode::kInvalidFile);
    EXPECT_EQ(files.status().message(),
              folder.file("model.safetensors") +
                  ": there is no tensor 'model.layers.1.mlp.up_proj.weight'");
  }
  {
    const TempFolder folder;
    write_folder(folder);
    std::string config = kConfig;
    config.replace(config.find("16"), 2, "32");
    folder.write("config.json", config);
    EXPECT_EQ(ModelFiles::open(folder.path()).status().message(),
              folder.path() +
                  ": tensor 'model.layers.0.mlp.gate_proj.weight' is 16 x 8, expected 32 x 8");
    folder.write("config.json", "");
    EXPECT_EQ(ModelFiles::open(folder.path()).status().message(),
              folder.file("config.json") + ": the file is empty");
  }
  {
    const TempFolder folder;
    GgufWriter writer = gguf_model();
    writer.add_f32_tensor("output.weight", {8, 9}, std::vector<float>(72));
    EXPECT_EQ(ModelFiles::open(folder.write("m.gguf", writer.finish())).status().message(),
              folder.file("m.gguf") + ": tensor 'lm_head.weight' is 9 x 8, expected 10 x 8");
  }
}

}  // namespace
}  // namespace chunkllm
