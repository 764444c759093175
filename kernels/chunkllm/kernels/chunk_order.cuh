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
/// Wide digits: a walk over the candidates costs more than one over a histogram, and the first
/// digit of 5,000 scores mostly leaves a few tens of them.
inline constexpr int kDigitBits = 10;
inline constexpr int kNumDigits = 1 << kDigitBits;
/// Candidates whose ranks and ends stay in shared memory; those behind are read again, from L1 or
/// L2.
inline constexpr std::int32_t kCachedCandidates = 8192;
/// Candidates that are compared with each other instead of digit by digit.
inline constexpr int kMostFinalists = kWarpSize;

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

/// Shared memory of `find_cut`, too much of it to be declared in a kernel: see `dynamic_shared`.
template <int kThreads>
struct CutShared {
  static constexpr int kWarps = kThreads / kWarpSize;

  std::uint32_t ranks[kCachedCandidates];    ///< of candidates 1, 2, ...
  std::int32_t ends[kCachedCandidates + 1];  ///< of chunks 0, 1, ...
  /// Tokens and chunks of each digit, twice: one is cleared while the other is used. Free once the
  /// cut is found.
  std::int32_t histograms[4 * kNumDigits];
  std::uint64_t finalists[kMostFinalists];
  std::int32_t finalist_tokens[kMostFinalists];
  std::uint32_t least[kWarps];
  std::uint32_t largest[kWarps];
  std::int32_t num_nan[kWarps];
  std::int32_t warp_tokens[kWarps];
  std::int32_t warp_chunks[kWarps];
  std::uint64_t first_taken;
  std::int32_t num_finalists;
  std::int32_t digit;
  std::int32_t used_tokens;
  std::int32_t used_chunks;
  std::int32_t class_size;

  __device__ std::int32_t* tokens(int histogram) { return histograms + histogram * kNumDigits; }
  __device__ std::int32_t* counts(int histogram) {
    return histograms + (2 + histogram) * kNumDigits;
  }
  __device__ std::uint32_t rank(const float* scores, float threshold, std::int32_t i) const {
    return i < kCachedCandidates ? ranks[i] : order_rank(scores[i], threshold);
  }
  __device__ std::int32_t end_of(const std::int32_t* all_ends, std::int32_t chunk) const {
    return chunk <= kCachedCandidates ? ends[chunk] : all_ends[chunk];
  }
};

/// A block's dynamic shared memory as a struct.
template <typename T>
__device__ inline T& dynamic_shared() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return *reinterpret_cast<T*>(shared_bytes);
}

namespace detail {

/// Adds a chunk of `length` tokens to its digit's histogram, in a whole warp. Lanes with the digit
/// of the first are summed before: scores crowd together, and atomics on one address queue.
__device__ inline void add_to_histogram(std::int32_t* tokens, std::int32_t* counts, bool is_member,
                                        std::int32_t digit, std::int32_t length) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % kWarpSize;
  const unsigned members = __ballot_sync(kFullWarp, is_member);
  if (members == 0U) return;
  const int leader = __ffs(static_cast<int>(members)) - 1;
  const std::int32_t leading = __shfl_sync(kFullWarp, digit, leader);
  const bool with_leader = is_member && digit == leading;
  const unsigned crowd = __ballot_sync(kFullWarp, with_leader);
  const std::int32_t crowd_tokens = __reduce_add_sync(kFullWarp, with_leader ? length : 0);
  if (lane == leader) {
    atomicAdd(&tokens[digit], crowd_tokens);
    atomicAdd(&counts[digit], __popc(crowd));
  } else if (is_member && !with_leader) {
    atomicAdd(&tokens[digit], length);
    atomicAdd(&counts[digit], 1);
  }
}

__device__ inline bool exceeds(const BudgetRoom& room, std::int32_t tokens, std::int32_t chunks) {
  return tokens > room.tokens || chunks > room.chunks;
}

/// From the highest digit down, the first with which the budget is exceeded; it is one that is. By
/// the whole block, with a barrier at its end.
template <int kThreads>
__device__ inline void find_digit(CutShared<kThreads>& shared, int histogram,
                                  const BudgetRoom& room, std::int32_t used_tokens,
                                  std::int32_t used_chunks) {
  constexpr int kDigitsAThread = kNumDigits / kThreads;
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kDigitsAThread * kThreads == kNumDigits && kWarps <= kWarpSize);
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
  const std::int32_t first = kNumDigits - 1 - thread * kDigitsAThread;
  std::int32_t tokens[kDigitsAThread];
  std::int32_t chunks[kDigitsAThread];
  std::int32_t all_tokens = 0;
  std::int32_t all_chunks = 0;
