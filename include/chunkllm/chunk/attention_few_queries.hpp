// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "chunkllm/chunk/attention_keys.hpp"
#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/simd_transpose.hpp"
#include "chunkllm/model/micro_kernel.hpp"

namespace chunkllm::detail {

/// At most this many query vectors are better off with keys, then head dimensions in the lanes.
inline constexpr std::int64_t kFewQueries = 8;

// With one load of a query or weight for every four of keys or values, loads are no bottleneck.
#if defined(CHUNKLLM_SIMD_AVX512)
inline constexpr int kFewVectors = 4;
#else
inline constexpr int kFewVectors = 2;
#endif

/// Work of one KV head for few query vectors, above all a decoded token's heads of one group.
///
/// The same sums in the same order as `ManyQueriesItem`, bit for bit. But there most lanes would
/// stand empty; here keys stand in the lanes of the scores and head dimensions in those of the
/// output, at the price of transposing the keys.
template <typename T>
class FewQueriesItem : AttentionKeys<T> {
  using Keys = AttentionKeys<T>;

 public:
  using Keys::num_splits;

  /// Memory of a worker; less than `ManyQueriesItem` takes.
  struct Scratch {
    float* queries;     // [queries, head_dim]
    float* total;       // a partial result
    float* partial;     // a partial result
    float* keys;        // [64, padded head_dim]
    float* values;      // [64, padded head_dim]
    float* transposed;  // keys [padded head_dim, 64]
    float* scores;      // [queries, 64]

    static std::int64_t num_floats(std::int64_t head_dim) {
      const std::int64_t width = padded_head_dim(head_dim);
      return 3 * kKeyTile * width + kFewQueries * (width + 2 * (2 + width) + kKeyTile);
    }
    Scratch(float* memory, std::int64_t head_dim)
        : queries(memory),
          total(queries + kFewQueries * padded_head_dim(head_dim)),
          partial(total + kFewQueries * (2 + padded_head_dim(head_dim))),
          keys(partial + kFewQueries * (2 + padded_head_dim(head_dim))),
          values(keys + kKeyTile * padded_head_dim(head_dim)),
          transposed(values + kKeyTile * padded_head_dim(head_dim)),
          scores(transposed + kKeyTile * padded_head_dim(head_dim)) {}
  };

  FewQueriesItem(const ChunkAttentionArgs<T>& args, const AttendedSet& set, std::int64_t first_row,
                 std::int64_t num_rows, std::int64_t kv_head)
      : Keys(args, set, first_row, num_rows, kv_head) {}

  /// A partial result: for each query the largest score (-inf while no key was seen), the sum of
  /// exp(score - maximum), each with room for 8 queries, then those sums weighted by values
  /// [padded head_dim].
  [[nodiscard]] std::int64_t partial_floats() const { return output_offset(num_queries_); }

  void clear(float* partial) const {
    std::fill_n(partial, partial_floats(), 0.0F);
    for (std::int64_t i = 0; i < num_queries_; ++i) {
      partial[i] = -std::numeric_limits<float>::infinity();
    }
  }

  /// total += partial
  void merge(float* total, const float* partial) const {
    for (std::int64_t i = 0; i < num_queries_; ++i) {
      const simd::F32x16 ours = simd::broadcast(total[i]);
      const simd::F32x16 theirs = simd::broadcast(partial[i]);
      const simd::F32x16 both = simd::max(ours, theirs);
      const Rescale keep_ours(ours, both);
      const Rescale keep_theirs(theirs, both);
      const auto blend = [&](simd::F32x16 a, simd::F32x16 b) {
        return simd::multiply_add(b, keep_theirs.kept, a * keep_ours.kept);
      };
      total[i] = simd::first_lane(both);
      float& sum = total[kFewQueries + i];
      sum =
          simd::first_lane(blend(simd::broadcast(sum), simd::broadcast(partial[kFewQueries + i])));
      for (std::int64_t d = 0; d < width(); d += simd::kLanes) {
        float* out = total + output_offset(i) + d;
        simd::store(out, blend(simd::load(out), simd::load(partial + output_offset(i) + d)));
      }
    }
  }

