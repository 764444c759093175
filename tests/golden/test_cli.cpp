// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// The chunkllm program from outside: exit statuses, JSON keys, messages.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "chunkllm/chunk/adapter_file.hpp"
#include "chunkllm/chunk/adapter_file_writer.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/model/model_files.hpp"
#include "support/program.hpp"
#include "support/test_paths.hpp"
#include "support/tiny_model_folder.hpp"

namespace chunkllm {
namespace {

using testing::Program;
using testing::ProgramResult;
using Ids = std::vector<std::int32_t>;
using Arguments = std::vector<std::string>;

Arguments command_line(Arguments arguments) {
  arguments.insert(arguments.begin(), CHUNKLLM_CLI_PATH);
  return arguments;
}

ProgramResult run(Arguments arguments) {
  return testing::run_program(command_line(std::move(arguments)));
}

/// The JSON object that a successful command prints, alone on stdout.
Json run_json(Arguments arguments) {
  arguments.push_back("--json");
  const ProgramResult result = run(std::move(arguments));
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 1) << result.out;
  Result<Json> json = parse_json(result.out, "stdout");
  EXPECT_TRUE(json.ok()) << json.status().message() << "\n" << result.out;
  return json.ok() ? std::move(json).value() : Json::object();
}

void expect_keys(const Json& json, const std::vector<std::string>& keys) {
  for (const std::string& key : keys) EXPECT_TRUE(json.contains(key)) << key << " in " << json;
}

class Cli : public ::testing::Test {
 protected:
  /// `command --model <tiny model> ...`
  Arguments with_model(const std::string& command, Arguments rest = {}) const {
    Arguments arguments = {command, "--model", model_.path(), "--threads", "1"};
    arguments.insert(arguments.end(), rest.begin(), rest.end());
    return arguments;
  }
  std::string write(const std::string& name, std::string_view text) const {
    return folder_.write(name, text);
  }

  /// Takes the model's end token away: a generation then ends by its limit or from outside.
  void never_end() const {
    Json config = read_json_file(model_.file("config.json"), {}).value();
    config["eos_token_id"] = nullptr;
    model_.write("config.json", config.dump());
  }

