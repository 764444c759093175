// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/cuda/views.hpp"

namespace chunkllm::kernels {

/// The local window's size: the fewest chunks, the open one counted, that are at least `min_chunks`
/// and hold `min_tokens`.
struct LocalWindow {
  std::int32_t min_tokens = 64;
  std::int32_t min_chunks = 2;
};

/// As `chunkllm::CandidateRange`: candidates are chunks [1, end), the local window is
/// [end, num_closed) and the open chunk.
struct DeviceCandidateRange {
  std::int32_t num_closed;
  std::int32_t end;
  std::int32_t tail_begin;

  __device__ std::int32_t num_candidates() const { return end > 1 ? end - 1 : 0; }
};

/// Closed chunks that end at or before `position`.
__device__ inline std::int32_t chunks_before(const std::int32_t* ends, std::int32_t num_chunks,
                                             std::int32_t position) {
  // In decode the trigger is the newest token: one read instead of a chain of them.
  if (num_chunks == 0 || ends[num_chunks - 1] <= position) return num_chunks;
  std::int32_t low = 0;
  std::int32_t high = num_chunks;
  while (low < high) {
    const std::int32_t middle = (low + high) / 2;
    if (ends[middle] <= position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// As `chunkllm::candidate_range`, of the chunks that are closed once `trigger` has been read.
__device__ inline DeviceCandidateRange candidate_range(const cuda::DeviceChunkTable& table,
                                                       std::int32_t seq, std::int32_t trigger,
                                                       const LocalWindow& window) {
  const std::int32_t* ends = table.ends_of(seq);
  DeviceCandidateRange range;
  range.num_closed = chunks_before(ends, table.num_chunks[seq], trigger + 1);
  range.end = range.num_closed;
  range.tail_begin = range.num_closed == 0 ? 0 : ends[range.num_closed - 1];
  std::int32_t chunks = trigger + 1 > range.tail_begin ? 1 : 0;
  while (range.end > 0 &&
         (chunks < window.min_chunks || trigger + 1 - range.tail_begin < window.min_tokens)) {
    --range.end;
    ++chunks;
    range.tail_begin = range.end == 0 ? 0 : ends[range.end - 1];
  }
  return range;
}

/// As `chunkllm::distance_bin`: min(33, floor(2 log2(distance))) for distance >= 1, exactly.
__device__ inline std::int32_t distance_bin(std::int32_t distance) {
  const unsigned long long d = static_cast<unsigned long long>(min(distance, 1 << 20));
  return min(63 - __clzll(static_cast<long long>(d * d)), 33);
}

}  // namespace chunkllm::kernels