  /// Queries [query][head_dim], scaled and rotated.
  void pack_queries(float* queries) const {
    for (std::int64_t i = 0; i < num_queries_; ++i) {
      this->read_query(i, queries + i * args_.head_dim);
    }
  }

  /// Reduces the keys of ranks [split * 512, ...) into `partial`.
  void reduce_split(std::int64_t split, const Scratch& scratch, float* partial) const {
    clear(partial);
    const bool whole_vectors = width() == args_.head_dim;
    if (!whole_vectors) {  // lanes past the head's end are carried along: nothing odd in there
      std::fill_n(scratch.keys, kKeyTile * width(), 0.0F);
      std::fill_n(scratch.values, kKeyTile * width(), 0.0F);
    }
    const std::int64_t end = std::min(num_ranks_, (split + 1) * kKeySplit);
    for (std::int64_t rank = split * kKeySplit; rank < end; rank += kKeyTile) {
      const std::int64_t count = std::min(kKeyTile, end - rank);
      std::int64_t tokens[kKeyTile];
      if (!this->list_tokens(rank, count, tokens)) continue;
      // Keys and values are read where they are stored, unless they must be turned or end inside a
      // vector.
      if (whole_vectors && this->keys_stand_right()) {
        transpose_keys(count, rows_of(args_.kv.keys, count, tokens), scratch);
      } else {
        this->expand_keys(rank, count, tokens, scratch.keys);
        transpose_keys(count, rows_of(scratch.keys, count), scratch);
      }
      score(rank, count, scratch, partial);
      if (whole_vectors) {
        add_values(count, rows_of(args_.kv.values, count, tokens), scratch, partial);
      } else {
        this->expand_values(count, tokens, scratch.values);
        add_values(count, rows_of(scratch.values, count), scratch, partial);
      }
    }
  }

  /// Divides by the sums and writes the rows of `out` (and `lse`).
  void write_outputs(const float* total) const {
    for (std::int64_t i = 0; i < num_queries_; ++i) {
      float* out = this->output_of(i);
      const float sum = total[kFewQueries + i];
      const float inverse = 1.0F / sum;
      for (std::int64_t d = 0; d < args_.head_dim; ++d)
        out[d] = total[output_offset(i) + d] * inverse;
      this->write_lse(i, total[i], sum);
    }
  }

 private:
  using Keys::args_;
  using Keys::num_queries_;
  using Keys::num_ranks_;
  using Keys::width;

  [[nodiscard]] std::int64_t output_offset(std::int64_t query) const {
    return 2 * kFewQueries + query * width();
  }

  template <typename U>
  using Rows = std::array<const U*, kKeyTile>;

  Rows<T> rows_of(const T* stored, std::int64_t count, const std::int64_t* tokens) const {
    Rows<T> rows;
    for (std::int64_t k = 0; k < count; ++k) {
      rows[static_cast<std::size_t>(k)] = stored + args_.kv.offset(tokens[k], this->kv_head_);
    }
    return rows;
  }
  Rows<float> rows_of(const float* expanded, std::int64_t count) const {
    Rows<float> rows;
    for (std::int64_t k = 0; k < count; ++k) {
      rows[static_cast<std::size_t>(k)] = expanded + k * width();
    }
    return rows;
  }

  /// Keys past the last repeat it, up to a whole vector; `weigh` hides them.
  template <typename U>
  void transpose_keys(std::int64_t count, Rows<U> keys, const Scratch& scratch) const {
    const std::int64_t padded = round_up(count, simd::kLanes);
    std::fill(keys.begin() + count, keys.begin() + padded,
              keys[static_cast<std::size_t>(count - 1)]);
    for (std::int64_t k = 0; k < padded; k += simd::kLanes) {
      for (std::int64_t d = 0; d < width(); d += simd::kLanes) {
        simd::transpose_16x16(keys.data() + k, d, scratch.transposed + d * kKeyTile + k, kKeyTile);
      }
    }
  }

