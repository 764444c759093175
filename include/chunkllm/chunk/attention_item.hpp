// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/attention_args.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/kv_cache.hpp"
#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/model/micro_kernel.hpp"
#include "chunkllm/model/rope.hpp"
#include "chunkllm/model/validate_config.hpp"

/// The tile loops behind `chunk_attention`: what one worker does for one KV head and some rows.
namespace chunkllm::detail {

inline constexpr std::int64_t kKeyTile = 64;    // keys scored at a time
inline constexpr std::int64_t kKeySplit = 512;  // keys reduced into one partial result
// Query vectors (tokens x heads) of a work item: all heads of a group for at least one token.
inline constexpr std::int64_t kMaxQueries = ConfigLimits::kMaxHeadRatio;
inline constexpr std::int64_t kLanePanel = kPanelCols;

constexpr std::int64_t round_up(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// Softmax state of up to 128 query vectors over some of their keys. Lanes are queries.
struct AttentionPartial {
  float* maximum;  // [lanes] largest score, -inf while no key was seen
  float* sum;      // [lanes] sum of exp(score - maximum)
  float* output;   // [lanes / 32][head_dim][32] sum of exp(score - maximum) * value

  static std::int64_t num_floats(std::int64_t lanes, std::int64_t head_dim) {
    return lanes * (2 + head_dim);
  }
  AttentionPartial(float* memory, std::int64_t lanes)
      : maximum(memory), sum(memory + lanes), output(memory + 2 * lanes) {}

  void clear(std::int64_t lanes, std::int64_t head_dim) const {
    std::fill_n(maximum, lanes, -std::numeric_limits<float>::infinity());
    std::fill_n(sum, lanes * (1 + head_dim), 0.0F);
  }
};

/// Scale factors that bring two partial results to one maximum. -inf stands for "no key yet".
struct Rescale {
  simd::F32x16 maximum;  // finite even where no key was seen, so that nothing becomes inf - inf
  simd::F32x16 kept;
  Rescale(simd::F32x16 old_maximum, simd::F32x16 new_maximum) {
    const simd::F32x16 lowest = simd::broadcast(-std::numeric_limits<float>::max());
    maximum = simd::select_if_at_least(lowest, new_maximum, simd::zero(), new_maximum);
    kept = simd::exp(old_maximum - maximum);
  }
};

/// total += partial, lane by lane.
inline void merge_partial(const AttentionPartial& total, const AttentionPartial& partial,
                          std::int64_t lanes, std::int64_t head_dim) {
  for (std::int64_t lane = 0; lane < lanes; lane += simd::kLanes) {
    const simd::F32x16 ours = simd::load(total.maximum + lane);
    const simd::F32x16 theirs = simd::load(partial.maximum + lane);
    const simd::F32x16 both = simd::max(ours, theirs);
    const Rescale keep_ours(ours, both);
    const Rescale keep_theirs(theirs, both);
    const auto blend = [&](float* a, const float* b) {
      simd::store(
          a, simd::multiply_add(simd::load(b), keep_theirs.kept, simd::load(a) * keep_ours.kept));
    };
    simd::store(total.maximum + lane, both);
    blend(total.sum + lane, partial.sum + lane);
    const std::int64_t first = lane / kLanePanel * kLanePanel * head_dim + lane % kLanePanel;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      blend(total.output + first + d * kLanePanel, partial.output + first + d * kLanePanel);
    }
  }
}

/// Work of one (sub-tile, KV head): some tokens of a tile with all query heads of the group.
///
/// Every lane's arithmetic is a fixed sequence over the ranks of its attended set: tiles of 64
/// keys, splits of 512, merged in order. Which other queries share the work item, and whether the
/// splits ran on one thread or on many, changes nothing. Keys past a lane's own token score -inf
/// and add exact zeros.
template <typename T>
class AttentionItem {
 public:
  AttentionItem(const ChunkAttentionArgs<T>& args, const AttendedSet& set, std::int64_t first_row,
                std::int64_t num_rows, std::int64_t kv_head)
      : args_(args),
        set_(set),
        first_row_(first_row),
        num_rows_(num_rows),
        kv_head_(kv_head),
        group_(args.num_heads / args.num_kv_heads),
        num_queries_(num_rows * group_),
        lanes_(round_up(num_queries_, kLanePanel)),
        span_tokens_(set.num_span_tokens()),
        num_ranks_(rank_of_row(num_rows - 1) + 1) {}

