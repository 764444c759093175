// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/backbone.hpp"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm {

/// The first layer of a decoder as a backbone of its own: a session on it finds the chunks of a
/// text as a session on the whole decoder would, without the other layers' work.
template <FrozenBackbone Decoder>
class FirstLayerBackbone {
 public:
  /// \param decoder  must outlive this
  explicit FirstLayerBackbone(const Decoder& decoder)
      : decoder_(&decoder), config_(decoder.config()) {
    config_.num_layers = 1;
    if (!config_.sliding_window.empty()) config_.sliding_window = {config_.sliding_window[0]};
  }

  [[nodiscard]] const BackboneConfig& config() const { return config_; }
  [[nodiscard]] std::int64_t weight_bytes() const { return decoder_->weight_bytes(); }
  void embed(std::span<const std::int32_t> tokens, MatrixView<float> hidden) const {
    decoder_->embed(tokens, hidden);
  }
  void attention_input(std::int64_t layer, MatrixView<const float> hidden,
                       MatrixView<float> normed) const {
    decoder_->attention_input(layer, hidden, normed);
  }
  void project_qkv(std::int64_t layer, MatrixView<const float> normed, MatrixView<float> q,
                   MatrixView<float> k, MatrixView<float> v, ThreadPool& pool) const {
    decoder_->project_qkv(layer, normed, q, k, v, pool);
  }
  void finish_layer(std::int64_t layer, MatrixView<const float> attended, MatrixView<float> hidden,
                    ThreadPool& pool) const {
    decoder_->finish_layer(layer, attended, hidden, pool);
  }
  void logits(MatrixView<const float> hidden, MatrixView<float> logits, ThreadPool& pool) const {
    decoder_->logits(hidden, logits, pool);
  }

 private:
  const Decoder* decoder_;
  BackboneConfig config_;
};

}  // namespace chunkllm