  /// Leaves the weights of the tile's keys in `scratch.scores`.
  void score(std::int64_t rank, std::int64_t count, const Scratch& scratch, float* partial) const {
    const std::int64_t padded = round_up(count, simd::kLanes);
    for_columns(padded, [&]<int Vectors>(std::int64_t k) {
      multiply_panel<Vectors>(scratch.queries, args_.head_dim, /*a_col=*/1, scratch.transposed + k,
                              kKeyTile, scratch.scores + k, kKeyTile, num_queries_, args_.head_dim,
                              /*accumulate=*/false);
    });
    for (std::int64_t i = 0; i < num_queries_; ++i) {
      weigh(i, rank, count, padded, scratch.scores + i * kKeyTile, partial);
    }
  }

  template <typename U>
  void add_values(std::int64_t count, const Rows<U>& values, const Scratch& scratch,
                  float* partial) const {
    for_columns(width(), [&]<int Vectors>(std::int64_t d) {
      multiply_panel_rows<Vectors>(
          scratch.scores, kKeyTile, /*a_col=*/1,
          [&](std::int64_t k) { return values[static_cast<std::size_t>(k)] + d; },
          partial + output_offset(0) + d, width(), num_queries_, count, /*accumulate=*/true);
    });
  }

  /// Turns a query's scores into weights, and brings its partial result to the new maximum.
  void weigh(std::int64_t query, std::int64_t rank, std::int64_t count, std::int64_t padded,
             float* scores, float* partial) const {
    constexpr float kHidden = -std::numeric_limits<float>::infinity();
    const std::int64_t own = this->rank_of_query(query) - rank;
    const std::int64_t end = std::clamp<std::int64_t>(own + 1, 0, count);
    std::fill(scores + end, scores + padded, kHidden);
    if (args_.window > 0) {
      std::fill_n(scores, std::clamp<std::int64_t>(own - args_.window + 1, 0, count), kHidden);
    }
    simd::F32x16 largest = simd::load(scores);
    for (std::int64_t k = simd::kLanes; k < padded; k += simd::kLanes) {
      largest = simd::max(largest, simd::load(scores + k));
    }
    const simd::F32x16 before = simd::broadcast(partial[query]);
    const simd::F32x16 maximum = simd::max(before, simd::broadcast(simd::horizontal_max(largest)));
    const Rescale rescale(before, maximum);
    for (std::int64_t k = 0; k < padded; k += simd::kLanes) {
      simd::store(scores + k, simd::exp(simd::load(scores + k) - rescale.maximum));
    }
    float& sum = partial[kFewQueries + query];
    sum = simd::first_lane(simd::broadcast(sum) * rescale.kept);
    for (std::int64_t k = 0; k < count; ++k) sum += scores[k];
    partial[query] = simd::first_lane(maximum);
    for (std::int64_t d = 0; d < width(); d += simd::kLanes) {
      float* out = partial + output_offset(query) + d;
      simd::store(out, simd::load(out) * rescale.kept);
    }
  }

  /// Calls `action` for all columns, a multiple of 16, with as many vectors at a time as there are
  /// registers for the sums of some rows.
  template <int Vectors = kFewVectors, typename Action>
  static void for_columns(std::int64_t count, const Action& action, std::int64_t first = 0) {
    for (; first + Vectors * simd::kLanes <= count; first += Vectors * simd::kLanes) {
      action.template operator()<Vectors>(first);
    }
    if constexpr (Vectors > 1) {
      if (first < count) for_columns<Vectors / 2>(count, action, first);
    }
  }
};

}  // namespace chunkllm::detail