#pragma unroll
  for (int j = 0; j < kDigitsAThread; ++j) {
    tokens[j] = shared.tokens(histogram)[first - j];
    chunks[j] = shared.counts(histogram)[first - j];
    all_tokens += tokens[j];
    all_chunks += chunks[j];
  }
  std::int32_t tokens_after = all_tokens;
  std::int32_t chunks_after = all_chunks;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const std::int32_t other_tokens = __shfl_up_sync(kFullWarp, tokens_after, offset);
    const std::int32_t other_chunks = __shfl_up_sync(kFullWarp, chunks_after, offset);
    if (lane >= offset) {
      tokens_after += other_tokens;
      chunks_after += other_chunks;
    }
  }
  if (lane == kWarpSize - 1) {
    shared.warp_tokens[warp] = tokens_after;
    shared.warp_chunks[warp] = chunks_after;
  }
  __syncthreads();
  used_tokens += __reduce_add_sync(kFullWarp, lane < warp ? shared.warp_tokens[lane] : 0);
  used_chunks += __reduce_add_sync(kFullWarp, lane < warp ? shared.warp_chunks[lane] : 0);
  used_tokens += tokens_after - all_tokens;
  used_chunks += chunks_after - all_chunks;
  // No sum overflows: all candidates together are positions of one text.
  if (!exceeds(room, used_tokens, used_chunks) &&
      exceeds(room, used_tokens + all_tokens, used_chunks + all_chunks)) {
#pragma unroll
    for (int j = 0; j < kDigitsAThread; ++j) {
      // Sums only grow, so of a thread's digits the first that exceeds is followed by others.
      const bool fits = !exceeds(room, used_tokens + tokens[j], used_chunks + chunks[j]);
      if (!fits && !exceeds(room, used_tokens, used_chunks)) {
        shared.digit = first - j;
        shared.used_tokens = used_tokens;
        shared.used_chunks = used_chunks;
        shared.class_size = chunks[j];
      }
      used_tokens += tokens[j];
      used_chunks += chunks[j];
    }
  }
  __syncthreads();
}

/// The first of a few candidates that exceeds what is left, into `first_taken` plus one: a warp
/// each adds up those in front of it. By the whole block, with a barrier at its end.
template <int kThreads>
__device__ inline void find_finalist(CutShared<kThreads>& shared, std::int32_t count,
                                     const BudgetRoom& room, std::int32_t used_tokens,
                                     std::int32_t used_chunks) {
  constexpr int kWarps = kThreads / kWarpSize;
  const std::int32_t warp = static_cast<std::int32_t>(threadIdx.x) / kWarpSize;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % kWarpSize;
  const std::uint64_t key = lane < count ? shared.finalists[lane] : 0;
  const std::int32_t tokens = lane < count ? shared.finalist_tokens[lane] : 0;
  for (std::int32_t f = warp; f < count; f += kWarps) {
    const std::uint64_t own = shared.finalists[f];
    const bool is_in_front = lane < count && key > own;
    const std::int32_t tokens_before =
        used_tokens + __reduce_add_sync(kFullWarp, is_in_front ? tokens : 0);
    const std::int32_t chunks_before = used_chunks + __popc(__ballot_sync(kFullWarp, is_in_front));
    if (lane == 0 && !exceeds(room, tokens_before, chunks_before) &&
        exceeds(room, tokens_before + shared.finalist_tokens[f], chunks_before + 1)) {
      shared.first_taken = own + 1;
    }
  }
  __syncthreads();
}

}  // namespace detail

