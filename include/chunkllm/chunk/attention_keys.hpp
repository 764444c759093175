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
#include "chunkllm/model/rope.hpp"
#include "chunkllm/model/validate_config.hpp"

namespace chunkllm::detail {

inline constexpr std::int64_t kKeyTile = 64;    // keys scored at a time
inline constexpr std::int64_t kKeySplit = 512;  // keys reduced into one partial result

constexpr std::int64_t round_up(std::int64_t value, std::int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// Head dimensions of an expanded key or value: whole vectors.
constexpr std::int64_t padded_head_dim(std::int64_t head_dim) {
  return round_up(head_dim, simd::kLanes);
}

/// The keys and values that some rows of a tile attend in one KV head, by rank in their set.
///
/// Base of the two kernels, which differ in what stands in the lanes, not in any result: every
/// query's arithmetic is a fixed sequence over the ranks of its attended set, in tiles of 64 keys,
/// splits of 512, merged in order.
template <typename T>
class AttentionKeys {
 public:
  AttentionKeys(const ChunkAttentionArgs<T>& args, const AttendedSet& set, std::int64_t first_row,
                std::int64_t num_rows, std::int64_t kv_head)
      : args_(args),
        set_(set),
        first_row_(first_row),
        num_rows_(num_rows),
        kv_head_(kv_head),
        group_(args.num_heads / args.num_kv_heads),
        num_queries_(num_rows * group_),
        span_tokens_(set.num_span_tokens()),
        num_ranks_(rank_of_row(num_rows - 1) + 1) {}

  [[nodiscard]] std::int64_t num_splits() const { return (num_ranks_ + kKeySplit - 1) / kKeySplit; }

 protected:
  [[nodiscard]] std::int64_t width() const { return padded_head_dim(args_.head_dim); }

  /// Query vector `i` (row by row, head by head of the group), rotated and scaled.
  void read_query(std::int64_t i, float* query) const {
    const std::int64_t row = first_row_ + i / group_;
    std::copy_n(args_.q.row(row) + head_of(i) * args_.head_dim, args_.head_dim, query);
    turn(query, args_.first_token + row, rank_of_query(i), args_.q_rotation);
    for (std::int64_t d = 0; d < args_.head_dim; ++d) query[d] *= args_.scale;
  }
  [[nodiscard]] float* output_of(std::int64_t query) const {
    return args_.out.row(first_row_ + query / group_) + head_of(query) * args_.head_dim;
  }
  void write_lse(std::int64_t query, float maximum, float sum) const {
    if (args_.maybe_lse == nullptr) return;
    const std::int64_t row = first_row_ + query / group_;
    args_.maybe_lse[row * args_.num_heads + head_of(query)] = maximum + std::log(sum);
  }
  [[nodiscard]] std::int64_t head_of(std::int64_t query) const {
    return kv_head_ * group_ + query % group_;
  }
  /// Rank of the newest key that a query sees.
  [[nodiscard]] std::int64_t rank_of_query(std::int64_t query) const {
    return rank_of_row(query / group_);
  }

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

  /// Writes the positions of the `count` attended tokens from `rank` on; false if the window hides
  /// all of them from all rows.
  bool list_tokens(std::int64_t rank, std::int64_t count, std::int64_t* tokens) const {
    const std::int64_t first_visible =
        args_.window > 0 ? rank_of_row(0) - args_.window + 1 : 0;  // of the item's first row
    if (rank + count <= first_visible) return false;
    std::int64_t seen = 0;
    std::int64_t filled = 0;
    const auto take = [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t size = end - begin;
      const std::int64_t skip = std::clamp<std::int64_t>(rank + filled - seen, 0, size);
      const std::int64_t stop = std::min(end, begin + skip + count - filled);
      for (std::int64_t token = begin + skip; token < stop; ++token) tokens[filled++] = token;
      seen += size;
    };
    for (const TokenSpan& span : set_.spans) {
      if (filled == count) break;
      take(span.begin, span.end);
    }
    take(set_.tail_begin, args_.first_token + first_row_ + num_rows_);
    return true;
  }

  /// Expands the keys of `tokens`, whose ranks begin at `rank`, to f32 where the rows want them.
  void expand_keys(std::int64_t rank, std::int64_t count, const std::int64_t* tokens,
                   float* keys) const {
    for (std::int64_t k = 0; k < count; ++k) {
      float* key = keys + k * width();
      expand_row(args_.kv.keys + args_.kv.offset(tokens[k], kv_head_), key);
      turn(key, tokens[k], rank + k, args_.kv.rotation);
    }
  }
  void expand_values(std::int64_t count, const std::int64_t* tokens, float* values) const {
    for (std::int64_t k = 0; k < count; ++k) {
      expand_row(args_.kv.values + args_.kv.offset(tokens[k], kv_head_), values + k * width());
    }
  }

  /// Do all keys stand where the rows want them?
  [[nodiscard]] bool keys_stand_right() const {
    return args_.kv.rotation == Rotation::kAtTokenPosition &&
           args_.positions == Positions::kOriginal;
  }

  void expand_row(const T* source, float* target) const {
    std::int64_t d = 0;
    for (; d + simd::kLanes <= args_.head_dim; d += simd::kLanes) {
      simd::store(target + d, simd::load(source + d));
    }
    for (; d < args_.head_dim; ++d) target[d] = to_f32(source[d]);
  }

  const ChunkAttentionArgs<T>& args_;
  const AttendedSet& set_;
  std::int64_t first_row_;
  std::int64_t num_rows_;
  std::int64_t kv_head_;
  std::int64_t group_;
  std::int64_t num_queries_;
  std::int64_t span_tokens_;
  std::int64_t num_ranks_;
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

}  // namespace chunkllm::detail
