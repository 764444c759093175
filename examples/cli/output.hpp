// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"
#include "chunkllm/infer/session.hpp"

namespace chunkllm::cli {

/// JSON with its keys in the order of insertion.
using OrderedJson = nlohmann::ordered_json;

/// Writes text for a reader to stdout and flushes. Errors: kResourceExhausted where stdout is
/// closed or full.
Status write_stdout(std::string_view text);

/// Whether a `write_stdout` failed because its reader went away, as `head` and `less` do when they
/// have what they want: that ends the program, and nobody needs to be told.
bool reader_has_left();

/// One JSON value and a newline on stdout; text that is not UTF-8 gets U+FFFD. A reader that went
/// away has half an object and should be told: this does not count for `reader_has_left`.
Status print_json(const OrderedJson& json);

/// Writes to stderr what a user may do without: where that fails, the work still goes on.
void write_stderr(std::string_view text);

/// "chunkllm: note: ..." on stderr.
void print_note(std::string_view note);

/// {weights, kv, chunk_keys, workspace, total} in bytes.
OrderedJson to_json(const SessionMemory& memory);

/// Whether a file could be written there later: told before the work, not behind it.
///
/// Errors: kNotFound or kInvalidFile naming the path.
Status check_output_path(const std::string& path);

bool stdout_is_terminal();
bool stderr_is_terminal();

/// "1 token", "2 tokens".
///
/// \param plural  empty: the singular and an s
std::string counted(std::int64_t count, std::string_view singular, std::string_view plural = "");

/// 1234567 as "1.2 MB".
std::string format_bytes(std::int64_t bytes);

}  // namespace chunkllm::cli
