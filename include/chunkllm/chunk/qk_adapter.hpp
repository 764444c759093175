// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/simd.hpp"

namespace chunkllm {

/// Which of a chunk's tokens its key is made of.
enum class KeyPooling : std::uint8_t {
  kMean,     ///< the mean of the chunk's inputs, projected when the chunk closes
  kEndToken  ///< the last token's input (the paper)
};

/// One layer's QK Adapter: linear maps beside W_Q and W_K on the same normed input x.
struct QkAdapterLayer {
  std::vector<float> query_weight;   ///< [num_heads * key_dim, hidden_size]
  std::vector<float> key_weight;     ///< [num_key_heads * key_dim, hidden_size]
  std::vector<float> distance_bias;  ///< [num_heads, kNumDistanceBins] or empty
  std::vector<float> null_weight;    ///< [num_heads, hidden_size] or empty
  std::vector<float> null_bias;      ///< [num_heads], empty with null_weight
};

/// The QK Adapters of all layers: scores past chunks in a space of `key_dim` features a head.
///
///   q'_h = Wq_h x_t,  k'_(h,c) = Wk_h pool(x_i : i in c),  null_h = n_h . x_t + n0_h
///
/// Source: ChunkLLM, arXiv 2510.02361 (adapters beside Q and K); mean pooling, the length and
/// distance terms and the null class are ours.
class QkAdapter : public ChunkScorerBase {
 public:
  QkAdapter() = default;
  /// \param layers       of the sizes above, all with the same optional parts; `load_adapter_file`
  ///                     checks that, this does not
  /// \param num_key_heads  divides num_heads
  QkAdapter(std::vector<QkAdapterLayer> layers, std::int64_t hidden_size, std::int64_t num_heads,
            std::int64_t num_key_heads, std::int64_t key_dim, KeyPooling pooling,
            bool adds_log_length)
      : layers_(std::move(layers)), hidden_size_(hidden_size), pooling_(pooling) {
    shape_.num_heads = num_heads;
    shape_.num_key_heads = num_key_heads;
    shape_.key_dim = key_dim;
    shape_.state_size = hidden_size;
    shape_.uses_input = true;
    shape_.adds_log_length = adds_log_length;
    shape_.has_null_logits = !layers_.empty() && !layers_.front().null_weight.empty();
    shape_.scale = 1.0F / std::sqrt(static_cast<float>(key_dim));
  }

  [[nodiscard]] ScorerShape shape() const { return shape_; }
  [[nodiscard]] KeyPooling pooling() const { return pooling_; }
  [[nodiscard]] const std::vector<QkAdapterLayer>& layers() const { return layers_; }

  void add_token(std::int64_t, const TokenRow& row, bool is_first, float* state) const {
    const bool replace = is_first || pooling_ == KeyPooling::kEndToken;
    for (std::int64_t i = 0; i < hidden_size_; ++i) {
      state[i] = replace ? row.input[i] : state[i] + row.input[i];
    }
  }

  void make_key(std::int64_t layer, const float* state, std::int64_t length, float* key) const {
    const QkAdapterLayer& weights = layers_[static_cast<std::size_t>(layer)];
    // The map is linear, so dividing its output is dividing the pooled input.
    const float divisor = pooling_ == KeyPooling::kMean ? 1.0F / static_cast<float>(length) : 1.0F;
    project(weights.key_weight, state, shape_.key_size(), key);
    for (std::int64_t i = 0; i < shape_.key_size(); ++i) key[i] *= divisor;
  }

  void make_query(std::int64_t layer, const TokenRow& row, float* query) const {
    const QkAdapterLayer& weights = layers_[static_cast<std::size_t>(layer)];
    const std::int64_t size = shape_.num_heads * shape_.key_dim;
    project(weights.query_weight, row.input, size, query);
    if (!shape_.has_null_logits) return;
    project(weights.null_weight, row.input, shape_.num_heads, query + size);
    for (std::int64_t h = 0; h < shape_.num_heads; ++h) {
      query[size + h] += weights.null_bias[static_cast<std::size_t>(h)];
    }
  }

  [[nodiscard]] const float* distance_bias(std::int64_t layer) const {
    const QkAdapterLayer& weights = layers_[static_cast<std::size_t>(layer)];
    return weights.distance_bias.empty() ? nullptr : weights.distance_bias.data();
  }

 private:
  void project(const std::vector<float>& weight, const float* input, std::int64_t rows,
               float* out) const {
    for (std::int64_t r = 0; r < rows; ++r) {
      out[r] = simd::dot(weight.data() + r * hidden_size_, input, hidden_size_);
    }
  }

  std::vector<QkAdapterLayer> layers_;
  std::int64_t hidden_size_ = 0;
  KeyPooling pooling_ = KeyPooling::kMean;
  ScorerShape shape_;
};

}  // namespace chunkllm
