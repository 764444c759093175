// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/io/json.hpp"
#include "support/program.hpp"
#include "support/tiny_model_folder.hpp"

namespace chunkllm::testing {

using Ids = std::vector<std::int32_t>;
using Arguments = std::vector<std::string>;

inline Arguments command_line(Arguments arguments) {
  arguments.insert(arguments.begin(), CHUNKLLM_CLI_PATH);
  return arguments;
}

inline ProgramResult run(Arguments arguments) {
  return run_program(command_line(std::move(arguments)));
}

/// The JSON object that a successful command prints, alone on stdout.
inline Json run_json(Arguments arguments) {
  arguments.push_back("--json");
  const ProgramResult result = run(std::move(arguments));
  EXPECT_EQ(result.exit_status, 0) << result.err;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 1) << result.out;
  Result<Json> json = parse_json(result.out, "stdout");
  EXPECT_TRUE(json.ok()) << json.status().message() << "\n" << result.out;
  return json.ok() ? std::move(json).value() : Json::object();
}

inline void expect_keys(const Json& json, const std::vector<std::string>& keys) {
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

  TinyModelFolder model_;
  TempFolder folder_;
};

}  // namespace chunkllm::testing