  [[nodiscard]] std::int64_t lanes() const { return lanes_; }
  [[nodiscard]] std::int64_t num_splits() const { return (num_ranks_ + kKeySplit - 1) / kKeySplit; }

  /// Queries [panel][head_dim][32], scaled and rotated.
  void pack_queries(float* packed) const {
    const std::int64_t head_dim = args_.head_dim;
    std::fill_n(packed, lanes_ * head_dim, 0.0F);
    float head[ConfigLimits::kMaxHeadDim];
    for (std::int64_t i = 0; i < num_queries_; ++i) {
      const std::int64_t row = first_row_ + i / group_;
      const float* q = args_.q.row(row) + (kv_head_ * group_ + i % group_) * head_dim;
      std::copy_n(q, head_dim, head);
      const std::int64_t token = args_.first_token + row;
      turn(head, token, rank_of_row(i / group_), args_.q_rotation);
      float* lane = packed + i / kLanePanel * kLanePanel * head_dim + i % kLanePanel;
      for (std::int64_t d = 0; d < head_dim; ++d) lane[d * kLanePanel] = head[d] * args_.scale;
    }
  }

  /// Reduces the keys of ranks [split * 512, ...) into `partial`.
  ///
  /// \param keys, values  [64, padded head_dim] each   \param scores  [64, 32]
  void reduce_split(std::int64_t split, const float* packed_queries, float* keys, float* values,
                    float* scores, const AttentionPartial& partial) const {
    partial.clear(lanes_, args_.head_dim);
    const std::int64_t end = std::min(num_ranks_, (split + 1) * kKeySplit);
    for (std::int64_t rank = split * kKeySplit; rank < end; rank += kKeyTile) {
      const std::int64_t count = std::min(kKeyTile, end - rank);
      if (!load_keys(rank, count, keys, values)) continue;
      for (std::int64_t lane = 0; lane < lanes_; lane += kLanePanel) {
        const float* queries = packed_queries + lane * args_.head_dim;
        // A panel with few queries (decode, or a tile's rest) leaves its second vector out.
        if (num_queries_ - lane > simd::kLanes) {
          reduce_tile<2>(rank, count, queries, lane, keys, values, scores, partial);
        } else {
          reduce_tile<1>(rank, count, queries, lane, keys, values, scores, partial);
        }
      }
    }
  }

  /// Divides by the sums and writes the rows of `out` (and `lse`).
  void write_outputs(const AttentionPartial& total) const {
    const std::int64_t head_dim = args_.head_dim;
    for (std::int64_t i = 0; i < num_queries_; ++i) {
      const std::int64_t row = first_row_ + i / group_;
      const std::int64_t head = kv_head_ * group_ + i % group_;
      const float* lane = total.output + i / kLanePanel * kLanePanel * head_dim + i % kLanePanel;
      float* out = args_.out.row(row) + head * head_dim;
      const float inverse = 1.0F / total.sum[i];
      for (std::int64_t d = 0; d < head_dim; ++d) out[d] = lane[d * kLanePanel] * inverse;
      if (args_.maybe_lse != nullptr) {
        args_.maybe_lse[row * args_.num_heads + head] = total.maximum[i] + std::log(total.sum[i]);
      }
    }
  }

