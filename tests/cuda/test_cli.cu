// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// The program with --device cuda, beside itself on the CPU.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/io/safetensors_writer.hpp"
#include "chunkllm/model/tensor_names.hpp"
#include "cuda/support/device.hpp"
#include "cuda/support/session_pair.hpp"
#include "golden/cli_fixture.hpp"
#include "support/memory_tensor_source.hpp"
#include "support/test_paths.hpp"

namespace chunkllm {
namespace {

using testing::Arguments;
using testing::ProgramResult;
using testing::run;
using testing::run_json;
using testing::succeeds;

// A token's logits differ by 0.05 at the most in f16 (see test_device_session.cu), its likelihood
// by twice that; in the mean over hundreds of tokens errors of either sign average out.
constexpr double kMeanNll = 0.01;
// SmolLM2's 30 layers with weights in f16: see kMeanNllTolerance of the golden tests.
constexpr double kSmolLm2MeanNll = 0.02;

/// The golden tiny models' sizes with heads that the device has kernels for, in f16, so that both
/// sides have the same weights.
void write_model(const testing::TempFolder& folder) {
  BackboneConfig config = testing::session_config();
  config.vocab_size = 99;
  Json json = read_json_file(testing::golden_dir() + "/llama/config.json", {}).value();
  json["attention_bias"] = json["mlp_bias"] = false;
  json["head_dim"] = config.head_dim;
  json["hidden_size"] = config.hidden_size;
  json["intermediate_size"] = config.intermediate_size;
  json["num_attention_heads"] = config.num_heads;
  json["num_key_value_heads"] = config.num_kv_heads;
  json["num_hidden_layers"] = config.num_layers;
  json["max_position_embeddings"] = config.context_length;
  json["eos_token_id"] = nullptr;
  folder.write("config.json", json.dump());
  testing::write_byte_tokenizer(folder, static_cast<int>(config.vocab_size));

  testing::MemoryTensorSource source = testing::MemoryTensorSource::random(config, /*seed=*/5);
  std::vector<std::vector<F16>> values;
  std::vector<SafetensorsTensor> tensors;
  for (const ExpectedTensor& expected : expected_tensors(config)) {
    std::vector<F16>& rounded = values.emplace_back();
    for (const float value : source.values(expected.name)) rounded.push_back(to_f16(value));
    SafetensorsTensor tensor;
    tensor.name = expected.name;
    tensor.dtype = DType::kF16;
    tensor.shape = {expected.cols};
    if (expected.rows > 1) tensor.shape.insert(tensor.shape.begin(), expected.rows);
    tensor.bytes = std::as_bytes(std::span<const F16>(rounded));
    tensors.push_back(std::move(tensor));
  }
  ASSERT_TRUE(succeeds(write_safetensors(folder.file("model.safetensors"), tensors, {})));
}

class CudaCli : public testing::DeviceTest {
 protected:
  void SetUp() override {
    testing::DeviceTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    write_model(model_);
    std::string text;
    for (int i = 0; i < 30; ++i) {
      text += "Rain fell on hill " + std::to_string(i) + ". Then it stopped. ";
    }
    text_ = folder_.write("text.txt", text);
  }

  [[nodiscard]] Arguments command(const std::string& name, const std::string& device,
                                  const Arguments& rest) const {
    Arguments arguments = {name, "--model", model_.path(), "--device", device, "--quiet"};
    arguments.insert(arguments.end(), rest.begin(), rest.end());
    return arguments;
  }

