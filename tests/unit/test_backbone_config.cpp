// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/model/backbone_config.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "chunkllm/io/config_json.hpp"
#include "chunkllm/io/gguf_config.hpp"
#include "chunkllm/model/validate_config.hpp"
#include "support/gguf_writer.hpp"

namespace chunkllm {
namespace {

using testing::GgufWriter;
using Kind = RopeScaling::Kind;
using Windows = std::vector<std::int64_t>;

/// A valid config.json of 3 layers with the members of `changes` put over it.
Json config_json(const std::string& changes = "{}", const std::string& name = "LlamaForCausalLM") {
  Json json = Json::parse(R"({"hidden_size":64,"intermediate_size":128,"num_hidden_layers":3,
      "num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,"vocab_size":100,
      "max_position_embeddings":512,"rms_norm_eps":1e-5,"hidden_act":"silu"})");
  json["architectures"] = {name};
  const Json patch = Json::parse(changes);
  // Not merge_patch(), which removes members that are null: the reader is to see the nulls.
  for (const auto& item : patch.items()) json[item.key()] = item.value();
  return json;
}

Result<BackboneConfig> read(const std::string& changes,
                            const std::string& name = "LlamaForCausalLM") {
  return backbone_config_from_json(config_json(changes, name), nullptr, "config.json");
}

std::string message(const std::string& changes, const std::string& name = "LlamaForCausalLM") {
  const auto result = read(changes, name);
  return result.ok() ? "ok" : result.status().message();
}

TEST(ConfigJson, ReadsShapesAndDefaults) {
  const auto config = read("{}");
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->architecture, Architecture::kLlama);
  EXPECT_EQ(config->num_layers, 3);
  EXPECT_EQ(config->hidden_size, 64);
  EXPECT_EQ(config->intermediate_size, 128);
  EXPECT_EQ(config->num_heads, 4);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->vocab_size, 100);
  EXPECT_EQ(config->context_length, 512);
  EXPECT_EQ(config->rms_norm_eps, 1e-5);
  EXPECT_EQ(config->rope_theta, 10000.0);
  EXPECT_EQ(config->rope_scaling.kind, Kind::kNone);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_FALSE(config->qkv_bias || config->output_bias || config->mlp_bias || config->qk_norm);
  EXPECT_EQ(config->sliding_window, Windows({0, 0, 0}));
  EXPECT_EQ(config->bos_token_id, -1);
  EXPECT_TRUE(config->eos_token_ids.empty());
  EXPECT_EQ(read(R"({"num_key_value_heads":null})")->num_kv_heads, 4);
  EXPECT_EQ(read(R"({"head_dim":null})")->head_dim, 16);
}

TEST(ConfigJson, ArchitecturesDiffer) {
  const auto llama = read(R"({"attention_bias":true,"mlp_bias":true})");
  ASSERT_TRUE(llama.ok());
  EXPECT_TRUE(llama->qkv_bias && llama->output_bias && llama->mlp_bias);
  const auto qwen2 = read("{}", "Qwen2ForCausalLM");
  ASSERT_TRUE(qwen2.ok());
  EXPECT_TRUE(qwen2->qkv_bias);
  EXPECT_FALSE(qwen2->output_bias || qwen2->qk_norm);
  const auto qwen3 = read(R"({"head_dim":32,"tie_word_embeddings":true})", "Qwen3ForCausalLM");
  ASSERT_TRUE(qwen3.ok());
  EXPECT_TRUE(qwen3->qk_norm && qwen3->tied_embeddings);
  EXPECT_FALSE(qwen3->qkv_bias);
  EXPECT_EQ(qwen3->query_size(), 128);
  const auto mistral = read(R"({"sliding_window":7})", "MistralForCausalLM");
  ASSERT_TRUE(mistral.ok());
  EXPECT_FALSE(mistral->qkv_bias);
  EXPECT_EQ(mistral->sliding_window, Windows({7, 7, 7}));
}

