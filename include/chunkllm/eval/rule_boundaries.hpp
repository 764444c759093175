// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/text/sentence_boundary_stream.hpp"

namespace chunkllm {

/// Indices of the tokens that end a sentence by the rules, ascending; no guards on their distance.
///
/// \param token_bytes  (std::int32_t id) -> std::string_view
template <typename TokenBytes>
std::vector<std::size_t> sentence_end_tokens(std::span<const std::int32_t> ids,
                                             const TokenBytes& token_bytes) {
  std::vector<std::size_t> tokens;
  SentenceBoundaryStream sentences;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (sentences.on_token(token_bytes(ids[i]))) tokens.push_back(i);
  }
  return tokens;
}

/// Ends (exclusive) of the chunks that `ChunkState` closes without a Chunk Adapter: the sentence
/// rules under the guards.
///
/// \param token_bytes  (std::int32_t id) -> std::string_view
template <typename TokenBytes>
std::vector<std::int64_t> rule_chunk_ends(std::span<const std::int32_t> ids,
                                          const TokenBytes& token_bytes,
                                          const ChunkGuards& guards) {
  std::vector<std::int64_t> ends;
  SentenceBoundaryStream sentences;
  std::int64_t open_len = 0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const bool wanted = sentences.on_token(token_bytes(ids[i]));
    if (!decide_boundary(++open_len, wanted, guards).boundary) continue;
    ends.push_back(static_cast<std::int64_t>(i) + 1);
    open_len = 0;
  }
  return ends;
}

}  // namespace chunkllm
