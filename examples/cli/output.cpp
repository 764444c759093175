// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "output.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>

#include "chunkllm/io/error_text.hpp"

namespace chunkllm::cli {

Status write_stdout(std::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (written && std::fflush(stdout) == 0) return {};
  return resource_exhausted("stdout: cannot write: " + detail::errno_text(errno));
}

Status print_json(const OrderedJson& json) {
  return write_stdout(
      json.dump(-1, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace) + "\n");
}

void print_note(std::string_view note) {
  fmt::print(stderr, "chunkllm: note: {}\n", note);
}

OrderedJson to_json(const SessionMemory& memory) {
  return {{"weights", memory.weights},
          {"kv", memory.kv},
          {"chunk_keys", memory.chunk_keys},
          {"workspace", memory.workspace},
          {"total", memory.total()}};
}

bool stdout_is_terminal() {
  return ::isatty(STDOUT_FILENO) == 1;
}

bool stderr_is_terminal() {
  return ::isatty(STDERR_FILENO) == 1;
}

OrderedJson to_json(const ResultRow& row) {
  OrderedJson json = {{"task", row.task},     {"length", row.length},       {"budget", row.budget},
                      {"scorer", row.scorer}, {"selection", row.selection}, {"seed", row.seed},
                      {"value", row.value},   {"dense_value", nullptr},     {"trials", row.trials}};
  if (row.dense_value) json["dense_value"] = *row.dense_value;
  return json;
}

std::string format_table(const std::vector<ResultRow>& rows) {
  std::string table =
      fmt::format("{:<28} {:>8} {:>8} {:<12} {:<9} {:>6} {:>11} {:>11} {:>6}\n", "task", "length",
                  "budget", "scorer", "selection", "seed", "value", "dense", "trials");
  for (const ResultRow& row : rows) {
    table +=
        fmt::format("{:<28} {:>8} {:>8} {:<12} {:<9} {:>6} {:>11.4f} {:>11} {:>6}\n", row.task,
                    row.length, row.budget, row.scorer, row.selection, row.seed, row.value,
                    row.dense_value ? fmt::format("{:.4f}", *row.dense_value) : "-", row.trials);
  }
  return table;
}

std::string format_bytes(std::int64_t bytes) {
  constexpr std::array<const char*, 4> kUnits = {"B", "kB", "MB", "GB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1000.0 && unit + 1 < kUnits.size()) {
    value /= 1000.0;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace chunkllm::cli