TEST(ConfigJson, SlidingWindows) {
  EXPECT_EQ(read(R"({"sliding_window":null})", "MistralForCausalLM")->sliding_window,
            Windows({0, 0, 0}));
  EXPECT_EQ(read("{}", "MistralForCausalLM")->sliding_window, Windows({4096, 4096, 4096}));
  EXPECT_EQ(read(R"({"sliding_window":7})")->sliding_window, Windows({0, 0, 0}));
  const std::string off = R"({"sliding_window":7,"use_sliding_window":false})";
  EXPECT_EQ(read(off, "Qwen2ForCausalLM")->sliding_window, Windows({0, 0, 0}));
  const std::string by_count =
      R"({"sliding_window":7,"use_sliding_window":true,"max_window_layers":1})";
  EXPECT_EQ(read(by_count, "Qwen2ForCausalLM")->sliding_window, Windows({0, 7, 7}));
  const std::string by_list =
      R"({"sliding_window":7,"use_sliding_window":true,"max_window_layers":0,"layer_types":
          ["sliding_attention","full_attention","sliding_attention"]})";
  EXPECT_EQ(read(by_list, "Qwen3ForCausalLM")->sliding_window, Windows({7, 0, 7}));
  for (const std::string types :
       {R"(["full_attention"])", R"("full_attention")",
        R"(["full_attention","chunked_attention","full_attention"])", R"([1,2,3])",
        R"(["full_attention","sliding_attention","full_attention"])"}) {
    EXPECT_FALSE(read(R"({"layer_types":)" + types + "}", "Qwen2ForCausalLM").ok()) << types;
  }
}

TEST(ConfigJson, RopeInBothSpellings) {
  for (const std::string old_key : {"type", "rope_type"}) {
    const auto linear =
        read(R"({"rope_theta":5e5,"rope_scaling":{")" + old_key + R"(":"linear","factor":4}})");
    ASSERT_TRUE(linear.ok()) << linear.status().message();
    EXPECT_EQ(linear->rope_theta, 5e5);
    EXPECT_EQ(linear->rope_scaling.kind, Kind::kLinear);
    EXPECT_EQ(linear->rope_scaling.factor, 4.0);
  }
  const std::string llama3 =
      R"("rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4)";
  for (const std::string& changes :
       {R"({"rope_theta":5e5,"rope_scaling":{"original_max_position_embeddings":64,)" + llama3 +
            "}}",
        R"({"rope_parameters":{"original_max_position_embeddings":64,"rope_theta":5e5,)" + llama3 +
            "}}"}) {
    const auto config = read(changes);
    ASSERT_TRUE(config.ok()) << config.status().message();
    EXPECT_EQ(config->rope_theta, 5e5);
    EXPECT_EQ(config->rope_scaling.kind, Kind::kLlama3);
    EXPECT_EQ(config->rope_scaling.factor, 8.0);
    EXPECT_EQ(config->rope_scaling.original_context_length, 64.0);
    EXPECT_EQ(config->rope_scaling.low_freq_factor, 1.0);
    EXPECT_EQ(config->rope_scaling.high_freq_factor, 4.0);
  }
  EXPECT_EQ(read(R"({"rope_parameters":{"rope_theta":7e3,"rope_type":"default"}})")->rope_theta,
            7e3);
  EXPECT_EQ(read(R"({"rope_parameters":{"rope_theta":7e3}})")->rope_scaling.kind, Kind::kNone);
  EXPECT_TRUE(read(R"({"rope_scaling":null})").ok());
}

