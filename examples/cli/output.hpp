// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/infer/session.hpp"

namespace chunkllm::cli {

/// JSON with its keys in the order of insertion.
using OrderedJson = nlohmann::ordered_json;

/// Writes to stdout and flushes. Errors: kResourceExhausted where stdout is closed or full.
Status write_stdout(std::string_view text);

/// One JSON value and a newline on stdout; text that is not UTF-8 gets U+FFFD.
Status print_json(const OrderedJson& json);

/// "chunkllm: note: ..." on stderr.
void print_note(std::string_view note);

/// {weights, kv, chunk_keys, workspace, total} in bytes.
OrderedJson to_json(const SessionMemory& memory);

bool stdout_is_terminal();
bool stderr_is_terminal();

/// A row of a table of results, the same in `bench` and `evaluate`.
struct ResultRow {
  std::string task;
  std::int64_t length = 0;  ///< tokens
  std::string budget;       ///< as given: "2048", "25%", "32c"
  std::string scorer;
  std::string selection;
  std::uint64_t seed = 0;
  double value = 0.0;
  std::optional<double> dense_value;
  std::int64_t trials = 1;
};
OrderedJson to_json(const ResultRow& row);

/// The rows as a table with aligned columns.
std::string format_table(const std::vector<ResultRow>& rows);

/// 1234567 as "1.2 MB".
std::string format_bytes(std::int64_t bytes);

}  // namespace chunkllm::cli