  testing::TinyModelFolder model_;
  testing::TempFolder folder_;
};

TEST_F(Cli, GreedyIdsEqualTransformersOnATinyModel) {
  const Result<Json> golden = read_json_file(testing::golden_dir() + "/llama/golden.json", {});
  ASSERT_TRUE(golden.ok()) << golden.status().message();
  Ids prompt = golden->at("ids").get<Ids>();
  prompt.resize(golden->at("prompt_len").get<std::size_t>());
  const Ids greedy = golden->at("greedy").get<Ids>();
  const std::string file = write("ids.json", Json(prompt).dump());
  for (const char* attention : {"dense", "chunk"}) {
    const Json json = run_json(
        with_model("generate", {"--ids-file", file, "--kv", "f32", "--attention", attention,
                                "--max-new-tokens", std::to_string(greedy.size())}));
    EXPECT_EQ(json.at("ids").get<Ids>(), greedy) << attention;
    EXPECT_EQ(json.at("prompt_tokens"), prompt.size());
  }
}

TEST_F(Cli, GenerateReportsItsKeys) {
  const Json json =
      run_json(with_model("generate", {"--prompt", "hello", "--max-new-tokens", "5"}));
  expect_keys(json, {"prompt_tokens", "ids", "text", "stop_reason", "prefill", "decode", "kv",
                     "refreshes", "boundaries", "forced_boundaries", "memory", "peak_rss_bytes"});
  expect_keys(json.at("prefill"), {"seconds", "tokens_per_second"});
  expect_keys(json.at("decode"), {"seconds", "tokens_per_second"});
  expect_keys(json.at("kv"), {"attended_share", "resident_bytes", "attended_bytes_per_step"});
  expect_keys(json.at("memory"), {"weights", "kv", "chunk_keys", "workspace", "total"});
  EXPECT_EQ(json.at("prompt_tokens"), 5);
  EXPECT_EQ(json.at("kv").at("attended_share"), 1.0);
  const std::string reason = json.at("stop_reason");
  EXPECT_TRUE(reason == "eos" || reason == "length") << reason;
}

TEST_F(Cli, AnEndTokenStopsAndIsReported) {
  // The first new token becomes the end token of a copy of the model.
  const Json json = run_json(with_model("generate", {"--prompt", "ab", "--max-new-tokens", "3"}));
  const std::int32_t first = json.at("ids").at(0);
  Json config = read_json_file(model_.file("config.json"), {}).value();
  config["eos_token_id"] = first;
  model_.write("config.json", config.dump());
  const Json stopped = run_json(with_model("generate", {"--prompt", "ab"}));
  EXPECT_EQ(stopped.at("stop_reason"), "eos");
  EXPECT_EQ(stopped.at("ids").get<Ids>(), Ids{first});
}

TEST_F(Cli, TextModeStreamsTheSameText) {
  const Arguments arguments =
      with_model("generate", {"--prompt", "hello", "--max-new-tokens", "9"});
  const Json json = run_json(arguments);
  Arguments quiet = arguments;
  quiet.push_back("--quiet");
  const ProgramResult result = run(quiet);
  EXPECT_EQ(result.exit_status, 0);
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(result.out, json.at("text").get<std::string>() + "\n");
}

TEST_F(Cli, FileAndPromptAreJoinedUnchanged) {
  const std::string file = write("a.txt", "some text \n");
  const Json joined = run_json(
      with_model("generate", {"--file", file, "--prompt", " and more", "--max-new-tokens", "4"}));
  const Json whole = run_json(
      with_model("generate", {"--prompt", "some text \n and more", "--max-new-tokens", "4"}));
  EXPECT_EQ(joined.at("prompt_tokens"), 20);
  EXPECT_EQ(joined.at("ids"), whole.at("ids"));
}

TEST_F(Cli, SamplingIsReproducible) {
  const auto sample = [&](const char* seed) {
    return run_json(with_model("generate", {"--prompt", "hello", "--max-new-tokens", "24",
                                            "--temperature", "1.5", "--seed", seed}))
        .at("ids")
        .get<Ids>();
  };
  EXPECT_EQ(sample("3"), sample("3"));
  EXPECT_NE(sample("3"), sample("4"));
}

TEST_F(Cli, ThreadsAndRunsDoNotChangeTheResult) {
  const std::string text = [] {
    std::string all;
    for (int i = 0; i < 10; ++i) all += "Here is a sentence. ";
    return all;
  }();
  const auto ids = [&](const char* threads) {
    return run_json({"generate", "--model", model_.path(), "--prompt", text, "--budget", "100",
                     "--positions", "in-cache", "--threads", threads, "--max-new-tokens", "16"})
        .at("ids")
        .get<Ids>();
  };
  EXPECT_EQ(ids("1"), ids("3"));
}

TEST_F(Cli, BudgetAboveThePastEqualsDense) {
  const std::string prompt(150, 'a');
  const auto ids = [&](const Arguments& more) {
    Arguments arguments = with_model("generate", {"--prompt", prompt, "--max-new-tokens", "16"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_json(arguments).at("ids").get<Ids>();
  };
  const Ids dense = ids({"--attention", "dense"});
  for (const char* scorer : {"mean-key", "min-max-key", "recent", "random"}) {
    for (const char* selection : {"layer", "max", "vote", "soft"}) {
      EXPECT_EQ(ids({"--budget", "166", "--scorer", scorer, "--selection", selection}), dense)
          << scorer << " " << selection;
    }
  }
}

TEST_F(Cli, LongTextsAreNumberedInTheCacheAndItSaysSo) {
  // 300 tokens on a model with a window of 256.
  const std::string file = write("long.txt", std::string(300, 'b'));
  const ProgramResult result = run(with_model(
      "generate", {"--file", file, "--budget", "100", "--max-new-tokens", "4", "--json"}));
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_NE(result.err.find("exceed the model's window of 256"), std::string::npos) << result.err;
  EXPECT_EQ(Json::parse(result.out).at("attention").at("positions"), "in-cache");

  const ProgramResult dense = run(with_model(
      "generate", {"--file", file, "--attention", "dense", "--max-new-tokens", "4", "--json"}));
  EXPECT_EQ(dense.exit_status, 0) << dense.err;
  EXPECT_NE(dense.err.find("exceed the model's window of 256"), std::string::npos) << dense.err;

  // 200 + L_max of 128 do not fit the window.
  EXPECT_EQ(run(with_model("generate", {"--file", file, "--budget", "200"})).exit_status, 2);
}

TEST_F(Cli, TokenizeGoesBothWays) {
  const Json json = run_json(with_model("tokenize", {"--text", "a b\n"}));
  EXPECT_EQ(json.at("count"), 4);
  EXPECT_EQ(json.at("ids").get<Ids>(), (Ids{69, 3, 70, 4}));
  EXPECT_EQ(run_json(with_model("tokenize", {"--ids", "69,3,70,4"})).at("text"), "a b\n");
  EXPECT_EQ(run_json(with_model("tokenize", {"--ids", "1,69,2"})).at("text"), "<s>a</s>");
  EXPECT_EQ(run_json(with_model("tokenize", {"--text", "<s>a"})).at("ids").get<Ids>(),
            (Ids{1, 69}));
  EXPECT_EQ(run_json(with_model("tokenize", {"--text", ""})).at("ids"), Json::array());
  const std::string file = write("t.txt", "ab");
  EXPECT_EQ(run(with_model("tokenize", {"--file", file})).out, "69,70\n");
}

TEST_F(Cli, TokenizePrintsJsonLines) {
  const std::string file = write("t.jsonl", "{\"text\": \"ab\"}\n\n{\"text\": \"\"}\n");
  EXPECT_EQ(run(with_model("tokenize", {"--jsonl", file})).out,
            "{\"ids\": [69, 70]}\n{\"ids\": []}\n");
}

TEST_F(Cli, NoBosAddsNoBeginToken) {
  model_.write("tokenizer_config.json",
               R"({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true})");
  EXPECT_EQ(run_json(with_model("tokenize", {"--text", "a"})).at("ids").get<Ids>(), (Ids{1, 69}));
  EXPECT_EQ(run_json(with_model("tokenize", {"--text", "a", "--no-bos"})).at("ids").get<Ids>(),
            (Ids{69}));
}

TEST_F(Cli, ChunksFollowEachOther) {
  const std::string text = "One sentence is here. And here is another one. Yes";
  const Json json = run_json(with_model("chunks", {"--text", text}));
  expect_keys(json, {"chunks", "boundary_f1"});
  std::int64_t end = 0;
  for (const Json& chunk : json.at("chunks")) {
    EXPECT_EQ(chunk.at(0), end);
    end = chunk.at(1);
    EXPECT_TRUE(chunk.at(2).is_null());
  }
  EXPECT_EQ(end, text.size());
  EXPECT_EQ(json.at("chunks").size(), 3U);
  EXPECT_EQ(json.at("boundary_f1"), 1.0);
}

TEST_F(Cli, InspectReportsItsKeys) {
  const Json json = run_json(with_model("inspect", {"--context", "1000", "--kv", "f32"}));
  expect_keys(json, {"architecture", "layers", "hidden_size", "num_heads", "num_kv_heads",
                     "head_dim", "vocab_size", "context_length", "parameters", "memory"});
  EXPECT_EQ(json.at("architecture"), "llama");
  EXPECT_EQ(json.at("layers"), 2);
  EXPECT_EQ(json.at("vocab_size"), 99);
  EXPECT_EQ(json.at("context_length"), 256);
  // 1000 tokens x 2 layers x (key and value) x 2 heads x 8 x 4 bytes.
  EXPECT_EQ(json.at("memory").at("kv"), 1000 * 2 * 2 * 2 * 8 * 4);
}

TEST_F(Cli, BenchMeasuresDenseAndChunk) {
  const Json json =
      run_json(with_model("bench", {"--depths", "120,60", "--new-tokens", "2", "--budget", "64"}));
  ASSERT_EQ(json.at("rows").size(), 4U);
  for (const Json& row : json.at("rows")) {
    expect_keys(row, {"task", "length", "budget", "scorer", "selection", "seed", "value",
                      "dense_value", "trials"});
    EXPECT_GT(row.at("value").get<double>(), 0.0);
    EXPECT_GT(row.at("dense_value").get<double>(), 0.0);
  }
}

TEST_F(Cli, TrainingIsNotInThisVersion) {
  const ProgramResult result = run({"train", "--model", "m", "--text", "a", "--out", "b"});
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("not in version"), std::string::npos);
}

TEST_F(Cli, HelpHasExamples) {
  for (const char* command :
       {"generate", "inspect", "tokenize", "chunks", "perplexity", "evaluate", "bench"}) {
    const ProgramResult result = run({command, "--help"});
    EXPECT_EQ(result.exit_status, 0) << command;
    EXPECT_NE(result.out.find("  chunkllm " + std::string(command) + " --model"), std::string::npos)
        << result.out;
  }
}

TEST_F(Cli, AnInterruptEndsCleanlyWithTheJsonSoFar) {
  never_end();
  Program program(command_line(with_model("generate", {"--prompt", "hello", "--json", "--budget",
                                                       "64", "--max-new-tokens", "1048576"})));
  program.wait_for_stderr();  // its notes come when the model is loaded
  program.interrupt();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1);
  const Result<Json> json = parse_json(result.out, "stdout");
  ASSERT_TRUE(json.ok()) << json.status().message() << result.err;
  EXPECT_EQ(json->at("stop_reason"), "interrupted");
  EXPECT_EQ(json->at("prompt_tokens"), 5);
}

TEST_F(Cli, AnInterruptEndsAStreamCleanly) {
  never_end();
  Program program(command_line(with_model(
      "generate", {"--prompt", "hello", "--budget", "64", "--max-new-tokens", "1048576"})));
  program.wait_for_stdout();
  program.interrupt();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("stopped after"), std::string::npos) << result.err;
}

