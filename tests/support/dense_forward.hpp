// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "chunkllm/core/simd.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/model/backbone.hpp"
#include "chunkllm/model/micro_kernel.hpp"
#include "chunkllm/model/rope.hpp"

namespace chunkllm::testing {

/// A backbone with plain dense attention: what the library's own attention is measured against.
///
/// Keeps all keys (rotated) and values in f32, so a few thousand tokens are its range.
template <FrozenBackbone Backbone>
class DenseForward {
 public:
  DenseForward(const Backbone& backbone, ThreadPool& pool)
      : backbone_(backbone),
        pool_(pool),
        keys_(static_cast<std::size_t>(backbone.config().num_layers)),
        values_(keys_.size()) {}

  /// Appends tokens to the context and returns their logits, [tokens.size(), vocab_size].
  std::vector<float> append(std::span<const std::int32_t> tokens) {
    const BackboneConfig& config = backbone_.config();
    const auto rows = static_cast<std::int64_t>(tokens.size());
    std::vector<float> hidden(static_cast<std::size_t>(rows * config.hidden_size));
    std::vector<float> normed(hidden.size());
    std::vector<float> q(static_cast<std::size_t>(rows * config.query_size()));
    std::vector<float> attended(q.size());
    const MatrixView<float> hidden_view(hidden.data(), rows, config.hidden_size);
    const MatrixView<float> normed_view(normed.data(), rows, config.hidden_size);
    const MatrixView<float> q_view(q.data(), rows, config.query_size());
    const MatrixView<float> attended_view(attended.data(), rows, config.query_size());
    const RopeTable rope(RopeFrequencies(config), num_tokens_, rows);
    backbone_.embed(tokens, hidden_view);
    for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
      const MatrixView<float> k = grow(keys_[static_cast<std::size_t>(layer)], rows);
      const MatrixView<float> v = grow(values_[static_cast<std::size_t>(layer)], rows);
      backbone_.attention_input(layer, hidden_view, normed_view);
      backbone_.project_qkv(layer, normed_view, q_view, k, v, pool_);
      rotate_rows(q_view, config.num_heads, rope, num_tokens_);
      rotate_rows(k, config.num_kv_heads, rope, num_tokens_);
      attend(layer, q_view, attended_view);
      backbone_.finish_layer(layer, attended_view, hidden_view, pool_);
    }
    num_tokens_ += rows;
    std::vector<float> logits(static_cast<std::size_t>(rows * config.vocab_size));
    backbone_.logits(hidden_view, {logits.data(), rows, config.vocab_size}, pool_);
    return logits;
  }

  /// The `count` most likely continuations of `prompt`, one after the other (ties: lowest id).
  std::vector<std::int32_t> greedy(std::span<const std::int32_t> prompt, int count) {
    std::vector<std::int32_t> out;
    std::vector<float> logits = append(prompt);
    const auto vocab_size = static_cast<std::ptrdiff_t>(backbone_.config().vocab_size);
    for (int i = 0; i < count; ++i) {
      const auto last = logits.end() - vocab_size;
      out.push_back(static_cast<std::int32_t>(std::max_element(last, logits.end()) - last));
      if (i + 1 < count) logits = append(std::span(out).last(1));
    }
    return out;
  }

 private:
  MatrixView<float> grow(std::vector<float>& store, std::int64_t rows) const {
    const std::int64_t width = backbone_.config().kv_size();
    store.resize(static_cast<std::size_t>((num_tokens_ + rows) * width));
    return {store.data() + num_tokens_ * width, rows, width};
  }

  void attend(std::int64_t layer, MatrixView<const float> q, MatrixView<float> out) {
    const BackboneConfig& config = backbone_.config();
    constexpr std::int64_t kRows = 60;
    const std::int64_t num_blocks = (q.rows + kRows - 1) / kRows;
    pool_.parallel_for(config.num_heads * num_blocks, [&](std::int64_t task, int) {
      const std::int64_t first = task / config.num_heads * kRows;
      attend_block(layer, task % config.num_heads, first, std::min(kRows, q.rows - first), q, out);
    });
  }