TEST(ConfigJson, YarnAttentionFactorIsResolved) {
  const auto yarn = [](const std::string& more) {
    return read(
        R"({"rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":128)" +
        more + "}}");
  };
  const double mscale = 0.1 * std::log(4.0) + 1.0;
  ASSERT_TRUE(yarn("").ok()) << yarn("").status().message();
  EXPECT_EQ(yarn("")->rope_scaling.kind, Kind::kYarn);
  EXPECT_EQ(yarn("")->rope_scaling.original_context_length, 128.0);
  EXPECT_DOUBLE_EQ(yarn("")->rope_scaling.attention_factor, mscale);
  EXPECT_TRUE(yarn("")->rope_scaling.truncate);
  EXPECT_EQ(yarn(R"(,"attention_factor":0.5)")->rope_scaling.attention_factor, 0.5);
  EXPECT_DOUBLE_EQ(yarn(R"(,"mscale":0.7,"mscale_all_dim":2)")->rope_scaling.attention_factor,
                   (0.07 * std::log(4.0) + 1.0) / (0.2 * std::log(4.0) + 1.0));
  EXPECT_DOUBLE_EQ(yarn(R"(,"mscale":0.7,"mscale_all_dim":0)")->rope_scaling.attention_factor,
                   mscale);
  const auto betas = yarn(R"(,"beta_fast":16,"beta_slow":2,"truncate":false)");
  EXPECT_EQ(betas->rope_scaling.beta_fast, 16.0);
  EXPECT_EQ(betas->rope_scaling.beta_slow, 2.0);
  EXPECT_FALSE(betas->rope_scaling.truncate);
  // Without a factor: the ratio of the two windows.
  EXPECT_EQ(read(R"({"rope_scaling":{"type":"yarn","original_max_position_embeddings":128}})")
                ->rope_scaling.factor,
            4.0);
}

TEST(ConfigJson, UnsupportedRopeIsNamed) {
  EXPECT_EQ(
      message(R"({"rope_scaling":{"type":"dynamic","factor":2}})"),
      "config.json: rope_scaling: field 'rope_type' is \"dynamic\", expected default, linear, "
      "llama3 or yarn");
  for (const std::string changes :
       {R"({"rope_scaling":{"rope_type":"longrope","short_factor":[1]}})",
        R"({"rope_parameters":{"rope_type":"proportional"}})", R"({"partial_rotary_factor":0.5})",
        R"({"rope_parameters":{"rope_type":"default","partial_rotary_factor":0.25}})",
        R"({"rope_parameters":{"full_attention":{"rope_type":"default"}}})"}) {
    EXPECT_EQ(read(changes).status().code(), StatusCode::kUnsupported) << changes;
  }
  for (const std::string changes :
       {R"({"rope_scaling":{"factor":2}})", R"({"rope_scaling":{"type":"linear"}})",
        R"({"rope_scaling":[]})", R"({"rope_scaling":"linear"})", R"({"rope_theta":"1e4"})",
        R"({"rope_theta":0})", R"({"rope_theta":-5})", R"({"rope_scaling":{"type":3}})",
        R"({"rope_scaling":{"type":"linear","factor":0}})",
        R"({"rope_scaling":{"type":"llama3","factor":2,"low_freq_factor":4,"high_freq_factor":4}})",
        R"({"rope_scaling":{"type":"yarn","factor":2,"beta_fast":1,"beta_slow":1}})"}) {
    EXPECT_EQ(read(changes).status().code(), StatusCode::kInvalidFile) << changes;
  }
}

TEST(ConfigJson, TokenIds) {
  EXPECT_EQ(read(R"({"bos_token_id":1,"eos_token_id":2})")->bos_token_id, 1);
  EXPECT_EQ(read(R"({"eos_token_id":2})")->eos_token_ids, Windows({2}));
  EXPECT_EQ(read(R"({"eos_token_id":[5,3]})")->eos_token_ids, Windows({5, 3}));
  const Json generation = Json::parse(R"({"eos_token_id":[7,8],"bos_token_id":null})");
  const auto both = backbone_config_from_json(config_json(R"({"bos_token_id":1,"eos_token_id":2})"),
                                              &generation, "c");
  ASSERT_TRUE(both.ok());
  EXPECT_EQ(both->eos_token_ids, Windows({7, 8}));
  EXPECT_EQ(both->bos_token_id, 1);
  const Json wrong = Json::parse(R"({"eos_token_id":100})");
  EXPECT_EQ(backbone_config_from_json(config_json("{}"), &wrong, "c").status().message(),
            "c (generation_config.json): field 'eos_token_id' is 100, expected an integer in "
            "[0, 99]");
  for (const std::string ids : {"100", "-1", "[1,100]", "[1,-1]", "\"a\"", "[[1]]", "1.5"}) {
    EXPECT_FALSE(read(R"({"eos_token_id":)" + ids + "}").ok()) << ids;
    EXPECT_FALSE(read(R"({"bos_token_id":)" + ids + "}").ok()) << ids;
  }
}

