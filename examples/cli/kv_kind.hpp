// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace chunkllm::cli {

/// Type of the cached keys and values (`--kv`).
enum class KvKind : std::uint8_t { kF16, kBF16, kF32 };

}  // namespace chunkllm::cli
