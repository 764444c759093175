// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "chunkllm/core/status.hpp"

namespace chunkllm::cli {

/// A subcommand: its flags, and what it does with them once they are parsed.
///
/// `run` prints its results itself; an error it returns is printed by `main` as one line, with
/// exit status 2 for kInvalidArgument (wrong usage) and 1 for everything else (the work failed).
struct Command {
  CLI::App* app = nullptr;
  std::function<Status()> run;
};

Command add_inspect(CLI::App& program);
Command add_tokenize(CLI::App& program);
Command add_chunks(CLI::App& program);
Command add_generate(CLI::App& program);
Command add_perplexity(CLI::App& program);
Command add_train(CLI::App& program);
Command add_evaluate(CLI::App& program);
Command add_bench(CLI::App& program);

}  // namespace chunkllm::cli