TEST(ConfigJson, BadFieldsAreNamed) {
  EXPECT_EQ(message(R"({"architectures":["GPT2LMHeadModel"]})"),
            "config.json: field 'architectures' is \"GPT2LMHeadModel\", expected LlamaForCausalLM, "
            "Qwen2ForCausalLM, Qwen3ForCausalLM or MistralForCausalLM");
  EXPECT_EQ(message(R"({"hidden_act":"gelu"})"),
            "config.json: field 'hidden_act' is \"gelu\", expected \"silu\"");
  EXPECT_EQ(message(R"({"num_key_value_heads":3})"),
            "config.json: field 'num_kv_heads' is 3, expected a divisor of the 4 query heads");
  EXPECT_EQ(message(R"({"num_hidden_layers":0})"),
            "config.json: field 'num_hidden_layers' is 0, expected an integer in [1, 1024]");
  for (const std::string changes :
       {R"({"hidden_size":null})",
        R"({"hidden_size":-64})",
        R"({"hidden_size":"64"})",
        R"({"hidden_size":64.0})",
        R"({"hidden_size":9223372036854775807})",
        R"({"hidden_size":1e30})",
        R"({"num_hidden_layers":1025})",
        R"({"vocab_size":0})",
        R"({"head_dim":15})",
        R"({"head_dim":514})",
        R"({"head_dim":0})",
        R"({"head_dim":null,"num_attention_heads":6,"num_key_value_heads":6})",
        R"({"num_key_value_heads":8})",
        R"({"rms_norm_eps":0})",
        R"({"rms_norm_eps":-1e-5})",
        R"({"rms_norm_eps":"NaN"})",
        R"({"rms_norm_eps":[1e-5]})",
        R"({"architectures":[]})",
        R"({"architectures":null})",
        R"({"architectures":[3]})",
        R"({"architectures":"x"})",
        R"({"tie_word_embeddings":"yes"})",
        R"({"hidden_act":3})",
        R"({"max_position_embeddings":0})"}) {
    const auto result = read(changes);
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidFile) << changes;
  }
  EXPECT_FALSE(backbone_config_from_json(Json::array(), nullptr, "c").ok());
  EXPECT_FALSE(backbone_config_from_json(Json(), nullptr, "c").ok());
}

TEST(ValidateConfig, RefusesWhatNoReaderWouldMake) {
  const BackboneConfig good = read("{}").value();
  ASSERT_TRUE(validate(good, "f").ok());
  const auto refused = [&](auto change) {
    BackboneConfig config = good;
    change(config);
    return validate(config, "f").code() == StatusCode::kInvalidFile;
  };
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  for (const double bad : {kNan, kInf, -1.0, 0.0}) {
    EXPECT_TRUE(refused([&](auto& c) { c.rms_norm_eps = bad; }));
    EXPECT_TRUE(refused([&](auto& c) { c.rope_theta = bad; }));
    EXPECT_TRUE(refused([&](auto& c) { c.rope_scaling.factor = bad; }));
    EXPECT_TRUE(refused([&](auto& c) { c.rope_scaling.attention_factor = bad; }));
    EXPECT_TRUE(refused([&](auto& c) {
      c.rope_frequency_divisors.assign(8, 1.0F);
      c.rope_frequency_divisors[3] = static_cast<float>(bad);
    }));
  }
  EXPECT_TRUE(refused([](auto& c) { c.rope_frequency_divisors.assign(7, 1.0F); }));
  EXPECT_FALSE(refused([](auto& c) { c.rope_frequency_divisors.assign(8, 1.0F); }));
  EXPECT_TRUE(refused([](auto& c) { c.sliding_window.pop_back(); }));
  EXPECT_TRUE(refused([](auto& c) { c.sliding_window[1] = -1; }));
  EXPECT_TRUE(refused([](auto& c) { c.num_kv_heads = 0; }));
  EXPECT_TRUE(refused([](auto& c) { c.bos_token_id = 100; }));
  EXPECT_TRUE(refused([](auto& c) { c.eos_token_ids = {-1}; }));
}

