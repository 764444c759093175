// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/version.hpp"
#include "commands.hpp"
#include "help_formatter.hpp"
#include "interrupt.hpp"
#include "output.hpp"

namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

void print_line(std::string line) {
  // One line, and nothing that a terminal obeys, whatever a file's name holds.
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  std::fprintf(stderr, "%s\n", line.c_str());
}

int fail(const std::string& message, int exit_status) {
  print_line("chunkllm: error: " + message);
  return exit_status;
}

int finish(const chunkllm::Status& status) {
  if (status.ok()) return 0;
  if (chunkllm::cli::reader_has_left()) return kFailed;
  if (status.code() == chunkllm::StatusCode::kInterrupted) {  // as its user wished: no error
    print_line("chunkllm: " + status.message());
    return kFailed;
  }
  return fail(status.message(),
              status.code() == chunkllm::StatusCode::kInvalidArgument ? kWrongUsage : kFailed);
}

std::string names(const std::vector<chunkllm::cli::Command>& commands) {
  std::string text;
  for (const auto& command : commands) text += (text.empty() ? "" : ", ") + command.app->get_name();
  return text;
}

/// What is wrong with a call. CLI11 does not say what it expected instead of an unknown word, and
/// names a missing option where the reason may be that its name was misspelt.
std::string explain(const CLI::ParseError& error, const CLI::App& program,
                    const std::vector<chunkllm::cli::Command>& commands) {
  const bool may_be_unknown = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr ||
                              dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
  const std::vector<CLI::App*> chosen = program.get_subcommands();
  const std::vector<std::string> unknown = (chosen.empty() ? program : *chosen[0]).remaining();
  if (!may_be_unknown || unknown.empty()) return error.what();
  const std::string command = chosen.empty() ? "" : chosen[0]->get_name() + " ";
  const std::string help = "'chunkllm " + command + "--help' lists those that there are";
  if (chosen.empty() && !unknown[0].starts_with('-')) {
    return "unknown command '" + unknown[0] + "', expected one of " + names(commands);
  }
  for (const std::string& word : unknown) {  // what follows an unknown flag may be its value
    if (word.starts_with('-')) return word + ": unknown flag; " + help;
  }
  return "'" + unknown[0] + "' follows no flag, expected flags only; " + help;
}

int run(int argc, char** argv) {
  CLI::App program("Chunk-selective attention on a frozen language model.", "chunkllm");
  program.formatter(std::make_shared<chunkllm::cli::HelpFormatter>());
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
    return fail(explain(error, program, commands), kWrongUsage);
  }
  install_signal_handlers();
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    return finish(command.run());
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
