// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace chunkllm::cli {

/// Physical cores that this process may run on; at least 1.
int physical_cores();

/// Main memory of the machine in bytes; 0 where it cannot be told.
std::int64_t physical_memory_bytes();

/// Largest resident set of this process so far, in bytes.
std::int64_t peak_rss_bytes();

/// Today's date by `format` of strftime; empty where it cannot be told.
std::string today(const char* format);

/// Folder of the running program, without a final slash; empty where it cannot be told.
std::string executable_folder();

}  // namespace chunkllm::cli
