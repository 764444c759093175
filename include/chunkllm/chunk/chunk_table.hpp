// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <vector>

namespace chunkllm {

/// Token positions [begin, end).
struct TokenSpan {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  [[nodiscard]] std::int64_t size() const { return end - begin; }
  friend bool operator==(const TokenSpan&, const TokenSpan&) = default;
};

/// The chunks of one sequence: closed ones, laid end to end from token 0, and the open one.
///
/// Chunk c covers [begin(c), end(c)). Its last token is the boundary token of the paper.
class ChunkTable {
 public:
  [[nodiscard]] std::int64_t num_chunks() const { return static_cast<std::int64_t>(ends_.size()); }
  [[nodiscard]] std::int64_t begin(std::int64_t chunk) const {
    return chunk == 0 ? 0 : ends_[static_cast<std::size_t>(chunk - 1)];
  }
  [[nodiscard]] std::int64_t end(std::int64_t chunk) const {
    return ends_[static_cast<std::size_t>(chunk)];
  }
  [[nodiscard]] std::int64_t length(std::int64_t chunk) const { return end(chunk) - begin(chunk); }
  /// First token of the chunk that is still open.
  [[nodiscard]] std::int64_t open_begin() const { return ends_.empty() ? 0 : ends_.back(); }
  [[nodiscard]] const std::vector<std::int64_t>& ends() const { return ends_; }

  /// Number of closed chunks that end at or before `token`: the index of the chunk that holds it.
  [[nodiscard]] std::int64_t chunk_of(std::int64_t token) const {
    return std::upper_bound(ends_.begin(), ends_.end(), token) - ends_.begin();
  }

  /// Closes the open chunk in front of token `end`, which must lie past its first token.
  void close(std::int64_t end) {
    assert(end > open_begin());
    ends_.push_back(end);
  }

  /// Forgets every chunk that does not lie wholly within the first `num_tokens` tokens.
  void rollback(std::int64_t num_tokens) {
    ends_.resize(static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), num_tokens) -
                                          ends_.begin()));
  }

 private:
  std::vector<std::int64_t> ends_;
};

}  // namespace chunkllm
