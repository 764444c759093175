// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "chunkllm/version.hpp"
#include "commands.hpp"

namespace chunkllm::cli {

Command add_train(CLI::App& program) {
  CLI::App& app = *program.add_subcommand("train", "Trains adapters (not in this version)");
  app.allow_extras();  // the flags of a later version
  return {&app, [] {
            return unsupported("train: training is not in version " CHUNKLLM_VERSION_STRING
                               ", expected one of the other commands");
          }};
}

}  // namespace chunkllm::cli
