// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/kernels/candidate_range.cuh"
#include "chunkllm/kernels/primitives.cuh"

/// The order in which a budget takes chunks, and where it stops: what `chunkllm::ChunkOrder` and
/// `take_within_budget` do with a heap, by counting digits of keys instead.
namespace chunkllm::kernels {

/// Threads of a block that looks for a cut: all an SM's block may have, since the work is one
/// latency-bound walk over a few thousand values.
inline constexpr int kCutThreads = 1024;
inline constexpr int kCutWarps = kCutThreads / kWarpSize;
inline constexpr int kDigitBits = 8;
inline constexpr int kNumDigits = 1 << kDigitBits;

/// Where a budget stops. A chunk is taken where its `order_key` is not below `first_taken`.
struct ChunkCut {
  std::uint64_t first_taken;
  std::uint32_t least_rank;  ///< subtracted from ranks, so that keys have few digits
  std::int32_t index_bits;
};

/// Grows with the place of a score in the order: NaN 0, below the threshold 1, and from there on as
/// the score does. Zeros of both signs are equal.
__device__ inline std::uint32_t order_rank(float score, float threshold) {
  if (score != score) return 0;
  if (!(score >= threshold)) return 1;
  const std::uint32_t bits = score == 0.0F ? 0U : __float_as_uint(score);
  return (bits >> 31) != 0U ? ~bits : bits | 0x80000000U;  // of -infinity 0x007fffff, above 1
}

/// Unique among a trigger's candidates: of equal ranks the later chunk has the larger key.
__device__ inline std::uint64_t order_key(std::uint32_t rank, std::int32_t chunk,
                                          std::uint32_t least_rank, std::int32_t index_bits) {
  return (static_cast<std::uint64_t>(rank - least_rank) << index_bits) |
         static_cast<std::uint64_t>(chunk);
}

/// Whether the chunk is in front of the cut.
__device__ inline bool is_taken(const ChunkCut& cut, float score, float threshold,
                                std::int32_t chunk) {
  return order_key(order_rank(score, threshold), chunk, cut.least_rank, cut.index_bits) >=
         cut.first_taken;
}

/// As `chunkllm::budget_holds_all`.
__device__ inline bool budget_holds_all(const DeviceCandidateRange& range, std::int32_t trigger,
                                        const Budget& budget) {
  const std::int64_t past = static_cast<std::int64_t>(trigger) + 1;
  return past <= budget.tokens_at(past) &&
         range.num_candidates() <= budget.max_chunks(range.num_candidates());
}

/// What is left for candidates.
struct BudgetRoom {
  std::int32_t tokens;
  std::int32_t chunks;
};

/// \param first_end  end of chunk 0
__device__ inline BudgetRoom budget_room(const DeviceCandidateRange& range, std::int32_t first_end,
                                         std::int32_t trigger, const Budget& budget) {
  constexpr std::int64_t kMost = 0x7fffffff;
  const std::int64_t past = static_cast<std::int64_t>(trigger) + 1;
  const std::int64_t tokens = budget.tokens_at(past) - first_end - (past - range.tail_begin);
  const std::int64_t chunks = budget.max_chunks(range.num_candidates());
  // No chunk is empty, so a room below 0 holds what a room of 0 holds: none.
  return {static_cast<std::int32_t>(max(std::int64_t{0}, min(tokens, kMost))),
          static_cast<std::int32_t>(max(std::int64_t{0}, chunks))};
}

/// Shared memory of `find_cut`.
struct CutShared {
  std::int32_t tokens[kNumDigits];
  std::int32_t counts[kNumDigits];
  std::uint32_t least[kCutWarps];
  std::uint32_t largest[kCutWarps];
  std::int32_t num_nan[kCutWarps];
  std::int32_t digit;
  std::int32_t used_tokens;
  std::int32_t used_chunks;
  std::int32_t class_size;
};

namespace detail {

/// Adds a chunk of `length` tokens to its digit's histogram, in a whole warp. Lanes with the digit
/// of the first are summed before: scores crowd together, and atomics on one address queue.
__device__ inline void add_to_histogram(CutShared& shared, bool counts, std::int32_t digit,
                                        std::int32_t length) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % kWarpSize;
  const unsigned members = __ballot_sync(kFullWarp, counts);
  if (members == 0U) return;
  const int leader = __ffs(static_cast<int>(members)) - 1;
  const std::int32_t leading = __shfl_sync(kFullWarp, digit, leader);
  const bool with_leader = counts && digit == leading;
  const unsigned crowd = __ballot_sync(kFullWarp, with_leader);
  const std::int32_t crowd_tokens = __reduce_add_sync(kFullWarp, with_leader ? length : 0);
  if (lane == leader) {
    atomicAdd(&shared.tokens[digit], crowd_tokens);
    atomicAdd(&shared.counts[digit], __popc(crowd));
  } else if (counts && !with_leader) {
    atomicAdd(&shared.tokens[digit], length);
    atomicAdd(&shared.counts[digit], 1);
  }
}

/// In warp 0: from the highest digit down, the first with which the budget is exceeded.
__device__ inline void find_digit(CutShared& shared, const BudgetRoom& room,
                                  std::int32_t used_tokens, std::int32_t used_chunks) {
  constexpr int kDigitsALane = kNumDigits / kWarpSize;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % kWarpSize;
  const std::int32_t first = kNumDigits - 1 - lane * kDigitsALane;
  std::int32_t tokens = 0;
  std::int32_t chunks = 0;
#pragma unroll
  for (int j = 0; j < kDigitsALane; ++j) {
    tokens += shared.tokens[first - j];
    chunks += shared.counts[first - j];
  }
  std::int32_t tokens_after = tokens;
  std::int32_t chunks_after = chunks;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const std::int32_t other_tokens = __shfl_up_sync(kFullWarp, tokens_after, offset);
    const std::int32_t other_chunks = __shfl_up_sync(kFullWarp, chunks_after, offset);
    if (lane >= offset) {
      tokens_after += other_tokens;
      chunks_after += other_chunks;
    }
  }
  used_tokens += tokens_after - tokens;
  used_chunks += chunks_after - chunks;
  // No sum overflows: all candidates together are positions of one text.
  const bool exceeds = used_tokens + tokens > room.tokens || used_chunks + chunks > room.chunks;
  const unsigned lanes = __ballot_sync(kFullWarp, exceeds);
  if (lane != __ffs(static_cast<int>(lanes)) - 1) return;
  for (int j = 0; j < kDigitsALane; ++j) {
    const std::int32_t digit = first - j;
    if (used_tokens + shared.tokens[digit] > room.tokens ||
        used_chunks + shared.counts[digit] > room.chunks) {
      shared.digit = digit;
      shared.used_tokens = used_tokens;
      shared.used_chunks = used_chunks;
      shared.class_size = shared.counts[digit];
      return;
    }
    used_tokens += shared.tokens[digit];
    used_chunks += shared.counts[digit];
  }
}

}  // namespace detail

