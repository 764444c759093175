// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// The chunkllm program from outside: results and JSON keys.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/io/json.hpp"
#include "chunkllm/io/safetensors.hpp"
#include "chunkllm/version.hpp"
#include "cli_fixture.hpp"
#include "support/test_paths.hpp"

namespace chunkllm {
namespace {

using testing::Arguments;
using testing::Cli;
using testing::expect_keys;
using testing::Ids;
using testing::ProgramResult;
using testing::run;
using testing::run_json;

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

/// A text long enough to be trained on, whose tokens every tiny model knows.
std::string training_text() {
  std::string text;
  for (int i = 0; i < 260; ++i) text += "The miller of the " + std::to_string(i) + " hills sang. ";
  return text;
}

TEST_F(Cli, TrainsAdaptersThatAreUsed) {
  const std::string file = folder_.write("train.txt", training_text());
  const std::string out = folder_.file("adapters.safetensors");
  const std::vector<std::string> options = {
      "--text",     file,  "--out",           out,   "--steps",   "2", "--seed",         "3",
      "--sequence", "640", "--long-sequence", "640", "--key-dim", "4", "--input-budget", "256"};
  const Json json = run_json(with_model("train", options));
  expect_keys(json, {"boundary_f1", "mass_recall", "kl", "seconds", "tokens", "steps"});
  EXPECT_EQ(json.at("steps"), 2);
  EXPECT_EQ(json.at("tokens"), 2 * 2 * 640);
  EXPECT_GT(json.at("kl").get<double>(), 0.0);
  EXPECT_FALSE(std::filesystem::exists(out + ".checkpoint"));
  const Json used = run_json(with_model("generate", {"--prompt", training_text().substr(0, 900),
                                                     "--adapters", out, "--budget", "128"}));
  EXPECT_EQ(used.at("attention").at("scorer"), "adapter");

  // The same seed and steps: the same bytes.
  const auto bytes = [](const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::string first = bytes(out);
  run_json(with_model("train", options));
  const auto without_time = [](std::string text) {
    const std::size_t at = text.find("training.seconds");
    return at == std::string::npos ? text : text.erase(at, 24);
  };
  EXPECT_EQ(without_time(bytes(out)), without_time(first));
}

TEST_F(Cli, TrainingRefusesTextThatIsTooShort) {
  const std::string out = folder_.file("adapters.safetensors");
  const ProgramResult result =
      run(with_model("train", {"--text", folder_.write("short.txt", "A word."), "--out", out}));
  EXPECT_EQ(result.exit_status, 2);
  EXPECT_NE(result.err.find("expected at least 8192"), std::string::npos) << result.err;
  EXPECT_FALSE(std::filesystem::exists(out));
}

TEST_F(Cli, SmolLm2AnswersAsTransformersDoes) {
  const std::string path = testing::model_path();
  ASSERT_TRUE(std::filesystem::exists(path)) << path << ": scripts/test fetches it";
  const Ids expected = {7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32,
                        33,   29, 34,  34,  216, 33,   34,  42, 33,  34, 42, 37, 35, 30, 2};
  // With activations in f32, as there: those of 8 bits may turn a near tie.
  const Json json = run_json({"generate", "--model", path, "--prompt", "The capital of France is",
                              "--weights", "f32", "--kv", "f32"});
  EXPECT_EQ(json.at("ids").get<Ids>(), expected);
  EXPECT_EQ(json.at("stop_reason"), "eos");
}

TEST_F(Cli, TheLastOfTwoEqualOptionsCounts) {
  const Json json = run_json(with_model(
      "generate", {"--prompt", "hello", "--max-new-tokens", "7", "--budget", "64",
                   "--max-new-tokens", "2", "--budget", "128", "--prompt", "hello you"}));
  EXPECT_EQ(json.at("prompt_tokens"), 9);
  EXPECT_LE(json.at("ids").size(), 2U);
  EXPECT_EQ(json.at("attention").at("budget"), "128");
}

TEST_F(Cli, EvaluateMakesFlatRowsAndBothFiles) {
  const std::string text = [] {
    std::string all;
    for (int i = 0; i < 30; ++i) all += "Rain falls on the hill. ";
    return all;
  }();
  const std::string file = write("t.txt", text);
  const std::string other = write("u.txt", text + "And on.");
  const Json json = run_json(with_model(
      "evaluate", {"--text", file, other, "--tasks", "perplexity,passkey,boundary-f1", "--lengths",
                   "100,400", "--windows", "1", "--trials", "1", "--budget", "110", "--report",
                   folder_.file("r.html"), "--rows", folder_.file("r.jsonl")}));
  expect_keys(json, {"rows", "seconds", "stop_reason"});
  EXPECT_EQ(json.at("stop_reason"), "end");
  // Two scorers and two lengths: perplexity; digits at a depth and over all, full, forced; and F1.
  ASSERT_EQ(json.at("rows").size(), 4U + 16U + 1U);
  for (const Json& row : json.at("rows")) {
    expect_keys(row, {"task", "length", "budget", "scorer", "selection", "seed", "value",
                      "dense_value", "trials", "positions"});
    for (const auto& [key, value] : row.items()) EXPECT_TRUE(value.is_primitive()) << key;
    if (row.at("task") != "perplexity") continue;
    // The model's window holds 256 tokens.
    EXPECT_EQ(row.at("positions"), row.at("length") == 100 ? "original" : "in-cache");
  }
  std::ifstream page(folder_.file("r.html"));
  const std::string html(std::istreambuf_iterator<char>(page), {});
  EXPECT_NE(html.find(">chunkllm " CHUNKLLM_VERSION_STRING "<"), std::string::npos);
  EXPECT_NE(html.find("t.txt (720 tokens), u.txt (727 tokens)"), std::string::npos);
  EXPECT_EQ(html.find("Partial"), std::string::npos);
  std::ifstream lines(folder_.file("r.jsonl"));
  std::size_t num_lines = 0;
  for (std::string line; std::getline(lines, line); ++num_lines) {
    EXPECT_EQ(parse_json(line, "rows").value(), json.at("rows").at(num_lines));
  }
  EXPECT_EQ(num_lines, json.at("rows").size());
}

TEST_F(Cli, EvaluateSaysThatPositionsAreRenumbered) {
  const std::string file = write("t.txt", std::string(500, 'a'));
  const ProgramResult result =
      run(with_model("evaluate", {"--text", file, "--tasks", "perplexity", "--lengths", "300",
                                  "--windows", "1", "--budget", "100", "--scorers", "recent"}));
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_NE(result.err.find("numbered in the cache"), std::string::npos) << result.err;
}

TEST_F(Cli, BenchSaysWhatEachDepthIsReadWith) {
  const ProgramResult result = run(with_model(
      "bench", {"--depths", "60,300", "--new-tokens", "1", "--budget", "100", "--json"}));
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_NE(result.err.find("positions are numbered in the cache"), std::string::npos)
      << result.err;
  // A budget that in-cache positions could not hold does not matter to a mode that is not run.
  EXPECT_EQ(run(with_model("bench", {"--depths", "300", "--new-tokens", "1", "--budget", "200",
                                     "--attention", "dense"}))
                .exit_status,
            0);
}

TEST_F(Cli, DenseAttentionNeedsNoScorer) {
  const std::string file = write("t.txt", "some text to score");
  const Json json = run_json(
      with_model("perplexity", {"--file", file, "--attention", "dense", "--scorer", "oracle"}));
  EXPECT_EQ(json.at("scored"), 17);
}

TEST_F(Cli, WeightsWithoutNumbersAreTheModelsFault) {
  // The final norm's weights become 3.4e38 each, which is finite; no logit then is.
  const std::string path = model_.file("model.safetensors");
  const Result<SafetensorsFile> file = SafetensorsFile::open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  std::string bytes = [&] {
    std::ifstream stream(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(stream), {});
  }();
  const auto norm = file->tensor("model.norm.weight");
  ASSERT_TRUE(norm.ok()) << norm.status().message();
  const std::string_view data(reinterpret_cast<const char*>(norm->bytes.data()),
                              norm->bytes.size());
  const std::size_t at = bytes.rfind(data);
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, data.size(), std::string(data.size(), '\x7f'));
  model_.write("model.safetensors", bytes);
  const std::string text = write("t.txt", std::string(150, 'a'));
  for (const Arguments& arguments :
       {with_model("generate", {"--prompt", "hello", "--quiet"}),
        with_model("bench", {"--depths", "20", "--quiet"}),
        with_model("perplexity", {"--file", text, "--quiet"}),
        with_model("evaluate", {"--text", text, "--lengths", "100", "--tasks", "passkey", "--quiet",
                                "--budget", "100"})}) {
    const ProgramResult result = run(arguments);
    EXPECT_EQ(result.exit_status, 1) << arguments[0];
    EXPECT_NE(result.err.find(model_.path() + ": "), std::string::npos) << result.err;
  }
}

}  // namespace
}  // namespace chunkllm
