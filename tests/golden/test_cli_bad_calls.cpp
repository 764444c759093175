// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// What the chunkllm program says to wrong flags and bad files.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <ostream>
#include <string>

#include "cli_fixture.hpp"

namespace chunkllm {
namespace {

using testing::Arguments;
using testing::ProgramResult;
using testing::run;

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
class BadCalls : public testing::Cli, public ::testing::WithParamInterface<BadCall> {};

TEST_P(BadCalls, GiveOneClearLine) {
  ::setenv("CUDA_VISIBLE_DEVICES", "", /*overwrite=*/1);  // a machine with a GPU says the same
  write("empty", "");
  write("one.txt", "a");
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

Arguments evaluate_with(Arguments flags) {
  Arguments arguments = {"evaluate", "--model", "MODEL", "--text", "@one.txt"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return arguments;
}

INSTANTIATE_TEST_SUITE_P(
    Cli, BadCalls,
    ::testing::Values(
        BadCall{"NoCommand", 2, "no command", {}},
        BadCall{"UnknownCommand",
                2,
                "unknown command 'bogus', expected one of generate, chunks, inspect",
                {"bogus", "--model", "x"}},
        BadCall{"NoModel", 2, "--model", {"generate", "--prompt", "x"}},
        BadCall{"NoInput", 2, "--prompt", {"generate", "--model", "MODEL"}},
        BadCall{"UnknownFlag", 2, "error: --bogus: unknown flag; 'chunkllm generate --help'",
                generate_with({"--bogus", "3"})},
        BadCall{"MisspeltFlag",
                2,
                "error: --modle: unknown flag; 'chunkllm chunks --help'",
                {"chunks", "--modle", "MODEL", "--text", "x"}},
        BadCall{"UnknownFlagOfNoCommand",
                2,
                "error: --bogus: unknown flag; 'chunkllm --help'",
                {"--bogus"}},
        BadCall{"WordWithoutFlag", 2, "'word' follows no flag", generate_with({"word"})},
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
        BadCall{"BudgetAbove100", 2, "above 0% and up to 100%",
                generate_with({"--budget", "100.5%"})},
        BadCall{"BudgetOfNoChunks", 2, "from 0c to 16777216c", generate_with({"--budget", "-1c"})},
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
        BadCall{"CudaWithPackedWeights", 2, "--weights: with --device cuda",
                generate_with({"--device", "cuda", "--weights", "int8"})},
        BadCall{"CudaWithWideKv", 2, "--kv f32: with --device cuda",
                generate_with({"--device", "cuda", "--kv", "f32"})},
        BadCall{"CudaWithoutTheScorer", 2,
                "--scorer random: not with --device cuda, expected adapter",
                generate_with({"--device", "cuda", "--scorer", "random"})},
        BadCall{"CudaWithTheOracle",
                2,
                "--scorer oracle: not with --device cuda",
                {"perplexity", "--model", "@none", "--file", "@one.txt", "--device", "cuda",
                 "--scorer", "oracle"}},
        BadCall{"CudaWithAnOracleInAList", 2, "--scorer oracle: not with --device cuda",
                evaluate_with({"--device", "cuda", "--scorers", "recent,oracle-next"})},
        BadCall{"CudaWithALayersRefresh", 2, "--refresh: with --device cuda layers",
                generate_with({"--device", "cuda", "--refresh", "every", "--selection", "layer"})},
        BadCall{"RandomWeightsOfNoShape",
                2,
                "known are llama-3.1-8b",
                {"bench", "--random-weights", "none", "--device", "cuda"}},
        BadCall{"RandomWeightsWithAFile",
                2,
                "--file excludes --random-weights",
                {"bench", "--random-weights", "llama-3.1-8b", "--device", "cuda", "--file", "x"}},
        BadCall{"TokenizeCuda",
                1,
                "CUDA",
                {"tokenize", "--model", "MODEL", "--text", "a", "--device", "cuda"}},
        BadCall{"ReportNowhere", 1, "none/r.html", evaluate_with({"--report", "@none/r.html"})},
        BadCall{"ReportIsAFolder", 1, "folder", evaluate_with({"--report", "@folder"})},
        BadCall{"RowsNowhere", 1, "none/r.jsonl", evaluate_with({"--rows", "@none/r.jsonl"})},
        BadCall{"RowsAndReportInOne", 2, "two files",
                evaluate_with({"--rows", "@r", "--report", "@r"})},
        BadCall{"UnknownTask", 2, "--tasks", evaluate_with({"--tasks", "perplexity,bogus"})},
        BadCall{"EmptyInList", 2, "--scorers", evaluate_with({"--scorers", "recent,,random"})},
        BadCall{"LengthAboveTheText", 2, "one.txt has 1 token, expected 2 to 1",
                evaluate_with({"--lengths", "4", "--quiet"})},
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
        BadCall{"BenchNoModel", 2, "--random-weights", {"bench", "--depths", "8"}},
        BadCall{"BenchTwoModels",
                2,
                "--random-weights",
                {"bench", "--model", "MODEL", "--random-weights", "llama-3.1-8b"}},
        BadCall{"RandomWeightsOnTheCpu",
                2,
                "--device cuda",
                {"bench", "--random-weights", "llama-3.1-8b"}},
        BadCall{"ChunksEmpty", 1, "no tokens", {"chunks", "--model", "MODEL", "--text", ""}}),
    [](const auto& test) { return std::string(test.param.name); });

using BadFiles = testing::Cli;

TEST_F(BadFiles, ABadJsonLineIsNamed) {
  const std::string file = write("bad.jsonl", "{\"text\": \"a\"}\n{\"txt\": 1}\n");
  const ProgramResult result = run(with_model("tokenize", {"--jsonl", file}));
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("line 2: field 'text' is missing"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace chunkllm
