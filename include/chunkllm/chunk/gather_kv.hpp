// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/kv_cache.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/thread_pool.hpp"

namespace chunkllm {

/// Tokens in all segments.
inline std::int64_t num_segment_tokens(std::span<const TokenSpan> segments) {
  std::int64_t total = 0;
  for (const TokenSpan& segment : segments) total += segment.size();
  return total;
}

/// Copies the keys and values of attended tokens side by side, for an engine whose own attention
/// reads contiguous memory only. `chunk_attention` needs no such copy.
///
/// The values are copied as they are stored: gathered keys keep their rotation.
///
/// \param kv        the cache, contiguous or paged
/// \param segments  ascending [begin, end) of tokens, as `ChunkState::segments` gives them
/// \param keys      [num_segment_tokens(segments), num_kv_heads, head_dim]
/// \param values    as `keys`
/// Errors: kOutOfRange for a segment outside the cache or out of order; kInvalidArgument where
///         an output's size is not that of its shape. Nothing is written then.
/// Cost: one read and one write of each attended key and value; no allocation.
template <typename T>
Status gather_kv(const KvView<T>& kv, std::span<const TokenSpan> segments,
                 std::int64_t num_kv_heads, std::int64_t head_dim, std::span<T> keys,
                 std::span<T> values, ThreadPool& pool) {
  std::int64_t end = 0;
  for (const TokenSpan& segment : segments) {
    if (segment.begin < end || segment.end < segment.begin || segment.end > kv.num_tokens) {
      return out_of_range("segment [" + std::to_string(segment.begin) + ", " +
                          std::to_string(segment.end) + ") of a cache of " +
                          std::to_string(kv.num_tokens) + " tokens is out of order or range");
    }
    end = segment.end;
  }
  const std::int64_t row = num_kv_heads * head_dim;
  const std::int64_t size = num_segment_tokens(segments) * row;
  if (static_cast<std::int64_t>(keys.size()) != size ||
      static_cast<std::int64_t>(values.size()) != size) {
    return invalid_argument("gather_kv: outputs of " + std::to_string(keys.size()) + " and " +
                            std::to_string(values.size()) + " elements, expected " +
                            std::to_string(size));
  }
  pool.parallel_for(static_cast<std::int64_t>(segments.size()), [&](std::int64_t i, int) {
    const auto index = static_cast<std::size_t>(i);
    std::int64_t target = num_segment_tokens(segments.first(index)) * row;
    for (std::int64_t token = segments[index].begin; token < segments[index].end; ++token) {
      for (std::int64_t head = 0; head < num_kv_heads; ++head, target += head_dim) {
        const std::int64_t source = kv.offset(token, head);
        std::copy_n(kv.keys + source, head_dim, keys.data() + target);
        std::copy_n(kv.values + source, head_dim, values.data() + target);
      }
    }
  });
  return {};
}

}  // namespace chunkllm
