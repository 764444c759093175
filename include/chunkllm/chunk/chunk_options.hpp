// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/status.hpp"

namespace chunkllm {

/// When chunks are selected anew (`--refresh`), besides the prompt's end.
struct RefreshPolicy {
  enum class Kind : std::uint8_t {
    kBoundary,  ///< at the last token of every chunk
    kEvery,     ///< at every token
    kStride     ///< at every token whose position + 1 is a multiple of `stride`
  };
  Kind kind = Kind::kBoundary;
  std::int64_t stride = 0;

  /// Whether `token` triggers a refresh whatever the text says.
  [[nodiscard]] bool triggers_at(std::int64_t token) const {
    return kind == Kind::kEvery || (kind == Kind::kStride && (token + 1) % stride == 0);
  }
};

/// Settings of one sequence's chunk selection.
struct ChunkOptions {
  Budget budget;
  Selection selection = Selection::kMax;
  RefreshPolicy refresh;
  HeadJoin head_join = HeadJoin::kMax;
  ChunkGuards guards;
  float threshold = 0.0F;              ///< null threshold on scores; 0 ranks all by score
  std::int64_t local_min_tokens = 64;  ///< of the local window
  std::int64_t local_min_chunks = 2;
  std::int64_t second_look = 64;   ///< tokens evaluated again at the prompt's end
  std::int64_t journal_len = 256;  ///< tokens that can be rolled back
};

/// `candidate_range` with the local window of the options.
inline CandidateRange candidate_range(const ChunkTable& table, std::int64_t token,
                                      const ChunkOptions& options) {
  return candidate_range(table, token, options.local_min_tokens, options.local_min_chunks);
}

/// Errors: kInvalidArgument naming the setting, its value and the range.
inline Status validate(const ChunkOptions& options) {
  const auto in_range = [](const char* name, std::int64_t value, std::int64_t low,
                           std::int64_t high) -> Status {
    if (value >= low && value <= high) return {};
    return invalid_argument(std::string(name) + " is " + std::to_string(value) + ", expected " +
                            std::to_string(low) + " to " + std::to_string(high));
  };
  constexpr std::int64_t kMost = std::int64_t{1} << 24;
  CHUNKLLM_RETURN_IF_ERROR(in_range("guards.min_len", options.guards.min_len, 1, 4096));
  CHUNKLLM_RETURN_IF_ERROR(
      in_range("guards.max_len", options.guards.max_len, options.guards.min_len, 65536));
  CHUNKLLM_RETURN_IF_ERROR(in_range("local_min_tokens", options.local_min_tokens, 1, kMost));
  CHUNKLLM_RETURN_IF_ERROR(in_range("local_min_chunks", options.local_min_chunks, 1, kMost));
  CHUNKLLM_RETURN_IF_ERROR(in_range("second_look", options.second_look, 0, 4096));
  CHUNKLLM_RETURN_IF_ERROR(in_range("journal_len", options.journal_len, 0, 1 << 16));
  switch (options.budget.kind) {
    case Budget::Kind::kTokens:
      CHUNKLLM_RETURN_IF_ERROR(in_range("budget in tokens", options.budget.tokens, 1, kMost));
      break;
    case Budget::Kind::kChunks:
      CHUNKLLM_RETURN_IF_ERROR(in_range("budget in chunks", options.budget.chunks, 0, kMost));
      break;
    case Budget::Kind::kShare:
      if (!(options.budget.share > 0.0 && options.budget.share <= 1.0)) {
        return invalid_argument("budget share is " + std::to_string(options.budget.share) +
                                ", expected more than 0 and at most 1");
      }
      break;
  }
  if (options.refresh.kind == RefreshPolicy::Kind::kStride) {
    CHUNKLLM_RETURN_IF_ERROR(
        in_range("refresh stride", options.refresh.stride, 1, options.guards.max_len));
  }
  if (!(options.threshold >= 0.0F && options.threshold <= 1.0F)) {
    return invalid_argument("threshold is " + std::to_string(options.threshold) +
                            ", expected 0 to 1");
  }
  return {};
}

}  // namespace chunkllm