TEST_F(Cli, AClosedPipeIsAnErrorAndNoCrash) {
  never_end();
  Program program(command_line(with_model("generate", {"--prompt", "hello", "--quiet", "--budget",
                                                       "64", "--max-new-tokens", "1048576"})));
  program.wait_for_stdout();
  program.close_stdout();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("stdout: cannot write"), std::string::npos) << result.err;
}

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

TEST_F(Cli, AdaptersFindAndRankTheChunks) {
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

TEST_F(Cli, AdaptersOfAnotherModelAreRefused) {
  const std::string adapters = folder_.file("adapters.safetensors");
  write_adapters(model_.path(), adapters, "0000000000000000");
  const ProgramResult result =
      run(with_model("generate", {"--prompt", "x", "--adapters", adapters}));
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("fingerprint 0000000000000000"), std::string::npos) << result.err;
}

struct BadCall {
  const char* name;
  int exit_status;
  const char* message;  // part of it
  Arguments arguments;
};

void PrintTo(const BadCall& call, std::ostream* stream) {
  *stream << call.name;
}

/// Runs the program with wrong arguments; "MODEL" stands for the model, "@x" for a file x.
class BadCalls : public Cli, public ::testing::WithParamInterface<BadCall> {};

TEST_P(BadCalls, GiveOneClearLine) {
  write("empty", "");
  write("latin1", "caf\xe9");
  write("large.json", "[1, 99]");
  write("negative.json", "[1, -2]");
  write("none.json", "[]");
  write("object.json", "{\"ids\": [1]}");
  std::filesystem::create_directory(folder_.file("folder"));
  Arguments arguments = GetParam().arguments;
  for (std::string& argument : arguments) {
    if (argument == "MODEL") argument = model_.path();
    if (argument.starts_with("@")) argument = folder_.file(argument.substr(1));
  }
  const ProgramResult result = run(arguments);
  EXPECT_EQ(result.exit_status, GetParam().exit_status) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_NE(result.err.find(GetParam().message), std::string::npos) << result.err;
}

