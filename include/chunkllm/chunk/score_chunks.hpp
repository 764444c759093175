// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "chunkllm/chunk/chunk_keys.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/model/micro_kernel.hpp"

namespace chunkllm {

/// How a chunk's probabilities under several heads become its score.
enum class HeadJoin : std::uint8_t {
  kMax,  ///< the default: few heads retrieve, and a mean drowns them
  kMean
};

/// The larger of two scores; NaN if either is, so that a fault is not ranked away.
inline float max_keeping_nan(float a, float b) {
  return b > a || std::isnan(b) ? b : a;
}

/// Bins of the distance bias: floor(2 log2(distance)), the last one open-ended.
inline constexpr std::int64_t kNumDistanceBins = 34;

/// min(33, floor(2 log2(distance))) for distance >= 1, exactly.
constexpr std::int64_t distance_bin(std::int64_t distance) {
  const auto d =
      static_cast<std::uint64_t>(std::min<std::int64_t>(distance, std::int64_t{1} << 20));
  const auto bin = static_cast<std::int64_t>(std::bit_width(d * d)) - 1;
  return std::min(bin, kNumDistanceBins - 1);
}

/// Closed chunks that a refresh can choose from, and those attended anyway.
struct CandidateRange {
  std::int64_t num_closed = 0;  ///< chunks [0, num_closed) are closed at the trigger
  std::int64_t end = 0;         ///< candidates are [1, end); [end, num_closed) is the local window
  std::int64_t tail_begin = 0;  ///< first token of the local window

