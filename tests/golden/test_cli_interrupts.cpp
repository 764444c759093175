// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// The chunkllm program when its user, its reader or its terminal goes away.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>
#include <thread>
#include <utility>

#include "cli_fixture.hpp"

namespace chunkllm {
namespace {

using testing::Arguments;
using testing::command_line;
using testing::Program;
using testing::ProgramResult;
using testing::run;
using testing::run_json;

using CliInterrupts = testing::Cli;

TEST_F(CliInterrupts, AnInterruptEndsCleanlyWithTheJsonSoFar) {
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

TEST_F(CliInterrupts, AnInterruptEndsAStreamCleanly) {
  never_end();
  Program program(command_line(with_model(
      "generate", {"--prompt", "hello", "--budget", "64", "--max-new-tokens", "1048576"})));
  program.wait_for_stdout();
  program.interrupt();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("chunkllm: interrupted after "), std::string::npos) << result.err;
  EXPECT_EQ(result.err.find("error"), std::string::npos) << result.err;
}

TEST_F(CliInterrupts, AnInterruptedPromptIsCountedAsFarAsItWasRead) {
  std::string text;
  for (int i = 0; i < 4200; ++i) text += "Rain falls on the hill. ";
  const std::string file = write("long.txt", text);
  Program program(command_line(with_model("generate", {"--file", file, "--budget", "100"})));
  program.wait_for_stderr();  // its notes come when the model is loaded
  program.interrupt();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1);
  std::smatch read;
  ASSERT_TRUE(
      std::regex_search(result.err, read, std::regex(R"(\n(\d+) of 100800 prompt tokens in )")))
      << result.err;
  EXPECT_LT(std::stoi(read[1]), 100800);
  EXPECT_NE(result.err.find("chunkllm: interrupted after " + read[1].str() +
                            " of 100800 prompt tokens\n"),
            std::string::npos)
      << result.err;
  EXPECT_EQ(result.err.find("error"), std::string::npos) << result.err;
}

TEST_F(CliInterrupts, AnInterruptedTrainingGoesOn) {
  std::string text;
  for (int i = 0; i < 260; ++i) text += "The miller of the " + std::to_string(i) + " hills sang. ";
  const std::string out = folder_.file("adapters.safetensors");
  Arguments arguments =
      with_model("train", {"--text", write("train.txt", text), "--out", out, "--steps", "1000000",
                           "--sequence", "640", "--long-sequence", "640", "--key-dim", "4"});
  arguments.push_back("--json");
  Program program(command_line(arguments));
  program.wait_for_stderr();  // its note comes when training begins
  program.interrupt();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1) << result.err;
  EXPECT_NE(result.err.find("goes on from " + out + ".checkpoint"), std::string::npos)
      << result.err;
  const Result<Json> first = parse_json(result.out, "stdout");
  ASSERT_TRUE(first.ok()) << result.out;
  EXPECT_EQ(first->at("stop_reason"), "interrupted");
  EXPECT_FALSE(std::filesystem::exists(out));
  ASSERT_TRUE(std::filesystem::exists(out + ".checkpoint"));

  Program again(command_line(arguments));
  again.wait_for_stderr();
  again.interrupt();
  const Result<Json> second = parse_json(again.finish().out, "stdout");
  ASSERT_TRUE(second.ok());
  EXPECT_TRUE(second->at("resumed").get<bool>());
  EXPECT_GT(second->at("steps").get<std::int64_t>(), first->at("steps").get<std::int64_t>());
}

TEST_F(CliInterrupts, AReaderThatLeavesEndsItQuietly) {
  never_end();
  Program program(command_line(with_model("generate", {"--prompt", "hello", "--quiet", "--budget",
                                                       "64", "--max-new-tokens", "1048576"})));
  program.wait_for_stdout();
  program.close_stdout();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_EQ(result.err, "");

  std::string text;
  for (int i = 0; i < 6000; ++i) text += "Rain falls on the hill. ";
  const std::string file = write("long.txt", text);
  Arguments chunks = command_line(with_model("chunks", {"--file", file, "--quiet"}));
  chunks.insert(chunks.begin(), {"/bin/sh", "-c", "\"$0\" \"$@\" | head -n 2"});
  const ProgramResult head = testing::run_program(chunks);
  EXPECT_EQ(head.exit_status, 0);
  EXPECT_EQ(head.err, "");
  EXPECT_EQ(std::count(head.out.begin(), head.out.end(), '\n'), 2) << head.out;
}