Arguments generate_with(Arguments flags) {
  Arguments arguments = {"generate", "--model", "MODEL", "--prompt", "x"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return arguments;
}

INSTANTIATE_TEST_SUITE_P(
    Cli, BadCalls,
    ::testing::Values(
        BadCall{"NoCommand", 2, "no command", {}}, BadCall{"UnknownCommand", 2, "bogus", {"bogus"}},
        BadCall{"NoModel", 2, "--model", {"generate", "--prompt", "x"}},
        BadCall{"NoInput", 2, "--prompt", {"generate", "--model", "MODEL"}},
        BadCall{"UnknownFlag", 2, "--bogus", generate_with({"--bogus"})},
        BadCall{"MissingModel", 1, "none", {"generate", "--model", "@none", "--prompt", "x"}},
        BadCall{"FolderWithoutModel",
                1,
                "config.json",
                {"generate", "--model", "@folder", "--prompt", "x"}},
        BadCall{"EmptyModel", 1, "empty", {"generate", "--model", "@empty", "--prompt", "x"}},
        BadCall{"EmptyPrompt", 2, "--prompt", {"generate", "--model", "MODEL", "--prompt", ""}},
        BadCall{
            "PromptNotUtf8", 2, "byte 1", {"generate", "--model", "MODEL", "--prompt", "a\xff"}},
        BadCall{"EmptyFile", 1, "empty", {"generate", "--model", "MODEL", "--file", "@empty"}},
        BadCall{"MissingFile", 1, "none", {"generate", "--model", "MODEL", "--file", "@none"}},
        BadCall{
            "FolderForFile", 1, "folder", {"generate", "--model", "MODEL", "--file", "@folder"}},
        BadCall{"FileNotUtf8", 1, "byte 3", {"generate", "--model", "MODEL", "--file", "@latin1"}},
        BadCall{
            "EndlessFile", 1, "/dev/zero", {"generate", "--model", "MODEL", "--file", "/dev/zero"}},
        BadCall{"IdTooLarge",
                1,
                "0 to 98",
                {"generate", "--model", "MODEL", "--ids-file", "@large.json"}},
        BadCall{"IdNegative",
                1,
                "-2",
                {"generate", "--model", "MODEL", "--ids-file", "@negative.json"}},
        BadCall{
            "NoIds", 1, "token ids", {"generate", "--model", "MODEL", "--ids-file", "@none.json"}},
        BadCall{"IdsNoList",
                1,
                "an object",
                {"generate", "--model", "MODEL", "--ids-file", "@object.json"}},
        BadCall{"IdsAndPrompt", 2, "--ids-file", generate_with({"--ids-file", "@none.json"})},
        BadCall{"NoChatTemplate", 1, "chat template", generate_with({"--chat"})},
        BadCall{"ThreadsZero", 2, "--threads", generate_with({"--threads", "0"})},
        BadCall{"ThreadsNegative", 2, "--threads", generate_with({"--threads", "-1"})},
        BadCall{"ThreadsHuge", 2, "--threads", generate_with({"--threads", "1000000000"})},
        BadCall{"ThreadsFloat", 2, "--threads", generate_with({"--threads", "1e9"})},
        BadCall{"BudgetZero", 2, "--budget", generate_with({"--budget", "0"})},
        BadCall{"BudgetNaN", 2, "--budget", generate_with({"--budget", "nan%"})},
        BadCall{"BudgetNegative", 2, "--budget", generate_with({"--budget", "-5"})},
        BadCall{"BudgetAbove100", 2, "--budget", generate_with({"--budget", "100.5%"})},
        BadCall{"BudgetOverflow", 2, "--budget",
                generate_with({"--budget", "99999999999999999999"})},
        BadCall{"NewTokensHuge", 2, "--max-new-tokens",
                generate_with({"--max-new-tokens", "99999999999"})},
        BadCall{"NewTokensNegative", 2, "--max-new-tokens",
                generate_with({"--max-new-tokens", "-1"})},
        BadCall{"TemperatureNaN", 2, "--temperature", generate_with({"--temperature", "nan"})},
        BadCall{"TopPAboveOne", 2, "--top-p", generate_with({"--top-p", "1.5"})},
        BadCall{"TopKNegative", 2, "--top-k", generate_with({"--top-k", "-1"})},
        BadCall{"StrideZero", 2, "--refresh", generate_with({"--refresh", "stride:0"})},
        BadCall{"StrideAboveLMax", 2, "refresh stride", generate_with({"--refresh", "stride:129"})},
        BadCall{"UnknownScorer", 2, "--scorer", generate_with({"--scorer", "best"})},
        BadCall{"OracleInGenerate", 2, "oracle", generate_with({"--scorer", "oracle"})},
        BadCall{"NoAdaptersToUse", 1, "adapter", generate_with({"--scorer", "adapter"})},
        BadCall{"MissingAdapters", 1, "none", generate_with({"--adapters", "@none"})},
        BadCall{"InCacheBudget", 2, "window",
                generate_with({"--positions", "in-cache", "--budget", "129"})},
        BadCall{"Cuda", 1, "CUDA", generate_with({"--device", "cuda"})},
        BadCall{"NoTokenizeInput", 2, "--text", {"tokenize", "--model", "MODEL"}},
        BadCall{"TwoTokenizeInputs",
                2,
                "2 inputs",
                {"tokenize", "--model", "MODEL", "--text", "a", "--ids", "1"}},
        BadCall{"DecodeTooLarge", 1, "99", {"tokenize", "--model", "MODEL", "--ids", "99"}},
        BadCall{"DecodeNegative", 1, "-1", {"tokenize", "--model", "MODEL", "--ids", "-1"}},
        BadCall{"DecodeNoNumber", 2, "--ids", {"tokenize", "--model", "MODEL", "--ids", "1,,2"}},
        BadCall{
            "InspectContext", 2, "--context", {"inspect", "--model", "MODEL", "--context", "0"}},
        BadCall{"BenchDepth", 2, "--depths", {"bench", "--model", "MODEL", "--depths", "0"}},
        BadCall{"ChunksEmpty", 1, "no tokens", {"chunks", "--model", "MODEL", "--text", ""}}),
    [](const auto& test) { return std::string(test.param.name); });

TEST_F(Cli, ABadJsonLineIsNamed) {
  const std::string file = write("bad.jsonl", "{\"text\": \"a\"}\n{\"txt\": 1}\n");
  const ProgramResult result = run(with_model("tokenize", {"--jsonl", file}));
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("line 2: field 'text' is missing"), std::string::npos) << result.err;
}

TEST_F(Cli, SmolLm2AnswersAsTransformersDoes) {
  const std::string path = testing::model_path();
  ASSERT_TRUE(std::filesystem::exists(path)) << path << ": scripts/test fetches it";
  const Ids expected = {7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32,
                        33,   29, 34,  34,  216, 33,   34,  42, 33,  34, 42, 37, 35, 30, 2};
  const Json json = run_json({"generate", "--model", path, "--prompt", "The capital of France is"});
  EXPECT_EQ(json.at("ids").get<Ids>(), expected);
  EXPECT_EQ(json.at("stop_reason"), "eos");
}

}  // namespace
}  // namespace chunkllm