  // Rows [first, first + rows) of one head. Scores and outputs are made 32 columns at a time out of
  // zero-padded copies of keys and values.
  void attend_block(std::int64_t layer, std::int64_t head, std::int64_t first, std::int64_t rows,
                    MatrixView<const float> q, MatrixView<float> out) const {
    const BackboneConfig& config = backbone_.config();
    const std::int64_t dim = config.head_dim;
    const std::int64_t offset = head / (config.num_heads / config.num_kv_heads) * dim;
    const float* keys = keys_[static_cast<std::size_t>(layer)].data() + offset;
    const float* values = values_[static_cast<std::size_t>(layer)].data() + offset;
    const std::int64_t num_keys = num_tokens_ + first + rows;
    const std::int64_t width = (num_keys + 31) / 32 * 32;

    std::vector<float> scores(static_cast<std::size_t>(rows * width));
    std::vector<float> panel(static_cast<std::size_t>(std::max(dim, num_keys) * 32));
    for (std::int64_t t = 0; t < num_keys; t += 32) {
      for (std::int64_t i = 0; i < 32; ++i) {
        for (std::int64_t d = 0; d < dim; ++d) {
          panel[static_cast<std::size_t>(d * 32 + i)] =
              t + i < num_keys ? keys[(t + i) * config.kv_size() + d] : 0.0F;
        }
      }
      detail::multiply_panel(q.row(first) + head * dim, q.row_stride, /*a_col=*/1, panel.data(), 32,
                             scores.data() + t, width, rows, dim, /*accumulate=*/false);
    }
    const std::int64_t window = config.sliding_window[static_cast<std::size_t>(layer)];
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t end = num_tokens_ + first + r + 1;
      softmax(std::span(scores).subspan(static_cast<std::size_t>(r * width),
                                        static_cast<std::size_t>(width)),
              window > 0 ? std::max<std::int64_t>(0, end - window) : 0, end);
    }
    std::vector<float> product(static_cast<std::size_t>(rows * 32));
    for (std::int64_t d = 0; d < dim; d += 32) {
      const std::int64_t cols = std::min<std::int64_t>(32, dim - d);
      std::fill(panel.begin(), panel.end(), 0.0F);
      for (std::int64_t t = 0; t < num_keys; ++t) {
        std::copy_n(values + t * config.kv_size() + d, cols, panel.begin() + t * 32);
      }
      detail::multiply_panel(scores.data(), width, /*a_col=*/1, panel.data(), 32, product.data(),
                             32, rows, num_keys, /*accumulate=*/false);
      for (std::int64_t r = 0; r < rows; ++r) {
        std::copy_n(product.begin() + r * 32, cols, out.row(first + r) + head * dim + d);
      }
    }
  }

  // Over [begin, end) of a row of scores; the rest becomes 0.
  void softmax(std::span<float> row, std::int64_t begin, std::int64_t end) const {
    const float scale = softmax_scale(backbone_.config());
    const std::span<float> seen =
        row.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    const float largest = *std::max_element(seen.begin(), seen.end());
    std::fill(row.begin(), row.begin() + begin, -std::numeric_limits<float>::infinity());
    std::fill(row.begin() + end, row.end(), -std::numeric_limits<float>::infinity());
    float sum = 0.0F;
    for (std::size_t i = 0; i < row.size(); i += simd::kLanes) {
      const simd::F32x16 shifted = simd::load(&row[i]) - simd::broadcast(largest);
      const simd::F32x16 weights = simd::exp(shifted * simd::broadcast(scale));
      simd::store(&row[i], weights);
      sum += simd::horizontal_sum(weights);
    }
    for (float& weight : seen) weight /= sum;
  }

  const Backbone& backbone_;
  ThreadPool& pool_;
  std::int64_t num_tokens_ = 0;
  std::vector<std::vector<float>> keys_;    // [layer][num_tokens, kv_size], rotated
  std::vector<std::vector<float>> values_;  // [layer][num_tokens, kv_size]
};

/// -log softmax(logits)[token] in double.
inline double token_nll(std::span<const float> logits, std::int32_t token) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) {
    sum += std::exp(static_cast<double>(logit) - static_cast<double>(largest));
  }
  return std::log(sum) + static_cast<double>(largest) -
         static_cast<double>(logits[static_cast<std::size_t>(token)]);
}

}  // namespace chunkllm::testing
