// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace chunkllm {

/// Whether stored keys (or given queries) have been rotated.
enum class Rotation : std::uint8_t {
  kNone,            ///< before RoPE
  kAtTokenPosition  ///< rotated at the token's place in the text
};

/// Which RoPE positions attended keys and the query get.
enum class Positions : std::uint8_t {
  kOriginal,  ///< their place in the text
  kInCache    ///< their rank among the attended tokens, so that a short window reads a long text
};

}  // namespace chunkllm
