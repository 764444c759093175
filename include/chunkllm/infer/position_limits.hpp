// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "chunkllm/chunk/chunk_attention.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/core/status.hpp"

namespace chunkllm {

/// Positions as in the text where it fits the model's window, else re-numbered in the cache.
///
/// \param num_tokens      prompt and new tokens
/// \param context_length  the model's window in tokens
constexpr Positions default_positions(std::int64_t num_tokens, std::int64_t context_length) {
  return num_tokens <= context_length ? Positions::kOriginal : Positions::kInCache;
}

/// Tokens that may be attended at the moment of a refresh, at the most; for a budget in chunks with
/// every chunk at its longest.
inline std::int64_t most_attended(const ChunkOptions& options, std::int64_t num_tokens) {
  const Budget& budget = options.budget;
  if (budget.kind != Budget::Kind::kChunks) return budget.tokens_at(num_tokens);
  const std::int64_t local =
      options.local_min_tokens + options.local_min_chunks * options.guards.max_len;
  return std::min(num_tokens, (budget.chunks + 1) * options.guards.max_len + local);
}

/// Whether ranks in the attended set always stay inside the model's window.
///
/// \param num_tokens      prompt and new tokens
/// \param context_length  the model's window in tokens
/// Errors: kInvalidArgument with the figures where they may not.
inline Status check_in_cache_positions(const ChunkOptions& options, std::int64_t num_tokens,
                                       std::int64_t context_length) {
  const std::int64_t attended = most_attended(options, num_tokens);
  if (attended + options.guards.max_len <= context_length) return {};
  return invalid_argument("up to " + std::to_string(attended) + " tokens and an open chunk of " +
                          std::to_string(options.guards.max_len) +
                          " exceed the model's window of " + std::to_string(context_length) +
                          ", which in-cache positions must fit");
}

}  // namespace chunkllm
