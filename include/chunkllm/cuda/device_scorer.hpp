// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/cuda/device_buffer.hpp"
#include "chunkllm/cuda/rounding.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/rope.hpp"

namespace chunkllm::cuda {

/// Who ranks the chunks on the device: mean keys, the QK Adapters of all layers, or recency.
///
/// \tparam T  __half or __nv_bfloat16: type of the adapters' weights and of the chunk keys
template <typename T>
class DeviceScorer {
 public:
  /// The training-free scorer; see `MeanKeyScorer`.
  static DeviceScorer mean_key(const BackboneConfig& config) {
    DeviceScorer scorer;
    scorer.shape_ =
        MeanKeyScorer(config.num_heads, config.num_kv_heads, config.head_dim, softmax_scale(config))
            .shape();
    return scorer;
  }

  /// The newest chunks first; see `RecentScorer`. A measure for the others: it keeps the keys that
  /// `mean_key` keeps, though nothing reads them, and is no faster.
  static DeviceScorer recent(const BackboneConfig& config) {
    DeviceScorer scorer = mean_key(config);
    scorer.ranks_by_recency_ = true;
    return scorer;
  }

  /// QK Adapters, their weights rounded to T.
  ///
  /// Errors: kUnsupported for a hidden size or a number of features that is no multiple of 8;
  ///         those of allocation and copy.
  static Result<DeviceScorer> adapter(const QkAdapter& adapter, cudaStream_t stream) {
    DeviceScorer scorer;
    scorer.shape_ = adapter.shape();
    scorer.pooling_ = adapter.pooling();
    scorer.num_layers_ = static_cast<std::int64_t>(adapter.layers().size());
    const ScorerShape& shape = scorer.shape_;
    if (shape.state_size % 8 != 0 || shape.key_dim % 8 != 0) {
      return unsupported("QK Adapters on the device: a hidden size of " +
                         std::to_string(shape.state_size) + ", heads of " +
                         std::to_string(shape.key_dim) + " features; supported are multiples of 8");
    }
    std::vector<float> queries;
    std::vector<float> keys;
    std::vector<float> nulls;
    std::vector<float> null_bias;
    std::vector<float> bias;
    for (const QkAdapterLayer& layer : adapter.layers()) {
      append(queries, layer.query_weight);
      append(keys, layer.key_weight);
      append(nulls, layer.null_weight);
      append(null_bias, layer.null_bias);
      append(bias, layer.distance_bias);
    }
    CHUNKLLM_RETURN_IF_ERROR(upload(rounded<T>(queries), stream, scorer.query_weight_));
    CHUNKLLM_RETURN_IF_ERROR(upload(rounded<T>(keys), stream, scorer.key_weight_));
    CHUNKLLM_RETURN_IF_ERROR(upload(rounded<T>(nulls), stream, scorer.null_weight_));
    CHUNKLLM_RETURN_IF_ERROR(upload(null_bias, stream, scorer.null_bias_));
    CHUNKLLM_RETURN_IF_ERROR(upload(bias, stream, scorer.distance_bias_));
    return Result<DeviceScorer>(std::move(scorer));
  }

  /// Errors: kInvalidArgument for a backbone of other sizes.
  [[nodiscard]] Status check(const BackboneConfig& config) const {
    const bool fits =
        is_adapter() ? shape_.state_size == config.hidden_size && num_layers_ == config.num_layers
                     : shape_.state_size == config.kv_size();
    if (fits) return {};
    return invalid_argument("the scorer takes rows of " + std::to_string(shape_.state_size) +
                            (is_adapter() ? " in " + std::to_string(num_layers_) + " layers" : "") +
                            ", which is not what the backbone gives");
  }
  [[nodiscard]] const ScorerShape& shape() const { return shape_; }
  [[nodiscard]] KeyPooling pooling() const { return pooling_; }
  [[nodiscard]] bool is_adapter() const { return shape_.uses_input; }
  /// Whether all scores are 0, so that the later chunk comes first and none need be made.
  [[nodiscard]] bool ranks_by_recency() const { return ranks_by_recency_; }
  /// Whether a trigger's null class asks for the key of its open chunk.
  [[nodiscard]] bool uses_open_key() const { return !shape_.has_null_logits; }
  /// Features of the rows that are gathered over a chunk: the normed input, or the key.
  [[nodiscard]] std::int64_t row_size() const { return shape_.state_size; }
  /// Features of a query without its null logits.
  [[nodiscard]] std::int64_t query_features() const { return shape_.num_heads * shape_.key_dim; }
  /// Floats from one query to the next: its features and null logits, then a gap to the next
  /// multiple of 16 bytes, at which queries are read.
  [[nodiscard]] std::int64_t query_stride() const { return (shape_.query_size() + 3) / 4 * 4; }

  /// A layer's weights; null where the scorer has none.
  [[nodiscard]] const T* maybe_query_weight(std::int64_t layer) const {
    return at(query_weight_, layer * query_features() * row_size());
  }
  [[nodiscard]] const T* maybe_key_weight(std::int64_t layer) const {
    return at(key_weight_, layer * shape_.key_size() * row_size());
  }
  [[nodiscard]] const T* maybe_null_weight(std::int64_t layer) const {
    return at(null_weight_, layer * shape_.num_heads * row_size());
  }
  [[nodiscard]] const float* maybe_null_bias(std::int64_t layer) const {
    return at(null_bias_, layer * shape_.num_heads);
  }
  [[nodiscard]] const float* maybe_distance_bias(std::int64_t layer) const {
    return at(distance_bias_, layer * shape_.num_heads * kNumDistanceBins);
  }

 private:
  static void append(std::vector<float>& all, const std::vector<float>& more) {
    all.insert(all.end(), more.begin(), more.end());
  }
  template <typename Value>
  static const Value* at(const DeviceBuffer<Value>& buffer, std::int64_t offset) {
    return buffer.size() == 0 ? nullptr : buffer.data() + offset;
  }
  template <typename Value>
  static Status upload(const std::vector<Value>& values, cudaStream_t stream,
                       DeviceBuffer<Value>& target) {
    if (values.empty()) return {};
    CHUNKLLM_ASSIGN_OR_RETURN(target, DeviceBuffer<Value>::create(values.size()));
    CHUNKLLM_RETURN_IF_ERROR(target.upload(std::span<const Value>(values), stream));
    return cuda_status(cudaStreamSynchronize(stream), "upload of the scorer");
  }

  ScorerShape shape_;
  bool ranks_by_recency_ = false;
  KeyPooling pooling_ = KeyPooling::kMean;
  std::int64_t num_layers_ = 0;        // of an adapter
  DeviceBuffer<T> query_weight_;       // [layers, query_features, row_size]
  DeviceBuffer<T> key_weight_;         // [layers, key_size, row_size]
  DeviceBuffer<T> null_weight_;        // [layers, num_heads, row_size]
  DeviceBuffer<float> null_bias_;      // [layers, num_heads]
  DeviceBuffer<float> distance_bias_;  // [layers, num_heads, kNumDistanceBins]
};

}  // namespace chunkllm::cuda
