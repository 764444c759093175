// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "chunkllm/chunk/chunk_boundary.hpp"
#include "chunkllm/text/sentence_boundary_stream.hpp"
#include "chunkllm/text/sentence_rules.hpp"

namespace chunkllm {

/// Indices of the tokens that end a sentence by the causal rules, ascending; no guards on their
/// distance.
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

/// Indices of the tokens that end a sentence by the rules that know the whole text, ascending: what
/// boundaries are measured against.
///
/// \param token_bytes  (std::int32_t id) -> std::string_view
template <typename TokenBytes>
std::vector<std::size_t> sentence_label_tokens(std::span<const std::int32_t> ids,
                                               const TokenBytes& token_bytes) {
  // Over the tokens' own bytes: they are what the tokenizer's normaliser left of the text.
  std::string bytes;
  std::vector<std::size_t> token_ends;
  token_ends.reserve(ids.size());
  for (const std::int32_t id : ids) {
    bytes += token_bytes(id);
    token_ends.push_back(bytes.size());
  }
  std::vector<std::size_t> tokens;
  for (const std::size_t end : sentence_ends(bytes)) {
    const auto token = static_cast<std::size_t>(
        std::lower_bound(token_ends.begin(), token_ends.end(), end) - token_ends.begin());
    if (tokens.empty() || token > tokens.back()) tokens.push_back(token);
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
