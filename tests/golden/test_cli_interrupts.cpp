// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// The chunkllm program when its user, its reader or its terminal goes away.
#include <gtest/gtest.h>

#include <chrono>
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
  EXPECT_NE(result.err.find("stopped after"), std::string::npos) << result.err;
}

TEST_F(CliInterrupts, AClosedPipeIsAnErrorAndNoCrash) {
  never_end();
  Program program(command_line(with_model("generate", {"--prompt", "hello", "--quiet", "--budget",
                                                       "64", "--max-new-tokens", "1048576"})));
  program.wait_for_stdout();
  program.close_stdout();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_NE(result.err.find("stdout: cannot write"), std::string::npos) << result.err;
}

/// Runs a command in json mode, interrupts it once its notes say that the model is there, and gives
/// the JSON that it leaves.
Json interrupt(Arguments arguments) {
  arguments.push_back("--json");
  Program program(command_line(std::move(arguments)));
  program.wait_for_stderr();
  program.interrupt();
  const ProgramResult result = program.finish();
  EXPECT_EQ(result.exit_status, 1) << result.err;
  EXPECT_NE(result.err.find("stopped"), std::string::npos) << result.err;
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
                                "--refresh", "stride:16", "--positions", "original"}));
  EXPECT_EQ(perplexity.at("stop_reason"), "interrupted");
  EXPECT_EQ(perplexity.at("tokens"), 16000);
  EXPECT_EQ(perplexity.at("scored"), 0);
  const Json evaluate =
      interrupt(with_model("evaluate", {"--text", file, "--tasks", "perplexity", "--lengths",
                                        "16000", "--windows", "64", "--budget", "100"}));
  EXPECT_EQ(evaluate.at("stop_reason"), "interrupted");
  const Json bench = interrupt(
      with_model("bench", {"--depths", "100000", "--budget", "100", "--attention", "chunk"}));
  EXPECT_EQ(bench.at("stop_reason"), "interrupted");
  EXPECT_TRUE(bench.at("rows").empty());
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
  EXPECT_NE(result.err.find("stopped after"), std::string::npos) << result.err;
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