 private:
  /// Rank of the tile's row among its attended tokens; row counts from the item's first.
  [[nodiscard]] std::int64_t rank_of_row(std::int64_t row) const {
    return span_tokens_ + args_.first_token + first_row_ + row - set_.tail_begin;
  }

  /// Turns a head from where it stands to where it is wanted.
  void turn(float* head, std::int64_t token, std::int64_t rank, Rotation stored) const {
    const std::int64_t wanted = args_.positions == Positions::kInCache ? rank : token;
    const std::int64_t steps = wanted - (stored == Rotation::kAtTokenPosition ? token : 0);
    if (steps == 0) return;
    const std::int64_t half = args_.head_dim / 2;
    const float* cosine = args_.rope->row(steps < 0 ? -steps : steps);
    if (steps > 0) {
      rotate_head(head, cosine, half);
      return;
    }
    float back[ConfigLimits::kMaxHeadDim];
    std::copy_n(cosine, half, back);
    for (std::int64_t i = 0; i < half; ++i) back[half + i] = -cosine[half + i];
    rotate_head(head, back, half);
  }

  /// Expands `count` keys and values from `rank` on to f32; false if the window hides all of them.
  bool load_keys(std::int64_t rank, std::int64_t count, float* keys, float* values) const {
    const std::int64_t head_dim = args_.head_dim;
    const std::int64_t width = round_up(head_dim, simd::kLanes);
    const std::int64_t first_visible =
        args_.window > 0 ? rank_of_row(0) - args_.window + 1 : 0;  // of the item's first row
    if (rank + count <= first_visible) return false;
    std::int64_t seen = 0;
    std::int64_t filled = 0;
    const auto take = [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t size = end - begin;
      const std::int64_t skip = std::clamp<std::int64_t>(rank + filled - seen, 0, size);
      const std::int64_t stop = std::min(end, begin + skip + count - filled);
      for (std::int64_t token = begin + skip; token < stop; ++token, ++filled) {
        const std::int64_t offset = args_.kv.offset(token, kv_head_);
        float* key = keys + filled * width;
        expand_row(args_.kv.keys + offset, key);
        expand_row(args_.kv.values + offset, values + filled * width);
        turn(key, token, rank + filled, args_.kv.rotation);
      }
      seen += size;
    };
    for (const TokenSpan& span : set_.spans) {
      if (filled == count) break;
      take(span.begin, span.end);
    }
    take(set_.tail_begin, args_.first_token + first_row_ + num_rows_);
    return true;
  }

  void expand_row(const T* source, float* target) const {
    std::int64_t d = 0;
    for (; d + simd::kLanes <= args_.head_dim; d += simd::kLanes) {
      simd::store(target + d, simd::load(source + d));
    }
    for (; d < args_.head_dim; ++d) target[d] = to_f32(source[d]);
  }

  template <int Vectors>
  void reduce_tile(std::int64_t rank, std::int64_t count, const float* queries, std::int64_t lane,
                   const float* keys, const float* values, float* scores,
                   const AttentionPartial& partial) const {
    using simd::F32x16;
    const std::int64_t head_dim = args_.head_dim;
    const std::int64_t width = round_up(head_dim, simd::kLanes);
    multiply_panel<Vectors>(keys, width, /*a_col=*/1, queries, kLanePanel, scores, kLanePanel,
                            count, head_dim, /*accumulate=*/false);
    float* output = partial.output + lane * head_dim;
    for (std::int64_t half = 0; half < Vectors * simd::kLanes; half += simd::kLanes) {
      mask(rank, count, lane + half, scores + half);
      const F32x16 before = simd::load(partial.maximum + lane + half);
      F32x16 maximum = before;
      for (std::int64_t k = 0; k < count; ++k) {
        maximum = simd::max(maximum, simd::load(scores + k * kLanePanel + half));
      }
      const Rescale rescale(before, maximum);
      F32x16 sum = simd::load(partial.sum + lane + half) * rescale.kept;
      for (std::int64_t k = 0; k < count; ++k) {
        float* score = scores + k * kLanePanel + half;
        const F32x16 weight = simd::exp(simd::load(score) - rescale.maximum);
        simd::store(score, weight);
        sum = sum + weight;
      }
      simd::store(partial.maximum + lane + half, maximum);
      simd::store(partial.sum + lane + half, sum);
      for (std::int64_t d = 0; d < head_dim; ++d) {
        float* o = output + d * kLanePanel + half;
        simd::store(o, simd::load(o) * rescale.kept);
      }
    }
    multiply_panel<Vectors>(values, /*a_row=*/1, width, scores, kLanePanel, output, kLanePanel,
                            head_dim, count, /*accumulate=*/true);
  }

