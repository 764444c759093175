// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <system_error>

namespace chunkllm::detail {

/// The operating system's words for an errno value. Unlike strerror it is thread-safe.
inline std::string errno_text(int error) {
  return std::generic_category().message(error);
}

/// `text` from an untrusted file as it may stand in a one-line message: at most `max_len` bytes,
/// everything but printable ASCII replaced by '?', so that it cannot steer a terminal.
inline std::string printable(std::string_view text, std::size_t max_len = 80) {
  std::string result;
  for (const char c : text.substr(0, max_len)) {
    result += (c >= ' ' && c <= '~') ? c : '?';
  }
  if (text.size() > max_len) result += "...";
  return result;
}

/// The shortest text of a number that is good enough for a message.
inline std::string number_text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), "%.9g", value);
  return buffer;
}

/// "path: field 'key' is actual, expected expectation"
inline std::string field_error(std::string_view origin, std::string_view key,
                               std::string_view actual, std::string_view expected) {
  return std::string(origin) + ": field '" + printable(key) + "' is " + std::string(actual) +
         ", expected " + std::string(expected);
}

}  // namespace chunkllm::detail
