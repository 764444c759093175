// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <span>
#include <string>

#include "chunkllm/core/status.hpp"

namespace chunkllm {

/// One token in one layer, as scorers see it. Pointers a scorer does not ask for may be null.
struct TokenRow {
  const float* input = nullptr;  ///< [hidden_size] normed input of the layer's W_Q, W_K, W_V
  const float* query = nullptr;  ///< [num_heads * head_dim]
  const float* key = nullptr;    ///< [num_kv_heads * head_dim]
};

/// What a scorer keeps and needs. A scorer with `num_heads == 0` has no keys: it gives scores
/// directly.
struct ScorerShape {
  std::int64_t num_heads = 0;      ///< scoring heads
  std::int64_t num_key_heads = 0;  ///< divides num_heads
  std::int64_t key_dim = 0;        ///< of one key head and of one query head
  std::int64_t state_size = 0;     ///< floats gathered over the tokens of the open chunk
  bool uses_input = false;         ///< of `TokenRow`: the input
  bool uses_query_key = false;     ///< of `TokenRow`: query and key
  bool adds_log_length = false;
  bool has_null_logits = false;
  float scale = 1.0F;

  [[nodiscard]] std::int64_t key_size() const { return num_key_heads * key_dim; }
  /// Query heads, then one null logit a head where the scorer has them.
  [[nodiscard]] std::int64_t query_size() const {
    return num_heads * key_dim + (has_null_logits ? num_heads : 0);
  }
};

/// Errors: kInvalidArgument where a scorer with keys has no key heads, key features or state, where
/// the key heads do not divide the heads, or where one without keys names some.
inline Status validate(const ScorerShape& shape) {
  const bool has_keys = shape.num_heads > 0 && shape.num_key_heads > 0 && shape.key_dim > 0 &&
                        shape.state_size > 0 && shape.num_heads % shape.num_key_heads == 0;
  const bool has_none = shape.num_heads == 0 && shape.key_size() == 0;
  if (has_keys || has_none) return {};
  return invalid_argument("the scorer has " + std::to_string(shape.num_heads) + " heads, " +
                          std::to_string(shape.num_key_heads) + " key heads of " +
                          std::to_string(shape.key_dim) + " features and a state of " +
                          std::to_string(shape.state_size) +
                          ", expected key heads that divide the heads, or none at all");
}

/// Who ranks the chunks. Const: one scorer serves any number of sequences and threads.
///
///   add_token(layer, row, is_first, state)  gathers a token of the open chunk into `state`
///   make_key(layer, state, length, key)     the key of a chunk of `length` tokens
///   make_query(layer, row, query)           the query (and null logits) of a trigger
///   distance_bias(layer)                    [num_heads, kNumDistanceBins] or null
///   direct_scores(layer, trigger, scores)   for scorers without keys: scores of chunks 1, 2, ...
template <typename S>
concept ChunkScorer = requires(const S& scorer, std::int64_t layer, const TokenRow& row,
                               bool is_first, float* out, const float* in, std::int64_t length,
                               std::span<float> scores) {
  { scorer.shape() } -> std::same_as<ScorerShape>;
  scorer.add_token(layer, row, is_first, out);
  scorer.make_key(layer, in, length, out);
  scorer.make_query(layer, row, out);
  { scorer.distance_bias(layer) } -> std::convertible_to<const float*>;
  scorer.direct_scores(layer, length, scores);
};

/// Defaults for what a scorer does not use.
struct ChunkScorerBase {
  void add_token(std::int64_t, const TokenRow&, bool, float*) const {}
  void make_key(std::int64_t, const float*, std::int64_t, float*) const {}
  void make_query(std::int64_t, const TokenRow&, float*) const {}
  [[nodiscard]] const float* distance_bias(std::int64_t) const { return nullptr; }
  void direct_scores(std::int64_t, std::int64_t, std::span<float>) const {}
};

/// The training-free scorer: the backbone's own query against the mean of a chunk's keys.
///
/// Keys and queries as the cache holds them: rotated at their token positions where positions are
/// original, both before RoPE where they are in-cache.
class MeanKeyScorer : public ChunkScorerBase {
 public:
  /// \param scale  on q . k, as in the backbone's attention
  MeanKeyScorer(std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t head_dim,
                float scale) {
    shape_.num_heads = num_heads;
    shape_.num_key_heads = num_kv_heads;
    shape_.key_dim = head_dim;
    shape_.state_size = num_kv_heads * head_dim;
    shape_.uses_query_key = true;
    shape_.adds_log_length = true;
    shape_.scale = scale;
  }