  /// Sets the scores of keys past each lane's own token, or outside its window, to -inf.
  void mask(std::int64_t rank, std::int64_t count, std::int64_t lane, float* scores) const {
    using simd::F32x16;
    const std::int64_t first = rank_of_row(std::min(lane, num_queries_ - 1) / group_);
    const std::int64_t last =
        rank_of_row(std::min(lane + simd::kLanes - 1, num_queries_ - 1) / group_);
    const bool hides_future = rank + count - 1 > first;
    const bool hides_past = args_.window > 0 && rank < last - args_.window + 1;
    if (!hides_future && !hides_past) return;
    float newest[simd::kLanes];
    float oldest[simd::kLanes];
    for (std::int64_t i = 0; i < simd::kLanes; ++i) {
      const std::int64_t own = rank_of_row(std::min(lane + i, num_queries_ - 1) / group_);
      newest[i] = static_cast<float>(own - rank);
      oldest[i] = args_.window > 0 ? static_cast<float>(own - args_.window + 1 - rank)
                                   : -std::numeric_limits<float>::infinity();
    }
    const F32x16 hidden = simd::broadcast(-std::numeric_limits<float>::infinity());
    for (std::int64_t k = 0; k < count; ++k) {
      const F32x16 key = simd::broadcast(static_cast<float>(k));
      F32x16 score = simd::load(scores + k * kLanePanel);
      score = simd::select_if_at_least(simd::load(newest), key, score, hidden);
      score = simd::select_if_at_least(key, simd::load(oldest), score, hidden);
      simd::store(scores + k * kLanePanel, score);
    }
  }

  const ChunkAttentionArgs<T>& args_;
  const AttendedSet& set_;
  std::int64_t first_row_;
  std::int64_t num_rows_;
  std::int64_t kv_head_;
  std::int64_t group_;
  std::int64_t num_queries_;
  std::int64_t lanes_;
  std::int64_t span_tokens_;
  std::int64_t num_ranks_;
};

/// Memory of one worker: queries, two partials, a tile of keys, values and scores.
inline std::int64_t attention_scratch_floats(std::int64_t head_dim) {
  const std::int64_t width = round_up(head_dim, simd::kLanes);
  return kMaxQueries * head_dim + 2 * AttentionPartial::num_floats(kMaxQueries, head_dim) +
         2 * kKeyTile * width + kKeyTile * kLanePanel;
}

struct AttentionScratch {
  float* queries;
  AttentionPartial total;
  AttentionPartial partial;
  float* keys;
  float* values;
  float* scores;

  AttentionScratch(float* memory, std::int64_t lanes, std::int64_t head_dim)
      : queries(memory),
        total(queries + kMaxQueries * head_dim, lanes),
        partial(
            queries + kMaxQueries * head_dim + AttentionPartial::num_floats(kMaxQueries, head_dim),
            lanes),
        keys(queries + kMaxQueries * head_dim +
             2 * AttentionPartial::num_floats(kMaxQueries, head_dim)),
        values(keys + kKeyTile * round_up(head_dim, simd::kLanes)),
        scores(values + kKeyTile * round_up(head_dim, simd::kLanes)) {}
};

}  // namespace chunkllm::detail