/// Metadata and the embedding of a small model; `arch` is the keys' prefix.
GgufWriter gguf_config(const std::string& arch = "llama") {
  GgufWriter writer;
  writer.add_string("general.architecture", arch);
  writer.add(arch + ".block_count", std::uint32_t{3});
  writer.add(arch + ".context_length", std::uint64_t{512});
  writer.add(arch + ".embedding_length", std::uint32_t{64});
  writer.add(arch + ".feed_forward_length", std::uint32_t{128});
  writer.add(arch + ".attention.head_count", std::uint32_t{4});
  writer.add_array<std::int32_t>(arch + ".attention.head_count_kv", {2, 2, 2});
  writer.add(arch + ".attention.layer_norm_rms_epsilon", 0.5F);
  writer.add_f32_tensor("token_embd.weight", {64, 10}, std::vector<float>(640));
  return writer;
}

Result<BackboneConfig> read(const GgufWriter& writer) {
  const testing::Bytes bytes = writer.finish();
  const auto file = GgufFile::parse(bytes, "f");
  if (!file.ok()) return file.status();
  return backbone_config_from_gguf(file.value());
}

TEST(GgufConfig, ReadsMetadataAndTensorNames) {
  GgufWriter writer = gguf_config();
  writer.add("llama.vocab_size", std::uint32_t{10});
  writer.add("llama.rope.dimension_count", std::uint32_t{16});
  writer.add("llama.rope.freq_base", 5e5F);
  writer.add("llama.attention.sliding_window", std::uint32_t{9});
  writer.add("tokenizer.ggml.bos_token_id", std::uint32_t{1});
  writer.add("tokenizer.ggml.eos_token_id", std::uint32_t{2});
  writer.add("tokenizer.ggml.eot_token_id", std::uint32_t{3});
  writer.add("tokenizer.ggml.eom_token_id", std::uint32_t{2});
  writer.add_f32_tensor("rope_freqs.weight", {8}, {1, 1, 1, 1, 2, 4, 8, 8});
  const auto config = read(writer);
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->architecture, Architecture::kLlama);
  EXPECT_EQ(config->num_layers, 3);
  EXPECT_EQ(config->num_heads, 4);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->vocab_size, 10);
  EXPECT_EQ(config->context_length, 512);
  EXPECT_EQ(config->rms_norm_eps, 0.5);
  EXPECT_EQ(config->rope_theta, 5e5);
  EXPECT_EQ(config->rope_frequency_divisors, (std::vector<float>{1, 1, 1, 1, 2, 4, 8, 8}));
  EXPECT_EQ(config->sliding_window, Windows({9, 9, 9}));
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_FALSE(config->qkv_bias || config->output_bias || config->mlp_bias || config->qk_norm);
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_EQ(config->eos_token_ids, Windows({2, 3}));

  writer = gguf_config("qwen3");
  writer.add("qwen3.attention.key_length", std::uint32_t{32});
  writer.add("qwen3.attention.value_length", std::uint32_t{32});
  writer.add_f32_tensor("output.weight", {64, 10}, std::vector<float>(640));
  writer.add_f32_tensor("blk.0.attn_q_norm.weight", {32}, std::vector<float>(32));
  const auto qwen3 = read(writer);
  ASSERT_TRUE(qwen3.ok()) << qwen3.status().message();
  EXPECT_EQ(qwen3->architecture, Architecture::kQwen3);
  EXPECT_EQ(qwen3->head_dim, 32);
  EXPECT_TRUE(qwen3->qk_norm);
  EXPECT_FALSE(qwen3->tied_embeddings);

  writer = gguf_config("qwen2");
  writer.add_f32_tensor("blk.0.attn_q.bias", {64}, std::vector<float>(64));
  const auto qwen2 = read(writer);
  ASSERT_TRUE(qwen2.ok()) << qwen2.status().message();
  EXPECT_TRUE(qwen2->qkv_bias);
}

