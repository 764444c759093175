// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "chunkllm/chunk/chunk_table.hpp"

namespace chunkllm {

/// What the tokens between two refreshes attend: some past spans, and all from `tail_begin` on.
///
/// The tail is the local window and the open chunk; it grows with every token, the spans do not.
struct AttendedSet {
  std::vector<TokenSpan> spans;  ///< ascending, disjoint, not adjacent, all before `tail_begin`
  std::int64_t tail_begin = 0;

  friend bool operator==(const AttendedSet&, const AttendedSet&) = default;

  /// Attended tokens in front of the tail.
  [[nodiscard]] std::int64_t num_span_tokens() const {
    std::int64_t total = 0;
    for (const TokenSpan& span : spans) total += span.size();
    return total;
  }

  /// Tokens that the token at `position` attends, itself included.
  [[nodiscard]] std::int64_t num_attended(std::int64_t position) const {
    return num_span_tokens() + position + 1 - tail_begin;
  }

  /// The segments of the token at `position`: sorted, merged [begin, end).
  [[nodiscard]] std::vector<TokenSpan> segments(std::int64_t position) const {
    std::vector<TokenSpan> out = spans;
    out.push_back({tail_begin, position + 1});
    return out;
  }
};

/// Chunk 0, the given chunks and everything from `tail_begin` on, merged into spans.
///
/// \param chunks  ascending ids of closed chunks; those inside the tail add nothing
inline AttendedSet make_attended_set(const ChunkTable& table, std::span<const std::int64_t> chunks,
                                     std::int64_t tail_begin) {
  AttendedSet set;
  set.tail_begin = tail_begin;
  const auto add = [&](std::int64_t begin, std::int64_t end) {
    end = std::min(end, tail_begin);
    if (begin >= end) return;
    if (!set.spans.empty() && set.spans.back().end == begin) {
      set.spans.back().end = end;
    } else {
      set.spans.push_back({begin, end});
    }
  };
  if (table.num_chunks() > 0) add(0, table.end(0));
  for (const std::int64_t chunk : chunks) {
    if (chunk > 0) add(table.begin(chunk), table.end(chunk));
  }
  if (!set.spans.empty() && set.spans.back().end == tail_begin) {
    set.tail_begin = set.spans.back().begin;
    set.spans.pop_back();
  }
  return set;
}

}  // namespace chunkllm