  [[nodiscard]] std::int64_t num_candidates() const { return end > 1 ? end - 1 : 0; }
};

/// Inputs of one refresh in one layer.
struct ScoreChunksArgs {
  const float* query = nullptr;       ///< [num_heads, key_dim]
  const float* maybe_null = nullptr;  ///< [num_heads] null logits; null: taken from what is kept
  const float* maybe_bias = nullptr;  ///< [num_heads, kNumDistanceBins]
  const float* maybe_open_key = nullptr;     ///< [num_key_heads * key_dim] of the open chunk
  const float* maybe_log_lengths = nullptr;  ///< [num_closed] log of the chunks' lengths
  float open_log_length = 0.0F;
  const ChunkKeys* keys = nullptr;
  const ChunkTable* table = nullptr;
  CandidateRange range;
  std::int64_t query_token = 0;  ///< t
  std::int64_t num_heads = 0;
  std::int64_t num_key_heads = 0;  ///< divides num_heads
  std::int64_t key_dim = 0;
  float scale = 1.0F;
  HeadJoin head_join = HeadJoin::kMax;
};

/// Writes the scores of candidates 1, 2, ..., range.end - 1.
///
///   z[h,c] = scale q_h . k_(h,c) + log len_c + b_h[distance_bin(t - e_c)]
///   p[h,c] = softmax of z[h,.] over the candidates and one null logit
///   score[c] = max (or mean) over h of p[h,c]
///
/// e_c is the chunk's last token (of the open chunk the trigger itself); distances below 1 count as
/// 1. The null logit is the adapter's n_h . x + n0_h, or else the
/// logsumexp of z over the chunks that are attended anyway: chunk 0, the local window, the open
/// chunk. A chunk's score so is the share of attention that it would take from the kept part.
///
/// \param scores   [range.num_candidates()]
/// \param scratch  grown to num_heads * (num_closed + 32) floats
/// Numerics: f32; a NaN in z makes all scores NaN, which the selector counts and ranks last
/// Cost: 2 num_heads key_dim flops a closed chunk, keys read once
inline void score_chunks(const ScoreChunksArgs& args, std::span<float> scores,
                         std::vector<float>& scratch) {
  constexpr std::int64_t kPanel = ChunkKeys::kPanel;
  const std::int64_t closed = args.range.num_closed;
  const std::int64_t candidates = args.range.num_candidates();
  if (candidates == 0) return;
  const std::int64_t stride = (closed + kPanel - 1) / kPanel * kPanel;
  const std::int64_t group = args.num_heads / args.num_key_heads;
  scratch.resize(static_cast<std::size_t>(args.num_heads * stride));
  for (std::int64_t first = 0; first < closed; first += kPanel) {
    for (std::int64_t g = 0; g < args.num_key_heads; ++g) {
      detail::multiply_panel(args.query + g * group * args.key_dim, args.key_dim, /*a_col=*/1,
                             args.keys->panel(first / kPanel) + g * args.key_dim * kPanel, kPanel,
                             scratch.data() + g * group * stride + first, stride, group,
                             args.key_dim, /*accumulate=*/false);
    }
  }
  std::fill(scores.begin(), scores.begin() + candidates, 0.0F);
  for (std::int64_t h = 0; h < args.num_heads; ++h) {
    float* z = scratch.data() + h * stride;
    for (std::int64_t c = 0; c < closed; ++c) {
      z[c] *= args.scale;
      if (args.maybe_log_lengths != nullptr) z[c] += args.maybe_log_lengths[c];
      if (args.maybe_bias != nullptr) {
        const std::int64_t distance = args.query_token - (args.table->end(c) - 1);
        // The trigger may itself be a chunk's last token: the nearest bin.
        z[c] += args.maybe_bias[h * kNumDistanceBins +
                                distance_bin(std::max<std::int64_t>(distance, 1))];
      }
    }
    float null_logit = 0.0F;
    if (args.maybe_null != nullptr) {
      null_logit = args.maybe_null[h];
    } else {
      float open = -std::numeric_limits<float>::infinity();
      if (args.maybe_open_key != nullptr) {
        open = args.scale * simd::dot(args.query + h * args.key_dim,
                                      args.maybe_open_key + h / group * args.key_dim, args.key_dim);
        if (args.maybe_log_lengths != nullptr) open += args.open_log_length;
        // Its newest token is the trigger: the nearest bin, too.
        if (args.maybe_bias != nullptr) open += args.maybe_bias[h * kNumDistanceBins];
      }
      float largest = std::max(open, z[0]);
      for (std::int64_t c = args.range.end; c < closed; ++c) largest = std::max(largest, z[c]);
      float sum = std::exp(open - largest) + std::exp(z[0] - largest);
      for (std::int64_t c = args.range.end; c < closed; ++c) sum += std::exp(z[c] - largest);
      null_logit = largest + std::log(sum);
    }
    float largest = null_logit;
    for (std::int64_t c = 1; c <= candidates; ++c) largest = std::max(largest, z[c]);
    float sum = std::exp(null_logit - largest);
    const simd::F32x16 shift = simd::broadcast(largest);
    // z[0] and what lies behind the candidates were used above and may be overwritten.
    for (std::int64_t c = 0; c < stride; c += simd::kLanes) {
      simd::store(z + c, simd::exp(simd::load(z + c) - shift));
    }
    for (std::int64_t c = 1; c <= candidates; ++c) sum += z[c];
    const float inverse = 1.0F / sum;
    for (std::int64_t i = 0; i < candidates; ++i) {
      const float p = z[i + 1] * inverse;
      float& score = scores[static_cast<std::size_t>(i)];
      score = args.head_join == HeadJoin::kMax ? max_keeping_nan(score, p) : score + p;
    }
  }
  if (args.head_join == HeadJoin::kMean) {
    const float inverse = 1.0F / static_cast<float>(args.num_heads);
    for (std::int64_t i = 0; i < candidates; ++i) scores[static_cast<std::size_t>(i)] *= inverse;
  }
}

/// The local window behind a trigger: the fewest chunks, the open one counted with its present
/// length, that are at least `min_chunks` and hold `min_tokens`; before them the candidates.
///
/// \param token  the trigger, attended itself
inline CandidateRange candidate_range(const ChunkTable& table, std::int64_t token,
                                      std::int64_t min_tokens, std::int64_t min_chunks) {
  CandidateRange range;
  range.num_closed = table.chunk_of(token + 1);
  range.end = range.num_closed;
  range.tail_begin = range.num_closed == 0 ? 0 : table.end(range.num_closed - 1);
  std::int64_t chunks = token + 1 > range.tail_begin ? 1 : 0;
  while (range.end > 0 && (chunks < min_chunks || token + 1 - range.tail_begin < min_tokens)) {
    --range.end;
    ++chunks;
    range.tail_begin = table.begin(range.end);
  }
  return range;
}

}  // namespace chunkllm