TEST(GgufConfig, RopeScaling) {
  GgufWriter writer = gguf_config();
  writer.add_string("llama.rope.scaling.type", "yarn");
  writer.add("llama.rope.scaling.factor", 4.0F);
  writer.add("llama.rope.scaling.original_context_length", std::uint32_t{128});
  const auto yarn = read(writer);
  ASSERT_TRUE(yarn.ok()) << yarn.status().message();
  EXPECT_EQ(yarn->rope_scaling.kind, Kind::kYarn);
  EXPECT_EQ(yarn->rope_scaling.factor, 4.0);
  EXPECT_EQ(yarn->rope_scaling.original_context_length, 128.0);
  EXPECT_DOUBLE_EQ(yarn->rope_scaling.attention_factor, 0.1 * std::log(4.0) + 1.0);
  writer.add("llama.rope.scaling.attn_factor", 0.5F);
  EXPECT_DOUBLE_EQ(read(writer)->rope_scaling.attention_factor, 0.5 * (0.1 * std::log(4.0) + 1.0));
  for (const std::string key : {"rope.scaling.factor", "rope.scale_linear"}) {
    writer = gguf_config();
    writer.add("llama." + key, 2.0F);
    EXPECT_EQ(read(writer)->rope_scaling.kind, Kind::kLinear);
    EXPECT_EQ(read(writer)->rope_scaling.factor, 2.0);
  }
  writer = gguf_config();
  writer.add_string("llama.rope.scaling.type", "longrope");
  EXPECT_EQ(read(writer).status().message(),
            "f: field 'llama.rope.scaling.type' is \"longrope\", expected none, linear or yarn");
}

TEST(GgufConfig, RefusesWhatIsWrong) {
  const auto code = [](auto change, const std::string& arch = "llama") {
    GgufWriter writer = gguf_config(arch);
    change(writer);
    return read(writer).status().code();
  };
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(code([](auto&) {}, "gpt2"), StatusCode::kUnsupported);
  EXPECT_EQ(code([=](auto& w) { w.add("llama.expert_count", std::uint32_t{8}); }),
            StatusCode::kUnsupported);
  EXPECT_EQ(code([=](auto& w) { w.add("llama.rope.dimension_count", std::uint32_t{8}); }),
            StatusCode::kUnsupported);
  EXPECT_EQ(code([=](auto& w) { w.add("llama.attention.value_length", std::uint32_t{8}); }),
            StatusCode::kUnsupported);
  EXPECT_EQ(
      code([=](auto& w) { w.add("qwen2.attention.sliding_window", std::uint32_t{8}); }, "qwen2"),
      StatusCode::kUnsupported);
  EXPECT_EQ(code([=](auto& w) { w.add("llama.vocab_size", std::uint32_t{11}); }),
            StatusCode::kInvalidFile);
  EXPECT_EQ(code([=](auto& w) { w.add("llama.rope.freq_base", kNan); }), StatusCode::kInvalidFile);
  EXPECT_EQ(code([=](auto& w) { w.add("llama.rope.scaling.factor", kNan); }),
            StatusCode::kInvalidFile);
  EXPECT_EQ(code([=](auto& w) { w.add("tokenizer.ggml.eos_token_id", std::uint32_t{10}); }),
            StatusCode::kInvalidFile);
  EXPECT_EQ(code([=](auto& w) { w.add("llama.attention.key_length", std::uint32_t{15}); }),
            StatusCode::kInvalidFile);
  EXPECT_EQ(code([=](auto& w) {
              w.add_f32_tensor("rope_freqs.weight", {7}, std::vector<float>(7, 1.0F));
            }),
            StatusCode::kInvalidFile);
  EXPECT_EQ(code([=](auto& w) {
              w.add_f32_tensor("rope_freqs.weight", {8}, std::vector<float>(8, kNan));
            }),
            StatusCode::kInvalidFile);
  GgufWriter writer;
  EXPECT_EQ(read(writer).status().message(),
            "f: field 'general.architecture' is missing, expected a string");
  writer.add_string("general.architecture", "llama");
  EXPECT_EQ(read(writer).status().message(),
            "f: field 'llama.block_count' is missing, expected an integer");
}

}  // namespace
}  // namespace chunkllm
