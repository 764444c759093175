// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

/// A decoder that knows nothing of chunkllm: its own random weights, rotation, cache and attention.
namespace mini {

constexpr int kLayers = 3;
constexpr int kWidth = 48;
constexpr int kHeads = 6;
constexpr int kKvHeads = 2;
constexpr int kHeadDim = 8;
constexpr int kKvWidth = kKvHeads * kHeadDim;
constexpr int kVocab = 64;
constexpr int kPageTokens = 16;

using Rows = std::vector<float>;  // [rows][some width]

/// [out][in] weights from a small generator.
inline Rows random_matrix(int out, int in, std::uint32_t seed) {
  Rows weights(static_cast<std::size_t>(out * in));
  std::uint32_t state = seed * 747796405U + 2891336453U;
  for (float& weight : weights) {
    state = state * 1664525U + 1013904223U;
    weight = (static_cast<float>(state >> 8) / 16777216.0F - 0.5F) * 3.0F /
             std::sqrt(static_cast<float>(in));
  }
  return weights;
}

inline void multiply(const Rows& weights, const float* x, int in, float* y, int out) {
  for (int o = 0; o < out; ++o) {
    float sum = 0.0F;
    for (int i = 0; i < in; ++i) sum += weights[static_cast<std::size_t>(o * in + i)] * x[i];
    y[o] = sum;
  }
}

/// Keys (rotated) and values of one layer in pages, [page][head][token in page][dim]. Pages are
/// taken from the front and from the back in turns, as a real allocator would scatter them.
class PagedCache {
 public:
  explicit PagedCache(int max_tokens)
      : num_pages_((max_tokens + kPageTokens - 1) / kPageTokens),
        keys_(static_cast<std::size_t>(num_pages_ * kPageTokens * kKvWidth)),
        values_(keys_.size()) {
    for (int i = 0; i < num_pages_; ++i) {
      page_table_.push_back(i % 2 == 0 ? i / 2 : num_pages_ - 1 - i / 2);
    }
  }

  [[nodiscard]] std::size_t offset(std::int64_t token, int head) const {
    const std::int64_t page = page_table_[static_cast<std::size_t>(token / kPageTokens)];
    return static_cast<std::size_t>(((page * kKvHeads + head) * kPageTokens + token % kPageTokens) *
                                    kHeadDim);
  }
  void store(std::int64_t token, const float* key, const float* value) {
    for (int head = 0; head < kKvHeads; ++head) {
      const auto at = static_cast<std::ptrdiff_t>(offset(token, head));
      std::copy_n(key + head * kHeadDim, kHeadDim, keys_.begin() + at);
      std::copy_n(value + head * kHeadDim, kHeadDim, values_.begin() + at);
    }
  }
  [[nodiscard]] const float* keys() const { return keys_.data(); }
  [[nodiscard]] const float* values() const { return values_.data(); }
  [[nodiscard]] const std::vector<std::int32_t>& page_table() const { return page_table_; }

 private:
  int num_pages_;
  Rows keys_;
  Rows values_;
  std::vector<std::int32_t> page_table_;
};

/// Half-open stretches of token positions.
using Segments = std::vector<std::pair<std::int64_t, std::int64_t>>;

/// The engine's own attention of one query row over the given tokens, two passes over the keys.
inline void attend(const PagedCache& cache, const Segments& segments, const float* q, float* out) {
  const float scale = 1.0F / std::sqrt(static_cast<float>(kHeadDim));
  Rows weights;
  for (int head = 0; head < kHeads; ++head) {
    const int kv_head = head / (kHeads / kKvHeads);
    weights.clear();
    float largest = -1e30F;
    for (const auto& [begin, end] : segments) {
      for (std::int64_t token = begin; token < end; ++token) {
        const float* key = cache.keys() + cache.offset(token, kv_head);
        float score = 0.0F;
        for (int d = 0; d < kHeadDim; ++d) score += q[head * kHeadDim + d] * key[d];
        weights.push_back(score * scale);
        largest = std::max(largest, weights.back());
      }
    }
    float sum = 0.0F;
    for (float& weight : weights) sum += weight = std::exp(weight - largest);
    float* result = out + head * kHeadDim;
    std::fill_n(result, kHeadDim, 0.0F);
    std::size_t i = 0;
    for (const auto& [begin, end] : segments) {
      for (std::int64_t token = begin; token < end; ++token, ++i) {
        const float* value = cache.values() + cache.offset(token, kv_head);
        for (int d = 0; d < kHeadDim; ++d) result[d] += weights[i] / sum * value[d];
      }
    }
  }
}

/// Weights of the whole model and the steps of a layer.
class Model {
 public:
  Model()
      : embedding_(random_matrix(kVocab, kWidth, 1)), output_(random_matrix(kVocab, kWidth, 2)) {
    for (std::uint32_t l = 0; l < kLayers; ++l) {
      layers_.push_back(
          {random_matrix(kWidth, kWidth, 10 + l), random_matrix(kKvWidth, kWidth, 20 + l),
           random_matrix(kKvWidth, kWidth, 30 + l), random_matrix(kWidth, kWidth, 40 + l),
           random_matrix(2 * kWidth, kWidth, 50 + l), random_matrix(kWidth, 2 * kWidth, 60 + l)});
    }
  }

