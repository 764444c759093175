// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "chunkllm/chunk/attention_keys.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/model/micro_kernel.hpp"
#include "chunkllm/model/validate_config.hpp"

namespace chunkllm::detail {

// Query vectors (tokens x heads) of a work item: all heads of a group for at least one token.
inline constexpr std::int64_t kMaxQueries = ConfigLimits::kMaxHeadRatio;
inline constexpr std::int64_t kLanePanel = kPanelCols;

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

/// Work of one (sub-tile, KV head): some tokens of a tile with all query heads of the group, up to
/// 128 query vectors, which stand in the lanes.
///
/// Keys past a lane's own token score -inf and add exact zeros.
template <typename T>
class ManyQueriesItem : AttentionKeys<T> {
  using Keys = AttentionKeys<T>;

 public:
  using Keys::num_splits;

  /// Memory of a worker.
  struct Scratch {
    float* queries;
    float* total;
    float* partial;
    float* keys;    // [64, padded head_dim]
    float* values;  // [64, padded head_dim]
    float* scores;  // [64, 32]

    static std::int64_t num_floats(std::int64_t head_dim) {
      return kMaxQueries * head_dim + 2 * AttentionPartial::num_floats(kMaxQueries, head_dim) +
             2 * kKeyTile * padded_head_dim(head_dim) + kKeyTile * kLanePanel;
    }
    Scratch(float* memory, std::int64_t head_dim)
        : queries(memory),
          total(queries + kMaxQueries * head_dim),
          partial(total + AttentionPartial::num_floats(kMaxQueries, head_dim)),
          keys(partial + AttentionPartial::num_floats(kMaxQueries, head_dim)),
          values(keys + kKeyTile * padded_head_dim(head_dim)),
          scores(values + kKeyTile * padded_head_dim(head_dim)) {}
  };

  ManyQueriesItem(const ChunkAttentionArgs<T>& args, const AttendedSet& set, std::int64_t first_row,
                  std::int64_t num_rows, std::int64_t kv_head)
      : Keys(args, set, first_row, num_rows, kv_head), lanes_(round_up(num_queries_, kLanePanel)) {}

  /// Size of a partial result.
  [[nodiscard]] std::int64_t partial_floats() const {
    return AttentionPartial::num_floats(lanes_, args_.head_dim);
  }
  void clear(float* partial) const {
    AttentionPartial(partial, lanes_).clear(lanes_, args_.head_dim);
  }
  /// total += partial
  void merge(float* total, float* partial) const {
    merge_partial(AttentionPartial(total, lanes_), AttentionPartial(partial, lanes_), lanes_,
                  args_.head_dim);
  }

  /// Queries [panel][head_dim][32], scaled and rotated.
  void pack_queries(float* packed) const {
    const std::int64_t head_dim = args_.head_dim;
    std::fill_n(packed, lanes_ * head_dim, 0.0F);
    float query[ConfigLimits::kMaxHeadDim];
    for (std::int64_t i = 0; i < num_queries_; ++i) {
      this->read_query(i, query);
      float* lane = packed + i / kLanePanel * kLanePanel * head_dim + i % kLanePanel;
      for (std::int64_t d = 0; d < head_dim; ++d) lane[d * kLanePanel] = query[d];
    }
  }

  /// Reduces the keys of ranks [split * 512, ...) into `memory`, a partial result.
  void reduce_split(std::int64_t split, const Scratch& scratch, float* memory) const {
    const AttentionPartial partial(memory, lanes_);
    partial.clear(lanes_, args_.head_dim);
    const std::int64_t end = std::min(num_ranks_, (split + 1) * kKeySplit);
    for (std::int64_t rank = split * kKeySplit; rank < end; rank += kKeyTile) {
      const std::int64_t count = std::min(kKeyTile, end - rank);
      std::int64_t tokens[kKeyTile];
      if (!this->list_tokens(rank, count, tokens)) continue;
      this->expand_keys(rank, count, tokens, scratch.keys);
      this->expand_values(count, tokens, scratch.values);
      for (std::int64_t lane = 0; lane < lanes_; lane += kLanePanel) {
        const float* queries = scratch.queries + lane * args_.head_dim;
        // A panel with few queries (a tile's rest) leaves its second vector out.
        if (num_queries_ - lane > simd::kLanes) {
          reduce_tile<2>(rank, count, queries, lane, scratch, partial);
        } else {
          reduce_tile<1>(rank, count, queries, lane, scratch, partial);
        }
      }
    }
  }

  /// Divides by the sums and writes the rows of `out` (and `lse`).
  void write_outputs(float* memory) const {
    const AttentionPartial total(memory, lanes_);
    const std::int64_t head_dim = args_.head_dim;
    for (std::int64_t i = 0; i < num_queries_; ++i) {
      const float* lane = total.output + i / kLanePanel * kLanePanel * head_dim + i % kLanePanel;
      float* out = this->output_of(i);
      const float inverse = 1.0F / total.sum[i];
      for (std::int64_t d = 0; d < head_dim; ++d) out[d] = lane[d * kLanePanel] * inverse;
      this->write_lse(i, total.maximum[i], total.sum[i]);
    }
  }

 private:
  using Keys::args_;
  using Keys::num_queries_;
  using Keys::num_ranks_;
  using Keys::rank_of_query;
  using Keys::width;

  template <int Vectors>
  void reduce_tile(std::int64_t rank, std::int64_t count, const float* queries, std::int64_t lane,
                   const Scratch& scratch, const AttentionPartial& partial) const {
    using simd::F32x16;
    float* scores = scratch.scores;
    const std::int64_t head_dim = args_.head_dim;
    multiply_panel<Vectors>(scratch.keys, width(), /*a_col=*/1, queries, kLanePanel, scores,
                            kLanePanel, count, head_dim, /*accumulate=*/false);
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
    multiply_panel<Vectors>(scratch.values, /*a_row=*/1, width(), scores, kLanePanel, output,
                            kLanePanel, head_dim, count, /*accumulate=*/true);
  }

  /// Sets the scores of keys past each lane's own token, or outside its window, to -inf.
  void mask(std::int64_t rank, std::int64_t count, std::int64_t lane, float* scores) const {
    using simd::F32x16;
    const std::int64_t first = rank_of_query(std::min(lane, num_queries_ - 1));
    const std::int64_t last = rank_of_query(std::min(lane + simd::kLanes - 1, num_queries_ - 1));
    const bool hides_future = rank + count - 1 > first;
    const bool hides_past = args_.window > 0 && rank < last - args_.window + 1;
    if (!hides_future && !hides_past) return;
    float newest[simd::kLanes];
    float oldest[simd::kLanes];
    for (std::int64_t i = 0; i < simd::kLanes; ++i) {
      const std::int64_t own = rank_of_query(std::min(lane + i, num_queries_ - 1));
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

  std::int64_t lanes_;
};

}  // namespace chunkllm::detail