/// Where a budget stops among candidates 1, ..., num_candidates: in front of the first chunk of the
/// order that does not fit. Called by all kThreads threads of a block; each gets the result. Ranks
/// and ends of the first candidates are then in shared memory, visible to the whole block.
///
/// Keys are looked at digit by digit. Each digit's histogram of tokens and chunks tells in which
/// digit the budget is exceeded; only chunks with that digit are looked at further, until few are
/// left, which are compared. No chunk is sorted. Sums are of integers, so their order does not
/// matter.
///
/// \param score_of  index -> score, called once for each of [0, num_candidates), at least one
/// \param scores    [num_candidates] the same, which may be what `score_of` writes; read behind a
///                  barrier, and only beyond kCachedCandidates
/// \param ends      of the sequence's chunks
/// \param num_nan   set to the number of NaN scores
template <int kThreads, typename ScoreOf>
__device__ inline ChunkCut find_cut(const ScoreOf& score_of, const float* scores,
                                    const std::int32_t* ends, std::int32_t num_candidates,
                                    const BudgetRoom& room, float threshold,
                                    CutShared<kThreads>& shared, std::int32_t& num_nan) {
  constexpr int kWarps = kThreads / kWarpSize;
  constexpr int kAtOnce = 5;  // loads of a thread on their way: all there are of 5,120 candidates
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t warp = thread / kWarpSize;
  const std::int32_t lane = thread % kWarpSize;
#pragma unroll
  for (std::int32_t digit = thread; digit < kNumDigits; digit += kThreads) {
    shared.tokens(0)[digit] = 0;
    shared.counts(0)[digit] = 0;
  }
  if (thread == 0) {
    shared.ends[0] = ends[0];
    shared.num_finalists = 0;
  }
  std::uint32_t least = 0xffffffffU;
  std::uint32_t largest = 0;
  num_nan = 0;
  for (std::int32_t first = thread; first < num_candidates; first += kAtOnce * kThreads) {
    float loaded[kAtOnce];
    std::int32_t loaded_ends[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const std::int32_t i = first + j * kThreads;
      if (i >= num_candidates) continue;
      loaded[j] = score_of(i);
      loaded_ends[j] = ends[i + 1];
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const std::int32_t i = first + j * kThreads;
      if (i >= num_candidates) continue;
      const std::uint32_t rank = order_rank(loaded[j], threshold);
      if (i < kCachedCandidates) {
        shared.ranks[i] = rank;
        shared.ends[i + 1] = loaded_ends[j];
      }
      least = min(least, rank);
      largest = max(largest, rank);
      num_nan += rank == 0U ? 1 : 0;
    }
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
  const std::int32_t of = lane % kWarps;  // a lane reads a warp's result
  least = __reduce_min_sync(kFullWarp, shared.least[of]);
  largest = __reduce_max_sync(kFullWarp, shared.largest[of]);
  num_nan = __reduce_add_sync(kFullWarp, lane < kWarps ? shared.num_nan[of] : 0);

  ChunkCut cut;
  cut.least_rank = least;
  cut.index_bits = kWarpSize - __clz(num_candidates);
  cut.first_taken = 0;
  if (shared.end_of(ends, num_candidates) - shared.ends[0] <= room.tokens &&
      num_candidates <= room.chunks) {
    return cut;
  }
  // Chunks whose key without its last `remaining` bits is `prefix` hold the first that does not
  // fit.
  std::int32_t remaining = kWarpSize - __clz(static_cast<int>(largest - least)) + cut.index_bits;
  std::uint64_t prefix = 0;
  std::int32_t used_tokens = 0;
  std::int32_t used_chunks = 0;
  const std::int32_t rounds = ceil_div(num_candidates, kThreads);  // the same in all lanes
  const auto key_of = [&](std::int32_t i) {
    return order_key(shared.rank(scores, threshold, i), i + 1, least, cut.index_bits);
  };
  const auto length_of = [&](std::int32_t i) {
    return shared.end_of(ends, i + 1) - shared.end_of(ends, i);
  };
  for (int histogram = 0;; histogram = 1 - histogram) {
    const std::int32_t shift = max(remaining - kDigitBits, 0);
    const std::uint64_t digit_mask = (std::uint64_t{1} << (remaining - shift)) - 1;
    // The other was last read in front of a barrier, and is used again behind the next one.
#pragma unroll
    for (std::int32_t digit = thread; digit < kNumDigits; digit += kThreads) {
      shared.tokens(1 - histogram)[digit] = 0;
      shared.counts(1 - histogram)[digit] = 0;
    }
#pragma unroll 5
    for (std::int32_t round = 0; round < rounds; ++round) {
      const std::int32_t i = round * kThreads + thread;
      bool is_member = false;
      std::int32_t digit = 0;
      std::int32_t length = 0;
      if (i < num_candidates) {
        const std::uint64_t key = key_of(i);
        is_member = (key >> remaining) == prefix;
        digit = static_cast<std::int32_t>((key >> shift) & digit_mask);
        if (is_member) length = length_of(i);
      }
      detail::add_to_histogram(shared.tokens(histogram), shared.counts(histogram), is_member, digit,
                               length);
    }
    __syncthreads();
    detail::find_digit(shared, histogram, room, used_tokens, used_chunks);
    prefix = (prefix << (remaining - shift)) | static_cast<std::uint64_t>(shared.digit);
    remaining = shift;
    used_tokens = shared.used_tokens;
    used_chunks = shared.used_chunks;
    if (shared.class_size <= kMostFinalists || remaining == 0) break;
  }
  const std::int32_t class_size = shared.class_size;
  if (class_size == 1 || remaining == 0) {  // keys are unique: no more than one is left
    cut.first_taken = (prefix + 1) << remaining;
    return cut;
  }
  for (std::int32_t i = thread; i < num_candidates; i += kThreads) {
    const std::uint64_t key = key_of(i);
    if ((key >> remaining) != prefix) continue;
    const std::int32_t slot = atomicAdd(&shared.num_finalists, 1);  // their order does not matter
    shared.finalists[slot] = key;
    shared.finalist_tokens[slot] = length_of(i);
  }
  __syncthreads();
  detail::find_finalist(shared, class_size, room, used_tokens, used_chunks);
  cut.first_taken = shared.first_taken;
  return cut;
}

}  // namespace chunkllm::kernels