  void embed(int token, float* hidden) const {
    std::copy_n(embedding_.begin() + token * kWidth, kWidth, hidden);
  }

  /// The normed input of a layer and its rotated query and key, and its value.
  void project(int layer, std::int64_t position, const float* hidden, float* normed, float* q,
               float* k, float* v) const {
    const Layer& weights = layers_[static_cast<std::size_t>(layer)];
    float size = 1e-6F;
    for (int i = 0; i < kWidth; ++i) size += hidden[i] * hidden[i] / kWidth;
    for (int i = 0; i < kWidth; ++i) normed[i] = hidden[i] / std::sqrt(size);
    multiply(weights.query, normed, kWidth, q, kWidth);
    multiply(weights.key, normed, kWidth, k, kKvWidth);
    multiply(weights.value, normed, kWidth, v, kKvWidth);
    for (int head = 0; head < kHeads; ++head) rotate(q + head * kHeadDim, position);
    for (int head = 0; head < kKvHeads; ++head) rotate(k + head * kHeadDim, position);
  }

  /// What follows attention: output projection, residual, a small MLP, residual.
  void finish(int layer, const float* attended, float* hidden) const {
    const Layer& weights = layers_[static_cast<std::size_t>(layer)];
    float projected[kWidth];
    float inner[2 * kWidth];
    multiply(weights.output, attended, kWidth, projected, kWidth);
    for (int i = 0; i < kWidth; ++i) hidden[i] += projected[i];
    multiply(weights.up, hidden, kWidth, inner, 2 * kWidth);
    for (float& x : inner) x = std::max(x, 0.0F);
    multiply(weights.down, inner, 2 * kWidth, projected, kWidth);
    for (int i = 0; i < kWidth; ++i) hidden[i] += 0.3F * projected[i];
  }

  [[nodiscard]] Rows logits(const float* hidden) const {
    Rows result(kVocab);
    multiply(output_, hidden, kWidth, result.data(), kVocab);
    return result;
  }

 private:
  struct Layer {
    Rows query;
    Rows key;
    Rows value;
    Rows output;
    Rows up;
    Rows down;
  };

  /// Neighbouring dimensions are a pair: the engine's own convention, which no one else sees.
  static void rotate(float* head, std::int64_t position) {
    for (int i = 0; i < kHeadDim; i += 2) {
      const double angle = static_cast<double>(position) / std::pow(1000.0, i / double{kHeadDim});
      const auto cosine = static_cast<float>(std::cos(angle));
      const auto sine = static_cast<float>(std::sin(angle));
      const float a = head[i];
      const float b = head[i + 1];
      head[i] = a * cosine - b * sine;
      head[i + 1] = b * cosine + a * sine;
    }
  }

  Rows embedding_;
  Rows output_;
  std::vector<Layer> layers_;
};

/// Text of token ids: 0 ends a sentence, 1 to 7 begin one, the last begins a text, the others stand
/// within.
inline std::string text_of(int token) {
  if (token == 0) return ".";
  if (token == kVocab - 1) return "Once";
  const auto letter = static_cast<char>((token < 8 ? 'A' : 'a') + token % 26);
  return std::string(" ") + letter + "bc";
}

/// A text of sentences of 4 to 14 words.
inline std::vector<int> sample_text(int num_tokens) {
  std::vector<int> tokens = {kVocab - 1};
  std::uint32_t state = 3;
  const auto draw = [&](std::uint32_t below) {
    state = state * 1664525U + 1013904223U;
    return static_cast<int>((state >> 8) % below);
  };
  while (static_cast<int>(tokens.size()) < num_tokens) {
    tokens.push_back(1 + draw(7));
    for (int words = 3 + draw(11); words > 0; --words) tokens.push_back(8 + draw(kVocab - 9));
    tokens.push_back(0);
  }
  tokens.resize(static_cast<std::size_t>(num_tokens));
  return tokens;
}

}  // namespace mini
