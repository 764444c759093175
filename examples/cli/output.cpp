// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include "output.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "chunkllm/io/error_text.hpp"

namespace chunkllm::cli {
namespace {

bool has_reader_left = false;

/// 0, or the error number.
int write_and_flush(std::string_view text) {
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (written && std::fflush(stdout) == 0) return 0;
  return errno != 0 ? errno : EIO;
}

Status stdout_status(int error) {
  if (error == 0) return {};
  return resource_exhausted("stdout: cannot write: " + detail::errno_text(error));
}

}  // namespace

Status write_stdout(std::string_view text) {
  const int error = write_and_flush(text);
  has_reader_left = has_reader_left || error == EPIPE;
  return stdout_status(error);
}

bool reader_has_left() {
  return has_reader_left;
}

Status print_json(const OrderedJson& json) {
  return stdout_status(write_and_flush(
      json.dump(-1, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace) + "\n"));
}

void write_stderr(std::string_view text) {
  // Not fmt::print: it throws where nobody reads stderr.
  static_cast<void>(std::fwrite(text.data(), 1, text.size(), stderr));
}

void print_note(std::string_view note) {
  write_stderr(fmt::format("chunkllm: note: {}\n", note));
}

Status check_output_path(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    return invalid_file(path + ": exists and is not a regular file, expected a file to write");
  }
  std::string folder = std::filesystem::path(path).parent_path().string();
  if (folder.empty()) folder = ".";
  if (path.empty() || path.back() == '/' || ::access(folder.c_str(), W_OK | X_OK) != 0) {
    return not_found(path + ": cannot create a file there: " +
                     detail::errno_text(path.empty() || path.back() == '/' ? EISDIR : errno));
  }
  return {};
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

std::string counted(std::int64_t count, std::string_view singular, std::string_view plural) {
  if (count == 1) return fmt::format("1 {}", singular);
  return plural.empty() ? fmt::format("{} {}s", count, singular)
                        : fmt::format("{} {}", count, plural);
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
