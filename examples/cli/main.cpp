// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "chunkllm/version.hpp"
#include "commands.hpp"
#include "interrupt.hpp"

namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

int fail(const std::string& message, int exit_status) {
  // One line, and nothing that a terminal obeys, whatever a file's name holds.
  std::string line = "chunkllm: error: " + message;
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  std::fprintf(stderr, "%s\n", line.c_str());
  return exit_status;
}

std::string names(const std::vector<chunkllm::cli::Command>& commands) {
  std::string text;
  for (const auto& command : commands) text += (text.empty() ? "" : ", ") + command.app->get_name();
  return text;
}

int run(int argc, char** argv) {
  CLI::App program("Chunk-selective attention on a frozen language model.", "chunkllm");
  program.set_version_flag("--version", "chunkllm " CHUNKLLM_VERSION_STRING);
  program.require_subcommand(0, 1);
  // Of an option given twice the last counts, so that scripts can hand on their users' options.
  program.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  program.footer("'chunkllm COMMAND --help' explains a command, with examples.");
  using namespace chunkllm::cli;
  const std::vector<Command> commands = {
      add_generate(program),   add_chunks(program),   add_inspect(program), add_tokenize(program),
      add_perplexity(program), add_evaluate(program), add_bench(program),   add_train(program)};
  try {
    program.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return program.exit(help);
  } catch (const CLI::ParseError& error) {
    return fail(error.what(), kWrongUsage);
  }
  install_signal_handlers();
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const chunkllm::Status status = command.run();
    if (status.ok()) return 0;
    return fail(status.message(),
                status.code() == chunkllm::StatusCode::kInvalidArgument ? kWrongUsage : kFailed);
  }
  return fail("no command, expected one of " + names(commands), kWrongUsage);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc&) {
    return fail("out of memory", kFailed);
  } catch (const std::exception& error) {
    return fail(error.what(), kFailed);
  }
}