  testing::TempFolder model_;
  testing::TempFolder folder_;
  std::string text_;
};

TEST_F(CudaCli, GenerateStreamsAndCounts) {
  const Json json = run_json(command("generate", "cuda",
                                     {"--file", text_, "--prompt", "So", "--budget", "128",
                                      "--selection", "layer", "--max-new-tokens", "12"}));
  EXPECT_EQ(json.at("ids").size(), 12U);
  EXPECT_EQ(json.at("stop_reason"), "length");
  EXPECT_GT(json.at("prompt_tokens"), 900);
  EXPECT_LT(json.at("kv").at("attended_share"), 0.5);
  for (const char* part : {"weights", "kv", "chunk_keys", "workspace"}) {
    EXPECT_GT(json.at("memory").at(part), 0) << part;
  }
  // The CPU's cache would grow; the device's has room for all that is asked for.
  const Json longer = run_json(command(
      "generate", "cuda", {"--prompt", "So", "--attention", "dense", "--max-new-tokens", "1100"}));
  EXPECT_EQ(longer.at("ids").size(), 1100U);
}

TEST_F(CudaCli, PerplexityIsTheCpus) {
  const std::vector<Arguments> settings = {
      {"--attention", "dense"},
      {"--scorer", "recent", "--budget", "128"},
      {"--scorer", "recent", "--budget", "128", "--selection", "layer", "--prefill", "chunk"}};
  for (Arguments flags : settings) {
    flags.insert(flags.end(), {"--file", text_, "--kv", "f16"});
    const Json gpu = run_json(command("perplexity", "cuda", flags));
    const Json cpu = run_json(command("perplexity", "cpu", flags));
    EXPECT_EQ(gpu.at("scored"), cpu.at("scored"));
    EXPECT_EQ(gpu.at("boundaries"), cpu.at("boundaries"));
    EXPECT_NEAR(gpu.at("nll_mean").get<double>(), cpu.at("nll_mean").get<double>(), kMeanNll);
    EXPECT_NEAR(gpu.at("kv").at("attended_share").get<double>(),
                cpu.at("kv").at("attended_share").get<double>(), 1e-6);
  }
}

TEST_F(CudaCli, EvaluateMakesTheRowsOfTheCpu) {
  const std::string report = folder_.file("r.html");
  const Arguments flags = {"--text",    text_, "--tasks",   "perplexity", "--lengths", "400",
                           "--budgets", "128", "--windows", "1",          "--report",  report};
  const Json cpu = run_json(command("evaluate", "cpu", flags));
  const Json gpu = run_json(command("evaluate", "cuda", flags));  // the default scorers
  ASSERT_EQ(gpu.at("rows").size(), cpu.at("rows").size());
  ASSERT_EQ(gpu.at("rows").size(), 2U);
  for (std::size_t i = 0; i < 2; ++i) {
    const Json& row = gpu.at("rows").at(i);
    EXPECT_EQ(row.at("scorer"), cpu.at("rows").at(i).at("scorer"));
    const double dense = cpu.at("rows").at(i).at("dense_value");
    EXPECT_NEAR(std::log(row.at("dense_value").get<double>()), std::log(dense), kMeanNll);
    if (row.at("scorer") == "recent") {
      EXPECT_NEAR(std::log(row.at("value").get<double>()),
                  std::log(cpu.at("rows").at(i).at("value").get<double>()), kMeanNll);
    }
  }
  std::ifstream page(report);
  const std::string html(std::istreambuf_iterator<char>(page), {});
  EXPECT_NE(html.find("(CUDA), weights, keys and values in f16"), std::string::npos);

  const Json host_tasks =
      run_json(command("evaluate", "cuda",
                       {"--text", text_, "--tasks", "mass-recall,boundary-f1,passkey", "--lengths",
                        "300", "--budgets", "128", "--windows", "1", "--trials", "1"}));
  EXPECT_GT(host_tasks.at("rows").size(), 3U);
}

TEST_F(CudaCli, BenchTimesBothModes) {
  const Json json = run_json(
      command("bench", "cuda", {"--depths", "64,500", "--new-tokens", "4", "--budget", "128"}));
  ASSERT_EQ(json.at("rows").size(), 4U);
  for (const Json& row : json.at("rows")) {
    EXPECT_GT(row.at("value"), 0.0);
    EXPECT_GT(row.at("dense_value"), 0.0);
  }
  const Json random = run_json({"bench", "--random-weights", "smollm2-135m", "--device", "cuda",
                                "--depths", "3000", "--new-tokens", "4"});
  EXPECT_EQ(random.at("rows").size(), 2U);
}

TEST_F(CudaCli, HeadsWithoutKernelsAreRefusedBeforeLoading) {
  const testing::TinyModelFolder golden;  // heads of 8 features
  const ProgramResult result =
      run({"perplexity", "--model", golden.path(), "--file", text_, "--device", "cuda", "--quiet"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("supported are head_dim 64, 96, 128 and 256"), std::string::npos)
      << result.err;
}

TEST_F(CudaCli, SmolLm2HasThePerplexityOfTheCpu) {
  if (!std::filesystem::exists(testing::model_path())) GTEST_SKIP() << "needs the test model";
  const Json golden =
      read_json_file(testing::golden_dir() + "/smollm2/austen.json", JsonLimits{}).value();
  const std::string ids = folder_.write("ids.json", golden.at("ids").dump());
  for (const char* attention : {"dense", "chunk"}) {
    const Arguments flags = {"perplexity", "--model",  testing::model_path(),
                             "--ids-file", ids,        "--attention",
                             attention,    "--budget", "512",
                             "--scorer",   "recent",   "--quiet"};
    const auto with = [&](const Arguments& more) {
      Arguments all = flags;
      all.insert(all.end(), more.begin(), more.end());
      return run_json(all);
    };
    const Json cpu = with({"--weights", "f32", "--context", "1000"});
    const Json gpu = with({"--device", "cuda", "--context", "1000"});
    EXPECT_NEAR(gpu.at("nll_mean").get<double>(), cpu.at("nll_mean").get<double>(), kSmolLm2MeanNll)
        << attention;
    EXPECT_EQ(gpu.at("boundaries"), cpu.at("boundaries"));
  }
}

}  // namespace
}  // namespace chunkllm