  [[nodiscard]] ScorerShape shape() const { return shape_; }
  void add_token(std::int64_t, const TokenRow& row, bool is_first, float* state) const {
    for (std::int64_t i = 0; i < shape_.state_size; ++i) {
      state[i] = is_first ? row.key[i] : state[i] + row.key[i];
    }
  }
  void make_key(std::int64_t, const float* state, std::int64_t length, float* key) const {
    const float inverse = 1.0F / static_cast<float>(length);
    for (std::int64_t i = 0; i < shape_.state_size; ++i) key[i] = state[i] * inverse;
  }
  void make_query(std::int64_t, const TokenRow& row, float* query) const {
    std::copy_n(row.query, shape_.query_size(), query);
  }

 private:
  ScorerShape shape_;
};

/// An upper bound on q . k over a chunk: sum over channels of max(q min_k, q max_k).
///
/// Written as one product, [max(q, 0), min(q, 0)] . [max_k, min_k]. No length term: a bound on the
/// largest key says nothing of how many there are. Source: Quest, J. Tang et al., 2024.
class MinMaxKeyScorer : public ChunkScorerBase {
 public:
  MinMaxKeyScorer(std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t head_dim,
                  float scale)
      : head_dim_(head_dim) {
    shape_.num_heads = num_heads;
    shape_.num_key_heads = num_kv_heads;
    shape_.key_dim = 2 * head_dim;
    shape_.state_size = 2 * num_kv_heads * head_dim;
    shape_.uses_query_key = true;
    shape_.scale = scale;
  }

  [[nodiscard]] ScorerShape shape() const { return shape_; }
  void add_token(std::int64_t, const TokenRow& row, bool is_first, float* state) const {
    for (std::int64_t head = 0; head < shape_.num_key_heads; ++head) {
      const float* key = row.key + head * head_dim_;
      float* largest = state + head * 2 * head_dim_;
      float* smallest = largest + head_dim_;
      for (std::int64_t i = 0; i < head_dim_; ++i) {
        // NaN stays wherever in the chunk it comes, so that the chunk's score tells of it.
        const bool taken = is_first || std::isnan(key[i]);
        if (taken || key[i] > largest[i]) largest[i] = key[i];
        if (taken || key[i] < smallest[i]) smallest[i] = key[i];
      }
    }
  }
  void make_key(std::int64_t, const float* state, std::int64_t, float* key) const {
    std::copy_n(state, shape_.state_size, key);
  }
  void make_query(std::int64_t, const TokenRow& row, float* query) const {
    for (std::int64_t head = 0; head < shape_.num_heads; ++head) {
      const float* q = row.query + head * head_dim_;
      float* out = query + head * 2 * head_dim_;
      for (std::int64_t i = 0; i < head_dim_; ++i) {
        out[i] = std::max(q[i], 0.0F);
        out[head_dim_ + i] = std::min(q[i], 0.0F);
      }
    }
  }

 private:
  ScorerShape shape_;
  std::int64_t head_dim_;
};

/// The newest chunks first: with chunk 0 kept, StreamingLLM's sinks and window (G. Xiao et al.,
/// 2023) on the chunk grid.
class RecentScorer : public ChunkScorerBase {
 public:
  [[nodiscard]] ScorerShape shape() const { return {}; }
  void direct_scores(std::int64_t, std::int64_t, std::span<float> scores) const {
    std::fill(scores.begin(), scores.end(), 0.0F);  // equal scores: the later chunk first
  }
};

/// Uniform scores from a hash of seed, layer, trigger and chunk: equal in every run.
class RandomScorer : public ChunkScorerBase {
 public:
  explicit RandomScorer(std::uint64_t seed) : seed_(seed) {}

  [[nodiscard]] ScorerShape shape() const { return {}; }
  void direct_scores(std::int64_t layer, std::int64_t trigger, std::span<float> scores) const {
    std::uint64_t state = mix(seed_ + mix(static_cast<std::uint64_t>(layer)) +
                              mix(static_cast<std::uint64_t>(trigger) << 20));
    for (float& score : scores) {
      state = mix(state);
      score = static_cast<float>(state >> 40) * 0x1p-24F;
    }
  }

 private:
  /// A step of SplitMix64 (G. Steele, D. Lea, C. Flood, 2014).
  static std::uint64_t mix(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15U;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31);
  }
  std::uint64_t seed_;
};

}  // namespace chunkllm
