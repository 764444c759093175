// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/kv_cache.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/micro_kernel.hpp"
#include "chunkllm/model/rope.hpp"

namespace chunkllm {

/// Which RoPE positions attended keys and the query get.
enum class Positions : std::uint8_t {
  kOriginal,  ///< their place in the text
  kInCache    ///< their rank among the attended tokens, so that a short window reads a long text
};

/// Consecutive query rows that attend the same set.
struct AttentionTile {
  std::int64_t first_row = 0;
  std::int64_t num_rows = 0;
  const AttendedSet* set = nullptr;  ///< its tail must begin at or before the tile's first token
};

/// One layer's chunk-selective attention; row r is the token at position `first_token + r`.
template <typename T>
struct ChunkAttentionArgs {
  MatrixView<const float> q;             ///< [num_rows, num_heads * head_dim]
  MatrixView<float> out;                 ///< [num_rows, num_heads * head_dim]
  KvView<T> kv;                          ///< holds the rows' own keys and values already
  std::span<const AttentionTile> tiles;  ///< cover the rows once, in order
  std::int64_t first_token = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  float scale = 1.0F;       ///< on q . k; `softmax_scale(config)`
  std::int64_t window = 0;  ///< newest attended tokens seen, the query's own included; 0: all
  Rotation q_rotation = Rotation::kAtTokenPosition;
  Positions positions = Positions::kOriginal;
  /// Rotations by 0, 1, ...; needed where a key or query must still be turned. It must reach the
  /// largest difference between a wanted and a stored position: `rope_positions_needed`.
  const RopeTable* rope = nullptr;
  float* maybe_lse = nullptr;  ///< [num_rows, num_heads] log of the softmax's denominator, or null
};

namespace detail {

inline constexpr std::int64_t kKeyTile = 64;      // keys scored at a time
inline constexpr std::int64_t kKeySplit = 512;    // keys reduced into one partial result
inline constexpr std::int64_t kMaxQueries = 128;  // query vectors (tokens x heads) of a work item
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
    float head[512];
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
    float back[512];
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

}  // namespace detail

/// Workspace of `chunk_attention`, in floats.
///
/// \param max_attended  most tokens that any row attends
inline std::int64_t chunk_attention_workspace_floats(std::int64_t num_heads,
                                                     std::int64_t num_kv_heads,
                                                     std::int64_t head_dim,
                                                     std::int64_t max_attended, int num_threads) {
  const std::int64_t workers = detail::attention_scratch_floats(head_dim) * num_threads;
  // A single token's splits run in parallel; each leaves one partial result.
  const std::int64_t lanes = detail::round_up(num_heads / num_kv_heads, detail::kLanePanel);
  const std::int64_t splits = (max_attended + detail::kKeySplit - 1) / detail::kKeySplit;
  return workers + num_kv_heads * splits * detail::AttentionPartial::num_floats(lanes, head_dim);
}

/// Rotations, from 0 on, that `args.rope` must hold; 0 where nothing is turned.
template <typename T>
std::int64_t rope_positions_needed(const ChunkAttentionArgs<T>& args) {
  const bool from_none = args.q_rotation == Rotation::kNone || args.kv.rotation == Rotation::kNone;
  if (args.positions == Positions::kOriginal) {
    return from_none ? args.first_token + args.q.rows : 0;
  }
  const bool from_token = args.q_rotation == Rotation::kAtTokenPosition ||
                          args.kv.rotation == Rotation::kAtTokenPosition;
  std::int64_t most = 0;
  for (const AttentionTile& tile : args.tiles) {
    const std::int64_t last = args.first_token + tile.first_row + tile.num_rows - 1;
    const std::int64_t attended = tile.set->num_attended(last);
    if (from_none) most = std::max(most, attended);
    // A rank never exceeds its token's position, and falls behind it most in the tail.
    if (from_token) most = std::max(most, last + 1 - attended + 1);
  }
  return most;
}

/// Errors: kUnsupported lists the supported head sizes and ratios; kInvalidArgument names what
/// contradicts what. Page tables and strides are the caller's word.
template <typename T>
Status validate(const ChunkAttentionArgs<T>& args) {
  if (args.head_dim <= 0 || args.head_dim > 512 || args.head_dim % 2 != 0) {
    return unsupported("head_dim is " + std::to_string(args.head_dim) +
                       ", supported are even sizes up to 512");
  }
  if (args.num_kv_heads <= 0 || args.num_heads <= 0 || args.num_heads % args.num_kv_heads != 0 ||
      args.num_heads / args.num_kv_heads > detail::kMaxQueries) {
    return unsupported(std::to_string(args.num_heads) + " query heads for " +
                       std::to_string(args.num_kv_heads) +
                       " KV heads, supported are whole ratios from 1 to 128");
  }
  const std::int64_t width = args.num_heads * args.head_dim;
  if (args.q.cols != width || args.out.cols != width || args.out.rows != args.q.rows) {
    return invalid_argument("queries are [" + std::to_string(args.q.rows) + ", " +
                            std::to_string(args.q.cols) + "] and outputs [" +
                            std::to_string(args.out.rows) + ", " + std::to_string(args.out.cols) +
                            "], expected equal rows of " + std::to_string(width));
  }
  if (args.first_token < 0 || args.first_token + args.q.rows > args.kv.num_tokens) {
    return invalid_argument("queries reach from token " + std::to_string(args.first_token) +
                            " to " + std::to_string(args.first_token + args.q.rows) +
                            ", the cache holds " + std::to_string(args.kv.num_tokens));
  }
  if (args.kv.page_table != nullptr && args.kv.page_size < 1) {
    return invalid_argument("page_size is " + std::to_string(args.kv.page_size));
  }
  if (args.kv.num_tokens > (std::int64_t{1} << 24)) {
    return unsupported("more than 2^24 tokens");  // masks compare ranks in f32
  }
  std::int64_t row = 0;
  for (const AttentionTile& tile : args.tiles) {
    if (tile.set == nullptr || tile.first_row != row || tile.num_rows <= 0 ||
        tile.set->tail_begin > args.first_token + row) {
      return invalid_argument("tile at row " + std::to_string(row) +
                              " leaves a gap or its set's tail begins after its first token");
    }
    std::int64_t end = 0;
    for (const TokenSpan& span : tile.set->spans) {
      if (span.begin < end || span.end < span.begin || span.end > tile.set->tail_begin) {
        return invalid_argument("span [" + std::to_string(span.begin) + ", " +
                                std::to_string(span.end) + ") of the tile at row " +
                                std::to_string(row) + " is out of order or reaches into the tail");
      }
      end = span.end;
    }
    if (tile.set->tail_begin < 0) {
      return invalid_argument("a tail begins at token " + std::to_string(tile.set->tail_begin));
    }
    row += tile.num_rows;
  }
  if (row != args.q.rows) {
    return invalid_argument("tiles cover " + std::to_string(row) + " of " +
                            std::to_string(args.q.rows) + " rows");
  }
  const std::int64_t turns = rope_positions_needed(args);
  if (turns > 0 && (args.rope == nullptr || args.rope->first() != 0 ||
                    2 * args.rope->half_dim() != args.head_dim || args.rope->count() < turns)) {
    return invalid_argument("keys or queries must be rotated, but no RoPE table of head_dim " +
                            std::to_string(args.head_dim) + " with positions 0 to " +
                            std::to_string(turns - 1) + " was given");
  }
  return {};
}

/// softmax(q k^T * scale) v over each row's attended set, causal inside the tail.
///
/// Serves decode (one row) and prefill (a tile for each stretch between refreshes) alike; dense
/// attention is the set {spans = {}, tail_begin = 0}. A row's result depends on its own query,
/// its set and the cache alone: the rows beside it, the tiling, the number of threads and the
/// split of the work do not change a bit.
///
/// \param workspace  `chunk_attention_workspace_floats`, 64-byte alignment helps; no allocation
/// Numerics: f32 throughout, online softmax; NaN in a query, key or value reaches the output.
///        Hidden keys weigh an exact 0, so a value that is not finite also spoils earlier rows of
///        its tile: bit-equality holds for finite caches.
/// Cost:  4 * num_heads * head_dim flops for each attended (row, key); keys and values of a tile
///        are expanded once per KV head and 128 query vectors
/// Errors: those of `validate(args)`; kInvalidArgument if the workspace is too small
/// Source: online softmax, M. Milakov and N. Gimelshein, 2018; split keys as in FlashDecoding, 2023
template <typename T>
Status chunk_attention(const ChunkAttentionArgs<T>& args, std::span<float> workspace,
                       ThreadPool& pool) {
  CHUNKLLM_RETURN_IF_ERROR(validate(args));
  if (args.q.rows == 0) return {};
  const std::int64_t scratch_floats = detail::attention_scratch_floats(args.head_dim);
  const std::int64_t rows_per_item = detail::kMaxQueries / (args.num_heads / args.num_kv_heads);
  const auto scratch_of = [&](int thread, std::int64_t lanes) {
    return detail::AttentionScratch(workspace.data() + thread * scratch_floats, lanes,
                                    args.head_dim);
  };
  std::int64_t needed = scratch_floats * pool.num_threads();

  if (args.q.rows == 1) {  // decode: too few items for the threads, so the splits are the items
    const AttendedSet& set = *args.tiles[0].set;
    const auto item = [&](std::int64_t head) {
      return detail::AttentionItem<T>(args, set, /*first_row=*/0, /*num_rows=*/1, head);
    };
    const std::int64_t lanes = item(0).lanes();
    const std::int64_t splits = item(0).num_splits();
    const std::int64_t partial_floats = detail::AttentionPartial::num_floats(lanes, args.head_dim);
    float* partials = workspace.data() + needed;
    needed += args.num_kv_heads * splits * partial_floats;
    if (static_cast<std::int64_t>(workspace.size()) < needed) {
      return invalid_argument("chunk_attention: workspace of " + std::to_string(workspace.size()) +
                              " floats, needed " + std::to_string(needed));
    }
    pool.parallel_for(args.num_kv_heads * splits, [&](std::int64_t i, int thread) {
      const detail::AttentionItem<T> work = item(i / splits);
      const detail::AttentionScratch scratch = scratch_of(thread, lanes);
      work.pack_queries(scratch.queries);
      work.reduce_split(i % splits, scratch.queries, scratch.keys, scratch.values, scratch.scores,
                        detail::AttentionPartial(partials + i * partial_floats, lanes));
    });
    for (std::int64_t head = 0; head < args.num_kv_heads; ++head) {
      const detail::AttentionScratch scratch = scratch_of(/*thread=*/0, lanes);
      scratch.total.clear(lanes, args.head_dim);
      for (std::int64_t split = 0; split < splits; ++split) {
        float* partial = partials + (head * splits + split) * partial_floats;
        detail::merge_partial(scratch.total, detail::AttentionPartial(partial, lanes), lanes,
                              args.head_dim);
      }
      item(head).write_outputs(scratch.total);
    }
    return {};
  }

  if (static_cast<std::int64_t>(workspace.size()) < needed) {
    return invalid_argument("chunk_attention: workspace of " + std::to_string(workspace.size()) +
                            " floats, needed " + std::to_string(needed));
  }
  std::int64_t num_items = 0;
  for (const AttentionTile& tile : args.tiles) {
    num_items += (tile.num_rows + rows_per_item - 1) / rows_per_item;
  }
  pool.parallel_for(num_items * args.num_kv_heads, [&](std::int64_t i, int thread) {
    // Last items first: with a dense set they see the most keys.
    std::int64_t index = num_items - 1 - i / args.num_kv_heads;
    const AttentionTile* tile = args.tiles.data();
    std::int64_t items = (tile->num_rows + rows_per_item - 1) / rows_per_item;
    while (index >= items) {
      index -= items;
      ++tile;
      items = (tile->num_rows + rows_per_item - 1) / rows_per_item;
    }
    const std::int64_t first = index * rows_per_item;
    const detail::AttentionItem<T> work(args, *tile->set, tile->first_row + first,
                                        std::min(rows_per_item, tile->num_rows - first),
                                        i % args.num_kv_heads);
    const detail::AttentionScratch scratch = scratch_of(thread, work.lanes());
    work.pack_queries(scratch.queries);
    scratch.total.clear(work.lanes(), args.head_dim);
    for (std::int64_t split = 0; split < work.num_splits(); ++split) {
      work.reduce_split(split, scratch.queries, scratch.keys, scratch.values, scratch.scores,
                        scratch.partial);
      detail::merge_partial(scratch.total, scratch.partial, work.lanes(), args.head_dim);
    }
    work.write_outputs(scratch.total);
  });
  return {};
}

}  // namespace chunkllm