/// Where a budget stops among candidates 1, ..., num_candidates: in front of the first chunk of the
/// order that does not fit. Called by all kCutThreads threads of a block; each gets the result.
///
/// Keys are looked at digit by digit. Each digit's histogram of tokens and chunks tells in which
/// digit the budget is exceeded; only chunks with that digit are looked at further, until one is
/// left. No chunk is sorted. Sums are of integers, so their order does not matter.
///
/// \param scores   [num_candidates], at least one; read some 3 to 8 times, from L1 but for the
/// first \param ends     of the sequence's chunks \param num_nan  set to the number of NaN scores
__device__ inline ChunkCut find_cut(const float* scores, const std::int32_t* ends,
                                    std::int32_t num_candidates, const BudgetRoom& room,
                                    float threshold, CutShared& shared, std::int32_t& num_nan) {
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
  std::uint32_t least = 0xffffffffU;
  std::uint32_t largest = 0;
  num_nan = 0;
#pragma unroll 4
  for (std::int32_t i = thread; i < num_candidates; i += kCutThreads) {
    const std::uint32_t rank = order_rank(scores[i], threshold);
    least = min(least, rank);
    largest = max(largest, rank);
    num_nan += rank == 0U ? 1 : 0;
  }
  least = __reduce_min_sync(kFullWarp, least);
  largest = __reduce_max_sync(kFullWarp, largest);
  num_nan = __reduce_add_sync(kFullWarp, num_nan);
  if (lane == 0) {
    shared.least[warp] = least;
    shared.largest[warp] = largest;
    shared.num_nan[warp] = num_nan;
  }
  __syncthreads();
  static_assert(kCutWarps == kWarpSize, "a lane reads each warp's result");
  least = __reduce_min_sync(kFullWarp, shared.least[lane]);
  largest = __reduce_max_sync(kFullWarp, shared.largest[lane]);
  num_nan = __reduce_add_sync(kFullWarp, shared.num_nan[lane]);

  ChunkCut cut;
  cut.least_rank = least;
  cut.index_bits = kWarpSize - __clz(num_candidates);
  cut.first_taken = 0;
  if (ends[num_candidates] - ends[0] <= room.tokens && num_candidates <= room.chunks) return cut;
  // Chunks whose key without its last `remaining` bits is `prefix` hold the first that does not
  // fit.
  std::int32_t remaining = kWarpSize - __clz(static_cast<int>(largest - least)) + cut.index_bits;
  std::uint64_t prefix = 0;
  std::int32_t used_tokens = 0;
  std::int32_t used_chunks = 0;
  while (true) {
    const std::int32_t shift = max(remaining - kDigitBits, 0);
    const std::uint64_t digit_mask = (std::uint64_t{1} << (remaining - shift)) - 1;
    if (thread < kNumDigits) {
      shared.tokens[thread] = 0;
      shared.counts[thread] = 0;
    }
    __syncthreads();
    for (std::int32_t first = 0; first < num_candidates; first += kCutThreads) {
      const std::int32_t i = first + thread;
      bool counts = false;
      std::int32_t digit = 0;
      std::int32_t length = 0;
      if (i < num_candidates) {
        const std::uint64_t key =
            order_key(order_rank(scores[i], threshold), i + 1, least, cut.index_bits);
        counts = (key >> remaining) == prefix;
        digit = static_cast<std::int32_t>((key >> shift) & digit_mask);
        length = ends[i + 1] - ends[i];
      }
      detail::add_to_histogram(shared, counts, digit, length);
    }
    __syncthreads();
    if (warp == 0) detail::find_digit(shared, room, used_tokens, used_chunks);
    __syncthreads();
    prefix = (prefix << (remaining - shift)) | static_cast<std::uint64_t>(shared.digit);
    remaining = shift;
    used_tokens = shared.used_tokens;
    used_chunks = shared.used_chunks;
    if (shared.class_size == 1 || remaining == 0) break;
  }
  cut.first_taken = (prefix + 1) << remaining;
  return cut;
}

}  // namespace chunkllm::kernels