TEST_F(CliInterrupts, HalfAJsonObjectIsAnError) {
  Program program(command_line(
      with_model("generate", {"--prompt", "hello", "--quiet", "--json", "--max-new-tokens", "9"})));
  program.close_stdout();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("stdout: cannot write"), std::string::npos) << result.err;
}

/// Runs a command in json mode, interrupts it once its notes say that the model is there, and gives
/// the JSON that it leaves.
///
/// \param total  what it must say that it was to do, such as "8 rows"
Json interrupt(Arguments arguments, const std::string& total) {
  arguments.push_back("--json");
  Program program(command_line(std::move(arguments)));
  program.wait_for_stderr();
  program.interrupt();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1) << result.err;
  EXPECT_NE(result.err.find("interrupted after "), std::string::npos) << result.err;
  EXPECT_NE(result.err.find(" of " + total + "\n"), std::string::npos) << result.err;
  const Result<Json> json = parse_json(result.out, "stdout");
  EXPECT_TRUE(json.ok()) << result.out << result.err;
  return json.ok() ? json.value() : Json::object();
}

TEST_F(CliInterrupts, EveryPassLeavesItsJson) {
  const std::string file = write("long.txt", [] {
    std::string text;
    for (int i = 0; i < 700; ++i) text += "Rain falls on the hill. ";
    return text;
  }());
  const Json perplexity = interrupt(
      with_model("perplexity", {"--file", file, "--context", "16000", "--scorer", "oracle",
                                "--refresh", "stride:16", "--positions", "original"}),
      "16000 tokens");
  EXPECT_EQ(perplexity.at("stop_reason"), "interrupted");
  EXPECT_EQ(perplexity.at("tokens"), 16000);
  EXPECT_EQ(perplexity.at("scored"), 0);
  const Json evaluate =
      interrupt(with_model("evaluate", {"--text", file, "--tasks", "perplexity", "--lengths",
                                        "16000", "--windows", "64", "--budget", "100"}),
                "2 rows");
  EXPECT_EQ(evaluate.at("stop_reason"), "interrupted");
  const Json bench = interrupt(
      with_model("bench", {"--depths", "100000", "--budget", "100", "--attention", "chunk"}),
      "100000 prompt tokens");
  EXPECT_EQ(bench.at("stop_reason"), "interrupted");
  EXPECT_TRUE(bench.at("rows").empty());
}

TEST_F(CliInterrupts, AnInterruptedReportSaysThatItIsPartial) {
  const std::string file = write("long.txt", [] {
    std::string text;
    for (int i = 0; i < 700; ++i) text += "Rain falls on the hill. ";
    return text;
  }());
  const std::string report = folder_.file("r.html");
  Program program(command_line(with_model(
      "evaluate", {"--text", file, "--tasks", "perplexity", "--lengths", "100,16000", "--windows",
                   "64", "--budget", "100", "--scorers", "recent", "--report", report})));
  program.wait_for_stdout();  // the row of the first length
  program.interrupt();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("chunkllm: interrupted after 1 of 2 rows\n"), std::string::npos)
      << result.err;
  std::ifstream page(report);
  const std::string html(std::istreambuf_iterator<char>(page), {});
  EXPECT_NE(html.find("<p class='notice'>Partial: interrupted after 1 of 2 rows.</p>"),
            std::string::npos);
}

TEST_F(CliInterrupts, AFullPipeIsNoFault) {
  // One write for each chunk, far more than a pipe holds: the signal comes in the middle of one.
  std::string text;
  for (int i = 0; i < 6000; ++i) text += "Rain falls on the hill. ";
  const std::string file = write("long.txt", text);
  Program program(command_line(with_model("chunks", {"--file", file, "--quiet"})));
  program.wait_for_stdout();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  program.interrupt();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("interrupted after "), std::string::npos) << result.err;
  EXPECT_EQ(result.out.back(), '\n');
}

TEST_F(CliInterrupts, NobodyNeedsToReadStderr) {
  for (const char* redirection : {"2>&-", "2>/dev/full"}) {
    Arguments arguments =
        command_line(with_model("generate", {"--prompt", "hello", "--max-new-tokens", "3"}));
    const std::string script = std::string("exec \"$0\" \"$@\" ") + redirection;
    arguments.insert(arguments.begin(), {"/bin/sh", "-c", script});
    const ProgramResult result = testing::run_program(arguments);
    EXPECT_EQ(result.exit_status, 0) << redirection;
    EXPECT_FALSE(result.out.empty());
  }
}

}  // namespace
}  // namespace chunkllm
