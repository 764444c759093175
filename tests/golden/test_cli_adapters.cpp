// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// The chunkllm program and trained adapters: given, shipped beside it, or of another model.
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/adapter_file.hpp"
#include "chunkllm/chunk/adapter_file_writer.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/model/model_files.hpp"
#include "cli_fixture.hpp"

namespace chunkllm {
namespace {

using testing::Arguments;
using testing::ProgramResult;
using testing::run;
using testing::run_json;

using CliAdapters = testing::Cli;

/// Adapters of random numbers for the tiny model, or with another fingerprint for none.
void write_adapters(const std::string& model_path, const std::string& path,
                    std::optional<std::string> fingerprint = std::nullopt) {
  const Result<ModelFiles> files = ModelFiles::open(model_path);
  ASSERT_TRUE(files.ok()) << files.status().message();
  const BackboneConfig& config = files->config();
  std::mt19937 random(3);
  const auto numbers = [&](std::int64_t size) {
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& value : values) value = static_cast<float>(random() % 64) / 32.0F - 1.0F;
    return values;
  };
  AdapterFile file;
  file.model = describe_adapter_model(config, fingerprint.value_or(files->fingerprint()));
  auto chunk = std::make_shared<ChunkAdapter>();
  chunk->weight = numbers(config.hidden_size);
  file.maybe_chunk_adapter = chunk;
  constexpr std::int64_t kKeyDim = 4;
  std::vector<QkAdapterLayer> layers(static_cast<std::size_t>(config.num_layers));
  for (QkAdapterLayer& layer : layers) {
    layer.query_weight = numbers(config.num_heads * kKeyDim * config.hidden_size);
    layer.key_weight = numbers(config.num_kv_heads * kKeyDim * config.hidden_size);
  }
  file.maybe_qk_adapter =
      std::make_shared<const QkAdapter>(std::move(layers), config.hidden_size, config.num_heads,
                                        config.num_kv_heads, kKeyDim, KeyPooling::kMean, true);
  const Status status = write_adapter_file(path, file, DType::kF32);
  ASSERT_TRUE(status.ok()) << status.message();
}

TEST_F(CliAdapters, AdaptersFindAndRankTheChunks) {
  const std::string adapters = folder_.file("adapters.safetensors");
  write_adapters(model_.path(), adapters);
  const std::string text(120, 'c');
  const Json chunks =
      run_json(with_model("chunks", {"--text", text + " and, more. 0123", "--adapters", adapters}));
  ASSERT_FALSE(chunks.at("chunks").empty());
  for (const Json& chunk : chunks.at("chunks")) {
    const double probability = chunk.at(2).get<double>();
    EXPECT_TRUE(probability >= 0.0 && probability <= 1.0) << probability;
  }
  const Json json = run_json(
      with_model("generate", {"--prompt", text, "--adapters", adapters, "--budget", "64"}));
  EXPECT_EQ(json.at("attention").at("scorer"), "adapter");
  EXPECT_EQ(json.at("attention").at("selection"), "layer");
  EXPECT_EQ(json.at("attention").at("adapters"), adapters);
  EXPECT_EQ(run_json(with_model("inspect", {"--adapters", adapters})).at("adapters"), adapters);
}

TEST_F(CliAdapters, AdaptersOfAnotherModelAreRefused) {
  const std::string adapters = folder_.file("adapters.safetensors");
  write_adapters(model_.path(), adapters, "0000000000000000");
  const ProgramResult result =
      run(with_model("generate", {"--prompt", "x", "--adapters", adapters}));
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("fingerprint 0000000000000000"), std::string::npos) << result.err;
}

/// A copy of the program in a folder of its own, with shipped adapters where `adapters` says.
Json inspect_shipped(const testing::TempFolder& folder, const std::string& program,
                     const std::string& adapters, const std::string& model,
                     std::optional<std::string> fingerprint = std::nullopt) {
  namespace fs = std::filesystem;
  fs::create_directories(fs::path(folder.file(program)).parent_path());
  fs::create_directories(fs::path(folder.file(adapters)).parent_path());
  fs::copy_file(CHUNKLLM_CLI_PATH, folder.file(program));
  write_adapters(model, folder.file(adapters), std::move(fingerprint));
  // Beside it one for another model, and something that is no safetensors file at all.
  write_adapters(model, folder.file(adapters) + "0.safetensors", "0000000000000000");
  folder.write(adapters + "1.safetensors", "no adapters");
  const ProgramResult result =
      testing::run_program({folder.file(program), "inspect", "--model", model, "--json"});
  EXPECT_EQ(result.exit_status, 0) << result.err;
  const Result<Json> json = parse_json(result.out, "stdout");
  return json.ok() ? json->at("adapters") : Json("no JSON");
}

TEST_F(CliAdapters, ShippedOnesAreFoundInABuildTree) {
  const std::string adapters = "adapters/tiny.safetensors";
  EXPECT_EQ(
      inspect_shipped(folder_, "build/release/examples/cli/chunkllm", adapters, model_.path()),
      folder_.file(adapters));
}

TEST_F(CliAdapters, ShippedOnesAreFoundInAnInstallation) {
  const std::string adapters = CHUNKLLM_DATADIR "/chunkllm/adapters/tiny.safetensors";
  EXPECT_EQ(inspect_shipped(folder_, "bin/chunkllm", adapters, model_.path()),
            folder_.file(adapters));
  // And they are what `generate` then uses.
  const ProgramResult result =
      testing::run_program({folder_.file("bin/chunkllm"), "generate", "--model", model_.path(),
                            "--prompt", "x", "--max-new-tokens", "1", "--json"});
  const Result<Json> json = parse_json(result.out, "stdout");
  ASSERT_TRUE(json.ok()) << result.err;
  EXPECT_EQ(json->at("attention").at("scorer"), "adapter");
  EXPECT_EQ(json->at("attention").at("selection"), "layer");
}

TEST_F(CliAdapters, ShippedOnesOfOtherModelsAreLeftAlone) {
  const std::string adapters = CHUNKLLM_DATADIR "/chunkllm/adapters/tiny.safetensors";
  EXPECT_TRUE(inspect_shipped(folder_, "bin/chunkllm", adapters, model_.path(), "00000000000000ff")
                  .is_null());
}

TEST_F(CliAdapters, AreEvaluatedAsTheyAreUsed) {
  const std::string adapters = folder_.file("adapters.safetensors");
  write_adapters(model_.path(), adapters);
  const std::string file = write("t.txt", std::string(180, 'a') + ". And more of it.");
  const auto selections = [&](const Arguments& more) {
    Arguments arguments = with_model(
        "evaluate", {"--text", file, "--adapters", adapters, "--tasks", "perplexity", "--lengths",
                     "150", "--windows", "1", "--budget", "100", "--scorers", "mean-key,adapter"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    std::vector<std::string> found;
    const Json json = run_json(std::move(arguments));
    for (const Json& row : json.at("rows")) found.push_back(row.at("selection"));
    return found;
  };
  using Selections = std::vector<std::string>;
  EXPECT_EQ(selections({}), (Selections{"max", "layer"}));
  EXPECT_EQ(selections({"--selection", "vote"}), (Selections{"vote", "vote"}));
}

}  // namespace
}  // namespace chunkllm
