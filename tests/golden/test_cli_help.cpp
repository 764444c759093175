// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
// What the chunkllm program tells its reader beside its results: help, progress, summaries.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "cli_fixture.hpp"
#include "support/program.hpp"

namespace chunkllm {
namespace {

using testing::Arguments;
using testing::command_line;
using testing::ProgramResult;
using testing::run;

using CliHelp = testing::Cli;

const std::vector<std::string>& commands() {
  static const std::vector<std::string> names = {"generate",   "chunks",   "inspect", "tokenize",
                                                 "perplexity", "evaluate", "bench"};
  return names;
}

std::string help_of(const std::string& command) {
  const ProgramResult result = run({command, "--help"});
  EXPECT_EQ(result.exit_status, 0) << command;
  return result.out;
}

TEST_F(CliHelp, HasExamples) {
  for (const std::string& command : commands()) {
    const std::string help = help_of(command);
    EXPECT_NE(help.find("  chunkllm " + command + " --model"), std::string::npos) << help;
  }
}

TEST_F(CliHelp, FitsAHundredColumns) {
  std::vector<std::string> texts = {run({"--help"}).out};
  for (const std::string& command : commands()) texts.push_back(help_of(command));
  for (const std::string& text : texts) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      EXPECT_LE(line.size(), 100U) << line;
      EXPECT_FALSE(line.ends_with(' ')) << line;
    }
    EXPECT_EQ(text.find("\n\n\n"), std::string::npos) << text;
    EXPECT_EQ(text.find("... ..."), std::string::npos) << text;
    EXPECT_NE(text.find("\n\nOptions:\n"), std::string::npos) << text;
  }
}

TEST_F(CliHelp, PutsFirstWhatMatters) {
  for (const char* command : {"generate", "perplexity", "evaluate", "bench"}) {
    const std::string help = help_of(command);
    const std::size_t first = help.find("\nAttention: what matters first:\n");
    const std::size_t detail = help.find("\nAttention in detail:\n");
    ASSERT_NE(first, std::string::npos) << help;
    ASSERT_NE(detail, std::string::npos) << help;
    for (const char* flag : {"\n  --attention ", "\n  --budget ", "\n  --scorer "}) {
      const std::size_t at = help.find(flag);
      EXPECT_TRUE(first < at && at < detail) << flag << help;
    }
  }
}

TEST_F(CliHelp, SaysWhereAdaptersComeFrom) {
  for (const char* command : {"generate", "chunks", "inspect", "perplexity", "evaluate", "bench"}) {
    EXPECT_NE(help_of(command).find("Trained adapters [the ones in"), std::string::npos) << command;
  }
}

TEST_F(CliHelp, ExplainsTheMetrics) {
  const std::string help = help_of("evaluate");
  for (const char* metric : {"\n  digits ", "\n  full ", "\n  forced "}) {
    EXPECT_NE(help.find(metric), std::string::npos) << help;
  }
  EXPECT_NE(help.find("[--budget, else 512,1024]"), std::string::npos) << help;
}

TEST_F(CliHelp, ChunksNameTheirColumnsAndTheOpenOne) {
  const Arguments arguments =
      with_model("chunks", {"--text", "One sentence is here. And here is another one. Yes"});
  const ProgramResult result = run(arguments);
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(result.out,
            "begin\tend\tprobability\tstate\ttext\n"
            "0\t21\t-\tclosed\t\"One sentence is here.\"\n"
            "21\t46\t-\tclosed\t\" And here is another one.\"\n"
            "46\t50\t-\topen\t\" Yes\"\n");
  EXPECT_NE(result.err.find("50 tokens, 3 chunks, the last one open\n"), std::string::npos)
      << result.err;
  EXPECT_NE(result.err.find("boundary F1 1.000 of the streaming rules, which generation uses, "
                            "against the look-ahead rules\n"),
            std::string::npos)
      << result.err;
}

TEST_F(CliHelp, OneIsNoPlural) {
  const ProgramResult result =
      run(with_model("generate", {"--prompt", "a", "--max-new-tokens", "1"}));
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_NE(result.err.find("\n1 prompt token in "), std::string::npos) << result.err;
}

TEST_F(CliHelp, ProgressShowsRateAndTimeLeft) {
  std::string text;
  for (int i = 0; i < 700; ++i) text += "Rain falls on the hill. ";
  const std::string file = write("long.txt", text);
  // script runs a command in a terminal of its own.
  std::string command;
  for (const std::string& word :
       command_line(with_model("perplexity", {"--file", file, "--budget", "100"}))) {
    command += "'" + word + "' ";
  }
  const ProgramResult result =
      testing::run_program({"/usr/bin/script", "-qec", command, "/dev/null"});
  EXPECT_EQ(result.exit_status, 0) << result.out;
  const std::regex line(R"(reading \[[# ]{30}\] \d+/16800  \d+/s  (\d+:)?\d+:\d\d left)");
  EXPECT_TRUE(std::regex_search(result.out, line)) << result.out;
}

TEST_F(CliHelp, EvaluateStartsWithBudgetsThatLeaveSomethingOut) {
  const std::string file = write("t.txt", std::string(200, 'a'));
  const auto budgets = [&](const Arguments& more) {
    Arguments arguments =
        with_model("evaluate", {"--text", file, "--tasks", "perplexity", "--lengths", "100",
                                "--windows", "1", "--scorers", "recent"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    std::vector<std::string> found;
    const Json json = testing::run_json(std::move(arguments));
    for (const Json& row : json.at("rows")) found.push_back(row.at("budget"));
    return found;
  };
  using Budgets = std::vector<std::string>;
  EXPECT_EQ(budgets({}), (Budgets{"512", "1024"}));
  EXPECT_EQ(budgets({"--budget", "2048"}), (Budgets{"2048"}));
  EXPECT_EQ(budgets({"--budget", "2048", "--budgets", "64,128"}), (Budgets{"64", "128"}));
}

TEST_F(CliHelp, ATimeLimitCountsTheRowsThatWereToCome) {
  std::string text;
  for (int i = 0; i < 30; ++i) text += "Rain falls on the hill. ";
  const Arguments arguments = with_model(
      "evaluate", {"--text",         write("t.txt", text),
                   "--tasks",        "perplexity,passkey,multi-key,boundary-f1,mass-recall",
                   "--lengths",      "300,400",
                   "--windows",      "1",
                   "--trials",       "3",
                   "--depths",       "0.2,0.8,0.2",
                   "--budgets",      "100,110",
                   "--scorers",      "recent,mean-key,oracle-next",
                   "--selections",   "max,vote",
                   "--second-looks", "0,16"});
  const Json json = testing::run_json(arguments);
  Arguments limited = arguments;
  limited.insert(limited.end(), {"--time-limit", "0.000001"});
  const ProgramResult result = run(limited);
  EXPECT_EQ(result.exit_status, 0) << result.err;
  const std::string note =
      "the time limit was reached after 0 of " + std::to_string(json.at("rows").size()) + " rows\n";
  EXPECT_NE(result.err.find(note), std::string::npos) << note << result.err;
}

}  // namespace
}  // namespace chunkllm
